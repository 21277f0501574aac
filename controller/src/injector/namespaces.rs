//! What namespaces say about injection.

use crate::kubernetes::{Api, Resource};
use crate::source::Event;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use weft_core::kinds::{Kind, Object};
use weft_core::names;

const NAMESPACES: Resource = Resource { api_version: "v1", plural: "namespaces" };
/// How long a namespace that is not known yet is asked for: the pod waits meanwhile.
const ASK: Duration = Duration::from_secs(2);

/// What is kept of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Whether the control plane lives in it.
    pub control_plane: bool,
    /// Its annotations, as far as they are a mesh's.
    pub annotations: BTreeMap<String, String>,
}

/// All of them. Cloning is cheap and refers to the same.
#[derive(Debug, Clone)]
pub struct Namespaces {
    api: Api,
    known: Arc<RwLock<HashMap<String, Arc<Namespace>>>>,
    synced: watch::Sender<bool>,
}

impl Namespaces {
    /// Keeps what this source tells.
    pub fn follow(api: Api, mut events: mpsc::Receiver<Vec<Event>>) -> Namespaces {
        let namespaces = Namespaces { api, known: Arc::default(), synced: watch::Sender::new(false) };
        let kept = namespaces.clone();
        tokio::spawn(async move {
            while let Some(batch) = events.recv().await {
                for event in batch {
                    kept.take(event);
                }
            }
        });
        namespaces
    }

    /// Whether all that were there at the start are known.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    fn take(&self, event: Event) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Applied(Object::Namespace(namespace)) => {
                let metadata = namespace.metadata;
                if let Some(name) = metadata.name {
                    let labels = metadata.labels.unwrap_or_default();
                    known.insert(name, Arc::new(Namespace::read(&labels, metadata.annotations.unwrap_or_default())));
                }
            }
            Event::Deleted(key) if key.kind == Kind::Namespace => {
                known.remove(&key.name);
            }
            Event::Synced => {
                self.synced.send_replace(true);
            }
            Event::Applied(_) | Event::Deleted(_) => {}
        }
    }

    /// What this one says. A namespace may be younger than what is known: the API server is asked then, so that its first
    /// pods are not left without a proxy.
    ///
    /// # Errors
    /// When nobody knows; the pod must be refused, or let in as it is, by the cluster's choice.
    pub async fn get(&self, name: &str) -> Result<Arc<Namespace>, String> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let path = format!("{}/{name}", NAMESPACES.all());
        match tokio::time::timeout(ASK, self.api.metadata(&path)).await {
            Ok(Ok(object)) => {
                let map = |key: &str| -> BTreeMap<String, String> {
                    let map = object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_object);
                    let text = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
                    map.into_iter().flatten().filter_map(text).collect()
                };
                Ok(Arc::new(Namespace::read(&map("labels"), map("annotations"))))
            }
            Ok(Err(error)) => Err(format!("namespace {name} is not known: {error}")),
            Err(_) => Err(format!("namespace {name} is not known, and the API server does not say more")),
        }
    }
}

impl Namespace {
    fn read(labels: &BTreeMap<String, String>, mut annotations: BTreeMap<String, String>) -> Namespace {
        annotations.retain(|key, _| key.split_once('/').is_some_and(|(prefix, _)| prefix.ends_with("linkerd.io")));
        let control_plane = labels.get(names::LABEL_IS_CONTROL_PLANE).is_some_and(|value| value == "true");
        Namespace { control_plane, annotations }
    }
}
