//! Endpoints with their connections, and the choice among them.
//!
//! An [`Upstream`] is one endpoint: its load, its back-off after failed connections, its pools. A [`Balancer`] is a set of
//! them, fixed or from discovery, and the waiting room for requests while none is ready.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, sync::watch, task::AbortHandle};
use weft_wire::transport_header::SessionProtocol;

use crate::{
    balance::{self, Candidate, PeakEwma},
    dial,
    http::{Conn, Exchange, Failure, Kind, Want, run_client},
    io::Io,
    metrics::{Direction, Gauge, RequestMetrics, TcpMetrics},
    policy::{Endpoint, Endpoints, Load, Queue},
    worker::{Due, Worker},
};

/// HTTP/2 connections to one endpoint at most; more than one only while the first ones' streams are all taken.
const H2_CONNECTIONS: usize = 16;

/// One endpoint.
pub struct Upstream {
    worker: Rc<Worker>,
    /// What discovery says about it.
    pub endpoint: Arc<Endpoint>,
    direction: Direction,
    /// Its load.
    pub load: PeakEwma,
    authority: Option<Arc<str>>,
    balancer: Weak<Balancer>,
    /// Connections that failed in a row.
    failures: Cell<u32>,
    backing_off: Cell<bool>,
    /// HTTP/1 connections without a request, the last used one last.
    idle: RefCell<Vec<(Rc<Conn>, Instant)>>,
    reaping: Cell<bool>,
    /// HTTP/2 connections that take streams.
    h2: RefCell<Vec<Rc<Conn>>>,
    dialling: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Exchange>>>,
    requests: OnceCell<Rc<RequestMetrics>>,
    connections: OnceCell<TcpMetrics>,
}

impl Candidate for Rc<Upstream> {
    fn is_ready(&self) -> bool {
        !self.backing_off.get()
    }

    fn weight(&self) -> u32 {
        self.endpoint.weight
    }

    fn load(&self, now: Instant) -> f64 {
        self.load.load(now)
    }
}

