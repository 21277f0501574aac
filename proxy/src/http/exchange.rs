//! One request and its response, between a stream of a client's connection and one of a server's.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use weft_wire::{
    Headers, Request, Version,
    h2::{Reason, StreamId},
};

use super::{
    Conn, Failure, Kind, Plan, Want,
    headers::{self, Fate},
};
use crate::{
    balance::Ended,
    metrics::{Direction, RequestMetrics, ResponseClass},
    timer::Key,
    upstream::Upstream,
    worker::{Due, Worker},
};

mod request;
mod response;

/// Octets of a body that are held while there is no connection to send them on; then the client is paused.
const HOLD: usize = 64 * 1024;
/// Endpoints that a request is sent to at most, as long as none has seen it; or that are connected to in vain, unless there
/// are more and it may wait for one.
const ATTEMPTS: u8 = 8;

/// Places in [`State::timers`].
const REQUEST: usize = 0;
const RESPONSE: usize = 1;
const IDLE: usize = 2;

/// Where the request is.
enum Stage {
    /// It waits for an endpoint or a connection.
    Waiting,
    /// It is, or was, sent on a stream of that connection.
    Sent { conn: Rc<Conn>, id: StreamId },
    /// The server is gone; what the client still sends is dropped.
    Discarding,
}

struct State {
    stage: Stage,
    /// Kept until the response begins, in case the request has to be sent again.
    head: Option<Box<Request>>,
    plan: Option<Plan>,
    upstream: Option<Rc<Upstream>>,
    /// Body that came before there was a connection, and the window it cost.
    held: Vec<u8>,
    held_flow: u32,
    /// Body that was sent and may have to be sent again.
    kept: Vec<u8>,
    /// The client has ended the request, with these trailers.
    ended: Option<Option<Headers>>,
    /// The end was handed to the server (or dropped).
    request_done: bool,
    /// Something was sent that was not kept.
    body_lost: bool,
    /// It was sent to a server at least once.
    seen: bool,
    /// It was sent again although a server may have seen it.
    repeated: bool,
    /// Window that is given back when the server, or the client, has taken more.
    owed_request: u32,
    owed_response: u32,
    /// 0 before the response.
    status: u16,
    grpc_status: Option<u32>,
    response_done: bool,
    recorded: bool,
    pending_load: bool,
    attempts: u8,
    metrics: Option<Rc<RequestMetrics>>,
    /// Deadlines: of the request, of the response, of silence.
    timers: [Option<Key>; 3],
    /// The last octet in either direction; only kept while silence is limited.
    last: Option<Instant>,
    queue_timer: Option<Key>,
    /// Since when it has not found an endpoint.
    waits_since: Option<Instant>,
    /// Why the last endpoint that it was tried on could not be reached.
    refusal: Option<String>,
    finished: bool,
}

impl State {
    /// True when all that was sent is still here, so that it can be sent again.
    fn is_whole(&self) -> bool {
        self.head.is_some() && !self.body_lost && self.attempts < ATTEMPTS - 1
    }

