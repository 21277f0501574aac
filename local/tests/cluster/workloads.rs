//! Deployments, restarts, probes.

use super::basics::{CLIENT, web};
use super::support::{Cluster, is_ready, state, wait};
use serde_json::Value;

pub const TESTS: &[(&str, fn())] = &[
    ("restarts_and_their_policies", restarts_and_their_policies),
    ("a_killed_process_comes_back_and_leaves_nothing", a_killed_process_comes_back_and_leaves_nothing),
    ("probes_decide_about_traffic_and_restarts", probes_decide_about_traffic_and_restarts),
    ("rolling_replacement_and_scaling_lose_no_request", rolling_replacement_and_scaling_lose_no_request),
    ("sidecars_and_completed_pods", sidecars_and_completed_pods),
    ("limits_are_kept_and_their_groups_removed", limits_are_kept_and_their_groups_removed),
    ("what_is_not_ready_is_explained_and_harms_nobody", what_is_not_ready_is_explained_and_harms_nobody),
];

fn pod(name: &str, policy: &str, command: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  \
         terminationGracePeriodSeconds: 0\n  containers: [{{name: main, image: x, command: [sh, -c, '{command}']}}]\n"
    )
}

fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1)
}

fn restarts_and_their_policies() {
    let cluster = Cluster::up(CLIENT);
    let manifest = [
        pod("crash", "Always", "exit 3"),
        pod("never", "Never", "exit 4"),
        pod("once", "OnFailure", "exit 0"),
        pod("job", "OnFailure", "test -e /shared/x || { touch /shared/x; exit 1; }").replace(
            "containers: [{name: main, image: x,",
            "volumes: [{name: s, emptyDir: {}}]\n  containers: [{name: main, image: x, volumeMounts: [{name: s, mountPath: /shared}],",
        ),
    ];
    cluster.apply(&manifest.concat());
    let crash = cluster.wait_for_pod("crash", "backs off", |p| state(p) == "CrashLoopBackOff" && restarts(p) >= 2);
    assert_eq!(crash["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(crash["status"]["phase"], "Running");
    assert!(!is_ready(&crash));
    let never = cluster.wait_for_pod("never", "fails", |p| p["status"]["phase"] == "Failed");
    assert_eq!((state(&never).as_str(), restarts(&never)), ("Error", 0));
    let once = cluster.wait_for_pod("once", "succeeds", |p| p["status"]["phase"] == "Succeeded");
    assert_eq!((state(&once).as_str(), restarts(&once)), ("Completed", 0));
    let job = cluster.wait_for_pod("job", "succeeds at the second time", |p| p["status"]["phase"] == "Succeeded");
    assert_eq!(restarts(&job), 1);
    assert!(is_ready(&cluster.pod("client")));
}

fn a_killed_process_comes_back_and_leaves_nothing() {
    // The container's program leaves a child behind that would keep the port.
    let cluster = Cluster::up(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n    - name: main\n      image: x\n      \
         command: [sh, -c, 'setsid /usr/bin/python3 -m http.server 8080 & sleep infinity']\n      \
         readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}\n    - {name: other, image: x, command: [sleep, infinity]}\n",
    );
    let before = cluster.pod("p");
    for expected in 1..3 {
        // Only the shell: its children stay.
        cluster.sh("p", "kill -9 $(pgrep -o -x sh)");
        cluster.wait_for_pod("p", "comes back ready", |p| restarts(p) == expected && is_ready(p));
        assert_eq!(cluster.sh("p", "pgrep -c -f 'python.* -m http[.]server 8080$'").ok().trim(), "1");
    }
    let other = |pod: &Value| {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.into_iter().find(|c| c["name"] == "other").unwrap_or_default()["state"].clone()
    };
    assert_eq!(other(&cluster.pod("p")), other(&before));
    // The pod's holder itself: everything begins anew, under the same address.
    let table = cluster.weft(&["ps"]).ok();
    let ip = table.lines().nth(1).unwrap().split_whitespace().last().unwrap().to_owned();
    let holders: Vec<i32> = super::support::holders(&cluster.run_dir());
    assert_eq!(holders.len(), 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(holders[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
    let after = cluster.wait_for_pod("p", "begins anew", |p| restarts(p) == 3 && is_ready(p));
    assert_eq!(after["status"]["podIP"], ip.as_str());
}

fn probes_decide_about_traffic_and_restarts() {
    let cluster = Cluster::up(CLIENT);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: p}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - name: main\n      image: x\n      \
         command: [sh, -c, 'touch /alive; exec /usr/bin/python3 -m http.server 8080']\n      \
         readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1, failureThreshold: 1}\n      \
         startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60}\n      \
         livenessProbe: {exec: {command: [test, -e, /alive]}, periodSeconds: 1, failureThreshold: 2}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: p}\nspec: {selector: {app: p}, ports: [{port: 80, targetPort: 8080}]}\n",
    );
    cluster.wait_for_pod("p", "has started", |p| p["status"]["containerStatuses"][0]["started"] == true);
    assert!(!is_ready(&cluster.pod("p")));
    assert_eq!(cluster.sh("client", "curl -sS -m 20 -o /dev/null http://p/").code, 7);
    let ready = cluster.pod("p");
    assert!(
        ready["status"]["conditions"][3]["message"].as_str().unwrap_or("readiness").contains("readiness"),
        "{ready:#}"
    );
    cluster.sh("p", "touch /ready").ok();
    cluster.wait_for_pod("p", "is ready", is_ready);
    wait("the service leads there", || cluster.sh("client", "curl -sS -m 20 -o /dev/null http://p/").code == 0);
    cluster.sh("p", "rm /ready").ok();
    wait("the service leads nowhere", || cluster.sh("client", "curl -sS -m 20 -o /dev/null http://p/").code == 7);
    assert_eq!(restarts(&cluster.pod("p")), 0);
    cluster.sh("p", "rm /alive").ok();
    let restarted = cluster.wait_for_pod("p", "is restarted", |p| restarts(p) >= 1);
    let how = &restarted["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert!(how["message"].as_str().unwrap_or_default().contains("exit code 1"), "{how}");
}

