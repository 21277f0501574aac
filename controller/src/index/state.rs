//! What the index holds, and what an event changes of it.

use super::pod::{Id, Pod, Settings};
use super::policy::{PodPolicy, Policies};
use super::service::{Endpoint, Service, ServiceView, Slice};
use super::traffic::Wishes;
use super::{Target, WorkloadObject};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;
use weft_core::kinds::{Key, Kind, Object};

/// The label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Everything that is known, and who wants to know of it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What holds where neither an object nor its namespace says otherwise.
    pub defaults: Settings,
    pub namespaces: BTreeMap<String, (BTreeMap<String, String>, Settings)>,
    pub pods: HashMap<Id, Arc<Pod>>,
    pub services: HashMap<Id, Arc<Service>>,
    pub slices: HashMap<Id, Arc<Slice>>,
    /// Zones by node, of nodes that have one.
    pub zones: HashMap<String, String>,
    pub workloads: BTreeMap<Key, Arc<WorkloadObject>>,
    pods_by_ip: HashMap<IpAddr, BTreeSet<Id>>,
    services_by_ip: HashMap<IpAddr, BTreeSet<Id>>,
    slices_by_service: HashMap<Id, BTreeSet<Id>>,
    services_by_endpoint: HashMap<Referent, BTreeMap<Id, usize>>,
    pub watched_ips: HashMap<IpAddr, watch::Sender<Target>>,
    pub watched_services: HashMap<Id, watch::Sender<Option<Arc<ServiceView>>>>,
    pub watched_pods: HashMap<Id, watch::Sender<Option<Arc<PodPolicy>>>>,
    pub policies: Policies,
    pub wishes: Wishes,
}

/// What an endpoint of a slice refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Referent {
    Pod(Id),
    Ip(IpAddr),
}

/// Subjects whose snapshots may have changed.
#[derive(Default)]
pub(super) struct Dirty {
    ips: HashSet<IpAddr>,
    services: HashSet<Id>,
    pods: HashSet<Id>,
    /// Namespaces whose policies may have changed.
    policies: BTreeSet<String>,
    /// Namespaces whose Servers may have changed.
    servers: BTreeSet<String>,
}

impl State {
    /// The settings of a namespace, completed by those of the installation.
    fn settings(&self, namespace: &str) -> &Settings {
        self.namespaces.get(namespace).map_or(&self.defaults, |(_, settings)| settings)
    }

    pub fn applied(&mut self, object: &Object, dirty: &mut Dirty) {
        match object {
            Object::Namespace(namespace) => {
                let Some(name) = namespace.metadata.name.clone() else { return };
                let settings = Settings::read(namespace.metadata.annotations.as_ref());
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.set_namespace(&name, Some((labels, settings)), dirty);
            }
            Object::Pod(pod) => {
                let settings = pod.metadata.namespace.as_deref().map(|ns| self.settings(ns));
                if let Some(pod) = Pod::read(pod, settings) {
                    self.set_pod(&pod.id.clone(), Some(pod), dirty);
                }
            }
            Object::Service(service) => {
                let settings = service.metadata.namespace.as_deref().map(|ns| self.settings(ns));
                if let Some(service) = Service::read(service, settings) {
                    self.set_service(&service.id.clone(), Some(service), dirty);
                }
            }
            Object::EndpointSlice(slice) => {
                let metadata = &slice.metadata;
                let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else { return };
                self.set_slice(&Id::new(namespace, name), Slice::read(slice), dirty);
            }
            Object::Node(node) => {
                let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
                if let Some(name) = &node.metadata.name {
                    self.set_zone(name, zone, dirty);
                }
            }
            Object::Deployment(_)
            | Object::StatefulSet(_)
            | Object::DaemonSet(_)
            | Object::ReplicaSet(_)
            | Object::Job(_)
            | Object::CronJob(_) => {
                let metadata = object.metadata();
                let owner = metadata.owner_references.as_deref().unwrap_or_default().first();
                let workload = WorkloadObject {
                    labels: metadata.labels.clone().unwrap_or_default(),
                    owner: owner.map(|o| (o.kind.to_ascii_lowercase(), o.name.clone())),
                };
                self.workloads.insert(object.key(""), Arc::new(workload));
            }
            Object::Server(_)
            | Object::ServerAuthorization(_)
            | Object::AuthorizationPolicy(_)
            | Object::MeshTlsAuthentication(_)
            | Object::NetworkAuthentication(_)
            | Object::HttpLocalRateLimitPolicy(_)
            | Object::HttpRoute(_)
            | Object::GatewayHttpRoute(_)
            | Object::GrpcRoute(_) => {
                let touched = self.policies.applied(object);
                Self::policies_changed(object.kind(), touched, dirty);
                self.wishes_changed(&object.key(""), Some(object), dirty);
            }
            Object::ServiceProfile(_) | Object::TrafficSplit(_) => {
                self.wishes_changed(&object.key(""), Some(object), dirty);
            }
            _ => {}
        }
    }

