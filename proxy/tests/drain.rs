//! Proxies that end while there is traffic.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use support::{DEADLINE, Load, Mesh, Proxy, app, control::Endpoints, eventually, policies, proxy::Builder, read};

/// Nothing here ends because its time is over.
fn patient(builder: Builder) -> Builder {
    builder.env("SHUTDOWN_GRACE_PERIOD", "1h").env("SHUTDOWN_ENDPOINT_ENABLED", "true")
}

fn mesh() -> Mesh {
    Mesh::with(Some(&patient), Some(&patient))
}

/// The test's own control plane listens in every pod. When it is gone, nobody but the proxy has sockets there.
fn leave_pods(mesh: &Mesh) {
    mesh.control.pause();
}

#[track_caller]
fn ends_well(proxy: &mut Proxy) {
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let log = proxy.log();
    assert!(log.contains("drained") && !log.contains("grace period;"), "{log}");
}

/// A request whose answer is waited for elsewhere.
fn request(mesh: &Mesh, to: SocketAddr, path: &str) -> TcpStream {
    let mut stream = mesh.client.connect(to).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: web.test\r\n\r\n").unwrap();
    stream
}

/// Everything until the connection ends.
#[track_caller]
fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.to_ascii_lowercase()
}

#[test]
fn an_application_that_is_still_at_work_is_served_after_sigterm() {
    let mut mesh = mesh();
    let _web = app::web(mesh.server.listen(mesh.app_port), "server");
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    load.more("server", 30);
    mesh.client.proxy().signal(Signal::SIGTERM);
    mesh.client.proxy().wait_log("draining");
    // Old connections go on, new ones are made; nothing fails.
    load.more("server", 100);
    assert_eq!(mesh.client.proxy().get("/live").0, 200);
    // As Linkerd's: whoever was ready once stays so. That the pod ends is known from elsewhere.
    assert_eq!(mesh.client.proxy().get("/ready").0, 200);
    load.stop_without_failure();
    leave_pods(&mesh);
    mesh.client.proxy().wait_log("the application has ended");
    ends_well(mesh.client.proxy());
}

