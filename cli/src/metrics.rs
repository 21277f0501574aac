//! `weft metrics TYPE/NAME`: what the proxies of a resource expose.

use crate::{Failure, api, args, print, resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;
use weft_core::{names, owner};
use weft_local::client::Client;

/// For all proxies together.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the command.
///
/// # Errors
/// When the resource is not understood, has no meshed pods, or no cluster runs.
pub async fn run(args: args::Metrics) -> Result<ExitCode, Failure> {
    let mut resources = resource::parse(&args.resource)?;
    let target = match (resources.pop(), resources.is_empty()) {
        (Some(target), true) if target.name.is_some() => target,
        _ => return Err(Failure::new("name one resource, as in deploy/web")),
    };
    if ["all", "authority", "service"].contains(&target.kind) {
        return Err(Failure::new(format!("Resource type is not supported: {}", target.kind)));
    }
    let client = api::connect().await?;
    let namespace = match target.kind {
        "namespace" => target.name.clone().unwrap_or_default(),
        _ => args.namespace.clone(),
    };
    let pods = client.objects("pods", Some(&namespace)).await?;
    let pods: Vec<String> = pods.iter().filter(|p| meshed(p)).filter_map(|p| belongs(p, &target)).collect();
    if pods.is_empty() {
        let name = target.name.unwrap_or_default();
        return Err(Failure::new(format!("no pods with a proxy found for {}/{name} in {namespace}", target.kind)));
    }
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    for (at, pod) in pods.iter().enumerate() {
        let answer = match tokio::time::timeout_at(deadline, scrape(&client, &namespace, pod)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        print(&render(pod, at + 1, pods.len(), &answer));
    }
    Ok(ExitCode::SUCCESS)
}

async fn scrape(client: &Client, namespace: &str, pod: &str) -> Result<String, String> {
    let stream = client.dial(namespace, &format!("pod/{pod}"), names::ADMIN_PORT).await;
    let stream = stream.map_err(|e| format!("cannot connect to port {}: {e}", names::ADMIN_PORT))?;
    let answer = api::exchange(stream, pod, "GET", "/metrics", Vec::new()).await?;
    match answer.status {
        200 => Ok(String::from_utf8_lossy(&answer.body).into_owned()),
        status => Err(format!("/metrics answers status {status}")),
    }
}

/// One pod's part of the output.
pub fn render(pod: &str, number: usize, count: usize, answer: &Result<String, String>) -> String {
    let banner = format!("#\n# POD {pod} ({number} of {count})\n#\n");
    match answer {
        Ok(metrics) => format!("{banner}{}\n", metrics.trim_end()),
        Err(reason) => format!("{banner}# ERROR: {reason}\n"),
    }
}

/// Whether a proxy is among the containers of a pod.
pub(crate) fn meshed(pod: &Value) -> bool {
    let lists = ["/spec/containers", "/spec/initContainers"];
    let mut containers = lists.iter().filter_map(|list| pod.pointer(list)?.as_array()).flatten();
    containers.any(|c| c.get("name").and_then(Value::as_str) == Some(names::PROXY_CONTAINER))
}

/// The pod's name, when it belongs to the resource.
fn belongs(pod: &Value, target: &resource::Resource) -> Option<String> {
    let metadata: ObjectMeta = serde_json::from_value(pod.get("metadata")?.clone()).ok()?;
    let wanted = target.name.as_deref()?;
    let workload = owner::workload(&metadata);
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let found = match target.kind {
        "namespace" => true,
        "pod" => metadata.name.as_deref() == Some(wanted),
        kind => {
            (workload.kind == kind && workload.name == wanted)
                || owners.iter().any(|o| o.kind.eq_ignore_ascii_case(kind) && o.name == wanted)
        }
    };
    metadata.name.filter(|_| found)
}
