//! The redirection: golden rulesets, and real connections in network namespaces, by nf_tables and by ip_tables. Needs the
//! Debian packages nftables and iptables; the latter only to look at the tables, and to make rules of others.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
};

use support::{
    bless,
    netns::{Bridge, Netns},
};
use weft_proxy::redirect::{Mode, Redirect};

fn least() -> Redirect {
    Redirect {
        inbound_port: 4143,
        outbound_port: 4140,
        proxy_uid: Some(2102),
        proxy_gid: None,
        inbound_only: Vec::new(),
        inbound_ignore: Vec::new(),
        outbound_ignore: Vec::new(),
        ignore_subnets: Vec::new(),
        ipv6: false,
        mode: Mode::Auto,
    }
}

fn most() -> Redirect {
    let ports = |text: &str| text.split(',').map(|p| p.parse().unwrap()).collect();
    Redirect {
        proxy_gid: Some(2103),
        inbound_only: ports("80,8000-8010"),
        inbound_ignore: ports("4190,4191,4567-4568"),
        outbound_ignore: ports("443,25"),
        ignore_subnets: vec!["10.1.2.3/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ipv6: true,
        ..least()
    }
}

#[test]
fn rulesets_are_as_agreed() {
    bless::assert("redirect-least.nft", &least().ruleset());
    bless::assert("redirect-most.nft", &most().ruleset());
    let legacy = |redirect| Redirect { mode: Mode::Legacy, ..redirect };
    bless::assert("redirect-least.iptables", &legacy(least()).ruleset());
    bless::assert("redirect-most.iptables", &legacy(most()).ruleset());
}

#[test]
fn the_program_takes_linkerds_flags() {
    let init = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weft-init")).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, out, _) = init(&["--simulate", "-p", "4143", "-o", "4140", "-u", "2102", "-w", "--ipv6=false"]);
    assert_eq!((code, out), (Some(0), least().ruleset()));
    let (code, out, _) = init(&[
        "--simulate",
        "--incoming-proxy-port=4143",
        "--outgoing-proxy-port=4140",
        "--proxy-uid=2102",
        "-g=2103",
        "-r=80,8000-8010",
        "--inbound-ports-to-ignore=4190,4191,4567-4568",
        "--outbound-ports-to-ignore=443,25",
        "--subnets-to-ignore=10.1.2.3/16,fd00::/8",
        "--timeout-close-wait-secs=0",
        "--ipv6=true",
    ]);
    assert_eq!((code, out), (Some(0), most().ruleset()));
    for (mode, expected) in
        [("nft", Mode::Nftables), ("legacy", Mode::Legacy), ("plain", Mode::Auto), ("auto", Mode::Auto)]
    {
        let (code, out, _) = init(&["--simulate", "-u=2102", "--iptables-mode", mode]);
        assert_eq!((code, out), (Some(0), Redirect { mode: expected, ..least() }.ruleset()));
    }
    let (code, _, err) = init(&["--simulate", "--iptables-mode", "ipfw"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("is none of auto, nft, legacy, plain"), "{err}");
    let (code, out, err) = init(&["--simulate", "--inbound-ports-to-ignore", "90-80"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("90-80"), "{err}");
}

#[test]
fn rules_are_applied_and_replaced() {
    let ns = Netns::new();
    let init = |more: &[&str]| {
        let mut args = vec![env!("CARGO_BIN_EXE_weft-init"), "-u", "2102"];
        args.extend(more);
        ns.run(&args);
    };
    init(&["--inbound-ports-to-ignore", "4190,4191"]);
    let first = ns.run(&["nft", "list", "table", "inet", "weft_init"]);
    assert!(first.contains("redirect to :4143") && first.contains("4191"), "{first}");
    assert!(first.contains("skuid 2102"), "{first}");
    init(&[]);
    let second = ns.run(&["nft", "list", "table", "inet", "weft_init"]);
    assert_eq!(second.matches("redirect to").count(), 2, "replaced, not added to: {second}");
    assert!(!second.contains("4191"), "{second}");
}

const INIT: &str = env!("CARGO_BIN_EXE_weft-init");

fn init(ns: &Netns, args: &[&str]) {
    ns.run(&[&[INIT, "-u", "2102"], args].concat());
}

/// Answers every connection with a name, until the process ends.
fn answer(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(name.as_bytes());
        }
    });
}

