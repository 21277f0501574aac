//! StatefulSets, their storage, and DaemonSets.

use super::basics::{CLIENT, SERVER};
use super::support::{Cluster, is_ready, wait};
use serde_json::Value;

pub const TESTS: &[(&str, fn())] = &[
    ("stateful_pods_keep_their_order_names_and_files", stateful_pods_keep_their_order_names_and_files),
    ("stateful_pods_are_replaced_down_to_the_partition", stateful_pods_are_replaced_down_to_the_partition),
    ("a_claim_lives_as_long_as_the_cluster", a_claim_lives_as_long_as_the_cluster),
    ("a_daemon_set_has_one_pod", a_daemon_set_has_one_pod),
    ("replacing_waits_until_pods_have_been_ready_for_long", replacing_waits_until_pods_have_been_ready_for_long),
];

/// A StatefulSet of web servers, each with a file of its own, and its headless service.
fn web(replicas: u32, version: u32, spec: &str) -> String {
    let program = SERVER.trim().replace('\n', "\n              ");
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  clusterIP: None
  selector: {{app: web}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
{spec}
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {{runAsUser: 1234, fsGroup: 1236}}
      containers:
        - name: web
          image: example/web
          command: [/usr/bin/python3, -c]
          args:
            - |
              {program}
          env: [{{name: VERSION, value: '{version}'}}]
          volumeMounts: [{{name: data, mountPath: /data}}]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
"
    )
}

fn names(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.pods();
    let mut names: Vec<String> =
        pods.iter().map(|p| p["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect();
    names.retain(|name| name.starts_with("web-"));
    names.sort();
    names
}

fn created(pod: &Value) -> String {
    pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned()
}

fn versions(cluster: &Cluster) -> Vec<(String, String)> {
    let version = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (name, pod["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap_or_default().to_owned())
    };
    let pods = cluster.pods();
    let mut found: Vec<_> = pods.iter().filter(|p| is_ready(p)).map(version).collect();
    found.retain(|(name, _)| name.starts_with("web-"));
    found.sort();
    found
}

fn stateful_pods_keep_their_order_names_and_files() {
    let cluster = Cluster::up(&format!("{}\n---\n{CLIENT}", web(3, 1, "")));
    assert_eq!(names(&cluster), ["web-0", "web-1", "web-2"]);
    // In their order: none was made before the one ahead of it was ready.
    for (earlier, later) in [("web-0", "web-1"), ("web-1", "web-2")] {
        let (earlier, later) = (cluster.pod(earlier), cluster.pod(later));
        let conditions = earlier["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
        assert!(ready["lastTransitionTime"].as_str().unwrap() <= created(&later).as_str(), "{earlier:#} {later:#}");
    }
    let ask = |name: &str| cluster.sh("client", &format!("curl -sS -m 20 http://{name}:8080/")).stdout;
    for name in ["web-0", "web-1", "web-2"] {
        wait(&format!("{name} answers by name"), || {
            ask(&format!("{name}.web")) == name && ask(&format!("{name}.web.default.svc.cluster.local")) == name
        });
        cluster.sh(name, &format!("echo {name} > /data/whose; id -g >> /data/whose")).ok();
    }
    assert_eq!(cluster.sh("web-0", "hostname -f").ok(), "web-0.web.default.svc.cluster.local\n");
    let set = cluster.object("statefulsets", "web").unwrap();
    assert_eq!((&set["status"]["replicas"], &set["status"]["availableReplicas"]), (&3.into(), &3.into()));
    assert_eq!(set["status"]["currentRevision"], set["status"]["updateRevision"]);
    // One that is deleted comes back under its name, with its file.
    let before = cluster.pod("web-1");
    let file = cluster.file(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\nspec: {containers: [{name: web, image: x}]}\n",
    );
    cluster.weft(&["delete", "-f", &file]).ok();
    let after = cluster
        .wait_for_pod("web-1", "comes back", |p| is_ready(p) && p["metadata"]["uid"] != before["metadata"]["uid"]);
    assert_ne!(after["status"]["podIP"], before["status"]["podIP"]);
    assert_eq!(cluster.sh("web-1", "cat /data/whose").ok(), "web-1\n0\n");
    wait("its name leads to the new one", || ask("web-1.web") == "web-1");
    // Fewer and more again: the last go first, and what they wrote stays.
    cluster.apply(&web(1, 1, ""));
    wait("only the first is left", || names(&cluster) == ["web-0"]);
    assert_eq!(cluster.object("persistentvolumeclaims", "data-web-2").unwrap()["status"]["phase"], "Bound");
    cluster.apply(&web(3, 1, ""));
    wait("all are ready", || versions(&cluster).len() == 3);
    assert_eq!(cluster.sh("web-2", "cat /data/whose").ok(), "web-2\n0\n");
    assert_eq!(cluster.weft(&["logs", "sts/web", "--tail", "1"]).code, 0);
}

fn stateful_pods_are_replaced_down_to_the_partition() {
    let strategy = |partition: u32| {
        format!("  updateStrategy: {{rollingUpdate: {{partition: {partition}}}}}\n  podManagementPolicy: Parallel")
    };
    let cluster = Cluster::up(&web(3, 1, &strategy(2)));
    let all = |versions: [&str; 3]| -> Vec<(String, String)> {
        versions.iter().enumerate().map(|(i, v)| (format!("web-{i}"), (*v).to_owned())).collect()
    };
    cluster.apply(&web(3, 2, &strategy(2)));
    wait("the last is replaced", || versions(&cluster) == all(["1", "1", "2"]));
    // One below the partition comes back as it was.
    let before = cluster.pod("web-0");
    let file = cluster.file(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-0}\nspec: {containers: [{name: web, image: x}]}\n",
    );
    cluster.weft(&["delete", "-f", &file]).ok();
    cluster.wait_for_pod("web-0", "comes back", |p| is_ready(p) && p["metadata"]["uid"] != before["metadata"]["uid"]);
    assert_eq!(versions(&cluster), all(["1", "1", "2"]));
    cluster.apply(&web(3, 2, &strategy(0)));
    wait("all are replaced", || versions(&cluster) == all(["2", "2", "2"]));
    let wrong = cluster.file("wrong.yaml", &web(3, 2, &strategy(0)).replace("serviceName: web", "serviceName: other"));
    let wrong = cluster.weft(&["apply", "-f", &wrong]);
    assert!(wrong.code == 1 && wrong.stderr.contains("spec.serviceName: cannot be changed"), "{wrong:?}");
}

fn a_claim_lives_as_long_as_the_cluster() {
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: shared}\nspec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}\n";
    let pod = |name: &str, command: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  \
             volumes: [{{name: v, persistentVolumeClaim: {{claimName: shared}}}}]\n  containers:\n    \
             - {{name: main, image: x, command: [sh, -c, '{command}'], volumeMounts: [{{name: v, mountPath: /v}}]}}\n"
        )
    };
    let cluster = Cluster::up(CLIENT);
    cluster.apply(&pod("writer", "echo kept > /v/file"));
    cluster.wait_for_pod("writer", "waits for the claim", |p| {
        p["status"]["message"].as_str().unwrap_or_default().contains("persistentvolumeclaim \"shared\" not found")
    });
    let file = cluster.file("claim.yaml", claim);
    cluster.weft(&["apply", "-f", &file]).ok();
    cluster.wait_for_pod("writer", "has written", |p| p["status"]["phase"] == "Succeeded");
    cluster.apply(&pod("reader", "cat /v/file"));
    cluster.wait_for_pod("reader", "has read", |p| p["status"]["phase"] == "Succeeded");
    assert_eq!(cluster.weft(&["logs", "reader"]).ok(), "kept\n");
    let dir = cluster.run_dir().join("volumes/default/shared");
    assert!(dir.join("file").exists());
    // What a pod still uses stays although the claim is deleted.
    cluster.weft(&["delete", "-f", &file]).ok();
    assert!(dir.join("file").exists());
    let pods = cluster.file("pods.yaml", &(pod("reader", "x") + &pod("writer", "x")));
    cluster.weft(&["delete", "-f", &pods]).ok();
    wait("the files are gone", || !dir.exists());
}

