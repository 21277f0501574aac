//! Inbound: what others send to the application of this pod.
//!
//! accept → TLS or not → transport header → policy of the port → authorization → protocol → the application

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use weft_wire::{
    Request, Version,
    tls::Session,
    transport_header::{ALPN, SessionProtocol},
};

use crate::{
    balancer::{Balancer, TcpUpstream},
    detect::{self, Hello, Protocol, Racer, Seen},
    dial,
    http::{
        Conn, Failure, Kind, Plan, Router, apply_filters, downgrade_request, refuse_downgrade, serve as serve_http,
    },
    identity::peer_identity,
    io::Io,
    metrics::{Counter, Direction, NoTls, RequestMetrics, TcpMetrics, Tls},
    net::Accepted,
    policy::{AuthzLabels, Endpoint, InboundPolicy, InboundProtocol, Meta, Queue, Timeouts},
    tcp,
    worker::{Due, Worker},
};

/// A TLS handshake costs CPU on both sides; a client that does not finish it in this time is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Label sets that a target remembers; beyond, it starts anew.
const KNOWN_CLIENTS: usize = 1024;
/// Server names of foreign TLS that a target tells apart in metrics.
const KNOWN_SERVER_NAMES: usize = 64;

/// Identifies a target: the application's address.
pub type Key = SocketAddr;

/// A port of the application, with its policy. Shared by all connections to it.
pub struct Target {
    worker: Rc<Worker>,
    addr: SocketAddr,
    policy: RefCell<(watch::Receiver<Arc<InboundPolicy>>, Arc<InboundPolicy>)>,
    app: Rc<Balancer>,
    accepted: RefCell<Vec<(Secured, TcpMetrics)>>,
    server_names: RefCell<Vec<Arc<str>>>,
    counted: RefCell<Vec<Rc<Counted>>>,
}

/// What one kind of request is counted by.
struct Counted {
    secured: Secured,
    server: Arc<Meta>,
    route: Arc<Meta>,
    authz: Arc<AuthzLabels>,
    requests: Rc<RequestMetrics>,
    allowed: Counter,
}

/// How a client's connection is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Secured {
    /// TLS, with the client's identity if it showed one.
    Mesh(Option<Arc<str>>),
    /// Somebody else's TLS, to a server of that name.
    Passthrough(Arc<str>),
    /// Nothing.
    Plain,
}

impl Secured {
    fn label(&self) -> Tls<'_> {
        match self {
            Self::Mesh(id) => Tls::Server { client_id: id.as_deref() },
            Self::Passthrough(sni) => Tls::Passthrough { sni },
            Self::Plain => Tls::None(NoTls::NoTlsFromRemote),
        }
    }

    fn identity(&self) -> Option<&str> {
        match self {
            Self::Mesh(id) => id.as_deref(),
            Self::Passthrough(_) | Self::Plain => None,
        }
    }

    fn is_mesh(&self) -> bool {
        matches!(self, Self::Mesh(_))
    }
}

/// Why a connection was not carried.
struct Refused {
    label: &'static str,
    message: String,
}

fn refused(label: &'static str, message: impl Into<String>) -> Refused {
    Refused { label, message: message.into() }
}

fn broken(error: std::io::Error) -> Refused {
    refused("i/o", format!("client: {error}"))
}

/// Serves a connection to the application, or to this proxy's own port.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, client, original } = accepted;
    let io = Rc::new(Io::plain(stream, client));
    let ips = &worker.ctx.config.inbound_ips;
    let result = if !ips.is_empty() && !ips.contains(&original.ip()) {
        Err(refused("unknown address", format!("{} is not an address of this pod", original.ip())))
    } else if dial::is_own_port(original, &worker.ctx.config.outbound) {
        Err(refused("loop", "the proxy's own outbound port was dialled: a loop"))
    } else {
        let result = carry(&worker, &io, original).await;
        // A port is forgotten again also when the connection came to nothing, as those of a port scan do.
        worker.after(worker.ctx.config.inbound.discovery_idle, Due::EvictInbound(original));
        result
    };
    if let Err(error) = result {
        tracing::info!(%client, %original, "inbound connection refused: {}", error.message);
        worker.ctx.metrics.tcp_error(Direction::Inbound, original, error.label).incr();
        io.abort_on_close();
    }
}

