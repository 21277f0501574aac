//! The control plane's own objects in the one-machine cluster: what `weft up` applies first. They are ordinary objects,
//! and their pods are injected like everybody's.

use crate::inject::CONFIG_PREFIX;
use crate::names::{self, ANNOTATION_INJECT, LABEL_COMPONENT, LABEL_CONTROL_PLANE_NS};
use base64::Engine;
use serde_json::{Value, json};

/// What they are made of.
#[derive(Clone)]
pub struct ControlPlaneConfig {
    /// Their namespace, [`names::CONTROL_NAMESPACE`] by default.
    pub namespace: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Version, for the tag of images.
    pub version: String,
    /// Trust anchors, PEM.
    pub trust_anchors_pem: String,
    /// Issuer certificate, PEM.
    pub issuer_pem: String,
    /// Issuer key, PKCS#8 PEM; secret.
    pub issuer_key_pem: String,
    /// Public keys that service-account tokens are checked with, PEM, one after the other.
    pub token_keys_pem: String,
    /// The host's directory with the objects of the cluster (`<state>/objects`).
    pub objects_dir: String,
    /// Log filter of the components, such as `info`.
    pub log_level: String,
}

impl std::fmt::Debug for ControlPlaneConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlaneConfig").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Where the components find the state directory's objects.
const OBJECTS_DIR: &str = "/var/run/weft/objects";
const IDENTITY_DIR: &str = "/var/run/weft/identity";

/// One component.
struct Component {
    name: &'static str,
    deployment: &'static str,
    ports: &'static [(&'static str, u16)],
    admin_port: u16,
    needs: Needs,
}

#[derive(PartialEq)]
enum Needs {
    Keys,
    Objects,
}

const COMPONENTS: &[Component] = &[
    Component {
        name: "identity",
        deployment: names::IDENTITY_SERVICE,
        ports: &[("grpc", names::IDENTITY_GRPC_PORT)],
        admin_port: names::IDENTITY_ADMIN_PORT,
        needs: Needs::Keys,
    },
    Component {
        name: "destination",
        deployment: names::DESTINATION_SERVICE,
        ports: &[("grpc", names::DESTINATION_GRPC_PORT), ("policy-grpc", names::POLICY_GRPC_PORT)],
        admin_port: names::DESTINATION_ADMIN_PORT,
        needs: Needs::Objects,
    },
    Component {
        name: "metrics",
        deployment: names::METRICS_SERVICE,
        ports: &[("http", names::METRICS_HTTP_PORT)],
        admin_port: names::METRICS_ADMIN_PORT,
        needs: Needs::Objects,
    },
];

/// The Deployments of the control plane, by name.
pub fn deployments() -> impl Iterator<Item = &'static str> {
    COMPONENTS.iter().map(|c| c.deployment)
}

/// Namespace, ConfigMaps, Secret, ServiceAccounts, Services and Deployments, in the order in which to apply them.
pub fn manifests(config: &ControlPlaneConfig) -> Vec<Value> {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let named = |name: &str| json!({ "name": name, "namespace": config.namespace, "labels": labels(config, None) });
    let mut out = vec![
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": config.namespace,
                "labels": { "linkerd.io/is-control-plane": "true" },
                "annotations": { ANNOTATION_INJECT: "enabled" },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named(names::TRUST_ROOTS_CONFIG_MAP),
            "data": { names::TRUST_ROOTS_KEY: config.trust_anchors_pem },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named(names::TOKEN_KEYS_CONFIG_MAP),
            "data": { "token-keys.pem": config.token_keys_pem },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": named(names::ISSUER_SECRET),
            "type": "kubernetes.io/tls",
            "data": { "tls.crt": base64(&config.issuer_pem), "tls.key": base64(&config.issuer_key_pem) },
        }),
    ];
    for component in COMPONENTS {
        let mut metadata = named(component.deployment);
        metadata["labels"] = labels(config, Some(component.name));
        out.push(json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }));
    }
    // Proxies balance over the pods of these themselves, hence headless.
    out.push(service(config, names::IDENTITY_SERVICE, "identity", "grpc", names::IDENTITY_GRPC_PORT, true));
    out.push(service(config, names::DESTINATION_SERVICE, "destination", "grpc", names::DESTINATION_GRPC_PORT, true));
    out.push(service(config, names::POLICY_SERVICE, "destination", "grpc", names::POLICY_GRPC_PORT, true));
    out.push(service(config, names::METRICS_SERVICE, "metrics", "http", names::METRICS_HTTP_PORT, false));
    out.extend(COMPONENTS.iter().map(|component| deployment(config, component)));
    out
}

