//! One HTTP connection: a codec over a transport, and the exchanges on it.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    task::{Context, Waker},
    time::Instant,
};

use weft_wire::{
    Limits, Version,
    h1::{self, Framing},
    h2::{self, StreamId},
};

use super::{Exchange, Router, client, liveness::Liveness, server, slow::Slowness, streams::Streams};
use crate::{
    io::{Io, give_buffer, take_buffer},
    upstream::Upstream,
    worker::Worker,
};

mod ending;
mod send;

/// Octets of HTTP/1 output that wait, beyond which the source is paused.
const HIGH: usize = 256 * 1024;
/// Octets of HTTP/1 output at which a paused source goes on.
const LOW: usize = 64 * 1024;

/// A proxy may cancel so many times as many requests as another client.
const CLIENTS_BEHIND_A_PROXY: u32 = 50;

/// Whose connection it is.
pub enum Role {
    /// A client's. The router decides where its requests go.
    Front(Rc<dyn Router>),
    /// A server's.
    Back(Weak<Upstream>),
}

/// The server's end of HTTP/1.
pub(super) struct Server1 {
    pub(super) decoder: h1::RequestDecoder,
    /// The present request's body has not ended.
    pub(super) receiving: bool,
    /// Octets of a body that nobody wants any more.
    pub(super) discarded: usize,
    method: Vec<u8>,
    version: Version,
    /// Of the response under way.
    framing: Framing,
    keep_alive: bool,
    /// The response that switches protocols was sent.
    pub(super) tunnel: bool,
}

/// The client's end of HTTP/1.
pub(super) struct Client1 {
    pub(super) decoder: h1::ResponseDecoder,
    /// Of the request under way.
    framing: Framing,
    /// The present request's body has not ended.
    sending: bool,
    /// The present response has not ended.
    pub(super) receiving: bool,
    /// Requests sent so far.
    requests: u64,
}

pub(super) enum Codec {
    Server1(Box<Server1>),
    Client1(Box<Client1>),
    H2(Box<h2::Connection>),
}

/// How far the end of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    /// Open.
    No,
    /// Drained before its first request, which is on its way and is served: it becomes `WhenIdle` with it.
    AfterNext,
    /// No new exchange; closes when the last one ends.
    WhenIdle,
    /// Closes once the output is written.
    Flush,
    /// Closes at once, by a reset: what was sent is not all.
    Abort,
}

/// One HTTP connection.
pub struct Conn {
    pub(crate) io: Rc<Io>,
    pub(super) worker: Rc<Worker>,
    pub(super) role: Role,
    pub(super) codec: RefCell<Codec>,
    pub(super) streams: RefCell<Streams>,
    /// HTTP/1: input that was not decoded yet.
    pub(super) rest: RefCell<Vec<u8>>,
    /// HTTP/1: output of this turn.
    out: RefCell<Vec<u8>>,
    /// HTTP/1: the exchange that waits for this connection's output to shrink.
    blocked: RefCell<Option<Rc<Exchange>>>,
    pub(super) paused: Cell<bool>,
    /// HTTP/1: the client sends nothing more.
    pub(super) half_closed: Cell<bool>,
    /// Requests of the client.
    pub(super) requests: Cell<u64>,
    pub(super) slowness: Slowness,
    pub(super) closing: Cell<Closing>,
    dirty: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Where a switched connection continues.
    pub(super) tunnel: RefCell<Option<(Rc<Io>, Vec<u8>)>>,
    /// Something was read, or for HTTP/1 written, since the last look.
    pub(super) active: Cell<bool>,
    pub(super) ping_sent: Cell<bool>,
    /// HTTP/2: when the codec was last told of the time.
    ticked: Cell<Instant>,
    /// HTTP/2: the peer has told its limits.
    pub(super) settled: Cell<bool>,
    pub(super) liveness: Liveness,
    /// The system has given up the server's host.
    pub(super) silent: Cell<bool>,
}

impl Conn {
    fn new(io: Rc<Io>, worker: &Rc<Worker>, role: Role, codec: Codec) -> Rc<Self> {
        Rc::new(Self {
            io,
            worker: worker.clone(),
            role,
            codec: RefCell::new(codec),
            streams: RefCell::default(),
            rest: RefCell::default(),
            out: RefCell::default(),
            blocked: RefCell::default(),
            paused: Cell::new(false),
            half_closed: Cell::new(false),
            requests: Cell::new(0),
            slowness: Slowness::default(),
            closing: Cell::new(Closing::No),
            dirty: Cell::new(false),
            waker: RefCell::default(),
            tunnel: RefCell::default(),
            active: Cell::new(false),
            ping_sent: Cell::new(false),
            ticked: Cell::new(Instant::now()),
            settled: Cell::new(false),
            liveness: Liveness::default(),
            silent: Cell::new(false),
        })
    }