#[test]
fn a_server_finishes_what_it_has_and_goes_when_its_application_has_gone() {
    let mut mesh = mesh();
    let mut other = mesh.add_pod("other", Some(&patient));
    let web = app::web(mesh.server.listen(mesh.app_port), "server");
    let _other_web = app::web(other.listen(mesh.app_port), "other");
    let first = policies::meshed(mesh.server.addr(mesh.app_port), &mesh.server.identity, Some(4143));
    let second = policies::meshed(other.addr(mesh.app_port), &other.identity, Some(4143));
    mesh.control.set_endpoints(&mesh.service, Endpoints::Set(vec![first.clone(), second.clone()]));
    let only_first = SocketAddr::from(([10, 96, 0, 101], 80));
    mesh.control.set_outbound(only_first, Ok(policies::detect(policies::forward(first))));

    mesh.control.set_outbound(mesh.vip, Ok(policies::detect(policies::balance_evenly(&mesh.service))));
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    load.more("server", 10);
    load.more("other", 10);
    let long = request(&mesh, only_first, "/wait");
    let there = ["direction=\"inbound\"", "target_port=\"8080\""];
    mesh.server.proxy().wait_metric("request_total", &there, |n| n >= 1.0);

    mesh.server.proxy().signal(Signal::SIGTERM);
    mesh.server.proxy().wait_log("draining");
    // Nobody has told the clients yet.
    load.more("server", 30);
    mesh.control.set_endpoints(&mesh.service, Endpoints::Set(vec![second]));
    load.only("other", 60);
    web.release();
    let mut long = long;
    let mut answer = Vec::new();
    let mut octets = [0; 1024];
    while !String::from_utf8_lossy(&answer).contains("server") {
        let n = read(&mut long, &mut octets).unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&octets[..n]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
    drop((long, web));
    load.stop_without_failure();
    leave_pods(&mesh);
    mesh.server.proxy().wait_log("the application has ended");
    ends_well(mesh.server.proxy());
    assert_eq!(other.proxy().get("/live").0, 200);
}

#[test]
fn a_request_under_way_is_answered_and_the_client_told_to_close() {
    let mut mesh = mesh();
    let web = app::web(mesh.server.listen(mesh.app_port), "server");
    let stream = request(&mesh, mesh.vip, "/wait");
    mesh.client.proxy().wait_metric("request_total", &["direction=\"outbound\""], |n| n == 1.0);
    assert_eq!(mesh.client.proxy().admin_request("POST", "/shutdown", "").0, 200);
    mesh.client.proxy().wait_log("draining");
    web.release();
    let answer = rest(stream);
    assert!(answer.starts_with("http/1.1 200") && answer.ends_with("server"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The next frame: type, flags, payload. None at the end of the connection.
fn next(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).ok()?;
    Some((head[3], head[4], payload))
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// Clients that are told to leave may fail what they were about to send, and an application that ends has its own ways.
#[test]
fn an_application_is_not_told_to_leave_its_own_connections() {
    let mut mesh = mesh();
    let _web = app::web(mesh.server.listen(mesh.app_port), "server");
    let mut stream = mesh.client.connect(mesh.vip).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    let get = b"\x82\x86\x84\x41\x08web.test";
    stream.write_all(&frame(HEADERS, 5, 1, get)).unwrap();
    while next(&mut stream).expect("an answer").0 != HEADERS {}
    mesh.client.proxy().signal(Signal::SIGTERM);
    mesh.client.proxy().wait_log("draining");
    for id in [3, 5, 7] {
        stream.write_all(&frame(HEADERS, 5, id, get)).unwrap();
        loop {
            match next(&mut stream).expect("an answer").0 {
                HEADERS => break,
                kind => assert_ne!(kind, GOAWAY),
            }
        }
    }
    drop(stream);
    leave_pods(&mesh);
    ends_well(mesh.client.proxy());
}

#[test]
fn http2_clients_are_told_twice_by_goaway() {
    let mut mesh = mesh();
    let _web = app::web(mesh.server.listen(mesh.app_port), "server");
    let mut stream = mesh.client.connect(mesh.vip).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    // GET http / with an authority, by HPACK's static table.
    let get = b"\x82\x86\x84\x41\x08web.test";
    stream.write_all(&frame(HEADERS, 5, 1, get)).unwrap();
    while next(&mut stream).expect("an answer").0 != HEADERS {}

    assert_eq!(mesh.client.proxy().admin_request("POST", "/shutdown", "").0, 200);
    let mut ping = None;
    let mut announced = false;
    while ping.is_none() {
        match next(&mut stream).expect("GOAWAY and PING") {
            (GOAWAY, _, payload) => {
                assert_eq!(payload[..4], 0x7fff_ffff_u32.to_be_bytes(), "what is on its way is served");
                announced = true;
            }
            (PING, 0, payload) if announced => ping = Some(payload),
            _ => {}
        }
    }
    // A request that was on its way.
    stream.write_all(&frame(HEADERS, 5, 3, get)).unwrap();
    stream.write_all(&frame(PING, 1, 0, &ping.unwrap())).unwrap();
    let (mut answered, mut last) = (false, None);
    while let Some((kind, _, payload)) = next(&mut stream) {
        match kind {
            HEADERS => answered = true,
            GOAWAY => last = Some(payload[..4].to_vec()),
            _ => {}
        }
    }
    assert!(answered);
    assert_eq!(last.as_deref(), Some(&3_u32.to_be_bytes()[..]));
}

/// GOAWAY makes linkerd2-proxy fail the requests that it is about to send. It leaves by itself when it hears from the
/// control plane, so it is told only when it does not.
#[test]
fn proxies_are_given_time_to_leave_before_goaway() {
    // How long they have, less what a busy machine may need.
    const SOON: Duration = Duration::from_secs(3);
    let connections = |mesh: &mut Mesh| {
        let labels = ["direction=\"outbound\"", "peer=\"dst\"", "tls=\"true\""];
        mesh.client.proxy().wait_metric("tcp_open_total", &labels, |n| n >= 1.0)
    };
    for _ in 0..10 {
        let mut mesh = mesh();
        let _web = app::web(mesh.server.listen(mesh.app_port), "server");
        let get = |mesh: &Mesh| assert_eq!(app::get(&mesh.client, mesh.vip, "/"), (200, "server".to_owned()));
        get(&mesh);
        let begun = Instant::now();
        mesh.server.proxy().signal(Signal::SIGTERM);
        mesh.server.proxy().wait_log("draining");
        (0..50).for_each(|_| get(&mesh));
        let seen = connections(&mut mesh);
        if begun.elapsed() > SOON {
            continue;
        }
        assert!(seen == 1.0, "{seen} connections: the first one was ended");
        // In the end it is told.
        eventually("the connection is ended", || {
            get(&mesh);
            (connections(&mut mesh) > 1.0).then_some(())
        });
        return;
    }
    panic!("this machine is too slow to see it");
}

#[test]
fn shutdown_does_not_wait_for_the_application_but_for_its_requests() {
    let mut mesh = mesh();
    let web = app::web(mesh.server.listen(mesh.app_port), "server");
    let stream = request(&mesh, mesh.vip, "/wait");
    mesh.client.proxy().wait_metric("request_total", &["direction=\"outbound\""], |n| n == 1.0);
    assert_eq!(mesh.client.proxy().admin_request("POST", "/shutdown", "").0, 200);
    mesh.client.proxy().wait_log("draining");
    assert_eq!(mesh.client.proxy().get("/live").0, 200);
    web.release();
    assert!(rest(stream).ends_with("server"));
    // The control plane still has sockets in the pod, which are not asked for.
    ends_well(mesh.client.proxy());
}

/// A server that agrees to every WebSocket, and repeats what it hears afterwards.
fn websocket(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut octets = [0; 1024];
                while !head.ends_with(b"\r\n\r\n") {
                    let n = read(&mut stream, &mut octets[..1])?;
                    head.extend_from_slice(&octets[..n]);
                }
                stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
                )?;
                while let n @ 1.. = read(&mut stream, &mut octets)? {
                    stream.write_all(&octets[..n])?;
                }
                std::io::Result::Ok(())
            });
        }
    });
}

