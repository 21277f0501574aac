//! Things break while there is traffic: no request fails where a living endpoint exists, and what comes back is used again.

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use linkerd2_proxy_api::{
    destination::{AddrSet, Update, WeightedAddr, WeightedAddrSet, update},
    inbound, outbound,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{
    DEADLINE, Load, Mesh, Netns, Pod, Speak, app, control::Endpoints, eventually, policies, proxy::Builder, read,
};
use tonic::Status;

/// As in production, but for the longest back-off: the tests wait for the end of it.
fn hasty(builder: Builder) -> Builder {
    builder
        .env("OUTBOUND_CONNECT_TIMEOUT", "1s")
        .env("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", "100ms")
        .env("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", "1s")
        // What is known stays known, so that nothing has to be asked while the control plane is away.
        .env("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "1h")
        .env("INBOUND_DISCOVERY_IDLE_TIMEOUT", "1h")
}

/// As [`hasty`], where the system finds out soon, too, that a host is gone: whether something was sent there and is not
/// acknowledged, or something is waited for from there.
fn impatient(builder: Builder) -> Builder {
    hasty(builder).env("OUTBOUND_CONNECT_USER_TIMEOUT", "2s").env("OUTBOUND_CONNECT_KEEPALIVE", "1s")
}

/// Two servers behind one service, `server` and `other`, each with an application of that name.
struct Two {
    mesh: Mesh,
    other: Pod,
    endpoints: [WeightedAddr; 2],
    _web: [app::Web; 2],
}

impl Two {
    fn new() -> Self {
        Self::with(true)
    }

    /// With endpoints that have no proxies.
    fn unmeshed() -> Self {
        Self::with(false)
    }

    fn with(meshed: bool) -> Self {
        type Adjust = fn(Builder) -> Builder;
        let client: Adjust = if meshed { hasty } else { impatient };
        let adjust: Option<&dyn Fn(Builder) -> Builder> = if meshed { Some(&hasty) } else { None };
        let mut mesh = Mesh::with(Some(&client), adjust);
        let other = mesh.add_pod("other", adjust);
        let web = [("server", &mesh.server), ("other", &other)].map(|(name, pod)| app::web(pod.listen(8080), name));
        let endpoints = [&mesh.server, &other].map(|pod| {
            if meshed {
                policies::meshed(pod.addr(8080), &pod.identity, Some(4143))
            } else {
                policies::endpoint(pod.addr(8080))
            }
        });
        mesh.control.set_outbound(mesh.vip, Ok(policies::detect(policies::balance_evenly(&mesh.service))));
        let two = Self { mesh, other, endpoints, _web: web };
        two.lead_to(&[0, 1]);
        two
    }

    /// What the control plane says from now on.
    fn lead_to(&self, which: &[usize]) {
        let endpoints = which.iter().map(|n| self.endpoints[*n].clone()).collect();
        self.mesh.control.set_endpoints(&self.mesh.service, Endpoints::Set(endpoints));
    }

    fn load(&self) -> Load {
        let load = Load::of_all_kinds(&self.mesh.client, self.mesh.vip);
        load.more("server", 10);
        load.more("other", 10);
        load
    }
}

/// Drops what matches, by hook.
fn drop_packets(ns: &Netns, rules: &[(&str, &str)]) {
    let chains: String = rules
        .iter()
        .map(|(hook, what)| format!("chain {hook} {{ type filter hook {hook} priority -300; {what} drop; }}\n"))
        .collect();
    ns.run(&["nft", &format!("table inet fault {{\n{chains}}}")]);
}

/// All that comes from other pods.
const INCOMING: (&str, &str) = ("input", "iifname eth0");
/// All that goes to other pods.
const OUTGOING: (&str, &str) = ("output", "oifname eth0");

fn let_packets_pass(ns: &Netns) {
    ns.run(&["nft", "delete", "table", "inet", "fault"]);
}

// --- the control plane ---

fn raw(update: Option<update::Update>) -> Endpoints {
    Endpoints::Raw(Update { update })
}

#[test]
fn traffic_goes_on_whatever_the_control_plane_says() {
    let mut two = Two::new();
    let load = two.load();
    let (service, vip) = (two.mesh.service.clone(), two.mesh.vip);
    let control = &two.mesh.control;
    let add = |addrs: Vec<WeightedAddr>| {
        raw(Some(update::Update::Add(WeightedAddrSet { addrs, metric_labels: Default::default() })))
    };
    // Twice the same, and once more.
    for _ in 0..3 {
        control.set_endpoints(&service, add(two.endpoints.to_vec()));
        control.set_endpoints(&service, add(vec![two.endpoints[0].clone(), two.endpoints[0].clone()]));
        control.set_outbound(vip, Ok(policies::detect(policies::balance_evenly(&service))));
    }
    load.more("server", 20);
    load.more("other", 20);

    // Nonsense of all kinds.
    control.set_endpoints(&service, raw(None));
    control.set_endpoints(&service, add(vec![WeightedAddr { addr: None, ..two.endpoints[0].clone() }]));
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    let remove = AddrSet { addrs: vec![nobody.into(), SocketAddr::from(([10, 244, 9, 9], 1)).into()] };
    control.set_endpoints(&service, raw(Some(update::Update::Remove(remove))));
    control.set_outbound(vip, Ok(outbound::OutboundPolicy { protocol: None, metadata: None }));
    control.set_inbound(8080, Ok(inbound::Server { protocol: None, ..policies::server(Vec::new()) }));
    two.mesh.client.proxy().wait_log("refusing an outbound policy");
    two.mesh.server.proxy().wait_log("refusing an inbound policy");
    load.more("server", 20);
    load.more("other", 20);

    // It knows nothing any more, for a while, and does not know what to say.
    let control = &two.mesh.control;
    control.set_outbound(vip, Err(Status::unavailable("not now")));
    two.mesh.client.proxy().wait_log("not now");
    load.more("server", 20);
    load.more("other", 20);

    // What makes sense again is followed.
    two.mesh.control.set_outbound(vip, Ok(policies::detect(policies::balance_evenly(&service))));
    two.mesh.control.set_inbound(8080, Ok(policies::server(vec![policies::allow_all()])));
    two.lead_to(&[1]);
    load.only("other", 30);
    load.stop_without_failure();
}

#[test]
fn traffic_goes_on_while_the_control_plane_is_stuck_or_gone() {
    let mut two = Two::new();
    let load = two.load();
    // Stuck in the middle of an update: what it sends does not arrive, and what is sent to it neither.
    let ns = two.mesh.client.ns.clone();
    drop_packets(&ns, &[("input", "tcp sport 8086"), ("output", "tcp dport 8086")]);
    two.lead_to(&[1]);
    load.more("server", 30);
    load.more("other", 30);
    let_packets_pass(&ns);
    load.only("other", 30);

    // Gone, and back with another opinion.
    two.mesh.control.pause();
    two.mesh.client.proxy().wait_log("connection to the control plane ended");
    load.more("other", 50);
    two.lead_to(&[0]);
    two.mesh.control.resume();
    load.only("server", 30);

    // Gone, and back with the same.
    two.mesh.control.pause();
    load.more("server", 20);
    two.mesh.control.resume();
    load.more("server", 20);
    two.lead_to(&[0, 1]);
    load.more("other", 20);
    load.stop_without_failure();
}

// --- endpoints that die without a word ---

/// Traffic leaves an endpoint that dies, and returns to it. The requests of the load only ask (GET), so those that were
/// sent there already are sent again elsewhere; others would fail (`a_request_that_cannot_be_repeated_…`).
fn dies_and_comes_back(mut two: Two, die: impl FnOnce(&mut Two), live: impl FnOnce(&mut Two)) {
    let load = two.load();
    die(&mut two);
    load.only("other", 60);
    // Those that could not go elsewhere at once have been told by now.
    load.each("other", 20);
    live(&mut two);
    load.more("server", 30);
    load.more("other", 10);
    load.stop_without_failure();
}

#[test]
fn an_endpoint_whose_network_is_gone_is_left_until_it_is_back() {
    dies_and_comes_back(
        Two::new(),
        |two| drop_packets(&two.mesh.server.ns, &[INCOMING, OUTGOING]),
        |two| let_packets_pass(&two.mesh.server.ns),
    );
}

#[test]
fn an_endpoint_whose_link_is_down_is_left_until_it_is_up() {
    dies_and_comes_back(
        Two::new(),
        |two| drop(two.mesh.server.ns.run(&["ip", "link", "set", "eth0", "down"])),
        |two| {
            two.mesh.server.ns.run(&["ip", "link", "set", "eth0", "up"]);
            two.mesh.server.ns.run(&["ip", "route", "add", "default", "dev", "eth0"]);
        },
    );
}

#[test]
fn an_endpoint_whose_proxy_is_stopped_is_left_until_it_goes_on() {
    dies_and_comes_back(
        Two::new(),
        |two| two.mesh.server.proxy().stop(),
        |two| two.mesh.server.proxy().signal(Signal::SIGCONT),
    );
}

#[test]
fn an_unmeshed_endpoint_whose_network_is_gone_is_left_until_it_is_back() {
    // Nobody is pinged here: the system tells.
    dies_and_comes_back(
        Two::unmeshed(),
        |two| drop_packets(&two.mesh.server.ns, &[INCOMING, OUTGOING]),
        |two| let_packets_pass(&two.mesh.server.ns),
    );
}

#[test]
fn connections_for_bytes_do_not_wait_for_a_stopped_proxy() {
    let mut two = Two::new();
    for pod in [&two.mesh.server, &two.other] {
        let listener = pod.listen(9000);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"hello");
                let _ = read(&mut stream, &mut [0]);
            }
        });
    }
    let path = "tcp.test.svc.cluster.local:9000";
    let vip = SocketAddr::from(([10, 96, 0, 101], 9000));
    let endpoints = [&two.mesh.server, &two.other].map(|p| policies::meshed(p.addr(9000), &p.identity, Some(4143)));
    two.mesh.control.set_endpoints(path, Endpoints::Set(endpoints.to_vec()));
    two.mesh.control.set_outbound(vip, Ok(policies::opaque(policies::balance_evenly(path))));
    let hello = |two: &Two| {
        let mut stream = two.mesh.client.connect(vip).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut octets = [0; 5];
        stream.read_exact(&mut octets).unwrap();
        assert_eq!(&octets, b"hello");
    };
    (0..10).for_each(|_| hello(&two));
    // The kernel still accepts connections for it, and then nothing happens.
    two.mesh.server.proxy().stop();
    (0..30).for_each(|_| hello(&two));
    two.mesh.server.proxy().signal(Signal::SIGCONT);
    (0..10).for_each(|_| hello(&two));
}

