//! The real binary scraping proxies that say what the test tells them to, asked through its API.

mod support;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use support::{Controller, State, meshed_pod, namespace, plain_pod, request, service, until};
use tokio::net::TcpListener;
use weft_core::api::{ApiError, CheckResponse, Edge, EdgesResponse, StatResponse, StatRow};

/// A proxy's admin server.
struct Proxy {
    port: u16,
    text: Arc<Mutex<(u16, String)>>,
    scrapes: Arc<AtomicU64>,
    /// How often it was asked to end.
    ended: Arc<AtomicU64>,
}

impl Proxy {
    async fn start(text: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = Arc::new(Mutex::new((200, text)));
        let scrapes = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicU64::new(0));
        let (said, counted, ends) = (text.clone(), scrapes.clone(), ended.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (said, counted, ends) = (said.clone(), counted.clone(), ends.clone());
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (status, text) = said.lock().unwrap().clone();
                    match (request.method().as_str(), request.uri().path()) {
                        ("GET", "/metrics") => counted.fetch_add(1, Ordering::SeqCst),
                        ("POST", "/shutdown") => ends.fetch_add(1, Ordering::SeqCst),
                        other => panic!("{other:?}"),
                    };
                    let answer = Response::builder().status(status).body(Full::<Bytes>::from(text)).unwrap();
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Proxy { port, text, scrapes, ended }
    }

    /// Says something else from now on, after what it said before has been scraped for sure.
    async fn say(&self, text: String) {
        self.scraped().await;
        *self.text.lock().unwrap() = (200, text);
    }

    /// Waits until what it says now has been taken in. The next scrape may have begun before, the second cannot have, and
    /// the third comes only when the second has been taken in.
    async fn scraped(&self) {
        let before = self.scrapes.load(Ordering::SeqCst);
        until("it is scraped", || std::future::ready(self.scrapes.load(Ordering::SeqCst) >= before + 3)).await;
    }
}

/// A pod whose proxy is the given one.
fn pod_of(proxy: &Proxy, workload: &str, suffix: &str) -> Value {
    let mut pod = meshed_pod("shop", workload, suffix, "127.0.0.1");
    pod["spec"]["containers"][1]["ports"] = json!([{"name": "linkerd-admin", "containerPort": proxy.port}]);
    pod
}

fn deployment(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {"selector": {}, "template": {}},
    })
}

/// Requests to a pod, or from a pod to a server.
fn requests(labels: &str, success: u64, failure: u64, fast: u64, slow: u64) -> String {
    let mut text = String::new();
    for (class, status, count) in [("success", 200, success), ("failure", 500, failure)] {
        let _ =
            writeln!(text, "response_total{{{labels},status_code=\"{status}\",classification=\"{class}\"}} {count}");
    }
    for (le, count) in [("1", 0), ("10", fast), ("100", fast + slow), ("+Inf", fast + slow)] {
        let _ = writeln!(text, "response_latency_ms_bucket{{{labels},status_code=\"200\",le=\"{le}\"}} {count}");
    }
    text
}

fn connections(labels: &str, opened: u64, open: u64, read: u64, written: u64) -> String {
    format!(
        "tcp_open_total{{{labels}}} {opened}\ntcp_open_connections{{{labels}}} {open}\n\
         tcp_read_bytes_total{{{labels}}} {read}\ntcp_write_bytes_total{{{labels}}} {written}\n"
    )
}

const INBOUND: &str =
    r#"direction="inbound",tls="true",client_id="vote.shop.serviceaccount.identity.weft.cluster.local""#;

/// Labels of what goes to a pod of Deployment `web` by service `web-svc`.
fn to_web() -> String {
    let id = "web.shop.serviceaccount.identity.weft.cluster.local";
    format!(
        "direction=\"outbound\",authority=\"web-svc.shop.svc.cluster.local:80\",target_addr=\"10.244.0.1:8080\",tls=\"true\",\
         server_id=\"{id}\",dst_namespace=\"shop\",dst_pod=\"web-5d4f8-aaaaa\",dst_deployment=\"web\",dst_service=\"web-svc\",\
         dst_serviceaccount=\"web\",dst_control_plane_ns=\"weft\",dst_pod_template_hash=\"5d4f8\""
    )
}

/// Labels of what goes to a pod without a proxy.
const TO_LEGACY: &str = r#"direction="outbound",peer="dst",target_addr="127.0.0.2:5432",tls="no_identity",no_tls_reason="not_provided_by_service_discovery""#;

struct Mesh {
    controller: Controller,
    _state: State,
    web: Proxy,
    vote: Proxy,
}

