//! `weft endpoints AUTHORITY…`: where the control plane tells proxies to send what goes to an authority.

use crate::args::{Endpoints, EndpointsOutput};
use crate::cluster::Mesh;
use crate::grpc::{Destination, Target};
use crate::table::{Align, Column, render as render_table};
use crate::{Failure, messages, print};
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{Update, WeightedAddr};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// When the control plane cannot be reached, or refuses one of the authorities.
pub async fn run(args: Endpoints, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let target = Target { mesh: mesh.clone(), pod: args.destination_pod.clone() };
    let api = Destination::connect(&target).await?;
    let mut updates = Vec::new();
    for authority in &args.authorities {
        updates.push(api.get(authority, &args.token).await?);
    }
    match render(&updates, args.output) {
        Some(text) => print(&text),
        None => eprintln!("No endpoints found."),
    }
    Ok(ExitCode::SUCCESS)
}

/// One endpoint of one service.
struct Row<'a> {
    namespace: String,
    service: String,
    ip: String,
    port: u32,
    pod: String,
    endpoint: &'a WeightedAddr,
}

fn rows(updates: &[Update]) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    for update in updates {
        let Some(Kind::Add(set)) = &update.update else { continue };
        let label = |name: &str| set.metric_labels.get(name).cloned().unwrap_or_default();
        let namespace = label("namespace");
        let service = format!("{}.{namespace}", label("service"));
        rows.extend(set.addrs.iter().map(|endpoint| Row {
            namespace: namespace.clone(),
            service: service.clone(),
            ip: endpoint.addr.and_then(|addr| addr.ip).map(messages::ip).unwrap_or_default(),
            port: endpoint.addr.map_or(0, |addr| addr.port),
            pod: endpoint.metric_labels.get("pod").cloned().unwrap_or_default(),
            endpoint,
        }));
    }
    rows.sort_by(|a, b| {
        (&a.namespace, &a.service, a.port, &a.pod, &a.ip).cmp(&(&b.namespace, &b.service, b.port, &b.pod, &b.ip))
    });
    rows.dedup_by(|a, b| a.service == b.service && a.port == b.port && a.ip == b.ip);
    rows
}

/// Table or JSON; nothing when a table would have no rows.
pub fn render(updates: &[Update], output: EndpointsOutput) -> Option<String> {
    let rows = rows(updates);
    if output == EndpointsOutput::Json {
        let list: Vec<Value> = rows.iter().map(to_json).collect();
        // Maps of strings and numbers only: serialising cannot fail.
        return Some(format!("{}\n", serde_json::to_string_pretty(&list).unwrap_or_default()));
    }
    if rows.is_empty() {
        return None;
    }
    let namespace_width = rows.iter().map(|row| row.namespace.chars().count()).max().unwrap_or_default();
    let pod_width = rows.iter().map(|row| row.pod.chars().count()).max().unwrap_or_default();
    let column = |name, min_width| Column { name, align: Align::Left, min_width };
    let columns = [
        column("NAMESPACE", namespace_width),
        column("IP", 0),
        column("PORT", 0),
        column("POD", pod_width),
        column("SERVICE", 0),
    ];
    let tables: Vec<String> = rows
        .chunk_by(|a, b| a.namespace == b.namespace)
        .map(|group| {
            let cells = group.iter().map(|row| {
                vec![row.namespace.clone(), row.ip.clone(), row.port.to_string(), row.pod.clone(), row.service.clone()]
            });
            let table = render_table(&columns, &cells.collect::<Vec<_>>());
            table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
        })
        .collect();
    Some(tables.join("\n"))
}

fn to_json(row: &Row) -> Value {
    let mut value = json!({
        "namespace": row.namespace,
        "ip": row.ip,
        "port": row.port,
        "pod": row.pod,
        "service": row.service,
        "weight": row.endpoint.weight,
    });
    // How the endpoint is to be spoken to, under the names that profiles have for it.
    for (key, more) in messages::endpoint_details(row.endpoint) {
        value[key] = more;
    }
    value["labels"] = messages::labels(&row.endpoint.metric_labels);
    value
}
