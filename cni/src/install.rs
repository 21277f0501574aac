//! Installs the plugin on a node, and keeps it there.
//!
//! What is installed: this program among the node's plugins, a kubeconfig that the plugin asks the API server with, and an
//! entry in the configuration that the container runtime uses, which is the first by name. Every file is written whole
//! under another name and then renamed, so that the runtime never sees half of one. All of it is looked at again when
//! something in the directory changes, and from time to time, since the token of the kubeconfig is renewed. At the end
//! everything is removed.

mod files;

use crate::repair::{self, Repair};
use crate::{NAME, conflist};
use anyhow::{Context, bail};
use base64::Engine;
use clap::{Args, Subcommand};
use files::{Mode, Stamp, read, write};
use notify::{RecursiveMode, Watcher};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use weft_controller::drain::terminated;
use weft_controller::kubernetes::{Api, Options as ApiOptions};

/// Its name does not end like one of a configuration, and is behind all of them.
const KUBECONFIG: &str = "weft-cni-kubeconfig";
/// What is put behind the name of a configuration of one plugin that was made a list, until the end.
const ORIGINAL: &str = "weft-cni-original";
/// Everything is looked at again after this time, whatever the notifications say.
const AGAIN: Duration = Duration::from_secs(10);
/// Changes come together.
const SETTLE: Duration = Duration::from_millis(50);
/// How long an answer of the API server may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two pods that are deleted. The next ones may need no repair.
const REPAIR_PAUSE: Duration = Duration::from_secs(5);

/// What the program does when no container runtime has called it.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install the plugin on this node and keep it there; remove it on SIGTERM
    Install(Install),
    /// Succeed when the plugin is installed
    Ready(Place),
}

/// Where things are.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Directory of the node's CNI configurations, as it is here
    #[arg(long, value_name = "PATH", default_value = "/host/etc/cni/net.d")]
    pub net_dir: PathBuf,
    /// The same directory as the container runtime sees it
    #[arg(long, value_name = "PATH", default_value = "/etc/cni/net.d")]
    pub net_dir_on_node: PathBuf,
    /// Directory of the node's plugins, as it is here
    #[arg(long, value_name = "PATH", default_value = "/host/opt/cni/bin")]
    pub bin_dir: PathBuf,
}

/// Options of [`Command::Install`].
#[derive(Debug, Clone, Args)]
pub struct Install {
    /// Where to install it.
    #[command(flatten)]
    pub place: Place,
    /// Host of the API server
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", value_name = "HOST")]
    pub api_host: String,
    /// Port of the API server
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", value_name = "PORT", default_value_t = 443)]
    pub api_port: u16,
    /// Token and certificate authority of a service account that may get pods
    #[arg(long, value_name = "PATH", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub service_account: PathBuf,
    /// Delete pods of this node that were made before the plugin was there and belong to a controller, which makes them anew
    #[arg(long, value_name = "NODE")]
    pub repair: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When it cannot begin, or the plugin is not installed.
pub fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Ready(place) => place.ready(),
        Command::Install(install) => runtime.block_on(install.run()),
    }
}

impl Place {
    /// The path of the plugin's kubeconfig as the plugin sees it.
    fn entry(&self) -> Value {
        conflist::entry(&self.net_dir_on_node.join(KUBECONFIG).display().to_string())
    }

    /// Whether the runtime will call the plugin for the next pod.
    ///
    /// # Errors
    /// When it will not, and why.
    pub fn ready(&self) -> anyhow::Result<()> {
        for file in [self.net_dir.join(KUBECONFIG), self.bin_dir.join(NAME)] {
            std::fs::metadata(&file).with_context(|| file.display().to_string())?;
        }
        let first = self.first()?.context("there is no CNI configuration yet")?;
        if self.wanted(&first)?.is_some() {
            bail!("{} has no entry of {NAME}", first.display());
        }
        Ok(())
    }

    /// The configuration that the runtime uses: the first by name.
    fn first(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(self.configurations()?.into_iter().next())
    }

