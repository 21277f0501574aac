//! `edges`: who talks to whom, and whether that is secured; HTTP and any other TCP alike.

use super::resources::{Resources, Type};
use super::store::{Peer, Store};
use crate::destination::endpoint::Mesh;
use std::collections::BTreeSet;
use weft_core::api::{Edge, EdgesRequest, EdgesResponse};

/// Answers a request.
///
/// # Errors
/// What is wrong with the request, for people.
pub fn edges(store: &Store, resources: &Resources, mesh: &Mesh, asked: &EdgesRequest) -> Result<EdgesResponse, String> {
    let kind = match asked.kind.as_str() {
        "all" => return Err("edges are between resources of one kind".into()),
        kind => Type::parse(kind)?,
    };
    if matches!(kind, Type::Service | Type::Authority) {
        return Err(format!("edges are between workloads; a {} is not one", kind.name()));
    }
    let namespace = asked.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let mut found = BTreeSet::new();
    for pod in resources.pods() {
        let sources = resources.of_pod(&pod.id);
        let Some(source) = sources.iter().find(|resource| resource.kind == kind) else { continue };
        for (peer, current) in store.peers(&pod.id) {
            if !current.http && !current.tcp {
                continue;
            }
            let targets = resources.of_peer(peer);
            let Some(target) = targets.iter().find(|resource| resource.kind == kind) else { continue };
            let here = |of: &str, itself: &str| {
                namespace.is_none_or(|namespace| namespace == if kind == Type::Namespace { itself } else { of })
            };
            if !here(&source.namespace, &source.name) && !here(&target.namespace, &target.name) {
                continue;
            }
            let secured = peer.tls == "true";
            let client_id = if secured { mesh.identity(pod).unwrap_or_default() } else { String::new() };
            found.insert((
                (source.name.clone(), source.namespace.clone(), target.name.clone(), target.namespace.clone()),
                (client_id, if secured { peer.server_id.clone() } else { String::new() }, why_plain(peer)),
            ));
        }
    }
    let edge = |((src, src_namespace, dst, dst_namespace), (client_id, server_id, no_tls_reason))| Edge {
        src,
        src_namespace,
        dst,
        dst_namespace,
        client_id,
        server_id,
        no_tls_reason,
    };
    Ok(EdgesResponse { edges: found.into_iter().map(edge).collect() })
}

/// In words; empty when it is not plain.
fn why_plain(peer: &Peer) -> String {
    let reason = if peer.no_tls_reason.is_empty() { peer.tls.as_str() } else { peer.no_tls_reason.as_str() };
    match reason {
        "true" => String::new(),
        "" => "not known".to_owned(),
        "disabled" => "TLS is disabled".to_owned(),
        "loopback" => "within one pod".to_owned(),
        "no_identity" => "no identity".to_owned(),
        "not_provided_by_service_discovery" => "the server is not in the mesh".to_owned(),
        "not_provided_by_remote" | "no_tls_from_remote" => "the client is not in the mesh".to_owned(),
        "no_authority_in_http_request" => "the request names no authority".to_owned(),
        "not_http" => "not HTTP".to_owned(),
        "opaque" => "the application's own TLS".to_owned(),
        "ingress_non_http" => "not HTTP, in ingress mode".to_owned(),
        "port_skipped" => "the port is skipped".to_owned(),
        other => other.replace('_', " "),
    }
}
