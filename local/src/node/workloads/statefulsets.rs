//! StatefulSets: pods with names, storage and an order that stay.

use super::super::apply::{complete, delete_object};
use super::super::endpoints::is_ready;
use super::super::store::{controller_of, owner_reference};
use super::{Round, all_pods_of, count, has_ended, pod_from, scaled, template_hash};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::ops::Range;
use weft_core::kinds::{Key, Kind, Object};

/// Label of a pod: which template it was made from.
const REVISION: &str = "controller-revision-hash";

/// Makes and deletes the pods of all StatefulSets in their order.
pub(super) fn reconcile(round: &mut Round<'_>) {
    let sets = round.all(Kind::StatefulSet);
    let alive: Vec<Option<&String>> = sets.iter().map(|(_, object)| object.metadata().uid.as_ref()).collect();
    round.store.revisions.retain(|(uid, _), _| alive.contains(&Some(uid)));
    for (key, object) in &sets {
        if let Object::StatefulSet(set) = object {
            reconcile_one(round, key, object, set);
        }
    }
}

/// What is seen of a pod.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// It is being deleted.
    ending: bool,
    /// It has run to its end.
    ended: bool,
    ready: bool,
    /// It has been ready for long enough.
    available: bool,
    /// It was made from the newest template.
    updated: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Make(i32),
    Delete(i32),
}

/// How a set wants its pods to be treated.
struct Rules {
    /// Which pods there are to be.
    ordinals: Range<i32>,
    /// Without waiting for each other.
    parallel: bool,
    /// Pods from this one on are replaced when the template changes, so many at a time.
    replace: Option<(i32, i32)>,
}

/// Decides about the next steps: made in order, each waiting for the one before; removed in reverse; replaced in reverse.
fn steps(seen: &BTreeMap<i32, Seen>, rules: &Rules) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut healthy = true;
    for ordinal in rules.ordinals.clone() {
        match seen.get(&ordinal) {
            Some(pod) if pod.available => continue,
            None => steps.push(Step::Make(ordinal)),
            // A pod that has ended is made anew under its name.
            Some(pod) if pod.ended && !pod.ending => steps.push(Step::Delete(ordinal)),
            Some(_) => {}
        }
        healthy = false;
        if !rules.parallel {
            break;
        }
    }
    if healthy || rules.parallel {
        for (ordinal, pod) in seen.iter().rev().filter(|(ordinal, _)| !rules.ordinals.contains(ordinal)) {
            if !pod.ending {
                steps.push(Step::Delete(*ordinal));
            }
            if !rules.parallel {
                break;
            }
        }
    }
    if let Some((from, at_a_time)) = rules.replace {
        let is_available = |ordinal: &i32| seen.get(ordinal).is_some_and(|pod| pod.available);
        let missing = rules.ordinals.clone().filter(|ordinal| !is_available(ordinal)).count();
        let mut spare = at_a_time.max(1) - count(missing);
        for ordinal in rules.ordinals.clone().rev().filter(|ordinal| *ordinal >= from) {
            let Some(pod) = seen.get(&ordinal).filter(|pod| !pod.updated && !pod.ending && !pod.ended) else {
                continue;
            };
            // One that is not ready serves nobody, and may never be: waiting for it would be waiting for ever.
            if pod.ready && spare <= 0 {
                continue;
            }
            if pod.available {
                spare -= 1;
            }
            steps.push(Step::Delete(ordinal));
        }
    }
    steps
}

fn reconcile_one(round: &mut Round<'_>, key: &Key, object: &Object, set: &StatefulSet) {
    let spec = &set.spec;
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let hash = template_hash(&spec.template);
    round.store.revisions.insert((uid.clone(), hash.clone()), spec.template.clone());
    let before = set.status.clone().unwrap_or_default();
    let revision = |hash: &str| format!("{}-{hash}", key.name);
    let update = revision(&hash);
    let current = before.current_revision.clone().unwrap_or_else(|| update.clone());

    let first = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let wanted = spec.replicas.unwrap_or(1).max(0);
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let partition = first.saturating_add(rolling.and_then(|r| r.partition).unwrap_or(0).max(0));
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let at_a_time = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, true).unwrap_or(1);
    let rules = Rules {
        ordinals: first..first.saturating_add(wanted),
        parallel: spec.pod_management_policy.as_deref() == Some("Parallel"),
        replace: (!on_delete).then_some((partition, at_a_time)),
    };
    let seen: BTreeMap<i32, Seen> = all_pods_of(round.store, &set.metadata)
        .into_iter()
        .filter_map(|(pod_key, pod)| Some((ordinal(&key.name, &pod_key.name)?, look(round, &pod, set, &update))))
        .collect();
    for step in steps(&seen, &rules) {
        match step {
            Step::Delete(ordinal) => {
                let pod = Key::new(Kind::Pod, &key.namespace, &format!("{}-{ordinal}", key.name));
                delete_object(round.store, &pod);
            }
            Step::Make(ordinal) => {
                // Below the partition, what is lost comes back as it was.
                let old = !on_delete && ordinal < partition;
                let hash = if old { current.strip_prefix(&format!("{}-", key.name)).unwrap_or(&hash) } else { &hash };
                let known = round.store.revisions.get(&(uid.clone(), hash.to_owned())).cloned();
                let (template, label) = match known {
                    Some(template) => (template, revision(hash)),
                    None => (spec.template.clone(), update.clone()),
                };
                make_claims(round, key, object, set, ordinal);
                let pod = new_pod(&template, key, object, set, ordinal, label);
                if !round.make(key, pod) {
                    break;
                }
            }
        }
    }
    report(round, key, set, &rules, current, update);
    // Only these two can be needed again.
    let status = match round.store.get(key) {
        Some(Object::StatefulSet(set)) => set.status.clone().unwrap_or_default(),
        _ => return,
    };
    round.store.revisions.retain(|(owner, hash), _| {
        let kept = Some(revision(hash));
        *owner != uid || kept == status.current_revision || kept == status.update_revision
    });
}

