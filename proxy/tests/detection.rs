//! What connections speak: every outcome of detection is counted, on both sides.

mod support;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use linkerd2_proxy_api::{inbound, outbound};
use support::{DEADLINE, Mesh, Pod, app, policies, proxy::metric, read};

/// Says something to everybody, then repeats what it hears.
fn greeter(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let _ = stream.write_all(b"220 ready\r\n");
                let mut octets = [0; 100];
                while let Ok(n @ 1..) = read(&mut stream, &mut octets) {
                    let _ = stream.write_all(&octets[..n]);
                }
            });
        }
    });
}

/// Repeats what it hears.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut octets = [0; 4096];
                while let Ok(n @ 1..) = read(&mut stream, &mut octets) {
                    let _ = stream.write_all(&octets[..n]);
                }
            });
        }
    });
}

/// The beginning of the application's own TLS.
fn client_hello() -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut hello = Vec::new();
    let mut client = rustls::ClientConnection::new(Arc::new(config), "shop.example".try_into().unwrap()).unwrap();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// What is sent comes back, octet by octet.
#[track_caller]
fn passes(stream: &mut TcpStream, octets: &[u8]) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(octets).unwrap();
    let mut back = vec![0; octets.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == octets);
}

/// Ends a connection that the proxy has accepted by a reset.
#[track_caller]
fn abort(stream: TcpStream, pod: &mut Pod, direction: &str, port: u16) {
    let accepted = [&format!("direction=\"{direction}\""), "peer=\"src\"", &format!("target_port=\"{port}\"")];
    if direction == "outbound" {
        pod.proxy().wait_metric("tcp_open_connections", &accepted, |n| n == 1.0);
    } else {
        // Not counted as accepted before it is known what it is; but the application is asked by then.
        let application = ["direction=\"inbound\"", "peer=\"dst\""];
        pod.proxy().wait_metric("tcp_open_connections", &application, |n| n >= 1.0);
    }
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Hears one octet, then answers another.
fn shy(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut octet = [0];
                if stream.read_exact(&mut octet).is_ok() {
                    let _ = stream.write_all(b"!");
                }
                let _ = read(&mut stream, &mut octet);
            });
        }
    });
}

#[track_caller]
fn expect(stream: &mut TcpStream, text: &str) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut octets = vec![0; text.len()];
    stream.read_exact(&mut octets).unwrap();
    assert_eq!(String::from_utf8_lossy(&octets), text);
}

fn detect_for(ms: u64, backend: outbound::Backend) -> outbound::OutboundPolicy {
    let mut policy = policies::detect(backend);
    if let Some(outbound::ProxyProtocol { kind: Some(outbound::proxy_protocol::Kind::Detect(detect)) }) =
        &mut policy.protocol
    {
        detect.timeout = Some(Duration::from_millis(ms).try_into().unwrap());
    }
    policy
}

fn server_for(ms: u64) -> inbound::Server {
    policies::server_with(
        inbound::proxy_protocol::Kind::Detect(inbound::proxy_protocol::Detect {
            timeout: Some(Duration::from_millis(ms).try_into().unwrap()),
            http_routes: vec![policies::inbound_route()],
            http_local_rate_limit: None,
        }),
        vec![policies::allow_all()],
    )
}

#[track_caller]
fn counted(pod: &mut Pod, name: &str, result: &str, n: f64) {
    pod.proxy().wait_metric(name, &[&format!("result=\"{result}\"")], |v| v == n);
}

