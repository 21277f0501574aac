use super::*;
use serde_json::json;

fn check(api_version: &str, kind: &str, spec: Value) -> Checked {
    let metadata = json!({ "namespace": "shop", "name": "web.shop.svc.cluster.local" });
    validate(&json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec }))
}

/// One that is good, and changes that each make it bad in this field.
fn cases(api_version: &str, kind: &str, good: &Value, bad: &[(&str, Value, &str)]) {
    assert_eq!(check(api_version, kind, good.clone()), Ok(()), "{kind}");
    for (pointer, value, field) in bad {
        let mut spec = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value.clone();
        let error = check(api_version, kind, spec).expect_err(&format!("{kind} {pointer} {value}"));
        assert_eq!(error.field, *field, "{kind} {pointer} {value}: {error}");
    }
}

const POLICY: &str = "policy.linkerd.io/v1beta3";

#[test]
fn servers() {
    let good = json!({ "podSelector": {}, "port": 80, "proxyProtocol": "HTTP/1", "accessPolicy": "deny" });
    cases(
        POLICY,
        "Server",
        &good,
        &[
            ("/podSelector", Value::Null, "spec"),
            ("/externalWorkloadSelector", json!({}), "spec"),
            ("/podSelector", json!({ "matchLabels": 5 }), "spec.podSelector.matchLabels"),
            (
                "/podSelector",
                json!({ "matchExpressions": [{ "key": "a", "operator": "In" }] }),
                "spec.podSelector.matchExpressions",
            ),
            ("/port", json!(0), "spec.port"),
            ("/port", json!(70_000), "spec.port"),
            ("/port", json!("80"), "spec.port"),
            ("/port", Value::Null, "spec.port"),
            ("/proxyProtocol", json!("HTTP"), "spec.proxyProtocol"),
            ("/accessPolicy", json!("allow"), "spec.accessPolicy"),
        ],
    );
    assert!(check(POLICY, "Server", json!({ "podSelector": {}, "port": "http-2" })).is_ok());
    assert!(check(POLICY, "Server", json!(5)).is_err());
}

