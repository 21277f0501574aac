//! Which workload a pod belongs to, as metrics, `stat` and `edges` name it.

use crate::names::workload_label;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::fmt;

/// Label that a Deployment's ReplicaSet writes on its pods.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// The owner that people know: the Deployment, not its ReplicaSet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Lower-case singular kind: `deployment`, `statefulset`, `pod`…
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// The workload of a pod, from its metadata alone.
///
/// The controlling owner reference decides. A ReplicaSet whose name ends with the pod's template hash is a
/// Deployment's; a Job that carries the label of a CronJob belongs to it. Without an owner the labels that injection
/// writes decide; a pod with neither is its own workload.
pub fn workload(pod: &ObjectMeta) -> Workload {
    let label = |key: &str| pod.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str).filter(|v| !v.is_empty());
    let new = |kind: &str, name: &str| Workload { kind: kind.to_ascii_lowercase(), name: name.to_owned() };
    let owners = pod.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|o| o.controller == Some(true)).or(owners.first());
    if let Some(owner) = owner {
        match owner.kind.as_str() {
            "ReplicaSet" => {
                let deployment = label(POD_TEMPLATE_HASH)
                    .and_then(|hash| owner.name.strip_suffix(hash))
                    .and_then(|name| name.strip_suffix('-'))
                    .filter(|name| !name.is_empty());
                if let Some(name) = deployment {
                    return new("deployment", name);
                }
            }
            "Job" => {
                if let Some(name) = label(&workload_label("cronjob")) {
                    return new("cronjob", name);
                }
            }
            _ => {}
        }
        return new(&owner.kind, &owner.name);
    }
    const LABELLED: [&str; 7] =
        ["deployment", "statefulset", "daemonset", "cronjob", "job", "replicaset", "replicationcontroller"];
    for kind in LABELLED {
        if let Some(name) = label(&workload_label(kind)) {
            return new(kind, name);
        }
    }
    new("pod", pod.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    fn pod(owner: Option<(&str, &str)>, labels: &[(&str, &str)]) -> ObjectMeta {
        ObjectMeta {
            name: Some("web-abc-12345".into()),
            labels: Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            owner_references: owner.map(|(kind, name)| {
                vec![OwnerReference {
                    kind: kind.into(),
                    name: name.into(),
                    controller: Some(true),
                    ..Default::default()
                }]
            }),
            ..Default::default()
        }
    }

    #[test]
    fn workload_of_each_owner() {
        let of = |owner, labels: &[(&str, &str)]| workload(&pod(owner, labels)).to_string();
        assert_eq!(of(Some(("ReplicaSet", "web-abc")), &[(POD_TEMPLATE_HASH, "abc")]), "deployment/web");
        assert_eq!(of(Some(("ReplicaSet", "web-abc")), &[]), "replicaset/web-abc");
        assert_eq!(of(Some(("ReplicaSet", "-abc")), &[(POD_TEMPLATE_HASH, "abc")]), "replicaset/-abc");
        assert_eq!(of(Some(("StatefulSet", "db")), &[]), "statefulset/db");
        assert_eq!(of(Some(("Job", "run-1")), &[]), "job/run-1");
        assert_eq!(of(Some(("Job", "run-1")), &[("linkerd.io/proxy-cronjob", "run")]), "cronjob/run");
        assert_eq!(of(None, &[("linkerd.io/proxy-deployment", "web")]), "deployment/web");
        assert_eq!(of(None, &[]), "pod/web-abc-12345");
    }
}
