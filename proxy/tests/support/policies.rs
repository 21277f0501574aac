//! Messages of the control plane, as a real one would send them.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use linkerd2_proxy_api::{
    destination::{self, protocol_hint, tls_identity},
    http_route, inbound, meta, net,
    outbound::{self, backend, proxy_protocol},
};

/// `default` metadata.
pub fn default_meta(name: &str) -> meta::Metadata {
    meta::Metadata { kind: Some(meta::metadata::Kind::Default(name.into())) }
}

/// Metadata of a Service.
pub fn service_meta(name: &str, namespace: &str, port: u16) -> meta::Metadata {
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "core".into(),
            kind: "Service".into(),
            name: name.into(),
            namespace: namespace.into(),
            section: String::new(),
            port: port.into(),
        })),
    }
}

fn seconds(s: u64) -> prost_types::Duration {
    Duration::from_secs(s).try_into().unwrap()
}

fn everywhere() -> Vec<inbound::Network> {
    let any =
        |net: &str| inbound::Network { net: Some(net.parse::<ipnet::IpNet>().unwrap().into()), except: Vec::new() };
    vec![any("0.0.0.0/0"), any("::/0")]
}

fn authz(permit: inbound::authn::Permit, name: &str) -> inbound::Authz {
    inbound::Authz {
        networks: everywhere(),
        authentication: Some(inbound::Authn { permit: Some(permit) }),
        labels: [("group", ""), ("kind", "default"), ("name", name)].map(|(k, v)| (k.into(), v.into())).into(),
        metadata: Some(default_meta(name)),
    }
}

/// Everybody may connect.
pub fn allow_all() -> inbound::Authz {
    authz(inbound::authn::Permit::Unauthenticated(inbound::authn::PermitUnauthenticated {}), "all-unauthenticated")
}

/// Meshed clients of these identities may connect.
pub fn allow_identities(names: &[&str]) -> inbound::Authz {
    use inbound::authn::{PermitMeshTls, permit_mesh_tls};
    let identities = names.iter().map(|n| inbound::Identity { name: (*n).into() }).collect();
    let clients = permit_mesh_tls::Clients::Identities(permit_mesh_tls::PermitClientIdentities {
        identities,
        suffixes: Vec::new(),
    });
    authz(inbound::authn::Permit::MeshTls(PermitMeshTls { clients: Some(clients) }), "some-identities")
}

/// A port with protocol detection and one route that takes everything.
pub fn server(authorizations: Vec<inbound::Authz>) -> inbound::Server {
    server_with(
        inbound::proxy_protocol::Kind::Detect(inbound::proxy_protocol::Detect {
            timeout: Some(seconds(60)),
            http_routes: vec![inbound_route()],
            http_local_rate_limit: None,
        }),
        authorizations,
    )
}

/// A port of that protocol.
pub fn server_with(kind: inbound::proxy_protocol::Kind, authorizations: Vec<inbound::Authz>) -> inbound::Server {
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(kind) }),
        server_ips: Vec::new(),
        authorizations,
        labels: [("group", ""), ("kind", "default"), ("name", "all-unauthenticated")]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
    }
}

/// A port without protocol detection.
pub fn opaque_server(authorizations: Vec<inbound::Authz>) -> inbound::Server {
    server_with(inbound::proxy_protocol::Kind::Opaque(inbound::proxy_protocol::Opaque {}), authorizations)
}

/// A route that takes everything.
pub fn inbound_route() -> inbound::HttpRoute {
    inbound::HttpRoute {
        metadata: Some(default_meta("default")),
        hosts: Vec::new(),
        authorizations: Vec::new(),
        rules: vec![inbound::http_route::Rule { matches: vec![any_path()], filters: Vec::new() }],
    }
}

/// Matches every request.
pub fn any_path() -> http_route::HttpRouteMatch {
    http_route::HttpRouteMatch {
        path: Some(http_route::PathMatch { kind: Some(http_route::path_match::Kind::Prefix("/".into())) }),
        ..http_route::HttpRouteMatch::default()
    }
}

/// An endpoint, unmeshed.
pub fn endpoint(addr: SocketAddr) -> destination::WeightedAddr {
    destination::WeightedAddr { addr: Some(addr.into()), weight: 10_000, ..destination::WeightedAddr::default() }
}

/// A meshed endpoint: identity, HTTP/2 hint and, when given, the port for transport headers.
pub fn meshed(addr: SocketAddr, identity: &str, transport_port: Option<u16>) -> destination::WeightedAddr {
    let name = || tls_identity::DnsLikeIdentity { name: identity.into() };
    destination::WeightedAddr {
        tls_identity: Some(destination::TlsIdentity {
            server_name: Some(name()),
            strategy: Some(tls_identity::Strategy::DnsLikeIdentity(name())),
        }),
        protocol_hint: Some(destination::ProtocolHint {
            protocol: Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
            opaque_transport: transport_port.map(|p| protocol_hint::OpaqueTransport { inbound_port: p.into() }),
        }),
        metric_labels: labels(&[("deployment", "web"), ("namespace", "test")]),
        ..endpoint(addr)
    }
}

