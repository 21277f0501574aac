//! Servers and who may connect to them: what is kept of the policy resources, and what they mean for one pod.
//!
//! Everything of a policy is in the pod's own namespace, except for the authentications that it refers to. What a
//! reference does not find lets nobody in.

use super::pod::{Id, Pod};
use ipnet::IpNet;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use weft_core::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_core::kinds::{Key, Kind, Object};
use weft_core::mesh::types::{self, Reference};
use weft_core::selector::Selector;

const POLICY_GROUP: &str = "policy.linkerd.io";

/// A port of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Namespace and name.
    pub id: Id,
    /// What is spoken, as `proxyProtocol` says it; `unknown` is detected.
    pub protocol: String,
    /// Who else may connect, as `accessPolicy` says it.
    pub access: String,
    created: String,
    labels: BTreeMap<String, String>,
    /// `None` for servers of workloads outside of the cluster.
    pods: Option<Selector>,
    port: IntOrString,
}

/// A network with its exceptions.
pub type Network = (IpNet, Vec<IpNet>);

/// Who a client of the mesh is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// Anybody with an identity.
    Any,
    /// This identity.
    Name(String),
    /// Identities that end in these labels.
    Suffix(Vec<String>),
    /// A service account.
    Account(Id),
    /// Every service account of a namespace.
    Namespace(String),
}

impl Client {
    fn parse(text: &str) -> Client {
        if text == "*" {
            return Client::Any;
        }
        let parts = text.strip_prefix("*.").map(|rest| rest.split('.').map(str::to_owned).collect::<Vec<_>>());
        match parts {
            // An empty ending would be everybody's.
            Some(parts) if parts.iter().all(|part| !part.is_empty()) => Client::Suffix(parts),
            _ => Client::Name(text.to_owned()),
        }
    }
}

/// What clients must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// Nothing.
    Anyone,
    /// The mesh's TLS, with an identity or without.
    Tls,
    /// One of these identities.
    Identities(Vec<Client>),
}

/// What lets some clients in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// `ServerAuthorization` or `AuthorizationPolicy`.
    pub kind: Kind,
    /// Its name; its namespace is the pod's.
    pub name: String,
    /// Where they are; `None` is everywhere.
    pub networks: Option<Vec<Network>>,
    /// Who they are.
    pub clients: Clients,
}

/// How many requests a proxy of a server lets in, each second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Its name; its namespace is the pod's.
    pub name: String,
    /// All clients together.
    pub total: Option<u32>,
    /// Each client.
    pub identity: Option<u32>,
    /// Each of these service accounts, instead.
    pub overrides: Vec<(u32, Vec<Id>)>,
    server: String,
    created: String,
}

/// A route of servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its kind.
    pub kind: Kind,
    /// Namespace and name.
    pub id: Id,
    /// What it says.
    pub spec: RouteSpec,
    created: String,
    servers: BTreeSet<String>,
}

/// What a route says.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteSpec {
    /// Of HTTP requests.
    Http(types::HttpRouteSpec),
    /// Of gRPC calls.
    Grpc(types::GrpcRouteSpec),
}

/// What the policies say about one port of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerPolicy {
    /// The server that has the port.
    pub server: Arc<Server>,
    /// Who may connect, beside its `access`.
    pub authorizations: Vec<Authorization>,
    /// Its routes, each with who may use it beside those who may connect; the oldest first.
    pub routes: Vec<(Arc<Route>, Vec<Authorization>)>,
    /// Its limit.
    pub limit: Option<Arc<RateLimit>>,
}

/// A pod with what the policies say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodPolicy {
    /// The pod.
    pub pod: Arc<Pod>,
    /// By port, of ports that a server selects.
    pub ports: BTreeMap<u16, ServerPolicy>,
}

#[derive(Debug, PartialEq)]
struct ServerAuthorization {
    name: Option<String>,
    selector: Option<Selector>,
    networks: Option<Vec<Network>>,
    /// `None` for what nobody satisfies.
    clients: Option<Clients>,
}

