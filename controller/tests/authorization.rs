//! The real binary over a directory of objects: Servers, who may connect to them, and what their streams hear.

mod support;

use linkerd2_proxy_api::destination::GetDestination;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::http_route::path_match;
use linkerd2_proxy_api::inbound::authn::Permit;
use linkerd2_proxy_api::inbound::authn::permit_mesh_tls::Clients;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind;
use linkerd2_proxy_api::inbound::{Authz, HttpLocalRateLimit, HttpRoute, PortSpec, Server, http_route};
use linkerd2_proxy_api::meta::{Metadata, metadata};
use serde_json::{Value, json};
use std::time::Duration;
use support::{Controller, State, meshed_pod, namespace, next};
use tonic::Streaming;
use tonic::transport::Channel;

const POLICY: &str = "policy.linkerd.io";

fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("policy.linkerd.io/{version}"), "kind": kind,
        "metadata": {"namespace": "shop", "name": name, "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec,
    })
}

/// A server of the pods `web`.
fn server(name: &str, port: Value) -> Value {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "port": port, "proxyProtocol": "HTTP/1"});
    object("v1beta3", "Server", name, spec)
}

fn policy(name: &str, target: (&str, &str, &str), required: Value) -> Value {
    let (group, kind, of) = target;
    let target = json!({"group": group, "kind": kind, "name": of});
    object(
        "v1alpha1",
        "AuthorizationPolicy",
        name,
        json!({"targetRef": target, "requiredAuthenticationRefs": required}),
    )
}

fn reference(kind: &str, name: &str) -> Value {
    let group = if kind == "ServiceAccount" { "" } else { POLICY };
    json!({"group": group, "kind": kind, "name": name})
}

struct Asking(InboundServerPoliciesClient<Channel>);

impl Asking {
    async fn of(controller: &Controller) -> Asking {
        Asking(InboundServerPoliciesClient::new(controller.channel("policy").await))
    }

    fn spec(port: u32) -> PortSpec {
        PortSpec { workload: "shop:web-5d4f8-aaaaa".to_owned(), port }
    }

    async fn watch(&mut self, port: u32) -> (Server, Streaming<Server>) {
        let mut stream = self.0.watch_port(Asking::spec(port)).await.unwrap().into_inner();
        (next(&mut stream).await, stream)
    }

    async fn get(&mut self, port: u32) -> Server {
        self.0.get_port(Asking::spec(port)).await.unwrap().into_inner()
    }
}

fn kind(server: &Server) -> &Kind {
    server.protocol.as_ref().unwrap().kind.as_ref().unwrap()
}

fn routes(server: &Server) -> &[HttpRoute] {
    match kind(server) {
        Kind::Detect(detect) => &detect.http_routes,
        Kind::Http1(http) => &http.routes,
        Kind::Http2(http) => &http.routes,
        other => panic!("{other:?}"),
    }
}

fn limit(server: &Server) -> Option<&HttpLocalRateLimit> {
    match kind(server) {
        Kind::Http1(http) => http.local_rate_limit.as_ref(),
        other => panic!("{other:?}"),
    }
}

fn name(meta: &Option<Metadata>) -> String {
    match meta.as_ref().unwrap().kind.as_ref().unwrap() {
        metadata::Kind::Default(name) => format!("default/{name}"),
        metadata::Kind::Resource(r) => format!("{}/{}/{}", r.group, r.kind, r.name),
    }
}

/// Kind and name of each, as metrics show them.
fn names(list: &[Authz]) -> Vec<String> {
    list.iter().map(|authz| format!("{}/{}", authz.labels["kind"], authz.labels["name"])).collect()
}

/// Whom an authorization lets in: identities as they are, suffixes with a star.
fn clients(authz: &Authz) -> Vec<String> {
    match authz.authentication.as_ref().unwrap().permit.as_ref().unwrap() {
        Permit::Unauthenticated(_) => vec!["everyone".to_owned()],
        Permit::MeshTls(tls) => match tls.clients.as_ref().unwrap() {
            Clients::Unauthenticated(_) => vec!["tls".to_owned()],
            Clients::Identities(ids) => {
                let names = ids.identities.iter().map(|identity| identity.name.clone());
                let suffixes = ids.suffixes.iter().map(|s| format!("*{}", s.parts.join(".")));
                names.chain(suffixes).collect()
            }
        },
    }
}

fn networks(authz: &Authz) -> Vec<String> {
    let net = |net| ipnet::IpNet::try_from(net).unwrap().to_string();
    let one = |n: &linkerd2_proxy_api::inbound::Network| {
        let except: Vec<_> = n.except.iter().map(|e| net(*e)).collect();
        format!("{}-{}", net(n.net.unwrap()), except.join(","))
    };
    authz.networks.iter().map(one).collect()
}

