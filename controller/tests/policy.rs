//! The real binary over a directory of objects, asked for policies by clients of `linkerd2-proxy-api`.

mod support;

use linkerd2_proxy_api::http_route::path_match;
use linkerd2_proxy_api::inbound::authn::Permit;
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::Clients;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind as InboundKind;
use linkerd2_proxy_api::inbound::{Authz, PortSpec, Server};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use linkerd2_proxy_api::outbound::backend::Kind as BackendKind;
use linkerd2_proxy_api::outbound::backend::balance_p2c::Load;
use linkerd2_proxy_api::outbound::backend::endpoint_discovery::Kind as DiscoveryKind;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::proxy_protocol::Kind;
use linkerd2_proxy_api::outbound::traffic_spec::Target;
use linkerd2_proxy_api::outbound::{Backend, HttpRoute, OpaqueRoute, OutboundPolicy, TrafficSpec};
use linkerd2_proxy_api::outbound::{http_route, opaque_route};
use serde_json::json;
use std::net::SocketAddr;
use support::{Controller, State, meshed_pod, namespace, next, plain_pod, service};
use tonic::Code;

const WORKLOAD: &str = r#"{"ns":"shop","pod":"client"}"#;

fn port(workload: &str, port: u32) -> PortSpec {
    PortSpec { workload: workload.to_owned(), port }
}

fn labelled(authz: &Authz) -> (&str, &str, &str) {
    (&authz.labels["group"], &authz.labels["kind"], &authz.labels["name"])
}

fn networks(authz: &Authz) -> Vec<String> {
    authz.networks.iter().map(|n| ipnet::IpNet::try_from(n.net.unwrap()).unwrap().to_string()).collect()
}

fn permit(authz: &Authz) -> &Permit {
    authz.authentication.as_ref().unwrap().permit.as_ref().unwrap()
}

fn routes(server: &Server) -> &[linkerd2_proxy_api::inbound::HttpRoute] {
    match server.protocol.as_ref().unwrap().kind.as_ref().unwrap() {
        InboundKind::Detect(detect) => {
            assert_eq!(detect.timeout.unwrap().seconds, 10);
            &detect.http_routes
        }
        other => panic!("not detected: {other:?}"),
    }
}

fn default_name(meta: &Option<Metadata>) -> &str {
    match meta.as_ref().unwrap().kind.as_ref().unwrap() {
        metadata::Kind::Default(name) => name,
        metadata::Kind::Resource(resource) => panic!("not a default: {resource:?}"),
    }
}

fn resource(meta: &Option<Metadata>) -> &Resource {
    match meta.as_ref().unwrap().kind.as_ref().unwrap() {
        metadata::Kind::Resource(resource) => resource,
        metadata::Kind::Default(name) => panic!("not a resource: {name}"),
    }
}

