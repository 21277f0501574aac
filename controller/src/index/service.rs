//! What the control plane keeps of services and their endpoints.

use super::pod::{Id, Pod, Settings};
use super::ports::Ports;
use super::traffic::{Traffic, annotations};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::k8s_openapi::api::core::v1::Service as KubeService;
use weft_core::k8s_openapi::api::discovery::v1::EndpointSlice as KubeSlice;

/// The label that ties a slice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is spoken on a port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing is declared: the proxy looks.
    Detect,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Octets, not to be looked into.
    Opaque,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a service.
    pub name: String,
    /// What clients connect to.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Namespace and name.
    pub id: Id,
    /// Its virtual addresses; none for headless services.
    pub ips: Vec<IpAddr>,
    /// Whether it has no virtual address by intent.
    pub headless: bool,
    /// Whether it is only another name for something outside.
    pub external_name: bool,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods; empty when it has no selector.
    pub selector: BTreeMap<String, String>,
    /// Labels of the service itself.
    pub labels: BTreeMap<String, String>,
    /// Its annotations about traffic.
    pub annotations: BTreeMap<String, String>,
    /// What is asked for about its traffic.
    pub traffic: Traffic,
    settings: Settings,
    app_protocols: BTreeMap<u16, String>,
}

impl Service {
    /// What is kept of this service. `None` without a name.
    pub fn read(service: &KubeService, namespace: Option<&Settings>) -> Option<Service> {
        let metadata = &service.metadata;
        let id = Id::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        let spec = service.spec.as_ref();
        let all = spec.map(|s| s.cluster_ips.iter().flatten().chain(s.cluster_ip.as_ref()).collect::<Vec<_>>());
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in all.unwrap_or_default().into_iter().filter_map(|ip| ip.parse().ok()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        let (mut ports, mut app_protocols) = (Vec::new(), BTreeMap::new());
        for port in spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
                continue;
            }
            let Ok(number) = u16::try_from(port.port) else { continue };
            let name = port.name.clone().unwrap_or_default();
            ports.push(ServicePort { name, port: number, protocol: Protocol::Detect });
            if let Some(protocol) = &port.app_protocol {
                app_protocols.insert(number, protocol.to_ascii_lowercase());
            }
        }
        let service = Service {
            headless: spec.and_then(|s| s.cluster_ip.as_deref()) == Some("None"),
            external_name: spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName"),
            selector: spec.and_then(|s| s.selector.clone()).unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            annotations: annotations(metadata),
            traffic: Traffic::default(),
            settings: Settings::read(metadata.annotations.as_ref()),
            ips,
            ports,
            app_protocols,
            id,
        };
        Some(service.with_namespace(namespace))
    }

    /// The same service, when its namespace's annotations are these.
    pub fn with_namespace(mut self, namespace: Option<&Settings>) -> Service {
        let settings = self.settings.or(namespace);
        let opaque = settings.opaque_ports.as_ref().map_or_else(Ports::default_opaque, |text| {
            Ports::parse(text, |name| self.ports.iter().find(|p| p.name == name).map(|p| p.port))
        });
        for port in &mut self.ports {
            // What is declared for the port itself is more precise than a list of opaque ports. A protocol that nobody
            // here knows is passed on untouched.
            port.protocol = match self.app_protocols.get(&port.port).map(String::as_str) {
                Some("http") => Protocol::Http1,
                Some("kubernetes.io/h2c") => Protocol::Http2,
                Some(_) => Protocol::Opaque,
                None if opaque.contains(port.port) => Protocol::Opaque,
                None => Protocol::Detect,
            };
        }
        self
    }

    /// The port that clients connect to with this number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// One address of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Addresses; interchangeable, by contract.
    pub ip: IpAddr,
    /// The pod behind it, when the slice says.
    pub pod: Option<Id>,
    /// Its host name within a headless service.
    pub hostname: Option<String>,
    /// The node that it is on, when the slice says.
    pub node: Option<String>,
    /// Its zone, when the slice says.
    pub zone: Option<String>,
    /// Whether new connections may go there.
    pub ready: bool,
}

/// A slice of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name of the slice.
    pub id: Id,
    /// The service.
    pub service: Id,
    /// Addresses.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports by name; the name of the only port is empty.
    pub ports: Arc<[(String, u16)]>,
}

impl Slice {
    /// What is kept of this slice. `None` for slices of no service, or of names instead of addresses.
    pub fn read(slice: &KubeSlice) -> Option<Slice> {
        let metadata = &slice.metadata;
        let id = Id::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        let service = Id::new(&id.namespace, metadata.labels.as_ref()?.get(SERVICE_NAME)?);
        if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
            return None;
        }
        let mut endpoints = Vec::new();
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            // Unknown counts as ready, by contract of the API.
            let ready =
                conditions.and_then(|c| c.ready) != Some(false) && conditions.and_then(|c| c.terminating) != Some(true);
            let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
            let pod =
                target.and_then(|t| Some(Id::new(t.namespace.as_deref().unwrap_or(&id.namespace), t.name.as_deref()?)));
            let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            endpoints.push(SliceEndpoint {
                ip,
                pod,
                hostname: endpoint.hostname.clone(),
                node: endpoint.node_name.clone(),
                zone: endpoint.zone.clone(),
                ready,
            });
        }
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|p| Some((p.name.clone().unwrap_or_default(), u16::try_from(p.port?).ok()?)))
            .collect();
        Some(Slice { id, service, endpoints, ports })
    }
}

/// One endpoint of a service, ready for new connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// The pod behind it, when there is one.
    pub pod: Option<Arc<Pod>>,
    /// Its host name within a headless service.
    pub hostname: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Ports by name; the name of the only port is empty.
    pub ports: Arc<[(String, u16)]>,
}

/// A service with its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// The service.
    pub service: Arc<Service>,
    /// Its endpoints that are ready.
    pub endpoints: Vec<Endpoint>,
}
