//! Bytes that are no HTTP: how connections are spread, what happens to them when endpoints come, go and die, and who they
//! are.

mod support;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

use linkerd2_proxy_api::destination::WeightedAddr;
use support::{DEADLINE, Mesh, Netns, Pod, control::Endpoints, eventually, policies, proxy::Builder, read};

const PATH: &str = "tcp.test.svc.cluster.local:9000";
const PORT: u16 = 9000;

fn vip() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 101], PORT))
}

/// Says its name, then repeats what it hears; after the end of that it says good bye.
fn serve(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let _ = stream.write_all(format!("{name}\n").as_bytes());
                let mut octets = [0; 4096];
                loop {
                    match read(&mut stream, &mut octets) {
                        Ok(0) => return stream.write_all(b"bye\n"),
                        Ok(n) => stream.write_all(&octets[..n])?,
                        Err(error) => return Err(error),
                    }
                }
            });
        }
    });
}

/// Two meshed servers behind an opaque service.
struct Two {
    mesh: Mesh,
    other: Pod,
}

impl Two {
    fn new(adjust: &dyn Fn(Builder) -> Builder) -> Self {
        let mut mesh = Mesh::with(Some(adjust), Some(adjust));
        let other = mesh.add_pod("other", Some(adjust));
        mesh.control.set_outbound(vip(), Ok(policies::opaque(policies::balance_evenly(PATH))));
        let two = Self { mesh, other };
        two.lead_to(&[&two.mesh.server, &two.other]);
        two
    }

    fn lead_to(&self, pods: &[&Pod]) {
        let endpoints = pods.iter().map(|pod| meshed(pod)).collect();
        self.mesh.control.set_endpoints(PATH, Endpoints::Set(endpoints));
    }

    /// A connection of the client's application, and the name of who answers.
    #[track_caller]
    fn connect(&self) -> (TcpStream, String) {
        let mut stream = self.mesh.client.connect(vip()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let name = line(&mut stream);
        (stream, name)
    }
}

fn meshed(pod: &Pod) -> WeightedAddr {
    policies::meshed(pod.addr(PORT), &pod.identity, Some(4143))
}

/// Nothing comes from other pods, and nothing goes there.
fn cut(ns: &Netns) {
    let chain =
        |hook: &str, link: &str| format!("chain {hook} {{ type filter hook {hook} priority -300; {link} eth0 drop; }}");
    let (input, output) = (chain("input", "iifname"), chain("output", "oifname"));
    ns.run(&["nft", &format!("table inet fault {{\n{input}\n{output}\n}}")]);
}

#[track_caller]
fn line(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    let mut octet = [0];
    loop {
        stream.read_exact(&mut octet).unwrap();
        if octet == *b"\n" {
            return line;
        }
        line.push(octet[0].into());
    }
}

#[track_caller]
fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello\n").unwrap();
    assert_eq!(line(stream), "hello");
}

#[test]
fn connections_are_spread_over_endpoints_and_have_names_on_both_sides() {
    let mut two = Two::new(&|b| b);
    serve(two.mesh.server.listen(PORT), "server");
    serve(two.other.listen(PORT), "other");
    let held: Vec<_> = (0..40).map(|_| two.connect()).collect();
    for name in ["server", "other"] {
        let n = held.iter().filter(|(_, who)| who == name).count();
        // Which one is faster at the moment decides as well; but open connections count.
        assert!(n >= 5, "{n} of 40 to {name}");
    }
    // Who talks to whom, and that it is secured.
    let (client_id, ids) = (
        format!("client_id=\"{}\"", two.mesh.client.identity),
        [&two.mesh.server, &two.other].map(|p| format!("server_id=\"{}\"", p.identity)),
    );
    let text = two.mesh.client.metrics();
    let open = |id: &str| {
        let labels = ["direction=\"outbound\"", "peer=\"dst\"", "tls=\"true\"", "dst_deployment=\"web\"", id];
        support::proxy::metric(&text, "tcp_open_connections", &labels).unwrap_or_default()
    };
    assert_eq!(ids.iter().map(|id| open(id)).sum::<f64>(), 40.0, "{text}");
    for pod in [&mut two.mesh.server, &mut two.other] {
        let labels = ["direction=\"inbound\"", "peer=\"src\"", "tls=\"true\"", "target_port=\"9000\"", &client_id];
        pod.proxy().wait_metric("tcp_open_connections", &labels, |n| n >= 5.0);
        let header = ["session_protocol=\"\"", "target_port=\"9000\"", &client_id];
        pod.proxy().wait_metric("inbound_tcp_transport_header_connections_total", &header, |n| n >= 5.0);
    }
    drop(held);
    let client = ["direction=\"outbound\"", "peer=\"src\"", "target_port=\"9000\""];
    two.mesh.client.proxy().wait_metric("tcp_open_connections", &client, |n| n == 0.0);
}

