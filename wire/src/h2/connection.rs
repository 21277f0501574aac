//! A connection: its state, and what the driver asks of it. Receiving is in `receive`, sending in `send`.

use std::collections::VecDeque;

use super::{
    Error, Event, OUTPUT_MARK, Reason, SendError, StreamId,
    flow::give_back,
    frame::{self, DEFAULT_WINDOW, MAX_FRAME_SIZE, MAX_ID, MAX_WINDOW, MIN_FRAME_SIZE, PREFACE, flag, kind, setting},
    guard::Guard,
    hpack::{Decoder, Encoder},
    message::Builder,
    receive::{Block, Stage},
    stream::{Ended, Streams},
};
use crate::Limits;

/// Streams that a client opens before the server's SETTINGS say how many it may (RFC 9113 §6.5.2 recommends servers to
/// allow at least so many).
const ASSUMED_CONCURRENCY: u32 = 100;

/// The table size that both sides assume at first (RFC 9113 §6.5.2).
const DEFAULT_TABLE: usize = 4096;

/// Payload of the PING that tells when a peer has seen our first GOAWAY.
pub(super) const DRAIN_PING: [u8; 8] = *b"draining";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// How far this end is with going away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    No,
    /// The end is announced; requests that were on their way are still served.
    Announced,
    /// Streams above this one are refused.
    Final(StreamId),
}

/// One end of an HTTP/2 connection. See the [module](super) for how a driver uses it.
///
/// Sends and releases on a stream that is gone are ignored, so a driver need not know of a reset before it handles its
/// event. For the same reason a driver ignores events of streams that it has reset itself.
pub struct Connection {
    pub(super) role: Role,
    pub(super) limits: Limits,
    pub(super) output: Vec<u8>,
    /// Octets of the output when the driver last saw it.
    shown: usize,
    /// Octets of the output that answer the peer's control frames.
    pub(super) control: usize,
    pub(super) fatal: Option<Error>,

    pub(super) stage: Stage,
    pub(super) header: [u8; frame::HEADER],
    pub(super) header_len: usize,
    pub(super) partial: Vec<u8>,
    pub(super) block: Option<Block>,
    pub(super) events: VecDeque<Event<'static>>,
    pub(super) guard: Guard,

    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) builder: Builder,

    pub(super) streams: Streams,
    /// Streams with something in their queue and an open window, in the order of their turns.
    pub(super) ready: VecDeque<(usize, StreamId)>,
    /// The next stream that this client opens.
    pub(super) next_id: StreamId,
    /// The highest stream that the peer opened.
    pub(super) last_peer: StreamId,
    pub(super) drain: Drain,
    pub(super) peer_going: Option<StreamId>,
    pub(super) pings: u32,

    /// The peer's SETTINGS were received.
    pub(super) settled: bool,
    /// Our SETTINGS were acknowledged.
    pub(super) acknowledged: bool,
    pub(super) peer_streams: u32,
    pub(super) peer_frame: usize,
    pub(super) peer_window: i64,
    pub(super) send_window: i64,

    pub(super) recv_window: i64,
    pub(super) released: u32,
    /// Octets that streams hold, and that were given back to the connection's window all the same.
    lent: u32,
    /// Octets that streams hold, and that were not.
    unlent: u32,
    /// Windows that this end aims at, in octets.
    pub(super) window: u32,
    pub(super) stream_window: u32,
    pub(super) max_frame: u32,
}

impl Connection {
    /// The client's end; preface and SETTINGS are put into the output at once.
    pub fn client(limits: &Limits) -> Self {
        Self::new(Role::Client, limits)
    }

    /// The server's end; SETTINGS are put into the output at once.
    pub fn server(limits: &Limits) -> Self {
        Self::new(Role::Server, limits)
    }

