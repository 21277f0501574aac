//! `InboundServerPolicies`: who may connect to a port of a pod, and what is spoken there.

use super::{default_meta, millis};
use crate::drain::Drain;
use crate::grpc::{Changed, Messages, Method, Next, watched};
use crate::index::Index;
use crate::index::pod::{Id, Pod};
use crate::telemetry::Telemetry;
use ipnet::IpNet;
use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch, path_match};
use linkerd2_proxy_api::http_types::{HttpMethod, http_method};
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
use linkerd2_proxy_api::inbound::authn::{Permit, PermitMeshTls, PermitUnauthenticated};
use linkerd2_proxy_api::inbound::inbound_server_policies_server::InboundServerPolicies;
use linkerd2_proxy_api::inbound::proxy_protocol::{Detect, Kind, Opaque};
use linkerd2_proxy_api::inbound::{
    Authn, Authz, HttpRoute, Identity, IdentitySuffix, Network, PortSpec, ProxyProtocol, Server as InboundServer,
    http_route,
};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tonic::{Request, Response, Status};
use weft_core::names;

const SERVICE: &str = "io.linkerd.proxy.inbound.InboundServerPolicies";
const DETECT_TIMEOUT: prost_types::Duration = millis(10_000);

/// Who may connect when no policy says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Everyone.
    AllUnauthenticated,
    /// Everyone with a mesh identity.
    AllAuthenticated,
    /// Everyone within the cluster's networks.
    ClusterUnauthenticated,
    /// Everyone with a mesh identity within the cluster's networks.
    ClusterAuthenticated,
    /// Everyone, under a name that shows in the metrics: a step on the way to a restriction.
    Audit,
    /// Nobody.
    Deny,
}

impl DefaultPolicy {
    /// The name, as annotations and metric labels have it.
    pub fn name(self) -> &'static str {
        match self {
            DefaultPolicy::AllUnauthenticated => "all-unauthenticated",
            DefaultPolicy::AllAuthenticated => "all-authenticated",
            DefaultPolicy::ClusterUnauthenticated => "cluster-unauthenticated",
            DefaultPolicy::ClusterAuthenticated => "cluster-authenticated",
            DefaultPolicy::Audit => "audit",
            DefaultPolicy::Deny => "deny",
        }
    }

    /// The policy of this name.
    pub fn parse(name: &str) -> Option<DefaultPolicy> {
        use DefaultPolicy::{
            AllAuthenticated, AllUnauthenticated, Audit, ClusterAuthenticated, ClusterUnauthenticated, Deny,
        };
        [AllUnauthenticated, AllAuthenticated, ClusterUnauthenticated, ClusterAuthenticated, Audit, Deny]
            .into_iter()
            .find(|policy| policy.name() == name.trim())
    }
}

/// What holds for every pod.
#[derive(Debug)]
pub struct Rules {
    /// What counts as the cluster.
    pub cluster_networks: Vec<IpNet>,
    /// The identity of the component that scrapes the proxies: no policy shuts it out of their admin ports.
    pub scraper: String,
}

/// The service.
#[derive(Debug, Clone)]
pub struct Server {
    index: Index,
    rules: Arc<Rules>,
    drain: Drain,
    get: Method,
    watch: Method,
}

impl Server {
    /// A service that answers from this index.
    pub fn new(index: Index, rules: Arc<Rules>, drain: Drain, telemetry: &Telemetry) -> Server {
        Server {
            index,
            rules,
            drain,
            get: Method::new(telemetry, SERVICE, "GetPort"),
            watch: Method::new(telemetry, SERVICE, "WatchPort"),
        }
    }

    async fn start_watch(&self, spec: PortSpec) -> Result<Messages<InboundServer>, Status> {
        let (id, port) = parse(&spec)?;
        self.index.synced().await;
        let rx = self.index.watch_pod(&id);
        if rx.borrow().is_none() {
            return Err(Status::not_found(format!("there is no pod {id}")));
        }
        tracing::debug!(%id, port, "watch inbound policy");
        let mut changed = Changed::default();
        let rules = self.rules.clone();
        Ok(watched(rx, self.drain.clone(), &self.watch, move |pod| match pod {
            Some(pod) => Next::Send(changed.filter(server(&pod, port, &rules))),
            None => Next::End(Status::not_found(format!("pod {id} is gone"))),
        }))
    }

