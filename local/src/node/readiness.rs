//! How far the cluster is: what `weft up` waits for and prints, and why something is not there.

use super::Node;
use super::pod::is_settled;
use crate::proto::Readiness;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use weft_core::kinds::{Kind, Object};

/// Lines of a failing container's log that are shown.
const LOG_LINES: usize = 5;

impl Node {
    /// What is ready and what is missing.
    pub(super) fn readiness(&self) -> Readiness {
        let store = self.store.borrow();
        let mut readiness = Readiness { version: store.version(), ..Readiness::default() };
        for (key, object) in store.list(Kind::Deployment, None) {
            let Object::Deployment(deployment) = object else { continue };
            let wanted = deployment.spec.replicas.unwrap_or(1).max(0);
            let status = deployment.status.clone().unwrap_or_default();
            let ready = status.ready_replicas.unwrap_or(0).clamp(0, wanted);
            readiness.wanted += usize::try_from(wanted).unwrap_or(0);
            readiness.ready += usize::try_from(ready).unwrap_or(0);
            let current = status.observed_generation == deployment.metadata.generation;
            let replaced = status.updated_replicas.unwrap_or(0) == wanted && status.replicas.unwrap_or(0) == wanted;
            if !(current && replaced && ready == wanted) {
                readiness
                    .missing
                    .push(format!("deployment/{} in {}: {ready} of {wanted} pods ready", key.name, key.namespace));
            }
        }
        for (key, pod) in store.pods() {
            let owned = pod.metadata.owner_references.as_ref().is_some_and(|o| !o.is_empty());
            if !owned {
                readiness.wanted += 1;
                if is_settled(pod) {
                    readiness.ready += 1;
                } else {
                    readiness.missing.push(format!("{key} is not ready"));
                }
            }
            if is_settled(pod) {
                continue;
            }
            let Some((container, why)) = trouble(pod) else { continue };
            readiness.details.push(format!("{key}: {why}"));
            let running = self.pods.borrow();
            let log = running.get(key).and_then(|r| r.handle.shared.logs.borrow().get(&container).cloned());
            let lines = log.map(|log| log.last_lines(LOG_LINES)).unwrap_or_default();
            readiness.details.extend(lines.lines().map(|line| format!("    {line}")));
        }
        let refused = self.refused.borrow();
        readiness.missing.extend(refused.iter().cloned());
        readiness
    }
}

/// The container that keeps a pod from being ready, and why.
fn trouble(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let statuses: Vec<&ContainerStatus> = all.collect();
    let ended = |c: &ContainerStatus| {
        let state = c.state.as_ref()?;
        let now = state.terminated.as_ref().filter(|t| t.exit_code != 0);
        let last = c.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        now.or(last).map(|t| match (&t.message, t.signal) {
            (Some(message), _) => format!("restarted after {message}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => format!("ended with exit code {}", t.exit_code),
        })
    };
    let waiting = statuses.iter().find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|r| *r != "PodInitializing")?;
        let message = ended(c).or_else(|| waiting.message.clone()).unwrap_or_default();
        Some((c.name.clone(), format!("container {}: {reason} {message}", c.name).trim_end().to_owned()))
    });
    let failed = || statuses.iter().find_map(|c| Some((c.name.clone(), format!("container {} {}", c.name, ended(c)?))));
    let unready = || {
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready")?;
        let container = statuses.iter().find(|c| !c.ready)?;
        let why = condition.message.clone().unwrap_or_else(|| "not ready".into());
        Some((container.name.clone(), format!("container {}: {why}", container.name)))
    };
    waiting.or_else(failed).or_else(unready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_in_trouble_is_named() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"containerStatuses": [
            {"name": "proxy", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}},
            {"name": "web", "ready": false, "restartCount": 2, "image": "", "imageID": "",
             "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
             "lastState": {"terminated": {"exitCode": 3}}}]}}))
        .unwrap();
        let (container, why) = trouble(&pod).unwrap();
        assert_eq!(container, "web");
        assert_eq!(why, "container web: CrashLoopBackOff ended with exit code 3");
    }
}
