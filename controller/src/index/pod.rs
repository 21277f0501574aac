//! What the control plane keeps of a pod.

use super::ports::Ports;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use weft_core::k8s_openapi::api::core::v1::{Container, ContainerPort, Pod as KubePod, Probe};
use weft_core::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_core::names::{
    ADMIN_PORT, ADMIN_PORT_NAME, CONTROL_PORT, INBOUND_PORT, LABEL_CONTROL_PLANE_NS, PROXY_CONTAINER,
};
use weft_core::owner::{POD_TEMPLATE_HASH, Workload, workload};

/// Annotation: ports whose protocol is not detected.
pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
/// Annotation: inbound ports that do not go through the proxy.
pub const SKIP_INBOUND_PORTS: &str = "config.linkerd.io/skip-inbound-ports";
/// Annotation: who may connect when no policy says so.
pub const DEFAULT_INBOUND_POLICY: &str = "config.linkerd.io/default-inbound-policy";

/// Annotation: inbound ports that are for clients with an identity only, when no policy says otherwise.
pub const REQUIRE_IDENTITY: &str = "config.linkerd.io/proxy-require-identity-inbound-ports";

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Id {
    /// An id.
    pub fn new(namespace: &str, name: &str) -> Id {
        Id { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Settings that a pod, a service or their namespace can carry as annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// See [`OPAQUE_PORTS`].
    pub opaque_ports: Option<String>,
    /// See [`SKIP_INBOUND_PORTS`].
    pub skip_inbound_ports: Option<String>,
    /// See [`DEFAULT_INBOUND_POLICY`].
    pub inbound_policy: Option<String>,
    /// See [`REQUIRE_IDENTITY`].
    pub require_identity: Option<String>,
}

impl Settings {
    /// From annotations.
    pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Settings {
        let get = |key: &str| annotations.and_then(|a| a.get(key)).cloned();
        Settings {
            opaque_ports: get(OPAQUE_PORTS),
            skip_inbound_ports: get(SKIP_INBOUND_PORTS),
            inbound_policy: get(DEFAULT_INBOUND_POLICY),
            require_identity: get(REQUIRE_IDENTITY),
        }
    }

    /// These settings, completed by those of the namespace.
    pub fn or(&self, namespace: Option<&Settings>) -> Settings {
        let or = |own: &Option<String>, other: fn(&Settings) -> &Option<String>| {
            own.clone().or_else(|| namespace.and_then(|ns| other(ns).clone()))
        };
        Settings {
            opaque_ports: or(&self.opaque_ports, |s| &s.opaque_ports),
            skip_inbound_ports: or(&self.skip_inbound_ports, |s| &s.skip_inbound_ports),
            inbound_policy: or(&self.inbound_policy, |s| &s.inbound_policy),
            require_identity: or(&self.require_identity, |s| &s.require_identity),
        }
    }
}

/// The proxy of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where it takes connections of other proxies.
    pub inbound_port: u16,
    /// Where it serves metrics.
    pub admin_port: u16,
    /// Where it serves tap.
    pub control_port: u16,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub id: Id,
    /// Addresses; none for pods on the host's network, which are not theirs alone.
    pub ips: Vec<IpAddr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    pub service_account: String,
    /// The workload that people know: the Deployment, not its ReplicaSet.
    pub workload: Workload,
    /// The controlling owner itself, as lower-case kind and name.
    pub owner: Option<Workload>,
    /// `Running`, `Pending`, `Succeeded`, `Failed`.
    pub phase: String,
    /// The phase, or the reason why it is not there yet or no more.
    pub status: String,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether all its containers have done their work but the proxy, which keeps the pod from being over.
    pub only_proxy_left: bool,
    /// Label `linkerd.io/control-plane-ns`: who meshed it.
    pub control_plane: Option<String>,
    /// Its proxy, when a container is one.
    pub proxy: Option<Proxy>,
    /// Ports whose protocol is not detected, by annotation.
    opaque_ports: Ports,
    /// Ports that a Server has, with whether it says that they are opaque: it knows better than the annotation.
    pub served: BTreeMap<u16, bool>,
    /// Inbound ports that do not go through the proxy.
    pub skip_inbound_ports: Ports,
    /// See [`DEFAULT_INBOUND_POLICY`].
    pub inbound_policy: Option<String>,
    /// See [`REQUIRE_IDENTITY`].
    pub require_identity: Ports,
    /// HTTP probe paths by port.
    pub probes: BTreeMap<u16, BTreeSet<String>>,
    /// When it was made, as written in its metadata.
    pub created: String,
    /// Its own settings, without its namespace's.
    settings: Settings,
    /// Container ports by name.
    named_ports: Vec<(String, u16)>,
}

impl Pod {
    /// What is kept of this pod. `None` without a name.
    pub fn read(pod: &KubePod, namespace: Option<&Settings>) -> Option<Pod> {
        let metadata = &pod.metadata;
        let id = Id::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?);
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let containers: Vec<&Container> =
            spec.map(|s| s.init_containers.iter().flatten().chain(&s.containers).collect()).unwrap_or_default();
        let named_ports = containers
            .iter()
            .flat_map(|c| tcp_ports(c))
            .filter_map(|p| Some((p.name.clone()?, u16::try_from(p.container_port).ok()?)))
            .collect();
        let host_network = spec.and_then(|s| s.host_network).unwrap_or_default();
        let ips = match status {
            Some(status) if !host_network => {
                let all = status.pod_ips.iter().flatten().map(|ip| Some(&ip.ip)).chain([status.pod_ip.as_ref()]);
                let mut ips: Vec<IpAddr> = Vec::new();
                for ip in all.flatten().filter_map(|ip| ip.parse().ok()) {
                    if !ips.contains(&ip) {
                        ips.push(ip);
                    }
                }
                ips
            }
            _ => Vec::new(),
        };
        let labels = metadata.labels.clone().unwrap_or_default();
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let owner = owners
            .iter()
            .find(|o| o.controller == Some(true))
            .or(owners.first())
            .map(|o| Workload { kind: o.kind.to_ascii_lowercase(), name: o.name.clone() });
        let phase = status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".to_owned());
        let terminating = metadata.deletion_timestamp.is_some();
        let pod = Pod {
            ips,
            service_account: spec
                .and_then(|s| s.service_account_name.clone())
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            workload: workload(metadata),
            owner,
            status: if terminating {
                "Terminating".to_owned()
            } else {
                waiting_reason(pod).unwrap_or_else(|| phase.clone())
            },
            phase,
            terminating,
            only_proxy_left: only_proxy_left(pod),
            control_plane: labels.get(LABEL_CONTROL_PLANE_NS).filter(|ns| !ns.is_empty()).cloned(),
            proxy: containers.iter().find(|c| c.name == PROXY_CONTAINER).map(|c| proxy(c)),
            opaque_ports: Ports::default(),
            served: BTreeMap::new(),
            skip_inbound_ports: Ports::default(),
            inbound_policy: None,
            require_identity: Ports::default(),
            probes: probes(&containers),
            created: metadata.creation_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default(),
            settings: Settings::read(metadata.annotations.as_ref()),
            labels,
            named_ports,
            id,
        };
        Some(pod.with_namespace(namespace))
    }

    /// The same pod, when its namespace's annotations are these.
    pub fn with_namespace(mut self, namespace: Option<&Settings>) -> Pod {
        let settings = self.settings.or(namespace);
        let parse = |text: &String| Ports::parse(text, |name| self.named_port(name));
        let opaque_ports = settings.opaque_ports.as_ref().map_or_else(Ports::default_opaque, parse);
        let skip_inbound_ports = settings.skip_inbound_ports.as_ref().map(parse).unwrap_or_default();
        let require_identity = settings.require_identity.as_ref().map(parse).unwrap_or_default();
        self.opaque_ports = opaque_ports;
        self.require_identity = require_identity;
        self.skip_inbound_ports = skip_inbound_ports;
        self.inbound_policy = settings.inbound_policy;
        self
    }

    /// Whether what is spoken on a port is not looked into.
    pub fn is_opaque(&self, port: u16) -> bool {
        self.served.get(&port).copied().unwrap_or_else(|| self.opaque_ports.contains(port))
    }

    /// The container ports of this name; each container may have one.
    pub fn named_ports(&self, name: &str) -> impl Iterator<Item = u16> {
        self.named_ports.iter().filter(move |(n, _)| n == name).map(|(_, port)| *port)
    }

    /// The container port of this name.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.named_ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port)
    }

    /// Whether it has run and ended.
    pub fn ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether it runs now.
    pub fn running(&self) -> bool {
        self.phase == "Running"
    }

    /// The hash of the pod template, when its owner wrote one.
    pub fn template_hash(&self) -> Option<&str> {
        self.labels.get(POD_TEMPLATE_HASH).map(String::as_str).filter(|hash| !hash.is_empty())
    }
}

