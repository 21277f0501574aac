//! Connections to a control-plane service: names, TLS, HTTP/2, and one shared connection that comes back.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::dns;
use crate::{
    config::{Backoff, ControlAddr, ProxySide},
    identity::CredentialsRx,
};

/// Receive windows of control streams. Messages are small; what is not used is not allocated.
const WINDOW: u32 = 65_535;
const SEND_BUFFER: usize = 16 * 1024;
/// Finds dead hosts, together with the TCP user timeout.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// Finds processes that hang. gRPC servers in Go end connections that are pinged more often than every five minutes.
const PING_INTERVAL: Duration = Duration::from_secs(6 * 60);
const PING_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) type SendRequest = http2::SendRequest<tonic::body::Body>;

/// Makes connections to one service.
#[derive(Clone)]
pub(crate) struct Connector {
    addr: ControlAddr,
    tls: Tls,
    connect_timeout: Duration,
    keepalive: Option<Duration>,
    user_timeout: Option<Duration>,
    pub(crate) backoff: Backoff,
}

#[derive(Clone)]
pub(crate) enum Tls {
    /// Loopback.
    Plaintext,
    /// Before this proxy has a certificate: the service is verified, the proxy shows nothing. Once it has, it shows it.
    Anonymous { first: Arc<rustls::ClientConfig>, credentials: CredentialsRx },
    /// Waits for this proxy's certificate.
    Mutual(CredentialsRx),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Drives a connection; ends when it is over.
pub(crate) type Driver = BoxFuture<'static, Result<(), hyper::Error>>;

impl Connector {
    /// The settings of connections are those of the outbound side, or of the inbound side for loopback.
    pub(crate) fn new(addr: ControlAddr, side: &ProxySide, tls: Tls) -> Self {
        Self {
            tls: if addr.identity.is_some() { tls } else { Tls::Plaintext },
            addr,
            connect_timeout: side.connect_timeout.max(Duration::from_millis(500)),
            keepalive: side.connect_keepalive.or(Some(TCP_KEEPALIVE)),
            user_timeout: side.connect_user_timeout.or(Some(Duration::from_secs(30))),
            backoff: Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10), jitter: 0.2 },
        }
    }

    pub(crate) fn addr(&self) -> &ControlAddr {
        &self.addr
    }

    /// One attempt over all addresses of the service. The returned driver must be polled.
    ///
    /// # Errors
    /// Which step failed, for the last address tried.
    pub(crate) async fn connect(&self) -> io::Result<(SendRequest, Driver)> {
        let tls = self.tls_config().await?;
        let ips = timeout(RESOLVE_TIMEOUT, dns::resolve(&self.addr.host))
            .await
            .map_err(|_| late(format!("resolving {} took too long", self.addr.host)))??;
        let mut last = io::Error::other("no address");
        for ip in ips {
            let addr = SocketAddr::new(ip, self.addr.port);
            match self.connect_to(addr, tls.clone()).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = io::Error::new(error.kind(), format!("{addr}: {error}")),
            }
        }
        Err(last)
    }

    async fn tls_config(&self) -> io::Result<Option<Arc<rustls::ClientConfig>>> {
        match &self.tls {
            Tls::Plaintext => Ok(None),
            Tls::Anonymous { first, credentials } => {
                Ok(Some(credentials.borrow().as_ref().map_or_else(|| first.clone(), |c| c.client.clone())))
            }
            Tls::Mutual(credentials) => {
                let mut credentials = credentials.clone();
                let current = credentials.wait_for(Option::is_some).await.map_err(io::Error::other)?;
                Ok(current.as_ref().map(|c| c.client.clone()))
            }
        }
    }

    async fn connect_to(
        &self,
        addr: SocketAddr,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> io::Result<(SendRequest, Driver)> {
        let tcp = timeout(self.connect_timeout, TcpStream::connect(addr))
            .await
            .map_err(|_| late("connecting took too long"))??;
        tcp.set_nodelay(true)?;
        let socket = SockRef::from(&tcp);
        if let Some(time) = self.keepalive.filter(|t| !t.is_zero()) {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time))?;
        }
        socket.set_tcp_user_timeout(self.user_timeout)?;
        let io: Box<dyn Io> = match (tls, &self.addr.identity) {
            (Some(config), Some(identity)) => {
                let name = ServerName::try_from(identity.clone()).map_err(io::Error::other)?;
                let handshake = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
                let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
                    .await
                    .map_err(|_| late("the TLS handshake took too long"))?
                    .map_err(|e| io::Error::new(e.kind(), format!("TLS with {identity}: {e}")))?;
                Box::new(stream)
            }
            // Plaintext is for loopback only: the configuration demands an identity for every other address.
            (None, None) => Box::new(tcp),
            _ => return Err(io::Error::other("TLS settings and address disagree")),
        };
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(16 * 1024)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        Ok((send, Box::pin(connection)))
    }
}

