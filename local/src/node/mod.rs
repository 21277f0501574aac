//! The node role: first process of the cluster's namespaces. It keeps the objects, makes everything what it should be
//! ([`Node::reconcile`]), runs the pods, and serves DNS and the API.
//!
//! When it ends, for whatever reason, the kernel ends every process, mount and network of the cluster: it is the first
//! process of their PID namespace. It ends when its standard input does, which `weft up` holds open.

mod api;
mod apply;
mod dns;
mod endpoints;
mod env;
mod holder;
mod logs;
mod network;
mod pod;
mod probes;
mod readiness;
mod services;
mod shared;
mod slot;
mod spec;
mod store;
mod volumes;
mod workloads;

use crate::Error;
use crate::cgroup::Groups;
use crate::error::Context;
use crate::ids::Ids;
use crate::proto;
use crate::rundir::RunDir;
use crate::system;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use store::Store;
pub(crate) use store::timestamp;
use weft_core::inject::{InjectConfig, Outcome, inject};
use weft_core::kinds::{Key, Kind, Object};
use weft_core::names;
use weft_core::token::Signer;

/// What `weft up` tells the node, in one line on standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The run directory.
    pub(crate) run_dir: PathBuf,
    /// The directory of the weft programs.
    pub(crate) programs: PathBuf,
    /// PATH of `weft up`.
    pub(crate) path: String,
    /// Whether to run the control plane, and to inject pods.
    pub(crate) control_plane: bool,
    /// Log filter of the control plane's components.
    pub(crate) log_level: String,
}

/// What the launcher and the node say, in one line each on standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Hello {
    /// The launcher has made a user namespace, which has no users yet.
    Unmapped,
    /// The API can be reached.
    Ready,
    /// Why there is no cluster.
    Failed(String),
}

impl Hello {
    /// Says it.
    pub(crate) fn say(&self) {
        let mut out = std::io::stdout().lock();
        // Whoever started us has gone when this fails; standard input says so too.
        let _ = serde_json::to_writer(&mut out, self).map_err(std::io::Error::from).and_then(|()| out.write_all(b"\n"));
        let _ = out.flush();
    }
}

/// Files that every process may have open, unless it sets another limit for itself.
const DESCRIPTORS: u64 = 65_536;

/// The longest time between two rounds of decisions: should the machine's clock be set, nothing is late by more.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long it is until a time: times are whole seconds, so it is over when the clock shows it.
fn until(time: Timestamp) -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let at = Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0));
    at.saturating_sub(since) + Duration::from_millis(5)
}

/// A pod's task and address.
struct Running {
    handle: pod::Handle,
    ip: Ipv4Addr,
    stopping: bool,
}

/// Everything the node knows.
pub(crate) struct Node {
    config: Config,
    store: RefCell<Store>,
    pods: RefCell<BTreeMap<Key, Running>>,
    addresses: RefCell<network::Addresses>,
    /// Where service IPs lead; every pod follows it.
    routes: services::Routes,
    upstream: dns::Upstream,
    signer: Signer,
    trust_anchors: Option<String>,
    /// Mount points of the host.
    mounts: Mounts,
    /// The cluster's run directory.
    run_dir: PathBuf,
    groups: Groups,
    /// Why pods that there should be cannot be made.
    refused: RefCell<Vec<String>>,
    shutting_down: Cell<bool>,
}

/// FNV-1a, for names that follow from content: it must stay the same for ever, and has nothing to keep secret.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Runs the role until the cluster ends.
pub(crate) fn main() -> ExitCode {
    system::set_process_name(c"weft-node");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            Hello::Failed(e.to_string()).say();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("cannot be tied to the launcher")?;
    // Ctrl-C in the terminal is for `weft up`, not for us and the containers.
    nix::unistd::setsid().context("cannot make a session")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the configuration")?;
    let config: Config = serde_json::from_str(&line).context("cannot read the configuration")?;
    let run = RunDir::at(&config.run_dir)?;
    let _lock = run.lock_node()?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    std::thread::Builder::new()
        .name("lifeline".into())
        .spawn(|| {
            // Ends when `weft up` does, however it does.
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
            std::process::exit(1);
        })
        .context("cannot start a thread")?;

    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if system::find_program(program).is_none() {
            return Err(Error::new(format!("the program `{program}` is missing (package {package})")));
        }
    }
    if config.control_plane && Ids::here().single() {
        // What a proxy sends is known by its user: with one user only, it would be sent to itself.
        return Err(Error::new(
            "without root the mesh needs users of your own, and there are none: install newuidmap (package uidmap), \
             and let root run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME` for you",
        ));
    }
    raise_descriptor_limit();
    system::make_mounts_private().context("cannot make mounts private")?;
    system::mount_proc(Path::new("/proc")).context("cannot mount /proc")?;
    let private = run.private();
    system::mount_tmpfs(&private, "mode=0755", nix::mount::MsFlags::empty())
        .context(format!("cannot mount {}", private.display()))?;
    nix::unistd::sethostname(env::NODE_NAME).context("cannot set the host name")?;
    let mounts = Mounts::read(run.path()).context("cannot read the host's mounts")?;

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        network::make_bridge().await.map_err(Error::new)?;
        let node = Node::new(config, &run, mounts)?;
        dns::start(Rc::clone(&node)).await.context("cannot serve DNS")?;
        let listener = tokio::net::UnixListener::bind(run.socket())
            .context(format!("cannot listen at {}", run.socket().display()))?;
        Hello::Ready.say();
        let reconciler = Rc::clone(&node);
        tokio::task::spawn_local(async move { reconciler.reconcile_for_ever().await });
        api::serve(node, listener).await;
        Ok(())
    })
}

