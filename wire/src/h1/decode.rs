//! The two decoders.

use super::{Error, Event, Framing};
use crate::head::{Request, Response};
use crate::limits::Limits;

/// Decodes what a client sends.
#[derive(Debug)]
pub struct RequestDecoder {}

impl RequestDecoder {
    /// A decoder at the beginning of a connection.
    pub fn new(_limits: &Limits) -> Self {
        unimplemented!()
    }

    /// Takes the front of `input`: (octets consumed, event). Without an event more input is needed; call until there is
    /// none, since `End` may come without any further octet.
    pub fn decode<'i>(&mut self, _input: &'i [u8]) -> Result<(usize, Option<Event<'i, Request>>), Error> {
        unimplemented!()
    }

    /// The client closed its side. `Ok` only between messages.
    pub fn eof(&mut self) -> Result<(), Error> {
        unimplemented!()
    }

    /// Framing of the message whose head came last.
    pub fn framing(&self) -> Framing {
        unimplemented!()
    }

    /// The connection may be kept after the message whose head came last.
    pub fn keep_alive(&self) -> bool {
        unimplemented!()
    }

    /// The client waits for 100 (Continue) before it sends the body.
    pub fn expects_continue(&self) -> bool {
        unimplemented!()
    }

    /// The request asks for an upgrade (not to HTTP/2). What follows it must not be decoded before the response is known:
    /// after 101 the octets are the tunnel's. The same goes for CONNECT.
    pub fn upgrade(&self) -> bool {
        unimplemented!()
    }

    /// Between messages.
    pub fn is_idle(&self) -> bool {
        unimplemented!()
    }

    /// Gives a used head back, so that the next one reuses its memory.
    pub fn recycle(&mut self, _head: Request) {}
}

/// Decodes what a server sends.
#[derive(Debug)]
pub struct ResponseDecoder {}

impl ResponseDecoder {
    /// A decoder at the beginning of a connection.
    pub fn new(_limits: &Limits) -> Self {
        unimplemented!()
    }

    /// Call once for every request sent: without it what arrives is refused as unsolicited; HEAD and CONNECT change framing.
    pub fn expect(&mut self, _method: &[u8]) {
        unimplemented!()
    }

    /// As [`RequestDecoder::decode`].
    pub fn decode<'i>(&mut self, _input: &'i [u8]) -> Result<(usize, Option<Event<'i, Response>>), Error> {
        unimplemented!()
    }

    /// The server closed its side: `End` when that ends the body, none between messages, an error in the middle of one.
    pub fn eof(&mut self) -> Result<Option<Event<'static, Response>>, Error> {
        unimplemented!()
    }

    /// Framing of the message whose head came last.
    pub fn framing(&self) -> Framing {
        unimplemented!()
    }

    /// The connection may be kept after the message whose head came last.
    pub fn keep_alive(&self) -> bool {
        unimplemented!()
    }

    /// No response is awaited.
    pub fn is_idle(&self) -> bool {
        unimplemented!()
    }

    /// After 101, or 2xx to CONNECT: no `End` is given and all further octets are the caller's.
    pub fn is_tunnel(&self) -> bool {
        unimplemented!()
    }

    /// Gives a used head back, so that the next one reuses its memory.
    pub fn recycle(&mut self, _head: Response) {}
}
