//! The real binary as the webhooks of a cluster, asked over TLS as an API server asks.

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use support::api_server::{ApiServer, Fault};
use support::{Controller, namespace, plain_pod, until};
use tokio::net::TcpStream;
use weft_core::{manifest, trust};

const MUTATING: &str = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const LEASES: &str = "coordination.k8s.io/v1/leases";
const NAME: &str = "weft-injector.weft.svc";

/// An API server with what an installation makes, and the files that are mounted into the injector.
fn cluster() -> ApiServer {
    let api = ApiServer::start();
    for (kind, name, webhook) in [
        ("MutatingWebhookConfiguration", "weft-injector-webhook-config", "weft-injector.linkerd.io"),
        ("ValidatingWebhookConfiguration", "weft-validator-webhook-config", "weft-validator.linkerd.io"),
    ] {
        api.put(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name},
            "webhooks": [
                {"name": "of.somebody.else", "clientConfig": {"url": "https://example.org/"}},
                {"name": webhook, "clientConfig": {"service": {"name": "weft-injector", "namespace": "weft"}}},
            ],
        }));
    }
    let mut control = namespace("weft", json!({"linkerd.io/inject": "enabled"}));
    control["metadata"]["labels"] = json!({"linkerd.io/is-control-plane": "true"});
    api.put(&control);
    api.put(&namespace("shop", json!({"linkerd.io/inject": "enabled", "config.linkerd.io/proxy-log-level": "trace"})));
    api.put(&namespace("plain", json!({})));
    let trust = trust::generate(SystemTime::now().into()).unwrap();
    std::fs::write(api.directory().join("anchors.pem"), &trust.anchor_pem).unwrap();
    std::fs::write(api.directory().join("values"), "proxy: {image: {name: example.org/proxy, version: v1}}\n").unwrap();
    api
}

fn start(api: &ApiServer, more: &[&str]) -> Controller {
    let path = |name: &str| api.directory().join(name).to_str().unwrap().to_owned();
    let (kubeconfig, values, anchors) = (path("kubeconfig"), path("values"), path("anchors.pem"));
    let any = "127.0.0.1:0";
    let args = [
        "--kubeconfig",
        &kubeconfig,
        "--values",
        &values,
        "--trust-anchors",
        &anchors,
        "--webhook-addr",
        any,
        "--admin-addr",
        any,
        "--api-timeout",
        "2s",
        "--lease-duration",
        "3s",
    ];
    Controller::start("injector", 2, &[&args[..], more].concat())
}

async fn ready(controller: &Controller) {
    until("the injector is ready", async || controller.admin("/ready").await.0 == 200).await;
}

/// Who the API server was told vouches for the webhook.
fn ca_bundle(api: &ApiServer, collection: &str, name: &str) -> Option<String> {
    let configuration = api.object(collection, "", name)?;
    assert_eq!(configuration["webhooks"][0]["clientConfig"].get("caBundle"), None, "not ours");
    let bundle = configuration["webhooks"][1]["clientConfig"]["caBundle"].as_str()?;
    Some(String::from_utf8(BASE64.decode(bundle).unwrap()).unwrap())
}

/// A connection as the API server makes it: it believes the bundle and nobody else.
struct Client(hyper::client::conn::http1::SendRequest<Full<Bytes>>, Vec<u8>);

impl Client {
    async fn connect(addr: SocketAddr, ca_pem: &str) -> Result<Client, std::io::Error> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let stream = connector.connect(ServerName::try_from(NAME).unwrap(), stream).await?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Ok(Client(sender, shown))
    }

    async fn of(controller: &Controller, api: &ApiServer) -> Client {
        let bundle = ca_bundle(api, MUTATING, "weft-injector-webhook-config").unwrap();
        Client::connect(controller.addr("webhook"), &bundle).await.unwrap()
    }

    async fn send(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", NAME)
            .body(Full::from(body.to_owned()))
            .unwrap();
        let answer = self.0.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn ask(&mut self, path: &str, review: &Value) -> Value {
        let (status, body) = self.send("POST", path, &review.to_string()).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        answer["response"].clone()
    }

    /// What becomes of a pod: the pod as it would be made, and the whole response.
    async fn admit(&mut self, pod: &Value) -> (Value, Value) {
        let response = self.ask("/", &review(pod)).await;
        assert_eq!(response["allowed"], true, "{response}");
        let mut made = pod.clone();
        if let Some(patch) = response["patch"].as_str() {
            assert_eq!(response["patchType"], "JSONPatch");
            let patch: json_patch::Patch = serde_json::from_slice(&BASE64.decode(patch).unwrap()).unwrap();
            json_patch::patch(&mut made, &patch).unwrap();
        }
        (made, response)
    }
}