    pub fn deleted(&mut self, key: &Key, dirty: &mut Dirty) {
        let id = Id::new(&key.namespace, &key.name);
        match key.kind {
            Kind::Namespace => self.set_namespace(&key.name, None, dirty),
            Kind::Pod => self.set_pod(&id, None, dirty),
            Kind::Service => self.set_service(&id, None, dirty),
            Kind::EndpointSlice => self.set_slice(&id, None, dirty),
            Kind::Node => self.set_zone(&key.name, None, dirty),
            Kind::Server
            | Kind::ServerAuthorization
            | Kind::AuthorizationPolicy
            | Kind::MeshTlsAuthentication
            | Kind::NetworkAuthentication
            | Kind::HttpLocalRateLimitPolicy
            | Kind::HttpRoute
            | Kind::GatewayHttpRoute
            | Kind::GrpcRoute => {
                let touched = self.policies.deleted(key);
                Self::policies_changed(key.kind, touched, dirty);
                self.wishes_changed(key, None, dirty);
            }
            Kind::ServiceProfile | Kind::TrafficSplit => self.wishes_changed(key, None, dirty),
            _ => {
                self.workloads.remove(key);
            }
        }
    }

    fn set_namespace(
        &mut self,
        name: &str,
        namespace: Option<(BTreeMap<String, String>, Settings)>,
        dirty: &mut Dirty,
    ) {
        let before = self.settings(name).clone();
        match namespace {
            Some((labels, settings)) => {
                let settings = settings.or(Some(&self.defaults));
                self.namespaces.insert(name.to_owned(), (labels, settings))
            }
            None => self.namespaces.remove(name),
        };
        let after = self.settings(name).clone();
        if before == after {
            return;
        }
        let pods: Vec<Arc<Pod>> = self.pods.values().filter(|pod| pod.id.namespace == name).cloned().collect();
        for pod in pods {
            self.set_pod(&pod.id, Some(Pod::clone(&pod).with_namespace(Some(&after))), dirty);
        }
        let services: Vec<_> = self.services.values().filter(|s| s.id.namespace == name).cloned().collect();
        for service in services {
            let changed = Service::clone(&service).with_namespace(Some(&after));
            self.set_service(&service.id, Some(changed), dirty);
        }
    }

    fn set_zone(&mut self, node: &str, zone: Option<String>, dirty: &mut Dirty) {
        if self.zones.get(node) == zone.as_ref() {
            return;
        }
        match zone {
            Some(zone) => self.zones.insert(node.to_owned(), zone),
            None => self.zones.remove(node),
        };
        let there =
            |slice: &&Arc<Slice>| slice.endpoints.iter().any(|e| e.zone.is_none() && e.node.as_deref() == Some(node));
        dirty.services.extend(self.slices.values().filter(there).map(|slice| slice.service.clone()));
    }

    fn policies_changed(kind: Kind, namespaces: BTreeSet<String>, dirty: &mut Dirty) {
        if kind == Kind::Server {
            dirty.servers.extend(namespaces.iter().cloned());
        }
        dirty.policies.extend(namespaces);
    }

    /// Gives pods anew what Servers say of their ports, once for all Servers of a batch.
    fn serve(&mut self, namespaces: &BTreeSet<String>, dirty: &mut Dirty) {
        if namespaces.is_empty() {
            return;
        }
        let pods = self.pods.values().filter(|pod| namespaces.contains(&pod.id.namespace));
        // What a server speaks is told to clients as well.
        let pods: Vec<Arc<Pod>> = pods.filter(|pod| self.policies.served(pod) != pod.served).cloned().collect();
        for pod in pods {
            self.set_pod(&pod.id, Some(Pod::clone(&pod)), dirty);
        }
    }

    fn wishes_changed(&mut self, key: &Key, object: Option<&Object>, dirty: &mut Dirty) {
        let services = self.wishes.set(key, object);
        self.renew(services, dirty);
    }

