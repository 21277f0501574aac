//! Traffic through real proxies in network namespaces, redirected as in the cluster: what arrives, what is on the wire,
//! what it costs in memory, what happens when something dies.

mod support;

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::{
    signal::Signal,
    socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
    time::TimeVal,
};
use support::{DEADLINE, Mesh, Netns, Proxy, app, eventually, policies, read};

type Body = BoxBody<Bytes, Infallible>;

const PIECE: usize = 64 * 1024;

/// Octets of bodies of `/large`.
const LARGE: usize = 100 * 1024 * 1024;

fn large() -> Body {
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let pieces = (0..LARGE / PIECE).map(move |_| Ok::<_, Infallible>(Frame::data(piece.clone())));
    StreamBody::new(futures_util::stream::iter(pieces)).boxed()
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = match &*path {
        "/large" => large(),
        "/length" => {
            let mut body = request.into_body();
            let mut octets = 0;
            while let Some(Ok(frame)) = body.frame().await {
                octets += frame.data_ref().map_or(0, Bytes::len);
            }
            Full::new(Bytes::from(octets.to_string())).boxed()
        }
        _ => Full::new(Bytes::from(format!("SECRET answer to {path}"))).boxed(),
    };
    Ok(Response::new(body))
}

/// An application that speaks HTTP/1 and HTTP/2, on a thread of its own until the test's process ends.
fn web(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    let mut first = [0; 4];
                    while let Ok(n @ 1..4) = stream.peek(&mut first).await {
                        if !b"PRI ".starts_with(&first[..n]) {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                    let io = TokioIo::new(stream);
                    if &first == b"PRI " {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = server.serve_connection(io, service_fn(answer)).await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(io, service_fn(answer)).await;
                    }
                });
            }
        });
    });
}

/// Everything that passes a bridge, looked at for words.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<(usize, Vec<String>)>>,
}

impl Capture {
    fn start(ns: &Netns, words: &'static [&'static str]) -> Self {
        let fd: OwnedFd = ns.enter(|| {
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap()
        });
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
        setsockopt(&fd, sockopt::RcvBuf, &(16 * 1024 * 1024)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut packet = vec![0; 128 * 1024];
            let (mut octets, mut found) = (0, Vec::new());
            loop {
                match recv(fd.as_raw_fd(), &mut packet, nix::sys::socket::MsgFlags::empty()) {
                    Ok(n) => {
                        octets += n;
                        let seen = &packet[..n];
                        for word in words {
                            if seen.windows(word.len()).any(|w| w == word.as_bytes()) {
                                found.push((*word).to_owned());
                            }
                        }
                    }
                    // What was sent before the end was seen by now.
                    Err(nix::errno::Errno::EAGAIN) if flag.load(Ordering::SeqCst) => return (octets, found),
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Octets seen and words found.
    fn finish(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Reads from a connection until a text has come.
#[track_caller]
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut seen = Vec::new();
    let mut octets = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(end) {
        let n = read(stream, &mut octets).unwrap();
        assert!(n > 0, "ended before {end:?}: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&octets[..n]);
    }
    String::from_utf8(seen).unwrap()
}

/// The most memory that a process has had, in KiB.
fn peak(proxy: &Proxy) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn nothing_between_meshed_pods_is_readable() {
    let mut mesh = Mesh::two_pods();
    web(mesh.server.listen(mesh.app_port));
    let words: &[&str] = &["SECRET", "HTTP/1.1", "PRI * HTTP/2.0", "web.test", "localhost", "transport.l5d.io/v1\r\n"];
    let capture = Capture::start(mesh.bridge(), words);
    for n in 0..5 {
        let (status, body) = app::get(&mesh.client, mesh.vip, &format!("/SECRET/{n}"));
        assert_eq!((status, body.as_str()), (200, format!("SECRET answer to /SECRET/{n}").as_str()));
    }
    // Bytes that are no HTTP, to another port behind another service address.
    let listener = mesh.server.listen(9000);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut octets = [0; 100];
            while let Ok(n @ 1..) = read(&mut stream, &mut octets) {
                let _ = stream.write_all(&octets[..n]);
            }
        }
    });
    let tcp = SocketAddr::from(([10, 96, 0, 101], 9000));
    let endpoint = policies::meshed(mesh.server.addr(9000), &mesh.server.identity, Some(4143));
    mesh.control.set_outbound(tcp, Ok(policies::opaque(policies::forward(endpoint))));
    let mut stream = mesh.client.connect(tcp).unwrap();
    stream.write_all(b"\x00SECRET bytes\n").unwrap();
    assert_eq!(read_until(&mut stream, "bytes\n"), "\x00SECRET bytes\n");
    let (octets, found) = capture.finish();
    assert!(octets > 5_000, "the capture saw only {octets} octets");
    assert_eq!(found, Vec::<String>::new());
    // The same words are found where nothing is meshed: the capture works.
    let outsider = mesh.add_pod("outsider", None);
    let capture = Capture::start(mesh.bridge(), words);
    let (status, _) = app::get(&outsider, mesh.server.addr(mesh.app_port), "/SECRET");
    assert_eq!(status, 200);
    let (_, found) = capture.finish();
    assert!(found.iter().any(|w| w == "SECRET"), "{found:?}");
    mesh.server.proxy().wait_metric(
        "request_total",
        &["direction=\"inbound\"", "no_tls_reason=\"no_tls_from_remote\""],
        |n| n == 1.0,
    );
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let mesh = Mesh::two_pods();
    let listener = mesh.server.listen(mesh.app_port);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"220 ready\r\n");
            let mut octets = [0; 100];
            while let Ok(n @ 1..) = read(&mut stream, &mut octets) {
                let _ = stream.write_all(&octets[..n]);
            }
        }
    });
    // Detection would wait for 10 s; nothing here measures time, but nothing here speaks before the server does either.
    let mut stream = mesh.client.connect(mesh.vip).unwrap();
    assert_eq!(read_until(&mut stream, "\r\n"), "220 ready\r\n");
    stream.write_all(b"EHLO me\r\n").unwrap();
    assert_eq!(read_until(&mut stream, "\r\n"), "EHLO me\r\n");
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    let mut mesh = Mesh::two_pods();
    web(mesh.server.listen(mesh.app_port));
    let (status, body) = app::get(&mesh.server, mesh.vip, "/self");
    assert_eq!((status, body.as_str()), (200, "SECRET answer to /self"));
    // Through both sides of its proxy, and by mutual TLS between them.
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        mesh.server.proxy().wait_metric("request_total", &[direction, "tls=\"true\""], |n| n == 1.0);
    }
}

