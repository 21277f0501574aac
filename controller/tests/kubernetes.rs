//! The real binary over a Kubernetes API server that is made up, and that hangs, lies, forgets and goes away.

mod support;

use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{GetDestination, Update};
use linkerd2_proxy_api::inbound::PortSpec;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use support::api_server::{ApiServer, Fault};
use support::{Controller, meshed_pod, namespace, next, plain_pod, service, slice, until};
use tonic::Streaming;

/// A stream of endpoints and what it said so far.
struct Endpoints {
    stream: Streaming<Update>,
    known: BTreeSet<String>,
    /// The zone of what came last.
    zone: String,
}

impl Endpoints {
    async fn of(controller: &Controller, path: &str) -> Endpoints {
        let mut client = DestinationClient::new(controller.channel("destination").await);
        let ask = GetDestination { path: path.to_owned(), ..GetDestination::default() };
        Endpoints { stream: client.get(ask).await.unwrap().into_inner(), known: BTreeSet::new(), zone: String::new() }
    }

    async fn step(&mut self) {
        let addr = |addr: Option<_>| SocketAddr::try_from(addr.unwrap()).unwrap().ip().to_string();
        match next(&mut self.stream).await.update.unwrap() {
            Kind::Add(set) => {
                for endpoint in set.addrs {
                    self.zone = endpoint.metric_labels.get("zone").cloned().unwrap_or_default();
                    self.known.insert(addr(endpoint.addr));
                }
            }
            Kind::Remove(set) => {
                for gone in set.addrs {
                    self.known.remove(&addr(Some(gone)));
                }
            }
            Kind::NoEndpoints(_) => self.known.clear(),
        }
    }

    /// Reads until exactly these are known.
    async fn become_these(&mut self, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|ip| (*ip).to_owned()).collect();
        while self.known != wanted {
            self.step().await;
        }
    }
}

const WEB: &str = "web.shop.svc.cluster.local:80";

/// Namespace, service and pods `web`, all endpoints, and something else.
fn fill(api: &ApiServer, ips: &[&str]) -> (Value, Vec<Value>) {
    let web = service("shop", "web", "10.96.0.1");
    let pods: Vec<Value> =
        ips.iter().map(|ip| meshed_pod("shop", "web", &format!("p{}", ip.rsplit('.').next().unwrap()), ip)).collect();
    api.put(&namespace("shop", json!({})));
    for pod in &pods {
        api.put(pod);
    }
    for other in 0..5 {
        api.put(&plain_pod("other", &format!("filler-{other}"), &format!("10.9.0.{other}")));
    }
    api.put(&web);
    set_endpoints(api, &web, &pods.iter().collect::<Vec<_>>());
    (web, pods)
}

fn set_endpoints(api: &ApiServer, service: &Value, pods: &[&Value]) {
    api.put(&slice(service, pods));
}

#[tokio::test]
async fn the_cluster_is_followed_change_by_change() {
    let api = ApiServer::start();
    let (web, pods) = fill(&api, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let controller = Controller::destination_on(&api.kubeconfig());
    let mut endpoints = Endpoints::of(&controller, WEB).await;
    endpoints.become_these(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]).await;
    assert_eq!(controller.admin("/ready").await.0, 200);
    assert_eq!(controller.metric("weft_index_objects{kind=\"pod\"}").await, 8, "all pages are read");

    set_endpoints(&api, &web, &[&pods[0], &pods[2]]);
    endpoints.become_these(&["10.0.0.1", "10.0.0.3"]).await;
    // A pod that is gone is no endpoint any more, whatever its slice still says.
    api.delete(&pods[0]);
    endpoints.become_these(&["10.0.0.3"]).await;
    // An endpoint whose pod is not known yet must wait for it: nobody knows its identity.
    let new = meshed_pod("shop", "web", "p9", "10.0.0.9");
    set_endpoints(&api, &web, &[&pods[2], &new]);
    let before = controller.metric("weft_index_objects{kind=\"pod\"}").await;
    api.put(&new);
    endpoints.become_these(&["10.0.0.3", "10.0.0.9"]).await;
    assert_eq!(controller.metric("weft_index_objects{kind=\"pod\"}").await, before + 1);
    // Settings of the namespace reach what is in it.
    api.put(&namespace("shop", json!({"config.linkerd.io/opaque-ports": "8080"})));
    api.delete(&slice(&web, &[]));
    endpoints.become_these(&[]).await;
    // Each kind was listed once, and watched; nothing was written.
    api.assert_allowed("destination");
    assert_eq!(api.asked("GET /api/v1/services?limit=500"), 1);
    assert!(api.world().requests.iter().all(|request| request.starts_with("GET ")));
}

