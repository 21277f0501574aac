//! Which resources there are, which pods belong to them, and which peers of proxies are meant by them.

use super::store::{Peer, Store};
use crate::index::Index;
use crate::index::pod::{Id, Pod};
use crate::index::service::Service;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::api::ResourceRef;
use weft_core::kinds::Kind;
use weft_core::selector::Selector;

/// A kind of resource that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each variant is the kind of that name")]
pub enum Type {
    Authority,
    CronJob,
    DaemonSet,
    Deployment,
    Job,
    Namespace,
    Pod,
    ReplicaSet,
    ReplicationController,
    Service,
    StatefulSet,
}

impl Type {
    /// The types that `all` stands for. ReplicaSets are parts of Deployments and left out.
    pub const ALL: [Type; 7] =
        [Type::CronJob, Type::DaemonSet, Type::Deployment, Type::Job, Type::Pod, Type::Service, Type::StatefulSet];

    /// The lower-case singular name.
    pub fn name(self) -> &'static str {
        match self {
            Type::Authority => "authority",
            Type::CronJob => "cronjob",
            Type::DaemonSet => "daemonset",
            Type::Deployment => "deployment",
            Type::Job => "job",
            Type::Namespace => "namespace",
            Type::Pod => "pod",
            Type::ReplicaSet => "replicaset",
            Type::ReplicationController => "replicationcontroller",
            Type::Service => "service",
            Type::StatefulSet => "statefulset",
        }
    }

    /// The type of this name.
    ///
    /// # Errors
    /// When there is none, for people.
    pub fn parse(name: &str) -> Result<Type, String> {
        use Type::{
            Authority, CronJob, DaemonSet, Deployment, Job, Namespace, Pod, ReplicaSet, ReplicationController, Service,
            StatefulSet,
        };
        [
            Authority,
            CronJob,
            DaemonSet,
            Deployment,
            Job,
            Namespace,
            Pod,
            ReplicaSet,
            ReplicationController,
            Service,
            StatefulSet,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| format!("there is no kind {name:?} of resource here"))
    }

    fn workload(kind: Kind) -> Option<Type> {
        Some(match kind {
            Kind::Deployment => Type::Deployment,
            Kind::StatefulSet => Type::StatefulSet,
            Kind::DaemonSet => Type::DaemonSet,
            Kind::ReplicaSet => Type::ReplicaSet,
            Kind::Job => Type::Job,
            Kind::CronJob => Type::CronJob,
            _ => return None,
        })
    }
}

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    /// Its type.
    pub kind: Type,
    /// Its namespace; empty for namespaces themselves.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Resource {
    fn new(kind: Type, namespace: &str, name: &str) -> Resource {
        let namespace = if kind == Type::Namespace { "" } else { namespace };
        Resource { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// A resource that is asked for by name or as one of all.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The type.
    pub kind: Type,
    /// One name, or all.
    pub name: Option<String>,
    /// One namespace, or all.
    pub namespace: Option<String>,
}

impl Wanted {
    /// What a request refers to.
    ///
    /// # Errors
    /// When its kind is not known.
    pub fn parse(reference: &ResourceRef) -> Result<Wanted, String> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(Wanted {
            kind: Type::parse(&reference.kind)?,
            name: filled(&reference.name),
            namespace: filled(&reference.namespace),
        })
    }

    /// Whether this resource is meant.
    pub fn matches(&self, resource: &Resource) -> bool {
        self.kind == resource.kind
            && self.name.as_ref().is_none_or(|name| *name == resource.name)
            // A namespace is in no namespace, and is meant by either way to name it.
            && self.namespace.as_ref().is_none_or(|namespace| {
                let of = if self.kind == Type::Namespace { &resource.name } else { &resource.namespace };
                namespace == of
            })
    }
}

/// The cluster as it is now, and pods that were there a while ago.
#[derive(Debug)]
pub struct Resources {
    pods: HashMap<Id, Arc<Pod>>,
    by_ip: HashMap<IpAddr, Arc<Pod>>,
    /// What every pod is a part of, services left out.
    parts: HashMap<Id, Vec<Resource>>,
    members: HashMap<Resource, BTreeSet<Id>>,
    labels: BTreeMap<Resource, BTreeMap<String, String>>,
    owners: HashMap<Resource, Resource>,
    alive: BTreeSet<Id>,
    /// ReplicaSets without pods, which no list shows.
    past: HashSet<Resource>,
}

