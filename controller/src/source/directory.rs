//! A directory of objects, `<plural kind>/<namespace or _>/<name>.json` each, written by atomic rename.
//!
//! Notifications say what to look at; a periodic resync looks at everything, so that a missed notification (a directory
//! that filled before it was watched, an overflow of the kernel's queue) costs seconds, never correctness. A file that
//! cannot be read or typed is reported once and its last good object stays. When the whole directory is gone, which a
//! mount can be for a moment, everything stays.

use super::Event;
use crate::telemetry::Telemetry;
use notify::{RecursiveMode, Watcher};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use weft_core::kinds::{Key, Kind, Object};

/// Most octets of a file; Kubernetes itself has a limit of about 1.5 MiB for an object.
const MAX_FILE: u64 = 4 << 20;
/// Notifications this close together make one batch.
const SETTLE: Duration = Duration::from_millis(10);
/// A file older than this, when read, can be told from later versions by its stamp: file systems count time in ticks.
const SETTLED: Duration = Duration::from_millis(100);
/// How soon a directory that is not there yet, or that changed its shape, is looked at again.
const SOON: Duration = Duration::from_millis(500);

/// What to watch.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory.
    pub path: PathBuf,
    /// How often everything is looked at again.
    pub resync: Duration,
}

/// Tells one version of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

struct Known {
    /// Absent when the file was so young that another version could carry the same stamp.
    stamp: Option<Stamp>,
    key: Key,
    /// Whether an object of this file was told.
    told: bool,
}

struct Directory {
    options: Options,
    kinds: &'static [Kind],
    telemetry: Telemetry,
    files: HashMap<PathBuf, Known>,
}

/// Watches in a thread of its own: file I/O blocks.
pub(super) fn spawn(options: Options, kinds: &'static [Kind], telemetry: Telemetry, out: mpsc::Sender<Vec<Event>>) {
    let directory = Directory { options, kinds, telemetry, files: HashMap::new() };
    let spawned = std::thread::Builder::new().name("source".into()).spawn(move || directory.run(&out));
    if let Err(error) = spawned {
        tracing::error!(%error, "cannot start the thread that watches the state directory");
    }
}

impl Directory {
    fn run(mut self, out: &mpsc::Sender<Vec<Event>>) {
        let (tx, rx) = channel();
        let mut watch: Option<(Box<dyn Watcher>, u64)> = None;
        let mut synced = false;
        let mut complained = false;
        let mut unwatched = false;
        loop {
            // The watch before the scan: what changes in between is notified.
            let inode = fs::metadata(&self.options.path).ok().filter(fs::Metadata::is_dir).map(|m| m.ino());
            if watch.as_ref().map(|(_, inode)| *inode) != inode {
                watch = inode.and_then(|inode| self.arm(&tx, unwatched).map(|w| (w, inode)));
            }
            unwatched = inode.is_some() && watch.is_none();
            let mut wait = if watch.is_some() { self.options.resync } else { SOON };
            if inode.is_some() {
                complained = false;
                let mut events = self.scan_all();
                if !synced {
                    synced = true;
                    events.push(Event::Synced);
                    tracing::info!(path = %self.options.path.display(), files = self.files.len(), "state directory read");
                }
                if !events.is_empty() && out.blocking_send(events).is_err() {
                    return;
                }
            } else if !complained {
                complained = true;
                tracing::warn!(path = %self.options.path.display(), "the state directory is not there; waiting for it");
            }
            let mut due = Instant::now() + wait;
            while let Some((paths, rescan)) = self.next(&rx, due.saturating_duration_since(Instant::now())) {
                let events = self.look_at(paths);
                if !events.is_empty() && out.blocking_send(events).is_err() {
                    return;
                }
                if rescan {
                    wait = wait.min(SOON);
                    due = due.min(Instant::now() + wait);
                }
                if out.is_closed() {
                    return;
                }
            }
        }
    }

    fn arm(&self, tx: &Sender<notify::Result<notify::Event>>, quiet: bool) -> Option<Box<dyn Watcher>> {
        let tx = tx.clone();
        let armed = notify::recommended_watcher(move |event| {
            // The other end is gone only when the thread is.
            let _ = tx.send(event);
        })
        .and_then(|mut watcher| watcher.watch(&self.options.path, RecursiveMode::Recursive).map(|()| watcher));
        match armed {
            Ok(watcher) => Some(Box::new(watcher)),
            Err(_) if quiet => None,
            Err(error) => {
                tracing::warn!(
                    path = %self.options.path.display(), %error,
                    "cannot be notified of changes; reading the state directory again every {} ms", SOON.as_millis()
                );
                None
            }
        }
    }

