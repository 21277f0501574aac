//! Names, addresses, environment, volumes, commands.

use std::io::BufRead;

use super::support::{Cluster, is_ready, state, wait};

pub const TESTS: &[(&str, fn())] = &[
    ("pods_talk_by_name_and_by_ip", pods_talk_by_name_and_by_ip),
    ("environment_and_volumes", environment_and_volumes),
    ("exec_logs_and_ps", exec_logs_and_ps),
    ("manifests_that_are_wrong_change_nothing", manifests_that_are_wrong_change_nothing),
];

/// A web server that answers with its host name.
pub const SERVER: &str = "
import http.server, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ['HOSTNAME'].encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        print('request', self.path, flush=True)
http.server.ThreadingHTTPServer(('', 8080), Handler).serve_forever()
";

/// A deployment of that server, and its service on port 80.
pub fn web(replicas: u32) -> String {
    let program = SERVER.trim().replace('\n', "\n              ");
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: example/web
          command: [/usr/bin/python3, -c]
          args:
            - |
              {program}
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web-headless}}
spec:
  clusterIP: None
  selector: {{app: web}}
  ports: [{{name: http, port: 8080}}]
"
    )
}

/// A pod that does nothing, to look around from.
pub const CLIENT: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: shell, image: example/shell, command: [sleep, infinity]}]
";

fn pods_talk_by_name_and_by_ip() {
    let cluster = Cluster::up(&format!("{}\n---\n{CLIENT}", web(2)));
    let pods: Vec<_> = cluster.pods().into_iter().filter(|p| p["metadata"]["labels"]["app"] == "web").collect();
    let mut names: Vec<String> = pods.iter().map(|p| p["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 2);
    let ip = cluster.object("services", "web").unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(ip.starts_with("10.96."), "{ip}");
    // By name, in short and in full, and by service IP: both pods answer in time.
    for target in ["web", "web.default", "web.default.svc.cluster.local.", ip.as_str()] {
        let mut seen = std::collections::BTreeSet::new();
        wait(&format!("both pods answer at {target}"), || {
            seen.insert(cluster.sh("client", &format!("curl -sS -m 20 http://{target}/")).ok());
            seen.len() == 2
        });
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), names);
    }
    // By pod IP, and by the names of a headless service.
    for pod in &pods {
        let ip = pod["status"]["podIP"].as_str().unwrap();
        assert_eq!(
            cluster.sh("client", &format!("curl -sS -m 20 http://{ip}:8080/")).ok(),
            pod["metadata"]["name"].as_str().unwrap()
        );
    }
    let addresses = cluster.sh("client", "getent ahostsv4 web-headless | awk '{print $1}' | sort -u | wc -l").ok();
    assert_eq!(addresses.trim(), "2");
    // The gateway's hardware address does not follow the pods that come and go.
    let known = cluster.sh("client", "awk '$1 == \"10.244.0.1\" {print $4}' /proc/net/arp").ok();
    assert_eq!(known.trim(), "02:00:0a:f4:00:01");
    // A pod reaches itself through its own service.
    let own =
        cluster.sh(&names[0], "for i in 1 2 3 4 5 6 7 8; do curl -sS -m 20 http://web/ || exit 1; echo; done").ok();
    assert_eq!(own.lines().count(), 8);
    // A service without endpoints refuses at once, and a name that does not exist does not exist.
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec: {selector: {app: none}, ports: [{port: 80}]}\n",
    );
    wait("an empty service refuses", || cluster.sh("client", "curl -sS -m 20 http://empty/").code == 7);
    assert_eq!(cluster.sh("client", "curl -sS -m 20 http://nonsense/").code, 6);
    assert_eq!(cluster.sh("client", "getent hosts nonsense.default.svc.cluster.local").code, 2);
    // The endpoints are what the control plane reads.
    let slices = std::fs::read_dir(cluster.run_dir().join("objects/endpointslices/default")).unwrap().count();
    assert_eq!(slices, 3);
    // From outside, through a published port's way.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let run = weft_local::rundir::RunDir::at(&cluster.run_dir()).unwrap();
        let client = weft_local::client::Client::at(run).await.unwrap();
        let mut stream = client.dial("default", "svc/web", 80).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(client.dial("default", "svc/web", 81).await.unwrap_err().to_string().contains("has no port 81"));
        assert!(client.dial("default", "nobody", 80).await.unwrap_err().to_string().contains("not found"));
        answer
    });
    assert!(names.iter().any(|n| answer.ends_with(n.as_str())), "{answer}");
}

