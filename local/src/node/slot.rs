//! One container of a pod over all its starts: its state, and what happens next.

use super::store::now;
use crate::cgroup::Group;
use crate::container::Spec;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;
use tokio::time::Instant;
use weft_core::names::PROXY_CONTAINER;

/// The first restart comes at once, the next after a second, then twice as long each time up to a minute.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// A container that ran this long begins anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(120);

/// Which part a container has in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next begins.
    Init,
    /// An init container that goes on running (`restartPolicy: Always`).
    Sidecar,
    /// The proxy that injection put among the ordinary containers: it starts with them, and goes on for as long as one
    /// of them does, so that a pod can complete although a proxy runs beside it.
    Proxy,
    /// An ordinary container.
    App,
}

/// How long to wait before something that has failed so often in a row is tried again.
pub(crate) fn back_off(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => LONGEST_BACK_OFF.min(FIRST_BACK_OFF * 2u32.saturating_pow((n - 2).min(16))),
    }
}

/// How a container ended.
#[derive(Debug, Clone)]
pub(crate) struct Terminated {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) since: Option<Time>,
    pub(crate) at: Time,
    pub(crate) message: Option<String>,
    /// The kernel ended it because it used more memory than it may.
    pub(crate) out_of_memory: bool,
}

impl Terminated {
    pub(crate) fn new(code: i32, signal: Option<i32>, since: Option<Time>) -> Self {
        Self { code, signal, since, at: now(), message: None, out_of_memory: false }
    }

    fn state(&self) -> ContainerStateTerminated {
        let reason = match self.code {
            _ if self.out_of_memory => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        ContainerStateTerminated {
            exit_code: self.code,
            signal: self.signal,
            reason: Some(reason.into()),
            message: self.message.clone(),
            started_at: self.since.clone(),
            finished_at: Some(self.at.clone()),
            ..Default::default()
        }
    }
}

/// What a container does now.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Not started; is to be started at a time, or when its turn comes.
    Waiting { reason: String, message: Option<String>, until: Option<Instant>, misconfigured: bool },
    /// Ordered to start.
    Starting,
    /// Runs.
    Running { since: Time, at: Instant },
    /// Ended for good.
    Terminated(Terminated),
}

