//! Deployments and ReplicaSets: which pods there should be, and in which order old ones are replaced by new ones.

use super::apply::{complete, delete_object, is_ending};
use super::endpoints::is_ready;
use super::store::{Store, controller_of, owner_reference};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use weft_core::kinds::{Key, Kind, Object};

/// Label that tells the pods of one template from those of another.
const HASH_LABEL: &str = "pod-template-hash";
/// Letters of generated names: none that makes words, none that is mistaken for another.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Random letters for the end of a name.
pub(crate) fn random_suffix(length: usize) -> String {
    (0..length).filter_map(|_| fastrand::choice(LETTERS)).map(|b| char::from(*b)).collect()
}

/// The hash of a pod template, as letters.
pub(crate) fn template_hash(template: &PodTemplateSpec) -> String {
    let text = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = super::fnv(&text);
    let mut letters = String::new();
    for _ in 0..9 {
        let index = usize::try_from(hash % LETTERS.len() as u64).unwrap_or(0);
        letters.extend(LETTERS.get(index).map(|b| char::from(*b)));
        hash /= LETTERS.len() as u64;
    }
    letters
}

/// How many pods more and fewer than wanted there may be while replacing: 25 % each unless the deployment says otherwise.
fn allowances(deployment: &Deployment, replicas: i32) -> (i32, i32) {
    let strategy = deployment.spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, replicas);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let part = |value: Option<&IntOrString>, up: bool| -> i32 {
        let percent = |p: i32| {
            let exact = i64::from(replicas) * i64::from(p);
            let whole = if up { (exact + 99) / 100 } else { exact / 100 };
            i32::try_from(whole).unwrap_or(i32::MAX)
        };
        match value {
            None => percent(25),
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(text)) => match text.strip_suffix('%') {
                Some(number) => percent(number.parse().unwrap_or(25)),
                None => text.parse().unwrap_or(1),
            },
        }
    };
    let surge = part(rolling.and_then(|r| r.max_surge.as_ref()), true).max(0);
    let unavailable = part(rolling.and_then(|r| r.max_unavailable.as_ref()), false).max(0);
    // Both zero would never get anywhere.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// The pods of a ReplicaSet that are not ending.
fn pods_of(store: &Store, namespace: &str, uid: Option<&str>) -> Vec<(Key, Pod)> {
    let own = store.pods().filter(|(key, pod)| {
        key.namespace == namespace
            && pod.metadata.deletion_timestamp.is_none()
            && controller_of(&pod.metadata).map(|o| o.uid.as_str()) == uid
    });
    own.map(|(key, pod)| (key.clone(), pod.clone())).collect()
}

/// Brings ReplicaSets in line with their deployments, and reports the deployments' status.
pub(crate) fn reconcile_deployments(store: &mut Store) {
    let deployments: Vec<Deployment> = store
        .list(Kind::Deployment, None)
        .filter_map(|(_, object)| match object {
            Object::Deployment(deployment) if !is_ending(object) => Some((**deployment).clone()),
            _ => None,
        })
        .collect();
    for deployment in deployments {
        reconcile_deployment(store, &deployment);
    }
}

struct Set {
    key: Key,
    set: ReplicaSet,
    pods: i32,
    ready: i32,
}

impl Set {
    fn replicas(&self) -> i32 {
        self.set.spec.replicas.unwrap_or(1)
    }
}

fn sets_of(store: &Store, namespace: &str, uid: Option<&str>) -> Vec<Set> {
    let own = store.list(Kind::ReplicaSet, Some(namespace)).filter_map(|(key, object)| match object {
        Object::ReplicaSet(set) if controller_of(&set.metadata).map(|o| o.uid.as_str()) == uid => {
            let pods = pods_of(store, namespace, set.metadata.uid.as_deref());
            let ready = pods.iter().filter(|(_, pod)| is_ready(pod)).count();
            let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
            Some(Set { key: key.clone(), set: (**set).clone(), pods: count(pods.len()), ready: count(ready) })
        }
        _ => None,
    });
    own.collect()
}

fn reconcile_deployment(store: &mut Store, deployment: &Deployment) {
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let uid = deployment.metadata.uid.clone();
    let wanted = deployment.spec.replicas.unwrap_or(1).max(0);
    let hash = template_hash(&deployment.spec.template);
    let new_key = Key::new(Kind::ReplicaSet, &namespace, &format!("{name}-{hash}"));
    let mut sets = sets_of(store, &namespace, uid.as_deref());
    if !sets.iter().any(|s| s.key == new_key) {
        // The first one starts in full; a later one grows as old ones shrink.
        let initial = if sets.is_empty() { wanted } else { 0 };
        store.put(new_set(deployment, &new_key, &hash, initial));
        sets = sets_of(store, &namespace, uid.as_deref());
    }
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
    scale(store, &new.key, target);
    // Old ones may shrink by as many pods as there are available beyond the least that must be. Pods of theirs that are
    // not ready go first; they serve nobody.
    let total_ready = new.ready + old.iter().map(|s| s.ready).sum::<i32>();
    let mut spare = (total_ready - (wanted - unavailable).max(0)).max(0);
    for set in &old {
        let replicas = set.replicas();
        let unready = (set.pods.max(replicas) - set.ready).max(0);
        let drop_unready = if recreate { replicas } else { unready.min(replicas) };
        let drop_ready = if recreate { 0 } else { spare.min((replicas - drop_unready).max(0)).min(set.ready) };
        spare -= drop_ready;
        let left = (replicas - drop_unready - drop_ready).max(0);
        scale(store, &set.key, left);
        // There is no command to roll back, so an old set has no further use.
        if left == 0 && set.pods == 0 {
            store.remove(&set.key);
        }
    }
    report_deployment(store, deployment, &new, &old, wanted);
}

