//! The answer about one port of a pod: of the Server that has the port, else of the defaults.

use super::route::{grpc_rules, hosts, http_rules};
use super::{default_meta, policy_meta};
use crate::destination::endpoint::Mesh;
use crate::duration::millis;
use crate::index::pod::{Id, Pod};
use crate::index::policy::{Authorization, Client, Clients, PodPolicy, RateLimit, Route, RouteSpec, ServerPolicy};
use ipnet::IpNet;
use linkerd2_proxy_api::grpc_route::GrpcRouteMatch;
use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch, path_match};
use linkerd2_proxy_api::http_types::{HttpMethod, http_method};
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::{Clients as TlsClients, PermitClientIdentities};
use linkerd2_proxy_api::inbound::authn::{Permit, PermitMeshTls, PermitUnauthenticated};
use linkerd2_proxy_api::inbound::http_local_rate_limit::r#override::ClientIdentities;
use linkerd2_proxy_api::inbound::http_local_rate_limit::{Limit, Override};
use linkerd2_proxy_api::inbound::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
use linkerd2_proxy_api::inbound::{
    Authn, Authz, GrpcRoute, HttpLocalRateLimit, HttpRoute, Identity, IdentitySuffix, Network, ProxyProtocol, Server,
    grpc_route, http_route,
};
use linkerd2_proxy_api::meta::Metadata;
use std::collections::HashMap;
use std::sync::Arc;
use weft_core::kinds;
use weft_core::names;

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
    /// Who the control plane is, which is part of every identity.
    pub mesh: Arc<Mesh>,
    /// What counts as the cluster.
    pub cluster_networks: Vec<IpNet>,
    /// The identity of the component that scrapes the proxies: no policy shuts it out of their admin ports.
    pub scraper: String,
}

impl DefaultPolicy {
    /// The policy of this name. One that is not known denies: somebody wanted a restriction and mistyped it, and letting
    /// everyone in would be the wrong guess.
    fn named(name: &str, of: &Id) -> DefaultPolicy {
        DefaultPolicy::parse(name).unwrap_or_else(|| {
            tracing::warn!(%of, policy = name, "unknown inbound policy; denying");
            DefaultPolicy::Deny
        })
    }

    /// The same, for clients with an identity only.
    fn with_identity(self) -> DefaultPolicy {
        match self {
            DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => DefaultPolicy::AllAuthenticated,
            DefaultPolicy::ClusterUnauthenticated => DefaultPolicy::ClusterAuthenticated,
            other => other,
        }
    }
}

/// The policy of a port of a pod.
pub fn server(policy: &PodPolicy, port: u16, rules: &Rules) -> Server {
    let pod = &policy.pod;
    let (protocol, mut authorizations, labels) = match policy.ports.get(&port) {
        Some(server) => of_server(pod, port, server, rules),
        None => of_defaults(pod, port, rules),
    };
    authorizations.extend((port == names::ADMIN_PORT).then(|| scraping(&rules.scraper)));
    Server {
        protocol: Some(ProxyProtocol { kind: Some(protocol) }),
        server_ips: pod.ips.iter().map(|ip| (*ip).into()).collect(),
        authorizations,
        labels,
    }
}

type Answer = (Kind, Vec<Authz>, HashMap<String, String>);

fn of_defaults(pod: &Pod, port: u16, rules: &Rules) -> Answer {
    let named = pod.inbound_policy.as_deref().map(|name| DefaultPolicy::named(name, &pod.id));
    let mut policy = named.unwrap_or(DefaultPolicy::AllUnauthenticated);
    if pod.require_identity.contains(port) {
        policy = policy.with_identity();
    }
    let protocol = if pod.is_opaque(port) {
        Kind::Opaque(Opaque {})
    } else {
        let http_routes = probes(pod, port).into_iter().chain([default_route()]).collect();
        Kind::Detect(Detect { timeout: Some(DETECT_TIMEOUT), http_routes, http_local_rate_limit: None })
    };
    (
        protocol,
        authorization(policy, &rules.cluster_networks).into_iter().collect(),
        labels("", "default", policy.name()),
    )
}