#[test]
fn loops_are_refused() {
    let mut mesh = Mesh::two_pods();
    let (own, loopback) = (mesh.client.ip, IpAddr::from([127, 0, 0, 1]));
    let out = SocketAddr::from(([10, 96, 0, 101], 80));
    let back = SocketAddr::from(([10, 96, 0, 102], 80));
    let through = |endpoint| Ok(policies::detect(policies::forward(endpoint)));
    mesh.control.set_outbound(out, through(policies::endpoint(SocketAddr::new(loopback, 4140))));
    // Through a transport header, back to the other proxy's own port.
    let endpoint = policies::meshed(mesh.server.addr(4143), &mesh.server.identity, Some(4143));
    mesh.control.set_outbound(back, through(endpoint));
    let refused = |pod: &support::Pod, addr: SocketAddr| {
        let mut stream = pod.connect(addr).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 502"), "{addr}: {answer}");
    };
    // Both of the own proxy's ports, directly and by detours; the other pod's as well.
    refused(&mesh.client, SocketAddr::new(own, 4143));
    refused(&mesh.client, SocketAddr::new(loopback, 4143));
    refused(&mesh.client, SocketAddr::new(loopback, 4140));
    refused(&mesh.client, out);
    refused(&mesh.client, back);
    refused(&mesh.client, mesh.server.addr(4140));
    // A connection is counted when it is done with, which may be after its client has seen the end of it.
    let counted = |pod: &mut support::Pod, name: &str, labels: &[&str], count: f64| {
        pod.proxy().wait_metric(name, labels, |n| n == count);
    };
    counted(&mut mesh.client, "outbound_tcp_errors_total", &["error=\"loop\""], 2.0);
    counted(&mut mesh.client, "inbound_tcp_errors_total", &["error=\"no identity\"", "target_addr=\"127"], 1.0);
    counted(&mut mesh.client, "inbound_tcp_errors_total", &["error=\"no identity\"", "target_addr=\"10"], 1.0);
    counted(&mut mesh.server, "inbound_tcp_errors_total", &["error=\"loop\"", "target_addr=\"10.244.0.12:4140"], 1.0);
    let to_own_port = ["error=\"loop\"", "target_addr=\"10.244.0.12:4143"];
    mesh.server.proxy().wait_metric("inbound_tcp_errors_total", &to_own_port, |n| n >= 1.0);
    for (pod, text) in [(&mesh.client, "the proxy was dialled itself"), (&mesh.server, "leads to this proxy itself")] {
        pod.proxy.as_ref().unwrap().wait_log(text);
    }
    // It lives.
    web(mesh.server.listen(mesh.app_port));
    assert_eq!(app::get(&mesh.client, mesh.vip, "/").0, 200);
    assert!(mesh.client.metrics().contains("direction=\"outbound\""));
}

