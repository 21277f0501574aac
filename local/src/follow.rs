//! Follows directories of manifests: edit a file and it happens. A directory is read as a whole after each change; what
//! is wrong is said and changes nothing, and objects that no file names any more are deleted.

use crate::client::Client;
use crate::manifests;
use crate::proto::{Document, Outcome};
use crate::{Error, error::Context};
use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Editors write a file in several steps; this long nothing must happen before it is read.
const QUIET: Duration = Duration::from_millis(200);

/// Watches from now on; ends when dropped.
pub(crate) struct Follower {
    dirs: Vec<PathBuf>,
    changes: mpsc::UnboundedReceiver<()>,
    last: Vec<Document>,
    _watcher: notify::RecommendedWatcher,
}

impl Follower {
    /// Watches directories, whose manifests are already applied.
    ///
    /// # Errors
    /// When one of them cannot be watched.
    pub(crate) fn new(dirs: &[PathBuf]) -> Result<Self, Error> {
        let (sender, changes) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading a file is no change; it would make us read again for ever.
            let changed = event.is_ok_and(|e| !e.kind.is_access() && e.paths.iter().any(|p| manifests::is_manifest(p)));
            if changed {
                // Nobody follows any more when this fails.
                let _ = sender.send(());
            }
        })
        .context("cannot watch files")?;
        for dir in dirs {
            watcher.watch(dir, RecursiveMode::NonRecursive).context(format!("cannot watch {}", dir.display()))?;
        }
        // Watching has begun, so nothing is missed between here and the first change.
        let last = manifests::read(dirs)?;
        Ok(Self { dirs: dirs.to_vec(), changes, last, _watcher: watcher })
    }

    /// Applies every change, and tells what happened, for as long as the cluster lives.
    pub(crate) async fn run(mut self, client: Client, tell: impl Fn(&str)) {
        while self.changes.recv().await.is_some() {
            while tokio::time::timeout(QUIET, self.changes.recv()).await.is_ok_and(|more| more.is_some()) {}
            match self.bring_in(&client).await {
                Ok(outcomes) => {
                    for outcome in outcomes.iter().filter(|o| o.verb != "unchanged") {
                        tell(&format!("{} {}", outcome.object, outcome.verb));
                    }
                }
                Err(e) => tell(&format!("{e}; what runs goes on")),
            }
        }
    }

    async fn bring_in(&mut self, client: &Client) -> Result<Vec<Outcome>, Error> {
        let documents = manifests::read(&self.dirs)?;
        let mut outcomes = client.apply(documents.clone(), "default").await?;
        let named: Vec<_> = documents.iter().map(|d| identity(&d.value)).collect();
        let gone: Vec<Document> = self.last.iter().filter(|d| !named.contains(&identity(&d.value))).cloned().collect();
        self.last = documents;
        if !gone.is_empty() {
            outcomes.extend(client.delete(gone, "default", true).await?);
        }
        Ok(outcomes)
    }
}

/// What makes a document the same object as another.
fn identity(value: &Value) -> [String; 4] {
    let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
    let metadata = &value["metadata"];
    [
        text(&value["apiVersion"], ""),
        text(&value["kind"], ""),
        text(&metadata["namespace"], "default"),
        text(&metadata["name"], ""),
    ]
}
