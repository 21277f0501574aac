//! `weft diagnostics profile` and `policy`: what the control plane tells proxies, as it tells them.

use crate::args::{MessageOutput, Policy, Profile};
use crate::cluster::Mesh;
use crate::grpc::{self, Destination, Target};
use crate::install::CONFIG;
use crate::pods::{name, text};
use crate::{Failure, messages, print, resource};
use linkerd2_proxy_api::outbound::{TrafficSpec, traffic_spec};
use serde_json::{Value, json};
use std::process::ExitCode;
use weft_core::names;

/// `weft diagnostics profile`.
///
/// # Errors
/// When the control plane cannot be reached, or refuses the address.
pub async fn profile(args: Profile, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let target = Target { mesh: mesh.clone(), pod: args.destination_pod };
    let profile = Destination::connect(&target).await?.profile(&args.address, &args.token).await?;
    print(&render(&messages::profile(&profile), args.output)?);
    Ok(ExitCode::SUCCESS)
}

/// `weft diagnostics policy`.
///
/// # Errors
/// When the resource is neither pod nor service, or the control plane cannot be reached or does not know it.
pub async fn policy(args: Policy, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let subject = resource::parse_one(&args.resource)?;
    let Some(wanted) = subject.name else {
        return Err(Failure::new("resource type and name are required, as in po/web-1 or svc/web"));
    };
    if !["pod", "service"].contains(&subject.kind) {
        let message = format!("invalid resource type {}; must be one of Pod or Service", args.resource);
        return Err(Failure::new(message));
    }
    let target = Target { mesh: mesh.clone(), pod: args.destination_pod };
    let api = grpc::Policy::connect(&target).await?;
    let message = if subject.kind == "pod" {
        let workload = json!({ "ns": args.namespace, "pod": wanted }).to_string();
        messages::server(&api.inbound(workload, args.port).await?)
    } else {
        let authority = format!("{wanted}.{}.svc.{}:{}", args.namespace, cluster_domain(mesh).await, args.port);
        let target = Some(traffic_spec::Target::Authority(authority));
        messages::policy(&api.outbound(TrafficSpec { source_workload: args.token, target }).await?)
    };
    print(&render(&message, args.output)?);
    Ok(ExitCode::SUCCESS)
}

/// The domain of the cluster's DNS: as the installation says it, else as it is by default.
async fn cluster_domain(mesh: &Mesh) -> String {
    let maps = async { mesh.cluster().await.ok()?.objects("configmaps", Some(&mesh.control)).await.ok() };
    let maps = maps.await.unwrap_or_default();
    let values = maps.iter().find(|map| name(map) == CONFIG).map(|map| text(map, "/data/values"));
    let values: Value = values.and_then(|values| serde_yaml_ng::from_str(values).ok()).unwrap_or_default();
    match text(&values, "/clusterDomain") {
        "" => names::CLUSTER_DOMAIN.to_owned(),
        domain => domain.to_owned(),
    }
}

/// A message as text.
///
/// # Errors
/// When it cannot be written, which does not happen to JSON values.
pub fn render(message: &Value, output: MessageOutput) -> Result<String, Failure> {
    let text = match output {
        MessageOutput::Json => serde_json::to_string_pretty(message).map(|text| text + "\n").map_err(|e| e.to_string()),
        MessageOutput::Yaml => serde_yaml_ng::to_string(message).map_err(|e| e.to_string()),
    };
    text.map_err(|error| Failure::new(format!("cannot write the message: {error}")))
}
