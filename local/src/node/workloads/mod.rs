//! Workloads: which pods there should be. Each kind has a file of its own; here is what they share.

mod cron;
mod cronjobs;
mod daemonsets;
mod deployments;
mod jobs;
mod pod_failure;
mod progress;
mod replicasets;
mod statefulsets;

use super::apply::{complete, is_ending};
use super::endpoints::is_ready;
use super::store::{Store, controller_of, owner_reference};
pub(crate) use cronjobs::check as check_cron_job;
pub(crate) use jobs::{failure, is_under_way};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
pub(crate) use pod_failure::check as check_pod_failure_policy;
pub(crate) use progress::stuck;
use weft_core::kinds::{Key, Kind, Object};

/// Letters of generated names: none that makes words, none that is mistaken for another.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// One round of decisions about all workloads.
struct Round<'a> {
    store: &'a mut Store,
    /// The time of all decisions of this round.
    now: Timestamp,
    /// Turns what a template says into a pod, or says why it cannot be one yet.
    admit: &'a dyn Fn(&Store, Pod) -> Result<Pod, String>,
    outcome: Outcome,
}

/// What a round leaves to be told or done.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Why pods that there should be cannot be made.
    pub(crate) refused: Vec<String>,
    /// When something is to be decided anew although nothing changes.
    pub(crate) wake: Option<Timestamp>,
}

/// Makes and deletes pods until there are as many, and such, as the workloads say.
pub(crate) fn reconcile(
    store: &mut Store,
    now: Timestamp,
    admit: &dyn Fn(&Store, Pod) -> Result<Pod, String>,
) -> Outcome {
    let mut round = Round { store, now, admit, outcome: Outcome::default() };
    cronjobs::reconcile(&mut round);
    jobs::reconcile(&mut round);
    deployments::reconcile(&mut round);
    replicasets::reconcile(&mut round);
    statefulsets::reconcile(&mut round);
    daemonsets::reconcile(&mut round);
    round.outcome
}

impl Round<'_> {
    /// All objects of a kind that are not ending.
    fn all(&self, kind: Kind) -> Vec<(Key, Object)> {
        let alive = self.store.list(kind, None).filter(|(_, object)| !is_ending(object));
        alive.map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    /// Decides anew at this time at the latest.
    fn wake_at(&mut self, at: Timestamp) {
        self.outcome.wake = Some(self.outcome.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Whether a pod has been ready for so many seconds.
    fn is_available(&mut self, pod: &Pod, min_ready_seconds: Option<i32>) -> bool {
        if !is_ready(pod) {
            return false;
        }
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
        let since = ready.and_then(|c| c.last_transition_time.as_ref()).map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        let available_at = later(since, i64::from(min_ready_seconds.unwrap_or(0).max(0)));
        if available_at > self.now {
            self.wake_at(available_at);
        }
        available_at <= self.now
    }

    /// Makes a pod; false, with the reason noted, when it is not to be.
    fn make(&mut self, owner: &Key, pod: Pod) -> bool {
        match (self.admit)(self.store, pod) {
            Ok(pod) => self.store.put(Object::from(pod)),
            Err(why) => {
                self.outcome.refused.push(format!("{owner}: {why}"));
                return false;
            }
        }
        true
    }
}

/// A time so many seconds later.
fn later(time: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_second(time.as_second().saturating_add(seconds)).unwrap_or(Timestamp::MAX)
}

/// A number of things in the form in which a status has it.
fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A number that may be written as a share of another one; `None` when nothing is written.
fn scaled(value: Option<&IntOrString>, of: i32, up: bool) -> Option<i32> {
    let percent = |p: i32| {
        let exact = i64::from(of) * i64::from(p);
        let whole = if up { (exact + 99) / 100 } else { exact / 100 };
        i32::try_from(whole).unwrap_or(i32::MAX)
    };
    Some(match value? {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => match text.strip_suffix('%') {
            Some(number) => percent(number.parse().ok()?),
            None => text.parse().ok()?,
        },
    })
}

/// Random letters for the end of a name.
fn random_suffix(length: usize) -> String {
    (0..length).filter_map(|_| fastrand::choice(LETTERS)).map(|b| char::from(*b)).collect()
}

/// The hash of a pod template, as letters.
fn template_hash(template: &PodTemplateSpec) -> String {
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

/// The pods that an object controls, also those that are ending.
fn all_pods_of(store: &Store, owner: &ObjectMeta) -> Vec<(Key, Pod)> {
    let own = store.pods().filter(|(_, pod)| {
        pod.metadata.namespace == owner.namespace
            && controller_of(&pod.metadata).is_some_and(|o| Some(&o.uid) == owner.uid.as_ref())
    });
    own.map(|(key, pod)| (key.clone(), pod.clone())).collect()
}

/// The pods that an object controls and that are not ending.
fn pods_of(store: &Store, owner: &ObjectMeta) -> Vec<(Key, Pod)> {
    let mut pods = all_pods_of(store, owner);
    pods.retain(|(_, pod)| pod.metadata.deletion_timestamp.is_none());
    pods
}

/// How far a pod is: `Pending`, `Running`, `Succeeded`, `Failed`; empty when it is quite new.
fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether a pod has run to its end.
fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// A pod from a template, under a name that is given, or generated when it ends with `-`.
fn pod_from(template: &PodTemplateSpec, owner: &Object, name: &str) -> Pod {
    let written = template.metadata.clone().unwrap_or_default();
    let generated = name.ends_with('-');
    let suffix = if generated { random_suffix(5) } else { String::new() };
    let mut object = Object::from(Pod {
        metadata: ObjectMeta {
            name: Some(format!("{name}{suffix}")),
            generate_name: generated.then(|| name.to_owned()),
            namespace: owner.metadata().namespace.clone(),
            labels: written.labels,
            annotations: written.annotations,
            owner_references: Some(vec![owner_reference(owner)]),
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
