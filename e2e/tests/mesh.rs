//! The demo application, meshed, in one cluster that all of these share: first those that look, then those that break
//! things, then the end. They run one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    process::ExitCode,
    sync::{Arc, LazyLock},
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use weft_e2e::{Capture, Cluster, Interop, Process, manifest, wait_for};

type Test = fn(&Cluster) -> anyhow::Result<()>;

const NAMESPACE: &str = "emojivoto";
/// What to look for in the clear: heads, paths and bodies of what the application says.
const READABLE: &[&[u8]] = &[
    b"HTTP/1.",
    b"GET /",
    b"PRI * HTTP/2.0",
    b"/api/",
    b"emojivoto.v1",
    b"application/grpc",
    b"shortcode",
    b":doughnut:",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared: Arc<LazyLock<anyhow::Result<Cluster>>> = Arc::new(LazyLock::new(start));
    let trials: &[(&str, Test)] = &[
        ("every_workload_is_meshed_and_its_traffic_shown", every_workload_is_meshed_and_its_traffic_shown),
        ("every_edge_is_secured_with_both_identities", every_edge_is_secured_with_both_identities),
        ("check_passes", check_passes),
        ("metrics_of_a_proxy_are_linkerds", metrics_of_a_proxy_are_linkerds),
        ("a_meshed_pod_reaches_by_name_service_ip_and_pod_ip", a_meshed_pod_reaches_by_name_service_ip_and_pod_ip),
        ("an_unmeshed_pod_still_reaches_meshed_ones", an_unmeshed_pod_still_reaches_meshed_ones),
        ("nothing_between_meshed_pods_can_be_read", nothing_between_meshed_pods_can_be_read),
        ("wrong_manifests_are_refused_and_what_runs_runs_on", wrong_manifests_are_refused_and_what_runs_runs_on),
        ("a_killed_proxy_comes_back_and_the_others_go_on", a_killed_proxy_comes_back_and_the_others_go_on),
        ("a_killed_controller_comes_back_and_traffic_goes_on", a_killed_controller_comes_back_and_traffic_goes_on),
        ("a_killed_application_comes_back", a_killed_application_comes_back),
        ("down_leaves_nothing", down_leaves_nothing),
    ];
    let trials = trials.iter().map(|&(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let cluster = shared.as_ref().as_ref().map_err(|error| format!("the cluster did not start: {error:#}"))?;
            test(cluster).map_err(|error| format!("{error:#}\n{}", state(cluster)).into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The last owner: this ends the cluster if a test did not.
    drop(shared);
    conclusion.exit_code()
}

fn start() -> anyhow::Result<Cluster> {
    let demo = manifest("demo/emojivoto.yml");
    let unmeshed = manifest("e2e/manifests/unmeshed.yml");
    Cluster::up_with(&[demo, unmeshed])
}

/// What helps to understand a failure.
fn state(cluster: &Cluster) -> String {
    let commands: [&[&str]; 4] = [
        &["ps", "-A"],
        &["stat", "deploy", "-n", NAMESPACE],
        &["logs", "-n", NAMESPACE, "deploy/web", "-c", "linkerd-proxy", "--tail", "20"],
        &["logs", "-n", NAMESPACE, "deploy/vote-bot", "--tail", "10"],
    ];
    let mut text = commands
        .map(|command| cluster.weft(command).map_or_else(|e| format!("{e:#}"), |ran| ran.to_string()))
        .join("\n");
    for pod in
        [NAMESPACE, "plain", "weft"].into_iter().flat_map(|namespace| cluster.pods(namespace).unwrap_or_default())
    {
        for container in containers(&pod).filter(|container| container["restartCount"] != 0) {
            text += &format!("{}: {container}\n", pod["metadata"]["name"]);
        }
    }
    text + &std::fs::read_to_string(cluster.run_dir().join("logs/node.log")).unwrap_or_default()
}

/// The states of a pod's containers, sidecars included.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["containerStatuses", "initContainerStatuses"];
    lists.into_iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
}

fn by_name(rows: &Value) -> anyhow::Result<BTreeMap<String, Value>> {
    let rows = rows.as_array().with_context(|| format!("not a list: {rows}"))?;
    rows.iter()
        .map(|row| Ok((row["name"].as_str().with_context(|| format!("no name: {row}"))?.to_owned(), row.clone())))
        .collect()
}

fn every_workload_is_meshed_and_its_traffic_shown(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("stat shows the application", || {
        let rows = by_name(&cluster.json(&["stat", "deploy", "-n", NAMESPACE, "-o", "json"])?)?;
        let names: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
        ensure!(names == BTreeSet::from(["emoji", "vote-bot", "voting", "web"]), "{names:?}");
        for (name, row) in &rows {
            ensure!(row["meshed"] == "1/1", "{name} is not meshed: {row}");
        }
        // The bot votes once a second, about 16 % of the votes fail, and every vote comes with a request that does not.
        for (name, success, rate) in [("web", 0.7..1.0, 0.5..4.0), ("voting", 0.5..1.0, 0.2..2.0)] {
            let row = &rows[name];
            ensure!(row["success"].as_f64().is_some_and(|share| success.contains(&share)), "success of {name}: {row}");
            ensure!(row["rps"].as_f64().is_some_and(|requests| rate.contains(&requests)), "rate of {name}: {row}");
        }
        ensure!(rows["emoji"]["success"].as_f64() == Some(1.0), "emoji never fails: {}", rows["emoji"]);
        for name in ["web", "voting", "emoji"] {
            let row = &rows[name];
            let latency = |key: &str| row[key].as_f64().with_context(|| format!("no {key} of {name}: {row}"));
            let (p50, p95, p99) = (latency("latency_ms_p50")?, latency("latency_ms_p95")?, latency("latency_ms_p99")?);
            ensure!(0.0 < p50 && p50 <= p95 && p95 <= p99, "latencies of {name}: {row}");
            ensure!(row["tcp_open_connections"].as_u64().is_some_and(|open| open > 0), "connections of {name}: {row}");
        }
        Ok(())
    })?;
    let table = cluster.weft(&["stat", "deploy", "-n", NAMESPACE])?.success()?;
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    let columns = ["NAME", "MESHED", "SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "TCP_CONN"];
    ensure!(head == columns, "{table}");
    Ok(())
}

fn identity(account: &str, namespace: &str) -> String {
    format!("{account}.{namespace}.serviceaccount.identity.weft.cluster.local")
}

fn every_edge_is_secured_with_both_identities(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("edges shows the application", || {
        let edges = cluster.json(&["edges", "deploy", "-n", NAMESPACE, "-o", "json"])?;
        let edges = edges.as_array().with_context(|| format!("not a list: {edges}"))?;
        for edge in edges {
            ensure!(edge["no_tls_reason"].as_str().unwrap_or_default().is_empty(), "not secured: {edge}");
        }
        for (client, account, server) in
            [("vote-bot", "default", "web"), ("web", "web", "emoji"), ("web", "web", "voting")]
        {
            let is_it = |edge: &&Value| {
                edge["src"] == client
                    && edge["dst"] == server
                    && edge["src_namespace"] == NAMESPACE
                    && edge["dst_namespace"] == NAMESPACE
            };
            let edge =
                edges.iter().find(is_it).with_context(|| format!("no edge from {client} to {server}: {edges:?}"))?;
            for (key, account) in [("client_id", account), ("server_id", server)] {
                // Linkerd shows the first two labels; the whole name says the same.
                let shown = edge[key].as_str().unwrap_or_default();
                let whole = identity(account, NAMESPACE);
                ensure!(shown == whole || shown == format!("{account}.{NAMESPACE}"), "{key} is not {whole}: {edge}");
            }
        }
        Ok(())
    })?;
    let table = cluster.weft(&["edges", "deploy", "-n", NAMESPACE])?.success()?;
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(head == ["SRC", "DST", "SRC_NS", "DST_NS", "SECURED"], "{table}");
    ensure!(table.lines().skip(1).all(|line| line.trim_end().ends_with('√')), "{table}");
    Ok(())
}

fn check_passes(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("check passes", || cluster.weft(&["check"])?.success())?;
    Ok(())
}

fn metrics_of_a_proxy_are_linkerds(cluster: &Cluster) -> anyhow::Result<()> {
    let metrics = cluster.weft(&["metrics", "-n", NAMESPACE, "deploy/web"])?.success()?;
    for family in ["request_total{", "response_total{", "response_latency_ms_bucket{", "tcp_open_total{"] {
        ensure!(metrics.lines().any(|line| line.starts_with(family)), "no {family} in\n{metrics}");
    }
    let client = format!("client_id=\"{}\"", identity("default", NAMESPACE));
    let secured = |line: &str| {
        line.starts_with("request_total{")
            && ["direction=\"inbound\"", "tls=\"true\"", &client].iter().all(|label| line.contains(label))
    };
    ensure!(metrics.lines().any(secured), "no inbound request of the bot over mutual TLS in\n{metrics}");
    Ok(())
}

/// The address of a deployment's pod.
fn pod_ip(cluster: &Cluster, namespace: &str, deployment: &str) -> anyhow::Result<Ipv4Addr> {
    let pod = cluster.pod_of(namespace, deployment)?;
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.parse()?)
}

/// Lists the emoji by curl from a pod.
fn list_emoji(cluster: &Cluster, namespace: &str, pod: &str, url: &str) -> anyhow::Result<()> {
    let text = cluster.exec(namespace, pod, &["curl", "-sS", "-f", "-m", "20", url])?.success()?;
    let list: Value = serde_json::from_str(&text).with_context(|| format!("{url}: {text}"))?;
    ensure!(list.as_array().is_some_and(|list| list.len() == 100), "{url}: {text}");
    Ok(())
}

/// Every way to call the web front: its name in three lengths, its service's address, its pod's address.
fn ways_to_web(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let service = cluster.object("services", NAMESPACE, "web-svc")?;
    let service = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    let pod = pod_ip(cluster, NAMESPACE, "web")?;
    let hosts =
        ["web-svc.emojivoto".into(), "web-svc.emojivoto.svc.cluster.local".into(), service, format!("{pod}:8080")];
    Ok(hosts.map(|host| format!("http://{host}/api/list")).into())
}

fn a_meshed_pod_reaches_by_name_service_ip_and_pod_ip(cluster: &Cluster) -> anyhow::Result<()> {
    list_emoji(cluster, NAMESPACE, "deploy/vote-bot", "http://web-svc/api/list")?;
    for url in ways_to_web(cluster)? {
        list_emoji(cluster, NAMESPACE, "deploy/vote-bot", &url)?;
    }
    Ok(())
}

fn an_unmeshed_pod_still_reaches_meshed_ones(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = cluster.pods("plain")?;
    let containers = pod[0]["spec"]["containers"].as_array().context("no containers")?;
    ensure!(containers.len() == 1, "the client is meshed: {containers:?}");
    for url in ways_to_web(cluster)? {
        list_emoji(cluster, "plain", "client", &url)?;
    }
    Ok(())
}

fn nothing_between_meshed_pods_can_be_read(cluster: &Cluster) -> anyhow::Result<()> {
    let meshed = ["emoji", "voting", "web", "vote-bot"].map(|name| pod_ip(cluster, NAMESPACE, name));
    let meshed: BTreeSet<Ipv4Addr> = meshed.into_iter().collect::<anyhow::Result<_>>()?;
    let [bot, web] = ["vote-bot", "web"].map(|name| pod_ip(cluster, NAMESPACE, name));
    let (bot, web) = (bot?, web?);
    let node =
        cluster.processes().into_iter().find(|process| process.command.get(1).is_some_and(|word| word == "__node"));
    let capture = Capture::on_bridge(&node.context("no node process")?)?;
    // What an unmeshed client says can be read: it shows that the capture sees what there is to see.
    list_emoji(cluster, "plain", "client", &format!("http://{web}:8080/api/list"))?;
    list_emoji(cluster, NAMESPACE, "deploy/vote-bot", "http://web-svc/api/list")?;
    let readable = |payload: &[u8]| READABLE.iter().any(|text| payload.windows(text.len()).any(|part| &part == text));
    wait_for("traffic on the bridge", || {
        let packets = capture.so_far()?;
        let between = packets.iter().filter(|packet| packet.source == bot && packet.destination == web);
        let between = between.filter(|packet| !packet.payload.is_empty()).count();
        ensure!(between >= 10, "{between} packets from the bot to the front");
        ensure!(packets.iter().any(|packet| readable(&packet.payload)), "the unmeshed client is not seen");
        Ok(())
    })?;
    let mut encrypted = 0;
    for packet in capture.stop()? {
        if !meshed.contains(&packet.source) || !meshed.contains(&packet.destination) {
            continue;
        }
        ensure!(!readable(&packet.payload), "in the clear: {:?}", String::from_utf8_lossy(&packet.payload));
        // A TLS record of application data.
        encrypted += usize::from(packet.payload.starts_with(&[23, 3, 3]));
    }
    ensure!(encrypted > 0, "no TLS records either");
    Ok(())
}

/// What says whether something was restarted: container identities and restart counts of every pod.
fn lives(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut lives = BTreeMap::new();
    for namespace in [NAMESPACE, "plain", "weft"] {
        for pod in cluster.pods(namespace)? {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
            for container in containers(&pod) {
                let key = format!("{namespace}/{name}/{}/{uid}", container["name"].as_str().unwrap_or_default());
                lives.insert(key, container["restartCount"].as_u64().context("no restartCount")?);
            }
        }
    }
    Ok(lives)
}

fn wrong_manifests_are_refused_and_what_runs_runs_on(cluster: &Cluster) -> anyhow::Result<()> {
    let before = lives(cluster)?;
    let directory = tempfile::tempdir()?;
    let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: never, namespace: plain}\n";
    let deployment = |spec: &str| {
        format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: bad, namespace: plain}}\nspec:\n{spec}")
    };
    let template = |command: &str| {
        deployment(&format!(
            "  selector: {{matchLabels: {{app: bad}}}}\n  template:\n    metadata: {{labels: {{app: bad}}}}\n    spec:\n      containers: [{{name: bad, image: bad, command: {command}}}]\n"
        ))
    };
    let cases: [(&str, String, &[&str]); 5] = [
        (
            "unknown-kind.yml",
            "apiVersion: v1\nkind: Deploymint\nmetadata: {name: bad}\n".into(),
            &["Deploymint", "kind"],
        ),
        ("bad-yaml.yml", "apiVersion: v1\nkind: [Pod\nmetadata: {name: bad}\n".into(), &[]),
        ("wrong-type.yml", deployment("  replicas: three\n"), &["spec.replicas"]),
        ("no-command.yml", template("[no-such-program-anywhere]"), &["no-such-program-anywhere", "command"]),
        ("command-type.yml", template("{run: it}"), &["command"]),
    ];
    for (name, bad, named) in cases {
        let file = directory.path().join(name);
        std::fs::write(&file, format!("{good}---\n{bad}"))?;
        let ran = cluster.weft(&["apply", "-f", file.to_str().context("path")?])?;
        ensure!(!ran.status.success(), "accepted: {ran}");
        for word in [name, "document 2"].iter().chain(named) {
            ensure!(ran.stderr.contains(word), "{word:?} is not named: {ran}");
        }
        ensure!(cluster.object("configmaps", "plain", "never").is_err(), "half of {name} was applied");
    }
    let missing = directory.path().join("missing.yml");
    let ran = cluster.weft(&["apply", "-f", missing.to_str().context("path")?])?;
    ensure!(!ran.status.success() && ran.stderr.contains("missing.yml"), "{ran}");
    ensure!(lives(cluster)? == before, "something was restarted");
    list_emoji(cluster, NAMESPACE, "deploy/vote-bot", "http://web-svc/api/list")
}

