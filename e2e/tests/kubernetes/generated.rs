//! A cluster much larger than this machine could run: nodes, pods and endpoints that nobody runs, written straight to a real
//! API server. The controller reads them, two thousand proxies ask it, and fifty endpoints change each second. Every
//! change arrives at the stream that it is about; what it takes is printed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use linkerd2_proxy_api::destination::{
    GetDestination, Update, destination_client::DestinationClient, update::Update as Kind,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tonic::{Streaming, transport::Channel};
use weft_e2e::{Kubernetes, Process, binaries};

const NAMESPACE: &str = "generated";
const SERVICES: usize = 1000;
const PODS_OF_EACH: usize = 10;
const NODES: usize = 100;
const STREAMS: usize = 2000;
const CHANGES: usize = 1000;
/// Between two changes.
const PACE: Duration = Duration::from_millis(20);
/// Objects that are written at the same time.
const WRITERS: usize = 16;
/// Octets that the controller may have resident, in KiB.
const MEMORY: u64 = 150 * 1024;
/// Longer than anything takes on a loaded machine; only a failing test waits this long.
const DEADLINE: Duration = Duration::from_secs(120);

pub fn run() -> anyhow::Result<()> {
    let cluster = Kubernetes::up()?;
    if !cluster.is_own() {
        println!("not on a cluster of somebody else: nobody would take all that away");
        return Ok(());
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(generated(&cluster))
}

async fn generated(cluster: &Kubernetes) -> anyhow::Result<()> {
    let writer = Writer::new(cluster).await?;
    let begun = Instant::now();
    let slices = fill(&writer).await?;
    println!("{} objects written in {:.0?}", NODES + SERVICES * (2 + PODS_OF_EACH), begun.elapsed());

    let controller = Controller::start(cluster)?;
    let begun = Instant::now();
    controller.ready().await?;
    let read = begun.elapsed();
    let channel = Channel::from_shared(format!("http://{}", controller.addr("destination")?))?.connect().await?;
    let client = DestinationClient::new(channel);
    let mut streams: Vec<Streaming<Update>> = Vec::new();
    for n in 0..STREAMS {
        let path = format!("svc{}.{NAMESPACE}.svc.cluster.local:80", n % SERVICES);
        let mut stream = client.clone().get(GetDestination { path, ..Default::default() }).await?.into_inner();
        match next(&mut stream).await? {
            Kind::Add(set) => ensure!(set.addrs.len() == PODS_OF_EACH, "{} endpoints of svc{n}", set.addrs.len()),
            other => bail!("{other:?}"),
        }
        streams.push(stream);
    }
    let before = controller.memory()?;
    let times = churn(&writer, slices, &mut streams).await?;
    let after = controller.memory()?;
    println!(
        "{SERVICES} services, {} endpoints, {STREAMS} streams: read in {read:.1?}; {} MiB, after changes {} MiB; \
         from write to proxy p50 {:.1?}, p99 {:.1?}, most {:.1?}",
        SERVICES * PODS_OF_EACH,
        before / 1024,
        after / 1024,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1],
    );
    ensure!(after < MEMORY, "the controller has {after} KiB resident");
    Ok(())
}

