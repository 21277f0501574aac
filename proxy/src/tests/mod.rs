//! Whole proxies in one process: real sockets, applications and clients that are not ours (hyper, h2), discovery set by
//! hand. What needs redirection or a control plane is in `tests/`.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::LocalSet,
};

use crate::{
    Context,
    config::Config,
    discover::Discovery,
    drain::Phase,
    identity::preset::Authority,
    metrics::Metrics,
    policy::{Endpoint, Identity, Meta, OutboundPolicy, Queue},
    run::{Listeners, run_with},
};

mod bodies;
mod bytes_through;
mod failures;
mod half_close;
mod hostile;
mod http1;
mod http2;
mod interleaving;
mod mesh;
mod slow_clients;

pub(super) const CLIENT: &str = "client.test.serviceaccount.identity.weft.cluster.local";
pub(super) const SERVER: &str = "server.test.serviceaccount.identity.weft.cluster.local";

/// What tests wait for anything at most. Nothing is expected to take long; the machine may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits something that must come.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it took too long")
}

/// Waits until a condition holds.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what} does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Original destinations by listener, in place of the kernel's memory.
fn originals() -> &'static Mutex<HashMap<SocketAddr, SocketAddr>> {
    static ORIGINALS: OnceLock<Mutex<HashMap<SocketAddr, SocketAddr>>> = OnceLock::new();
    ORIGINALS.get_or_init(Mutex::default)
}

fn original(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    Ok(originals().lock().unwrap().get(&local).copied().unwrap_or(local))
}

/// A proxy on a thread of its own.
pub(super) struct Proxy {
    pub(super) discovery: Discovery,
    pub(super) metrics: Arc<Metrics>,
    /// Its own inbound port, for connections with a transport header.
    pub(super) direct: SocketAddr,
    outbound: HashMap<SocketAddr, SocketAddr>,
    inbound: HashMap<SocketAddr, SocketAddr>,
    pub(super) drain: watch::Sender<Phase>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// The thread, as the kernel numbers it.
    task: i32,
    _token: tempfile::NamedTempFile,
}

impl Proxy {
    /// Starts a proxy that carries connections to those outbound destinations and to those local applications.
    pub(super) async fn start(ca: &Authority, name: &str, outbound: &[SocketAddr], inbound: &[SocketAddr]) -> Self {
        Self::start_with(ca, name, outbound, inbound, &[]).await
    }

    pub(super) async fn start_with(
        ca: &Authority,
        name: &str,
        outbound: &[SocketAddr],
        inbound: &[SocketAddr],
        env: &[(&str, &str)],
    ) -> Self {
        Self::start_tuned(ca, name, outbound, inbound, env, |_| ()).await
    }

    /// As [`Proxy::start_with`]; `tune` changes what the environment does not decide.
    pub(super) async fn start_tuned(
        ca: &Authority,
        name: &str,
        outbound: &[SocketAddr],
        inbound: &[SocketAddr],
        env: &[(&str, &str)],
        tune: impl FnOnce(&mut Config),
    ) -> Self {
        async fn listen() -> (TcpListener, SocketAddr) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            (listener, addr)
        }
        let (direct_listener, direct) = listen().await;
        let mut listeners = Listeners { inbound: vec![direct_listener], outbound: Vec::new() };
        let (mut out, mut inb) = (HashMap::new(), HashMap::new());
        for (targets, map, into) in
            [(outbound, &mut out, &mut listeners.outbound), (inbound, &mut inb, &mut listeners.inbound)]
        {
            for target in targets {
                let (listener, addr) = listen().await;
                originals().lock().unwrap().insert(addr, *target);
                map.insert(*target, addr);
                into.push(listener);
            }
        }
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), "token").unwrap();
        let mut variables: HashMap<String, String> = HashMap::new();
        let mut set = |name: &str, value: &str| variables.insert(format!("LINKERD2_PROXY_{name}"), value.to_owned());
        set("IDENTITY_LOCAL_NAME", name);
        set("IDENTITY_TRUST_ANCHORS", &ca.pem());
        set("IDENTITY_TOKEN_FILE", token.path().to_str().unwrap());
        for service in ["IDENTITY", "DESTINATION", "POLICY"] {
            set(&format!("{service}_SVC_ADDR"), "127.0.0.1:1");
        }
        set("POLICY_WORKLOAD", "test");
        set("INBOUND_LISTEN_ADDR", &direct.to_string());
        set("OUTBOUND_LISTEN_ADDR", "127.0.0.1:1");
        // Tests do not measure time: a busy machine may be slow.
        set("OUTBOUND_CONNECT_TIMEOUT", "30s");
        set("INBOUND_CONNECT_TIMEOUT", "30s");
        for (name, value) in env {
            set(name, value);
        }
        let mut config = Config::from_source(&|name| Ok(variables.get(name).cloned())).unwrap();
        tune(&mut config);
        let config = Arc::new(config);
        let (keep, credentials) = watch::channel(Some(ca.issue(name)));
        let metrics = Metrics::new(config.metrics_retain_idle);
        let discovery = Discovery::preset(&config, &credentials, &metrics);
        let (drain, drain_rx) = watch::channel(Phase::Running);
        let context = Context {
            config,
            discovery: discovery.clone(),
            credentials,
            metrics: metrics.clone(),
            drain: drain_rx,
            bound: mpsc::unbounded_channel().0,
        };
        let to_std = |all: Vec<TcpListener>| all.into_iter().map(|l| l.into_std().unwrap()).collect::<Vec<_>>();
        let (inbound_std, outbound_std) = (to_std(listeners.inbound), to_std(listeners.outbound));
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // The listeners are those of the test's runtime; here they begin a new life.
            let move_here = |all: Vec<std::net::TcpListener>| {
                all.into_iter().map(|l| TcpListener::from_std(l).unwrap()).collect::<Vec<_>>()
            };
            LocalSet::new().block_on(&runtime, async move {
                let _keep = keep;
                let listeners = Listeners { inbound: move_here(inbound_std), outbound: move_here(outbound_std) };
                run_with(context, listeners, original).await.unwrap();
            });
        });
        let (thread, task) = (Some(thread), told.recv().unwrap());
        Self { discovery, metrics, direct, outbound: out, inbound: inb, drain, thread, task, _token: token }
    }

    /// Waits until the proxy has nothing to do: it is seen asleep many times in a row. One that wakes itself never is.
    pub(super) async fn rests(&self) {
        let stat = format!("/proc/self/task/{}/stat", self.task);
        let mut asleep = 0;
        until("the proxy rests", || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            let sleeps = stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'));
            asleep = if sleeps { asleep + 1 } else { 0 };
            asleep == 20
        })
        .await;
    }

    /// Where the application connects to reach that destination.
    pub(super) fn outbound(&self, original: SocketAddr) -> SocketAddr {
        self.outbound[&original]
    }

    /// Where others connect to reach that local application.
    pub(super) fn inbound(&self, app: SocketAddr) -> SocketAddr {
        self.inbound[&app]
    }

    /// The value of a series, by its name and a part of its labels; the sum if several fit.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        self.metrics
            .render()
            .lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|l| line.contains(l))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>() as u64
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.drain.send_replace(Phase::Ending);
        // The thread ends when its connections have; a test that leaves some open does not wait for that.
        drop(self.thread.take());
    }
}

