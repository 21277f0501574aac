//! Messages of the proxy API as tables, JSON and YAML, against golden files (`WEFT_BLESS=1` rewrites them).

use linkerd2_proxy_api::destination::protocol_hint::{H2, Opaque as OpaqueHint, OpaqueTransport, Protocol};
use linkerd2_proxy_api::destination::tls_identity::{DnsLikeIdentity, Strategy};
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{
    AddrSet, DestinationProfile, HttpStatusRange, NoEndpoints, PathMatch as ProfilePath, ProtocolHint, RequestMatch,
    ResponseClass, ResponseMatch, RetryBudget, Route, TlsIdentity, Update, WeightedAddr, WeightedAddrSet, WeightedDst,
    request_match, response_match,
};
use linkerd2_proxy_api::grpc_route::{GrpcFailureInjector, GrpcRouteMatch, GrpcRpcMatch};
use linkerd2_proxy_api::http_route::{
    HeaderMatch, HostMatch, HttpFailureInjector, HttpRouteMatch, PathMatch, PathModifier, QueryParamMatch, Ratio,
    RequestHeaderModifier, RequestRedirect, ResponseHeaderModifier, Timeouts, header_match, host_match, path_match,
    path_modifier, query_param_match,
};
use linkerd2_proxy_api::http_types::headers::Header;
use linkerd2_proxy_api::http_types::{Headers, HttpMethod, Scheme, http_method, scheme};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use linkerd2_proxy_api::{inbound, opaque_route, outbound, tls_route};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use weft::args::{EndpointsOutput, MessageOutput};
use weft::{diagnostics, endpoints, messages};

fn compare(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{name}: run with WEFT_BLESS=1 when the change is meant");
}

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn millis(millis: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(millis % 1000).unwrap() * 1_000_000;
    Some(prost_types::Duration { seconds: millis / 1000, nanos })
}

fn default(name: &str) -> Option<Metadata> {
    Some(Metadata { kind: Some(metadata::Kind::Default(name.to_owned())) })
}

fn resource(kind: &str, name: &str, port: u32) -> Option<Metadata> {
    let resource = Resource {
        group: "core".into(),
        kind: kind.into(),
        name: name.into(),
        namespace: "emojivoto".into(),
        section: String::new(),
        port,
    };
    Some(Metadata { kind: Some(metadata::Kind::Resource(resource)) })
}

fn endpoint(addr: &str, pod: &str) -> WeightedAddr {
    let identity = DnsLikeIdentity { name: "web.emojivoto.serviceaccount.identity.weft.cluster.local".into() };
    WeightedAddr {
        addr: Some(addr.parse::<SocketAddr>().unwrap().into()),
        weight: 10_000,
        metric_labels: map(&[("pod", pod), ("deployment", "web"), ("control_plane_ns", "weft")]),
        tls_identity: Some(TlsIdentity {
            server_name: Some(identity.clone()),
            strategy: Some(Strategy::DnsLikeIdentity(identity)),
        }),
        protocol_hint: Some(ProtocolHint {
            protocol: Some(Protocol::H2(H2 {})),
            opaque_transport: Some(OpaqueTransport { inbound_port: 4143 }),
        }),
        ..WeightedAddr::default()
    }
}

fn plain(addr: &str) -> WeightedAddr {
    WeightedAddr { addr: Some(addr.parse::<SocketAddr>().unwrap().into()), weight: 1, ..WeightedAddr::default() }
}

fn add(service: &str, namespace: &str, addrs: Vec<WeightedAddr>) -> Update {
    let metric_labels = map(&[("service", service), ("namespace", namespace)]);
    Update { update: Some(Kind::Add(WeightedAddrSet { addrs, metric_labels })) }
}

#[test]
fn endpoints_of_services() {
    let web = [endpoint("10.244.0.8:8080", "web-5d8f9c7b6-x7k2p"), endpoint("10.244.0.12:8080", "web-5d8f9c7b6-aaaaa")];
    let updates = [
        add("web-svc", "emojivoto", web.to_vec()),
        add("weft-destination", "weft", vec![endpoint("10.244.0.2:8086", "weft-destination-1-2")]),
        add("outside", "emojivoto", vec![plain("[2001:db8::1]:443")]),
        // The same once more, by another name of the service.
        add("web-svc", "emojivoto", web.to_vec()),
    ];
    compare("endpoints.txt", &endpoints::render(&updates, EndpointsOutput::Table).unwrap());
    compare("endpoints.json", &endpoints::render(&updates, EndpointsOutput::Json).unwrap());
    let nothing = [
        Update { update: Some(Kind::NoEndpoints(NoEndpoints { exists: true })) },
        Update { update: Some(Kind::Remove(AddrSet::default())) },
        Update { update: None },
        add("web-svc", "emojivoto", Vec::new()),
    ];
    assert_eq!(endpoints::render(&nothing, EndpointsOutput::Table), None);
    assert_eq!(endpoints::render(&nothing, EndpointsOutput::Json).as_deref(), Some("[]\n"));
    // An endpoint without address makes no sense, but does no harm.
    assert!(endpoints::render(&[add("", "", vec![WeightedAddr::default()])], EndpointsOutput::Table).is_some());
}

