//! Encoding header blocks.
//!
//! A field goes into the dynamic table the second time it is seen: values that differ from request to request (lengths,
//! dates, trace identifiers) then never push out those that repeat, and cost no insertion. Fields that hold secrets are
//! never indexed: many clients' requests share a connection here, and a shared table would let one find out another's.
//!
//! Short strings are sent as they are. The Huffman code would save a fifth of their octets and cost both ends several times
//! the processor time that these octets cost in encryption and copying. Long ones are worth it: they decide how many
//! packets a head takes.

use super::{
    huffman,
    table::{OVERHEAD, STATIC, Table, static_name},
};

/// Strings of at least so many octets are Huffman coded when that makes them shorter.
const HUFFMAN_FROM: usize = 256;

/// The table size that both sides assume at first (RFC 9113 §6.5.2).
const DEFAULT_TABLE: usize = 4096;

/// The encoding side's state: a dynamic table and an index of it.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// The largest table that this end wants.
    limit: usize,
    /// Announced with the next block: the smallest size since the last one, then the current one.
    update: Option<usize>,
    index: Option<Box<Index>>,
}

/// Finds entries by hash. A slot holds the number of the insertion that used it last; whether that entry still exists and
/// is the right one is always checked, so a stale slot or a collision only costs a hit.
#[derive(Debug)]
struct Index {
    mask: usize,
    fields: Vec<u32>,
    names: Vec<u32>,
    /// Hashes of fields that were seen and not inserted.
    seen: [u32; 128],
}

impl Index {
    fn new(table: usize) -> Self {
        let slots = (table / OVERHEAD).next_power_of_two().clamp(16, 4096);
        Self { mask: slots - 1, fields: vec![0; slots], names: vec![0; slots], seen: [0; 128] }
    }
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * u128::from(MULTIPLIER);
    (product >> 64) as u64 ^ product as u64
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = words.iter().fold(seed ^ bytes.len() as u64, |h, w| mix(h, u64::from_le_bytes(*w)));
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, u64::from_le_bytes(last));
    }
    hash
}

/// Fields whose values are secrets.
fn is_secret(name: &[u8]) -> bool {
    matches!(name, b"authorization" | b"proxy-authorization" | b"cookie" | b"set-cookie")
}

/// Appends an integer with a prefix of `prefix` bits below the bits of `first`.
fn integer(first: u8, prefix: u32, value: usize, out: &mut Vec<u8>) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn string(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.len() >= HUFFMAN_FROM {
        let coded = huffman::encoded_len(bytes);
        if coded < bytes.len() {
            integer(0x80, 7, coded, out);
            huffman::encode(bytes, out);
            return;
        }
    }
    integer(0, 7, bytes.len(), out);
    out.extend_from_slice(bytes);
}

impl Encoder {
    /// An encoder that uses a table of at most `limit` octets.
    pub fn new(limit: usize) -> Self {
        let max = limit.min(DEFAULT_TABLE);
        // The peer assumes the default until it is told.
        let update = (max < DEFAULT_TABLE).then_some(max);
        Self { table: Table::new(max), limit, update, index: None }
    }

    /// Follows the peer's SETTINGS_HEADER_TABLE_SIZE, in octets.
    pub fn set_max(&mut self, peer: usize) {
        let max = peer.min(self.limit);
        if max != self.table.max() {
            self.update = Some(self.update.map_or(max, |least| least.min(max)));
            self.table.set_max(max);
            self.index = None;
        }
    }

    /// Begins a block. Every block begins so, and all its fields follow before the next begins.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(least) = self.update.take() {
            if least < self.table.max() {
                integer(0x20, 5, least, out);
            }
            integer(0x20, 5, self.table.max(), out);
        }
    }

    /// Appends a field. `name` is in lower case.
    pub fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let in_static = static_name(name);
        if is_secret(name) {
            integer(0x10, 4, in_static, out);
            return string(value, out);
        }
        if in_static != 0 {
            let same = STATIC[in_static - 1..].iter().take_while(|(n, _)| *n == name);
            if let Some(at) = same.clone().position(|(_, v)| *v == value) {
                return integer(0x80, 7, in_static + at, out);
            }
        }
        let size = name.len() + value.len() + OVERHEAD;
        // An entry that fills much of the table would push everything else out.
        let indexable = size <= self.table.max() / 4;
        let name_hash = hash(MULTIPLIER, name);
        let mut indexed_name = in_static;
        let mut insert = false;
        let field_hash = if indexable { hash(name_hash, value) } else { 0 };
        if self.table.max() > 0 {
            let table = &self.table;
            let index = self.index.get_or_insert_with(|| Box::new(Index::new(table.max())));
            let age = |slot: u32| table.inserted().wrapping_sub(slot).wrapping_sub(1) as usize;
            if indexable {
                let age = age(index.fields[field_hash as usize & index.mask]);
                if table.get(age).is_some_and(|(n, v, _)| n == name && v == value) {
                    return integer(0x80, 7, STATIC.len() + 1 + age, out);
                }
                let (slot, mark) = (&mut index.seen[(field_hash >> 16) as usize % 128], (field_hash >> 32) as u32);
                insert = *slot == mark;
                *slot = mark;
            }
            if indexed_name == 0 {
                let age = age(index.names[name_hash as usize & index.mask]);
                if table.get(age).is_some_and(|(n, ..)| n == name) {
                    indexed_name = STATIC.len() + 1 + age;
                }
            }
        }
        match insert {
            true => integer(0x40, 6, indexed_name, out),
            false => integer(0, 4, indexed_name, out),
        }
        if indexed_name == 0 {
            string(name, out);
        }
        string(value, out);
        if insert {
            let number = self.table.inserted();
            self.table.insert(name, value, true);
            if let Some(index) = &mut self.index {
                index.fields[field_hash as usize & index.mask] = number;
                index.names[name_hash as usize & index.mask] = number;
            }
        }
    }
}
