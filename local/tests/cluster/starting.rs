//! How pods start, and what happens to those that take too long: hooks, probes of every kind, deadlines.

use super::basics::CLIENT;
use super::support::{Cluster, is_ready, state, wait};
use serde_json::Value;

pub const TESTS: &[(&str, fn())] = &[
    ("containers_wait_for_the_post_start_hook_before_them", containers_wait_for_the_post_start_hook_before_them),
    ("a_post_start_hook_that_fails_ends_its_container_only", a_post_start_hook_that_fails_ends_its_container_only),
    ("https_probes_do_not_look_at_the_certificate", https_probes_do_not_look_at_the_certificate),
    ("pods_are_ended_at_their_deadline", pods_are_ended_at_their_deadline),
    ("a_deployment_that_gets_nowhere_is_explained", a_deployment_that_gets_nowhere_is_explained),
    ("ports_that_are_used_twice_are_explained_and_harm_nobody", ports_that_are_used_twice),
];

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses.into_iter().flatten().find(|c| c["name"] == name).unwrap_or(&Value::Null)
}

fn message(pod: &Value) -> String {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|c| c["type"] == "Ready");
    ready.and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned()
}

fn containers_wait_for_the_post_start_hook_before_them() {
    let cluster = Cluster::up(CLIENT);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  \
         volumes: [{name: s, emptyDir: {}}]\n  containers:\n    - name: first\n      image: x\n      command: [sleep, infinity]\n      \
         volumeMounts: [{name: s, mountPath: /s}]\n      \
         lifecycle: {postStart: {exec: {command: [sh, -c, 'until test -e /s/go; do sleep 0.1; done']}}}\n    \
         - {name: second, image: x, command: [sh, -c, 'test -e /s/go && exec sleep infinity'], volumeMounts: [{name: s, mountPath: /s}]}\n",
    );
    let waiting = "waits for the postStart hook of container first";
    let pod = cluster.wait_for_pod("p", "the second container waits", |pod| {
        state(pod) == "running" && container(pod, "second")["state"]["waiting"]["message"] == waiting
    });
    assert_eq!(container(&pod, "second")["state"]["waiting"]["reason"], "PodInitializing");
    assert!(!is_ready(&pod) && message(&pod).contains("its postStart hook has not ended yet"), "{pod:#}");
    let shown = cluster.weft(&["ps"]).stderr;
    assert!(shown.contains("pod/p in default: container first: its postStart hook has not ended yet"), "{shown}");
    cluster.weft(&["exec", "p", "-c", "first", "--", "touch", "/s/go"]).ok();
    // It would have failed for good, had it started before.
    cluster.wait_for_pod("p", "both run", is_ready);
}

fn a_post_start_hook_that_fails_ends_its_container_only() {
    let cluster = Cluster::up(CLIENT);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    \
         - {name: first, image: x, command: [sleep, infinity], lifecycle: {postStart: {exec: {command: [sh, -c, 'echo the reason; exit 3']}}}}\n    \
         - {name: second, image: x, command: [sleep, infinity]}\n",
    );
    let pod = cluster.wait_for_pod("p", "the first is restarted, the second runs", |pod| {
        container(pod, "first")["restartCount"].as_i64() >= Some(2)
            && container(pod, "second")["state"].get("running").is_some()
    });
    let how = container(&pod, "first")["lastState"]["terminated"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(how.contains("postStart: exit code 3: the reason"), "{pod:#}");
    assert_eq!(container(&pod, "second")["restartCount"], 0, "{pod:#}");
}

/// A server that answers `GET /` with a status over TLS, with a certificate that nobody knows.
const TLS_SERVER: &str = r#"
              import http.server, ssl, subprocess, sys
              class Handler(http.server.BaseHTTPRequestHandler):
                  def do_GET(self):
                      self.send_response(200 if self.path == '/good' else 500)
                      self.end_headers()
                  def log_message(self, *args):
                      pass
              subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                              '-subj', '/CN=nobody', '-keyout', '/tmp/key', '-out', '/tmp/cert'], check=True)
              context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
              context.maximum_version = ssl.TLSVersion[sys.argv[1]]
              context.load_cert_chain('/tmp/cert', '/tmp/key')
              server = http.server.ThreadingHTTPServer(('', 8443), Handler)
              server.socket = context.wrap_socket(server.socket, server_side=True)
              server.serve_forever()