#[test]
fn authorizations() {
    let good = json!({
        "server": { "name": "web" },
        "client": { "networks": [{ "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] }], "meshTLS": { "identities": ["*.shop"] } },
    });
    cases(
        "policy.linkerd.io/v1beta1",
        "ServerAuthorization",
        &good,
        &[
            ("/server/selector", json!({}), "spec.server"),
            ("/client/unauthenticated", json!(true), "spec.client"),
            ("/client/meshTLS", Value::Null, "spec.client"),
            ("/client/meshTLS/identities", json!(["a..b"]), "spec.client.meshTLS.identities[0]"),
            ("/client/meshTLS/serviceAccounts", json!([{ "name": "a" }]), "spec.client.meshTLS"),
            ("/client/networks", json!([{ "cidr": "10.0.0.0/33" }]), "spec.client.networks[0].cidr"),
            (
                "/client/networks",
                json!([{ "cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"] }]),
                "spec.client.networks[0].except[0]",
            ),
        ],
    );
    let reference = |kind: &str| json!({ "group": "policy.linkerd.io", "kind": kind, "name": "a" });
    let good = json!({
        "targetRef": reference("Server"),
        "requiredAuthenticationRefs": [reference("MeshTLSAuthentication"), reference("NetworkAuthentication")],
    });
    cases(
        "policy.linkerd.io/v1alpha1",
        "AuthorizationPolicy",
        &good,
        &[
            ("/targetRef/kind", json!("Deployment"), "spec.targetRef"),
            ("/targetRef/name", json!(""), "spec.targetRef.name"),
            ("/requiredAuthenticationRefs", json!([reference("Server")]), "spec.requiredAuthenticationRefs[0]"),
            (
                "/requiredAuthenticationRefs",
                json!([reference("MeshTLSAuthentication"), { "kind": "ServiceAccount", "name": "b" }]),
                "spec.requiredAuthenticationRefs[1]",
            ),
        ],
    );
    cases(
        "policy.linkerd.io/v1alpha1",
        "MeshTLSAuthentication",
        &json!({ "identities": ["*", "spiffe://a/b"], "identityRefs": [{ "kind": "Namespace", "name": "a" }] }),
        &[
            ("/identities", json!(["*.*"]), "spec.identities[0]"),
            ("/identityRefs", json!([{ "kind": "Pod", "name": "a" }]), "spec.identityRefs[0]"),
        ],
    );
    assert_eq!(check(POLICY, "MeshTLSAuthentication", json!({})).unwrap_err().field, "spec");
    let good = json!({ "networks": [{ "cidr": "10.0.0.1" }] });
    cases(POLICY, "NetworkAuthentication", &good, &[("/networks", json!([]), "spec.networks")]);
}

#[test]
fn limits_and_egress() {
    let server = json!({ "group": "policy.linkerd.io", "kind": "Server", "name": "a" });
    let good = json!({ "targetRef": server, "total": { "requestsPerSecond": 10 } });
    cases(
        POLICY,
        "HTTPLocalRateLimitPolicy",
        &good,
        &[
            ("/total", Value::Null, "spec"),
            ("/total/requestsPerSecond", json!(0), "spec.total.requestsPerSecond"),
            ("/overrides", json!([{ "requestsPerSecond": 1, "clientRefs": [] }]), "spec.overrides[0].clientRefs"),
        ],
    );
    cases(
        POLICY,
        "EgressNetwork",
        &json!({ "trafficPolicy": "Allow" }),
        &[
            ("/trafficPolicy", json!("Maybe"), "spec.trafficPolicy"),
            ("/trafficPolicy", json!("Deny"), "spec.trafficPolicy"),
        ],
    );
}

#[test]
fn routes() {
    let good = json!({
        "parentRefs": [{ "group": "core", "kind": "Service", "name": "web", "port": 80 }],
        "rules": [{
            "matches": [{ "path": { "type": "RegularExpression", "value": "/a.*" }, "method": "GET" }],
            "filters": [{ "type": "RequestRedirect", "requestRedirect": { "statusCode": 302 } }],
            "backendRefs": [{ "name": "web", "port": 80, "weight": 1 }],
            "timeouts": { "request": "1h30m" },
        }],
    });
    let bad = [
        ("/parentRefs/0/name", json!(""), "spec.parentRefs[0].name"),
        ("/parentRefs/0/port", json!(0), "spec.parentRefs[0].port"),
        ("/rules/0/matches/0/path/value", json!("("), "spec.rules[0].matches[0].path.value"),
        ("/rules/0/matches/0/path", json!({ "value": "a" }), "spec.rules[0].matches[0].path.value"),
        ("/rules/0/matches/0/method", json!("get"), "spec.rules[0].matches[0].method"),
        ("/rules/0/matches/0/headers", json!([{ "value": "a" }]), "spec.rules[0].matches[0].headers[0].name"),
        ("/rules/0/matches/0/method", json!(""), "spec.rules[0].matches[0].method"),
        (
            "/rules/0/matches/0/queryParams",
            json!([{ "name": "", "value": "a" }]),
            "spec.rules[0].matches[0].queryParams[0].name",
        ),
        // Proxies have a limit, and would refuse everything else of the policy too.
        (
            "/rules/0/matches/0/path/value",
            json!("/[a-z]{0,999}[a-z]{0,999}[a-z]{0,999}"),
            "spec.rules[0].matches[0].path.value",
        ),
        ("/rules/0/filters/0/type", json!("RequestMirror"), "spec.rules[0].filters[0].type"),
        ("/rules/0/filters/0/requestRedirect/scheme", json!("ftp"), "spec.rules[0].filters[0].requestRedirect.scheme"),
        (
            "/rules/0/filters/0/requestRedirect/statusCode",
            json!(200),
            "spec.rules[0].filters[0].requestRedirect.statusCode",
        ),
        ("/rules/0/backendRefs", json!([{ "name": "a" }]), "spec.rules[0].backendRefs[0].port"),
        ("/rules/0/timeouts/request", json!("1d"), "spec.rules[0].timeouts.request"),
        ("/rules/0/timeouts/request", json!(""), "spec.rules[0].timeouts.request"),
        ("/rules", json!({}), "spec.rules"),
    ];
    // A path of a list cannot be set by name: these go to the parent.
    let bad: Vec<_> = bad.into_iter().filter(|(pointer, ..)| !pointer.ends_with(char::is_numeric)).collect();
    cases("policy.linkerd.io/v1beta3", "HTTPRoute", &good, &bad);
    cases("gateway.networking.k8s.io/v1", "HTTPRoute", &good, &[]);
    let good = json!({ "rules": [{ "matches": [{ "method": { "service": "a.B" } }] }] });
    let regex = json!({ "type": "RegularExpression", "service": "a.*" });
    let bad = [
        ("/rules/0/matches/0/method", json!({}), "spec.rules[0].matches[0].method"),
        ("/rules/0/matches/0/method", regex, "spec.rules[0].matches[0].method.type"),
        ("/rules/0/matches/0/method", json!({ "service": "a/B" }), "spec.rules[0].matches[0].method.service"),
        ("/rules/0/matches/0/method", json!({ "method": "a.b" }), "spec.rules[0].matches[0].method.method"),
        ("/rules/0/matches/0/headers", json!([{ "name": "a b" }]), "spec.rules[0].matches[0].headers[0].name"),
        (
            "/rules/0/filters",
            json!([{ "type": "RequestRedirect", "requestRedirect": {} }]),
            "spec.rules[0].filters[0].type",
        ),
    ];
    cases("gateway.networking.k8s.io/v1", "GRPCRoute", &good, &bad);

    // What a gateway of somebody else's does is not ours to refuse; what a server cannot do is.
    let mirrored = |parent: Value, filter: &str| {
        let rules = json!([{ "filters": [{ "type": filter, "responseHeaderModifier": {} }] }]);
        check("gateway.networking.k8s.io/v1", "HTTPRoute", json!({ "parentRefs": [parent], "rules": rules }))
    };
    let server = json!({ "group": "policy.linkerd.io", "kind": "Server", "name": "a" });
    let service = json!({ "group": "", "kind": "Service", "name": "a" });
    assert!(mirrored(json!({ "name": "a" }), "RequestMirror").is_ok());
    assert!(mirrored(service.clone(), "RequestMirror").is_err());
    assert!(mirrored(service, "ResponseHeaderModifier").is_ok());
    assert!(mirrored(server, "ResponseHeaderModifier").is_err());
}

/// What a proxy would refuse, and with it all else that it is told.
#[test]
fn headers_are_those_of_http() {
    let route = |rule: Value| {
        let parent = json!({ "group": "", "kind": "Service", "name": "a" });
        check("gateway.networking.k8s.io/v1", "HTTPRoute", json!({ "parentRefs": [parent], "rules": [rule] }))
    };
    let found = |name: &str, value: &str| {
        route(json!({ "matches": [{ "headers": [{ "name": name, "value": value }] }] })).map_err(|error| error.field)
    };
    let changed = |side: &str, list: &str, name: &str, value: &str| {
        let header = if list == "remove" { json!(name) } else { json!({ "name": name, "value": value }) };
        let key = format!("{}HeaderModifier", side.to_ascii_lowercase());
        let filter = json!({ "type": format!("{side}HeaderModifier"), key: { list: [header] } });
        let of_rule = route(json!({ "filters": [filter] })).map_err(|error| error.field);
        // The same of one backend only.
        let backend = json!({ "name": "a", "port": 80, "filters": [filter] });
        let of_backend = route(json!({ "backendRefs": [backend] })).map_err(|error| error.field);
        let moved = |field: &String| field.replace("rules[0].", "rules[0].backendRefs[0].");
        assert_eq!(of_backend, of_rule.as_ref().copied().map_err(moved));
        of_rule
    };
    for name in ["", "a b", "a:", "a\r\nb", "é"] {
        assert_eq!(found(name, "v"), Err("spec.rules[0].matches[0].headers[0].name".into()), "{name:?}");
        for side in ["Request", "Response"] {
            let at = format!("spec.rules[0].filters[0].{}HeaderModifier", side.to_ascii_lowercase());
            for list in ["set", "add"] {
                assert_eq!(changed(side, list, name, "v"), Err(format!("{at}.{list}[0].name")), "{name:?}");
            }
            assert_eq!(changed(side, "remove", name, ""), Err(format!("{at}.remove[0]")), "{name:?}");
        }
    }
    for value in ["a\nb", "a\r", "\0", "\u{7f}", "é"] {
        assert_eq!(found("a", value), Err("spec.rules[0].matches[0].headers[0].value".into()), "{value:?}");
        let field = "spec.rules[0].filters[0].responseHeaderModifier.add[0].value";
        assert_eq!(changed("Response", "add", "a", value), Err(field.into()), "{value:?}");
    }
    for (name, value) in [("x-User_1.~", "a \t~\"!"), ("!#$%&'*+-.^_`|~", "")] {
        assert_eq!(found(name, value), Ok(()));
        for list in ["set", "add", "remove"] {
            assert_eq!(changed("Request", list, name, value), Ok(()));
        }
    }
}

/// A Server has one port.
#[test]
fn routes_are_about_whole_servers() {
    let of = |part: &str, value: Value| {
        let parent = json!({ "group": "policy.linkerd.io", "kind": "Server", "name": "a", part: value });
        check(POLICY, "HTTPRoute", json!({ "parentRefs": [parent] })).map_err(|error| error.field)
    };
    assert_eq!(of("namespace", json!("shop")), Ok(()));
    assert_eq!(of("port", json!(80)), Err("spec.parentRefs[0].port".into()));
    assert_eq!(of("sectionName", json!("http")), Err("spec.parentRefs[0].sectionName".into()));
}

#[test]
fn workloads_outside() {
    let good = json!({
        "meshTLS": { "identity": "spiffe://a/b", "serverName": "a.b" },
        "workloadIPs": [{ "ip": "192.0.2.1" }], "ports": [{ "port": 80 }],
    });
    let bad = [
        ("/meshTLS", Value::Null, "spec.meshTLS"),
        ("/meshTLS/identity", json!(""), "spec.meshTLS.identity"),
        ("/workloadIPs", json!([{ "ip": "web" }]), "spec.workloadIPs[0].ip"),
        ("/ports", json!([{ "port": 0 }]), "spec.ports[0].port"),
    ];
    cases("workload.linkerd.io/v1beta1", "ExternalWorkload", &good, &bad);
}

/// Every kind in every version can be read, and is written again as it was read.
#[test]
fn resources_have_types() {
    let reference = |kind: &str| json!({ "group": "policy.linkerd.io", "kind": kind, "name": "a" });
    let specs = [
        (
            Kind::Server,
            json!({ "podSelector": { "matchLabels": { "a": "b" } }, "port": "http", "proxyProtocol": "HTTP/1" }),
        ),
        (
            Kind::ServerAuthorization,
            json!({ "server": { "name": "a" }, "client": { "networks": [{ "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] }], "unauthenticated": true } }),
        ),
        (
            Kind::AuthorizationPolicy,
            json!({ "targetRef": reference("Server"), "requiredAuthenticationRefs": [reference("MeshTLSAuthentication")] }),
        ),
        (Kind::MeshTlsAuthentication, json!({ "identities": ["*"] })),
        (Kind::NetworkAuthentication, json!({ "networks": [{ "cidr": "10.0.0.1" }] })),
        (
            Kind::HttpLocalRateLimitPolicy,
            json!({ "targetRef": reference("Server"), "overrides": [{ "requestsPerSecond": 5, "clientRefs": [{ "kind": "ServiceAccount", "name": "a" }] }] }),
        ),
        (Kind::EgressNetwork, json!({ "trafficPolicy": "Allow" })),
        (
            Kind::HttpRoute,
            json!({ "parentRefs": [reference("Server")], "rules": [{ "matches": [{ "path": { "type": "Exact", "value": "/a" }, "method": "GET" }] }] }),
        ),
        (
            Kind::GatewayHttpRoute,
            json!({ "rules": [{ "backendRefs": [{ "name": "a", "port": 80, "weight": 0 }], "timeouts": { "request": "1s" } }] }),
        ),
        (Kind::GrpcRoute, json!({ "rules": [{ "matches": [{ "method": { "service": "a.B", "method": "C" } }] }] })),
        (
            Kind::ServiceProfile,
            json!({ "routes": [{ "name": "a", "condition": { "not": { "method": "GET" } }, "isRetryable": false }], "opaquePorts": ["80"] }),
        ),
        (
            Kind::TrafficSplit,
            json!({ "service": "a", "backends": [{ "service": "b", "weight": "500m" }, { "service": "c", "weight": 1 }] }),
        ),
        (
            Kind::ExternalWorkload,
            json!({ "meshTLS": { "identity": "a", "serverName": "a" }, "workloadIPs": [{ "ip": "192.0.2.1" }] }),
        ),
    ];
    let all: Vec<Kind> = Kind::ALL.iter().copied().filter(|kind| kind.is_mesh()).collect();
    assert_eq!(specs.len(), all.len());
    for (kind, spec) in specs {
        for version in kind.api_versions() {
            let metadata = json!({ "namespace": "shop", "name": "web.shop.svc.cluster.local" });
            let value = json!({ "apiVersion": version, "kind": kind.as_str(), "metadata": metadata, "spec": spec });
            let object = read(&value).unwrap().unwrap();
            assert_eq!(object.kind(), kind);
            assert_eq!(object.to_value()["spec"], spec, "{kind}");
            assert_eq!(object.to_value()["apiVersion"], kind.api_version());
        }
    }
    assert_eq!(read(&json!({ "apiVersion": "v1", "kind": "Pod" })), Ok(None));
}

#[test]
fn profiles_and_splits() {
    let good = json!({
        "routes": [{
            "name": "GET /",
            "condition": { "all": [{ "method": "GET" }, { "not": { "pathRegex": "/x/[^/]*" } }] },
            "timeout": "1m30s",
            "responseClasses": [{ "condition": { "status": { "min": 500, "max": 599 } }, "isFailure": true }],
        }],
        "retryBudget": { "retryRatio": 0.2, "minRetriesPerSecond": 10, "ttl": "10s" },
    });
    cases(
        "linkerd.io/v1alpha2",
        "ServiceProfile",
        &good,
        &[
            ("/routes/0/name", json!(""), "spec.routes[0].name"),
            ("/routes/0/condition", json!({}), "spec.routes[0].condition"),
            ("/routes/0/condition", json!({ "pathRegex": "[" }), "spec.routes[0].condition.pathRegex"),
            ("/routes/0/timeout", json!("5"), "spec.routes[0].timeout"),
            (
                "/routes/0/responseClasses",
                json!([{ "condition": { "status": { "min": 600 } } }]),
                "spec.routes[0].responseClasses[0].condition.status.min",
            ),
            (
                "/routes/0/responseClasses",
                json!([{ "condition": { "status": { "min": 300, "max": 200 } } }]),
                "spec.routes[0].responseClasses[0].condition.status",
            ),
            ("/retryBudget/ttl", Value::Null, "spec.retryBudget.ttl"),
            ("/retryBudget/retryRatio", json!(-1), "spec.retryBudget.retryRatio"),
        ],
    );
    let short = json!({ "apiVersion": "linkerd.io/v1alpha2", "kind": "ServiceProfile", "metadata": { "name": "web" } });
    assert_eq!(validate(&short).unwrap_err().field, "metadata.name");
    let mut deep = json!({ "method": "GET" });
    for _ in 0..100 {
        deep = json!({ "not": deep });
    }
    assert!(
        check("linkerd.io/v1alpha2", "ServiceProfile", json!({ "routes": [{ "name": "a", "condition": deep }] }))
            .is_err()
    );

    let good = json!({ "service": "web", "backends": [{ "service": "a", "weight": "500m" }, { "service": "b", "weight": 0 }] });
    cases(
        "split.smi-spec.io/v1alpha1",
        "TrafficSplit",
        &good,
        &[
            ("/service", json!(""), "spec.service"),
            ("/backends", json!([]), "spec.backends"),
            ("/backends", json!([{ "service": "a", "weight": 0 }]), "spec.backends"),
            ("/backends", json!([{ "service": "a", "weight": -1 }]), "spec.backends[0].weight"),
            ("/backends", json!([{ "service": "a", "weight": "x" }]), "spec.backends[0].weight"),
        ],
    );
}

#[test]
fn what_is_no_mesh_resource_is_passed_over() {
    for value in [Value::Null, json!([]), json!({ "apiVersion": "v1", "kind": "Server" }), json!({ "kind": 5 })] {
        assert_eq!(validate(&value), Ok(()));
    }
}
