//! More than a proxy can carry: it sheds load and says why, it never dies, and neighbours do not notice.

mod support;

use std::{
    io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _, pipe},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    process::Command,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
};
use support::{
    DEADLINE, Load, Mesh, Netns, Proxy, app, eventually, policies,
    proxy::{PROXY_GID, metric},
    read,
};

const LIMIT: &str = "error=\"connection limit\"";
const CLIENT: &str = "error=\"client connection limit\"";
const FILES: &str = "error=\"file descriptors\"";

/// Echoes, one thread a connection.
fn echo(listener: std::net::TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut octets = [0; 1024];
                while let Ok(n @ 1..) = read(&mut stream, &mut octets) {
                    if stream.write_all(&octets[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// True when the connection carries an octet there and back; false when it ends.
fn carries(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut octet = [0];
    if stream.write_all(b"!").is_err() {
        return false;
    }
    match read(stream, &mut octet) {
        Ok(n) => n == 1,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "neither carried nor ended");
            false
        }
    }
}

/// A connection that carries octets; none when it was shed.
fn connect(ns: &Netns, addr: SocketAddr) -> Option<TcpStream> {
    match ns.connect(addr) {
        Ok(mut stream) => carries(&mut stream).then_some(stream),
        // Shed before the kernel told that it was connected.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            None
        }
    }
}

fn resident(proxy: &Proxy) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", proxy.pid())).unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4
}

/// Changes how many files a proxy may have open; none: as many as ever.
fn limit_files(proxy: &Proxy, files: Option<usize>) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    let hard: usize = line.split_whitespace().nth(4).unwrap().parse().unwrap();
    let status = Command::new("prlimit")
        // A process of the same user and group may do that.
        .gid(PROXY_GID)
        .args(["--pid", &proxy.pid().to_string(), &format!("--nofile={}:", files.unwrap_or(hard))])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Numbers of the files that a proxy has open.
