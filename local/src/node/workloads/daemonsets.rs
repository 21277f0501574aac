//! DaemonSets: one pod on every node, and there is one node.

use super::super::apply::delete_object;
use super::super::endpoints::is_ready;
use super::{Round, all_pods_of, count, has_ended, pod_from, scaled, template_hash};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use weft_core::kinds::{Key, Kind, Object};

/// Label of a pod: which template it was made from.
const REVISION: &str = "controller-revision-hash";

/// Makes and replaces the pod of every DaemonSet.
pub(super) fn reconcile(round: &mut Round<'_>) {
    for (key, object) in round.all(Kind::DaemonSet) {
        let Object::DaemonSet(set) = &object else { continue };
        let hash = template_hash(&set.spec.template);
        decide(round, &key, &object, set, &hash);
        report(round, &key, set, &hash);
    }
}

fn decide(round: &mut Round<'_>, key: &Key, object: &Object, set: &DaemonSet, hash: &str) {
    let all = all_pods_of(round.store, &set.metadata);
    let (ended, running): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, pod)| has_ended(pod));
    for (pod, _) in &ended {
        delete_object(round.store, pod);
    }
    let strategy = set.spec.update_strategy.as_ref();
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), 1, true).unwrap_or(0) > 0;
    let alive = |(_, pod): &&(Key, Pod)| pod.metadata.deletion_timestamp.is_none();
    let (new, old): (Vec<_>, Vec<_>) = running.iter().filter(alive).partition(|(_, pod)| is_of(pod, hash));
    if running.is_empty() || (surge && !on_delete && new.is_empty()) {
        let mut pod = pod_from(&set.spec.template, object, &format!("{}-", key.name));
        let generation = set.metadata.generation.unwrap_or(1).to_string();
        pod.metadata
            .labels
            .get_or_insert_default()
            .extend([(REVISION.to_owned(), hash.to_owned()), ("pod-template-generation".to_owned(), generation)]);
        round.make(key, pod);
        return;
    }
    for (pod, _) in new.iter().skip(1) {
        delete_object(round.store, pod);
    }
    let replaced = new.iter().any(|(_, pod)| round.is_available(pod, set.spec.min_ready_seconds));
    for (pod_key, pod) in old.iter().filter(|_| !on_delete) {
        // With a surge, what serves goes on until the new one does.
        if replaced || !surge || !is_ready(pod) {
            delete_object(round.store, pod_key);
        }
    }
}

fn is_of(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)).is_some_and(|h| h == hash)
}

fn report(round: &mut Round<'_>, key: &Key, set: &DaemonSet, hash: &str) {
    let mut pods: Vec<Pod> = all_pods_of(round.store, &set.metadata).into_iter().map(|(_, pod)| pod).collect();
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    let any = |holds: &mut dyn FnMut(&Pod) -> bool| count(usize::from(pods.iter().any(holds)));
    let available = any(&mut |pod| round.is_available(pod, set.spec.min_ready_seconds));
    let status = DaemonSetStatus {
        current_number_scheduled: any(&mut |_| true),
        desired_number_scheduled: 1,
        number_available: Some(available),
        number_ready: any(&mut |pod| is_ready(pod)),
        number_unavailable: Some(1 - available),
        observed_generation: set.metadata.generation,
        updated_number_scheduled: Some(any(&mut |pod| is_of(pod, hash))),
        ..Default::default()
    };
    round.store.update(key, |object| {
        if let Object::DaemonSet(set) = object {
            set.status = Some(status);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::super::store::Store;
    use super::*;
    use serde_json::{Value, json};

    struct World {
        store: Store,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            World { store: Store::new(dir.path().to_owned()), _dir: dir }
        }

        fn put(&mut self, command: &str, strategy: Value) {
            let value = json!({"metadata": {"name": "agent", "namespace": "a"}, "spec": {
                "selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": strategy,
                "template": {"metadata": {"labels": {"app": "agent"}},
                             "spec": {"containers": [{"name": "main", "command": [command]}]}}}});
            self.store.put(Object::from_value(Kind::DaemonSet, value).unwrap());
            self.settle();
        }

        fn settle(&mut self) {
            for _ in 0..50 {
                let version = self.store.version();
                let now = super::super::super::store::timestamp();
                super::super::reconcile(&mut self.store, now, &|_, pod| Ok(pod));
                if self.store.version() == version {
                    return;
                }
            }
            panic!("never settles");
        }

        /// The commands of pods: those that go on, and those that are ending.
        fn pods(&self) -> (Vec<String>, Vec<String>) {
            let command = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].command.as_ref().unwrap()[0].clone();
            let (alive, ending): (Vec<_>, Vec<_>) =
                self.store.pods().partition(|(_, pod)| pod.metadata.deletion_timestamp.is_none());
            let commands = |pods: Vec<(&Key, &Pod)>| pods.into_iter().map(|(_, pod)| command(pod)).collect();
            (commands(alive), commands(ending))
        }

        fn ready(&mut self) {
            let pods: Vec<Key> = self.store.pods().map(|(key, _)| key.clone()).collect();
            for key in pods {
                let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
                self.store.update_pod(&key, |pod| pod.status = serde_json::from_value(status).unwrap());
            }
            self.settle();
        }

        fn end(&mut self) {
            let ending = self.store.pods().filter(|(_, pod)| pod.metadata.deletion_timestamp.is_some());
            let ending: Vec<Key> = ending.map(|(key, _)| key.clone()).collect();
            for key in ending {
                self.store.remove(&key);
            }
            self.settle();
        }
    }

    fn names(alive: &[&str], ending: &[&str]) -> (Vec<String>, Vec<String>) {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        (owned(alive), owned(ending))
    }

    #[test]
    fn there_is_one_pod_and_it_is_replaced_after_its_end() {
        let mut world = World::new();
        world.put("one", json!({"type": "RollingUpdate"}));
        assert_eq!(world.pods(), names(&["one"], &[]));
        world.ready();
        world.put("two", json!({"type": "RollingUpdate"}));
        assert_eq!(world.pods(), names(&[], &["one"]));
        world.end();
        assert_eq!(world.pods(), names(&["two"], &[]));
    }

    #[test]
    fn with_a_surge_the_old_pod_goes_when_the_new_one_is_ready() {
        let surge = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let mut world = World::new();
        world.put("one", surge.clone());
        world.ready();
        world.put("two", surge);
        let (mut alive, ending) = world.pods();
        alive.sort();
        assert_eq!((alive, ending), names(&["one", "two"], &[]));
        world.ready();
        assert_eq!(world.pods(), names(&["two"], &["one"]));
    }

    #[test]
    fn on_delete_waits_for_somebody_to_delete() {
        let mut world = World::new();
        world.put("one", json!({"type": "OnDelete"}));
        world.put("two", json!({"type": "OnDelete"}));
        assert_eq!(world.pods(), names(&["one"], &[]));
        let key = world.store.pods().next().unwrap().0.clone();
        delete_object(&mut world.store, &key);
        world.end();
        assert_eq!(world.pods(), names(&["two"], &[]));
    }
}
