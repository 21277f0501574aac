//! Every kind of workload and service, meshed, in one cluster. The tests run one after the other.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, LazyLock},
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use weft_e2e::{Cluster, manifest, wait_for};

type Test = fn(&Cluster) -> anyhow::Result<()>;

const NAMESPACE: &str = "kinds";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared: Arc<LazyLock<anyhow::Result<Cluster>>> = Arc::new(LazyLock::new(|| {
        let file = manifest("e2e/manifests/kinds.yml");
        Cluster::up(&["-f".as_ref(), file.as_os_str(), "--timeout".as_ref(), "240".as_ref()])
    }));
    let trials: &[(&str, Test)] = &[
        ("a_meshed_job_completes", a_meshed_job_completes),
        ("pods_are_reached_by_name_through_the_mesh", pods_are_reached_by_name_through_the_mesh),
        ("a_service_reaches_itself", a_service_reaches_itself),
        ("the_first_request_of_a_job_is_answered", the_first_request_of_a_job_is_answered),
        ("a_tcp_probe_asks_the_application_not_its_proxy", a_tcp_probe_asks_the_application_not_its_proxy),
        ("what_cannot_be_reached_is_explained", what_cannot_be_reached_is_explained),
        ("stat_and_edges_show_every_kind", stat_and_edges_show_every_kind),
        ("a_name_leads_to_its_new_pod", a_name_leads_to_its_new_pod),
    ];
    let trials = trials.iter().map(|&(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let cluster = shared.as_ref().as_ref().map_err(|error| format!("the cluster did not start: {error:#}"))?;
            test(cluster).map_err(|error| format!("{error:#}\n{}", state(cluster)).into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(shared);
    conclusion.exit_code()
}

/// What helps to understand a failure.
fn state(cluster: &Cluster) -> String {
    let commands: [&[&str]; 3] = [
        &["ps", "-A"],
        &["stat", "all", "-n", NAMESPACE],
        &["logs", "-n", NAMESPACE, "ds/agent", "-c", "linkerd-proxy", "--tail", "20"],
    ];
    commands.map(|command| cluster.weft(command).map_or_else(|e| format!("{e:#}"), |ran| ran.to_string())).join("\n")
}

/// What a URL answers, asked by the agent through its proxy: the status, and the body.
fn ask(cluster: &Cluster, pod: &str, url: &str) -> anyhow::Result<(String, String)> {
    let command = ["curl", "-sS", "-m", "30", "-w", "\n%{http_code}", url];
    let text = cluster.exec(NAMESPACE, pod, &command)?.success()?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), body.to_owned()))
}

fn a_meshed_job_completes(cluster: &Cluster) -> anyhow::Result<()> {
    wait_for("the job completes and its proxy has ended", || {
        let job = cluster.object("jobs", NAMESPACE, "once")?;
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        ensure!(conditions.iter().any(|c| c["type"] == "Complete"), "{}", job["status"]);
        let pods = cluster.pods(NAMESPACE)?;
        let of_job = |pod: &&Value| pod["metadata"]["labels"]["job-name"] == "once";
        let pod = pods.iter().find(|pod| of_job(pod) && pod["status"]["phase"] == "Succeeded").context("no pod")?;
        let containers = pod["status"]["containerStatuses"].as_array().context("no containers")?;
        ensure!(containers.len() == 2, "it is meshed: {containers:?}");
        ensure!(containers.iter().all(|c| c["state"].get("terminated").is_some()), "{containers:?}");
        Ok(())
    })?;
    let table = cluster.weft(&["ps", "-n", NAMESPACE])?.success()?;
    let row = table.lines().find(|line| line.starts_with("once-") && line.contains("Completed"));
    ensure!(row.is_some(), "{table}");
    Ok(())
}