    /// Paths that changed, and whether everything should be looked at soon. `None` when the time is over.
    fn next(&self, rx: &Receiver<notify::Result<notify::Event>>, wait: Duration) -> Option<(BTreeSet<PathBuf>, bool)> {
        let first = match rx.recv_timeout(wait) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        let (mut paths, mut rescan) = (BTreeSet::new(), false);
        let mut note = |event: notify::Result<notify::Event>| match event {
            Ok(event) if event.need_rescan() => rescan = true,
            // Reading files must not wake us to read files.
            Ok(event) if event.kind.is_access() => {}
            Ok(event) => {
                for path in event.paths {
                    rescan |= !is_object_file(&path);
                    paths.insert(path);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "notification of changes failed");
                rescan = true;
            }
        };
        note(first);
        let until = Instant::now() + SETTLE;
        while let Ok(event) = rx.recv_timeout(until.saturating_duration_since(Instant::now())) {
            note(event);
        }
        Some((paths, rescan))
    }

    fn look_at(&mut self, paths: BTreeSet<PathBuf>) -> Vec<Event> {
        let mut events = Vec::new();
        for path in paths {
            if path.is_dir() {
                // New directories may have filled before they were watched.
                let mut found = Vec::new();
                collect(&path, 3, &mut found);
                for file in found {
                    self.file(&file, &mut events);
                }
            } else if is_object_file(&path) {
                self.file(&path, &mut events);
            } else {
                // A directory that went away took its files with it.
                let gone: Vec<PathBuf> = self.files.keys().filter(|f| f.starts_with(&path)).cloned().collect();
                for file in gone {
                    self.file(&file, &mut events);
                }
            }
        }
        events
    }

    fn scan_all(&mut self) -> Vec<Event> {
        let mut found = Vec::new();
        for kind in self.kinds {
            collect(&self.options.path.join(kind.plural()), 2, &mut found);
        }
        let mut paths: BTreeSet<PathBuf> = found.into_iter().collect();
        paths.extend(self.files.keys().cloned());
        let mut events = Vec::new();
        for path in paths {
            self.file(&path, &mut events);
        }
        events
    }

    /// Looks at one file, there or not.
    fn file(&mut self, path: &Path, events: &mut Vec<Event>) {
        let Some(key) = self.key_of(path) else { return };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if self.options.path.is_dir()
                    && let Some(known) = self.files.remove(path)
                    && known.told
                {
                    events.push(Event::Deleted(known.key));
                }
                return;
            }
            Err(error) => {
                self.complain(path, "", &error.to_string());
                return;
            }
        };
        let stamp =
            Stamp { inode: metadata.ino(), size: metadata.size(), modified: (metadata.mtime(), metadata.mtime_nsec()) };
        if self.files.get(path).is_some_and(|known| known.stamp == Some(stamp)) {
            return;
        }
        let told_before = self.files.get(path).is_some_and(|known| known.told);
        let told = match read(path, &metadata, &key) {
            Ok(object) => {
                events.push(Event::Applied(object));
                true
            }
            Err(Fault { field, message }) => {
                self.complain(path, &field, &message);
                told_before
            }
        };
        let settled = metadata.modified().ok().and_then(|m| m.elapsed().ok()).is_some_and(|age| age > SETTLED);
        self.files.insert(path.to_owned(), Known { stamp: settled.then_some(stamp), key, told });
    }

    fn complain(&self, path: &Path, field: &str, message: &str) {
        self.telemetry
            .counter("weft_source_bad_files_total", "Files of the state directory that could not be used", &[])
            .inc();
        tracing::warn!(file = %path.display(), field, "object ignored, its last good version stays: {message}");
    }

    /// The key that a path stands for, if it is of a kind that is wanted.
    fn key_of(&self, path: &Path) -> Option<Key> {
        let relative = path.strip_prefix(&self.options.path).ok()?;
        let mut parts = relative.iter().map(|part| part.to_str());
        let (plural, namespace, file) = (parts.next()??, parts.next()??, parts.next()??);
        if parts.next().is_some() || !is_object_file(path) {
            return None;
        }
        let kind = self.kinds.iter().copied().find(|kind| kind.plural() == plural)?;
        Some(Key::new(kind, namespace, file.strip_suffix(".json")?))
    }
}

fn is_object_file(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".json") && !name.starts_with('.')
}

fn collect(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if is_object_file(&path) {
            found.push(path);
        } else if depth > 1 && path.is_dir() {
            collect(&path, depth - 1, found);
        }
    }
}

struct Fault {
    field: String,
    message: String,
}

impl From<String> for Fault {
    fn from(message: String) -> Fault {
        Fault { field: String::new(), message }
    }
}

fn read(path: &Path, metadata: &fs::Metadata, key: &Key) -> Result<Object, Fault> {
    if !metadata.is_file() {
        return Err(Fault::from("not a file".to_owned()));
    }
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(Fault::from(format!("larger than {MAX_FILE} octets")));
    }
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| format!("not JSON: {e}"))?;
    let object = Object::from_value(key.kind, value)
        .map_err(|error| Fault { field: error.path().to_string(), message: error.into_inner().to_string() })?;
    let found = object.key("");
    if found != *key {
        return Err(Fault { field: "metadata".into(), message: format!("the file is {found}, its path says {key}") });
    }
    Ok(object)
}