fn target(worker: &Rc<Worker>, addr: SocketAddr) -> Rc<Target> {
    if let Some(target) = worker.inbound.borrow().get(&addr) {
        return target.clone();
    }
    let mut watch = worker.ctx.discovery.inbound(addr.port());
    let policy = watch.borrow_and_update().clone();
    let target = Rc::new(Target {
        worker: worker.clone(),
        addr,
        policy: RefCell::new((watch, policy)),
        app: Balancer::fixed(worker, Direction::Inbound, Arc::new(Endpoint::plain(addr))),
        accepted: RefCell::default(),
        server_names: RefCell::default(),
        counted: RefCell::default(),
    });
    worker.inbound.borrow_mut().insert(addr, target.clone());
    target
}

/// Forgets a port that has had no connection for the idle time.
pub fn evict(worker: &Worker, key: &Key) {
    let mut known = worker.inbound.borrow_mut();
    if known.get(key).is_some_and(|t| Rc::strong_count(t) == 1) {
        let target = known.remove(key);
        drop(known);
        drop(target);
    }
}

/// From the first octet to the end.
async fn carry(worker: &Rc<Worker>, io: &Rc<Io>, original: SocketAddr) -> Result<(), Refused> {
    let side = &worker.ctx.config.inbound;
    let direct = dial::is_own_port(original, side);
    let limit = side.detect_timeout;

    // TLS or not. A connection that may be plain has a server that may speak first.
    let plain = (!direct).then(|| target(worker, original));
    let race = plain.as_ref().and_then(|t| t.race(io.peer(), &Secured::Plain));
    let detected = |result| plain.iter().for_each(|target| target.detected(result));
    let seen = detect::hello(io, Some(limit), race).await;
    let (secured, server) = match seen.inspect_err(|_| detected("error")).map_err(broken)? {
        Seen::Ended => {
            detected("closed");
            return Ok(());
        }
        Seen::Client(Hello::Tls(sni), server) => {
            drop(server);
            let own = worker.ctx.credentials.borrow().clone();
            match (sni, own) {
                (Some(sni), Some(own)) if sni == own.name => {
                    let session = Session::server(own.server.clone())
                        .map_err(|e| refused("tls", format!("TLS cannot start: {e}")))?;
                    io.start_tls(session);
                    timeout(HANDSHAKE_TIMEOUT, io.handshake())
                        .await
                        .map_err(|_| refused("tls", "TLS handshake timed out"))?
                        .map_err(|e| refused("tls", format!("TLS handshake: {e}")))?;
                    // A proxy that was slow must not find the race begun at once the next time.
                    plain.iter().for_each(|target| worker.speakers.note(target.addr, "mesh", Instant::now()));
                    let id = io.with_tls(|t| t.peer_certificates().and_then(<[_]>::first).and_then(peer_identity));
                    (Secured::Mesh(id.flatten().map(Arc::from)), None)
                }
                (sni, _) => {
                    detected("tls");
                    let name = plain.as_ref().zip(sni).map(|(target, sni)| target.server_name(&sni));
                    (Secured::Passthrough(name.unwrap_or_default()), None)
                }
            }
        }
        Seen::Client(Hello::Plain, server) => (Secured::Plain, server),
        Seen::Silence(server) => match plain {
            // Who was silent that long is not waited for once more.
            Some(target) if target.detects() => {
                target.detected("read_timeout");
                return target.relay(io, Secured::Plain, server).await;
            }
            _ => (Secured::Plain, server),
        },
        Seen::Server(server) => {
            let Some(target) = plain else { return Ok(()) };
            target.detected("server_first");
            return target.relay(io, Secured::Plain, Some(server)).await;
        }
    };

    // Where to: a transport header says so, else the original destination.
    let header = if io.with_tls(|t| t.alpn() == Some(ALPN)) == Some(true) && secured.is_mesh() {
        let header = detect::transport_header(io, limit)
            .await
            .map_err(|e| refused("transport header", format!("transport header: {e}")))?;
        Some(header)
    } else {
        None
    };
    let target = match (header, plain) {
        (Some(_), _) if secured.identity().is_none() => {
            return Err(refused("no identity", "a transport header needs a client with an identity"));
        }
        (Some(header), _) => {
            if let Some(name) = header.name {
                return Err(refused("gateway", format!("this proxy is no gateway to {name}")));
            }
            let addr = SocketAddr::new(original.ip(), header.port);
            let client = secured.identity().unwrap_or_default();
            worker.ctx.metrics.transport_header(header.session_protocol, header.port, client).incr();
            if dial::is_own_port(addr, side) {
                return Err(refused("loop", "the transport header leads to this proxy itself: a loop"));
            }
            let target = target(worker, addr);
            let result = Box::pin(target.carry(io, secured, Some(header.session_protocol), server)).await;
            worker.after(side.discovery_idle, Due::EvictInbound(addr));
            return result;
        }
        (None, Some(target)) => target,
        (None, None) if secured.identity().is_none() => {
            return Err(refused("no identity", "connections to the proxy's own port need mutual TLS"));
        }
        (None, None) => {
            return Err(refused("transport header", "connections to the proxy's own port need a transport header"));
        }
    };
    Box::pin(target.carry(io, secured, None, server)).await
}

