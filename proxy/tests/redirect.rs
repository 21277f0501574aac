//! The redirection: golden rulesets, and one that is applied in a network namespace.

mod support;

use std::process::{Command, Stdio};

use support::{bless, netns::Netns};
use weft_proxy::redirect::Redirect;

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