fn asked(ns: &Netns, addr: SocketAddr) -> String {
    let mut stream = ns.connect(addr).unwrap_or_else(|e| panic!("cannot connect to {addr}: {e}"));
    let mut name = String::new();
    stream.read_to_string(&mut name).unwrap();
    name
}

/// As [`asked`], as another user or group.
fn asked_as(ns: &Netns, who: &str, addr: SocketAddr) -> String {
    let script = format!("exec 3<>/dev/tcp/{}/{} && cat <&3", addr.ip(), addr.port());
    ns.run(&["setpriv", who, "--clear-groups", "bash", "-c", &script])
}

/// Two pods and one whose network is ignored. With addresses of both versions of IP.
struct Pods {
    _bridge: Bridge,
    meshed: Netns,
    peer: Netns,
    ignored: Netns,
    /// Addresses of the first two, by version.
    addresses: [[SocketAddr; 2]; 2],
}

impl Pods {
    fn new() -> Self {
        let mut bridge = Bridge::new();
        let plugged: Vec<_> = (0..3).map(|_| bridge.plug()).collect();
        let mut sixes = Vec::new();
        for (number, (pod, _)) in plugged.iter().enumerate() {
            sixes.push(format!("[fd00:1::{}]:0", number + 1).parse().unwrap());
            let address = format!("fd00:1::{}/64", number + 1);
            pod.run(&["ip", "-6", "addr", "add", &address, "dev", "eth0", "nodad"]);
        }
        let fours: Vec<SocketAddr> = plugged.iter().map(|(_, ip)| (*ip, 0).into()).collect();
        let [meshed, peer, ignored] = <[_; 3]>::try_from(plugged).map(|pods| pods.map(|(pod, _)| pod)).ok().unwrap();
        for (port, name) in [(8080, "app"), (5002, "app"), (5099, "app"), (25, "app"), (4143, "inbound")] {
            answer(meshed.listen(([0; 8], port)), name);
        }
        answer(meshed.listen(([127, 0, 0, 1], 4140)), "outbound");
        answer(meshed.listen(([0, 0, 0, 0, 0, 0, 0, 1], 4140)), "outbound");
        for port in [80, 443, 6001, 6019] {
            answer(peer.listen(([0; 8], port)), "peer");
        }
        Self { _bridge: bridge, meshed, peer, ignored, addresses: [[fours[0], fours[1]], [sixes[0], sixes[1]]] }
    }
}

#[test]
fn connections_are_redirected_the_same_way_by_both() {
    let pods = Pods::new();
    // More than fifteen ports of either kind, and ranges.
    let many = |base: u16| (0..20).map(|n| (base + n).to_string()).collect::<Vec<_>>().join(",");
    let inbound = format!("{},5098-5100,25", many(5000));
    let outbound = format!("{},443", many(6000));
    let networks = "10.244.0.13/32,fd00:1::3/128";
    for (mode, ipv6) in [("nft", false), ("legacy", false), ("nft", true), ("legacy", true)] {
        let mut args = vec!["-g", "2103", "--iptables-mode", mode, "--inbound-ports-to-ignore", &inbound];
        args.extend(["--outbound-ports-to-ignore", &outbound, "--subnets-to-ignore", networks]);
        args.extend(ipv6.then_some("--ipv6"));
        init(&pods.meshed, &args);
        for [mut meshed, mut peer] in pods.addresses {
            let redirected = ipv6 || meshed.is_ipv4();
            let mut check = |from: &Netns, there: bool, port: u16, expected: &str, otherwise: &str| {
                let addr = if there { &mut peer } else { &mut meshed };
                addr.set_port(port);
                let expected = if redirected { expected } else { otherwise };
                assert_eq!(asked(from, *addr), expected, "{mode}, IPv6 {ipv6}: {addr}");
            };
            check(&pods.peer, false, 8080, "inbound", "app");
            for ignored in [5002, 5099, 25] {
                check(&pods.peer, false, ignored, "app", "app");
            }
            check(&pods.ignored, false, 8080, "app", "app");
            check(&pods.meshed, true, 80, "outbound", "peer");
            for ignored in [443, 6001, 6019] {
                check(&pods.meshed, true, ignored, "peer", "peer");
            }
            // What a pod says to itself is nobody's business.
            check(&pods.meshed, false, 8080, "app", "app");
            let local = SocketAddr::new(
                if meshed.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() },
                8080,
            );
            assert_eq!(asked(&pods.meshed, local), "app");
            peer.set_port(80);
            for (who, expected) in [("--reuid=2102", "peer"), ("--regid=2103", "peer"), ("--reuid=2103", "outbound")] {
                let expected = if redirected { expected } else { "peer" };
                assert_eq!(asked_as(&pods.meshed, who, peer), expected, "{mode}, IPv6 {ipv6}: {who} to {peer}");
            }
        }
    }
}