/// Lets the node and all containers open as many files as container runtimes do, where the machine allows it.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(DESCRIPTORS).max(soft);
        if let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
            tracing::debug!(error = %e, "limit of open files left alone");
        }
    }
}

/// Mount points of the host besides its root.
struct Mounts {
    all: Vec<PathBuf>,
    /// Those with files of the machine, which containers see.
    seen: Vec<PathBuf>,
}

impl Mounts {
    /// Those of this process, without the run directory's.
    fn read(run_dir: &Path) -> std::io::Result<Mounts> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self::parse(&table, run_dir))
    }

    fn parse(table: &str, run_dir: &Path) -> Mounts {
        let mut mounts = Mounts { all: Vec::new(), seen: Vec::new() };
        for line in table.lines() {
            // 36 35 98:0 /root /mount/point options … - type source options
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
            let point = PathBuf::from(unescape(point));
            // What is below the run directory is the node's own.
            if point == Path::new("/") || (point != run_dir && point.starts_with(run_dir)) {
                continue;
            }
            // The last one mounted at a place is the one that is there.
            mounts.all.retain(|known| *known != point);
            mounts.seen.retain(|known| *known != point);
            mounts.all.push(point.clone());
            let hidden = ["/proc", "/sys", "/dev", "/run"].iter().any(|top| point.starts_with(top));
            if !hidden && point != run_dir && !KERNEL.contains(&kind) {
                mounts.seen.push(point);
            }
        }
        mounts
    }
}