    /// A client's connection.
    pub fn front(io: impl Into<Rc<Io>>, worker: &Rc<Worker>, version: Version, router: Rc<dyn Router>) -> Rc<Self> {
        let mut limits = worker.server_limits(router.direction()).clone();
        if router.carries_others() {
            // Cancelled requests of many clients are no attack of one.
            limits.rapid_resets = limits.rapid_resets.saturating_mul(CLIENTS_BEHIND_A_PROXY);
        }
        let limits = &limits;
        let codec = if version == Version::H2 {
            Codec::H2(Box::new(h2::Connection::server(limits)))
        } else {
            Codec::Server1(Box::new(Server1 {
                decoder: h1::RequestDecoder::new(limits),
                receiving: false,
                discarded: 0,
                method: Vec::new(),
                version: Version::H11,
                framing: Framing::None,
                keep_alive: true,
                tunnel: false,
            }))
        };
        let conn = Self::new(io.into(), worker, Role::Front(router), codec);
        conn.touch();
        conn
    }

    /// A connection to a server.
    pub fn back(io: Io, worker: &Rc<Worker>, h2: bool, limits: &Limits, upstream: &Rc<Upstream>) -> Rc<Self> {
        let codec = if h2 {
            Codec::H2(Box::new(h2::Connection::client(limits)))
        } else {
            Codec::Client1(Box::new(Client1 {
                decoder: h1::ResponseDecoder::new(limits),
                framing: Framing::None,
                sending: false,
                receiving: false,
                requests: 0,
            }))
        };
        let conn = Self::new(Rc::new(io), worker, Role::Back(Rc::downgrade(upstream)), codec);
        conn.touch();
        conn
    }

    /// True for HTTP/2.
    pub fn is_h2(&self) -> bool {
        matches!(&*self.codec.borrow(), Codec::H2(_))
    }

    pub(crate) fn router(&self) -> Option<&Rc<dyn Router>> {
        match &self.role {
            Role::Front(router) => Some(router),
            Role::Back(_) => None,
        }
    }

    pub(super) fn upstream(&self) -> Option<Rc<Upstream>> {
        match &self.role {
            Role::Front(_) => None,
            Role::Back(upstream) => upstream.upgrade(),
        }
    }

    // The owner's task.

