//! Raw frames for the HTTP/2 tests, written apart from the codec so that both cannot be wrong in the same way, and a small
//! tokio driver.
#![allow(dead_code, missing_docs)]

use weft_wire::{
    Headers, Limits, Request, Response, Version,
    h2::{Connection, Event, hpack::Encoder},
};

pub mod driver;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIO: u8 = 0x20;

/// A frame with a true length.
pub fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut f = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    f.extend([kind, flags]);
    f.extend(id.to_be_bytes());
    f.extend(payload);
    f
}

pub fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in entries {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window_update(id: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, id, &increment.to_be_bytes())
}

pub fn rst(id: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &code.to_be_bytes())
}

/// A header block without a dynamic table, so that blocks can be put in any order.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(4096);
    encoder.begin(&mut out);
    fields.iter().for_each(|(n, v)| encoder.field(n.as_bytes(), v.as_bytes(), &mut out));
    out
}

/// A literal without indexing whose name and value are shorter than 127 octets, of any octets.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0, name.len() as u8];
    out.extend(name);
    out.push(value.len() as u8);
    out.extend(value);
    out
}

pub const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
pub const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];

pub fn with(base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]) -> Vec<u8> {
    block(&[base, more].concat())
}

pub fn headers(id: u32, end: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | u8::from(end), id, &block(fields))
}

/// A server that has received preface and SETTINGS, and whose SETTINGS are acknowledged; its output is empty.
pub fn server(limits: &Limits) -> Connection {
    let mut c = Connection::server(limits);
    let input = [PREFACE, &settings(&[]), &frame(SETTINGS, ACK, 0, &[])].concat();
    assert_eq!(feed(&mut c, &input).unwrap(), [Owned::Settings]);
    take(&mut c);
    c
}

/// A client in the same state.
pub fn client(limits: &Limits) -> Connection {
    let mut c = Connection::client(limits);
    let input = [settings(&[]), frame(SETTINGS, ACK, 0, &[])].concat();
    assert_eq!(feed(&mut c, &input).unwrap(), [Owned::Settings]);
    take(&mut c);
    c
}

/// The output, taken.
pub fn take(c: &mut Connection) -> Vec<u8> {
    let out = std::mem::take(c.output());
    c.pump();
    out
}

/// Events that own their data; pieces of data are joined with the piece before.
#[derive(Debug, PartialEq, Clone)]
pub enum Owned {
    Request(u32, Request, bool),
    Informational(u32, Response),
    Response(u32, Response, bool),
    Data(u32, Vec<u8>, u32, bool),
    Trailers(u32, Headers),
    Reset(u32, u32),
    Writable(u32),
    Settings,
    GoAway(u32, u32),
    Pong,
}

pub fn own(event: Event<'_>) -> Owned {
    match event {
        Event::Request { id, head, end } => Owned::Request(id, head, end),
        Event::Informational { id, head } => Owned::Informational(id, head),
        Event::Response { id, head, end } => Owned::Response(id, head, end),
        Event::Data { id, data, flow, end } => Owned::Data(id, data.to_vec(), flow, end),
        Event::Trailers { id, headers } => Owned::Trailers(id, headers),
        Event::Reset { id, reason } => Owned::Reset(id, reason.0),
        Event::Writable { id } => Owned::Writable(id),
        Event::Settings => Owned::Settings,
        Event::GoAway { last, reason } => Owned::GoAway(last, reason.0),
        Event::Pong => Owned::Pong,
    }
}

pub fn push(events: &mut Vec<Owned>, event: Owned) {
    if let (Some(Owned::Data(id, data, flow, end @ false)), Owned::Data(id2, data2, flow2, end2)) =
        (events.last_mut(), &event)
        && id == id2
    {
        data.extend(data2);
        *flow += flow2;
        *end = *end2;
        return;
    }
    events.push(event);
}

/// All events of some input.
pub fn feed(c: &mut Connection, input: &[u8]) -> Result<Vec<Owned>, weft_wire::h2::Error> {
    let mut input = input;
    let mut events = Vec::new();
    while let Some(event) = c.next(&mut input)? {
        push(&mut events, own(event));
    }
    assert!(input.is_empty());
    Ok(events)
}

/// A frame of some output.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub id: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The number in RST_STREAM and WINDOW_UPDATE, the second one in GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
    pub fn end(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// The whole frames at the front of some output, which are taken off.
pub fn frames(out: &mut Vec<u8>) -> Vec<Frame> {
    let mut list = Vec::new();
    let mut at = 0;
    while out.len() - at >= 9 {
        let f = &out[at..];
        let len = u32::from_be_bytes([0, f[0], f[1], f[2]]) as usize;
        if f.len() < 9 + len {
            break;
        }
        let id = u32::from_be_bytes(f[5..9].try_into().unwrap());
        list.push(Frame { kind: f[3], flags: f[4], id, payload: f[9..9 + len].to_vec() });
        at += 9 + len;
    }
    out.drain(..at);
    list
}

/// The frames of the whole output, which must not end inside one.
pub fn sent(c: &mut Connection) -> Vec<Frame> {
    let mut out = take(c);
    let list = frames(&mut out);
    assert!(out.is_empty());
    list
}

pub fn list(fields: &[(&str, &str)]) -> Headers {
    let mut h = Headers::new();
    fields.iter().for_each(|(n, v)| h.push(n.as_bytes(), v.as_bytes()));
    h
}

pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request {
    Request {
        version: Version::H2,
        method: method.into(),
        scheme: b"http".to_vec(),
        authority: b"a.test".to_vec(),
        path: path.into(),
        absolute_form: false,
        headers: list(fields),
    }
}

pub fn response(status: u16, fields: &[(&str, &str)]) -> Response {
    Response { version: Version::H2, status, headers: list(fields) }
}
