//! HTTP/1 clients that take too long over what they have begun.
//!
//! Nothing is timed for each request: every few seconds a look at all clients' connections tells those that have stood still
//! since earlier looks. So nobody is ended before its limit, and everybody soon after it.
//!
//! A client that is answered, or waited for because the other side is slow, may take its time: streams live for days.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Conn, Failure, Kind, conn::Codec, server};
use crate::config::Http1Config;

/// What an HTTP/1 client is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Awaited {
    /// Nothing: it waits itself, or the connection is no HTTP any more.
    #[default]
    Nothing,
    /// Another request.
    Request,
    /// The end of a request's head.
    Head,
    /// More of a request's body.
    Body,
}

/// What earlier looks have seen.
#[derive(Default)]
pub(super) struct Slowness {
    seen: Cell<Awaited>,
    /// Requests by then.
    requests: Cell<u64>,
    since: Cell<Option<Instant>>,
}

/// Time between looks.
pub fn interval(limits: &Http1Config) -> Duration {
    limits.head.min(limits.body).min(limits.idle) / 4
}

impl Conn {
    fn awaited(&self) -> Awaited {
        match &*self.codec.borrow() {
            Codec::Server1(s) if s.tunnel => Awaited::Nothing,
            _ if self.half_closed.get() || self.is_over() => Awaited::Nothing,
            Codec::Server1(s) if self.load() > 0 => match s.receiving && !self.paused.get() {
                true => Awaited::Body,
                false => Awaited::Nothing,
            },
            Codec::Server1(_) => match self.rest.borrow().is_empty() {
                true => Awaited::Request,
                false => Awaited::Head,
            },
            Codec::Client1(_) | Codec::H2(_) => Awaited::Nothing,
        }
    }

    /// Ends a connection whose client has stood still for too long.
    pub fn judge(self: &Rc<Self>, limits: &Http1Config, now: Instant) {
        if self.is_h2() {
            return;
        }
        let awaited = self.awaited();
        // Octets of a body, and of its response, are progress; those of a head are not: whoever sends one now and then
        // could go on for ever.
        let moved = self.active.replace(false) && awaited == Awaited::Body;
        let requests = self.slowness.requests.replace(self.requests.get());
        let seen = self.slowness.seen.replace(awaited);
        if moved || requests != self.requests.get() || seen != awaited {
            return self.slowness.since.set(Some(now));
        }
        let stood = self.slowness.since.get().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        match awaited {
            Awaited::Request if stood >= limits.idle => {
                tracing::debug!(client = %self.io.peer(), "idle connection closed");
                self.close();
            }
            Awaited::Head if stood >= limits.head => {
                let message = format!("client's request: its head took longer than {:?}", limits.head);
                server::answer_and_close(self, &Failure::new(Kind::ClientTimeout, message));
            }
            Awaited::Body if stood >= limits.body => {
                let message = format!("client's request: no octet of its body for {:?}", limits.body);
                if let Some(exchange) = self.stream(1) {
                    exchange.fail(&Failure::new(Kind::ClientTimeout, message));
                }
            }
            _ => {}
        }
    }
}