fn review(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": object["kind"]},
            "namespace": object["metadata"]["namespace"], "operation": "CREATE", "object": object,
            "userInfo": {"username": "admin"}, "dryRun": false,
        },
    })
}

/// A pod as a workload of this kind makes it.
fn pod_of(namespace: &str, kind: &str, owner: &str) -> Value {
    let mut pod = plain_pod(namespace, "x", "10.0.0.1");
    pod.as_object_mut().unwrap().remove("status");
    pod["metadata"] = json!({
        "namespace": namespace, "generateName": format!("{owner}-"), "labels": {"app": "web"},
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": kind, "name": owner, "uid": "7", "controller": true}],
    });
    pod
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let list = pod["spec"][list].as_array().cloned().unwrap_or_default();
    list.iter().map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pods_are_injected_as_they_and_their_namespaces_say() {
    let api = cluster();
    let controller = start(&api, &[]);
    ready(&controller).await;
    let mut client = Client::of(&controller, &api).await;
    // The version of the cluster is learnt beside everything else.
    until("native sidecars", async || {
        let mut client = Client::of(&controller, &api).await;
        names(&client.admit(&pod_of("shop", "StatefulSet", "db")).await.0, "containers") == ["app"]
    })
    .await;
    let (made, _) = client.admit(&pod_of("shop", "StatefulSet", "db")).await;
    assert_eq!(names(&made, "initContainers"), ["linkerd-init", "linkerd-proxy"]);
    assert_eq!(made["metadata"]["labels"]["linkerd.io/proxy-statefulset"], "db");
    let proxy = &made["spec"]["initContainers"][1];
    assert_eq!(proxy["image"], "example.org/proxy:v1");
    let env = proxy["env"].as_array().unwrap();
    assert!(
        env.iter().any(|e| e["name"] == "LINKERD2_PROXY_LOG" && e["value"] == "trace"),
        "the namespace's annotation"
    );
    // Asked again, as when another webhook changed the pod: it has its proxy.
    assert_eq!(client.admit(&made).await.1.get("patch"), None);

    let unchanged = [pod_of("plain", "StatefulSet", "db"), pod_of("weft", "ReplicaSet", "weft-metrics-1"), {
        let mut pod = pod_of("shop", "StatefulSet", "db");
        pod["metadata"]["annotations"] = json!({"linkerd.io/inject": "disabled"});
        pod
    }];
    for pod in &unchanged {
        let (made, response) = client.admit(pod).await;
        assert_eq!((&made, response.get("warnings")), (pod, None));
    }
    let mut on_host = pod_of("shop", "DaemonSet", "agent");
    on_host["spec"]["hostNetwork"] = true.into();
    let (made, response) = client.admit(&on_host).await;
    assert_eq!(made, on_host);
    assert_eq!(response["warnings"], json!(["no proxy was added: hostNetwork is enabled"]));
    // What pods say wins.
    let mut asks = pod_of("plain", "ReplicaSet", "web-1");
    asks["metadata"]["annotations"] = json!({
        "linkerd.io/inject": "enabled", "config.linkerd.io/proxy-enable-native-sidecar": "false",
    });
    assert_eq!(names(&client.admit(&asks).await.0, "containers"), ["linkerd-proxy", "app"]);

    // A mistake is refused, and the answer says which.
    let mut wrong = pod_of("shop", "StatefulSet", "db");
    wrong["metadata"]["annotations"] = json!({"config.linkerd.io/proxy-uid": "many"});
    let response = client.ask("/", &review(&wrong)).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(422)));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("config.linkerd.io/proxy-uid") && message.contains("many"), "{message}");

    // A Job of a CronJob belongs to that.
    api.put(&json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "namespace": "shop", "name": "night-1",
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "night", "uid": "8", "controller": true}],
        },
    }));
    let (made, _) = client.admit(&pod_of("shop", "Job", "night-1")).await;
    assert_eq!(made["metadata"]["labels"]["linkerd.io/proxy-cronjob"], "night");
    let (made, _) = client.admit(&pod_of("shop", "Job", "by-hand")).await;
    assert_eq!(made["metadata"]["labels"]["linkerd.io/proxy-job"], "by-hand");

    // People are told, once for each workload and reason, and not of what is only tried.
    let mut tried = review(&pod_of("shop", "StatefulSet", "tried"));
    tried["request"]["dryRun"] = true.into();
    client.ask("/", &tried).await;
    let said = |reason: &str| -> Vec<String> {
        let of = |e: &Value| e["reason"] == reason;
        let name = |e: Value| e["involvedObject"]["name"].as_str().unwrap().to_owned();
        api.objects("v1/events").into_iter().filter(of).map(name).collect()
    };
    until("events are written", async || said("Injected").contains(&"by-hand".to_owned())).await;
    let mut injected = said("Injected");
    injected.sort();
    assert_eq!(injected, ["by-hand", "db", "night-1", "web-1"]);
    let mut skipped = said("InjectionSkipped");
    skipped.sort();
    assert_eq!(skipped, ["agent", "db"], "db was asked about twice");
    let figure = "weft_injector_admissions_total{webhook=\"inject\",result=\"refused\"}";
    assert_eq!(controller.metric(figure).await, 1);
    api.assert_allowed("injector");
}

