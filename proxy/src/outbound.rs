//! Outbound: what the application of this pod sends.
//!
//! accept → original destination → discovery → protocol (declared or detected) → route → backend → endpoint → connection

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use weft_wire::{Request, Version};

use crate::{
    balancer::{Balancer, TcpUpstream},
    detect::{self, Hello, Protocol, Racer, Seen},
    dial,
    discover::{Error, Resolution},
    http::{Conn, Failure, Kind, Plan, Router, apply_filters, refuse_downgrade, serve as serve_http},
    io::Io,
    metrics::{Counter, Direction, TcpMetrics},
    net::Accepted,
    policy::{self, Backend, HttpRoutes, OpaqueRoutes, OutboundPolicy, OutboundProtocol, Profile},
    tcp,
    worker::{Due, Worker},
};

/// A destination: one original address, with its policy and its backends. Shared by all connections to it.
pub struct Target {
    worker: Rc<Worker>,
    addr: SocketAddr,
    current: RefCell<Current>,
    accepted: TcpMetrics,
    /// Held so that discovery keeps it.
    _profile: watch::Receiver<Option<Arc<Profile>>>,
}

struct Current {
    watch: watch::Receiver<Arc<OutboundPolicy>>,
    policy: Arc<OutboundPolicy>,
    backends: Vec<(Arc<Backend>, Rc<Balancer>)>,
    /// Counts connections by the policy's protocol.
    connections: Option<Counter>,
}

/// Serves a connection from the application.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, client, original } = accepted;
    let io = Io::plain(stream, client);
    if dial::is_own_port(original, &worker.ctx.config.outbound) {
        tracing::info!(%client, %original, "the proxy was dialled itself: a loop");
        return refuse(&worker, &io, original, "loop");
    }
    let target = match target(&worker, original).await {
        Ok(target) => target,
        Err(error) => {
            tracing::info!(%client, %original, %error, "discovery failed");
            return refuse(&worker, &io, original, "discovery");
        }
    };
    io.meter(target.accepted.open());
    if let Err(error) = target.clone().carry(io).await {
        tracing::info!(%client, %original, "outbound connection failed: {error}");
        worker.ctx.metrics.tcp_error(Direction::Outbound, original, error.label).incr();
    }
    let addr = target.addr;
    drop(target);
    worker.after(worker.ctx.config.outbound.discovery_idle, Due::EvictOutbound(addr));
}

fn refuse(worker: &Worker, io: &Io, original: SocketAddr, label: &'static str) {
    worker.ctx.metrics.tcp_error(Direction::Outbound, original, label).incr();
    io.abort_on_close();
}

/// Why a connection was not carried.
struct Refused {
    label: &'static str,
    message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

fn refused(label: &'static str, message: impl Into<String>) -> Refused {
    Refused { label, message: message.into() }
}

async fn target(worker: &Rc<Worker>, addr: SocketAddr) -> Result<Rc<Target>, Error> {
    let known = |worker: &Worker| worker.outbound.borrow().get(&addr).cloned();
    if let Some(target) = known(worker) {
        return Ok(target);
    }
    let Resolution { policy: mut watch, profile } = worker.ctx.discovery.outbound(addr).await?;
    // Another connection may have been faster.
    if let Some(target) = known(worker) {
        return Ok(target);
    }
    let policy = watch.borrow_and_update().clone();
    let target = Rc::new(Target {
        worker: worker.clone(),
        addr,
        accepted: worker.ctx.metrics.outbound_accepted(addr),
        current: RefCell::new(Current { watch, backends: Vec::new(), policy, connections: None }),
        _profile: profile,
    });
    target.refresh();
    worker.outbound.borrow_mut().insert(addr, target.clone());
    Ok(target)
}

/// Forgets a destination that has had no connection for the idle time.
pub fn evict(worker: &Worker, addr: SocketAddr) {
    let mut known = worker.outbound.borrow_mut();
    if known.get(&addr).is_some_and(|t| Rc::strong_count(t) == 1) {
        let target = known.remove(&addr);
        drop(known);
        drop(target);
    }
}

impl Target {
    /// The present policy.
    fn policy(&self) -> Arc<OutboundPolicy> {
        let changed = self.current.borrow().watch.has_changed().unwrap_or(false);
        if changed {
            {
                let mut current = self.current.borrow_mut();
                let current = &mut *current;
                current.policy = current.watch.borrow_and_update().clone();
            }
            self.refresh();
        }
        self.current.borrow().policy.clone()
    }

