//! Decoding header blocks.

use super::{
    DecodeError, huffman,
    table::{STATIC, Table},
};

/// A decoded field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name, in lower case when `valid`; pseudo-header fields begin with a colon.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// True when name and value have only the octets that RFC 9113 §8.2.1 and RFC 9110 §5.5 allow.
    pub valid: bool,
}

/// The decoding side's state: a dynamic table.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What our SETTINGS allow the peer to use.
    allowed: usize,
    /// The next block must begin with a size update, because `allowed` fell below what the peer used.
    must_shrink: bool,
    name: Vec<u8>,
    value: Vec<u8>,
}

/// Capacity above which scratch memory is given back after a block.
const SCRATCH: usize = 4096;

/// Octets that may occur in names: lower-case token characters (RFC 9110 §5.6.2).
const NAME: [bool; 256] = {
    let mut t = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        t[i] = b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        i += 1;
    }
    t
};

fn valid_name(name: &[u8]) -> bool {
    let token = name.strip_prefix(b":").unwrap_or(name);
    !token.is_empty() && token.iter().all(|&b| NAME[b as usize])
}

fn valid_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !blank(value.first())
        && !blank(value.last())
        && value.iter().fold(true, |ok, &b| ok & (b >= 0x20 && b != 0x7f || b == b'\t'))
}

/// Reads an integer with a prefix of `prefix` bits (RFC 7541 §5.1).
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, DecodeError> {
    let (&first, mut rest) = block.split_first().ok_or(DecodeError("the block ends inside a field"))?;
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&octet, tail) = rest.split_first().ok_or(DecodeError("the block ends inside an integer"))?;
            rest = tail;
            // Four more octets reach 2^28, beyond every limit there is.
            if shift > 21 {
                return Err(DecodeError("integer too large"));
            }
            value += usize::from(octet & 0x7f) << shift;
            shift += 7;
            if octet & 0x80 == 0 {
                break;
            }
        }
    }
    *block = rest;
    Ok(value)
}

/// Reads a string literal (RFC 7541 §5.2), into `scratch` when it is Huffman coded.
fn string<'a, 'b: 'a>(block: &mut &'b [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], DecodeError> {
    let coded = block.first().is_some_and(|b| b & 0x80 != 0);
    let length = integer(block, 7)?;
    let (raw, rest) = block.split_at_checked(length).ok_or(DecodeError("a string is longer than its block"))?;
    *block = rest;
    if !coded {
        return Ok(raw);
    }
    scratch.clear();
    if !huffman::decode(raw, scratch) {
        return Err(DecodeError("invalid Huffman code"));
    }
    Ok(scratch)
}

impl Decoder {
    /// A decoder whose peer may use a table of up to `allowed` octets; until it says otherwise it uses
    /// min(4096, `allowed`).
    pub fn new(allowed: usize) -> Self {
        Self { table: Table::new(allowed.min(4096)), allowed, must_shrink: false, name: Vec::new(), value: Vec::new() }
    }

    /// Changes the size that the peer may use: call it when the peer acknowledged the SETTINGS that say so.
    pub fn set_allowed(&mut self, allowed: usize) {
        self.allowed = allowed;
        self.must_shrink = self.table.max() > allowed;
    }

    /// Decodes a whole header block and gives each field to `sink`. Fields are given as they come: when the block turns
    /// out to be broken, the connection is lost anyway.
    pub fn decode(&mut self, block: &[u8], sink: impl FnMut(Field<'_>)) -> Result<(), DecodeError> {
        let result = self.fields(block, sink);
        for scratch in [&mut self.name, &mut self.value] {
            if scratch.capacity() > SCRATCH {
                *scratch = Vec::new();
            }
        }
        result
    }

    fn fields(&mut self, mut block: &[u8], mut sink: impl FnMut(Field<'_>)) -> Result<(), DecodeError> {
        self.size_updates(&mut block)?;
        let Self { table, name: name_scratch, value: value_scratch, .. } = self;
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                sink(lookup(table, integer(&mut block, 7)?)?);
                continue;
            }
            let insert = first & 0x40 != 0;
            if !insert && first & 0x20 != 0 {
                return Err(DecodeError("table size update inside a block"));
            }
            let index = integer(&mut block, if insert { 6 } else { 4 })?;
            if index == 0 {
                let name = string(&mut block, name_scratch)?;
                let value = string(&mut block, value_scratch)?;
                let valid = valid_name(name) && valid_value(value);
                sink(Field { name, value, valid });
                if insert {
                    table.insert(name, value, valid);
                }
            } else {
                let known = lookup(table, index)?;
                // The table knows whether a whole field was fine; of a bad one its name may be.
                let name_ok = index <= STATIC.len() || known.valid || valid_name(known.name);
                let value = string(&mut block, value_scratch)?;
                let valid = name_ok && valid_value(value);
                sink(Field { name: known.name, value, valid });
                if insert {
                    // Inserting may evict the entry that the name comes from, so it is copied first.
                    name_scratch.clear();
                    name_scratch.extend_from_slice(known.name);
                    table.insert(name_scratch, value, valid);
                }
            }
        }
        Ok(())
    }

    /// Dynamic table size updates at the start of the block (RFC 7541 §4.2): at most two.
    fn size_updates(&mut self, block: &mut &[u8]) -> Result<(), DecodeError> {
        let mut updates = 0;
        while block.first().is_some_and(|b| b & 0xe0 == 0x20) {
            let max = integer(block, 5)?;
            updates += 1;
            if max > self.allowed {
                return Err(DecodeError("table size update above the setting"));
            }
            if updates > 2 {
                return Err(DecodeError("too many table size updates"));
            }
            self.table.set_max(max);
            self.must_shrink = false;
        }
        if self.must_shrink && !block.is_empty() {
            return Err(DecodeError("table size update missing after a smaller setting"));
        }
        Ok(())
    }

    /// Octets of the dynamic table in use, for tests of its bound.
    #[cfg(test)]
    pub(crate) fn table_size(&self) -> usize {
        self.table.size()
    }
}

fn lookup(table: &Table, index: usize) -> Result<Field<'_>, DecodeError> {
    let missing = DecodeError("index outside of the tables");
    let index = index.checked_sub(1).ok_or(missing)?;
    if let Some(&(name, value)) = STATIC.get(index) {
        return Ok(Field { name, value, valid: true });
    }
    let (name, value, valid) = table.get(index - STATIC.len()).ok_or(missing)?;
    Ok(Field { name, value, valid })
}