fn paths(route: &HttpRoute) -> Vec<path_match::Kind> {
    let matches = route.rules.iter().flat_map(|rule| &rule.matches);
    matches.filter_map(|found| found.path.as_ref()?.kind.clone()).collect()
}

fn shop() -> (State, Value) {
    let state = State::new();
    let mut pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": "http"}});
    state.put(&namespace("shop", json!({})));
    state.put(&pod);
    (state, pod)
}

#[tokio::test]
async fn a_server_shuts_its_port_and_authorizations_open_it() {
    let (state, _) = shop();
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    let (first, mut stream) = asking.watch(8080).await;
    assert_eq!(names(&first.authorizations), ["default/all-unauthenticated"]);

    state.put(&server("web", json!("http")));
    let shut = next(&mut stream).await;
    assert!(shut.authorizations.is_empty(), "{shut:?}");
    assert!(matches!(kind(&shut), Kind::Http1(_)));
    assert_eq!(
        (shut.labels["group"].as_str(), shut.labels["kind"].as_str(), shut.labels["name"].as_str()),
        (POLICY, "server", "web")
    );
    // The kubelet gets in, and the proxies' metrics are scraped.
    let probe = routes(&shut).iter().find(|route| name(&route.metadata) == "default/probe").unwrap();
    assert_eq!(paths(probe), [path_match::Kind::Exact("/healthz".into())]);
    assert_eq!(clients(&probe.authorizations[0]), ["everyone"]);
    state.put(&server("admin", json!(4191)));
    // A port that no server has is open as before.
    assert_eq!(names(&asking.get(9090).await.authorizations), ["default/all-unauthenticated"]);

    // The older form.
    let saz = |client: Value, of: Value| {
        object("v1beta1", "ServerAuthorization", "old", json!({"client": client, "server": of}))
    };
    let by_name = json!({"name": "web"});
    state.put(&saz(json!({"meshTLS": {"serviceAccounts": [{"name": "cart"}, {"name": "pay", "namespace": "bank"}], "identities": ["*.example.org", "*", "a.b"]}}), by_name.clone()));
    let open = next(&mut stream).await;
    let [authz] = open.authorizations.as_slice() else { panic!("{open:?}") };
    assert_eq!(name(&authz.metadata), "policy.linkerd.io/serverauthorization/old");
    assert_eq!(
        clients(authz),
        [
            "a.b",
            "cart.shop.serviceaccount.identity.weft.cluster.local",
            "pay.bank.serviceaccount.identity.weft.cluster.local",
            "*example.org",
            "*"
        ]
    );
    assert_eq!(networks(authz), ["0.0.0.0/0-", "::/0-"]);
    state.put(&saz(json!({"meshTLS": {"unauthenticatedTLS": true}, "networks": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]}), by_name));
    let open = next(&mut stream).await;
    assert_eq!(clients(&open.authorizations[0]), ["tls"]);
    assert_eq!(networks(&open.authorizations[0]), ["10.0.0.0/8-10.1.0.0/16"]);
    // By labels, which this server does not have.
    let old = saz(json!({"unauthenticated": true}), json!({"selector": {"matchLabels": {"tier": "front"}}}));
    state.put(&old);
    assert!(next(&mut stream).await.authorizations.is_empty());
    let mut labelled = server("web", json!("http"));
    labelled["metadata"]["labels"] = json!({"tier": "front"});
    state.put(&labelled);
    assert_eq!(clients(&next(&mut stream).await.authorizations[0]), ["everyone"]);
    state.delete(&old);
    assert!(next(&mut stream).await.authorizations.is_empty());

    // Who else may connect is the server's own to say.
    labelled["spec"]["accessPolicy"] = json!("all-authenticated");
    state.put(&labelled);
    assert_eq!(names(&next(&mut stream).await.authorizations), ["default/all-authenticated"]);
    state.delete(&labelled);
    let again = next(&mut stream).await;
    assert_eq!(again, first);
}

