//! The control plane is away, stuck, or talks nonsense, while there is traffic: what was known last holds, nothing fails that
//! could be served, and what it says when it is back is followed.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;
use linkerd2_proxy_api::destination::{Update, WeightedAddr, WeightedAddrSet, update};
use support::{
    DEADLINE, Load, Mesh, Pod, app,
    control::{Certify, Endpoints, Garbage},
    eventually, policies,
    proxy::{Builder, metric},
};
use tonic::Status;

/// What is known stays known for as long as a test takes.
fn remembering(builder: Builder) -> Builder {
    builder.env("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "1h").env("INBOUND_DISCOVERY_IDLE_TIMEOUT", "1h")
}

/// A meshed client, and two servers without proxies behind one service.
struct Two {
    mesh: Mesh,
    other: Pod,
    _web: [app::Web; 2],
}

impl Two {
    fn new(client: &dyn Fn(Builder) -> Builder) -> Self {
        let mut mesh = Mesh::with(Some(client), None);
        let other = mesh.add_pod("other", None);
        let web = [app::web(mesh.server.listen(8080), "server"), app::web(other.listen(8080), "other")];
        mesh.control.set_outbound(mesh.vip, Ok(policies::detect(policies::balance_evenly(&mesh.service))));
        let two = Self { mesh, other, _web: web };
        two.lead_to(&[&two.mesh.server, &two.other]);
        two
    }

    fn lead_to(&self, pods: &[&Pod]) {
        let endpoints = pods.iter().map(|pod| policies::endpoint(pod.addr(8080))).collect();
        self.mesh.control.set_endpoints(&self.mesh.service, Endpoints::Set(endpoints));
    }

    fn load(&self) -> Load {
        let load = Load::of_all_kinds(&self.mesh.client, self.mesh.vip);
        load.more("server", 10);
        load.more("other", 10);
        load
    }
}

/// A connection that ends without an answer.
#[track_caller]
fn fails(pod: &Pod, addr: SocketAddr) {
    let answer = pod.say(addr, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(answer, b"");
}

#[test]
fn what_was_not_known_before_fails_with_the_reason_until_the_control_plane_is_back() {
    let mut two = Two::new(&remembering);
    let load = two.load();
    let unknown = SocketAddr::from(([10, 96, 0, 101], 80));
    let endpoint = policies::endpoint(two.mesh.server.addr(8080));
    two.mesh.control.set_outbound(unknown, Ok(policies::detect(policies::forward(endpoint))));
    two.mesh.control.pause();
    two.mesh.client.proxy().wait_log("connection to the control plane ended");
    fails(&two.mesh.client, unknown);
    let proxy = two.mesh.client.proxy();
    proxy.wait_log("no policy for 10.96.0.101:80 within the time limit: 127.0.0.1:8086: Connection refused");
    proxy.wait_metric("outbound_tcp_errors_total", &["error=\"discovery\"", "10.96.0.101"], |n| n == 1.0);
    load.more("server", 20);
    load.more("other", 20);
    two.mesh.control.resume();
    eventually("an answer", || {
        let mut stream = two.mesh.client.connect(unknown).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
    load.stop_without_failure();
}

#[test]
fn what_is_seldom_used_stays_known_while_the_control_plane_is_away() {
    let hasty = |b: Builder| b.env("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "1ms");
    let mut two = Two::new(&hasty);
    two.lead_to(&[&two.other]);
    let get = |two: &Two| app::get(&two.mesh.client, two.mesh.vip, "/");
    // Used before, but not now.
    assert_eq!(get(&two), (200, "other".into()));
    let held = two.mesh.client.connect(two.mesh.vip).unwrap();
    two.mesh.control.pause();
    let proxy = two.mesh.client.proxy();
    proxy.wait_log("connection to the control plane ended");
    drop(held);
    for key in ["key=10.96.0.100:80", "key=web.test.svc.cluster.local:80"] {
        eventually("what is kept", || {
            let kept = |line: &str| line.contains("it is kept while") && line.contains(key);
            proxy.log().lines().any(kept).then_some(())
        });
    }
    assert_eq!(get(&two), (200, "other".into()));
    // When it can be asked for again, it is forgotten as ever.
    two.lead_to(&[&two.mesh.server]);
    two.mesh.control.resume();
    eventually("the other endpoint", || (get(&two) == (200, "server".into())).then_some(()));
    let watch = format!("Watch {}", two.mesh.vip);
    let watches = || two.mesh.control.calls().iter().filter(|c| **c == watch).count();
    let before = watches();
    eventually("a new watch", || {
        assert_eq!(get(&two).0, 200);
        (watches() > before).then_some(())
    });
}

/// A message as gRPC frames it, with a length of its own.
fn frame(compressed: u8, length: u32, octets: &[u8]) -> Bytes {
    let mut frame = vec![compressed];
    frame.extend(length.to_be_bytes());
    frame.extend(octets);
    frame.into()
}

#[test]
fn traffic_goes_on_while_updates_break_off_or_cannot_be_understood() {
    let mut two = Two::new(&remembering);
    let load = two.load();
    let nonsense = [
        // The beginning of a message, then nothing, or the end.
        (frame(0, 1000, b"\x0a\x10half a message"), true),
        (frame(0, 1000, b"\x0a\x10half a message"), false),
        // What no message is.
        (frame(0, 12, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), true),
        (frame(0, u32::MAX, &[0; 100]), true),
        (frame(1, 3, b"abc"), true),
        (frame(7, 3, b"abc"), true),
        (Bytes::from_static(b"<html>502 Bad Gateway</html>"), false),
        // Empty messages without number.
        (frame(0, 0, b"").repeat(10_000).into(), true),
        (Bytes::new(), false),
    ];
    for (octets, stalls) in nonsense {
        let garbled =
            || two.mesh.control.calls().iter().filter(|c| c.contains("garbage") && c.ends_with("/Get")).count();
        let before = garbled();
        two.mesh.control.set_garbage(Some(Garbage::Body { octets, stalls }));
        two.mesh.control.pause();
        two.mesh.control.resume();
        eventually("somebody who listens to it", || (garbled() > before).then_some(()));
        load.more("server", 10);
        load.more("other", 10);
    }
    // It comes to its senses.
    two.lead_to(&[&two.other]);
    two.mesh.control.set_garbage(None);
    two.mesh.control.pause();
    two.mesh.control.resume();
    load.only("other", 30);
    load.stop_without_failure();
    assert_eq!(two.mesh.client.proxy().get("/ready").0, 200);
}

#[test]
fn traffic_goes_on_while_something_else_listens_in_the_control_planes_place() {
    let two = Two::new(&remembering);
    let load = two.load();
    two.mesh.control.pause();
    // The first pod's control plane listens there.
    let ns = &two.mesh.client.ns;
    let listener = eventually("its port to be free", || {
        ns.enter(|| std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 8086)))).ok()
    });
    listener.set_nonblocking(true).unwrap();
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\0\0\x06\x04\0\0\0\0\0", b"", &[0xff; 10_000]] {
        eventually("an attempt to connect", || {
            let (mut stream, _) = listener.accept().ok()?;
            stream.write_all(answer).ok()
        });
        load.more("server", 10);
        load.more("other", 10);
    }
    drop(listener);
    two.lead_to(&[&two.other]);
    two.mesh.control.resume();
    load.only("other", 30);
    load.stop_without_failure();
}

#[test]
fn a_watch_that_is_stuck_in_the_middle_is_opened_anew() {
    let mut two = Two::new(&remembering);
    // Time limits of watches are for control planes on other hosts, which are spoken to by TLS.
    let (ns, ip) = two.mesh.add_namespace();
    let addr = two.mesh.control.listen_tls(&ns, ip, "control.test").to_string();
    let far = |b: Builder| {
        ["DESTINATION", "POLICY"].into_iter().fold(remembering(b), |b, service| {
            b.env(&format!("{service}_SVC_ADDR"), &addr).env(&format!("{service}_SVC_NAME"), "control.test")
        })
    };
    let client = two.mesh.add_pod("client", Some(&far));
    let load = Load::of_all_kinds(&client, two.mesh.vip);
    load.more("server", 10);
    load.more("other", 10);
    let half = frame(0, 1000, b"\x0a\x10half a message");
    two.mesh.control.set_garbage(Some(Garbage::Body { octets: half, stalls: true }));
    two.lead_to(&[&two.other]);
    load.only("other", 10);
    two.mesh.control.pause();
    two.mesh.control.resume();
    let asked = || two.mesh.control.calls().iter().filter(|c| c.contains("garbage") && c.ends_with("/Get")).count();
    eventually("that it asks again", || (asked() >= 2).then_some(()));
    // Now it does not even say that there will be an answer.
    two.mesh.control.set_garbage(Some(Garbage::Silence));
    let before = asked();
    eventually("that it asks again", || (asked() >= before + 2).then_some(()));
    load.more("other", 10);
    // The same connection; only the watch begins anew.
    two.lead_to(&[&two.mesh.server]);
    two.mesh.control.set_garbage(None);
    load.only("server", 30);
    load.stop_without_failure();
}

#[test]
fn many_endpoints_that_are_not_there_cost_no_request() {
    let refusing = |b: Builder| b.env("OUTBOUND_CONNECT_TIMEOUT", "1s");
    let mut two = Two::new(&refusing);
    let load = two.load();
    let set = |addrs: Vec<WeightedAddr>| {
        let add = WeightedAddrSet { addrs, metric_labels: Default::default() };
        Endpoints::Raw(Update { update: Some(update::Update::Add(add)) })
    };
    // Nobody listens on these ports: they refuse.
    let nobody = (9000..9200).map(|port| policies::endpoint(two.mesh.server.addr(port))).collect();
    two.mesh.control.set_endpoints(&two.mesh.service, set(nobody));
    let pending = ["outbound_http_balancer_endpoints", "endpoint_state=\"pending\""];
    two.mesh.client.proxy().wait_metric(pending[0], &pending[1..], |n| n >= 20.0);
    load.more("server", 60);
    load.more("other", 60);
    load.stop_without_failure();
}

#[test]
fn certificates_serve_on_while_they_cannot_be_renewed() {
    // Nothing here comes near its end: only renewal begins early.
    let eager = |b: Builder| b.env("IDENTITY_MIN_REFRESH", "100ms").env("IDENTITY_MAX_REFRESH", "200ms");
    let mut mesh = Mesh::with(Some(&eager), Some(&eager));
    let _web = app::web(mesh.server.listen(mesh.app_port), "server");
    let load = Load::of_all_kinds(&mesh.client, mesh.vip);
    load.more("server", 10);
    let errors = |mesh: &mut Mesh, reason: &str, more: f64| {
        let reason = format!("reason=\"{reason}\"");
        for proxy in [mesh.client.proxy.as_mut().unwrap(), mesh.server.proxy.as_mut().unwrap()] {
            let name = "control_identity_cert_errors_total";
            let before = metric(&proxy.metrics(), name, &[&reason]).unwrap_or_default();
            proxy.wait_metric(name, &[&reason], |n| n >= before + more);
        }
    };
    // It refuses, answers nonsense, is gone: renewal is tried again and again.
    mesh.control.set_certify(Certify::Refuse(Status::unavailable("no issuer")));
    errors(&mut mesh, "refused", 3.0);
    load.more("server", 30);
    mesh.control.set_certify(Certify::Nonsense);
    errors(&mut mesh, "answer", 3.0);
    load.more("server", 30);
    mesh.control.pause();
    errors(&mut mesh, "connect", 3.0);
    load.more("server", 30);
    // And is found again.
    let refreshes = "control_identity_cert_refreshes_total";
    let before = [mesh.client.metrics(), mesh.server.metrics()].map(|text| metric(&text, refreshes, &[]).unwrap());
    mesh.control.set_certify(Certify::Accept { lifetime: Duration::from_secs(24 * 60 * 60) });
    mesh.control.resume();
    for (pod, before) in [&mut mesh.client, &mut mesh.server].into_iter().zip(before) {
        pod.proxy().wait_metric(refreshes, &[], |n| n > before);
    }
    load.more("server", 30);
    load.stop_without_failure();
}
