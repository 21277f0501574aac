//! Where traffic goes, and how.

use super::routes::{
    grpc_failure, grpc_match, host, http_failure, http_match, name, redirect, request_headers, response_headers,
};
use super::{Fields, case, duration, endpoint, exact, list, metadata, some};
use linkerd2_proxy_api::http_route::Timeouts;
use linkerd2_proxy_api::outbound::backend::balance_p2c::Load;
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::Kind as Discovery;
use linkerd2_proxy_api::outbound::backend::{BalanceP2c, Kind as BackendKind};
use linkerd2_proxy_api::outbound::failure_accrual::Kind as AccrualKind;
use linkerd2_proxy_api::outbound::proxy_protocol::{Detect, Kind};
use linkerd2_proxy_api::outbound::{
    Backend, ExponentialBackoff, FailureAccrual, GrpcRoute, HttpRoute, OpaqueRoute, OutboundPolicy, ProxyProtocol,
    TlsRoute, grpc_route, http_route, opaque_route, tls_route,
};
use linkerd2_proxy_api::tls_route::{SniMatch, sni_match};
use serde_json::{Value, json};

/// The policy of what goes to a service or an address.
pub fn policy(policy: &OutboundPolicy) -> Value {
    Fields::default()
        .put("metadata", some(&policy.metadata, metadata))
        .put("protocol", some(&policy.protocol, protocol))
        .done()
}

fn protocol(protocol: &ProxyProtocol) -> Value {
    match &protocol.kind {
        None => Value::Null,
        Some(Kind::Detect(Detect { timeout, opaque, http1, http2 })) => case(
            "detect",
            Fields::default()
                .put("timeout", some(timeout, duration))
                .put("opaque", some(opaque, |opaque| with_routes(list(&opaque.routes, opaque_route), &None)))
                .put("http1", some(http1, |http| with_routes(list(&http.routes, http_route), &http.failure_accrual)))
                .put("http2", some(http2, |http| with_routes(list(&http.routes, http_route), &http.failure_accrual)))
                .done(),
        ),
        Some(Kind::Opaque(opaque)) => case("opaque", with_routes(list(&opaque.routes, opaque_route), &None)),
        Some(Kind::Http1(http)) => case("http1", with_routes(list(&http.routes, http_route), &http.failure_accrual)),
        Some(Kind::Http2(http)) => case("http2", with_routes(list(&http.routes, http_route), &http.failure_accrual)),
        Some(Kind::Grpc(grpc)) => case("grpc", with_routes(list(&grpc.routes, grpc_route), &grpc.failure_accrual)),
        Some(Kind::Tls(tls)) => case("tls", with_routes(list(&tls.routes, tls_route), &None)),
    }
}

fn with_routes(routes: Value, accrual: &Option<FailureAccrual>) -> Value {
    Fields::default().put("routes", routes).put("failure_accrual", some(accrual, failure_accrual)).done()
}

/// Backends: the same shape in four modules of the API, which share no trait.
macro_rules! distribution {
    ($module:ident, $distribution:expr, $backend:expr) => {{
        use $module::distribution::Kind;
        let weighted = |weighted: &$module::WeightedRouteBackend| {
            let mut value = some(&weighted.backend, $backend);
            if let Value::Object(fields) = &mut value {
                fields.insert("weight".to_owned(), weighted.weight.into());
            }
            value
        };
        match &$distribution.kind {
            None => Value::Null,
            Some(Kind::Empty(_)) => case("empty", json!({})),
            Some(Kind::FirstAvailable(first)) => case("first_available", list(&first.backends, $backend)),
            Some(Kind::RandomAvailable(random)) => case("random_available", list(&random.backends, weighted)),
        }
    }};
}

