//! What the tasks of one data thread share. Nothing here is shared between threads; nothing is locked.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::Arc,
    task::{Poll, Waker},
    time::Instant,
};

use tokio::sync::Notify;
use weft_wire::Limits;

use crate::{
    Context,
    admission::{Admission, Shed},
    balancer::Balancer,
    config::{Http2Config, ProxySide},
    detect::Speakers,
    drain::Phase,
    http::{Conn, Exchange, Router, slow_interval},
    inbound,
    memory::Memory,
    metrics::Direction,
    net::{self, OriginalDst},
    outbound,
    policy::Load,
    timer::{Key, Timers},
    upstream::Upstream,
};

/// What is done when a deadline is due.
pub enum Due {
    /// A request has taken too long.
    Request(Rc<Exchange>),
    /// A request may have been without any octet for too long.
    Idle(Rc<Exchange>),
    /// A request has waited too long for an endpoint.
    Failfast(Rc<Exchange>),
    /// An endpoint's back-off is over.
    Ready(Weak<Upstream>),
    /// Idle connections of an endpoint may have to go.
    Reap(Weak<Upstream>),
    /// A quiet HTTP/2 client is pinged, or has not answered.
    Ping(Weak<Conn>),
    /// An HTTP/2 connection is looked at.
    Beat(Weak<Conn>),
    /// HTTP/1 clients are looked at.
    Judge,
    /// An outbound destination may have become idle.
    EvictOutbound(SocketAddr),
    /// An inbound destination may have become idle.
    EvictInbound(inbound::Key),
}

/// Balancers by service and load measure.
pub type Balancers = HashMap<(Arc<str>, Load), Weak<Balancer>>;

/// One data thread.
pub struct Worker {
    /// Configuration, discovery, credentials, metrics, drain.
    pub ctx: Context,
    /// How the original destination is found.
    pub original: OriginalDst,
    /// Limits towards clients, by direction.
    server_limits: [Limits; 2],
    /// Limits towards servers.
    pub client_limits: Limits,
    /// Deadlines.
    pub timers: Timers<Due>,
    /// Destinations of outbound connections.
    pub outbound: RefCell<HashMap<SocketAddr, Rc<outbound::Target>>>,
    /// Destinations of inbound connections.
    pub inbound: RefCell<HashMap<inbound::Key, Rc<inbound::Target>>>,
    /// Destinations whose servers speak first.
    pub speakers: Speakers,
    /// Balancers in use, by service and load measure.
    pub balancers: RefCell<Balancers>,
    /// Client connections, to tell them to drain.
    fronts: RefCell<slab::Slab<Weak<Conn>>>,
    /// HTTP/1 clients are looked at now and then.
    judging: Cell<bool>,
    dirty: RefCell<Vec<Rc<Conn>>>,
    flusher: RefCell<Option<Waker>>,
    in_flight: [Cell<usize>; 2],
    /// Clients' connections, counted.
    pub admission: Admission,
    memory: Memory,
    gone: Notify,
}

impl Worker {
    /// A data thread's shared state.
    pub fn new(ctx: Context, original: OriginalDst) -> Rc<Self> {
        let limits = |streams: Option<u32>| {
            let Http2Config { stream_window, connection_window } = ctx.config.http2;
            let mut limits = Limits { stream_window, connection_window, ..Limits::default() };
            if let Some(n) = streams {
                limits.concurrent_streams = n;
            }
            limits
        };
        let cores = ctx.config.cores.max(1);
        let admission = Admission::new(
            ctx.config.inbound.max_connections / cores,
            ctx.config.outbound.max_connections / cores,
            net::max_files() / cores,
        );
        Rc::new(Self {
            server_limits: [
                limits(ctx.config.inbound.http2_max_concurrent_streams),
                limits(ctx.config.outbound.http2_max_concurrent_streams),
            ],
            client_limits: limits(None),
            ctx,
            original,
            timers: Timers::new(),
            outbound: RefCell::default(),
            inbound: RefCell::default(),
            speakers: Speakers::default(),
            balancers: RefCell::default(),
            fronts: RefCell::default(),
            judging: Cell::new(false),
            dirty: RefCell::default(),
            flusher: RefCell::default(),
            in_flight: Default::default(),
            admission,
            memory: Memory::new(),
            gone: Notify::new(),
        })
    }

    /// The configuration of a direction.
    pub fn side(&self, direction: Direction) -> &ProxySide {
        match direction {
            Direction::Inbound => &self.ctx.config.inbound,
            Direction::Outbound => &self.ctx.config.outbound,
        }
    }

    /// The codecs' limits towards clients of a direction.
    pub fn server_limits(&self, direction: Direction) -> &Limits {
        match direction {
            Direction::Inbound => &self.server_limits[0],
            Direction::Outbound => &self.server_limits[1],
        }
    }

    fn in_flight(&self, direction: Direction) -> &Cell<usize> {
        match direction {
            Direction::Inbound => &self.in_flight[0],
            Direction::Outbound => &self.in_flight[1],
        }
    }

