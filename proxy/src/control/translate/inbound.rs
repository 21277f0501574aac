//! Inbound policies.

use std::sync::Arc;

use ipnet::IpNet;
use linkerd2_proxy_api::{
    inbound::{self as proto, proxy_protocol::Kind},
    net,
};

use super::{
    Invalid, Result, duration, grpc_match, header_change, host_match, http_match, metadata, ratio, redirect, required,
    status,
};
use crate::{
    config::{DefaultPolicy, PolicyConfig},
    policy::{
        Authentication, Authorization, AuthzLabels, Filter, InboundPolicy, InboundProtocol, InboundRoute, InboundRule,
        Meta,
    },
};

/// What holds for a port before the control plane says anything.
pub(crate) fn default_policy(config: &PolicyConfig, port: u16, detect_timeout: std::time::Duration) -> InboundPolicy {
    let name = match config.default {
        DefaultPolicy::AllUnauthenticated => "all-unauthenticated",
        DefaultPolicy::AllAuthenticated => "all-authenticated",
        DefaultPolicy::ClusterUnauthenticated => "cluster-unauthenticated",
        DefaultPolicy::ClusterAuthenticated => "cluster-authenticated",
        DefaultPolicy::Deny => "deny",
        DefaultPolicy::Audit => "audit",
    };
    let meta = Meta::default_named(name);
    let networks = match config.default {
        DefaultPolicy::ClusterUnauthenticated | DefaultPolicy::ClusterAuthenticated => config.cluster_networks.clone(),
        _ => everywhere(),
    };
    let authentication = match config.default {
        DefaultPolicy::AllUnauthenticated | DefaultPolicy::ClusterUnauthenticated | DefaultPolicy::Audit => {
            Some(Authentication::None)
        }
        DefaultPolicy::AllAuthenticated | DefaultPolicy::ClusterAuthenticated => {
            Some(Authentication::Identities { names: Vec::new(), suffixes: vec![String::new()] })
        }
        DefaultPolicy::Deny => None,
    };
    let authorizations = authentication
        .map(|authentication| Authorization {
            networks: networks.into_iter().map(|n| (n, Vec::new())).collect(),
            authentication,
            labels: Arc::new(AuthzLabels { meta: meta.clone() }),
        })
        .into_iter()
        .collect();
    let protocol = if config.opaque_ports.contains(&port) {
        InboundProtocol::Opaque
    } else {
        let route = InboundRoute {
            meta: Meta::default_named("default"),
            hosts: Vec::new(),
            authorizations: Vec::new(),
            rules: vec![InboundRule::default()],
        };
        InboundProtocol::Detect { timeout: detect_timeout, routes: Arc::new([route]) }
    };
    InboundPolicy { meta, protocol, authorizations }
}

fn everywhere() -> Vec<IpNet> {
    vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}

/// A Server message.
pub(crate) fn server(value: proto::Server) -> Result<InboundPolicy> {
    let kind = required(required(value.protocol, "a protocol")?.kind, "a protocol's kind")?;
    let limited = match &kind {
        Kind::Detect(detect) => detect.http_local_rate_limit.is_some(),
        Kind::Http1(http) => http.local_rate_limit.is_some(),
        Kind::Http2(http) => http.local_rate_limit.is_some(),
        Kind::Opaque(_) | Kind::Tls(_) | Kind::Grpc(_) => false,
    };
    if limited {
        tracing::warn!("an inbound policy has a rate limit, which this version does not enforce");
    }
    let protocol = match kind {
        Kind::Detect(detect) => InboundProtocol::Detect {
            timeout: duration(required(detect.timeout, "a detection timeout")?)?,
            routes: http_routes(detect.http_routes)?,
        },
        Kind::Opaque(_) => InboundProtocol::Opaque,
        Kind::Tls(_) => InboundProtocol::Tls,
        Kind::Http1(http) => InboundProtocol::Http1(http_routes(http.routes)?),
        Kind::Http2(http) => InboundProtocol::Http2(http_routes(http.routes)?),
        Kind::Grpc(grpc) => InboundProtocol::Grpc(grpc_routes(grpc.routes)?),
    };
    let label = |name: &str| value.labels.get(name).cloned().unwrap_or_default();
    let meta = Meta {
        group: label("group"),
        kind: Some(label("kind")).filter(|k| !k.is_empty()).unwrap_or_else(|| "default".to_owned()),
        namespace: label("namespace"),
        name: label("name"),
        ..Meta::default()
    };
    Ok(InboundPolicy { meta: Arc::new(meta), protocol, authorizations: authorizations(value.authorizations)? })
}