impl Upstream {
    fn new(
        worker: &Rc<Worker>,
        endpoint: Arc<Endpoint>,
        direction: Direction,
        load: Load,
        authority: Option<Arc<str>>,
        balancer: Weak<Balancer>,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker: worker.clone(),
            endpoint,
            direction,
            load: PeakEwma::new(load, Instant::now()),
            authority,
            balancer,
            failures: Cell::new(0),
            backing_off: Cell::new(false),
            idle: RefCell::default(),
            reaping: Cell::new(false),
            h2: RefCell::default(),
            dialling: Cell::new(false),
            waiting: RefCell::default(),
            requests: OnceCell::new(),
            connections: OnceCell::new(),
        })
    }

    /// Counts requests to this endpoint.
    pub fn requests(&self) -> Rc<RequestMetrics> {
        self.requests
            .get_or_init(|| {
                Rc::new(self.worker.ctx.metrics.outbound_requests(&self.endpoint, self.authority.as_deref()))
            })
            .clone()
    }

    fn connections(&self) -> &TcpMetrics {
        self.connections.get_or_init(|| match self.direction {
            Direction::Inbound => self.worker.ctx.metrics.inbound_connections(),
            Direction::Outbound => {
                self.worker.ctx.metrics.outbound_connections(&self.endpoint, self.authority.as_deref())
            }
        })
    }

    /// Connects. Success and failure are remembered for the choice of endpoints.
    async fn dial(self: &Rc<Self>, session: Option<SessionProtocol>) -> Result<Io, dial::Error> {
        let side = self.worker.side(self.direction);
        match dial::connect(&self.endpoint, session, side, &self.worker.ctx.credentials).await {
            Ok(io) => {
                io.meter(self.connections().open());
                self.failures.set(0);
                Ok(io)
            }
            Err(error) => {
                tracing::debug!(%error, failures = self.failures.get() + 1, "endpoint cannot be reached");
                self.back_off();
                Err(error)
            }
        }
    }

    fn back_off(self: &Rc<Self>) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        if !self.backing_off.replace(true) {
            let delay = self.worker.side(self.direction).connect_backoff.delay(failures);
            self.worker.after(delay, Due::Ready(Rc::downgrade(self)));
            if let Some(balancer) = self.balancer.upgrade() {
                balancer.count();
            }
        }
    }

    /// The back-off is over: the next request tries to connect.
    pub fn ready_again(self: &Rc<Self>) {
        self.backing_off.set(false);
        if let Some(balancer) = self.balancer.upgrade() {
            balancer.changed();
        }
    }

    /// Sends a request to this endpoint, on a connection that is there or that is made for it.
    fn submit(self: &Rc<Self>, exchange: &Rc<Exchange>) {
        if let Some(required) = exchange.requires_identity()
            && self.endpoint.identity.as_ref().is_none_or(|id| id.name.as_bytes() != required)
        {
            let message = format!(
                "endpoint {}: the client requires identity {}",
                self.endpoint.addr,
                String::from_utf8_lossy(&required)
            );
            return exchange.fail(&Failure::new(Kind::Identity, message));
        }
        match exchange.want(self.endpoint.h2) {
            Want::H2 => {
                let conns = self.h2.borrow().clone();
                if conns.iter().any(|conn| conn.can_open() && exchange.bind(conn, self)) {
                    return;
                }
                self.waiting.borrow_mut().push_back(exchange.clone());
                self.dial_h2_if_needed();
            }
            Want::H1 => {
                loop {
                    let next = self.idle.borrow_mut().pop();
                    let Some((conn, _)) = next else { break };
                    if conn.can_open() && exchange.bind(&conn, self) {
                        return;
                    }
                    conn.close();
                }
                self.dial_h1(exchange, false);
            }
            Want::Tunnel => self.dial_h1(exchange, true),
        }
    }

    fn dial_h1(self: &Rc<Self>, exchange: &Rc<Exchange>, tunnel: bool) {
        let (upstream, exchange) = (self.clone(), exchange.clone());
        tokio::task::spawn_local(async move {
            match upstream.dial(Some(SessionProtocol::Http1)).await {
                Err(error) => exchange.connect_failed(&Failure::dial(&error)),
                Ok(io) => {
                    let limits = &upstream.worker.client_limits;
                    let conn = Conn::back(io, &upstream.worker, false, limits, &upstream);
                    if exchange.is_waiting() {
                        exchange.bind(&conn, &upstream);
                    } else if !tunnel {
                        upstream.put_idle(&conn);
                    } else {
                        return;
                    }
                    drop((upstream, exchange));
                    run_client(conn).await;
                }
            }
        });
    }

    fn dial_h2(self: &Rc<Self>) {
        self.dialling.set(true);
        let upstream = self.clone();
        tokio::task::spawn_local(async move {
            let result = upstream.dial(Some(SessionProtocol::Http2)).await;
            upstream.dialling.set(false);
            match result {
                Err(error) => {
                    let failure = Failure::dial(&error);
                    let waiting = std::mem::take(&mut *upstream.waiting.borrow_mut());
                    for exchange in waiting {
                        exchange.connect_failed(&failure);
                    }
                }
                Ok(io) => {
                    let mut limits = upstream.worker.client_limits.clone();
                    if let Some(http2) = &upstream.endpoint.http2 {
                        limits.stream_window = http2.stream_window.unwrap_or(limits.stream_window);
                        limits.connection_window = http2.connection_window.unwrap_or(limits.connection_window);
                    }
                    let conn = Conn::back(io, &upstream.worker, true, &limits, &upstream);
                    upstream.h2.borrow_mut().push(conn.clone());
                    upstream.serve_waiting();
                    drop(upstream);
                    run_client(conn).await;
                }
            }
        });
    }

    /// True when requests wait for a stream.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Sends waiting requests, as far as there are streams for them.
    pub fn serve_waiting(self: &Rc<Self>) {
        loop {
            let conns = self.h2.borrow().clone();
            let Some(conn) = conns.iter().find(|c| c.can_open()) else { break };
            let Some(exchange) = self.waiting.borrow_mut().pop_front() else { return };
            if exchange.is_waiting() && !exchange.bind(conn, self) {
                self.waiting.borrow_mut().push_front(exchange);
                break;
            }
        }
        if self.has_waiting() {
            self.dial_h2_if_needed();
        }
    }

    /// Makes another connection, unless one is under way or may yet turn out to take more.
    fn dial_h2_if_needed(self: &Rc<Self>) {
        let conns = self.h2.borrow();
        if !self.dialling.get() && conns.len() < H2_CONNECTIONS && conns.iter().all(|c| c.is_settled()) {
            drop(conns);
            self.dial_h2();
        }
    }

    /// An HTTP/1 connection is free.
    pub fn put_idle(self: &Rc<Self>, conn: &Rc<Conn>) {
        let side = self.worker.side(self.direction);
        let gone = self.balancer.upgrade().is_none();
        if gone || self.idle.borrow().len() >= side.max_idle_per_endpoint || side.http1_idle.is_zero() {
            return conn.close();
        }
        self.idle.borrow_mut().push((conn.clone(), Instant::now()));
        if !self.reaping.replace(true) {
            self.worker.after(side.http1_idle, Due::Reap(Rc::downgrade(self)));
        }
    }

    /// Closes connections that were idle for too long.
    pub fn reap(self: &Rc<Self>) {
        let limit = self.worker.side(self.direction).http1_idle;
        let now = Instant::now();
        let mut next: Option<Duration> = None;
        let mut closed = Vec::new();
        self.idle.borrow_mut().retain(|(conn, since)| {
            let age = now.saturating_duration_since(*since);
            if age >= limit {
                closed.push(conn.clone());
                return false;
            }
            next = Some(next.map_or(limit - age, |n| n.min(limit - age)));
            true
        });
        for conn in closed {
            conn.close();
        }
        match next {
            Some(delay) => {
                self.worker.after(delay, Due::Reap(Rc::downgrade(self)));
            }
            None => self.reaping.set(false),
        }
    }

    /// A connection takes no more requests.
    pub fn connection_gone(self: &Rc<Self>, conn: &Rc<Conn>) {
        if conn.is_h2() {
            self.h2.borrow_mut().retain(|c| !Rc::ptr_eq(c, conn));
            if self.has_waiting() {
                self.serve_waiting();
            }
        } else {
            self.idle.borrow_mut().retain(|(c, _)| !Rc::ptr_eq(c, conn));
        }
    }

    fn forget(&self, exchange: &Rc<Exchange>) {
        self.waiting.borrow_mut().retain(|e| !Rc::ptr_eq(e, exchange));
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for (conn, _) in self.idle.borrow_mut().drain(..) {
            conn.close();
        }
        for conn in self.h2.borrow_mut().drain(..) {
            conn.drain();
        }
    }
}

