//! ReplicaSets: so many pods of one template.

use super::super::apply::delete_object;
use super::super::endpoints::is_ready;
use super::{Round, count, has_ended, pod_from, pods_of};
use k8s_openapi::api::apps::v1::ReplicaSetStatus;
use std::cmp::Reverse;
use weft_core::kinds::{Kind, Object};

/// Makes and deletes pods until every ReplicaSet has as many as it should.
pub(super) fn reconcile(round: &mut Round<'_>) {
    for (key, object) in round.all(Kind::ReplicaSet) {
        let Object::ReplicaSet(set) = &object else { continue };
        let mut pods = pods_of(round.store, &set.metadata);
        // A pod that has failed for good is replaced.
        pods.retain(|(_, pod)| !has_ended(pod));
        let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        if pods.len() > wanted {
            // Those that are not ready go first, then the youngest.
            pods.sort_by_key(|(_, pod)| {
                (is_ready(pod), Reverse(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)))
            });
            let surplus = pods.len() - wanted;
            for (pod, _) in pods.drain(..surplus) {
                delete_object(round.store, &pod);
            }
        }
        for _ in pods.len()..wanted {
            let Some(template) = &set.spec.template else { break };
            if !round.make(&key, pod_from(template, &object, &format!("{}-", key.name))) {
                break;
            }
        }
        let pods = pods_of(round.store, &set.metadata);
        let ready = pods.iter().filter(|(_, pod)| is_ready(pod)).count();
        let available = pods.iter().filter(|(_, pod)| round.is_available(pod, set.spec.min_ready_seconds)).count();
        round.store.update(&key, |object| {
            if let Object::ReplicaSet(set) = object {
                set.status = Some(ReplicaSetStatus {
                    available_replicas: Some(count(available)),
                    ready_replicas: Some(count(ready)),
                    replicas: count(pods.len()),
                    observed_generation: set.metadata.generation,
                    ..Default::default()
                });
            }
        });
    }
}