/// Waits until exactly this container was restarted, once or more, and its pod is ready again.
fn only_this_restarts(
    cluster: &Cluster,
    before: &BTreeMap<String, u64>,
    pod: &str,
    container: &str,
) -> anyhow::Result<()> {
    wait_for(&format!("{container} of {pod} comes back"), || {
        let after = lives(cluster)?;
        ensure!(after.keys().eq(before.keys()), "pods came and went: {after:?}, before {before:?}");
        for ((key, before), after) in before.iter().zip(after.values()) {
            if key.contains(&format!("/{pod}-")) && key.contains(&format!("/{container}/")) {
                ensure!(after > before, "{key} was not restarted");
            } else {
                ensure!(after == before, "{key} was restarted");
            }
        }
        for namespace in [NAMESPACE, "weft"] {
            for pod in cluster.pods(namespace)? {
                let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
                let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
                ensure!(ready, "{} is not ready", pod["metadata"]["name"]);
            }
        }
        Ok(())
    })
}

/// The proxy in the pod of this process.
fn proxy_beside(cluster: &Cluster, application: &Process) -> anyhow::Result<Process> {
    let network = application.network()?;
    let program = Interop::program_of("web")?;
    let beside = |process: &Process| process.program() == program && process.network().is_ok_and(|n| n == network);
    cluster.processes().into_iter().find(beside).context("no proxy beside it")
}