fn http_route(route: &HttpRoute) -> Value {
    let backend_of = |route: &http_route::RouteBackend| {
        Fields::default()
            .put("backend", some(&route.backend, backend))
            .put("filters", list(&route.filters, http_filter))
            .done()
    };
    let retry = |retry: &http_route::Retry| {
        let conditions = some(&retry.conditions, |conditions| {
            list(&conditions.status_ranges, |range| json!({ "start": range.start, "end": range.end }))
        });
        Fields::default()
            .put("max_retries", retry.max_retries)
            .put("max_request_bytes", retry.max_request_bytes)
            .put("status_ranges", conditions)
            .put("timeout", some(&retry.timeout, duration))
            .put("backoff", some(&retry.backoff, backoff))
            .done()
    };
    let rule = |rule: &http_route::Rule| {
        Fields::default()
            .put("matches", list(&rule.matches, http_match))
            .put("filters", list(&rule.filters, http_filter))
            .put("backends", some(&rule.backends, |backends| distribution!(http_route, backends, backend_of)))
            .put("timeouts", some(&rule.timeouts, timeouts))
            .put("retry", some(&rule.retry, retry))
            .flag("allow_l5d_request_headers", rule.allow_l5d_request_headers)
            .done()
    };
    Fields::default()
        .put("metadata", some(&route.metadata, metadata))
        .put("hosts", list(&route.hosts, host))
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
        Some(Kind::ResponseHeaderModifier(filter)) => case("response_header_modifier", response_headers(filter)),
    }
}

fn grpc_route(route: &GrpcRoute) -> Value {
    let backend_of = |route: &grpc_route::RouteBackend| {
        Fields::default()
            .put("backend", some(&route.backend, backend))
            .put("filters", list(&route.filters, grpc_filter))
            .done()
    };
    let retry = |retry: &grpc_route::Retry| {
        let conditions = some(&retry.conditions, |on| {
            let all = [
                ("cancelled", on.cancelled),
                ("deadline_exceeded", on.deadine_exceeded),
                ("resource_exhausted", on.resource_exhausted),
                ("internal", on.internal),
                ("unavailable", on.unavailable),
            ];
            all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
        });
        Fields::default()
            .put("max_retries", retry.max_retries)
            .put("max_request_bytes", retry.max_request_bytes)
            .put("conditions", conditions)
            .put("timeout", some(&retry.timeout, duration))
            .put("backoff", some(&retry.backoff, backoff))
            .done()
    };
    let rule = |rule: &grpc_route::Rule| {
        Fields::default()
            .put("matches", list(&rule.matches, grpc_match))
            .put("filters", list(&rule.filters, grpc_filter))
            .put("backends", some(&rule.backends, |backends| distribution!(grpc_route, backends, backend_of)))
            .put("timeouts", some(&rule.timeouts, timeouts))
            .put("retry", some(&rule.retry, retry))
            .flag("allow_l5d_request_headers", rule.allow_l5d_request_headers)
            .done()
    };
    Fields::default()
        .put("metadata", some(&route.metadata, metadata))
        .put("hosts", list(&route.hosts, host))
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

/// Routes of connections: again the same shape in two modules.
macro_rules! connection_rule {
    ($module:ident, $rule:expr) => {{
        use $module::filter::Kind;
        let filter = |filter: &$module::Filter| match &filter.kind {
            None => Value::Null,
            Some(Kind::Invalid(invalid)) => case("invalid", invalid.message.as_str().into()),
            Some(Kind::Forbidden(_)) => case("forbidden", json!({})),
        };
        let backend_of = |route: &$module::RouteBackend| {
            Fields::default()
                .put("backend", some(&route.backend, backend))
                .put("filters", list(&route.filters, filter))
                .done()
        };
        Fields::default()
            .put("filters", list(&$rule.filters, filter))
            .put("backends", some(&$rule.backends, |backends| distribution!($module, backends, backend_of)))
            .done()
    }};
}

fn opaque_route(route: &OpaqueRoute) -> Value {
    Fields::default()
        .put("metadata", some(&route.metadata, metadata))
        .put("rules", list(&route.rules, |rule| connection_rule!(opaque_route, rule)))
        .done()
}

fn tls_route(route: &TlsRoute) -> Value {
    let sni = |sni: &SniMatch| match &sni.r#match {
        None => Value::Null,
        Some(sni_match::Match::Exact(exact)) => json!({ "exact": exact }),
        Some(sni_match::Match::Suffix(suffix)) => json!({ "suffix": name(&suffix.reverse_labels) }),
    };
    Fields::default()
        .put("metadata", some(&route.metadata, metadata))
        .put("snis", list(&route.snis, sni))
        .put("rules", list(&route.rules, |rule| connection_rule!(tls_route, rule)))
        .done()
}

