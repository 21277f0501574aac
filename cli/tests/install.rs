//! `weft install` and the other commands about Kubernetes, as programs: what they say without a cluster, with one that
//! refuses, and with settings that cannot be used.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use weft_core::trust;

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs `weft` where there is no cluster, unless the arguments name one.
fn weft(directory: &Path, arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).current_dir(directory).env_clear();
    command.env("HOME", directory).env("KUBECONFIG", directory.join("none")).env("WEFT_RUN_DIR", directory.join("run"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever does not read it has closed it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn kubeconfig(directory: &Path, server: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: {server}}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
    );
    std::fs::write(directory.join("config"), text).unwrap();
}

/// An API server that answers everything alike, for as long as the test runs.
fn api_server(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

#[test]
fn without_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for arguments in [&["install"][..], &["upgrade"], &["uninstall"], &["prune"], &["install", "--crds"]] {
        let ran = weft(at, arguments, "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(ran.err.starts_with("Error: Cannot connect to Kubernetes: kubeconfig: "), "{}", ran.err);
    }
    let ran = weft(at, &["check", "--pre"], "");
    assert_eq!(ran.code, Some(2));
    assert!(ran.out.contains("× can initialize the client\n    kubeconfig: "), "{}", ran.out);
    assert!(ran.out.contains("docs/checks.md#can-initialize-the-client for hints"), "{}", ran.out);
    let ran = weft(at, &["stat", "deploy", "--kubeconfig", "nowhere"], "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.starts_with("Error: Cannot connect to the cluster: nowhere: "), "{}", ran.err);

    // Nobody listens on that port.
    kubeconfig(at, "http://127.0.0.1:1");
    let ran = weft(at, &["install", "--kubeconfig", "config"], "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("cannot reach the API server at http://127.0.0.1:1/: "), "{}", ran.err);
    assert!(ran.err.contains("--ignore-cluster"), "{}", ran.err);
    let ran = weft(at, &["stat", "deploy", "--kubeconfig", "config", "--context", "other"], "");
    assert!(ran.code == Some(1) && ran.err.contains("other"), "{}", ran.err);
}

#[test]
fn a_cluster_that_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let forbidden = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"you may not","reason":"Forbidden","code":403}"#;
    kubeconfig(at, &api_server("403 Forbidden", forbidden));
    for arguments in [&["install"][..], &["upgrade"], &["uninstall"], &["edges", "deploy"]] {
        let ran = weft(at, &[arguments, &["--kubeconfig", "config"]].concat(), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(ran.err.contains("not allowed: you may not"), "{arguments:?}: {}", ran.err);
    }
    kubeconfig(at, &api_server("200 OK", "<html>"));
    let ran = weft(at, &["uninstall", "--kubeconfig", "config"], "");
    assert!(ran.code == Some(1) && ran.err.contains("answers what is no Kubernetes API"), "{}", ran.err);
}

#[test]
fn a_cluster_that_is_too_old() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    kubeconfig(at, &api_server("200 OK", r#"{"major":"1","minor":"19+","gitVersion":"v1.19.16-gke.1"}"#));
    for arguments in [&["install"][..], &["install", "--crds"], &["upgrade"]] {
        let ran = weft(at, &[arguments, &["--kubeconfig", "config"]].concat(), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{arguments:?}");
        assert_eq!(ran.err, "Error: Kubernetes v1.19.16-gke.1 is older than 1.20\n", "{arguments:?}");
    }
    let ran = weft(at, &["check", "--pre", "--kubeconfig", "config"], "");
    assert_eq!(ran.code, Some(2));
    assert!(ran.out.contains("× is running the minimum Kubernetes API version\n    Kubernetes v1.19"), "{}", ran.out);
}

#[test]
fn settings_that_cannot_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("broken.yaml"), "a: [").unwrap();
    std::fs::write(at.join("wrong.yaml"), "proxy: {image: x}").unwrap();
    let now = time::OffsetDateTime::now_utc();
    let (ours, other) = (trust::generate(now).unwrap(), trust::generate(now).unwrap());
    for (name, text) in [
        ("ca", &ours.anchor_pem),
        ("crt", &ours.issuer_pem),
        ("key", &ours.issuer_key_pem),
        ("other-ca", &other.anchor_pem),
        ("other-key", &other.issuer_key_pem),
    ] {
        std::fs::write(at.join(name), text).unwrap();
    }
    let issuer = |ca: &'static str, key: &'static str| {
        let (anchors, certificate) = ("--identity-trust-anchors-file", "--identity-issuer-certificate-file");
        vec![anchors, ca, certificate, "crt", "--identity-issuer-key-file", key]
    };
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["-f", "none.yaml"], "none.yaml: No such file"),
        (vec!["-f", "broken.yaml"], "broken.yaml: not YAML: "),
        (vec!["-f", "wrong.yaml"], "wrong.yaml: proxy.image: must be a map"),
        (vec!["-f", "-"], "standard input: nothing: there is no such setting"),
        (vec!["--set", "proxy.imgae.name=x"], "--set: proxy.imgae: there is no such setting; is image meant?"),
        (vec!["--set", "controllerReplicas"], "--set: controllerReplicas: has no ="),
        (
            vec!["--set", "identity.issuer.scheme=vault"],
            "identity.issuer.scheme: must be linkerd.io/tls or kubernetes.io/tls",
        ),
        (vec!["--set", "controllerReplicas=0"], "controllerReplicas: \"0\" is not a whole number from 1 to 100"),
        (vec!["--set", "controllerReplicas=many"], "controllerReplicas: must be a number"),
        (vec!["--set", "clusterNetworks=everything"], "clusterNetworks: \"everything\" has everything, which is not a"),
        (vec!["--set", "identityTrustDomain=a_b"], "identityTrustDomain: \"a_b\" is not a valid name"),
        (
            vec!["--set", "identity.issuer.issuanceLifetime=soon"],
            "identity.issuer.issuanceLifetime: \"soon\" is not a dur",
        ),
        (vec!["--set", "controllerLogLevel=a=b=c"], "controllerLogLevel: \"a=b=c\" is no filter of log lines"),
        (vec!["--set", "webhookFailurePolicy=Perhaps"], "webhookFailurePolicy: \"Perhaps\" is none of Ignore, Fail"),
        (vec!["--set", "imagePullPolicy=Sometimes"], "imagePullPolicy: \"Sometimes\" is none of Always, IfNotPresent"),
        (vec!["--set", "identityResources.cpu.limit=lots"], "identityResources.cpu.limit: \"lots\" is not a quantity"),
        (
            vec!["--set", "proxy.resources.memory.request=lots"],
            "proxy.resources.memory.request: \"lots\" is not a quan",
        ),
        (vec!["--set", "proxy.uid=-5"], "proxy.uid: \"-5\" is not a number in range"),
        (vec!["--set", "proxy.ports.inbound=99999"], "proxy.ports.inbound: \"99999\" is not a port"),
        (vec!["--set", "proxy.defaultInboundPolicy=everyone"], "proxy.defaultInboundPolicy: \"everyone\" is none of"),
        (vec!["--set", "proxyInit.skipSubnets=here"], "proxyInit.skipSubnets: \"here\""),
        (vec!["--set", "proxyInit.iptablesMode=ipfw"], "proxyInit.iptablesMode: \"ipfw\" is none of auto, nft, legacy"),
        (vec!["--set", "proxyInit.kubeAPIServerPorts=https"], "proxyInit.kubeAPIServerPorts: \"https\""),
        (vec!["--set-file", "identityTrustAnchorsPEM=none"], "none: No such file"),
        (vec!["--identity-external-issuer"], "the trust anchors are missing: name the trust anchors with"),
        (vec!["--identity-trust-anchors-file", "ca"], "issuer (identity.issuer.tls): there is no certificate in it"),
        (issuer("other-ca", "key"), "issuer (identity.issuer.tls): none of the trust anchors signed it"),
        (issuer("ca", "other-key"), "the key does not belong to the certificate"),
        (issuer("key", "key"), "trust anchors (identityTrustAnchorsPEM): there is no certificate in it"),
    ];
    for (arguments, expected) in cases {
        let ran = weft(at, &[&["install", "--ignore-cluster"], &arguments[..]].concat(), "nothing: 1\n");
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{arguments:?}: nothing half done");
        assert!(ran.err.starts_with("Error: ") && ran.err.contains(expected), "{arguments:?}: {}", ran.err);
        assert_eq!(ran.err.trim_end().lines().count(), 1, "one sentence: {}", ran.err);
    }
    let ran = weft(at, &[&["install", "--ignore-cluster"], &issuer("ca", "key")[..]].concat(), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
}

#[test]
fn objects_without_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let objects = |arguments: &[&str]| -> Vec<Value> {
        let ran = weft(directory.path(), &[&["install", "--ignore-cluster", "-o", "json"], arguments].concat(), "");
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        serde_json::Deserializer::from_str(&ran.out).into_iter().collect::<Result<_, _>>().unwrap()
    };
    let all = objects(&["-L", "mesh", "--set", "identityTrustDomain=example.org"]);
    assert_eq!(all[0]["kind"], "Namespace");
    assert_eq!(all[0]["metadata"]["name"], "mesh");
    let text = serde_json::to_string(&all).unwrap();
    assert!(text.contains("weft-identity.mesh.svc.cluster.local.:8080") && !text.contains("weft-identity.weft."));
    assert!(text.contains("serviceaccount.identity.mesh.example.org"));
    // Certificates are new each time; what was set is remembered, but no key.
    let secret =
        |all: &[Value], name: &str| all.iter().find(|o| o["metadata"]["name"] == name).unwrap()["data"].clone();
    assert_ne!(secret(&all, "weft-identity-issuer"), secret(&objects(&[]), "weft-identity-issuer"));
    let remembered = secret(&all, "weft-config-overrides");
    use base64::Engine;
    let text = remembered["weft-config-overrides"].as_str().unwrap();
    let text = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "identityTrustDomain: example.org\n");
    assert_eq!(objects(&["--crds"]).len(), 10);
}

