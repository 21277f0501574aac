//! What a pod is asked while it runs, and told at the begin and end of its containers: probes and hooks.

use super::Worker;
use crate::node::probes::{self, ProbeKind, Target, Verdict};
use crate::node::slot::{State, Task};
use k8s_openapi::api::core::v1::{Lifecycle, LifecycleHandler};
use nix::sys::signal::Signal;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

impl Worker {
    pub(super) fn target(&self, index: usize) -> Target {
        Target {
            shared: Rc::clone(&self.shared),
            pod: Rc::clone(&self.pod),
            ip: self.ip,
            container_name: self.slots.get(index).map(|s| s.container.name.clone()).unwrap_or_default(),
        }
    }

    pub(super) fn start_probes(&mut self, index: usize, run: u64) {
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

    pub(super) fn start_hook(&mut self, index: usize, run: u64, hook: LifecycleHandler) {
        let (target, verdicts) = (self.target(index), self.verdicts.0.clone());
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.unready_because = Some("its postStart hook has not ended yet".to_owned());
        slot.probes.push(Task(tokio::task::spawn_local(async move {
            let result = run_hook(&hook, &target).await.map_err(|why| format!("postStart: {why}"));
            // The pod has ended when nobody hears it.
            let _ = verdicts.send(Verdict { container: index, run, kind: ProbeKind::PostStart, result });
        })));
    }

    pub(super) fn judged(&mut self, verdict: Verdict) {
        let grace = self.grace();
        let Some(slot) = self.slots.get_mut(verdict.container).filter(|s| s.run == Some(verdict.run)) else { return };
        match (verdict.kind, verdict.result) {
            (ProbeKind::PostStart, Ok(())) => {
                slot.hooked = false;
                slot.unready_because = None;
                self.start_probes(verdict.container, verdict.run);
            }
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
            (ProbeKind::PostStart | ProbeKind::Startup | ProbeKind::Liveness, Err(why)) => {
                let probe = match verdict.kind {
                    ProbeKind::Startup => slot.container.startup_probe.as_ref(),
                    ProbeKind::Liveness => slot.container.liveness_probe.as_ref(),
                    _ => None,
                };
                slot.hooked = false;
                let own = probe.and_then(|p| p.termination_grace_period_seconds);
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

    pub(super) fn pre_stop(&self, index: usize) -> Option<impl Future<Output = ()> + use<>> {
        let slot = self.slots.get(index).filter(|s| matches!(s.state, State::Running { .. }))?;
        let Lifecycle { pre_stop, .. } = slot.container.lifecycle.clone()?;
        let (hook, target, key) = (pre_stop?, self.target(index), self.key.clone());
        Some(async move {
            if let Err(why) = run_hook(&hook, &target).await {
                tracing::info!(pod = %key, container = target.container_name, why, "preStop failed");
            }
        })
    }
}

async fn run_hook(hook: &LifecycleHandler, target: &Target) -> Result<(), String> {
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
