//! The smuggling corpus through two proxies to other people's servers, nginx and HAProxy: whatever a client sends, these
//! see the requests that the proxies saw, with the same ends, or none. Needs the Debian packages nginx-light and haproxy.
//!
//! Behind each server is a recorder, and behind each case a request of somebody else, which uses the same connection to
//! the server: octets that were left over would show in it.

mod support;

#[path = "../../wire/tests/h1_corpus/mod.rs"]
mod h1_corpus;

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use h1_corpus::REQUESTS;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::outbound::proxy_protocol;
use support::{Background, DEADLINE, Mesh, eventually, policies};
use weft_wire::{
    Limits,
    h1::{Event, RequestDecoder},
};

/// A request: method and path, and its body.
type Seen = (String, String);

/// Cases that only make sense with a server.
const MORE: &[(&str, &str)] = &[
    (
        "behind an upgrade that the server ignores",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "behind an upgrade with a body",
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: 2\r\n\r\nhiGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "behind a body that a GET has",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 33\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    ("behind HEAD", "HEAD / HTTP/1.1\r\nhost: a\r\n\r\nGET /n HTTP/1.1\r\nhost: a\r\n\r\n"),
];

/// Notes every whole request and answers it.
fn recorder(listener: TcpListener) -> Arc<Mutex<Vec<Seen>>> {
    listener.set_nonblocking(true).unwrap();
    let seen = Arc::<Mutex<Vec<Seen>>>::default();
    let log = seen.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let log = log.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let log = log.clone();
                    async move {
                        let line = format!("{} {}", request.method(), request.uri().path());
                        // One that breaks off is none.
                        if let Ok(body) = request.into_body().collect().await {
                            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                            log.lock().unwrap().push((line, body));
                        }
                        Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from("ok")))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    });
    seen
}

/// What the proxies see in octets: whole requests, and whether something is wrong behind them.
fn as_we_read(mut input: &[u8]) -> (Vec<Seen>, bool) {
    let mut decoder = RequestDecoder::new(&Limits::default());
    let (mut requests, mut line, mut body) = (Vec::new(), String::new(), Vec::new());
    loop {
        let (used, event) = match decoder.decode(input) {
            Ok(step) => step,
            Err(_) => return (requests, true),
        };
        input = &input[used..];
        match event {
            Some(Event::Head(head)) => {
                line = format!("{} {}", String::from_utf8_lossy(&head.method), String::from_utf8_lossy(&head.path));
            }
            Some(Event::Data(data)) => body.extend_from_slice(data),
            Some(Event::End) => {
                let text = String::from_utf8(std::mem::take(&mut body)).unwrap();
                requests.push((std::mem::take(&mut line), text));
                if !decoder.keep_alive() {
                    return (requests, false);
                }
            }
            Some(_) => {}
            None => return (requests, decoder.eof().is_err()),
        }
    }
}

/// Sends octets, and the end of them if asked to; the statuses of what comes back.
fn say(mut stream: TcpStream, octets: &[u8], end: bool) -> Vec<u16> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The other side may have had enough before all is said.
    let _ = stream.write_all(octets);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the connection does not end");
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    // Reasons may speak of HTTP/1.1 as well, but name no status behind it.
    answer.split("HTTP/1.").skip(1).filter_map(|head| head.split(' ').nth(1)?.parse().ok()).collect()
}

/// Why what a server saw is not what we saw, if so.
fn judge(input: &str, statuses: &[u16], seen: &[Seen]) -> Result<(), String> {
    let (ours, wrong) = as_we_read(input.as_bytes());
    // A server may refuse what we let through, but then it says so.
    let mut left = ours.iter();
    if !seen.iter().all(|request| left.any(|r| r == request)) {
        return Err(format!("the server saw {seen:?}, we saw {ours:?}"));
    }
    let good = statuses.iter().filter(|s| **s == 200).count();
    if good != seen.len() {
        return Err(format!("the server saw {seen:?}, but the client {statuses:?}"));
    }
    if seen.len() < ours.len() && !statuses.iter().any(|s| (400..600).contains(s)) {
        return Err(format!("we saw {ours:?}, the server {seen:?}, and nobody told the client: {statuses:?}"));
    }
    if wrong && statuses.len() > ours.len() + 1 {
        return Err(format!("{statuses:?} for {ours:?} and something wrong behind"));
    }
    Ok(())
}

