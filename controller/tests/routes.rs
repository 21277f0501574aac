//! The real binary over a directory of objects: routes, profiles and splits of services, as clients hear of them.

mod support;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, request_match, response_match};
use linkerd2_proxy_api::meta::{Metadata, metadata};
use linkerd2_proxy_api::outbound::backend::Kind as BackendKind;
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::Kind as DiscoveryKind;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::proxy_protocol::{Http1, Kind};
use linkerd2_proxy_api::outbound::traffic_spec::Target;
use linkerd2_proxy_api::outbound::{
    Backend, HttpRoute, OutboundPolicy, TrafficSpec, failure_accrual, grpc_route, http_route,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use support::{Controller, State, meshed_pod, namespace, next, service};

const GATEWAY: &str = "gateway.networking.k8s.io/v1";

fn to(addr: &str, client: &str) -> TrafficSpec {
    let addr: SocketAddr = addr.parse().unwrap();
    TrafficSpec { source_workload: format!("{client}:pod"), target: Some(Target::Addr(addr.into())) }
}

fn route(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": GATEWAY, "kind": "HTTPRoute",
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec,
    })
}

fn parent(name: &str) -> Value {
    json!([{"group": "", "kind": "Service", "namespace": "shop", "name": name}])
}

fn kind(policy: &OutboundPolicy) -> &Kind {
    policy.protocol.as_ref().unwrap().kind.as_ref().unwrap()
}

/// HTTP/1.1's side, which is the same as HTTP/2's.
fn http(policy: &OutboundPolicy) -> &Http1 {
    match kind(policy) {
        Kind::Detect(detect) => {
            let (h1, h2) = (detect.http1.as_ref().unwrap(), detect.http2.as_ref().unwrap());
            assert_eq!((&h1.routes, &h1.failure_accrual), (&h2.routes, &h2.failure_accrual));
            h1
        }
        Kind::Http1(http) => http,
        other => panic!("{other:?}"),
    }
}

fn routes(policy: &OutboundPolicy) -> &[HttpRoute] {
    &http(policy).routes
}

fn name(meta: &Option<Metadata>) -> String {
    match meta.as_ref().unwrap().kind.as_ref().unwrap() {
        metadata::Kind::Default(name) => format!("default/{name}"),
        metadata::Kind::Resource(r) => format!("{}/{}/{}", r.kind, r.namespace, r.name),
    }
}

fn path(backend: &Option<Backend>) -> String {
    let backend = backend.as_ref().unwrap();
    let Some(BackendKind::Balancer(balancer)) = &backend.kind else { panic!("{backend:?}") };
    let Some(DiscoveryKind::Dst(dst)) = &balancer.discovery.as_ref().unwrap().kind else { panic!("{backend:?}") };
    dst.path.clone()
}

/// Where a rule's requests go, with weights; 0 for all of them. What fails has an exclamation mark.
fn backends(rule: &http_route::Rule) -> Vec<(String, u32)> {
    use http_route::distribution::Kind::{Empty, FirstAvailable, RandomAvailable};
    let shown = |backend: &http_route::RouteBackend| {
        let fails = backend
            .filters
            .iter()
            .any(|filter| matches!(filter.kind, Some(http_route::filter::Kind::FailureInjector(_))));
        format!("{}{}", path(&backend.backend), if fails { "!" } else { "" })
    };
    match rule.backends.as_ref().unwrap().kind.as_ref().unwrap() {
        Empty(_) => Vec::new(),
        FirstAvailable(first) => vec![(shown(&first.backends[0]), 0)],
        RandomAvailable(random) => {
            random.backends.iter().map(|b| (shown(b.backend.as_ref().unwrap()), b.weight)).collect()
        }
    }
}

fn seconds(duration: &Option<prost_types::Duration>) -> f64 {
    duration.as_ref().map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9)
}

fn shop() -> State {
    let state = State::new();
    state.put(&namespace("shop", json!({})));
    state.put(&service("shop", "web", "10.96.0.1"));
    state.put(&service("shop", "blue", "10.96.0.2"));
    state.put(&meshed_pod("shop", "web", "aaaaa", "10.244.0.1"));
    state
}