#[derive(Debug, PartialEq)]
struct AuthorizationPolicy {
    target: Reference,
    required: Vec<Reference>,
}

#[derive(Debug, Default)]
struct Namespace {
    servers: BTreeMap<String, Arc<Server>>,
    server_authorizations: BTreeMap<String, ServerAuthorization>,
    policies: BTreeMap<String, AuthorizationPolicy>,
    identities: BTreeMap<String, Vec<Client>>,
    networks: BTreeMap<String, Vec<Network>>,
    limits: BTreeMap<String, Arc<RateLimit>>,
    routes: BTreeMap<(Kind, String), Arc<Route>>,
}

impl Namespace {
    fn is_empty(&self) -> bool {
        self.servers.is_empty()
            && self.server_authorizations.is_empty()
            && self.policies.is_empty()
            && self.identities.is_empty()
            && self.networks.is_empty()
            && self.limits.is_empty()
            && self.routes.is_empty()
    }
}

/// All policy resources.
#[derive(Debug, Default)]
pub(super) struct Policies {
    namespaces: HashMap<String, Namespace>,
}

impl Policies {
    /// Takes in an object. Gives the namespaces whose pods it may be about: none when it is as it was, since whoever reads
    /// everything again tells everything again.
    pub fn applied(&mut self, object: &Object) -> BTreeSet<String> {
        let key = object.key("");
        let namespace = self.namespaces.entry(key.namespace.clone()).or_default();
        let name = key.name.clone();
        let changed = match object {
            Object::Server(o) => put(&mut namespace.servers, name, Arc::new(server(&key, o))),
            Object::ServerAuthorization(o) => {
                put(&mut namespace.server_authorizations, name, server_authorization(&key, &o.spec))
            }
            Object::AuthorizationPolicy(o) => {
                let (target, required) = (o.spec.target_ref.clone(), o.spec.required_authentication_refs.clone());
                put(&mut namespace.policies, name, AuthorizationPolicy { target, required })
            }
            Object::MeshTlsAuthentication(o) => {
                put(&mut namespace.identities, name, identities(&key.namespace, &o.spec))
            }
            Object::NetworkAuthentication(o) => put(&mut namespace.networks, name, networks(&o.spec.networks)),
            Object::HttpLocalRateLimitPolicy(o) => {
                put(&mut namespace.limits, name, Arc::new(limit(&key, &o.metadata, &o.spec)))
            }
            Object::HttpRoute(o) | Object::GatewayHttpRoute(o) => {
                let parents = o.spec.parent_refs.as_deref().unwrap_or_default();
                namespace.set_route(&key, &o.metadata, parents, || RouteSpec::Http(o.spec.clone()))
            }
            Object::GrpcRoute(o) => {
                let parents = o.spec.parent_refs.as_deref().unwrap_or_default();
                namespace.set_route(&key, &o.metadata, parents, || RouteSpec::Grpc(o.spec.clone()))
            }
            _ => false,
        };
        if changed { self.touched(&key) } else { BTreeSet::new() }
    }

    /// Forgets an object. Gives the namespaces whose pods it may have been about.
    pub fn deleted(&mut self, key: &Key) -> BTreeSet<String> {
        let Some(namespace) = self.namespaces.get_mut(&key.namespace) else { return BTreeSet::new() };
        match key.kind {
            Kind::Server => drop(namespace.servers.remove(&key.name)),
            Kind::ServerAuthorization => drop(namespace.server_authorizations.remove(&key.name)),
            Kind::AuthorizationPolicy => drop(namespace.policies.remove(&key.name)),
            Kind::MeshTlsAuthentication => drop(namespace.identities.remove(&key.name)),
            Kind::NetworkAuthentication => drop(namespace.networks.remove(&key.name)),
            Kind::HttpLocalRateLimitPolicy => drop(namespace.limits.remove(&key.name)),
            _ => drop(namespace.routes.remove(&(key.kind, key.name.clone()))),
        }
        if namespace.is_empty() {
            self.namespaces.remove(&key.namespace);
        }
        self.touched(key)
    }

