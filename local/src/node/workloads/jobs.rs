//! Jobs: pods that run to their end, as often as is asked for, and not for ever when they fail.

use super::super::apply::delete_object;
use super::super::endpoints::is_ready;
use super::super::readiness::trouble;
use super::super::slot::{back_off, is_sidecar};
use super::pod_failure::{Meaning, meaning};
use super::{Round, all_pods_of, count, later, phase, pod_from};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{ContainerStatus, EnvVar, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use weft_core::kinds::{Key, Kind, Object};
use weft_core::names::PROXY_CONTAINER;

/// Annotation and label of a pod of an indexed job: which one it is.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Environment variable of the same.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// Starts the pods of all jobs, and reports how far they are.
pub(super) fn reconcile(round: &mut Round<'_>) {
    for (key, object) in round.all(Kind::Job) {
        let Object::Job(job) = &object else { continue };
        let Some(spec) = &job.spec else { continue };
        match job.status.as_ref().and_then(finished_at) {
            Some(at) => expire(round, &key, spec, at),
            None => advance(round, &key, &object, job, spec),
        }
    }
}

/// When a job has ended, if it has.
pub(super) fn finished_at(status: &JobStatus) -> Option<Timestamp> {
    let ended = |c: &&JobCondition| (c.type_ == "Complete" || c.type_ == "Failed") && c.status == "True";
    let condition = status.conditions.iter().flatten().find(ended)?;
    Some(condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// Whether a job has ended well.
pub(super) fn is_complete(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Complete" && c.status == "True")
}

/// Why a job has failed, if it has.
pub(crate) fn failure(job: &Job) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let failed = conditions.iter().find(|c| c.type_ == "Failed" && c.status == "True")?;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    Some(format!("{}: {}", text(&failed.reason), text(&failed.message)))
}

/// Whether a job needs nothing more to get done: it has completed, is suspended, or all its pods are ready or have done
/// their part.
pub(crate) fn is_under_way(job: &Job) -> bool {
    let Some(status) = &job.status else { return false };
    let (active, ready) = (status.active.unwrap_or(0), status.ready.unwrap_or(0));
    let suspended = job.spec.as_ref().and_then(|s| s.suspend) == Some(true);
    suspended || finished_at(status).is_some() || (active > 0 && ready == active)
}

/// Deletes a job whose time after its end is over.
fn expire(round: &mut Round<'_>, key: &Key, spec: &JobSpec, ended_at: Timestamp) {
    let Some(seconds) = spec.ttl_seconds_after_finished else { return };
    let at = later(ended_at, i64::from(seconds));
    if at <= round.now {
        delete_object(round.store, key);
    } else {
        round.wake_at(at);
    }
}

/// The pods of a job, by what has become of them.
#[derive(Default)]
struct Pods {
    active: Vec<(Key, Pod)>,
    succeeded: Vec<Pod>,
    failed: Vec<Pod>,
    /// Failed, but the job does not mind.
    ignored: Vec<Pod>,
    /// Why the job is to fail at once.
    fatal: Option<String>,
    /// Ending before they have done their work.
    terminating: usize,
}

impl Pods {
    fn of(round: &Round<'_>, job: &Job, spec: &JobSpec) -> Pods {
        let mut pods = Pods::default();
        for (key, pod) in all_pods_of(round.store, &job.metadata) {
            match phase(&pod) {
                "Succeeded" => pods.succeeded.push(pod),
                "Failed" => match meaning(spec, &pod) {
                    Meaning::Counts => pods.failed.push(pod),
                    Meaning::Ignored => pods.ignored.push(pod),
                    Meaning::Ends(why) => {
                        pods.fatal = Some(why);
                        pods.failed.push(pod);
                    }
                },
                _ if pod.metadata.deletion_timestamp.is_some() => pods.terminating += 1,
                _ => pods.active.push((key, pod)),
            }
        }
        pods
    }

    /// Indexes that are done.
    fn done(&self, completions: i32) -> BTreeSet<i32> {
        self.succeeded.iter().filter_map(index).filter(|i| (0..completions).contains(i)).collect()
    }
}

fn advance(round: &mut Round<'_>, key: &Key, object: &Object, job: &Job, spec: &JobSpec) {
    let mut status = job.status.clone().unwrap_or_default();
    let pods = Pods::of(round, job, spec);
    if spec.suspend == Some(true) {
        delete_all(round, &pods.active);
        status.start_time = None;
        set_condition(&mut status, round.now, "Suspended", true, "JobSuspended", "Job suspended");
        return report(round, key, job, spec, status);
    }
    if status.conditions.iter().flatten().any(|c| c.type_ == "Suspended") {
        set_condition(&mut status, round.now, "Suspended", false, "JobResumed", "Job resumed");
    }
    let started_at = status.start_time.get_or_insert(Time(round.now)).0;
    if let Some((reason, message)) = failed_because(round, spec, &pods, started_at) {
        delete_all(round, &pods.active);
        set_condition(&mut status, round.now, "FailureTarget", true, reason, &message);
        set_condition(&mut status, round.now, "Failed", true, reason, &message);
        return report(round, key, job, spec, status);
    }
    if is_done(spec, &pods) {
        delete_all(round, &pods.active);
        let message = "Reached expected number of succeeded pods";
        set_condition(&mut status, round.now, "SuccessCriteriaMet", true, "CompletionsReached", message);
        set_condition(&mut status, round.now, "Complete", true, "CompletionsReached", message);
        status.completion_time = Some(Time(round.now));
        return report(round, key, job, spec, status);
    }
    set_number(round, key, object, spec, pods);
    report(round, key, job, spec, status);
}

fn is_done(spec: &JobSpec, pods: &Pods) -> bool {
    match spec.completions {
        Some(completions) if is_indexed(spec) => pods.done(completions).len() >= size(completions),
        Some(completions) => pods.succeeded.len() >= size(completions),
        // They share the work, and know when there is no more.
        None => !pods.succeeded.is_empty() && pods.active.is_empty() && pods.terminating == 0,
    }
}

fn failed_because(
    round: &mut Round<'_>,
    spec: &JobSpec,
    pods: &Pods,
    started_at: Timestamp,
) -> Option<(&'static str, String)> {
    if let Some(why) = &pods.fatal {
        return Some(("PodFailurePolicy", why.clone()));
    }
    let limit = size(spec.backoff_limit.unwrap_or(6));
    let restarts: usize = pods.active.iter().map(|(_, pod)| restarts(pod)).sum();
    if pods.failed.len() > limit || (restarts > 0 && restarts >= limit) {
        let active = pods.active.iter().map(|(_, pod)| pod).filter(|pod| restarts > 0 && self::restarts(pod) > 0);
        let why = active.chain(pods.failed.iter().rev()).find_map(|pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            Some(format!(": pod {name}: {}", trouble(pod)?.1))
        });
        let message = format!("Job has reached the specified backoff limit{}", why.unwrap_or_default());
        return Some(("BackoffLimitExceeded", message));
    }
    let deadline = later(started_at, spec.active_deadline_seconds?);
    if deadline <= round.now {
        return Some(("DeadlineExceeded", "Job was active longer than specified deadline".into()));
    }
    round.wake_at(deadline);
    None
}

/// How often what a pod is there for was started anew.
fn restarts(pod: &Pod) -> usize {
    let beside = |name: &str| name == PROXY_CONTAINER || is_sidecar(pod, name);
    let status = pod.status.iter();
    let all = status.flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
    all.filter(|c| !beside(&c.name)).map(|c| size(c.restart_count)).sum()
}

/// Makes and deletes pods until as many run as should.
fn set_number(round: &mut Round<'_>, key: &Key, object: &Object, spec: &JobSpec, mut pods: Pods) {
    let parallel = size(spec.parallelism.unwrap_or(1));
    let mut missing: Vec<Option<i32>> = Vec::new();
    let wanted = match spec.completions {
        Some(completions) if is_indexed(spec) => {
            let done = pods.done(completions);
            let active: BTreeSet<i32> = pods.active.iter().filter_map(|(_, pod)| index(pod)).collect();
            let left = (0..completions).filter(|i| !done.contains(i));
            missing.extend(left.clone().filter(|i| !active.contains(i)).map(Some));
            left.count().min(parallel)
        }
        Some(completions) => size(completions).saturating_sub(pods.succeeded.len()).min(parallel),
        None if pods.succeeded.is_empty() => parallel,
        None => pods.active.len().min(parallel),
    };
    if pods.active.len() > wanted {
        pods.active
            .sort_by_key(|(_, pod)| (is_ready(pod), Reverse(pod.metadata.creation_timestamp.as_ref().map(|t| t.0))));
        let surplus = pods.active.len() - wanted;
        return delete_all(round, pods.active.get(..surplus).unwrap_or_default());
    }
    let number = wanted - pods.active.len();
    if number == 0 || !may_start(round, &pods) {
        return;
    }
    if !is_indexed(spec) {
        missing.resize(number, None);
    }
    for index in missing.into_iter().take(number) {
        if !round.make(key, new_pod(object, key, spec, index)) {
            return;
        }
    }
}

/// What has failed is tried again after a pause, which gets longer with each failure in a row.
fn may_start(round: &mut Round<'_>, pods: &Pods) -> bool {
    let last_success = pods.succeeded.iter().filter_map(ended_at).max();
    let failed = pods.failed.iter().chain(&pods.ignored).filter_map(ended_at);
    let failures = failed.filter(|at| last_success.is_none_or(|success| *at >= success));
    let failures: Vec<Timestamp> = failures.collect();
    let Some(last) = failures.iter().max() else { return true };
    let pause = back_off(u32::try_from(failures.len()).unwrap_or(u32::MAX));
    let at = later(*last, i64::try_from(pause.as_secs()).unwrap_or(i64::MAX));
    if at > round.now {
        round.wake_at(at);
    }
    at <= round.now
}

fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let ended = |c: &ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.filter_map(ended).max()
}