/// 100 MB through both proxies towards a client that reads slowly at first: memory stays what it was, nearly.
fn bounded(h2: bool) {
    let mesh = Mesh::two_pods();
    web(mesh.server.listen(mesh.app_port));
    assert_eq!(app::get(&mesh.client, mesh.vip, "/").0, 200);
    let proxies = [mesh.client.proxy.as_ref().unwrap(), mesh.server.proxy.as_ref().unwrap()];
    let before = proxies.map(peak);
    let stream = mesh.client.connect(mesh.vip).unwrap();
    stream.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        let get = |path: &str, body: Body| {
            let uri = if h2 { format!("http://web.test{path}") } else { path.to_owned() };
            let method = if path == "/large" { "GET" } else { "POST" };
            Request::builder().method(method).uri(uri).header("host", "web.test").body(body).unwrap()
        };
        let download = get("/large", Full::new(Bytes::new()).boxed());
        let upload = get("/length", large());
        let (download, upload) = if h2 {
            let (mut client, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(conn);
            (client.send_request(download).await.unwrap(), Some(client.send_request(upload).await.unwrap()))
        } else {
            let (mut client, conn) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(conn);
            let download = client.send_request(download).await.unwrap();
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(client)
            });
            (download, None)
        };
        let mut body = download.into_body();
        let (mut octets, mut pieces) = (0, 0);
        while let Some(frame) = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap() {
            octets += frame.unwrap().data_ref().map_or(0, Bytes::len);
            pieces += 1;
            if pieces < 50 {
                // A slow reader. It is not waited for: this only lets the others run ahead.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert_eq!(octets, LARGE);
        if let Some(upload) = upload {
            let length = upload.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(length, LARGE.to_string());
        }
    });
    let after = proxies.map(peak);
    for (before, after) in before.into_iter().zip(after) {
        assert!(after < before + 8 * 1024, "from {before} KiB to {after} KiB");
    }
}

#[test]
fn memory_is_bounded_over_http1() {
    bounded(false);
}

#[test]
fn memory_is_bounded_over_http2() {
    bounded(true);
}

#[test]
fn a_killed_peer_is_replaced() {
    let mut mesh = Mesh::two_pods();
    web(mesh.server.listen(mesh.app_port));
    assert_eq!(app::get(&mesh.client, mesh.vip, "/").0, 200);
    mesh.server.proxy().signal(Signal::SIGKILL);
    mesh.server.proxy().wait_exit();
    let status = std::thread::scope(|scope| {
        let (client, vip) = (&mesh.client, mesh.vip);
        let waiting = scope.spawn(move || app::get(client, vip, "/").0);
        let (ns, identity) = (mesh.server.ns.clone(), mesh.server.identity.clone());
        mesh.server.proxy = Some(Proxy::builder_in(&mesh.control, &identity, &ns).spawn_ready());
        waiting.join().unwrap()
    });
    // It waits for the new one, unless that takes too long.
    assert!(matches!(status, 200 | 504), "{status}");
    eventually("the new proxy to be used", || (app::get(&mesh.client, mesh.vip, "/").0 == 200).then_some(()));
}

#[test]
fn silent_connections_cost_little() {
    let mesh = Mesh::two_pods();
    let proxy = mesh.client.proxy.as_ref().unwrap();
    let listener = mesh.server.listen(mesh.app_port);
    let rss = |proxy: &Proxy| -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", proxy.pid())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4
    };
    let first = mesh.client.connect(mesh.vip).unwrap();
    let (_conn, _) = listener.accept().unwrap();
    let before = rss(proxy);
    let held: Vec<_> = (0..300).map(|_| mesh.client.connect(mesh.vip).unwrap()).collect();
    let accepted: Vec<_> = (0..300).map(|_| listener.accept().unwrap()).collect();
    let grown = rss(proxy).saturating_sub(before);
    assert!(grown < 300 * 24, "{grown} KiB for 300 connections, each with one to the server");
    drop((first, held, accepted));
}