/// A label map.
pub fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn queue() -> outbound::Queue {
    outbound::Queue { capacity: 100, failfast_timeout: Some(seconds(30)) }
}

/// A backend that balances over the endpoints of a path.
pub fn balance(path: &str) -> outbound::Backend {
    balance_for(path, Duration::from_secs(10))
}

/// As [`balance`], but an answer that came late, as happens on a busy machine, is soon forgotten: every endpoint gets its
/// share all the time.
pub fn balance_evenly(path: &str) -> outbound::Backend {
    balance_for(path, Duration::from_millis(100))
}

fn balance_for(path: &str, decay: Duration) -> outbound::Backend {
    use backend::{BalanceP2c, EndpointDiscovery, balance_p2c, endpoint_discovery};
    let dst = endpoint_discovery::DestinationGet { path: path.into() };
    let ewma = balance_p2c::PeakEwma {
        default_rtt: Some(Duration::from_millis(30).try_into().unwrap()),
        decay: Some(decay.try_into().unwrap()),
    };
    outbound::Backend {
        metadata: Some(service_meta(path.split('.').next().unwrap_or(path), "test", 80)),
        queue: Some(queue()),
        kind: Some(backend::Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery { kind: Some(endpoint_discovery::Kind::Dst(dst)) }),
            load: Some(balance_p2c::Load::PeakEwma(ewma)),
        })),
    }
}

/// A backend that is one endpoint.
pub fn forward(endpoint: destination::WeightedAddr) -> outbound::Backend {
    outbound::Backend {
        metadata: Some(default_meta("forward")),
        queue: Some(queue()),
        kind: Some(backend::Kind::Forward(endpoint)),
    }
}

/// One HTTP rule for everything, to one backend.
pub fn http_rule(backend: outbound::Backend) -> outbound::http_route::Rule {
    use outbound::http_route::{Distribution, RouteBackend, Rule, distribution};
    let backend = RouteBackend { backend: Some(backend), ..RouteBackend::default() };
    Rule {
        matches: vec![any_path()],
        backends: Some(Distribution {
            kind: Some(distribution::Kind::FirstAvailable(distribution::FirstAvailable { backends: vec![backend] })),
        }),
        ..Rule::default()
    }
}

/// An HTTP route of these rules, for every host.
pub fn http_route_of(rules: Vec<outbound::http_route::Rule>) -> outbound::HttpRoute {
    outbound::HttpRoute { metadata: Some(default_meta("http")), hosts: Vec::new(), rules }
}

/// An opaque route to one backend.
pub fn opaque_route_to(backend: outbound::Backend) -> outbound::OpaqueRoute {
    use outbound::opaque_route::{Distribution, RouteBackend, Rule, distribution};
    let backend = RouteBackend { backend: Some(backend), filters: Vec::new() };
    outbound::OpaqueRoute {
        metadata: Some(default_meta("opaque")),
        rules: vec![Rule {
            backends: Some(Distribution {
                kind: Some(distribution::Kind::FirstAvailable(distribution::FirstAvailable {
                    backends: vec![backend],
                })),
            }),
            filters: Vec::new(),
        }],
    }
}

/// A policy with protocol detection and one backend for everything.
pub fn detect(backend: outbound::Backend) -> outbound::OutboundPolicy {
    let http = || vec![http_route_of(vec![http_rule(backend.clone())])];
    let kind = proxy_protocol::Kind::Detect(proxy_protocol::Detect {
        timeout: Some(seconds(60)),
        opaque: Some(proxy_protocol::Opaque { routes: vec![opaque_route_to(backend.clone())] }),
        http1: Some(proxy_protocol::Http1 { routes: http(), failure_accrual: None }),
        http2: Some(proxy_protocol::Http2 { routes: http(), failure_accrual: None }),
    });
    policy(kind)
}

/// A policy without protocol detection, to one backend.
pub fn opaque(backend: outbound::Backend) -> outbound::OutboundPolicy {
    policy(proxy_protocol::Kind::Opaque(proxy_protocol::Opaque { routes: vec![opaque_route_to(backend)] }))
}

/// A policy of that protocol.
pub fn policy(kind: proxy_protocol::Kind) -> outbound::OutboundPolicy {
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol { kind: Some(kind) }),
        metadata: Some(service_meta("web", "test", 80)),
    }
}
