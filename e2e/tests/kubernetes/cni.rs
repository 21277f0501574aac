//! A cluster on which a CNI plugin redirects pods: emojivoto is meshed, and no container of it or of the control plane has
//! any right beyond those that `restricted` leaves.

use anyhow::{Context, ensure};
use serde_json::Value;
use weft_e2e::{Kubernetes, kubernetes_dir, manifest, wait_for};

use crate::secured;

const DEPLOYMENTS: [&str; 4] = ["emoji", "voting", "web", "vote-bot"];

pub fn walk(cluster: &Kubernetes) -> anyhow::Result<()> {
    let before = configuration(cluster)?;
    println!("the plugin");
    let missing = cluster.weft(&["check", "--pre", "--linkerd-cni-enabled", "--wait", "0s"])?;
    ensure!(missing.status.code() == Some(2), "{missing}");
    ensure!(missing.stdout.contains("there is no ClusterRole weft-cni"), "{missing}");
    cluster.apply(&plugin(cluster)?)?;
    let check = cluster.weft(&["check", "--pre", "--linkerd-cni-enabled", "--wait", "2m"])?;
    ensure!(check.status.success(), "{check}\n{}", cluster.kubectl(&["describe", "pods", "-n", "weft-cni"])?);
    ensure!(check.stdout.contains("√ cni plugin pod is running on all nodes"), "{check}");
    println!("install");
    cluster.apply(&cluster.weft(&["install", "--crds"])?.success()?)?;
    cluster.apply(&cluster.weft(&["install", "--linkerd-cni-enabled"])?.success()?)?;
    let check = cluster.weft(&["check", "--wait", "3m"])?;
    if !check.status.success() {
        anyhow::bail!("{check}\n{}", cluster.kubectl(&["describe", "pods", "-n", "weft"])?);
    }
    ensure!(!check.stdout.contains('‼') && check.stdout.contains("√ cni plugin DaemonSet exists"), "{check}");
    println!("application");
    cluster.apply(&std::fs::read_to_string(manifest("demo/emojivoto.yml"))?)?;
    DEPLOYMENTS.iter().try_for_each(|deployment| cluster.rolled_out("emojivoto", deployment))?;
    cluster.weft(&["check", "--proxy", "-n", "emojivoto", "--wait", "2m"])?.success()?;
    restricted(cluster)?;
    secured(cluster, "emojivoto")?;
    // On the command line the cluster is followed, too.
    let demo = std::fs::read_to_string(manifest("demo/emojivoto.yml"))?;
    let by_hand = cluster.weft_piped(&["inject", "--manual", "-"], &demo)?;
    ensure!(by_hand.contains("linkerd-network-validator") && !by_hand.contains("NET_ADMIN"), "{by_hand}");
    println!("repair");
    repair(cluster)?;
    secured(cluster, "emojivoto")?;
    println!("removal");
    remove(cluster, before)
}

/// What `weft install-cni` prints for this cluster.
fn plugin(cluster: &Kubernetes) -> anyhow::Result<String> {
    let run = kubernetes_dir().join("run");
    let (net, bin) = (run.join("cni").display().to_string(), run.join("cni-bin").display().to_string());
    let own = ["install-cni", "--dest-cni-net-dir", &net, "--dest-cni-bin-dir", &bin];
    let arguments = if cluster.is_own() { &own[..] } else { &["install-cni"] };
    cluster.weft(arguments)?.success()
}

/// The configuration of the container runtime, where it can be looked at.
fn configuration(cluster: &Kubernetes) -> anyhow::Result<Option<Value>> {
    let path = kubernetes_dir().join("run/cni/10-bridge.conflist");
    let text = cluster.is_own().then(|| std::fs::read_to_string(path)).transpose()?;
    text.map(|text| serde_json::from_str(&text).context("the configuration of the network")).transpose()
}

fn plugins(configuration: &Option<Value>) -> Vec<&str> {
    let plugins = configuration.as_ref().and_then(|list| list["plugins"].as_array());
    plugins.into_iter().flatten().filter_map(|plugin| plugin["type"].as_str()).collect()
}