fn of_server(pod: &Pod, port: u16, policy: &ServerPolicy, rules: &Rules) -> Answer {
    let server = &policy.server;
    let http = || {
        let mut routes: Vec<HttpRoute> =
            policy.routes.iter().filter_map(|(route, who)| http_of(route, who, &rules.mesh)).collect();
        // A Server with routes says itself what may be asked, the kubelet included.
        if routes.is_empty() {
            routes.extend(probes(pod, port).into_iter().chain([default_route()]));
        }
        routes
    };
    let limit = || policy.limit.as_deref().map(|limit| rate_limit(limit, &rules.mesh));
    let protocol = match server.protocol.as_str() {
        "opaque" => Kind::Opaque(Opaque {}),
        "TLS" => Kind::Tls(Tls {}),
        "HTTP/1" => Kind::Http1(Http1 { routes: http(), local_rate_limit: limit() }),
        "HTTP/2" => Kind::Http2(Http2 { routes: http(), local_rate_limit: limit() }),
        "gRPC" => {
            let mut routes: Vec<GrpcRoute> =
                policy.routes.iter().filter_map(|(route, who)| grpc_of(route, who, &rules.mesh)).collect();
            if routes.is_empty() {
                routes.push(default_grpc_route());
            }
            Kind::Grpc(Grpc { routes })
        }
        _ => {
            Kind::Detect(Detect { timeout: Some(DETECT_TIMEOUT), http_routes: http(), http_local_rate_limit: limit() })
        }
    };
    let access = DefaultPolicy::named(&server.access, &server.id);
    let mut authorizations = authorizations(&policy.authorizations, &rules.mesh);
    authorizations.extend(authorization(access, &rules.cluster_networks));
    (protocol, authorizations, labels("policy.linkerd.io", "server", &server.id.name))
}

fn http_of(route: &Arc<Route>, who: &[Authorization], mesh: &Mesh) -> Option<HttpRoute> {
    let RouteSpec::Http(spec) = &route.spec else { return None };
    Some(HttpRoute {
        metadata: Some(route_meta(route)),
        hosts: hosts(spec.hostnames.as_deref()),
        authorizations: authorizations(who, mesh),
        rules: http_rules(spec)
            .map(|(rule, matches)| http_route::Rule {
                matches,
                filters: rule.filters.iter().flatten().filter_map(super::route::inbound_http_filter).collect(),
            })
            .collect(),
    })
}

fn grpc_of(route: &Arc<Route>, who: &[Authorization], mesh: &Mesh) -> Option<GrpcRoute> {
    let RouteSpec::Grpc(spec) = &route.spec else { return None };
    Some(GrpcRoute {
        metadata: Some(route_meta(route)),
        hosts: hosts(spec.hostnames.as_deref()),
        authorizations: authorizations(who, mesh),
        rules: grpc_rules(spec)
            .map(|(rule, matches)| grpc_route::Rule {
                matches,
                filters: rule.filters.iter().flatten().filter_map(super::route::inbound_grpc_filter).collect(),
            })
            .collect(),
    })
}

fn route_meta(route: &Route) -> Metadata {
    policy_meta(route.kind.group(), route.kind.as_str(), &route.id.name)
}

fn rate_limit(limit: &RateLimit, mesh: &Mesh) -> HttpLocalRateLimit {
    let rate = |rate: u32| Limit { requests_per_second: rate };
    let overrides = limit.overrides.iter().map(|(per_second, accounts)| Override {
        limit: Some(rate(*per_second)),
        clients: Some(ClientIdentities {
            identities: accounts.iter().map(|account| Identity { name: identity(account, mesh) }).collect(),
        }),
    });
    HttpLocalRateLimit {
        metadata: Some(policy_meta("policy.linkerd.io", "httplocalratelimitpolicy", &limit.name)),
        total: limit.total.map(rate),
        identity: limit.identity.map(rate),
        overrides: overrides.collect(),
    }
}

fn authorizations(list: &[Authorization], mesh: &Mesh) -> Vec<Authz> {
    list.iter().filter_map(|authorization| of_resource(authorization, mesh)).collect()
}

