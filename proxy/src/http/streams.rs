//! The exchanges of a connection, by stream.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use weft_wire::h2::StreamId;

use super::Exchange;

/// The exchanges of a connection: most have one at a time.
#[derive(Default)]
pub(super) struct Streams {
    one: Option<(StreamId, Rc<Exchange>)>,
    more: HashMap<StreamId, Rc<Exchange>, BuildHasherDefault<IdHasher>>,
}

impl Streams {
    pub(super) fn get(&self, id: StreamId) -> Option<&Rc<Exchange>> {
        match &self.one {
            Some((one, exchange)) if *one == id => Some(exchange),
            _ => self.more.get(&id),
        }
    }

    pub(super) fn insert(&mut self, id: StreamId, exchange: Rc<Exchange>) {
        if self.one.is_none() {
            self.one = Some((id, exchange));
        } else {
            self.more.insert(id, exchange);
        }
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<Rc<Exchange>> {
        match &self.one {
            Some((one, _)) if *one == id => self.one.take().map(|(_, e)| e),
            _ => {
                let removed = self.more.remove(&id);
                // A burst's memory does not stay.
                if self.more.is_empty() && self.more.capacity() > 256 {
                    self.more = HashMap::default();
                }
                removed
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.one.is_some()) + self.more.len()
    }

    pub(super) fn all(&self) -> Vec<Rc<Exchange>> {
        self.one.iter().map(|(_, e)| e).chain(self.more.values()).cloned().collect()
    }

    pub(super) fn take(&mut self) -> Vec<Rc<Exchange>> {
        self.one.take().map(|(_, e)| e).into_iter().chain(std::mem::take(&mut self.more).into_values()).collect()
    }
}

/// Spreads stream identifiers, which a peer cannot choose freely: they only grow.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        for &b in octets {
            self.write_u32(u32::from(b));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