#[tokio::test]
async fn requests_are_routed_as_routes_say() {
    let state = shop();
    let controller = Controller::destination(state.path());
    let mut client = OutboundPoliciesClient::new(controller.channel("policy").await);
    let mut stream = client.watch(to("10.96.0.1:80", "client")).await.unwrap().into_inner();
    let plain = next(&mut stream).await;
    assert_eq!(name(&routes(&plain)[0].metadata), "default/http");

    let mut split = route(
        "shop",
        "split",
        json!({
            "parentRefs": parent("web"),
            "hostnames": ["web.shop.svc.cluster.local"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/api"}}],
                    "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "a", "value": "b"}]}}],
                    "backendRefs": [
                        {"name": "web", "port": 80, "weight": 9}, {"name": "blue", "port": 80},
                        {"name": "off", "port": 80, "weight": 0}, {"name": "nobody", "namespace": "else", "port": 80, "weight": 2},
                    ],
                    "timeouts": {"request": "3s", "backendRequest": "500ms"},
                },
                {},
            ],
        }),
    );
    split["metadata"]["annotations"] = json!({
        "retry.linkerd.io/http": "5xx,429", "retry.linkerd.io/limit": "3", "timeout.linkerd.io/idle": "10s",
    });
    state.put(&split);
    let policy = next(&mut stream).await;
    let [route_] = routes(&policy) else { panic!("{policy:?}") };
    assert_eq!(name(&route_.metadata), "HTTPRoute/shop/split");
    assert_eq!(route_.hosts.len(), 1);
    let [api, rest] = route_.rules.as_slice() else { panic!("{route_:?}") };
    let at = |name: &str, namespace: &str| format!("{name}.{namespace}.svc.cluster.local:80");
    assert_eq!(backends(api)[..2], [(at("web", "shop"), 9), (at("blue", "shop"), 1)]);
    assert_eq!(backends(api).len(), 3, "what has no share gets nothing");
    assert!(backends(api)[2].0.ends_with('!'), "what does not exist fails");
    assert_eq!(backends(rest), [(at("web", "shop"), 0)]);
    assert!(matches!(api.filters[0].kind, Some(http_route::filter::Kind::ResponseHeaderModifier(_))));
    let timeouts = api.timeouts.as_ref().unwrap();
    assert_eq!((seconds(&timeouts.request), seconds(&timeouts.idle)), (3.0, 10.0));
    let retry = api.retry.as_ref().unwrap();
    assert_eq!((retry.max_retries, retry.max_request_bytes, seconds(&retry.timeout)), (3, 65_536, 0.5));
    let ranges = &retry.conditions.as_ref().unwrap().status_ranges;
    assert_eq!(ranges.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>(), [(500, 599), (429, 429)]);
    let backoff = retry.backoff.as_ref().unwrap();
    assert_eq!((seconds(&backoff.min_backoff), seconds(&backoff.max_backoff)), (0.025, 0.25));

    // What did not exist appears, and goes again.
    let nobody = service("else", "nobody", "10.96.0.9");
    state.put(&nobody);
    assert_eq!(backends(&routes(&next(&mut stream).await)[0].rules[0])[2], (at("nobody", "else"), 2));
    state.delete(&nobody);
    assert!(backends(&routes(&next(&mut stream).await)[0].rules[0])[2].0.ends_with('!'));

    // One of the client's own namespace wins for it, and for it only.
    let mut near = route(
        "client",
        "near",
        json!({"parentRefs": parent("web"), "rules": [{"backendRefs": [{"name": "blue", "namespace": "shop", "port": 80}]}]}),
    );
    state.put(&near);
    let policy = next(&mut stream).await;
    assert_eq!(routes(&policy).iter().map(|r| name(&r.metadata)).collect::<Vec<_>>(), ["HTTPRoute/client/near"]);
    assert_eq!(backends(&routes(&policy)[0].rules[0]), [(at("blue", "shop"), 1)]);
    let other = client.get(to("10.96.0.1:80", "other")).await.unwrap().into_inner();
    assert_eq!(name(&routes(&other)[0].metadata), "HTTPRoute/shop/split");
    // Of another port it is none.
    near["spec"]["parentRefs"][0]["port"] = json!(81);
    state.put(&near);
    assert_eq!(name(&routes(&next(&mut stream).await)[0].metadata), "HTTPRoute/shop/split");
    state.delete(&split);
    assert_eq!(next(&mut stream).await, plain);
}