    async fn get_now(&self, spec: PortSpec) -> Result<InboundServer, Status> {
        let (id, port) = parse(&spec)?;
        self.index.synced().await;
        let pod = self.index.pod(&id).ok_or_else(|| Status::not_found(format!("there is no pod {id}")))?;
        Ok(server(&pod, port, &self.rules))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Server {
    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<InboundServer>, Status> {
        let result = self.get_now(request.into_inner()).await;
        self.get.ended(result)
    }

    type WatchPortStream = Messages<InboundServer>;

    async fn watch_port(&self, request: Request<PortSpec>) -> Result<Response<Self::WatchPortStream>, Status> {
        match self.start_watch(request.into_inner()).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(status) => self.watch.ended(Err(status)),
        }
    }
}

/// Who asks, as the proxy's configuration says it: JSON `{"ns","pod"}`, or `ns:pod`.
///
/// # Errors
/// `InvalidArgument`, saying what is wrong.
pub fn parse_workload(text: &str) -> Result<Id, Status> {
    #[derive(Deserialize)]
    struct Workload {
        ns: String,
        pod: String,
    }
    let refuse = |reason: &str| Status::invalid_argument(format!("workload {text:?}: {reason}"));
    let id = if text.starts_with('{') {
        let workload: Workload = serde_json::from_str(text).map_err(|e| refuse(&e.to_string()))?;
        Id { namespace: workload.ns, name: workload.pod }
    } else {
        let (namespace, pod) = text.split_once(':').ok_or_else(|| refuse("neither JSON nor <namespace>:<pod>"))?;
        Id::new(namespace, pod)
    };
    if id.namespace.is_empty() || id.name.is_empty() {
        return Err(refuse("namespace or pod is empty"));
    }
    Ok(id)
}

fn parse(spec: &PortSpec) -> Result<(Id, u16), Status> {
    let port = u16::try_from(spec.port).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Status::invalid_argument(format!("{} is no port", spec.port)))?;
    Ok((parse_workload(&spec.workload)?, port))
}

/// The policy of a port of a pod.
pub fn server(pod: &Pod, port: u16, rules: &Rules) -> InboundServer {
    let policy = match pod.inbound_policy.as_deref() {
        None => DefaultPolicy::AllUnauthenticated,
        Some(name) => DefaultPolicy::parse(name).unwrap_or_else(|| {
            // Somebody wanted a restriction and mistyped it: letting everyone in would be the wrong guess.
            tracing::warn!(pod = %pod.id, policy = name, "unknown default inbound policy; denying");
            DefaultPolicy::Deny
        }),
    };
    let protocol = if pod.opaque_ports.contains(port) {
        Kind::Opaque(Opaque {})
    } else {
        let probes = pod.probes.get(&port);
        let http_routes = probes.map(probe_route).into_iter().chain([default_route()]).collect();
        Kind::Detect(Detect { timeout: Some(DETECT_TIMEOUT), http_routes, http_local_rate_limit: None })
    };
    InboundServer {
        protocol: Some(ProxyProtocol { kind: Some(protocol) }),
        server_ips: pod.ips.iter().map(|ip| (*ip).into()).collect(),
        authorizations: authorization(policy, &rules.cluster_networks)
            .into_iter()
            .chain((port == names::ADMIN_PORT).then(|| scraping(&rules.scraper)))
            .collect(),
        labels: labels(policy.name()),
    }
}

