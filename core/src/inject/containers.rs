//! The containers and the volume that injection adds.

use super::settings::Settings;
use super::{InjectConfig, TOKEN_DIRECTORY, TOKEN_VOLUME, VALIDATE};
use crate::names;
use serde_json::{Map, Value, json};

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// Environment variables in the order in which they are written.
struct Env(Vec<Value>);

impl Env {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(json!({ "name": name, "value": value.into() }));
    }

    fn field(&mut self, name: &str, path: &str) {
        self.0.push(json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } }));
    }

    fn proxy(&mut self, name: &str, value: impl Into<String>) {
        self.set(&format!("LINKERD2_PROXY_{name}"), value);
    }
}

/// The image with its tag, unless it names one (or a digest) itself.
fn image(settings: &Settings) -> String {
    let last = settings.image.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { settings.image.clone() } else { format!("{}:{}", settings.image, settings.version) }
}

/// The proxy.
pub(super) fn proxy(settings: &Settings, config: &InjectConfig) -> Value {
    let mut container = Map::new();
    let mut put = |key: &str, value: Value| container.insert(key.to_owned(), value);
    put("name", names::PROXY_CONTAINER.into());
    put("image", image(settings).into());
    put("imagePullPolicy", settings.pull_policy.clone().into());
    put("command", json!(["weft-proxy"]));
    put("env", environment(settings, config).into());
    put(
        "ports",
        json!([
            { "containerPort": settings.inbound_port, "name": "linkerd-proxy" },
            { "containerPort": settings.admin_port, "name": names::ADMIN_PORT_NAME },
        ]),
    );
    put(
        "livenessProbe",
        json!({
            "httpGet": { "path": "/live", "port": settings.admin_port },
            "initialDelaySeconds": 10,
            "timeoutSeconds": 1,
        }),
    );
    let mut lifecycle = Map::new();
    // The first container's hook holds up all others, so that an application has a network from its first line on.
    if settings.awaited {
        let port = format!("--port={}", settings.admin_port);
        lifecycle.insert(
            "postStart".into(),
            json!({ "exec": { "command": ["weft-proxy", "await", "--timeout=2m", port] } }),
        );
    }
    // The proxy is told to end only after this.
    if settings.wait_before_exit > 0 {
        let seconds = settings.wait_before_exit.to_string();
        lifecycle.insert("preStop".into(), json!({ "exec": { "command": ["weft-proxy", "sleep", seconds] } }));
    }
    if !lifecycle.is_empty() {
        put("lifecycle", lifecycle.into());
    }
    // Asked often: a pod is ready only when its proxy is, and the proxy is ready within a second.
    put(
        "readinessProbe",
        json!({
            "httpGet": { "path": "/ready", "port": settings.admin_port },
            "periodSeconds": 2,
            "timeoutSeconds": 1,
        }),
    );
    if !settings.resources.is_empty() {
        put("resources", settings.resources.clone().into());
    }
    let mut security = Map::new();
    security.insert("allowPrivilegeEscalation".into(), false.into());
    security.insert("capabilities".into(), settings.capabilities.clone());
    security.insert("readOnlyRootFilesystem".into(), true.into());
    security.insert("runAsNonRoot".into(), true.into());
    security.insert("runAsUser".into(), settings.uid.into());
    if let Some(gid) = settings.gid {
        security.insert("runAsGroup".into(), gid.into());
    }
    security.insert("seccompProfile".into(), json!({ "type": "RuntimeDefault" }));
    put("securityContext", security.into());
    put("terminationMessagePolicy", "FallbackToLogsOnError".into());
    put("volumeMounts", json!([{ "mountPath": TOKEN_DIRECTORY, "name": TOKEN_VOLUME }]));
    container.into()
}

