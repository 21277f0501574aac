//! Sending: heads, bodies and trailers, as far as the windows allow.

use super::{
    Connection, Event, HIGH_MARK, LOW_MARK, OUTPUT_MARK, SendError, StreamId,
    connection::Role,
    frame::{self, MIN_FRAME_SIZE, flag, kind},
    hpack::Encoder,
    message::is_connection_specific,
    stream::Stream,
};
use crate::{Headers, Request, Response};

/// Encodes the fields that exist in HTTP/2.
fn put_fields(encoder: &mut Encoder, headers: &Headers, out: &mut Vec<u8>) {
    for (name, value) in headers.iter() {
        let foreign = is_connection_specific(name)
            || name.first() == Some(&b':')
            || name == b"te" && !value.eq_ignore_ascii_case(b"trailers");
        if !foreign {
            encoder.field(name, value, out);
        }
    }
}

/// A status as its three digits.
fn digits(status: u16) -> [u8; 3] {
    [status / 100 % 10, status / 10 % 10, status % 10].map(|d| b'0' + d as u8)
}

impl Connection {
    /// Opens a stream and sends the request's head; with `end` there is no body. An empty scheme becomes `http`, an empty
    /// path `/`. Fields that do not exist in HTTP/2 are left out.
    pub fn send_request(&mut self, head: &Request, end: bool) -> Result<StreamId, SendError> {
        self.openable()?;
        let id = self.next_id;
        self.next_id += 2;
        let mut stream = Stream::new(id, self.peer_window, self.initial_recv_window());
        stream.bodiless = head.method == b"HEAD";
        let key = self.streams.insert(stream);
        self.put_head(id, end, |encoder, out| {
            encoder.field(b":method", &head.method, out);
            if head.method != b"CONNECT" {
                encoder.field(b":scheme", if head.scheme.is_empty() { b"http" } else { &head.scheme }, out);
            }
            if !head.authority.is_empty() {
                encoder.field(b":authority", &head.authority, out);
            }
            if head.method != b"CONNECT" {
                encoder.field(b":path", if head.path.is_empty() { b"/" } else { &head.path }, out);
            }
            put_fields(encoder, &head.headers, out);
        });
        if end {
            self.close_local(key);
        }
        Ok(id)
    }

    /// Sends a 1xx response's head (server), before the final one.
    pub fn send_informational(&mut self, id: StreamId, head: &Response) {
        if self.can_answer(id) {
            self.put_response(id, head, false);
        }
    }

    /// Sends the final response's head (server); with `end` there is no body.
    pub fn send_response(&mut self, id: StreamId, head: &Response, end: bool) {
        if !self.can_answer(id) {
            return;
        }
        self.put_response(id, head, end);
        let Some(key) = self.streams.key(id) else { return };
        if let Some(stream) = self.streams.get_mut(key) {
            stream.answered = true;
        }
        self.guard.answered();
        if end {
            self.close_local(key);
        }
    }

    fn can_answer(&self, id: StreamId) -> bool {
        self.fatal.is_none()
            && self.role == Role::Server
            && self.streams.find(id).is_some_and(|s| !s.answered && !s.local_closed)
    }

    pub(super) fn put_response(&mut self, id: StreamId, head: &Response, end: bool) {
        self.put_head(id, end, |encoder, out| {
            encoder.field(b":status", &digits(head.status), out);
            put_fields(encoder, &head.headers, out);
        });
    }

    /// Sends a piece of the body as far as the windows and the output's size allow; the rest is copied to the stream's
    /// queue. With `end` the message ends behind it.
    pub fn send_data(&mut self, id: StreamId, mut data: &[u8], end: bool) {
        let Some(key) = self.open_for_body(id) else { return };
        let (mut window, empty) = match self.streams.get(key) {
            Some(s) => (s.send_window, s.queue.is_empty()),
            None => return,
        };
        if empty {
            if data.is_empty() {
                if end {
                    self.put_end(key, id);
                }
                return;
            }
            // Others that wait have their turn first.
            while self.ready.is_empty() && !data.is_empty() {
                let n = self.frame_room(window).min(data.len());
                if n == 0 {
                    break;
                }
                let (now, rest) = data.split_at(n);
                let last = end && rest.is_empty();
                self.output.extend_from_slice(&frame::header(n, kind::DATA, u8::from(last) * flag::END_STREAM, id));
                self.output.extend_from_slice(now);
                self.guard.sent();
                self.send_window -= n as i64;
                window -= n as i64;
                data = rest;
            }
            if let Some(stream) = self.streams.get_mut(key) {
                stream.send_window = window;
            }
            if data.is_empty() {
                if end {
                    self.close_local(key);
                }
                return;
            }
        }
        if let Some(stream) = self.streams.get_mut(key) {
            stream.queue.extend(data);
            stream.ending = end;
            stream.full |= stream.queue.len() >= HIGH_MARK;
        }
        self.make_ready(key);
    }

    /// Ends the message with trailers, behind what is queued.
    pub fn send_trailers(&mut self, id: StreamId, trailers: &Headers) {
        let Some(key) = self.open_for_body(id) else { return };
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.queue.is_empty() {
            self.put_trailers(key, id, trailers);
        } else {
            stream.ending = true;
            stream.trailers = Some(Box::new(trailers.clone()));
        }
    }