fn authorization(policy: DefaultPolicy, cluster_networks: &[IpNet]) -> Option<Authz> {
    let unauthenticated = || Permit::Unauthenticated(PermitUnauthenticated {});
    let authenticated = || {
        // The empty suffix fits every identity.
        let suffixes = vec![IdentitySuffix { parts: Vec::new() }];
        let identities = PermitClientIdentities { identities: Vec::new(), suffixes };
        Permit::MeshTls(PermitMeshTls { clients: Some(Clients::Identities(identities)) })
    };
    let cluster = || cluster_networks.iter().map(|net| network(*net)).collect();
    let (networks, permit) = match policy {
        DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => (all_networks(), unauthenticated()),
        DefaultPolicy::AllAuthenticated => (all_networks(), authenticated()),
        DefaultPolicy::ClusterUnauthenticated => (cluster(), unauthenticated()),
        DefaultPolicy::ClusterAuthenticated => (cluster(), authenticated()),
        DefaultPolicy::Deny => return None,
    };
    Some(authz(policy.name(), networks, permit))
}

fn scraping(identity: &str) -> Authz {
    let identities = vec![Identity { name: identity.to_owned() }];
    let clients = Clients::Identities(PermitClientIdentities { identities, suffixes: Vec::new() });
    authz("scrape", all_networks(), Permit::MeshTls(PermitMeshTls { clients: Some(clients) }))
}

fn authz(name: &str, networks: Vec<Network>, permit: Permit) -> Authz {
    Authz {
        networks,
        authentication: Some(Authn { permit: Some(permit) }),
        labels: labels(name),
        metadata: Some(default_meta(name)),
    }
}

fn labels(name: &str) -> HashMap<String, String> {
    [("group", ""), ("kind", "default"), ("name", name)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

fn network(net: IpNet) -> Network {
    Network { net: Some(net.into()), except: Vec::new() }
}

fn all_networks() -> Vec<Network> {
    vec![network(IpNet::V4(ipnet::Ipv4Net::default())), network(IpNet::V6(ipnet::Ipv6Net::default()))]
}

/// Everything goes; the server's authorizations decide.
fn default_route() -> HttpRoute {
    let matches = vec![path(path_match::Kind::Prefix("/".to_owned()))];
    HttpRoute {
        metadata: Some(default_meta("default")),
        rules: vec![http_route::Rule { matches, filters: Vec::new() }],
        ..Default::default()
    }
}

/// The kubelet has no mesh identity: what it probes stays open to it under every policy.
fn probe_route(paths: &BTreeSet<String>) -> HttpRoute {
    let get = HttpMethod { r#type: Some(http_method::Type::Registered(http_method::Registered::Get.into())) };
    let matches = paths
        .iter()
        .map(|p| HttpRouteMatch { method: Some(get.clone()), ..path(path_match::Kind::Exact(p.clone())) })
        .collect();
    HttpRoute {
        metadata: Some(default_meta("probe")),
        authorizations: vec![authz("probe", all_networks(), Permit::Unauthenticated(PermitUnauthenticated {}))],
        rules: vec![http_route::Rule { matches, filters: Vec::new() }],
        ..Default::default()
    }
}

fn path(kind: path_match::Kind) -> HttpRouteMatch {
    HttpRouteMatch { path: Some(PathMatch { kind: Some(kind) }), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads() {
        let id = Some(Id::new("a", "b"));
        for text in [r#"{"ns":"a","pod":"b"}"#, r#"{"pod":"b","ns":"a","more":1}"#, "a:b"] {
            assert_eq!(parse_workload(text).ok(), id, "{text}");
        }
        for bad in ["", "a", ":b", "a:", "{", r#"{"ns":"a"}"#, r#"{"ns":"","pod":"b"}"#] {
            assert_eq!(parse_workload(bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn policies_have_names() {
        assert_eq!(DefaultPolicy::parse(" deny "), Some(DefaultPolicy::Deny));
        assert_eq!(DefaultPolicy::parse("cluster-authenticated"), Some(DefaultPolicy::ClusterAuthenticated));
        assert_eq!(DefaultPolicy::parse("audit"), Some(DefaultPolicy::Audit));
        assert_eq!(DefaultPolicy::parse("everyone"), None);
        assert!(authorization(DefaultPolicy::Deny, &[]).is_none());
    }
}