/// File systems without files of the machine.
const KERNEL: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// Octal escapes of the mount table: `\040` is a space.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Node {
    fn new(config: Config, run: &RunDir, mounts: Mounts) -> Result<Rc<Node>, Error> {
        let (signer, _) = Signer::generate().context("cannot make the key of service-account tokens")?;
        let mut store = Store::new(run.objects());
        let mut documents = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})];
        let mut trust_anchors = None;
        if config.control_plane {
            let trust = weft_core::trust::generate(time::OffsetDateTime::now_utc()).context("no trust")?;
            documents.extend(weft_core::control_plane::manifests(&weft_core::control_plane::ControlPlaneConfig {
                namespace: names::CONTROL_NAMESPACE.into(),
                trust_domain: names::TRUST_DOMAIN.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                trust_anchors_pem: trust.anchor_pem.clone(),
                issuer_pem: trust.issuer_pem.clone(),
                issuer_key_pem: trust.issuer_key_pem.clone(),
                token_keys_pem: signer.public_key_pem().to_owned(),
                objects_dir: run.objects().to_string_lossy().into_owned(),
                log_level: config.log_level.clone(),
            }));
            trust_anchors = Some(trust.anchor_pem);
        }
        let documents = documents.into_iter().enumerate().map(|(index, value)| proto::Document {
            file: "control plane".into(),
            index: index + 1,
            value,
        });
        apply::apply(&mut store, documents.collect(), "default", &spec::Programs::new(&config))?;
        Ok(Rc::new(Node {
            config,
            store: RefCell::new(store),
            pods: RefCell::default(),
            addresses: RefCell::default(),
            routes: services::Routes::new(),
            upstream: dns::Upstream::default(),
            signer,
            trust_anchors,
            mounts,
            groups: Groups::new(run),
            run_dir: run.path().to_owned(),
            refused: RefCell::default(),
            shutting_down: Cell::new(false),
        }))
    }

    /// Reconciles whenever something has changed.
    async fn reconcile_for_ever(self: Rc<Self>) {
        let mut version = self.store.borrow().subscribe();
        loop {
            version.borrow_and_update();
            let mut pause = LONGEST_PAUSE;
            if !self.shutting_down.get()
                && let Some(wake) = self.reconcile()
            {
                pause = until(wake).min(pause);
            }
            tokio::select! {
                changed = version.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
            // What changes together is answered together.
            tokio::task::yield_now().await;
        }
    }

    /// One round: everything that follows from the objects is made what it should be. What changes an object makes a
    /// new version, and so another round, until nothing changes any more. Answers when time alone makes another one.
    fn reconcile(self: &Rc<Self>) -> Option<Timestamp> {
        let mut store = self.store.borrow_mut();
        add_default_accounts(&mut store);
        collect_garbage(&mut store);
        let outcome = workloads::reconcile(&mut store, timestamp(), &|store, pod| self.admit(store, pod));
        *self.refused.borrow_mut() = outcome.refused;
        endpoints::reconcile(&mut store);
        volumes::remove_unclaimed(&store, &self.run_dir);
        let table = services::table(&store);
        let pods: Vec<(Key, Pod)> = store.pods().map(|(key, pod)| (key.clone(), pod.clone())).collect();
        drop(store);
        self.routes.set(table);
        for (key, pod) in pods {
            self.reconcile_pod(&key, pod);
        }
        outcome.wake
    }

    fn reconcile_pod(self: &Rc<Self>, key: &Key, pod: Pod) {
        let ending = pod.metadata.deletion_timestamp.is_some();
        let mut pods = self.pods.borrow_mut();
        match pods.get_mut(key) {
            Some(running) if ending && !running.stopping => {
                running.stopping = true;
                let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
                let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
                // It has ended by itself when it does not hear this.
                let _ = running.handle.stop.send(grace);
            }
            Some(_) => {}
            None if ending => {
                drop(pods);
                self.store.borrow_mut().remove(key);
            }
            None => {
                // Pods of workloads have been admitted when they were made; one that somebody wrote has not.
                let pod = if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
                    pod
                } else {
                    let admitted = self.admit(&self.store.borrow(), pod);
                    match admitted {
                        Ok(pod) => {
                            self.store.borrow_mut().put(Object::from(pod.clone()));
                            pod
                        }
                        Err(why) => return self.refused.borrow_mut().push(format!("{key}: {why}")),
                    }
                };
                let Some(ip) = self.addresses.borrow_mut().take() else {
                    tracing::error!(pod = %key, "the pod network has no free address");
                    return;
                };
                let handle = pod::start(self, key, pod, ip);
                pods.insert(key.clone(), Running { handle, ip, stopping: false });
            }
        }
    }

    /// A pod's task has ended: the object goes.
    pub(crate) fn pod_ended(&self, key: &Key) {
        if let Some(running) = self.pods.borrow_mut().remove(key) {
            self.addresses.borrow_mut().give_back(running.ip);
        }
        self.store.borrow_mut().remove(key);
    }

    /// What Kubernetes' admission does to a new pod: the token, and the proxy if it is asked for.
    fn admit(&self, store: &Store, mut pod: Pod) -> Result<Pod, String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let account = env::service_account(&pod).to_owned();
        let automount = match store.get(&Key::new(Kind::ServiceAccount, &namespace, &account)) {
            Some(Object::ServiceAccount(account)) => account.automount_service_account_token,
            _ => return Err(format!("serviceaccount {account:?} not found")),
        };
        pod.spec.get_or_insert_default().node_name = Some(env::NODE_NAME.into());
        volumes::add_default_token(&mut pod, automount);
        let Some(anchors) = &self.trust_anchors else { return Ok(pod) };
        let annotations = store
            .list(Kind::Namespace, None)
            .map(|(key, object)| (key.name.clone(), object.metadata().annotations.clone().unwrap_or_default()));
        let mut config = InjectConfig::local(anchors, env!("CARGO_PKG_VERSION"));
        config.namespaces = annotations.collect();
        let mut labelled = pod.clone();
        if let Some(cron_job) = cron_job_of(store, &pod) {
            // Metadata of the pod names its Job only; the proxy and the metrics are to say whose Job it is.
            let label = names::workload_label("cronjob");
            labelled.metadata.labels.get_or_insert_default().insert(label, cron_job);
        }
        let injected = inject(&Object::from(labelled).to_value(), &config).map_err(|e| format!("injection: {e}"))?;
        if !injected.reports.iter().any(|report| report.outcome == Outcome::Changed) {
            return Ok(pod);
        }
        match Object::from_value(Kind::Pod, injected.value) {
            Ok(mut object) => {
                apply::complete(&mut object);
                match object {
                    Object::Pod(pod) => Ok(*pod),
                    _ => Err("injection made no pod".into()),
                }
            }
            Err(e) => Err(format!("injection: {e}")),
        }
    }
}