fn look(round: &mut Round<'_>, pod: &Pod, set: &StatefulSet, update: &str) -> Seen {
    Seen {
        ending: pod.metadata.deletion_timestamp.is_some(),
        ended: has_ended(pod),
        ready: is_ready(pod),
        available: round.is_available(pod, set.spec.min_ready_seconds),
        updated: is_of(pod, update),
    }
}

fn is_of(pod: &Pod, revision: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)).is_some_and(|r| r == revision)
}

/// The number in a pod's name.
fn ordinal(set: &str, pod: &str) -> Option<i32> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

/// The name of a pod's claim from a template.
fn claim_name(template: &str, set: &str, ordinal: i32) -> String {
    format!("{template}-{set}-{ordinal}")
}

/// Makes the claims of a pod that are not there yet. They stay when the pod goes, and when the set does.
fn make_claims(round: &mut Round<'_>, key: &Key, object: &Object, set: &StatefulSet, ordinal: i32) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let goes_with_set = policy.and_then(|p| p.when_deleted.as_deref()) == Some("Delete");
    for template in set.spec.volume_claim_templates.iter().flatten() {
        let name = claim_name(template.metadata.name.as_deref().unwrap_or_default(), &key.name, ordinal);
        if round.store.get(&Key::new(Kind::PersistentVolumeClaim, &key.namespace, &name)).is_some() {
            continue;
        }
        let mut claim = template.clone();
        let mut labels = set.spec.selector.match_labels.clone().unwrap_or_default();
        labels.extend(template.metadata.labels.clone().unwrap_or_default());
        claim.metadata = ObjectMeta {
            name: Some(name),
            namespace: Some(key.namespace.clone()),
            labels: Some(labels),
            annotations: template.metadata.annotations.clone(),
            owner_references: goes_with_set.then(|| vec![owner_reference(object)]),
            ..Default::default()
        };
        let mut claim = Object::from(claim);
        complete(&mut claim);
        round.store.put(claim);
    }
}

fn new_pod(
    template: &PodTemplateSpec,
    key: &Key,
    object: &Object,
    set: &StatefulSet,
    ordinal: i32,
    revision: String,
) -> Pod {
    let name = format!("{}-{ordinal}", key.name);
    let mut pod = pod_from(template, object, &name);
    pod.metadata.labels.get_or_insert_default().extend([
        (REVISION.to_owned(), revision),
        ("statefulset.kubernetes.io/pod-name".to_owned(), name.clone()),
        ("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string()),
    ]);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain.clone_from(&set.spec.service_name);
    for template in set.spec.volume_claim_templates.iter().flatten() {
        let name = template.metadata.name.clone().unwrap_or_default();
        let claim_name = claim_name(&name, &key.name, ordinal);
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != name);
        volumes.push(Volume {
            name,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
            ..Default::default()
        });
    }
    pod
}

