//! The containers of a pod: started in their order, and what becomes of them.

use super::Worker;
use crate::cgroup::{Group, Limits};
use crate::node::holder::Fifo;
use crate::node::logs::Log;
use crate::node::slot::{Role, Task, Terminated};
use crate::node::spec;
use crate::pod::Event;
use std::path::PathBuf;
use std::rc::Rc;

impl Worker {
    /// Starts every container whose turn it is.
    pub(super) fn advance(&mut self) {
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
                && (role == Role::Init || (role == Role::Sidecar && !slot.started) || slot.holds_up_others())
            {
                return;
            }
        }
    }

    pub(super) fn start_container(&mut self, index: usize) {
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
    pub(super) fn control_groups(&mut self, index: usize) -> Result<Vec<PathBuf>, String> {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let Some(slot) = self.slots.get_mut(index) else { return Ok(Vec::new()) };
        let limits = spec::limits(&slot.container)?;
        if slot.group.is_none() && limits != Limits::default() {
            slot.group = self.node.groups.make(&format!("{uid}-{}", slot.container.name), limits);
        }
        Ok(slot.group.as_ref().map(Group::doors).unwrap_or_default())
    }

    /// The FIFO that a container prints into; its other end is copied into the log.
    pub(super) fn log(&mut self, container: &str) -> Result<PathBuf, String> {
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

    pub(super) fn heard(&mut self, event: Event) {
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
                // As a kubelet does: nobody asks a container how it is until its hook has ended.
                match post_start {
                    Some(hook) => self.start_hook(index, id, hook),
                    None => self.start_probes(index, id),
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
}