fn labels(config: &ControlPlaneConfig, component: Option<&str>) -> Value {
    let mut labels = json!({ LABEL_CONTROL_PLANE_NS: config.namespace });
    if let Some(component) = component {
        labels[LABEL_COMPONENT] = component.into();
    }
    labels
}

fn service(
    config: &ControlPlaneConfig,
    name: &str,
    component: &str,
    port_name: &str,
    port: u16,
    headless: bool,
) -> Value {
    let mut spec = json!({
        "selector": { LABEL_COMPONENT: component },
        "ports": [{ "name": port_name, "port": port, "targetPort": port }],
    });
    if headless {
        spec["clusterIP"] = "None".into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": config.namespace, "labels": labels(config, Some(component)) },
        "spec": spec,
    })
}

fn deployment(config: &ControlPlaneConfig, component: &Component) -> Value {
    let text = |s: &str| Value::from(s);
    let mut command = vec![
        text("weft-controller"),
        text(component.name),
        text("--log-level"),
        text(&config.log_level),
        text("--controller-namespace"),
        text(&config.namespace),
        text("--trust-domain"),
        text(&config.trust_domain),
    ];
    let (volumes, mounts) = match component.needs {
        Needs::Keys => {
            let file = |name: &str| format!("{IDENTITY_DIR}/{name}");
            command.extend([
                text("--trust-anchors"),
                file(&format!("trust-roots/{}", names::TRUST_ROOTS_KEY)).into(),
                text("--issuer-dir"),
                file("issuer").into(),
                text("--token-keys"),
                file("token-keys").into(),
            ]);
            let mount = |name: &str| json!({ "name": name, "mountPath": file(name), "readOnly": true });
            (
                json!([
                    { "name": "trust-roots", "configMap": { "name": names::TRUST_ROOTS_CONFIG_MAP } },
                    { "name": "issuer", "secret": { "secretName": names::ISSUER_SECRET } },
                    { "name": "token-keys", "configMap": { "name": names::TOKEN_KEYS_CONFIG_MAP } },
                ]),
                json!([mount("trust-roots"), mount("issuer"), mount("token-keys")]),
            )
        }
        Needs::Objects => {
            command.extend([text("--state-dir"), text(OBJECTS_DIR)]);
            (
                json!([{ "name": "objects", "hostPath": { "path": config.objects_dir, "type": "Directory" } }]),
                json!([{ "name": "objects", "mountPath": OBJECTS_DIR, "readOnly": true }]),
            )
        }
    };
    let mut ports: Vec<Value> =
        component.ports.iter().map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
    ports.push(json!({ "name": "admin-http", "containerPort": component.admin_port }));
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": component.deployment,
            "namespace": config.namespace,
            "labels": labels(config, Some(component.name)),
        },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { LABEL_COMPONENT: component.name } },
            "template": {
                "metadata": {
                    "labels": { LABEL_COMPONENT: component.name },
                    // Proxies ask for their first certificate before they can authenticate, and unmeshed programs may
                    // ask for metrics, whatever the default of the cluster is.
                    "annotations": { format!("{CONFIG_PREFIX}default-inbound-policy"): "all-unauthenticated" },
                },
                "spec": {
                    "serviceAccountName": component.deployment,
                    "containers": [{
                        "name": component.name,
                        "image": format!("weft/controller:{}", config.version),
                        "imagePullPolicy": "IfNotPresent",
                        "command": command,
                        "ports": ports,
                        "livenessProbe": {
                            "httpGet": { "path": "/live", "port": "admin-http" },
                            "initialDelaySeconds": 10,
                            // A busy machine is no reason to restart what all others need.
                            "timeoutSeconds": 10,
                        },
                        "readinessProbe": {
                            "httpGet": { "path": "/ready", "port": "admin-http" },
                            "periodSeconds": 2,
                        },
                        "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true },
                        "volumeMounts": mounts,
                    }],
                    "volumes": volumes,
                },
            },
        },
    })
}