fn a_daemon_set_has_one_pod() {
    let set = |version: u32| {
        format!(
            "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: agent}}\nspec:\n  selector: {{matchLabels: {{app: agent}}}}\n  template:\n    \
             metadata: {{labels: {{app: agent}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      \
             containers: [{{name: main, image: x, command: [sh, -c, 'echo version {version}; exec sleep infinity']}}]\n"
        )
    };
    let cluster = Cluster::up(&set(1));
    let status = cluster.object("daemonsets", "agent").unwrap()["status"].clone();
    assert_eq!((&status["desiredNumberScheduled"], &status["numberAvailable"]), (&1.into(), &1.into()), "{status:#}");
    wait("it runs", || cluster.weft(&["logs", "ds/agent"]).stdout == "version 1\n");
    let before = cluster.pods()[0]["metadata"]["name"].clone();
    cluster.apply(&set(2));
    wait("it is replaced", || {
        let pods = cluster.pods();
        pods.len() == 1 && pods[0]["metadata"]["name"] != before && is_ready(&pods[0])
    });
    wait("the new one runs", || cluster.weft(&["logs", "ds/agent"]).stdout == "version 2\n");
}

fn replacing_waits_until_pods_have_been_ready_for_long() {
    let deployment = |version: u32, rest: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  minReadySeconds: 4\n  strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}\n{rest}  \
             selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      \
             containers: [{{name: main, image: x, command: [sleep, infinity], env: [{{name: VERSION, value: '{version}'}}]}}]\n"
        )
    };
    let cluster = Cluster::up(&deployment(1, ""));
    let old = cluster.pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    // While it is paused, nothing happens.
    cluster.apply(&deployment(2, "  paused: true\n"));
    wait("it says that it is paused", || {
        cluster.object("deployments", "web").is_some_and(|d| {
            d["status"]["observedGeneration"] == d["metadata"]["generation"]
                && d["status"]["conditions"][1]["reason"] == "DeploymentPaused"
        })
    });
    assert_eq!(cluster.pods().len(), 1);
    cluster.apply(&deployment(2, ""));
    // Seen from the status alone: while the new one is ready but not yet available, the old one is there.
    let mut ready_but_new = false;
    wait("the old pod is replaced", || {
        let pods = cluster.pods();
        let new_ready = pods.iter().any(|p| p["metadata"]["name"] != old.as_str() && is_ready(p));
        let old_there = pods.iter().any(|p| p["metadata"]["name"] == old.as_str() && is_ready(p));
        ready_but_new |= new_ready && old_there;
        new_ready && !old_there
    });
    assert!(ready_but_new, "the old one went at once");
    wait("it is available", || {
        cluster.object("deployments", "web").is_some_and(|d| d["status"]["availableReplicas"] == 1)
    });
}