#[tokio::test]
async fn annotations_of_a_service_hold_without_routes() {
    let state = shop();
    let mut web = service("shop", "web", "10.96.0.1");
    web["metadata"]["annotations"] = json!({
        "timeout.linkerd.io/request": "1m30s", "retry.linkerd.io/http": "gateway-error",
        "balancer.linkerd.io/failure-accrual": "consecutive",
        "balancer.linkerd.io/failure-accrual-consecutive-max-failures": "3",
        "balancer.linkerd.io/failure-accrual-consecutive-max-penalty": "20s",
    });
    state.put(&web);
    let controller = Controller::destination(state.path());
    let mut client = OutboundPoliciesClient::new(controller.channel("policy").await);
    let mut stream = client.watch(to("10.96.0.1:80", "client")).await.unwrap().into_inner();
    let policy = next(&mut stream).await;
    let rule = &routes(&policy)[0].rules[0];
    assert_eq!(seconds(&rule.timeouts.as_ref().unwrap().request), 90.0);
    assert_eq!(rule.retry.as_ref().unwrap().max_retries, 1);
    let Some(failure_accrual::Kind::ConsecutiveFailures(accrual)) =
        &http(&policy).failure_accrual.as_ref().unwrap().kind
    else {
        panic!("{policy:?}")
    };
    let backoff = accrual.backoff.as_ref().unwrap();
    assert_eq!((accrual.max_failures, seconds(&backoff.min_backoff), seconds(&backoff.max_backoff)), (3, 1.0, 20.0));
    assert_eq!(backoff.jitter_ratio, 0.5);
    // Penalties that make no sense, also beside the defaults of 1 s and 1 min, are no accrual: a proxy would refuse the
    // rest of the policy too.
    let cases = [
        ("min", "0s", None),
        ("min", "2m", None),
        ("max", "500ms", None),
        ("max", "0s", None),
        ("min", "1m", Some((60.0, 60.0))),
        ("max", "soon", Some((1.0, 60.0))),
        ("min", "9999999999999999999s", Some((1.0, 60.0))),
    ];
    for (round, (which, value, expected)) in cases.into_iter().enumerate() {
        web["metadata"]["annotations"] = json!({
            "timeout.linkerd.io/request": format!("{}s", round + 1),
            "balancer.linkerd.io/failure-accrual": "consecutive",
            format!("balancer.linkerd.io/failure-accrual-consecutive-{which}-penalty"): value,
        });
        state.put(&web);
        let policy = next(&mut stream).await;
        let timeouts = routes(&policy)[0].rules[0].timeouts.as_ref().unwrap();
        assert_eq!(seconds(&timeouts.request), round as f64 + 1.0);
        let penalties = http(&policy).failure_accrual.as_ref().map(|accrual| match &accrual.kind {
            Some(failure_accrual::Kind::ConsecutiveFailures(accrual)) => {
                let backoff = accrual.backoff.as_ref().unwrap();
                (seconds(&backoff.min_backoff), seconds(&backoff.max_backoff))
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(penalties, expected, "{which} {value}");
    }
    // What makes no sense asks for nothing.
    web["metadata"]["annotations"] = json!({"timeout.linkerd.io/request": "soon", "retry.linkerd.io/http": "always"});
    state.put(&web);
    let policy = next(&mut stream).await;
    let rule = &routes(&policy)[0].rules[0];
    assert!(rule.timeouts.is_none() && rule.retry.is_none() && http(&policy).failure_accrual.is_none());
}

#[tokio::test]
async fn calls_are_routed_as_routes_say() {
    let state = shop();
    let mut calls = route(
        "shop",
        "calls",
        json!({
            "parentRefs": parent("web"),
            "rules": [{
                "matches": [{"method": {"service": "shop.Cart", "method": "Add"}}],
                "backendRefs": [{"name": "blue", "port": 80}, {"name": "nobody", "port": 80}],
            }],
        }),
    );
    calls["kind"] = json!("GRPCRoute");
    calls["metadata"]["annotations"] = json!({"retry.linkerd.io/grpc": "unavailable,deadline-exceeded"});
    state.put(&calls);
    let controller = Controller::destination(state.path());
    let mut client = OutboundPoliciesClient::new(controller.channel("policy").await);
    let policy = client.get(to("10.96.0.1:80", "client")).await.unwrap().into_inner();
    let Kind::Grpc(grpc) = kind(&policy) else { panic!("{policy:?}") };
    assert_eq!(name(&grpc.routes[0].metadata), "GRPCRoute/shop/calls");
    let rule = &grpc.routes[0].rules[0];
    let rpc = rule.matches[0].rpc.as_ref().unwrap();
    assert_eq!((rpc.service.as_str(), rpc.method.as_str()), ("shop.Cart", "Add"));
    let conditions = rule.retry.as_ref().unwrap().conditions.unwrap();
    assert!(conditions.unavailable && conditions.deadine_exceeded && !conditions.internal);
    let Some(grpc_route::distribution::Kind::RandomAvailable(random)) = &rule.backends.as_ref().unwrap().kind else {
        panic!("{rule:?}")
    };
    let [blue, nobody] = random.backends.as_slice() else { panic!("{random:?}") };
    assert!(blue.backend.as_ref().unwrap().filters.is_empty());
    assert_eq!(nobody.backend.as_ref().unwrap().filters.len(), 1, "what does not exist fails");
}

fn profile(namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "linkerd.io/v1alpha2", "kind": "ServiceProfile",
        "metadata": {"namespace": namespace, "name": "web.shop.svc.cluster.local"}, "spec": spec,
    })
}

fn route_names(profile: &DestinationProfile) -> Vec<&str> {
    profile.routes.iter().map(|route| route.metrics_labels["route"].as_str()).collect()
}

#[tokio::test]
async fn profiles_and_splits() {
    let state = shop();
    let controller = Controller::destination(state.path());
    let mut client = DestinationClient::new(controller.channel("destination").await);
    let ask = |client: &str| GetDestination {
        path: "10.96.0.1:80".to_owned(),
        context_token: json!({"ns": client, "nodeName": "n", "pod": "p"}).to_string(),
        ..GetDestination::default()
    };
    let mut near = client.get_profile(ask("client")).await.unwrap().into_inner();
    let mut far = client.get_profile(ask("other")).await.unwrap().into_inner();
    let plain = next(&mut near).await;
    assert_eq!(next(&mut far).await, plain);

    state.put(&profile("shop", json!({
        "routes": [{
            "name": "GET /", "condition": {"method": "GET", "pathRegex": "/x/[^/]*"}, "isRetryable": true, "timeout": "250ms",
            "responseClasses": [{"condition": {"status": {"min": 500}}, "isFailure": true}],
        }],
        "retryBudget": {"retryRatio": 0.5, "minRetriesPerSecond": 1, "ttl": "15s"},
        "opaquePorts": ["3000-4000"],
        "dstOverrides": [{"authority": "blue.shop.svc.cluster.local", "weight": "500m"}, {"authority": "a.b.svc.cluster.local:81", "weight": 0}],
    })));
    for stream in [&mut near, &mut far] {
        let told = next(stream).await;
        assert_eq!(route_names(&told), ["GET /"]);
        let route = &told.routes[0];
        assert!(route.is_retryable && seconds(&route.timeout) == 0.25);
        let Some(request_match::Match::All(all)) = &route.condition.as_ref().unwrap().r#match else {
            panic!("{route:?}")
        };
        assert_eq!(all.matches.len(), 2);
        let class = &route.response_classes[0];
        let Some(response_match::Match::Status(status)) = class.condition.as_ref().unwrap().r#match else {
            panic!("{class:?}")
        };
        assert_eq!((status.min, status.max, class.is_failure), (500, 500, true));
        let budget = told.retry_budget.as_ref().unwrap();
        assert_eq!((budget.retry_ratio, budget.min_retries_per_second, seconds(&budget.ttl)), (0.5, 1, 15.0));
        let [dst] = told.dst_overrides.as_slice() else { panic!("{told:?}") };
        assert_eq!((dst.authority.as_str(), dst.weight), ("blue.shop.svc.cluster.local:80", 5000));
        assert!(!told.opaque_protocol);
    }
    // The client's own wins; it may also say that a port is opaque.
    state.put(&profile("client", json!({"routes": [], "opaquePorts": ["80"]})));
    let told = next(&mut near).await;
    assert!(told.routes.is_empty() && told.opaque_protocol);

    let split = json!({
        "apiVersion": "split.smi-spec.io/v1alpha1", "kind": "TrafficSplit", "metadata": {"namespace": "shop", "name": "canary"},
        "spec": {"service": "web", "backends": [{"service": "web", "weight": "900m"}, {"service": "blue", "weight": "100m"}, {"service": "c", "weight": 0}]},
    });
    state.put(&split);
    let told = next(&mut far).await;
    let shares: Vec<_> = told.dst_overrides.iter().map(|dst| (dst.authority.as_str(), dst.weight)).collect();
    assert_eq!(shares, [("web.shop.svc.cluster.local.:80", 9000), ("blue.shop.svc.cluster.local.:80", 1000)]);
    state.delete(&split);
    assert_eq!(next(&mut far).await.dst_overrides.len(), 1);
    state.delete(&profile("shop", json!({})));
    assert_eq!(next(&mut far).await, plain);
}