impl Target {
    /// A server name as metrics know it. Clients choose these names, and each makes new series: after some, the others
    /// have none.
    fn server_name(&self, sni: &str) -> Arc<str> {
        let mut known = self.server_names.borrow_mut();
        if let Some(name) = known.iter().find(|n| &***n == sni) {
            return name.clone();
        }
        if known.len() >= KNOWN_SERVER_NAMES {
            return Arc::default();
        }
        let name: Arc<str> = sni.into();
        known.push(name.clone());
        name
    }

    /// The present policy.
    fn policy(&self) -> Arc<InboundPolicy> {
        let mut policy = self.policy.borrow_mut();
        let (watch, current) = &mut *policy;
        if watch.has_changed().unwrap_or(false) {
            *current = watch.borrow_and_update().clone();
        }
        current.clone()
    }

    /// True when the policy has what is spoken detected.
    fn detects(&self) -> bool {
        matches!(self.policy().protocol, InboundProtocol::Detect { .. })
    }

    /// Counts an outcome of detection and remembers who spoke first.
    fn detected(&self, result: &'static str) {
        if !self.detects() {
            return;
        }
        self.worker.ctx.metrics.inbound_detected(&self.policy().meta, self.addr.port(), result).incr();
        self.worker.speakers.note(self.addr, result, Instant::now());
    }

