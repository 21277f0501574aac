//! Outbound policies and profiles.

use std::{collections::HashMap, sync::Arc};

use linkerd2_proxy_api::{
    destination,
    outbound::{self as proto, backend, proxy_protocol},
};

use super::{
    Invalid, Result, backoff, duration, endpoint, grpc_match, header_change, host_match, http_match, limit, metadata,
    optional_duration, ratio, redirect, required, status, suffix_match,
};
use crate::policy::{
    AccrualKind, Backend, Distribution, FailureAccrual, Filter, HostMatch, HttpRoute, HttpRoutes, HttpRule, Load, Meta,
    OpaqueRoute, OpaqueRoutes, OutboundPolicy, OutboundProtocol, Profile, Queue, Retry, Target, Timeouts,
};

/// An OutboundPolicy message.
pub(crate) fn outbound_policy(value: proto::OutboundPolicy) -> Result<OutboundPolicy> {
    use proxy_protocol::Kind;
    let meta = metadata(value.metadata)?;
    let protocol = match required(required(value.protocol, "a protocol")?.kind, "a protocol's kind")? {
        Kind::Detect(d) => {
            let http1 = required(d.http1, "HTTP/1 routes")?;
            let http2 = required(d.http2, "HTTP/2 routes")?;
            OutboundProtocol::Detect {
                timeout: duration(required(d.timeout, "a detection timeout")?)?,
                opaque: opaque(required(d.opaque, "opaque routes")?)?,
                http1: http(http1.routes, http1.failure_accrual)?,
                http2: http(http2.routes, http2.failure_accrual)?,
            }
        }
        Kind::Opaque(o) => OutboundProtocol::Opaque(opaque(o)?),
        Kind::Http1(h) => OutboundProtocol::Http1(http(h.routes, h.failure_accrual)?),
        Kind::Http2(h) => OutboundProtocol::Http2(http(h.routes, h.failure_accrual)?),
        Kind::Grpc(g) => OutboundProtocol::Grpc(grpc(g)?),
        Kind::Tls(t) => OutboundProtocol::Tls(tls(t)?),
    };
    Ok(OutboundPolicy { meta, protocol })
}

/// The four kinds of route each have their own messages of the same shape.
macro_rules! distribution {
    ($name:ident, $module:ident, $filter:expr) => {
        fn $name(value: Option<proto::$module::Distribution>) -> Result<Distribution> {
            use proto::$module::distribution::Kind;
            let one = |b: proto::$module::RouteBackend| -> Result<Arc<Backend>> {
                let filters = b.filters.into_iter().map($filter).collect::<Result<Vec<_>>>()?;
                Ok(Arc::new(single_backend(required(b.backend, "a backend")?, filters)?))
            };
            match required(required(value, "backends")?.kind, "the kind of backends")? {
                Kind::Empty(_) => Ok(Distribution::Empty),
                Kind::FirstAvailable(f) => {
                    Ok(Distribution::First(f.backends.into_iter().map(one).collect::<Result<_>>()?))
                }
                Kind::RandomAvailable(r) => Ok(Distribution::Random(
                    r.backends
                        .into_iter()
                        .map(|w| Ok((one(required(w.backend, "a weighted backend")?)?, w.weight)))
                        .collect::<Result<_>>()?,
                )),
            }
        }
    };
}

distribution!(http_distribution, http_route, http_filter);
distribution!(grpc_distribution, grpc_route, grpc_filter);
distribution!(opaque_distribution, opaque_route, |f: proto::opaque_route::Filter| Err(Invalid::new(format!(
    "a filter of an opaque backend is not understood: {f:?}"
))));
distribution!(tls_distribution, tls_route, |f: proto::tls_route::Filter| Err(Invalid::new(format!(
    "a filter of a TLS backend is not understood: {f:?}"
))));

fn http(routes: Vec<proto::HttpRoute>, accrual: Option<proto::FailureAccrual>) -> Result<Arc<HttpRoutes>> {
    let routes = routes
        .into_iter()
        .map(|route| {
            let rules = route.rules.into_iter().map(http_rule).collect::<Result<_>>()?;
            Ok(HttpRoute { meta: metadata(route.metadata)?, hosts: hosts(route.hosts)?, rules })
        })
        .collect::<Result<_>>()?;
    Ok(Arc::new(HttpRoutes { grpc: false, accrual: accrual.map(failure_accrual).transpose()?, routes }))
}

