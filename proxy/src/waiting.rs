//! The hooks of a proxy's container, whose image has no other programs. `weft-proxy await` ends when the proxy of this pod is
//! ready: it holds up the start of an application. `weft-proxy sleep` ends after some seconds: the kubelet tells the proxy
//! to end only then.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::config::{EXIT_USAGE, duration};

const DEFAULT_PORT: u16 = 4191;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two questions. The proxy is ready within a second, and the whole pod waits for it.
const PAUSE: Duration = Duration::from_millis(50);
/// The proxy answers at once, or is not there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Octets of an answer that are read: its head and one sentence.
const ANSWER_LIMIT: u64 = 4096;

/// Where to ask, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    port: u16,
    timeout: Duration,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { port: DEFAULT_PORT, timeout: DEFAULT_TIMEOUT };
        for argument in arguments {
            let wrong = || format!("{argument:?} is neither --port=PORT nor --timeout=DURATION");
            match argument.split_once('=').ok_or_else(wrong)? {
                ("--port", port) => options.port = port.parse().map_err(|_| wrong())?,
                ("--timeout", time) => options.timeout = duration(time).map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        Ok(options)
    }
}

/// Waits until the proxy whose admin server has this port on the loopback address is ready: `--port=4191`,
/// `--timeout=2m`. What it waited for is on standard error when it gives up.
pub fn wait_until_ready(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("weft-proxy: await: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match wait(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("weft-proxy: the proxy was not ready after {:?}: {why}", options.timeout);
            ExitCode::FAILURE
        }
    }
}

/// Ends after as many seconds as the one argument says.
#[allow(clippy::disallowed_methods, reason = "this program does nothing else")]
pub fn sleep_seconds(arguments: impl Iterator<Item = String>) -> ExitCode {
    match seconds(arguments) {
        Some(time) => {
            sleep(time);
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("weft-proxy: sleep: takes one argument, a whole number of seconds");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn seconds(mut arguments: impl Iterator<Item = String>) -> Option<Duration> {
    let (seconds, more) = (arguments.next()?, arguments.next());
    let seconds: u32 = seconds.parse().ok()?;
    more.is_none().then(|| Duration::from_secs(seconds.into()))
}

#[allow(clippy::disallowed_methods, reason = "this program does nothing else")]
fn wait(options: Options) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match ask(options.port) {
            Ok(()) => return Ok(()),
            Err(why) if begun.elapsed() >= options.timeout => return Err(why),
            Err(_) => sleep(PAUSE),
        }
    }
}

fn ask(port: u16) -> Result<(), String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = exchange().map_err(|error| format!("{address}: {error}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some(status) => Err(format!("{status} {}", body.trim())),
        None => Err(format!("{address} does not speak HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn options() {
        assert_eq!(parse(&[]), Ok(Options { port: DEFAULT_PORT, timeout: DEFAULT_TIMEOUT }));
        let set = Options { port: 5191, timeout: Duration::from_secs(3) };
        assert_eq!(parse(&["--timeout=3s", "--port=5191"]), Ok(set));
        for wrong in ["--port", "--port=0x1", "--port=70000", "--timeout=soon", "--other=1", "4191"] {
            let error = parse(&[wrong]).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn seconds_are_one_number() {
        let seconds = |words: &[&str]| seconds(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(seconds(&["20"]), Some(Duration::from_secs(20)));
        for wrong in [&[][..], &["soon"], &["1s"], &["-1"], &["1", "2"]] {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }

    /// Answers one connection after the other with these.
    fn server(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 64];
                assert!(stream.read(&mut request).unwrap() > 0 && request.starts_with(b"GET /ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        port
    }

    #[test]
    fn it_waits_until_the_proxy_says_that_it_is_ready() {
        const WAITING: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\nwaiting\n";
        let port = server(&[WAITING, "", WAITING, "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n"]);
        assert_eq!(wait(Options { port, timeout: Duration::from_secs(600) }), Ok(()));
        let port = server(&[WAITING]);
        assert_eq!(wait(Options { port, timeout: Duration::ZERO }), Err("503 waiting".to_owned()));
    }
}
