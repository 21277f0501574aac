//! The binary itself: settings from the environment, SIGTERM, and messages for wrong settings.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A workload in a process of its own.
struct Workload {
    child: Child,
    lines: Receiver<String>,
}

impl Workload {
    fn start(name: &str, environment: &[(&str, &str)]) -> Self {
        let mut child = command(name, environment).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line with this text, and gives what follows it.
    fn after(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("no `{text}`: {error}"));
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
    }

    fn terminate(mut self) -> Option<i32> {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(name: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-demo"));
    command.arg(name).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

fn get(port: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_four_workloads_run_from_the_environment_and_end_with_sigterm() {
    let ports = [("GRPC_PORT", "0"), ("PROM_PORT", "0")];
    let emoji = Workload::start("emoji", &ports);
    let emoji_host = format!("127.0.0.1:{}", emoji.after("gRPC on port "));
    assert!(get(&emoji.after("Prometheus on port "), "/ready").ends_with("\r\n\r\nready\n"));
    let voting = Workload::start("voting", &[("GRPC_PORT", "0"), ("PROM_PORT", "0"), ("FAILURE_RATE", "0")]);
    let voting_host = format!("127.0.0.1:{}", voting.after("gRPC on port "));
    let settings = [
        ("WEB_PORT", "0"),
        ("EMOJISVC_HOST", &emoji_host),
        ("VOTINGSVC_HOST", &voting_host),
        ("MESSAGE_OF_THE_DAY", "hi"),
    ];
    let web = Workload::start("web", &settings);
    let web_port = web.after("HTTP on port ");
    assert!(get(&web_port, "/").contains(">hi<"));
    assert!(get(&web_port, "/api/vote?choice=:doughnut:").starts_with("HTTP/1.1 200 OK\r\n"));
    let web_host = format!("127.0.0.1:{web_port}");
    let bot = Workload::start("vote-bot", &[("WEB_HOST", &web_host), ("REQUEST_RATE", "50")]);
    bot.after("voted for :");
    for workload in [bot, web, voting, emoji] {
        assert_eq!(workload.terminate(), Some(0));
    }
}

#[test]
fn the_bot_says_that_the_front_is_away_and_goes_on() {
    // Bound but not listening: connections are refused, and nobody else gets the port meanwhile.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let host = held.local_addr().unwrap().to_string();
    let bot = Workload::start("vote-bot", &[("WEB_HOST", &host), ("REQUEST_RATE", "100")]);
    for _ in 0..3 {
        bot.after(&format!("{host} does not answer as it should, trying again"));
    }
    assert_eq!(bot.terminate(), Some(0));
}

#[test]
fn a_wrong_setting_is_named() {
    for (workload, environment, named) in [
        ("web", &[("VOTINGSVC_HOST", "a:1")][..], "EMOJISVC_HOST"),
        ("web", &[("EMOJISVC_HOST", "a:1"), ("VOTINGSVC_HOST", "not a host")][..], "not a host"),
        ("vote-bot", &[][..], "WEB_HOST"),
        ("vote-bot", &[("WEB_HOST", "a:1"), ("REQUEST_RATE", "0")][..], "REQUEST_RATE"),
        ("voting", &[("FAILURE_RATE", "2")][..], "FAILURE_RATE"),
        ("voting", &[("ARTIFICIAL_DELAY", "soon")][..], "ARTIFICIAL_DELAY"),
        ("emoji", &[("GRPC_PORT", "70000")][..], "GRPC_PORT"),
    ] {
        let Output { status, stderr, .. } = command(workload, environment).output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(!status.success(), "{workload} {environment:?}");
        assert!(stderr.contains(named), "{workload} {environment:?}: {stderr}");
    }
}
