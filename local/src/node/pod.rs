//! A pod that lives: its network, its volumes, its containers in their order, their restarts, its end.
//!
//! One task a pod. It starts what should run ([`Worker::advance`]), hears what ends, and writes the pod's status into
//! the store. Everything of the pod hangs on its holder process; when that is dropped the kernel ends the rest.

mod containers;
mod ending;
mod health;
mod routes;
mod status;

use super::Node;
use super::endpoints;
use super::holder::Holder;
use super::probes::Verdict;
use super::shared::Shared;
use super::slot::{Role, Slot, State, Task};
use super::spec;
use super::store::now;
use super::volumes::Volumes;
use crate::pod::Event;
use k8s_openapi::api::core::v1::{Pod, PodIP};
use nix::sys::signal::Signal;
use std::fs;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_core::kinds::{Key, Kind};

/// How long after a failed attempt to make the pod's network or files it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a pod that is to end waits at most until nobody is led to it any more.
const ROUTES_LIMIT: Duration = Duration::from_secs(5);
/// What is left of the grace period for sidecars, at least.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

/// A pod's task, as the reconciler sees it.
pub(crate) struct Handle {
    /// Tells the pod to end, within this time.
    pub(crate) stop: mpsc::UnboundedSender<Duration>,
    /// What others may know of it.
    pub(crate) shared: Rc<Shared>,
}

/// Starts a pod's task.
pub(crate) fn start(node: &Rc<Node>, key: &Key, pod: Pod, ip: Ipv4Addr) -> Handle {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let shared = Shared::new(node.config.run_dir.join("private/pods").join(uid));
    let (stop, orders) = mpsc::unbounded_channel();
    let worker = Worker::new(Rc::clone(node), key.clone(), pod, ip, Rc::clone(&shared), orders);
    tokio::task::spawn_local(worker.run());
    Handle { stop, shared }
}

struct Worker {
    node: Rc<Node>,
    key: Key,
    pod: Rc<Pod>,
    ip: Ipv4Addr,
    shared: Rc<Shared>,
    orders: mpsc::UnboundedReceiver<Duration>,
    slots: Vec<Slot>,
    volumes: Volumes,
    log_tasks: Vec<Task>,
    events: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    verdicts: (mpsc::UnboundedSender<Verdict>, mpsc::UnboundedReceiver<Verdict>),
    /// What the whole pod waits for.
    blocked: Option<String>,
    networked: bool,
    /// When the pod has been active for as long as it may, if there is such a time.
    expires_at: Option<Instant>,
    /// That time is over.
    expired: bool,
    /// Time by which a pod that was told to stop must have ended.
    stop_by: Option<Instant>,
    started_at: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
}

impl Worker {
    fn new(
        node: Rc<Node>,
        key: Key,
        pod: Pod,
        ip: Ipv4Addr,
        shared: Rc<Shared>,
        orders: mpsc::UnboundedReceiver<Duration>,
    ) -> Self {
        let slots = Slot::all(&pod);
        let deadline = pod.spec.as_ref().and_then(|s| u64::try_from(s.active_deadline_seconds?).ok());
        let expires_at = deadline.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        let volumes = Volumes::new(shared.dir.join("volumes"), &pod);
        Self {
            node,
            key,
            ip,
            slots,
            volumes,
            pod: Rc::new(pod),
            shared,
            orders,
            log_tasks: Vec::new(),
            events: mpsc::unbounded_channel(),
            verdicts: mpsc::unbounded_channel(),
            blocked: None,
            networked: false,
            expires_at,
            expired: false,
            stop_by: None,
            started_at: now(),
        }
    }

