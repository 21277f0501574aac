//! What routes and annotations ask for about the traffic to a service, in the API's words.

use super::default_meta;
use super::outbound::balanced;
use super::route::{grpc_rules, hosts, http_rules, outbound_grpc_filter, outbound_http_filter};
use crate::destination::endpoint::Mesh;
use crate::duration::{self, millis};
use crate::index::pod::Id;
use crate::index::policy::RouteSpec;
use crate::index::service::Service;
use crate::index::traffic::{Route, backend};
use linkerd2_proxy_api::grpc_route::GrpcFailureInjector;
use linkerd2_proxy_api::http_route::{HttpFailureInjector, Ratio, Timeouts};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use linkerd2_proxy_api::outbound::{
    Backend, ExponentialBackoff, FailureAccrual, GrpcRoute, HttpRoute, failure_accrual, grpc_route, http_route,
};
use std::collections::BTreeMap;
use std::time::Duration;
use weft_core::mesh::types::{BackendReference, RouteTimeouts};

/// Octets of a request that are kept for another try.
const RETRY_BYTES: u32 = 64 << 10;
/// gRPC's code for what is wrong inside.
const INTERNAL: u32 = 13;

/// What the annotations of a service and of a route say; the route's win.
#[derive(Debug, Clone, Copy)]
pub(super) struct Annotations<'a> {
    service: &'a BTreeMap<String, String>,
    route: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Annotations<'a> {
    pub fn new(service: &'a Service, route: Option<&'a Route>) -> Annotations<'a> {
        Annotations { service: &service.annotations, route: route.map(|route| &route.annotations) }
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        let of_route = self.route.and_then(|annotations| annotations.get(key));
        of_route.or_else(|| self.service.get(key)).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The annotation, read; one that cannot be read counts as absent.
    fn read<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.get(key)?;
        let read = read(value);
        if read.is_none() {
            tracing::debug!(key, value, "annotation not understood");
        }
        read
    }

    fn duration(&self, key: &str) -> Option<Duration> {
        self.read(key, duration::parse)
    }

    fn timeouts(&self, rule: Option<&RouteTimeouts>, tries: bool) -> Option<Timeouts> {
        let parse = |text: Option<&String>| text.and_then(|text| duration::parse(text)).filter(|time| !time.is_zero());
        let whole = parse(rule.and_then(|timeouts| timeouts.request.as_ref()));
        // Without further tries the limit of one is the limit of all.
        let one = parse(rule.and_then(|timeouts| timeouts.backend_request.as_ref())).filter(|_| !tries);
        let request = match (whole, one) {
            (Some(whole), Some(one)) => Some(whole.min(one)),
            (whole, one) => whole.or(one),
        };
        let request = request.or_else(|| self.duration("timeout.linkerd.io/request"));
        let response = self.duration("timeout.linkerd.io/response");
        let idle = self.duration("timeout.linkerd.io/idle");
        let any = request.is_some() || response.is_some() || idle.is_some();
        any.then(|| Timeouts {
            request: request.and_then(duration::of),
            response: response.and_then(duration::of),
            idle: idle.and_then(duration::of),
        })
    }

    fn limit(&self) -> u32 {
        self.read("retry.linkerd.io/limit", |value| value.parse().ok()).unwrap_or(1)
    }

    fn retry_timeout(&self, rule: Option<&RouteTimeouts>) -> Option<prost_types::Duration> {
        let of_rule = rule.and_then(|timeouts| duration::parse(timeouts.backend_request.as_ref()?));
        of_rule.or_else(|| self.duration("retry.linkerd.io/timeout")).and_then(duration::of)
    }

    fn http_retry(&self, rule: Option<&RouteTimeouts>) -> Option<http_route::Retry> {
        let ranges = self.read("retry.linkerd.io/http", statuses)?;
        let range = |(start, end)| http_route::retry::conditions::StatusRange { start, end };
        Some(http_route::Retry {
            max_retries: self.limit(),
            max_request_bytes: RETRY_BYTES,
            conditions: Some(http_route::retry::Conditions { status_ranges: ranges.into_iter().map(range).collect() }),
            timeout: self.retry_timeout(rule),
            backoff: Some(retry_backoff()),
        })
    }

    fn grpc_retry(&self) -> Option<grpc_route::Retry> {
        let conditions = self.read("retry.linkerd.io/grpc", |value| {
            let mut conditions = grpc_route::retry::Conditions::default();
            for name in value.split(',').map(str::trim) {
                match name {
                    "cancelled" => conditions.cancelled = true,
                    "deadline-exceeded" => conditions.deadine_exceeded = true,
                    "internal" => conditions.internal = true,
                    "resource-exhausted" => conditions.resource_exhausted = true,
                    "unavailable" => conditions.unavailable = true,
                    _ => return None,
                }
            }
            Some(conditions)
        })?;
        Some(grpc_route::Retry {
            max_retries: self.limit(),
            max_request_bytes: RETRY_BYTES,
            conditions: Some(conditions),
            timeout: self.retry_timeout(None),
            backoff: Some(retry_backoff()),
        })
    }

    /// When an endpoint of the service is left alone.
    pub fn accrual(&self) -> Option<FailureAccrual> {
        const PREFIX: &str = "balancer.linkerd.io/failure-accrual";
        self.read(PREFIX, |mode| (mode == "consecutive").then_some(()))?;
        let key = |name: &str| format!("{PREFIX}-consecutive-{name}");
        let penalty = |name: &str, default: u64| {
            let read = self.duration(&key(name)).filter(|time| duration::of(*time).is_some());
            read.unwrap_or(Duration::from_millis(default))
        };
        let (min, max) = (penalty("min-penalty", 1_000), penalty("max-penalty", 60_000));
        // No webhook sees annotations, and a proxy refuses the whole policy for bounds that make no sense.
        if min.is_zero() || min > max {
            tracing::debug!(?min, ?max, "failure accrual ignored: its penalties make no sense");
            return None;
        }
        let jitter = |value: &str| value.parse::<f32>().ok().filter(|ratio| (0.0..=100.0).contains(ratio));
        let consecutive = failure_accrual::ConsecutiveFailures {
            max_failures: self.read(&key("max-failures"), |value| value.parse().ok()).unwrap_or(7),
            backoff: Some(ExponentialBackoff {
                min_backoff: duration::of(min),
                max_backoff: duration::of(max),
                jitter_ratio: self.read(&key("jitter-ratio"), jitter).unwrap_or(0.5),
                ..Default::default()
            }),
        };
        Some(FailureAccrual {
            kind: Some(failure_accrual::Kind::ConsecutiveFailures(consecutive)),
            ..Default::default()
        })
    }

    /// Puts on a default route what the service's annotations say.
    pub fn on_default(&self, rule: &mut http_route::Rule) {
        rule.timeouts = self.timeouts(None, false);
        rule.retry = self.http_retry(None);
    }
}

