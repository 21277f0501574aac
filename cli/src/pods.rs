//! Pods as the cluster tells of them, and the commands that only list them: `weft get pods`, `weft viz list`.

use crate::args::{Get, List};
use crate::cluster::Mesh;
use crate::{Failure, print, resource};
use serde_json::Value;
use std::process::ExitCode;
use weft_core::names;

/// A string field by its JSON pointer; empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// Whether a pod has ended or is about to.
pub(crate) fn ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") || !text(pod, "/metadata/deletionTimestamp").is_empty()
}

/// All containers of a pod, those of its beginning first.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/spec/initContainers", "/spec/containers"];
    lists.into_iter().filter_map(|list| pod.pointer(list)?.as_array()).flatten()
}

/// The container that is the proxy.
pub(crate) fn proxy(pod: &Value) -> Option<&Value> {
    containers(pod).find(|container| text(container, "/name") == names::PROXY_CONTAINER)
}

/// Whether a proxy is among the containers of a pod.
pub(crate) fn meshed(pod: &Value) -> bool {
    proxy(pod).is_some()
}

/// The first port of a container whose name ends like this.
pub(crate) fn port(container: &Value, suffix: &str) -> Option<u16> {
    let mut ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
    let found = ports.find(|port| text(port, "/name").ends_with(suffix))?;
    found.get("containerPort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok()).filter(|p| *p > 0)
}

/// Where a proxy serves metrics.
pub(crate) fn admin_port(pod: &Value) -> u16 {
    proxy(pod).and_then(|proxy| port(proxy, names::ADMIN_PORT_NAME)).unwrap_or(names::ADMIN_PORT)
}

/// The pods that a command lists: those that have not ended.
async fn listed(list: &List, mesh: &Mesh) -> Result<Vec<Value>, Failure> {
    let client = mesh.connect().await?;
    let scope = (!list.all_namespaces).then_some(list.namespace.as_str());
    let mut pods = client.objects("pods", scope).await?;
    pods.retain(|pod| !ended(pod));
    Ok(pods)
}

/// `weft get pods`.
///
/// # Errors
/// When another type is asked for, or no cluster runs.
pub async fn get(args: Get, mesh: &Mesh) -> Result<ExitCode, Failure> {
    match resource::parse_one(&args.resource) {
        Ok(resource::Resource { kind: "pod", name: None }) => {}
        _ => return Err(Failure::new(format!("invalid resource type {}, valid types: pod", args.resource))),
    }
    let pods = listed(&args.list, mesh).await?;
    if pods.is_empty() {
        eprintln!("No resources found.");
    }
    print(&names_of(&pods));
    Ok(ExitCode::SUCCESS)
}

/// Namespace and name of each pod, one a line.
pub fn names_of(pods: &[Value]) -> String {
    pods.iter().map(|pod| format!("{}/{}\n", namespace(pod), name(pod))).collect()
}

/// `weft viz list`.
///
/// # Errors
/// When no cluster runs.
pub async fn list(args: List, mesh: &Mesh) -> Result<ExitCode, Failure> {
    print(&render(&listed(&args, mesh).await?));
    Ok(ExitCode::SUCCESS)
}

/// The pods that have a proxy.
pub fn render(pods: &[Value]) -> String {
    let lines: Vec<String> =
        pods.iter().filter(|pod| meshed(pod)).map(|pod| format!("\t* {}/{}\n", namespace(pod), name(pod))).collect();
    match lines.is_empty() {
        true => "No meshed pods found\n".to_owned(),
        false => format!("Meshed pods:\n{}", lines.concat()),
    }
}
