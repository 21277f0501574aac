//! A set of endpoints, fixed or from discovery, and the waiting room for requests while none is ready.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, sync::watch, task::AbortHandle};

use crate::{
    balance::{self, Candidate as _, Ended},
    http::{Exchange, Failure, Kind},
    io::Io,
    metrics::{Direction, Gauge},
    policy::{Endpoint, Endpoints, Load, Queue},
    upstream::{SLOW_DIAL, Upstream},
    worker::{Due, Worker},
};

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
            for exchange in upstream.take_waiting() {
                self.retry(&exchange);
            }
        }
        self.changed();
    }

    /// Endpoints have come, or are ready again: who waits tries again.
    pub fn changed(self: &Rc<Self>) {
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

    /// Shows the numbers of endpoints.
    pub fn count(&self) {
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

    /// True when discovery may replace the endpoints, even the last one, at any moment.
    pub fn may_change(&self) -> bool {
        self.watcher.get().is_some()
    }

    /// True when it is worth to try again after an endpoint has failed: another one can be chosen, or may be soon.
    pub fn has_others(&self) -> bool {
        self.may_change() || self.upstreams.borrow().len() > 1 || self.has_ready()
    }

    /// True when an endpoint can be chosen that nothing speaks against.
    pub fn has_trusted(&self) -> bool {
        self.upstreams.borrow().iter().any(is_trusted)
    }

    /// As [`Balancer::has_trusted`], another one than this.
    pub fn has_trusted_besides(&self, this: &Upstream) -> bool {
        self.upstreams.borrow().iter().any(|u| !std::ptr::eq(&**u, this) && is_trusted(u))
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
        // Who comes before discovery has answered is no sign of overload.
        if !self.unknown.get() && self.waiting.borrow().len() >= queue.capacity {
            let message = format!("{}: too many requests wait for an endpoint", self.name);
            return exchange.fail(&Failure::new(Kind::LoadShed, message));
        }
        // One that has waited before, and then found nothing but a refusal, has only the rest of its time.
        let left = queue.failfast.saturating_sub(exchange.waited());
        exchange.set_queue_timer(self.worker.after(left, Due::Failfast(exchange.clone())));
        self.waiting.borrow_mut().push_back(exchange.clone());
    }

    /// A request has waited too long: why.
    pub fn give_up(&self, exchange: &Rc<Exchange>) -> String {
        self.forget(exchange);
        if self.has_ready() {
            return format!("{}: all connections are taken", self.name);
        }
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

    /// A connection for bytes, to the best endpoint that can be reached within `limit`. An endpoint that refuses is passed
    /// over; when it was the last one, that is the answer.
    ///
    /// # Errors
    /// None can be reached.
    pub async fn connect(self: &Rc<Self>, limit: Duration) -> Result<TcpUpstream, Unreachable> {
        let attempt = async {
            loop {
                let more = self.more.notified();
                let Some(upstream) = self.pick() else {
                    more.await;
                    continue;
                };
                drop(more);
                upstream.load.begin(Instant::now());
                let guard = TcpUpstream::new(upstream.clone());
                let dial = upstream.dial(None, || ());
                tokio::pin!(dial);
                let result = match tokio::time::timeout(SLOW_DIAL, &mut dial).await {
                    Ok(result) => result,
                    Err(_) if upstream.has_better() => {
                        tracing::debug!(endpoint = %upstream.endpoint.addr, "slow to connect; trying another one");
                        upstream.back_off();
                        continue;
                    }
                    Err(_) => dial.await,
                };
                match result {
                    Ok(io) => return Ok(guard.with(io)),
                    Err(error) if error.is_exhausted() || !self.has_others() => {
                        let label = Failure::dial(&error).kind.label();
                        return Err(Unreachable { label, message: error.to_string() });
                    }
                    Err(_) => {}
                }
            }
        };
        match tokio::time::timeout(limit, attempt).await {
            Ok(result) => result,
            Err(_) => Err(Unreachable { label: Kind::Failfast.label(), message: self.reason() }),
        }
    }
}

fn is_trusted(upstream: &Rc<Upstream>) -> bool {
    upstream.is_ready() && upstream.weight() > 0 && !upstream.is_suspect()
}

/// No endpoint can be reached.
#[derive(Debug)]
pub struct Unreachable {
    /// As metrics name it.
    pub label: &'static str,
    /// One line.
    pub message: String,
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
        self.upstream.load.end(now, Ended::Answered(now.saturating_duration_since(self.since)));
        self.upstream.load.open();
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
        match self.io {
            Some(_) => self.upstream.load.close(),
            None => self.upstream.load.end(Instant::now(), Ended::Untold),
        }
    }
}
