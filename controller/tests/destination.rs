//! The real binary over a directory of objects, asked for endpoints and profiles by clients of `linkerd2-proxy-api`.

mod support;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::protocol_hint::Protocol;
use linkerd2_proxy_api::destination::tls_identity::Strategy;
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update, WeightedAddr};
use linkerd2_proxy_api::net::TcpAddress;
use serde_json::json;
use std::collections::HashMap;
use std::net::SocketAddr;
use support::{Controller, State, meshed_pod, namespace, next, plain_pod, service, slice, until};
use tonic::transport::Channel;
use tonic::{Code, Streaming};

type Client = DestinationClient<Channel>;

async fn client(controller: &Controller) -> Client {
    DestinationClient::new(controller.channel("destination").await)
}

fn ask(path: &str) -> GetDestination {
    GetDestination { scheme: String::new(), path: path.to_owned(), context_token: r#"{"ns":"shop"}"#.to_owned() }
}

async fn get(client: &mut Client, path: &str) -> Streaming<Update> {
    client.get(ask(path)).await.unwrap().into_inner()
}

async fn profile(client: &mut Client, path: &str) -> (DestinationProfile, Streaming<DestinationProfile>) {
    let mut stream = client.get_profile(ask(path)).await.unwrap().into_inner();
    (next(&mut stream).await, stream)
}

fn addr(addr: Option<TcpAddress>) -> SocketAddr {
    addr.unwrap().try_into().unwrap()
}

fn added(update: Update) -> (Vec<WeightedAddr>, HashMap<String, String>) {
    match update.update {
        Some(Kind::Add(set)) => (set.addrs, set.metric_labels),
        other => panic!("not an addition: {other:?}"),
    }
}

fn added_addrs(update: Update) -> Vec<String> {
    let mut addrs: Vec<_> = added(update).0.into_iter().map(|e| addr(e.addr).to_string()).collect();
    addrs.sort();
    addrs
}

fn removed(update: Update) -> Vec<String> {
    match update.update {
        Some(Kind::Remove(set)) => set.addrs.into_iter().map(|a| addr(Some(a)).to_string()).collect(),
        other => panic!("not a removal: {other:?}"),
    }
}

fn none(update: &Update) -> bool {
    match &update.update {
        Some(Kind::NoEndpoints(none)) => none.exists,
        other => panic!("not without endpoints: {other:?}"),
    }
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn identity(endpoint: &WeightedAddr) -> Option<String> {
    let tls = endpoint.tls_identity.as_ref()?;
    match tls.strategy.as_ref()? {
        Strategy::DnsLikeIdentity(id) => {
            assert_eq!(tls.server_name.as_ref(), Some(id));
            Some(id.name.clone())
        }
        Strategy::UriLikeIdentity(_) => panic!("a URI"),
    }
}

fn transport_port(endpoint: &WeightedAddr) -> Option<u32> {
    Some(endpoint.protocol_hint.as_ref()?.opaque_transport.as_ref()?.inbound_port)
}

#[tokio::test]
async fn endpoints_carry_labels_identity_and_hints() {
    let state = State::new();
    let web = service("shop", "web", "10.96.0.1");
    let meshed = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    let plain = plain_pod("shop", "legacy", "10.244.0.2");
    let mut foreign = meshed_pod("shop", "other", "bbbbb", "10.244.0.3");
    foreign["metadata"]["labels"]["linkerd.io/control-plane-ns"] = json!("linkerd");
    let mut skipped = meshed_pod("shop", "skip", "ccccc", "10.244.0.4");
    skipped["metadata"]["annotations"] = json!({"config.linkerd.io/skip-inbound-ports": "8000-8080"});
    let mut opaque = meshed_pod("shop", "opaque", "ddddd", "10.244.0.5");
    opaque["metadata"]["annotations"] = json!({"config.linkerd.io/opaque-ports": "http"});
    let pods = [&meshed, &plain, &foreign, &skipped, &opaque];
    for object in pods.into_iter().chain([&web, &slice(&web, &pods)]) {
        state.put(object);
    }
    let controller = Controller::destination(state.path());
    let mut client = client(&controller).await;
    let mut stream = get(&mut client, "web.shop.svc.cluster.local:80").await;
    let (endpoints, set_labels) = added(next(&mut stream).await);
    assert_eq!(set_labels, labels(&[("namespace", "shop"), ("service", "web")]));
    let endpoints: HashMap<String, WeightedAddr> =
        endpoints.into_iter().map(|e| (addr(e.addr).ip().to_string(), e)).collect();
    assert_eq!(endpoints.len(), 5);
    assert!(endpoints.values().all(|e| e.weight == 10_000 && addr(e.addr).port() == 8080));

    let meshed = &endpoints["10.244.0.1"];
    let expected = labels(&[
        ("pod", "web-5d4f8-aaaaa"),
        ("deployment", "web"),
        ("serviceaccount", "web"),
        ("control_plane_ns", "weft"),
        ("pod_template_hash", "5d4f8"),
        ("zone", ""),
    ]);
    assert_eq!(meshed.metric_labels, expected);
    assert_eq!(identity(meshed).as_deref(), Some("web.shop.serviceaccount.identity.weft.cluster.local"));
    assert_eq!(transport_port(meshed), Some(4143));
    assert!(matches!(meshed.protocol_hint.as_ref().unwrap().protocol, Some(Protocol::H2(_))));

    let plain = &endpoints["10.244.0.2"];
    assert_eq!((identity(plain), plain.protocol_hint.as_ref()), (None, None));
    assert_eq!(plain.metric_labels["pod"], "legacy");
    assert!(!plain.metric_labels.contains_key("control_plane_ns"));

    let foreign = &endpoints["10.244.0.3"];
    assert_eq!(identity(foreign), None, "another control plane's identities are not ours to vouch for");
    assert!(foreign.protocol_hint.is_some());

    let skipped = &endpoints["10.244.0.4"];
    assert_eq!((identity(skipped), skipped.protocol_hint.as_ref()), (None, None));

    let opaque = &endpoints["10.244.0.5"];
    assert!(identity(opaque).is_some());
    assert_eq!(transport_port(opaque), Some(4143));
    assert!(matches!(opaque.protocol_hint.as_ref().unwrap().protocol, Some(Protocol::Opaque(_))));
}

#[tokio::test]
async fn deltas_say_only_what_changed() {
    let state = State::new();
    let web = service("shop", "web", "10.96.0.1");
    let other = service("shop", "other", "10.96.0.2");
    let pods: Vec<_> =
        (1..=4).map(|n| meshed_pod("shop", "web", &format!("aaaa{n}"), &format!("10.244.0.{n}"))).collect();
    for object in pods.iter().chain([&web, &other]) {
        state.put(object);
    }
    state.put(&slice(&web, &[&pods[0], &pods[1]]));
    let controller = Controller::destination(state.path());
    let mut client = client(&controller).await;
    let mut stream = get(&mut client, "web.shop.svc.cluster.local:80").await;
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.1:8080", "10.244.0.2:8080"]);

    // Changes that mean nothing for these endpoints send nothing: what comes next is the addition.
    let mut busy = pods[0].clone();
    busy["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    state.put(&busy);
    state.put(&slice(&other, &[&pods[3]]));
    state.put(&web);
    state.put(&slice(&web, &[&pods[0], &pods[1], &pods[2]]));
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.3:8080"]);

    // One that becomes another pod's: an addition of that one alone.
    let mut relabelled = pods[1].clone();
    relabelled["metadata"]["labels"]["pod-template-hash"] = json!("other");
    state.put(&relabelled);
    let (endpoints, _) = added(next(&mut stream).await);
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].metric_labels["pod_template_hash"], "other");

    // Not ready, and on its way down: both go.
    let mut leaving = slice(&web, &[&pods[0], &pods[1], &pods[2]]);
    leaving["endpoints"][0]["conditions"]["ready"] = json!(false);
    state.put(&leaving);
    assert_eq!(removed(next(&mut stream).await), ["10.244.0.1:8080"]);
    leaving["endpoints"][1]["conditions"]["terminating"] = json!(true);
    state.put(&leaving);
    assert_eq!(removed(next(&mut stream).await), ["10.244.0.2:8080"]);

    // Replaced at once: the new one comes before the old one goes.
    state.put(&slice(&web, &[&pods[3]]));
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.4:8080"]);
    assert_eq!(removed(next(&mut stream).await), ["10.244.0.3:8080"]);

    state.delete(&slice(&web, &[]));
    assert!(none(&next(&mut stream).await), "the service is there");
    state.delete(&web);
    assert!(!none(&next(&mut stream).await), "the service is gone");
    state.put(&slice(&web, &[&pods[0]]));
    state.put(&web);
    // The service can be seen before its slice.
    let mut update = next(&mut stream).await;
    if matches!(update.update, Some(Kind::NoEndpoints(_))) {
        update = next(&mut stream).await;
    }
    assert_eq!(added_addrs(update), ["10.244.0.1:8080"]);
}

#[tokio::test]
async fn ports_and_names_are_resolved() {
    let state = State::new();
    let mut db = service("shop", "db", "10.96.0.9");
    db["spec"]["clusterIP"] = json!("None");
    db["spec"]["clusterIPs"] = json!(["None"]);
    db["spec"]["ports"] = json!([{"name": "sql", "port": 5432}]);
    let pods = [plain_pod("shop", "db-0", "10.244.1.1"), plain_pod("shop", "db-1", "10.244.1.2")];
    let mut db_slice = slice(&db, &[&pods[0], &pods[1]]);
    db_slice["ports"] = json!([{"name": "sql", "port": 15432}]);
    db_slice["endpoints"][0]["hostname"] = json!("db-0");
    db_slice["endpoints"][1]["hostname"] = json!("db-1");
    // Without a selector, and with a slice that somebody wrote by hand.
    let mut outside = service("shop", "outside", "10.96.0.10");
    outside["spec"]["selector"] = json!(null);
    outside["spec"]["ports"] = json!([{"port": 443, "targetPort": 8443}]);
    let mut by_hand = slice(&outside, &[]);
    by_hand["endpoints"] = json!([{"addresses": ["192.0.2.1"]}]);
    by_hand["ports"] = json!([{"name": "", "port": 8443}]);
    let mut alias = service("shop", "alias", "");
    alias["spec"] = json!({"type": "ExternalName", "externalName": "example.org"});
    for object in [&db, &db_slice, &pods[0], &pods[1], &outside, &by_hand, &alias] {
        state.put(object);
    }
    let controller = Controller::destination(state.path());
    let mut client = client(&controller).await;

    let mut all = get(&mut client, "db.shop.svc.cluster.local:5432").await;
    assert_eq!(added_addrs(next(&mut all).await), ["10.244.1.1:15432", "10.244.1.2:15432"]);
    let mut one = get(&mut client, "db-1.db.shop.svc.cluster.local:5432").await;
    assert_eq!(added_addrs(next(&mut one).await), ["10.244.1.2:15432"]);
    let mut nobody = get(&mut client, "db-7.db.shop.svc.cluster.local:5432").await;
    assert!(none(&next(&mut nobody).await));
    let mut any_port = get(&mut client, "db.shop.svc.cluster.local:9999").await;
    assert_eq!(added_addrs(next(&mut any_port).await), ["10.244.1.1:9999", "10.244.1.2:9999"]);
    let mut external = get(&mut client, "outside.shop.svc.cluster.local:443").await;
    let (endpoints, _) = added(next(&mut external).await);
    assert_eq!(addr(endpoints[0].addr).to_string(), "192.0.2.1:8443");
    assert!(endpoints[0].metric_labels.is_empty() && endpoints[0].tls_identity.is_none());
    let mut undefined = get(&mut client, "outside.shop.svc.cluster.local:80").await;
    assert!(none(&next(&mut undefined).await));

    for (path, code) in [
        ("nobody.shop.svc.cluster.local:80", Code::NotFound),
        ("10.96.0.10:443", Code::InvalidArgument),
        ("alias.shop.svc.cluster.local:80", Code::InvalidArgument),
        ("outside.shop:443", Code::InvalidArgument),
        ("outside.shop.svc.example.org:443", Code::InvalidArgument),
        ("outside.shop.svc.cluster.local:0", Code::InvalidArgument),
        ("outside.shop.svc.cluster.local:http", Code::InvalidArgument),
        ("", Code::InvalidArgument),
    ] {
        assert_eq!(client.get(ask(path)).await.unwrap_err().code(), code, "{path}");
    }

    // A profile of one pod by its name is that of an endpoint.
    let (of_pod, _stream) = profile(&mut client, "db-1.db.shop.svc.cluster.local:5432").await;
    assert_eq!(addr(of_pod.endpoint.unwrap().addr).to_string(), "10.244.1.2:15432");
    assert_eq!(client.get_profile(ask("a.b:80")).await.unwrap_err().code(), Code::InvalidArgument);
    let unknown = client.get_profile(ask("nobody.shop.svc.cluster.local:80")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn profiles_follow_what_is_declared() {
    let state = State::new();
    let mut web = service("shop", "web", "10.96.0.1");
    web["spec"]["ports"].as_array_mut().unwrap().push(json!({"name": "mysql", "port": 3306}));
    let pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    for object in [&namespace("shop", json!({})), &web, &pod] {
        state.put(object);
    }
    let controller = Controller::destination(state.path());
    let mut client = client(&controller).await;

    let (of_service, mut service_stream) = profile(&mut client, "10.96.0.1:80").await;
    assert_eq!(of_service.fully_qualified_name, "web.shop.svc.cluster.local");
    assert!(!of_service.opaque_protocol && of_service.endpoint.is_none() && of_service.routes.is_empty());
    let budget = of_service.retry_budget.unwrap();
    assert_eq!((budget.retry_ratio, budget.min_retries_per_second), (0.2, 10));
    assert_eq!(budget.ttl.unwrap().seconds, 10);
    let Some(linkerd2_proxy_api::meta::metadata::Kind::Resource(parent)) = of_service.parent_ref.clone().unwrap().kind
    else {
        panic!("not a resource");
    };
    assert_eq!((parent.group.as_str(), parent.kind.as_str(), parent.port), ("core", "Service", 80));
    assert_eq!((parent.namespace.as_str(), parent.name.as_str()), ("shop", "web"));
    let (by_name, _stream) = profile(&mut client, "web.shop.svc.cluster.local:80").await;
    assert_eq!(by_name, of_service);
    let (mysql, _stream) = profile(&mut client, "10.96.0.1:3306").await;
    assert!(mysql.opaque_protocol, "by the default list");
    let (undefined, _stream) = profile(&mut client, "10.96.0.1:81").await;
    assert_eq!(undefined, DestinationProfile::default());

    let (of_pod, mut pod_stream) = profile(&mut client, "10.244.0.1:8080").await;
    let endpoint = of_pod.endpoint.unwrap();
    assert_eq!(addr(endpoint.addr).to_string(), "10.244.0.1:8080");
    assert_eq!(endpoint.metric_labels["namespace"], "shop");
    assert_eq!(endpoint.metric_labels["deployment"], "web");
    assert_eq!(identity(&endpoint).as_deref(), Some("web.shop.serviceaccount.identity.weft.cluster.local"));
    assert!(!of_pod.opaque_protocol && of_pod.fully_qualified_name.is_empty());
    let (admin, _stream) = profile(&mut client, "10.244.0.1:4191").await;
    let admin = admin.endpoint.unwrap();
    assert_eq!(transport_port(&admin), None, "the proxy's own port is not behind its inbound side");
    assert!(identity(&admin).is_some());

    let (unknown, mut unknown_stream) = profile(&mut client, "192.0.2.1:80").await;
    assert_eq!(unknown, DestinationProfile::default());
    let (unknown, _stream) = profile(&mut client, "192.0.2.1:5432").await;
    assert!(unknown.opaque_protocol);

    // The namespace's annotation counts for services and pods that have none of their own.
    state.put(&namespace("shop", json!({"config.linkerd.io/opaque-ports": "80,8080"})));
    assert!(next(&mut service_stream).await.opaque_protocol);
    assert!(next(&mut pod_stream).await.opaque_protocol);
    web["metadata"]["annotations"] = json!({"config.linkerd.io/opaque-ports": "http"});
    state.put(&namespace("shop", json!({})));
    state.put(&web);
    assert!(!next(&mut pod_stream).await.opaque_protocol);
    // What is declared for the port is more precise than the list.
    web["spec"]["ports"][0]["appProtocol"] = json!("http");
    state.put(&web);
    let (mut last, mut seen) = (next(&mut service_stream).await, 1);
    while last.opaque_protocol {
        last = next(&mut service_stream).await;
        seen += 1;
    }
    assert!(seen <= 3, "more profiles than changes");

    // An address that becomes a pod's.
    let newcomer = plain_pod("shop", "newcomer", "192.0.2.1");
    state.put(&newcomer);
    assert!(next(&mut unknown_stream).await.endpoint.is_some());
    state.delete(&newcomer);
    assert_eq!(next(&mut unknown_stream).await, DestinationProfile::default());
}

#[tokio::test]
async fn nonsense_in_the_directory_does_no_harm() {
    let state = State::new();
    let web = service("shop", "web", "10.96.0.1");
    let pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    let slice = slice(&web, &[&pod]);
    for object in [&web, &pod, &slice] {
        state.put(object);
    }
    let garbage = [
        ("pods/shop/half.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"na"#),
        ("pods/shop/list.json", "[1, 2, 3]"),
        ("pods/shop/empty.json", ""),
        ("pods/shop/binary.json", "\u{0}\u{1}\u{2}"),
        ("pods/shop/liar.json", r#"{"metadata": {"namespace": "shop", "name": "another"}}"#),
        ("pods/shop/typed.json", r#"{"metadata": {"namespace": "shop", "name": "typed"}, "spec": {"containers": 7}}"#),
        ("pods/deep/down/below.json", "{}"),
        ("services/notes.txt", "not an object"),
        ("unknownkinds/shop/x.json", "{}"),
        ("stray.json", "{}"),
    ];
    for (file, text) in garbage {
        state.write(&state.path().join(file), text);
    }
    std::fs::create_dir_all(state.path().join("pods/shop/directory.json")).unwrap();
    let controller = Controller::destination(state.path());
    let mut client = client(&controller).await;
    let mut stream = get(&mut client, "web.shop.svc.cluster.local:80").await;
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.1:8080"]);

    // An object that was good stays as it was while its file is not.
    let text = slice.to_string();
    state.write(&state.file(&slice), &text[..text.len() / 2]);
    let mut broken = pod.clone();
    broken["status"]["podIP"] = json!(12);
    state.put(&broken);
    let complained = |file: &str, field: &str| {
        controller.logs().iter().any(|line| {
            let fields = &line["fields"];
            fields["file"].as_str().is_some_and(|f| f.ends_with(file)) && fields["field"] == field
        })
    };
    until("the files are complained about", || {
        std::future::ready(
            complained("web-abcde.json", "")
                && complained("web-5d4f8-aaaaa.json", "status.podIP")
                && complained("typed.json", "spec.containers")
                && complained("liar.json", "metadata"),
        )
    })
    .await;
    let mut again = get(&mut client, "web.shop.svc.cluster.local:80").await;
    let (endpoints, _) = added(next(&mut again).await);
    assert_eq!(addr(endpoints[0].addr).to_string(), "10.244.0.1:8080");
    assert!(identity(&endpoints[0]).is_some());

    // Good again, with a change: that change alone arrives on the stream that was open all the time.
    let newcomer = plain_pod("shop", "newcomer", "10.244.0.2");
    state.put(&newcomer);
    state.put(&support::slice(&web, &[&pod, &newcomer]));
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.2:8080"]);
    let (status, metrics) = controller.admin("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("weft_source_bad_files_total"), "{metrics}");
    assert!(metrics.contains(r#"weft_index_objects{kind="pod"} 2"#), "{metrics}");
    assert!(
        metrics.contains(
            r#"grpc_server_streams{grpc_service="io.linkerd.proxy.destination.Destination",grpc_method="Get"} 2"#
        ),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_restart_tells_the_same_and_a_drain_ends_streams() {
    let state = State::new();
    let web = service("shop", "web", "10.96.0.1");
    let pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    for object in [&web, &pod, &slice(&web, &[&pod])] {
        state.put(object);
    }
    let path = "web.shop.svc.cluster.local:80";
    let first = Controller::destination(state.path());
    let mut stream = get(&mut client(&first).await, path).await;
    let before = added(next(&mut stream).await);
    // As hard as it gets.
    drop(first);
    assert!(stream.message().await.is_err(), "the stream breaks with the process");
    let mut second = Controller::destination(state.path());
    let mut stream = get(&mut client(&second).await, path).await;
    assert_eq!(added(next(&mut stream).await), before);
    second.terminate();
    assert_eq!(stream.message().await.unwrap(), None, "the stream ends in order");
    assert!(second.ended().await.success());
}

#[tokio::test]
async fn the_directory_may_come_late_and_go_for_a_while() {
    let parent = State::new();
    let path = parent.path().join("objects");
    let controller = Controller::destination(&path);
    let (status, why) = controller.admin("/ready").await;
    assert_eq!(status, 503, "{why}");
    assert_eq!(controller.admin("/live").await.0, 200);
    assert_eq!(controller.admin("/nothing").await.0, 404);
    let mut client = client(&controller).await;
    // Asked before anything is known: the answer waits instead of being wrong.
    let asked = tokio::spawn({
        let mut client = client.clone();
        async move { get(&mut client, "web.shop.svc.cluster.local:80").await }
    });
    let web = service("shop", "web", "10.96.0.1");
    let pod = meshed_pod("shop", "web", "aaaaa", "10.244.0.1");
    let staged = State::new();
    for object in [&web, &pod, &slice(&web, &[&pod])] {
        staged.put(object);
    }
    let missed = || {
        let missed = |line: &serde_json::Value| line["fields"]["message"].to_string().contains("is not there");
        controller.logs().iter().filter(|line| missed(line)).count()
    };
    until("it is missed from the start", || std::future::ready(missed() >= 1)).await;
    std::fs::rename(staged.path(), &path).unwrap();
    let mut stream = asked.await.unwrap();
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.1:8080"]);
    until("it is ready", async || controller.admin("/ready").await.0 == 200).await;

    // Gone: what is known stays. Back with another pod: the difference is told.
    std::fs::rename(&path, staged.path()).unwrap();
    until("it is missed", || std::future::ready(missed() >= 2)).await;
    let mut again = get(&mut client, "web.shop.svc.cluster.local:80").await;
    assert_eq!(added_addrs(next(&mut again).await), ["10.244.0.1:8080"]);
    let newcomer = plain_pod("shop", "newcomer", "10.244.0.2");
    staged.put(&newcomer);
    staged.put(&slice(&web, &[&newcomer]));
    std::fs::rename(staged.path(), &path).unwrap();
    assert_eq!(added_addrs(next(&mut stream).await), ["10.244.0.2:8080"]);
    assert_eq!(removed(next(&mut stream).await), ["10.244.0.1:8080"]);
    let _ = staged;
}