/// A policy that forwards everything to one endpoint.
pub(super) fn forward(endpoint: Endpoint) -> OutboundPolicy {
    let queue = Queue { capacity: 100, failfast: Duration::from_secs(3) };
    OutboundPolicy::forward(Meta::default_named("test"), Arc::new(endpoint), queue, Duration::from_secs(10))
}

/// An endpoint behind the proxy `peer`, reached through its own port with a transport header.
pub(super) fn meshed(app: SocketAddr, peer: &Proxy) -> Endpoint {
    Endpoint {
        identity: Some(Identity { name: SERVER.into(), server_name: SERVER.into() }),
        h2: true,
        transport_port: Some(peer.direct.port()),
        ..Endpoint::plain(app)
    }
}

/// Two proxies: from the client's outbound listener, through the server's proxy, to `app`.
pub(super) struct Pair {
    pub(super) client: Proxy,
    pub(super) server: Proxy,
    /// Where the client connects.
    pub(super) entry: SocketAddr,
}

pub(super) async fn pair(app: SocketAddr) -> Pair {
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    client.discovery.set_outbound(app, forward(meshed(app, &server)));
    let entry = client.outbound(app);
    Pair { client, server, entry }
}

/// One proxy that forwards to `app` in plaintext.
pub(super) async fn single(app: SocketAddr) -> (Proxy, SocketAddr) {
    let ca = Authority::new();
    let proxy = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    proxy.discovery.set_outbound(app, forward(Endpoint::plain(app)));
    let entry = proxy.outbound(app);
    (proxy, entry)
}

pub(super) type Body = BoxBody<Bytes, Infallible>;

pub(super) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// An application of hyper's.
pub(super) async fn app<F, R>(h2: bool, handler: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let handler = handler.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = handler(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let io = TokioIo::new(stream);
                if h2 {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                } else {
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
                }
            });
        }
    });
    addr
}

/// An application that does with each connection what it is told.
pub(super) async fn raw_app<F, R>(handler: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handler(stream));
        }
    });
    addr
}

/// Connects as real clients do: without Nagle's algorithm, whose delays would dominate.
pub(super) async fn connect(entry: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(entry).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// hyper's HTTP/1 client on one connection.
pub(super) async fn http1(entry: SocketAddr) -> hyper::client::conn::http1::SendRequest<Body> {
    let stream = connect(entry).await;
    let (send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(conn.with_upgrades());
    send
}

/// hyper's HTTP/2 client on one connection.
pub(super) async fn http2(entry: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let stream = connect(entry).await;
    let (send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(conn);
    send
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::builder().uri(path).header("host", "web.test").body(full("")).unwrap()
}

pub(super) async fn text(body: Incoming) -> String {
    String::from_utf8(soon(body.collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Sends octets on a new connection and reads to the end of what comes back.
pub(super) async fn talk(entry: SocketAddr, octets: &[u8]) -> String {
    let mut stream = TcpStream::connect(entry).await.unwrap();
    stream.write_all(octets).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good an end as any.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until `end` has been read.
pub(super) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(end) {
        let n = soon(stream.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "ended before {end:?}: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}
