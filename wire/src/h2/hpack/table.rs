//! The static table and the dynamic table (RFC 7541 §2.3).

use std::collections::VecDeque;

/// The static table (RFC 7541, Appendix A); index 1 is the first entry.
pub(super) static STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The first static index with that name; 0 when there is none.
pub(super) fn static_name(name: &[u8]) -> usize {
    match name {
        b":authority" => 1,
        b":method" => 2,
        b":path" => 4,
        b":scheme" => 6,
        b":status" => 8,
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"host" => 38,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"transfer-encoding" => 57,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => 0,
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u32,
    name: u32,
    value: u32,
    valid: bool,
}

/// What an entry of the table costs besides its octets (RFC 7541 §4.1).
pub(super) const OVERHEAD: usize = 32;

/// A dynamic table: octets in one arena, oldest first. Owns no memory until the first insertion.
#[derive(Debug)]
pub(super) struct Table {
    arena: Vec<u8>,
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
    inserted: u32,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self { arena: Vec::new(), entries: VecDeque::new(), size: 0, max, inserted: 0 }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many entries were ever inserted, modulo 2^32: the number that the next one will have.
    pub(super) fn inserted(&self) -> u32 {
        self.inserted
    }

    /// Name, value and the mark given at insertion of the entry of that age; 0 is the newest.
    pub(super) fn get(&self, age: usize) -> Option<(&[u8], &[u8], bool)> {
        let e = self.entries.get(self.entries.len().checked_sub(age + 1)?)?;
        let (name, value) = (e.at as usize, (e.at + e.name) as usize);
        Some((&self.arena[name..value], &self.arena[value..value + e.value as usize], e.valid))
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
        self.evict(0);
    }

    /// Makes room for `need` octets.
    fn evict(&mut self, need: usize) {
        while self.size + need > self.max {
            let Some(e) = self.entries.pop_front() else { break };
            self.size -= (e.name + e.value) as usize + OVERHEAD;
        }
        if self.entries.is_empty() {
            self.arena.clear();
        }
    }

    /// Inserts an entry; one larger than the table empties it (RFC 7541 §4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8], valid: bool) {
        let need = name.len() + value.len() + OVERHEAD;
        self.evict(need);
        if need > self.max {
            return;
        }
        // Octets of evicted entries stay in front until there are as many as live ones, so moving costs O(1) per octet.
        if self.arena.len() + need > 2 * self.max {
            let dead = self.entries.front().map_or(self.arena.len(), |e| e.at as usize);
            self.arena.drain(..dead);
            for e in &mut self.entries {
                e.at -= dead as u32;
            }
        }
        let at = self.arena.len() as u32;
        self.arena.extend_from_slice(name);
        self.arena.extend_from_slice(value);
        self.entries.push_back(Entry { at, name: name.len() as u32, value: value.len() as u32, valid });
        self.size += need;
        self.inserted = self.inserted.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_names_agree_with_the_table() {
        for (i, (name, _)) in STATIC.iter().enumerate() {
            let first = STATIC.iter().position(|(n, _)| n == name).map(|p| p + 1);
            assert_eq!(Some(static_name(name)), first, "entry {}", i + 1);
        }
        assert_eq!(static_name(b"x-none"), 0);
    }

    #[test]
    fn the_arena_stays_bounded() {
        let mut t = Table::new(256);
        for i in 0..10_000u32 {
            t.insert(format!("name-{}", i % 17).as_bytes(), &vec![b'v'; (i % 90) as usize], true);
            assert!(t.size() <= 256 && t.arena.len() <= 2 * 256);
            let (name, value, _) = t.get(0).unwrap();
            assert_eq!((name.len() > 5, value.len()), (true, (i % 90) as usize));
        }
        t.insert(b"big", &[b'v'; 300], true);
        assert_eq!((t.len(), t.size()), (0, 0));
    }
}
