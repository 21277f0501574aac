//! Properties that hold for any input: nothing panics, and injection can be undone.

use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::SystemTime;
use weft_core::inject::{InjectConfig, Outcome, annotate, inject, unannotate, uninject};
use weft_core::selector::Selector;
use weft_core::token::{Signer, TokenKeys};
use weft_core::{manifest, trust};

const VALID: &str = include_str!("golden/inject/configured.yaml");

fn config() -> InjectConfig {
    let mut config = InjectConfig::local("anchors", "1");
    config.unless_disabled = true;
    config
}

/// JSON of any shape, with the keys that injection looks at.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9,.-]{0,8}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("metadata".to_owned()),
        Just("spec".to_owned()),
        Just("template".to_owned()),
        Just("containers".to_owned()),
        Just("initContainers".to_owned()),
        Just("volumes".to_owned()),
        Just("labels".to_owned()),
        Just("annotations".to_owned()),
        Just("ports".to_owned()),
        Just("name".to_owned()),
        Just("items".to_owned()),
        Just("linkerd.io/inject".to_owned()),
        Just("config.linkerd.io/opaque-ports".to_owned()),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn labels() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 1..4).prop_map(|map| json!(map))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn damaged_manifests_never_panic(at in 0..VALID.len(), length in 0usize..40, text in "[ -~\n]{0,20}") {
        let mut damaged = VALID.to_owned();
        let end = (at + length).min(damaged.len());
        damaged.replace_range(at..end, &text);
        if let Err(error) = manifest::parse("x", &damaged) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn objects_of_any_shape_never_panic(kind in "Pod|Deployment|CronJob|Namespace|List|Job|Widget", mut value in any_json()) {
        if let Some(map) = value.as_object_mut() {
            map.insert("kind".into(), kind.into());
        }
        let _ = inject(&value, &config());
        let _ = annotate(&value, &Default::default());
        uninject(&value);
        unannotate(&value);
        let _ = manifest::parse_value("x", value);
    }

    #[test]
    fn uninject_is_the_inverse(
        pod_labels in labels(),
        pod_annotations in labels(),
        ports in prop::collection::vec(1u16.., 0..4),
        init in any::<bool>(),
    ) {
        let ports: Vec<Value> = ports.into_iter().map(|port| json!({ "containerPort": port })).collect();
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "a", "labels": pod_labels, "annotations": pod_annotations },
            "spec": { "containers": [{ "name": "app", "ports": ports }] },
        });
        if init {
            pod["spec"]["initContainers"] = json!([{ "name": "first" }]);
            pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
        }
        let injected = inject(&pod, &config()).unwrap();
        prop_assert_eq!(&injected.reports[0].outcome, &Outcome::Changed);
        prop_assert_eq!(&inject(&injected.value, &config()).unwrap().value, &injected.value);
        prop_assert_eq!(uninject(&injected.value).value, pod.clone());
        let asked = annotate(&pod, &Default::default()).unwrap();
        prop_assert_eq!(unannotate(&asked.value).value, pod);
    }

    #[test]
    fn texts_never_panic(text in "[ -~é\n]{0,60}") {
        let _ = text.parse::<Selector>();
        let _ = trust::inspect(&text);
        let _ = TokenKeys::from_pems([text.as_str()]);
        let _ = Signer::from_pem(&text);
    }
}

#[test]
fn a_token_changed_anywhere_is_refused() {
    let (signer, _) = Signer::generate().unwrap();
    let keys = TokenKeys::from_pems([signer.public_key_pem()]).unwrap();
    let subject = weft_core::token::Subject { namespace: "a".into(), service_account: "b".into(), pod: None };
    let now = SystemTime::now();
    let token = signer.issue(&subject, "x", std::time::Duration::from_secs(600), now).unwrap();
    assert_eq!(keys.verify(&token, "x", now), Ok(subject));
    let last = token.len() - 1;
    for at in 0..last {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(keys.verify(&changed, "x", now).is_err(), "octet {at}");
    }
    // The last character carries bits that mean nothing; cutting it off is another matter.
    assert!(keys.verify(&token[..last], "x", now).is_err());
}
