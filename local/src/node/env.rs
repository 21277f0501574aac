//! The environment of a container, as Kubernetes makes it: services of the namespace, envFrom, env with references and
//! `$(NAME)` expansion; and the fields that the downward API can show.

use super::store::Store;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector, ServicePort};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The name of the one node.
pub(crate) const NODE_NAME: &str = "weft";

/// Name and value, in order, later ones before earlier ones of the same name.
pub(crate) type Env = Vec<(String, String)>;

/// The environment that `env`, `envFrom` and the services make, on top of `base`.
///
/// # Errors
/// One sentence when something that is referred to does not exist.
pub(crate) fn container_env(store: &Store, pod: &Pod, container: &Container, base: Env) -> Result<Env, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |env: &mut BTreeMap<String, String>, name: String, value: String| {
        if env.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for (name, value) in base {
        set(&mut env, name, value);
    }
    if pod.spec.as_ref().and_then(|s| s.enable_service_links) != Some(false) {
        for (name, value) in service_links(store, namespace) {
            set(&mut env, name, value);
        }
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match store.config_map(namespace, &reference.name) {
                Some(map) => {
                    for (name, value) in map.data.iter().flatten() {
                        set(&mut env, format!("{prefix}{name}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match store.secret(namespace, &reference.name) {
                Some(secret) => {
                    for (name, value) in secret.data.iter().flatten() {
                        set(&mut env, format!("{prefix}{name}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &env)),
            (None, Some(source)) => {
                if let Some(field) = &source.field_ref {
                    Some(pod_field(pod, &field.field_path)?)
                } else if let Some(resource) = &source.resource_field_ref {
                    Some(resource_field(pod, Some(container), resource)?)
                } else if let Some(key) = &source.config_map_key_ref {
                    let value = store.config_map(namespace, &key.name).map(|m| m.data.as_ref()?.get(&key.key).cloned());
                    required("configmap", &key.name, &key.key, value, key.optional)?
                } else if let Some(key) = &source.secret_key_ref {
                    let value = store.secret(namespace, &key.name).map(|s| s.data.as_ref()?.get(&key.key).cloned());
                    let value = value.map(|v| v.map(|v| String::from_utf8_lossy(&v.0).into_owned()));
                    required("secret", &key.name, &key.key, value, key.optional)?
                } else {
                    return Err(format!("env {}: valueFrom names nothing that is supported", variable.name));
                }
            }
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut env, variable.name.clone(), value);
        }
    }
    Ok(order.into_iter().filter_map(|name| env.remove_entry(&name)).collect())
}

fn required(
    kind: &str,
    name: &str,
    key: &str,
    value: Option<Option<String>>,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    match value {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        Some(None) => Err(format!("{kind} {name:?} has no key {key:?}")),
        None => Err(format!("{kind} {name:?} not found")),
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is one dollar sign; names that are not known stay as they are.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.get(1..).unwrap_or_default();
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// `NAME_SERVICE_HOST` and its companions for every service of the namespace that has an IP.
fn service_links(store: &Store, namespace: &str) -> Env {
    let mut env = Vec::new();
    for (key, service) in store.services().filter(|(key, _)| key.namespace == namespace) {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let name = variable_name(&key.name);
        let ports: Vec<&ServicePort> = spec.ports.iter().flatten().collect();
        let Some(first) = ports.first() else { continue };
        env.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        env.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in &ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                env.push((format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string()));
            }
        }
        let protocol = |port: &ServicePort| port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        env.push((format!("{name}_PORT"), format!("{}://{ip}:{}", protocol(first), first.port)));
        for port in &ports {
            let (protocol, number) = (protocol(port), port.port);
            let prefix = format!("{name}_PORT_{number}_{}", protocol.to_ascii_uppercase());
            env.push((prefix.clone(), format!("{protocol}://{ip}:{number}")));
            env.push((format!("{prefix}_PROTO"), protocol));
            env.push((format!("{prefix}_PORT"), number.to_string()));
            env.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    env
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

/// The service account that a pod runs as.
pub(crate) fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    let name = spec.and_then(|s| s.service_account_name.as_deref().or(s.service_account.as_deref()));
    name.filter(|n| !n.is_empty()).unwrap_or("default")
}

/// A field that the downward API can show: `metadata.labels['app']`, `status.podIP`.
///
/// # Errors
/// When there is no such field.
pub(crate) fn pod_field(pod: &Pod, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let status = pod.status.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let ips = || {
        let ips = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
        ips.map(|ip| ip.ip.clone()).collect::<Vec<_>>().join(",")
    };
    Ok(match path {
        "metadata.name" => text(metadata.name.as_ref()),
        "metadata.namespace" => text(metadata.namespace.as_ref()),
        "metadata.uid" => text(metadata.uid.as_ref()),
        "metadata.labels" => pairs(metadata.labels.as_ref()),
        "metadata.annotations" => pairs(metadata.annotations.as_ref()),
        "spec.nodeName" => NODE_NAME.to_owned(),
        "spec.serviceAccountName" => service_account(pod).to_owned(),
        "status.podIP" => text(status.and_then(|s| s.pod_ip.as_ref())),
        "status.podIPs" => ips(),
        "status.hostIP" | "status.hostIPs" => text(status.and_then(|s| s.host_ip.as_ref())),
        _ => {
            let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
            if let Some(key) = subscript("metadata.labels['") {
                text(metadata.labels.as_ref().and_then(|l| l.get(key)))
            } else if let Some(key) = subscript("metadata.annotations['") {
                text(metadata.annotations.as_ref().and_then(|a| a.get(key)))
            } else {
                return Err(format!("fieldPath {path:?} is no field that can be shown"));
            }
        }
    })
}

fn pairs(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// A container's request or limit, divided and rounded up as Kubernetes does; what is not set counts as the machine's.
///
/// # Errors
/// When there is no such resource or container.
pub(crate) fn resource_field(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let spec = pod.spec.as_ref();
    let find = |name: &str| {
        let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        all.into_iter().find(|c| c.name == name)
    };
    let container = match named {
        Some(name) => Some(find(name).ok_or_else(|| format!("there is no container {name:?}"))?),
        None => container,
    };
    let resources = container.and_then(|c| c.resources.as_ref());
    let (map, resource) = if let Some(resource) = selector.resource.strip_prefix("limits.") {
        (resources.and_then(|r| r.limits.as_ref()), resource)
    } else if let Some(resource) = selector.resource.strip_prefix("requests.") {
        (resources.and_then(|r| r.requests.as_ref()), resource)
    } else {
        return Err(format!("resource {:?} is neither limits.… nor requests.…", selector.resource));
    };
    let amount = match map.and_then(|m| m.get(resource)) {
        Some(quantity) => quantity_value(quantity)?,
        None if selector.resource == "limits.cpu" => {
            std::thread::available_parallelism().map(|n| n.get()).unwrap_or(1) as f64
        }
        None => 0.0,
    };
    let divisor = match &selector.divisor {
        Some(quantity) if !quantity.0.is_empty() && quantity.0 != "0" => quantity_value(quantity)?,
        _ => 1.0,
    };
    Ok(format!("{:.0}", (amount / divisor).ceil()))
}

/// The number behind `100m`, `1.5`, `128Mi`.
pub(crate) fn quantity_value(quantity: &Quantity) -> Result<f64, String> {
    let text = quantity.0.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E').unwrap_or(text.len());
    let (number, suffix) = match text.split_at(split) {
        (number, suffix) if suffix.is_empty() && number.ends_with(['e', 'E']) => {
            (number.trim_end_matches(['e', 'E']), "E")
        }
        parts => parts,
    };
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("{text:?} is not a quantity")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a quantity"))?;
    Ok(number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_core::kinds::{Kind, Object};

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let mut put = |kind, value| store.put(Object::from_value(kind, value).unwrap());
        put(Kind::ConfigMap, json!({"metadata": {"name": "c", "namespace": "a"}, "data": {"k": "v", "OTHER": "o"}}));
        put(Kind::Secret, json!({"metadata": {"name": "s", "namespace": "a"}, "data": {"k": "c2VjcmV0"}}));
        put(
            Kind::Service,
            json!({"metadata": {"name": "web-svc", "namespace": "a"},
                   "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}}),
        );
        (dir, store)
    }

    #[test]
    fn the_environment_is_what_kubernetes_makes() {
        let (_dir, store) = store();
        let pod = pod(json!({
            "metadata": {"name": "p", "namespace": "a", "labels": {"app": "x"}},
            "status": {"podIP": "10.244.0.2"},
            "spec": {"containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "c"}, "prefix": "P_"}], "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$$(A)-$(NOPE)-$(WEB_SVC_SERVICE_HOST)"},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "G", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
                {"name": "H", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}
            ], "resources": {"limits": {"memory": "64Mi"}}}]}
        }));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = container_env(&store, &pod, container, vec![("PATH".into(), "/bin".into())]).unwrap();
        let env: BTreeMap<_, _> = env.into_iter().collect();
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(get("PATH"), Some("/bin"));
        assert_eq!(get("B"), Some("1-$(A)-$(NOPE)-10.96.0.7"));
        assert_eq!(get("C"), Some("v"));
        assert_eq!(get("D"), Some("secret"));
        assert_eq!(get("E"), Some("x"));
        assert_eq!(get("F"), Some("10.244.0.2"));
        assert_eq!(get("G"), None);
        assert_eq!(get("H"), Some("64"));
        assert_eq!(get("P_OTHER"), Some("o"));
        assert_eq!(get("WEB_SVC_SERVICE_PORT_HTTP"), Some("80"));
        assert_eq!(get("WEB_SVC_PORT"), Some("tcp://10.96.0.7:80"));
        assert_eq!(get("WEB_SVC_PORT_80_TCP_ADDR"), Some("10.96.0.7"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (_dir, store) = store();
        let pod = pod(json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c",
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "none"}}}]}]}}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let error = container_env(&store, &pod, container, Vec::new()).unwrap_err();
        assert_eq!(error, "configmap \"c\" has no key \"none\"");
    }

    #[test]
    fn quantities() {
        for (text, value) in [("100m", 0.1), ("1.5", 1.5), ("128Mi", 134_217_728.0), ("2e3", 2000.0), ("1E", 1e18)] {
            let got = quantity_value(&Quantity(text.into())).unwrap();
            assert!((got - value).abs() < 1e-9 * value, "{text}: {got}");
        }
        assert!(quantity_value(&Quantity("x".into())).is_err());
    }
}
