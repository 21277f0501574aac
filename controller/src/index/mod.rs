//! One picture of the cluster in memory, and who wants to know when a part of it changes.
//!
//! Objects come in by [`Index::apply`]; what is kept of them is small and immutable, behind `Arc`s. Streams subscribe
//! to one subject (an address, a service, a pod) and get its newest snapshot; snapshots that are equal to the last one
//! wake nobody. Snapshots are made only for subjects that somebody watches, so memory follows the cluster and the
//! number of different subjects, not the number of streams.

pub mod pod;
pub mod policy;
pub use weft_core::ports;
pub mod service;
mod state;
pub mod traffic;

use crate::source::Event;
use crate::telemetry::Telemetry;
use pod::{Id, Pod, Settings};
use policy::PodPolicy;
use service::{Service, ServiceView};
use state::{Dirty, State};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use weft_core::kinds::Key;

/// How often subjects that nobody watches any more are forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// What an address stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// Nothing that is known here.
    Unknown,
    /// The virtual address of a service.
    Service(Arc<Service>),
    /// A pod.
    Pod(Arc<Pod>),
}

/// A workload, as `stat` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadObject {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The workload that made it, as lower-case kind and name.
    pub owner: Option<(String, String)>,
}

/// The index. Cloning is cheap and refers to the same.
#[derive(Debug, Clone)]
pub struct Index {
    state: Arc<Mutex<State>>,
    synced: watch::Sender<bool>,
}

impl Default for Index {
    fn default() -> Index {
        Index { state: Arc::default(), synced: watch::Sender::new(false) }
    }
}

impl Index {
    /// An empty index that shows its sizes. `defaults` hold where neither an object nor its namespace says otherwise.
    pub fn new(telemetry: &Telemetry, defaults: Settings) -> Index {
        let index = Index::default();
        index.lock().defaults = defaults;
        let shown = index.clone();
        telemetry.collect(move |telemetry| shown.show(telemetry));
        index
    }

    /// Takes in what the source tells, until it ends.
    pub async fn run(self, mut events: mpsc::Receiver<Vec<Event>>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                batch = events.recv() => match batch {
                    Some(batch) => self.apply(batch),
                    None => {
                        tracing::error!("the source of objects ended; what is known stays as it is");
                        return;
                    }
                },
                _ = sweep.tick() => self.lock().sweep(),
            }
        }
    }

    /// Takes in a batch and tells those who watch.
    pub fn apply(&self, batch: Vec<Event>) {
        let mut synced = false;
        {
            let mut state = self.lock();
            let mut dirty = Dirty::default();
            for event in batch {
                match event {
                    Event::Applied(object) => state.applied(&object, &mut dirty),
                    Event::Deleted(key) => state.deleted(&key, &mut dirty),
                    Event::Synced => synced = true,
                }
            }
            state.publish(dirty);
        }
        if synced {
            self.synced.send_replace(true);
        }
    }

    /// Whether everything that was there at the start is in.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Returns when everything that was there at the start is in.
    pub async fn synced(&self) {
        // The sender is `self`'s own, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// What an address stands for, now and from now on.
    pub fn watch_ip(&self, ip: IpAddr) -> watch::Receiver<Target> {
        let mut state = self.lock();
        if let Some(watched) = state.watched_ips.get(&ip) {
            return watched.subscribe();
        }
        let (tx, rx) = watch::channel(state.target(ip));
        state.watched_ips.insert(ip, tx);
        rx
    }

    /// A service with its endpoints, now and from now on; `None` while there is none.
    pub fn watch_service(&self, id: &Id) -> watch::Receiver<Option<Arc<ServiceView>>> {
        let mut state = self.lock();
        if let Some(watched) = state.watched_services.get(id) {
            return watched.subscribe();
        }
        let (tx, rx) = watch::channel(state.view(id));
        state.watched_services.insert(id.clone(), tx);
        rx
    }

    /// A pod with its policies, now and from now on; `None` while there is none.
    pub fn watch_pod(&self, id: &Id) -> watch::Receiver<Option<Arc<PodPolicy>>> {
        let mut state = self.lock();
        if let Some(watched) = state.watched_pods.get(id) {
            return watched.subscribe();
        }
        let (tx, rx) = watch::channel(state.pod_policy(id));
        state.watched_pods.insert(id.clone(), tx);
        rx
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().pods.values().cloned().collect()
    }

    /// The pod of this name with its policies.
    pub fn pod(&self, id: &Id) -> Option<Arc<PodPolicy>> {
        self.lock().pod_policy(id)
    }

    /// The pod that has this address.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        self.lock().pod_by_ip(ip)
    }

    /// All services.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.lock().services.values().cloned().collect()
    }

    /// All namespaces with their labels.
    pub fn namespaces(&self) -> Vec<(String, BTreeMap<String, String>)> {
        self.lock().namespaces.iter().map(|(name, (labels, _))| (name.clone(), labels.clone())).collect()
    }

    /// All workload objects.
    pub fn workloads(&self) -> Vec<(Key, Arc<WorkloadObject>)> {
        self.lock().workloads.iter().map(|(key, workload)| (key.clone(), workload.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, telemetry: &Telemetry) {
        let state = self.lock();
        let set = |name, help, label, value, count: usize| {
            telemetry.gauge(name, help, &[(label, value)]).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        let objects = [
            ("namespace", state.namespaces.len()),
            ("pod", state.pods.len()),
            ("service", state.services.len()),
            ("endpointslice", state.slices.len()),
            ("workload", state.workloads.len()),
            ("node", state.zones.len()),
            ("policy", state.policies.len()),
            ("traffic", state.wishes.len()),
        ];
        for (kind, count) in objects {
            set("weft_index_objects", "Objects in the index", "kind", kind, count);
        }
        let watched = [
            ("address", state.watched_ips.len()),
            ("service", state.watched_services.len()),
            ("pod", state.watched_pods.len()),
        ];
        for (subject, count) in watched {
            set("weft_index_watched", "Subjects of the index that somebody watches", "subject", subject, count);
        }
    }
}