    /// Namespaces whose pods an object may be about.
    fn touched(&self, key: &Key) -> BTreeSet<String> {
        if !matches!(key.kind, Kind::MeshTlsAuthentication | Kind::NetworkAuthentication) {
            return BTreeSet::from([key.namespace.clone()]);
        }
        let refers = |namespace: &str, reference: &Reference| {
            reference.is(POLICY_GROUP, key.kind.as_str())
                && reference.name() == key.name
                && reference.namespace.as_deref().unwrap_or(namespace) == key.namespace
        };
        let namespaces = self.namespaces.iter().filter(|(name, namespace)| {
            namespace.policies.values().any(|policy| policy.required.iter().any(|r| refers(name, r)))
        });
        namespaces.map(|(name, _)| name.clone()).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        let count = |n: &Namespace| {
            n.servers.len()
                + n.server_authorizations.len()
                + n.policies.len()
                + n.identities.len()
                + n.networks.len()
                + n.limits.len()
                + n.routes.len()
        };
        self.namespaces.values().map(count).sum()
    }

    /// The servers of a pod by port. Of several that select a port the oldest has it, and of those of one age the first
    /// by name.
    pub fn servers(&self, pod: &Pod) -> BTreeMap<u16, Arc<Server>> {
        let mut ports = BTreeMap::new();
        let Some(namespace) = self.namespaces.get(&pod.id.namespace) else { return ports };
        for server in namespace.servers.values() {
            if !server.pods.as_ref().is_some_and(|pods| pods.matches(Some(&pod.labels))) {
                continue;
            }
            for port in server.ports(pod) {
                ports
                    .entry(port)
                    .and_modify(|other: &mut Arc<Server>| {
                        if server.age().cmp(&other.age()) == Ordering::Less {
                            *other = server.clone();
                        }
                    })
                    .or_insert_with(|| server.clone());
            }
        }
        ports
    }

    /// The ports of a pod that servers have, with whether they are opaque.
    pub fn served(&self, pod: &Pod) -> BTreeMap<u16, bool> {
        self.servers(pod).into_iter().map(|(port, server)| (port, server.protocol == "opaque")).collect()
    }

    /// What the policies say about a pod.
    pub fn of(&self, pod: &Arc<Pod>) -> PodPolicy {
        let ports = match self.namespaces.get(&pod.id.namespace) {
            Some(namespace) => {
                let servers = self.servers(pod).into_iter();
                servers.map(|(port, server)| (port, self.policy(&pod.id.namespace, namespace, server))).collect()
            }
            None => BTreeMap::new(),
        };
        PodPolicy { pod: pod.clone(), ports }
    }

    fn policy(&self, name: &str, namespace: &Namespace, server: Arc<Server>) -> ServerPolicy {
        let mut authorizations = Vec::new();
        for (authorization, saz) in &namespace.server_authorizations {
            let by_name = saz.name.as_ref() == Some(&server.id.name);
            let by_labels = saz.selector.as_ref().is_some_and(|s| s.matches(Some(&server.labels)));
            if let Some(clients) = saz.clients.as_ref().filter(|_| by_name || by_labels) {
                authorizations.push(Authorization {
                    kind: Kind::ServerAuthorization,
                    name: authorization.clone(),
                    networks: saz.networks.clone(),
                    clients: clients.clone(),
                });
            }
        }
        let of_server = |target: &Reference| {
            target.is(POLICY_GROUP, "Server") && target.name() == server.id.name
                || target.is("", "Namespace") && target.name() == name
        };
        authorizations.extend(self.policies(name, namespace, of_server));
        let mut routes: Vec<&Arc<Route>> =
            namespace.routes.values().filter(|route| route.servers.contains(&server.id.name)).collect();
        routes.sort_by(|a, b| (&a.created, &a.id.name).cmp(&(&b.created, &b.id.name)));
        let routes = routes.into_iter().map(|route| {
            let of_route = |target: &Reference| {
                target.is(route.kind.group(), route.kind.as_str()) && target.name() == route.id.name
            };
            (route.clone(), self.policies(name, namespace, of_route).collect())
        });
        let limits = namespace.limits.values().filter(|limit| limit.server == server.id.name);
        let limit = limits.min_by_key(|limit| (&limit.created, &limit.name)).cloned();
        ServerPolicy { authorizations, routes: routes.collect(), limit, server }
    }