#[test]
fn an_endpoint_that_never_was_there_takes_no_request() {
    let mut two = Two::new();
    let load = two.load();
    // Whatever is sent there is lost: nobody refuses.
    let lost = two.mesh.add_pod("lost", None);
    drop_packets(&lost.ns, &[INCOMING]);
    let endpoint = policies::meshed(lost.addr(8080), &lost.identity, Some(4143));
    let plain = policies::endpoint(lost.addr(8081));
    let all = vec![two.endpoints[0].clone(), endpoint, plain, two.endpoints[1].clone()];
    two.mesh.control.set_endpoints(&two.mesh.service, Endpoints::Set(all));
    let pending = ["outbound_http_balancer_endpoints", "endpoint_state=\"pending\""];
    two.mesh.client.proxy().wait_metric(pending[0], &pending[1..], |n| n >= 1.0);
    load.more("server", 60);
    load.more("other", 60);
    load.stop_without_failure();
}

#[test]
fn a_request_that_cannot_be_repeated_fails_with_the_reason() {
    let mut two = Two::new();
    let first = SocketAddr::from(([10, 96, 0, 101], 80));
    two.mesh.control.set_outbound(first, Ok(policies::detect(policies::forward(two.endpoints[0].clone()))));
    let mut stream = two.mesh.client.connect(first).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"POST /wait HTTP/1.1\r\nhost: web.test\r\ncontent-length: 2\r\n\r\nhi").unwrap();
    let there = ["direction=\"inbound\"", "target_port=\"8080\""];
    two.mesh.server.proxy().wait_metric("request_total", &there, |n| n == 1.0);
    drop_packets(&two.mesh.server.ns, &[INCOMING]);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let answer = answer.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 502"), "{answer}");
    assert!(answer.contains("no answer to http/2 ping") && answer.contains("8080"), "{answer}");
}

