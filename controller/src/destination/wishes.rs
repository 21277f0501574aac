//! What ServiceProfiles and TrafficSplits ask for, in the API's words.

use super::endpoint::Mesh;
use super::profile::resource;
use crate::duration;
use crate::index::ports::Ports;
use crate::index::traffic::{Profile, Split};
use crate::policy::method;
use linkerd2_proxy_api::destination::{
    DestinationProfile, HttpStatusRange, PathMatch, RequestMatch, ResponseClass, ResponseMatch, RetryBudget, Route,
    WeightedDst, request_match, response_match,
};
use weft_core::mesh::types::{ProfileRoute, RequestCondition, ResponseCondition, Weight};

/// Completes an answer about a port by what a profile says.
pub(super) fn put(answer: &mut DestinationProfile, profile: &Profile, port: u16) {
    let spec = &profile.spec;
    let opaque = spec.opaque_ports.iter().flatten().any(|ports| Ports::parse(ports, |_| None).contains(port));
    answer.opaque_protocol |= opaque;
    answer.routes = spec.routes.iter().flatten().map(route).collect();
    if let Some(budget) = &spec.retry_budget {
        answer.retry_budget = Some(RetryBudget {
            retry_ratio: budget.retry_ratio,
            min_retries_per_second: budget.min_retries_per_second,
            ttl: duration::parse(&budget.ttl).and_then(duration::of),
        });
    }
    let overrides = spec.dst_overrides.iter().flatten().filter_map(|one| {
        let authority = match one.authority.contains(':') {
            true => one.authority.clone(),
            false => format!("{}:{port}", one.authority),
        };
        Some(WeightedDst { authority, weight: weight(&one.weight)?, backend_ref: None })
    });
    answer.dst_overrides = overrides.collect();
}

/// Where a split sends the traffic to a port.
pub(super) fn split(mesh: &Mesh, namespace: &str, split: &Split, port: u16) -> Vec<WeightedDst> {
    let backends = split.spec.backends.iter().filter_map(|backend| {
        Some(WeightedDst {
            authority: format!("{}.:{port}", mesh.service_name(&backend.service, namespace)),
            weight: weight(&backend.weight)?,
            backend_ref: Some(resource("Service", &backend.service, namespace, port)),
        })
    });
    backends.collect()
}

/// A share as Linkerd sends it: 1 is 10000. `None` for none.
fn weight(weight: &Weight) -> Option<u32> {
    let weight = u32::try_from(weight.milli()?.saturating_mul(10)).unwrap_or(u32::MAX);
    (weight > 0).then_some(weight)
}

fn route(route: &ProfileRoute) -> Route {
    let class = |class: &weft_core::mesh::types::ResponseClass| ResponseClass {
        condition: Some(response(&class.condition)),
        is_failure: class.is_failure.unwrap_or_default(),
    };
    Route {
        condition: Some(request(&route.condition)),
        response_classes: route.response_classes.iter().flatten().map(class).collect(),
        metrics_labels: [("route".to_owned(), route.name.clone())].into(),
        is_retryable: route.is_retryable.unwrap_or_default(),
        timeout: route.timeout.as_deref().and_then(duration::parse).and_then(duration::of),
    }
}

fn request(condition: &RequestCondition) -> RequestMatch {
    use request_match::{Match, Seq};
    let seq = |list: &Vec<RequestCondition>| Seq { matches: list.iter().map(request).collect() };
    let parts = [
        condition.all.as_ref().map(|all| Match::All(seq(all))),
        condition.any.as_ref().map(|any| Match::Any(seq(any))),
        condition.not.as_ref().map(|not| Match::Not(Box::new(request(not)))),
        condition.path_regex.as_ref().map(|regex| Match::Path(PathMatch { regex: regex.clone() })),
        condition.method.as_ref().map(|name| Match::Method(method(name))),
    ];
    let mut parts: Vec<RequestMatch> =
        parts.into_iter().flatten().map(|part| RequestMatch { r#match: Some(part) }).collect();
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        // All that is set must hold. The order does not matter to a conjunction.
        last => {
            parts.extend(last);
            RequestMatch { r#match: Some(Match::All(Seq { matches: parts })) }
        }
    }
}

fn response(condition: &ResponseCondition) -> ResponseMatch {
    use response_match::{Match, Seq};
    let seq = |list: &Vec<ResponseCondition>| Seq { matches: list.iter().map(response).collect() };
    let status = condition.status.map(|status| {
        // One end alone means exactly that status.
        let (min, max) = (status.min.or(status.max), status.max.or(status.min));
        Match::Status(HttpStatusRange { min: min.unwrap_or_default(), max: max.unwrap_or_default() })
    });
    let parts = [
        condition.all.as_ref().map(|all| Match::All(seq(all))),
        condition.any.as_ref().map(|any| Match::Any(seq(any))),
        condition.not.as_ref().map(|not| Match::Not(Box::new(response(not)))),
        status,
    ];
    let mut parts: Vec<ResponseMatch> =
        parts.into_iter().flatten().map(|part| ResponseMatch { r#match: Some(part) }).collect();
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            ResponseMatch { r#match: Some(Match::All(Seq { matches: parts })) }
        }
    }
}
