//! Injection against golden files (`WEFT_BLESS=1` rewrites them), and its inverse.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weft_core::inject::{InjectConfig, Outcome, Reason, annotate, inject, unannotate, uninject};
use weft_core::{control_plane, manifest, names};

const ANCHORS: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn config() -> InjectConfig {
    let mut config = InjectConfig::local(ANCHORS, "1.2.3");
    config.unless_disabled = true;
    config
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn input(name: &str) -> Value {
    let text = std::fs::read_to_string(golden_dir().join(name)).unwrap();
    manifest::values(name, &text).unwrap().remove(0).1
}

fn compare(name: &str, actual: &str) {
    let path = golden_dir().join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{name}: run with WEFT_BLESS=1 when the change is meant");
}

#[test]
fn golden_and_inverse() {
    for name in ["deployment", "configured", "list"] {
        let original = input(&format!("inject/{name}.yaml"));
        let injected = inject(&original, &config()).unwrap();
        let mut text = serde_yaml_ng::to_string(&injected.value).unwrap();
        for report in &injected.reports {
            text.push_str(&format!("# {}/{}: {:?}\n", report.kind, report.name, report.outcome));
        }
        compare(&format!("inject/{name}.golden.yaml"), &text);

        let again = inject(&injected.value, &config()).unwrap();
        assert_eq!(again.value, injected.value, "{name}: injecting twice is injecting once");
        let back = uninject(&injected.value);
        assert_eq!(unannotate(&back.value).value, unannotate(&original).value, "{name}: uninject is the inverse");
        if name != "list" {
            assert_eq!(back.value, original);
            // What comes out is still valid Kubernetes.
            manifest::parse_value(name, injected.value).unwrap();
        }
    }
}

/// On Kubernetes, with sidecars of the cluster's own kind and without them.
#[test]
fn golden_and_inverse_on_kubernetes() {
    let values = std::fs::read_to_string(golden_dir().join("kubernetes/values.yaml")).unwrap();
    let asks = BTreeMap::from([(names::ANNOTATION_INJECT.to_owned(), "enabled".to_owned())]);
    for name in ["deployment", "statefulset", "daemonset", "job", "cronjob", "replicaset", "pod", "list"] {
        let original = input(&format!("kubernetes/{name}.yaml"));
        let mut ways = vec![("native", true, false), ("init", false, false)];
        if ["deployment", "job", "pod"].contains(&name) {
            ways.extend([("cni-native", true, true), ("cni", false, true)]);
        }
        for (kind, native, cni) in ways {
            let mut config = InjectConfig::from_values(&values, "weft", ANCHORS, "1.2.3").unwrap();
            config.native_sidecars = native;
            config.cni = cni;
            config.namespaces.insert("shop".into(), asks.clone());
            // Of a pod that is to be made the request says in which namespace.
            config.default_namespace = "shop".into();
            let injected = inject(&original, &config).unwrap();
            let mut text = serde_yaml_ng::to_string(&injected.value).unwrap();
            for report in &injected.reports {
                text.push_str(&format!("# {}/{}: {:?}\n", report.kind, report.name, report.outcome));
            }
            compare(&format!("kubernetes/{name}.{kind}.golden.yaml"), &text);
            let again = inject(&injected.value, &config).unwrap();
            assert_eq!(again.value, injected.value, "{name}: injecting twice is injecting once");
            (config.native_sidecars, config.cni) = (!native, !cni);
            assert_eq!(inject(&injected.value, &config).unwrap().value, injected.value, "{name}: in either way");
            if name != "list" {
                assert_eq!(uninject(&injected.value).value, original, "{name}: uninject is the inverse");
                let mut typed = injected.value;
                // The API server names it.
                if name == "pod" {
                    typed["metadata"]["name"] = "web-5d4f8-x".into();
                }
                // The schema of the newest Kubernetes accepts it.
                manifest::parse_value(name, typed).unwrap();
            }
        }
    }
}

#[test]
fn in_a_cluster_the_namespace_or_the_pod_must_ask() {
    let pod = |value: Option<&str>| {
        let mut pod = input("inject/list.yaml")["items"][4].clone();
        match value {
            Some(value) => pod["metadata"]["annotations"][names::ANNOTATION_INJECT] = value.into(),
            None => {
                pod["metadata"].as_object_mut().unwrap().remove("annotations");
            }
        }
        pod
    };
    let mut config = config();
    config.unless_disabled = false;
    let outcome = |pod: &Value, config: &InjectConfig| inject(pod, config).unwrap().reports.remove(0).outcome;
    assert_eq!(outcome(&pod(None), &config), Outcome::Skipped(Reason::NotEnabled));
    assert_eq!(outcome(&pod(Some("nonsense")), &config), Outcome::Skipped(Reason::NotEnabled));
    assert_eq!(outcome(&pod(Some("enabled")), &config), Outcome::Changed);
    let asks = BTreeMap::from([(names::ANNOTATION_INJECT.to_owned(), "enabled".to_owned())]);
    config.namespaces.insert("default".into(), asks);
    assert_eq!(outcome(&pod(None), &config), Outcome::Changed);
    assert_eq!(outcome(&pod(Some("disabled")), &config), Outcome::Skipped(Reason::Disabled));
}

#[test]
fn annotations_of_the_namespace_are_defaults() {
    let mut config = config();
    let annotation = |k: &str, v: &str| (format!("config.linkerd.io/{k}"), v.to_owned());
    config.namespaces.insert(
        "emojivoto".into(),
        BTreeMap::from([annotation("proxy-log-level", "trace"), annotation("opaque-ports", "http,unknown,9")]),
    );
    let mut deployment = input("inject/deployment.yaml");
    let env = |value: &Value, name: &str| {
        let env = value.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array).unwrap();
        env.iter().find(|e| e["name"] == name).map(|e| e["value"].as_str().unwrap().to_owned())
    };
    let injected = inject(&deployment, &config).unwrap().value;
    assert_eq!(env(&injected, "LINKERD2_PROXY_LOG").as_deref(), Some("trace"));
    let opaque = env(&injected, "LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION");
    assert_eq!(opaque.as_deref(), Some("8080,9"));
    assert_eq!(env(&injected, "LINKERD2_PROXY_INBOUND_PORTS").as_deref(), Some("8080,8090,8801"));
    deployment["spec"]["template"]["metadata"]["annotations"]["config.linkerd.io/proxy-log-level"] = "warn".into();
    let injected = inject(&deployment, &config).unwrap().value;
    assert_eq!(env(&injected, "LINKERD2_PROXY_LOG").as_deref(), Some("warn"));
}