/// A task that ends when it is dropped.
pub(crate) struct Task(pub(crate) tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a container of this name is a native sidecar.
pub(crate) fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let init = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    init.into_iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

/// A container and what has become of it.
pub(crate) struct Slot {
    pub(crate) container: Container,
    pub(crate) role: Role,
    pub(crate) state: State,
    /// The holder's number of the start that lives.
    pub(crate) run: Option<u64>,
    /// Its postStart hook is still to end, and whatever starts behind it waits for that.
    pub(crate) hooked: bool,
    pub(crate) started: bool,
    pub(crate) ready: bool,
    pub(crate) unready_because: Option<String>,
    pub(crate) killed_because: Option<String>,
    pub(crate) kill_at: Option<Instant>,
    pub(crate) probes: Vec<Task>,
    /// Where its limits are kept, if it has any.
    pub(crate) group: Option<Group>,
    last: Option<Terminated>,
    restarts: i32,
    starts: u32,
    /// Ends in a row without a healthy time between.
    failures: u32,
    spec: Spec,
}

impl Slot {
    /// All containers of a pod in the order in which they start.
    pub(crate) fn all(pod: &Pod) -> Vec<Slot> {
        let Some(spec) = &pod.spec else { return Vec::new() };
        let init = spec.init_containers.iter().flatten().map(|c| {
            let role = if c.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init };
            (role, c)
        });
        let alone = spec.containers.len() == 1;
        let apps = spec.containers.iter().map(|c| {
            let is_proxy = c.name == PROXY_CONTAINER && !alone;
            (if is_proxy { Role::Proxy } else { Role::App }, c)
        });
        init.chain(apps).map(|(role, container)| Slot::new(role, container.clone())).collect()
    }

    fn new(role: Role, container: Container) -> Slot {
        let ordinary = matches!(role, Role::App | Role::Proxy);
        let reason = if ordinary { "ContainerCreating" } else { "PodInitializing" };
        Slot {
            container,
            role,
            state: State::Waiting { reason: reason.into(), message: None, until: None, misconfigured: false },
            run: None,
            hooked: false,
            started: false,
            ready: false,
            unready_because: None,
            killed_because: None,
            kill_at: None,
            probes: Vec::new(),
            group: None,
            last: None,
            restarts: 0,
            starts: 0,
            failures: 0,
            spec: Spec::default(),
        }
    }

    /// An init container that has succeeded.
    pub(crate) fn is_done(&self) -> bool {
        matches!(&self.state, State::Terminated(t) if t.code == 0)
    }

    /// A container that has failed for good.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(&self.state, State::Terminated(t) if t.code != 0)
    }

    /// Whether it has run at all.
    pub(crate) fn has_run(&self) -> bool {
        self.last.is_some() || matches!(self.state, State::Running { .. } | State::Terminated(_))
    }

    /// Whether it is to be started now.
    pub(crate) fn is_due(&self) -> bool {
        matches!(&self.state, State::Waiting { until, misconfigured: false, .. } if until.is_none_or(|at| at <= Instant::now()))
    }

    /// Whether those behind it wait: it is on its way, and its postStart hook has not ended. One that has failed holds
    /// nobody up, as in Kubernetes.
    pub(crate) fn holds_up_others(&self) -> bool {
        self.hooked && self.run.is_some()
    }

    /// When it is to be started or killed.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until, .. } => *until,
            _ => self.kill_at,
        }
    }

    /// Since when it runs.
    pub(crate) fn since(&self) -> Option<Time> {
        match &self.state {
            State::Running { since, .. } => Some(since.clone()),
            _ => None,
        }
    }

    /// Whether it stands in the way of the pod's readiness.
    pub(crate) fn counts_as_ready(&self) -> bool {
        match self.role {
            Role::Init => self.is_done(),
            Role::Sidecar | Role::Proxy | Role::App => self.ready && matches!(self.state, State::Running { .. }),
        }
    }

    /// Something changed that it may have been missing. Answers whether it was.
    pub(crate) fn retry_configuration(&mut self) -> bool {
        match &mut self.state {
            State::Waiting { misconfigured, .. } => std::mem::take(misconfigured),
            _ => false,
        }
    }

    /// Something that it refers to does not exist.
    pub(crate) fn misconfigured(&mut self, message: String) {
        let reason = "CreateContainerConfigError".into();
        self.state = State::Waiting { reason, message: Some(message), until: None, misconfigured: true };
    }

    /// It has been ordered to start.
    pub(crate) fn starting(&mut self, run: u64, spec: Spec) {
        if self.starts > 0 {
            self.restarts += 1;
        }
        self.starts += 1;
        self.run = Some(run);
        self.spec = spec;
        self.hooked = self.container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        self.started = false;
        self.ready = false;
        self.killed_because = None;
        self.unready_because = None;
        self.state = State::Starting;
    }

    /// It runs. Answers how to run more in it.
    pub(crate) fn running(&mut self) -> Spec {
        self.state = State::Running { since: now(), at: Instant::now() };
        self.spec.clone()
    }

    fn back_off(&mut self) -> Duration {
        self.failures += 1;
        back_off(self.failures)
    }

    fn forget_run(&mut self) {
        self.run = None;
        self.hooked = false;
        self.started = false;
        self.ready = false;
        self.kill_at = None;
        self.probes.clear();
    }

    /// Its program could not be started.
    pub(crate) fn failed_to_start(&mut self, reason: &str, message: String) {
        self.forget_run();
        self.failures = self.failures.max(1);
        let until = Some(Instant::now() + self.back_off());
        self.state = State::Waiting { reason: reason.to_owned(), message: Some(message), until, misconfigured: false };
    }

    /// Its program has ended.
    pub(crate) fn exited(&mut self, mut how: Terminated, restart_policy: &str, stopping: bool) {
        let ran = match &self.state {
            State::Running { at, .. } => at.elapsed(),
            _ => Duration::ZERO,
        };
        how.message = self.killed_because.take();
        self.forget_run();
        if ran >= HEALTHY_AFTER {
            self.failures = 0;
        }
        let again = match self.role {
            Role::Sidecar | Role::Proxy => true,
            Role::Init => how.code != 0 && restart_policy != "Never",
            Role::App => restart_policy == "Always" || (restart_policy == "OnFailure" && how.code != 0),
        };
        if again && !stopping {
            let pause = self.back_off();
            let until = Some(Instant::now() + pause);
            let message =
                (!pause.is_zero()).then(|| format!("back-off {} s restarting failed container", pause.as_secs()));
            self.state = State::Waiting { reason: "CrashLoopBackOff".into(), message, until, misconfigured: false };
            self.last = Some(how);
        } else {
            self.state = State::Terminated(how);
        }
    }

    /// The whole pod was killed under it.
    pub(crate) fn lost(&mut self, restarts: bool) {
        if self.run.is_some() {
            let how = Terminated::new(137, Some(9), self.since());
            self.exited(how, if restarts { "Always" } else { "Never" }, false);
        } else if self.role == Role::Init && restarts && self.is_done() {
            // The pod begins anew, and so do its init containers.
            self.state =
                State::Waiting { reason: "PodInitializing".into(), message: None, until: None, misconfigured: false };
        }
    }

    /// The pod has done its work: what still runs of it is ended.
    pub(crate) fn ended_with_pod(&mut self) {
        if self.run.is_some() {
            self.exited(Terminated::new(137, Some(9), self.since()), "Never", true);
        } else if !matches!(self.state, State::Terminated(_))
            && let Some(last) = self.last.clone()
        {
            // It was waiting to be started again.
            self.state = State::Terminated(last);
        }
    }

    /// As Kubernetes reports it; with what the whole pod waits for, and the container whose postStart hook holds up those
    /// that have not been started yet.
    pub(crate) fn status(&self, blocked: Option<&str>, held_by: Option<&str>) -> ContainerStatus {
        let state = match &self.state {
            State::Waiting { .. } if self.starts == 0 && blocked.is_none() && held_by.is_some() => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some("PodInitializing".into()),
                    message: held_by.map(|name| format!("waits for the postStart hook of container {name}")),
                }),
                ..Default::default()
            },
            State::Waiting { reason, message, .. } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(reason.clone()),
                    message: message.clone().or_else(|| blocked.map(str::to_owned)),
                }),
                ..Default::default()
            },
            State::Starting => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    // What has failed before still looks as it did while it is tried once more.
                    reason: Some(if self.last.is_some() { "CrashLoopBackOff" } else { "ContainerCreating" }.into()),
                    message: None,
                }),
                ..Default::default()
            },
            State::Running { since, .. } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(since.clone()) }),
                ..Default::default()
            },
            State::Terminated(how) => ContainerState { terminated: Some(how.state()), ..Default::default() },
        };
        let running = matches!(self.state, State::Running { .. });
        ContainerStatus {
            image: self.container.image.clone().unwrap_or_default(),
            name: self.container.name.clone(),
            ready: if self.role == Role::Init { self.is_done() } else { self.ready && running },
            restart_count: self.restarts,
            started: Some(self.started && running),
            state: Some(state),
            last_state: self
                .last
                .as_ref()
                .map(|how| ContainerState { terminated: Some(how.state()), ..Default::default() }),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(role: Role) -> Slot {
        let mut slot = Slot::new(role, Container { name: "c".into(), ..Default::default() });
        start(&mut slot);
        slot
    }

    fn start(slot: &mut Slot) {
        slot.starting(1, Spec::default());
        slot.running();
    }

    fn pause(slot: &Slot) -> Option<Duration> {
        match &slot.state {
            State::Waiting { until, .. } => until.map(|at| at.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_back_off() {
        let mut slot = slot(Role::App);
        for expected in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
            slot.exited(Terminated::new(1, None, None), "Always", false);
            assert_eq!(pause(&slot), Some(Duration::from_secs(expected)));
            start(&mut slot);
        }
        tokio::time::advance(HEALTHY_AFTER).await;
        slot.exited(Terminated::new(1, None, None), "Always", false);
        assert_eq!(pause(&slot), Some(Duration::ZERO));
        assert_eq!(slot.status(None, None).restart_count, 9);
    }

    #[tokio::test(start_paused = true)]
    async fn restart_policies() {
        let ends = |role, code, policy, stopping| {
            let mut slot = slot(role);
            slot.exited(Terminated::new(code, None, None), policy, stopping);
            matches!(slot.state, State::Terminated(_))
        };
        assert!(!ends(Role::App, 0, "Always", false));
        assert!(ends(Role::App, 0, "Always", true));
        assert!(ends(Role::App, 0, "OnFailure", false));
        assert!(!ends(Role::App, 1, "OnFailure", false));
        assert!(ends(Role::App, 1, "Never", false));
        assert!(ends(Role::Init, 0, "Always", false));
        assert!(!ends(Role::Init, 1, "Always", false));
        assert!(ends(Role::Init, 1, "Never", false));
        assert!(!ends(Role::Sidecar, 0, "Never", false));
        assert!(!ends(Role::Proxy, 0, "Never", false));
    }
}
