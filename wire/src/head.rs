//! The vocabulary that HTTP/1.1 and HTTP/2 share: heads and header lists.
//!
//! A header list is one arena of octets and a list of spans into it: two allocations however many fields there are,
//! cleared and reused from request to request.

use std::fmt;

/// The version a message arrived in. Messages are translated between versions, so this is what the peer spoke, not what
/// will be spoken to the next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0: no persistent connection unless asked for, no chunked coding.
    H10,
    /// HTTP/1.1.
    #[default]
    H11,
    /// HTTP/2.
    H2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Span {
    at: u32,
    len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
}

/// An ordered list of header fields. Names are lower case; duplicates are kept in order.
#[derive(Clone, Default)]
pub struct Headers {
    arena: Vec<u8>,
    fields: Vec<Field>,
}

impl Headers {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// True without fields.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Forgets all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.fields.clear();
    }

    /// Makes room for that many more octets of names and values, and fields.
    pub fn reserve(&mut self, octets: usize, fields: usize) {
        self.arena.reserve(octets);
        self.fields.reserve(fields);
    }

    fn put(&mut self, bytes: &[u8]) -> Span {
        let at = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Span { at, len: bytes.len() as u32 }
    }

    fn put_lower(&mut self, bytes: &[u8]) -> Span {
        let at = self.arena.len();
        self.arena.extend_from_slice(bytes);
        self.arena[at..].make_ascii_lowercase();
        Span { at: at as u32, len: bytes.len() as u32 }
    }

    fn at(&self, span: Span) -> &[u8] {
        &self.arena[span.at as usize..(span.at + span.len) as usize]
    }

    /// Appends a field; the name is lower-cased. The caller has validated both (codecs do; literals are trusted).
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let name = self.put_lower(name);
        let value = self.put(value);
        self.fields.push(Field { name, value });
    }

    /// Removes every field of that name (lower case), then appends one.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes every field of that name (lower case) and says whether there was one.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let before = self.fields.len();
        let Self { arena, fields } = self;
        fields.retain(|f| &arena[f.name.at as usize..(f.name.at + f.name.len) as usize] != name);
        fields.len() != before
    }

    /// Keeps the fields for which `keep(name, value)` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let Self { arena, fields } = self;
        let slice = |s: Span| &arena[s.at as usize..(s.at + s.len) as usize];
        fields.retain(|f| keep(slice(f.name), slice(f.value)));
    }

    /// The first value of that name (lower case).
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields.iter().find(|f| self.at(f.name) == name).map(|f| self.at(f.value))
    }

    /// All values of that name (lower case), in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.fields.iter().filter(move |f| self.at(f.name) == name).map(|f| self.at(f.value))
    }

    /// True when a field of that name (lower case) exists.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (self.at(f.name), self.at(f.value)))
    }

    /// True when a comma-separated list header of that name holds `token` (compared without case).
    pub fn has_token(&self, name: &[u8], token: &[u8]) -> bool {
        self.get_all(name).any(|v| v.split(|&b| b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(token)))
    }

    /// Octets of the list as RFC 9113 §10.5.1 counts them: names, values and 32 octets a field.
    pub fn list_size(&self) -> usize {
        self.fields.iter().map(|f| (f.name.len + f.value.len) as usize + 32).sum()
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Headers {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned())).finish()
    }
}

/// A request's head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// What the client spoke.
    pub version: Version,
    /// The method, as sent: methods are case-sensitive.
    pub method: Vec<u8>,
    /// `http` or `https` where the client said one (HTTP/2, absolute-form); empty otherwise.
    pub scheme: Vec<u8>,
    /// Host and optional port: `:authority`, else the absolute-form's, else the Host header's; empty when there is none.
    pub authority: Vec<u8>,
    /// Path and query in origin form, `*` for OPTIONS, empty for CONNECT.
    pub path: Vec<u8>,
    /// True when an HTTP/1 client used the absolute form (a request to a proxy).
    pub absolute_form: bool,
    /// Everything else. Never holds `host` (it is in `authority`) nor a hop-by-hop framing field that the codec owns.
    pub headers: Headers,
}

/// A response's head.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Response {
    /// What the server spoke.
    pub version: Version,
    /// 100 to 999.
    pub status: u16,
    /// Everything but framing fields that the codec owns.
    pub headers: Headers,
}

impl Response {
    /// True for 1xx but 101, which ends the HTTP exchange.
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_order_and_duplicates() {
        let mut h = Headers::new();
        h.push(b"Accept", b"a");
        h.push(b"x", b"1");
        h.push(b"accept", b"b");
        assert_eq!(h.get(b"accept"), Some(&b"a"[..]));
        assert_eq!(h.get_all(b"accept").collect::<Vec<_>>(), [b"a", b"b"]);
        h.set(b"accept", b"c");
        assert_eq!(h.iter().map(|(n, _)| n).collect::<Vec<_>>(), [&b"x"[..], b"accept"]);
        assert!(h.remove(b"x") && !h.remove(b"x"));
    }

    #[test]
    fn debug_never_shows_values() {
        let mut h = Headers::new();
        h.push(b"authorization", b"secret");
        assert!(!format!("{h:?}").contains("secret"));
    }

    #[test]
    fn tokens_are_found_in_lists() {
        let mut h = Headers::new();
        h.push(b"connection", b"close, Upgrade");
        assert!(h.has_token(b"connection", b"upgrade"));
        assert!(!h.has_token(b"connection", b"up"));
    }
}
