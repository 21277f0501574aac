//! The end of a pod: in order, and within its time.

use super::{SIDECAR_GRACE, Worker};
use crate::node::slot::Role;
use nix::sys::signal::Signal;
use std::fs;
use tokio::time::Instant;

impl Worker {
    /// Ends all containers in order: applications, then sidecars, each with SIGTERM first.
    pub(super) async fn stop(&mut self) {
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

    pub(super) fn signal_all(&self, which: impl Fn(Role) -> bool, signal: Signal) {
        let Some(holder) = self.shared.holder.borrow().clone() else { return };
        for slot in self.slots.iter().filter(|s| which(s.role)) {
            if let Some(run) = slot.run {
                holder.signal(run, signal);
            }
        }
    }

    pub(super) async fn wait_for(&mut self, which: impl Fn(Role) -> bool, deadline: Instant) {
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

    pub(super) fn clean_up(&mut self) {
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
}