fn environment_and_volumes() {
    let cluster = Cluster::prepared();
    let host_dir = cluster.file("shared.txt", "from the host");
    let manifest = format!(
        r"
apiVersion: v1
kind: ConfigMap
metadata: {{name: config}}
data: {{colour: blue, file.conf: 'a = 1'}}
---
apiVersion: v1
kind: Secret
metadata: {{name: secret}}
stringData: {{password: pa55}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: runner}}
---
apiVersion: v1
kind: Pod
metadata: {{name: all, labels: {{tier: front}}}}
spec:
  serviceAccountName: runner
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsUser: 1234, runAsGroup: 1235, fsGroup: 1236}}
  initContainers:
    - name: first
      image: x
      command: [sh, -c, 'echo -n one > /work/first']
      volumeMounts: [{{name: work, mountPath: /work}}]
    - name: second
      image: x
      command: [sh, -c, 'cat /work/first > /work/second && echo -n two >> /work/second']
      volumeMounts: [{{name: work, mountPath: /work}}]
  containers:
    - name: main
      image: x
      command: [sleep]
      args: [$(DURATION)]
      workingDir: /work
      env:
        - {{name: DURATION, value: infinity}}
        - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: config, key: colour}}}}}}
        - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: secret, key: password}}}}}}
        - {{name: POD_IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        - {{name: SENTENCE, value: '$(COLOUR) is $$(COLOUR)'}}
      envFrom: [{{configMapRef: {{name: config}}, prefix: CFG_}}]
      volumeMounts:
        - {{name: work, mountPath: /work}}
        - {{name: config, mountPath: /etc/app}}
        - {{name: config, mountPath: /etc/one.conf, subPath: file.conf}}
        - {{name: secret, mountPath: /secret}}
        - {{name: host, mountPath: /host/file}}
        - {{name: info, mountPath: /info}}
      readinessProbe: {{exec: {{command: [test, -f, /work/second]}}, periodSeconds: 1}}
  volumes:
    - {{name: work, emptyDir: {{}}}}
    - {{name: config, configMap: {{name: config}}}}
    - {{name: secret, secret: {{secretName: secret, defaultMode: 288}}}}
    - {{name: host, hostPath: {{path: '{host_dir}'}}}}
    - name: info
      projected:
        sources:
          - serviceAccountToken: {{path: token, audience: identity.l5d.io, expirationSeconds: 3600}}
          - downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}
"
    );
    let file = cluster.file("up.yaml", &manifest);
    cluster.weft(&["up", "--detach", "-f", &file]).ok();
    let sh = |command: &str| cluster.sh("all", command).ok();
    // Who has one user only runs everything as that.
    let map = sh("cat /proc/self/uid_map");
    let single = map.lines().count() == 1 && map.trim_end().ends_with(" 1");
    assert_eq!(sh("id -u; id -g; id -G"), if single { "0\n0\n0\n" } else { "1234\n1235\n1235 1236\n" });
    assert_eq!(sh("pwd; cat second"), "/work\nonetwo");
    assert_eq!(sh("echo $COLOUR $PASSWORD $CFG_colour $SENTENCE"), "blue pa55 blue blue is $(COLOUR)\n");
    assert_eq!(sh("echo $POD_IP").trim(), cluster.pod("all")["status"]["podIP"].as_str().unwrap());
    assert_eq!(sh("cat /etc/app/colour /etc/one.conf /secret/password /host/file"), "bluea = 1pa55from the host");
    assert_eq!(sh("cat /info/labels"), "tier=\"front\"");
    assert_eq!(
        sh("hostname; cat /etc/hostname; head -1 /etc/resolv.conf"),
        "all\nall\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n"
    );
    // Both tokens are for this service account; only root could write where they are.
    for path in ["/info/token", "/var/run/secrets/kubernetes.io/serviceaccount/token"] {
        let claims = sh(&format!("cut -d. -f2 {path} | tr '_-' '/+' | (base64 -d 2>/dev/null; true)"));
        assert!(claims.contains("system:serviceaccount:default:runner"), "{claims}");
    }
    assert_eq!(sh("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"), "default");
    assert_ne!(cluster.sh("all", "touch /etc/app/x").code, 0);
    // The machine's own files are as they were, and only this pod's processes are seen.
    let main = cluster.sh("all", "touch /tmp/weft-left-behind && ls /proc | grep -c '^[0-9]'").ok();
    assert!(main.trim().parse::<u32>().unwrap() < 10, "{main}");
    assert!(!std::path::Path::new("/tmp/weft-left-behind").exists());
    // Nor is the cluster's own directory, which leads to its API.
    let run_dir = cluster.run_dir();
    assert!(run_dir.join("api.sock").exists());
    assert_ne!(cluster.sh("all", &format!("test -e {}/api.sock", run_dir.display())).code, 0);
    // A changed ConfigMap is seen in the volume.
    cluster
        .apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config}\ndata: {colour: red, file.conf: 'a = 2'}\n");
    wait("the volume follows the ConfigMap", || sh("cat /etc/app/colour") == "red");
}

