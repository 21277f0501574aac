//! Deployments: in which order pods of an old template are replaced by those of a new one.

use super::super::endpoints::is_ready;
use super::super::store::{Store, controller_of, owner_reference};
use super::{Round, count, pods_of, progress, scaled, template_hash};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use weft_core::kinds::{Key, Kind, Object};

/// Label that tells the pods of one template from those of another.
const HASH_LABEL: &str = "pod-template-hash";

/// How many pods more and fewer than wanted there may be while replacing: 25 % each unless the deployment says otherwise.
fn allowances(deployment: &Deployment, replicas: i32) -> (i32, i32) {
    let strategy = deployment.spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, replicas);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let part = |value: Option<&IntOrString>, up: bool| {
        scaled(value, replicas, up).or_else(|| scaled(Some(&quarter), replicas, up)).unwrap_or(0)
    };
    let surge = part(rolling.and_then(|r| r.max_surge.as_ref()), true).max(0);
    let unavailable = part(rolling.and_then(|r| r.max_unavailable.as_ref()), false).max(0);
    // Both zero would never get anywhere.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Brings ReplicaSets in line with their deployments, and reports the deployments' status.
pub(super) fn reconcile(round: &mut Round<'_>) {
    for (_, object) in round.all(Kind::Deployment) {
        if let Object::Deployment(deployment) = object {
            reconcile_one(round, &deployment);
        }
    }
}

struct Set {
    key: Key,
    set: ReplicaSet,
    pods: i32,
    ready: i32,
    /// Ready for as long as the deployment asks for.
    available: i32,
}

impl Set {
    fn replicas(&self) -> i32 {
        self.set.spec.replicas.unwrap_or(1)
    }
}

fn sets_of(round: &mut Round<'_>, deployment: &Deployment) -> Vec<Set> {
    let uid = deployment.metadata.uid.as_deref();
    let namespace = deployment.metadata.namespace.as_deref();
    let own = round.store.list(Kind::ReplicaSet, namespace).filter_map(|(key, object)| match object {
        Object::ReplicaSet(set) if controller_of(&set.metadata).map(|o| o.uid.as_str()) == uid => {
            Some((key.clone(), (**set).clone()))
        }
        _ => None,
    });
    let own: Vec<(Key, ReplicaSet)> = own.collect();
    own.into_iter()
        .map(|(key, set)| {
            let pods = pods_of(round.store, &set.metadata);
            let ready = pods.iter().filter(|(_, pod)| is_ready(pod)).count();
            let min_ready = deployment.spec.min_ready_seconds;
            let available = pods.iter().filter(|(_, pod)| round.is_available(pod, min_ready)).count();
            Set { key, set, pods: count(pods.len()), ready: count(ready), available: count(available) }
        })
        .collect()
}

fn reconcile_one(round: &mut Round<'_>, deployment: &Deployment) {
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let wanted = deployment.spec.replicas.unwrap_or(1).max(0);
    let hash = template_hash(&deployment.spec.template);
    let new_key = Key::new(Kind::ReplicaSet, &namespace, &format!("{name}-{hash}"));
    let mut sets = sets_of(round, deployment);
    if deployment.spec.paused == Some(true) {
        return report_paused(round, deployment, &sets, &new_key, wanted);
    }
    if !sets.iter().any(|s| s.key == new_key) {
        // The first one starts in full; a later one grows as old ones shrink.
        let initial = if sets.is_empty() { wanted } else { 0 };
        round.store.put(new_set(deployment, &new_key, &hash, initial));
        sets = sets_of(round, deployment);
    }
    let store = &mut *round.store;
    let (surge, unavailable) = allowances(deployment, wanted);
    let (new, old): (Vec<Set>, Vec<Set>) = sets.into_iter().partition(|s| s.key == new_key);
    let Some(new) = new.into_iter().next() else { return };
    let old_replicas: i32 = old.iter().map(Set::replicas).sum();
    let old_pods: i32 = old.iter().map(|s| s.pods.max(s.replicas())).sum();
    let recreate = deployment.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    let mut target = new.replicas();
    if old_replicas == 0 && old_pods == 0 {
        target = wanted;
    } else if recreate {
        let ending = store.pods().any(|(key, pod)| {
            let owner = controller_of(&pod.metadata).map(|o| o.name.as_str());
            key.namespace == namespace && old.iter().any(|s| owner == Some(s.key.name.as_str()))
        });
        target = if ending { target.min(wanted) } else { wanted };
    } else {
        target = target.max((wanted + surge - old_pods).clamp(0, wanted)).min(wanted);
    }
    scale(store, &new.key, target, deployment.spec.min_ready_seconds);
    // Old ones may shrink by as many pods as there are available beyond the least that must be. Pods of theirs that are
    // not ready go first; they serve nobody.
    let total_available = new.available + old.iter().map(|s| s.available).sum::<i32>();
    let mut spare = (total_available - (wanted - unavailable).max(0)).max(0);
    for set in &old {
        let replicas = set.replicas();
        let unready = (set.pods.max(replicas) - set.ready).max(0);
        let drop_unready = if recreate { replicas } else { unready.min(replicas) };
        let drop_ready = if recreate { 0 } else { spare.min((replicas - drop_unready).max(0)).min(set.ready) };
        spare -= drop_ready;
        let left = (replicas - drop_unready - drop_ready).max(0);
        scale(store, &set.key, left, deployment.spec.min_ready_seconds);
        // There is no command to roll back, so an old set has no further use.
        if left == 0 && set.pods == 0 {
            store.remove(&set.key);
        }
    }
    let sets: Vec<Set> = old.into_iter().chain([new]).collect();
    report(round, deployment, &sets, &new_key, wanted);
}

