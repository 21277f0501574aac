//! Whether a deployment gets anywhere: its condition `Progressing`, and `progressDeadlineSeconds`.

use super::deployments::{condition as with_times, old_condition};
use super::{Round, later};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Seconds without progress until a deployment counts as stuck, unless it says otherwise.
const DEFAULT_DEADLINE: i32 = 600;

const TYPE: &str = "Progressing";
const COMPLETE: &str = "NewReplicaSetAvailable";
const UNDER_WAY: &str = "ReplicaSetUpdated";
const STUCK: &str = "ProgressDeadlineExceeded";

/// What the condition is, now that the deployment's status is this one.
pub(super) fn condition(
    round: &mut Round<'_>,
    deployment: &Deployment,
    status: &DeploymentStatus,
    complete: bool,
    set: &str,
) -> DeploymentCondition {
    let now = round.now;
    if deployment.spec.paused == Some(true) {
        return with_times(deployment, now, TYPE, "Unknown", "DeploymentPaused");
    }
    let changed = deployment.status.as_ref().and_then(|s| s.observed_generation) != status.observed_generation;
    let old = old_condition(deployment, TYPE);
    let reason = old.and_then(|c| c.reason.as_deref());
    // A pod that dies later is no replacement that gets stuck.
    if complete || (reason == Some(COMPLETE) && !changed) {
        return with_times(deployment, now, TYPE, "True", COMPLETE);
    }
    if changed || deployment.status.as_ref().is_none_or(|old| gets_on(old, status)) || old.is_none() {
        let condition = with_times(deployment, now, TYPE, "True", UNDER_WAY);
        wake(round, deployment, now);
        return DeploymentCondition { last_update_time: Some(Time(now)), ..condition };
    }
    let since = old.and_then(|c| c.last_update_time.as_ref()).map_or(now, |t| t.0);
    let deadline = later(since, seconds(deployment));
    if reason == Some(STUCK) || deadline <= now {
        let message = format!("ReplicaSet {set:?} has timed out progressing");
        let condition = with_times(deployment, now, TYPE, "False", STUCK);
        return DeploymentCondition { message: Some(message), ..condition };
    }
    wake(round, deployment, since);
    with_times(deployment, now, TYPE, "True", UNDER_WAY)
}

fn seconds(deployment: &Deployment) -> i64 {
    i64::from(deployment.spec.progress_deadline_seconds.unwrap_or(DEFAULT_DEADLINE).max(0))
}

fn wake(round: &mut Round<'_>, deployment: &Deployment, since: Timestamp) {
    round.wake_at(later(since, seconds(deployment)));
}

/// More pods of the new template, fewer of old ones, or more that are ready: what Kubernetes takes for progress.
fn gets_on(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let number = |value: Option<i32>| value.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| number(s.replicas) - number(s.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

/// Why a deployment does not get on, if it does not.
pub(crate) fn stuck(deployment: &Deployment) -> Option<String> {
    let condition = old_condition(deployment, TYPE).filter(|c| c.reason.as_deref() == Some(STUCK))?;
    Some(format!("{STUCK}: {}", condition.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::super::super::store::Store;
    use super::super::reconcile;
    use super::*;
    use serde_json::json;
    use weft_core::kinds::{Key, Kind, Object};

    fn deployment(command: &str) -> Object {
        let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "command": [command]}]}});
        let spec = json!({"replicas": 1, "progressDeadlineSeconds": 10, "selector": {"matchLabels": {"app": "d"}}, "template": template});
        Object::from_value(Kind::Deployment, json!({"metadata": {"name": "d", "namespace": "a"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn a_deployment_is_stuck_when_nothing_gets_better_for_too_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let mut now = Timestamp::from_second(1_000_000).unwrap();
        let settle = |store: &mut Store, now: Timestamp| {
            for _ in 0..50 {
                let version = store.version();
                let outcome = reconcile(store, now, &|_, pod| Ok(pod));
                if store.version() == version {
                    return outcome.wake.map(|at| at.as_second() - now.as_second());
                }
            }
            panic!("never settles");
        };
        let is_stuck = |store: &Store| match store.get(&Key::new(Kind::Deployment, "a", "d")) {
            Some(Object::Deployment(deployment)) => stuck(deployment).is_some(),
            _ => panic!("it is gone"),
        };
        let set_ready = |store: &mut Store, ready: &str| {
            let keys: Vec<Key> = store.pods().map(|(key, _)| key.clone()).collect();
            for key in keys {
                store.update_pod(&key, |pod| {
                    let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]});
                    pod.status = serde_json::from_value(status).unwrap();
                });
            }
        };
        store.put(deployment("one"));
        assert_eq!(settle(&mut store, now), Some(10));
        now = later(now, 9);
        assert_eq!((settle(&mut store, now), is_stuck(&store)), (Some(1), false));
        now = later(now, 1);
        settle(&mut store, now);
        assert!(is_stuck(&store));
        // Late is not never.
        set_ready(&mut store, "True");
        settle(&mut store, now);
        assert!(!is_stuck(&store));
        // Once it is complete, a pod that breaks is no replacement that gets stuck.
        set_ready(&mut store, "False");
        now = later(now, 100);
        settle(&mut store, now);
        assert!(!is_stuck(&store));
    }
}