    async fn run(mut self) {
        let mut configuration = self.node.store.borrow().subscribe_configuration();
        let mut ended: Option<mpsc::Receiver<()>> = None;
        let mut retry_at: Option<Instant> = None;
        loop {
            if self.expires_at.is_some_and(|at| at <= Instant::now()) && !self.finished() {
                tracing::info!(pod = %self.key, "the pod was active for as long as it may");
                self.expired = true;
            }
            if ended.is_none()
                && self.stop_by.is_none()
                && !self.finished()
                && retry_at.is_none_or(|at| at <= Instant::now())
            {
                match self.set_up().await {
                    Ok(receiver) => {
                        ended = Some(receiver);
                        retry_at = None;
                        self.blocked = None;
                    }
                    Err(message) => {
                        tracing::warn!(pod = %self.key, message, "pod not set up");
                        self.drop_holder();
                        self.blocked = Some(message);
                        retry_at = Some(Instant::now() + RETRY);
                    }
                }
            }
            if let Some(deadline) = self.stop_by {
                self.publish();
                if deadline > Instant::now() {
                    // First nobody is led here any more; that does not count as the pod's own time.
                    let begun = Instant::now();
                    self.node.routes.settled(begun + ROUTES_LIMIT).await;
                    self.stop_by = Some(deadline + begun.elapsed());
                }
                self.stop().await;
                self.clean_up();
                return;
            }
            if ended.is_some() {
                if !self.expired {
                    self.advance();
                }
                if self.finished() {
                    // Sidecars have done their work.
                    self.stop_by = Some(Instant::now() + self.grace());
                    self.stop().await;
                    self.stop_by = None;
                    self.slots.iter_mut().for_each(Slot::ended_with_pod);
                    ended = None;
                }
            }
            self.publish();
            let expires_at = self.expires_at.filter(|_| !self.finished());
            let wake = [self.next_wake(), retry_at, self.volumes.refresh_at, expires_at].into_iter().flatten().min();
            let lost = async {
                match ended.as_mut() {
                    Some(receiver) => receiver.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                grace = self.orders.recv() => self.stop_by = Some(Instant::now() + grace.unwrap_or_default()),
                Some(event) = self.events.1.recv() => self.heard(event),
                Some(verdict) = self.verdicts.1.recv() => self.judged(verdict),
                _ = lost => {
                    tracing::warn!(pod = %self.key, "the pod's holder has ended; the pod starts anew");
                    self.lost();
                    ended = None;
                }
                () = sleep_until(wake) => {}
                _ = configuration.changed() => {
                    if self.blocked.is_some() {
                        retry_at = None;
                    }
                    if self.finished() || !self.refresh() {
                        continue;
                    }
                }
            }
        }
    }

    /// Brings a change of the store into the pod. Answers whether anything may go on that was waiting.
    fn refresh(&mut self) -> bool {
        if self.networked
            && let Err(message) = self.volumes.fill(&self.node, &self.pod)
        {
            tracing::debug!(pod = %self.key, message, "volume left as it was");
        }
        self.blocked.is_some() || self.slots.iter_mut().any(Slot::retry_configuration)
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Makes namespaces, network and directories.
    async fn set_up(&mut self) -> Result<mpsc::Receiver<()>, String> {
        let account = super::env::service_account(&self.pod).to_owned();
        let account_key = Key::new(Kind::ServiceAccount, &self.key.namespace, &account);
        if self.node.store.borrow().get(&account_key).is_none() {
            return Err(format!("serviceaccount {account:?} not found"));
        }
        fs::create_dir_all(&self.shared.dir).map_err(|e| format!("cannot make the pod's directory: {e}"))?;
        if !self.networked {
            // Fields of the downward API in volumes may show the pod's IP.
            let mut pod = (*self.pod).clone();
            let status = pod.status.get_or_insert_default();
            status.pod_ip = Some(self.ip.to_string());
            status.pod_ips = Some(vec![PodIP { ip: self.ip.to_string() }]);
            status.host_ip = Some(super::network::GATEWAY.to_owned());
            self.pod = Rc::new(pod);
        }
        self.volumes.fill(&self.node, &self.pod)?;
        let (holder, ended) =
            Holder::start(spec::hostname(&self.pod)).await.map_err(|e| format!("cannot start the pod: {e}"))?;
        *self.shared.holder.borrow_mut() = Some(Rc::clone(&holder));
        super::network::attach(&holder, self.ip, &self.shared.dir).await?;
        self.follow_routes(&holder).await?;
        self.networked = true;
        Ok(ended)
    }

    fn drop_holder(&mut self) {
        self.shared.running.borrow_mut().clear();
        self.shared.holder.borrow_mut().take();
    }

    /// The holder was killed, and with it everything.
    fn lost(&mut self) {
        self.drop_holder();
        let restarts = self.restart_policy() != "Never";
        for slot in &mut self.slots {
            slot.lost(restarts);
        }
    }

    fn restart_policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }

    /// When something is to be done although nothing happens.
    fn next_wake(&mut self) -> Option<Instant> {
        let now = Instant::now();
        for slot in &mut self.slots {
            if slot.kill_at.is_some_and(|at| at <= now) {
                slot.kill_at = None;
                if let (Some(holder), Some(run)) = (&*self.shared.holder.borrow(), slot.run) {
                    holder.signal(run, Signal::SIGKILL);
                }
            }
        }
        if self.volumes.refresh_at.is_some_and(|at| at <= now) {
            self.refresh();
        }
        self.slots.iter().filter_map(Slot::wakes_at).min()
    }

    /// All containers that are not sidecars have ended for good, or must have.
    fn finished(&self) -> bool {
        if self.expired {
            return true;
        }
        let failed_init = self.slots.iter().any(|s| s.role == Role::Init && s.has_failed());
        let mut apps = self.slots.iter().filter(|s| s.role == Role::App);
        failed_init || apps.all(|s| matches!(s.state, State::Terminated(_)))
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether a pod counts as done for those who wait for it: ready, or completed.
pub(crate) fn is_settled(pod: &Pod) -> bool {
    endpoints::is_ready(pod) || pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded")
}
