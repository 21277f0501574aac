//! How a connection comes to its end.

use std::{rc::Rc, time::Duration};

use weft_wire::h2::Reason;

use super::{Closing, Codec, Conn, ready_output};
use crate::worker::Due;

impl Conn {
    /// True when nothing is read from this connection any more.
    pub(in crate::http) fn is_over(&self) -> bool {
        matches!(self.closing.get(), Closing::Flush | Closing::Abort)
    }

    /// No new exchanges on this connection, and it closes after the last: HTTP/2 clients are told by GOAWAY, HTTP/1
    /// clients by `connection: close`. What is on its way is still served.
    pub fn drain(self: &Rc<Self>) {
        if self.closing.get() != Closing::No {
            return;
        }
        if self.router().is_some() && self.requests.get() == 0 {
            // A client's connection is HTTP because the beginning of a request was seen on it.
            self.closing.set(Closing::AfterNext);
            return;
        }
        if self.router().is_some() {
            self.go_away();
        }
        if self.is_idle() {
            self.go_away();
            self.closing.set(Closing::Flush);
        } else {
            self.closing.set(Closing::WhenIdle);
        }
        self.touch();
        self.wake();
    }

    /// HTTP/2: announces the end. A server is not told before it has answered everything: Python's h2, for one, takes that for
    /// the end of the requests under way as well.
    pub(in crate::http) fn go_away(self: &Rc<Self>) {
        if let Codec::H2(h2) = &mut *self.codec.borrow_mut() {
            ready_output(h2);
            h2.go_away(Reason::NO_ERROR);
        }
        self.touch();
    }

    /// Closes once the output is written.
    pub fn close(self: &Rc<Self>) {
        if self.closing.get() != Closing::Abort {
            self.closing.set(Closing::Flush);
        }
        self.touch();
        self.wake();
    }

    /// The present response is the last one.
    pub(in crate::http) fn close_after_response(&self) {
        if matches!(self.closing.get(), Closing::No | Closing::AfterNext) {
            self.closing.set(Closing::WhenIdle);
        }
    }

    /// HTTP/1: true when the connection ends with the response although the request has not ended: the client was told
    /// so, and the rest of its request has no use, or was never begun.
    pub(in crate::http) fn ends_early(&self, discards: bool) -> bool {
        match &*self.codec.borrow() {
            Codec::Server1(s) => !s.keep_alive && s.receiving && (discards || s.decoder.expects_continue()),
            _ => false,
        }
    }

    /// True without exchanges, and without the beginning of one. An HTTP/2 client must also have seen that we go away:
    /// until then its requests may be on their way.
    pub(in crate::http) fn is_idle(&self) -> bool {
        self.load() == 0
            && match &*self.codec.borrow() {
                Codec::H2(h2) if self.router().is_some() => h2.is_closed(),
                Codec::H2(h2) => h2.streams() == 0,
                Codec::Server1(s) => !s.receiving && s.decoder.is_idle() && self.rest.borrow().is_empty(),
                Codec::Client1(_) => true,
            }
    }

    /// HTTP/1: the client was told that nothing is read any more.
    pub(in crate::http) fn said_close(&self) -> bool {
        matches!(&*self.codec.borrow(), Codec::Server1(s) if !s.keep_alive)
    }

    /// Begins to watch over a quiet HTTP/2 client, if configured.
    pub(in crate::http) fn arm_keep_alive(self: &Rc<Self>) {
        let Some(router) = self.router() else { return };
        let side = self.worker.side(router.direction());
        if let Some(interval) = side.http2_keepalive_interval.filter(|i| !i.is_zero())
            && self.is_h2()
        {
            self.worker.after(interval, Due::Ping(Rc::downgrade(self)));
        }
    }

    /// Pings a quiet HTTP/2 client; closes the connection of one that does not answer.
    pub fn keep_alive(self: &Rc<Self>) {
        let Some(router) = self.router() else { return };
        let side = self.worker.side(router.direction());
        let Some(interval) = side.http2_keepalive_interval else { return };
        let timeout = side.http2_keepalive_timeout.unwrap_or(Duration::from_secs(20));
        if self.active.replace(false) {
            self.ping_sent.set(false);
            self.worker.after(interval, Due::Ping(Rc::downgrade(self)));
        } else if self.ping_sent.get() {
            tracing::debug!(client = %self.io.peer(), "client does not answer pings");
            self.closing.set(Closing::Abort);
            self.wake();
        } else {
            if let Codec::H2(h2) = &mut *self.codec.borrow_mut() {
                ready_output(h2);
                h2.ping(*b"weftping");
            }
            self.ping_sent.set(true);
            self.touch();
            self.worker.after(timeout, Due::Ping(Rc::downgrade(self)));
        }
    }
}