fn grpc(value: proxy_protocol::Grpc) -> Result<Arc<HttpRoutes>> {
    let routes = value
        .routes
        .into_iter()
        .map(|route| {
            let rules = route.rules.into_iter().map(grpc_rule).collect::<Result<_>>()?;
            Ok(HttpRoute { meta: metadata(route.metadata)?, hosts: hosts(route.hosts)?, rules })
        })
        .collect::<Result<_>>()?;
    Ok(Arc::new(HttpRoutes { grpc: true, accrual: value.failure_accrual.map(failure_accrual).transpose()?, routes }))
}

fn hosts(hosts: Vec<linkerd2_proxy_api::http_route::HostMatch>) -> Result<Vec<HostMatch>> {
    hosts.into_iter().map(host_match).collect()
}

fn http_rule(rule: proto::http_route::Rule) -> Result<HttpRule> {
    let retry = match rule.retry {
        None => None,
        Some(r) => {
            let statuses = r
                .conditions
                .unwrap_or_default()
                .status_ranges
                .into_iter()
                .map(|s| Ok((status(s.start, 100..1000)?, status(s.end, 100..1000)?)))
                .collect::<Result<_>>()?;
            Some(Retry {
                max_retries: r.max_retries,
                max_request_bytes: r.max_request_bytes as usize,
                statuses,
                grpc: Vec::new(),
                timeout: limit(r.timeout)?,
                backoff: r.backoff.map(backoff).transpose()?,
            })
        }
    };
    Ok(HttpRule {
        matches: rule.matches.into_iter().map(http_match).collect::<Result<_>>()?,
        filters: rule.filters.into_iter().map(http_filter).collect::<Result<_>>()?,
        backends: http_distribution(rule.backends)?,
        timeouts: timeouts(rule.timeouts)?,
        retry,
        allow_l5d_headers: rule.allow_l5d_request_headers,
    })
}

fn grpc_rule(rule: proto::grpc_route::Rule) -> Result<HttpRule> {
    let retry = match rule.retry {
        None => None,
        Some(r) => {
            let c = r.conditions.unwrap_or_default();
            let codes = [
                (c.cancelled, 1),
                (c.deadine_exceeded, 4),
                (c.resource_exhausted, 8),
                (c.internal, 13),
                (c.unavailable, 14),
            ];
            Some(Retry {
                max_retries: r.max_retries,
                max_request_bytes: r.max_request_bytes as usize,
                statuses: Vec::new(),
                grpc: codes.into_iter().filter_map(|(on, code)| on.then_some(code)).collect(),
                timeout: limit(r.timeout)?,
                backoff: r.backoff.map(backoff).transpose()?,
            })
        }
    };
    Ok(HttpRule {
        matches: rule.matches.into_iter().map(grpc_match).collect::<Result<_>>()?,
        filters: rule.filters.into_iter().map(grpc_filter).collect::<Result<_>>()?,
        backends: grpc_distribution(rule.backends)?,
        timeouts: timeouts(rule.timeouts)?,
        retry,
        allow_l5d_headers: rule.allow_l5d_request_headers,
    })
}

fn timeouts(value: Option<linkerd2_proxy_api::http_route::Timeouts>) -> Result<Timeouts> {
    let t = value.unwrap_or_default();
    Ok(Timeouts { response: limit(t.response)?, request: limit(t.request)?, idle: limit(t.idle)? })
}

fn http_filter(filter: proto::http_route::Filter) -> Result<Filter> {
    use proto::http_route::filter::Kind;
    Ok(match required(filter.kind, "a filter")? {
        Kind::FailureInjector(f) => {
            Filter::FailHttp { status: status(f.status, 200..600)?, message: f.message.into(), ratio: ratio(f.ratio)? }
        }
        Kind::RequestHeaderModifier(m) => Filter::RequestHeaders(header_change(m.add, m.set, &m.remove)?),
        Kind::ResponseHeaderModifier(m) => Filter::ResponseHeaders(header_change(m.add, m.set, &m.remove)?),
        Kind::Redirect(r) => Filter::Redirect(redirect(r)?),
    })
}