    /// True when it does no harm to do twice what the client wants (RFC 9110 §9.2.1).
    fn is_safe(&self) -> bool {
        self.head.as_ref().is_some_and(|h| matches!(&*h.method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE"))
    }

    /// Whether the request may be sent to another application after this failure.
    fn fate(&self, kind: Kind) -> Option<Fate> {
        let unreachable = kind.is_unreachable();
        if !self.seen && unreachable && matches!(self.stage, Stage::Waiting) {
            Some(if kind == Kind::ConnectTimeout { Fate::Unseen } else { Fate::Gone })
        } else if self.seen && self.status == 0 && self.is_safe() && (unreachable || kind == Kind::Io) {
            Some(Fate::Lost)
        } else {
            None
        }
    }

    /// Remembers a piece of the body that is sent, as far as that may be of use: to an application there is only one way.
    fn keep(&mut self, data: &[u8], direction: Direction) {
        if direction == Direction::Outbound && !self.body_lost && self.kept.len() + data.len() <= HOLD {
            self.kept.extend_from_slice(data);
        } else if !data.is_empty() {
            self.forget_body();
        }
    }

    fn forget_body(&mut self) {
        self.body_lost = true;
        self.kept = Vec::new();
    }

    /// What was sent has to be sent again.
    fn again(&mut self) {
        self.attempts += 1;
        self.stage = Stage::Waiting;
        self.held = std::mem::take(&mut self.kept);
        if self.request_done {
            self.request_done = false;
            self.ended.get_or_insert(None);
        }
    }

    fn heard(&mut self) {
        if self.last.is_some() {
            self.last = Some(Instant::now());
        }
    }
}

/// One request and its response.
pub struct Exchange {
    worker: Rc<Worker>,
    front: Rc<Conn>,
    id: StreamId,
    started: Instant,
    grpc: bool,
    direction: Direction,
    state: RefCell<State>,
}

impl Exchange {
    /// A request has arrived: finds out where it goes and sends it there, or answers it.
    pub fn start(front: &Rc<Conn>, id: StreamId, mut head: Request, end: bool) {
        let Some(router) = front.router() else { return };
        front.note_request(&head, end);
        headers::refuse_h2c(&mut head.headers);
        let direction = router.direction();
        let worker = front.worker.clone();
        let exchange = Rc::new(Self {
            grpc: head.version == Version::H2 && headers::is_grpc(&head.headers),
            worker,
            front: front.clone(),
            id,
            started: Instant::now(),
            direction,
            state: RefCell::new(State {
                stage: Stage::Waiting,
                head: None,
                plan: None,
                upstream: None,
                held: Vec::new(),
                held_flow: 0,
                kept: Vec::new(),
                ended: end.then_some(None),
                request_done: false,
                body_lost: false,
                seen: false,
                repeated: false,
                owed_request: 0,
                owed_response: 0,
                status: 0,
                grpc_status: None,
                response_done: false,
                recorded: false,
                pending_load: false,
                attempts: 0,
                metrics: None,
                timers: [None; 3],
                last: None,
                queue_timer: None,
                waits_since: None,
                refusal: None,
                finished: false,
            }),
        });
        front.insert(id, exchange.clone());
        if let Err(why) = exchange.worker.enter(direction) {
            return exchange.fail(&Failure::new(Kind::LoadShed, why));
        }
        match router.route(&mut head) {
            Err(failure) => exchange.fail(&failure),
            Ok(plan) => {
                {
                    let mut s = exchange.state.borrow_mut();
                    if let Some(metrics) = &plan.metrics {
                        metrics.request();
                        s.metrics = Some(metrics.clone());
                    }
                    if let Some(limit) = plan.timeouts.request {
                        s.timers[REQUEST] = Some(exchange.worker.after(limit, Due::Request(exchange.clone())));
                    }
                    if let Some(limit) = plan.timeouts.idle {
                        s.last = Some(exchange.started);
                        s.timers[IDLE] = Some(exchange.worker.after(limit, Due::Idle(exchange.clone())));
                    }
                    s.head = Some(Box::new(head));
                    s.plan = Some(plan);
                }
                if end {
                    exchange.arm_response_timeout();
                }
                exchange.dispatch();
            }
        }
    }

    /// Looks for an endpoint.
    pub fn dispatch(self: &Rc<Self>) {
        let (to, queue) = match &self.state.borrow().plan {
            Some(plan) => (plan.to.clone(), plan.queue),
            None => return,
        };
        to.submit(self, queue);
    }

    // What upstreams and balancers ask and tell.

    /// The kind of connection that this request needs to an endpoint that takes HTTP/1 requests as HTTP/2, or not.
    pub fn want(&self, endpoint_h2: bool) -> Want {
        match &self.state.borrow().head {
            // A client's HTTP/2 connection carries other requests: it never becomes a tunnel.
            Some(head) if headers::is_upgrade(head) && !self.front.is_h2() => Want::Tunnel,
            Some(head) if head.version == Version::H2 || endpoint_h2 => Want::H2,
            _ => Want::H1,
        }
    }

    /// True while it waits for an endpoint or a connection.
    pub fn is_waiting(&self) -> bool {
        let s = self.state.borrow();
        matches!(s.stage, Stage::Waiting) && !s.finished && s.status == 0 && s.plan.is_some()
    }

    /// The identity that the client requires of the endpoint.
    pub fn requires_identity(&self) -> Option<Vec<u8>> {
        self.state.borrow().plan.as_ref()?.require_identity.clone()
    }

    /// How long it has been waiting for an endpoint by now, attempts to reach one included.
    pub fn waited(&self) -> Duration {
        self.state.borrow_mut().waits_since.get_or_insert_with(Instant::now).elapsed()
    }

    /// It waits for an endpoint: until then, at the latest.
    pub fn set_queue_timer(&self, key: Key) {
        let old = self.state.borrow_mut().queue_timer.replace(key);
        if let Some(old) = old {
            self.worker.timers.cancel(old);
        }
    }

    /// It waits for a stream of connections that are all taken: not longer than for an endpoint.
    pub fn limit_wait(self: &Rc<Self>) {
        let failfast = match &*self.state.borrow() {
            State { queue_timer: None, plan: Some(plan), .. } => plan.queue.failfast,
            _ => return,
        };
        self.set_queue_timer(self.worker.after(failfast, Due::Failfast(self.clone())));
    }

    /// It waits no longer.
    pub fn clear_queue_timer(&self) {
        let key = self.state.borrow_mut().queue_timer.take();
        if let Some(key) = key {
            self.worker.timers.cancel(key);
        }
    }

    /// Sends the request on that connection. False when the connection takes none; nothing was sent then.
    pub fn bind(self: &Rc<Self>, conn: &Rc<Conn>, upstream: &Rc<Upstream>) -> bool {
        let (held, ended, id) = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            let Some(head) = &mut s.head else { return false };
            if let Some(authority) = &upstream.endpoint.authority_override {
                head.authority.clear();
                head.authority.extend_from_slice(authority.as_bytes());
            }
            if conn.is_h2() && head.version != Version::H2 {
                headers::upgrade_request(head);
            } else if !conn.is_h2() {
                if s.attempts > 0 {
                    headers::forget_upgrade(head);
                }
                if head.authority.is_empty() {
                    head.authority.extend_from_slice(upstream.endpoint.addr.to_string().as_bytes());
                }
            }
            let end = matches!(s.ended, Some(None)) && s.held.is_empty();
            let Ok(id) = conn.send_request(head, end) else { return false };
            s.stage = Stage::Sent { conn: conn.clone(), id };
            s.seen = true;
            if s.metrics.is_none() {
                let metrics = upstream.requests();
                metrics.request();
                s.metrics = Some(metrics);
            }
            upstream.load.begin(self.started);
            s.pending_load = true;
            s.upstream = Some(upstream.clone());
            s.waits_since = None;
            s.request_done |= end;
            (std::mem::take(&mut s.held), s.ended.clone().filter(|_| !end), id)
        };
        conn.insert(id, self.clone());
        self.clear_queue_timer();
        let flow = {
            let mut s = self.state.borrow_mut();
            s.keep(&held, self.direction);
            s.request_done |= ended.is_some();
            std::mem::take(&mut s.held_flow)
        };
        if !held.is_empty() {
            conn.send_data(id, &held, matches!(ended, Some(None)));
        }
        match &ended {
            Some(Some(trailers)) => conn.send_end(id, Some(trailers)),
            Some(None) if held.is_empty() => conn.send_end(id, None),
            _ => {}
        }
        if self.state.borrow().request_done {
            self.arm_response_timeout();
        }
        if conn.is_full(id, self) {
            self.state.borrow_mut().owed_request += flow;
        } else {
            self.front.release(self.id, flow);
            self.front.resume();
        }
        true
    }

    /// The endpoint could not be connected to: another one is tried, if there is one. Without one the request waits, as long
    /// as requests may; that alone limits its attempts then.
    pub fn connect_failed(self: &Rc<Self>, failure: &Failure) {
        if !self.is_waiting() {
            return;
        }
        let again = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            s.attempts = s.attempts.saturating_add(1);
            s.refusal = Some(failure.message.clone());
            failure.kind != Kind::LoadShed
                && s.plan.as_ref().is_some_and(|p| {
                    let in_time = s.waits_since.is_some() || self.started.elapsed() < p.queue.failfast;
                    p.to.has_others() && (s.attempts < ATTEMPTS || in_time)
                })
        };
        if again { self.dispatch() } else { self.fail(failure) }
    }