#[tokio::test]
async fn an_api_server_that_is_away_costs_nothing_and_may_come_back_as_another() {
    let api = ApiServer::start();
    fill(&api, &["10.0.0.1", "10.0.0.2"]);
    let controller = Controller::destination_on(&api.kubeconfig());
    let mut endpoints = Endpoints::of(&controller, WEB).await;
    endpoints.become_these(&["10.0.0.1", "10.0.0.2"]).await;

    api.stop();
    let failures = "weft_source_failures_total{kind=\"endpointslice\"}";
    until("the outage is noticed", async || controller.metric(failures).await >= 3).await;
    // Old and new streams know what was known, and the component is ready.
    Endpoints::of(&controller, WEB).await.become_these(&["10.0.0.1", "10.0.0.2"]).await;
    assert_eq!(controller.admin("/ready").await.0, 200);

    // Another cluster state, with versions that begin anew; the service's old pods are gone.
    api.reset();
    fill(&api, &["10.0.0.7"]);
    api.resume();
    endpoints.become_these(&["10.0.0.7"]).await;
    until("old pods are forgotten", async || controller.metric("weft_index_objects{kind=\"pod\"}").await == 6).await;
    // One complaint for each kind and outage, not one for each try.
    let complaints = |logs: &[Value]| {
        let about = |line: &&Value| {
            line["fields"]["message"].to_string().contains("cannot follow") && line["fields"]["kind"] == "EndpointSlice"
        };
        logs.iter().filter(about).count()
    };
    assert_eq!(complaints(&controller.logs()), 1);
}

#[tokio::test]
async fn an_api_server_that_comes_late_is_waited_for() {
    let api = ApiServer::start();
    fill(&api, &["10.0.0.1"]);
    api.stop();
    let controller = Controller::destination_on(&api.kubeconfig());
    let failures = "weft_source_failures_total{kind=\"pod\"}";
    until("it was tried", async || controller.metric(failures).await >= 2).await;
    let (status, reason) = controller.admin("/ready").await;
    assert_eq!(status, 503, "{reason}");
    api.resume();
    Endpoints::of(&controller, WEB).await.become_these(&["10.0.0.1"]).await;
}

#[tokio::test]
async fn an_api_server_that_hangs_or_lies_changes_nothing() {
    let api = ApiServer::start();
    let (web, pods) = fill(&api, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let controller = Controller::destination_on(&api.kubeconfig());
    let mut endpoints = Endpoints::of(&controller, WEB).await;
    endpoints.become_these(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]).await;
    let failures = "weft_source_failures_total{kind=\"endpointslice\"}";
    let faults = [Fault::Garbage, Fault::Other, Fault::Error, Fault::HangUp, Fault::EndAtOnce, Fault::Hang];
    for (round, fault) in faults.into_iter().enumerate() {
        let before = controller.metric(failures).await;
        api.fault("GET /", Some(fault));
        api.cut();
        until("it is noticed", async || controller.metric(failures).await >= before + 3).await;
        Endpoints::of(&controller, WEB)
            .await
            .become_these(&endpoints.known.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
        assert_eq!(controller.admin("/ready").await.0, 200, "{fault:?}");
        // What happens meanwhile is told when the server is sane again.
        let left = &pods[round % pods.len()];
        set_endpoints(&api, &web, &[left]);
        api.fault("GET /", None);
        api.cut();
        endpoints.become_these(&[left["status"]["podIP"].as_str().unwrap()]).await;
    }
}

#[tokio::test]
async fn objects_that_make_no_sense_harm_only_themselves() {
    let api = ApiServer::start();
    let (web, pods) = fill(&api, &["10.0.0.1", "10.0.0.2"]);
    let mut odd = plain_pod("shop", "odd", "10.0.0.5");
    odd["spec"]["containers"] = "none".into();
    api.put(&odd);
    let controller = Controller::destination_on(&api.kubeconfig());
    let mut endpoints = Endpoints::of(&controller, WEB).await;
    endpoints.become_these(&["10.0.0.1", "10.0.0.2"]).await;
    // One that was good keeps its last good version.
    let mut broken = slice(&web, &[&pods[0]]);
    broken["endpoints"] = json!({"not": "a list"});
    api.put(&broken);
    let bad = "weft_source_bad_objects_total{kind=\"endpointslice\"}";
    until("it is noticed", async || controller.metric(bad).await >= 1).await;
    Endpoints::of(&controller, WEB).await.become_these(&["10.0.0.1", "10.0.0.2"]).await;
    assert!(controller.metric("weft_source_bad_objects_total{kind=\"pod\"}").await >= 1);
    set_endpoints(&api, &web, &[&pods[1]]);
    endpoints.become_these(&["10.0.0.2"]).await;
}

#[tokio::test]
async fn a_history_that_is_gone_is_read_again() {
    let api = ApiServer::start();
    let (web, pods) = fill(&api, &["10.0.0.1", "10.0.0.2"]);
    let controller = Controller::destination_on(&api.kubeconfig());
    let mut endpoints = Endpoints::of(&controller, WEB).await;
    endpoints.become_these(&["10.0.0.1", "10.0.0.2"]).await;
    // Deletions happen while nobody can be told.
    api.fault("GET /", Some(Fault::Hang));
    api.cut();
    set_endpoints(&api, &web, &[&pods[1]]);
    api.delete(&pods[0]);
    api.fault("GET /", None);
    api.forget();
    endpoints.become_these(&["10.0.0.2"]).await;
    until("the pod is gone", async || controller.metric("weft_index_objects{kind=\"pod\"}").await == 6).await;
}

/// The same endpoints as `Endpoints`, the older kind.
fn old_endpoints(service: &Value, pods: &[&Value]) -> Value {
    let address = |pod: &&Value| json!({"ip": pod["status"]["podIP"], "nodeName": "n1", "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}});
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"namespace": service["metadata"]["namespace"], "name": service["metadata"]["name"]},
        "subsets": [{
            "addresses": pods.iter().map(address).collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }],
    })
}

