//! `GetProfile`: what is known of an address or a name beforehand.

use super::endpoint::{Mesh, weighted};
use super::get::resolve;
use super::wishes;
use crate::index::Target;
use crate::index::pod::Pod;
use crate::index::ports::Ports;
use crate::index::service::{Protocol, Service, ServiceView};
use linkerd2_proxy_api::destination::{DestinationProfile, RetryBudget};
use linkerd2_proxy_api::meta;
use std::net::{IpAddr, SocketAddr};

/// The profile of an address, for a client of this namespace.
pub fn of_address(mesh: &Mesh, ip: IpAddr, port: u16, target: &Target, client: &str) -> DestinationProfile {
    match target {
        Target::Service(service) => of_service(mesh, service, port, client),
        Target::Pod(pod) => of_pod(mesh, pod, SocketAddr::new(ip, port), None),
        // Servers that speak first are outside of clusters, too.
        Target::Unknown => {
            DestinationProfile { opaque_protocol: Ports::default_opaque().contains(port), ..Default::default() }
        }
    }
}

/// The profile of a service, for a client of this namespace. It is empty for a port that the service does not have:
/// policy refuses those.
pub fn of_service(mesh: &Mesh, service: &Service, port: u16, client: &str) -> DestinationProfile {
    let id = &service.id;
    let protocol = match service.port(port) {
        Some(port) => port.protocol,
        None if service.headless => Protocol::Detect,
        None => return DestinationProfile::default(),
    };
    let name = mesh.service_name(&id.name, &id.namespace);
    let mut answer = DestinationProfile {
        opaque_protocol: protocol == Protocol::Opaque,
        retry_budget: retry_budget(),
        parent_ref: Some(resource("Service", &id.name, &id.namespace, port)),
        fully_qualified_name: name,
        ..Default::default()
    };
    if let Some(profile) = service.traffic.profile(id, client)
        && profile.id.name == answer.fully_qualified_name
    {
        wishes::put(&mut answer, profile, port);
    }
    if let Some(split) = &service.traffic.split {
        answer.dst_overrides = wishes::split(mesh, &id.namespace, split, port);
    }
    answer
}

/// The profile of one pod of a headless service, if there is one of this name.
pub fn of_instance(mesh: &Mesh, view: &ServiceView, hostname: &str, port: u16) -> Option<DestinationProfile> {
    let addr = *resolve(mesh, view, port, Some(hostname)).first_key_value()?.0;
    let endpoint = view.endpoints.iter().find(|e| e.ip == addr.ip())?;
    Some(match &endpoint.pod {
        Some(pod) => of_pod(mesh, pod, addr, endpoint.zone.as_deref()),
        None => DestinationProfile {
            endpoint: Some(weighted(mesh, addr, None, None)),
            retry_budget: retry_budget(),
            ..Default::default()
        },
    })
}

fn of_pod(mesh: &Mesh, pod: &Pod, addr: SocketAddr, zone: Option<&str>) -> DestinationProfile {
    let mut endpoint = weighted(mesh, addr, Some(pod), zone);
    // Elsewhere the namespace is told once for a whole set.
    endpoint.metric_labels.insert("namespace".to_owned(), pod.id.namespace.clone());
    DestinationProfile {
        opaque_protocol: pod.is_opaque(addr.port()),
        retry_budget: retry_budget(),
        endpoint: Some(endpoint),
        ..Default::default()
    }
}

/// A Kubernetes resource of the core group, as metric labels name it.
pub fn resource(kind: &str, name: &str, namespace: &str, port: u16) -> meta::Metadata {
    let resource = meta::Resource {
        group: "core".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        section: String::new(),
        port: port.into(),
    };
    meta::Metadata { kind: Some(meta::metadata::Kind::Resource(resource)) }
}

fn retry_budget() -> Option<RetryBudget> {
    let ttl = prost_types::Duration { seconds: 10, nanos: 0 };
    Some(RetryBudget { retry_ratio: 0.2, min_retries_per_second: 10, ttl: Some(ttl) })
}