fn new_pod(object: &Object, key: &Key, spec: &JobSpec, index: Option<i32>) -> Pod {
    let name = index.map_or_else(|| format!("{}-", key.name), |index| format!("{}-{index}-", key.name));
    let mut pod = pod_from(&spec.template, object, &name);
    let uid = object.metadata().uid.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    for (label, value) in [("job-name", &key.name), ("controller-uid", &uid)] {
        labels.insert(label.to_owned(), value.clone());
        labels.insert(format!("batch.kubernetes.io/{label}"), value.clone());
    }
    if let Some(index) = index {
        labels.insert(INDEX.into(), index.to_string());
        pod.metadata.annotations.get_or_insert_default().insert(INDEX.into(), index.to_string());
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(format!("{}-{index}", key.name));
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let variable = EnvVar { name: INDEX_VARIABLE.into(), value: Some(index.to_string()), ..Default::default() };
            container.env.get_or_insert_default().push(variable);
        }
    }
    pod
}

fn delete_all(round: &mut Round<'_>, pods: &[(Key, Pod)]) {
    for (key, _) in pods {
        delete_object(round.store, key);
    }
}

fn report(round: &mut Round<'_>, key: &Key, job: &Job, spec: &JobSpec, mut status: JobStatus) {
    let pods = Pods::of(round, job, spec);
    let ready = pods.active.iter().filter(|(_, pod)| is_ready(pod)).count();
    let some = |number: usize| (number > 0).then(|| count(number));
    status.active = some(pods.active.len());
    status.ready = Some(count(ready));
    status.terminating = Some(count(pods.terminating));
    status.succeeded = some(pods.succeeded.len()).max(status.succeeded);
    status.failed = some(pods.failed.len()).max(status.failed);
    if let (true, Some(completions)) = (is_indexed(spec), spec.completions) {
        let done = pods.done(completions);
        status.succeeded = some(done.len());
        status.completed_indexes = (!done.is_empty()).then(|| ranges(&done));
    }
    round.store.update(key, |object| {
        if let Object::Job(job) = object {
            job.status = Some(status);
        }
    });
}