"#;

fn https_probes_do_not_look_at_the_certificate() {
    let pod = |name: &str, version: &str, path: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n    - name: main\n      \
             image: x\n      command: [/usr/bin/python3, -c]\n      args:\n            - |{TLS_SERVER}            - {version}\n      \
             readinessProbe: {{httpGet: {{scheme: HTTPS, path: {path}, port: 8443}}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}}\n{more}"
        )
    };
    // Beside a proxy it is asked from within the pod.
    let proxy = "    - {name: linkerd-proxy, image: x, command: [sleep, infinity]}\n";
    let cluster = Cluster::up(CLIENT);
    cluster.apply(
        &(pod("new", "TLSv1_3", "/good", "")
            + &pod("old", "TLSv1_2", "/good", "")
            + &pod("meshed", "TLSv1_3", "/good", proxy)
            + &pod("bad", "TLSv1_3", "/bad", "")
            + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: plain}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n    - name: main\n      \
               image: x\n      command: [/usr/bin/python3, -m, http.server, '8443']\n      \
               readinessProbe: {httpGet: {scheme: HTTPS, port: 8443}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1}\n"),
    );
    for name in ["new", "old", "meshed"] {
        cluster.wait_for_pod(name, "is ready", is_ready);
    }
    cluster.wait_for_pod("bad", "the status counts", |pod| message(pod).contains("GET /bad: status 500"));
    cluster.wait_for_pod("plain", "it must be TLS", |pod| message(pod).contains("TLS: "));
    let file = cluster.file("odd.yaml", &pod("odd", "TLSv1_3", "/", "").replace("scheme: HTTPS", "scheme: FTP"));
    let odd = cluster.weft(&["apply", "-f", &file]);
    assert!(odd.code == 1 && odd.stderr.contains("readinessProbe.httpGet.scheme"), "{odd:?}");
}

fn pods_are_ended_at_their_deadline() {
    let pod = |name: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  activeDeadlineSeconds: 2\n  terminationGracePeriodSeconds: 1\n{more}  \
             containers: [{{name: main, image: x, command: [sh, -c, 'echo begun; trap \"exit 0\" TERM; while :; do sleep 0.1; done']}}]\n"
        )
    };
    let cluster = Cluster::up(CLIENT);
    cluster.apply(&(pod("slow", "") + &pod("stuck", "  volumes: [{name: v, configMap: {name: missing}}]\n")));
    for name in ["slow", "stuck"] {
        let ended = cluster.wait_for_pod(name, "has failed", |pod| pod["status"]["phase"] == "Failed");
        assert_eq!(ended["status"]["reason"], "DeadlineExceeded", "{ended:#}");
    }
    assert_eq!(cluster.weft(&["logs", "slow"]).ok(), "begun\n");
    let shown = cluster.weft(&["ps"]);
    assert_eq!(shown.stdout.matches("DeadlineExceeded").count(), 2, "{shown:?}");
    assert!(shown.stderr.contains("pod/slow in default: DeadlineExceeded: Pod was active"), "{shown:?}");
    assert!(is_ready(&cluster.pod("client")));
    // Pods that have no end cannot have one.
    let endless = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  selector: {matchLabels: {app: d}}\n  template:\n    \
                   metadata: {labels: {app: d}}\n    spec: {activeDeadlineSeconds: 5, containers: [{name: c, image: x, command: [sleep, infinity]}]}\n";
    let refused = cluster.weft(&["apply", "-f", &cluster.file("endless.yaml", endless)]);
    assert!(refused.code == 1 && refused.stderr.contains("spec.template.spec.activeDeadlineSeconds"), "{refused:?}");
}

