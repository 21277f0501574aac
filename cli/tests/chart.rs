//! What `weft install` prints: the charts, rendered. That Helm gives the same is tested where there is a Helm (e2e).

use k8s_openapi::Resource;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use weft::chart::{CNI, CONTROL_PLANE, RESOURCES, Release};
use weft::install::{cni_rendered, rendered};
use weft_core::inject::{self, InjectConfig};

const ANCHORS: &str = "-----BEGIN CERTIFICATE-----\nanchors\n-----END CERTIFICATE-----\n";
const NEW: &[&str] = &["v1", "policy/v1"];

fn settings(more: Value) -> Value {
    let mut settings = json!({
        "identityTrustAnchorsPEM": ANCHORS,
        "identity": { "issuer": { "tls": { "crtPEM": "certificate", "keyPEM": "key" } } },
    });
    weft::chart::merge(&mut settings, &more, &CONTROL_PLANE.defaults().unwrap(), weft::chart::Nulls::Keep).unwrap();
    settings
}

fn control_plane(more: Value) -> Vec<Value> {
    rendered(&settings(more), "weft", NEW).unwrap()
}

fn high_availability() -> Value {
    CONTROL_PLANE.high_availability().unwrap()
}

fn plugin(settings: Value) -> Vec<Value> {
    cni_rendered(&settings, "weft-cni").unwrap()
}

fn resources() -> Vec<Value> {
    RESOURCES.render(&json!({}), &Release { namespace: "weft", api_versions: NEW }).unwrap()
}

fn golden(name: &str, objects: &[Value]) {
    let text = weft::inject::write(objects, weft::args::ManifestOutput::Yaml).replace(weft::VERSION, "VERSION");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs; bless it with WEFT_BLESS=1 and read the difference");
}

#[test]
fn manifests_are_as_they_were() {
    golden("install.yml", &control_plane(json!({})));
    golden("install_ha.yml", &control_plane(high_availability()));
    let external = json!({
        "identity": { "externalCA": true, "issuer": { "scheme": "kubernetes.io/tls" } },
        "imagePullSecrets": [{ "name": "registry" }],
        "tolerations": [{ "operator": "Exists" }],
        "priorityClassName": "system-cluster-critical",
        "commonLabels": { "team": "mesh" },
        "proxy": { "gid": 2102 },
    });
    golden("install_external.yml", &control_plane(external));
    golden("install_crds.yml", &resources());
    golden("install_with_cni.yml", &control_plane(json!({ "cniEnabled": true })));
    golden("install_cni.yml", &plugin(json!({})));
}

/// A file that is in the folder, but not in this program, would be there only for users of Helm.
#[test]
fn all_files_are_part_of_the_program() {
    for (chart, folder) in [(&CONTROL_PLANE, "weft"), (&RESOURCES, "weft-crds"), (&CNI, "weft-cni")] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts").join(folder);
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(&folder).unwrap().chain(std::fs::read_dir(folder.join("templates")).unwrap()) {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.insert(path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned());
            }
        }
        let about: &[&str] = &["Chart.yaml", "values.yaml", "values-ha.yaml"];
        files.retain(|file| !about.contains(&file.as_str()));
        let sources: BTreeSet<String> = chart.sources().into_iter().map(str::to_owned).collect();
        assert_eq!(files, sources);
        let about: Value =
            serde_yaml_ng::from_str(&std::fs::read_to_string(folder.join("Chart.yaml")).unwrap()).unwrap();
        assert_eq!(about["version"], weft::VERSION);
        assert_eq!(about["appVersion"], weft::VERSION);
    }
}

/// Reads an object as the newest version of its type and writes it again: a field that got lost is not one of the type.
fn typed<T: Resource + DeserializeOwned + Serialize>(object: &Value) {
    assert_eq!(object["apiVersion"], T::API_VERSION);
    assert_eq!(object["kind"], T::KIND);
    let read: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{}: {e}", object["metadata"]));
    let written = serde_json::to_value(read).unwrap();
    contains(&written, object, object["metadata"]["name"].as_str().unwrap());
}

fn contains(all: &Value, some: &Value, path: &str) {
    match (all, some) {
        (Value::Object(all), Value::Object(some)) => {
            for (key, value) in some {
                let other = all.get(key).unwrap_or(&Value::Null);
                // Empty lists and maps may be left out.
                let empty = value == &json!({}) || value == &json!([]) || value.is_null();
                if !(empty && other.is_null()) {
                    contains(other, value, &format!("{path}.{key}"));
                }
            }
        }
        (Value::Array(all), Value::Array(some)) => {
            assert_eq!(all.len(), some.len(), "{path}");
            for (at, (all, some)) in all.iter().zip(some).enumerate() {
                contains(all, some, &format!("{path}[{at}]"));
            }
        }
        (Value::Number(all), Value::Number(some)) => assert_eq!(all.as_f64(), some.as_f64(), "{path}"),
        _ => assert_eq!(all, some, "{path}"),
    }
}