fn grpc_filter(filter: proto::grpc_route::Filter) -> Result<Filter> {
    use proto::grpc_route::filter::Kind;
    Ok(match required(filter.kind, "a filter")? {
        Kind::FailureInjector(f) => {
            Filter::FailGrpc { code: status(f.code, 1..17)?, message: f.message.into(), ratio: ratio(f.ratio)? }
        }
        Kind::RequestHeaderModifier(m) => Filter::RequestHeaders(header_change(m.add, m.set, &m.remove)?),
    })
}

fn opaque(value: proxy_protocol::Opaque) -> Result<Arc<OpaqueRoutes>> {
    use proto::opaque_route::filter::Kind;
    let mut routes = Vec::new();
    for route in value.routes {
        let meta = metadata(route.metadata)?;
        for rule in route.rules {
            let mut refuse = None;
            for filter in rule.filters {
                refuse = Some(refusal(match required(filter.kind, "a filter")? {
                    Kind::Invalid(i) => Some(i.message),
                    Kind::Forbidden(_) => None,
                }));
            }
            let backends = opaque_distribution(rule.backends)?;
            routes.push(OpaqueRoute { meta: meta.clone(), snis: Vec::new(), refuse, backends });
        }
    }
    Ok(Arc::new(OpaqueRoutes { routes }))
}

fn tls(value: proxy_protocol::Tls) -> Result<Arc<OpaqueRoutes>> {
    use linkerd2_proxy_api::tls_route::sni_match::Match;
    use proto::tls_route::filter::Kind;
    let mut routes = Vec::new();
    for route in value.routes {
        let meta = metadata(route.metadata)?;
        let snis: Vec<HostMatch> = route
            .snis
            .into_iter()
            .map(|s| {
                Ok(match required(s.r#match, "a server name match")? {
                    Match::Exact(name) => HostMatch::Exact(name.to_ascii_lowercase()),
                    Match::Suffix(s) => suffix_match(s.reverse_labels),
                })
            })
            .collect::<Result<_>>()?;
        for rule in route.rules {
            let mut refuse = None;
            for filter in rule.filters {
                refuse = Some(refusal(match required(filter.kind, "a filter")? {
                    Kind::Invalid(i) => Some(i.message),
                    Kind::Forbidden(_) => None,
                }));
            }
            let backends = tls_distribution(rule.backends)?;
            routes.push(OpaqueRoute { meta: meta.clone(), snis: snis.clone(), refuse, backends });
        }
    }
    Ok(Arc::new(OpaqueRoutes { routes }))
}

fn refusal(invalid: Option<String>) -> Arc<str> {
    match invalid {
        Some(message) => format!("the route is invalid: {message}").into(),
        None => "the policy forbids it".into(),
    }
}

fn single_backend(value: proto::Backend, filters: Vec<Filter>) -> Result<Backend> {
    use backend::{Kind, balance_p2c, endpoint_discovery};
    let queue = match value.queue {
        None => Queue::default(),
        Some(q) => Queue {
            capacity: q.capacity as usize,
            failfast: optional_duration(q.failfast_timeout)?.unwrap_or(Queue::default().failfast),
        },
    };
    let target = match required(value.kind, "a backend's kind")? {
        Kind::Forward(addr) => Target::Forward(Arc::new(endpoint(addr, &HashMap::new())?)),
        Kind::Balancer(balancer) => {
            let discovery = required(balancer.discovery, "a balancer's discovery")?;
            let endpoint_discovery::Kind::Dst(dst) = required(discovery.kind, "a balancer's kind of discovery")?;
            if dst.path.is_empty() {
                return Err(Invalid::new("a balancer's path is empty"));
            }
            let (rtt, decay) = match required(balancer.load, "a balancer's load measure")? {
                balance_p2c::Load::PeakEwma(e) => (e.default_rtt, e.decay),
                balance_p2c::Load::PenaltyPeakEwma(e) => (e.default_rtt, e.decay),
            };
            let default = Load::default();
            let load = Load {
                default_rtt: limit(rtt)?.unwrap_or(default.default_rtt),
                decay: limit(decay)?.unwrap_or(default.decay),
            };
            Target::Balance { path: dst.path.into(), load }
        }
    };
    Ok(Backend { meta: metadata(value.metadata)?, target, queue, filters })
}

