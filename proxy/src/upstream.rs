//! One endpoint: its load, its back-off after failed connections, its pools of connections.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_wire::transport_header::SessionProtocol;

use crate::{
    balance::{Candidate, PeakEwma},
    balancer::Balancer,
    dial,
    http::{Conn, Exchange, Failure, Kind, Want, run_client},
    io::Io,
    metrics::{Direction, RequestMetrics, TcpMetrics},
    policy::{Endpoint, Load},
    worker::{Due, Worker},
};

/// HTTP/2 connections to one endpoint at most; more than one only while the first ones' streams are all taken.
const H2_CONNECTIONS: usize = 16;

/// A connection that takes longer than this is waited for, but not by requests that can go elsewhere.
pub const SLOW_DIAL: Duration = Duration::from_millis(500);

/// Others are preferred to an endpoint while one of these is held.
pub struct Suspect(Weak<Upstream>);

impl Drop for Suspect {
    fn drop(&mut self) {
        if let Some(upstream) = self.0.upgrade() {
            upstream.suspects.set(upstream.suspects.get().saturating_sub(1));
        }
    }
}

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
    /// Reasons to prefer other endpoints: connections that do not answer, or do not come about.
    suspects: Cell<u32>,
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

    fn is_suspect(&self) -> bool {
        self.suspects.get() > 0
    }

    fn weight(&self) -> u32 {
        self.endpoint.weight
    }

    fn load(&self, now: Instant) -> f64 {
        self.load.load(now)
    }
}

impl Upstream {
    /// An endpoint of a balancer.
    pub fn new(
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
            suspects: Cell::new(0),
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

    /// Others are preferred as long as the result is held.
    pub fn suspect(self: &Rc<Self>) -> Suspect {
        self.suspects.set(self.suspects.get() + 1);
        Suspect(Rc::downgrade(self))
    }

    /// True when another endpoint would be preferred to this one.
    pub fn has_better(&self) -> bool {
        self.balancer.upgrade().is_some_and(|b| b.has_trusted_besides(self))
    }

    /// Connects. Success and failure are remembered for the choice of endpoints. When it takes long, `slow` is called, and
    /// others are preferred meanwhile.
    pub async fn dial(
        self: &Rc<Self>,
        session: Option<SessionProtocol>,
        slow: impl FnOnce(),
    ) -> Result<Io, dial::Error> {
        let side = self.worker.side(self.direction);
        let attempt = dial::connect(&self.endpoint, session, side, &self.worker.ctx.credentials);
        tokio::pin!(attempt);
        // One that has failed before is tried by one request, not by all.
        let patience = if self.failures.get() > 0 { Duration::ZERO } else { SLOW_DIAL };
        let result = match tokio::time::timeout(patience, &mut attempt).await {
            Ok(result) => result,
            Err(_) => {
                let _suspect = self.suspect();
                slow();
                attempt.await
            }
        };
        match result {
            Ok(io) => {
                io.meter(self.connections().open());
                self.failures.set(0);
                Ok(io)
            }
            // That is this proxy's trouble, not the endpoint's.
            Err(error) if error.is_exhausted() => Err(error),
            Err(error) => {
                tracing::debug!(%error, failures = self.failures.get() + 1, "endpoint cannot be reached");
                self.back_off();
                Err(error)
            }
        }
    }

    /// It is not chosen for a while.
    pub fn back_off(self: &Rc<Self>) {
        // Attempts that were under way together fail together: that is one failure.
        if !self.backing_off.replace(true) {
            let failures = self.failures.get().saturating_add(1);
            self.failures.set(failures);
            let delay = self.worker.side(self.direction).connect_backoff.delay(failures);
            self.worker.after(delay, Due::Ready(Rc::downgrade(self)));
            if let Some(balancer) = self.balancer.upgrade() {
                balancer.count();
            }
        }
    }

    /// It has answered: what failed before is forgotten.
    pub fn answered(&self) {
        self.failures.set(0);
    }

    /// The back-off is over: the next request tries to connect.
    pub fn ready_again(self: &Rc<Self>) {
        self.backing_off.set(false);
        if let Some(balancer) = self.balancer.upgrade() {
            balancer.changed();
        }
    }

    /// Sends a request to this endpoint, on a connection that is there or that is made for it.
    pub fn submit(self: &Rc<Self>, exchange: &Rc<Exchange>) {
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
                if !self.dialling.get() {
                    exchange.limit_wait();
                }
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
            let elsewhere = Cell::new(false);
            let slow = || {
                if exchange.is_waiting() && upstream.has_better() {
                    elsewhere.set(true);
                    exchange.dispatch();
                }
            };
            match upstream.dial(Some(SessionProtocol::Http1), slow).await {
                Err(_) if elsewhere.get() => {}
                Err(error) => exchange.connect_failed(&Failure::dial(&error)),
                Ok(io) => {
                    let limits = &upstream.worker.client_limits;
                    let conn = Conn::back(io, &upstream.worker, false, limits, &upstream);
                    if exchange.is_waiting() {
                        if !exchange.bind(&conn, &upstream) {
                            let message = format!("endpoint {}: the connection broke at once", upstream.endpoint.addr);
                            exchange.connect_failed(&Failure::new(Kind::Io, message));
                        }
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
            let slow = || {
                if upstream.has_better() {
                    for exchange in upstream.take_waiting() {
                        exchange.dispatch();
                    }
                }
            };
            let result = upstream.dial(Some(SessionProtocol::Http2), slow).await;
            upstream.dialling.set(false);
            match result {
                Err(error) => {
                    let failure = Failure::dial(&error);
                    for exchange in upstream.take_waiting() {
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
                    upstream.limit_waits();
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

    /// Takes away the requests that wait for a connection.
    pub fn take_waiting(&self) -> VecDeque<Rc<Exchange>> {
        std::mem::take(&mut *self.waiting.borrow_mut())
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

    /// Limits how long requests wait for streams, when no connection is on its way that could bring more.
    fn limit_waits(&self) {
        if !self.dialling.get() {
            let waiting = self.waiting.borrow().clone();
            waiting.iter().for_each(Exchange::limit_wait);
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

    /// A request does not wait any longer.
    pub fn forget(&self, exchange: &Rc<Exchange>) {
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