#[test]
fn objects_have_the_fields_of_their_types() {
    let plugins = [plugin(json!({})), plugin(json!({ "privileged": true, "repairController": { "enabled": false } }))];
    let with_plugin = control_plane(json!({ "cniEnabled": true }));
    let planes = [control_plane(json!({})), control_plane(high_availability()), with_plugin, resources()];
    for object in [planes.concat(), plugins.concat()].concat() {
        match object["kind"].as_str().unwrap() {
            "Namespace" => typed::<Namespace>(&object),
            "ServiceAccount" => typed::<ServiceAccount>(&object),
            "Secret" => typed::<Secret>(&object),
            "ConfigMap" => typed::<ConfigMap>(&object),
            "Service" => typed::<Service>(&object),
            "Deployment" => typed::<Deployment>(&object),
            "DaemonSet" => typed::<DaemonSet>(&object),
            "PodDisruptionBudget" => typed::<PodDisruptionBudget>(&object),
            "ClusterRole" => typed::<ClusterRole>(&object),
            "ClusterRoleBinding" => typed::<ClusterRoleBinding>(&object),
            "Role" => typed::<Role>(&object),
            "RoleBinding" => typed::<RoleBinding>(&object),
            "MutatingWebhookConfiguration" => typed::<MutatingWebhookConfiguration>(&object),
            "ValidatingWebhookConfiguration" => typed::<ValidatingWebhookConfiguration>(&object),
            "CustomResourceDefinition" => typed::<CustomResourceDefinition>(&object),
            kind => panic!("{kind}"),
        }
    }
}

fn deployments(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter(|object| object["kind"] == "Deployment")
}

/// The proxies of the control plane are written out in the chart; they must be what the injector adds to everybody else.
#[test]
fn proxies_of_the_control_plane_are_those_that_injection_adds() {
    let config = |cni: bool, mode: &str| InjectConfig {
        proxy_image: "localhost/weft/proxy".into(),
        created_by: format!("weft {}", weft::VERSION),
        defaults: [("iptables-mode".to_owned(), mode.to_owned())].into(),
        cni,
        ..InjectConfig::local(ANCHORS, weft::VERSION)
    };
    for (cni, mode) in [(false, "auto"), (true, "auto"), (false, "legacy"), (true, "legacy")] {
        let objects = control_plane(json!({ "cniEnabled": cni, "proxyInit": { "iptablesMode": mode } }));
        assert_eq!(deployments(&objects).count(), 4);
        deployments(&objects).for_each(|deployment| proxy_is_injected(deployment, &config(cni, mode)));
    }
}

fn proxy_is_injected(deployment: &Value, config: &InjectConfig) {
    let without = inject::uninject(deployment).value;
    assert_eq!(without["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    let mut asked = inject::annotate(&without, &Default::default()).unwrap().value;
    asked = inject::inject(&asked, config).unwrap().value;
    let injected = inject::unannotate(&asked).value;
    let (ours, theirs) = (&deployment["spec"]["template"], &injected["spec"]["template"]);
    contains(theirs, ours, "the chart has what injection does not add: ");
    contains(ours, theirs, "injection adds what the chart does not have: ");
}

/// What Pod Security calls `restricted`, apart from the one container that redirects traffic.
#[test]
fn pods_are_restricted() {
    for object in deployments(&control_plane(high_availability())) {
        let pod = &object["spec"]["template"]["spec"];
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[field].is_null());
        }
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["automountServiceAccountToken"], false);
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(["configMap", "secret", "projected", "emptyDir"].iter().any(|kind| volume.get(*kind).is_some()));
        }
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{}", container["name"]);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["runAsNonRoot"], true);
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            assert!(!container["resources"]["requests"].is_null());
            // The token of the API is the controller's alone.
            let mounts = container["volumeMounts"].as_array().unwrap();
            let has_token = mounts.iter().any(|mount| mount["name"] == "kube-api-access");
            assert_eq!(has_token, container["name"] != "linkerd-proxy");
        }
        for container in pod["initContainers"].as_array().unwrap() {
            assert_eq!(container["securityContext"]["privileged"], false);
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN", "NET_RAW"]));
        }
    }
}

