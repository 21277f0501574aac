//! Every command that only looks, against one cluster with the demo application: output, exit codes, wrong input.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, LazyLock},
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use weft_e2e::{Cluster, Ran, manifest, wait_for};

type Test = fn(&Cluster) -> anyhow::Result<()>;

const NAMESPACE: &str = "emojivoto";
const WEB: &str = "web-svc.emojivoto.svc.cluster.local:80";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared: Arc<LazyLock<anyhow::Result<Cluster>>> = Arc::new(LazyLock::new(|| {
        let demo = manifest("demo/emojivoto.yml");
        let cluster = Cluster::up(&["-f".as_ref(), demo.as_os_str()])?;
        let job = tempfile::NamedTempFile::new()?;
        std::fs::write(job.path(), COMPLETED)?;
        cluster.weft(&["apply".as_ref(), "-f".as_ref(), job.path().as_os_str()])?.success()?;
        wait_for("the pod ends", || {
            let pod = cluster.object("pods", NAMESPACE, "over")?;
            ensure!(pod["status"]["phase"] == "Succeeded", "{}", pod["status"]);
            Ok(())
        })?;
        Ok(cluster)
    }));
    let trials: &[(&str, Test)] = &[
        ("stat_of_every_type_and_direction", stat_of_every_type_and_direction),
        ("stat_in_every_form", stat_in_every_form),
        ("stat_refuses_what_makes_no_sense", stat_refuses_what_makes_no_sense),
        ("edges_of_every_type", edges_of_every_type),
        ("identity_shows_what_proxies_show", identity_shows_what_proxies_show),
        ("identity_says_what_is_wrong", identity_says_what_is_wrong),
        ("endpoints_are_those_of_the_service", endpoints_are_those_of_the_service),
        ("profiles_and_policies", profiles_and_policies),
        ("metrics_of_proxies_and_of_the_control_plane", metrics_of_proxies_and_of_the_control_plane),
        ("lists_and_versions", lists_and_versions),
        ("completed_pods_are_hidden", completed_pods_are_hidden),
    ];
    let trials = trials.iter().map(|&(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let cluster = shared.as_ref().as_ref().map_err(|error| format!("the cluster did not start: {error:#}"))?;
            test(cluster).map_err(|error| format!("{error:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The last owner: this ends the cluster.
    drop(shared);
    conclusion.exit_code()
}

/// A pod that runs and ends, without a proxy.
const COMPLETED: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: over
  namespace: emojivoto
  annotations: {linkerd.io/inject: disabled}
spec:
  restartPolicy: Never
  containers: [{name: over, image: none, command: [\"true\"]}]
";

fn weft(cluster: &Cluster, line: &str) -> anyhow::Result<Ran> {
    cluster.weft(&line.split(' ').collect::<Vec<_>>())
}

fn json(cluster: &Cluster, line: &str) -> anyhow::Result<Value> {
    cluster.json(&line.split(' ').collect::<Vec<_>>())
}

/// The lines of a table, split into cells.
fn table(cluster: &Cluster, line: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let text = weft(cluster, line)?.success()?;
    let split = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    Ok(text.lines().filter(|line| !line.is_empty()).map(split).collect())
}

/// A command that must fail with exit code 1, print nothing to standard output, and say this.
fn refused(cluster: &Cluster, line: &str, reason: &str) -> anyhow::Result<()> {
    let ran = weft(cluster, line)?;
    ensure!(ran.status.code() == Some(1), "{ran}");
    ensure!(ran.stdout.is_empty(), "{ran}");
    ensure!(ran.stderr.contains(reason), "{reason:?} is not said: {ran}");
    Ok(())
}

/// Waits until these rows, named `kind/name`, have traffic.
fn wait_for_rows(cluster: &Cluster, line: &str, expected: &[&str]) -> anyhow::Result<()> {
    wait_for(line, || {
        let rows = json(cluster, &format!("{line} -o json"))?;
        let rows = rows.as_array().context("not a list")?;
        let found: BTreeSet<String> = rows
            .iter()
            .filter(|row| row["rps"].as_f64().is_some_and(|rate| rate > 0.0))
            .map(|row| {
                let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
                format!("{}/{}", text("kind"), text("name"))
            })
            .collect();
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        ensure!(expected.is_subset(&found), "{found:?} lacks some of {expected:?}");
        Ok(())
    })
}

fn stat_of_every_type_and_direction(cluster: &Cluster) -> anyhow::Result<()> {
    let deployments = ["deployment/emoji", "deployment/voting", "deployment/web"];
    let services = ["service/emoji-svc", "service/voting-svc", "service/web-svc"];
    wait_for_rows(cluster, "stat deploy -n emojivoto", &deployments)?;
    wait_for_rows(cluster, "viz stat deployments -A", &deployments)?;
    wait_for_rows(cluster, "stat ns", &["namespace/emojivoto"])?;
    wait_for_rows(cluster, "stat ns/emojivoto", &["namespace/emojivoto"])?;
    wait_for_rows(cluster, "stat svc -n emojivoto", &services)?;
    wait_for_rows(cluster, "stat au -n emojivoto", &["authority/web-svc.emojivoto.svc.cluster.local"])?;
    wait_for_rows(cluster, "stat all -n emojivoto", &[deployments, services].concat())?;
    wait_for_rows(cluster, "stat deploy/web svc/web-svc -n emojivoto", &["deployment/web", "service/web-svc"])?;
    wait_for_rows(cluster, "stat deploy web emoji -n emojivoto", &["deployment/web", "deployment/emoji"])?;
    // From one to another, by every way to say it.
    for to in ["svc/web-svc", "deploy/web", "ns/emojivoto"] {
        wait_for_rows(cluster, &format!("stat deploy -n emojivoto --to {to}"), &["deployment/vote-bot"])?;
    }
    let elsewhere = "stat deploy -A --to deploy/web --to-namespace emojivoto";
    wait_for_rows(cluster, elsewhere, &["deployment/vote-bot"])?;
    wait_for_rows(cluster, "stat svc -n emojivoto --to deploy/web", &["service/web-svc"])?;
    wait_for_rows(cluster, "stat deploy -n emojivoto --from deploy/web", &["deployment/emoji", "deployment/voting"])?;
    let from = "stat svc -n emojivoto --from deploy/web --from-namespace emojivoto";
    wait_for_rows(cluster, from, &["service/emoji-svc", "service/voting-svc"])?;
    wait_for_rows(cluster, "stat ns --from ns/emojivoto", &["namespace/emojivoto"])?;
    // By label of the resource itself.
    let labelled = table(cluster, "stat deploy -n emojivoto -l app.kubernetes.io/name=emoji")?;
    ensure!(labelled.len() == 2 && labelled[1][0] == "emoji", "{labelled:?}");
    let pods = table(cluster, "stat po -n emojivoto -l app=web-svc")?;
    ensure!(pods.len() == 2 && pods[1][0].starts_with("web-") && pods[1][1] == "Running", "{pods:?}");
    Ok(())
}

fn stat_in_every_form(cluster: &Cluster) -> anyhow::Result<()> {
    let figures = ["MESHED", "SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "TCP_CONN"];
    let head = |line: &str| -> anyhow::Result<String> { Ok(table(cluster, line)?.remove(0).join(" ")) };
    let figures = figures.join(" ");
    ensure!(head("stat deploy -n emojivoto")? == format!("NAME {figures}"));
    ensure!(head("stat po -n emojivoto")? == format!("NAME STATUS {figures}"));
    ensure!(head("stat deploy -A")? == format!("NAMESPACE NAME {figures}"));
    let wide = head("stat deploy -n emojivoto -o wide")?;
    ensure!(wide == format!("NAME {figures} READ_BYTES/SEC WRITE_BYTES/SEC"), "{wide}");
    let several = weft(cluster, "stat deploy/web po -n emojivoto")?;
    ensure!(several.status.code() == Some(1), "forms are mixed: {several}");
    let several = table(cluster, "stat deploy/ svc/ -n emojivoto")?;
    for name in ["deploy/web", "svc/web-svc"] {
        ensure!(several.iter().any(|cells| cells[0] == name), "{several:?}");
    }
    let rows = json(cluster, "stat deploy/web -n emojivoto -o json")?;
    let row = rows[0].as_object().context("no row")?;
    for key in
        ["namespace", "kind", "name", "meshed", "success", "rps", "latency_ms_p50", "latency_ms_p95", "latency_ms_p99"]
    {
        ensure!(row.contains_key(key), "no {key}: {row:?}");
    }
    ensure!(json(cluster, "stat sts -n emojivoto -o json")? == Value::Array(Vec::new()));
    let nothing = weft(cluster, "stat sts -n emojivoto")?;
    ensure!(
        nothing.status.success() && nothing.stdout.is_empty() && nothing.stderr == "No traffic found.\n",
        "{nothing}"
    );
    let long = weft(cluster, "stat deploy -n emojivoto -t 1h")?;
    ensure!(
        long.status.success()
            && long.stderr == "Note: the control plane keeps metrics for 900s; that is what is shown.\n",
        "{long}"
    );
    Ok(())
}

fn stat_refuses_what_makes_no_sense(cluster: &Cluster) -> anyhow::Result<()> {
    for (line, reason) in [
        ("stat", "RESOURCES"),
        ("stat widget", "cannot find a resource type named [widget]"),
        ("stat deploy/none -n emojivoto", "deployment \"none\" not found in namespace emojivoto"),
        ("stat po none -n emojivoto", "pod \"none\" not found in namespace emojivoto"),
        ("stat deploy --from svc/web-svc", "--from does not take resources of type service"),
        ("stat deploy --to all", "--to does not take resources of type all"),
        ("stat deploy --to po/a --from po/b", "cannot be used with"),
        ("stat ns -n emojivoto", "--namespace flag is incompatible with namespace resource type"),
        ("stat deploy -t 1s", "at least 10s"),
        ("stat deploy -l =", "selector"),
        ("stat deploy -o yaml", "possible values: table, json, wide"),
        ("stat all deploy/web", "use one of them"),
    ] {
        refused(cluster, line, reason)?;
    }
    Ok(())
}

fn edges_of_every_type(cluster: &Cluster) -> anyhow::Result<()> {
    for (kind, parts) in [("deploy", 0), ("rs", 1), ("po", 2), ("viz-deploy", 0)] {
        let command = match kind.strip_prefix("viz-") {
            Some(kind) => format!("viz edges {kind}"),
            None => format!("edges {kind}"),
        };
        wait_for(&command, || {
            let edges = json(cluster, &format!("{command} -n emojivoto -o json"))?;
            let edges = edges.as_array().context("not a list")?;
            // A replica set's name is its deployment's and a hash, a pod's has five letters more.
            let is = |name: &Value, deployment: &str| {
                let name = name.as_str().unwrap_or_default();
                let rest = name.strip_prefix(deployment).unwrap_or("?");
                rest.split('-').count() == parts + 1 && (rest.is_empty() || rest.starts_with('-'))
            };
            for (src, dst) in [("vote-bot", "web"), ("web", "emoji"), ("web", "voting")] {
                ensure!(edges.iter().any(|e| is(&e["src"], src) && is(&e["dst"], dst)), "{src} to {dst}: {edges:?}");
            }
            Ok(())
        })?;
    }
    wait_for("edges of namespaces", || {
        let edges = json(cluster, "edges ns -o json")?;
        let inside = |e: &Value| e["src"] == NAMESPACE && e["dst"] == NAMESPACE;
        ensure!(edges.as_array().context("not a list")?.iter().any(inside), "{edges}");
        Ok(())
    })?;
    let wide = table(cluster, "edges deploy -n emojivoto -o wide")?;
    ensure!(wide[0].join(" ") == "SRC DST SRC_NS DST_NS CLIENT_ID SERVER_ID SECURED", "{wide:?}");
    ensure!(
        wide.iter().any(|cells| cells[..2] == ["web", "emoji"] && cells[4..6] == ["web.emojivoto", "emoji.emojivoto"])
    );
    for kind in ["sts", "ds", "job", "cj", "rc"] {
        let nothing = weft(cluster, &format!("edges {kind} -n emojivoto"))?;
        ensure!(nothing.status.success() && nothing.stderr == "No edges found.\n", "{nothing}");
    }
    refused(cluster, "edges svc", "Resource type is not supported: service")?;
    refused(cluster, "edges all", "Resource type is not supported: all")?;
    refused(cluster, "edges deploy/web", "Edges cannot be returned for a specific resource name; remove web from query")
}

fn pod_name(cluster: &Cluster, namespace: &str, deployment: &str) -> anyhow::Result<String> {
    let pod = cluster.pod_of(namespace, deployment)?;
    Ok(pod["metadata"]["name"].as_str().context("no name")?.to_owned())
}

fn identity_shows_what_proxies_show(cluster: &Cluster) -> anyhow::Result<()> {
    let (web, emoji) = (pod_name(cluster, NAMESPACE, "web")?, pod_name(cluster, NAMESPACE, "emoji")?);
    let text = weft(cluster, &format!("identity -n emojivoto {web} {emoji}"))?.success()?;
    for part in [
        &format!("\nPOD {web} (1 of 2)\n\nCertificate:\n    Data:\n        Version: 3 (0x2)\n"),
        &format!("\nPOD {emoji} (2 of 2)\n\nCertificate:\n"),
        "        Issuer: CN=identity.weft.cluster.local\n",
        "            Not After : ",
        "            Public Key Algorithm: ECDSA\n                Public-Key: (256 bit)\n                X:\n",
        "                Curve: P-256\n",
        "            X509v3 Key Usage: critical\n                Digital Signature",
        "                TLS Web Server Authentication, TLS Web Client Authentication\n",
        "                DNS:web.emojivoto.serviceaccount.identity.weft.cluster.local\n",
        "                DNS:emoji.emojivoto.serviceaccount.identity.weft.cluster.local\n",
    ] {
        ensure!(text.contains(part), "no {part:?} in\n{text}");
    }
    let selected = weft(cluster, "identity -n emojivoto -l app=web-svc")?.success()?;
    ensure!(selected.contains(&format!("POD {web} (1 of 1)\n")), "{selected}");
    // The control plane is meshed as everything else is.
    let identity = pod_name(cluster, "weft", "weft-identity")?;
    let text = weft(cluster, &format!("identity -n weft {identity}"))?.success()?;
    ensure!(text.contains("DNS:weft-identity.weft.serviceaccount.identity.weft.cluster.local\n"), "{text}");
    Ok(())
}

fn identity_says_what_is_wrong(cluster: &Cluster) -> anyhow::Result<()> {
    refused(cluster, "identity", "PODS")?;
    refused(cluster, "identity -n emojivoto none", "pods \"none\" not found")?;
    refused(cluster, "identity -n emojivoto -l =", "selector")?;
    let none = weft(cluster, "identity -n emojivoto -l app=none")?;
    ensure!(none.status.success() && none.stdout.starts_with("Could not fetch Certificate."), "{none}");
    let over = weft(cluster, "identity -n emojivoto over")?;
    ensure!(over.status.code() == Some(1) && over.stdout.contains("POD over (1 of 1)\n"), "{over}");
    Ok(())
}

fn endpoints_are_those_of_the_service(cluster: &Cluster) -> anyhow::Result<()> {
    let web = cluster.pod_of(NAMESPACE, "web")?;
    let (name, ip) =
        (web["metadata"]["name"].as_str().context("name")?, web["status"]["podIP"].as_str().context("ip")?);
    let expected =
        ["NAMESPACE IP PORT POD SERVICE".to_owned(), format!("{NAMESPACE} {ip} 8080 {name} web-svc.{NAMESPACE}")];
    for command in ["endpoints", "ep", "diagnostics endpoints", "dg ep"] {
        let rows: Vec<String> =
            table(cluster, &format!("{command} {WEB}"))?.iter().map(|cells| cells.join(" ")).collect();
        ensure!(rows == expected, "{command}: {rows:?}");
    }
    let authorities = format!("{WEB} emoji-svc.emojivoto.svc.cluster.local:8080");
    let rows = json(cluster, &format!("endpoints {authorities} -o json"))?;
    let services: Vec<&str> =
        rows.as_array().context("list")?.iter().filter_map(|row| row["service"].as_str()).collect();
    ensure!(services == ["emoji-svc.emojivoto", "web-svc.emojivoto"], "{rows}");
    let row = &rows[1];
    ensure!(row["namespace"] == NAMESPACE && row["ip"] == ip && row["port"] == 8080 && row["pod"] == name, "{row}");
    ensure!(row["tls_identity"]["server_name"] == "web.emojivoto.serviceaccount.identity.weft.cluster.local", "{row}");
    ensure!(row["labels"]["deployment"] == "web", "{row}");
    let pod = pod_name(cluster, "weft", "weft-destination")?;
    weft(cluster, &format!("endpoints {WEB} --destination-pod {pod}"))?.success()?;

    let nothing = weft(cluster, "endpoints web-svc.emojivoto.svc.cluster.local:81")?;
    ensure!(nothing.status.success() && nothing.stdout.is_empty(), "{nothing}");
    ensure!(nothing.stderr == "No endpoints found.\n", "{nothing}");
    refused(cluster, "endpoints none.emojivoto.svc.cluster.local:80", "Destination API error: ")?;
    refused(cluster, "endpoints web", "Destination API error: \"web\" is not a name of the form")?;
    refused(cluster, "endpoints 10.96.0.1:80", "Destination API error: ")?;
    refused(cluster, &format!("endpoints {WEB} --destination-pod none"), "pod/none in weft, port 8086: ")?;
    refused(cluster, &format!("endpoints {WEB} -L nowhere"), "svc/weft-destination in nowhere")
}

fn profiles_and_policies(cluster: &Cluster) -> anyhow::Result<()> {
    let web = cluster.pod_of(NAMESPACE, "web")?;
    let (name, ip) =
        (web["metadata"]["name"].as_str().context("name")?, web["status"]["podIP"].as_str().context("ip")?);
    let profile = json(cluster, &format!("diagnostics profile {ip}:8080"))?;
    ensure!(profile["endpoint"]["addr"] == format!("{ip}:8080"), "{profile}");
    ensure!(profile["endpoint"]["metric_labels"]["pod"] == name && profile["opaque_protocol"] == false, "{profile}");
    let profile = json(cluster, &format!("diagnostics profile {WEB}"))?;
    ensure!(profile["fully_qualified_name"] == "web-svc.emojivoto.svc.cluster.local", "{profile}");
    let yaml = weft(cluster, &format!("diagnostics profile {WEB} -o yaml"))?.success()?;
    ensure!(yaml.starts_with("fully_qualified_name: web-svc.emojivoto.svc.cluster.local\n"), "{yaml}");

    let inbound = json(cluster, &format!("diagnostics policy -n emojivoto po/{name} 8080 -o json"))?;
    ensure!(inbound["server_ips"][0] == ip && inbound["protocol"]["detect"]["timeout"] == "10s", "{inbound}");
    ensure!(inbound["authorizations"][0]["authentication"] == "unauthenticated", "{inbound}");
    let outbound = weft(cluster, "diagnostics policy -n emojivoto svc/web-svc 80")?.success()?;
    ensure!(outbound.contains("discovery: web-svc.emojivoto.svc.cluster.local:80\n"), "{outbound}");
    ensure!(outbound.contains("default_rtt: 30ms\n"), "{outbound}");

    for (line, reason) in [
        ("diagnostics profile web", "Destination API error: "),
        ("diagnostics profile 10.244.0.1:0", "Destination API error: "),
        ("diagnostics policy -n emojivoto po/none 80", "Policy API error: there is no pod emojivoto/none"),
        ("diagnostics policy -n emojivoto svc/none 80", "Policy API error: there is no service emojivoto/none"),
        ("diagnostics policy -n emojivoto deploy/web 80", "must be one of Pod or Service"),
        ("diagnostics policy -n emojivoto po 80", "resource type and name are required"),
        ("diagnostics policy -n emojivoto po/web http", "PORT"),
        ("diagnostics policy -n emojivoto svc/web-svc 80 --token nobody", "Policy API error: "),
    ] {
        refused(cluster, line, reason)?;
    }
    Ok(())
}

fn metrics_of_proxies_and_of_the_control_plane(cluster: &Cluster) -> anyhow::Result<()> {
    let web = pod_name(cluster, NAMESPACE, "web")?;
    for command in ["metrics", "diagnostics proxy-metrics", "dg proxy-metrics"] {
        let text = weft(cluster, &format!("{command} -n emojivoto deploy/web"))?.success()?;
        ensure!(text.starts_with(&format!("#\n# POD {web} (1 of 1)\n#\n")), "{text}");
        ensure!(text.contains("process_start_time_seconds "), "{text}");
    }
    wait_for("names in metrics", || {
        let text = weft(cluster, "metrics -n emojivoto deploy/web")?.success()?;
        ensure!(text.contains("dst_namespace=\"emojivoto\""), "{text}");
        Ok(())
    })?;
    let text = weft(cluster, "diagnostics proxy-metrics --obfuscate -n emojivoto deploy/web")?.success()?;
    ensure!(text.contains("dst_namespace=\"") && !text.contains("dst_namespace=\"emojivoto\""), "{text}");
    for command in ["diagnostics controller-metrics", "dg cp-metrics --wait 60s"] {
        let text = weft(cluster, command)?.success()?;
        for component in ["destination", "identity", "metrics"] {
            ensure!(text.contains(&format!("# CONTAINER {component}\n#\n")), "{component}: {text}");
        }
        ensure!(text.contains("(3 of 3)") && text.contains("weft_metrics_scrapes_total"), "{text}");
    }
    refused(
        cluster,
        "metrics -n emojivoto deploy/none",
        "no pods with a proxy found for deployment/none in emojivoto",
    )?;
    refused(cluster, "metrics deploy", "name one resource")?;
    refused(cluster, "diagnostics controller-metrics -L emojivoto", "no pods of a control plane found in emojivoto")
}

fn lists_and_versions(cluster: &Cluster) -> anyhow::Result<()> {
    let web = pod_name(cluster, NAMESPACE, "web")?;
    let listed = weft(cluster, "get pods -n emojivoto")?.success()?;
    ensure!(listed.lines().count() == 4 && listed.lines().any(|line| line == format!("emojivoto/{web}")), "{listed}");
    let all = weft(cluster, "get po -A")?.success()?;
    ensure!(all.lines().count() == 7, "{all}");
    let none = weft(cluster, "get pods")?;
    ensure!(none.status.success() && none.stdout.is_empty() && none.stderr == "No resources found.\n", "{none}");
    refused(cluster, "get services", "invalid resource type services, valid types: pod")?;
    let meshed = weft(cluster, "viz list -n emojivoto")?.success()?;
    ensure!(meshed.starts_with("Meshed pods:\n\t* emojivoto/") && meshed.lines().count() == 5, "{meshed}");
    ensure!(weft(cluster, "viz list")?.success()? == "No meshed pods found\n");

    let version = env!("CARGO_PKG_VERSION");
    let proxies = |count: usize| format!("Proxy versions:\n\t{version} ({count} pods)\n");
    // What does not answer within some seconds is unavailable, which may happen on a busy machine.
    for (line, expected) in [
        ("version --proxy", format!("Client version: {version}\nServer version: {version}\n{}", proxies(7))),
        ("version --proxy -n emojivoto --short", format!("{version}\n{version}\n{}", proxies(4))),
    ] {
        wait_for(line, || {
            let versions = weft(cluster, line)?.success()?;
            ensure!(versions == expected, "{versions}");
            Ok(())
        })?;
    }
    ensure!(weft(cluster, "version -L nowhere --short")?.success()? == format!("{version}\nunavailable\n"));

    let check = weft(cluster, "viz check")?;
    ensure!(check.status.success() && check.stdout.ends_with("\nStatus check results are √\n"), "{check}");
    ensure!(json(cluster, "check --proxy -n emojivoto -o json")?["success"] == true);
    ensure!(weft(cluster, "check -L nowhere --wait 1s")?.status.code() == Some(2));
    Ok(())
}

fn completed_pods_are_hidden(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("it is hidden", || {
        let rows = json(cluster, "stat po -n emojivoto --unmeshed -o json")?;
        let rows = rows.as_array().context("not a list")?;
        ensure!(rows.len() == 4 && rows.iter().all(|row| row["name"] != "over"), "{rows:?}");
        Ok(())
    })?;
    let named = weft(cluster, "stat po/over -n emojivoto --unmeshed")?;
    ensure!(named.status.success() && named.stderr == "No traffic found.\n", "{named}");
    Ok(())
}