/// No container has what Pod Security's `restricted` forbids, and every validator has ended well.
fn restricted(cluster: &Kubernetes) -> anyhow::Result<()> {
    let pods = cluster.list("pods", "linkerd.io/control-plane-ns=weft")?;
    ensure!(pods.len() >= 8, "only {} pods", pods.len());
    for pod in &pods {
        let name = &pod["metadata"]["name"];
        let lists = ["initContainers", "containers"];
        for container in lists.iter().filter_map(|list| pod["spec"][*list].as_array()).flatten() {
            let capabilities = &container["securityContext"]["capabilities"];
            ensure!(capabilities["add"].is_null(), "{name}: {container:#}");
            ensure!(container["securityContext"]["privileged"] != true, "{name}: {container:#}");
        }
        let validator = &pod["status"]["initContainerStatuses"][0];
        ensure!(validator["name"] == "linkerd-network-validator", "{name}: {validator:#}");
        ensure!(validator["state"]["terminated"]["exitCode"] == 0, "{name}: {validator:#}");
        ensure!(validator["restartCount"] == 0, "{name}: {validator:#}");
    }
    Ok(())
}

/// A pod that was made while the plugin was away does not start, and is made anew when that is back.
fn repair(cluster: &Kubernetes) -> anyhow::Result<()> {
    cluster.kubectl(&["delete", "daemonset", "-n", "weft-cni", "weft-cni", "--timeout=60s"])?;
    wait_for("the plugin is removed from the node", || {
        let pods = cluster.list("pods", "linkerd.io/cni-resource=true")?;
        ensure!(pods.is_empty(), "{} pods", pods.len());
        let configuration = configuration(cluster)?;
        ensure!(!plugins(&configuration).contains(&"weft-cni"), "{configuration:?}");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "pods", "-n", "emojivoto", "-l", "app=emoji-svc", "--wait=false"])?;
    let blocked = wait_for("a pod that was not redirected is blocked", || {
        let pods = cluster.list("pods", "app=emoji-svc")?;
        let ended = |pod: &&Value| {
            let status = &pod["status"]["initContainerStatuses"][0];
            let states = [&status["state"], &status["lastState"]];
            states.iter().any(|state| state["terminated"]["exitCode"] == 95)
        };
        let pod = pods.iter().find(ended).with_context(|| format!("{pods:?}"))?;
        Ok(pod["metadata"]["name"].as_str().context("no name")?.to_owned())
    })?;
    let said = cluster.kubectl(&["logs", "-n", "emojivoto", &blocked, "-c", "linkerd-network-validator"])?;
    ensure!(said.contains("the CNI plugin has not redirected the traffic of this pod"), "{said}");
    cluster.apply(&plugin(cluster)?)?;
    wait_for("the pod is made anew", || {
        let pods = cluster.list("pods", "app=emoji-svc")?;
        ensure!(!pods.iter().any(|pod| pod["metadata"]["name"] == blocked.as_str()), "{blocked} is still there");
        Ok(())
    })?;
    cluster.rolled_out("emojivoto", "emoji")?;
    let events = cluster.kubectl(&["get", "events", "-n", "emojivoto", "-o", "name"])?;
    let reasons = ["get", "events", "-n", "emojivoto", "-o", "jsonpath={.items[*].reason}"];
    ensure!(cluster.kubectl(&reasons)?.contains("LinkerdCNINotConfigured"), "{events}");
    Ok(())
}

fn remove(cluster: &Kubernetes, before: Option<Value>) -> anyhow::Result<()> {
    cluster.kubectl(&["delete", "namespace", "emojivoto", "--wait=false"])?;
    let objects = wait_for("no pod needs the control plane", || cluster.weft(&["uninstall"])?.success())?;
    cluster.delete(&objects)?;
    cluster.delete(&plugin(cluster)?)?;
    wait_for("nothing is left", || {
        let kinds = "clusterroles,clusterrolebindings,namespaces,daemonsets,serviceaccounts,pods";
        for label in ["linkerd.io/cni-resource", "linkerd.io/control-plane-ns"] {
            let left = cluster.list(kinds, label)?;
            let names: Vec<String> = left.iter().map(|o| format!("{} {}", o["kind"], o["metadata"]["name"])).collect();
            ensure!(names.is_empty(), "{names:?}");
        }
        let now = configuration(cluster)?;
        ensure!(now == before, "{now:?}");
        Ok(())
    })?;
    if cluster.is_own() {
        let run = kubernetes_dir().join("run");
        let left = [run.join("cni-bin/weft-cni"), run.join("cni/weft-cni-kubeconfig")];
        ensure!(!left.iter().any(|file| file.exists()), "{left:?}");
    }
    // A pod without mesh gets its network as before.
    if cluster.is_own() {
        cluster.kubectl(&["rollout", "restart", "-n", "kube-system", "deployment/cluster-dns"])?;
        cluster.rolled_out("kube-system", "cluster-dns")?;
    }
    Ok(())
}