fn set_condition(status: &mut JobStatus, now: Timestamp, type_: &str, holds: bool, reason: &str, message: &str) {
    let conditions = status.conditions.get_or_insert_default();
    let held = if holds { "True" } else { "False" };
    if conditions.iter().any(|c| c.type_ == type_ && c.status == held) {
        return;
    }
    conditions.retain(|c| c.type_ != type_);
    conditions.push(JobCondition {
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
        message: Some(message.to_owned()),
        reason: Some(reason.to_owned()),
        status: held.into(),
        type_: type_.into(),
    });
}

/// Whether every pod of the job has a number of its own.
fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn index(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

fn size(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Numbers as Kubernetes shortens them: `0-2,5`.
fn ranges(numbers: &BTreeSet<i32>) -> String {
    let mut runs: BTreeMap<i32, i32> = BTreeMap::new();
    for number in numbers {
        match runs.last_entry() {
            Some(mut run) if *run.get() + 1 == *number => {
                run.insert(*number);
            }
            _ => {
                runs.insert(*number, *number);
            }
        }
    }
    let shown =
        runs.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::super::super::store::Store;
    use super::super::has_ended;
    use super::*;
    use serde_json::{Value, json};

    struct World {
        store: Store,
        now: Timestamp,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn new(spec: Value) -> World {
            let dir = tempfile::tempdir().unwrap();
            let mut world = World {
                store: Store::new(dir.path().to_owned()),
                now: Timestamp::from_second(1_000_000).unwrap(),
                _dir: dir,
            };
            world.put(spec);
            world
        }

        fn put(&mut self, mut spec: Value) {
            spec["template"] = json!({"spec": {"restartPolicy": spec["policy"], "containers": [{"name": "main"}]}});
            spec.as_object_mut().unwrap().remove("policy");
            let value = json!({"metadata": {"name": "run", "namespace": "a"}, "spec": spec});
            let mut object = Object::from_value(Kind::Job, value).unwrap();
            if let (Object::Job(new), Some(Object::Job(old))) = (&mut object, self.store.get(&key())) {
                new.status.clone_from(&old.status);
            }
            self.store.put(object);
            self.settle();
        }

        /// Answers when it would go on by itself.
        fn settle(&mut self) -> Option<i64> {
            for _ in 0..50 {
                let version = self.store.version();
                let outcome = super::super::reconcile(&mut self.store, self.now, &|_, pod| Ok(pod));
                let ended: Vec<Key> = self
                    .store
                    .pods()
                    .filter(|(_, p)| p.metadata.deletion_timestamp.is_some())
                    .map(|(k, _)| k.clone())
                    .collect();
                for key in ended {
                    self.store.remove(&key);
                }
                if self.store.version() == version {
                    return outcome.wake.map(|at| at.as_second() - self.now.as_second());
                }
            }
            panic!("never settles");
        }

        fn pass(&mut self, seconds: i64) -> Option<i64> {
            self.now = later(self.now, seconds);
            self.settle()
        }

        fn active(&self) -> Vec<Key> {
            self.store.pods().filter(|(_, pod)| !has_ended(pod)).map(|(key, _)| key.clone()).collect()
        }

        /// Ends one pod that runs; answers when the job would go on by itself.
        fn end(&mut self, code: i32) -> Option<i64> {
            let key = self.active().into_iter().next().expect("a pod runs");
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            let at = self.now.to_string();
            self.store.update_pod(&key, |pod| {
                let status = json!({"phase": phase, "containerStatuses": [{"name": "main", "ready": false,
                    "restartCount": 0, "image": "", "imageID": "",
                    "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]});
                pod.status = serde_json::from_value(status).unwrap();
            });
            self.settle()
        }

        fn status(&self) -> JobStatus {
            match self.store.get(&key()) {
                Some(Object::Job(job)) => job.status.clone().unwrap_or_default(),
                _ => panic!("the job is gone"),
            }
        }

        fn holds(&self, type_: &str) -> bool {
            self.status().conditions.iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
        }
    }

    fn key() -> Key {
        Key::new(Kind::Job, "a", "run")
    }

    #[test]
    fn so_many_succeed_and_never_more_run_than_may() {
        let mut world = World::new(json!({"policy": "Never", "completions": 5, "parallelism": 2}));
        for done in 0..5 {
            assert_eq!(world.active().len(), 2.min(5 - done));
            assert!(!world.holds("Complete"));
            world.end(0);
        }
        assert!(world.holds("Complete") && world.status().completion_time.is_some());
        assert_eq!((world.status().succeeded, world.status().active), (Some(5), None));
    }

    #[test]
    fn failures_are_tried_again_later_and_later_until_the_limit() {
        let mut world = World::new(json!({"policy": "Never", "backoffLimit": 3}));
        for pause in [0, 1, 2] {
            let wake = world.end(3);
            if pause > 0 {
                assert_eq!((world.active().len(), wake), (0, Some(pause)));
                world.pass(pause);
            }
            assert_eq!(world.active().len(), 1);
        }
        world.end(3);
        assert!(world.holds("Failed"));
        match world.store.get(&key()) {
            Some(Object::Job(job)) => {
                let why = failure(job).unwrap();
                assert!(
                    why.starts_with("BackoffLimitExceeded: ") && why.contains("main ended with exit code 3"),
                    "{why}"
                );
            }
            _ => unreachable!(),
        }
        assert_eq!((world.status().failed, world.active().len()), (Some(4), 0));
    }

    #[test]
    fn failures_count_end_a_job_or_do_not_matter() {
        let rules = json!([{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
                           {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]);
        let spec =
            json!({"policy": "Never", "completions": 1, "backoffLimit": 1, "podFailurePolicy": {"rules": rules}});
        let mut world = World::new(spec);
        for failures in 1..5 {
            let pause = world.end(7);
            assert!(!world.holds("Failed"));
            assert_eq!(world.status().failed, None);
            if failures > 1 {
                world.pass(pause.expect("they are paced all the same"));
            }
        }
        world.end(42);
        assert!(world.holds("Failed") && world.active().is_empty());
        assert_eq!(world.status().failed, Some(1));
    }

    #[test]
    fn restarts_within_a_pod_count_too() {
        let mut world = World::new(json!({"policy": "OnFailure", "backoffLimit": 2}));
        for (restarts, failed) in [(1, false), (2, true)] {
            if let Some(key) = world.active().first() {
                world.store.update_pod(key, |pod| {
                    let status = json!({"phase": "Running", "containerStatuses": [{"name": "main", "ready": false,
                        "restartCount": restarts, "image": "", "imageID": ""}]});
                    pod.status = serde_json::from_value(status).unwrap();
                });
            }
            world.settle();
            assert_eq!(world.holds("Failed"), failed);
        }
        assert!(world.active().is_empty());
    }

    #[test]
    fn every_index_succeeds_once() {
        let mut world =
            World::new(json!({"policy": "Never", "completions": 4, "parallelism": 4, "completionMode": "Indexed"}));
        let pod = world.store.pod(&world.active()[2]).unwrap().clone();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("run-2"));
        let variable = &spec.containers[0].env.as_ref().unwrap()[0];
        assert_eq!((variable.name.as_str(), variable.value.as_deref()), (INDEX_VARIABLE, Some("2")));
        world.end(0);
        world.end(1);
        assert_eq!(world.status().completed_indexes.as_deref(), Some("0"));
        for _ in 0..3 {
            assert!(!world.holds("Complete"));
            world.end(0);
        }
        assert!(world.holds("Complete"));
        assert_eq!(world.status().completed_indexes.as_deref(), Some("0-3"));
        assert_eq!(world.status().failed, Some(1));
    }

    #[test]
    fn pods_that_share_their_work_end_together() {
        let mut world = World::new(json!({"policy": "Never", "parallelism": 3}));
        assert_eq!(world.active().len(), 3);
        world.end(0);
        world.end(0);
        assert_eq!(world.active().len(), 1);
        assert!(!world.holds("Complete"));
        world.end(0);
        assert!(world.holds("Complete"));
    }

    #[test]
    fn a_deadline_ends_a_job_and_its_time_afterwards_removes_it() {
        let mut world = World::new(
            json!({"policy": "Never", "completions": 1, "activeDeadlineSeconds": 10, "ttlSecondsAfterFinished": 5}),
        );
        assert_eq!(world.pass(9), Some(1));
        assert!(!world.holds("Failed"));
        world.pass(1);
        assert!(world.holds("Failed") && world.active().is_empty());
        assert_eq!(world.pass(4), Some(1));
        world.pass(1);
        assert!(world.store.get(&key()).is_none());
    }

    #[test]
    fn a_suspended_job_waits_and_begins_anew() {
        let spec = |suspend: bool| json!({"policy": "Never", "completions": 1, "suspend": suspend, "activeDeadlineSeconds": 10});
        let mut world = World::new(spec(false));
        world.put(spec(true));
        assert!(world.active().is_empty() && world.holds("Suspended"));
        assert_eq!(world.pass(100), None);
        world.put(spec(false));
        assert!(!world.holds("Suspended"));
        assert_eq!((world.active().len(), world.pass(1)), (1, Some(9)));
        world.end(0);
        assert!(world.holds("Complete"));
    }

    #[test]
    fn indexes_are_shortened() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8].into()), "0-2,5,7-8");
        assert_eq!(ranges(&BTreeSet::new()), "");
    }
}