/// Numbers of ready and pending endpoints, for metrics.
struct Gauges {
    ready: Gauge,
    pending: Gauge,
    shown: Cell<(i64, i64)>,
}

/// A set of endpoints.
pub struct Balancer {
    worker: Rc<Worker>,
    direction: Direction,
    /// For error messages: the service, or the address.
    name: Arc<str>,
    load: Load,
    authority: Option<Arc<str>>,
    upstreams: RefCell<Vec<Rc<Upstream>>>,
    waiting: RefCell<VecDeque<Rc<Exchange>>>,
    /// Requests have waited in vain; the next ones do not wait until something changes.
    failing: Cell<bool>,
    unknown: Cell<bool>,
    more: Notify,
    watcher: OnceCell<AbortHandle>,
    gauges: RefCell<Option<Gauges>>,
    random: RefCell<fastrand::Rng>,
}

impl Balancer {
    fn new(
        worker: &Rc<Worker>,
        direction: Direction,
        name: Arc<str>,
        load: Load,
        authority: Option<Arc<str>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker: worker.clone(),
            direction,
            name,
            load,
            authority,
            upstreams: RefCell::default(),
            waiting: RefCell::default(),
            failing: Cell::new(false),
            unknown: Cell::new(true),
            more: Notify::new(),
            watcher: OnceCell::new(),
            gauges: RefCell::default(),
            random: RefCell::new(fastrand::Rng::new()),
        })
    }

    /// A single endpoint that is always the same.
    pub fn fixed(worker: &Rc<Worker>, direction: Direction, endpoint: Arc<Endpoint>) -> Rc<Self> {
        let balancer = Self::new(worker, direction, endpoint.addr.to_string().into(), Load::default(), None);
        balancer.update(&[endpoint]);
        balancer
    }

    /// The endpoints of a service, as discovery knows them.
    pub fn discovered(worker: &Rc<Worker>, path: &Arc<str>, load: Load) -> Rc<Self> {
        let key = (path.clone(), load);
        if let Some(balancer) = worker.balancers.borrow().get(&key).and_then(Weak::upgrade) {
            return balancer;
        }
        let authority = path.strip_suffix(":80").map_or_else(|| path.clone(), Arc::from);
        let balancer = Self::new(worker, Direction::Outbound, path.clone(), load, Some(authority));
        let task = tokio::task::spawn_local(watch(worker.ctx.discovery.endpoints(path), Rc::downgrade(&balancer)));
        let _ = balancer.watcher.set(task.abort_handle());
        let mut known = worker.balancers.borrow_mut();
        known.retain(|_, b| b.strong_count() > 0);
        known.insert(key, Rc::downgrade(&balancer));
        balancer
    }

    /// For error messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Shows the numbers of endpoints in these gauges from now on.
    pub fn set_gauges(&self, ready: Gauge, pending: Gauge) {
        let mut gauges = self.gauges.borrow_mut();
        if gauges.is_none() {
            *gauges = Some(Gauges { ready, pending, shown: Cell::new((0, 0)) });
            drop(gauges);
            self.count();
        }
    }

    /// Replaces the set. Endpoints that stay keep their connections and their load.
    fn update(self: &Rc<Self>, endpoints: &[Arc<Endpoint>]) {
        let mut old = std::mem::take(&mut *self.upstreams.borrow_mut());
        let new = endpoints
            .iter()
            .map(|endpoint| match old.iter().position(|u| u.endpoint == *endpoint) {
                Some(at) => old.swap_remove(at),
                None => Upstream::new(
                    &self.worker,
                    endpoint.clone(),
                    self.direction,
                    self.load,
                    self.authority.clone(),
                    Rc::downgrade(self),
                ),
            })
            .collect();
        *self.upstreams.borrow_mut() = new;
        self.unknown.set(false);
        // Requests that wait for a connection to an endpoint that is gone wait for another one.
        for upstream in old {
            let waiting = std::mem::take(&mut *upstream.waiting.borrow_mut());
            for exchange in waiting {
                self.retry(&exchange);
            }
        }
        self.changed();
    }

    /// Endpoints have come, or are ready again: who waits tries again.
    fn changed(self: &Rc<Self>) {
        self.count();
        if !self.has_ready() {
            return;
        }
        self.failing.set(false);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for exchange in waiting {
            exchange.clear_queue_timer();
            self.retry(&exchange);
        }
        self.more.notify_waiters();
    }

    fn retry(self: &Rc<Self>, exchange: &Rc<Exchange>) {
        if exchange.is_waiting() {
            exchange.dispatch();
        }
    }

    fn count(&self) {
        let gauges = self.gauges.borrow();
        let Some(gauges) = &*gauges else { return };
        let upstreams = self.upstreams.borrow();
        let ready = upstreams.iter().filter(|u| u.is_ready()).count() as i64;
        let pending = upstreams.len() as i64 - ready;
        let (old_ready, old_pending) = gauges.shown.replace((ready, pending));
        gauges.ready.add(ready - old_ready);
        gauges.pending.add(pending - old_pending);
    }

    /// True when an endpoint can be chosen.
    pub fn has_ready(&self) -> bool {
        self.upstreams.borrow().iter().any(|u| u.is_ready() && u.weight() > 0)
    }

    fn pick(&self) -> Option<Rc<Upstream>> {
        let upstreams = self.upstreams.borrow();
        let at = balance::pick(&upstreams, Instant::now(), &mut self.random.borrow_mut())?;
        upstreams.get(at).cloned()
    }

    /// Sends a request to the best endpoint; without a ready one it waits, within the queue's limits.
    pub fn submit(self: &Rc<Self>, exchange: &Rc<Exchange>, queue: Queue) {
        if let Some(upstream) = self.pick() {
            return upstream.submit(exchange);
        }
        if self.failing.get() {
            return exchange.fail(&Failure::new(Kind::Failfast, self.reason()));
        }
        if self.waiting.borrow().len() >= queue.capacity {
            let message = format!("{}: too many requests wait for an endpoint", self.name);
            return exchange.fail(&Failure::new(Kind::LoadShed, message));
        }
        exchange.set_queue_timer(self.worker.after(queue.failfast, Due::Failfast(exchange.clone())));
        self.waiting.borrow_mut().push_back(exchange.clone());
    }

    /// A request has waited too long: why.
    pub fn give_up(&self, exchange: &Rc<Exchange>) -> String {
        self.forget(exchange);
        self.failing.set(true);
        self.reason()
    }

    fn reason(&self) -> String {
        let upstreams = self.upstreams.borrow().len();
        match upstreams {
            0 if self.unknown.get() => format!("{}: discovery has not answered yet", self.name),
            0 => format!("{}: no endpoints", self.name),
            1 => format!("{}: its endpoint cannot be connected to", self.name),
            n => format!("{}: none of {n} endpoints can be connected to", self.name),
        }
    }

    /// A request does not wait any longer.
    pub fn forget(&self, exchange: &Rc<Exchange>) {
        self.waiting.borrow_mut().retain(|e| !Rc::ptr_eq(e, exchange));
        for upstream in self.upstreams.borrow().iter() {
            upstream.forget(exchange);
        }
    }

    /// A connection for bytes, to the best endpoint that can be reached within `limit`.
    ///
    /// # Errors
    /// None can; with the last error, if one was tried.
    pub async fn connect(self: &Rc<Self>, limit: Duration) -> Result<TcpUpstream, String> {
        let mut last = None;
        let result = tokio::time::timeout(limit, async {
            loop {
                let more = self.more.notified();
                let Some(upstream) = self.pick() else {
                    more.await;
                    continue;
                };
                drop(more);
                upstream.load.begin();
                let guard = TcpUpstream::new(upstream);
                match guard.upstream.dial(None).await {
                    Ok(io) => return guard.with(io),
                    Err(error) => last = Some(error.to_string()),
                }
            }
        })
        .await;
        result.map_err(|_| last.unwrap_or_else(|| self.reason()))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if let Some(task) = self.watcher.get() {
            task.abort();
        }
        if let Some(gauges) = self.gauges.get_mut() {
            let (ready, pending) = gauges.shown.get();
            gauges.ready.add(-ready);
            gauges.pending.add(-pending);
        }
    }
}