fn report(round: &mut Round<'_>, key: &Key, set: &StatefulSet, rules: &Rules, mut current: String, update: String) {
    let pods: Vec<Pod> = all_pods_of(round.store, &set.metadata).into_iter().map(|(_, pod)| pod).collect();
    let number = |pods: &mut dyn Iterator<Item = &Pod>| count(pods.count());
    let alive = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none() && controller_of(&pod.metadata).is_some();
    let updated = number(&mut pods.iter().filter(alive).filter(|pod| is_of(pod, &update)));
    let ready = number(&mut pods.iter().filter(|pod| is_ready(pod)));
    let available = pods.iter().filter(|pod| round.is_available(pod, set.spec.min_ready_seconds)).count();
    let wanted = rules.ordinals.end - rules.ordinals.start;
    if rules.replace.is_some() && updated == wanted && ready == wanted && count(pods.len()) == wanted {
        current.clone_from(&update);
    }
    let status = StatefulSetStatus {
        available_replicas: Some(count(available)),
        current_replicas: Some(number(&mut pods.iter().filter(alive).filter(|pod| is_of(pod, &current)))),
        current_revision: Some(current),
        observed_generation: set.metadata.generation,
        ready_replicas: Some(ready),
        replicas: count(pods.len()),
        update_revision: Some(update),
        updated_replicas: Some(updated),
        ..Default::default()
    };
    round.store.update(key, |object| {
        if let Object::StatefulSet(set) = object {
            set.status = Some(status);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::Step::{Delete, Make};
    use super::*;

    fn pods(states: &[(i32, &str)]) -> BTreeMap<i32, Seen> {
        let seen = |text: &str| Seen {
            ending: text.contains("ending"),
            ended: text.contains("ended"),
            ready: text.contains("ready") && !text.contains("ending"),
            available: text.contains("ready") && !text.contains("new") && !text.contains("ending"),
            updated: !text.contains("old"),
        };
        states.iter().map(|(ordinal, text)| (*ordinal, seen(text))).collect()
    }

    fn rules(replicas: i32) -> Rules {
        Rules { ordinals: 0..replicas, parallel: false, replace: Some((0, 1)) }
    }

    #[test]
    fn pods_are_made_one_after_the_other() {
        assert_eq!(steps(&pods(&[]), &rules(3)), [Make(0)]);
        assert_eq!(steps(&pods(&[(0, "")]), &rules(3)), []);
        assert_eq!(steps(&pods(&[(0, "ready new")]), &rules(3)), [], "not ready for long enough");
        assert_eq!(steps(&pods(&[(0, "ready")]), &rules(3)), [Make(1)]);
        assert_eq!(steps(&pods(&[(0, "ready"), (2, "ready")]), &rules(3)), [Make(1)], "a gap is filled");
        assert_eq!(steps(&pods(&[(0, "ended"), (1, "ready")]), &rules(2)), [Delete(0)]);
        assert_eq!(steps(&pods(&[(0, "ending")]), &rules(2)), []);
        let parallel = Rules { parallel: true, ..rules(3) };
        assert_eq!(steps(&pods(&[(1, "")]), &parallel), [Make(0), Make(2)]);
        let from_five = Rules { ordinals: 5..7, ..rules(0) };
        assert_eq!(steps(&pods(&[(5, "ready")]), &from_five), [Make(6)]);
    }

    #[test]
    fn pods_are_removed_in_reverse() {
        let three = [(0, "ready"), (1, "ready"), (2, "ready")];
        assert_eq!(steps(&pods(&three), &rules(1)), [Delete(2)]);
        assert_eq!(steps(&pods(&[(0, "ready"), (1, "ready"), (2, "ending")]), &rules(1)), []);
        assert_eq!(steps(&pods(&[(0, ""), (1, "ready")]), &rules(1)), [], "not while one is not well");
        assert_eq!(steps(&pods(&three), &Rules { parallel: true, ..rules(1) }), [Delete(2), Delete(1)]);
    }

    #[test]
    fn pods_are_replaced_in_reverse_down_to_the_partition() {
        let all = [(0, "ready old"), (1, "ready old"), (2, "ready old")];
        assert_eq!(steps(&pods(&all), &rules(3)), [Delete(2)]);
        assert_eq!(steps(&pods(&[(0, "ready old"), (1, "ready old"), (2, "ending old")]), &rules(3)), []);
        assert_eq!(steps(&pods(&[(0, "ready old"), (1, "ready old"), (2, "")]), &rules(3)), []);
        assert_eq!(steps(&pods(&[(0, "ready old"), (1, "ready old"), (2, "ready")]), &rules(3)), [Delete(1)]);
        let partition = Rules { replace: Some((1, 1)), ..rules(3) };
        assert_eq!(steps(&pods(&[(0, "ready old"), (1, "ready"), (2, "ready")]), &partition), []);
        assert_eq!(steps(&pods(&all), &Rules { replace: Some((0, 2)), ..rules(3) }), [Delete(2), Delete(1)]);
        assert_eq!(steps(&pods(&all), &Rules { replace: None, ..rules(3) }), []);
    }

    #[test]
    fn a_broken_template_can_be_mended() {
        // The last one does not become ready, and nothing but another template will help it.
        assert_eq!(steps(&pods(&[(0, "ready"), (1, "ready"), (2, "old")]), &rules(3)), [Delete(2)]);
        assert_eq!(steps(&pods(&[(0, "old")]), &rules(3)), [Delete(0)]);
        assert_eq!(steps(&pods(&[(0, "ready new old"), (1, "ready")]), &rules(2)), [], "it serves");
    }

    #[test]
    fn numbers_in_names() {
        assert_eq!(ordinal("web", "web-12"), Some(12));
        assert_eq!(ordinal("web", "web-x"), None);
        assert_eq!(ordinal("web", "webs-1"), None);
    }
}
