//! What the tests of the binary share: starting and ending it, a directory of objects, the objects themselves.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod api_server;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tonic::transport::Channel;
use weft_core::kinds::Kind;

/// Longer than anything takes on a loaded machine; only a failing test waits this long.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// A running weft-controller; it ends with this.
pub struct Controller {
    child: Child,
    addrs: HashMap<String, SocketAddr>,
    logs: Arc<Mutex<Vec<Value>>>,
}

impl Controller {
    /// Starts a component on free ports and waits until it listens on `servers` of them.
    pub fn start(component: &str, servers: usize, args: &[&str]) -> Controller {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft-controller"))
            .arg(component)
            .args(["--log-format", "json", "--log-level", "debug,h2=warn,hyper=warn,tower=warn"])
            .args(args)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let logs = Arc::new(Mutex::new(Vec::new()));
        let (tx, rx) = mpsc::channel();
        let kept = logs.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
                let fields = &line["fields"];
                if let (Some(server), Some(addr)) = (fields["server"].as_str(), fields["addr"].as_str()) {
                    let _ = tx.send((server.to_owned(), addr.parse::<SocketAddr>().unwrap()));
                }
                kept.lock().unwrap().push(line);
            }
        });
        let addrs = (0..servers).map(|_| rx.recv_timeout(DEADLINE).expect("weft-controller does not listen")).collect();
        Controller { child, addrs, logs }
    }

    /// Starts `destination` over a directory of objects.
    pub fn destination(state: &Path) -> Controller {
        Controller::destination_with(state, &[])
    }

    /// The same, with these settings.
    pub fn destination_with(state: &Path, settings: &[&str]) -> Controller {
        let any = "127.0.0.1:0";
        let state = state.to_str().unwrap();
        let args = [
            "--state-dir",
            state,
            "--grpc-addr",
            any,
            "--policy-addr",
            any,
            "--admin-addr",
            any,
            "--resync-interval",
            "1",
        ];
        Controller::start("destination", 3, &[&args, settings].concat())
    }

    /// Starts `destination` on a made-up Kubernetes.
    pub fn destination_on(kubeconfig: &Path) -> Controller {
        let any = "127.0.0.1:0";
        let kubeconfig = kubeconfig.to_str().unwrap();
        let args = [
            "--source",
            "kubernetes",
            "--kubeconfig",
            kubeconfig,
            "--api-timeout",
            "2s",
            "--grpc-addr",
            any,
            "--policy-addr",
            any,
            "--admin-addr",
            any,
            "--resync-interval",
            "1",
        ];
        Controller::start("destination", 3, &args)
    }

    /// The figure of a metric, given with its labels as they are written; 0 when it is not there.
    pub async fn metric(&self, name: &str) -> i64 {
        let (_, text) = self.admin("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_default()
    }

    pub fn addr(&self, server: &str) -> SocketAddr {
        self.addrs[server]
    }

    pub async fn channel(&self, server: &str) -> Channel {
        Channel::from_shared(format!("http://{}", self.addr(server))).unwrap().connect().await.unwrap()
    }

    /// `GET` on the admin server: status and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        request(self.addr("admin"), "GET", path, None).await
    }

    pub fn logs(&self) -> Vec<Value> {
        self.logs.lock().unwrap().clone()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let mut status = None;
        until("the process ends", || {
            status = child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// The next message of a stream.
pub async fn next<M>(stream: &mut tonic::Streaming<M>) -> M {
    let message = tokio::time::timeout(DEADLINE, stream.message()).await.expect("no message came");
    message.unwrap().expect("the stream ended")
}

/// An HTTP exchange: status and body.
pub async fn request(addr: SocketAddr, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request =
        http::Request::builder().method(method).uri(format!("http://{addr}{path}")).body(Full::from(body)).unwrap();
    let answer = tokio::time::timeout(DEADLINE, client.request(request)).await.unwrap().unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// A directory of objects, as the one-machine cluster writes it.
pub struct State(tempfile::TempDir);

impl State {
    pub fn new() -> State {
        State(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, object: &Value) -> PathBuf {
        let metadata = &object["metadata"];
        let text = |key: &str| object[key].as_str().unwrap();
        let plural = Kind::from_manifest(text("apiVersion"), text("kind")).unwrap().plural();
        let namespace = metadata["namespace"].as_str().unwrap_or("_");
        self.path().join(plural).join(namespace).join(format!("{}.json", metadata["name"].as_str().unwrap()))
    }

    /// Writes an object by atomic rename.
    pub fn put(&self, object: &Value) {
        self.write(&self.file(object), &object.to_string());
    }

    pub fn write(&self, file: &Path, text: &str) {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let temporary = file.with_extension("tmp");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, file).unwrap();
    }

    pub fn delete(&self, object: &Value) {
        std::fs::remove_file(self.file(object)).unwrap();
    }
}

pub fn namespace(name: &str, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}})
}

/// A pod without a proxy.
pub fn plain_pod(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "labels": {"app": name},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "serviceAccountName": "default",
            "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

/// A pod of Deployment `workload` with a proxy.
pub fn meshed_pod(namespace: &str, workload: &str, suffix: &str, ip: &str) -> Value {
    let name = format!("{workload}-5d4f8-{suffix}");
    let mut pod = plain_pod(namespace, &name, ip);
    pod["metadata"]["labels"] = json!({
        "app": workload, "pod-template-hash": "5d4f8", "linkerd.io/control-plane-ns": "weft",
        "linkerd.io/proxy-deployment": workload,
    });
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{workload}-5d4f8"), "uid": "1",
        "controller": true,
    }]);
    pod["spec"]["serviceAccountName"] = json!(workload);
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({
        "name": "linkerd-proxy",
        "ports": [{"name": "linkerd-proxy", "containerPort": 4143}, {"name": "linkerd-admin", "containerPort": 4191}],
    }));
    pod
}

/// A service with port 80 named `http`.
pub fn service(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    })
}

/// A slice of endpoints of a service, all ready, port `http` 8080.
pub fn slice(service: &Value, pods: &[&Value]) -> Value {
    let namespace = &service["metadata"]["namespace"];
    let name = service["metadata"]["name"].as_str().unwrap();
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod["status"]["podIP"]],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"]},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": namespace, "name": format!("{name}-abcde"), "labels": {"kubernetes.io/service-name": name},
        },
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}