fn failure_accrual(value: proto::FailureAccrual) -> Result<FailureAccrual> {
    use proto::failure_accrual::Kind;
    let min_ready_endpoints = value.ejection.map_or(0, |e| e.min_ready_endpoints);
    let (kind, wait) = match required(value.kind, "the kind of failure accrual")? {
        Kind::ConsecutiveFailures(c) => (AccrualKind::Consecutive { max_failures: c.max_failures.max(1) }, c.backoff),
        Kind::Unified(u) => {
            if !(0.0..=1.0).contains(&u.success_rate_threshold) {
                return Err(Invalid::new("a success rate is not between 0 and 1"));
            }
            let kind = AccrualKind::Unified {
                success_rate_threshold: u.success_rate_threshold,
                decay: duration(required(u.decay, "the decay of a success rate")?)?,
                min_requests: u.min_requests,
                max_consecutive_failures: u.max_consecutive_failures,
            };
            (kind, u.backoff)
        }
    };
    Ok(FailureAccrual { kind, backoff: backoff(required(wait, "a failure accrual's back-off")?)?, min_ready_endpoints })
}

/// A DestinationProfile message, without its overrides.
pub(crate) fn profile(value: &destination::DestinationProfile) -> Result<Profile> {
    Ok(Profile {
        fully_qualified_name: value.fully_qualified_name.as_str().into(),
        opaque: value.opaque_protocol,
        endpoint: value.endpoint.clone().map(|e| endpoint(e, &HashMap::new())).transpose()?.map(Arc::new),
    })
}