    fn new(role: Role, limits: &Limits) -> Self {
        let stream_window = limits.stream_window.min(MAX_WINDOW);
        let window = limits.connection_window.clamp(DEFAULT_WINDOW, MAX_WINDOW);
        let max_frame = limits.frame_size.clamp(MIN_FRAME_SIZE, MAX_FRAME_SIZE);
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut output = Vec::with_capacity(128);
        let role_setting = match role {
            Role::Client => {
                output.extend_from_slice(PREFACE);
                (setting::ENABLE_PUSH, 0)
            }
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, limits.concurrent_streams),
        };
        frame::put_settings(
            &mut output,
            &[
                (setting::HEADER_TABLE_SIZE, size(limits.hpack_table)),
                role_setting,
                (setting::INITIAL_WINDOW_SIZE, stream_window),
                (setting::MAX_FRAME_SIZE, max_frame),
                (setting::MAX_HEADER_LIST_SIZE, size(limits.head_size)),
            ],
        );
        if window > DEFAULT_WINDOW {
            let increment = window - DEFAULT_WINDOW;
            frame::put(&mut output, kind::WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
        }
        Self {
            role,
            output,
            shown: 0,
            control: 0,
            fatal: None,
            stage: if role == Role::Server { Stage::Preface(0) } else { Stage::Header },
            header: [0; frame::HEADER],
            header_len: 0,
            partial: Vec::new(),
            block: None,
            events: VecDeque::new(),
            guard: Guard::new(limits),
            // Until our SETTINGS are acknowledged the peer may use the default.
            decoder: Decoder::new(limits.hpack_table.max(DEFAULT_TABLE)),
            encoder: Encoder::new(limits.hpack_table),
            builder: Builder::default(),
            streams: Streams::default(),
            ready: VecDeque::new(),
            next_id: 1,
            last_peer: 0,
            drain: Drain::No,
            peer_going: None,
            pings: 0,
            settled: false,
            acknowledged: false,
            peer_streams: ASSUMED_CONCURRENCY,
            peer_frame: MIN_FRAME_SIZE as usize,
            peer_window: i64::from(DEFAULT_WINDOW),
            send_window: i64::from(DEFAULT_WINDOW),
            recv_window: i64::from(window),
            released: 0,
            lent: 0,
            unlent: 0,
            window,
            stream_window,
            max_frame,
            limits: limits.clone(),
        }
    }

    /// What a new stream may send to us: before our SETTINGS are acknowledged, whichever of ours and the default is more.
    pub(super) fn initial_recv_window(&self) -> i64 {
        i64::from(if self.acknowledged { self.stream_window } else { self.stream_window.max(DEFAULT_WINDOW) })
    }