#[tokio::test]
async fn inbound_policies_follow_the_pod() {
    let state = State::new();
    let mut pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/healthz?full=1", "port": "http"}});
    state.put(&namespace("shop", json!({})));
    state.put(&pod);
    let controller = Controller::destination(state.path());
    let mut client = InboundServerPoliciesClient::new(controller.channel("policy").await);

    let mut stream =
        client.watch_port(port(r#"{"ns":"shop","pod":"web-5d4f8-aaaaa"}"#, 8080)).await.unwrap().into_inner();
    let server = next(&mut stream).await;
    let [authz] = server.authorizations.as_slice() else { panic!("{server:?}") };
    assert_eq!(labelled(authz), ("", "default", "all-unauthenticated"));
    assert_eq!(default_name(&authz.metadata), "all-unauthenticated");
    assert_eq!(networks(authz), ["0.0.0.0/0", "::/0"]);
    assert!(matches!(permit(authz), Permit::Unauthenticated(_)));
    assert_eq!(server.labels["name"], "all-unauthenticated");
    let [probe, default] = routes(&server) else { panic!("{server:?}") };
    assert_eq!(default_name(&default.metadata), "default");
    assert!(default.authorizations.is_empty());
    assert_eq!(default_name(&probe.metadata), "probe");
    assert_eq!(labelled(&probe.authorizations[0]), ("", "default", "probe"));
    let path = probe.rules[0].matches[0].path.as_ref().unwrap().kind.as_ref().unwrap();
    assert_eq!(path, &path_match::Kind::Exact("/healthz".to_owned()));

    // By the old form of the workload, on a port without probes, the same without the probe's route.
    let other = client.get_port(port("shop:web-5d4f8-aaaaa", 9090)).await.unwrap().into_inner();
    assert_eq!(routes(&other).len(), 1);
    assert_eq!(other.authorizations, server.authorizations);
    let opaque = client.get_port(port("shop:web-5d4f8-aaaaa", 3306)).await.unwrap().into_inner();
    assert!(matches!(opaque.protocol.unwrap().kind, Some(InboundKind::Opaque(_))));

    let mut policy = async |name: &str| {
        pod["metadata"]["annotations"] = json!({"config.linkerd.io/default-inbound-policy": name});
        state.put(&pod);
        next(&mut stream).await
    };
    let server = policy("all-authenticated").await;
    let authz = &server.authorizations[0];
    assert_eq!(networks(authz), ["0.0.0.0/0", "::/0"]);
    let Permit::MeshTls(tls) = permit(authz) else { panic!("{authz:?}") };
    let Some(Clients::Identities(clients)) = &tls.clients else { panic!("{authz:?}") };
    assert!(clients.identities.is_empty());
    assert_eq!(clients.suffixes.len(), 1);
    assert!(clients.suffixes[0].parts.is_empty(), "any identity");
    assert_eq!(routes(&server).len(), 2, "probes stay open");
    let server = policy("cluster-unauthenticated").await;
    let authz = &server.authorizations[0];
    assert_eq!(labelled(authz), ("", "default", "cluster-unauthenticated"));
    assert_eq!(networks(authz), ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"]);
    assert!(matches!(permit(authz), Permit::Unauthenticated(_)));
    let server = policy("cluster-authenticated").await;
    assert_eq!(networks(&server.authorizations[0]).len(), 4);
    assert!(matches!(permit(&server.authorizations[0]), Permit::MeshTls(_)));
    let server = policy("deny").await;
    assert!(server.authorizations.is_empty());
    assert_eq!(server.labels["name"], "deny");
    // Nobody is let in but who scrapes the proxies: the mesh would be blind to its own pod.
    let admin = client.get_port(port("shop:web-5d4f8-aaaaa", 4191)).await.unwrap().into_inner();
    assert_eq!(admin.authorizations.len(), 1);
    let Permit::MeshTls(tls) = permit(&admin.authorizations[0]) else { panic!("not by identity") };
    let Some(Clients::Identities(clients)) = &tls.clients else { panic!("not by name") };
    let names: Vec<&str> = clients.identities.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["weft-metrics.weft.serviceaccount.identity.weft.cluster.local"]);
    let server = policy("audit").await;
    assert_eq!(labelled(&server.authorizations[0]), ("", "default", "audit"));
    assert!(matches!(permit(&server.authorizations[0]), Permit::Unauthenticated(_)));
    let server = policy("all-unauthenticated").await;
    assert_eq!(server.authorizations.len(), 1);
    let server = policy("all-authentificated").await;
    assert!(server.authorizations.is_empty(), "what is not understood lets nobody in");

    // The namespace's annotation counts where the pod has none.
    pod["metadata"]["annotations"] = json!({"config.linkerd.io/opaque-ports": "8080"});
    state.put(&pod);
    let server = next(&mut stream).await;
    assert!(matches!(server.protocol.unwrap().kind, Some(InboundKind::Opaque(_))));
    assert_eq!(server.labels["name"], "all-unauthenticated");
    state.put(&namespace("shop", json!({"config.linkerd.io/default-inbound-policy": "deny"})));
    assert_eq!(next(&mut stream).await.labels["name"], "deny");

    state.delete(&pod);
    let ended = tokio::time::timeout(support::DEADLINE, stream.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::NotFound, "the pod is gone");
    for (spec, code) in [
        (port("shop:web-5d4f8-aaaaa", 8080), Code::NotFound),
        (port("shop:web-5d4f8-aaaaa", 0), Code::InvalidArgument),
        (port("shop:web-5d4f8-aaaaa", 65_536), Code::InvalidArgument),
        (port("nonsense", 8080), Code::InvalidArgument),
        (port(r#"{"ns":"shop"}"#, 8080), Code::InvalidArgument),
    ] {
        assert_eq!(client.watch_port(spec.clone()).await.unwrap_err().code(), code, "{spec:?}");
        assert_eq!(client.get_port(spec.clone()).await.unwrap_err().code(), code, "{spec:?}");
    }
}

fn to_addr(addr: &str) -> TrafficSpec {
    let addr: SocketAddr = addr.parse().unwrap();
    TrafficSpec { source_workload: WORKLOAD.to_owned(), target: Some(Target::Addr(addr.into())) }
}

fn to_name(name: &str) -> TrafficSpec {
    TrafficSpec { source_workload: WORKLOAD.to_owned(), target: Some(Target::Authority(name.to_owned())) }
}

fn kind(policy: &OutboundPolicy) -> &Kind {
    policy.protocol.as_ref().unwrap().kind.as_ref().unwrap()
}

fn http_backend(route: &HttpRoute) -> &Backend {
    let path = route.rules[0].matches[0].path.as_ref().unwrap().kind.as_ref().unwrap();
    assert_eq!(path, &path_match::Kind::Prefix("/".to_owned()));
    match route.rules[0].backends.as_ref().unwrap().kind.as_ref().unwrap() {
        http_route::distribution::Kind::FirstAvailable(first) => first.backends[0].backend.as_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn opaque_backend(route: &OpaqueRoute) -> &Backend {
    match route.rules[0].backends.as_ref().unwrap().kind.as_ref().unwrap() {
        opaque_route::distribution::Kind::FirstAvailable(first) => first.backends[0].backend.as_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The one backend of a policy with detection.
fn detected(policy: &OutboundPolicy) -> &Backend {
    let Kind::Detect(detect) = kind(policy) else { panic!("{policy:?}") };
    assert_eq!(detect.timeout.unwrap().seconds, 10);
    let backend = opaque_backend(&detect.opaque.as_ref().unwrap().routes[0]);
    assert_eq!(http_backend(&detect.http1.as_ref().unwrap().routes[0]), backend);
    assert_eq!(http_backend(&detect.http2.as_ref().unwrap().routes[0]), backend);
    let queue = backend.queue.as_ref().unwrap();
    assert_eq!((queue.capacity, queue.failfast_timeout.unwrap().seconds), (1000, 3));
    backend
}

#[tokio::test]
async fn outbound_policies_know_services_pods_and_the_rest() {
    let state = State::new();
    let mut web = service("shop", "web", "10.96.0.1");
    let ports = json!([
        {"name": "http", "port": 80},
        {"name": "h1", "port": 81, "appProtocol": "http"},
        {"name": "h2", "port": 82, "appProtocol": "kubernetes.io/h2c"},
        {"name": "raw", "port": 83, "appProtocol": "linkerd.io/opaque"},
        {"name": "other", "port": 84, "appProtocol": "example.org/protocol"},
        {"name": "mysql", "port": 3306},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    web["spec"]["ports"] = ports;
    let pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    state.put(&web);
    state.put(&pod);
    let controller = Controller::destination(state.path());
    let mut client = OutboundPoliciesClient::new(controller.channel("policy").await);

    let mut service_stream = client.watch(to_addr("10.96.0.1:80")).await.unwrap().into_inner();
    let policy = next(&mut service_stream).await;
    let expected = Resource {
        group: "core".into(),
        kind: "Service".into(),
        name: "web".into(),
        namespace: "shop".into(),
        section: String::new(),
        port: 80,
    };
    assert_eq!(resource(&policy.metadata), &expected);
    let backend = detected(&policy);
    assert_eq!(resource(&backend.metadata), &expected);
    let Some(BackendKind::Balancer(balancer)) = &backend.kind else { panic!("{backend:?}") };
    let Some(DiscoveryKind::Dst(discovery)) = &balancer.discovery.as_ref().unwrap().kind else { panic!() };
    assert_eq!(discovery.path, "web.shop.svc.cluster.local:80");
    let Some(Load::PeakEwma(ewma)) = &balancer.load else { panic!("{balancer:?}") };
    assert_eq!((ewma.default_rtt.unwrap().nanos, ewma.decay.unwrap().seconds), (30_000_000, 10));
    assert_eq!(client.get(to_name("web.shop.svc.cluster.local:80")).await.unwrap().into_inner(), policy);

    let mut get = async |target: TrafficSpec| client.get(target).await.map(tonic::Response::into_inner);

    assert!(matches!(kind(&get(to_addr("10.96.0.1:81")).await.unwrap()), Kind::Http1(_)));
    assert!(matches!(kind(&get(to_addr("10.96.0.1:82")).await.unwrap()), Kind::Http2(_)));
    for opaque in [83, 84, 3306] {
        let policy = get(to_addr(&format!("10.96.0.1:{opaque}"))).await.unwrap();
        let Kind::Opaque(routes) = kind(&policy) else { panic!("{policy:?}") };
        assert!(matches!(opaque_backend(&routes.routes[0]).kind, Some(BackendKind::Balancer(_))));
    }
    for undefined in [8080, 53] {
        let policy = get(to_addr(&format!("10.96.0.1:{undefined}"))).await.unwrap();
        assert_eq!(resource(&policy.metadata).port, undefined);
        let Kind::Opaque(opaque) = kind(&policy) else { panic!("{policy:?}") };
        let rule = &opaque.routes[0].rules[0];
        assert!(matches!(rule.filters[0].kind, Some(opaque_route::filter::Kind::Forbidden(_))));
        assert!(matches!(rule.backends.as_ref().unwrap().kind, Some(opaque_route::distribution::Kind::Empty(_))));
    }

    let policy = get(to_addr("10.244.0.1:8080")).await.unwrap();
    let Some(BackendKind::Forward(endpoint)) = &detected(&policy).kind else { panic!("{policy:?}") };
    assert_eq!(SocketAddr::try_from(endpoint.addr.unwrap()).unwrap().to_string(), "10.244.0.1:8080");
    assert!(endpoint.tls_identity.is_some() && endpoint.protocol_hint.is_some());
    assert_eq!(endpoint.metric_labels["namespace"], "shop");
    let policy = get(to_addr("10.244.0.1:5432")).await.unwrap();
    assert!(matches!(kind(&policy), Kind::Opaque(_)));

    let policy = get(to_addr("192.0.2.1:8080")).await.unwrap();
    assert_eq!(default_name(&policy.metadata), "egress-fallback");
    let Some(BackendKind::Forward(endpoint)) = &detected(&policy).kind else { panic!("{policy:?}") };
    assert_eq!(SocketAddr::try_from(endpoint.addr.unwrap()).unwrap().to_string(), "192.0.2.1:8080");
    assert!(endpoint.tls_identity.is_none() && endpoint.metric_labels.is_empty());

    for (target, code) in [
        (to_name("nobody.shop.svc.cluster.local:80"), Code::NotFound),
        (to_name("example.org:80"), Code::InvalidArgument),
        (TrafficSpec { source_workload: WORKLOAD.to_owned(), target: None }, Code::InvalidArgument),
        (TrafficSpec { source_workload: "?".to_owned(), ..to_addr("10.96.0.1:80") }, Code::InvalidArgument),
        (to_addr("10.96.0.1:0"), Code::InvalidArgument),
    ] {
        assert_eq!(get(target.clone()).await.unwrap_err().code(), code, "{target:?}");
    }

    // Pushed when it changes, and only then.
    state.put(&plain_pod("shop", "unrelated", "10.244.0.9"));
    web["spec"]["ports"][0]["appProtocol"] = json!("http");
    state.put(&web);
    assert!(matches!(kind(&next(&mut service_stream).await), Kind::Http1(_)));
    state.delete(&web);
    assert_eq!(default_name(&next(&mut service_stream).await.metadata), "egress-fallback");
}

#[tokio::test]
async fn addresses_that_are_used_again_mean_the_pod_that_has_them_now() {
    let state = State::new();
    let mut old = plain_pod("shop", "old", "10.244.0.1");
    old["status"]["phase"] = json!("Succeeded");
    let new = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    let mut host = plain_pod("shop", "host", "10.244.0.2");
    host["spec"]["hostNetwork"] = json!(true);
    for object in [&old, &new, &host] {
        state.put(object);
    }
    let controller = Controller::destination(state.path());
    let mut client = OutboundPoliciesClient::new(controller.channel("policy").await);
    let mut stream = client.watch(to_addr("10.244.0.1:8080")).await.unwrap().into_inner();
    assert_eq!(resource(&next(&mut stream).await.metadata).name, "web-5d4f8-aaaaa");
    let policy = client.get(to_addr("10.244.0.2:8080")).await.unwrap().into_inner();
    assert_eq!(default_name(&policy.metadata), "egress-fallback", "the host's address is not a pod's");
    state.delete(&new);
    assert_eq!(default_name(&next(&mut stream).await.metadata), "egress-fallback");
}
