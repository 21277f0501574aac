//! Jobs and CronJobs.

use super::basics::CLIENT;
use super::support::{Cluster, wait};
use serde_json::Value;

pub const TESTS: &[(&str, fn())] = &[
    ("a_job_completes_although_a_proxy_runs_beside_it", a_job_completes_although_a_proxy_runs_beside_it),
    ("a_job_that_fails_is_explained", a_job_that_fails_is_explained),
    ("jobs_end_in_time_and_go_in_time", jobs_end_in_time_and_go_in_time),
    ("every_index_of_a_job_runs", every_index_of_a_job_runs),
    ("a_job_decides_about_failures_by_their_kind", a_job_decides_about_failures_by_their_kind),
    ("a_cron_job_runs_every_minute", a_cron_job_runs_every_minute),
];

fn job(name: &str, spec: &str, policy: &str, command: &str) -> String {
    format!(
        "---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n{spec}\n  template:\n    spec:\n      \
         restartPolicy: {policy}\n      terminationGracePeriodSeconds: 5\n      containers:\n        \
         - {{name: main, image: x, command: [sh, -c, '{command}']}}\n"
    )
}

/// A container under the name of the injected proxy, which would never end by itself.
const PROXY: &str = "        - {name: linkerd-proxy, image: x, command: [sh, -c, 'trap \"exit 0\" TERM; while :; do sleep 0.1; done']}\n";

fn holds(job: &Value, condition: &str) -> bool {
    let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == condition && c["status"] == "True")
}

fn wait_for(cluster: &Cluster, name: &str, condition: &str) -> Value {
    wait(&format!("job {name} is {condition}"), || {
        cluster.object("jobs", name).is_some_and(|job| holds(&job, condition))
    });
    cluster.object("jobs", name).unwrap_or_default()
}

fn a_job_completes_although_a_proxy_runs_beside_it() {
    let manifest = job("run", "  completions: 2", "Never", "echo worked") + PROXY;
    let cluster = Cluster::up(&manifest);
    let done = wait_for(&cluster, "run", "Complete");
    let status = &done["status"];
    assert_eq!((&status["succeeded"], &status["failed"]), (&Value::from(2), &Value::Null), "{status:#}");
    assert!(status["startTime"].is_string() && status["completionTime"].is_string(), "{status:#}");
    assert_eq!(cluster.weft(&["logs", "job/run"]).ok(), "worked\n");
    wait("the proxies have ended", || {
        cluster.pods().iter().all(|pod| {
            let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            statuses.len() == 2 && statuses.iter().all(|c| c["state"].get("terminated").is_some())
        })
    });
    let table = cluster.weft(&["ps"]).ok();
    assert_eq!(table.matches("0/2     Completed   0").count(), 2, "{table}");
    // What is done is not done again, and cannot be changed into something else.
    assert!(cluster.apply(&manifest).contains("job.batch/run unchanged"));
    let file = cluster.file("other.yaml", &manifest.replace("worked", "other"));
    let other = cluster.weft(&["apply", "-f", &file]);
    assert!(other.code == 1 && other.stderr.contains("spec.template: cannot be changed"), "{other:?}");
    let file = cluster.file("same.yaml", &manifest);
    cluster.weft(&["delete", "-f", &file]).ok();
    wait("its pods go with it", || cluster.pods().is_empty());
}

fn a_job_that_fails_is_explained() {
    let cluster = Cluster::prepared();
    let file = cluster.file("bad.yaml", &job("bad", "  backoffLimit: 1", "Never", "echo the reason; exit 3"));
    let failed = cluster.weft(&["up", "--detach", "-f", &file]);
    assert_eq!(failed.code, 1);
    let expected = [
        "failed for good",
        "job/bad in default has failed: BackoffLimitExceeded",
        "container main ended with exit code 3",
        "the reason",
    ];
    for part in expected {
        assert!(failed.stderr.contains(part), "{part}: {}", failed.stderr);
    }
    assert!(!cluster.run_dir().exists(), "what cannot be brought up is stopped");
    // In a cluster that runs, it harms nobody. The pods stay, to be looked at.
    let cluster = Cluster::up(CLIENT);
    cluster.apply(&job("bad", "  backoffLimit: 1", "Never", "exit 3"));
    let bad = wait_for(&cluster, "bad", "Failed");
    assert_eq!(bad["status"]["failed"], 2);
    let table = cluster.weft(&["ps"]).ok();
    assert_eq!(table.matches("Error").count(), 2, "{table}");
    // One that is restarted in its pod has as many tries.
    cluster.apply(&job("again", "  backoffLimit: 2", "OnFailure", "exit 3"));
    let again = wait_for(&cluster, "again", "Failed");
    assert!(again["status"]["conditions"].to_string().contains("ended with exit code 3"), "{again:#}");
    wait("its pod is gone", || !cluster.weft(&["ps"]).ok().contains("again-"));
    assert_eq!(cluster.pod("client")["status"]["phase"], "Running");
}