    pub(super) fn set_waker(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Has the owner look at the connection again.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn touch(self: &Rc<Self>) {
        if !self.dirty.replace(true) {
            self.worker.flush_later(self.clone());
        }
    }

    /// Writes what the codec has to write, for the owner's task to look at what came of it.
    pub fn flush(self: &Rc<Self>) {
        self.write_out();
        if self.io.backlog() > 0 || self.closing.get() != Closing::No || self.io.is_broken() {
            self.wake();
        }
    }

    /// Writes what the codec has to write. The owner's task calls this and looks by itself: were it woken for what it
    /// looks at anyway, it would never rest while a connection is on its way to the end.
    pub(super) fn write_out(self: &Rc<Self>) {
        self.dirty.set(false);
        loop {
            if self.io.backlog() > 0 {
                // The owner waits for the socket and comes back here.
                return;
            }
            let mut codec = self.codec.borrow_mut();
            let mut h1_out;
            let (out, mut h2) = match &mut *codec {
                Codec::H2(h2) => {
                    if h2.output().is_empty() {
                        break;
                    }
                    h1_out = std::mem::take(h2.output());
                    (&mut h1_out, Some(h2))
                }
                Codec::Server1(_) | Codec::Client1(_) => {
                    h1_out = std::mem::take(&mut *self.out.borrow_mut());
                    if h1_out.is_empty() {
                        break;
                    }
                    self.active.set(true);
                    (&mut h1_out, None)
                }
            };
            let done = self.io.write(out);
            give_buffer(std::mem::take(out));
            match (&mut h2, done) {
                (Some(h2), true) => h2.pump(),
                (_, false) => {}
                (None, true) => break,
            }
        }
        self.events_of_output();
    }

    /// What the codec has to say after its output was taken, and whom that lets go on.
    fn events_of_output(self: &Rc<Self>) {
        if self.is_h2() {
            match &self.role {
                Role::Front(_) => server::h2_input(self, &[]),
                Role::Back(_) => client::h2_input(self, &[]),
            }
        } else if self.h1_backlog() <= LOW {
            let exchange = self.blocked.borrow_mut().take();
            if let Some(exchange) = exchange {
                match &self.role {
                    Role::Front(_) => exchange.resume_response(),
                    Role::Back(_) => exchange.resume_request(),
                }
            }
        }
    }

    fn h1_backlog(&self) -> usize {
        self.io.backlog() + self.out.borrow().len()
    }

    // Streams.

    pub(super) fn stream(&self, id: StreamId) -> Option<Rc<Exchange>> {
        self.streams.borrow().get(id).cloned()
    }

    pub(super) fn insert(&self, id: StreamId, exchange: Rc<Exchange>) {
        self.streams.borrow_mut().insert(id, exchange);
    }

    pub(super) fn remove(&self, id: StreamId) -> Option<Rc<Exchange>> {
        self.streams.borrow_mut().remove(id)
    }

    /// Exchanges on this connection.
    pub fn load(&self) -> usize {
        self.streams.borrow().len()
    }

    /// Stops reading (HTTP/1).
    pub(super) fn pause(&self) {
        self.paused.set(true);
    }

    /// Reads on.
    pub(super) fn resume(&self) {
        if self.paused.replace(false) {
            self.wake();
        }
    }

    /// An exchange is over, both ways.
    pub(super) fn finished(self: &Rc<Self>, id: StreamId) {
        self.remove(id);
        self.blocked.borrow_mut().take();
        let paused = self.paused.replace(false);
        let mut codec = self.codec.borrow_mut();
        match &mut *codec {
            Codec::Server1(s) => {
                if !s.keep_alive && !s.tunnel && self.closing.get() != Closing::Abort {
                    self.closing.set(Closing::Flush);
                }
                // Without anything to do the owner sleeps on, until the next request comes.
                let closes = self.closing.get() != Closing::No || self.half_closed.get();
                if paused || s.tunnel || closes || !self.rest.borrow().is_empty() {
                    self.wake();
                }
            }
            Codec::Client1(c) => {
                let clean = !c.sending
                    && !c.receiving
                    && c.decoder.is_idle()
                    && c.decoder.keep_alive()
                    && self.rest.borrow().is_empty()
                    && self.closing.get() == Closing::No
                    && !self.io.is_broken();
                drop(codec);
                match self.upstream() {
                    Some(upstream) if clean => upstream.put_idle(self),
                    _ => self.close(),
                }
            }
            Codec::H2(_) => {
                if self.closing.get() == Closing::WhenIdle {
                    self.wake();
                }
                drop(codec);
                if let Some(upstream) = self.upstream()
                    && upstream.has_waiting()
                {
                    self.wake();
                }
            }
        }
    }

    /// True when a failed request on this connection may be due to the server closing it at the same moment.
    pub(super) fn is_reused(&self) -> bool {
        match &*self.codec.borrow() {
            Codec::Client1(c) => c.requests > 1,
            Codec::H2(_) => true,
            Codec::Server1(_) => false,
        }
    }

    /// Tells the codec of the seconds that have passed, so that it judges the peer by the present.
    pub(super) fn tick(&self) {
        let seconds = self.ticked.get().elapsed().as_secs();
        if seconds == 0 {
            return;
        }
        self.ticked.set(Instant::now());
        if let Codec::H2(h2) = &mut *self.codec.borrow_mut() {
            // What is counted has 32 bits: it is nothing after so many halvings.
            (0..seconds.min(32)).for_each(|_| h2.tick());
        }
    }

    /// True when the peer's limits are known.
    pub fn is_settled(&self) -> bool {
        self.settled.get()
    }

    /// True when another stream can be opened.
    pub fn can_open(&self) -> bool {
        let open = match &*self.codec.borrow() {
            Codec::H2(h2) => h2.can_open(),
            Codec::Client1(c) => !c.sending && !c.receiving,
            Codec::Server1(_) => false,
        };
        open && self.closing.get() == Closing::No && !self.io.is_broken()
    }

    /// True when the codec has octets to write.
    pub(super) fn has_output(&self) -> bool {
        match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => !h2.output().is_empty(),
            _ => !self.out.borrow().is_empty(),
        }
    }

    pub(super) fn touch_if_output(self: &Rc<Self>) {
        if self.has_output() {
            self.touch();
        }
    }

    /// True when so much output waits for the client that its next requests have to wait, too.
    pub(super) fn is_backlogged(&self) -> bool {
        match &*self.codec.borrow() {
            Codec::H2(h2) => h2.is_backlogged(),
            _ => self.h1_backlog() > HIGH,
        }
    }

    /// The exchanges on this connection.
    pub(super) fn exchanges(&self) -> Vec<Rc<Exchange>> {
        self.streams.borrow().all()
    }

    /// Takes all exchanges away, when the connection is gone.
    pub(super) fn take_streams(&self) -> Vec<Rc<Exchange>> {
        self.blocked.borrow_mut().take();
        self.streams.borrow_mut().take()
    }
}

/// Lends the codec a buffer for its output, if it has none.
pub(super) fn ready_output(h2: &mut h2::Connection) {
    let out = h2.output();
    if out.capacity() == 0 {
        *out = take_buffer();
    }
}