    /// Makes the balancers of a new policy, and what its connections are counted by; those that both policies use stay with their connections.
    fn refresh(&self) {
        let (policy, old) = {
            let current = self.current.borrow();
            (current.policy.clone(), current.backends.clone())
        };
        let mut new: Vec<(Arc<Backend>, Rc<Balancer>)> = Vec::new();
        each_backend(&policy, &mut |backend, http| {
            if new.iter().any(|(b, _)| Arc::ptr_eq(b, backend)) {
                return;
            }
            let known = new.iter().chain(&old).find(|(b, _)| b.target == backend.target).map(|(_, b)| b.clone());
            let balancer = known.unwrap_or_else(|| match &backend.target {
                policy::Target::Forward(endpoint) => {
                    Balancer::fixed(&self.worker, Direction::Outbound, endpoint.clone())
                }
                policy::Target::Balance { path, load } => {
                    let balancer = Balancer::discovered(&self.worker, path, *load);
                    let gauge =
                        |state| self.worker.ctx.metrics.balancer_endpoints(http, &policy.meta, &backend.meta, state);
                    balancer.set_gauges(gauge("ready"), gauge("pending"));
                    balancer
                }
            });
            new.push((backend.clone(), balancer));
        });
        let connections = self.worker.ctx.metrics.outbound_protocol(&policy.meta, policy.protocol.label());
        let mut current = self.current.borrow_mut();
        current.backends = new;
        current.connections = Some(connections);
    }

    fn balancer(&self, backend: &Arc<Backend>) -> Option<Rc<Balancer>> {
        self.current.borrow().backends.iter().find(|(b, _)| Arc::ptr_eq(b, backend)).map(|(_, b)| b.clone())
    }

    /// Carries a connection by the policy.
    async fn carry(self: Rc<Self>, io: Io) -> Result<(), Refused> {
        let policy = self.policy();
        if let Some(connections) = &self.current.borrow().connections {
            connections.incr();
        }
        let broken = |error: std::io::Error| refused("i/o", format!("client: {error}"));
        match &policy.protocol {
            OutboundProtocol::Invalid(reason) => {
                io.abort_on_close();
                Err(refused("invalid policy", format!("invalid policy: {reason}")))
            }
            OutboundProtocol::Opaque(routes) => self.relay(io, routes, None, None).await,
            OutboundProtocol::Tls(routes) => {
                let limit = self.worker.ctx.config.outbound.detect_timeout;
                let sni = match detect::hello(&io, Some(limit), None).await.map_err(broken)? {
                    Seen::Client(Hello::Tls(sni), _) => sni,
                    Seen::Ended => return Ok(()),
                    _ => {
                        io.abort_on_close();
                        return Err(refused(
                            "not TLS",
                            "the client does not speak TLS, which this destination requires",
                        ));
                    }
                };
                self.relay(io, routes, sni.as_deref(), None).await
            }
            OutboundProtocol::Http1(_) => {
                // Declared, but in which version an application speaks is seen anyhow.
                let limit = self.worker.ctx.config.http1.idle;
                match detect::protocol(&io, Some(limit), None).await.map_err(broken)? {
                    Seen::Client(Protocol::Http2, _) => self.http(io, Version::H2).await,
                    Seen::Ended => {}
                    _ => self.http(io, Version::H11).await,
                }
                Ok(())
            }
            OutboundProtocol::Http2(_) | OutboundProtocol::Grpc(_) => {
                self.http(io, Version::H2).await;
                Ok(())
            }
            OutboundProtocol::Detect { timeout, opaque, .. } => {
                // The server that would speak first is the one that the opaque route leads to.
                let route = opaque.find(None).filter(|r| r.refuse.is_none());
                let backend = route.and_then(|r| r.backends.pick());
                let racer = backend.and_then(|b| Some((self.balancer(b)?, b.queue.failfast)));
                let speakers = &self.worker.speakers;
                let spoke = speakers.spoke(self.addr, Instant::now());
                let race = racer.as_ref().map(|(to, limit)| Racer { to, limit: *limit, spoke });
                let count = |result| {
                    self.worker.ctx.metrics.outbound_detected(&policy.meta, result).incr();
                    speakers.note(self.addr, result, Instant::now());
                };
                let seen = detect::protocol(&io, Some(*timeout), race).await;
                let seen = seen.inspect_err(|_| count("error")).map_err(broken)?;
                if let Seen::Client(protocol, _) = &seen {
                    count(protocol.result());
                }
                match seen {
                    Seen::Client(Protocol::Http1, server) => {
                        drop(server);
                        self.http(io, Version::H11).await;
                        Ok(())
                    }
                    Seen::Client(Protocol::Http2, server) => {
                        drop(server);
                        self.http(io, Version::H2).await;
                        Ok(())
                    }
                    Seen::Client(Protocol::Tls | Protocol::Opaque, server) => {
                        self.relay(io, opaque, None, server).await
                    }
                    Seen::Server(server) => {
                        count("server_first");
                        self.relay(io, opaque, None, Some(server)).await
                    }
                    Seen::Silence(server) => {
                        count("read_timeout");
                        self.relay(io, opaque, None, server).await
                    }
                    Seen::Ended => {
                        count("closed");
                        Ok(())
                    }
                }
            }
        }
    }

