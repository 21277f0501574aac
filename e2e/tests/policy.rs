//! Policies of the mesh on the one-machine cluster: who may connect, and where requests go, while both change. The tests
//! run one after the other.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, LazyLock},
};

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Trial};
use weft_e2e::{Cluster, manifest, wait_for};

type Test = fn(&Cluster) -> anyhow::Result<()>;

/// Requests whose way is counted.
const REQUESTS: usize = 400;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let shared: Arc<LazyLock<anyhow::Result<Cluster>>> =
        Arc::new(LazyLock::new(|| Cluster::up_with(&[manifest("e2e/manifests/policy.yml")])));
    let trials: &[(&str, Test)] = &[
        ("a_server_lets_in_whom_its_policies_name", a_server_lets_in_whom_its_policies_name),
        ("a_route_splits_requests_by_weight", a_route_splits_requests_by_weight),
        ("wrong_resources_are_refused_with_the_field", wrong_resources_are_refused_with_the_field),
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
        &["logs", "-n", "shop", "deploy/blue", "-c", "linkerd-proxy", "--tail", "20"],
        &["logs", "-n", "weft", "deploy/weft-destination", "--tail", "20"],
    ];
    commands.map(|command| cluster.weft(command).map_or_else(|e| format!("{e:#}"), |ran| ran.to_string())).join("\n")
}

/// The status that a client gets from the service, and from its pod directly.
fn statuses(cluster: &Cluster, namespace: &str, client: &str) -> anyhow::Result<[String; 2]> {
    let blue = cluster.pod_of("shop", "blue")?;
    let ip = blue["status"]["podIP"].as_str().context("no podIP")?.to_owned();
    let ask = |url: &str| {
        let command = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", url];
        cluster.exec(namespace, client, &command)?.success()
    };
    Ok([ask("http://web.shop/")?, ask(&format!("http://{ip}:8080/"))?])
}

fn everybody_gets(cluster: &Cluster, expected: [(&str, &str, &str); 3]) -> anyhow::Result<()> {
    wait_for("the policy holds", || {
        for (namespace, client, status) in expected {
            let found = statuses(cluster, namespace, client)?;
            ensure!(found == [status, status], "{client} gets {found:?}, not {status}");
        }
        Ok(())
    })
}

fn a_server_lets_in_whom_its_policies_name(cluster: &Cluster) -> anyhow::Result<()> {
    let open = [("shop", "cart", "200"), ("shop", "stranger", "200"), ("plain", "client", "200")];
    everybody_gets(cluster, open)?;
    let file = manifest("e2e/manifests/policy-shut.yml");
    let file = file.to_str().context("not a path")?;
    let applied = cluster.weft(&["apply", "-f", file])?.success()?;
    ensure!(applied.contains("server.policy.linkerd.io/blue created"), "{applied}");
    everybody_gets(cluster, [("shop", "cart", "200"), ("shop", "stranger", "403"), ("plain", "client", "403")])?;
    // The kubelet, which has no identity, still gets in: the pod stays ready.
    let blue = cluster.pod_of("shop", "blue")?;
    let conditions = blue["status"]["conditions"].as_array().context("no conditions")?;
    ensure!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"), "{blue}");
    // The metrics say which resources decided.
    let metrics = cluster.weft(&["metrics", "-n", "shop", "deploy/blue"])?.success()?;
    let named = |line: &str| line.contains("srv_kind=\"server\"") && line.contains("srv_name=\"blue\"");
    ensure!(metrics.lines().any(named), "no srv_name in\n{metrics}");
    ensure!(cluster.object("servers", "shop", "blue")?["spec"]["port"] == "http", "not kept as it was written");

    let deleted = cluster.weft(&["delete", "-f", file])?.success()?;
    ensure!(deleted.contains("authorizationpolicy.policy.linkerd.io/carts deleted"), "{deleted}");
    everybody_gets(cluster, open)
}

/// How many of many requests each version answers.
fn shares(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, usize>> {
    let url = format!("http://web/[1-{REQUESTS}]");
    let text = cluster.exec("shop", "cart", &["curl", "-sS", "-f", "-m", "60", "-w", "\n", &url])?.success()?;
    let mut shares = BTreeMap::new();
    for name in text.split_whitespace() {
        *shares.entry(name.to_owned()).or_default() += 1;
    }
    Ok(shares)
}

fn a_route_splits_requests_by_weight(cluster: &Cluster) -> anyhow::Result<()> {
    let all: BTreeMap<String, usize> = [("blue".to_owned(), REQUESTS)].into();
    ensure!(shares(cluster)? == all, "{:?}", shares(cluster)?);
    let file = manifest("e2e/manifests/policy-split.yml");
    let file = file.to_str().context("not a path")?;
    let applied = cluster.weft(&["apply", "-f", file])?.success()?;
    ensure!(applied.contains("httproute.gateway.networking.k8s.io/canary created"), "{applied}");
    wait_for("a quarter goes elsewhere", || {
        let shares = shares(cluster)?;
        let green = shares.get("green").copied().unwrap_or_default();
        // 100 of 400 by chance, give or take more than five standard deviations.
        ensure!((55..=145).contains(&green) && shares.values().sum::<usize>() == REQUESTS, "{shares:?}");
        Ok(())
    })?;
    cluster.weft(&["delete", "-f", file])?.success()?;
    wait_for("all of it comes back", || {
        let shares = shares(cluster)?;
        ensure!(shares == all, "{shares:?}");
        Ok(())
    })
}

fn wrong_resources_are_refused_with_the_field(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bad.yml");
    let metadata = "metadata: {name: bad, namespace: shop}";
    for (text, words) in [
        (
            format!(
                "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\n{metadata}\nspec: {{podSelector: {{}}, port: 0}}"
            ),
            "spec.port: is neither a port",
        ),
        (
            format!(
                "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\n{metadata}\nspec: {{podSelector: {{}}, port: 80, colour: red}}"
            ),
            "spec.colour: unknown field",
        ),
        (
            format!(
                "apiVersion: policy.linkerd.io/v2\nkind: Server\n{metadata}\nspec: {{podSelector: {{}}, port: 80}}"
            ),
            "Server is of policy.linkerd.io/v1beta3",
        ),
    ] {
        std::fs::write(&file, text)?;
        let ran = cluster.weft(&["apply", "-f", file.to_str().context("not a path")?])?;
        ensure!(!ran.status.success() && ran.stderr.contains(words), "{words}: {ran}");
        ensure!(cluster.object("servers", "shop", "bad").is_err(), "it is there all the same");
    }
    Ok(())
}
