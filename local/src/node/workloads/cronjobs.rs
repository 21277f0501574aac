//! CronJobs: jobs that begin when a schedule says so.

use super::super::apply::{delete_object, is_ending};
use super::super::store::{Store, controller_of, owner_reference};
use super::cron::Schedule;
use super::jobs::{finished_at, is_complete};
use super::{Round, later};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use weft_core::kinds::{Key, Kind, Object};

/// Annotation of a job: the time that it was to begin at.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Starts the jobs whose time has come, and removes old ones.
pub(super) fn reconcile(round: &mut Round<'_>) {
    for (key, object) in round.all(Kind::CronJob) {
        let Object::CronJob(cron) = &object else { continue };
        let before = cron.status.clone().unwrap_or_default();
        let due = due(round, cron, &before);
        let started = due.is_some_and(|at| start(round, &key, &object, cron, at));
        forget_old(round, cron);
        report(round, &key, cron, before, due.filter(|_| started));
    }
}

/// Why a schedule cannot be followed.
pub(crate) fn check(cron: &CronJob) -> Result<(), (String, String)> {
    let refuse = |field: &str, message: String| Err((format!("spec.{field}"), message));
    if let Some(zone) = cron.spec.time_zone.as_deref().filter(|zone| !["UTC", "Etc/UTC", "GMT"].contains(zone)) {
        return refuse("timeZone", format!("{zone} is not known on one machine, only UTC is"));
    }
    match cron.spec.concurrency_policy.as_deref() {
        None | Some("Allow" | "Forbid" | "Replace") => {}
        Some(other) => return refuse("concurrencyPolicy", format!("{other:?} is none of Allow, Forbid, Replace")),
    }
    cron.spec.schedule.parse::<Schedule>().map(drop).or_else(|message| refuse("schedule", message))
}

/// The newest time that has come since a job began last. Only that one counts: what was missed before is not made up for.
fn due(round: &mut Round<'_>, cron: &CronJob, status: &CronJobStatus) -> Option<Timestamp> {
    if cron.spec.suspend == Some(true) {
        return None;
    }
    let schedule: Schedule = cron.spec.schedule.parse().ok()?;
    if let Some(next) = schedule.next(round.now) {
        round.wake_at(next);
    }
    let created = cron.metadata.creation_timestamp.as_ref();
    let since = status.last_schedule_time.as_ref().or(created).map_or(round.now, |t| t.0);
    let oldest = cron.spec.starting_deadline_seconds.map(|seconds| later(round.now, -seconds.max(0) - 1));
    schedule.last(oldest.map_or(since, |oldest| oldest.max(since)), round.now)
}

/// Starts the job of a time; false when those that run forbid it.
fn start(round: &mut Round<'_>, key: &Key, object: &Object, cron: &CronJob, at: Timestamp) -> bool {
    let active: Vec<Key> =
        jobs_of(round.store, cron).into_iter().filter(|(_, job)| !has_ended(job)).map(|j| j.0).collect();
    match cron.spec.concurrency_policy.as_deref() {
        // It begins when they have ended, if that is not too late then.
        Some("Forbid") if !active.is_empty() => return false,
        Some("Replace") => active.iter().for_each(|job| delete_object(round.store, job)),
        _ => {}
    }
    let template = &cron.spec.job_template;
    let written = template.metadata.clone().unwrap_or_default();
    let mut annotations = written.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), at.to_string());
    round.store.put(Object::from(Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", key.name, at.as_second() / 60)),
            namespace: Some(key.namespace.clone()),
            labels: written.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(object)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }));
    true
}

/// Deletes the oldest of the jobs that have ended.
fn forget_old(round: &mut Round<'_>, cron: &CronJob) {
    let mut ended: Vec<(Key, Job)> = jobs_of(round.store, cron).into_iter().filter(|(_, job)| has_ended(job)).collect();
    ended.sort_by_key(|(key, job)| Reverse((job.metadata.creation_timestamp.as_ref().map(|t| t.0), key.name.clone())));
    let (completed, failed): (Vec<_>, Vec<_>) = ended.into_iter().partition(|(_, job)| is_complete(job));
    let limits = [
        (completed, cron.spec.successful_jobs_history_limit.unwrap_or(3)),
        (failed, cron.spec.failed_jobs_history_limit.unwrap_or(1)),
    ];
    for (jobs, limit) in limits {
        for (key, _) in jobs.into_iter().skip(usize::try_from(limit).unwrap_or(0)) {
            delete_object(round.store, &key);
        }
    }
}

