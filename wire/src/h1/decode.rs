//! The two decoders.

use super::body::{Body, Bounds};
use super::head::{self, Answered, Meta, Scan};
use super::{Error, ErrorKind, Event, Framing};
use crate::head::{Request, Response};
use crate::limits::Limits;

/// Empty lines that are overlooked before a request: old clients send one after a body (RFC 9112 §2.2).
const EMPTY_LINES: u8 = 4;

#[derive(Debug)]
enum State {
    /// Before or within a head.
    Head(Scan),
    Body(Body),
    /// The connection has become a tunnel.
    Tunnel,
    /// Refused, or closed by the peer.
    Failed(ErrorKind),
}

/// Decodes what a client sends.
#[derive(Debug)]
pub struct RequestDecoder {
    bounds: Bounds,
    state: State,
    meta: Meta,
    empty_lines: u8,
}

impl RequestDecoder {
    /// A decoder at the beginning of a connection.
    pub fn new(limits: &Limits) -> Self {
        Self { bounds: Bounds::new(limits), state: State::Head(Scan::default()), meta: Meta::default(), empty_lines: 0 }
    }

    /// Takes the front of `input`: (octets consumed, event). Without an event more input is needed, and octets may have
    /// been consumed all the same. Call until there is no event: [`Event::End`] may come without any further octet. What
    /// was not consumed is to be presented again, with more appended.
    ///
    /// After an error every call gives it again.
    pub fn decode<'i>(&mut self, input: &'i [u8]) -> Result<(usize, Option<Event<'i, Request>>), Error> {
        let result = self.step(input);
        if let Err(kind) = result {
            self.state = State::Failed(kind);
        }
        Ok(result?)
    }

    fn step<'i>(&mut self, input: &'i [u8]) -> Result<(usize, Option<Event<'i, Request>>), ErrorKind> {
        match &mut self.state {
            State::Head(scan) => {
                let mut used = 0;
                let mut rest = input;
                while scan.is_fresh() && rest.starts_with(b"\r\n") {
                    self.empty_lines += 1;
                    if self.empty_lines > EMPTY_LINES {
                        return Err(ErrorKind::EmptyLines);
                    }
                    used += 2;
                    rest = rest.get(2..).unwrap_or_default();
                }
                // The other half of an empty line may follow.
                if scan.is_fresh() && (rest.is_empty() || rest == b"\r") {
                    return Ok((used, None));
                }
                let too_large = |first| if first { ErrorKind::TargetTooLong } else { ErrorKind::HeadTooLarge };
                let Some(end) = scan.end(rest, self.bounds.head, too_large)? else { return Ok((used, None)) };
                let (request, meta) = head::request(rest.get(..end).unwrap_or_default(), self.bounds.fields)?;
                self.meta = meta;
                self.empty_lines = 0;
                self.state = State::Body(Body::new(meta.framing));
                Ok((used + end, Some(Event::Head(request))))
            }
            State::Body(body) => {
                let step = body.decode(input, &self.bounds)?;
                if matches!(step.1, Some(Event::End)) {
                    self.state = State::Head(Scan::default());
                }
                Ok(step)
            }
            State::Tunnel => Ok((0, None)),
            State::Failed(kind) => Err(*kind),
        }
    }

    /// The client closed its side. `Ok` only between messages.
    pub fn eof(&mut self) -> Result<(), Error> {
        match &self.state {
            State::Head(scan) if scan.is_fresh() => Ok(()),
            State::Tunnel => Ok(()),
            State::Failed(kind) => Err((*kind).into()),
            State::Head(_) | State::Body(_) => {
                self.state = State::Failed(ErrorKind::Truncated);
                Err(ErrorKind::Truncated.into())
            }
        }
    }

    /// Framing of the message whose head came last.
    pub fn framing(&self) -> Framing {
        self.meta.framing
    }

    /// The connection may be kept after the message whose head came last.
    pub fn keep_alive(&self) -> bool {
        self.meta.keep_alive
    }

    /// The client waits for 100 (Continue) before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.meta.expects_continue
    }

    /// The request asks for an upgrade (not to HTTP/2, which is not offered on).
    ///
    /// What follows such a request, or a CONNECT, must not be decoded before its response is known: after 101, or 2xx to
    /// CONNECT, it is the tunnel's. Decoding it as a request is how requests are smuggled past a proxy.
    pub fn upgrade(&self) -> bool {
        self.meta.upgrade
    }

    /// Between messages, and nothing of the next one was seen.
    pub fn is_idle(&self) -> bool {
        matches!(&self.state, State::Head(scan) if scan.is_fresh())
    }

    /// Call when the response was 101, or 2xx to CONNECT: nothing is decoded any more, all further octets are the caller's.
    pub fn set_tunnel(&mut self) {
        self.state = State::Tunnel;
    }

    /// After [`RequestDecoder::set_tunnel`].
    pub fn is_tunnel(&self) -> bool {
        matches!(self.state, State::Tunnel)
    }
}