#[tokio::test]
async fn policies_demand_all_that_they_require() {
    let (state, _) = shop();
    state.put(&server("web", json!(8080)));
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    let (_, mut stream) = asking.watch(8080).await;

    let to_web = (POLICY, "Server", "web");
    let required = json!([reference("MeshTLSAuthentication", "known"), reference("NetworkAuthentication", "near")]);
    let known = |spec: Value| object("v1alpha1", "MeshTLSAuthentication", "known", spec);
    let near = object(
        "v1alpha1",
        "NetworkAuthentication",
        "near",
        json!({"networks": [{"cidr": "10.0.0.0/8", "except": ["10.9.0.1"]}]}),
    );
    // What it refers to is not there: nobody satisfies it, and nobody hears of it.
    state.put(&policy("both", to_web, required));
    state.put(&known(json!({"identities": ["cart.example.org"]})));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(asking.get(8080).await.authorizations.is_empty());
    state.put(&near);
    let open = next(&mut stream).await;
    let [authz] = open.authorizations.as_slice() else { panic!("{open:?}") };
    assert_eq!(name(&authz.metadata), "policy.linkerd.io/authorizationpolicy/both");
    assert_eq!(
        (clients(authz), networks(authz)),
        (vec!["cart.example.org".to_owned()], vec!["10.0.0.0/8-10.9.0.1/32".to_owned()])
    );

    // The authentication changes, and with it what it is used in.
    state.put(&known(json!({"identityRefs": [
        {"kind": "ServiceAccount", "name": "cart"}, {"kind": "Namespace", "name": "bank"}, {"kind": "Namespace"},
    ]})));
    let open = next(&mut stream).await;
    assert_eq!(
        clients(&open.authorizations[0]),
        [
            "cart.shop.serviceaccount.identity.weft.cluster.local",
            "*bank.serviceaccount.identity.weft.cluster.local",
            "*shop.serviceaccount.identity.weft.cluster.local"
        ]
    );
    // One of another namespace.
    let mut far = known(json!({"identities": ["*"]}));
    far["metadata"]["namespace"] = json!("bank");
    let mut of_bank = reference("MeshTLSAuthentication", "known");
    of_bank["namespace"] = json!("bank");
    state.put(&policy("both", to_web, json!([of_bank])));
    assert!(next(&mut stream).await.authorizations.is_empty());
    state.put(&far);
    assert_eq!(clients(&next(&mut stream).await.authorizations[0]), ["*"]);
    state.delete(&far);
    assert!(next(&mut stream).await.authorizations.is_empty());

    // A service account directly; a whole namespace; nothing required; something unknown required.
    state.put(&policy("both", to_web, json!([reference("ServiceAccount", "cart")])));
    assert_eq!(
        clients(&next(&mut stream).await.authorizations[0]),
        ["cart.shop.serviceaccount.identity.weft.cluster.local"]
    );
    state.put(&policy("both", ("core", "Namespace", "shop"), json!([])));
    assert_eq!(clients(&next(&mut stream).await.authorizations[0]), ["everyone"]);
    state.put(&policy("both", ("core", "Namespace", "other"), json!([])));
    assert!(next(&mut stream).await.authorizations.is_empty());
    state.put(&policy("both", to_web, json!([reference("PasswordAuthentication", "a")])));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(asking.get(8080).await.authorizations.is_empty());
}

#[tokio::test]
async fn the_oldest_server_has_a_port() {
    let (state, mut pod) = shop();
    let mut older = server("z-older", json!("http"));
    older["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    for object in [&server("b", json!(8080)), &server("a", json!(8080)), &older] {
        state.put(object);
    }
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    let (first, mut stream) = asking.watch(8080).await;
    assert_eq!(first.labels["name"], "z-older");
    state.delete(&older);
    assert_eq!(next(&mut stream).await.labels["name"], "a", "of one age the first by name");
    // A pod with other labels is none of the server's.
    pod["metadata"]["labels"]["app"] = json!("other");
    state.put(&pod);
    assert_eq!(next(&mut stream).await.labels["name"], "all-unauthenticated");

    // What a server declares.
    pod["metadata"]["labels"]["app"] = json!("web");
    state.put(&pod);
    next(&mut stream).await;
    let mut declared = server("a", json!(8080));
    for protocol in ["unknown", "HTTP/2", "gRPC", "opaque", "TLS"] {
        declared["spec"]["proxyProtocol"] = json!(protocol);
        state.put(&declared);
        let answer = next(&mut stream).await;
        let right = match kind(&answer) {
            Kind::Detect(_) => "unknown",
            Kind::Http1(_) => "HTTP/1",
            Kind::Http2(_) => "HTTP/2",
            Kind::Grpc(grpc) => {
                assert_eq!(name(&grpc.routes[0].metadata), "default/default");
                "gRPC"
            }
            Kind::Opaque(_) => "opaque",
            Kind::Tls(_) => "TLS",
        };
        assert_eq!(right, protocol);
    }
}

