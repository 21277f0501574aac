//! What is no HTTP, no TLS and no gRPC, from clients and from servers, on both sides: nothing of it ends a proxy, and
//! everybody else is served.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use support::{DEADLINE, Mesh, Pod, app, policies};
use weft_proxy::identity::peer_identity;
use weft_wire::transport_header::{ALPN, SessionProtocol, TransportHeader};

/// The same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64 (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }

    fn octets(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Beginnings that lead into the parsers.
fn requests() -> Vec<Vec<u8>> {
    let preface = || b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let h2 = |frames: &[Vec<u8>]| [preface(), frame(4, 0, 0, &[]), frames.concat()].concat();
    let get = b"\x82\x86\x84\x41\x08web.test".to_vec();
    // POST, with content-type application/grpc.
    let grpc = [b"\x83\x86\x84\x41\x08web.test".to_vec(), b"\x5f\x10application/grpc".to_vec()].concat();
    vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        b"GET /ws HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec(),
        b"CONNECT web.test:80 HTTP/1.1\r\nhost: web.test:80\r\n\r\n".to_vec(),
        h2(&[frame(1, 5, 1, &get)]),
        h2(&[frame(1, 4, 1, &grpc), frame(0, 1, 1, b"\0\0\0\0\x02hi")]),
        h2(&[frame(1, 4, 1, &grpc), frame(0, 1, 1, b"\0\xff\xff\xff\xffno")]),
        h2(&[frame(1, 0, 1, &get), frame(9, 4, 1, b"\x40\x01a\x01b")]),
        h2(&[frame(1, 5, 1, &get), frame(3, 0, 1, &[0, 0, 0, 8]), frame(7, 0, 0, &[0; 8])]),
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03".to_vec(),
    ]
}

/// Beginnings of answers.
fn answers() -> Vec<Vec<u8>> {
    let settings = frame(4, 0, 0, &[]);
    vec![
        Vec::new(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x02hi".to_vec(),
        [settings.clone(), frame(1, 4, 1, b"\x88"), frame(0, 1, 1, b"hello")].concat(),
        [settings.clone(), frame(1, 4, 1, b"\x88"), frame(1, 5, 1, b"\x40\x0bgrpc-status\x010")].concat(),
        [settings.clone(), frame(5, 4, 1, b"\0\0\0\x02\x88"), frame(3, 0, 1, &[0, 0, 0, 2])].concat(),
        [settings, frame(7, 0, 0, &[0; 8])].concat(),
    ]
}

/// A beginning with some octets changed, cut, doubled or inserted, and something after it.
fn spoil(random: &mut Random, whole: &[u8]) -> Vec<u8> {
    let mut octets = whole.to_vec();
    for _ in 0..random.below(4) {
        let at = random.below(octets.len() + 1);
        match random.below(5) {
            0 => octets.truncate(at),
            1 => {
                let n = random.below(20);
                let noise = random.octets(n);
                octets.splice(at..at, noise);
            }
            2 => {
                let copy = octets[at..].to_vec();
                octets.extend(copy);
            }
            _ => {
                if let Some(octet) = octets.get_mut(at) {
                    *octet = random.next().to_be_bytes()[0];
                }
            }
        }
    }
    let n = random.below(3) * random.below(300);
    octets.extend(random.octets(n));
    octets
}

/// Sends all, in one or two pieces, and reads until the other side ends.
fn exchange(stream: &mut TcpStream, octets: &[u8], cut: usize) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let (first, second) = octets.split_at(cut.min(octets.len()));
    // The other side may be gone at any moment; what matters is that it ends.
    let _ = stream.write_all(first).and_then(|()| stream.write_all(second));
    let _ = stream.shutdown(Shutdown::Write);
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the connection does not end");
    }
}

/// Reads something, answers the next of many spoiled answers, and ends.
fn spoiled_server(listener: TcpListener, seed: u64) {
    std::thread::spawn(move || {
        let mut random = Random(seed);
        let answers = answers();
        while let Ok((mut stream, _)) = listener.accept() {
            let which = random.below(answers.len());
            let answer = spoil(&mut random, &answers[which]);
            std::thread::spawn(move || {
                let mut octets = [0; 4096];
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let _ = stream.read(&mut octets).and_then(|_| stream.write_all(&answer));
                let _ = stream.shutdown(Shutdown::Write);
                // A server that closes with octets unread resets the connection: then the answer might not arrive.
                while matches!(stream.read(&mut octets), Ok(1..)) {}
            });
        }
    });
}

/// A client that waits for nothing: an answer, or the end.
fn ask(pod: &Pod, addr: SocketAddr, request: &[u8]) {
    let mut stream = pod.connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = stream.write_all(request);
    // HTTP/1 answers end with the connection, as asked for; HTTP/2 ones with what ends the stream.
    let mut seen = Vec::new();
    let mut octets = [0; 4096];
    loop {
        match stream.read(&mut octets) {
            Ok(0) => return,
            Ok(n) => seen.extend_from_slice(&octets[..n]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "no answer: {seen:?}");
                return;
            }
        }
        if request.starts_with(b"PRI") && stream_ended(&seen) {
            return;
        }
    }
}

/// True when frames on stream 1 have ended it.
fn stream_ended(mut octets: &[u8]) -> bool {
    while let Some((head, rest)) = octets.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags, stream) = (head[3], head[4], head[8]);
        let Some(rest) = rest.get(length..) else { return false };
        if stream == 1 && (kind == 3 || kind <= 1 && flags & 1 != 0) || kind == 7 {
            return true;
        }
        octets = rest;
    }
    false
}