#[tokio::test]
async fn older_servers_and_kinds_that_appear_later() {
    let api = ApiServer::start();
    let (web, pods) = fill(&api, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    api.serve("discovery.k8s.io/v1/endpointslices", false);
    api.put(&old_endpoints(&web, &[&pods[0]]));
    let node = |zone: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": zone}}});
    api.put(&node("a"));
    let controller = Controller::destination_on(&api.kubeconfig());
    let mut endpoints = Endpoints::of(&controller, WEB).await;
    endpoints.become_these(&["10.0.0.1"]).await;
    // Endpoints know nodes, and nodes know zones.
    assert_eq!(endpoints.zone, "a");
    api.put(&node("b"));
    endpoints.step().await;
    assert_eq!(endpoints.zone, "b");
    api.put(&old_endpoints(&web, &[&pods[1]]));
    endpoints.become_these(&["10.0.0.2"]).await;

    // The server learns of slices: from then on they count, and Endpoints do not.
    let mut beta = slice(&web, &[&pods[2]]);
    beta["apiVersion"] = "discovery.k8s.io/v1beta1".into();
    api.serve("discovery.k8s.io/v1beta1/endpointslices", true);
    api.put(&beta);
    endpoints.become_these(&["10.0.0.3"]).await;
    api.serve("discovery.k8s.io/v1/endpointslices", true);
    set_endpoints(&api, &web, &[&pods[0], &pods[2]]);
    endpoints.become_these(&["10.0.0.1", "10.0.0.3"]).await;
    api.put(&old_endpoints(&web, &[&pods[1]]));

    // A server that loses the better kind again: the next best counts, and nothing is forgotten in between.
    api.serve("discovery.k8s.io/v1beta1/endpointslices", false);
    api.serve("discovery.k8s.io/v1/endpointslices", false);
    endpoints.become_these(&["10.0.0.2"]).await;
}

#[tokio::test]
async fn mesh_resources_may_be_missing_come_and_go() {
    let api = ApiServer::start();
    fill(&api, &["10.0.0.1"]);
    // No definition of any mesh resource: ready all the same.
    let controller = Controller::destination_on(&api.kubeconfig());
    until("it is read", async || controller.admin("/ready").await.0 == 200).await;
    let mut client = InboundServerPoliciesClient::new(controller.channel("policy").await);
    let ask = PortSpec { workload: "shop:web-5d4f8-p1".to_owned(), port: 8080 };
    let mut stream = client.watch_port(ask).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.labels["name"], "all-unauthenticated");

    // A server of an older Linkerd's version; then the newest, of another age.
    let server = |version: &str, name: &str| {
        json!({
            "apiVersion": format!("policy.linkerd.io/{version}"), "kind": "Server",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "port": "http"},
        })
    };
    api.serve("policy.linkerd.io/v1beta1/servers", true);
    api.put(&server("v1beta1", "older"));
    assert_eq!(next(&mut stream).await.labels["name"], "older");
    api.serve("policy.linkerd.io/v1beta3/servers", true);
    api.put(&server("v1beta3", "newer"));
    while next(&mut stream).await.labels["name"] != "newer" {}
    // One that makes no sense stops no other; one that loses its sense keeps its last.
    let mut odd = server("v1beta3", "a-odd");
    odd["spec"]["port"] = json!({"not": "a port"});
    api.put(&odd);
    let bad = "weft_source_bad_objects_total{kind=\"server\"}";
    until("it is noticed", async || controller.metric(bad).await >= 1).await;
    api.serve("policy.linkerd.io/v1alpha1/authorizationpolicies", true);
    let target = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "newer"});
    api.put(&json!({
        "apiVersion": "policy.linkerd.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": "all"},
        "spec": {"targetRef": target, "requiredAuthenticationRefs": []},
    }));
    assert_eq!(next(&mut stream).await.authorizations[0].labels["name"], "all");
    api.assert_allowed("destination");

    // The server says that there is no such kind, and its discovery says otherwise, or nothing: it starts, or is ill.
    let failures = "weft_source_failures_total{kind=\"server\"}";
    let (all, beta) = ("GET /apis ", "GET /apis/policy.linkerd.io/v1beta3 ");
    let discovery = [None, Some((beta, Fault::NotFound)), Some((beta, Fault::Other)), Some((all, Fault::Garbage))];
    for lie in discovery.into_iter().chain([Some((all, Fault::Error))]) {
        let before = controller.metric(failures).await;
        let faults = || [("/servers", Fault::NotFound)].into_iter().chain(lie);
        faults().for_each(|(part, fault)| api.fault(part, Some(fault)));
        api.cut();
        // The watch fails twice before everything is read again.
        until("it is noticed", async || controller.metric(failures).await >= before + 3).await;
        let ask = PortSpec { workload: "shop:web-5d4f8-p1".to_owned(), port: 8080 };
        let known = client.get_port(ask).await.unwrap().into_inner();
        assert_eq!(known.labels["name"], "newer", "{lie:?}");
        faults().for_each(|(part, _)| api.fault(part, None));
        let watching = "weft_source_watching{kind=\"server\"}";
        until("it is followed again", async || controller.metric(watching).await == 1).await;
    }

    // The definitions go, and with them all objects.
    api.serve("policy.linkerd.io/v1beta1/servers", false);
    api.serve("policy.linkerd.io/v1beta3/servers", false);
    while next(&mut stream).await.labels["name"] != "all-unauthenticated" {}
}