fn scale(store: &mut Store, key: &Key, replicas: i32, min_ready_seconds: Option<i32>) {
    store.update(key, |object| {
        if let Object::ReplicaSet(set) = object {
            set.spec.replicas = Some(replicas);
            set.spec.min_ready_seconds = min_ready_seconds;
        }
    });
}

fn new_set(deployment: &Deployment, key: &Key, hash: &str, replicas: i32) -> Object {
    let mut template = deployment.spec.template.clone();
    let hashed = (HASH_LABEL.to_owned(), hash.to_owned());
    template.metadata.get_or_insert_default().labels.get_or_insert_default().extend([hashed.clone()]);
    let mut selector: LabelSelector = deployment.spec.selector.clone();
    selector.match_labels.get_or_insert_default().extend([hashed]);
    let labels = template.metadata.as_ref().and_then(|m| m.labels.clone());
    Object::from(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            labels,
            owner_references: Some(vec![owner_reference(&Object::from(deployment.clone()))]),
            generation: Some(1),
            ..Default::default()
        },
        spec: ReplicaSetSpec {
            min_ready_seconds: deployment.spec.min_ready_seconds,
            replicas: Some(replicas),
            selector,
            template: Some(template),
        },
        status: None,
    })
}

/// While a deployment is paused nothing is replaced; the number of pods of what runs may change.
fn report_paused(round: &mut Round<'_>, deployment: &Deployment, sets: &[Set], new_key: &Key, wanted: i32) {
    let newest = sets.iter().find(|s| s.key == *new_key).or_else(|| sets.iter().max_by_key(|s| s.replicas()));
    if let Some(newest) = newest {
        let others: i32 = sets.iter().filter(|s| s.key != newest.key).map(Set::replicas).sum();
        scale(round.store, &newest.key, (wanted - others).max(0), deployment.spec.min_ready_seconds);
    }
    report(round, deployment, sets, new_key, wanted);
}

fn report(round: &mut Round<'_>, deployment: &Deployment, sets: &[Set], new_key: &Key, wanted: i32) {
    let sum = |what: fn(&Set) -> i32| sets.iter().map(what).sum::<i32>();
    let (pods, ready, ready_long) = (sum(|s| s.pods), sum(|s| s.ready), sum(|s| s.available));
    let new = sets.iter().find(|s| s.key == *new_key);
    let complete = pods == wanted && new.is_some_and(|new| new.pods == wanted && new.available == wanted);
    let (_, unavailable) = allowances(deployment, wanted);
    let available = ready_long >= (wanted - unavailable).max(0);
    let reason = if available { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" };
    let mut status = DeploymentStatus {
        available_replicas: Some(ready_long),
        conditions: None,
        observed_generation: deployment.metadata.generation,
        ready_replicas: Some(ready),
        replicas: Some(pods),
        unavailable_replicas: Some((wanted - ready_long).max(0)),
        updated_replicas: Some(new.map_or(0, |new| new.pods)),
        ..Default::default()
    };
    let available = condition(deployment, round.now, "Available", if available { "True" } else { "False" }, reason);
    let progressing = progress::condition(round, deployment, &status, complete, &new_key.name);
    status.conditions = Some(vec![available, progressing]);
    round.store.update(&Object::from(deployment.clone()).key(""), |object| {
        if let Object::Deployment(deployment) = object {
            deployment.status = Some(status);
        }
    });
}

/// The condition of a deployment's status, if it has one of this type.
pub(super) fn old_condition<'a>(deployment: &'a Deployment, type_: &str) -> Option<&'a DeploymentCondition> {
    let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| c.type_.as_deref() == Some(type_))
}