    /// The authorization policies of a target.
    fn policies<'a>(
        &'a self,
        name: &'a str,
        namespace: &'a Namespace,
        is_target: impl Fn(&Reference) -> bool + 'a,
    ) -> impl Iterator<Item = Authorization> + 'a {
        // Targets are of the policy's own namespace.
        let here = move |policy: &AuthorizationPolicy| {
            is_target(&policy.target) && policy.target.namespace.as_deref().is_none_or(|of| of == name)
        };
        let policies = namespace.policies.iter().filter(move |(_, policy)| here(policy));
        policies.filter_map(move |(policy, spec)| {
            let (networks, clients) = self.required(name, spec)?;
            Some(Authorization { kind: Kind::AuthorizationPolicy, name: policy.clone(), networks, clients })
        })
    }

    /// What all the requirements of a policy come to; `None` when nobody can satisfy them.
    fn required(&self, here: &str, policy: &AuthorizationPolicy) -> Option<(Option<Vec<Network>>, Clients)> {
        let (mut networks, mut identities) = (None, None);
        for reference in &policy.required {
            let namespace = reference.namespace.as_deref().unwrap_or(here);
            let found = self.namespaces.get(namespace);
            if reference.is(POLICY_GROUP, "NetworkAuthentication") && networks.is_none() {
                networks = Some(found?.networks.get(reference.name())?.clone());
            } else if reference.is(POLICY_GROUP, "MeshTLSAuthentication") && identities.is_none() {
                identities = Some(found?.identities.get(reference.name())?.clone());
            } else if reference.is("", "ServiceAccount") && identities.is_none() {
                identities = Some(vec![Client::Account(Id::new(namespace, reference.name()))]);
            } else {
                // An unknown requirement, or one that comes twice: nobody is known to satisfy it.
                return None;
            }
        }
        Some((networks, identities.map_or(Clients::Anyone, Clients::Identities)))
    }
}

impl Namespace {
    fn set_route(
        &mut self,
        key: &Key,
        metadata: &ObjectMeta,
        parents: &[types::ParentReference],
        spec: impl FnOnce() -> RouteSpec,
    ) -> bool {
        // A Server has one port: what names another, or a part, is about no Server.
        let of_server = |parent: &&types::ParentReference| {
            parent.group.as_deref() == Some(POLICY_GROUP)
                && parent.port.is_none()
                && parent.section_name.is_none()
                && parent.kind.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("Server"))
                && parent.namespace.as_deref().is_none_or(|namespace| namespace == key.namespace)
        };
        let servers: BTreeSet<String> = parents.iter().filter(of_server).map(|parent| parent.name.clone()).collect();
        let place = (key.kind, key.name.clone());
        if servers.is_empty() {
            return self.routes.remove(&place).is_some();
        }
        let id = Id::new(&key.namespace, &key.name);
        let route = Route { kind: key.kind, id, spec: spec(), created: created(metadata), servers };
        put(&mut self.routes, place, Arc::new(route))
    }
}

/// Puts a value in its place. Gives whether that changed anything.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}

impl Server {
    fn age(&self) -> (&str, &str) {
        (&self.created, &self.id.name)
    }