/// Decodes what a server sends.
#[derive(Debug)]
pub struct ResponseDecoder {
    bounds: Bounds,
    state: State,
    meta: Meta,
    awaited: Option<Answered>,
}

impl ResponseDecoder {
    /// A decoder at the beginning of a connection.
    pub fn new(limits: &Limits) -> Self {
        Self { bounds: Bounds::new(limits), state: State::Head(Scan::default()), meta: Meta::default(), awaited: None }
    }

    /// Call before each response, when its request is sent: HEAD and CONNECT change framing, and what arrives when nothing
    /// is awaited is refused as unsolicited. One response is awaited at a time.
    pub fn expect(&mut self, method: &[u8]) {
        self.awaited = Some(match method {
            b"HEAD" => Answered::Head,
            b"CONNECT" => Answered::Connect,
            _ => Answered::Other,
        });
    }

    /// As [`RequestDecoder::decode`].
    pub fn decode<'i>(&mut self, input: &'i [u8]) -> Result<(usize, Option<Event<'i, Response>>), Error> {
        let result = self.step(input);
        if let Err(kind) = result {
            self.state = State::Failed(kind);
        }
        Ok(result?)
    }

    fn step<'i>(&mut self, input: &'i [u8]) -> Result<(usize, Option<Event<'i, Response>>), ErrorKind> {
        match &mut self.state {
            State::Head(scan) => {
                if input.is_empty() {
                    return Ok((0, None));
                }
                let Some(awaited) = self.awaited else { return Err(ErrorKind::Unsolicited) };
                let Some(end) = scan.end(input, self.bounds.head, |_| ErrorKind::HeadTooLarge)? else {
                    return Ok((0, None));
                };
                let (response, meta) =
                    head::response(input.get(..end).unwrap_or_default(), self.bounds.fields, awaited)?;
                self.meta = meta;
                if response.is_informational() {
                    return Ok((end, Some(Event::Informational(response))));
                }
                self.awaited = None;
                self.state = if meta.tunnel { State::Tunnel } else { State::Body(Body::new(meta.framing)) };
                Ok((end, Some(Event::Head(response))))
            }
            State::Body(body) => {
                let step = body.decode(input, &self.bounds)?;
                if matches!(step.1, Some(Event::End)) {
                    self.state = State::Head(Scan::default());
                }
                Ok(step)
            }
            State::Tunnel => Ok((0, None)),
            State::Failed(kind) => Err(*kind),
        }
    }

    /// The server closed its side: `End` when that ends a body, nothing between messages and in a tunnel, an error in the
    /// middle of a message or while one is awaited. Give it only after all input was decoded.
    pub fn eof(&mut self) -> Result<Option<Event<'static, Response>>, Error> {
        match &self.state {
            State::Head(scan) if scan.is_fresh() && self.awaited.is_none() => Ok(None),
            State::Tunnel => Ok(None),
            State::Body(body) if body.is_until_close() => {
                self.state = State::Failed(ErrorKind::Unsolicited);
                Ok(Some(Event::End))
            }
            State::Failed(kind) => Err((*kind).into()),
            State::Head(_) | State::Body(_) => {
                self.state = State::Failed(ErrorKind::Truncated);
                Err(ErrorKind::Truncated.into())
            }
        }
    }

    /// Framing of the message whose head came last.
    pub fn framing(&self) -> Framing {
        self.meta.framing
    }

    /// The connection may be kept after the message whose head came last.
    pub fn keep_alive(&self) -> bool {
        self.meta.keep_alive
    }

    /// No response is awaited and none is under way.
    pub fn is_idle(&self) -> bool {
        self.awaited.is_none() && matches!(&self.state, State::Head(scan) if scan.is_fresh())
    }

    /// After 101, or 2xx to CONNECT: no `End` is given, and all further octets are the caller's.
    pub fn is_tunnel(&self) -> bool {
        matches!(self.state, State::Tunnel)
    }
}