/// `None` for one that lets nobody in: without networks or identities it could be taken for the opposite.
fn of_resource(authorization: &Authorization, mesh: &Mesh) -> Option<Authz> {
    let networks = match &authorization.networks {
        None => all_networks(),
        Some(networks) => networks
            .iter()
            .map(|(net, except)| Network {
                net: Some((*net).into()),
                except: except.iter().map(|net| (*net).into()).collect(),
            })
            .collect(),
    };
    let permit = match &authorization.clients {
        Clients::Anyone => Permit::Unauthenticated(PermitUnauthenticated {}),
        Clients::Tls => {
            Permit::MeshTls(PermitMeshTls { clients: Some(TlsClients::Unauthenticated(PermitUnauthenticated {})) })
        }
        Clients::Identities(clients) if clients.is_empty() => return None,
        Clients::Identities(clients) => {
            let mut permitted = PermitClientIdentities::default();
            for client in clients {
                let mut suffix = |parts: Vec<String>| permitted.suffixes.push(IdentitySuffix { parts });
                match client {
                    Client::Any => suffix(Vec::new()),
                    Client::Suffix(parts) => suffix(parts.clone()),
                    // Every name ends like that of an account, which only its beginning tells from others.
                    Client::Namespace(namespace) => {
                        let any = identity(&Id::new(namespace, "any"), mesh);
                        suffix(any.split('.').skip(1).map(str::to_owned).collect());
                    }
                    Client::Name(name) => permitted.identities.push(Identity { name: name.clone() }),
                    Client::Account(account) => {
                        permitted.identities.push(Identity { name: identity(account, mesh) });
                    }
                }
            }
            Permit::MeshTls(PermitMeshTls { clients: Some(TlsClients::Identities(permitted)) })
        }
    };
    let kind = match authorization.kind {
        kinds::Kind::ServerAuthorization => "serverauthorization",
        _ => "authorizationpolicy",
    };
    (!networks.is_empty()).then(|| Authz {
        networks,
        authentication: Some(Authn { permit: Some(permit) }),
        labels: labels("policy.linkerd.io", kind, &authorization.name),
        metadata: Some(policy_meta("policy.linkerd.io", kind, &authorization.name)),
    })
}

fn identity(account: &Id, mesh: &Mesh) -> String {
    names::identity(&account.name, &account.namespace, &mesh.controller_namespace, &mesh.trust_domain)
}

fn authorization(policy: DefaultPolicy, cluster_networks: &[IpNet]) -> Option<Authz> {
    let unauthenticated = || Permit::Unauthenticated(PermitUnauthenticated {});
    let authenticated = || {
        // The empty suffix fits every identity.
        let suffixes = vec![IdentitySuffix { parts: Vec::new() }];
        let identities = PermitClientIdentities { identities: Vec::new(), suffixes };
        Permit::MeshTls(PermitMeshTls { clients: Some(TlsClients::Identities(identities)) })
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
    let clients = TlsClients::Identities(PermitClientIdentities { identities, suffixes: Vec::new() });
    authz("scrape", all_networks(), Permit::MeshTls(PermitMeshTls { clients: Some(clients) }))
}

fn authz(name: &str, networks: Vec<Network>, permit: Permit) -> Authz {
    Authz {
        networks,
        authentication: Some(Authn { permit: Some(permit) }),
        labels: labels("", "default", name),
        metadata: Some(default_meta(name)),
    }
}

fn labels(group: &str, kind: &str, name: &str) -> HashMap<String, String> {
    [("group", group), ("kind", kind), ("name", name)].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
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

/// Everything goes; the server's authorizations decide.
fn default_grpc_route() -> GrpcRoute {
    let rule = grpc_route::Rule { matches: vec![GrpcRouteMatch::default()], filters: Vec::new() };
    GrpcRoute { metadata: Some(default_meta("default")), rules: vec![rule], ..Default::default() }
}

/// The kubelet has no mesh identity: what it probes stays open to it where no route says otherwise.
fn probes(pod: &Pod, port: u16) -> Option<HttpRoute> {
    let get = HttpMethod { r#type: Some(http_method::Type::Registered(http_method::Registered::Get.into())) };
    let found = |p: &String| HttpRouteMatch { method: Some(get.clone()), ..path(path_match::Kind::Exact(p.clone())) };
    let matches = pod.probes.get(&port)?.iter().map(found).collect();
    Some(HttpRoute {
        metadata: Some(default_meta("probe")),
        authorizations: vec![authz("probe", all_networks(), Permit::Unauthenticated(PermitUnauthenticated {}))],
        rules: vec![http_route::Rule { matches, filters: Vec::new() }],
        ..Default::default()
    })
}

fn path(kind: path_match::Kind) -> HttpRouteMatch {
    HttpRouteMatch { path: Some(PathMatch { kind: Some(kind) }), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_names() {
        assert_eq!(DefaultPolicy::parse(" deny "), Some(DefaultPolicy::Deny));
        assert_eq!(DefaultPolicy::parse("cluster-authenticated"), Some(DefaultPolicy::ClusterAuthenticated));
        assert_eq!(DefaultPolicy::parse("audit"), Some(DefaultPolicy::Audit));
        assert_eq!(DefaultPolicy::parse("everyone"), None);
        assert!(authorization(DefaultPolicy::Deny, &[]).is_none());
    }
}