    /// Gives services anew what is asked for about their traffic.
    fn renew(&mut self, services: impl IntoIterator<Item = Id>, dirty: &mut Dirty) {
        for id in services {
            if let Some(service) = self.services.get(&id).cloned() {
                self.set_service(&id, Some(Service::clone(&service)), dirty);
            }
        }
    }

    fn set_pod(&mut self, id: &Id, mut pod: Option<Pod>, dirty: &mut Dirty) {
        if let Some(pod) = &mut pod {
            pod.served = self.policies.served(pod);
        }
        let before = self.pods.get(id).cloned();
        if before.as_deref() == pod.as_ref() {
            return;
        }
        for ip in before.iter().flat_map(|pod| &pod.ips) {
            remove(&mut self.pods_by_ip, ip, id);
            dirty.ips.insert(*ip);
        }
        for ip in pod.iter().flat_map(|pod| &pod.ips) {
            self.pods_by_ip.entry(*ip).or_default().insert(id.clone());
            dirty.ips.insert(*ip);
        }
        let ips = before.iter().flat_map(|pod| &pod.ips).chain(pod.iter().flat_map(|pod| &pod.ips));
        let referents = ips.map(|ip| Referent::Ip(*ip)).chain([Referent::Pod(id.clone())]);
        for referent in referents {
            dirty.services.extend(self.services_by_endpoint.get(&referent).into_iter().flat_map(|s| s.keys().cloned()));
        }
        dirty.pods.insert(id.clone());
        match pod {
            Some(pod) => self.pods.insert(id.clone(), Arc::new(pod)),
            None => self.pods.remove(id),
        };
    }

    fn set_service(&mut self, id: &Id, mut service: Option<Service>, dirty: &mut Dirty) {
        if let Some(service) = &mut service {
            service.traffic = self.wishes.of(id, |backend| self.services.contains_key(backend));
        }
        let before = self.services.get(id).cloned();
        if before.as_deref() == service.as_ref() {
            return;
        }
        for ip in before.iter().flat_map(|s| &s.ips) {
            remove(&mut self.services_by_ip, ip, id);
            dirty.ips.insert(*ip);
        }
        for ip in service.iter().flat_map(|s| &s.ips) {
            let sharing = self.services_by_ip.entry(*ip).or_default();
            sharing.insert(id.clone());
            dirty.ips.insert(*ip);
            if sharing.len() > 1 {
                tracing::warn!(%ip, services = ?sharing, "several services claim one address; the first is taken");
            }
        }
        dirty.services.insert(id.clone());
        let appears = before.is_some() != service.is_some();
        match service {
            Some(service) => self.services.insert(id.clone(), Arc::new(service)),
            None => self.services.remove(id),
        };
        if appears {
            let parents = self.wishes.parents(id);
            self.renew(parents.into_iter().filter(|parent| parent != id), dirty);
        }
    }