fn a_killed_proxy_comes_back_and_the_others_go_on(cluster: &Cluster) -> anyhow::Result<()> {
    let before = lives(cluster)?;
    let web = cluster.process("weft-demo", &["web"])?;
    proxy_beside(cluster, &web)?.kill()?;
    only_this_restarts(cluster, &before, "web", "linkerd-proxy")?;
    ensure!(cluster.process("weft-demo", &["web"])?.pid == web.pid, "the application was restarted too");
    wait_for("the front is reached again", || {
        list_emoji(cluster, NAMESPACE, "deploy/vote-bot", "http://web-svc/api/list")
    })
}

fn a_killed_controller_comes_back_and_traffic_goes_on(cluster: &Cluster) -> anyhow::Result<()> {
    let before = lives(cluster)?;
    cluster.process("weft-controller", &["destination"])?.kill()?;
    // The bot's proxy knows the front already and needs nobody to ask.
    list_emoji(cluster, NAMESPACE, "deploy/vote-bot", "http://web-svc/api/list")?;
    only_this_restarts(cluster, &before, "weft-destination", "destination")?;
    // A place that no proxy has asked about so far.
    let service = cluster.object("services", NAMESPACE, "voting-svc")?;
    let url = format!("http://{}:8801/metrics", service["spec"]["clusterIP"].as_str().context("no clusterIP")?);
    wait_for("new discoveries work", || {
        let metrics = cluster.exec(NAMESPACE, "deploy/emoji", &["curl", "-sS", "-f", "-m", "20", &url])?.success()?;
        ensure!(metrics.contains("emojivoto_votes_total"), "{metrics}");
        Ok(())
    })
}

fn a_killed_application_comes_back(cluster: &Cluster) -> anyhow::Result<()> {
    let before = lives(cluster)?;
    cluster.process("weft-demo", &["voting"])?.kill()?;
    only_this_restarts(cluster, &before, "voting", "voting-svc")?;
    // Votes were in memory; new ones arrive.
    wait_for("votes are counted again", || {
        let url = "http://web-svc/api/leaderboard";
        let text = cluster.exec(NAMESPACE, "deploy/vote-bot", &["curl", "-sS", "-f", "-m", "20", url])?.success()?;
        let list: Value = serde_json::from_str(&text)?;
        ensure!(list.as_array().is_some_and(|list| !list.is_empty()), "{text}");
        Ok(())
    })
}

fn down_leaves_nothing(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.weft(&["down"])?.success()?;
    cluster.nothing_is_left()?;
    let ran = cluster.weft(&["ps"])?;
    ensure!(!ran.status.success() && !ran.stderr.is_empty(), "a cluster that is gone answers: {ran}");
    Ok(())
}