#[test]
fn a_bad_annotation_is_named() {
    for (name, value) in [
        ("proxy-uid", "-1"),
        ("inbound-port", "0"),
        ("skip-inbound-ports", "a"),
        ("skip-subnets", "10.0.0.0"),
        ("iptables-mode", "ipfw"),
        ("default-inbound-policy", "none"),
        ("proxy-cpu-limit", "much"),
        ("shutdown-grace-period", "5"),
        ("proxy-admin-shutdown", "perhaps"),
        ("image-pull-policy", "Sometimes"),
        ("proxy-additional-env", "{}"),
        ("proxy-require-identity-inbound-ports", "no-such-port"),
        ("close-wait-timeout", "10ms"),
        ("proxy-cpu-ratio-limit", "2"),
        ("proxy-enable-native-sidecar", "perhaps"),
        ("proxy-await", "later"),
        ("proxy-wait-before-exit-seconds", "soon"),
    ] {
        let mut deployment = input("inject/deployment.yaml");
        let key = format!("config.linkerd.io/{name}");
        deployment["spec"]["template"]["metadata"]["annotations"][&key] = value.into();
        let error = inject(&deployment, &config()).unwrap_err();
        assert_eq!(error.field, key);
        assert_eq!(error.object, "deployment/web");
    }
    let mut deployment = input("inject/deployment.yaml");
    let annotations = &mut deployment["spec"]["template"]["metadata"]["annotations"];
    annotations["config.linkerd.io/proxy-memory-request"] = "20Mi".into();
    annotations["config.linkerd.io/proxy-memory-limit"] = "10Mi".into();
    assert_eq!(inject(&deployment, &config()).unwrap_err().field, "config.linkerd.io/proxy-memory-limit");
}