/// A server on port 8080 of the server's pod that passes on to the recorder on port 9000.
struct Server {
    mesh: Mesh,
    seen: Arc<Mutex<Vec<Seen>>>,
    _process: Background,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(config: &str, command: impl FnOnce(&str) -> Vec<String>) -> Self {
        let mesh = Mesh::two_pods();
        // Declared, so that nothing is taken for another protocol.
        let endpoint = policies::meshed(mesh.server.addr(8080), &mesh.server.identity, Some(4143));
        let rule = policies::http_rule(policies::forward(endpoint));
        let routes = vec![policies::http_route_of(vec![rule])];
        let http = proxy_protocol::Kind::Http1(proxy_protocol::Http1 { routes, failure_accrual: None });
        mesh.control.set_outbound(mesh.vip, Ok(policies::policy(http)));
        let seen = recorder(mesh.server.ns.listen(([127, 0, 0, 1], 9000)));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        std::fs::write(&file, config.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        let command = command(file.to_str().unwrap());
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        let process = Background::start(&mesh.server.ns, &command);
        let server = Self { mesh, seen, _process: process, _dir: dir };
        eventually("the server", || server.mesh.server.ns.connect(server.itself()).ok());
        server
    }

    fn itself(&self) -> SocketAddr {
        ([127, 0, 0, 1], 8080).into()
    }

    /// Sends a case through both proxies.
    fn through_proxies(&self, input: &str) -> Result<(), String> {
        self.seen.lock().unwrap().clear();
        let connect = || self.mesh.client.connect(self.mesh.vip).unwrap();
        let statuses = say(connect(), input.as_bytes(), true);
        // A connection to the server that is not what it should be is found out by the next one to use it.
        let after = say(connect(), LAST.as_bytes(), true);
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        let last = seen.pop();
        if after != [200] || last != Some(("GET /last".into(), String::new())) {
            return Err(format!("the next request of somebody else was {last:?}, answered with {after:?}"));
        }
        judge(input, &statuses, &seen)
    }

    fn check(&self) {
        let corpus = REQUESTS.iter().map(|case| (case.name, case.input)).chain(MORE.iter().copied());
        for (name, input) in corpus {
            if let Err(difference) = self.through_proxies(input) {
                panic!("{name}: {difference}");
            }
        }
        // Without the proxies this server reads some of it in another way, and that is noticed.
        let case = REQUESTS.iter().find(|case| case.name == "bare line feeds throughout").unwrap();
        let input = format!("{}{LAST}", case.input);
        self.seen.lock().unwrap().clear();
        let statuses = say(self.mesh.server.ns.connect(self.itself()).unwrap(), input.as_bytes(), false);
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(judge(&input, &statuses, &seen).is_err());
    }
}

/// A request behind which the connection ends.
const LAST: &str = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[test]
fn nginx_sees_the_requests_that_we_see() {
    let config = "
        daemon off;
        user root;
        worker_processes 1;
        pid DIR/pid;
        error_log DIR/error.log;
        events {}
        http {
            access_log off;
            client_body_temp_path DIR/body;
            proxy_temp_path DIR/proxy;
            fastcgi_temp_path DIR/fastcgi;
            uwsgi_temp_path DIR/uwsgi;
            scgi_temp_path DIR/scgi;
            keepalive_requests 100000;
            upstream recorder { server 127.0.0.1:9000; keepalive 4; }
            server {
                listen 8080;
                location / {
                    proxy_pass http://recorder;
                    proxy_http_version 1.1;
                    proxy_set_header connection '';
                }
            }
        }";
    let command = |file: &str| ["nginx", "-e", "stderr", "-c", file].map(String::from).to_vec();
    Server::start(config, command).check();
}

#[test]
fn haproxy_sees_the_requests_that_we_see() {
    let config = "
defaults
    mode http
    timeout connect 60s
    timeout client 60s
    timeout server 60s
frontend front
    bind :8080
    default_backend back
backend back
    server recorder 127.0.0.1:9000
";
    let command = |file: &str| ["haproxy", "-db", "-f", file].map(String::from).to_vec();
    Server::start(config, command).check();
}