fn retry_backoff() -> ExponentialBackoff {
    ExponentialBackoff {
        min_backoff: Some(millis(25)),
        max_backoff: Some(millis(250)),
        jitter_ratio: 1.0,
        ..Default::default()
    }
}

/// `5xx`, `gateway-error`, `500-504`, `404`, or several of them; both ends count.
fn statuses(text: &str) -> Option<Vec<(u32, u32)>> {
    let status = |text: &str| text.trim().parse::<u32>().ok().filter(|status| (100..=599).contains(status));
    let range = |part: &str| match part {
        "5xx" => Some((500, 599)),
        "gateway-error" => Some((502, 504)),
        part => match part.split_once('-') {
            Some((low, high)) => status(low).zip(status(high)).filter(|(low, high)| low <= high),
            None => status(part).map(|status| (status, status)),
        },
    };
    text.split(',').map(|part| range(part.trim())).collect()
}

/// A service whose traffic is routed.
pub(super) struct Parent<'a> {
    pub mesh: &'a Mesh,
    pub service: &'a Service,
    /// Where requests go that no backend is named for.
    pub backend: Backend,
}

impl Parent<'_> {
    /// A route of HTTP requests, if it is one.
    pub fn http(&self, route: &Route) -> Option<HttpRoute> {
        let RouteSpec::Http(spec) = &route.spec else { return None };
        let annotations = Annotations::new(self.service, Some(route));
        let rules = http_rules(spec).map(|(rule, matches)| {
            let timeouts = rule.timeouts.as_ref();
            let retry = annotations.http_retry(timeouts);
            http_route::Rule {
                matches,
                filters: rule.filters.iter().flatten().filter_map(outbound_http_filter).collect(),
                backends: Some(self.http_backends(route, rule.backend_refs.as_deref())),
                timeouts: annotations.timeouts(timeouts, retry.is_some()),
                retry,
                ..Default::default()
            }
        });
        Some(HttpRoute {
            metadata: Some(route_meta(route)),
            hosts: hosts(spec.hostnames.as_deref()),
            rules: rules.collect(),
        })
    }

    /// A route of gRPC calls, if it is one.
    pub fn grpc(&self, route: &Route) -> Option<GrpcRoute> {
        let RouteSpec::Grpc(spec) = &route.spec else { return None };
        let annotations = Annotations::new(self.service, Some(route));
        let rules = grpc_rules(spec).map(|(rule, matches)| grpc_route::Rule {
            matches,
            filters: rule.filters.iter().flatten().filter_map(outbound_grpc_filter).collect(),
            backends: Some(self.grpc_backends(route, rule.backend_refs.as_deref())),
            timeouts: annotations.timeouts(None, false),
            retry: annotations.grpc_retry(),
            ..Default::default()
        });
        Some(GrpcRoute {
            metadata: Some(route_meta(route)),
            hosts: hosts(spec.hostnames.as_deref()),
            rules: rules.collect(),
        })
    }

    fn http_backends(&self, route: &Route, references: Option<&[BackendReference]>) -> http_route::Distribution {
        use http_route::distribution::{Empty, FirstAvailable, Kind, RandomAvailable};
        let single = |backend| http_route::RouteBackend { backend: Some(backend), ..Default::default() };
        let kind = match references {
            None | Some([]) => Kind::FirstAvailable(FirstAvailable { backends: vec![single(self.backend.clone())] }),
            Some(references) => {
                let weighted = references.iter().filter_map(|reference| {
                    let (backend, fault) = self.lead(route, reference);
                    let own = reference.filters.iter().flatten().filter_map(outbound_http_filter);
                    let fault = fault.map(|message| {
                        let failure = HttpFailureInjector { status: 500, message, ratio: Some(always()) };
                        http_route::Filter { kind: Some(http_route::filter::Kind::FailureInjector(failure)) }
                    });
                    let backend =
                        http_route::RouteBackend { filters: fault.into_iter().chain(own).collect(), ..single(backend) };
                    let weight = reference.weight.unwrap_or(1);
                    (weight > 0).then_some(http_route::WeightedRouteBackend { backend: Some(backend), weight })
                });
                let backends: Vec<_> = weighted.collect();
                match backends.is_empty() {
                    true => Kind::Empty(Empty {}),
                    false => Kind::RandomAvailable(RandomAvailable { backends }),
                }
            }
        };
        http_route::Distribution { kind: Some(kind) }
    }

    fn grpc_backends(&self, route: &Route, references: Option<&[BackendReference]>) -> grpc_route::Distribution {
        use grpc_route::distribution::{Empty, FirstAvailable, Kind, RandomAvailable};
        let single = |backend| grpc_route::RouteBackend { backend: Some(backend), ..Default::default() };
        let kind = match references {
            None | Some([]) => Kind::FirstAvailable(FirstAvailable { backends: vec![single(self.backend.clone())] }),
            Some(references) => {
                let weighted = references.iter().filter_map(|reference| {
                    let (backend, fault) = self.lead(route, reference);
                    let own = reference.filters.iter().flatten().filter_map(outbound_grpc_filter);
                    let fault = fault.map(|message| {
                        let failure = GrpcFailureInjector { code: INTERNAL, message, ratio: Some(always()) };
                        grpc_route::Filter { kind: Some(grpc_route::filter::Kind::FailureInjector(failure)) }
                    });
                    let backend =
                        grpc_route::RouteBackend { filters: fault.into_iter().chain(own).collect(), ..single(backend) };
                    let weight = reference.weight.unwrap_or(1);
                    (weight > 0).then_some(grpc_route::WeightedRouteBackend { backend: Some(backend), weight })
                });
                let backends: Vec<_> = weighted.collect();
                match backends.is_empty() {
                    true => Kind::Empty(Empty {}),
                    false => Kind::RandomAvailable(RandomAvailable { backends }),
                }
            }
        };
        grpc_route::Distribution { kind: Some(kind) }
    }

    /// Where a reference leads, and why nothing can be sent there, if so.
    fn lead(&self, route: &Route, reference: &BackendReference) -> (Backend, Option<String>) {
        let nowhere = |name: &str, why: String| {
            (Backend { metadata: Some(default_meta(name)), ..self.backend.clone() }, Some(why))
        };
        let Some(id) = backend(&route.id, reference) else {
            let kind = reference.kind.as_deref().unwrap_or("Service");
            return nowhere("invalid", format!("{kind}/{} is no backend", reference.name));
        };
        match reference.port {
            Some(port) if !self.service.traffic.missing.contains(&id) => (balanced(self.mesh, &id, port), None),
            Some(_) => nowhere("not-found", format!("service {id} does not exist")),
            None => nowhere("invalid", format!("service {id} needs a port")),
        }
    }
}

fn always() -> Ratio {
    Ratio { numerator: 1, denominator: 1 }
}

fn route_meta(route: &Route) -> Metadata {
    let Id { namespace, name } = route.id.clone();
    let (group, kind) = (route.kind.group().to_owned(), route.kind.as_str().to_owned());
    Metadata { kind: Some(metadata::Kind::Resource(Resource { group, kind, name, namespace, ..Default::default() })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_to_try_again() {
        assert_eq!(statuses("5xx"), Some(vec![(500, 599)]));
        assert_eq!(statuses("gateway-error, 429,500-501"), Some(vec![(502, 504), (429, 429), (500, 501)]));
        for bad in ["", "4xx", "600", "504-500", "500,"] {
            assert_eq!(statuses(bad), None, "{bad}");
        }
    }
}