    /// Octets to write. The driver takes any number of them off the front, then calls [`Self::pump`]. If it did not, what
    /// there is room for is put in here now, so that no body is left waiting.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.pump();
        self.shown = self.output.len();
        &mut self.output
    }

    /// True when there is something to write.
    pub fn wants_write(&self) -> bool {
        !self.output.is_empty() || self.can_drain()
    }

    /// True when so much output waits that a server should not read further requests before the peer has read answers.
    /// (A client reads on: otherwise both ends could wait for each other.)
    pub fn is_backlogged(&self) -> bool {
        self.output.len() > 2 * OUTPUT_MARK
    }

    /// Notices what the driver took off the output.
    pub(super) fn settle(&mut self) {
        let taken = self.shown.saturating_sub(self.output.len());
        self.control = self.control.saturating_sub(taken).min(self.output.len());
        self.shown = 0;
    }

    /// Streams in flight: those of which at least one direction is open.
    pub fn streams(&self) -> usize {
        self.streams.active()
    }

    /// Octets waiting in the stream's queue; 0 when it is gone.
    pub fn queued(&self, id: StreamId) -> usize {
        self.streams.find(id).map_or(0, |s| s.queue.len())
    }

    /// True when the stream's queue reached [`HIGH_MARK`](super::HIGH_MARK): stop sending on it until
    /// [`Event::Writable`].
    pub fn is_full(&self, id: StreamId) -> bool {
        self.streams.find(id).is_some_and(|s| s.full)
    }

    /// True when [`Self::send_request`] would be accepted.
    pub fn can_open(&self) -> bool {
        self.openable().is_ok()
    }

    pub(super) fn openable(&self) -> Result<(), SendError> {
        if self.fatal.is_some() || self.is_going_away() || self.role == Role::Server {
            Err(SendError::GoingAway)
        } else if self.next_id > MAX_ID {
            Err(SendError::Exhausted)
        } else if self.streams.active() >= self.peer_streams as usize {
            Err(SendError::Busy)
        } else {
            Ok(())
        }
    }

    /// True when this end or the peer has announced the end of the connection.
    pub fn is_going_away(&self) -> bool {
        self.drain != Drain::No || self.peer_going.is_some()
    }

    /// True when nothing more will happen and the transport can be closed once the output is written: after an error, or
    /// after going away when all streams are finished.
    pub fn is_closed(&self) -> bool {
        let drained = match self.role {
            Role::Server => matches!(self.drain, Drain::Final(_)),
            Role::Client => self.is_going_away(),
        };
        self.fatal.is_some() || drained && self.streams.active() == 0
    }

    /// Announces the end of the connection. With [`Reason::NO_ERROR`] a server still serves the requests that were on
    /// their way (it waits for the answer to a PING, then names the last stream); later ones are refused, and streams in
    /// flight finish: [`Self::is_closed`] tells when. Any other reason is final at once.
    pub fn go_away(&mut self, reason: Reason) {
        if self.fatal.is_some() || matches!(self.drain, Drain::Final(_)) {
            return;
        }
        if reason == Reason::NO_ERROR && self.role == Role::Server {
            if self.drain == Drain::No {
                self.drain = Drain::Announced;
                self.put_go_away(MAX_ID, reason, "");
                frame::put(&mut self.output, kind::PING, 0, 0, &DRAIN_PING);
            }
            return;
        }
        self.drain = Drain::Final(self.last_peer);
        self.put_go_away(self.last_peer, reason, "");
    }

    /// The peer has seen the announcement: names the last stream.
    pub(super) fn finish_drain(&mut self) {
        self.drain = Drain::Final(self.last_peer);
        self.put_go_away(self.last_peer, Reason::NO_ERROR, "");
    }

    fn put_go_away(&mut self, last: StreamId, reason: Reason, detail: &str) {
        let mut payload = Vec::with_capacity(8 + detail.len());
        payload.extend_from_slice(&last.to_be_bytes());
        payload.extend_from_slice(&reason.0.to_be_bytes());
        payload.extend_from_slice(detail.as_bytes());
        frame::put(&mut self.output, kind::GOAWAY, 0, 0, &payload);
    }

    /// Ends the connection with an error.
    pub(super) fn fail(&mut self, error: Error) {
        if self.fatal.replace(error).is_none() {
            self.put_go_away(self.last_peer, error.reason, error.detail);
        }
    }

    /// Tells that about a second has passed: what was counted against the peer is halved. Without it only traffic makes
    /// the counters decay, so that a client which cancels a request every minute would be taken for an attacker one day.
    pub fn tick(&mut self) {
        self.guard.tick();
    }

    /// Sends PING; [`Event::Pong`] is the answer. The payload is not `draining`, which the connection uses itself.
    pub fn ping(&mut self, payload: [u8; 8]) {
        if self.fatal.is_none() {
            self.pings = self.pings.saturating_add(1);
            frame::put(&mut self.output, kind::PING, 0, 0, &payload);
        }
    }

    /// Ends a stream at once, in both directions. What it had queued is dropped, what it held is released.
    pub fn reset(&mut self, id: StreamId, reason: Reason) {
        if self.fatal.is_some() {
            return;
        }
        if let Some(stream) = self.streams.key(id).and_then(|key| self.drop_stream(key))
            && !stream.is_over()
        {
            self.streams.remember(id, Ended::ResetHere);
            frame::put(&mut self.output, kind::RST_STREAM, 0, id, &reason.0.to_be_bytes());
        }
    }

    /// Gives `octets` of receive window back, for data that was passed on: the `flow` of [`Event::Data`], all of it sooner
    /// or later, also after the message has ended. Updates go out when half of a window has come together.
    pub fn release(&mut self, id: StreamId, octets: u32) {
        if self.fatal.is_some() {
            return;
        }
        let (window, Some(key)) = (self.stream_window, self.streams.key(id)) else { return };
        let Some(stream) = self.streams.get_mut(key) else { return };
        let octets = octets.min(stream.held);
        stream.held -= octets;
        if stream.is_over() {
            if stream.held == 0 {
                self.streams.remove(key);
            }
        } else if !stream.remote_closed
            && let Some(increment) = give_back(&mut stream.released, octets, window)
        {
            stream.recv_window += i64::from(increment);
            self.put_window_update(id, increment);
        }
        self.let_go(octets);
    }

    /// A stream holds so many octets more. As long as that is not too much, connection window is given back for them all the
    /// same: each stream's own window stops its sender, and streams that nobody reads must not stop the others.
    pub(super) fn hold(&mut self, octets: u32) {
        let lent = octets.min(self.limits.held.saturating_sub(self.lent));
        self.lent += lent;
        self.unlent += octets - lent;
        self.give_back(lent);
    }

    /// Streams hold so many octets less.
    fn let_go(&mut self, octets: u32) {
        let unlent = octets.min(self.unlent);
        self.unlent -= unlent;
        self.lent = self.lent.saturating_sub(octets - unlent);
        self.give_back(unlent);
    }

    /// Gives connection window back.
    pub(super) fn give_back(&mut self, octets: u32) {
        if let Some(increment) = give_back(&mut self.released, octets, self.window) {
            self.recv_window += i64::from(increment);
            self.put_window_update(0, increment);
        }
    }

    fn put_window_update(&mut self, id: StreamId, increment: u32) {
        frame::put(&mut self.output, kind::WINDOW_UPDATE, 0, id, &increment.to_be_bytes());
        self.control += frame::HEADER + 4;
    }

    /// Takes a stream out and gives back what it held.
    pub(super) fn drop_stream(&mut self, key: usize) -> Option<super::stream::Stream> {
        let stream = self.streams.remove(key)?;
        self.let_go(stream.held);
        // Places in the list are left behind by dropped streams; clean up before they can pile up.
        if self.ready.len() > 2 * self.streams.active() + 64 {
            let streams = &self.streams;
            self.ready.retain(|&(key, id)| streams.get(key).is_some_and(|s| s.id == id));
        }
        Some(stream)
    }

    /// Called when one half of a stream was closed: ends it when the other one was closed, too.
    pub(super) fn half_closed(&mut self, key: usize) {
        if let Some(stream) = self.streams.get(key)
            && stream.is_over()
        {
            let (id, held) = (stream.id, stream.held);
            self.streams.over(id);
            if held == 0 {
                self.streams.remove(key);
            }
        }
    }

    /// Octets of memory in this connection's buffers: output, queues, partial frames and lists of streams.
    pub fn memory(&self) -> usize {
        let block = self.block.as_ref().map_or(0, |b| b.octets.capacity());
        let lists =
            self.ready.capacity() * size_of::<(usize, StreamId)>() + self.events.capacity() * size_of::<Event>();
        self.output.capacity() + self.partial.capacity() + block + lists + self.streams.memory()
    }

    /// Puts a frame into the output because the peer's frames call for it.
    pub(super) fn answer(&mut self, kind: u8, flags: u8, id: StreamId, payload: &[u8]) -> Result<(), Error> {
        frame::put(&mut self.output, kind, flags, id, payload);
        self.control += frame::HEADER + payload.len();
        if self.control > self.limits.control_backlog {
            self.settle();
            if self.control > self.limits.control_backlog {
                return Err(Error { reason: Reason::ENHANCE_YOUR_CALM, detail: "too many answers are not read" });
            }
        }
        Ok(())
    }

    /// Acknowledges a SETTINGS or PING frame.
    pub(super) fn acknowledge(&mut self, kind: u8, payload: &[u8]) -> Result<(), Error> {
        self.answer(kind, flag::ACK, 0, payload)
    }
}