fn scale(store: &mut Store, key: &Key, replicas: i32) {
    store.update(key, |object| {
        if let Object::ReplicaSet(set) = object {
            set.spec.replicas = Some(replicas);
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

fn report_deployment(store: &mut Store, deployment: &Deployment, new: &Set, old: &[Set], wanted: i32) {
    let pods = new.pods + old.iter().map(|s| s.pods).sum::<i32>();
    let ready = new.ready + old.iter().map(|s| s.ready).sum::<i32>();
    let complete = new.pods == wanted && new.ready == wanted && pods == wanted;
    let (_, unavailable) = allowances(deployment, wanted);
    let condition = |type_: &str, holds: bool, reason: &str| DeploymentCondition {
        type_: Some(type_.into()),
        status: Some(if holds { "True" } else { "False" }.into()),
        reason: Some(reason.into()),
        ..Default::default()
    };
    let available = ready >= (wanted - unavailable).max(0);
    let status = DeploymentStatus {
        available_replicas: Some(ready),
        conditions: Some(vec![
            condition(
                "Available",
                available,
                if available { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
            ),
            condition("Progressing", true, if complete { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" }),
        ]),
        observed_generation: deployment.metadata.generation,
        ready_replicas: Some(ready),
        replicas: Some(pods),
        unavailable_replicas: Some((wanted - ready).max(0)),
        updated_replicas: Some(new.pods),
        ..Default::default()
    };
    store.update(&Object::from(deployment.clone()).key(""), |object| {
        if let Object::Deployment(deployment) = object {
            deployment.status = Some(status);
        }
    });
}

/// Makes and deletes pods until every ReplicaSet has as many as it should. `admit` turns a template into a pod, or says
/// why it cannot yet.
pub(crate) fn reconcile_sets(store: &mut Store, admit: impl Fn(&Store, Pod) -> Result<Pod, String>) -> Vec<String> {
    let mut refused = Vec::new();
    let sets: Vec<(Key, ReplicaSet)> = store
        .list(Kind::ReplicaSet, None)
        .filter_map(|(key, object)| match object {
            Object::ReplicaSet(set) if !is_ending(object) => Some((key.clone(), (**set).clone())),
            _ => None,
        })
        .collect();
    for (key, set) in sets {
        let mut pods = pods_of(store, &key.namespace, set.metadata.uid.as_deref());
        // A pod that has failed for good is replaced.
        pods.retain(|(_, p)| {
            !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
        });
        let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        if pods.len() > wanted {
            // Those that are not ready go first, then the youngest.
            pods.sort_by_key(|(_, pod)| {
                (is_ready(pod), std::cmp::Reverse(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)))
            });
            let surplus = pods.len() - wanted;
            for (pod, _) in pods.drain(..surplus) {
                delete_object(store, &pod);
            }
        }
        for _ in pods.len()..wanted {
            let Some(template) = &set.spec.template else { break };
            match admit(store, pod_from(template, &key, &set)) {
                Ok(pod) => store.put(Object::from(pod)),
                Err(why) => {
                    refused.push(format!("replicaset/{} in {}: {why}", key.name, key.namespace));
                    break;
                }
            }
        }
        let pods = pods_of(store, &key.namespace, set.metadata.uid.as_deref());
        let ready = i32::try_from(pods.iter().filter(|(_, p)| is_ready(p)).count()).unwrap_or(i32::MAX);
        store.update(&key, |object| {
            if let Object::ReplicaSet(set) = object {
                set.status = Some(ReplicaSetStatus {
                    available_replicas: Some(ready),
                    ready_replicas: Some(ready),
                    replicas: i32::try_from(pods.len()).unwrap_or(i32::MAX),
                    observed_generation: set.metadata.generation,
                    ..Default::default()
                });
            }
        });
    }
    refused
}

fn pod_from(template: &PodTemplateSpec, key: &Key, set: &ReplicaSet) -> Pod {
    let written = template.metadata.clone().unwrap_or_default();
    let labels: Option<BTreeMap<String, String>> = written.labels;
    let mut object = Object::from(Pod {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", key.name, random_suffix(5))),
            generate_name: Some(format!("{}-", key.name)),
            namespace: Some(key.namespace.clone()),
            labels,
            annotations: written.annotations,
            owner_references: Some(vec![owner_reference(&Object::from(set.clone()))]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    });
    complete(&mut object);
    match object {
        Object::Pod(pod) => *pod,
        _ => Pod::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            reconcile_deployments(store);
            assert!(reconcile_sets(store, |_, pod| Ok(pod)).is_empty());
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
