//! How far the cluster is: what `weft up` waits for and prints, and why something is not there.

use super::Node;
use super::pod::is_settled;
use super::store::controller_of;
use super::workloads;
use crate::proto::Readiness;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::collections::BTreeMap;
use weft_core::kinds::{Kind, Object};
use weft_core::names::PROXY_CONTAINER;

/// Lines of a failing container's log that are shown.
const LOG_LINES: usize = 5;

impl Node {
    /// What is ready and what is missing.
    pub(super) fn readiness(&self) -> Readiness {
        let store = self.store.borrow();
        let mut readiness = Readiness { version: store.version(), ..Readiness::default() };
        let kinds = [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet];
        for (key, object) in kinds.into_iter().flat_map(|kind| store.list(kind, None)) {
            let Some(Replicas { wanted, ready, settled }) = replicas(object) else { continue };
            let ready = ready.clamp(0, wanted);
            readiness.wanted += usize::try_from(wanted).unwrap_or(0);
            readiness.ready += usize::try_from(ready).unwrap_or(0);
            if !(settled && ready == wanted) {
                readiness.missing.push(format!("{key}: {ready} of {wanted} pods ready"));
            }
            if let Some(why) = stuck(object) {
                readiness.hopeless = true;
                readiness.details.push(format!("{key}: {why}"));
            }
        }
        for (key, object) in store.list(Kind::Job, None) {
            let Object::Job(job) = object else { continue };
            let status = job.status.clone().unwrap_or_default();
            let succeeded = status.succeeded.unwrap_or(0);
            let wanted = succeeded + status.active.unwrap_or(0);
            let ready = succeeded + status.ready.unwrap_or(0);
            // The jobs of a CronJob come and go; nobody waits for them.
            if controller_of(&job.metadata).is_some() {
                continue;
            }
            readiness.wanted += usize::try_from(wanted).unwrap_or(0);
            readiness.ready += usize::try_from(ready).unwrap_or(0);
            if let Some(why) = workloads::failure(job) {
                readiness.hopeless = true;
                readiness.missing.push(format!("{key} has failed: {why}"));
            } else if !workloads::is_under_way(job) {
                readiness.missing.push(format!("{key}: {ready} of {wanted} pods ready or completed"));
            }
        }
        for (key, pod) in store.pods() {
            let owned = pod.metadata.owner_references.as_ref().is_some_and(|o| !o.is_empty());
            if !owned {
                readiness.wanted += 1;
                if is_settled(pod) {
                    readiness.ready += 1;
                } else {
                    let failed = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
                    readiness.hopeless |= failed;
                    readiness.missing.push(format!("{key} {}", if failed { "has failed" } else { "is not ready" }));
                }
            }
            if is_settled(pod) {
                continue;
            }
            let Some((container, why)) = trouble(pod) else { continue };
            readiness.details.push(format!("{key}: {why}"));
            readiness.details.extend(shared_ports(pod).into_iter().map(|hint| format!("    ({hint})")));
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

/// Why nobody needs to wait for this workload any longer.
fn stuck(object: &Object) -> Option<String> {
    match object {
        Object::Deployment(deployment) => workloads::stuck(deployment),
        _ => None,
    }
}

/// How many pods a workload wants and has.
struct Replicas {
    wanted: i32,
    /// Ready for as long as the workload asks for.
    ready: i32,
    /// Whether they are those that it wants, and nothing is left of what was before.
    settled: bool,
}

fn replicas(object: &Object) -> Option<Replicas> {
    match object {
        Object::Deployment(deployment) => {
            let wanted = deployment.spec.replicas.unwrap_or(1).max(0);
            let status = deployment.status.clone().unwrap_or_default();
            let paused = deployment.spec.paused == Some(true);
            let replaced = status.updated_replicas.unwrap_or(0) == wanted && status.replicas.unwrap_or(0) == wanted;
            Some(Replicas {
                // Nothing is made for a paused deployment, so there is nothing to wait for but what runs.
                wanted: if paused { status.replicas.unwrap_or(0) } else { wanted },
                ready: status.available_replicas.unwrap_or(0),
                settled: status.observed_generation == deployment.metadata.generation && (paused || replaced),
            })
        }
        Object::StatefulSet(set) => {
            let wanted = set.spec.replicas.unwrap_or(1).max(0);
            let status = set.status.clone().unwrap_or_default();
            let strategy = set.spec.update_strategy.as_ref();
            let partition = strategy.and_then(|s| s.rolling_update.as_ref()?.partition).unwrap_or(0);
            let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
            let replaced = on_delete || status.updated_replicas.unwrap_or(0) >= wanted - partition;
            Some(Replicas {
                wanted,
                ready: status.available_replicas.unwrap_or(0),
                settled: status.observed_generation == set.metadata.generation && replaced && status.replicas == wanted,
            })
        }
        Object::DaemonSet(set) => {
            let status = set.status.clone().unwrap_or_default();
            let on_delete = set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
            let replaced = on_delete || status.updated_number_scheduled.unwrap_or(0) >= 1;
            Some(Replicas {
                wanted: 1,
                ready: status.number_available.unwrap_or(0),
                settled: status.observed_generation == set.metadata.generation && replaced,
            })
        }
        _ => None,
    }
}

/// The container that keeps a pod from being ready, and why.
pub(super) fn trouble(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    if let Some(reason) = &status.reason {
        let first = pod.spec.iter().flat_map(|s| &s.containers).find(|c| c.name != PROXY_CONTAINER)?;
        let message = status.message.as_deref().unwrap_or_default();
        return Some((first.name.clone(), format!("{reason}: {message}")));
    }
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let statuses: Vec<&ContainerStatus> = all.collect();
    let ended = |c: &ContainerStatus| {
        let state = c.state.as_ref()?;
        let now = state.terminated.as_ref().filter(|t| t.exit_code != 0);
        let last = c.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        now.or(last).map(|t| match (&t.message, t.signal) {
            _ if t.reason.as_deref() == Some("OOMKilled") => "ended for want of memory (OOMKilled)".to_owned(),
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

/// Ports that several containers of a pod declare: only one of them can listen there.
fn shared_ports(pod: &Pod) -> Vec<String> {
    let mut owners: BTreeMap<(i32, String), Vec<&str>> = BTreeMap::new();
    for container in pod.spec.iter().flat_map(|s| &s.containers) {
        for port in container.ports.iter().flatten() {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let names = owners.entry((port.container_port, protocol)).or_default();
            if !names.contains(&container.name.as_str()) {
                names.push(&container.name);
            }
        }
    }
    let shared = owners.into_iter().filter(|(_, names)| names.len() > 1);
    shared.map(|((port, _), names)| format!("port {port} is declared by containers {}", names.join(" and "))).collect()
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