    async fn http(self: Rc<Self>, io: Io, version: Version) {
        let worker = self.worker.clone();
        let router: Rc<dyn Router> = Rc::new(Http { target: self, h2: version == Version::H2 });
        let conn = Conn::front(io, &worker, version, router);
        Box::pin(serve_http(conn)).await;
    }

    /// Relays bytes to a backend of the route, or to the server that is connected to already.
    async fn relay(
        self: Rc<Self>,
        io: Io,
        routes: &OpaqueRoutes,
        sni: Option<&str>,
        server: Option<TcpUpstream>,
    ) -> Result<(), Refused> {
        let abort = |refused: Refused| {
            io.abort_on_close();
            Err(refused)
        };
        let Some(route) = routes.find(sni) else {
            return abort(refused("route not found", "no route for this connection"));
        };
        if let Some(reason) = &route.refuse {
            return abort(refused("forbidden", format!("refused by policy: {reason}")));
        }
        let server = match server {
            Some(server) => server,
            None => {
                let Some(backend) = route.backends.pick() else {
                    return abort(refused("no backend", "the policy names no backend"));
                };
                let Some(balancer) = self.balancer(backend) else {
                    return abort(refused("no backend", "the policy changed"));
                };
                match balancer.connect(backend.queue.failfast.max(Duration::from_millis(1))).await {
                    Ok(server) => server,
                    Err(error) => return abort(refused(error.label, error.message)),
                }
            }
        };
        if let Some(back) = server.io() {
            Box::pin(tcp::relay(&io, back)).await;
        }
        Ok(())
    }
}

fn each_backend(policy: &OutboundPolicy, each: &mut dyn FnMut(&Arc<Backend>, bool)) {
    let http = |routes: &HttpRoutes, each: &mut dyn FnMut(&Arc<Backend>, bool)| {
        for rule in routes.routes.iter().flat_map(|r| &r.rules) {
            rule.backends.backends().for_each(|b| each(b, true));
        }
    };
    let opaque = |routes: &OpaqueRoutes, each: &mut dyn FnMut(&Arc<Backend>, bool)| {
        for route in &routes.routes {
            route.backends.backends().for_each(|b| each(b, false));
        }
    };
    match &policy.protocol {
        OutboundProtocol::Detect { opaque: tcp, http1, http2, .. } => {
            http(http1, each);
            http(http2, each);
            opaque(tcp, each);
        }
        OutboundProtocol::Opaque(routes) | OutboundProtocol::Tls(routes) => opaque(routes, each),
        OutboundProtocol::Http1(routes) | OutboundProtocol::Http2(routes) | OutboundProtocol::Grpc(routes) => {
            http(routes, each);
        }
        OutboundProtocol::Invalid(_) => {}
    }
}

/// Where the requests of one connection go.
struct Http {
    target: Rc<Target>,
    h2: bool,
}

impl Router for Http {
    fn direction(&self) -> Direction {
        Direction::Outbound
    }

    fn emits_reasons(&self) -> bool {
        self.target.worker.ctx.config.emit_headers
    }

    fn route(&self, head: &mut Request) -> Result<Plan, Failure> {
        refuse_downgrade(head);
        let policy = self.target.policy();
        let routes = match &policy.protocol {
            OutboundProtocol::Detect { http2, .. } if self.h2 => http2,
            OutboundProtocol::Detect { http1, .. } => http1,
            OutboundProtocol::Http1(r) | OutboundProtocol::Http2(r) | OutboundProtocol::Grpc(r) => r,
            OutboundProtocol::Invalid(reason) => {
                return Err(Failure::new(Kind::Policy, format!("invalid policy: {reason}")));
            }
            OutboundProtocol::Opaque(_) | OutboundProtocol::Tls(_) => {
                return Err(Failure::new(Kind::Policy, "this destination is not HTTP any more; connect again"));
            }
        };
        let Some(found) = routes.find(head) else {
            return Err(Failure::new(Kind::NoRoute, format!("{}: no route for the request", self.target.addr)));
        };
        let (rule, prefix) = (found.rule, found.prefix);
        let mut response = Vec::new();
        apply_filters(&rule.filters, head, prefix, &mut response)?;
        let backend = rule
            .backends
            .pick()
            .ok_or_else(|| Failure::new(Kind::Policy, format!("{}: the route has no backend", self.target.addr)))?;
        apply_filters(&backend.filters, head, prefix, &mut response)?;
        let to = self
            .target
            .balancer(backend)
            .ok_or_else(|| Failure::new(Kind::Policy, format!("{}: the route has no backend", self.target.addr)))?;
        let require_identity = head.headers.get(b"l5d-require-id").map(<[u8]>::to_vec);
        if require_identity.is_some() {
            head.headers.remove(b"l5d-require-id");
        }
        if head.authority.is_empty() && head.version != Version::H2 {
            head.authority.extend_from_slice(self.target.addr.to_string().as_bytes());
        }
        Ok(Plan {
            to,
            queue: backend.queue,
            timeouts: rule.timeouts,
            response,
            downgraded: false,
            require_identity,
            metrics: None,
        })
    }
}