#[tokio::test]
async fn what_is_no_question_gets_an_answer_too() {
    let api = cluster();
    let controller = start(&api, &[]);
    ready(&controller).await;
    let mut client = Client::of(&controller, &api).await;
    for body in ["", "{", "[]", r#"{"apiVersion": "admission.k8s.io/v2", "request": {"uid": "1"}}"#] {
        assert_eq!(client.send("POST", "/", body).await.0, 400, "{body}");
    }
    assert_eq!(client.send("GET", "/", "").await.0, 405);
    assert_eq!(client.send("POST", "/nothing", "{}").await.0, 404);
    let mut question = review(&plain_pod("shop", "a", "10.0.0.1"));
    for object in [json!({"kind": "Pod"}), json!({"kind": "Pod", "metadata": 5, "spec": []})] {
        question["request"]["object"] = object;
        let response = client.ask("/", &question).await;
        assert_eq!(response["allowed"], false, "{response}");
    }
    for object in [Value::Null, json!(5), json!({"kind": "Secret"})] {
        question["request"]["object"] = object;
        assert_eq!(client.send("POST", "/", &question.to_string()).await.0, 500);
    }
    // Another kind, and another operation, are none of our business.
    let mut question = review(&json!({"kind": "Deployment", "metadata": {"namespace": "shop", "name": "a"}}));
    assert_eq!(client.ask("/", &question).await["allowed"], true);
    question = review(&plain_pod("shop", "a", "10.0.0.1"));
    question["request"]["operation"] = "UPDATE".into();
    assert_eq!(client.ask("/", &question).await.get("patch"), None);
    // A client that is none: the next one is served.
    let addr = controller.addr("webhook");
    let plain = without_tls(addr).await;
    assert!(plain.is_empty() || !plain.starts_with(b"HTTP/1.1 200"), "no webhook without TLS");
    client.admit(&pod_of("shop", "StatefulSet", "db")).await;

    // Mesh resources are checked as `weft apply` checks them.
    let server = |port: Value| {
        json!({
            "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server", "metadata": {"namespace": "shop", "name": "a"},
            "spec": {"podSelector": {}, "port": port},
        })
    };
    assert_eq!(client.ask("/validate", &review(&server(json!(80)))).await["allowed"], true);
    let response = client.ask("/validate", &review(&server(json!(0)))).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["message"], "spec.port: is neither a port from 1 to 65535 nor the name of one");
    let mut deleted = review(&server(json!(0)));
    deleted["request"]["operation"] = "DELETE".into();
    assert_eq!(client.ask("/validate", &deleted).await["allowed"], true);
}

/// What a server says to HTTP without TLS.
/// What is good, and what is not with the words about it.
const RESOURCES: &str = include_str!("resources.yaml");