    /// It has waited too long for an endpoint.
    pub fn failfast(self: &Rc<Self>) {
        self.state.borrow_mut().queue_timer = None;
        if !self.is_waiting() {
            return;
        }
        let (to, refusal) = match &mut *self.state.borrow_mut() {
            State { plan: Some(plan), refusal, .. } => (plan.to.clone(), refusal.take()),
            _ => return,
        };
        let mut message = to.give_up(self);
        if let Some(refusal) = refusal {
            message = format!("{message} ({refusal})");
        }
        self.fail(&Failure::new(Kind::Failfast, message));
    }

    /// A time limit of the policy has passed.
    pub fn timed_out(self: &Rc<Self>) {
        self.fail(&Failure::new(
            Kind::Timeout,
            format!("{}: no complete response within the route's time limit", self.whom()),
        ));
    }

    /// Fails if there was no octet for the route's limit.
    pub fn maybe_idle(self: &Rc<Self>) {
        let left = {
            let s = self.state.borrow();
            let (Some(last), Some(limit)) = (s.last, s.plan.as_ref().and_then(|p| p.timeouts.idle)) else { return };
            if s.finished {
                return;
            }
            limit.checked_sub(last.elapsed()).filter(|left| !left.is_zero())
        };
        match left {
            Some(left) => {
                let key = self.worker.after(left, Due::Idle(self.clone()));
                self.state.borrow_mut().timers[IDLE] = Some(key);
            }
            None => {
                let message = format!("{}: no octet within the route's idle limit", self.whom());
                self.fail(&Failure::new(Kind::Timeout, message));
            }
        }
    }