#[tokio::test]
async fn metrics_does_without_kinds_that_a_cluster_lacks() {
    let api = ApiServer::start();
    fill(&api, &["10.0.0.1"]);
    api.serve("batch/v1/cronjobs", false);
    let owner = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1"}]);
    api.put(&json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"namespace": "shop", "name": "web-5d4f8", "ownerReferences": owner("Deployment", "web")},
    }));
    api.put(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "web"}}));
    let kubeconfig = api.kubeconfig();
    let any = "127.0.0.1:0";
    let args = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--api-addr", any, "--admin-addr", any];
    let controller = Controller::start("metrics", 2, &[&args[..], &["--resync-interval", "1"]].concat());
    until("it is ready", async || controller.admin("/ready").await.0 == 200).await;
    let workloads = "weft_index_objects{kind=\"workload\"}";
    assert_eq!(controller.metric(workloads).await, 2);
    // An old server has CronJobs in an older version; this one learns of it later.
    api.serve("batch/v1beta1/cronjobs", true);
    api.put(
        &json!({"apiVersion": "batch/v1beta1", "kind": "CronJob", "metadata": {"namespace": "shop", "name": "night"}}),
    );
    until("the CronJob is there", async || controller.metric(workloads).await == 3).await;
    api.assert_allowed("metrics");
    // And loses the kind, and with it the object.
    api.serve("batch/v1beta1/cronjobs", false);
    until("the CronJob is gone", async || controller.metric(workloads).await == 2).await;
}
