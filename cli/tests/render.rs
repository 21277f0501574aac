//! Tables and JSON from canned answers, against golden files (`WEFT_BLESS=1` rewrites them).

use clap::Parser;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use weft::args::{Cli, Command, ManifestOutput, Output, Stat, VizCommand};
use weft::{edges, inject, metrics, pods, stat, version};
use weft_core::api::{Edge, EdgesRequest, ResourceRef, StatRequest, StatRow};
use weft_core::inject::InjectConfig;

fn compare(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{name}: run with WEFT_BLESS=1 when the change is meant");
}

fn row(kind: &str, namespace: &str, name: &str) -> StatRow {
    StatRow {
        namespace: namespace.into(),
        kind: kind.into(),
        name: name.into(),
        meshed: 1,
        running: 1,
        success: Some(0.916_666),
        rps: Some(2.05),
        latency_ms_p50: Some(1),
        latency_ms_p95: Some(4),
        latency_ms_p99: Some(123),
        tcp_open_connections: Some(3),
        tcp_read_bytes_rate: Some(218.0),
        tcp_write_bytes_rate: Some(4321.75),
        ..StatRow::default()
    }
}

fn quiet(kind: &str, namespace: &str, name: &str) -> StatRow {
    StatRow {
        namespace: namespace.into(),
        kind: kind.into(),
        name: name.into(),
        meshed: 1,
        running: 2,
        ..StatRow::default()
    }
}

fn rows() -> Vec<StatRow> {
    let unmeshed = StatRow { meshed: 0, ..quiet("deployment", "emojivoto", "legacy") };
    let whole = StatRow { success: Some(1.0), ..row("deployment", "emojivoto", "emoji") };
    vec![row("deployment", "emojivoto", "web"), whole, unmeshed, quiet("deployment", "emojivoto", "vote-bot")]
}

fn arguments(line: &str) -> Stat {
    let Command::Stat(args) = Cli::try_parse_from(format!("weft stat {line}").split(' ')).unwrap().command else {
        panic!("not stat")
    };
    args
}

#[test]
fn stat_tables() {
    let show = |rows: Vec<StatRow>, line: &str| stat::render(rows, &arguments(line)).unwrap();
    compare("stat_deploy.txt", &show(rows(), "deploy -n emojivoto"));
    compare("stat_deploy_unmeshed.txt", &show(rows(), "deploy -n emojivoto --unmeshed"));
    compare("stat_deploy_wide.txt", &show(rows(), "deploy -n emojivoto -o wide"));
    compare("stat_deploy.json", &show(rows(), "deploy -n emojivoto -o json"));
    let mut all = rows();
    all.push(StatRow { status: Some("Running".into()), ..row("pod", "emojivoto", "web-5d8f9c7b6-x7k2p") });
    all.push(StatRow { status: Some("CrashLoopBackOff".into()), ..quiet("pod", "default", "bad") });
    all.push(StatRow { meshed: 0, running: 0, ..row("service", "emojivoto", "web-svc") });
    compare("stat_all_namespaces.txt", &show(all, "all -A"));
    let namespaces = vec![row("namespace", "", "emojivoto"), quiet("namespace", "", "weft")];
    compare("stat_ns.txt", &show(namespaces.clone(), "ns"));
    compare("stat_ns.json", &show(namespaces, "ns -o json"));
    assert_eq!(stat::render(Vec::new(), &arguments("deploy")), None);
    assert_eq!(stat::render(Vec::new(), &arguments("deploy -o json")).as_deref(), Some("[]\n"));
}

#[test]
fn stat_requests() {
    let ask = |line: &str| stat::requests(&arguments(line)).map_err(|f| f.message);
    let base = StatRequest { kind: "deployment".into(), window_seconds: 60, ..StatRequest::default() };
    let default = Some("default".to_owned());
    assert_eq!(ask("deploy"), Ok(vec![StatRequest { namespace: default.clone(), ..base.clone() }]));
    assert_eq!(ask("deploy -A -t 10m"), Ok(vec![StatRequest { window_seconds: 600, ..base.clone() }]));
    let named = |name: &str| StatRequest { name: Some(name.into()), namespace: Some("x".into()), ..base.clone() };
    assert_eq!(ask("deploy web api -n x"), Ok(vec![named("web"), named("api")]));
    let to = |namespace: Option<&str>| {
        Some(ResourceRef { kind: "service".into(), name: Some("web".into()), namespace: namespace.map(str::to_owned) })
    };
    let expected = StatRequest { namespace: Some("x".into()), to: to(Some("x")), ..base.clone() };
    assert_eq!(ask("deploy -n x --to svc/web"), Ok(vec![expected]));
    let expected = StatRequest { to: to(Some("y")), selector: Some("app=web".into()), ..base.clone() };
    assert_eq!(ask("deploy -A --to svc/web --to-namespace y -l app=web"), Ok(vec![expected]));
    let from = Some(ResourceRef { kind: "namespace".into(), name: Some("a".into()), namespace: None });
    let expected = StatRequest { kind: "namespace".into(), from, ..base.clone() };
    assert_eq!(ask("ns --from ns/a"), Ok(vec![expected]));
    for wrong in [
        "ns -n x",
        "ns --to po/a --to-namespace x",
        "deploy --to all",
        "deploy --from svc/a",
        "deploy --to-namespace x",
        "widget",
    ] {
        assert!(ask(wrong).is_err(), "{wrong}");
    }
    for usage in [
        "",
        "deploy -o xml",
        "deploy -n a -A",
        "deploy --to po/a --from po/b",
        "deploy -t 5s",
        "deploy -l =",
        "deploy --colour",
    ] {
        assert!(Cli::try_parse_from(format!("weft stat {usage}").split_whitespace()).is_err(), "{usage}");
    }
    let viz = Cli::try_parse_from(["weft", "viz", "stat", "deploy", "-L", "mesh"]).unwrap();
    assert_eq!(viz.linkerd_namespace, "mesh");
    assert!(matches!(viz.command, Command::Viz(VizCommand::Stat(_))));
}