#[test]
fn outcomes_are_counted_and_servers_that_speak_first_are_heard() {
    let mut mesh = Mesh::with(Some(&|b| b), None);
    let port = |n: u16| SocketAddr::from(([10, 96, 0, 101], n));
    let lead = |mesh: &Mesh, n: u16, ms| {
        let backend = policies::forward(policies::endpoint(mesh.server.addr(n)));
        mesh.control.set_outbound(port(n), Ok(detect_for(ms, backend)));
    };
    let name = "outbound_tcp_detect_http_results_total";
    const PATIENT: u64 = 600_000;

    let web = app::web(mesh.server.listen(8080), "web");
    lead(&mesh, 8080, PATIENT);
    assert_eq!(app::get(&mesh.client, port(8080), "/").0, 200);
    counted(&mut mesh.client, name, "http/1", 1.0);
    let mut stream = mesh.client.connect(port(8080)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    counted(&mut mesh.client, name, "http/2", 1.0);
    drop((stream, web));

    greeter(mesh.server.listen(9000));
    lead(&mesh, 9000, PATIENT);
    // The first time and ever after.
    for n in 1..=3 {
        let mut stream = mesh.client.connect(port(9000)).unwrap();
        expect(&mut stream, "220 ready\r\n");
        stream.write_all(b"EHLO\r\n").unwrap();
        expect(&mut stream, "EHLO\r\n");
        counted(&mut mesh.client, name, "server_first", f64::from(n));
    }
    // A client that speaks at once is heard, whoever spoke before.
    let mut stream = mesh.client.connect(port(9000)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = read(&mut stream, &mut [0; 100]);

    shy(mesh.server.listen(9001));
    lead(&mesh, 9001, PATIENT);
    let mut stream = mesh.client.connect(port(9001)).unwrap();
    stream.write_all(b"\0").unwrap();
    expect(&mut stream, "!");
    counted(&mut mesh.client, name, "not_http", 1.0);

    drop(mesh.client.connect(port(9001)).unwrap());
    counted(&mut mesh.client, name, "closed", 1.0);

    // The application's own TLS passes as it is.
    echo(mesh.server.listen(9003));
    lead(&mesh, 9003, PATIENT);
    let mut stream = mesh.client.connect(port(9003)).unwrap();
    passes(&mut stream, &client_hello());
    counted(&mut mesh.client, name, "tls", 1.0);
    drop(stream);

    shy(mesh.server.listen(9004));
    lead(&mesh, 9004, PATIENT);
    let stream = mesh.client.connect(port(9004)).unwrap();
    abort(stream, &mut mesh.client, "outbound", 9004);
    counted(&mut mesh.client, name, "error", 1.0);

    // What is declared is not looked at.
    let declared = "outbound_tcp_protocol_connections_total";
    let protocol = |mesh: &mut Mesh, name: &str| {
        metric(&mesh.client.metrics(), declared, &[&format!("protocol=\"{name}\"")]).unwrap_or_default()
    };
    assert!(protocol(&mut mesh, "detect") >= 8.0);
    assert_eq!(protocol(&mut mesh, "opaq"), 0.0);
    let endpoint = policies::endpoint(mesh.server.addr(9000));
    mesh.control.set_outbound(port(9010), Ok(policies::opaque(policies::forward(endpoint))));
    let mut stream = mesh.client.connect(port(9010)).unwrap();
    expect(&mut stream, "220 ready\r\n");
    assert_eq!(protocol(&mut mesh, "opaq"), 1.0);
    counted(&mut mesh.client, name, "server_first", 3.0);

    shy(mesh.server.listen(9002));
    lead(&mesh, 9002, 200);
    let mut stream = mesh.client.connect(port(9002)).unwrap();
    counted(&mut mesh.client, name, "read_timeout", 1.0);
    stream.write_all(b"?").unwrap();
    expect(&mut stream, "!");
}

/// Sends the settings of an HTTP/2 server to everybody, and nothing else.
fn http2_server(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let _ = stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64");
                let mut octets = [0; 100];
                while let Ok(1..) = read(&mut stream, &mut octets) {}
            });
        }
    });
}