fn exec_logs_and_ps() {
    let cluster = Cluster::up(
        r"
apiVersion: v1
kind: Pod
metadata: {name: talk}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: x, command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; echo error >&2; exec sleep infinity']}
    - {name: side, image: x, command: [sh, -c, 'echo side; exec sleep infinity']}
",
    );
    let command = |arguments: &[&str]| cluster.weft(arguments);
    wait("all is logged", || command(&["logs", "talk"]).ok() == "line 1\nline 2\nline 3\nerror\n");
    assert_eq!(command(&["logs", "pod/talk", "--tail", "2"]).ok(), "line 3\nerror\n");
    assert_eq!(command(&["logs", "talk", "-c", "side"]).ok(), "side\n");
    let wrong = command(&["logs", "talk", "-c", "none"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("has no container none; it has main, side"), "{wrong:?}");

    // Output, error output, exit code and standard input go through.
    let outcome = command(&["exec", "talk", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n", "err\n"));
    let killed = command(&["exec", "talk", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.code, 137);
    let missing = command(&["exec", "talk", "--", "no-such-program"]);
    assert!(missing.code == 126 && missing.stderr.contains("no-such-program"), "{missing:?}");
    let input = cluster.file("input", &"0123456789abcdef\n".repeat(50_000));
    let mut with_input = cluster.command(&["exec", "-i", "talk", "--", "sh", "-c", "wc -c; echo done"]);
    let outcome = with_input.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "850000\ndone\n");
    let large = command(&["exec", "talk", "--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]).ok();
    assert_eq!(large.len(), 3_000_000);

    let table = command(&["ps"]).ok();
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["talk", "2/2", "Running", "0"]);
    assert!(table.starts_with("NAME   READY   STATUS    RESTARTS   AGE"), "{table}");
    assert!(command(&["ps", "-A"]).ok().starts_with("NAMESPACE"));
    let none = command(&["ps", "-n", "none"]);
    assert_eq!((none.code, none.stderr.as_str()), (0, "No resources found in none namespace.\n"));

    // Following ends with the pod.
    let mut follow = cluster.command(&["logs", "-f", "talk"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "line 1");
    let manifest = cluster.file(
        "delete.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: talk}\nspec: {containers: [{name: main, image: x}]}\n",
    );
    assert_eq!(command(&["delete", "-f", &manifest]).ok(), "pod/talk deleted\n");
    assert_eq!(lines.map_while(Result::ok).collect::<Vec<_>>(), ["line 2", "line 3", "error"]);
    assert!(follow.wait().unwrap().success());
    assert!(cluster.pods().is_empty());
}

fn manifests_that_are_wrong_change_nothing() {
    let cluster = Cluster::up(CLIENT);
    let before = cluster.pod("client");
    let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {a: b}\n";
    let pod = |container: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{containers: [{container}]}}\n")
    };
    for (bad, expected) in [
        ("apiVersion: v1\nkind: Nonsense\nmetadata: {name: x}\n".to_owned(), vec!["document 2", "Nonsense"]),
        ("a: [1,\n".to_owned(), vec!["document 2", "line"]),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {replicas: many}\n".to_owned(),
            vec!["document 2", "spec.replicas"],
        ),
        (pod("{name: c, image: x}"), vec!["document 2", "spec.containers[0].command"]),
        (
            pod("{name: c, image: x, command: [no-such-program]}"),
            vec!["document 2", "spec.containers[0].command[0]", "no-such-program exists neither in"],
        ),
        (
            pod("{name: c, image: x, command: [/no/such/program]}"),
            vec!["document 2", "spec.containers[0].command[0]", "/no/such/program does not exist"],
        ),
        (
            pod("{name: c, image: x, command: ['true'], volumeMounts: [{name: v, mountPath: /v}]}"),
            vec!["volumeMounts[0].name"],
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: elsewhere}\n".to_owned(),
            vec!["namespace \"elsewhere\" does not exist"],
        ),
        (good.to_owned(), vec!["document 2", "twice"]),
    ] {
        let file = cluster.file("bad.yaml", &format!("{good}---\n{bad}"));
        let outcome = cluster.weft(&["apply", "-f", &file]);
        assert_eq!(outcome.code, 1, "{bad}: {}", outcome.stdout);
        assert!(outcome.stderr.contains(&file), "{}", outcome.stderr);
        for part in expected {
            assert!(outcome.stderr.contains(part), "{bad}: {}", outcome.stderr);
        }
        assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
        assert!(cluster.object("configmaps", "good").is_none());
    }
    // A command that cannot be run is known when it is started.
    let manifest = pod("{name: c, image: x, command: [/etc/hostname]}");
    assert_eq!(cluster.apply(&manifest), "pod/p created\n");
    let broken = cluster.wait_for_pod("p", "says why", |p| state(p) == "CreateContainerError");
    let message = broken["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("command /etc/hostname may not be executed"), "{message}");
    assert!(cluster.weft(&["ps"]).ok().contains("CreateContainerError"));
    // It is tried again, less and less often; what already ran goes on.
    cluster.wait_for_pod("p", "is tried again", |p| {
        p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(2)
    });
    let after = cluster.pod("client");
    assert!(is_ready(&after));
    assert_eq!(after["status"]["containerStatuses"][0]["state"], before["status"]["containerStatuses"][0]["state"]);
}
