//! EndpointSlices: for a service with a selector from its pods, for one without from the Endpoints object that somebody
//! wrote (slices that somebody wrote are left as they are).

use super::store::{Store, owner_reference};
use k8s_openapi::api::core::v1::{Endpoints, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};
use weft_core::kinds::{Key, Kind, Object};
use weft_core::selector::Selector;

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "weft";

/// Whether a pod is ready: its condition says so, and it is not ending.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    has_ready_condition(pod) && pod.metadata.deletion_timestamp.is_none()
}

fn has_ready_condition(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// The number behind a port's number or name, in the containers of a pod.
pub(crate) fn resolve_port(pod: &Pod, port: &IntOrString, protocol: &str) -> Option<i32> {
    match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let spec = pod.spec.as_ref()?;
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            containers.flat_map(|c| c.ports.iter().flatten()).find_map(|p| {
                let same = p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol;
                same.then_some(p.container_port)
            })
        }
    }
}

/// Makes all slices what they should be.
pub(crate) fn reconcile(store: &mut Store) {
    let mut wanted: BTreeMap<Key, Object> = BTreeMap::new();
    for (key, object) in store.list(Kind::Service, None) {
        let Object::Service(service) = object else { continue };
        if service.metadata.deletion_timestamp.is_some() || super::services::external_name(service).is_some() {
            continue;
        }
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
        let groups = match selector {
            Some(selector) => from_pods(store, key, service, &Selector::from_map(selector)),
            None => match store.get(&Key::new(Kind::Endpoints, &key.namespace, &key.name)) {
                Some(Object::Endpoints(endpoints)) => from_endpoints(endpoints),
                _ => continue,
            },
        };
        for (index, (ports, endpoints)) in groups.into_iter().enumerate() {
            let name = format!("{}-{:05x}", key.name, super::fnv(format!("{key}/{index}").as_bytes()) & 0xf_ffff);
            let mut labels = service.metadata.labels.clone().unwrap_or_default();
            labels.insert("kubernetes.io/service-name".into(), key.name.clone());
            labels.insert(MANAGED_BY.into(), MANAGER.into());
            let slice = EndpointSlice {
                address_type: "IPv4".into(),
                endpoints: Some(endpoints),
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(key.namespace.clone()),
                    labels: Some(labels),
                    owner_references: Some(vec![owner_reference(object)]),
                    ..Default::default()
                },
                ports: Some(ports),
            };
            let slice = Object::from(slice);
            wanted.insert(slice.key(""), slice);
        }
    }
    let ours = |object: &Object| {
        let labels = object.metadata().labels.as_ref();
        labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
    };
    let stale: Vec<Key> = store
        .list(Kind::EndpointSlice, None)
        .filter(|(key, object)| ours(object) && !wanted.contains_key(key))
        .map(|(key, _)| key.clone())
        .collect();
    for key in stale {
        store.remove(&key);
    }
    for (_, slice) in wanted {
        store.put(slice);
    }
}

type Group = (Vec<EndpointPort>, Vec<Endpoint>);

