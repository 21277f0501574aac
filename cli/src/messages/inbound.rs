//! What is spoken at a port of a pod, and who may connect.

use super::routes::{grpc_failure, grpc_match, host, http_failure, http_match, redirect, request_headers};
use super::{Fields, case, duration, ip, labels, list, metadata, network, some};
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::Clients;
use linkerd2_proxy_api::inbound::authn::{Permit, PermitMeshTls};
use linkerd2_proxy_api::inbound::http_local_rate_limit::Limit;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind;
use linkerd2_proxy_api::inbound::{
    Authz, GrpcRoute, HttpLocalRateLimit, HttpRoute, Identity, ProxyProtocol, Server, grpc_route, http_route,
};
use serde_json::{Value, json};

/// The policy of a port of a pod.
pub fn server(server: &Server) -> Value {
    Fields::default()
        .put("protocol", some(&server.protocol, protocol))
        .put("server_ips", list(&server.server_ips, |addr| ip(*addr).into()))
        .put("authorizations", list(&server.authorizations, authorization))
        .put("labels", labels(&server.labels))
        .done()
}

fn protocol(protocol: &ProxyProtocol) -> Value {
    match &protocol.kind {
        None => Value::Null,
        Some(Kind::Detect(detect)) => case(
            "detect",
            Fields::default()
                .put("timeout", some(&detect.timeout, duration))
                .put("http_routes", list(&detect.http_routes, http_route))
                .put("http_local_rate_limit", some(&detect.http_local_rate_limit, rate_limit))
                .done(),
        ),
        Some(Kind::Opaque(_)) => case("opaque", json!({})),
        Some(Kind::Tls(_)) => case("tls", json!({})),
        Some(Kind::Http1(http)) => case("http1", http_server(&http.routes, &http.local_rate_limit)),
        Some(Kind::Http2(http)) => case("http2", http_server(&http.routes, &http.local_rate_limit)),
        Some(Kind::Grpc(grpc)) => case("grpc", Fields::default().put("routes", list(&grpc.routes, grpc_route)).done()),
    }
}

fn http_server(routes: &[HttpRoute], limit: &Option<HttpLocalRateLimit>) -> Value {
    Fields::default().put("routes", list(routes, http_route)).put("local_rate_limit", some(limit, rate_limit)).done()
}

fn authorization(authorization: &Authz) -> Value {
    let networks = list(&authorization.networks, |allowed| {
        Fields::default().put("net", some(&allowed.net, network)).put("except", list(&allowed.except, network)).done()
    });
    let authentication = some(&authorization.authentication, |authn| match &authn.permit {
        None => Value::Null,
        Some(Permit::Unauthenticated(_)) => "unauthenticated".into(),
        Some(Permit::MeshTls(PermitMeshTls { clients })) => case("meshTLS", some(clients, clients_of)),
    });
    Fields::default()
        .put("networks", networks)
        .put("authentication", authentication)
        .put("labels", labels(&authorization.labels))
        .put("metadata", some(&authorization.metadata, metadata))
        .done()
}

fn clients_of(clients: &Clients) -> Value {
    match clients {
        Clients::Unauthenticated(_) => "unauthenticated".into(),
        Clients::Identities(permitted) => Fields::default()
            .put("identities", identities(&permitted.identities))
            // The empty suffix is that of every name.
            .put(
                "suffixes",
                list(&permitted.suffixes, |suffix| match suffix.parts.as_slice() {
                    [] => "*".into(),
                    parts => format!("*.{}", parts.join(".")).into(),
                }),
            )
            .done(),
    }
}

fn identities(identities: &[Identity]) -> Value {
    list(identities, |identity| identity.name.as_str().into())
}

fn http_route(route: &HttpRoute) -> Value {
    let rule = |rule: &http_route::Rule| {
        Fields::default()
            .put("matches", list(&rule.matches, http_match))
            .put("filters", list(&rule.filters, http_filter))
            .done()
    };
    Fields::default()
        .put("metadata", some(&route.metadata, metadata))
        .put("hosts", list(&route.hosts, host))
        .put("authorizations", list(&route.authorizations, authorization))
        .put("rules", list(&route.rules, rule))
        .done()
}

fn http_filter(filter: &http_route::Filter) -> Value {
    use http_route::filter::Kind;
    match &filter.kind {
        None => Value::Null,
        Some(Kind::FailureInjector(filter)) => case("failure_injector", http_failure(filter)),
        Some(Kind::RequestHeaderModifier(filter)) => case("request_header_modifier", request_headers(filter)),
        Some(Kind::Redirect(filter)) => case("redirect", redirect(filter)),
    }
}

fn grpc_route(route: &GrpcRoute) -> Value {
    let rule = |rule: &grpc_route::Rule| {
        Fields::default()
            .put("matches", list(&rule.matches, grpc_match))
            .put("filters", list(&rule.filters, grpc_filter))
            .done()
    };
    Fields::default()
        .put("metadata", some(&route.metadata, metadata))
        .put("hosts", list(&route.hosts, host))
        .put("authorizations", list(&route.authorizations, authorization))
        .put("rules", list(&route.rules, rule))
        .done()
}

fn grpc_filter(filter: &grpc_route::Filter) -> Value {
    use grpc_route::filter::Kind;
    match &filter.kind {
        None => Value::Null,
        Some(Kind::FailureInjector(filter)) => case("failure_injector", grpc_failure(filter)),
        Some(Kind::RequestHeaderModifier(filter)) => case("request_header_modifier", request_headers(filter)),
    }
}

fn rate_limit(limit: &HttpLocalRateLimit) -> Value {
    let rate = |limit: &Limit| json!({ "requests_per_second": limit.requests_per_second });
    let overrides = list(&limit.overrides, |exception| {
        Fields::default()
            .put("limit", some(&exception.limit, rate))
            .put("clients", some(&exception.clients, |clients| identities(&clients.identities)))
            .done()
    });
    Fields::default()
        .put("metadata", some(&limit.metadata, metadata))
        .put("total", some(&limit.total, rate))
        .put("identity", some(&limit.identity, rate))
        .put("overrides", overrides)
        .done()
}
