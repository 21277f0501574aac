//! Where objects come from: a directory that the one-machine cluster writes, or a Kubernetes API server.

pub mod directory;
pub mod kubernetes;

use crate::telemetry::Telemetry;
use tokio::sync::mpsc;
use weft_core::kinds::{Key, Kind, Object};

/// Something that happened to an object.
#[derive(Debug, Clone)]
pub enum Event {
    /// It is there, new or changed.
    Applied(Object),
    /// It is gone.
    Deleted(Key),
    /// Everything that was there at the start has been told.
    Synced,
}

/// A source of objects.
#[derive(Debug)]
pub enum Source {
    /// A directory of JSON files.
    Directory(directory::Options),
    /// A Kubernetes API server.
    Kubernetes(kubernetes::Options),
}

impl Source {
    /// Starts to watch; what happens arrives in batches, in order.
    pub fn watch(self, kinds: &'static [Kind], telemetry: &Telemetry) -> mpsc::Receiver<Vec<Event>> {
        // A small buffer: when the index is behind, the source waits, and changes of the same object merge meanwhile.
        let (tx, rx) = mpsc::channel(4);
        match self {
            Source::Directory(options) => directory::spawn(options, kinds, telemetry.clone(), tx),
            Source::Kubernetes(options) => kubernetes::spawn(&options, kinds, telemetry, &tx),
        }
        rx
    }
}