fn pods_are_reached_by_name_through_the_mesh(cluster: &Cluster) -> anyhow::Result<()> {
    for name in ["db-0", "db-1"] {
        wait_for(&format!("{name} answers"), || {
            let (status, body) = ask(cluster, "ds/agent", &format!("http://{name}.db.kinds.svc.cluster.local:8080/"))?;
            ensure!(status == "200" && body == name, "{status} {body}");
            Ok(())
        })?;
    }
    for url in ["http://db:8080/", "http://alias/"] {
        wait_for(&format!("{url} answers"), || {
            let (status, body) = ask(cluster, "ds/agent", url)?;
            ensure!(status == "200" && body.starts_with("db-"), "{status} {body}");
            Ok(())
        })?;
    }
    // A service without selector leads to what its Endpoints say, as meshed as any.
    let pods = cluster.pods(NAMESPACE)?;
    let db = pods.iter().find(|pod| pod["metadata"]["name"] == "db-1").context("no db-1")?;
    let ip = db["status"]["podIP"].as_str().context("no address")?;
    let given = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: given, namespace: kinds}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {{name: given, namespace: kinds}}\nsubsets: [{{addresses: [{{ip: {ip}}}], ports: [{{port: 8080}}]}}]\n"
    );
    let file = cluster.run_dir().with_file_name("given.yml");
    std::fs::write(&file, given)?;
    cluster.weft(&["apply".as_ref(), "-f".as_ref(), file.as_os_str()])?.success()?;
    wait_for("the given endpoint answers", || {
        let (status, body) = ask(cluster, "ds/agent", "http://given/")?;
        ensure!(status == "200" && body == "db-1", "{status} {body}");
        Ok(())
    })?;
    // All of it was secured.
    wait_for("the way to the pods is secured", || {
        let edges = cluster.json(&["edges", "po", "-n", NAMESPACE, "-o", "json"])?;
        let edges = edges.as_array().context("no list")?;
        let from_agent = edges.iter().filter(|e| e["src"].as_str().is_some_and(|s| s.starts_with("agent-")));
        let reached: BTreeSet<&str> = from_agent
            .filter(|e| e["no_tls_reason"] == "" && e["server_id"].as_str().is_some_and(|id| !id.is_empty()))
            .filter_map(|e| e["dst"].as_str())
            .collect();
        ensure!(reached.is_superset(&BTreeSet::from(["db-0", "db-1"])), "{edges:?}");
        Ok(())
    })
}

fn a_service_reaches_itself(cluster: &Cluster) -> anyhow::Result<()> {
    let mut answered = BTreeSet::new();
    wait_for("a pod is reached by itself and by the other through their service", || {
        let (status, body) = ask(cluster, "db-0", "http://front/")?;
        ensure!(status == "200", "{status} {body}");
        answered.insert(body);
        ensure!(answered == BTreeSet::from(["db-0".to_owned(), "db-1".to_owned()]), "{answered:?}");
        Ok(())
    })
}

fn apply(cluster: &Cluster, text: &str) -> anyhow::Result<()> {
    let file = cluster.run_dir().with_file_name("more.yml");
    std::fs::write(&file, text)?;
    cluster.weft(&["apply".as_ref(), "-f".as_ref(), file.as_os_str()])?.success().map(drop)
}

/// It asks once, and nobody gives it a second chance: its proxy must be ready before it starts.
fn the_first_request_of_a_job_is_answered(cluster: &Cluster) -> anyhow::Result<()> {
    apply(
        cluster,
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: first, namespace: kinds}\nspec:\n  backoffLimit: 0\n  template:\n    spec:\n      \
         restartPolicy: Never\n      containers: [{name: main, image: x, command: [curl, -fsS, -m, '60', 'http://front/']}]\n",
    )?;
    let conditions = wait_for("the job has ended", || {
        let job = cluster.object("jobs", NAMESPACE, "first")?;
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        ensure!(conditions.iter().any(|c| c["type"] == "Complete" || c["type"] == "Failed"), "{}", job["status"]);
        Ok(conditions)
    })?;
    ensure!(conditions.iter().any(|c| c["type"] == "Complete"), "{conditions:?}");
    let pods = cluster.pods(NAMESPACE)?;
    let pod = pods.iter().find(|pod| pod["metadata"]["labels"]["job-name"] == "first").context("no pod")?;
    ensure!(pod["spec"]["containers"].as_array().is_some_and(|list| list.len() == 2), "it is not meshed: {pod}");
    Ok(())
}