/// With a CNI plugin there is no exception, and the namespace says so.
#[test]
fn with_a_cni_plugin_all_containers_are_restricted() {
    let objects = control_plane(json!({ "cniEnabled": true }));
    let namespace = objects.iter().find(|o| o["kind"] == "Namespace").unwrap();
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    for object in deployments(&objects) {
        let pod = &object["spec"]["template"]["spec"];
        for container in ["initContainers", "containers"].iter().flat_map(|list| pod[*list].as_array().unwrap()) {
            let security = &container["securityContext"];
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }), "{}", container["name"]);
            assert_eq!(
                (&security["runAsNonRoot"], &security["allowPrivilegeEscalation"]),
                (&json!(true), &json!(false))
            );
            assert!(security["privileged"].is_null() && security["runAsUser"].as_u64() > Some(0));
        }
    }
    // The injector is told, too.
    let config = objects.iter().find(|o| o["metadata"]["name"] == "weft-config").unwrap();
    let values = config["data"]["values"].as_str().unwrap();
    assert!(InjectConfig::from_values(values, "weft", ANCHORS, weft::VERSION).unwrap().cni);
}

/// The plugin's pods write into two directories of the node, and may do nothing else.
#[test]
fn the_cni_plugin_may_do_little() {
    let rules = |objects: &[Value]| objects.iter().find(|o| o["kind"] == "ClusterRole").unwrap()["rules"].clone();
    let objects = plugin(json!({ "destCNINetDir": "/var/net.d", "destCNIBinDir": "/var/bin" }));
    let pod = &objects.iter().find(|o| o["kind"] == "DaemonSet").unwrap()["spec"]["template"]["spec"];
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!((&security["privileged"], &security["readOnlyRootFilesystem"]), (&json!(false), &json!(true)));
    let volumes = pod["volumes"].as_array().unwrap();
    let paths: Vec<&str> = volumes.iter().filter_map(|v| v["hostPath"]["path"].as_str()).collect();
    assert_eq!(paths, ["/var/net.d", "/var/bin"]);
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    assert!(arguments.contains(&"--net-dir-on-node=/var/net.d".into()));
    assert!(arguments.contains(&"--repair=$(NODE_NAME)".into()));
    // Without it the plugin would need itself to start.
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(rules(&objects).as_array().unwrap().len(), 3);
    let without = plugin(json!({ "repairController": { "enabled": false } }));
    let least = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]);
    assert_eq!(rules(&without), least);
    assert!(!without.iter().any(|o| o.to_string().contains("--repair")));
}

#[test]
fn high_availability_survives_a_node() {
    let objects = control_plane(high_availability());
    let budgets: Vec<&Value> = objects.iter().filter(|o| o["kind"] == "PodDisruptionBudget").collect();
    assert_eq!(budgets.len(), 4);
    for deployment in deployments(&objects) {
        let metrics = deployment["metadata"]["name"] == "weft-metrics";
        assert_eq!(deployment["spec"]["replicas"], if metrics { 1 } else { 3 });
        let affinity = &deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"];
        let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(required[0]["topologyKey"], "kubernetes.io/hostname");
    }
    let webhook = objects.iter().find(|o| o["kind"] == "MutatingWebhookConfiguration").unwrap();
    assert_eq!(webhook["webhooks"][0]["failurePolicy"], "Fail");
    // Where policy/v1 is not there yet (1.20), its forerunner is used.
    let old = rendered(&settings(high_availability()), "weft", &["v1", "policy/v1beta1"]).unwrap();
    let budget = old.iter().find(|o| o["kind"] == "PodDisruptionBudget").unwrap();
    assert_eq!(budget["apiVersion"], "policy/v1beta1");
}

#[test]
fn what_is_missing_is_named() {
    let problem = |settings: Value| rendered(&settings, "weft", NEW).unwrap_err().message;
    assert_eq!(problem(json!({})), "identityTrustAnchorsPEM: the trust anchors are missing");
    assert_eq!(
        problem(json!({ "identityTrustAnchorsPEM": ANCHORS })),
        "identity.issuer.tls.crtPEM: the certificate of the issuer is missing"
    );
    let scheme = settings(json!({ "identity": { "issuer": { "scheme": "vault" } } }));
    assert_eq!(problem(scheme), "identity.issuer.scheme: must be linkerd.io/tls or kubernetes.io/tls");
}

/// What is not written for CEL works on every version.
#[test]
fn definitions_need_nothing_that_is_new() {
    let resources = resources();
    assert_eq!(resources.len(), 10);
    for definition in &resources {
        assert!(!definition.to_string().contains("x-kubernetes-validations"));
        let versions = definition["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.iter().filter(|version| version["storage"] == true).count(), 1);
        let names = &definition["spec"]["names"];
        let full = format!("{}.{}", names["plural"].as_str().unwrap(), definition["spec"]["group"].as_str().unwrap());
        assert_eq!(definition["metadata"]["name"], full.as_str());
        assert_eq!(weft::kubernetes::plural(names["kind"].as_str().unwrap()), names["plural"].as_str().unwrap());
    }
}