#[track_caller]
fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut octets = [0; 5];
    stream.read_exact(&mut octets).unwrap();
    assert_eq!(&octets, b"hello");
}

/// A connection for bytes and a WebSocket, of a client whose proxy is told to end: they go on while the application is at
/// work, and so do new ones; then `end` is done, and all have ended.
fn tunnels_go_on_until(grace: &str, end: impl FnOnce(&mut Proxy), last_words: &str) {
    let brief = |b: Builder| b.env("SHUTDOWN_GRACE_PERIOD", grace);
    let mut mesh = Mesh::with(Some(&brief), Some(&patient));
    websocket(mesh.server.listen(mesh.app_port));
    let bytes = SocketAddr::from(([10, 96, 0, 101], 80));
    let endpoint = policies::meshed(mesh.server.addr(mesh.app_port), &mesh.server.identity, Some(4143));
    mesh.control.set_outbound(bytes, Ok(policies::opaque(policies::forward(endpoint))));
    let open = |mesh: &Mesh, to: SocketAddr| {
        let mut stream = mesh.client.connect(to).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = "GET / HTTP/1.1\r\nhost: web.test\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut octet = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut octet).unwrap();
            answer.push(octet[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{:?}", String::from_utf8_lossy(&answer));
        stream
    };
    let mut held = vec![open(&mesh, bytes), open(&mesh, mesh.vip)];
    held.iter_mut().for_each(echoes);
    mesh.client.proxy().signal(Signal::SIGTERM);
    mesh.client.proxy().wait_log("draining");
    if grace == "1h" {
        held.iter_mut().for_each(echoes);
        held.extend([open(&mesh, bytes), open(&mesh, mesh.vip)]);
        held.iter_mut().for_each(echoes);
    }
    end(mesh.client.proxy());
    assert_eq!(mesh.client.proxy().wait_exit().code(), Some(0));
    assert!(mesh.client.proxy().log().contains(last_words), "{}", mesh.client.proxy().log());
    for mut stream in held {
        // Neither application is left alone with a connection that goes nowhere.
        match read(&mut stream, &mut [0; 10]) {
            Ok(n) => assert_eq!(n, 0),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    let open = ["direction=\"inbound\"", "peer=\"src\"", "target_port=\"8080\""];
    mesh.server.proxy().wait_metric("tcp_open_connections", &open, |n| n == 0.0);
}

#[test]
fn tunnels_go_on_until_the_grace_period_is_over() {
    tunnels_go_on_until("1s", |_| (), "connections are left after the grace period; ending them");
}

#[test]
fn tunnels_go_on_until_the_proxy_is_told_again() {
    tunnels_go_on_until("1h", |proxy| proxy.signal(Signal::SIGTERM), "told to end again");
}

#[test]
fn the_log_level_changes_under_traffic() {
    let mut mesh = Mesh::with(Some(&|b| b), None);
    let _web = app::web(mesh.server.listen(mesh.app_port), "server");
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    load.more("server", 10);
    let mut proxy = mesh.client.proxy.take().unwrap();
    let refused = |port: u16| {
        let addr = SocketAddr::from(([10, 96, 0, 102], port));
        mesh.control.set_outbound(addr, Err(tonic::Status::invalid_argument(format!("port {port} is refused"))));
        drop(mesh.client.connect(addr));
    };
    let set = |proxy: &mut Proxy, level: &str| {
        assert_eq!(proxy.admin_request("PUT", "/proxy-log-level", level).0, 204);
    };
    refused(1001);
    proxy.wait_log("port 1001 is refused");
    set(&mut proxy, "error");
    refused(1002);
    let counted = |proxy: &mut Proxy, port: u16| {
        let label = format!("target_port=\"{port}\"");
        proxy.wait_metric("outbound_tcp_errors_total", &["error=\"discovery\"", &label], |n| n == 1.0);
    };
    counted(&mut proxy, 1002);
    set(&mut proxy, "info");
    refused(1003);
    proxy.wait_log("port 1003 is refused");
    assert!(!proxy.log().contains("port 1002 is refused"));
    load.stop_without_failure();
    eventually("the proxy to live", || (proxy.get("/live").0 == 200).then_some(()));
}
