//! Events that tell people what became of their pods: `kubectl get events`.

use crate::kubernetes::{Api, Resource};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_core::names;

const EVENTS: Resource = Resource { api_version: "v1", plural: "events" };
/// Events that wait to be written; more are left out.
const WAITING: usize = 256;
/// The same is not said again in this time: a set of 100 pods is one event.
const QUIET: Duration = Duration::from_secs(600);
/// What was said and is remembered.
const REMEMBERED: usize = 4096;

/// What is told of whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Note {
    /// Namespace of the object.
    pub namespace: String,
    /// Its apiVersion.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid, when known; without it `kubectl describe` does not find the event.
    pub uid: String,
    /// One word: `Injected`, `InjectionSkipped`.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// Where notes are handed in.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Note>);

impl Events {
    /// Starts to write.
    pub fn new(api: Api) -> Events {
        let (tx, mut rx) = mpsc::channel::<Note>(WAITING);
        tokio::spawn(async move {
            let mut said: HashMap<Note, Instant> = HashMap::new();
            while let Some(note) = rx.recv().await {
                if said.get(&note).is_some_and(|at| at.elapsed() < QUIET) {
                    continue;
                }
                if said.len() >= REMEMBERED {
                    said.retain(|_, at| at.elapsed() < QUIET);
                }
                if said.len() >= REMEMBERED {
                    said.clear();
                }
                let path = EVENTS.within(&note.namespace);
                match api.create(&path, &event(&note, OffsetDateTime::now_utc())).await {
                    Ok(_) => {
                        said.insert(note, Instant::now());
                    }
                    Err(error) => tracing::debug!(%error, "an event is not written"),
                }
            }
        });
        Events(tx)
    }

    /// Writes the note soon, if there is room. Never waits: a pod is waiting.
    pub fn tell(&self, note: Note) {
        if self.0.try_send(note).is_err() {
            tracing::debug!("too many events: one is left out");
        }
    }
}

fn event(note: &Note, now: OffsetDateTime) -> Value {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    // Only a year beyond 9999 could not be written.
    let time = now.format(&format).unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": note.namespace,
            "name": format!("{}.{:x}", note.name, now.unix_timestamp_nanos()),
        },
        "involvedObject": {
            "apiVersion": note.api_version,
            "kind": note.kind,
            "namespace": note.namespace,
            "name": note.name,
            "uid": note.uid,
        },
        "type": "Normal",
        "reason": note.reason,
        "message": note.message,
        "source": { "component": names::INJECTOR_SERVICE },
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}