#[tokio::test]
async fn resources_are_judged_alike_everywhere() {
    let api = cluster();
    let controller = start(&api, &[]);
    ready(&controller).await;
    let mut client = Client::of(&controller, &api).await;
    let mut judged = 0;
    for (at, mut value) in manifest::values("resources.yaml", RESOURCES).unwrap() {
        // `expect` is the table's own.
        let expected = value.as_object_mut().unwrap().shift_remove("expect");
        let expected = expected.map_or("good".to_owned(), |words| words.as_str().unwrap().to_owned());
        let one_machine = match manifest::parse_value("resources.yaml", value.clone()) {
            Ok(_) => "good".to_owned(),
            Err(error) => format!("{}: {}", error.field.unwrap_or_default(), error.message),
        };
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": at.to_string(), "operation": "CREATE", "namespace": "shop", "object": value},
        });
        let response = client.ask("/validate", &review).await;
        let cluster = match response["allowed"].as_bool() {
            Some(true) => "good",
            _ => response["status"]["message"].as_str().unwrap(),
        };
        assert_eq!((one_machine.as_str(), cluster), (expected.as_str(), expected.as_str()), "document {at}");
        judged += 1;
    }
    assert!(judged >= 20, "{judged}");
}

async fn without_tls(addr: SocketAddr) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Reset or closed: both are an end.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn webhooks_answer_while_the_api_server_does_not() {
    let api = cluster();
    api.world().minor = 20;
    let controller = start(&api, &[]);
    ready(&controller).await;
    let mut client = Client::of(&controller, &api).await;
    // A namespace that is younger than what was told: the server is asked.
    api.fault("watch=true", Some(Fault::Hang));
    api.cut();
    api.put(&namespace("young", json!({"linkerd.io/inject": "enabled"})));
    let (made, _) = client.admit(&pod_of("young", "StatefulSet", "db")).await;
    assert_eq!(names(&made, "containers"), ["linkerd-proxy", "app"], "an old cluster has no sidecars of its own");
    assert_eq!(names(&made, "initContainers"), ["linkerd-init"]);

    api.stop();
    let (made, _) = client.admit(&pod_of("shop", "StatefulSet", "db")).await;
    assert_eq!(names(&made, "containers"), ["linkerd-proxy", "app"]);
    let (made, _) = client.admit(&pod_of("shop", "Job", "once")).await;
    assert_eq!(made["metadata"]["labels"]["linkerd.io/proxy-job"], "once");
    // Nobody can say: that is for the cluster's failure policy.
    let unknown = review(&pod_of("unknown", "StatefulSet", "db")).to_string();
    let (status, body) = client.send("POST", "/", &unknown).await;
    assert_eq!(status, 500);
    assert!(body.contains("namespace unknown is not known"), "{body}");
    assert_eq!(controller.admin("/ready").await.0, 200);
}

#[tokio::test]
async fn values_are_read_again_and_bad_ones_are_not_used() {
    let api = cluster();
    let values = api.directory().join("values");
    std::fs::write(&values, "proxy: {uid: somebody}").unwrap();
    let controller = start(&api, &[]);
    until("it says why", async || {
        let (status, body) = controller.admin("/ready").await;
        status == 503 && body.contains("proxy.uid")
    })
    .await;
    until("the certificate is there", async || ca_bundle(&api, MUTATING, "weft-injector-webhook-config").is_some())
        .await;
    let mut client = Client::of(&controller, &api).await;
    let question = review(&pod_of("shop", "StatefulSet", "db")).to_string();
    assert_eq!(client.send("POST", "/", &question).await.0, 500, "a pod that is to be injected is not let in without");
    let plain = pod_of("plain", "StatefulSet", "db");
    assert_eq!(client.admit(&plain).await.0, plain, "one that is not is let in");

    std::fs::write(&values, "proxy: {image: {name: example.org/proxy, version: v2}}").unwrap();
    ready(&controller).await;
    let image = |pod: &Value| pod.to_string().contains("example.org/proxy:v2");
    assert!(image(&client.admit(&pod_of("shop", "StatefulSet", "db")).await.0));
    std::fs::write(&values, "proxy: {logFormat: verse}").unwrap();
    until("it is noticed", async || controller.metric("weft_injector_bad_values_total").await >= 2).await;
    assert!(image(&client.admit(&pod_of("shop", "StatefulSet", "db")).await.0), "those before stay in use");
    assert_eq!(controller.admin("/ready").await.0, 200);
}