fn rolling_replacement_and_scaling_lose_no_request() {
    let cluster = Cluster::up(&format!("{}\n---\n{CLIENT}", web(2)));
    let webs = |cluster: &Cluster| -> Vec<Value> {
        cluster.pods().into_iter().filter(|p| p["metadata"]["labels"]["app"] == "web").collect()
    };
    let old: Vec<Value> = webs(&cluster).iter().map(|p| p["metadata"]["name"].clone()).collect();
    // Ask all the time, from inside: one failed request ends it with an error.
    let asking = cluster
        .command(&[
            "exec",
            "client",
            "--",
            "sh",
            "-c",
            "touch /asking; while test -e /asking; do curl -sS -m 20 http://web/ || exit 1; done",
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait("the client asks", || cluster.sh("client", "test -e /asking").code == 0);
    // The server goes on serving for a moment after SIGTERM, as a good one does.
    let drain = |replicas: u32, version: u32| {
        web(replicas).replace(
            "ports: [{name: http, containerPort: 8080}]",
            &format!(
                "ports: [{{name: http, containerPort: 8080}}]\n          env: [{{name: VERSION, value: '{version}'}}]\n          \
                 lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}"
            ),
        ).replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 10")
    };
    // The first pods have no such moment, so they stay until the second kind is there: only those are replaced under load.
    assert_eq!(cluster.sh("client", "rm /asking").code, 0);
    let outcome = asking.wait_with_output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let file = cluster.file("web.yaml", &drain(2, 1));
    assert!(
        cluster.weft(&["apply", "-f", &file]).ok().contains("deployment.apps/web configured\nservice/web unchanged")
    );
    wait("the old pods are replaced", || {
        let now = webs(&cluster);
        now.len() == 2 && now.iter().all(|p| is_ready(p) && !old.contains(&p["metadata"]["name"]))
    });
    let asking = cluster
        .command(&[
            "exec",
            "client",
            "--",
            "sh",
            "-c",
            "touch /asking; while test -e /asking; do curl -sS -m 20 http://web/ || exit 1; done",
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait("the client asks", || cluster.sh("client", "test -e /asking").code == 0);
    for (replicas, version) in [(2, 2), (4, 2), (1, 2), (2, 3)] {
        cluster.apply(&drain(replicas, version));
        wait("as many pods of this version as there should be", || {
            let now = webs(&cluster);
            now.len() == replicas as usize
                && now.iter().all(|p| {
                    is_ready(p) && p["spec"]["containers"][0]["env"][0]["value"] == version.to_string().as_str()
                })
        });
    }
    assert_eq!(cluster.sh("client", "rm /asking").code, 0);
    let outcome = asking.wait_with_output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let deployment = cluster.object("deployments", "web").unwrap();
    assert_eq!(deployment["status"]["availableReplicas"], 2);
    assert_eq!(deployment["status"]["observedGeneration"], deployment["metadata"]["generation"]);
}

fn sidecars_and_completed_pods() {
    let cluster = Cluster::up(CLIENT);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 5\n  \
         volumes: [{name: s, emptyDir: {}}]\n  initContainers:\n    - name: sidecar\n      image: x\n      restartPolicy: Always\n      \
         command: [sh, -c, 'trap \"exit 0\" TERM; /usr/bin/python3 -m http.server 9000 & touch /s/up; while true; do sleep 0.1; done']\n      \
         volumeMounts: [{name: s, mountPath: /s}]\n      startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 60}\n    \
         - {name: after, image: x, command: [sh, -c, 'test -e /s/up'], volumeMounts: [{name: s, mountPath: /s}]}\n  containers:\n    - name: main\n      image: x\n      \
         command: [sh, -c, 'curl -sS -m 20 -o /dev/null http://127.0.0.1:9000/ && echo worked']\n",
    );
    let done = cluster.wait_for_pod("p", "completes although its sidecar would go on", |p| {
        p["status"]["phase"] == "Succeeded"
            && p["status"]["initContainerStatuses"][0]["state"].get("terminated").is_some()
    });
    assert_eq!(done["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(cluster.weft(&["logs", "p"]).ok(), "worked\n");
    assert!(cluster.weft(&["ps"]).ok().contains("Completed"));
}

fn what_is_not_ready_is_explained_and_harms_nobody() {
    let cluster = Cluster::up(CLIENT);
    let listen = "command: [/usr/bin/python3, -m, http.server, '8080'], ports: [{containerPort: 8080}]";
    let manifest = [
        pod("crash", "Always", "echo the reason; exit 3"),
        pod("deaf", "Always", "exec sleep infinity").replace(
            "containers: [{name: main, image: x,",
            "containers: [{name: main, image: x, readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 1},",
        ),
        pod("stuck", "Always", "exec sleep infinity")
            .replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 3600")
            .replace(
                "containers: [{name: main, image: x,",
                "containers: [{name: main, image: x, livenessProbe: {exec: {command: ['false']}, periodSeconds: 1, failureThreshold: 1, \
                 terminationGracePeriodSeconds: 1}, lifecycle: {}, env: [{name: A, value: b}],",
            )
            .replace("exec sleep infinity", "trap : TERM; while :; do sleep 1; done"),
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: twice}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{{name: one, image: x, {listen}}}, {{name: two, image: x, {listen}}}]\n"
        ),
    ];
    cluster.apply(&manifest.concat());
    cluster.wait_for_pod("crash", "backs off", |p| state(p) == "CrashLoopBackOff" && restarts(p) >= 2);
    // Its own grace period is short, the pod's is not.
    cluster.wait_for_pod("stuck", "is restarted although it does not hear", |p| restarts(p) >= 1);
    let expected = [
        "pod/crash in default: container main: CrashLoopBackOff ended with exit code 3",
        "    the reason",
        "pod/deaf in default: container main: readiness probe: connect to 10.244.",
        "(port 8080 is declared by containers one and two)",
        "Address already in use",
    ];
    let mut seen = String::new();
    wait("ps explains what is not ready", || {
        let shown = cluster.weft(&["ps"]);
        seen += &shown.stderr;
        shown.code == 0 && expected.iter().all(|part| seen.contains(part))
    });
    assert!(is_ready(&cluster.pod("client")));
    // What is somebody else's trouble is not shown.
    assert!(!cluster.weft(&["ps", "-n", "kube"]).stderr.contains("pod/"));
}

fn limits_are_kept_and_their_groups_removed() {
    let cluster = Cluster::up(CLIENT);
    let limited = |name: &str, limits: &str, command: &str| {
        pod(name, "Always", command).replace("image: x,", &format!("image: x, resources: {{limits: {{{limits}}}}},"))
    };
    let hungry = "exec /usr/bin/python3 -c \"x = bytearray(256 << 20); import time; time.sleep(1e6)\"";
    cluster.apply(&(limited("hungry", "memory: 64Mi", hungry) + &limited("slow", "cpu: 200m", "exec sleep infinity")));
    let slow = cluster.wait_for_pod("slow", "runs", |p| state(p) == "running");
    let log = || std::fs::read_to_string(cluster.run_dir().join("logs/node.log")).unwrap_or_default();
    if log().contains("limits of memory and CPU are not enforced") {
        // This machine has no control groups for us: it is said, and things run without limits.
        cluster.wait_for_pod("hungry", "runs", |p| state(p) == "running");
        return;
    }
    let hungry = cluster.wait_for_pod("hungry", "is ended for want of memory", |p| restarts(p) >= 1);
    let last = &hungry["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&"OOMKilled".into(), &137.into()), "{last:#}");
    wait("ps says so", || cluster.weft(&["ps"]).stderr.contains("ended for want of memory (OOMKilled)"));
    let uid = slow["metadata"]["uid"].as_str().unwrap();
    let noted = std::fs::read_to_string(cluster.run_dir().join("control-groups")).unwrap();
    let tops: Vec<std::path::PathBuf> = noted.lines().map(Into::into).collect();
    let group = tops.iter().map(|top| top.join(format!("{uid}-main"))).find(|dir| {
        let quota =
            std::fs::read_to_string(dir.join("cpu.max")).or(std::fs::read_to_string(dir.join("cpu.cfs_quota_us")));
        quota.is_ok_and(|quota| quota.trim() == "20000 100000" || quota.trim() == "20000")
    });
    let group = group.expect("the group has the limit");
    assert!(!std::fs::read_to_string(group.join("cgroup.procs")).unwrap().is_empty());
    // Commands that are run in the container are held to its limits, too.
    assert!(cluster.sh("slow", "cat /proc/self/cgroup").ok().contains(&format!("{uid}-main")));
    // They go, also when the node is killed.
    for node in super::support::roles(&cluster.run_dir(), "__node") {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(node), nix::sys::signal::Signal::SIGKILL);
    }
    wait("no group is left", || !cluster.run_dir().exists() && !tops.iter().any(|top| top.exists()));
}