    fn whom(&self) -> String {
        let s = self.state.borrow();
        match (&s.upstream, &s.plan) {
            (Some(upstream), _) => format!("endpoint {}", upstream.endpoint.addr),
            (None, Some(plan)) => plan.to.name().to_string(),
            (None, None) => "request".into(),
        }
    }

    // Endings.

    fn release_back(&self, flow: u32) {
        let sent = match &self.state.borrow().stage {
            Stage::Sent { conn, id } => Some((conn.clone(), *id)),
            _ => None,
        };
        if let Some((conn, id)) = sent {
            conn.release(id, flow);
        }
    }

    /// True when what the client still sends goes nowhere.
    pub fn discards(&self) -> bool {
        matches!(self.state.borrow().stage, Stage::Discarding)
    }

    fn response_ended(self: &Rc<Self>) {
        let class = {
            let mut s = self.state.borrow_mut();
            s.response_done = true;
            match s.grpc_status {
                Some(status) if self.grpc => ResponseClass::Grpc(status),
                _ => ResponseClass::Http,
            }
        };
        self.record(class);
        self.settle();
    }

    /// Answers, or breaks off if a response has begun, and leaves the server.
    pub fn fail(self: &Rc<Self>, failure: &Failure) {
        let fate = {
            let s = self.state.borrow();
            if s.finished || s.response_done {
                return;
            }
            s.fate(failure.kind).filter(|_| self.direction == Direction::Inbound)
        };
        let Some(router) = self.front.router() else { return };
        failure.log(self.direction, self.front.io.peer());
        self.worker.ctx.metrics.http_error(self.direction, failure.kind.label()).incr();
        self.leave_server(Reason::CANCEL);
        if self.state.borrow().status != 0 {
            self.record(ResponseClass::Error(failure.kind.label()));
            self.front.reset(self.id, Reason::INTERNAL_ERROR);
            return self.finish();
        }
        let mut response = failure.response(self.grpc, router.emits_reasons(), Version::H11);
        if let Some(fate) = fate.filter(|_| router.emits_reasons()) {
            headers::set_fate(&mut response, fate);
        }
        if self.state.borrow().plan.as_ref().is_some_and(|p| p.downgraded) {
            headers::upgrade_response(&mut response);
        }
        {
            let mut s = self.state.borrow_mut();
            s.status = response.status;
            s.response_done = true;
            s.stage = Stage::Discarding;
            s.held = Vec::new();
            s.kept = Vec::new();
            s.request_done |= s.ended.is_some();
            if self.grpc {
                s.grpc_status = Some(failure.grpc.into());
            }
            if let Some(metrics) = &s.metrics {
                metrics.latency(response.status, self.started.elapsed());
            }
        }
        let class = match failure.kind {
            Kind::Timeout => ResponseClass::Error("timeout"),
            _ if self.grpc => ResponseClass::Grpc(failure.grpc.into()),
            _ => ResponseClass::Http,
        };
        self.record(class);
        if failure.close && !self.front.is_h2() {
            self.front.drain();
        }
        self.front.send_response(self.id, &response, true);
        let held = std::mem::take(&mut self.state.borrow_mut().held_flow);
        self.front.release(self.id, held);
        self.front.resume();
        self.settle();
    }