fn some_edges() -> Vec<Edge> {
    let edge = |src: &str, dst: &str, reason: &str| {
        let identity = |name: &str| match reason {
            "" => format!("{name}.emojivoto.serviceaccount.identity.weft.cluster.local"),
            _ => String::new(),
        };
        Edge {
            src: src.into(),
            src_namespace: "emojivoto".into(),
            dst: dst.into(),
            dst_namespace: "emojivoto".into(),
            client_id: identity(if src == "vote-bot" { "default" } else { src }),
            server_id: identity(dst),
            no_tls_reason: reason.into(),
        }
    };
    vec![edge("web", "voting", ""), edge("web", "emoji", ""), edge("vote-bot", "web", "the server is not in the mesh")]
}

#[test]
fn edges_tables() {
    compare("edges.txt", &edges::render(some_edges(), Output::Table).unwrap());
    compare("edges_wide.txt", &edges::render(some_edges(), Output::Wide).unwrap());
    compare("edges.json", &edges::render(some_edges(), Output::Json).unwrap());
    // Of namespaces, whose pods have many identities.
    let between = |account: &str| Edge {
        src: "shop".into(),
        dst: "bank".into(),
        client_id: format!("{account}.shop.serviceaccount.identity.weft.cluster.local"),
        server_id: "till.bank.serviceaccount.identity.weft.cluster.local".into(),
        ..Edge::default()
    };
    let namespaces = vec![between("web"), between("app")];
    let table = "SRC    DST    SRC_NS   DST_NS   SECURED\nshop   bank   shop     bank     √      \n";
    assert_eq!(edges::render(namespaces.clone(), Output::Table).as_deref(), Some(table));
    assert_eq!(edges::render(namespaces, Output::Wide).unwrap().lines().count(), 3);
    assert_eq!(edges::render(Vec::new(), Output::Table), None);
    assert_eq!(edges::render(Vec::new(), Output::Json).as_deref(), Some("[]\n"));
}