fn jobs_end_in_time_and_go_in_time() {
    let cluster = Cluster::up(CLIENT);
    cluster.apply(
        &(job("slow", "  activeDeadlineSeconds: 1", "Never", "sleep infinity")
            + &job("gone", "  ttlSecondsAfterFinished: 1", "Never", "true")
            + &job("later", "  suspend: true", "Never", "true")),
    );
    let slow = wait_for(&cluster, "slow", "Failed");
    assert!(slow["status"]["conditions"].to_string().contains("DeadlineExceeded"), "{slow:#}");
    wait("a job that is over goes, with its pod", || {
        cluster.object("jobs", "gone").is_none() && !cluster.weft(&["ps"]).ok().contains("gone-")
    });
    let later = wait_for(&cluster, "later", "Suspended");
    assert!(later["status"]["active"].is_null(), "{later:#}");
    assert!(!cluster.weft(&["ps"]).ok().contains("later-"));
    cluster.apply(&job("later", "  suspend: false", "Never", "true"));
    wait_for(&cluster, "later", "Complete");
}

fn a_job_decides_about_failures_by_their_kind() {
    let rule = |action: &str| {
        format!(
            "  backoffLimit: 1\n  podFailurePolicy: {{rules: [{{action: {action}, onExitCodes: {{operator: In, values: [42]}}}}]}}"
        )
    };
    let cluster = Cluster::up(CLIENT);
    cluster.apply(&(job("fatal", &rule("FailJob"), "Never", "exit 42") + PROXY));
    let fatal = wait_for(&cluster, "fatal", "Failed");
    let conditions = fatal["status"]["conditions"].to_string();
    assert!(
        conditions.contains("\"PodFailurePolicy\"") && conditions.contains("main ended with exit code 42"),
        "{fatal:#}"
    );
    assert_eq!(fatal["status"]["failed"], 1);
    // It fails more often than it may, but those do not count.
    cluster.apply(&job("patient", &rule("Ignore"), "Never", "exit 42"));
    wait("a third pod has failed", || cluster.weft(&["ps"]).ok().matches("patient-").count() >= 3);
    assert!(cluster.object("jobs", "patient").is_some_and(|job| !holds(&job, "Failed")));
    let odd = cluster.file("odd.yaml", &job("odd", &rule("FailIndex"), "Never", "true"));
    let odd = cluster.weft(&["apply", "-f", &odd]);
    assert!(odd.code == 1 && odd.stderr.contains("spec.podFailurePolicy.rules[0].action"), "{odd:?}");
}

fn every_index_of_a_job_runs() {
    let spec = "  completions: 3\n  parallelism: 2\n  completionMode: Indexed";
    let cluster = Cluster::up(&job("run", spec, "OnFailure", "echo $JOB_COMPLETION_INDEX $(hostname)"));
    let done = wait_for(&cluster, "run", "Complete");
    assert_eq!(done["status"]["completedIndexes"], "0-2");
    let mut printed: Vec<String> = cluster
        .pods()
        .iter()
        .map(|pod| cluster.weft(&["logs", pod["metadata"]["name"].as_str().unwrap()]).ok())
        .collect();
    printed.sort();
    assert_eq!(printed, ["0 run-0\n", "1 run-1\n", "2 run-2\n"]);
}

fn a_cron_job_runs_every_minute() {
    let cron = |schedule: &str, suspend: bool| {
        format!(
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: tick}}\nspec:\n  schedule: '{schedule}'\n  suspend: {suspend}\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          \
             restartPolicy: Never\n          containers: [{{name: main, image: x, command: [sh, -c, 'echo tick']}}]\n"
        )
    };
    // It is ready before it has run for the first time.
    let cluster = Cluster::up(&cron("* * * * *", false));
    // At most two minutes, of which a machine that is slow may take its part.
    let ran = || cluster.object("cronjobs", "tick").is_some_and(|c| c["status"]["lastSuccessfulTime"].is_string());
    assert!(super::support::poll(ran) || super::support::poll(ran), "it never runs");
    let status = cluster.object("cronjobs", "tick").unwrap()["status"].clone();
    assert!(status["lastScheduleTime"].as_str().unwrap().ends_with(":00Z"), "{status:#}");
    let pods = cluster.pods();
    assert!(pods[0]["metadata"]["name"].as_str().unwrap().starts_with("tick-"), "{pods:#?}");
    assert_eq!(pods[0]["metadata"]["ownerReferences"][0]["kind"], "Job");
    assert_eq!(cluster.weft(&["logs", "cj/tick"]).ok(), "tick\n");
    assert!(cluster.apply(&cron("@daily", true)).contains("cronjob.batch/tick configured"));
    for (schedule, part) in [("* * * *", "has 4 fields"), ("61 * * * *", "is not between 0 and 59")] {
        let file = cluster.file("wrong.yaml", &cron(schedule, false));
        let wrong = cluster.weft(&["apply", "-f", &file]);
        assert!(wrong.code == 1 && wrong.stderr.contains("spec.schedule") && wrong.stderr.contains(part), "{wrong:?}");
    }
    let file = cluster.file("tick.yaml", &cron("@daily", true));
    cluster.weft(&["delete", "-f", &file]).ok();
    wait("its jobs and pods go with it", || cluster.pods().is_empty());
}