fn late(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text.into())
}

#[derive(Clone)]
enum State {
    /// Not connected, and why.
    Down(Arc<str>),
    Up(SendRequest),
}

struct Shared {
    state: watch::Sender<State>,
    demand: Notify,
}

/// One connection that all streams to a service share. It is made when first needed, and made again, with back-off,
/// when it is lost and somebody needs it.
#[derive(Clone)]
pub(crate) struct Channel {
    shared: Arc<Shared>,
    current: Option<SendRequest>,
    origin: http::Uri,
}

impl Channel {
    /// Starts the task that keeps the connection; it ends with the runtime.
    pub(crate) fn new(connector: Connector) -> Self {
        let origin = origin(connector.addr());
        let (state, _) = watch::channel(State::Down("not connected yet".into()));
        let shared = Arc::new(Shared { state, demand: Notify::new() });
        tokio::spawn(maintain(connector, shared.clone()));
        Self { shared, current: None, origin }
    }

    /// A channel over one existing connection.
    pub(crate) fn fixed(send: SendRequest, addr: &ControlAddr) -> Self {
        let (state, _) = watch::channel(State::Down("closed".into()));
        let shared = Arc::new(Shared { state, demand: Notify::new() });
        Self { shared, current: Some(send), origin: origin(addr) }
    }

    /// Waits for a connection, however long it takes, and returns a channel that uses it.
    pub(crate) async fn ready(&self) -> Self {
        let mut state = self.shared.state.subscribe();
        loop {
            if let State::Up(send) = &*state.borrow_and_update()
                && !send.is_closed()
            {
                return Self { current: Some(send.clone()), ..self.clone() };
            }
            self.shared.demand.notify_one();
            if state.changed().await.is_err() {
                // The sender lives in `self.shared`, so this cannot be; waiting is what the caller expects anyway.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why there is no connection at the moment, if there is none.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        match &*self.shared.state.borrow() {
            State::Down(why) => Some(why.clone()),
            State::Up(_) => None,
        }
    }

    /// For the generated clients.
    pub(crate) fn origin(&self) -> http::Uri {
        self.origin.clone()
    }
}

fn origin(addr: &ControlAddr) -> http::Uri {
    http::Uri::builder()
        .scheme("http")
        .authority(addr.to_string())
        .path_and_query("/")
        .build()
        .unwrap_or_else(|_| http::Uri::from_static("http://control/"))
}

async fn maintain(connector: Connector, shared: Arc<Shared>) {
    let mut failures = 0;
    loop {
        shared.demand.notified().await;
        match connector.connect().await {
            Ok((send, driver)) => {
                failures = 0;
                tracing::debug!(addr = %connector.addr(), "connected to the control plane");
                shared.state.send_replace(State::Up(send));
                let why = match driver.await {
                    Ok(()) => "the connection was closed".into(),
                    Err(error) => with_sources(&error),
                };
                tracing::info!(addr = %connector.addr(), reason = %why, "connection to the control plane ended");
                shared.state.send_replace(State::Down(why.into()));
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(addr = %connector.addr(), %error, failures, "cannot connect to the control plane");
                // Whoever still waits asks again.
                shared.state.send_replace(State::Down(error.to_string().into()));
                sleep(connector.backoff.delay(failures)).await;
            }
        }
    }
}

/// An error and what caused it, in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl tower::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = tonic::Status;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        match self.current.clone() {
            Some(mut send) => Box::pin(async move {
                send.send_request(request).await.map_err(|e| tonic::Status::unavailable(with_sources(&e)))
            }),
            None => Box::pin(async { Err(tonic::Status::unavailable("not connected")) }),
        }
    }
}