#[test]
fn only_listed_ports_are_redirected_when_there_is_a_list() {
    let pods = Pods::new();
    let listed = (4980..5000).chain(5002..5003).map(|n: u16| n.to_string()).collect::<Vec<_>>().join(",");
    for mode in ["nft", "legacy"] {
        init(&pods.meshed, &["--iptables-mode", mode, "--ipv6", "-r", &listed]);
        for [mut addr, _] in pods.addresses {
            for (port, expected) in [(5002, "inbound"), (8080, "app"), (5099, "app"), (4980, "inbound")] {
                addr.set_port(port);
                assert_eq!(asked(&pods.peer, addr), expected, "{mode}: {addr}");
            }
        }
    }
}

/// What a program of iptables' prints of the table, without when.
fn saved(ns: &Netns, program: &str, more: &[&str]) -> String {
    let text = ns.run(&[&[program, "-t", "nat"], more].concat());
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

const MOST: [&str; 10] = [
    "-g=2103",
    "-r=80,8000-8010",
    "--inbound-ports-to-ignore=4190,4191,4567-4568",
    "--outbound-ports-to-ignore=443,25",
    "--subnets-to-ignore=10.1.2.3/16,fd00::/8",
    "--ipv6=true",
    "-p=4143",
    "-o=4140",
    "-w",
    "--iptables-mode=legacy",
];

#[test]
fn iptables_shows_the_chains_that_people_know() {
    let ns = Netns::new();
    init(&ns, &MOST);
    let both = || [saved(&ns, "iptables-legacy-save", &[]), saved(&ns, "ip6tables-legacy-save", &[])];
    let once = both();
    bless::assert("redirect-most.iptables-save", &once.join(""));
    // Line by line it is what the program says that it would do.
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect();
        // Chains are printed in another order, rules are not.
        lines.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
        lines
    };
    let ruleset = Redirect { mode: Mode::Legacy, ..most() }.ruleset();
    let [ipv4, ipv6] = <[&str; 2]>::try_from(ruleset.split("# ip6tables").collect::<Vec<_>>()).unwrap();
    assert_eq!([lines(&once[0]), lines(&once[1])], [lines(ipv4), lines(ipv6)]);
    init(&ns, &MOST);
    assert_eq!(both(), once, "a second run changes nothing");
    // And iptables can still change it.
    ns.run(&[
        "iptables-legacy",
        "-w",
        "-t",
        "nat",
        "-I",
        "PROXY_INIT_REDIRECT",
        "-p",
        "tcp",
        "--dport",
        "7777",
        "-j",
        "RETURN",
    ]);
    init(&ns, &MOST);
    assert_eq!(both(), once);
}

#[test]
fn what_others_have_in_the_table_stays() {
    let ns = Netns::new();
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        let iptables = |rule: &str| {
            ns.run(&[&[program, "-w", "-t", "nat"], rule.split(' ').collect::<Vec<_>>().as_slice()].concat());
        };
        iptables("-N THEIRS");
        iptables("-N ZULU");
        iptables("-A THEIRS -p tcp --dport 99 -m comment --comment theirs -j REDIRECT --to-ports 98");
        iptables("-A THEIRS -c 5 300 -j ZULU");
        iptables("-A ZULU -c 6 360 -p udp");
        iptables("-A PREROUTING -c 7 420 -p udp -g THEIRS");
        iptables("-A PREROUTING -c 8 480");
        iptables("-A OUTPUT -c 9 540 -p sctp -j ACCEPT");
        iptables("-A POSTROUTING -o eth7 -j MASQUERADE");
    }
    let shown =
        |ns: &Netns| ["iptables-legacy-save", "ip6tables-legacy-save"].map(|program| saved(ns, program, &["-c"]));
    let before = shown(&ns);
    assert!(before[0].contains("[7:420] -A PREROUTING -p udp -g THEIRS"), "{}", before[0]);
    init(&ns, &MOST);
    let after = shown(&ns);
    for (before, after) in before.iter().zip(&after) {
        assert!(after.contains("-A OUTPUT -j PROXY_INIT_OUTPUT"), "{after}");
        let theirs: String = after.lines().filter(|l| !l.contains("PROXY_INIT")).map(|l| format!("{l}\n")).collect();
        assert_eq!(&theirs, before);
    }
    init(&ns, &["--iptables-mode=legacy"]);
    assert_eq!(shown(&ns)[1], before[1], "without IPv6 there is nothing of an earlier run");
    init(&ns, &["--iptables-mode=nft"]);
    assert_eq!(shown(&ns), before, "another way, and the table is as it was");
}