/// The backends that a profile puts in the place of a policy's, if it does.
pub(crate) fn overrides(value: &destination::DestinationProfile) -> Result<Option<Distribution>> {
    if value.dst_overrides.is_empty() || value.endpoint.is_some() {
        return Ok(None);
    }
    let backends = value
        .dst_overrides
        .iter()
        .map(|dst| {
            // Linkerd writes authorities with a final dot before the port.
            let path = dst.authority.replace(".:", ":");
            if path.is_empty() {
                return Err(Invalid::new("an override's authority is empty"));
            }
            let meta = match &dst.backend_ref {
                Some(meta) => metadata(Some(meta.clone()))?,
                None => Arc::new(Meta { kind: "Service".into(), name: path.clone(), ..Meta::default() }),
            };
            let target = Target::Balance { path: path.into(), load: Load::default() };
            Ok((Arc::new(Backend { meta, target, queue: Queue::default(), filters: Vec::new() }), dst.weight))
        })
        .collect::<Result<_>>()?;
    Ok(Some(Distribution::Random(backends)))
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::{grpc_route, http_route, meta, tls_route};

    use super::*;
    use crate::policy::PathMatch;

    fn named(name: &str) -> Option<meta::Metadata> {
        Some(meta::Metadata { kind: Some(meta::metadata::Kind::Default(name.into())) })
    }

    fn policy(kind: proxy_protocol::Kind) -> Result<OutboundPolicy> {
        outbound_policy(proto::OutboundPolicy {
            protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
            metadata: named("parent"),
        })
    }

    fn http_policy(rule: proto::http_route::Rule) -> Result<HttpRule> {
        let route = proto::HttpRoute { metadata: named("route"), hosts: Vec::new(), rules: vec![rule] };
        let http = proxy_protocol::Http1 { routes: vec![route], failure_accrual: None };
        match policy(proxy_protocol::Kind::Http1(http))?.protocol {
            OutboundProtocol::Http1(routes) => Ok(routes.routes[0].rules[0].clone()),
            other => panic!("{other:?}"),
        }
    }

    fn empty() -> Option<proto::http_route::Distribution> {
        use proto::http_route::distribution;
        let kind = Some(distribution::Kind::Empty(distribution::Empty {}));
        Some(proto::http_route::Distribution { kind })
    }

    #[test]
    fn what_is_missing_is_named() {
        let nothing = outbound_policy(proto::OutboundPolicy { protocol: None, metadata: named("parent") });
        assert_eq!(nothing.unwrap_err().to_string(), "missing: a protocol");
        let detect = policy(proxy_protocol::Kind::Detect(proxy_protocol::Detect::default()));
        assert_eq!(detect.unwrap_err().to_string(), "missing: HTTP/1 routes");
        let rule = http_policy(proto::http_route::Rule::default());
        assert_eq!(rule.unwrap_err().to_string(), "missing: backends");
    }

    #[test]
    fn filters_that_cannot_be_meant_are_refused() {
        let with = |kind| {
            let filters = vec![proto::http_route::Filter { kind }];
            http_policy(proto::http_route::Rule { filters, backends: empty(), ..proto::http_route::Rule::default() })
        };
        use proto::http_route::filter::Kind;
        let fail = |status, denominator| {
            let ratio = Some(http_route::Ratio { numerator: 1, denominator });
            Some(Kind::FailureInjector(http_route::HttpFailureInjector { status, message: "no".into(), ratio }))
        };
        assert!(with(fail(503, 10)).is_ok());
        assert!(with(fail(99, 10)).is_err());
        assert!(with(fail(503, 0)).is_err());
        assert!(with(None).is_err(), "a filter of a newer version is not left out");
        let header = |name: &str, value: &[u8]| {
            let header = linkerd2_proxy_api::http_types::headers::Header { name: name.into(), value: value.to_vec() };
            let add = Some(linkerd2_proxy_api::http_types::Headers { headers: vec![header] });
            Some(Kind::RequestHeaderModifier(http_route::RequestHeaderModifier { add, set: None, remove: Vec::new() }))
        };
        let change = with(header("X-A", b"1")).unwrap();
        let Filter::RequestHeaders(change) = &change.filters[0] else { panic!() };
        assert_eq!(change.add, [(b"x-a".to_vec(), b"1".to_vec())]);
        assert!(with(header("x\r\ny", b"1")).is_err() && with(header("x", b"1\r\ny: 2")).is_err());
    }

    #[test]
    fn grpc_methods_become_paths() {
        let path = |service: &str, method: &str| {
            let rpc = grpc_route::GrpcRpcMatch { service: service.into(), method: method.into() };
            grpc_match(grpc_route::GrpcRouteMatch { rpc: Some(rpc), headers: Vec::new() }).unwrap().path
        };
        assert_eq!(path("a.B", "C"), Some(PathMatch::Exact("/a.B/C".into())));
        assert_eq!(path("a.B", ""), Some(PathMatch::Prefix("/a.B".into())));
        assert_eq!(path("", ""), None);
        let Some(PathMatch::Regex(any)) = path("", "C.D") else { panic!() };
        assert!(any.is_match(b"/x.Y/C.D") && !any.is_match(b"/x.Y/CxD"));
    }

    #[test]
    fn tls_routes_match_server_names() {
        use linkerd2_proxy_api::tls_route::sni_match::{Match, Suffix};
        use proto::tls_route::{Distribution as D, Rule, distribution};
        let route = |name: &str, r#match| proto::TlsRoute {
            metadata: named(name),
            snis: vec![tls_route::SniMatch { r#match: Some(r#match) }],
            rules: vec![Rule {
                backends: Some(D { kind: Some(distribution::Kind::Empty(distribution::Empty {})) }),
                filters: Vec::new(),
            }],
        };
        let labels = ["com", "example"].map(String::from).to_vec();
        let routes = vec![
            route("suffix", Match::Suffix(Suffix { reverse_labels: labels })),
            route("exact", Match::Exact("a.example.com".into())),
        ];
        let OutboundProtocol::Tls(routes) =
            policy(proxy_protocol::Kind::Tls(proxy_protocol::Tls { routes })).unwrap().protocol
        else {
            panic!()
        };
        let found = |sni| routes.find(Some(sni)).map(|r| r.meta.name.as_str());
        assert_eq!(found("a.example.com"), Some("exact"));
        assert_eq!(found("b.example.com"), Some("suffix"));
        assert_eq!(found("example.org"), None);
        assert!(routes.find(None).is_none());
    }

    #[test]
    fn overrides_name_services() {
        let dst = |authority: &str, weight| destination::WeightedDst {
            authority: authority.into(),
            weight,
            backend_ref: None,
        };
        let mut profile = destination::DestinationProfile {
            dst_overrides: vec![dst("a.ns.svc.cluster.local.:80", 1), dst("b.ns.svc.cluster.local:80", 9)],
            ..destination::DestinationProfile::default()
        };
        let Some(Distribution::Random(backends)) = overrides(&profile).unwrap() else { panic!() };
        let paths: Vec<_> = backends
            .iter()
            .map(|(b, w)| match &b.target {
                Target::Balance { path, .. } => (path.to_string(), *w),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(paths, [("a.ns.svc.cluster.local:80".into(), 1), ("b.ns.svc.cluster.local:80".into(), 9)]);
        profile.dst_overrides[0].authority.clear();
        assert!(overrides(&profile).is_err());
    }
}