fn timeouts(timeouts: &Timeouts) -> Value {
    Fields::default()
        .put("response", some(&timeouts.response, duration))
        .put("request", some(&timeouts.request, duration))
        .put("idle", some(&timeouts.idle, duration))
        .done()
}

fn backend(backend: &Backend) -> Value {
    let fields = Fields::default().put("metadata", some(&backend.metadata, metadata));
    match &backend.kind {
        None => fields,
        Some(BackendKind::Forward(addr)) => fields.put("forward", endpoint(addr)),
        Some(BackendKind::Balancer(balancer)) => fields.put("balancer", balance(balancer)),
    }
    .put(
        "queue",
        some(&backend.queue, |queue| {
            Fields::default()
                .put("capacity", queue.capacity)
                .put("failfast_timeout", some(&queue.failfast_timeout, duration))
                .done()
        }),
    )
    .done()
}

fn balance(balancer: &BalanceP2c) -> Value {
    let discovery = some(&balancer.discovery, |discovery| match &discovery.kind {
        None => Value::Null,
        Some(Discovery::Dst(dst)) => dst.path.as_str().into(),
    });
    let fields = Fields::default().put("discovery", discovery);
    match &balancer.load {
        None => fields,
        Some(Load::PeakEwma(load)) => fields.put(
            "peak_ewma",
            Fields::default()
                .put("default_rtt", some(&load.default_rtt, duration))
                .put("decay", some(&load.decay, duration))
                .done(),
        ),
        Some(Load::PenaltyPeakEwma(load)) => fields.put(
            "penalty_peak_ewma",
            Fields::default()
                .put("default_rtt", some(&load.default_rtt, duration))
                .put("decay", some(&load.decay, duration))
                .put("penalty", some(&load.penalty, duration))
                .put("max_retry_after", some(&load.max_retry_after, duration))
                .put("penalty_decay", some(&load.penalty_decay, duration))
                .done(),
        ),
    }
    .done()
}

fn failure_accrual(accrual: &FailureAccrual) -> Value {
    let fields = match &accrual.kind {
        None => Fields::default(),
        Some(AccrualKind::ConsecutiveFailures(failures)) => Fields::default().put(
            "consecutive_failures",
            Fields::default()
                .put("max_failures", failures.max_failures)
                .put("backoff", some(&failures.backoff, backoff))
                .done(),
        ),
        Some(AccrualKind::Unified(unified)) => Fields::default().put(
            "unified",
            Fields::default()
                .put("success_rate_threshold", unified.success_rate_threshold)
                .put("decay", some(&unified.decay, duration))
                .put("min_requests", unified.min_requests)
                .put("max_consecutive_failures", unified.max_consecutive_failures)
                .put("backoff", some(&unified.backoff, backoff))
                .done(),
        ),
    };
    let ejection = some(&accrual.ejection, |ejection| json!({ "min_ready_endpoints": ejection.min_ready_endpoints }));
    fields.put("ejection", ejection).done()
}

fn backoff(backoff: &ExponentialBackoff) -> Value {
    Fields::default()
        .put("min_backoff", some(&backoff.min_backoff, duration))
        .put("max_backoff", some(&backoff.max_backoff, duration))
        .put("jitter_ratio", exact(backoff.jitter_ratio))
        .flag("respect_retry_after_hint", backoff.respect_retry_after_hint)
        .done()
}