fn authorizations(values: Vec<proto::Authz>) -> Result<Vec<Authorization>> {
    values
        .into_iter()
        // The contract: an authorization without networks is ignored.
        .filter(|a| !a.networks.is_empty())
        .map(authorization)
        .collect()
}

fn authorization(value: proto::Authz) -> Result<Authorization> {
    use proto::authn::{Permit, permit_mesh_tls::Clients};
    let authn = required(value.authentication, "an authentication")?;
    let authentication = match required(authn.permit, "an authentication's kind")? {
        Permit::Unauthenticated(_) => Authentication::None,
        Permit::MeshTls(tls) => match required(tls.clients, "the clients of a TLS authentication")? {
            Clients::Unauthenticated(_) => Authentication::Tls,
            Clients::Identities(ids) => Authentication::Identities {
                names: ids.identities.into_iter().map(|i| i.name).collect(),
                suffixes: ids.suffixes.into_iter().map(|s| s.parts.join(".")).collect(),
            },
        },
    };
    let meta = match value.metadata {
        Some(meta) => metadata(Some(meta))?,
        None => {
            let label = |name: &str| value.labels.get(name).cloned().unwrap_or_default();
            Arc::new(Meta { group: label("group"), kind: label("kind"), name: label("name"), ..Meta::default() })
        }
    };
    let networks = value
        .networks
        .into_iter()
        .map(|n| {
            let except = n.except.into_iter().map(network).collect::<Result<_>>()?;
            Ok((network(required(n.net, "a network")?)?, except))
        })
        .collect::<Result<_>>()?;
    Ok(Authorization { networks, authentication, labels: Arc::new(AuthzLabels { meta }) })
}

fn network(value: net::IpNetwork) -> Result<IpNet> {
    value.try_into().map_err(|e| Invalid::new(format!("a network is wrong: {e}")))
}

fn http_routes(routes: Vec<proto::HttpRoute>) -> Result<Arc<[InboundRoute]>> {
    use proto::http_route::filter::Kind;
    let filter = |f: proto::http_route::Filter| {
        Ok(match required(f.kind, "a filter")? {
            Kind::FailureInjector(f) => Filter::FailHttp {
                status: status(f.status, 200..600)?,
                message: f.message.into(),
                ratio: ratio(f.ratio)?,
            },
            Kind::RequestHeaderModifier(m) => Filter::RequestHeaders(header_change(m.add, m.set, &m.remove)?),
            Kind::Redirect(r) => Filter::Redirect(redirect(r)?),
        })
    };
    routes
        .into_iter()
        .map(|route| {
            let rules = route
                .rules
                .into_iter()
                .map(|rule| {
                    Ok(InboundRule {
                        matches: rule.matches.into_iter().map(http_match).collect::<Result<_>>()?,
                        filters: rule.filters.into_iter().map(filter).collect::<Result<_>>()?,
                    })
                })
                .collect::<Result<_>>()?;
            Ok(InboundRoute {
                meta: metadata(route.metadata)?,
                hosts: route.hosts.into_iter().map(host_match).collect::<Result<_>>()?,
                authorizations: authorizations(route.authorizations)?,
                rules,
            })
        })
        .collect()
}

fn grpc_routes(routes: Vec<proto::GrpcRoute>) -> Result<Arc<[InboundRoute]>> {
    use proto::grpc_route::filter::Kind;
    let filter = |f: proto::grpc_route::Filter| {
        Ok(match required(f.kind, "a filter")? {
            Kind::FailureInjector(f) => {
                Filter::FailGrpc { code: status(f.code, 1..17)?, message: f.message.into(), ratio: ratio(f.ratio)? }
            }
            Kind::RequestHeaderModifier(m) => Filter::RequestHeaders(header_change(m.add, m.set, &m.remove)?),
        })
    };
    routes
        .into_iter()
        .map(|route| {
            let rules = route
                .rules
                .into_iter()
                .map(|rule| {
                    Ok(InboundRule {
                        matches: rule.matches.into_iter().map(grpc_match).collect::<Result<_>>()?,
                        filters: rule.filters.into_iter().map(filter).collect::<Result<_>>()?,
                    })
                })
                .collect::<Result<_>>()?;
            Ok(InboundRoute {
                meta: metadata(route.metadata)?,
                hosts: route.hosts.into_iter().map(host_match).collect::<Result<_>>()?,
                authorizations: authorizations(route.authorizations)?,
                rules,
            })
        })
        .collect()
}