#[test]
fn another_way_replaces_the_one_before() {
    let ns = Netns::new();
    let tables = || saved(&ns, "iptables-legacy-save", &[]).contains("PROXY_INIT");
    let nftables = || ns.output(&["nft", "list", "table", "inet", "weft_init"]).status.success();
    for _ in 0..2 {
        init(&ns, &["--iptables-mode=legacy"]);
        assert!(tables() && !nftables());
        init(&ns, &["--iptables-mode=nft"]);
        assert!(!tables() && nftables());
    }
    // Where there were never any tables there are none now.
    let fresh = Netns::new();
    init(&fresh, &[]);
    assert_eq!(fresh.enter(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap()), "");
}

#[test]
fn a_kernel_without_nf_tables_is_served_by_ip_tables() {
    let without = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/without.py");
    let run = |ns: &Netns, missing: &str, args: &[&str]| {
        let output = ns.output(&[&["/usr/bin/python3", "-B", without, missing, INIT, "-u", "2102"], args].concat());
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let tables = |ns: &Netns| saved(ns, "iptables-legacy-save", &[]).contains("-A OUTPUT -j PROXY_INIT_OUTPUT");

    let ns = Netns::new();
    let said =
        "weft-init: the kernel has no nf_tables (Protocol not supported (os error 93)); ip_tables redirect instead\n";
    assert_eq!(run(&ns, "nf_tables", &["--ipv6"]), (true, said.to_owned()));
    assert!(tables(&ns));

    let ns = Netns::new();
    assert_eq!(run(&ns, "nf_tables", &["--iptables-mode=legacy"]), (true, String::new()));
    assert!(tables(&ns));

    let ns = Netns::new();
    let (done, said) = run(&ns, "nf_tables", &["--iptables-mode=nft"]);
    assert!(!done && said.contains("refuses the rules for nf_tables: Protocol not supported"), "{said}");
    assert!(!tables(&ns));

    let (done, said) = run(&ns, "nf_tables,ip_tables", &[]);
    assert!(!done, "{said}");
    let neither = "weft-init: the kernel can redirect neither by nf_tables (Protocol not supported (os error 93)) \
        nor by ip_tables (the kernel has no ip_tables, or has not loaded them: Protocol not available (os error 92))\n";
    assert_eq!(said, neither);

    let (done, said) = run(&ns, "ip_tables", &["--iptables-mode=legacy"]);
    assert!(!done && said.contains("refuses the rules for ip_tables: the kernel has no ip_tables"), "{said}");
    assert_eq!(run(&Netns::new(), "ip_tables", &[]), (true, String::new()));
}

#[test]
fn whoever_may_not_change_the_rules_is_told_so_and_nothing_else_is_tried() {
    let ns = Netns::new();
    let run = |capability: &str, args: &[&str]| {
        let output = ns.output(&[&["setpriv", "--bounding-set", capability, INIT, "-u", "2102"], args].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let refused = "weft-init: the kernel refuses the rules for nf_tables: Operation not permitted (os error 1)\n";
    assert_eq!(run("-net_admin", &[]), refused);
    for capability in ["-net_admin", "-net_raw"] {
        let said = run(capability, &["--iptables-mode=legacy"]);
        assert!(said.contains("rules for ip_tables: table nat of IPv4: Operation not permitted"), "{said}");
    }
    assert!(!saved(&ns, "iptables-legacy-save", &[]).contains("PROXY_INIT"));
}

#[test]
fn whoever_holds_the_lock_of_iptables_is_waited_for() {
    let ns = Netns::new();
    let run = |holder: &str| {
        // A lock of its own: other tests use the machine's.
        let script =
            format!("mount -t tmpfs none /run && : >/run/xtables.lock && {holder} {INIT} --iptables-mode=legacy");
        let output = ns.output(&["unshare", "-m", "sh", "-c", &script]);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (done, said) = run("flock /run/xtables.lock");
    assert!(!done && said.contains("another program holds /run/xtables.lock"), "{said}");
    assert!(!saved(&ns, "iptables-legacy-save", &[]).contains("PROXY_INIT"));
    assert_eq!(run(""), (true, String::new()));
}

/// Exit code and what it says.
fn validate(ns: &Netns, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-init"));
    command.args(["validate", "--proxy-uid", "2102", "--inbound-ports-to-ignore", "4190,4191"]).args(more);
    let output = ns.enter(|| command.stdin(Stdio::null()).output()).unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_validator_blocks_pods_that_are_not_redirected() {
    let mut bridge = Bridge::new();
    let ((pod, _), (other, other_ip)) = (bridge.plug(), bridge.plug());
    let (code, said) = validate(&pod, &["--timeout=1s"]);
    assert_eq!(code, Some(95), "{said}");
    assert!(said.contains("has not redirected the traffic of this pod: nobody answered at 1.1.1.1:20001"), "{said}");
    // Somebody else is no proof.
    let listener = other.listen((other_ip, 20001));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, &[0; 64]).unwrap();
    });
    let (code, said) = validate(&pod, &[&format!("--connect-addr={other_ip}:20001")]);
    server.join().unwrap();
    assert!(code == Some(95) && said.contains("somebody else answers at 10."), "{said}");

    pod.run(&[env!("CARGO_BIN_EXE_weft-init"), "--proxy-uid", "2102"]);
    assert_eq!(validate(&pod, &[]), (Some(0), String::new()));
    // Redirected, but to another port.
    let (code, said) = validate(&pod, &["--outgoing-proxy-port=5140"]);
    assert!(code == Some(95) && said.contains("a connection to 1.1.1.1:20001 failed: Connection refused"), "{said}");
    // It is not known what is wrong where the port is taken: nothing is to be repaired.
    let _taken = pod.listen((std::net::Ipv4Addr::LOCALHOST, 4140));
    let (code, said) = validate(&pod, &[]);
    assert!(code == Some(1) && said.contains("cannot listen on 127.0.0.1:4140"), "{said}");
}

/// The kernel looks for a route before it redirects.
#[test]
fn a_validator_works_without_a_default_route() {
    let mut bridge = Bridge::new();
    let (pod, _) = bridge.plug();
    pod.run(&["ip", "route", "del", "default"]);
    let far = pod.connect("1.1.1.1:20001".parse().unwrap()).unwrap_err();
    assert_eq!(far.kind(), std::io::ErrorKind::NetworkUnreachable);
    let (code, said) = validate(&pod, &["--timeout=1s"]);
    assert!(code == Some(95) && said.contains("10.244.0.1:20001"), "{said}");
    pod.run(&[env!("CARGO_BIN_EXE_weft-init"), "--proxy-uid", "2102"]);
    assert_eq!(pod.connect("1.1.1.1:20001".parse().unwrap()).unwrap_err().kind(), far.kind(), "redirected or not");
    assert_eq!(validate(&pod, &[]), (Some(0), String::new()));
    // Where nothing can be sent, nothing can be shown.
    let alone = Netns::new();
    alone.run(&[env!("CARGO_BIN_EXE_weft-init"), "--proxy-uid", "2102"]);
    let (code, said) = validate(&alone, &[]);
    assert!(code == Some(95) && said.contains("there is no route to 1.1.1.1:20001, nor any network"), "{said}");
}

#[test]
fn a_validator_looks_at_ipv6_where_that_is_redirected() {
    let mut bridge = Bridge::new();
    let (pod, _) = bridge.plug();
    pod.run(&["ip", "addr", "add", "fd00:2::2/64", "dev", "eth0", "nodad"]);
    pod.run(&["ip", "-6", "route", "add", "default", "dev", "eth0"]);
    pod.run(&[env!("CARGO_BIN_EXE_weft-init"), "--proxy-uid", "2102"]);
    let (code, said) = validate(&pod, &["--ipv6", "--timeout=1s"]);
    assert!(code == Some(95) && said.contains("[fd00::1]:20001"), "{said}");
    pod.run(&[env!("CARGO_BIN_EXE_weft-init"), "--proxy-uid", "2102", "--ipv6"]);
    assert_eq!(validate(&pod, &["--ipv6"]), (Some(0), String::new()));
}