/// A process in a namespace, killed on drop.
struct Background(Child);

impl Background {
    fn node(ns: &Netns, script: &str) -> Self {
        let mut command = Command::new("node");
        command.args(["-e", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = ns.enter(|| command.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_application_that_is_stopped_gets_no_more_requests_until_it_goes_on() {
    let two = Two::new();
    // Beside the other application of that pod, as that one runs in the test's own process.
    let script = "require('http').createServer((q, s) => s.end('stopped')).listen(8082, () => console.log('ready'))";
    let node = Background::node(&two.mesh.server.ns, script);
    let endpoints = vec![
        policies::meshed(two.mesh.server.addr(8082), &two.mesh.server.identity, Some(4143)),
        two.endpoints[1].clone(),
    ];
    two.mesh.control.set_endpoints(&two.mesh.service, Endpoints::Set(endpoints.clone()));
    let load = Load::start(&two.mesh.client, two.mesh.vip, &[Speak::Http1Once, Speak::Http1]);
    load.more("stopped", 10);
    load.more("other", 10);
    node.signal(Signal::SIGSTOP);
    support::proxy::stands_still(node.0.id());
    // Its proxy lives and takes requests, so some wait. But soon all new ones are answered by the other.
    let (vip, ns) = (two.mesh.vip, &two.mesh.client.ns);
    let asked: std::cell::RefCell<Vec<std::thread::JoinHandle<(u16, String)>>> = Default::default();
    eventually("answers of the other in a row", || {
        let stream = ns.connect(vip).unwrap();
        let one = std::thread::spawn(move || support::proxy::http_request(stream, "GET", "/", ""));
        let mut asked = asked.borrow_mut();
        asked.push(one);
        let last = asked.len().checked_sub(21)?;
        // The newest one may just have been asked.
        asked[last..last + 20].iter().all(std::thread::JoinHandle::is_finished).then_some(())
    });
    node.signal(Signal::SIGCONT);
    let mut answers = std::collections::BTreeMap::new();
    for one in asked.into_inner() {
        let (status, body) = one.join().unwrap();
        assert_eq!(status, 200);
        *answers.entry(body).or_insert(0) += 1;
    }
    assert!(answers["other"] >= 20, "{answers:?}");
    // It was slow, and is chosen less for a while; but it works.
    two.mesh.control.set_endpoints(&two.mesh.service, Endpoints::Set(endpoints[..1].to_vec()));
    load.only("stopped", 10);
    load.stop_without_failure();
}