/// A condition, with the times of its last changes.
pub(super) fn condition(
    deployment: &Deployment,
    now: Timestamp,
    type_: &str,
    status: &str,
    reason: &str,
) -> DeploymentCondition {
    let old = old_condition(deployment, type_);
    let same_status = old.filter(|c| c.status.as_deref() == Some(status));
    let same = same_status.filter(|c| c.reason.as_deref() == Some(reason));
    DeploymentCondition {
        type_: Some(type_.into()),
        status: Some(status.into()),
        reason: Some(reason.into()),
        message: None,
        last_transition_time: same_status.map_or(Some(Time(now)), |c| c.last_transition_time.clone()),
        last_update_time: same.map_or(Some(Time(now)), |c| c.last_update_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::store::now;
    use serde_json::json;

    fn deployment(replicas: i32, command: &str) -> Object {
        Object::from_value(
            Kind::Deployment,
            json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                             "spec": {"containers": [{"name": "web", "command": [command]}]}}}}),
        )
        .unwrap()
    }

    fn settle(store: &mut Store) {
        for _ in 0..50 {
            let version = store.version();
            let outcome = super::super::reconcile(store, now().0, &|_, pod| Ok(pod));
            assert!(outcome.refused.is_empty());
            if store.version() == version {
                return;
            }
        }
        panic!("never settles");
    }

    fn set_ready(store: &mut Store, key: &Key, ready: bool) {
        store.update_pod(key, |pod| {
            let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]});
            pod.status = serde_json::from_value(status).unwrap();
        });
    }

    fn alive(store: &Store) -> Vec<(Key, String)> {
        let alive = store.pods().filter(|(_, p)| p.metadata.deletion_timestamp.is_none());
        alive
            .map(|(k, p)| (k.clone(), p.spec.as_ref().unwrap().containers[0].command.as_ref().unwrap()[0].clone()))
            .collect()
    }

    #[test]
    fn pods_are_replaced_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        store.put(deployment(4, "one"));
        settle(&mut store);
        let first = alive(&store);
        assert_eq!(first.len(), 4);
        let (key, _) = &first[0];
        assert_eq!(key.name.split('-').count(), 3);
        for (key, _) in &first {
            set_ready(&mut store, key, true);
        }
        settle(&mut store);
        store.put(deployment(4, "two"));
        let mut steps = 0;
        loop {
            settle(&mut store);
            let pods = alive(&store);
            let ready = store.pods().filter(|(_, p)| is_ready(p)).count();
            // 25 % of four: one more, and one fewer.
            assert!(pods.len() <= 5, "{pods:?}");
            assert!(ready >= 3, "{ready}");
            let ended: Vec<Key> =
                store.pods().filter(|(_, p)| p.metadata.deletion_timestamp.is_some()).map(|(k, _)| k.clone()).collect();
            for key in ended {
                store.remove(&key);
            }
            let waiting = pods.iter().find(|(k, _)| !is_ready(store.pod(k).unwrap()));
            match waiting {
                Some((key, _)) => set_ready(&mut store, &key.clone(), true),
                None if pods.len() == 4 && pods.iter().all(|(_, c)| c == "two") => break,
                None => {}
            }
            steps += 1;
            assert!(steps < 50, "{pods:?}");
        }
        settle(&mut store);
        assert_eq!(store.list(Kind::ReplicaSet, None).count(), 1);
        match store.get(&Key::new(Kind::Deployment, "a", "web")).unwrap() {
            Object::Deployment(d) => assert_eq!(d.status.as_ref().unwrap().available_replicas, Some(4)),
            _ => unreachable!(),
        }
    }

    #[test]
    fn a_bad_replacement_leaves_the_old_pods_serving() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        store.put(deployment(1, "one"));
        settle(&mut store);
        let (key, _) = alive(&store).remove(0);
        set_ready(&mut store, &key, true);
        settle(&mut store);
        store.put(deployment(1, "broken"));
        settle(&mut store);
        assert_eq!(alive(&store).len(), 2);
        assert!(is_ready(store.pod(&key).unwrap()));
    }

    #[test]
    fn scaling_follows_the_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        for replicas in [3, 1, 5, 0] {
            store.put(deployment(replicas, "one"));
            settle(&mut store);
            assert_eq!(alive(&store).len(), usize::try_from(replicas).unwrap());
        }
    }
}