const CASES: usize = 150;

#[track_caller]
fn lives(mesh: &mut Mesh, vip: SocketAddr) {
    assert_eq!(app::get(&mesh.client, vip, "/"), (200, "web".into()));
    for pod in [&mut mesh.client, &mut mesh.server] {
        let Some(proxy) = &mut pod.proxy else { continue };
        assert_eq!(proxy.get("/live").0, 200);
        let log = proxy.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// A second service, whose server is sound.
fn sound(mesh: &Mesh) -> (SocketAddr, app::Web) {
    let web = app::web(mesh.server.listen(8081), "web");
    let vip = SocketAddr::from(([10, 96, 0, 101], 80));
    let endpoint = match &mesh.server.proxy {
        Some(_) => policies::meshed(mesh.server.addr(8081), &mesh.server.identity, Some(4143)),
        None => policies::endpoint(mesh.server.addr(8081)),
    };
    mesh.control.set_outbound(vip, Ok(policies::detect(policies::forward(endpoint))));
    (vip, web)
}

#[test]
fn from_clients_through_both_proxies() {
    let mut mesh = Mesh::two_pods();
    let (vip, _web) = sound(&mesh);
    let mut random = Random(0x5eed_0001);
    for _ in 0..CASES {
        for request in requests() {
            if random.below(4) > 0 {
                continue;
            }
            let octets = spoil(&mut random, &request);
            let cut = random.below(octets.len() + 1);
            exchange(&mut mesh.client.connect(vip).unwrap(), &octets, cut);
        }
    }
    lives(&mut mesh, vip);
}

#[test]
fn from_unmeshed_clients_straight_to_the_server() {
    let mut mesh = Mesh::two_pods();
    let (vip, _web) = sound(&mesh);
    let outsider = mesh.add_pod("outsider", None);
    let mut random = Random(0x5eed_0002);
    for case in 0..CASES * 3 {
        let requests = requests();
        let octets = spoil(&mut random, &requests[case % requests.len()]);
        let cut = random.below(octets.len() + 1);
        // The application's port, and the proxy's own.
        let port = if case % 5 == 0 { 4143 } else { 8081 };
        exchange(&mut outsider.connect(mesh.server.addr(port)).unwrap(), &octets, cut);
    }
    lives(&mut mesh, vip);
}

#[test]
fn from_a_meshed_client_inside_its_tls() {
    let mut mesh = Mesh::two_pods();
    let (vip, _web) = sound(&mesh);
    let outsider = mesh.add_pod("outsider", None);
    let (chain, key) = mesh.control.issue("outsider.test");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(mesh.control.root()).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = Arc::new(config);
    let mut random = Random(0x5eed_0003);
    for case in 0..CASES {
        let tcp = outsider.connect(mesh.server.addr(4143)).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        let name = mesh.server.identity.clone().try_into().unwrap();
        let tls = rustls::ClientConnection::new(config.clone(), name).unwrap();
        let mut stream = rustls::StreamOwned::new(tls, tcp);
        stream.flush().unwrap();
        let peer = stream.conn.peer_certificates().and_then(|c| peer_identity(&c[0]));
        assert_eq!(peer.as_deref(), Some(&*mesh.server.identity));
        let session = [None, Some(SessionProtocol::Http1), Some(SessionProtocol::Http2)][case % 3];
        let mut header = Vec::new();
        TransportHeader { port: 8081, name: None, session_protocol: session }.encode(&mut header);
        if case % 5 == 0 {
            header = spoil(&mut random, &header);
        }
        let requests = requests();
        let which = random.below(requests.len());
        let octets = spoil(&mut random, &requests[which]);
        let _ = stream.write_all(&[header, octets].concat());
        if case % 4 == 0 {
            // Within the TLS stream, but no TLS.
            let noise = random.octets(50);
            let _ = stream.sock.write_all(&noise);
        } else {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        let _ = stream.sock.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection does not end");
        }
    }
    lives(&mut mesh, vip);
}

/// Good requests to a server that answers nonsense.
fn from_servers(mesh: &mut Mesh, seed: u64) {
    let (vip, _web) = sound(mesh);
    spoiled_server(mesh.server.listen(8080), seed);
    let h2 = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 5, 1, b"\x82\x86\x84\x41\x08web.test"),
    ]
    .concat();
    let requests = [
        b"GET / HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi".to_vec(),
        h2,
    ];
    for case in 0..CASES {
        ask(&mesh.client, mesh.vip, &requests[case % requests.len()]);
    }
    lives(mesh, vip);
}

#[test]
fn from_servers_through_both_proxies() {
    from_servers(&mut Mesh::two_pods(), 0x5eed_0004);
}

#[test]
fn from_servers_that_are_not_meshed() {
    from_servers(&mut Mesh::with(Some(&|b| b), None), 0x5eed_0005);
}

#[test]
fn from_endpoints_that_are_no_proxies() {
    let hasty = |b: support::proxy::Builder| {
        b.env("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", "10ms").env("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", "10ms")
    };
    let mut mesh = Mesh::with(Some(&hasty), None);
    let (vip, _web) = sound(&mesh);
    // Said to be meshed, but what listens there never heard of TLS.
    spoiled_server(mesh.server.listen(4143), 0x5eed_0006);
    let endpoint = policies::meshed(mesh.server.addr(8080), &mesh.server.identity, Some(4143));
    mesh.control.set_outbound(mesh.vip, Ok(policies::detect(policies::forward(endpoint))));
    for _ in 0..20 {
        ask(&mesh.client, mesh.vip, b"GET / HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n");
    }
    lives(&mut mesh, vip);
}