/// The CronJob whose Job a pod belongs to.
fn cron_job_of(store: &Store, pod: &Pod) -> Option<String> {
    let job = store::controller_of(&pod.metadata).filter(|owner| owner.kind == Kind::Job.as_str())?;
    let key = Key::new(Kind::Job, pod.metadata.namespace.as_deref().unwrap_or_default(), &job.name);
    let owner = store::controller_of(store.get(&key)?.metadata())?;
    (owner.kind == Kind::CronJob.as_str()).then(|| owner.name.clone())
}

/// Every namespace has the service account `default`.
fn add_default_accounts(store: &mut Store) {
    let namespaces: Vec<String> = store
        .list(Kind::Namespace, None)
        .filter(|(_, object)| !apply::is_ending(object))
        .map(|(key, _)| key.name.clone())
        .filter(|name| store.get(&Key::new(Kind::ServiceAccount, name, "default")).is_none())
        .collect();
    for namespace in namespaces {
        let value = json!({"metadata": {"name": "default", "namespace": namespace}});
        if let Ok(account) = Object::from_value(Kind::ServiceAccount, value) {
            store.put(account);
        }
    }
}

/// Deletes what belongs to owners or namespaces that are gone, and namespaces that are empty at last.
fn collect_garbage(store: &mut Store) {
    let orphans: Vec<Key> = store
        .all()
        .filter(|(key, object)| {
            let owner_gone = store::controller_of(object.metadata()).is_some_and(|owner| {
                let kind = Kind::from_manifest(&owner.api_version, &owner.kind);
                let known = kind.and_then(|kind| store.get(&Key::new(kind, &key.namespace, &owner.name)));
                known.is_none_or(|known| known.metadata().uid.as_ref() != Some(&owner.uid))
            });
            let namespace = store.get(&Key::new(Kind::Namespace, "", &key.namespace));
            let namespace_gone = key.kind.namespaced() && namespace.is_none_or(apply::is_ending);
            (owner_gone || namespace_gone) && !(key.kind == Kind::Pod && apply::is_ending(object))
        })
        .map(|(key, _)| key.clone())
        .collect();
    for key in orphans {
        apply::delete_object(store, &key);
    }
    let empty: Vec<Key> = store
        .list(Kind::Namespace, None)
        .filter(|(_, object)| apply::is_ending(object))
        .filter(|(namespace, _)| !store.all().any(|(key, _)| key.namespace == namespace.name))
        .map(|(key, _)| key.clone())
        .collect();
    for key in empty {
        store.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_goes_with_its_owner_and_its_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let mut put = |kind, value| store.put(Object::from_value(kind, value).unwrap());
        put(Kind::Namespace, json!({"metadata": {"name": "a"}}));
        put(Kind::ConfigMap, json!({"metadata": {"name": "kept", "namespace": "a"}}));
        put(
            Kind::ConfigMap,
            json!({"metadata": {"name": "orphan", "namespace": "a", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gone", "uid": "1", "controller": true}]}}),
        );
        add_default_accounts(&mut store);
        collect_garbage(&mut store);
        assert_eq!(store.list(Kind::ConfigMap, None).count(), 1);
        assert_eq!(store.list(Kind::ServiceAccount, None).count(), 1);
        apply::delete_object(&mut store, &Key::new(Kind::Namespace, "", "a"));
        collect_garbage(&mut store);
        assert_eq!(store.all().count(), 0);
    }

    #[test]
    fn mounts_with_files_of_the_machine_are_seen() {
        let table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /proc rw - proc proc rw\n\
                     3 1 8:2 / /srv rw shared:1 - ext4 /dev/b rw\n4 3 0:5 / /srv/trace rw - tracefs t rw\n\
                     5 1 0:6 / /run/user rw - tmpfs t rw\n6 1 0:7 / /tmp/run/private rw - tmpfs t rw\n\
                     7 1 8:3 / /srv rw - xfs /dev/c rw\n";
        let mounts = Mounts::parse(table, Path::new("/tmp/run"));
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(mounts.all, paths(&["/proc", "/srv/trace", "/run/user", "/srv"]));
        assert_eq!(mounts.seen, paths(&["/srv"]));
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b"), "/a b");
        assert_eq!(unescape("/plain\\"), "/plain\\");
    }
}
