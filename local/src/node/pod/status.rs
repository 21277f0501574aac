//! The status of a pod, as Kubernetes writes it.

use super::Worker;
use crate::node::network;
use crate::node::slot::{Role, Slot, State};
use crate::node::spec;
use k8s_openapi::api::core::v1::{PodIP, PodStatus};

impl Worker {
    /// Writes the status into the store.
    pub(super) fn publish(&self) {
        let ready = self.networked && self.slots.iter().all(Slot::counts_as_ready);
        let initialized = self.slots.iter().all(|s| match s.role {
            Role::Init => s.is_done(),
            Role::Sidecar => s.started,
            Role::App | Role::Proxy => true,
        });
        let apps = || self.slots.iter().filter(|s| s.role == Role::App);
        let failed_init = self.slots.iter().any(|s| s.role == Role::Init && s.has_failed());
        let phase = if failed_init || self.expired {
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
        let held = self.slots.iter().find(|s| s.holds_up_others()).map(|s| s.container.name.as_str());
        let not_ready = self.slots.iter().find_map(|s| s.unready_because.clone()).or_else(|| self.blocked.clone());
        let statuses = |which: fn(Role) -> bool| -> Vec<_> {
            let slots = self.slots.iter().filter(|s| which(s.role));
            slots.map(|s| s.status(self.blocked.as_deref(), held)).collect()
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
                host_ip: Some(network::GATEWAY.to_owned()),
                phase: Some(phase.to_owned()),
                pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
                pod_ip: ip,
                qos_class: Some("BestEffort".into()),
                start_time: Some(self.started_at.clone()),
                reason: self.expired.then(|| "DeadlineExceeded".to_owned()),
                message: match self.expired {
                    true => Some("Pod was active on the node longer than the specified deadline".to_owned()),
                    false => self.blocked.clone(),
                },
                ..Default::default()
            });
        });
    }
}