    /// The stream's key, when body or trailers can be sent on it.
    fn open_for_body(&self, id: StreamId) -> Option<usize> {
        let key = self.streams.key(id)?;
        let stream = self.streams.get(key)?;
        let headed = self.role == Role::Client || stream.answered;
        (self.fatal.is_none() && headed && !stream.local_closed && !stream.ending).then_some(key)
    }

    /// Continues with queued bodies, a frame of each stream in turn. The driver calls this after it has taken octets off
    /// the output; streams that became writable are told by [`Self::next`], which can be called with empty input.
    pub fn pump(&mut self) {
        self.settle();
        self.drain_ready();
    }

    pub(super) fn drain_ready(&mut self) {
        while self.can_drain() {
            let Some((key, id)) = self.ready.pop_front() else { break };
            let room = match self.streams.get_mut(key) {
                Some(stream) if stream.id == id => {
                    stream.ready = false;
                    stream.send_window
                }
                _ => continue,
            };
            let room = self.frame_room(room);
            let Some(stream) = self.streams.get_mut(key) else { continue };
            let n = room.min(stream.queue.len());
            if n == 0 {
                continue;
            }
            let last = stream.ending && n == stream.queue.len();
            let end_here = last && stream.trailers.is_none();
            self.output.extend_from_slice(&frame::header(n, kind::DATA, u8::from(end_here) * flag::END_STREAM, id));
            let (front, back) = stream.queue.as_slices();
            let in_front = n.min(front.len());
            self.output.extend_from_slice(&front[..in_front]);
            self.output.extend_from_slice(&back[..n - in_front]);
            stream.queue.drain(..n);
            if stream.queue.is_empty() && stream.queue.capacity() > LOW_MARK {
                stream.queue = Default::default();
            }
            stream.send_window -= n as i64;
            self.send_window -= n as i64;
            self.guard.sent();
            if stream.full && stream.queue.len() <= LOW_MARK {
                stream.full = false;
                // Also behind the message's end: its source may hold windows or buffers until it is told.
                self.events.push_back(Event::Writable { id });
            }
            let trailers = if last { stream.trailers.take() } else { None };
            if end_here {
                self.close_local(key);
            } else if let Some(trailers) = trailers {
                self.put_trailers(key, id, &trailers);
            } else {
                self.make_ready(key);
            }
        }
    }

    /// True when a queued body could go into the output.
    pub(super) fn can_drain(&self) -> bool {
        !self.ready.is_empty() && self.fatal.is_none() && self.frame_room(i64::MAX) > 0
    }

    /// Puts a stream at the end of the list of those that can send, if it can and is not in it.
    pub(super) fn make_ready(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.ready
            && !stream.queue.is_empty()
            && stream.send_window > 0
        {
            stream.ready = true;
            self.ready.push_back((key, stream.id));
        }
    }

    /// Octets of DATA that can go into a frame now, on a stream with that window.
    fn frame_room(&self, window: i64) -> usize {
        if self.output.len() >= OUTPUT_MARK {
            return 0;
        }
        // Larger frames than the default make other streams wait and save nothing.
        let frame = self.peer_frame.min(MIN_FRAME_SIZE as usize);
        window.min(self.send_window).clamp(0, frame as i64) as usize
    }

    fn put_end(&mut self, key: usize, id: StreamId) {
        frame::put(&mut self.output, kind::DATA, flag::END_STREAM, id, &[]);
        self.close_local(key);
    }

    fn put_trailers(&mut self, key: usize, id: StreamId, trailers: &Headers) {
        self.put_head(id, true, |encoder, out| put_fields(encoder, trailers, out));
        self.close_local(key);
    }

    fn close_local(&mut self, key: usize) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.local_closed = true;
        }
        self.half_closed(key);
    }

    /// Puts a header block into the output, in as many frames as the peer's frame size makes necessary.
    fn put_head(&mut self, id: StreamId, end: bool, fill: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let start = self.output.len();
        self.output.extend_from_slice(&[0; frame::HEADER]);
        self.encoder.begin(&mut self.output);
        fill(&mut self.encoder, &mut self.output);
        self.guard.sent();
        let body = start + frame::HEADER;
        let end_flag = u8::from(end) * flag::END_STREAM;
        let size = self.output.len() - body;
        if size <= self.peer_frame {
            let header = frame::header(size, kind::HEADERS, end_flag | flag::END_HEADERS, id);
            self.output[start..body].copy_from_slice(&header);
            return;
        }
        let block = self.output.split_off(body);
        self.output.truncate(start);
        let pieces = block.chunks(self.peer_frame);
        let last = pieces.len() - 1;
        for (i, piece) in pieces.enumerate() {
            let (kind, flags) = if i == 0 { (kind::HEADERS, end_flag) } else { (kind::CONTINUATION, 0) };
            let flags = flags | (u8::from(i == last) * flag::END_HEADERS);
            frame::put(&mut self.output, kind, flags, id, piece);
        }
    }
}