    fn set_slice(&mut self, id: &Id, slice: Option<Slice>, dirty: &mut Dirty) {
        let before = self.slices.get(id).cloned();
        if before.as_deref() == slice.as_ref() {
            return;
        }
        if let Some(before) = before {
            remove(&mut self.slices_by_service, &before.service, id);
            for referent in referents(&before) {
                if let Some(services) = self.services_by_endpoint.get_mut(&referent) {
                    if let Some(count) = services.get_mut(&before.service) {
                        *count -= 1;
                        if *count == 0 {
                            services.remove(&before.service);
                        }
                    }
                    if services.is_empty() {
                        self.services_by_endpoint.remove(&referent);
                    }
                }
            }
            dirty.services.insert(before.service.clone());
        }
        match slice {
            Some(slice) => {
                self.slices_by_service.entry(slice.service.clone()).or_default().insert(id.clone());
                for referent in referents(&slice) {
                    let services = self.services_by_endpoint.entry(referent).or_default();
                    *services.entry(slice.service.clone()).or_default() += 1;
                }
                dirty.services.insert(slice.service.clone());
                self.slices.insert(id.clone(), Arc::new(slice));
            }
            None => {
                self.slices.remove(id);
            }
        }
    }

    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        // Addresses are used again: of several pods with one address, the newest that has not ended has it.
        let pods = self.pods_by_ip.get(&ip)?.iter().filter_map(|id| self.pods.get(id)).filter(|pod| !pod.ended());
        pods.max_by(|a, b| (!a.terminating, &a.created).cmp(&(!b.terminating, &b.created))).cloned()
    }

    pub fn pod_policy(&self, id: &Id) -> Option<Arc<PodPolicy>> {
        self.pods.get(id).map(|pod| Arc::new(self.policies.of(pod)))
    }

    pub fn target(&self, ip: IpAddr) -> Target {
        let mut services = self.services_by_ip.get(&ip).into_iter().flatten();
        if let Some(service) = services.find_map(|id| self.services.get(id)) {
            return Target::Service(service.clone());
        }
        self.pod_by_ip(ip).map_or(Target::Unknown, Target::Pod)
    }

    pub fn view(&self, id: &Id) -> Option<Arc<ServiceView>> {
        let service = self.services.get(id)?.clone();
        let slices: Vec<&Arc<Slice>> =
            self.slices_by_service.get(id).into_iter().flatten().filter_map(|slice| self.slices.get(slice)).collect();
        // With both families the same pods are in slices of each; one way to reach a pod is enough.
        let v4 = slices.iter().any(|slice| slice.endpoints.iter().any(|e| e.ip.is_ipv4()));
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        for slice in slices {
            for endpoint in slice.endpoints.iter().filter(|e| e.ready && e.ip.is_ipv4() == v4) {
                let pod = match &endpoint.pod {
                    // While its pod is not known, neither is its identity, and traffic to it would go in the clear: it
                    // counts as not there. Slices and pods are told apart, in no order.
                    Some(pod) => match self.pods.get(pod) {
                        Some(pod) => Some(pod.clone()),
                        None => continue,
                    },
                    // A slice written by hand says nothing of pods; what has the address is what will answer.
                    None => self.pod_by_ip(endpoint.ip),
                };
                let hostname = endpoint.hostname.clone();
                // Endpoints, unlike slices, know nodes and no zones.
                let of_node = || endpoint.node.as_ref().and_then(|node| self.zones.get(node));
                let zone = endpoint.zone.as_ref().or_else(of_node).cloned();
                let new = Endpoint { ip: endpoint.ip, pod, hostname, zone, ports: slice.ports.clone() };
                endpoints
                    .entry(endpoint.ip)
                    .and_modify(|old| old.ports = old.ports.iter().chain(new.ports.iter()).cloned().collect())
                    .or_insert(new);
            }
        }
        Some(Arc::new(ServiceView { service, endpoints: endpoints.into_values().collect() }))
    }

    pub fn publish(&mut self, mut dirty: Dirty) {
        let servers = std::mem::take(&mut dirty.servers);
        self.serve(&servers, &mut dirty);
        for ip in dirty.ips {
            if self.watched_ips.contains_key(&ip) {
                let target = self.target(ip);
                tell(&mut self.watched_ips, &ip, target);
            }
        }
        for id in dirty.services {
            if self.watched_services.contains_key(&id) {
                let view = self.view(&id);
                tell(&mut self.watched_services, &id, view);
            }
        }
        let mut pods = dirty.pods;
        if !dirty.policies.is_empty() {
            pods.extend(self.watched_pods.keys().filter(|id| dirty.policies.contains(&id.namespace)).cloned());
        }
        for id in pods {
            if self.watched_pods.contains_key(&id) {
                let policy = self.pod_policy(&id);
                tell(&mut self.watched_pods, &id, policy);
            }
        }
    }

    pub fn sweep(&mut self) {
        self.watched_ips.retain(|_, watched| watched.receiver_count() > 0);
        self.watched_services.retain(|_, watched| watched.receiver_count() > 0);
        self.watched_pods.retain(|_, watched| watched.receiver_count() > 0);
    }
}

fn remove<K: Hash + Eq>(map: &mut HashMap<K, BTreeSet<Id>>, key: &K, id: &Id) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}

/// What a slice's endpoints refer to, each once.
fn referents(slice: &Slice) -> HashSet<Referent> {
    let endpoints = slice.endpoints.iter();
    endpoints.map(|e| e.pod.clone().map_or(Referent::Ip(e.ip), Referent::Pod)).collect()
}

/// Tells a subject's watchers its newest snapshot, or forgets the subject when there are none.
fn tell<K: Hash + Eq, V: PartialEq>(watched: &mut HashMap<K, watch::Sender<V>>, key: &K, value: V) {
    let Some(sender) = watched.get(key) else { return };
    if sender.receiver_count() == 0 {
        watched.remove(key);
        return;
    }
    sender.send_if_modified(|current| {
        let changed = *current != value;
        *current = value;
        changed
    });
}
