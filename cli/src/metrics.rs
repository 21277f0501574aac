//! `weft metrics TYPE/NAME`: what the proxies of a resource expose; `weft diagnostics controller-metrics`: what the
//! components of the control plane do.

use crate::cluster::{Cluster, Mesh};
use crate::pods::{admin_port, containers, ended, meshed, port, text};
use crate::{Failure, api, args, print, resource};
use aws_lc_rs::digest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;
use weft_core::owner;

/// For all proxies together.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the names of the control plane's admin ports end with.
const ADMIN_SUFFIX: &str = "admin-http";

/// Labels whose values say what the cluster is used for.
const SENSITIVE: &[&str] = &["authority", "client_id", "server_id", "target_addr", "dst_service", "dst_namespace"];

/// Runs the command.
///
/// # Errors
/// When the resource is not understood, has no meshed pods, or no cluster runs.
pub async fn run(args: args::Metrics, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let mut resources = resource::parse(&args.resource)?;
    let target = match (resources.pop(), resources.is_empty()) {
        (Some(target), true) if target.name.is_some() => target,
        _ => return Err(Failure::new("name one resource, as in deploy/web")),
    };
    if ["all", "authority", "service"].contains(&target.kind) {
        return Err(Failure::new(format!("Resource type is not supported: {}", target.kind)));
    }
    let client = mesh.connect().await?;
    let namespace = match target.kind {
        "namespace" => target.name.clone().unwrap_or_default(),
        _ => args.namespace.clone(),
    };
    let pods = client.objects("pods", Some(&namespace)).await?;
    let pods = pods.iter().filter(|pod| meshed(pod) && !ended(pod));
    let pods: Vec<(String, u16)> = pods.filter_map(|pod| Some((belongs(pod, &target)?, admin_port(pod)))).collect();
    if pods.is_empty() {
        let name = target.name.unwrap_or_default();
        return Err(Failure::new(format!("no pods with a proxy found for {}/{name} in {namespace}", target.kind)));
    }
    let deadline = Instant::now() + TIMEOUT;
    for (at, (pod, port)) in pods.iter().enumerate() {
        let mut answer = within(deadline, TIMEOUT, scrape(&client, &namespace, pod, *port)).await;
        if args.obfuscate {
            answer = answer.map(|metrics| obfuscate(&metrics));
        }
        print(&render(pod, at + 1, pods.len(), &answer));
    }
    Ok(ExitCode::SUCCESS)
}

/// `weft diagnostics controller-metrics`.
///
/// # Errors
/// When there is no control plane, or no cluster runs.
pub async fn of_controller(args: args::ControllerMetrics, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let control = mesh.control.as_str();
    let client = mesh.connect().await?;
    let pods = client.objects("pods", Some(control)).await?;
    let mut targets = Vec::new();
    for pod in pods.iter().filter(|pod| !ended(pod)) {
        let pod_name = text(pod, "/metadata/name");
        targets.extend(containers(pod).filter_map(|c| Some((pod_name, text(c, "/name"), port(c, ADMIN_SUFFIX)?))));
    }
    if targets.is_empty() {
        return Err(Failure::new(format!("no pods of a control plane found in {control}")));
    }
    let wait = Duration::from_secs(args.wait);
    let deadline = Instant::now() + wait;
    for (at, (pod, container, port)) in targets.iter().enumerate() {
        let answer = within(deadline, wait, scrape(&client, control, pod, *port)).await;
        print(&render_container(pod, container, at + 1, targets.len(), &answer));
    }
    Ok(ExitCode::SUCCESS)
}

async fn within<T>(
    deadline: Instant,
    allowed: Duration,
    asked: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout_at(deadline, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", allowed.as_secs())),
    }
}

async fn scrape(client: &Cluster, namespace: &str, pod: &str, port: u16) -> Result<String, String> {
    let stream = client.dial(namespace, &format!("pod/{pod}"), port).await;
    let stream = stream.map_err(|e| format!("cannot connect to port {port}: {e}"))?;
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

/// One component's part of the output.
pub fn render_container(
    pod: &str,
    container: &str,
    number: usize,
    count: usize,
    answer: &Result<String, String>,
) -> String {
    let banner = format!("#\n# POD {pod} ({number} of {count})\n");
    match answer {
        Ok(metrics) => format!("{banner}# CONTAINER {container}\n#\n{}\n", metrics.trim_end()),
        Err(reason) => format!("{banner}# ERROR {reason}\n"),
    }
}

/// Metrics with hashes instead of the names that say what the cluster is used for.
pub fn obfuscate(metrics: &str) -> String {
    let mut out = String::with_capacity(metrics.len());
    for line in metrics.lines() {
        match line.split_once('{') {
            Some((name, labels)) if !line.starts_with('#') => {
                out.push_str(name);
                out.push('{');
                obfuscate_labels(labels, &mut out);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// Labels and whatever follows them; what is not understood is copied.
fn obfuscate_labels(mut rest: &str, out: &mut String) {
    while let Some((name, tail)) = rest.split_once("=\"") {
        let mut escaped = false;
        let end = tail.bytes().position(|byte| {
            let closing = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closing
        });
        let Some((value, after)) = end.and_then(|end| tail.split_at_checked(end)) else { break };
        out.push_str(name);
        out.push_str("=\"");
        match SENSITIVE.contains(&name.trim_start_matches([',', ' '])) {
            true => out.push_str(&hash(value)),
            false => out.push_str(value),
        }
        // The closing quote goes along with what follows.
        out.push('"');
        rest = after.get(1..).unwrap_or_default();
        if rest.starts_with('}') {
            break;
        }
    }
    out.push_str(rest);
}

/// The first four octets of the SHA-256 hash.
fn hash(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        plain.push(match (c, if c == '\\' { chars.next() } else { None }) {
            (_, Some('n')) => '\n',
            (_, Some(escaped)) => escaped,
            (c, None) => c,
        });
    }
    let digest = digest::digest(&digest::SHA256, plain.as_bytes());
    digest.as_ref().iter().take(4).map(|octet| format!("{octet:02x}")).collect()
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
