//! A pod that lives: its network, its volumes, its containers in their order, their restarts, its end.
//!
//! One task a pod. It starts what should run ([`Worker::advance`]), hears what ends, and writes the pod's status into
//! the store. Everything of the pod hangs on its holder process; when that is dropped the kernel ends the rest.

use super::Node;
use super::endpoints;
use super::holder::{Fifo, Holder};
use super::logs::Log;
use super::probes::{self, ProbeKind, Target, Verdict};
use super::services;
use super::shared::Shared;
use super::slot::{Role, Slot, State, Task, Terminated};
use super::spec;
use super::store::now;
use super::volumes::Volumes;
use crate::cgroup::{Group, Limits};
use crate::pod::Event;
use k8s_openapi::api::core::v1::{Lifecycle, Pod, PodIP, PodStatus};
use nix::sys::signal::Signal;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
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
            stop_by: None,
            started_at: now(),
        }
    }

    async fn run(mut self) {
        let mut configuration = self.node.store.borrow().subscribe_configuration();
        let mut ended: Option<mpsc::Receiver<()>> = None;
        let mut retry_at: Option<Instant> = None;
        loop {
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
                self.advance();
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
            let wake = [self.next_wake(), retry_at, self.volumes.refresh_at].into_iter().flatten().min();
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

    /// Loads the rules that service IPs follow, and keeps them up to date as long as the pod lives.
    async fn follow_routes(&self, holder: &Rc<Holder>) -> Result<(), String> {
        let mut tables = self.node.routes.subscribe();
        let mut applied = tables.borrow_and_update().clone();
        let file = self.shared.dir.join("services.nft");
        load(holder, &file, &services::script(&applied.table)).await?;
        let (node, key, holder) = (Rc::clone(&self.node), self.key.clone(), Rc::clone(holder));
        let me = node.routes.join(applied.generation);
        tokio::task::spawn_local(async move {
            loop {
                tokio::select! {
                    changed = tables.changed() => if changed.is_err() { return },
                    () = holder.gone() => return,
                }
                let wanted = tables.borrow_and_update().clone();
                let script = services::changes(&applied.table, &wanted.table);
                let mut loaded = if script.is_empty() { Ok(()) } else { load(&holder, &file, &script).await };
                if let Err(error) = &loaded {
                    tracing::debug!(pod = %key, error, "service rules are loaded anew");
                    let script = format!("delete table ip weft_services\n{}", services::script(&wanted.table));
                    loaded = load(&holder, &file, &script).await;
                }
                if let Err(error) = loaded {
                    tracing::debug!(pod = %key, error, "service rules no longer follow");
                    return;
                }
                me.reached(wanted.generation);
                applied = wanted;
            }
        });
        Ok(())
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

    /// Starts every container whose turn it is.
    fn advance(&mut self) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get(index) else { return };
            let role = slot.role;
            if role == Role::Init && slot.is_done() {
                continue;
            }
            if role == Role::Init && slot.has_failed() {
                return;
            }
            if slot.is_due() {
                self.start_container(index);
            }
            if let Some(slot) = self.slots.get(index)
                && (role == Role::Init || (role == Role::Sidecar && !slot.started))
            {
                return;
            }
        }
    }

    fn start_container(&mut self, index: usize) {
        let Some(container) = self.slots.get(index).map(|s| s.container.clone()) else { return };
        let name = container.name.clone();
        let built = spec::build(&self.node, &self.pod, &container, self.ip, &self.volumes).and_then(|mut spec| {
            let log = self.log(&name)?;
            spec.stdout.clone_from(&log);
            spec.stderr = log;
            spec.scratch = self.shared.dir.join("root");
            spec.control_groups = self.control_groups(index)?;
            let file = self.shared.dir.join(format!("{name}.spec"));
            spec::write(&spec, &file).map_err(|e| format!("cannot write the specification: {e}"))?;
            Ok((spec, file))
        });
        let holder = self.shared.holder.borrow().clone();
        let Some(slot) = self.slots.get_mut(index) else { return };
        match (built, holder) {
            (Ok((spec, file)), Some(holder)) => {
                let run = holder.run(file, self.events.0.clone());
                slot.starting(run, spec);
            }
            (Err(message), _) => slot.misconfigured(message),
            // The pod is being set up anew.
            (Ok(_), None) => {}
        }
    }

    /// The control groups that hold a container to its limits; none when it has no limits.
    fn control_groups(&mut self, index: usize) -> Result<Vec<PathBuf>, String> {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let Some(slot) = self.slots.get_mut(index) else { return Ok(Vec::new()) };
        let limits = spec::limits(&slot.container)?;
        if slot.group.is_none() && limits != Limits::default() {
            slot.group = self.node.groups.make(&format!("{uid}-{}", slot.container.name), limits);
        }
        Ok(slot.group.as_ref().map(Group::doors).unwrap_or_default())
    }

    /// The FIFO that a container prints into; its other end is copied into the log.
    fn log(&mut self, container: &str) -> Result<PathBuf, String> {
        let path = self.shared.dir.join(format!("{container}.out"));
        if self.shared.logs.borrow().contains_key(container) {
            return Ok(path);
        }
        let fifo = Fifo::new(&path).map_err(|e| format!("cannot make the log: {e}"))?;
        let receiver = fifo.receiver().map_err(|e| format!("cannot read the log: {e}"))?;
        let dir = self.node.config.run_dir.join("logs").join(&self.key.namespace).join(&self.key.name);
        let log = Log::new(dir.join(format!("{container}.log")));
        self.shared.logs.borrow_mut().insert(container.to_owned(), Rc::clone(&log));
        let task = tokio::task::spawn_local(async move {
            // The FIFO stays open over restarts, so this ends with the pod.
            let _open = fifo;
            log.copy(receiver).await;
        });
        self.log_tasks.push(Task(task));
        Ok(path)
    }

    fn heard(&mut self, event: Event) {
        let id = event.id();
        let Some(index) = self.slots.iter().position(|s| s.run == Some(id)) else { return };
        let restart_policy = self.restart_policy().to_owned();
        let Some(slot) = self.slots.get_mut(index) else { return };
        match event {
            Event::Started { pid, .. } => {
                let spec = slot.running();
                let name = slot.container.name.clone();
                let post_start = slot.container.lifecycle.as_ref().and_then(|l| l.post_start.clone());
                self.shared.running.borrow_mut().insert(name, (spec, pid));
                self.start_probes(index, id);
                if let Some(hook) = post_start {
                    self.start_hook(index, id, hook);
                }
            }
            Event::Failed { reason, message, .. } => slot.failed_to_start(&reason, message),
            Event::Exited { code, signal, .. } => {
                self.shared.running.borrow_mut().remove(&slot.container.name);
                let mut how = Terminated::new(code.clamp(0, 255), signal, slot.since());
                how.out_of_memory = slot.group.as_mut().is_some_and(Group::ran_out_of_memory) && how.code != 0;
                slot.exited(how, &restart_policy, self.stop_by.is_some());
            }
            Event::Done { .. } => {}
        }
    }

    fn target(&self, index: usize) -> Target {
        Target {
            shared: Rc::clone(&self.shared),
            pod: Rc::clone(&self.pod),
            ip: self.ip,
            container_name: self.slots.get(index).map(|s| s.container.name.clone()).unwrap_or_default(),
        }
    }

    fn start_probes(&mut self, index: usize, run: u64) {
        let target = self.target(index);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let container = &slot.container;
        let wanted = if let (false, Some(probe)) = (slot.started, &container.startup_probe) {
            vec![(ProbeKind::Startup, probe.clone())]
        } else {
            slot.started = true;
            slot.ready = container.readiness_probe.is_none();
            let both =
                [(ProbeKind::Readiness, &container.readiness_probe), (ProbeKind::Liveness, &container.liveness_probe)];
            both.into_iter().filter_map(|(kind, probe)| Some((kind, probe.clone()?))).collect()
        };
        slot.probes = wanted
            .into_iter()
            .map(|(kind, probe)| {
                let verdicts = self.verdicts.0.clone();
                let task = probes::watch(probe, target.clone(), index, run, kind, verdicts);
                Task(tokio::task::spawn_local(task))
            })
            .collect();
    }

    fn start_hook(&self, index: usize, run: u64, hook: k8s_openapi::api::core::v1::LifecycleHandler) {
        let (target, verdicts) = (self.target(index), self.verdicts.0.clone());
        tokio::task::spawn_local(async move {
            if let Err(why) = run_hook(&hook, &target).await {
                let result = Err(format!("postStart: {why}"));
                // The pod has ended when nobody hears it.
                let _ = verdicts.send(Verdict { container: index, run, kind: ProbeKind::Liveness, result });
            }
        });
    }

    fn judged(&mut self, verdict: Verdict) {
        let grace = self.grace();
        let Some(slot) = self.slots.get_mut(verdict.container).filter(|s| s.run == Some(verdict.run)) else { return };
        match (verdict.kind, verdict.result) {
            (ProbeKind::Startup, Ok(())) => {
                slot.started = true;
                self.start_probes(verdict.container, verdict.run);
            }
            (ProbeKind::Readiness, Ok(())) => {
                slot.ready = true;
                slot.unready_because = None;
            }
            (ProbeKind::Readiness, Err(why)) => {
                slot.ready = false;
                slot.unready_because = Some(format!("readiness probe: {why}"));
            }
            (ProbeKind::Liveness, Ok(())) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, Err(why)) => {
                let probe = match verdict.kind {
                    ProbeKind::Startup => &slot.container.startup_probe,
                    _ => &slot.container.liveness_probe,
                };
                let own = probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
                let grace = own.and_then(|s| u64::try_from(s).ok()).map_or(grace, Duration::from_secs);
                tracing::info!(pod = %self.key, container = slot.container.name, why, "container is restarted");
                slot.killed_because = Some(why);
                slot.probes.clear();
                slot.kill_at = Some(Instant::now() + grace);
                if let Some(holder) = &*self.shared.holder.borrow() {
                    holder.signal(verdict.run, Signal::SIGTERM);
                }
            }
        }
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

    /// All containers that are not sidecars have ended for good.
    fn finished(&self) -> bool {
        let failed_init = self.slots.iter().any(|s| s.role == Role::Init && s.has_failed());
        let mut apps = self.slots.iter().filter(|s| s.role == Role::App);
        failed_init || apps.all(|s| matches!(s.state, State::Terminated(_)))
    }

    /// Ends all containers in order: applications, then sidecars, each with SIGTERM first.
    async fn stop(&mut self) {
        self.publish();
        let deadline = self.stop_by.unwrap_or_else(Instant::now);
        let hooks: Vec<_> = (0..self.slots.len()).filter_map(|index| self.pre_stop(index)).collect();
        // A hook that hangs costs the grace period, as in Kubernetes.
        let _ = tokio::time::timeout_at(deadline, futures_util::future::join_all(hooks)).await;
        self.signal_all(|role| role != Role::Sidecar, Signal::SIGTERM);
        self.wait_for(|role| role != Role::Sidecar, deadline).await;
        self.signal_all(|_| true, Signal::SIGTERM);
        self.wait_for(|_| true, deadline.max(Instant::now() + SIDECAR_GRACE)).await;
        self.drop_holder();
        self.publish();
    }

    fn pre_stop(&self, index: usize) -> Option<impl Future<Output = ()> + use<>> {
        let slot = self.slots.get(index).filter(|s| matches!(s.state, State::Running { .. }))?;
        let Lifecycle { pre_stop, .. } = slot.container.lifecycle.clone()?;
        let (hook, target, key) = (pre_stop?, self.target(index), self.key.clone());
        Some(async move {
            if let Err(why) = run_hook(&hook, &target).await {
                tracing::info!(pod = %key, container = target.container_name, why, "preStop failed");
            }
        })
    }

    fn signal_all(&self, which: impl Fn(Role) -> bool, signal: Signal) {
        let Some(holder) = self.shared.holder.borrow().clone() else { return };
        for slot in self.slots.iter().filter(|s| which(s.role)) {
            if let Some(run) = slot.run {
                holder.signal(run, signal);
            }
        }
    }

    async fn wait_for(&mut self, which: impl Fn(Role) -> bool, deadline: Instant) {
        while self.slots.iter().any(|s| which(s.role) && s.run.is_some()) {
            tokio::select! {
                Some(event) = self.events.1.recv() => self.heard(event),
                // A shorter time than the first one was given: the whole cluster ends.
                Some(grace) = self.orders.recv() => {
                    let sooner = Instant::now() + grace;
                    if sooner < deadline {
                        return Box::pin(self.wait_for(which, sooner)).await;
                    }
                }
                () = tokio::time::sleep_until(deadline) => return,
            }
            self.publish();
        }
    }

    fn clean_up(&mut self) {
        for log in self.shared.logs.borrow().values() {
            log.end();
        }
        for group in self.slots.iter_mut().filter_map(|slot| slot.group.take()) {
            self.node.groups.remove(group);
        }
        // What cannot be removed goes with the node.
        let _ = fs::remove_dir_all(&self.shared.dir);
        let _ =
            fs::remove_dir_all(self.node.config.run_dir.join("logs").join(&self.key.namespace).join(&self.key.name));
        self.node.pod_ended(&self.key);
    }

    /// Writes the status into the store.
    fn publish(&self) {
        let ready = self.networked && self.slots.iter().all(Slot::counts_as_ready);
        let initialized = self.slots.iter().all(|s| match s.role {
            Role::Init => s.is_done(),
            Role::Sidecar => s.started,
            Role::App | Role::Proxy => true,
        });
        let apps = || self.slots.iter().filter(|s| s.role == Role::App);
        let failed_init = self.slots.iter().any(|s| s.role == Role::Init && s.has_failed());
        let phase = if failed_init {
            "Failed"
        } else if self.finished() {
            if apps().all(|s| matches!(&s.state, State::Terminated(t) if t.code == 0)) { "Succeeded" } else { "Failed" }
        } else if apps().any(Slot::has_run) {
            "Running"
        } else {
            "Pending"
        };
        let finished = phase == "Failed" || phase == "Succeeded";
        let ready = ready && !finished;
        let reason = (phase == "Succeeded").then_some("PodCompleted");
        let not_ready = self.slots.iter().find_map(|s| s.unready_because.clone()).or_else(|| self.blocked.clone());
        let statuses = |which: fn(Role) -> bool| -> Vec<_> {
            let slots = self.slots.iter().filter(|s| which(s.role));
            slots.map(|s| s.status(self.blocked.as_deref())).collect()
        };
        let ip = self.networked.then(|| self.ip.to_string());
        self.node.store.borrow_mut().update_pod(&self.key, |pod| {
            let old = pod.status.take().unwrap_or_default();
            let condition = |type_: &str, holds: bool, reason: Option<&str>, message: Option<String>| {
                spec::condition(&old, type_, holds, reason, message)
            };
            let unready = (!ready).then_some(reason.unwrap_or("ContainersNotReady"));
            pod.status = Some(PodStatus {
                conditions: Some(vec![
                    condition("PodScheduled", true, None, None),
                    condition("Initialized", initialized, (!initialized).then_some("ContainersNotInitialized"), None),
                    condition("ContainersReady", ready, unready, not_ready.clone()),
                    condition("Ready", ready, unready, not_ready),
                ]),
                container_statuses: Some(statuses(|role| matches!(role, Role::App | Role::Proxy))),
                init_container_statuses: {
                    let init = statuses(|role| matches!(role, Role::Init | Role::Sidecar));
                    (!init.is_empty()).then_some(init)
                },
                host_ip: Some(super::network::GATEWAY.to_owned()),
                phase: Some(phase.to_owned()),
                pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
                pod_ip: ip,
                qos_class: Some("BestEffort".into()),
                start_time: Some(self.started_at.clone()),
                message: self.blocked.clone(),
                ..Default::default()
            });
        });
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn load(holder: &Holder, file: &std::path::Path, script: &str) -> Result<(), String> {
    fs::write(file, script).map_err(|e| format!("cannot write service rules: {e}"))?;
    holder
        .program(&["nft", "-f", &file.to_string_lossy()], None)
        .await
        .map(drop)
        .map_err(|e| format!("service rules: {e}"))
}

async fn run_hook(hook: &k8s_openapi::api::core::v1::LifecycleHandler, target: &Target) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        probes::exec(action.command.as_deref().unwrap_or_default(), target).await
    } else if let Some(action) = &hook.http_get {
        probes::http_get(action, target).await
    } else if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        Ok(())
    } else {
        Ok(())
    }
}

/// Whether a pod counts as done for those who wait for it: ready, or completed.
pub(crate) fn is_settled(pod: &Pod) -> bool {
    endpoints::is_ready(pod) || pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded")
}
