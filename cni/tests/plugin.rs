//! The plugin as container runtimes call it: for pods of a made-up API server, in network namespaces.

mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use support::api_server::{ApiServer, Fault};
use support::eventually;
use support::netns::{Bridge, Netns};
use weft_core::inject::{InjectConfig, inject};

struct Ran {
    ok: bool,
    answer: Value,
}

fn result(version: &str) -> Value {
    json!({ "cniVersion": version, "ips": [{ "address": "10.244.0.11/16", "interface": 0 }], "dns": {}, "odd": [1.5, null] })
}

/// `ADD` for a pod of namespace `shop`.
fn add(server: &ApiServer, pod: &str, ns: &Netns, version: &str) -> Ran {
    let configuration = json!({
        "cniVersion": version, "name": "pods", "type": "weft-cni", "prevResult": result(version),
        "kubernetes": { "kubeconfig": server.kubeconfig() },
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/")])
        // Runtimes have one, to pull images.
        .env("HTTPS_PROXY", "http://192.0.2.1:3128")
        .env("CNI_NETNS", ns.path())
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=u"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran { ok: output.status.success(), answer: serde_json::from_slice(&output.stdout).unwrap() }
}

fn pod(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "uid": "u", "annotations": annotations },
        "spec": { "containers": [{ "name": "web", "image": "web" }] },
    })
}

/// As the injector of a cluster with the plugin makes it.
fn injected(name: &str, annotations: Value, native_sidecars: bool, cni: bool) -> Value {
    let local = InjectConfig::local("anchors", "1");
    let config = InjectConfig { unless_disabled: true, native_sidecars, cni, ..local };
    inject(&pod(name, annotations), &config).unwrap().value
}

fn rules(ns: &Netns) -> String {
    ns.run(&["nft", "list", "ruleset"])
}

#[test]
fn pods_with_a_proxy_are_redirected_and_no_others() {
    let server = ApiServer::start();
    let annotations = json!({
        "config.linkerd.io/skip-inbound-ports": "9000-9010", "config.linkerd.io/skip-outbound-ports": "443",
        "config.linkerd.io/skip-subnets": "10.9.0.0/16", "config.linkerd.io/proxy-uid": "7777",
    });
    server.put(&injected("web", annotations.clone(), false, true));
    server.put(&injected("native", annotations, true, true));
    server.put(&injected("init", json!({}), false, false));
    server.put(&pod("plain", json!({})));
    let mut bridge = Bridge::new();
    for (at, name) in ["web", "native"].into_iter().enumerate() {
        let (ns, _) = bridge.plug();
        let version = ["0.3.1", "1.0.0"][at];
        let ran = add(&server, name, &ns, version);
        assert!(ran.ok && ran.answer == result(version), "{}", ran.answer);
        let rules = rules(&ns);
        for expected in ["9000-9010", "10.9.0.0/16", "skuid 7777", "redirect to :4143", "redirect to :4140", "443"] {
            assert!(rules.contains(expected), "{name}: {expected}: {rules}");
        }
        // An application's connection arrives at the proxy.
        let proxy = ns.listen((Ipv4Addr::LOCALHOST, 4140));
        let far: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let stream = ns.connect(far).unwrap();
        assert_eq!(proxy.accept().unwrap().1, stream.local_addr().unwrap());
        // The runtime may call it again.
        assert!(add(&server, name, &ns, version).ok);
        assert_eq!(self::rules(&ns), rules);
    }
    for name in ["init", "plain"] {
        let ns = Netns::new();
        let ran = add(&server, name, &ns, "0.4.0");
        assert!(ran.ok && ran.answer == result("0.4.0"), "{}", ran.answer);
        assert_eq!(rules(&ns), "", "{name}");
    }
    let requests = server.world().requests.clone();
    assert!(requests.iter().all(|r| r.starts_with("GET /api/v1/namespaces/shop/pods/")), "{requests:?}");
    assert_eq!(requests.len(), 6, "one question for each pod");
}

/// The plugin answers that it could not find out.
#[track_caller]
fn refused(server: &ApiServer, name: &str, ns: &Netns, why: &str) {
    let ran = add(server, name, ns, "1.1.0");
    let message = ran.answer["msg"].as_str().unwrap().to_owned();
    assert_eq!((ran.ok, &ran.answer["code"], &ran.answer["cniVersion"]), (false, &json!(11), &json!("1.1.0")));
    let begin = format!("weft-cni: whether pod shop/{name} is meshed cannot be found out: the API server");
    assert!(message.starts_with(&begin) && message.contains(why), "{message}");
}

#[test]
fn a_pod_gets_no_network_when_nobody_knows_whether_it_is_meshed() {
    let ns = &Netns::new();
    refused(&ApiServer::start(), "unknown", ns, "404");
    let faults = [
        (Some(Fault::Hang), "did not answer"),
        (Some(Fault::Garbage), "makes no sense"),
        (Some(Fault::Error), "500"),
        (None, "cannot be reached"),
    ];
    std::thread::scope(|scope| {
        for (fault, why) in faults {
            scope.spawn(move || {
                let server = ApiServer::start();
                server.put(&pod("web", json!({})));
                server.fault("pods/web", fault);
                if fault.is_none() {
                    server.stop();
                }
                refused(&server, "web", ns, why);
                server.fault("pods/web", None);
                server.resume();
                eventually("the server to be back", || add(&server, "web", ns, "1.1.0").ok.then_some(()));
            });
        }
    });
    assert_eq!(rules(ns), "");
}

/// The runtime may be faster than the API server.
#[test]
fn a_pod_may_become_known_a_moment_later() {
    let server = ApiServer::start();
    let ns = Netns::new();
    let ran = std::thread::scope(|scope| {
        let running = scope.spawn(|| add(&server, "web", &ns, "1.0.0"));
        eventually("a question", || (server.asked("GET ") > 0).then_some(()));
        server.put(&injected("web", json!({}), false, true));
        running.join().unwrap()
    });
    assert!(ran.ok, "{}", ran.answer);
    assert!(rules(&ns).contains("redirect to :4140"));
}

/// Whoever makes a pod writes the arguments of its validator.
#[test]
fn a_pod_reaches_nothing_but_its_own_network() {
    let server = ApiServer::start();
    let (ns, other) = (Netns::new(), Netns::new());
    let mut pod = injected("web", json!({}), false, true);
    let args = pod.pointer_mut("/spec/initContainers/0/args").unwrap().as_array_mut().unwrap();
    args.push(format!("--netns={}", other.path()).into());
    server.put(&pod);
    let ran = add(&server, "web", &ns, "1.0.0");
    assert!(!ran.ok && ran.answer["code"] == 100, "{}", ran.answer);
    assert!(ran.answer["msg"].as_str().unwrap().contains("unexpected argument '--netns'"), "{}", ran.answer);
    assert_eq!((rules(&ns), rules(&other)), (String::new(), String::new()));
}

/// What a plugin of the kernel's refuses is said.
#[test]
fn a_namespace_that_is_gone_is_an_error() {
    let server = ApiServer::start();
    server.put(&injected("web", json!({}), false, true));
    let configuration = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "weft-cni", "prevResult": {},
        "kubernetes": { "kubeconfig": server.kubeconfig() },
    });
    let call = weft_cni::plugin::Call {
        command: "ADD".into(),
        netns: Some("/nowhere/netns".into()),
        args: "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web".into(),
    };
    let answer = weft_cni::plugin::answer(&call, configuration.to_string().as_bytes());
    assert!(answer.failed && answer.text.contains("cannot enter /nowhere/netns: No such file"), "{}", answer.text);
}