    /// The application, if it may be connected to before the client has said anything.
    fn race(&self, client: SocketAddr, secured: &Secured) -> Option<Racer<'_>> {
        let policy = self.policy();
        let fits =
            matches!(policy.protocol, InboundProtocol::Opaque | InboundProtocol::Tls | InboundProtocol::Detect { .. });
        if !fits || policy.authorize(client.ip(), secured.identity(), secured.is_mesh()).is_err() {
            return None;
        }
        let spoke = self.worker.speakers.spoke(self.addr, Instant::now());
        Some(Racer { to: &self.app, limit: self.worker.ctx.config.inbound.http_failfast, spoke })
    }

    fn accepted(&self, secured: &Secured) -> TcpMetrics {
        let mut known = self.accepted.borrow_mut();
        if let Some((_, metrics)) = known.iter().find(|(s, _)| s == secured) {
            return metrics.clone();
        }
        if known.len() >= KNOWN_CLIENTS {
            known.clear();
        }
        let meta = self.policy().meta.clone();
        let metrics = self.worker.ctx.metrics.inbound_accepted(self.addr, &secured.label(), &meta);
        known.push((secured.clone(), metrics.clone()));
        metrics
    }

    async fn carry(
        self: Rc<Self>,
        io: &Rc<Io>,
        secured: Secured,
        session: Option<Option<SessionProtocol>>,
        server: Option<TcpUpstream>,
    ) -> Result<(), Refused> {
        let policy = self.policy();
        if matches!(secured, Secured::Passthrough(_)) {
            // What is inside cannot be seen.
            return self.relay(io, secured, server).await;
        }
        if let InboundProtocol::Invalid(reason) = &policy.protocol {
            return Err(refused("invalid policy", format!("invalid policy of port {}: {reason}", self.addr.port())));
        }
        let http = match session {
            Some(Some(SessionProtocol::Http1)) => Some(Version::H11),
            Some(Some(SessionProtocol::Http2)) => Some(Version::H2),
            Some(None) => None,
            None => match &policy.protocol {
                InboundProtocol::Opaque | InboundProtocol::Tls | InboundProtocol::Invalid(_) => None,
                InboundProtocol::Http2(_) | InboundProtocol::Grpc(_) => Some(Version::H2),
                InboundProtocol::Http1(_) => {
                    // Declared; a meshed client carries HTTP/1 as HTTP/2.
                    let limit = self.worker.ctx.config.http1.idle;
                    match detect::protocol(io, Some(limit), None).await.map_err(broken)? {
                        Seen::Client(Protocol::Http2, _) => Some(Version::H2),
                        Seen::Ended => return Ok(()),
                        _ => Some(Version::H11),
                    }
                }
                InboundProtocol::Detect { timeout, .. } => {
                    let race = if server.is_none() { self.race(io.peer(), &secured) } else { None };
                    let seen = detect::protocol(io, Some(*timeout), race).await;
                    let seen = seen.inspect_err(|_| self.detected("error")).map_err(broken)?;
                    if let Seen::Client(protocol, _) = &seen {
                        self.detected(protocol.result());
                    }
                    match seen {
                        Seen::Ended => {
                            self.detected("closed");
                            return Ok(());
                        }
                        Seen::Client(Protocol::Http1, _) => Some(Version::H11),
                        Seen::Client(Protocol::Http2, _) => Some(Version::H2),
                        Seen::Client(Protocol::Tls | Protocol::Opaque, other) => {
                            return self.relay(io, secured, server.or(other)).await;
                        }
                        Seen::Server(other) => {
                            self.detected("server_first");
                            return self.relay(io, secured, Some(other)).await;
                        }
                        Seen::Silence(other) => {
                            self.detected("read_timeout");
                            return self.relay(io, secured, server.or(other)).await;
                        }
                    }
                }
            },
        };
        match http {
            None => self.relay(io, secured, server).await,
            Some(version) => {
                drop(server);
                io.meter(self.accepted(&secured).open());
                let worker = self.worker.clone();
                let client = io.peer();
                let router: Rc<dyn Router> = Rc::new(Http { target: self, client, secured, last: RefCell::default() });
                let conn = Conn::front(io.clone(), &worker, version, router);
                Box::pin(serve_http(conn)).await;
                Ok(())
            }
        }
    }

    /// Relays bytes to the application, as long as the policy permits.
    async fn relay(self: Rc<Self>, io: &Io, secured: Secured, server: Option<TcpUpstream>) -> Result<(), Refused> {
        let metrics = &self.worker.ctx.metrics;
        let (ip, identity) = (io.peer().ip(), secured.identity());
        // What changes from here on, while the application is connected to as well, is seen below.
        let mut watch = self.policy.borrow().0.clone();
        let policy = watch.borrow_and_update().clone();
        match policy.authorize(ip, identity, secured.is_mesh()) {
            Ok(labels) => metrics.tcp_allow(self.addr, &secured.label(), &policy.meta, &labels.meta).incr(),
            Err(denied) => {
                metrics.tcp_deny(self.addr, &secured.label(), &policy.meta).incr();
                return Err(refused("unauthorized", denied.to_string()));
            }
        }
        io.meter(self.accepted(&secured).open());
        let server = match server {
            Some(server) => server,
            None => self
                .app
                .connect(self.worker.ctx.config.inbound.http_failfast)
                .await
                .map_err(|error| refused(error.label, error.message))?,
        };
        let Some(back) = server.io() else { return Ok(()) };
        let relay = tcp::relay(io, back);
        tokio::pin!(relay);
        loop {
            tokio::select! {
                () = &mut relay => return Ok(()),
                changed = watch.changed() => {
                    if changed.is_err() {
                        relay.await;
                        return Ok(());
                    }
                    let policy = watch.borrow_and_update().clone();
                    if let Err(denied) = policy.authorize(ip, identity, secured.is_mesh()) {
                        metrics.tcp_terminate(self.addr, &secured.label(), &policy.meta).incr();
                        return Err(refused("unauthorized", denied.to_string()));
                    }
                }
            }
        }
    }

    /// What requests of that kind are counted by.
    fn counted(
        &self,
        secured: &Secured,
        server: &Arc<Meta>,
        route: &Arc<Meta>,
        authz: &Arc<AuthzLabels>,
    ) -> Rc<Counted> {
        let mut known = self.counted.borrow_mut();
        if let Some(counted) = known.iter().find(|c| c.fits(server, route, authz) && c.secured == *secured) {
            return counted.clone();
        }
        if known.len() >= KNOWN_CLIENTS {
            known.clear();
        }
        let metrics = &self.worker.ctx.metrics;
        let tls = secured.label();
        let counted = Rc::new(Counted {
            secured: secured.clone(),
            server: server.clone(),
            route: route.clone(),
            authz: authz.clone(),
            requests: Rc::new(metrics.inbound_requests(self.addr, None, &tls, server, route, &authz.meta)),
            allowed: metrics.http_allow(self.addr, &tls, server, route, &authz.meta),
        });
        known.push(counted.clone());
        counted
    }
}