#[test]
fn the_cni_plugin_is_printed_without_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "install-cni",
        "-o=json",
        "--dest-cni-net-dir=/var/net.d",
        "--cni-image=registry/cni",
        "--cni-image-version=7",
        "--priority-class-name=p",
        "--set=repairController.enabled=false,logLevel=debug",
        "--cni-log-level=trace",
    ];
    let ran = weft(directory.path(), &arguments, "");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let objects = serde_json::Deserializer::from_str(&ran.out).into_iter::<Value>();
    let objects: Vec<Value> = objects.collect::<Result<_, _>>().unwrap();
    let kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"]);
    let pod = &objects[4]["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry/cni:7");
    assert_eq!(pod["priorityClassName"], "p");
    let args = pod["containers"][0]["args"].as_array().unwrap();
    assert!(args.contains(&"--net-dir-on-node=/var/net.d".into()), "{args:?}");
    assert!(args.contains(&"--log-level=trace".into()), "a flag goes over --set: {args:?}");
    for (argument, expected) in [
        ("--set=portsToRedirect=80", "--set: portsToRedirect: there is no such setting"),
        ("--dest-cni-bin-dir=bin", "destCNIBinDir: \"bin\" is no path of a node"),
    ] {
        let ran = weft(directory.path(), &["install-cni", argument], "");
        assert!(ran.code == Some(1) && ran.err.contains(expected), "{}", ran.err);
    }
}

/// It is a setting like any other, so that an upgrade keeps it.
#[test]
fn a_flag_leaves_the_redirection_to_the_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let ran = weft(directory.path(), &["install", "--ignore-cluster", "--linkerd-cni-enabled"], "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("name: linkerd-network-validator") && !ran.out.contains("NET_ADMIN"));
    let encoded = "Y25pRW5hYmxlZDogdHJ1ZQo=";
    assert!(ran.out.contains(&format!("weft-config-overrides: {encoded}")), "cniEnabled: true");
}