#[test]
fn profiles() {
    let show =
        |profile: &DestinationProfile| diagnostics::render(&messages::profile(profile), MessageOutput::Json).unwrap();
    assert_eq!(show(&DestinationProfile::default()), "{\n  \"opaque_protocol\": false\n}\n");
    let path = |regex: &str| RequestMatch {
        r#match: Some(request_match::Match::Path(ProfilePath { regex: regex.to_owned() })),
    };
    let method = HttpMethod { r#type: Some(http_method::Type::Registered(http_method::Registered::Post.into())) };
    let both = request_match::Seq {
        matches: vec![path("/vote"), RequestMatch { r#match: Some(request_match::Match::Method(method)) }],
    };
    let status = ResponseMatch { r#match: Some(response_match::Match::Status(HttpStatusRange { min: 500, max: 599 })) };
    let pod = WeightedAddr {
        protocol_hint: Some(ProtocolHint { protocol: Some(Protocol::Opaque(OpaqueHint {})), opaque_transport: None }),
        ..endpoint("10.244.0.8:3306", "db-0")
    };
    let profile = DestinationProfile {
        fully_qualified_name: "web-svc.emojivoto.svc.cluster.local".into(),
        opaque_protocol: true,
        retry_budget: Some(RetryBudget { retry_ratio: 0.2, min_retries_per_second: 10, ttl: millis(10_000) }),
        routes: vec![Route {
            condition: Some(RequestMatch { r#match: Some(request_match::Match::All(both)) }),
            response_classes: vec![ResponseClass { condition: Some(status), is_failure: true }],
            metrics_labels: map(&[("route", "vote")]),
            is_retryable: true,
            timeout: millis(1_500),
        }],
        dst_overrides: vec![WeightedDst {
            authority: "web-2.emojivoto.svc.cluster.local:80".into(),
            weight: 10,
            backend_ref: resource("Service", "web-2", 80),
        }],
        endpoint: Some(pod),
        parent_ref: resource("Service", "web-svc", 80),
        ..DestinationProfile::default()
    };
    compare("profile.json", &show(&profile));
}

fn inbound_authorization() -> inbound::Authz {
    use inbound::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
    use inbound::authn::{Permit, PermitMeshTls};
    let permitted = PermitClientIdentities {
        identities: vec![inbound::Identity { name: "a.b.serviceaccount.identity.weft.cluster.local".into() }],
        suffixes: vec![
            inbound::IdentitySuffix { parts: Vec::new() },
            inbound::IdentitySuffix { parts: vec!["b".into(), "serviceaccount".into()] },
        ],
    };
    let permit = Permit::MeshTls(PermitMeshTls { clients: Some(Clients::Identities(permitted)) });
    let net = |net: &str| net.parse::<ipnet::IpNet>().unwrap().into();
    inbound::Authz {
        networks: vec![inbound::Network { net: Some(net("10.0.0.0/8")), except: vec![net("10.1.0.0/16")] }],
        authentication: Some(inbound::Authn { permit: Some(permit) }),
        labels: map(&[("name", "all-authenticated"), ("kind", "default"), ("group", "")]),
        metadata: default("all-authenticated"),
    }
}

#[test]
fn inbound_policies() {
    let show = |server: &inbound::Server| diagnostics::render(&messages::server(server), MessageOutput::Yaml).unwrap();
    let get = HttpMethod { r#type: Some(http_method::Type::Unregistered("PURGE".into())) };
    let limit = |rate: u32| Some(inbound::http_local_rate_limit::Limit { requests_per_second: rate });
    let route = inbound::HttpRoute {
        metadata: default("probe"),
        hosts: vec![HostMatch { r#match: Some(host_match::Match::Exact("web".into())) }],
        authorizations: vec![inbound_authorization()],
        rules: vec![inbound::http_route::Rule {
            matches: vec![HttpRouteMatch {
                path: Some(PathMatch { kind: Some(path_match::Kind::Exact("/ready".into())) }),
                method: Some(get),
                ..HttpRouteMatch::default()
            }],
            filters: Vec::new(),
        }],
    };
    let detect = inbound::proxy_protocol::Detect {
        timeout: millis(10_000),
        http_routes: vec![route],
        http_local_rate_limit: Some(inbound::HttpLocalRateLimit {
            metadata: default("limit"),
            total: limit(100),
            identity: limit(10),
            overrides: vec![inbound::http_local_rate_limit::Override {
                limit: limit(50),
                clients: Some(inbound::http_local_rate_limit::r#override::ClientIdentities {
                    identities: vec![inbound::Identity { name: "a.b".into() }],
                }),
            }],
        }),
    };
    let protocol = |kind| Some(inbound::ProxyProtocol { kind: Some(kind) });
    let server = inbound::Server {
        protocol: protocol(inbound::proxy_protocol::Kind::Detect(detect)),
        server_ips: vec!["10.244.0.8".parse::<IpAddr>().unwrap().into()],
        authorizations: vec![inbound_authorization()],
        labels: map(&[("name", "all-authenticated")]),
    };
    compare("policy_inbound.yml", &show(&server));
    let opaque = inbound::proxy_protocol::Kind::Opaque(inbound::proxy_protocol::Opaque {});
    let server = inbound::Server { protocol: protocol(opaque), ..inbound::Server::default() };
    assert_eq!(show(&server), "protocol:\n  opaque: {}\n");
    assert_eq!(show(&inbound::Server::default()), "{}\n");
}

fn backend(addr: Option<WeightedAddr>) -> Option<outbound::Backend> {
    use outbound::backend::balance_p2c::{Load, PeakEwma};
    use outbound::backend::endpoint_discovery::{DestinationGet, Kind as Discovery};
    use outbound::backend::{BalanceP2c, EndpointDiscovery, Kind};
    let path = "web-svc.emojivoto.svc.cluster.local:80".to_owned();
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery { kind: Some(Discovery::Dst(DestinationGet { path })) }),
        load: Some(Load::PeakEwma(PeakEwma { default_rtt: millis(30), decay: millis(10_000) })),
    };
    Some(outbound::Backend {
        metadata: resource("Service", "web-svc", 80),
        queue: Some(outbound::Queue { capacity: 100, failfast_timeout: millis(3_000) }),
        kind: Some(addr.map_or(Kind::Balancer(balancer), Kind::Forward)),
    })
}

fn http_rule() -> outbound::http_route::Rule {
    use outbound::http_route::{
        Distribution, Filter, Retry, RouteBackend, Rule, WeightedRouteBackend, distribution, filter, retry,
    };
    let filter = |kind| Filter { kind: Some(kind) };
    let headers = |name: &str| Headers { headers: vec![Header { name: name.into(), value: b"1".to_vec() }] };
    let backend = RouteBackend { backend: backend(None), filters: Vec::new(), ..RouteBackend::default() };
    Rule {
        matches: vec![HttpRouteMatch {
            path: Some(PathMatch { kind: Some(path_match::Kind::Prefix("/api".into())) }),
            headers: vec![HeaderMatch { name: "x".into(), value: Some(header_match::Value::Exact(b"y".to_vec())) }],
            query_params: vec![QueryParamMatch {
                name: "q".into(),
                value: Some(query_param_match::Value::Regex("[0-9]+".into())),
            }],
            method: None,
        }],
        filters: vec![
            filter(filter::Kind::FailureInjector(HttpFailureInjector {
                status: 503,
                message: "down".into(),
                ratio: Some(Ratio { numerator: 1, denominator: 10 }),
            })),
            filter(filter::Kind::RequestHeaderModifier(RequestHeaderModifier {
                add: Some(headers("a")),
                set: None,
                remove: vec!["b".into()],
            })),
            filter(filter::Kind::ResponseHeaderModifier(ResponseHeaderModifier {
                add: None,
                set: Some(headers("c")),
                remove: Vec::new(),
            })),
            filter(filter::Kind::Redirect(RequestRedirect {
                scheme: Some(Scheme { r#type: Some(scheme::Type::Registered(scheme::Registered::Https.into())) }),
                host: "example.com".into(),
                path: Some(PathModifier { replace: Some(path_modifier::Replace::Prefix("/v2".into())) }),
                port: 443,
                status: 301,
            })),
        ],
        backends: Some(Distribution {
            kind: Some(distribution::Kind::RandomAvailable(distribution::RandomAvailable {
                backends: vec![WeightedRouteBackend { backend: Some(backend), weight: 90 }],
            })),
        }),
        timeouts: Some(Timeouts { response: millis(1_000), request: millis(250), idle: None }),
        retry: Some(Retry {
            max_retries: 2,
            max_request_bytes: 65_536,
            conditions: Some(retry::Conditions {
                status_ranges: vec![retry::conditions::StatusRange { start: 500, end: 599 }],
            }),
            timeout: millis(300),
            backoff: backoff(),
        }),
        allow_l5d_request_headers: true,
        ..Rule::default()
    }
}

fn backoff() -> Option<outbound::ExponentialBackoff> {
    Some(outbound::ExponentialBackoff {
        min_backoff: millis(25),
        max_backoff: millis(250),
        jitter_ratio: 0.5,
        respect_retry_after_hint: false,
    })
}

fn policy(kind: outbound::proxy_protocol::Kind) -> String {
    let policy = outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol { kind: Some(kind) }),
        metadata: resource("Service", "web-svc", 80),
    };
    diagnostics::render(&messages::policy(&policy), MessageOutput::Yaml).unwrap()
}

#[test]
fn outbound_policies() {
    use outbound::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
    let opaque = {
        use outbound::opaque_route::{Distribution, Filter, RouteBackend, Rule, distribution, filter};
        let first = distribution::FirstAvailable {
            backends: vec![RouteBackend { backend: backend(Some(plain("10.244.0.8:80"))), filters: Vec::new() }],
        };
        let rule = |kind, filters| Rule { backends: Some(Distribution { kind: Some(kind) }), filters };
        let forbidden = Filter { kind: Some(filter::Kind::Forbidden(opaque_route::Forbidden {})) };
        let rules = vec![
            rule(distribution::Kind::FirstAvailable(first), Vec::new()),
            rule(distribution::Kind::Empty(distribution::Empty {}), vec![forbidden]),
        ];
        Opaque { routes: vec![outbound::OpaqueRoute { metadata: default("opaque"), rules }] }
    };
    let http = outbound::HttpRoute {
        metadata: default("http"),
        hosts: vec![HostMatch {
            r#match: Some(host_match::Match::Suffix(host_match::Suffix {
                reverse_labels: vec!["com".into(), "example".into()],
            })),
        }],
        rules: vec![http_rule()],
    };
    let accrual = outbound::FailureAccrual {
        kind: Some(outbound::failure_accrual::Kind::ConsecutiveFailures(
            outbound::failure_accrual::ConsecutiveFailures { max_failures: 7, backoff: backoff() },
        )),
        ejection: None,
    };
    let detect = Detect {
        timeout: millis(10_000),
        opaque: Some(opaque),
        http1: Some(Http1 { routes: vec![http.clone()], failure_accrual: Some(accrual) }),
        http2: Some(Http2::default()),
    };
    compare("policy_outbound.yml", &policy(Kind::Detect(detect)));

    let grpc = {
        use outbound::grpc_route::{Filter, Retry, Rule, filter, retry};
        outbound::GrpcRoute {
            metadata: default("grpc"),
            hosts: Vec::new(),
            rules: vec![Rule {
                matches: vec![GrpcRouteMatch {
                    rpc: Some(GrpcRpcMatch { service: "emojivoto.v1.VotingService".into(), method: String::new() }),
                    headers: Vec::new(),
                }],
                filters: vec![Filter {
                    kind: Some(filter::Kind::FailureInjector(GrpcFailureInjector {
                        code: 14,
                        message: "down".into(),
                        ratio: None,
                    })),
                }],
                retry: Some(Retry {
                    max_retries: 1,
                    conditions: Some(retry::Conditions { internal: true, unavailable: true, ..Default::default() }),
                    ..Retry::default()
                }),
                ..Rule::default()
            }],
        }
    };
    let unified = outbound::FailureAccrual {
        kind: Some(outbound::failure_accrual::Kind::Unified(outbound::failure_accrual::Unified {
            success_rate_threshold: 0.8,
            decay: millis(10_000),
            min_requests: 5,
            max_consecutive_failures: 7,
            backoff: None,
        })),
        ejection: Some(outbound::EjectionConfig { min_ready_endpoints: 1 }),
    };
    compare(
        "policy_outbound_grpc.yml",
        &policy(Kind::Grpc(Grpc { routes: vec![grpc], failure_accrual: Some(unified) })),
    );

    let sni = |kind| tls_route::SniMatch { r#match: Some(kind) };
    let suffix = tls_route::sni_match::Suffix { reverse_labels: vec!["com".into(), "example".into()] };
    let invalid = outbound::tls_route::Filter {
        kind: Some(outbound::tls_route::filter::Kind::Invalid(opaque_route::Invalid { message: "why".into() })),
    };
    let tls = outbound::TlsRoute {
        metadata: default("tls"),
        snis: vec![
            sni(tls_route::sni_match::Match::Exact("a.example.com".into())),
            sni(tls_route::sni_match::Match::Suffix(suffix)),
        ],
        rules: vec![outbound::tls_route::Rule { backends: None, filters: vec![invalid] }],
    };
    compare("policy_outbound_tls.yml", &policy(Kind::Tls(Tls { routes: vec![tls] })));
    assert!(policy(Kind::Http1(Http1 { routes: vec![http], failure_accrual: None })).contains("  http1:\n"));
    assert!(policy(Kind::Http2(Http2::default())).contains("  http2: {}\n"));
}
