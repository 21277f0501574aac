//! What exchanges have a connection send, whichever version of HTTP it speaks.

use std::{cell::RefCell, rc::Rc};

use weft_wire::{
    Headers, Request, Response, Version,
    h1::{self, Framing},
    h2::{Reason, SendError, StreamId},
};

use super::{Closing, Codec, Conn, HIGH, ready_output};
use crate::{http::Exchange, io::take_buffer};

impl Conn {
    /// Sends a request's head: the stream it got.
    pub(in crate::http) fn send_request(self: &Rc<Self>, head: &Request, end: bool) -> Result<StreamId, SendError> {
        if self.closing.get() != Closing::No || self.io.is_broken() {
            return Err(SendError::GoingAway);
        }
        let id = match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => {
                ready_output(h2);
                h2.send_request(head, end)?
            }
            Codec::Client1(c) => {
                if c.sending || c.receiving || !c.decoder.is_idle() {
                    return Err(SendError::Busy);
                }
                c.framing = h1::request_framing(head, end);
                c.sending = !end;
                c.receiving = true;
                c.requests += 1;
                c.decoder.expect(&head.method);
                h1::encode_request(head, c.framing, &mut h1_output(&self.out));
                1
            }
            Codec::Server1(_) => return Err(SendError::GoingAway),
        };
        self.touch();
        self.awaits();
        Ok(id)
    }

    /// Remembers what a response to this request must look like.
    pub(in crate::http) fn note_request(self: &Rc<Self>, head: &Request, end: bool) {
        self.requests.set(self.requests.get() + 1);
        if self.closing.get() == Closing::AfterNext {
            self.closing.set(Closing::WhenIdle);
            if let Codec::H2(h2) = &mut *self.codec.borrow_mut() {
                ready_output(h2);
                h2.go_away(Reason::NO_ERROR);
            }
            self.touch();
        }
        if let Codec::Server1(s) = &mut *self.codec.borrow_mut() {
            s.method.clear();
            s.method.extend_from_slice(&head.method);
            s.version = head.version;
            s.receiving = !end;
            s.discarded = 0;
        }
    }

    /// Sends a 1xx head; HTTP/1.0 clients do not know them.
    pub(in crate::http) fn send_informational(self: &Rc<Self>, id: StreamId, head: &Response) {
        match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => {
                ready_output(h2);
                h2.send_informational(id, head);
            }
            Codec::Server1(s) if s.version == Version::H11 => {
                h1::encode_response(head, Framing::None, true, s.version, &mut h1_output(&self.out));
            }
            _ => return,
        }
        self.touch();
    }

    /// Sends the final head of a response.
    pub(in crate::http) fn send_response(self: &Rc<Self>, id: StreamId, head: &Response, end: bool) {
        match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => {
                ready_output(h2);
                h2.send_response(id, head, end);
            }
            Codec::Server1(s) => {
                s.framing = h1::response_framing(&s.method, head, end, s.version);
                s.tunnel = head.status == 101 || (s.method == b"CONNECT" && (200..300).contains(&head.status));
                s.keep_alive = s.decoder.keep_alive()
                    && self.closing.get() == Closing::No
                    && s.framing != Framing::UntilClose
                    // A client that waits for 100 may or may not send its body now; the connection cannot tell.
                    && !(s.receiving && s.decoder.expects_continue());
                let keep_alive = s.keep_alive || s.tunnel;
                h1::encode_response(head, s.framing, keep_alive, s.version, &mut h1_output(&self.out));
            }
            Codec::Client1(_) => return,
        }
        self.touch();
    }

    /// Sends a piece of a body.
    pub(in crate::http) fn send_data(self: &Rc<Self>, id: StreamId, data: &[u8], end: bool) {
        match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => {
                ready_output(h2);
                h2.send_data(id, data, end);
            }
            codec => {
                let framing = codec.h1_framing();
                let mut out = h1_output(&self.out);
                h1::encode_data(framing, data, &mut out);
                if end {
                    h1::encode_end(framing, None, &mut out);
                    codec.h1_ended();
                }
            }
        }
        self.touch();
    }

    /// Ends a message, with trailers if there are any.
    pub(in crate::http) fn send_end(self: &Rc<Self>, id: StreamId, trailers: Option<&Headers>) {
        match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => {
                ready_output(h2);
                match trailers {
                    Some(trailers) => h2.send_trailers(id, trailers),
                    None => h2.send_data(id, &[], true),
                }
            }
            codec => {
                h1::encode_end(codec.h1_framing(), trailers, &mut h1_output(&self.out));
                codec.h1_ended();
            }
        }
        self.touch();
    }

    /// Breaks a stream off. An HTTP/1 connection goes with it.
    pub(in crate::http) fn reset(self: &Rc<Self>, id: StreamId, reason: Reason) {
        self.remove(id);
        match &mut *self.codec.borrow_mut() {
            Codec::H2(h2) => {
                ready_output(h2);
                h2.reset(id, reason);
            }
            _ => self.closing.set(Closing::Abort),
        }
        self.touch();
        self.wake();
    }

    /// Gives receive window back.
    pub(in crate::http) fn release(self: &Rc<Self>, id: StreamId, octets: u32) {
        if octets == 0 {
            return;
        }
        if let Codec::H2(h2) = &mut *self.codec.borrow_mut() {
            h2.release(id, octets);
            if h2.output().is_empty() {
                return;
            }
        }
        self.touch();
    }

    /// True when the source of that stream should stop. `exchange` is told to resume it.
    pub(in crate::http) fn is_full(&self, id: StreamId, exchange: &Rc<Exchange>) -> bool {
        if let Codec::H2(h2) = &*self.codec.borrow() {
            return h2.is_full(id);
        }
        let full = self.h1_backlog() > HIGH;
        if full {
            *self.blocked.borrow_mut() = Some(exchange.clone());
        }
        full
    }

    /// Octets of that stream which have not reached the connection's output.
    pub(in crate::http) fn queued(&self, id: StreamId) -> usize {
        match &*self.codec.borrow() {
            Codec::H2(h2) => h2.queued(id),
            _ => 0,
        }
    }
}

impl Codec {
    fn h1_framing(&self) -> Framing {
        match self {
            Self::Server1(s) => s.framing,
            Self::Client1(c) => c.framing,
            Self::H2(_) => Framing::None,
        }
    }

    fn h1_ended(&mut self) {
        match self {
            Self::Client1(c) => c.sending = false,
            Self::Server1(_) | Self::H2(_) => {}
        }
    }
}

fn h1_output(out: &RefCell<Vec<u8>>) -> std::cell::RefMut<'_, Vec<u8>> {
    let mut out = out.borrow_mut();
    if out.capacity() == 0 {
        *out = take_buffer();
    }
    out
}