/// Clients must not send a peer what it takes for plain octets.
#[tokio::test]
async fn what_a_server_speaks_is_told_to_clients() {
    let (state, mut pod) = shop();
    pod["metadata"]["annotations"] = json!({"config.linkerd.io/opaque-ports": "9000"});
    state.put(&pod);
    let controller = Controller::destination(state.path());
    let mut client = DestinationClient::new(controller.channel("destination").await);
    let mut watch = async |port: u16| {
        let ask = GetDestination { path: format!("10.244.0.1:{port}"), ..GetDestination::default() };
        client.get_profile(ask).await.unwrap().into_inner()
    };
    let (mut detected, mut opaque) = (watch(8080).await, watch(9000).await);
    assert_eq!((next(&mut detected).await.opaque_protocol, next(&mut opaque).await.opaque_protocol), (false, true));
    let mut raw = server("raw", json!("http"));
    raw["spec"]["proxyProtocol"] = json!("opaque");
    state.put(&raw);
    assert!(next(&mut detected).await.opaque_protocol);
    // It knows better than the annotation.
    state.put(&server("http", json!(9000)));
    assert!(!next(&mut opaque).await.opaque_protocol);
    state.delete(&raw);
    assert!(!next(&mut detected).await.opaque_protocol);
}

#[tokio::test]
async fn routes_and_limits_of_a_server() {
    let (state, _) = shop();
    state.put(&server("web", json!(8080)));
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    let (_, mut stream) = asking.watch(8080).await;

    let mut route = object(
        "v1beta3",
        "HTTPRoute",
        "buy",
        json!({
            "parentRefs": [reference("Server", "web")],
            "hostnames": ["shop.example.org", "*.example.com"],
            "rules": [{
                "matches": [{
                    "path": {"type": "Exact", "value": "/buy"}, "method": "POST",
                    "headers": [{"name": "x-user", "type": "RegularExpression", "value": "a.*"}],
                    "queryParams": [{"name": "q", "value": "1"}],
                }],
                "filters": [
                    {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}], "remove": ["c"]}},
                    {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301}},
                ],
            }],
        }),
    );
    state.put(&route);
    let routed = next(&mut stream).await;
    // It says itself what may be asked, the kubelet included.
    let [buy] = routes(&routed) else { panic!("{routed:?}") };
    assert_eq!(name(&buy.metadata), "policy.linkerd.io/HTTPRoute/buy");
    assert_eq!(buy.hosts.len(), 2);
    let found = &buy.rules[0].matches[0];
    assert_eq!(paths(buy), [path_match::Kind::Exact("/buy".into())]);
    assert!(found.method.is_some() && found.headers.len() == 1 && found.query_params.len() == 1);
    let filters: Vec<_> = buy.rules[0].filters.iter().map(|filter| filter.kind.as_ref().unwrap()).collect();
    assert!(matches!(filters[0], http_route::filter::Kind::RequestHeaderModifier(m) if m.remove == ["c"]));
    assert!(matches!(filters[1], http_route::filter::Kind::Redirect(r) if r.status == 301));
    assert!(buy.authorizations.is_empty() && routed.authorizations.is_empty());

    // Who may use the route need not be let in everywhere.
    state.put(&policy("buyers", (POLICY, "HTTPRoute", "buy"), json!([reference("ServiceAccount", "cart")])));
    let routed = next(&mut stream).await;
    assert!(routed.authorizations.is_empty());
    assert_eq!(
        clients(&routes(&routed)[0].authorizations[0]),
        ["cart.shop.serviceaccount.identity.weft.cluster.local"]
    );

    // A route of a port, or of a part, is about no Server; without routes what is probed is open again.
    let without = |routed: &Server| {
        assert_eq!(
            routes(routed).iter().map(|r| name(&r.metadata)).collect::<Vec<_>>(),
            ["default/probe", "default/default"]
        );
    };
    for (part, value) in [("port", json!(8080)), ("sectionName", json!("http"))] {
        route["spec"]["parentRefs"][0][part] = value;
        state.put(&route);
        without(&next(&mut stream).await);
        route["spec"]["parentRefs"][0].as_object_mut().unwrap().remove(part);
        state.put(&route);
        assert_eq!(name(&routes(&next(&mut stream).await)[0].metadata), "policy.linkerd.io/HTTPRoute/buy");
    }
    // The same name in the Gateway API's group is another route; the policy is not about it.
    state.delete(&route);
    without(&next(&mut stream).await);
    route["apiVersion"] = json!("gateway.networking.k8s.io/v1");
    state.put(&route);
    let routed = next(&mut stream).await;
    assert_eq!(name(&routes(&routed)[0].metadata), "gateway.networking.k8s.io/HTTPRoute/buy");
    assert!(routes(&routed)[0].authorizations.is_empty());

    state.put(&object("v1alpha1", "HTTPLocalRateLimitPolicy", "slow", json!({
        "targetRef": reference("Server", "web"), "total": {"requestsPerSecond": 100}, "identity": {"requestsPerSecond": 10},
        "overrides": [{"requestsPerSecond": 50, "clientRefs": [{"kind": "ServiceAccount", "name": "cart"}]}],
    })));
    let limited = next(&mut stream).await;
    let limit = limit(&limited).unwrap();
    assert_eq!(name(&limit.metadata), "policy.linkerd.io/httplocalratelimitpolicy/slow");
    assert_eq!((limit.total.unwrap().requests_per_second, limit.identity.unwrap().requests_per_second), (100, 10));
    let client = &limit.overrides[0].clients.as_ref().unwrap().identities[0];
    assert_eq!(client.name, "cart.shop.serviceaccount.identity.weft.cluster.local");
}

