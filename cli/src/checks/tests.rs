use super::*;
use crate::args::CheckOutput;
use base64::Engine;
use serde_json::json;
use std::collections::BTreeMap;

/// A cluster made of lists.
pub(super) struct Fake {
    running: bool,
    pub(super) objects: BTreeMap<&'static str, Vec<Value>>,
    api: Result<CheckResponse, String>,
}

impl Cluster for Fake {
    async fn connect(&self) -> Result<(), String> {
        if self.running { Ok(()) } else { Err("no cluster is running; start one with `weft up`".into()) }
    }

    async fn objects(&self, kind: &str, namespace: Option<&str>) -> Result<Vec<Value>, String> {
        let all = self.objects.get(kind).cloned().unwrap_or_default();
        Ok(all.into_iter().filter(|o| namespace.is_none_or(|n| super::namespace(o) == n)).collect())
    }

    async fn api(&self, _: &str) -> Result<CheckResponse, String> {
        self.api.clone()
    }
}

pub(super) fn pod(namespace: &str, deployment: &str, ready: bool) -> Value {
    json!({
        "metadata": {
            "name": format!("{deployment}-abc-12345"),
            "namespace": namespace,
            "labels": { "pod-template-hash": "abc" },
            "annotations": { "linkerd.io/proxy-version": VERSION },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{deployment}-abc"), "uid": "1",
            }],
        },
        "spec": { "containers": [{ "name": "linkerd-proxy" }, { "name": "app" }] },
        "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
            "containerStatuses": [
                { "name": "linkerd-proxy", "ready": ready, "state": { "running": {} } },
                { "name": "app", "ready": true, "state": { "running": {} } },
            ],
        },
    })
}

pub(super) fn healthy(now: OffsetDateTime) -> Fake {
    let trust = trust::generate(now).unwrap();
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let named = |name: &str| json!({ "name": name, "namespace": "weft" });
    let mut pods: Vec<Value> = control_plane::deployments().map(|d| pod("weft", d, true)).collect();
    pods.push(pod("emojivoto", "web", true));
    let namespace =
        |name: &str| json!({ "metadata": { "name": name, "annotations": { "linkerd.io/inject": "enabled" } } });
    let anchors =
        json!({ "metadata": named("weft-identity-trust-roots"), "data": { "ca-bundle.crt": trust.anchor_pem } });
    let issuer = json!({ "metadata": named("weft-identity-issuer"), "data": { "tls.crt": encode(&trust.issuer_pem) } });
    Fake {
        running: true,
        objects: BTreeMap::from([
            ("namespaces", vec![namespace("weft"), namespace("emojivoto")]),
            ("configmaps", vec![anchors]),
            ("secrets", vec![issuer]),
            ("pods", pods),
        ]),
        api: Ok(CheckResponse { version: VERSION.into(), proxies_scraped: 4, proxies_failed: Vec::new() }),
    }
}

fn checked(cluster: &Fake, output: CheckOutput, namespace: Option<&str>) -> (bool, String) {
    let mut runner = Runner::collecting(output);
    let options = Options {
        control: "weft".into(),
        namespace: namespace.map(str::to_owned),
        proxy_only: false,
        linkerd_cni: false,
        kubernetes: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&mut runner, cluster, &options));
    let success = runner.finish();
    (success, runner.text().to_owned())
}

#[test]
fn a_healthy_mesh() {
    let cluster = healthy(OffsetDateTime::now_utc());
    let (success, text) = checked(&cluster, CheckOutput::Table, None);
    let expected = "\
weft-existence
--------------
√ a cluster is running
√ control plane namespace exists
√ control plane pods are ready

weft-identity
-------------
√ certificate config is valid
√ trust anchors are within their validity period
√ trust anchors are valid for at least 60 days
√ issuer cert is within its validity period
√ issuer cert is valid for at least 60 days
√ issuer cert is issued by the trust anchor

weft-api
--------
√ can query the control plane API

control-plane-version
---------------------
√ control plane and cli versions match

weft-data-plane
---------------
√ data plane proxies are ready
√ data plane proxies are scraped
√ pods that ask for a proxy have one
√ data plane and cli versions match
√ data plane pod labels are configured correctly
√ data plane service labels are configured correctly
√ data plane namespace labels are configured correctly

weft-opaque-ports-definition
----------------------------
√ opaque ports are properly annotated

Status check results are √
";
    assert_eq!(text, expected);
    assert!(success);
    assert_eq!(checked(&cluster, CheckOutput::Short, None).1, "Status check results are √\n");
}

#[test]
fn without_a_cluster() {
    let mut cluster = healthy(OffsetDateTime::now_utc());
    cluster.running = false;
    let (success, text) = checked(&cluster, CheckOutput::Table, None);
    assert!(!success);
    let expected = "\
weft-existence
--------------
× a cluster is running
    no cluster is running; start one with `weft up`
    see `weft up --help` and docs/checks.md#a-cluster-is-running for hints

Status check results are ×
";
    assert_eq!(text, expected);
    let (_, text) = checked(&cluster, CheckOutput::Json, None);
    let value: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "success": false,
        "categories": [{
            "categoryName": "weft-existence",
            "checks": [{
                "description": "a cluster is running",
                "hint": "`weft up --help` and docs/checks.md#a-cluster-is-running",
                "error": "no cluster is running; start one with `weft up`",
                "result": "error",
            }],
        }],
    });
    assert_eq!(value, expected);
}

