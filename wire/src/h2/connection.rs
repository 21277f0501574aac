//! Skeleton: signatures only, being filled in.
use super::{Error, Event, Reason, SendError, StreamId};
use crate::{Headers, Limits, Request, Response};

/// One end of an HTTP/2 connection.
pub struct Connection {
    output: Vec<u8>,
}

#[allow(unused_variables)]
impl Connection {
    /// The client's end; preface and SETTINGS are put into the output at once.
    pub fn client(limits: &Limits) -> Self {
        Self { output: Vec::new() }
    }
    /// The server's end; SETTINGS are put into the output at once.
    pub fn server(limits: &Limits) -> Self {
        Self { output: Vec::new() }
    }
    /// The next event; advances `input` past what was consumed. None: input is used up.
    pub fn next<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Event<'i>>, Error> {
        Ok(None)
    }
    /// Opens a stream.
    pub fn send_request(&mut self, head: &Request, end: bool) -> Result<StreamId, SendError> {
        Err(SendError::GoingAway)
    }
    /// Sends a 1xx head.
    pub fn send_informational(&mut self, id: StreamId, head: &Response) {}
    /// Sends the final head.
    pub fn send_response(&mut self, id: StreamId, head: &Response, end: bool) {}
    /// Sends or queues a piece of the body.
    pub fn send_data(&mut self, id: StreamId, data: &[u8], end: bool) {}
    /// Ends the message with trailers, after queued data.
    pub fn send_trailers(&mut self, id: StreamId, trailers: &Headers) {}
    /// Ends the stream at once.
    pub fn reset(&mut self, id: StreamId, reason: Reason) {}
    /// Gives receive window back.
    pub fn release(&mut self, id: StreamId, octets: u32) {}
    /// Octets waiting in the stream's queue.
    pub fn queued(&self, id: StreamId) -> usize {
        0
    }
    /// True when the stream's queue has reached [`super::HIGH_MARK`]; [`Event::Writable`] will follow.
    pub fn is_full(&self, id: StreamId) -> bool {
        false
    }
    /// True when [`Self::send_request`] would be accepted.
    pub fn can_open(&self) -> bool {
        false
    }
    /// Streams in flight.
    pub fn streams(&self) -> usize {
        0
    }
    /// True when nothing more will happen: after an error, or drained.
    pub fn is_closed(&self) -> bool {
        false
    }
    /// True when the peer or this end has announced the end: no new streams.
    pub fn is_going_away(&self) -> bool {
        false
    }
    /// Announces the end: new streams are refused, old ones finish.
    pub fn go_away(&mut self, reason: Reason) {}
    /// Sends PING; [`Event::Pong`] answers it.
    pub fn ping(&mut self, payload: [u8; 8]) {}
    /// Octets to write; the driver drains it, then calls [`Self::pump`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }
    /// Continues with queued bodies after the output was drained. May leave events for [`Self::next`] with empty input.
    pub fn pump(&mut self) {}
}