/// The proxy accepts every connection, also when nobody listens behind it.
fn a_tcp_probe_asks_the_application_not_its_proxy(cluster: &Cluster) -> anyhow::Result<()> {
    apply(
        cluster,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: kinds}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - name: main\n      \
         image: x\n      command: [sh, -c, 'until test -e /go; do sleep 0.1; done; exec /usr/bin/python3 -m http.server 9000']\n      \
         ports: [{containerPort: 9000}]\n      readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 1}\n",
    )?;
    let late = || {
        let pods = cluster.pods(NAMESPACE)?;
        pods.into_iter().find(|pod| pod["metadata"]["name"] == "late").context("no pod")
    };
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default()
    };
    wait_for("the probe says that nobody listens", || {
        let pod = late()?;
        let condition = ready(&pod);
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(message.contains("readiness probe: connect to 10.244.") && message.contains(":9000: "), "{pod}");
        Ok(())
    })?;
    cluster.exec(NAMESPACE, "late", &["touch", "/go"])?.success()?;
    wait_for("the probe says that somebody listens", || {
        let pod = late()?;
        ensure!(ready(&pod)["status"] == "True", "{pod}");
        Ok(())
    })
}

fn what_cannot_be_reached_is_explained(cluster: &Cluster) -> anyhow::Result<()> {
    // Addresses outside of the cluster lead nowhere: the proxy answers for them, with a reason.
    wait_for("the proxy says why", || {
        let command = ["curl", "-sS", "-m", "60", "-D", "-", "-o", "/dev/null", "http://outside/"];
        let head = cluster.exec(NAMESPACE, "ds/agent", &command)?.success()?.to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 50") && head.contains("l5d-proxy-error: "), "{head}");
        Ok(())
    })
}

fn stat_and_edges_show_every_kind(cluster: &Cluster) -> anyhow::Result<()> {
    let row = |arguments: &[&str], name: &str| -> anyhow::Result<Value> {
        let all = [&["stat", "-n", NAMESPACE, "-o", "json"], arguments].concat();
        let rows = cluster.json(&all)?;
        let found = rows.as_array().into_iter().flatten().find(|row| row["name"] == name);
        found.cloned().with_context(|| format!("no {name}: {rows}"))
    };
    let busy = |row: Value, meshed: &str| {
        ensure!(row["meshed"] == meshed && row["rps"].as_f64().is_some_and(|rps| rps > 0.0), "{row}");
        Ok(())
    };
    wait_for("the StatefulSet serves", || busy(row(&["sts"], "db")?, "2/2"))?;
    for (kind, name) in [("ds", "agent"), ("job", "long"), ("cj", "often")] {
        // Traffic of clients, as their own proxies see it.
        wait_for(&format!("{kind}/{name} asks"), || busy(row(&[kind, "--to", "sts/db"], name)?, "1/1"))?;
    }
    let all = cluster.weft(&["stat", "all", "-n", NAMESPACE, "--unmeshed"])?.success()?;
    for name in ["sts/db", "ds/agent", "job/long", "cj/often", "svc/front"] {
        ensure!(all.lines().any(|line| line.starts_with(name)), "no {name} in\n{all}");
    }
    Ok(())
}

fn a_name_leads_to_its_new_pod(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = |cluster: &Cluster| -> anyhow::Result<Value> {
        let pods = cluster.pods(NAMESPACE)?;
        pods.into_iter().find(|pod| pod["metadata"]["name"] == "db-0").context("no db-0")
    };
    let before = pod(cluster)?;
    let file = cluster.run_dir().with_file_name("pod.yml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: db-0, namespace: kinds}\nspec: {containers: [{name: db, image: x}]}\n",
    )?;
    cluster.weft(&["delete".as_ref(), "-f".as_ref(), file.as_os_str()])?.success()?;
    wait_for("the new pod answers under the old name", || {
        let after = pod(cluster)?;
        ensure!(after["metadata"]["uid"] != before["metadata"]["uid"], "it is the old one");
        let (status, body) = ask(cluster, "ds/agent", "http://db-0.db:8080/")?;
        ensure!(status == "200" && body == "db-0", "{status} {body}");
        Ok(())
    })
}