/// With a CNI plugin no container of a pod needs a right, and the plugin is told what `weft-init` would have been told.
#[test]
fn with_a_cni_plugin_pods_need_no_rights() {
    let mut deployment = input("inject/deployment.yaml");
    let annotations = &mut deployment["spec"]["template"]["metadata"]["annotations"];
    annotations["config.linkerd.io/skip-outbound-ports"] = "443".into();
    annotations["config.linkerd.io/close-wait-timeout"] = "60s".into();
    annotations["config.linkerd.io/proxy-gid"] = "65534".into();
    let init = |cni: bool| {
        let injected = inject(&deployment, &InjectConfig { cni, ..config() }).unwrap().value;
        injected.pointer("/spec/template/spec/initContainers/0").unwrap().clone()
    };
    let (with, without) = (init(true), init(false));
    assert_eq!((&with["name"], &without["name"]), (&"linkerd-network-validator".into(), &"linkerd-init".into()));
    let args = with["args"].as_array().unwrap();
    assert_eq!(args.first().unwrap(), "validate");
    assert_eq!(args.get(1..).unwrap(), without["args"].as_array().unwrap().as_slice());
    let security = &with["securityContext"];
    assert_eq!(security["capabilities"], serde_json::json!({ "drop": ["ALL"] }));
    assert_eq!((&security["runAsNonRoot"], &security["allowPrivilegeEscalation"]), (&true.into(), &false.into()));
    assert!(security.get("privileged").is_none());
    // What the proxy's user and group send is not redirected, and so would show nothing.
    assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&65534.into(), &65533.into()));
}

#[test]
fn a_proxy_may_wait_before_it_ends() {
    let hooks = |annotations: &[(&str, &str)], native: bool| {
        let mut deployment = input("inject/deployment.yaml");
        for (name, value) in annotations {
            deployment["spec"]["template"]["metadata"]["annotations"][*name] = (*value).into();
        }
        let config = InjectConfig { native_sidecars: native, ..config() };
        let injected = inject(&deployment, &config).unwrap().value;
        let list = if native { "initContainers" } else { "containers" };
        let containers = injected.pointer(&format!("/spec/template/spec/{list}")).unwrap().as_array().unwrap();
        containers.iter().find(|c| c["name"] == names::PROXY_CONTAINER).unwrap()["lifecycle"].clone()
    };
    let (alpha, plain) =
        ("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", "config.linkerd.io/proxy-wait-before-exit-seconds");
    let sleep = |seconds: &str| serde_json::json!({ "exec": { "command": ["weft-proxy", "sleep", seconds] } });
    assert_eq!(hooks(&[(alpha, "20")], false)["preStop"], sleep("20"));
    assert_eq!(hooks(&[(plain, "5"), (alpha, "20")], false)["preStop"], sleep("5"), "the newer name wins");
    assert_eq!(hooks(&[(alpha, "20")], true), serde_json::json!({ "preStop": sleep("20") }));
    assert!(hooks(&[(alpha, "0")], false)["preStop"].is_null() && hooks(&[], true).is_null());
    let mut deployment = input("inject/deployment.yaml");
    deployment["spec"]["template"]["metadata"]["annotations"][alpha] = "1m".into();
    assert_eq!(inject(&deployment, &config()).unwrap_err().field, alpha);
}