impl Resources {
    /// From the index, with the pods that only the store still knows.
    pub fn new(index: &Index, store: &Store) -> Resources {
        let now = index.pods();
        let mut resources = Resources {
            alive: now.iter().map(|pod| pod.id.clone()).collect(),
            by_ip: HashMap::new(),
            parts: HashMap::new(),
            members: HashMap::new(),
            pods: store.pods().chain(&now).map(|pod| (pod.id.clone(), pod.clone())).collect(),
            labels: BTreeMap::new(),
            owners: HashMap::new(),
            past: HashSet::new(),
        };
        for (name, labels) in index.namespaces() {
            resources.labels.insert(Resource::new(Type::Namespace, "", &name), labels);
        }
        for (key, workload) in index.workloads() {
            let Some(kind) = Type::workload(key.kind) else { continue };
            let resource = Resource::new(kind, &key.namespace, &key.name);
            if let Some((kind, name)) = &workload.owner
                && let Ok(kind) = Type::parse(kind)
            {
                resources.owners.insert(resource.clone(), Resource::new(kind, &key.namespace, name));
            }
            // Those without pods are the past of a Deployment.
            if kind == Type::ReplicaSet {
                resources.past.insert(resource);
            } else {
                resources.labels.insert(resource, workload.labels.clone());
            }
        }
        resources.parts = resources.pods.values().map(|pod| (pod.id.clone(), resources.parts_of(pod))).collect();
        for (pod, parts) in &resources.parts {
            for part in parts {
                resources.members.entry(part.clone()).or_default().insert(pod.clone());
            }
        }
        for service in index.services() {
            let resource = Resource::new(Type::Service, &service.id.namespace, &service.id.name);
            resources.members.insert(resource.clone(), resources.selected(&service));
            resources.labels.insert(resource, service.labels.clone());
        }
        for pod in now.iter().filter(|pod| !pod.ended()) {
            resources.by_ip.extend(pod.ips.iter().map(|ip| (*ip, pod.clone())));
            for resource in resources.parts.get(&pod.id).into_iter().flatten() {
                resources.labels.entry(resource.clone()).or_insert_with(|| pod.labels.clone());
            }
        }
        resources
    }

    fn selected(&self, service: &Service) -> BTreeSet<Id> {
        let namespace = Resource::new(Type::Namespace, "", &service.id.namespace);
        let pods = self.members.get(&namespace).into_iter().flatten().filter_map(|id| self.pods.get(id));
        let chosen = pods.filter(|pod| {
            let mut labels = service.selector.iter();
            !service.selector.is_empty() && labels.all(|(key, value)| pod.labels.get(key) == Some(value))
        });
        chosen.map(|pod| pod.id.clone()).collect()
    }

    /// The resources that are wanted and have these labels.
    pub fn list(&self, wanted: &Wanted, selector: &Selector) -> Vec<Resource> {
        let all = self.labels.iter().filter(|(resource, labels)| {
            wanted.matches(resource) && (selector.is_empty() || selector.matches(Some(labels)))
        });
        all.map(|(resource, _)| resource.clone()).collect()
    }

    /// Whether anything is meant, also what has no traffic, has ended or was there a while ago.
    pub fn exists(&self, wanted: &Wanted) -> bool {
        self.labels.keys().chain(self.members.keys()).chain(&self.past).any(|resource| wanted.matches(resource))
    }

    /// Whether the pod is there now.
    pub fn alive(&self, pod: &Id) -> bool {
        self.alive.contains(pod)
    }

    /// Pods that are there now, except those that have run and ended.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().filter(|pod| self.alive(&pod.id) && !pod.ended())
    }

    /// All pods, also those that are gone.
    pub fn all_pods(&self) -> impl Iterator<Item = &Id> {
        self.pods.keys()
    }

    /// The pods of a resource, also those that are gone.
    pub fn members(&self, resource: &Resource) -> impl Iterator<Item = &Id> {
        self.members.get(resource).into_iter().flatten()
    }

    /// The pods of a resource that are there now, except those that have run and ended.
    pub fn pods_of(&self, resource: &Resource) -> impl Iterator<Item = &Arc<Pod>> {
        self.members(resource).filter_map(|id| self.pods.get(id)).filter(|pod| self.alive(&pod.id) && !pod.ended())
    }

    /// The pods of everything that is wanted, also those that are gone.
    pub fn members_of_all(&self, wanted: &Wanted) -> BTreeSet<&Id> {
        self.members.iter().filter(|(resource, _)| wanted.matches(resource)).flat_map(|(_, pods)| pods).collect()
    }

    /// Every resource that the pod is a part of, services left out.
    pub fn of_pod(&self, pod: &Id) -> &[Resource] {
        self.parts.get(pod).map(Vec::as_slice).unwrap_or_default()
    }

    fn parts_of(&self, pod: &Pod) -> Vec<Resource> {
        let namespace = &pod.id.namespace;
        let mut all =
            vec![Resource::new(Type::Namespace, "", namespace), Resource::new(Type::Pod, namespace, &pod.id.name)];
        for workload in [pod.owner.as_ref(), Some(&pod.workload)].into_iter().flatten() {
            let Ok(kind) = Type::parse(&workload.kind) else { continue };
            let mut next = Some(Resource::new(kind, namespace, &workload.name));
            while let Some(resource) = next.filter(|resource| !all.contains(resource)) {
                next = self.owners.get(&resource).cloned();
                all.push(resource);
            }
        }
        all
    }

    /// Every resource that a peer of a proxy is a part of.
    pub fn of_peer(&self, peer: &Peer) -> Vec<Resource> {
        let pod = if peer.pod.is_empty() {
            peer.addr.and_then(|addr| self.by_ip.get(&addr.ip()))
        } else {
            self.pods.get(&Id::new(&peer.namespace, &peer.pod))
        };
        let namespace = pod.map_or(peer.namespace.as_str(), |pod| pod.id.namespace.as_str());
        let mut all = pod.map(|pod| self.of_pod(&pod.id).to_vec()).unwrap_or_default();
        let mut add = |kind: Type, name: &str| {
            let resource = Resource::new(kind, namespace, name);
            if !name.is_empty() && !all.contains(&resource) {
                all.push(resource);
            }
        };
        add(Type::Namespace, namespace);
        add(Type::Pod, &peer.pod);
        add(Type::Service, &peer.service);
        add(Type::Authority, &peer.authority);
        if let Some((kind, name)) = &peer.workload
            && let Ok(kind) = Type::parse(kind)
        {
            add(kind, name);
        }
        all
    }
}