impl Mesh {
    /// Deployments `vote`, which talks to `web` and to pod `legacy`, and `idle`; all figures have grown since the first
    /// scrape.
    async fn start() -> Mesh {
        let web_said = |n: u64| {
            requests(INBOUND, 90 * n, 10 * n, 90 * n, 10 * n)
                + &connections(&format!("{INBOUND},peer=\"src\""), n, 3, 1000 * n, 5000 * n)
        };
        let vote_said = |n: u64| {
            requests(&to_web(), 45 * n, 5 * n, 50 * n, 0)
                + &connections(&format!("{},peer=\"dst\"", to_web()), n, 1, 500 * n, 100 * n)
                + &connections(TO_LEGACY, n, 2, 10 * n, 20 * n)
        };
        let web = Proxy::start(web_said(1)).await;
        let vote = Proxy::start(vote_said(1)).await;
        let state = State::new();
        let mut broken = plain_pod("shop", "broken", "127.0.0.9");
        broken["status"]["phase"] = json!("Pending");
        broken["status"]["containerStatuses"] = json!([{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 5,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]);
        let mut done = plain_pod("shop", "done", "127.0.0.8");
        done["status"]["phase"] = json!("Succeeded");
        let mut service = service("shop", "web-svc", "10.96.0.1");
        service["spec"]["selector"] = json!({"app": "web"});
        for object in [
            &namespace("shop", json!({})),
            &namespace("empty", json!({})),
            &deployment("web", json!({"tier": "front"})),
            &deployment("vote", json!({"tier": "bot"})),
            &deployment("idle", json!({"tier": "bot"})),
            &pod_of(&web, "web", "aaaaa"),
            &pod_of(&vote, "vote", "bbbbb"),
            &plain_pod("shop", "legacy", "127.0.0.2"),
            &broken,
            &done,
            &service,
        ] {
            state.put(object);
        }
        let any = "127.0.0.1:0";
        let path = state.path().to_str().unwrap();
        let args = [
            "--state-dir",
            path,
            "--api-addr",
            any,
            "--admin-addr",
            any,
            "--scrape-interval",
            "50ms",
            "--scrape-timeout",
            "30s",
        ];
        let controller = Controller::start("metrics", 2, &args);
        let mesh = Mesh { controller, _state: state, web, vote };
        mesh.web.say(web_said(2)).await;
        mesh.vote.say(vote_said(2)).await;
        mesh.web.scraped().await;
        mesh.vote.scraped().await;
        mesh
    }

    async fn post(&self, path: &str, body: Value) -> (u16, String) {
        request(self.controller.addr("metrics"), "POST", path, Some(body)).await
    }

    async fn stat(&self, body: Value) -> Vec<StatRow> {
        let (status, text) = self.post("/api/stat", body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<StatResponse>(&text).unwrap().rows
    }

    async fn edges(&self, body: Value) -> Vec<Edge> {
        let (status, text) = self.post("/api/edges", body).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<EdgesResponse>(&text).unwrap().edges
    }
}

fn names(rows: &[StatRow]) -> Vec<String> {
    rows.iter().map(|row| format!("{}/{}", row.kind, row.name)).collect()
}

#[tokio::test]
async fn stat_shows_what_comes_in() {
    let mesh = Mesh::start().await;
    let window = 900;
    let rows = mesh.stat(json!({"kind": "deployment", "namespace": "shop", "window_seconds": window})).await;
    assert_eq!(names(&rows), ["deployment/idle", "deployment/vote", "deployment/web"]);
    let web = &rows[2];
    assert_eq!((web.namespace.as_str(), web.meshed, web.running), ("shop", 1, 1));
    assert_eq!(web.success, Some(0.9));
    assert!(web.rps.unwrap() > 0.0);
    // Ninety of a hundred between 1 and 10 ms, ten between 10 and 100 ms.
    assert_eq!((web.latency_ms_p50, web.latency_ms_p95, web.latency_ms_p99), (Some(6), Some(55), Some(91)));
    assert_eq!(web.tcp_open_connections, Some(3));
    let (read, written) = (web.tcp_read_bytes_rate.unwrap(), web.tcp_write_bytes_rate.unwrap());
    assert!((written / read - 5.0).abs() < 1e-6 && (read / web.rps.unwrap() - 10.0).abs() < 1e-6);
    let idle = &rows[0];
    assert_eq!((idle.meshed, idle.running, idle.success, idle.rps), (0, 0, None, None));
    let vote = &rows[1];
    assert_eq!((vote.meshed, vote.running, vote.rps, vote.latency_ms_p50), (1, 1, None, None), "nobody calls it");

    let pods = mesh.stat(json!({"kind": "pod", "window_seconds": window})).await;
    assert_eq!(names(&pods), ["pod/broken", "pod/legacy", "pod/vote-5d4f8-bbbbb", "pod/web-5d4f8-aaaaa"]);
    assert_eq!(pods[0].status.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!((pods[0].meshed, pods[0].running), (0, 0));
    assert_eq!((pods[1].meshed, pods[1].running, pods[1].status.as_deref()), (0, 1, Some("Running")));
    assert_eq!(pods[3].success, Some(0.9));

    let namespaces = mesh.stat(json!({"kind": "namespace", "window_seconds": window})).await;
    assert_eq!(names(&namespaces), ["namespace/empty", "namespace/shop"]);
    assert_eq!((namespaces[1].namespace.as_str(), namespaces[1].meshed, namespaces[1].running), ("", 2, 3));
    assert_eq!(namespaces[1].success, Some(0.9));
    assert_eq!(mesh.stat(json!({"kind": "namespace", "namespace": "shop"})).await.len(), 1);

    let sets = mesh.stat(json!({"kind": "replicaset", "name": "web-5d4f8", "window_seconds": window})).await;
    assert_eq!((names(&sets), sets[0].success), (vec!["replicaset/web-5d4f8".to_owned()], Some(0.9)));

    // A service is what its clients see of it.
    let services = mesh.stat(json!({"kind": "service", "window_seconds": window})).await;
    assert_eq!(names(&services), ["service/web-svc"]);
    assert_eq!((services[0].success, services[0].meshed, services[0].running), (Some(0.9), 1, 1));
    assert_eq!(services[0].latency_ms_p50, Some(6));
    let authorities = mesh.stat(json!({"kind": "authority", "window_seconds": window})).await;
    assert_eq!(names(&authorities), ["authority/web-svc.shop.svc.cluster.local:80"]);
    assert_eq!(authorities[0].success, Some(0.9));

    let all = mesh.stat(json!({"kind": "all", "namespace": "shop"})).await;
    assert_eq!(all.len(), 3 + 4 + 1, "{:?}", names(&all));
    let bots = mesh.stat(json!({"kind": "deployment", "selector": "tier in (bot), !none"})).await;
    assert_eq!(names(&bots), ["deployment/idle", "deployment/vote"]);
    assert!(mesh.stat(json!({"kind": "deployment", "namespace": "elsewhere"})).await.is_empty());
    assert!(mesh.stat(json!({"kind": "statefulset"})).await.is_empty());
}

#[tokio::test]
async fn stat_shows_what_goes_from_one_to_another() {
    let mesh = Mesh::start().await;
    let window = 900;
    let to = json!({"kind": "deployment", "name": "web", "namespace": "shop"});
    let rows = mesh.stat(json!({"kind": "deployment", "window_seconds": window, "to": to})).await;
    assert_eq!(names(&rows), ["deployment/vote"]);
    assert_eq!((rows[0].success, rows[0].tcp_open_connections), (Some(0.9), Some(1)));
    // Fifty between 1 and 10 ms.
    assert_eq!((rows[0].latency_ms_p50, rows[0].latency_ms_p99), (Some(6), Some(10)));
    for to in [
        json!({"kind": "service", "name": "web-svc"}),
        json!({"kind": "pod", "name": "web-5d4f8-aaaaa"}),
        json!({"kind": "replicaset"}),
        json!({"kind": "namespace", "name": "shop"}),
        json!({"kind": "authority", "name": "web-svc.shop.svc.cluster.local:80"}),
    ] {
        let rows = mesh.stat(json!({"kind": "pod", "window_seconds": window, "to": to})).await;
        assert_eq!((names(&rows), rows[0].success), (vec!["pod/vote-5d4f8-bbbbb".to_owned()], Some(0.9)), "{to}");
    }
    let from = json!({"kind": "deployment", "name": "vote"});
    let rows = mesh.stat(json!({"kind": "deployment", "window_seconds": window, "from": from})).await;
    assert_eq!((names(&rows), rows[0].success), (vec!["deployment/web".to_owned()], Some(0.9)));
    let rows = mesh.stat(json!({"kind": "service", "window_seconds": window, "from": from})).await;
    assert_eq!((names(&rows), rows[0].success), (vec!["service/web-svc".to_owned()], Some(0.9)));
    // TCP alone is a row, too; the pod is known by its address.
    let rows = mesh.stat(json!({"kind": "pod", "window_seconds": window, "from": from})).await;
    assert_eq!(names(&rows), ["pod/legacy", "pod/web-5d4f8-aaaaa"]);
    assert_eq!((rows[0].rps, rows[0].tcp_open_connections), (None, Some(2)));
    // Services and authorities are on the way to something, or not.
    for kind in ["service", "authority"] {
        let rows = mesh.stat(json!({"kind": kind, "window_seconds": window, "to": to})).await;
        assert_eq!((rows.len(), rows[0].success, rows[0].latency_ms_p50), (1, Some(0.9), Some(6)), "{kind}");
        let elsewhere = json!({"kind": "deployment", "name": "idle"});
        assert!(mesh.stat(json!({"kind": kind, "to": elsewhere})).await.is_empty(), "{kind}");
    }
    let rows = mesh.stat(json!({"kind": "all", "window_seconds": window, "to": to})).await;
    assert_eq!(names(&rows), ["deployment/vote", "pod/vote-5d4f8-bbbbb", "service/web-svc"]);
    // What has ended is hidden, but no mistake.
    assert!(mesh.stat(json!({"kind": "pod", "name": "done"})).await.is_empty());
    let from = json!({"kind": "deployment", "name": "idle"});
    assert!(mesh.stat(json!({"kind": "deployment", "from": from})).await.is_empty());

    for bad in [
        json!({"kind": "planet"}),
        json!({"kind": ""}),
        json!({"kind": "deployment", "to": {"kind": "planet"}}),
        json!({"kind": "deployment", "to": to, "from": to}),
        json!({"kind": "deployment", "name": "wep"}),
        json!({"kind": "deployment", "name": "web", "namespace": "elsewhere"}),
        json!({"kind": "namespace", "name": "elsewhere"}),
        json!({"kind": "deployment", "selector": "a=(b"}),
        json!({"kind": 7}),
        json!([]),
    ] {
        let (status, text) = mesh.post("/api/stat", bad.clone()).await;
        assert_eq!(status, 400, "{bad}: {text}");
        assert!(!serde_json::from_str::<ApiError>(&text).unwrap().error.is_empty());
    }
    let (_, text) = mesh.post("/api/stat", json!({"kind": "pod", "name": "x", "namespace": "shop"})).await;
    assert_eq!(text.trim_end(), r#"{"error":"pod \"x\" not found in namespace shop"}"#);
    let (_, text) = mesh.post("/api/stat", json!({"kind": "pod", "window_seconds": 100_000})).await;
    assert_eq!(serde_json::from_str::<StatResponse>(&text).unwrap().window_seconds, 900);
    assert_eq!(mesh.post("/api/nothing", json!({})).await.0, 404);
    assert_eq!(request(mesh.controller.addr("metrics"), "GET", "/api/stat", None).await.0, 405);
    assert_eq!(mesh.post("/api/stat", json!({"kind": "x".repeat(100_000)})).await.0, 400);
}

#[tokio::test]
async fn edges_say_who_talks_to_whom_and_how() {
    let mesh = Mesh::start().await;
    let edges = mesh.edges(json!({"kind": "deployment", "namespace": "shop"})).await;
    let secured = Edge {
        src: "vote".into(),
        src_namespace: "shop".into(),
        dst: "web".into(),
        dst_namespace: "shop".into(),
        client_id: "vote.shop.serviceaccount.identity.weft.cluster.local".into(),
        server_id: "web.shop.serviceaccount.identity.weft.cluster.local".into(),
        no_tls_reason: String::new(),
    };
    assert_eq!(edges, std::slice::from_ref(&secured), "HTTP and TCP of one pair are one edge");
    let edges = mesh.edges(json!({"kind": "pod"})).await;
    let src = "vote-5d4f8-bbbbb".to_owned();
    let plain = Edge {
        src: src.clone(),
        dst: "legacy".into(),
        client_id: String::new(),
        server_id: String::new(),
        no_tls_reason: "the server is not in the mesh".into(),
        ..secured.clone()
    };
    assert_eq!(edges, [plain, Edge { src, dst: "web-5d4f8-aaaaa".into(), ..secured.clone() }]);
    let namespaces = mesh.edges(json!({"kind": "namespace", "namespace": "shop"})).await;
    assert_eq!(namespaces.len(), 2, "secured and not: {namespaces:?}");
    assert!(namespaces.iter().all(|edge| edge.src == "shop" && edge.dst == "shop" && edge.src_namespace.is_empty()));
    assert!(mesh.edges(json!({"kind": "deployment", "namespace": "elsewhere"})).await.is_empty());
    for bad in ["service", "authority", "all", "planet", ""] {
        assert_eq!(mesh.post("/api/edges", json!({"kind": bad})).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn proxies_that_fail_are_told_and_do_not_hold_up_others() {
    let mesh = Mesh::start().await;
    let check = async || {
        let (status, text) = request(mesh.controller.addr("metrics"), "GET", "/api/check", None).await;
        assert_eq!(status, 200);
        serde_json::from_str::<CheckResponse>(&text).unwrap()
    };
    until("all are scraped", async || check().await.proxies_scraped == 2).await;
    assert_eq!(check().await.version, env!("CARGO_PKG_VERSION"));
    assert!(check().await.proxies_failed.is_empty());
    *mesh.vote.text.lock().unwrap() = (503, "not now".into());
    until("one has failed", async || check().await.proxies_failed.len() == 1).await;
    let failed = check().await;
    assert_eq!(failed.proxies_scraped, 1);
    assert!(failed.proxies_failed[0].starts_with("shop/vote-5d4f8-bbbbb: "), "{failed:?}");
    assert!(failed.proxies_failed[0].contains("503"), "{failed:?}");
    // Nonsense is survived, too.
    *mesh.vote.text.lock().unwrap() = (200, "}}} \u{1F600} {{\nresponse_total{ 1\n".into());
    until("all are scraped again", async || check().await.proxies_scraped == 2).await;
    let (_, metrics) = mesh.controller.admin("/metrics").await;
    assert!(metrics.contains(r#"weft_metrics_scrapes_total{outcome="status"}"#), "{metrics}");
    assert!(metrics.contains(r#"weft_metrics_scrapes_total{outcome="ok"}"#), "{metrics}");
    let rows = mesh.stat(json!({"kind": "deployment", "name": "web", "window_seconds": 900})).await;
    assert_eq!(rows[0].success, Some(0.9));
}

#[tokio::test]
async fn it_ends_when_it_is_told_to() {
    let mut mesh = Mesh::start().await;
    assert_eq!(mesh.controller.admin("/ready").await.0, 200);
    mesh.controller.terminate();
    assert!(mesh.controller.ended().await.success());
}

/// Where the cluster has no sidecars of its own, a Job is over only when somebody ends its proxy.
#[tokio::test]
async fn proxies_of_finished_jobs_are_asked_to_end() {
    let state = State::new();
    state.put(&namespace("shop", json!({})));
    // As many Jobs as there are ways not to be over, and two that are.
    let cases = [
        ("never", "Never", json!([1, null]), true),
        ("success", "OnFailure", json!([0, null]), true),
        ("again", "OnFailure", json!([1, null]), false),
        ("running", "Never", json!([null, null]), false),
        ("forever", "Always", json!([0, null]), false),
    ];
    let mut proxies = Vec::new();
    for (name, policy, exits, over) in cases {
        let proxy = Proxy::start(String::new()).await;
        let mut pod = pod_of(&proxy, name, "aaaaa");
        pod["spec"]["restartPolicy"] = policy.into();
        let names = [&pod["spec"]["containers"][0]["name"], &pod["spec"]["containers"][1]["name"]];
        let statuses: Vec<Value> = names
            .into_iter()
            .zip(exits.as_array().unwrap())
            .map(|(name, exit)| {
                let state = match exit.as_i64() {
                    Some(code) => json!({"terminated": {"exitCode": code}}),
                    None => json!({"running": {}}),
                };
                json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
            })
            .collect();
        pod["status"]["containerStatuses"] = statuses.into();
        state.put(&pod);
        proxies.push((name, proxy, over));
    }
    // One that another control plane looks after.
    let foreign = Proxy::start(String::new()).await;
    let mut pod = pod_of(&foreign, "foreign", "aaaaa");
    pod["metadata"]["labels"]["linkerd.io/control-plane-ns"] = "linkerd".into();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["status"]["containerStatuses"] = json!([{
        "name": pod["spec"]["containers"][0]["name"], "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0}},
    }]);
    state.put(&pod);
    proxies.push(("foreign", foreign, false));
    let any = "127.0.0.1:0";
    let path = state.path().to_str().unwrap();
    let args = ["--state-dir", path, "--api-addr", any, "--admin-addr", any, "--scrape-interval", "50ms"];
    let _controller = Controller::start("metrics", 2, &args);
    for (name, proxy, over) in &proxies {
        proxy.scraped().await;
        proxy.scraped().await;
        assert_eq!(proxy.ended.load(Ordering::SeqCst) > 0, *over, "{name}");
    }
}