fn a_deployment_that_gets_nowhere_is_explained() {
    let deployment = |test: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\nspec:\n  progressDeadlineSeconds: 1\n  selector: {{matchLabels: {{app: d}}}}\n  template:\n    \
             metadata: {{labels: {{app: d}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      containers:\n        - name: c\n          image: x\n          \
             command: [sleep, infinity]\n          readinessProbe: {{exec: {{command: {test}}}, periodSeconds: 1, failureThreshold: 1}}\n"
        )
    };
    let cluster = Cluster::prepared();
    let file = cluster.file("stuck.yaml", &deployment("['false']"));
    // Nobody waits for it until the time is over.
    let failed = cluster.weft(&["up", "--detach", "-f", &file]);
    assert!(failed.code == 1 && failed.stderr.contains("ProgressDeadlineExceeded"), "{failed:?}");
    let cluster = Cluster::up(CLIENT);
    cluster.apply(&deployment("['false']"));
    let progressing = || {
        let deployment = cluster.object("deployments", "d").unwrap_or_default();
        let conditions = deployment["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "Progressing").unwrap_or_default()
    };
    wait("it has got nowhere for too long", || progressing()["status"] == "False");
    assert_eq!(progressing()["reason"], "ProgressDeadlineExceeded");
    let shown = cluster.weft(&["ps"]).stderr;
    assert!(shown.contains("deployment/d in default: ProgressDeadlineExceeded: ReplicaSet"), "{shown}");
    assert!(shown.contains("readiness probe: exit code 1"), "{shown}");
    // What mends it goes on from there.
    cluster.apply(&deployment("['true']"));
    wait("it is complete", || progressing()["reason"] == "NewReplicaSetAvailable");
    assert!(!cluster.weft(&["ps"]).stderr.contains("ProgressDeadlineExceeded"));
}

fn ports_that_are_used_twice() {
    let cluster = Cluster::prepared();
    let client = cluster.file("client.yaml", CLIENT);
    let twice =
        cluster.weft(&["up", "--detach", "-f", &client, "--publish", "8080:a.b:80", "--publish", "8080:c.d:80"]);
    assert!(twice.code == 1 && twice.stderr.contains("--publish: port 8080 is given twice"), "{twice:?}");
    assert!(!cluster.run_dir().exists());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let published = format!("{}:a.b:80", taken.local_addr().unwrap().port());
    let refused = cluster.weft(&["up", "--detach", "-f", &client, "--publish", &published]);
    assert!(refused.code == 1 && refused.stderr.contains("cannot publish at 127.0.0.1:"), "{refused:?}");
    assert!(!cluster.run_dir().exists());

    let cluster = Cluster::up(CLIENT);
    let service = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.7.7, selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n"
        )
    };
    let both = cluster.file("both.yaml", &(service("one") + &service("two")));
    let refused = cluster.weft(&["apply", "-f", &both]);
    assert!(
        refused.code == 1 && refused.stderr.contains("10.96.7.7 is the address of service default/one"),
        "{refused:?}"
    );
    assert!(cluster.object("services", "one").is_none(), "all or nothing");
    cluster.apply(&service("one"));
    let second = cluster.weft(&["apply", "-f", &cluster.file("two.yaml", &service("two"))]);
    assert!(second.code == 1 && second.stderr.contains("document 1 (Service/two): spec.clusterIP"), "{second:?}");
    // A pod has a network of its own: nobody is led in by hostPort, so nobody stands in another's way.
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n    \
             - {{name: c, image: x, command: [/usr/bin/python3, -m, http.server, '8080'], ports: [{{containerPort: 8080, hostPort: 8080}}],\n       \
             readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}}}\n"
        )
    };
    cluster.apply(&(pod("one") + &pod("two")));
    for name in ["one", "two"] {
        cluster.wait_for_pod(name, "is ready", is_ready);
    }
    assert!(is_ready(&cluster.pod("client")));
}