#[test]
fn a_connection_goes_to_another_endpoint_when_one_refuses() {
    let mut mesh = Mesh::with(Some(&|b| b), None);
    let other = mesh.add_pod("other", None);
    serve(other.listen(PORT), "other");
    let refuses = policies::endpoint(mesh.server.addr(PORT));
    let lost = mesh.add_pod("lost", None);
    cut(&lost.ns);
    let lost = policies::endpoint(lost.addr(PORT));
    let all = vec![refuses, lost, policies::endpoint(other.addr(PORT))];
    mesh.control.set_endpoints(PATH, Endpoints::Set(all));
    mesh.control.set_outbound(vip(), Ok(policies::opaque(policies::balance_evenly(PATH))));
    for _ in 0..30 {
        let mut stream = mesh.client.connect(vip()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(line(&mut stream), "other");
    }
    mesh.client.proxy().wait_log("endpoint cannot be reached");
}

#[test]
fn long_lived_connections_outlive_updates_of_endpoints() {
    let mut two = Two::new(&|b| b);
    serve(two.mesh.server.listen(PORT), "server");
    serve(two.other.listen(PORT), "other");
    two.lead_to(&[&two.mesh.server]);
    let (mut old, _) = eventually("the only endpoint", || Some(two.connect()).filter(|(_, name)| name == "server"));
    two.lead_to(&[&two.other]);
    eventually("new connections elsewhere", || (two.connect().1 == "other").then_some(()));
    echoes(&mut old);
    // Not even a service that is gone ends what goes on.
    two.mesh.control.set_endpoints(PATH, Endpoints::DoesNotExist);
    two.mesh.control.set_outbound(vip(), Err(tonic::Status::not_found("gone")));
    eventually("that the proxy has heard of it", || {
        let heard =
            |line: &str| line.contains("the control plane refuses") && line.contains("policy of 10.96.0.101:9000");
        two.mesh.client.proxy().log().lines().any(heard).then_some(())
    });
    echoes(&mut old);
    two.mesh.control.pause();
    echoes(&mut old);
    two.mesh.control.resume();
    echoes(&mut old);
}

#[test]
fn the_end_of_one_direction_passes_and_the_other_goes_on() {
    let two = Two::new(&|b| b);
    serve(two.mesh.server.listen(PORT), "server");
    serve(two.other.listen(PORT), "other");
    // The client ends first.
    let (mut stream, _) = two.connect();
    echoes(&mut stream);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye\n");
    // The server ends first, and still hears.
    let third = two.mesh.server.listen(9001);
    let endpoint = policies::meshed(two.mesh.server.addr(9001), &two.mesh.server.identity, Some(4143));
    let vip = SocketAddr::from(([10, 96, 0, 101], 9001));
    two.mesh.control.set_outbound(vip, Ok(policies::opaque(policies::forward(endpoint))));
    let mut client = two.mesh.client.connect(vip).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut server, _) = third.accept().unwrap();
    server.write_all(b"that is all").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "that is all");
    client.write_all(b"thanks").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut thanks = String::new();
    server.read_to_string(&mut thanks).unwrap();
    assert_eq!(thanks, "thanks");
}

/// Short limits, as nobody wants to wait for the usual ones.
fn impatient(b: Builder) -> Builder {
    b.env("OUTBOUND_CONNECT_KEEPALIVE", "1s")
        .env("OUTBOUND_CONNECT_USER_TIMEOUT", "2s")
        .env("INBOUND_ACCEPT_KEEPALIVE", "1s")
        .env("INBOUND_ACCEPT_USER_TIMEOUT", "2s")
}

#[test]
fn a_peer_that_is_gone_without_a_word_ends_the_connections_on_both_sides() {
    let mut two = Two::new(&impatient);
    two.lead_to(&[&two.mesh.server]);
    let listener = two.mesh.server.listen(PORT);
    // One is silent, one has something on its way when the network goes.
    let pair = || {
        let client = two.mesh.client.connect(vip()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        (client, server)
    };
    let (mut silent, mut busy) = (pair(), pair());
    cut(&two.mesh.server.ns);
    busy.0.write_all(b"are you there?").unwrap();
    busy.1.write_all(b"are you?").unwrap();
    let reset = |stream: &mut TcpStream| {
        let error = read(stream, &mut [0; 100]).expect_err("a reset, as what was sent may be lost");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    };
    for stream in [&mut silent.0, &mut busy.0, &mut silent.1, &mut busy.1] {
        reset(stream);
    }
    let timed_out = ["direction=\"outbound\"", "peer=\"dst\"", "errno=\"ETIMEDOUT\""];
    two.mesh.client.proxy().wait_metric("tcp_close_total", &timed_out, |n| n == 2.0);
}
