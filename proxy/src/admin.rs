//! The admin server: metrics, readiness, liveness, log level, shutdown.
//!
//! It speaks HTTP/1 and HTTP/2, plain and under the mesh's TLS, because meshed scrapers come through their own proxy. What
//! it tells to callers from elsewhere is subject to the inbound policy of its port, but for `/ready` and `/live`, which
//! the kubelet asks for. Paths that change something answer callers from this pod only; the end of a proxy whose Job has
//! done its work may also be asked for by the control plane, where the cluster does not end it by itself.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    identity::{CredentialsRx, peer_identity},
    logging::LogHandle,
    metrics::Metrics,
    policy::InboundPolicy,
};

const MAX_CONNECTIONS: usize = 64;
/// There are few places for connections, and probes need one: nobody keeps one for long.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 4096;
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// Variables that are not shown by `/env.json`, by part of their name.
const SECRET: &[&str] = &["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL", "AUTH"];

/// What the admin server answers from.
pub(crate) struct Admin {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) credentials: CredentialsRx,
    /// True once every data thread listens.
    pub(crate) bound: watch::Receiver<bool>,
    pub(crate) log: LogHandle,
    /// The policy of the admin port.
    pub(crate) policy: watch::Receiver<Arc<InboundPolicy>>,
    /// What `POST /shutdown` sets off.
    pub(crate) shutdown: mpsc::Sender<()>,
    /// Whether it works for callers from this pod.
    pub(crate) shutdown_enabled: bool,
    /// For whom else it works.
    pub(crate) shutdown_identity: Option<String>,
}

#[derive(Clone)]
struct Caller {
    addr: SocketAddr,
    /// From an address of this pod: from the pod itself, or through its inbound proxy, which has authorized it.
    same_host: bool,
    tls: bool,
    identity: Option<String>,
}

impl Caller {
    fn is_local(&self) -> bool {
        self.addr.ip().to_canonical().is_loopback()
    }
}

type Answer = Response<Full<Bytes>>;

/// Serves forever.
pub(crate) async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, addr)) => {
                let admin = admin.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, addr, admin).await {
                        tracing::debug!(client = %addr, %error, "admin connection failed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, addr: SocketAddr, admin: Arc<Admin>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await??;
    let same_host = stream.local_addr()?.ip() == addr.ip();
    let credentials = admin.credentials.borrow().clone();
    match credentials {
        Some(credentials) if first == [TLS_HANDSHAKE_RECORD] => {
            let accept = tokio_rustls::TlsAcceptor::from(credentials.server.clone()).accept(stream);
            let stream = timeout(HANDSHAKE_TIMEOUT, accept).await??;
            let identity = stream.get_ref().1.peer_certificates().and_then(|c| peer_identity(c.first()?));
            http(stream, Caller { addr, same_host, tls: true, identity }, admin).await
        }
        _ => http(stream, Caller { addr, same_host, tls: false, identity: None }, admin).await,
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    caller: Caller,
    admin: Arc<Admin>,
) -> std::io::Result<()> {
    let service = hyper::service::service_fn(move |request| {
        let (admin, caller) = (admin.clone(), caller.clone());
        async move { Ok::<_, Infallible>(admin.answer(&caller, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT).max_buf_size(16 * 1024);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(16).initial_stream_window_size(65_535);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = match timeout(CONNECTION_LIFE, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            timeout(HANDSHAKE_TIMEOUT, connection).await?
        }
    };
    ended.map_err(std::io::Error::other)
}

impl Admin {
    async fn answer(&self, caller: &Caller, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let get = matches!(parts.method, Method::GET | Method::HEAD);
        let mut answer = match (path.as_str(), get) {
            ("/live", true) => text(StatusCode::OK, "live\n"),
            ("/ready", true) => self.ready(),
            ("/metrics", true) => match self.permits(caller, &parts) {
                true => {
                    let mut answer = text(StatusCode::OK, self.metrics.render());
                    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                    answer
                }
                false => text(StatusCode::FORBIDDEN, "the policy of this port does not authorize the client\n"),
            },
            ("/live" | "/ready" | "/metrics", false) => not_allowed("GET, HEAD"),
            ("/shutdown", false) if parts.method == Method::POST && self.may_end(caller) => self.shut_down(),
            ("/proxy-log-level" | "/env.json" | "/shutdown", _) if !caller.is_local() => {
                text(StatusCode::FORBIDDEN, format!("{path} answers callers from this pod only\n"))
            }
            ("/proxy-log-level", true) => text(StatusCode::OK, format!("{}\n", self.log.get())),
            ("/proxy-log-level", false) if parts.method == Method::PUT => self.set_log_level(body).await,
            ("/proxy-log-level", false) => not_allowed("GET, PUT"),
            ("/env.json", true) => environment(),
            ("/env.json", false) => not_allowed("GET"),
            ("/shutdown", false) if parts.method == Method::POST => text(
                StatusCode::NOT_FOUND,
                "shutdown is not enabled; LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED enables it\n",
            ),
            ("/shutdown", _) => not_allowed("POST"),
            _ => text(StatusCode::NOT_FOUND, "no such path\n"),
        };
        if parts.method == Method::HEAD {
            *answer.body_mut() = Full::default();
        }
        answer
    }

    fn ready(&self) -> Answer {
        if self.credentials.borrow().is_none() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "waiting for the first certificate\n");
        }
        if !*self.bound.borrow() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "waiting for the listeners\n");
        }
        text(StatusCode::OK, "ready\n")
    }

    /// Callers from this pod's address may see everything here; others, what the policy of the admin port grants.
    fn permits(&self, caller: &Caller, parts: &http::request::Parts) -> bool {
        if caller.same_host {
            return true;
        }
        let policy = self.policy.borrow().clone();
        let request = weft_wire::Request {
            method: parts.method.as_str().into(),
            authority: parts.uri.authority().map(|a| a.as_str().into()).unwrap_or_default(),
            path: parts.uri.path_and_query().map(|p| p.as_str().into()).unwrap_or_default(),
            ..weft_wire::Request::default()
        };
        let (ip, identity) = (caller.addr.ip(), caller.identity.as_deref());
        match policy.route(&request) {
            Some(matched) => policy.authorize_route(matched.route, ip, identity, caller.tls).is_ok(),
            None => policy.authorize(ip, identity, caller.tls).is_ok(),
        }
    }

    async fn set_log_level(&self, body: Incoming) -> Answer {
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        let directives = match std::str::from_utf8(&body) {
            Ok(directives) => directives.trim(),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        };
        match self.log.set(directives) {
            Ok(()) => Response::builder().status(StatusCode::NO_CONTENT).body(Full::default()).unwrap_or_default(),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    fn may_end(&self, caller: &Caller) -> bool {
        let of_the_mesh = caller.tls && self.shutdown_identity.is_some() && caller.identity == self.shutdown_identity;
        of_the_mesh || (caller.is_local() && self.shutdown_enabled)
    }

    fn shut_down(&self) -> Answer {
        // A full channel means that a shutdown has been asked for already.
        let _ = self.shutdown.try_send(());
        text(StatusCode::OK, "shutting down\n")
    }
}

fn environment() -> Answer {
    let shown: serde_json::Map<String, serde_json::Value> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| {
            let name = name.to_ascii_uppercase();
            name.ends_with("_FILE") || !SECRET.iter().any(|s| name.contains(s))
        })
        .map(|(name, value)| (name, value.into()))
        .collect();
    let mut answer = text(StatusCode::OK, serde_json::Value::Object(shown).to_string());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods} here\n"));
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}