    fn ports(&self, pod: &Pod) -> Vec<u16> {
        match &self.port {
            IntOrString::Int(port) => u16::try_from(*port).into_iter().collect(),
            IntOrString::String(name) => pod.named_ports(name).collect(),
        }
    }
}

/// When an object was made, in a form that sorts.
pub(super) fn created(metadata: &ObjectMeta) -> String {
    metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default()
}

fn server(key: &Key, server: &types::Server) -> Server {
    let spec = &server.spec;
    Server {
        id: Id::new(&key.namespace, &key.name),
        protocol: spec.proxy_protocol.clone().unwrap_or_else(|| "unknown".to_owned()),
        access: spec.access_policy.clone().unwrap_or_else(|| "deny".to_owned()),
        created: created(&server.metadata),
        labels: server.metadata.labels.clone().unwrap_or_default(),
        pods: spec.pod_selector.as_ref().and_then(|labels| selector(key, labels)),
        port: spec.port.clone(),
    }
}

/// A selector; `None` when it makes no sense, and then it selects nothing.
fn selector(key: &Key, labels: &LabelSelector) -> Option<Selector> {
    let selector = Selector::try_from(labels);
    selector.inspect_err(|error| tracing::warn!(object = %key, %error, "selects nothing")).ok()
}

fn server_authorization(key: &Key, spec: &types::ServerAuthorizationSpec) -> ServerAuthorization {
    let client = &spec.client;
    let clients = match &client.mesh_tls {
        _ if client.unauthenticated == Some(true) => Some(Clients::Anyone),
        Some(tls) if tls.unauthenticated_tls == Some(true) => Some(Clients::Tls),
        Some(tls) => {
            let names = tls.identities.iter().flatten().map(|name| Client::parse(name));
            let accounts = tls.service_accounts.iter().flatten().map(|account| {
                Client::Account(Id::new(account.namespace.as_deref().unwrap_or(&key.namespace), &account.name))
            });
            let clients: Vec<_> = names.chain(accounts).collect();
            (!clients.is_empty()).then_some(Clients::Identities(clients))
        }
        None => None,
    };
    ServerAuthorization {
        name: spec.server.name.clone(),
        selector: spec.server.selector.as_ref().and_then(|labels| selector(key, labels)),
        networks: client.networks.as_deref().filter(|networks| !networks.is_empty()).map(networks),
        clients,
    }
}

fn identities(here: &str, spec: &types::MeshTlsAuthenticationSpec) -> Vec<Client> {
    let references = spec.identity_refs.iter().flatten().filter_map(|reference| {
        let namespace = reference.namespace.as_deref().unwrap_or(here);
        if reference.is("", "ServiceAccount") {
            Some(Client::Account(Id::new(namespace, reference.name.as_deref()?)))
        } else if reference.is("", "Namespace") {
            Some(Client::Namespace(reference.name.clone().unwrap_or_else(|| here.to_owned())))
        } else {
            None
        }
    });
    spec.identities.iter().flatten().map(|name| Client::parse(name)).chain(references).collect()
}

/// Networks that can be read. One with an exception that cannot is left out: more would get in than was meant.
fn networks(list: &[types::Network]) -> Vec<Network> {
    let read = |network: &types::Network| {
        let except = network.except.iter().flatten().map(|text| types::network(text)).collect::<Option<_>>()?;
        Some((types::network(&network.cidr)?, except))
    };
    list.iter().filter_map(read).collect()
}