/// Follows discovery for as long as the balancer lives.
async fn watch(mut endpoints: watch::Receiver<Arc<Endpoints>>, balancer: Weak<Balancer>) {
    loop {
        let now = endpoints.borrow_and_update().clone();
        let Some(strong) = balancer.upgrade() else { return };
        match &*now {
            Endpoints::Unknown => {}
            Endpoints::DoesNotExist => strong.update(&[]),
            Endpoints::Some(endpoints) => strong.update(endpoints),
        }
        drop(strong);
        if endpoints.changed().await.is_err() {
            return;
        }
    }
}

/// A TCP connection to an endpoint, counted in its load.
pub struct TcpUpstream {
    upstream: Rc<Upstream>,
    io: Option<Io>,
    since: Instant,
}

impl TcpUpstream {
    fn new(upstream: Rc<Upstream>) -> Self {
        Self { upstream, io: None, since: Instant::now() }
    }

    fn with(mut self, io: Io) -> Self {
        // Connecting is the only round trip that is seen; the connection counts as pending until it ends.
        let now = Instant::now();
        self.upstream.load.end(now, Some(now.saturating_duration_since(self.since)));
        self.upstream.load.begin();
        self.io = Some(io);
        self
    }

    /// The connection.
    pub fn io(&self) -> Option<&Io> {
        self.io.as_ref()
    }
}

impl Drop for TcpUpstream {
    fn drop(&mut self) {
        self.upstream.load.end(Instant::now(), None);
    }
}