fn open_files(proxy: &Proxy) -> Vec<usize> {
    let dir = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
    dir.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn few_file_descriptors_are_shared_out_and_what_is_too_much_is_shed() {
    let mut mesh = Mesh::with(Some(&|b| b.wrapped(&["prlimit", "--nofile=100:100"])), None);
    echo(mesh.server.listen(9000));
    let vip = SocketAddr::from(([10, 96, 0, 101], 9000));
    mesh.control.set_outbound(vip, Ok(policies::opaque(policies::forward(policies::endpoint(mesh.server.addr(9000))))));
    let mut held = Vec::new();
    let mut shed = 0;
    for _ in 0..200 {
        match connect(&mesh.client.ns, vip) {
            Some(stream) => held.push(stream),
            None => shed += 1,
        }
    }
    assert!(held.len() >= 10 && shed >= 100, "{} held, {shed} shed", held.len());
    // There is room for those who ask why.
    mesh.client.proxy().wait_metric("outbound_tcp_errors_total", &[LIMIT, "target_port=\"9000\""], |n| n >= 100.0);
    mesh.client.proxy().wait_log("connection shed: too many connections are open in this proxy");
    assert!(held.iter_mut().all(carries), "those who were first are carried on");
    drop(held);
    eventually("room", || connect(&mesh.client.ns, vip));
}

#[test]
fn without_any_file_descriptor_clients_are_told_at_once() {
    let mut mesh = Mesh::with(Some(&|b| b), None);
    let _web = app::web(mesh.server.listen(mesh.app_port), "web");
    echo(mesh.server.listen(9000));
    let vip = SocketAddr::from(([10, 96, 0, 101], 9000));
    mesh.control.set_outbound(vip, Ok(policies::opaque(policies::forward(policies::endpoint(mesh.server.addr(9000))))));
    let mut first = connect(&mesh.client.ns, vip).unwrap();
    let proxy = mesh.client.proxy.as_mut().unwrap();
    proxy.metrics();
    // What is free below the highest number is taken by connections that only have begun to speak.
    let numbers = open_files(proxy);
    let limit = numbers.iter().max().unwrap() + 1;
    limit_files(proxy, Some(limit));
    let mut held = Vec::new();
    eventually("no descriptor is free", || {
        if open_files(proxy).len() >= limit {
            return Some(());
        }
        // The last one may be shed, before `connect` has returned or after it.
        if let Ok(mut stream) = mesh.client.ns.connect(mesh.vip) {
            let _ = stream.write_all(b"GET / HT");
            held.push(stream);
        }
        None
    });
    // The connection that was asked for metrics may have made room for one when it ended.
    let carried: Vec<_> = (0..50).filter_map(|_| connect(&mesh.client.ns, vip)).collect();
    assert!(carried.len() <= 1, "shed, not left waiting: {}", carried.len());
    assert!(carries(&mut first), "who has a connection keeps it");
    let log = proxy.log();
    let told = log.matches("connection shed").count() + log.matches("cannot accept").count();
    assert!((1..30).contains(&told), "{told} lines: {log}");
    limit_files(proxy, None);
    drop((held, carried));
    eventually("room", || connect(&mesh.client.ns, vip));
    let text = mesh.client.proxy().metrics();
    let shed = metric(&text, "outbound_tcp_errors_total", &[FILES, "target_port=\"9000\""]).unwrap_or_default();
    assert!(shed >= 40.0, "{text}");
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    load.more("web", 30);
    load.stop_without_failure();
}

#[test]
fn an_endpoint_is_not_blamed_for_a_lack_of_file_descriptors() {
    // Every request needs a connection of its own to the server, and a failure of the server would be long remembered.
    let none_kept = |b: support::proxy::Builder| {
        b.env("OUTBOUND_MAX_IDLE_CONNS_PER_ENDPOINT", "0")
            .env("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", "1h")
            .env("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", "1h")
    };
    let mut mesh = Mesh::with(Some(&none_kept), None);
    let _web = app::web(mesh.server.listen(mesh.app_port), "web");
    assert_eq!(app::get(&mesh.client, mesh.vip, "/").0, 200);
    // A connection that is carried already.
    let mut stream = mesh.client.connect(mesh.vip).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.test\r\n").unwrap();
    let accepted = ["direction=\"outbound\"", "peer=\"src\"", "target_ip=\"10.96.0.100\""];
    let proxy = mesh.client.proxy();
    proxy.wait_metric("tcp_open_connections", &accepted, |n| n == 1.0);
    limit_files(proxy, Some(3));
    stream.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let answer = answer.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 503") && answer.contains("too many open files"), "{answer}");
    limit_files(proxy, None);
    eventually("an answer", || (app::get(&mesh.client, mesh.vip, "/").0 == 200).then_some(()));
}

#[test]
fn one_client_cannot_take_every_connection() {
    let mut mesh = Mesh::with(Some(&|b| b), Some(&|b| b.env("INBOUND_MAX_CONNECTIONS", "100")));
    let web = app::web(mesh.server.listen(mesh.app_port), "web");
    let greedy = mesh.add_pod("greedy", None);
    let neighbour = mesh.add_pod("neighbour", None);
    let direct = mesh.server.addr(mesh.app_port);
    // The neighbours: a meshed one, and one that is not, with a connection for every request.
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    let plain = Load::start(&neighbour, direct, &[support::Speak::Http1Once]);
    load.more("web", 10);
    plain.more("web", 10);
    let mut held = Vec::new();
    for _ in 0..300 {
        match greedy.connect(direct) {
            Ok(mut stream) => {
                // The beginning of a request, whose end never comes.
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nx");
                held.push(stream);
            }
            // Shed before the kernel told that it was connected.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    mesh.server.proxy().wait_metric("inbound_tcp_errors_total", &[CLIENT], |n| n >= 200.0);
    mesh.server.proxy().wait_log("the client has too many connections open");
    load.more("web", 60);
    plain.more("web", 60);
    assert_eq!(app::get(&mesh.client, mesh.vip, "/").0, 200);
    let metrics = mesh.server.metrics();
    assert_eq!(metric(&metrics, "inbound_tcp_errors_total", &[LIMIT]), None, "nobody else was shed");
    plain.stop_without_failure();
    load.stop_without_failure();
    drop(held);
    // Once it has let go, it is a client like others.
    eventually("an answer", || {
        let mut stream = greedy.connect(direct).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    });
    drop(web);
}

#[test]
fn thousands_of_idle_connections_of_one_client_harm_nobody() {
    // This process is the client and the application as well.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let many = 12_000.min(usize::try_from(hard).unwrap_or(usize::MAX) * 3 / 5);
    let mut mesh = Mesh::two_pods();
    let _web = app::web(mesh.server.listen(mesh.app_port), "web");
    let greedy = mesh.add_pod("greedy", None);
    let direct = mesh.server.addr(mesh.app_port);
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    load.more("web", 10);
    let before = resident(mesh.server.proxy());
    let held: Vec<_> = greedy.ns.enter(|| {
        let connect = |_| match TcpStream::connect_timeout(&direct, DEADLINE) {
            Ok(stream) => Some(stream),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                None
            }
        };
        (0..many).filter_map(connect).collect()
    });
    load.more("web", 60);
    let after = resident(mesh.server.proxy());
    assert!(after < before + many * 24, "from {before} KiB to {after} KiB for {many} connections");
    assert_eq!(mesh.server.proxy().get("/ready").0, 200);
    load.stop_without_failure();
    let shed = metric(&mesh.server.metrics(), "inbound_tcp_errors_total", &[CLIENT]).unwrap_or_default();
    let open = ["direction=\"inbound\"", "peer=\"dst\""];
    let carried = mesh.server.proxy().wait_metric("tcp_open_connections", &open, |n| n + shed >= many as f64);
    assert!(carried >= 1000.0 || shed >= 1000.0, "{carried} carried, {shed} shed");
    drop(held);
    mesh.server.proxy().wait_metric("tcp_open_connections", &open, |n| n <= 10.0);
    eventually("an answer", || {
        let mut stream = greedy.connect(direct).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
}

/// Octets of address space that a proxy has.
fn space(proxy: &Proxy) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", proxy.pid())).unwrap();
    statm.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn short_of_memory_nothing_new_is_begun() {
    let mut mesh = Mesh::with(Some(&|b| b), None);
    let _web = app::web(mesh.server.listen(mesh.app_port), "web");
    echo(mesh.server.listen(9000));
    let bytes = SocketAddr::from(([10, 96, 0, 101], 9000));
    let endpoint = policies::endpoint(mesh.server.addr(9000));
    mesh.control.set_outbound(bytes, Ok(policies::opaque(policies::forward(endpoint))));
    // Who is there already: a connection for bytes, and one for requests.
    let mut carried = connect(&mesh.client.ns, bytes).unwrap();
    let mut asking = mesh.client.connect(mesh.vip).unwrap();
    asking.set_read_timeout(Some(DEADLINE)).unwrap();
    asking.write_all(b"GET / HTTP/1.1\r\nhost: web.test\r\n").unwrap();
    let accepted = ["direction=\"outbound\"", "peer=\"src\"", "target_ip=\"10.96.0.100\""];
    let proxy = mesh.client.proxy();
    proxy.wait_metric("tcp_open_connections", &accepted, |n| n == 1.0);
    let limit = |proxy: &Proxy, octets: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.gid(PROXY_GID).args(["--pid", &proxy.pid().to_string(), &format!("--as={octets}:")]);
        assert!(prlimit.status().unwrap().success());
    };
    limit(proxy, &(space(proxy) / 10 * 11).to_string());
    eventually("that connections are shed", || connect(&mesh.client.ns, bytes).is_none().then_some(()));
    asking.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    let answer = answer.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 503") && answer.contains("near the limit of its memory"), "{answer}");
    assert!(carries(&mut carried), "who has a connection keeps it");
    let proxy = mesh.client.proxy();
    proxy.wait_log("connection shed: the process is near the limit of its memory");
    proxy.wait_metric("outbound_tcp_errors_total", &["error=\"memory\"", "target_port=\"9000\""], |n| n >= 1.0);
    limit(proxy, "unlimited");
    eventually("room", || connect(&mesh.client.ns, bytes));
    assert_eq!(app::get(&mesh.client, mesh.vip, "/").0, 200);
}

#[test]
fn a_server_that_reads_nothing_and_never_answers_costs_bounded_memory() {
    const CLIENTS: usize = 20;
    let mut mesh = Mesh::two_pods();
    let listener = mesh.server.listen(mesh.app_port);
    let web = app::web(mesh.server.listen(8081), "web");
    let sound = SocketAddr::from(([10, 96, 0, 101], 80));
    let endpoint = policies::meshed(mesh.server.addr(8081), &mesh.server.identity, Some(4143));
    mesh.control.set_outbound(sound, Ok(policies::detect(policies::forward(endpoint))));
    assert_eq!(app::get(&mesh.client, sound, "/").0, 200);
    let proxies = |mesh: &Mesh| [&mesh.client, &mesh.server].map(|pod| resident(pod.proxy.as_ref().unwrap()));
    let before = proxies(&mesh);
    let piece = vec![b'x'; 64 * 1024];
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut stream = mesh.client.connect(mesh.vip).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            stream.write_all(b"POST / HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let mut accepted = Vec::new();
    // Everybody sends until nobody takes any more. What is sent is no real chunk's end, but one large chunk.
    for client in &mut clients {
        client.write_all(b"7fffffff\r\n").unwrap();
    }
    let mut sent = 0;
    for client in &mut clients {
        while let Ok(n) = client.write(&piece) {
            sent += n;
            assert!(sent < CLIENTS * 64 * 1024 * 1024, "it takes without end");
        }
    }
    listener.set_nonblocking(true).unwrap();
    while let Ok((stream, _)) = listener.accept() {
        accepted.push(stream);
    }
    let after = proxies(&mesh);
    for (before, after) in before.into_iter().zip(after) {
        assert!(after < before + CLIENTS * 1024, "from {before} KiB to {after} KiB for {CLIENTS} stuck requests");
    }
    assert_eq!(app::get(&mesh.client, sound, "/").0, 200, "the neighbours are served");
    for client in &clients {
        let _ = client.shutdown(Shutdown::Both);
    }
    drop((clients, accepted, listener));
    // Nothing of it stays: the requests have ended.
    let open = ["direction=\"outbound\"", "peer=\"src\"", "target_port=\"80\"", "target_ip=\"10.96.0.100\""];
    mesh.client.proxy().wait_metric("tcp_open_connections", &open, |n| n == 0.0);
    drop(web);
}

/// Things worth a log line happen in the client's proxy.
fn refuse(mesh: &Mesh, times: usize) {
    let nowhere = SocketAddr::from(([10, 96, 0, 102], 80));
    mesh.control.set_outbound(nowhere, Err(tonic::Status::invalid_argument("never")));
    // It may be refused before the kernel tells that it was connected.
    mesh.client.ns.enter(|| (0..times).for_each(|_| drop(TcpStream::connect_timeout(&nowhere, DEADLINE))));
}

#[test]
fn a_disk_that_is_full_of_logs_stops_nothing() {
    // A file system of its own, which nobody else sees and which ends with the proxy.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let script = "mount -t tmpfs -o size=64k none \"$1\" && exec \"$2\" 2>>\"$1/log\"";
    let shell = ["unshare", "--mount", "sh", "-c", script, "sh", dir.path().to_str().unwrap()];
    let mut mesh = Mesh::with(Some(&|b| b.wrapped(&shell).env("LOG", "trace")), None);
    let _web = app::web(mesh.server.listen(mesh.app_port), "web");
    // Seen through the proxy's own namespace.
    let file = format!("/proc/{}/root{}", mesh.client.proxy().pid(), file.display());
    let size = || std::fs::metadata(&file).unwrap().len();
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    eventually("a full disk", || (size() == 64 * 1024).then_some(()));
    load.more("web", 30);
    refuse(&mesh, 1);
    load.more("web", 30);
    // Somebody makes room.
    assert_eq!(mesh.client.proxy().admin_request("PUT", "/proxy-log-level", "warn").0, 204);
    std::fs::File::options().write(true).truncate(true).open(&file).unwrap();
    eventually("a word about what was lost", || {
        // Whatever is logged next finds the room.
        refuse(&mesh, 1);
        assert_eq!(mesh.client.proxy().admin_request("PUT", "/proxy-log-level", "warn,weft_proxy=info").0, 204);
        std::fs::read_to_string(&file).unwrap().contains("log lines were lost").then_some(())
    });
    load.stop_without_failure();
    mesh.client.proxy().signal(Signal::SIGINT);
    assert_eq!(mesh.client.proxy().wait_exit().code(), Some(0));
}

/// A pipe that takes nothing more, as nobody reads it.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    let flags = OFlag::from_bits_retain(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
    fcntl(&writer, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    while writer.write(b"nobody reads this\n").is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
    (reader, writer)
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let ((mut read, written), (_unread, never)) = (full_pipe(), full_pipe());
    let mut mesh = Mesh::with(
        Some(&|b| b.log_to(written.try_clone().unwrap()).env("LOG", "trace")),
        Some(&|b| b.log_to(never.try_clone().unwrap()).env("LOG", "trace")),
    );
    drop(written);
    let _web = app::web(mesh.server.listen(mesh.app_port), "web");
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    // More is logged, a hundred octets at least each time, than all buffers hold.
    refuse(&mesh, 4000);
    load.more("web", 100);
    let reader = std::thread::spawn(move || {
        let mut log = Vec::new();
        read.read_to_end(&mut log).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    });
    load.more("web", 100);
    load.stop_without_failure();
    for proxy in [mesh.client.proxy(), mesh.server.proxy()] {
        proxy.signal(Signal::SIGINT);
        assert_eq!(proxy.wait_exit().code(), Some(0));
    }
    let log = reader.join().unwrap();
    assert!(log.starts_with("nobody reads this"));
    assert!(log.contains("log lines were lost"), "it says how many");
    assert!(log.contains("drained"), "the last words are heard");
}