#[tokio::test]
async fn certificates_rotate_and_replicas_agree() {
    let api = cluster();
    let more = ["--webhook-certificate-lifetime", "9s"];
    let mut replicas = vec![start(&api, &more), start(&api, &more)];
    for replica in &replicas {
        ready(replica).await;
    }
    let holder = || {
        let lease = api.object(LEASES, "weft", "weft-injector").unwrap_or_default();
        lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let first_holder = holder();
    assert!(!first_holder.is_empty());
    // Whoever is asked, and whenever: the API server believes what it is shown.
    let shown = Mutex::new(BTreeSet::new());
    let ask_all = async |replicas: &[Controller]| {
        for replica in replicas {
            // In the order of the API server: what it believes is older than what it is shown.
            let bundle = ca_bundle(&api, MUTATING, "weft-injector-webhook-config").unwrap();
            let mut client = Client::connect(replica.addr("webhook"), &bundle).await.expect("it is believed");
            client.admit(&pod_of("shop", "StatefulSet", "db")).await;
            shown.lock().unwrap().insert(client.1.clone());
        }
        shown.lock().unwrap().len()
    };
    until("the third certificate is shown", async || ask_all(&replicas).await >= 3).await;
    assert_eq!(
        ca_bundle(&api, MUTATING, "weft-injector-webhook-config"),
        ca_bundle(&api, VALIDATING, "weft-validator-webhook-config"),
    );
    // One wrote: both together made as many as were shown, not twice as many.
    let mut made = 0;
    for replica in &replicas {
        made += replica.metric("weft_injector_certificates_total").await;
    }
    assert!(made <= 5, "{made} certificates");

    // The leader dies without a word; the other one takes over and goes on rotating.
    let leads = |replica: &Controller| {
        let logs = replica.logs();
        let last = logs.iter().rev().find(|line| line["fields"]["message"] == "leadership");
        last.is_some_and(|line| line["fields"]["leads"] == true)
    };
    let leader = replicas.iter().position(&leads).expect("somebody leads");
    drop(replicas.remove(leader));
    until("the other leads", async || !holder().is_empty() && holder() != first_holder && leads(&replicas[0])).await;
    let before = ask_all(&replicas).await;
    until("it rotates", async || ask_all(&replicas).await > before).await;

    // Somebody takes the authority out: it is put back.
    let mut configuration = api.object(MUTATING, "", "weft-injector-webhook-config").unwrap();
    configuration["webhooks"][1]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
    api.put(&configuration);
    until("it is back", async || ca_bundle(&api, MUTATING, "weft-injector-webhook-config").is_some()).await;
    // And the Secret away: another is made.
    api.delete(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "weft", "name": "weft-injector-k8s-tls"}}));
    until("it is made again", async || api.object("v1/secrets", "weft", "weft-injector-k8s-tls").is_some()).await;

    // One that ends in order gives the lease back.
    replicas[0].terminate();
    assert!(replicas[0].ended().await.success());
    assert_eq!(holder(), "");
    let logs = serde_json::to_string(&replicas[0].logs()).unwrap();
    let secret = api.object("v1/secrets", "weft", "weft-injector-k8s-tls").unwrap();
    assert!(!logs.contains("PRIVATE KEY") && !logs.contains(secret["data"]["tls.key"].as_str().unwrap()));
    api.assert_allowed("injector");
}

/// How long an answer takes; printed, not judged: this machine has other work.
#[tokio::test]
async fn time_of_an_admission() {
    let api = cluster();
    let controller = start(&api, &[]);
    ready(&controller).await;
    let mut client = Client::of(&controller, &api).await;
    let pod = pod_of("shop", "StatefulSet", "db");
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        client.admit(&pod).await;
        times.push(started.elapsed());
    }
    times.sort();
    let spent = controller.metric("weft_injector_admission_microseconds_total{webhook=\"inject\"}").await / 200;
    println!(
        "admission: p50 {:?}, p99 {:?}, most {:?}; {spent} µs of each were decided in",
        times[100], times[198], times[199]
    );
}
