//! What breaks on a cluster while 200 requests a second go through emojivoto: from a client outside of it by way of its
//! web to both services behind. As long as a pod lives that can answer, no request fails.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft_e2e::{Kubernetes, Report, manifest, wait_for};

const NAMESPACE: &str = "emojivoto";
const DEPLOYMENTS: [&str; 3] = ["web", "emoji", "voting"];
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(60);
/// Requests that a proxy may have been at when it was killed, at most: as many as the client has in flight.
const BEGUN: u64 = 128;

pub fn all(cluster: &Kubernetes) -> anyhow::Result<()> {
    cluster.apply(&std::fs::read_to_string(manifest("e2e/manifests/visitor.yml"))?)?;
    cluster.rolled_out(NAMESPACE, "visitor")?;
    // From its first answer on.
    cluster.report_after(NAMESPACE, 200)?;
    during(cluster, "a rolling restart", restart)?.nothing_failed()?;
    for deployment in DEPLOYMENTS {
        cluster.kubectl(&["scale", "-n", NAMESPACE, &format!("deployment/{deployment}"), "--replicas=2"])?;
    }
    for deployment in DEPLOYMENTS {
        cluster.rolled_out(NAMESPACE, deployment)?;
    }
    during(cluster, "a pod of each deleted", deleted)?.nothing_failed()?;
    for app in ["web-svc", "emoji-svc", "voting-svc"] {
        let seen = during(cluster, &format!("a proxy of {app} killed"), |cluster| killed_proxy(cluster, app))?;
        // A call that was under way to it has no living endpoint: nobody knows what came of it.
        ensure!(seen.http.failed <= BEGUN, "{seen:?}");
        let before = cluster.report_after(NAMESPACE, 1)?;
        cluster.report_after(NAMESPACE, 400)?.since(&before).nothing_failed()?;
    }
    during(cluster, "the leader deleted", leader)?.nothing_failed()?;
    during(cluster, "no API server", no_api_server)?.nothing_failed()
}

/// What became of the requests meanwhile, and of some before and after.
fn during(
    cluster: &Kubernetes,
    what: &str,
    fault: impl FnOnce(&Kubernetes) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let (before, begun) = (cluster.report_after(NAMESPACE, 50)?, Instant::now());
    fault(cluster).with_context(|| what.to_owned())?;
    let seen = cluster.report_after(NAMESPACE, 200)?.since(&before);
    let (took, http) = (begun.elapsed().as_secs_f64(), &seen.http);
    println!("{what}: {took:.0} s, {} answered, {} failed, {} a second now", http.answered, http.failed, http.rate);
    Ok(seen)
}

fn restart(cluster: &Kubernetes) -> anyhow::Result<()> {
    for deployment in DEPLOYMENTS {
        cluster.kubectl(&["rollout", "restart", "-n", NAMESPACE, &format!("deployment/{deployment}")])?;
    }
    DEPLOYMENTS.iter().try_for_each(|deployment| cluster.rolled_out(NAMESPACE, deployment))
}

fn deleted(cluster: &Kubernetes) -> anyhow::Result<()> {
    for app in ["web-svc", "emoji-svc", "voting-svc"] {
        let pod = first(cluster, &format!("app={app}"))?;
        cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, &pod, "--wait=false"])?;
    }
    // Its place is taken by another.
    DEPLOYMENTS.iter().try_for_each(|deployment| cluster.rolled_out(NAMESPACE, deployment))
}

fn first(cluster: &Kubernetes, selector: &str) -> anyhow::Result<String> {
    cluster.pods(NAMESPACE, selector)?.into_iter().min().with_context(|| format!("no pod with {selector}"))
}

fn killed_proxy(cluster: &Kubernetes, app: &str) -> anyhow::Result<()> {
    let pod = first(cluster, &format!("app={app}"))?;
    let killed = cluster.proxy(NAMESPACE, &pod)?;
    killed.kill()?;
    wait_for("another proxy", || {
        ensure!(cluster.proxy(NAMESPACE, &pod)?.pid != killed.pid, "it is not dead yet");
        Ok(())
    })?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "-n", NAMESPACE, &format!("pod/{pod}"), "--timeout=120s"])?;
    Ok(())
}

/// The injector that writes, and a destination that proxies listen to.
fn leader(cluster: &Kubernetes) -> anyhow::Result<()> {
    let holder = || {
        let path = "jsonpath={.spec.holderIdentity}";
        let holder = cluster.kubectl(&["get", "lease", "-n", "weft", "weft-injector", "-o", path])?;
        let (pod, _) = holder.split_once('_').with_context(|| format!("{holder:?} is no pod"))?;
        Ok(pod.to_owned())
    };
    let old = wait_for("a leader", holder)?;
    let destination = cluster.list("pods", "linkerd.io/control-plane-component=destination")?;
    let destination = destination.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("no destination")?;
    cluster.kubectl(&["delete", "pod", "-n", "weft", &old, destination, "--wait=false"])?;
    wait_for("another leader", || {
        let new = holder()?;
        ensure!(new != old, "{new} leads");
        Ok(())
    })?;
    // What is made from now on is injected, and its peers hear of it.
    restart(cluster)?;
    for component in ["weft-injector", "weft-destination"] {
        cluster.rolled_out("weft", component)?;
    }
    cluster.weft(&["check", "--wait", "3m"])?.success().map(drop)
}

#[allow(clippy::disallowed_methods, reason = "tests are ordinary threads; the outage lasts as long as it says")]
fn no_api_server(cluster: &Kubernetes) -> anyhow::Result<()> {
    cluster.api_server("stop")?;
    let stat = cluster.weft(&["stat", "deploy", "-n", NAMESPACE])?;
    ensure!(stat.status.code() == Some(1) && !stat.stderr.is_empty(), "there is an API server: {stat}");
    std::thread::sleep(OUTAGE);
    cluster.api_server("start")?;
    // Nothing was restarted for it, and what happens from now on is heard of.
    cluster.weft(&["check", "--wait", "3m"])?.success()?;
    restart(cluster)
}