/// Endpoints of a service's pods, in groups of those whose ports have the same numbers.
fn from_pods(store: &Store, key: &Key, service: &Service, selector: &Selector) -> Vec<Group> {
    let spec = service.spec.as_ref();
    let service_ports: Vec<&ServicePort> = spec.iter().flat_map(|s| s.ports.iter().flatten()).collect();
    let not_ready_too = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let mut groups: Vec<Group> = Vec::new();
    for (pod_key, pod) in store.pods().filter(|(k, _)| k.namespace == key.namespace) {
        if !selector.matches(pod.metadata.labels.as_ref()) {
            continue;
        }
        let status = pod.status.as_ref();
        let Some(ip) = status.and_then(|s| s.pod_ip.clone()) else { continue };
        if matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
            continue;
        }
        let ports = service_ports.iter().filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let target = port.target_port.clone().unwrap_or(IntOrString::Int(port.port));
            Some(EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(resolve_port(pod, &target, protocol)?),
                protocol: Some(protocol.to_owned()),
            })
        });
        let ports: Vec<EndpointPort> = ports.collect();
        if ports.is_empty() && !service_ports.is_empty() {
            continue;
        }
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let serving = has_ready_condition(pod);
        let pod_spec = pod.spec.as_ref();
        let belongs = pod_spec.and_then(|s| s.subdomain.as_ref()) == Some(&key.name);
        let endpoint = Endpoint {
            addresses: vec![ip],
            conditions: Some(EndpointConditions {
                ready: Some((serving && !terminating) || not_ready_too),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: pod_spec.and_then(|s| s.hostname.clone()).filter(|_| belongs),
            node_name: Some(super::env::NODE_NAME.into()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                name: Some(pod_key.name.clone()),
                namespace: Some(pod_key.namespace.clone()),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        match groups.iter_mut().find(|(p, _)| *p == ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((ports, vec![endpoint])),
        }
    }
    if groups.is_empty() {
        groups.push((Vec::new(), Vec::new()));
    }
    groups
}

/// Endpoints that somebody wrote, in the older form.
fn from_endpoints(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten().map(|p| EndpointPort {
            app_protocol: p.app_protocol.clone(),
            name: Some(p.name.clone().unwrap_or_default()),
            port: Some(p.port),
            protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
        });
        let mut seen = BTreeSet::new();
        let both = [(true, &subset.addresses), (false, &subset.not_ready_addresses)];
        let addresses = both.into_iter().flat_map(|(ready, list)| list.iter().flatten().map(move |a| (ready, a)));
        let list = addresses.filter(|(_, a)| seen.insert(a.ip.clone())).map(|(ready, address)| Endpoint {
            addresses: vec![address.ip.clone()],
            conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(ready), terminating: Some(false) }),
            hostname: address.hostname.clone(),
            target_ref: address.target_ref.clone(),
            ..Default::default()
        });
        groups.push((ports.collect(), list.collect()));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::services;
    use super::*;
    use serde_json::json;

    fn put(store: &mut Store, kind: Kind, value: serde_json::Value) {
        store.put(Object::from_value(kind, value).unwrap());
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> serde_json::Value {
        json!({"metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}},
               "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
               "status": {"phase": "Running", "podIP": ip,
                          "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    #[test]
    fn ready_pods_are_endpoints_by_named_port() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let service = json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"clusterIP": "10.96.1.1",
            "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
        put(&mut store, Kind::Service, service);
        reconcile(&mut store);
        assert!(services::ready_endpoints(&store, "a", "web", "http").is_empty());
        put(&mut store, Kind::Pod, pod("one", "10.244.0.2", true, 8080));
        put(&mut store, Kind::Pod, pod("two", "10.244.0.3", false, 8080));
        put(&mut store, Kind::Pod, pod("three", "10.244.0.4", true, 9090));
        reconcile(&mut store);
        let version = store.version();
        reconcile(&mut store);
        assert_eq!(store.version(), version, "nothing changes without a reason");
        let ready = services::ready_endpoints(&store, "a", "web", "http");
        assert_eq!(ready, vec![("10.244.0.2".parse().unwrap(), 8080), ("10.244.0.4".parse().unwrap(), 9090)]);
        store.remove(&Key::new(Kind::Service, "a", "web"));
        reconcile(&mut store);
        assert_eq!(store.list(Kind::EndpointSlice, None).count(), 0);
    }

    #[test]
    fn services_without_selector_follow_their_endpoints() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        put(
            &mut store,
            Kind::Service,
            json!({"metadata": {"name": "db", "namespace": "a"}, "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 5432}]}}),
        );
        put(
            &mut store,
            Kind::Endpoints,
            json!({"metadata": {"name": "db", "namespace": "a"},
                   "subsets": [{"addresses": [{"ip": "10.244.0.9"}], "ports": [{"port": 5432}]}]}),
        );
        reconcile(&mut store);
        assert_eq!(services::ready_endpoints(&store, "a", "db", ""), vec![("10.244.0.9".parse().unwrap(), 5432)]);
    }
}