    /// Ends the exchange when both directions are done.
    fn settle(self: &Rc<Self>) {
        let (request_done, response_done, gone) = {
            let s = self.state.borrow();
            if s.finished {
                return;
            }
            (s.request_done, s.response_done, matches!(s.stage, Stage::Discarding))
        };
        if response_done && request_done {
            self.finish();
        } else if response_done && gone && self.front.is_h2() && self.front.queued(self.id) == 0 {
            // The client may stop sending (RFC 9113 §8.1).
            self.front.reset(self.id, Reason::NO_ERROR);
            self.finish();
        } else if response_done && self.front.ends_early(gone) {
            self.leave_server(Reason::CANCEL);
            self.finish();
        }
    }

    fn finish(self: &Rc<Self>) {
        let (stage, timers, owed_request, owed_response) = {
            let mut s = self.state.borrow_mut();
            if std::mem::replace(&mut s.finished, true) {
                return;
            }
            let owed = (std::mem::take(&mut s.owed_request) + std::mem::take(&mut s.held_flow), s.owed_response);
            (std::mem::replace(&mut s.stage, Stage::Discarding), std::mem::take(&mut s.timers), owed.0, owed.1)
        };
        for key in timers.into_iter().flatten() {
            self.worker.timers.cancel(key);
        }
        self.clear_queue_timer();
        self.settle_load();
        self.worker.leave(self.direction);
        // What the last pieces cost is still owed to the connections' windows, which other streams share.
        if let Stage::Sent { conn, id } = stage {
            conn.release(id, owed_response);
            conn.finished(id);
        }
        self.front.release(self.id, owed_request);
        self.front.finished(self.id);
    }

    /// Tells the server that nobody waits any more.
    fn leave_server(self: &Rc<Self>, reason: Reason) {
        let (stage, to) = {
            let mut s = self.state.borrow_mut();
            let to = s.plan.as_ref().map(|p| p.to.clone());
            (std::mem::replace(&mut s.stage, Stage::Discarding), to)
        };
        self.drop_load();
        match (stage, to) {
            (Stage::Sent { conn, id }, _) => conn.reset(id, reason),
            (Stage::Waiting, Some(to)) => to.forget(self),
            _ => {}
        }
    }

    /// Starts the limit that counts from the end of the request.
    fn arm_response_timeout(self: &Rc<Self>) {
        let mut s = self.state.borrow_mut();
        if s.timers[RESPONSE].is_none()
            && !s.response_done
            && let Some(limit) = s.plan.as_ref().and_then(|p| p.timeouts.response)
        {
            s.timers[RESPONSE] = Some(self.worker.after(limit, Due::Request(self.clone())));
        }
    }

    // Counting.

    fn record(&self, class: ResponseClass) {
        let mut s = self.state.borrow_mut();
        if std::mem::replace(&mut s.recorded, true) {
            return;
        }
        if let Some(metrics) = &s.metrics {
            metrics.response(s.status, class);
        }
    }

    /// The endpoint has answered.
    fn settle_load(&self) {
        self.end_load(Ended::Answered);
    }

    /// The endpoint has not answered.
    fn drop_load(&self) {
        self.end_load(Ended::GivenUp);
    }

    fn end_load(&self, how: impl FnOnce(Duration) -> Ended) {
        let mut s = self.state.borrow_mut();
        if !std::mem::replace(&mut s.pending_load, false) {
            return;
        }
        if let Some(upstream) = &s.upstream {
            let now = Instant::now();
            upstream.load.end(now, how(now.saturating_duration_since(self.started)));
        }
    }
}