    fn configurations(&self) -> anyhow::Result<Vec<PathBuf>> {
        let directory = std::fs::read_dir(&self.net_dir).with_context(|| self.net_dir.display().to_string())?;
        let paths = directory.filter_map(Result::ok).map(|file| file.path());
        let ends = |path: &Path, with: &[&str]| path.extension().is_some_and(|e| with.iter().any(|w| e == *w));
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| ends(path, &["conf", "conflist", "json"]) && path.is_file()).collect();
        paths.sort();
        Ok(paths)
    }

    /// Puts the entry into the configuration that is used. Answers what it changed.
    ///
    /// # Errors
    /// When there is no configuration yet, or none that can be used.
    pub fn apply(&self) -> anyhow::Result<Option<PathBuf>> {
        let first = self.first()?.context("there is no CNI configuration yet: waiting for the network's")?;
        let Some((list, text)) = self.wanted(&first)? else { return Ok(None) };
        write(&list, text.as_bytes(), Mode::As(&first))?;
        if list != first {
            std::fs::rename(&first, original(&first)).with_context(|| first.display().to_string())?;
        }
        Ok(Some(list))
    }

    /// The list that should be there in place of this configuration; `None` when it is there.
    fn wanted(&self, first: &Path) -> anyhow::Result<Option<(PathBuf, String)>> {
        let about = || first.display().to_string();
        let text = read(first)?;
        if is_list(first) {
            let with = conflist::add(&text, &self.entry()).with_context(about)?;
            return Ok(with.map(|with| (first.to_owned(), with)));
        }
        // A list that means the same takes the place of the one plugin, whose file is kept for the end.
        let list = conflist::convert(&text).with_context(about)?;
        let with = conflist::add(&list, &self.entry()).with_context(about)?.unwrap_or(list);
        let converted = first.with_extension("conflist");
        // What is there already may be replaced when it was made so: then nothing is lost.
        let made_of = |single: &Path| match (read(&converted), read(single)) {
            (Ok(list), Ok(single)) => conflist::made_of(&list, &single),
            _ => false,
        };
        if std::fs::symlink_metadata(&converted).is_ok() && !made_of(first) && !made_of(&original(first)) {
            bail!(
                "{} hides {}, and cannot be made a list of that name: delete one of them",
                about(),
                converted.display()
            );
        }
        Ok(Some((converted, with)))
    }

    /// Removes the entry from every configuration, then the kubeconfig and the program. Answers what could not be removed.
    pub fn remove(&self) -> Vec<anyhow::Error> {
        let mut problems = Vec::new();
        let mut note = |result: anyhow::Result<()>| problems.extend(result.err());
        match self.configurations() {
            Ok(files) => files.iter().filter(|file| is_list(file)).for_each(|file| note(self.withdraw(file))),
            Err(error) => note(Err(error)),
        }
        note(self.restore());
        for file in [self.net_dir.join(KUBECONFIG), self.bin_dir.join(NAME)] {
            note(files::remove(&file));
        }
        problems
    }

    fn withdraw(&self, file: &Path) -> anyhow::Result<()> {
        let about = || file.display().to_string();
        let Some(without) = conflist::remove(&read(file)?).with_context(about)? else { return Ok(()) };
        write(file, without.as_bytes(), Mode::As(file))
    }

    /// Brings back the files of one plugin, where the lists that took their places still say the same.
    fn restore(&self) -> anyhow::Result<()> {
        let directory = std::fs::read_dir(&self.net_dir).with_context(|| self.net_dir.display().to_string())?;
        for kept in directory.filter_map(Result::ok).map(|file| file.path()) {
            let Some(path) = kept.to_str().and_then(|kept| kept.strip_suffix(&format!(".{ORIGINAL}"))) else {
                continue;
            };
            let list = Path::new(path).with_extension("conflist");
            let unchanged = match (read(&list), conflist::convert(&read(&kept)?)) {
                (Ok(list), Ok(converted)) => conflist::same(&list, &converted),
                _ => false,
            };
            match unchanged {
                true => {
                    std::fs::rename(&kept, path).with_context(|| path.to_owned())?;
                    files::remove(&list)?;
                }
                false => files::remove(&kept)?,
            }
        }
        Ok(())
    }
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

fn original(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ORIGINAL}"));
    name.into()
}

/// Since when no pod is made without the plugin, as far as is known: what was there when this process began may have come
/// after pods of the node, and so may what had to be put back.
fn since_when(
    before: Option<OffsetDateTime>,
    done: &anyhow::Result<bool>,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    match done {
        Ok(true) => Some(now),
        Ok(false) => before.or(Some(now)),
        Err(_) => None,
    }
}