impl Counted {
    fn fits(&self, server: &Arc<Meta>, route: &Arc<Meta>, authz: &Arc<AuthzLabels>) -> bool {
        let same = |a: &Arc<Meta>, b: &Arc<Meta>| Arc::ptr_eq(a, b) || a == b;
        same(&self.server, server) && same(&self.route, route) && same(&self.authz.meta, &authz.meta)
    }
}

/// Where the requests of one connection go: to the application, if they may.
struct Http {
    target: Rc<Target>,
    client: SocketAddr,
    secured: Secured,
    /// Of the last request: the next one is nearly always of the same kind.
    last: RefCell<Option<Rc<Counted>>>,
}

impl Router for Http {
    fn direction(&self) -> Direction {
        Direction::Inbound
    }

    fn emits_reasons(&self) -> bool {
        // Only a meshed peer may know.
        self.secured.identity().is_some()
    }

    fn carries_others(&self) -> bool {
        self.secured.identity().is_some()
    }

    fn route(&self, head: &mut Request) -> Result<Plan, Failure> {
        let downgraded = match self.secured.identity() {
            Some(_) => downgrade_request(head),
            None => {
                refuse_downgrade(head);
                false
            }
        };
        // Only a proxy says these, and only to a proxy.
        head.headers.retain(|name, _| {
            !name.starts_with(b"l5d-")
                || !matches!(
                    name,
                    b"l5d-client-id"
                        | b"l5d-server-id"
                        | b"l5d-remote-ip"
                        | b"l5d-dst-canonical"
                        | b"l5d-require-id"
                        | b"l5d-proxy-error"
                        | b"l5d-proxy-connection"
                )
        });
        if let Some(id) = self.secured.identity() {
            head.headers.push(b"l5d-client-id", id.as_bytes());
        }

        let target = &self.target;
        let metrics = &target.worker.ctx.metrics;
        let policy = target.policy();
        if let InboundProtocol::Invalid(reason) = &policy.protocol {
            let message = format!("invalid policy of port {}: {reason}", target.addr.port());
            return Err(Failure::new(Kind::Policy, message));
        }
        let Some(found) = policy.route(head) else {
            metrics.http_route_not_found(target.addr, &self.secured.label(), &policy.meta).incr();
            return Err(Failure::new(Kind::NoRoute, format!("port {}: no route for the request", target.addr.port())));
        };
        let identity = self.secured.identity();
        let authorized = policy.authorize_route(found.route, self.client.ip(), identity, self.secured.is_mesh());
        let authz = match authorized {
            Ok(authz) => authz,
            Err(denied) => {
                metrics.http_deny(target.addr, &self.secured.label(), &policy.meta, &found.route.meta).incr();
                return Err(Failure::new(Kind::Unauthorized, denied.to_string()));
            }
        };
        let mut last = self.last.borrow_mut();
        let counted = match &*last {
            Some(counted) if counted.fits(&policy.meta, &found.route.meta, authz) => counted.clone(),
            _ => {
                let counted = target.counted(&self.secured, &policy.meta, &found.route.meta, authz);
                *last = Some(counted.clone());
                counted
            }
        };
        counted.allowed.incr();
        let mut response = Vec::new();
        apply_filters(&found.rule.filters, head, found.prefix, &mut response)?;
        let side = &target.worker.ctx.config.inbound;
        Ok(Plan {
            to: target.app.clone(),
            queue: Queue { capacity: side.http_queue, failfast: side.http_failfast },
            timeouts: Timeouts::default(),
            response,
            downgraded,
            require_identity: None,
            metrics: Some(counted.requests.clone()),
        })
    }
}
