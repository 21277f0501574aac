//! `weft edges`: who talks to whom, and whether it is secured.

use crate::args::{Edges, Output};
use crate::cluster::Mesh;
use crate::stat::in_namespace;
use crate::table::{Align, Column, render as render_table};
use crate::{Failure, api, print, resource};
use serde_json::{Value, json};
use std::process::ExitCode;
use weft_core::api::{Edge, EdgesRequest};

/// Runs the command.
///
/// # Errors
/// When the type is not one that has edges, or the control plane cannot answer.
pub async fn run(args: Edges, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let request = request(&args)?;
    let edges = api::Api::connect(mesh).await?.edges(&request).await?.edges;
    match render(edges, args.output) {
        Some(text) => print(&text),
        None => eprintln!("No edges found."),
    }
    Ok(ExitCode::SUCCESS)
}

/// The question that the arguments ask.
///
/// # Errors
/// When the type is not one that has edges.
pub fn request(args: &Edges) -> Result<EdgesRequest, Failure> {
    let resource = resource::parse_one(&args.resource)?;
    if let Some(name) = resource.name {
        return Err(Failure::new(format!(
            "Edges cannot be returned for a specific resource name; remove {name} from query"
        )));
    }
    if ["authority", "service", "all"].contains(&resource.kind) {
        return Err(Failure::new(format!("Resource type is not supported: {}", resource.kind)));
    }
    let namespace = match resource.kind {
        _ if args.all_namespaces => None,
        // Namespaces are in none: all are meant, unless one is named.
        "namespace" => args.namespace.clone(),
        _ => Some(in_namespace(&args.namespace)),
    };
    Ok(EdgesRequest { kind: resource.kind.into(), namespace })
}

/// Table or JSON; nothing when a table would have no rows.
pub fn render(mut edges: Vec<Edge>, output: Output) -> Option<String> {
    for edge in &mut edges {
        // Namespaces themselves are in none.
        for (namespace, name) in [(&mut edge.src_namespace, &edge.src), (&mut edge.dst_namespace, &edge.dst)] {
            if namespace.is_empty() {
                namespace.clone_from(name);
            }
        }
    }
    edges.sort_by(|a, b| {
        let key = |e: &Edge| {
            [&e.src_namespace, &e.dst_namespace, &e.src, &e.dst, &e.no_tls_reason, &e.client_id, &e.server_id]
                .map(String::clone)
        };
        key(a).cmp(&key(b))
    });
    if output == Output::Json {
        let list: Vec<Value> = edges.iter().map(to_json).collect();
        // Maps of strings only: serialising cannot fail.
        return Some(format!("{}\n", serde_json::to_string_pretty(&list).unwrap_or_default()));
    }
    if edges.is_empty() {
        return None;
    }
    let mut names = vec!["SRC", "DST", "SRC_NS", "DST_NS"];
    if output == Output::Wide {
        names.extend(["CLIENT_ID", "SERVER_ID"]);
    }
    names.push("SECURED");
    let columns: Vec<Column> = names.into_iter().map(|name| Column::new(name, Align::Left)).collect();
    let cells = |edge: &Edge| {
        let mut cells =
            vec![edge.src.clone(), edge.dst.clone(), edge.src_namespace.clone(), edge.dst_namespace.clone()];
        if output == Output::Wide {
            cells.extend([short_identity(&edge.client_id), short_identity(&edge.server_id)]);
        }
        cells.push(if edge.no_tls_reason.is_empty() { "√".into() } else { edge.no_tls_reason.clone() });
        cells
    };
    let mut rows: Vec<Vec<String>> = edges.iter().map(cells).collect();
    // What differs only in what is not shown.
    rows.dedup();
    Some(render_table(&columns, &rows))
}

/// Service account and namespace, which are the first two labels of an identity.
fn short_identity(identity: &str) -> String {
    identity.split('.').take(2).collect::<Vec<_>>().join(".")
}

fn to_json(edge: &Edge) -> Value {
    json!({
        "src": edge.src,
        "src_namespace": edge.src_namespace,
        "dst": edge.dst,
        "dst_namespace": edge.dst_namespace,
        "client_id": short_identity(&edge.client_id),
        "server_id": short_identity(&edge.server_id),
        "no_tls_reason": edge.no_tls_reason,
    })
}
