//! Receiving: from octets to frames to events.

use super::{
    Connection, Error, Event, Reason, StreamId,
    connection::{Drain, Role},
    frame::{self, Head, PREFACE, flag, kind},
    message::{Fault, Kind},
    stream::{Ended, Stream},
};
use crate::{Headers, Response, Version};

/// Where in the peer's octets we are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// So many octets of the client's preface have been seen.
    Preface(usize),
    /// In or before a frame's header.
    Header,
    /// Before the octet that tells the padding of a DATA frame.
    Pad(Head),
    /// In the payload of a frame that is handled as a whole.
    Payload(Head),
    /// In the data of a DATA frame.
    Data(Body),
    /// In octets that mean nothing: padding, data of a stream that is gone.
    Skip(u32),
}

/// What is left of a DATA frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    id: StreamId,
    left: u32,
    padding: u32,
    /// Octets of flow control that the padding cost, reported with the first piece.
    extra: u32,
    end: bool,
}

/// A header block of which more frames are to come.
#[derive(Debug)]
pub(super) struct Block {
    id: StreamId,
    end: bool,
    on_itself: bool,
    frames: u32,
    pub octets: Vec<u8>,
}

/// Capacity above which the buffer of a partial frame is given back.
const PARTIAL: usize = 4096;

pub(super) fn error<T>(reason: Reason, detail: &'static str) -> Result<T, Error> {
    Err(Error { reason, detail })
}

pub(super) fn protocol<T>(detail: &'static str) -> Result<T, Error> {
    error(Reason::PROTOCOL_ERROR, detail)
}

