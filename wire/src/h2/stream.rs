//! Streams: their states and queues, and how they are found.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use super::StreamId;
use crate::Headers;

/// One stream. Halves are closed one by one; a stream with both closed stays until the driver has released what it holds.
#[derive(Debug)]
pub(super) struct Stream {
    pub id: StreamId,
    /// END_STREAM was received.
    pub remote_closed: bool,
    /// END_STREAM was sent.
    pub local_closed: bool,
    /// The final response's head was sent (server) or received (client).
    pub answered: bool,
    /// The message's end follows the queue.
    pub ending: bool,
    /// The queue reached the high mark and has not fallen to the low one.
    pub full: bool,
    /// The stream is in the list of those that can send.
    pub ready: bool,
    /// A response to it has no body whatever its content-length says: HEAD.
    pub bodiless: bool,
    /// Octets that the peer lets us send; negative after it shrank the initial window.
    pub send_window: i64,
    /// Octets that the peer may still send.
    pub recv_window: i64,
    /// Octets delivered and not released.
    pub held: u32,
    /// Octets released and not given back yet.
    pub released: u32,
    /// Octets of body that must still come, when content-length said.
    pub expected: Option<u64>,
    /// Body that waits for windows.
    pub queue: VecDeque<u8>,
    /// Trailers that end the message, instead of END_STREAM on its last DATA.
    pub trailers: Option<Box<Headers>>,
}

impl Stream {
    pub(super) fn new(id: StreamId, send_window: i64, recv_window: i64) -> Self {
        Self {
            id,
            remote_closed: false,
            local_closed: false,
            answered: false,
            ending: false,
            full: false,
            ready: false,
            bodiless: false,
            send_window,
            recv_window,
            held: 0,
            released: 0,
            expected: None,
            queue: VecDeque::new(),
            trailers: None,
        }
    }

    /// True when both halves are closed: only the driver's release is awaited.
    pub(super) fn is_over(&self) -> bool {
        self.remote_closed && self.local_closed
    }
}

/// Stream identifiers are chosen by the peer, but in rising order and at most so many at once, so one multiplication is
/// enough.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u32(u32::from(b));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// How a stream that is gone ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// This end reset it, so the peer's frames for it may still be on their way.
    ResetHere,
    /// The peer ended it: by RST_STREAM, or by END_STREAM after ours.
    ByPeer,
    /// So long ago that nobody knows.
    Unknown,
}

/// The last identifiers that were put in.
#[derive(Debug, Default)]
struct Recent {
    ids: Vec<StreamId>,
    at: usize,
}

impl Recent {
    fn put(&mut self, id: StreamId, capacity: usize) {
        if self.ids.len() < capacity {
            self.ids.push(id);
        } else {
            self.ids[self.at] = id;
            self.at = (self.at + 1) % capacity;
        }
    }
}

/// Streams that this end reset and whose late frames are let pass.
const REMEMBER_RESET: usize = 256;

/// Streams that the peer ended and whose late frames are told from frames of streams that never were.
const REMEMBER_ENDED: usize = 32;

/// All streams that are not gone, by key (a place in a slab) and by identifier.
#[derive(Default)]
pub(super) struct Streams {
    slab: Vec<Option<Stream>>,
    free: Vec<usize>,
    keys: HashMap<StreamId, usize, BuildHasherDefault<IdHasher>>,
    /// Streams of which at least one half is open.
    active: usize,
    reset_here: Recent,
    ended: Recent,
}

impl Streams {
    pub(super) fn active(&self) -> usize {
        self.active
    }

    pub(super) fn key(&self, id: StreamId) -> Option<usize> {
        self.keys.get(&id).copied()
    }

    pub(super) fn get(&self, key: usize) -> Option<&Stream> {
        self.slab.get(key)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Stream> {
        self.slab.get_mut(key)?.as_mut()
    }

    pub(super) fn find(&self, id: StreamId) -> Option<&Stream> {
        self.get(self.key(id)?)
    }

    pub(super) fn find_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.get_mut(self.key(id)?)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Stream)> {
        self.slab.iter_mut().enumerate().filter_map(|(k, s)| Some((k, s.as_mut()?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slab.iter().flatten()
    }

    pub(super) fn insert(&mut self, stream: Stream) -> usize {
        let id = stream.id;
        let key = match self.free.pop() {
            Some(key) => {
                self.slab[key] = Some(stream);
                key
            }
            None => {
                self.slab.push(Some(stream));
                self.slab.len() - 1
            }
        };
        self.keys.insert(id, key);
        self.active += 1;
        key
    }

    /// A stream's second half was closed; it no longer counts as active.
    pub(super) fn over(&mut self, id: StreamId) {
        self.active -= 1;
        self.ended.put(id, REMEMBER_ENDED);
    }

    /// Takes a stream out.
    pub(super) fn remove(&mut self, key: usize) -> Option<Stream> {
        let stream = self.slab.get_mut(key)?.take()?;
        self.keys.remove(&stream.id);
        self.free.push(key);
        if !stream.is_over() {
            self.active -= 1;
        }
        if self.keys.is_empty() {
            // A burst's memory is not kept by an idle connection.
            if self.slab.capacity() > 32 {
                self.slab = Vec::new();
                self.keys = HashMap::default();
                self.free = Vec::new();
            } else {
                self.slab.clear();
                self.free.clear();
            }
        }
        Some(stream)
    }

    /// Remembers how a stream ended that was taken out before it was over, or never put in.
    pub(super) fn remember(&mut self, id: StreamId, how: Ended) {
        match how {
            Ended::ResetHere => self.reset_here.put(id, REMEMBER_RESET),
            Ended::ByPeer => self.ended.put(id, REMEMBER_ENDED),
            Ended::Unknown => {}
        }
    }

    /// Octets of the streams and their queues.
    pub(super) fn memory(&self) -> usize {
        self.slab.capacity() * size_of::<Option<Stream>>() + self.iter().map(|s| s.queue.capacity()).sum::<usize>()
    }

    pub(super) fn how_ended(&self, id: StreamId) -> Ended {
        if self.reset_here.ids.contains(&id) {
            Ended::ResetHere
        } else if self.ended.ids.contains(&id) {
            Ended::ByPeer
        } else {
            Ended::Unknown
        }
    }
}