fn environment(settings: &Settings, config: &InjectConfig) -> Vec<Value> {
    let mut env = Env(Vec::new());
    env.field("_pod_name", "metadata.name");
    env.field("_pod_ns", "metadata.namespace");
    env.field("_pod_ip", "status.podIP");
    env.field("_pod_nodeName", "spec.nodeName");
    env.field("_pod_sa", "spec.serviceAccountName");

    env.proxy("LOG", settings.log_level.clone());
    env.proxy("LOG_FORMAT", settings.log_format.clone());
    match &settings.cores_ratio {
        Some(ratio) => env.proxy("CORES_MAX_RATIO", ratio.clone()),
        None => env.proxy("CORES", settings.cores.to_string()),
    }

    // Within the pod that serves a component its address is local, and so needs no name: it must be reachable before
    // this proxy has an identity.
    let (control, domain) = (&config.control_namespace, &config.cluster_domain);
    let mut component = |variable: &str, service: &str, port: u16, serves: &str, account: &str| {
        if settings.component.as_deref() == Some(serves) {
            env.proxy(&format!("{variable}_SVC_ADDR"), format!("localhost.:{port}"));
        } else {
            env.proxy(&format!("{variable}_SVC_ADDR"), format!("{service}.{control}.svc.{domain}.:{port}"));
        }
        let name = names::identity(account, control, control, &config.trust_domain);
        env.proxy(&format!("{variable}_SVC_NAME"), name);
    };
    let (identity, destination) = (names::IDENTITY_SERVICE, names::DESTINATION_SERVICE);
    component("IDENTITY", identity, names::IDENTITY_GRPC_PORT, "identity", identity);
    component("DESTINATION", destination, names::DESTINATION_GRPC_PORT, "destination", destination);
    component("POLICY", names::POLICY_SERVICE, names::POLICY_GRPC_PORT, "destination", destination);

    env.proxy("IDENTITY_LOCAL_NAME", names::identity("$(_pod_sa)", "$(_pod_ns)", control, &config.trust_domain));
    env.proxy("IDENTITY_TRUST_ANCHORS", format!("{}\n", config.trust_anchors_pem.trim()));
    env.proxy("IDENTITY_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/{TOKEN_VOLUME}"));

    env.proxy("DESTINATION_CONTEXT", r#"{"ns":"$(_pod_ns)", "nodeName":"$(_pod_nodeName)", "pod":"$(_pod_name)"}"#);
    env.proxy("DESTINATION_PROFILE_NETWORKS", config.cluster_networks.clone());
    env.proxy("POLICY_WORKLOAD", r#"{"ns":"$(_pod_ns)", "pod":"$(_pod_name)"}"#);
    env.proxy("POLICY_CLUSTER_NETWORKS", config.cluster_networks.clone());

    env.proxy("INBOUND_LISTEN_ADDR", format!("0.0.0.0:{}", settings.inbound_port));
    env.proxy("OUTBOUND_LISTEN_ADDR", format!("127.0.0.1:{}", settings.outbound_port));
    env.proxy("ADMIN_LISTEN_ADDR", format!("0.0.0.0:{}", settings.admin_port));
    env.field("LINKERD2_PROXY_INBOUND_IPS", "status.podIPs");
    env.proxy("INBOUND_PORTS", settings.inbound_ports.clone());
    env.proxy("INBOUND_DEFAULT_POLICY", settings.default_inbound_policy.clone());
    env.proxy("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", settings.opaque_ports.clone());

    env.proxy("INBOUND_CONNECT_TIMEOUT", settings.inbound_connect_timeout.clone());
    env.proxy("OUTBOUND_CONNECT_TIMEOUT", settings.outbound_connect_timeout.clone());
    env.proxy("INBOUND_DISCOVERY_IDLE_TIMEOUT", settings.inbound_discovery_idle.clone());
    env.proxy("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", settings.outbound_discovery_idle.clone());
    // There is no "never"; a year is what Linkerd means by it.
    if settings.no_inbound_detect_timeout {
        env.proxy("INBOUND_DETECT_TIMEOUT", "365d");
    }
    if settings.no_outbound_detect_timeout {
        env.proxy("OUTBOUND_DETECT_TIMEOUT", "365d");
    }
    env.proxy("INBOUND_ACCEPT_KEEPALIVE", "10s");
    env.proxy("OUTBOUND_CONNECT_KEEPALIVE", "10s");
    env.proxy("INBOUND_ACCEPT_USER_TIMEOUT", "30s");
    env.proxy("OUTBOUND_CONNECT_USER_TIMEOUT", "30s");
    env.proxy("INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "10s");
    env.proxy("INBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "3s");
    env.proxy("OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "10s");
    env.proxy("OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "3s");

    env.proxy("SHUTDOWN_ENDPOINT_ENABLED", settings.shutdown_endpoint.to_string());
    if let Some(grace) = &settings.shutdown_grace {
        env.proxy("SHUTDOWN_GRACE_PERIOD", grace.clone());
    }
    if settings.ended {
        // The component that looks at every proxy anyway.
        let metrics = names::identity(names::METRICS_SERVICE, control, control, &config.trust_domain);
        env.set("WEFT_PROXY_SHUTDOWN_IDENTITY", metrics);
    }

    let mut env = env.0;
    env.retain(|ours| !settings.additional_env.iter().any(|theirs| theirs.get("name") == ours.get("name")));
    env.extend(settings.additional_env.iter().cloned());
    env
}

/// The proxy as a sidecar of the cluster's own kind: an init container that goes on. What comes behind it starts when it
/// is ready, other init containers too; it ends when everything else has, so that Jobs finish.
pub(super) fn sidecar(settings: &Settings, config: &InjectConfig) -> Value {
    let mut container = proxy(settings, config);
    if let Some(container) = container.as_object_mut() {
        container.insert("restartPolicy".into(), "Always".into());
        // In place of a hook: the kubelet itself waits for this.
        if settings.awaited {
            if let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) {
                lifecycle.shift_remove("postStart");
            }
            if container.get("lifecycle").and_then(Value::as_object).is_some_and(Map::is_empty) {
                container.shift_remove("lifecycle");
            }
            let probe = json!({
                "httpGet": { "path": "/ready", "port": settings.admin_port },
                "periodSeconds": 1,
                "timeoutSeconds": 1,
                "failureThreshold": 120,
            });
            container.insert("startupProbe".into(), probe);
        }
    }
    container
}

/// How to redirect the pod's traffic, as arguments of `weft-init`. A CNI plugin reads the same from the validator.
fn redirection(settings: &Settings) -> Vec<String> {
    let mut args = vec![
        "--incoming-proxy-port".to_owned(),
        settings.inbound_port.to_string(),
        "--outgoing-proxy-port".into(),
        settings.outbound_port.to_string(),
        "--proxy-uid".into(),
        settings.uid.to_string(),
    ];
    if let Some(gid) = settings.gid {
        args.extend(["--proxy-gid".into(), gid.to_string()]);
    }
    args.extend(["--inbound-ports-to-ignore".into(), settings.ignored_inbound_ports()]);
    if !settings.skip_outbound_ports.is_empty() {
        args.extend(["--outbound-ports-to-ignore".into(), settings.skip_outbound_ports.clone()]);
    }
    if !settings.skip_subnets.is_empty() {
        args.extend(["--subnets-to-ignore".into(), settings.skip_subnets.clone()]);
    }
    if settings.iptables_mode != "auto" {
        args.extend(["--iptables-mode".into(), settings.iptables_mode.clone()]);
    }
    if let Some(seconds) = settings.close_wait {
        args.extend(["--timeout-close-wait-secs".into(), seconds.to_string()]);
    }
    args
}

/// The container that redirects the pod's traffic and ends.
pub(super) fn init(settings: &Settings) -> Value {
    // Only a privileged container may change a setting of the kernel.
    let privileged = settings.close_wait.is_some();
    let security = json!({
        "allowPrivilegeEscalation": privileged,
        "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] },
        "privileged": privileged,
        "readOnlyRootFilesystem": true,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "runAsUser": 0,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    weft_init(settings, names::INIT_CONTAINER, redirection(settings), security)
}

/// The container that takes its place where a CNI plugin has redirected the traffic: it finds out whether that is so. Its
/// arguments tell the plugin what to do, so that a pod says everything about itself.
pub(super) fn validator(settings: &Settings) -> Value {
    let mut args = vec![VALIDATE.to_owned()];
    args.extend(redirection(settings));
    // What the proxy's own user and group send is not redirected, so it must be somebody else.
    let other = |proxy: Option<u32>| if proxy == Some(NOBODY) { NOBODY - 1 } else { NOBODY };
    let security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsGroup": other(settings.gid),
        "runAsNonRoot": true,
        "runAsUser": other(Some(settings.uid)),
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    weft_init(settings, names::VALIDATOR_CONTAINER, args, security)
}

fn weft_init(settings: &Settings, name: &str, args: Vec<String>, security: Value) -> Value {
    let mut container = Map::new();
    let mut put = |key: &str, value: Value| container.insert(key.to_owned(), value);
    put("name", name.into());
    put("image", image(settings).into());
    put("imagePullPolicy", settings.pull_policy.clone().into());
    put("command", json!(["weft-init"]));
    put("args", args.into());
    if !settings.resources.is_empty() {
        put("resources", settings.resources.clone().into());
    }
    put("securityContext", security);
    put("terminationMessagePolicy", "FallbackToLogsOnError".into());
    container.into()
}

/// The volume with the token that the proxy shows to the identity component.
pub(super) fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": {
            "sources": [{
                "serviceAccountToken": {
                    "path": TOKEN_VOLUME,
                    "expirationSeconds": 86_400,
                    "audience": names::IDENTITY_AUDIENCE,
                },
            }],
        },
    })
}