fn limit(key: &Key, metadata: &ObjectMeta, spec: &types::HttpLocalRateLimitPolicySpec) -> RateLimit {
    let overrides = spec.overrides.iter().flatten().map(|one| {
        let accounts = one.client_refs.iter().filter(|client| client.is("", "ServiceAccount"));
        let of = |client: &Reference| Id::new(client.namespace.as_deref().unwrap_or(&key.namespace), client.name());
        (one.requests_per_second, accounts.map(of).collect())
    });
    RateLimit {
        name: key.name.clone(),
        total: spec.total.map(|limit| limit.requests_per_second),
        identity: spec.identity.map(|limit| limit.requests_per_second),
        overrides: overrides.collect(),
        server: Some(&spec.target_ref)
            .filter(|target| target.is(POLICY_GROUP, "Server"))
            .map(Reference::name)
            .unwrap_or_default()
            .to_owned(),
        created: created(metadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Everything is told again when everything is read again.
    #[test]
    fn what_is_as_it_was_touches_nothing() {
        let reference = |kind: &str| json!({"group": POLICY_GROUP, "kind": kind, "name": "a"});
        let objects = [
            (Kind::Server, json!({"podSelector": {"matchLabels": {"app": "web"}}, "port": 80})),
            (Kind::ServerAuthorization, json!({"server": {"name": "a"}, "client": {"unauthenticated": true}})),
            (
                Kind::AuthorizationPolicy,
                json!({
                    "targetRef": reference("Server"),
                    "requiredAuthenticationRefs": [reference("MeshTLSAuthentication"), reference("NetworkAuthentication")],
                }),
            ),
            (Kind::MeshTlsAuthentication, json!({"identities": ["*.shop"]})),
            (Kind::NetworkAuthentication, json!({"networks": [{"cidr": "10.0.0.0/8"}]})),
            (
                Kind::HttpLocalRateLimitPolicy,
                json!({"targetRef": reference("Server"), "total": {"requestsPerSecond": 5}}),
            ),
            (Kind::HttpRoute, json!({"parentRefs": [reference("Server")]})),
            (Kind::GatewayHttpRoute, json!({"parentRefs": [reference("Server")]})),
            (Kind::GrpcRoute, json!({"parentRefs": [reference("Server")]})),
        ];
        let object = |(kind, spec): &(Kind, serde_json::Value)| {
            let metadata = json!({"namespace": "shop", "name": "a"});
            Object::from_value(*kind, json!({"metadata": metadata, "spec": spec})).unwrap()
        };
        let mut policies = Policies::default();
        for of in &objects {
            assert_eq!(policies.applied(&object(of)), BTreeSet::from(["shop".to_owned()]), "{}", of.0);
        }
        for of in &objects {
            assert_eq!(policies.applied(&object(of)), BTreeSet::new(), "{}", of.0);
        }
        assert_eq!(policies.len(), objects.len());
        // What changes, comes or goes still touches what it is about.
        let (kind, mut spec) = objects[0].clone();
        spec["port"] = json!(81);
        assert!(!policies.applied(&object(&(kind, spec))).is_empty());
        let key = Key::new(Kind::GrpcRoute, "shop", "a");
        assert!(!policies.deleted(&key).is_empty());
        assert!(!policies.applied(&object(&objects[8])).is_empty());
    }

    #[test]
    fn identities_and_endings() {
        assert_eq!(Client::parse("*"), Client::Any);
        assert_eq!(Client::parse("*.shop.example"), Client::Suffix(vec!["shop".into(), "example".into()]));
        // What makes no sense is nobody's name.
        for name in ["a.b", "*.", "*..b", "*a.b", ""] {
            assert_eq!(Client::parse(name), Client::Name(name.into()), "{name}");
        }
    }

    #[test]
    fn networks_that_cannot_be_read_let_nobody_in() {
        let network = |cidr: &str, except: &[&str]| types::Network {
            cidr: cidr.into(),
            except: Some(except.iter().map(|net| (*net).to_owned()).collect()),
        };
        let list = [network("10.0.0.0/8", &["10.1.0.0/16"]), network("10.0.0.0/8", &["?"]), network("?", &[])];
        assert_eq!(networks(&list), [("10.0.0.0/8".parse().unwrap(), vec!["10.1.0.0/16".parse().unwrap()])]);
        assert_eq!(networks(&[network("192.0.2.1", &[])])[0].0, "192.0.2.1/32".parse().unwrap());
    }
}