#[test]
fn each_fault_is_named() {
    let now = OffsetDateTime::now_utc();
    let fault = |change: &dyn Fn(&mut Fake), namespace: Option<&str>| {
        let mut cluster = healthy(now);
        change(&mut cluster);
        checked(&cluster, CheckOutput::Short, namespace)
    };
    type Change<'a> = &'a dyn Fn(&mut Fake);
    let cases: [(Change<'_>, bool, &str); 9] = [
        (
            &|c| c.objects.get_mut("pods").unwrap()[0] = pod("weft", "weft-identity", false),
            false,
            "weft-identity-abc-12345 is not ready: container linkerd-proxy is not ready",
        ),
        (&|c| drop(c.objects.get_mut("pods").unwrap().remove(0)), false, "weft-identity has no pod"),
        (&|c| drop(c.objects.remove("namespaces")), false, "there is no namespace weft"),
        (&|c| drop(c.objects.remove("secrets")), false, "Secret weft-identity-issuer has no issuer certificate"),
        (&|c| c.api = Err("cannot connect".into()), false, "cannot connect"),
        (&|c| c.api.as_mut().unwrap().version = "0.0.0".into(), true, "control plane running 0.0.0 but cli"),
        (
            &|c| c.api.as_mut().unwrap().proxies_failed.push("emojivoto/web-1: refused".into()),
            false,
            "emojivoto/web-1: refused",
        ),
        (
            &|c| c.objects.get_mut("pods").unwrap()[3] = pod("emojivoto", "web", false),
            false,
            "the proxy of emojivoto/web-abc-12345 is not ready",
        ),
        (
            &|c| drop(c.objects.get_mut("pods").unwrap()[3]["spec"]["containers"].as_array_mut().unwrap().remove(0)),
            true,
            "emojivoto/web-abc-12345 has no proxy",
        ),
    ];
    for (change, success, expected) in cases {
        let (ok, text) = fault(change, None);
        assert!(text.contains(expected), "{expected}: {text}");
        assert_eq!(ok, success, "{expected}");
    }
    let (ok, text) = fault(&|_| {}, Some("nowhere"));
    assert!(!ok && text.contains("there is no namespace nowhere"));
    let (ok, _) =
        fault(&|c| c.api.as_mut().unwrap().proxies_failed.push("other/web-1: refused".into()), Some("emojivoto"));
    assert!(ok);
}

#[test]
fn settings_that_contradict_each_other() {
    let found = |pod_annotations: Value, service: Value, labels: Value| {
        let mut cluster = healthy(OffsetDateTime::now_utc());
        let pods = cluster.objects.get_mut("pods").unwrap();
        pods[3]["metadata"]["annotations"] = pod_annotations;
        pods[3]["metadata"]["annotations"]["linkerd.io/proxy-version"] = VERSION.into();
        pods[3]["metadata"]["labels"] = labels;
        pods[3]["metadata"]["labels"]["app"] = "web".into();
        pods[3]["spec"]["containers"][1]["ports"] = json!([{ "name": "db", "containerPort": 9000 }]);
        cluster.objects.insert("services", vec![service]);
        let (success, text) = checked(&cluster, CheckOutput::Short, None);
        // All of them are warnings.
        assert!(success, "{text}");
        text
    };
    let service = |annotation: Option<&str>, ports: Value| {
        let annotations = annotation.map(|ports| json!({ "config.linkerd.io/opaque-ports": ports }));
        let metadata = json!({ "name": "web", "namespace": "emojivoto", "annotations": annotations });
        json!({ "metadata": metadata, "spec": { "selector": { "app": "web" }, "ports": ports } })
    };
    let well = "Status check results are √\n";
    let opaque = |ports: &str| json!({ "config.linkerd.io/opaque-ports": ports });
    let named = json!([{ "port": 80, "targetPort": "db" }]);
    assert_eq!(found(opaque("9000"), service(Some("80"), named.clone()), json!({})), well);
    assert_eq!(found(opaque("db"), service(Some("70-90"), named.clone()), json!({})), well);
    assert_eq!(found(json!({}), service(None, json!([{ "port": 3306 }])), json!({})), well);
    // Declared for the port itself, or not of TCP.
    assert_eq!(found(opaque("9000"), service(None, json!([{ "port": 9000, "appProtocol": "db" }])), json!({})), well);
    assert_eq!(found(opaque("9000"), service(None, json!([{ "port": 9000, "protocol": "UDP" }])), json!({})), well);
    for (annotations, service, labels, expected) in [
        (
            opaque("9000"),
            service(None, named.clone()),
            json!({}),
            "port 9000 of pod emojivoto/web-abc-12345 is opaque, but port 80 of service emojivoto/web is not",
        ),
        (
            json!({}),
            service(Some("80"), named),
            json!({}),
            "port 80 of service emojivoto/web is opaque, but port 9000 of pod emojivoto/web-abc-12345 is not",
        ),
        (
            json!({}),
            service(None, json!([{ "port": 3306, "targetPort": 9000 }])),
            json!({}),
            "port 3306 of service emojivoto/web is opaque, but port 9000",
        ),
        (
            json!({}),
            service(None, json!([])),
            json!({ "linkerd.io/inject": "enabled" }),
            "emojivoto/web-abc-12345 has the label linkerd.io/inject, which is an annotation",
        ),
        (
            json!({}),
            service(None, json!([])),
            json!({ "config.linkerd.io/proxy-uid": "1" }),
            "emojivoto/web-abc-12345 has the label config.linkerd.io/proxy-uid",
        ),
    ] {
        let text = found(annotations, service, labels);
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn certificates_that_end() {
    let now = OffsetDateTime::now_utc();
    let old = |days: i64| checked(&healthy(now - time::Duration::days(days)), CheckOutput::Short, None);
    let (ok, text) = old(trust::ISSUER_DAYS - 30);
    assert!(ok && text.contains("‼ issuer cert is valid for at least 60 days"), "{text}");
    let (ok, text) = old(trust::ISSUER_DAYS + 1);
    assert!(!ok && text.contains("× issuer cert is within its validity period"), "{text}");
}