#[test]
fn odd_objects_are_refused_or_passed_through() {
    for text in [
        "kind: Deployment",
        "{kind: Deployment, metadata: {name: a}, spec: {template: 5}}",
        "{kind: Pod, metadata: {name: a}}",
        "{kind: Pod, metadata: 5, spec: {}}",
        "{kind: Pod, metadata: {name: a, labels: []}, spec: {containers: [{name: a}]}}",
        "{kind: Pod, metadata: {name: a}, spec: {containers: 5}}",
    ] {
        let value = manifest::values("odd", text).unwrap().remove(0).1;
        assert!(inject(&value, &config()).is_err(), "{text}");
        assert_eq!(uninject(&value).value, value);
    }
    for value in [Value::Null, Value::from(5), serde_json::json!({"kind": "Widget", "spec": {"template": 1}})] {
        assert_eq!(inject(&value, &config()).unwrap().value, value);
    }
}

#[test]
fn annotate_asks_and_unannotate_takes_back() {
    let asked = BTreeMap::from([("config.linkerd.io/proxy-log-level".to_owned(), "debug".to_owned())]);
    let deployment = input("inject/deployment.yaml");
    let annotated = annotate(&deployment, &asked).unwrap();
    assert_eq!(annotated.reports[0].outcome, Outcome::Changed);
    let annotations = &annotated.value["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations[names::ANNOTATION_INJECT], "enabled");
    assert_eq!(annotations["config.linkerd.io/proxy-log-level"], "debug");
    let plain = annotate(&deployment, &BTreeMap::new()).unwrap().value;
    assert_eq!(unannotate(&plain).value, deployment);
    let list = annotate(&input("inject/list.yaml"), &BTreeMap::new()).unwrap();
    let outcomes: Vec<_> = list.reports.iter().map(|r| r.outcome.clone()).collect();
    assert_eq!(
        outcomes,
        [
            Outcome::Annotated,
            Outcome::Skipped(Reason::Unsupported),
            Outcome::Skipped(Reason::HostNetwork),
            Outcome::Skipped(Reason::Sidecar),
            Outcome::Skipped(Reason::Disabled),
            Outcome::Changed,
        ]
    );
}

#[test]
fn the_control_plane_is_valid_and_meshed() {
    let objects = control_plane::manifests(&control_plane::ControlPlaneConfig {
        namespace: names::CONTROL_NAMESPACE.into(),
        trust_domain: names::TRUST_DOMAIN.into(),
        version: "1.2.3".into(),
        trust_anchors_pem: ANCHORS.into(),
        issuer_pem: "issuer\n".into(),
        issuer_key_pem: "key\n".into(),
        token_keys_pem: "public key\n".into(),
        objects_dir: "/state/objects".into(),
        log_level: "info".into(),
    });
    let mut text = String::new();
    let mut meshed = 0;
    let namespace = objects[0]["metadata"]["annotations"].as_object().unwrap();
    let namespace = namespace.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
    let mut config = config();
    config.unless_disabled = false;
    config.namespaces.insert("weft".into(), namespace);
    for object in &objects {
        manifest::parse_value("control plane", object.clone()).unwrap();
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(object).unwrap());
        if object["kind"] != "Deployment" {
            continue;
        }
        let injected = inject(object, &config).unwrap();
        assert_eq!(injected.reports[0].outcome, Outcome::Changed);
        meshed += 1;
        let env = injected.value.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array).unwrap();
        let addresses: Vec<&str> = ["IDENTITY", "DESTINATION", "POLICY"]
            .iter()
            .filter_map(|service| {
                let name = format!("LINKERD2_PROXY_{service}_SVC_ADDR");
                env.iter().find(|e| e["name"] == name.as_str())?["value"].as_str()
            })
            .collect();
        let (identity, destination, policy) = (
            "weft-identity.weft.svc.cluster.local.:8080",
            "weft-destination.weft.svc.cluster.local.:8086",
            "weft-policy.weft.svc.cluster.local.:8090",
        );
        let expected = match object["metadata"]["name"].as_str().unwrap() {
            "weft-identity" => ["localhost.:8080", destination, policy],
            "weft-destination" => [identity, "localhost.:8086", "localhost.:8090"],
            _ => [identity, destination, policy],
        };
        assert_eq!(addresses, expected);
    }
    assert_eq!(meshed, control_plane::deployments().count());
    compare("control_plane.golden.yaml", &text);
}