/// Where a cluster has no sidecars of its own, a Job's proxy is a container like others, and goes on for ever.
fn only_proxy_left(pod: &KubePod) -> bool {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return false };
    // What would be started again has not done its work.
    let done = |exit_code: i32| match spec.restart_policy.as_deref() {
        Some("Never") => true,
        Some("OnFailure") => exit_code == 0,
        _ => false,
    };
    let ended = |name: &str| {
        let status = status.container_statuses.iter().flatten().find(|status| status.name == name);
        let end = status.and_then(|status| status.state.as_ref()?.terminated.as_ref());
        end.is_some_and(|end| done(end.exit_code))
    };
    let others = || spec.containers.iter().filter(|container| container.name != PROXY_CONTAINER);
    others().count() + 1 == spec.containers.len() && others().count() > 0 && others().all(|c| ended(&c.name))
}

fn waiting_reason(pod: &KubePod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let statuses = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let mut reasons = statuses.filter_map(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    reasons.find(|reason| !reason.is_empty()).or_else(|| status.reason.clone().filter(|reason| !reason.is_empty()))
}

fn proxy(container: &Container) -> Proxy {
    let listen = |variable: &str| -> Option<u16> {
        let env = container.env.iter().flatten().find(|env| env.name == variable)?;
        env.value.as_ref()?.parse::<SocketAddr>().ok().map(|addr| addr.port())
    };
    let admin_port = container
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref() == Some(ADMIN_PORT_NAME))
        .and_then(|port| u16::try_from(port.container_port).ok());
    Proxy {
        inbound_port: listen("LINKERD2_PROXY_INBOUND_LISTEN_ADDR").unwrap_or(INBOUND_PORT),
        admin_port: admin_port.or_else(|| listen("LINKERD2_PROXY_ADMIN_LISTEN_ADDR")).unwrap_or(ADMIN_PORT),
        control_port: listen("LINKERD2_PROXY_CONTROL_LISTEN_ADDR").unwrap_or(CONTROL_PORT),
    }
}

/// What policies are about: nothing else goes through a proxy.
fn tcp_ports(container: &Container) -> impl Iterator<Item = &ContainerPort> {
    let tcp = |port: &&ContainerPort| port.protocol.as_deref().is_none_or(|name| name.eq_ignore_ascii_case("TCP"));
    container.ports.iter().flatten().filter(tcp)
}

fn probes(containers: &[&Container]) -> BTreeMap<u16, BTreeSet<String>> {
    let mut probes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for container in containers {
        let all: [&Option<Probe>; 3] =
            [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for get in all.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref()) {
            let port = match &get.port {
                IntOrString::Int(port) => u16::try_from(*port).ok(),
                IntOrString::String(name) => tcp_ports(container)
                    .find(|port| port.name.as_ref() == Some(name))
                    .and_then(|port| u16::try_from(port.container_port).ok())
                    .or_else(|| name.parse().ok()),
            };
            // The path alone: what follows a question mark is not part of what policies compare.
            let path = get.path.as_deref().unwrap_or("/").split('?').next().unwrap_or("/");
            if let Some(port) = port {
                probes.entry(port).or_default().insert(path.to_owned());
            }
        }
    }
    probes
}