impl Install {
    /// Installs, keeps and removes.
    ///
    /// # Errors
    /// When it cannot begin, or not everything could be removed.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut ended = tokio::spawn(terminated());
        // Signals count from here on.
        tokio::task::yield_now().await;
        let (installed, since) = watch::channel(None);
        if let Some(node) = self.repair.clone() {
            let api = Api::new(&ApiOptions { kubeconfig: None, timeout: ANSWER }).await?;
            let place = self.place.clone();
            let configured = Box::new(move || place.ready().ok().and_then(|()| *since.borrow()));
            tokio::spawn(repair::run(Repair { api, node, pause: REPAIR_PAUSE, configured }));
        }
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let _watcher = self.watch(changed);
        let (mut said, mut copied) = (String::new(), None);
        loop {
            let done = self.install(&mut copied);
            installed.send_modify(|at| *at = since_when(*at, &done, OffsetDateTime::now_utc()));
            let problem = done.err().map(|error| format!("{error:#}")).unwrap_or_default();
            if problem != said && !problem.is_empty() {
                tracing::warn!("{problem}");
            }
            said = problem;
            tokio::select! {
                signal = &mut ended => {
                    tracing::info!(signal = signal?.context("cannot receive signals")?, "removing the plugin");
                    break;
                }
                // Without a watcher the channel is closed.
                Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        let problems = self.place.remove();
        for problem in &problems {
            tracing::error!("{problem:#}");
        }
        match problems.len() {
            0 => Ok(()),
            count => bail!("the plugin is not removed: {count} errors"),
        }
    }

    fn watch(&self, changed: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading files must not wake us to read files; one that waits is enough.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                let _ = changed.try_send(());
            }
        });
        let watching = watcher.and_then(|mut w| w.watch(&self.place.net_dir, RecursiveMode::NonRecursive).map(|()| w));
        match watching {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "changes are looked for every {} s only", AGAIN.as_secs());
                None
            }
        }
    }

    /// Does what is not done yet. The entry comes last: from then on the runtime calls the plugin. Answers whether that was
    /// missing.
    fn install(&self, copied: &mut Option<Stamp>) -> anyhow::Result<bool> {
        let plugin = self.place.bin_dir.join(NAME);
        // It is large, and never another one while this process runs.
        if copied.is_none() || *copied != files::stamp(&plugin) {
            let program = std::env::current_exe().context("where is this program?")?;
            let program = std::fs::read(&program).with_context(|| program.display().to_string())?;
            files::keep(&plugin, &program, 0o755)?;
            *copied = files::stamp(&plugin);
        }
        files::keep(&self.place.net_dir.join(KUBECONFIG), self.kubeconfig()?.as_bytes(), 0o600)?;
        let changed = self.place.apply()?;
        if let Some(changed) = &changed {
            tracing::info!(configuration = %changed.display(), "the plugin is installed");
        }
        Ok(changed.is_some())
    }

    fn kubeconfig(&self) -> anyhow::Result<String> {
        let authority = read(&self.service_account.join("ca.crt"))?;
        let token = read(&self.service_account.join("token"))?;
        let host = if self.api_host.contains(':') { format!("[{}]", self.api_host) } else { self.api_host.clone() };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "cluster", "cluster": {
                "server": format!("https://{host}:{}", self.api_port),
                "certificate-authority-data": base64::engine::general_purpose::STANDARD.encode(authority),
            } }],
            "users": [{ "name": NAME, "user": { "token": token.trim() } }],
            "contexts": [{ "name": NAME, "context": { "cluster": "cluster", "user": NAME } }],
            "current-context": NAME,
        });
        Ok(format!("{config:#}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn pods_may_lack_the_plugin_until_it_was_put_back_last() {
        let (before, now) = (datetime!(2026-02-01 12:00:00 UTC), datetime!(2026-02-01 12:00:10 UTC));
        assert_eq!(since_when(None, &Ok(false), now), Some(now));
        assert_eq!(since_when(Some(before), &Ok(false), now), Some(before));
        assert_eq!(since_when(Some(before), &Ok(true), now), Some(now));
        assert_eq!(since_when(Some(before), &Err(anyhow::anyhow!("no configuration")), now), None);
    }
}