/// Servers of gRPC send their settings to whoever connects. A proxy that is slow to begin TLS got them in the clear, and
/// could not connect any more: the server was taken for one that speaks first.
#[test]
fn an_http2_server_does_not_speak_before_a_client_that_is_slow_to_begin_tls() {
    let mut mesh = Mesh::with(None, Some(&|b| b.env("INBOUND_DETECT_TIMEOUT", "1h")));
    mesh.control.set_inbound(9005, Ok(server_for(600_000)));
    http2_server(mesh.server.listen(9005));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(mesh.control.root()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    for n in 1..=3 {
        let mut stream = mesh.client.connect(mesh.server.addr(9005)).unwrap();
        let application = ["direction=\"inbound\"", "peer=\"dst\""];
        mesh.server.proxy().wait_metric("tcp_open_total", &application, |opened| opened >= f64::from(n));
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let silence = read(&mut stream, &mut [0]).unwrap_err();
        assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let name = mesh.server.identity.clone().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.clone(), name).unwrap();
        while client.is_handshaking() {
            client.complete_io(&mut stream).unwrap();
        }
    }
}

#[test]
fn outcomes_are_counted_at_the_server_too() {
    let mut mesh = Mesh::with(None, Some(&|b| b.env("INBOUND_DETECT_TIMEOUT", "1h")));
    let name = "inbound_tcp_detect_http_results_total";
    for port in [8080, 9000, 9001] {
        mesh.control.set_inbound(port, Ok(server_for(600_000)));
    }
    let _web = app::web(mesh.server.listen(8080), "web");
    assert_eq!(app::get(&mesh.client, mesh.server.addr(8080), "/").0, 200);
    counted(&mut mesh.server, name, "http/1", 1.0);

    greeter(mesh.server.listen(9000));
    for n in 1..=3 {
        let mut stream = mesh.client.connect(mesh.server.addr(9000)).unwrap();
        expect(&mut stream, "220 ready\r\n");
        counted(&mut mesh.server, name, "server_first", f64::from(n));
    }

    shy(mesh.server.listen(9001));
    let mut stream = mesh.client.connect(mesh.server.addr(9001)).unwrap();
    stream.write_all(b"\0").unwrap();
    expect(&mut stream, "!");
    counted(&mut mesh.server, name, "not_http", 1.0);
    drop(mesh.client.connect(mesh.server.addr(9001)).unwrap());
    counted(&mut mesh.server, name, "closed", 1.0);
    drop(stream);

    echo(mesh.server.listen(9003));
    mesh.control.set_inbound(9003, Ok(server_for(600_000)));
    let mut stream = mesh.client.connect(mesh.server.addr(9003)).unwrap();
    passes(&mut stream, &client_hello());
    counted(&mut mesh.server, name, "tls", 1.0);
    let opaque = ["direction=\"inbound\"", "tls=\"opaque\"", "sni=\"shop.example\""];
    mesh.server.proxy().wait_metric("tcp_open_total", &opaque, |n| n == 1.0);
    drop(stream);

    // All others have ended, so that the next one shows.
    let application = ["direction=\"inbound\"", "peer=\"dst\""];
    mesh.server.proxy().wait_metric("tcp_open_connections", &application, |n| n == 0.0);
    let stream = mesh.client.connect(mesh.server.addr(9001)).unwrap();
    abort(stream, &mut mesh.server, "inbound", 9001);
    counted(&mut mesh.server, name, "error", 1.0);
}

#[test]
fn a_silent_connection_is_relayed_once_the_time_for_detection_is_over() {
    let mut mesh = Mesh::with(None, Some(&|b| b.env("INBOUND_DETECT_TIMEOUT", "200ms")));
    mesh.control.set_inbound(9001, Ok(server_for(600_000)));
    shy(mesh.server.listen(9001));
    let mut stream = mesh.client.connect(mesh.server.addr(9001)).unwrap();
    counted(&mut mesh.server, "inbound_tcp_detect_http_results_total", "read_timeout", 1.0);
    stream.write_all(b"?").unwrap();
    expect(&mut stream, "!");
}
