//! `weft uninstall` and `weft prune`: what to delete, as YAML on stdout.

use super::{installed, path_to, resources, show};
use crate::Failure;
use crate::args::{InstallSettings, Uninstall};
use crate::cluster::Mesh;
use crate::kubernetes::{Kubernetes, path_of, plural};
use crate::pods::{ended, meshed, name, namespace};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::ExitCode;
use weft_core::names::LABEL_CONTROL_PLANE_NS;

/// Kinds without namespace that a control plane has.
pub(super) const CLUSTER_KINDS: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
];

/// Kinds of its namespace that a control plane has.
const NAMESPACED_KINDS: &[(&str, &str)] = &[
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
    ("policy/v1beta1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("coordination.k8s.io/v1", "Lease"),
    ("v1", "ServiceAccount"),
];

/// Runs `weft uninstall`.
///
/// # Errors
/// When pods still have proxies, there is nothing to delete, or the cluster cannot be asked.
pub async fn uninstall(args: Uninstall, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let cluster = mesh.kubernetes().await?;
    let control = mesh.control.as_str();
    let meshed = pods_with_proxies(&cluster, control).await?;
    if !meshed.is_empty() && !args.force {
        let shown: Vec<&str> = meshed.iter().take(10).map(String::as_str).collect();
        let more = meshed.len() - shown.len();
        let more = if more > 0 { format!("\n\t… and {more} more") } else { String::new() };
        return Err(Failure::new(format!(
            "these pods still have a proxy, which would be left without a control plane:\n\t{}{more}\n\
             Remove linkerd.io/inject from them and restart them first, or use --force",
            shown.join("\n\t")
        )));
    }
    let mut objects = labelled(&cluster, control, CLUSTER_KINDS, None).await?;
    let of_release = cluster.find(&path_of("v1", "namespaces", None, Some(control))).await?;
    let ours = |namespace: &Value| {
        let labels = namespace.pointer("/metadata/labels");
        labels.and_then(|l| l.get(LABEL_CONTROL_PLANE_NS)).and_then(Value::as_str) == Some(control)
    };
    match of_release {
        // Everything in it goes with it.
        Some(namespace) if ours(&namespace) => {
            objects.push(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": control } }));
        }
        Some(_) => objects.extend(labelled(&cluster, control, NAMESPACED_KINDS, Some(control)).await?),
        None => {}
    }
    if objects.is_empty() {
        return Err(Failure::new(format!("there is no weft to uninstall in namespace {control}")));
    }
    show(&objects);
    Ok(ExitCode::SUCCESS)
}

/// Runs `weft prune`: what belongs to the control plane, but not to this version with its settings.
///
/// # Errors
/// When there is no control plane that `weft install` made, or the cluster cannot be asked.
pub async fn prune(mesh: &Mesh) -> Result<ExitCode, Failure> {
    let cluster = mesh.kubernetes().await?;
    let control = mesh.control.as_str();
    let settings = InstallSettings::default();
    let mut wanted = installed(&cluster, mesh, &settings, false).await?;
    wanted.extend(resources(&settings, control)?);
    // One object may be known under several versions.
    let id = |object: &Value| {
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        (kind, namespace(object).to_owned(), name(object).to_owned())
    };
    let wanted: BTreeSet<_> = wanted.iter().map(id).collect();
    let mut left = labelled(&cluster, control, CLUSTER_KINDS, None).await?;
    left.extend(labelled(&cluster, control, NAMESPACED_KINDS, Some(control)).await?);
    // The injector makes these two while it runs.
    let made = |object: &Value| matches!(name(object), "weft-injector-k8s-tls" | "weft-injector");
    left.retain(|object| !wanted.contains(&id(object)) && !made(object));
    if left.is_empty() {
        eprintln!("There is nothing to delete.");
    }
    show(&left);
    Ok(ExitCode::SUCCESS)
}

/// Objects of a control plane, as little of each as it takes to delete it.
async fn labelled(
    cluster: &Kubernetes,
    control: &str,
    kinds: &[(&str, &str)],
    scope: Option<&str>,
) -> Result<Vec<Value>, Failure> {
    let selector = format!("{LABEL_CONTROL_PLANE_NS}={control}");
    let mut out: Vec<Value> = Vec::new();
    for (version, kind) in kinds {
        let objects = match cluster.list(&path_of(version, &plural(kind), scope, None), Some(&selector)).await {
            Ok(objects) => objects,
            // This version of the API is not there.
            Err(problem) if problem.is_absent() => continue,
            Err(problem) => return Err(problem.into()),
        };
        for object in objects {
            let mut metadata = json!({ "name": name(&object) });
            if scope.is_some() {
                metadata["namespace"] = namespace(&object).into();
            }
            let object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata });
            if !out.iter().any(|other| other["kind"] == **kind && path_to(other).ends_with(&tail(&object))) {
                out.push(object);
            }
        }
    }
    Ok(out)
}

/// The end of a path, which does not have the version in it.
fn tail(object: &Value) -> String {
    let path = path_to(object);
    let at = path.find("/namespaces/").unwrap_or_else(|| path.rfind('/').unwrap_or_default());
    path.get(at..).unwrap_or_default().to_owned()
}

async fn pods_with_proxies(cluster: &Kubernetes, control: &str) -> Result<Vec<String>, Failure> {
    let selector = format!("{LABEL_CONTROL_PLANE_NS}={control}");
    let pods = cluster.list(&path_of("v1", "pods", None, None), Some(&selector)).await?;
    let elsewhere = pods.iter().filter(|pod| meshed(pod) && !ended(pod) && namespace(pod) != control);
    Ok(elsewhere.map(|pod| format!("{}/{}", namespace(pod), name(pod))).collect())
}