/// Writes all objects. Answers the slices of the services.
async fn fill(writer: &Writer) -> anyhow::Result<Vec<Value>> {
    writer.create("/api/v1/namespaces", json!({ "metadata": { "name": NAMESPACE } })).await?;
    // Pods are refused before their namespace has its account.
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
    let begun = Instant::now();
    while writer.send("GET", &account, None).await.is_err() {
        ensure!(begun.elapsed() < DEADLINE, "{NAMESPACE} gets no service account");
        sleep(Duration::from_millis(100)).await;
    }
    let nodes = (0..NODES).map(|n| {
        let labels = json!({ "topology.kubernetes.io/zone": format!("zone{}", n % 3) });
        let spec = json!({ "unschedulable": true });
        writer
            .create("/api/v1/nodes", json!({ "metadata": { "name": format!("n{n}"), "labels": labels }, "spec": spec }))
    });
    all(nodes).await?;
    // The cluster's own proxies of services need not know of all these.
    let nobody = ("service.kubernetes.io/service-proxy-name", "nobody");
    let path = format!("/api/v1/namespaces/{NAMESPACE}/services");
    let services = (0..SERVICES).map(|n| {
        let spec = json!({ "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] });
        let metadata = json!({ "name": format!("svc{n}"), "labels": { nobody.0: nobody.1 } });
        writer.create(&path, json!({ "metadata": metadata, "spec": spec }))
    });
    all(services).await?;
    all((0..SERVICES * PODS_OF_EACH).map(|n| pod(writer, n))).await?;
    let slices: Vec<Value> = (0..SERVICES).map(|n| slice(n, nobody)).collect();
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
    all(slices.iter().map(|slice| writer.create(&path, slice.clone()))).await?;
    Ok(slices)
}

fn pod_name(n: usize) -> String {
    format!("svc{}-5d4f8-{:05}", n / PODS_OF_EACH, n % PODS_OF_EACH)
}

fn ip(n: usize) -> String {
    format!("10.200.{}.{}", n / 250, n % 250 + 1)
}

/// A meshed pod that seems to run.
async fn pod(writer: &Writer, n: usize) -> anyhow::Result<()> {
    let (name, app) = (pod_name(n), format!("svc{}", n / PODS_OF_EACH));
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let labels = json!({
        "app": app, "pod-template-hash": "5d4f8", "linkerd.io/control-plane-ns": "weft", "linkerd.io/proxy-deployment": app,
    });
    let containers = json!([
        { "name": "app", "image": "none", "ports": [{ "name": "http", "containerPort": 8080 }] },
        { "name": "linkerd-proxy", "image": "none", "ports": [
            { "name": "linkerd-proxy", "containerPort": 4143 }, { "name": "linkerd-admin", "containerPort": 4191 },
        ] },
    ]);
    let spec = json!({
        "nodeName": format!("n{}", n % NODES), "containers": containers, "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false,
    });
    writer.create(&path, json!({ "metadata": { "name": name, "labels": labels }, "spec": spec })).await?;
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    let status = json!({ "phase": "Running", "podIP": ip(n), "podIPs": [{ "ip": ip(n) }], "conditions": ready });
    writer.send("PATCH", &format!("{path}/{name}/status"), Some(json!({ "status": status }))).await?;
    Ok(())
}

fn slice(service: usize, nobody: (&str, &str)) -> Value {
    let pods = service * PODS_OF_EACH..(service + 1) * PODS_OF_EACH;
    let endpoints = pods.map(|n| {
        let target = json!({ "kind": "Pod", "namespace": NAMESPACE, "name": pod_name(n) });
        json!({ "addresses": [ip(n)], "conditions": { "ready": true }, "targetRef": target })
    });
    let labels: BTreeMap<&str, String> = BTreeMap::from([
        ("kubernetes.io/service-name", format!("svc{service}")),
        ("endpointslice.kubernetes.io/managed-by", "tests".to_owned()),
        (nobody.0, nobody.1.to_owned()),
    ]);
    json!({
        "metadata": { "name": format!("svc{service}-abcde"), "labels": labels },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

/// One endpoint goes, or comes back, fifty times a second. Answers how long each change took from the beginning of its
/// write to the proxy, in order.
async fn churn(
    writer: &Writer,
    mut slices: Vec<Value>,
    streams: &mut [Streaming<Update>],
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let at = change * 7 % SERVICES;
        let slice = &mut slices[at];
        let ready = &mut slice["endpoints"][0]["conditions"]["ready"];
        let comes = *ready == false;
        *ready = comes.into();
        let name = slice["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{name}");
        let begun = Instant::now();
        let (written, heard) = tokio::join!(writer.send("PUT", &path, Some(slice.clone())), next(&mut streams[at]));
        times.push(begun.elapsed());
        written?;
        // The other proxy that asks about this service hears the same.
        for heard in [heard?, next(&mut streams[at + SERVICES]).await?] {
            match heard {
                Kind::Add(set) => ensure!(comes && set.addrs.len() == 1, "{set:?}"),
                Kind::Remove(set) => ensure!(!comes && set.addrs.len() == 1, "{set:?}"),
                other @ Kind::NoEndpoints(_) => bail!("{other:?}"),
            }
        }
        sleep(PACE.saturating_sub(begun.elapsed())).await;
    }
    times.sort();
    Ok(times)
}

async fn next(stream: &mut Streaming<Update>) -> anyhow::Result<Kind> {
    let message = timeout(DEADLINE, stream.message()).await.context("no message came")??;
    message.and_then(|message| message.update).context("the stream ended")
}

async fn all(writes: impl Iterator<Item = impl Future<Output = anyhow::Result<()>>>) -> anyhow::Result<()> {
    stream::iter(writes).buffer_unordered(WRITERS).try_collect::<Vec<()>>().await.map(drop)
}

/// Whoever writes to the API server.
struct Writer(kube::Client);

impl Writer {
    async fn new(cluster: &Kubernetes) -> anyhow::Result<Self> {
        let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await?;
        Ok(Self(kube::Client::try_from(config)?))
    }

    async fn create(&self, path: &str, object: Value) -> anyhow::Result<()> {
        self.send("POST", path, Some(object)).await.map(drop)
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| body.to_string()).unwrap_or_default().into_bytes();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
        timeout(DEADLINE, self.0.request(request)).await?.with_context(|| format!("{method} {path}"))
    }
}

/// `weft-controller destination`, here and not in the cluster, where nobody could be so many proxies.
struct Controller {
    child: Child,
    addrs: BTreeMap<String, SocketAddr>,
}

impl Controller {
    fn start(cluster: &Kubernetes) -> anyhow::Result<Self> {
        let mut command = Command::new(binaries().join("weft-controller"));
        command.args(["destination", "--source", "kubernetes", "--log-format", "json", "--kubeconfig"]);
        command.arg(cluster.kubeconfig());
        for server in ["--grpc-addr", "--policy-addr", "--admin-addr"] {
            command.args([server, "127.0.0.1:0"]);
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stderr.take().context("no standard error")?).lines();
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                let text = |key: &str| line["fields"][key].as_str();
                if let (Some(server), Some(Ok(addr))) = (text("server"), text("addr").map(str::parse)) {
                    let _ = tx.send((server.to_owned(), addr));
                }
            }
        });
        let mut controller = Self { child, addrs: BTreeMap::new() };
        for _ in 0..3 {
            controller.addrs.extend([rx.recv_timeout(DEADLINE).context("weft-controller does not listen")?]);
        }
        Ok(controller)
    }

    fn addr(&self, server: &str) -> anyhow::Result<SocketAddr> {
        self.addrs.get(server).copied().with_context(|| format!("no {server}"))
    }

    /// Waits until everything is read.
    async fn ready(&self) -> anyhow::Result<()> {
        let addr = self.addr("admin")?;
        let begun = Instant::now();
        loop {
            let stream = tokio::net::TcpStream::connect(addr).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let request = http::Request::get("/ready").header("host", "localhost");
            let response = sender.send_request(request.body(http_body_util::Empty::<bytes::Bytes>::new())?).await?;
            if response.status().is_success() {
                return Ok(());
            }
            ensure!(begun.elapsed() < DEADLINE, "it is not ready: {}", response.status());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Memory that is resident, in KiB.
    fn memory(&self) -> anyhow::Result<u64> {
        let pid = i32::try_from(self.child.id())?;
        let process = Process::all().into_iter().find(|process| process.pid == pid).context("it has ended")?;
        Ok(process.usage()?.resident)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