fn report(round: &mut Round<'_>, key: &Key, cron: &CronJob, before: CronJobStatus, started: Option<Timestamp>) {
    let jobs = jobs_of(round.store, cron);
    let active = jobs.iter().filter(|(_, job)| !has_ended(job)).map(|(key, job)| ObjectReference {
        api_version: Some(key.kind.api_version().into()),
        kind: Some(key.kind.as_str().into()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        uid: job.metadata.uid.clone(),
        ..Default::default()
    });
    let active: Vec<ObjectReference> = active.collect();
    let successful =
        jobs.iter().filter_map(|(_, job)| job.status.as_ref()?.completion_time.as_ref()).map(|t| t.0).max();
    let status = CronJobStatus {
        active: (!active.is_empty()).then_some(active),
        last_schedule_time: started.map(Time).or(before.last_schedule_time),
        last_successful_time: successful.max(before.last_successful_time.map(|t| t.0)).map(Time),
    };
    round.store.update(key, |object| {
        if let Object::CronJob(cron) = object {
            cron.status = Some(status);
        }
    });
}

fn jobs_of(store: &Store, cron: &CronJob) -> Vec<(Key, Job)> {
    let own = store.list(Kind::Job, cron.metadata.namespace.as_deref()).filter_map(|(key, object)| match object {
        Object::Job(job) if !is_ending(object) => {
            let owner = controller_of(&job.metadata)?;
            (Some(&owner.uid) == cron.metadata.uid.as_ref()).then(|| (key.clone(), (**job).clone()))
        }
        _ => None,
    });
    own.collect()
}

fn has_ended(job: &Job) -> bool {
    job.status.as_ref().and_then(finished_at).is_some()
}

#[cfg(test)]
mod tests {
    use super::super::super::store::Store;
    use super::*;
    use serde_json::{Value, json};

    struct World {
        store: Store,
        now: Timestamp,
        _dir: tempfile::TempDir,
    }

    impl World {
        /// A CronJob that was made now, by the machine's clock: that is when the store says that it was.
        fn new(spec: Value) -> World {
            let dir = tempfile::tempdir().unwrap();
            let mut world = World {
                store: Store::new(dir.path().to_owned()),
                now: super::super::super::store::timestamp(),
                _dir: dir,
            };
            world.put(spec);
            world.settle();
            world
        }

        fn put(&mut self, mut spec: Value) {
            spec["jobTemplate"] = json!({"metadata": {"labels": {"app": "tick"}}, "spec": {"completions": 1,
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]}}}});
            let value = json!({"metadata": {"name": "tick", "namespace": "a"}, "spec": spec});
            let mut object = Object::from_value(Kind::CronJob, value).unwrap();
            if let (Object::CronJob(new), Some(Object::CronJob(old))) = (&mut object, self.store.get(&key())) {
                new.status.clone_from(&old.status);
            }
            self.store.put(object);
        }

        fn settle(&mut self) -> Option<Timestamp> {
            for _ in 0..50 {
                let version = self.store.version();
                let outcome = super::super::reconcile(&mut self.store, self.now, &|_, pod| Ok(pod));
                if self.store.version() == version {
                    return outcome.wake;
                }
            }
            panic!("never settles");
        }

        /// The clock is set to when it wakes by itself.
        fn wake(&mut self) {
            self.now = self.settle().expect("something is to come");
            self.settle();
        }

        fn jobs(&self) -> Vec<(Key, Job)> {
            match self.store.get(&key()) {
                Some(Object::CronJob(cron)) => jobs_of(&self.store, cron),
                _ => Vec::new(),
            }
        }

        fn active(&self) -> usize {
            self.jobs().iter().filter(|(_, job)| !has_ended(job)).count()
        }

        /// Ends the pods of all jobs.
        fn end(&mut self, code: i32) {
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            let pods: Vec<Key> = self.store.pods().map(|(key, _)| key.clone()).collect();
            for key in pods {
                self.store
                    .update_pod(&key, |pod| pod.status = serde_json::from_value(json!({"phase": phase})).unwrap());
            }
            self.settle();
        }

        fn status(&self) -> CronJobStatus {
            match self.store.get(&key()) {
                Some(Object::CronJob(cron)) => cron.status.clone().unwrap_or_default(),
                _ => panic!("it is gone"),
            }
        }
    }

    fn key() -> Key {
        Key::new(Kind::CronJob, "a", "tick")
    }

    #[test]
    fn jobs_begin_when_it_is_time_and_old_ones_go() {
        let mut world = World::new(json!({"schedule": "* * * * *", "successfulJobsHistoryLimit": 2}));
        assert!(world.jobs().is_empty());
        for round in 1..=4 {
            world.wake();
            assert_eq!((world.active(), world.jobs().len()), (1, round.min(3)));
            let (job, made) = world.jobs().into_iter().find(|(_, job)| !has_ended(job)).unwrap();
            assert_eq!(job.name, format!("tick-{}", world.now.as_second() / 60));
            assert_eq!(made.metadata.labels.unwrap()["app"], "tick");
            assert_eq!(world.status().last_schedule_time, Some(Time(world.now)));
            assert_eq!(world.status().active.unwrap().len(), 1);
            world.end(0);
            assert_eq!(world.status().last_successful_time, Some(Time(world.now)));
        }
        assert_eq!((world.active(), world.jobs().len()), (0, 2));
    }

    #[test]
    fn what_runs_is_left_alone_waited_for_or_replaced() {
        for (policy, active) in [("Allow", 2), ("Forbid", 1), ("Replace", 1)] {
            let mut world = World::new(json!({"schedule": "* * * * *", "concurrencyPolicy": policy}));
            world.wake();
            let first = world.jobs()[0].0.clone();
            world.wake();
            assert_eq!(world.active(), active, "{policy}");
            let there = world.store.get(&first).is_some();
            assert_eq!(there, policy != "Replace", "{policy}");
            if policy == "Forbid" {
                // It begins late, when the first has ended.
                world.end(0);
                assert_eq!((world.jobs().len(), world.active()), (2, 1));
            }
        }
    }

    #[test]
    fn what_was_missed_is_made_up_for_once_and_not_too_late() {
        let mut world = World::new(json!({"schedule": "*/10 * * * *", "suspend": true}));
        world.now = later(world.now, 3600);
        assert_eq!(world.settle(), None);
        world.put(json!({"schedule": "*/10 * * * *", "startingDeadlineSeconds": 0}));
        world.now = later(world.now, 601 - world.now.as_second() % 600);
        world.settle();
        assert!(world.jobs().is_empty(), "a second is too late");
        world.put(json!({"schedule": "*/10 * * * *"}));
        world.settle();
        assert_eq!(world.jobs().len(), 1);
        world.end(1);
        world.settle();
        assert_eq!(world.jobs().len(), 1);
    }

    #[test]
    fn other_time_zones_are_refused_by_name() {
        let check = |spec: Value| {
            let mut spec = spec;
            spec["jobTemplate"] = json!({});
            let object = Object::from_value(Kind::CronJob, json!({"metadata": {"name": "c"}, "spec": spec})).unwrap();
            match object {
                Object::CronJob(cron) => super::check(&cron),
                _ => unreachable!(),
            }
        };
        assert!(check(json!({"schedule": "@daily", "timeZone": "Etc/UTC"})).is_ok());
        let (field, message) = check(json!({"schedule": "@daily", "timeZone": "Europe/Paris"})).unwrap_err();
        assert_eq!((field.as_str(), message.contains("Europe/Paris")), ("spec.timeZone", true));
        assert_eq!(check(json!({"schedule": "@never"})).unwrap_err().0, "spec.schedule");
        assert_eq!(
            check(json!({"schedule": "@daily", "concurrencyPolicy": "x"})).unwrap_err().0,
            "spec.concurrencyPolicy"
        );
    }
}
