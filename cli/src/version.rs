//! `weft version`: of this program, of the control plane, of proxies.

use crate::args::Version;
use crate::cluster::Mesh;
use crate::pods::{ended, meshed};
use crate::{Failure, VERSION, api, print};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use weft_core::inject::ANNOTATION_PROXY_VERSION;

/// How long the cluster has to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// Never: what does not answer is `unavailable`.
pub async fn run(args: Version, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let mut text = match args.short {
        true => format!("{VERSION}\n"),
        false => format!("Client version: {VERSION}\n"),
    };
    if !args.client {
        let asked = async { api::Api::connect(mesh).await?.check().await };
        let answer = tokio::time::timeout(TIMEOUT, asked).await;
        let server = answer.ok().and_then(Result::ok).map_or_else(|| "unavailable".to_owned(), |answer| answer.version);
        text.push_str(&if args.short { format!("{server}\n") } else { format!("Server version: {server}\n") });
        if args.proxy {
            let scope = args.namespace.as_deref();
            let asked = async { mesh.connect().await?.objects("pods", scope).await };
            let pods = tokio::time::timeout(TIMEOUT, asked).await;
            text.push_str(&proxies(&pods.ok().and_then(Result::ok).unwrap_or_default()));
        }
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// How many proxies there are of each version.
pub fn proxies(pods: &[Value]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| meshed(pod) && !ended(pod)) {
        let annotations = pod.pointer("/metadata/annotations");
        let version = annotations.and_then(|a| a.get(ANNOTATION_PROXY_VERSION)).and_then(Value::as_str);
        *counts.entry(version.unwrap_or("unknown")).or_default() += 1;
    }
    if counts.is_empty() {
        return "Proxy versions: unavailable\n".to_owned();
    }
    let lines = counts.iter().map(|(version, count)| format!("\t{version} ({count} pods)\n"));
    format!("Proxy versions:\n{}", lines.collect::<String>())
}