impl Connection {
    /// The next event; advances `input` past what was consumed. None means that the input is used up: a partial frame is
    /// kept inside, so the driver never presents octets twice. Events that sending caused come from here as well, with
    /// empty input if need be. After an error GOAWAY is in the output: flush it and close.
    pub fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        if let Some(fatal) = self.fatal {
            return Err(fatal);
        }
        self.settle();
        let result = self.step(input);
        match result {
            Ok(None) => self.guard.turn(),
            Err(error) => self.fail(error),
            _ => {}
        }
        result
    }

    fn step<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        loop {
            while let Some(event) = self.events.pop_front() {
                match event {
                    // It may have been reset or filled again since.
                    Event::Writable { id } if self.streams.find(id).is_none_or(|s| s.full) => {}
                    event => return Ok(Some(event)),
                }
            }
            let event = match self.stage {
                Stage::Header => {
                    let Some(head) = self.read_header(input) else { return Ok(None) };
                    self.check(&head)?;
                    match head.kind {
                        kind::DATA if head.has(flag::PADDED) => self.stage = Stage::Pad(head),
                        kind::DATA => {
                            if let Some(event) = self.begin_data(&head, None)? {
                                return Ok(Some(event));
                            }
                        }
                        _ => self.stage = Stage::Payload(head),
                    }
                    continue;
                }
                Stage::Payload(head) => {
                    let len = head.len as usize;
                    if self.partial.is_empty() && input.len() >= len {
                        let (payload, rest) = input.split_at(len);
                        *input = rest;
                        self.stage = Stage::Header;
                        self.frame(&head, payload)?
                    } else {
                        let missing = (len - self.partial.len()).min(input.len());
                        let (piece, rest) = input.split_at(missing);
                        *input = rest;
                        self.partial.extend_from_slice(piece);
                        if self.partial.len() < len {
                            return Ok(None);
                        }
                        self.stage = Stage::Header;
                        let mut payload = std::mem::take(&mut self.partial);
                        let event = self.frame(&head, &payload)?;
                        if payload.capacity() <= PARTIAL {
                            payload.clear();
                            self.partial = payload;
                        }
                        event
                    }
                }
                Stage::Data(body) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    self.data(body, input)
                }
                Stage::Pad(head) => {
                    let Some((&pad, rest)) = input.split_first() else { return Ok(None) };
                    *input = rest;
                    self.begin_data(&head, Some(pad))?
                }
                Stage::Skip(left) => {
                    let n = (left as usize).min(input.len());
                    *input = &input[n..];
                    let left = left - n as u32;
                    self.stage = if left > 0 { Stage::Skip(left) } else { Stage::Header };
                    if left > 0 {
                        return Ok(None);
                    }
                    None
                }
                Stage::Preface(seen) => {
                    let n = (PREFACE.len() - seen).min(input.len());
                    let (now, rest) = input.split_at(n);
                    if now != &PREFACE[seen..seen + n] {
                        return protocol("not an HTTP/2 client preface");
                    }
                    *input = rest;
                    self.stage = if seen + n < PREFACE.len() { Stage::Preface(seen + n) } else { Stage::Header };
                    if seen + n < PREFACE.len() {
                        return Ok(None);
                    }
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// A whole frame header, from the input or from what was kept of it.
    fn read_header(&mut self, input: &mut &[u8]) -> Option<Head> {
        if self.header_len == 0
            && let Some((octets, rest)) = input.split_first_chunk::<{ frame::HEADER }>()
        {
            *input = rest;
            return Some(Head::parse(octets));
        }
        let n = (frame::HEADER - self.header_len).min(input.len());
        let (now, rest) = input.split_at(n);
        self.header[self.header_len..self.header_len + n].copy_from_slice(now);
        *input = rest;
        self.header_len += n;
        if self.header_len < frame::HEADER {
            return None;
        }
        self.header_len = 0;
        Some(Head::parse(&self.header))
    }

    /// What a frame's header alone can be refused for.
    fn check(&mut self, head: &Head) -> Result<(), Error> {
        self.guard.frame();
        if !self.settled && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return protocol("the first frame is not SETTINGS");
        }
        if head.len > self.max_frame {
            return error(Reason::FRAME_SIZE_ERROR, "a frame is larger than SETTINGS_MAX_FRAME_SIZE");
        }
        match &self.block {
            Some(block) if head.kind != kind::CONTINUATION || head.id != block.id => {
                return protocol("a header block is interrupted by another frame");
            }
            None if head.kind == kind::CONTINUATION => return protocol("CONTINUATION without HEADERS"),
            _ => {}
        }
        let of_stream = match head.kind {
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::PUSH_PROMISE => Some(true),
            kind::SETTINGS | kind::PING | kind::GOAWAY => Some(false),
            _ => None,
        };
        if of_stream.is_some_and(|s| s != (head.id != 0)) {
            return protocol("a frame on a stream it does not belong to");
        }
        let size_ok = match head.kind {
            kind::RST_STREAM | kind::WINDOW_UPDATE => head.len == 4,
            kind::PING => head.len == 8,
            kind::GOAWAY => head.len >= 8,
            kind::SETTINGS if head.has(flag::ACK) => head.len == 0,
            kind::SETTINGS => head.len.is_multiple_of(6),
            kind::DATA if head.has(flag::PADDED) => head.len >= 1,
            _ => true,
        };
        match size_ok {
            true => Ok(()),
            false => error(Reason::FRAME_SIZE_ERROR, "a frame of a wrong size"),
        }
    }

    /// Handles a whole frame, other than DATA.
    fn frame(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        match head.kind {
            kind::HEADERS => return self.headers(head, payload),
            kind::CONTINUATION => return self.continuation(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload)?,
            kind::RST_STREAM => return self.rst_stream(head, payload),
            kind::SETTINGS => return self.settings(head, payload),
            kind::PING => return self.pinged(head, payload),
            kind::GOAWAY => return self.gone_away(payload),
            kind::PUSH_PROMISE => return protocol("PUSH_PROMISE although push is disabled"),
            kind::PRIORITY => {
                self.guard.idle()?;
                if payload.len() != 5 {
                    self.stream_error(head.id, Reason::FRAME_SIZE_ERROR)?;
                } else if depends_on(payload, head.id) {
                    if self.is_idle(head.id) {
                        return protocol("a stream depends on itself");
                    }
                    self.stream_error(head.id, Reason::PROTOCOL_ERROR)?;
                }
            }
            _ => self.guard.idle()?,
        }
        Ok(None)
    }

    /// True when no frame has ever opened the stream.
    pub(super) fn is_idle(&self, id: StreamId) -> bool {
        let odd = id % 2 == 1;
        match self.role {
            Role::Server => !odd || id > self.last_peer,
            Role::Client => !odd || id >= self.next_id,
        }
    }

    /// Resets a stream for the peer's fault. The driver is told if it knows the stream.
    pub(super) fn stream_error(&mut self, id: StreamId, reason: Reason) -> Result<(), Error> {
        self.answer(kind::RST_STREAM, 0, id, &reason.0.to_be_bytes())?;
        match self.streams.key(id).and_then(|key| self.drop_stream(key)) {
            Some(_) => {
                self.events.push_back(Event::Reset { id, reason });
                if self.role == Role::Server {
                    // A client that makes us reset its requests is no better than one that does it.
                    self.guard.reset()?;
                }
            }
            None => self.guard.idle()?,
        }
        if self.streams.how_ended(id) != Ended::ResetHere {
            self.streams.remember(id, Ended::ResetHere);
        }
        Ok(())
    }

    // DATA

    fn begin_data(&mut self, head: &Head, pad: Option<u8>) -> Result<Option<Event<'static>>, Error> {
        let padding = pad.map_or(0, u32::from);
        let extra = pad.map_or(0, |p| u32::from(p) + 1);
        let Some(left) = head.len.checked_sub(extra) else {
            return protocol("padding longer than its frame");
        };
        if i64::from(head.len) > self.recv_window {
            return error(Reason::FLOW_CONTROL_ERROR, "more data than the connection's window allows");
        }
        self.recv_window -= i64::from(head.len);
        let end = head.has(flag::END_STREAM);
        if !self.admit(head, left, end)? {
            self.give_back(head.len);
            self.stage = skip(left + padding);
            return Ok(None);
        }
        if left > 0 {
            self.stage = Stage::Data(Body { id: head.id, left, padding, extra, end });
            return Ok(None);
        }
        self.stage = skip(padding);
        if end {
            return Ok(Some(self.deliver(head.id, &[], extra, true)));
        }
        if let Some(stream) = self.streams.find_mut(head.id) {
            stream.held += extra;
            self.hold(extra);
        }
        self.release(head.id, extra);
        self.guard.idle()?;
        Ok(None)
    }

    /// True when the data is to be delivered; false when it is to be skipped.
    fn admit(&mut self, head: &Head, data: u32, end: bool) -> Result<bool, Error> {
        let id = head.id;
        if self.is_idle(id) {
            return protocol("DATA on an idle stream");
        }
        let client = self.role == Role::Client;
        let fault = match self.streams.find_mut(id) {
            Some(s) if s.is_over() => return error(Reason::STREAM_CLOSED, "DATA on a closed stream"),
            Some(s) if s.remote_closed => Reason::STREAM_CLOSED,
            Some(s) if client && !s.answered => Reason::PROTOCOL_ERROR,
            // An empty frame needs no window, not even one that is not negative.
            Some(s) if head.len > 0 && i64::from(head.len) > s.recv_window => Reason::FLOW_CONTROL_ERROR,
            Some(s) => match s.expected.map(|e| e.checked_sub(u64::from(data))) {
                Some(None) => Reason::PROTOCOL_ERROR,
                Some(Some(left)) if end && left > 0 => Reason::PROTOCOL_ERROR,
                left => {
                    s.expected = left.flatten();
                    s.recv_window -= i64::from(head.len);
                    return Ok(true);
                }
            },
            None => match self.streams.how_ended(id) {
                Ended::ResetHere => return Ok(false),
                Ended::ByPeer => return error(Reason::STREAM_CLOSED, "DATA on a closed stream"),
                Ended::Unknown => Reason::STREAM_CLOSED,
            },
        };
        self.stream_error(id, fault)?;
        Ok(false)
    }

    /// Delivers what there is of a DATA frame's data.
    fn data<'i>(&mut self, mut body: Body, input: &mut &'i [u8]) -> Option<Event<'i>> {
        let n = (body.left as usize).min(input.len());
        let (piece, rest) = input.split_at(n);
        *input = rest;
        body.left -= n as u32;
        let flow = n as u32 + body.extra;
        body.extra = 0;
        let end = body.end && body.left == 0;
        self.stage = if body.left > 0 { Stage::Data(body) } else { skip(body.padding) };
        // The driver may have reset the stream since the frame began.
        if self.streams.find(body.id).is_none() {
            self.give_back(flow);
            return None;
        }
        Some(self.deliver(body.id, piece, flow, end))
    }

    fn deliver<'i>(&mut self, id: StreamId, data: &'i [u8], flow: u32, end: bool) -> Event<'i> {
        if let Some(key) = self.streams.key(id)
            && let Some(stream) = self.streams.get_mut(key)
        {
            stream.held += flow;
            if end {
                stream.remote_closed = true;
                self.half_closed(key);
            }
            self.hold(flow);
        }
        Event::Data { id, data, flow, end }
    }

    // HEADERS

    fn headers(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        let Some(mut fragment) = frame::unpad(head, payload) else {
            return match payload.is_empty() {
                true => error(Reason::FRAME_SIZE_ERROR, "a frame of a wrong size"),
                false => protocol("padding longer than its frame"),
            };
        };
        let mut on_itself = false;
        if head.has(flag::PRIORITY) {
            let Some((priority, rest)) = fragment.split_at_checked(5) else {
                return error(Reason::FRAME_SIZE_ERROR, "a frame of a wrong size");
            };
            on_itself = depends_on(priority, head.id);
            fragment = rest;
        }
        if fragment.len() > self.limits.head_size {
            return error(Reason::ENHANCE_YOUR_CALM, "a header block is too large");
        }
        let end = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.complete(head.id, end, on_itself, fragment);
        }
        self.block = Some(Block { id: head.id, end, on_itself, frames: 0, octets: fragment.to_vec() });
        Ok(None)
    }

    fn continuation(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        let Some(mut block) = self.block.take() else { return protocol("CONTINUATION without HEADERS") };
        block.frames += 1;
        if block.frames > self.limits.continuations || block.octets.len() + payload.len() > self.limits.head_size {
            return error(Reason::ENHANCE_YOUR_CALM, "a header block is too large");
        }
        block.octets.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.complete(block.id, block.end, block.on_itself, &block.octets);
        }
        self.block = Some(block);
        Ok(None)
    }

    /// Decodes a header list. Always done, whatever becomes of the stream, or the compression state would be lost.
    fn decode(&mut self, kind: Kind, block: &[u8]) -> Result<(), Error> {
        let Self { builder, decoder, limits, .. } = self;
        builder.begin(kind, limits);
        decoder
            .decode(block, |field| builder.field(field))
            .map_err(|e| Error { reason: Reason::COMPRESSION_ERROR, detail: e.0 })
    }

    /// Handles a complete header block.
    fn complete(
        &mut self,
        id: StreamId,
        end: bool,
        on_itself: bool,
        block: &[u8],
    ) -> Result<Option<Event<'static>>, Error> {
        if self.role == Role::Server && id % 2 == 1 && id > self.last_peer {
            return self.request(id, end, on_itself, block);
        }
        if self.role == Role::Server && id.is_multiple_of(2) || self.role == Role::Client && self.is_idle(id) {
            return protocol("HEADERS on a stream that the peer cannot open");
        }
        let Some(key) = self.streams.key(id) else {
            self.decode(Kind::Ignored, block)?;
            return match self.streams.how_ended(id) {
                Ended::ResetHere => self.guard.idle().map(|()| None),
                Ended::ByPeer => error(Reason::STREAM_CLOSED, "HEADERS on a closed stream"),
                Ended::Unknown => protocol("HEADERS on a stream below the last one"),
            };
        };
        let (over, remote_closed, answered) = match self.streams.get(key) {
            Some(s) => (s.is_over(), s.remote_closed, s.answered),
            None => (true, true, true),
        };
        if over {
            return error(Reason::STREAM_CLOSED, "HEADERS on a closed stream");
        }
        let kind = match (remote_closed, self.role, answered) {
            (true, ..) => Kind::Ignored,
            (_, Role::Client, false) => Kind::Response,
            _ => Kind::Trailers,
        };
        self.decode(kind, block)?;
        let result = match kind {
            _ if on_itself => Err(Reason::PROTOCOL_ERROR),
            Kind::Response => self.response(key, end)?,
            Kind::Trailers => self.trailers(key, end),
            _ => Err(Reason::STREAM_CLOSED),
        };
        match result {
            Ok(event) => Ok(Some(event)),
            Err(reason) => self.stream_error(id, reason).map(|()| None),
        }
    }

    /// A header block that opens a stream.
    fn request(
        &mut self,
        id: StreamId,
        end: bool,
        on_itself: bool,
        block: &[u8],
    ) -> Result<Option<Event<'static>>, Error> {
        self.last_peer = id;
        let refused = matches!(self.drain, Drain::Final(last) if id > last)
            || self.streams.active() >= self.limits.concurrent_streams as usize;
        self.decode(if refused { Kind::Ignored } else { Kind::Request }, block)?;
        if refused {
            return self.stream_error(id, Reason::REFUSED_STREAM).map(|()| None);
        }
        let result = match on_itself {
            true => Err(Fault::Malformed),
            false => self.builder.request(),
        };
        match result {
            Ok((_, Some(1..))) if end => self.stream_error(id, Reason::PROTOCOL_ERROR)?,
            Ok((head, length)) => {
                let mut stream = Stream::new(id, self.peer_window, self.initial_recv_window());
                stream.remote_closed = end;
                // What follows CONNECT is a tunnel, not a body.
                stream.expected = if head.method == b"CONNECT" { None } else { length };
                self.streams.insert(stream);
                self.guard.opened();
                return Ok(Some(Event::Request { id, head, end }));
            }
            Err(Fault::Malformed) => self.stream_error(id, Reason::PROTOCOL_ERROR)?,
            Err(Fault::TooLarge) => {
                let head = Response { version: Version::H2, status: 431, headers: Headers::new() };
                self.put_response(id, &head, true);
                if end {
                    self.streams.remember(id, Ended::ByPeer);
                    self.guard.idle()?;
                } else {
                    // The answer is complete, the rest of the request is not needed (RFC 9113 §8.1).
                    self.stream_error(id, Reason::NO_ERROR)?;
                }
            }
        }
        Ok(None)
    }

    fn response(&mut self, key: usize, end: bool) -> Result<Result<Event<'static>, Reason>, Error> {
        let (head, length) = match self.builder.response() {
            Ok(parsed) => parsed,
            Err(fault) => return Ok(Err(reason_of(fault))),
        };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(Err(Reason::INTERNAL_ERROR)) };
        let id = stream.id;
        if head.is_informational() {
            self.guard.idle()?;
            return Ok(if end { Err(Reason::PROTOCOL_ERROR) } else { Ok(Event::Informational { id, head }) });
        }
        let bodiless = stream.bodiless || matches!(head.status, 204 | 304);
        stream.expected = if bodiless { Some(0) } else { length };
        if end && stream.expected.is_some_and(|e| e > 0) {
            return Ok(Err(Reason::PROTOCOL_ERROR));
        }
        stream.answered = true;
        stream.remote_closed = end;
        if end {
            self.half_closed(key);
        }
        Ok(Ok(Event::Response { id, head, end }))
    }

    fn trailers(&mut self, key: usize, end: bool) -> Result<Event<'static>, Reason> {
        let headers = self.builder.trailers().map_err(reason_of)?;
        let stream = self.streams.get_mut(key).ok_or(Reason::INTERNAL_ERROR)?;
        if !end || stream.expected.is_some_and(|e| e > 0) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let id = stream.id;
        stream.remote_closed = true;
        self.half_closed(key);
        Ok(Event::Trailers { id, headers })
    }
}

/// The stage in which so many octets are skipped.
fn skip(octets: u32) -> Stage {
    if octets > 0 { Stage::Skip(octets) } else { Stage::Header }
}

/// True when the priority fields at the start of `payload` name that stream.
fn depends_on(payload: &[u8], id: StreamId) -> bool {
    frame::number(payload).is_some_and(|(n, _)| n & frame::MAX_ID == id)
}

fn reason_of(fault: Fault) -> Reason {
    match fault {
        Fault::Malformed => Reason::PROTOCOL_ERROR,
        Fault::TooLarge => Reason::ENHANCE_YOUR_CALM,
    }
}