#[test]
fn edges_requests() {
    let ask = |line: &str| {
        let cli = Cli::try_parse_from(format!("weft edges {line}").split(' ')).unwrap();
        let Command::Edges(args) = cli.command else { panic!("not edges") };
        edges::request(&args).map_err(|f| f.message)
    };
    let request =
        |namespace: Option<&str>| EdgesRequest { kind: "pod".into(), namespace: namespace.map(str::to_owned) };
    assert_eq!(ask("po"), Ok(request(Some("default"))));
    assert_eq!(ask("po -n x"), Ok(request(Some("x"))));
    assert_eq!(ask("pods -A"), Ok(request(None)));
    let namespaces =
        |namespace: Option<&str>| EdgesRequest { kind: "namespace".into(), namespace: namespace.map(str::to_owned) };
    assert_eq!(ask("ns"), Ok(namespaces(None)));
    assert_eq!(ask("ns -n x"), Ok(namespaces(Some("x"))));
    for wrong in ["po/a", "svc", "au", "all", "widget"] {
        assert!(ask(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn metrics_of_pods() {
    let ok = Ok("a 1\nb 2\n".to_owned());
    assert_eq!(
        metrics::render("web-1", 1, 2, &ok),
        "#\n# POD web-1 (1 of 2)\n#\na 1\nb 2\n\n".trim_end_matches('\n').to_owned() + "\n"
    );
    let failed = Err("refused".to_owned());
    assert_eq!(metrics::render("web-2", 2, 2, &failed), "#\n# POD web-2 (2 of 2)\n#\n# ERROR: refused\n");
}

#[test]
fn metrics_of_the_control_plane() {
    let ok = Ok("a 1\n".to_owned());
    let text = metrics::render_container("weft-identity-1", "identity", 1, 3, &ok);
    assert_eq!(text, "#\n# POD weft-identity-1 (1 of 3)\n# CONTAINER identity\n#\na 1\n");
    let failed = Err("refused".to_owned());
    let text = metrics::render_container("weft-identity-1", "identity", 2, 3, &failed);
    assert_eq!(text, "#\n# POD weft-identity-1 (2 of 3)\n# ERROR refused\n");
}

#[test]
fn metrics_without_names() {
    let metrics = "\
# HELP request_total {authority=\"x\"}
request_total{direction=\"outbound\",authority=\"web-svc\",tls=\"true\"} 5
request_total{authority=\"a\\\"b\\\\\", client_id=\"\"} 1 1700000000
process_start_time_seconds 7
odd{authority=\"web-svc
odd{} 1
";
    let expected = "\
# HELP request_total {authority=\"x\"}
request_total{direction=\"outbound\",authority=\"7c42eef8\",tls=\"true\"} 5
request_total{authority=\"6867941a\", client_id=\"e3b0c442\"} 1 1700000000
process_start_time_seconds 7
odd{authority=\"web-svc
odd{} 1
";
    assert_eq!(metrics::obfuscate(metrics), expected);
}

#[test]
fn pods_and_versions() {
    let pod = |name: &str, version: Option<&str>| {
        let containers = if version.is_some() { json!([{"name": "a"}, {"name": "linkerd-proxy"}]) } else { json!([]) };
        json!({
            "metadata": {"name": name, "namespace": "shop", "annotations": {"linkerd.io/proxy-version": version}},
            "spec": {"containers": containers},
            "status": {"phase": "Running"},
        })
    };
    let mut ended = pod("job", Some("0.0.9"));
    ended["status"]["phase"] = "Succeeded".into();
    let list =
        [pod("web", Some("0.2.0")), pod("db", Some("0.2.0")), pod("old", Some("0.1.0")), pod("plain", None), ended];
    assert_eq!(pods::names_of(&list[..4]), "shop/web\nshop/db\nshop/old\nshop/plain\n");
    assert_eq!(pods::render(&list[1..4]), "Meshed pods:\n\t* shop/db\n\t* shop/old\n");
    assert_eq!(pods::render(&list[3..4]), "No meshed pods found\n");
    assert_eq!(version::proxies(&list), "Proxy versions:\n\t0.1.0 (1 pods)\n\t0.2.0 (2 pods)\n");
    assert_eq!(version::proxies(&list[3..]), "Proxy versions: unavailable\n");
}

const MANIFEST: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: apps
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: apps
spec:
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: web
        image: web
        ports:
        - containerPort: 53
          protocol: UDP
---
apiVersion: v1
kind: Pod
metadata:
  name: on-host
spec:
  hostNetwork: true
  containers:
  - name: a
---
apiVersion: example.com/v1
kind: Widget
metadata:
  name: custom
";

#[test]
fn inject_and_uninject() {
    let documents: Vec<Value> =
        weft_core::manifest::values("app.yaml", MANIFEST).unwrap().into_iter().map(|(_, v)| v).collect();
    let settings = BTreeMap::from([("config.linkerd.io/proxy-log-level".to_owned(), "debug".to_owned())]);
    let (annotated, reports) = inject::transform_inject(&documents, &settings, None).unwrap();
    let text = inject::write(&annotated, ManifestOutput::Yaml) + &inject::inject_report(&reports);
    compare("inject.txt", &text);

    let mut config = InjectConfig::local("anchors\n", "1.2.3");
    config.unless_disabled = true;
    let (manual, reports) = inject::transform_inject(&documents, &settings, Some(&config)).unwrap();
    compare("inject_manual.txt", &(inject::write(&manual, ManifestOutput::Yaml) + &inject::inject_report(&reports)));
    let (again, _) = inject::transform_inject(&manual, &settings, Some(&config)).unwrap();
    assert_eq!(again, manual, "injecting twice is injecting once");

    let (back, reports): (Vec<Value>, Vec<_>) = manual.iter().map(inject::transform_uninject).unzip();
    compare("uninject.txt", &inject::uninject_report(&reports.concat()));
    assert!(!inject::write(&back, ManifestOutput::Json).contains("linkerd-proxy"));
    let (asked, _) = inject::transform_inject(&documents, &BTreeMap::new(), None).unwrap();
    let (unasked, _): (Vec<Value>, Vec<_>) = asked.iter().map(inject::transform_uninject).unzip();
    assert_eq!(unasked, documents, "uninject is the inverse");

    let nothing = inject::transform_inject(&documents[3..], &BTreeMap::new(), None).unwrap().1;
    assert_eq!(inject::inject_report(&nothing), "\n‼ no supported objects found\n\nwidget \"custom\" skipped\n\n");
    let bad = BTreeMap::from([("config.linkerd.io/proxy-uid".to_owned(), "root".to_owned())]);
    assert!(inject::transform_inject(&documents, &bad, Some(&config)).is_err());
}
