//! Checks of the CNI plugin, where it redirects the traffic of pods.

use super::kubernetes::ApiServer;
use super::{name, namespace};
use crate::check::{Runner, Severity};
use crate::install::CONFIG;
use crate::kubernetes::{path_of, plural};
use serde_json::Value;

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// Name of every object of the plugin.
const NAME: &str = "weft-cni";
/// Label of them.
const LABEL: &str = "linkerd.io/cni-resource";

/// Whether the installed control plane leaves the redirection to the plugin.
pub(super) async fn enabled(server: &impl ApiServer, control: &str) -> bool {
    let path = path_of("v1", "configmaps", Some(control), Some(CONFIG));
    let Ok(Some(map)) = server.find(&path).await else { return false };
    let values = map.pointer("/data/values").and_then(Value::as_str).unwrap_or_default();
    let values: Value = serde_yaml_ng::from_str(values).unwrap_or_default();
    values.get("cniEnabled") == Some(&Value::Bool(true))
}

/// Whether the plugin is on every node.
pub(super) async fn plugin(runner: &mut Runner, server: &impl ApiServer) {
    runner.category("weft-cni-plugin");
    let find = async |version: &str, kind: &str| {
        let all = server.list(&path_of(version, &plural(kind), None, None)).await.map_err(|e| e.message)?;
        let ours = |object: &Value| {
            let labels = object.pointer("/metadata/labels");
            name(object) == NAME && labels.and_then(|l| l.get(LABEL)).and_then(Value::as_str) == Some("true")
        };
        all.into_iter().find(ours).ok_or_else(|| format!("there is no {kind} {NAME}"))
    };
    let hint = "`weft install-cni`";
    for (version, kind) in
        [(RBAC, "ClusterRole"), (RBAC, "ClusterRoleBinding"), ("v1", "ServiceAccount"), ("apps/v1", "DaemonSet")]
    {
        let description = format!("cni plugin {kind} exists");
        runner.check(&description, Severity::FATAL, hint, async || find(version, kind).await.map(drop)).await;
    }
    let hint = format!("`kubectl get pods -A -l {LABEL}=true -o wide`");
    runner
        .check("cni plugin pod is running on all nodes", Severity::FATAL_RETRY, &hint, async || {
            let set = find("apps/v1", "DaemonSet").await?;
            let count = |path: &str| set.pointer(path).and_then(Value::as_u64).unwrap_or_default();
            // Until the controller has seen the newest version, the numbers are those of the one before.
            let seen = count("/status/observedGeneration") >= count("/metadata/generation");
            let (wanted, ready) = (count("/status/desiredNumberScheduled"), count("/status/numberReady"));
            if seen && wanted > 0 && ready >= wanted {
                return Ok(());
            }
            let path = path_of("v1", "pods", Some(namespace(&set)), None);
            let pods = server.list(&path).await.map_err(|e| e.message)?;
            let unready = pods.iter().find(|pod| name(pod).starts_with(NAME) && !super::ready(pod));
            let why = unready.map(|pod| format!(": {} is not ready: {}", name(pod), super::why_not_ready(pod)));
            Err(format!("ready on {ready} of {wanted} nodes{}", why.unwrap_or_default()))
        })
        .await;
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pods::text;
    use serde_json::json;

    /// The objects of a plugin that is ready on two nodes, and the last word of the control plane about it.
    pub(in crate::checks) fn installed() -> Vec<Value> {
        let mut objects = crate::install::cni_rendered(&json!({}), "weft-cni").unwrap();
        for object in objects.iter_mut().filter(|o| text(o, "/kind") == "DaemonSet") {
            object["status"] = json!({ "desiredNumberScheduled": 2, "numberReady": 2 });
        }
        objects
    }
}