    /// Counts a request in. Counted out by [`Worker::leave`] in any case.
    ///
    /// # Errors
    /// Why it should not be served.
    pub fn enter(&self, direction: Direction) -> Result<(), &'static str> {
        let count = self.in_flight(direction);
        count.set(count.get() + 1);
        if count.get() > (self.side(direction).max_in_flight / self.ctx.config.cores.max(1)).max(1) {
            return Err("too many requests in flight in this proxy");
        }
        if self.memory.is_tight() {
            return Err("this proxy is near the limit of its memory");
        }
        Ok(())
    }

    /// Counts a request out.
    pub fn leave(&self, direction: Direction) {
        let count = self.in_flight(direction);
        count.set(count.get().saturating_sub(1));
    }

    /// Has the connection's output written when all tasks that are ready now have run.
    pub fn flush_later(&self, conn: Rc<Conn>) {
        let mut dirty = self.dirty.borrow_mut();
        dirty.push(conn);
        if dirty.len() == 1
            && let Some(waker) = &*self.flusher.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Writes what the tasks of each turn have left to write: one write a connection and turn.
    pub async fn run_flusher(self: Rc<Self>) {
        std::future::poll_fn(|cx| {
            {
                let mut waker = self.flusher.borrow_mut();
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
            }
            loop {
                let batch = std::mem::take(&mut *self.dirty.borrow_mut());
                if batch.is_empty() {
                    return Poll::<()>::Pending;
                }
                for conn in batch {
                    conn.flush();
                }
            }
        })
        .await;
    }

    /// Acts on deadlines.
    pub async fn run_timers(self: Rc<Self>) {
        loop {
            for due in self.timers.due().await {
                match due {
                    Due::Request(exchange) => exchange.timed_out(),
                    Due::Idle(exchange) => exchange.maybe_idle(),
                    Due::Failfast(exchange) => exchange.failfast(),
                    Due::Ready(upstream) => {
                        if let Some(upstream) = upstream.upgrade() {
                            upstream.ready_again();
                        }
                    }
                    Due::Reap(upstream) => {
                        if let Some(upstream) = upstream.upgrade() {
                            upstream.reap();
                        }
                    }
                    Due::Ping(conn) => {
                        if let Some(conn) = conn.upgrade() {
                            conn.keep_alive();
                        }
                    }
                    Due::Beat(conn) => {
                        if let Some(conn) = conn.upgrade() {
                            conn.beat();
                        }
                    }
                    Due::Judge => self.judge_clients(),
                    Due::EvictOutbound(addr) => outbound::evict(&self, addr),
                    Due::EvictInbound(key) => inbound::evict(&self, &key),
                }
            }
        }
    }

    /// Registers a client's HTTP connection for draining. As long as the application is awaited, new connections are what
    /// they always are.
    pub fn register(&self, conn: &Rc<Conn>) -> usize {
        if *self.ctx.drain.borrow() == Phase::Ending {
            conn.drain();
        }
        if !conn.is_h2() && !self.judging.replace(true) {
            self.after(slow_interval(&self.ctx.config.http1), Due::Judge);
        }
        self.fronts.borrow_mut().insert(Rc::downgrade(conn))
    }

    /// Ends HTTP/1 connections whose clients stand still, and looks again later if there are others.
    fn judge_clients(&self) {
        let limits = &self.ctx.config.http1;
        let now = Instant::now();
        let fronts: Vec<_> = self.fronts.borrow().iter().filter_map(|(_, c)| c.upgrade()).collect();
        let some = fronts.iter().any(|conn| !conn.is_h2());
        for conn in fronts {
            conn.judge(limits, now);
        }
        self.judging.set(some);
        if some {
            self.after(slow_interval(limits), Due::Judge);
        }
    }

    /// Forgets a connection.
    pub fn unregister(&self, key: usize) {
        self.fronts.borrow_mut().try_remove(key);
    }

    /// Tells the clients' HTTP connections that are meant to end after their present requests.
    pub fn drain_fronts(&self, meant: impl Fn(&dyn Router) -> bool) {
        let conns: Vec<_> = self.fronts.borrow().iter().filter_map(|(_, c)| c.upgrade()).collect();
        for conn in conns {
            if conn.router().is_none_or(|router| meant(&**router)) {
                conn.drain();
            }
        }
    }

    /// Counts a client's connection for the length of the guard's life.
    ///
    /// # Errors
    /// There are too many, or there is no memory for more.
    pub fn connection(self: &Rc<Self>, direction: Direction, client: IpAddr) -> Result<Connection, Shed> {
        if self.memory.is_tight() {
            return Err(Shed::Memory);
        }
        self.admission.enter(direction, client)?;
        Ok(Connection { worker: self.clone(), direction, client })
    }

    /// Waits until no connection is left.
    pub async fn drained(&self) {
        while self.admission.open() > 0 {
            self.gone.notified().await;
        }
    }

    /// Sets a deadline.
    pub fn after(&self, delay: std::time::Duration, due: Due) -> Key {
        self.timers.after(delay, due)
    }
}

/// A client's connection, counted.
pub struct Connection {
    worker: Rc<Worker>,
    direction: Direction,
    client: IpAddr,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.admission.leave(self.direction, self.client);
        self.worker.gone.notify_waiters();
    }
}
