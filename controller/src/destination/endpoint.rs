//! How an endpoint is told to a proxy: its labels, its identity, how it can be spoken to.

use crate::index::pod::Pod;
use linkerd2_proxy_api::destination::protocol_hint::{H2, Opaque, OpaqueTransport, Protocol};
use linkerd2_proxy_api::destination::tls_identity::{DnsLikeIdentity, Strategy};
use linkerd2_proxy_api::destination::{ProtocolHint, TlsIdentity, WeightedAddr};
use std::collections::HashMap;
use std::net::SocketAddr;
use weft_core::names;

/// The weight of an endpoint that is as good as any other.
const WEIGHT: u32 = 10_000;

/// Who this control plane is, as discovery needs it.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Namespace of the control plane.
    pub controller_namespace: String,
    /// The last part of every identity.
    pub trust_domain: String,
    /// Domain of service names.
    pub cluster_domain: String,
}

impl Mesh {
    /// The identity of a pod, when this control plane gave it one.
    pub fn identity(&self, pod: &Pod) -> Option<String> {
        let meshed_by_us = pod.control_plane.as_deref() == Some(self.controller_namespace.as_str());
        meshed_by_us.then(|| {
            names::identity(&pod.service_account, &pod.id.namespace, &self.controller_namespace, &self.trust_domain)
        })
    }

    /// The full name of a service.
    pub fn service_name(&self, name: &str, namespace: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }
}

/// An address with what is known of the pod behind it.
pub fn weighted(mesh: &Mesh, addr: SocketAddr, pod: Option<&Pod>, zone: Option<&str>) -> WeightedAddr {
    let mut endpoint = WeightedAddr { addr: Some(addr.into()), weight: WEIGHT, ..Default::default() };
    let Some(pod) = pod else { return endpoint };
    endpoint.metric_labels = labels(pod, zone);
    // What skips the inbound proxy finds the application itself, which knows nothing of us.
    if pod.skip_inbound_ports.contains(addr.port()) {
        return endpoint;
    }
    if pod.control_plane.is_some() {
        endpoint.protocol_hint = Some(hint(pod, addr.port()));
    }
    endpoint.tls_identity = mesh.identity(pod).map(|name| {
        let identity = DnsLikeIdentity { name };
        TlsIdentity { server_name: Some(identity.clone()), strategy: Some(Strategy::DnsLikeIdentity(identity)) }
    });
    endpoint
}

fn hint(pod: &Pod, port: u16) -> ProtocolHint {
    let proxy = pod.proxy.as_ref();
    let inbound_port = proxy.map_or(names::INBOUND_PORT, |p| p.inbound_port);
    // The proxy's own servers are not behind its inbound side.
    let own = match proxy {
        Some(proxy) => [proxy.admin_port, proxy.control_port],
        None => [names::ADMIN_PORT, names::CONTROL_PORT],
    };
    ProtocolHint {
        opaque_transport: (!own.contains(&port)).then(|| OpaqueTransport { inbound_port: inbound_port.into() }),
        protocol: Some(if pod.is_opaque(port) { Protocol::Opaque(Opaque {}) } else { Protocol::H2(H2 {}) }),
    }
}

fn labels(pod: &Pod, zone: Option<&str>) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    let mut set = |name: &str, value: &str| {
        labels.insert(name.to_owned(), value.to_owned());
    };
    set("pod", &pod.id.name);
    // Prometheus has its own meaning for `job`.
    let kind = if pod.workload.kind == "job" { "k8s_job" } else { &pod.workload.kind };
    set(kind, &pod.workload.name);
    set("serviceaccount", &pod.service_account);
    set("zone", zone.unwrap_or_default());
    if let Some(namespace) = &pod.control_plane {
        set("control_plane_ns", namespace);
    }
    if let Some(hash) = pod.template_hash() {
        set("pod_template_hash", hash);
    }
    labels
}