/// Ports of other protocols go past the proxy, and may have the same name.
#[tokio::test]
async fn only_ports_of_tcp_have_policies() {
    let (state, mut pod) = shop();
    let ports = json!([
        {"name": "http", "containerPort": 8081, "protocol": "UDP"},
        {"name": "http", "containerPort": 8080, "protocol": "tcp"},
    ]);
    pod["spec"]["containers"][0]["ports"] = ports;
    state.put(&pod);
    state.put(&server("web", json!("http")));
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    let (tcp, udp) = (asking.get(8080).await, asking.get(8081).await);
    assert_eq!((tcp.labels["name"].as_str(), udp.labels["name"].as_str()), ("web", "all-unauthenticated"));
    let probed = |server: &Server| routes(server).iter().any(|route| name(&route.metadata) == "default/probe");
    assert!(probed(&tcp) && !probed(&udp));
}

#[tokio::test]
async fn only_those_hear_whom_it_concerns() {
    let (state, _) = shop();
    state.put(&server("web", json!(8080)));
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    let (_, mut web) = asking.watch(8080).await;
    let (_, mut other) = asking.watch(9090).await;
    // Of another port, of other pods, of another namespace, and what changes nothing.
    let mut elsewhere = server("web", json!(8080));
    elsewhere["metadata"]["namespace"] = json!("bank");
    let mut others = server("others", json!(8080));
    others["spec"]["podSelector"] = json!({"matchLabels": {"app": "other"}});
    for object in [&elsewhere, &others, &policy("unknown", (POLICY, "Server", "others"), json!([]))] {
        state.put(object);
    }
    let mut labelled = server("web", json!(8080));
    labelled["metadata"]["labels"] = json!({"a": "b"});
    state.put(&labelled);
    state.put(&server("ninety", json!(9090)));
    assert_eq!(next(&mut other).await.labels["name"], "ninety");
    state.put(&policy("all", (POLICY, "Server", "web"), json!([])));
    assert_eq!(names(&next(&mut web).await.authorizations), ["authorizationpolicy/all"], "the first message since");
    let silent = tokio::time::timeout(Duration::from_millis(300), other.message()).await;
    assert!(silent.is_err(), "{silent:?}");
}

#[tokio::test]
async fn ports_that_require_an_identity() {
    let (state, mut pod) = shop();
    pod["metadata"]["annotations"] =
        json!({"config.linkerd.io/proxy-require-identity-inbound-ports": "8000-8100,9090"});
    state.put(&pod);
    let controller = Controller::destination(state.path());
    let mut asking = Asking::of(&controller).await;
    for (port, policy) in [(8080, "all-authenticated"), (9090, "all-authenticated"), (7070, "all-unauthenticated")] {
        assert_eq!(names(&asking.get(port).await.authorizations), [format!("default/{policy}")], "{port}");
    }
    // The namespace's demand counts too, and is no wider than its policy.
    pod["metadata"]["annotations"] = json!({"config.linkerd.io/default-inbound-policy": "cluster-unauthenticated"});
    state.put(&namespace("shop", json!({"config.linkerd.io/proxy-require-identity-inbound-ports": "8080"})));
    let (_, mut stream) = asking.watch(8080).await;
    state.put(&pod);
    assert_eq!(next_named(&mut stream, "default/cluster-authenticated").await, ["default/cluster-authenticated"]);
}

/// Reads on until the answer has this authorization.
async fn next_named(stream: &mut Streaming<Server>, wanted: &str) -> Vec<String> {
    loop {
        let found = names(&next(stream).await.authorizations);
        if found.iter().any(|name| name == wanted) {
            return found;
        }
    }
}
