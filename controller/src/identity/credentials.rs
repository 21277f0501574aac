//! Trust anchors, issuer and token keys: read from files, and again when they change.
//!
//! A change that cannot be used (a key that is not yet the new certificate's, because a rotation is half done) is
//! reported, and what was good before stays in use. Notifications make it quick; a timer makes it sure.

use super::ca::{self, Der, Issuer};
use crate::cli::IdentityOptions;
use crate::telemetry::Telemetry;
use notify::{RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use weft_core::token::TokenKeys;

/// How often files are read again without a notification.
const REREAD: Duration = Duration::from_secs(30);
/// Notifications this close together are one change.
const SETTLE: Duration = Duration::from_millis(50);
/// Most octets of a file.
const MAX_FILE: u64 = 1 << 20;

/// What is in use now.
#[derive(Debug, Clone, Default)]
pub struct Current {
    /// Trust anchors.
    pub anchors: Arc<Vec<Der>>,
    /// The issuer.
    pub issuer: Option<Arc<Issuer>>,
    /// Keys that tokens are signed with.
    pub keys: Option<Arc<TokenKeys>>,
}

/// The credentials, kept up to date. Cloning is cheap and refers to the same.
#[derive(Debug, Clone)]
pub struct Credentials(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: IdentityOptions,
    /// Where the keys of tokens are; `None` when they are not needed.
    key_files: Option<Vec<PathBuf>>,
    telemetry: Telemetry,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Current,
    files: Files,
    problem: Option<String>,
}

/// Contents, to see whether they changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Files {
    anchors: Option<Vec<u8>>,
    issuer: Option<(Vec<u8>, Vec<u8>)>,
    keys: Vec<Vec<u8>>,
}

impl Credentials {
    /// Reads the files and keeps them up to date.
    pub fn watch(options: &IdentityOptions, telemetry: &Telemetry) -> Credentials {
        let shared = Shared {
            options: options.clone(),
            key_files: options.key_files(),
            telemetry: telemetry.clone(),
            state: RwLock::new(State::default()),
        };
        let credentials = Credentials(Arc::new(shared));
        credentials.read();
        tokio::spawn(credentials.clone().keep());
        credentials
    }

    /// What is in use now.
    pub fn current(&self) -> Current {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Why no certificate can be signed; `None` when all is well.
    pub fn problem(&self) -> Option<String> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let current = &state.current;
        let complete = current.keys.is_some() || self.0.key_files.is_none();
        let Some(issuer) = current.issuer.as_ref().filter(|_| complete) else {
            return Some(state.problem.clone().unwrap_or_else(|| "not read yet".to_owned()));
        };
        ca::verify_chain(&issuer.chain, &current.anchors, OffsetDateTime::now_utc()).err()
    }

    async fn keep(self) {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut watched = None;
        loop {
            if watched.is_none() {
                watched = self.arm(&tx);
            }
            tokio::select! {
                _ = rx.recv() => {
                    tokio::time::sleep(SETTLE).await;
                    while rx.try_recv().is_ok() {}
                }
                () = tokio::time::sleep(REREAD) => {
                    // Directories may have been replaced: watch what is there now.
                    watched = None;
                }
            }
            self.read();
        }
    }

    fn arm(&self, tx: &mpsc::UnboundedSender<()>) -> Option<notify::RecommendedWatcher> {
        let tx = tx.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // The other end lives as long as the process.
                let _ = tx.send(());
            }
        });
        let mut watcher = watcher.map_err(|error| tracing::warn!(%error, "cannot watch credentials")).ok()?;
        let options = &self.0.options;
        let files = self.0.key_files.iter().flatten().chain([&options.trust_anchors]);
        let parents = files.filter_map(|file| if file.is_dir() { Some(file.as_path()) } else { file.parent() });
        for directory in parents.chain([options.issuer_dir.as_path()]) {
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                tracing::debug!(directory = %directory.display(), %error, "not watched; read every 30 s");
            }
        }
        Some(watcher)
    }

    /// Reads everything once.
    fn read(&self) {
        let options = &self.0.options;
        let mut problems = Problems::default();
        let files = Files {
            anchors: problems.note(&options.trust_anchors, read_file(&options.trust_anchors)),
            issuer: problems.note(&options.issuer_dir, read_issuer(&options.issuer_dir)),
            keys: token_key_files(self.0.key_files.as_deref().unwrap_or_default())
                .iter()
                .filter_map(|path| problems.note(path, read_file(path)))
                .collect(),
        };
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.files == files && problems.0.is_empty() == state.problem.is_none() {
            return;
        }
        let mut current = state.current.clone();
        if let Some(pem) = &files.anchors
            && let Some(anchors) = problems.note(&options.trust_anchors, ca::certificates(pem))
        {
            current.anchors = Arc::new(anchors);
        }
        if let Some((chain, key)) = &files.issuer {
            let issuer = Issuer::from_pem(chain, key).and_then(|issuer| {
                ca::verify_chain(&issuer.chain, &current.anchors, OffsetDateTime::now_utc()).map(|end| (issuer, end))
            });
            if let Some((issuer, end)) = problems.note(&options.issuer_dir, issuer) {
                tracing::info!(until = %end, "issuer in use");
                self.0
                    .telemetry
                    .gauge(
                        "weft_identity_issuer_expiration_timestamp_seconds",
                        "When the chain from issuer to trust anchor ends, since the UNIX epoch, in seconds",
                        &[],
                    )
                    .set(end.unix_timestamp());
                current.issuer = Some(Arc::new(issuer));
            }
        }
        if self.0.key_files.is_some() {
            let texts: Vec<&str> = files.keys.iter().filter_map(|pem| std::str::from_utf8(pem).ok()).collect();
            match TokenKeys::from_pems(texts) {
                Ok(keys) => current.keys = Some(Arc::new(keys)),
                Err(error) => problems.0.push(error.to_string()),
            }
        }
        let problem = (!problems.0.is_empty()).then(|| problems.0.join("; "));
        if let Some(problem) = &problem
            && state.problem.as_ref() != Some(problem)
        {
            let kept = if current.issuer.is_some() { "the credentials of before stay in use" } else { "waiting" };
            tracing::warn!("credentials cannot be used, {kept}: {problem}");
        }
        *state = State { current, files, problem };
    }
}

/// What cannot be used, for people.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn note<T>(&mut self, path: &Path, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.0.push(format!("{}: {message}", path.display()))).ok()
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} octets"));
    }
    std::fs::read(path).map_err(|e| e.to_string())
}

fn read_issuer(directory: &Path) -> Result<(Vec<u8>, Vec<u8>), String> {
    let pairs = [("tls.crt", "tls.key"), ("crt.pem", "key.pem")];
    let (certificate, key) = pairs
        .into_iter()
        .find(|(certificate, _)| directory.join(certificate).exists())
        .ok_or_else(|| "there is neither tls.crt nor crt.pem".to_owned())?;
    let read = |name: &str| read_file(&directory.join(name)).map_err(|e| format!("{name}: {e}"));
    Ok((read(certificate)?, read(key)?))
}

fn token_key_files(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        match std::fs::read_dir(path) {
            Ok(entries) => {
                // Kubernetes keeps the directories of its volumes under names that begin with two dots.
                let visible = |p: &PathBuf| !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
                files.extend(entries.flatten().map(|e| e.path()).filter(|p| p.is_file()).filter(visible));
            }
            Err(_) => files.push(path.clone()),
        }
    }
    files.sort();
    files
}
