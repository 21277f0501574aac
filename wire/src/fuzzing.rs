//! Bodies of the fuzz targets: each takes any octets and panics when a promise is broken.
//!
//! `fuzz/` calls them under libFuzzer; `tests/fuzz_corpus.rs` calls them with the corpus and seeded mutations of it, so
//! that an ordinary test run exercises them too. How the input is cut is derived from the input, so that a corpus file is
//! nothing but the protocol's octets.

use crate::detect::{self, ClientHello, Detected};
use crate::h1::{self, ErrorKind, Event, Framing, RequestDecoder, ResponseDecoder};
use crate::transport_header::TransportHeader;
use crate::{Headers, Limits, Request, Response};

pub use crate::h2::fuzzing::{client as h2_client, hpack, server as h2_server};

/// A body of a fuzz target.
pub type Target = fn(&[u8]);

/// Every target by the name that its corpus has.
pub const TARGETS: &[(&str, Target)] = &[
    ("h1_request", h1_request),
    ("h1_response", h1_response),
    ("detect", detect),
    ("client_hello", client_hello),
    ("transport_header", transport_header),
    ("h2_server", h2_server),
    ("h2_client", h2_client),
    ("hpack", hpack),
];

/// Limits small enough for a fuzzer to reach.
fn limits() -> Limits {
    Limits {
        head_size: 512,
        header_count: 16,
        chunk_line: 32,
        chunk_extensions: 64,
        trailer_size: 128,
        ..Limits::default()
    }
}

/// FNV-1a: chooses cuts and methods.
fn hash(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// What a decoder gave, with the data of one body joined.
#[derive(Debug, PartialEq)]
enum Item<H> {
    Head(H, Framing, bool),
    Informational(H),
    Body(Vec<u8>),
    Trailers(Headers),
    End,
    Tunnel,
    Refused(ErrorKind),
}

enum Next<'i, H> {
    Event(Event<'i, H>, Framing, bool),
    Starved,
    Tunnel,
    Refused(ErrorKind),
}

fn trace<H>(
    input: &[u8],
    piece: usize,
    mut next: impl for<'i> FnMut(&'i [u8]) -> (usize, Next<'i, H>),
) -> Vec<Item<H>> {
    let mut items = Vec::new();
    let mut held: Vec<u8> = Vec::new();
    for piece in input.chunks(piece.max(1)) {
        held.extend_from_slice(piece);
        loop {
            let (used, event) = next(&held);
            match event {
                Next::Event(Event::Head(head), framing, keep) => items.push(Item::Head(head, framing, keep)),
                Next::Event(Event::Informational(head), ..) => items.push(Item::Informational(head)),
                Next::Event(Event::Data(data), ..) => {
                    assert!(!data.is_empty(), "data is never empty");
                    match items.last_mut() {
                        Some(Item::Body(body)) => body.extend_from_slice(data),
                        _ => items.push(Item::Body(data.to_vec())),
                    }
                }
                Next::Event(Event::Trailers(trailers), ..) => items.push(Item::Trailers(trailers)),
                Next::Event(Event::End, ..) => items.push(Item::End),
                Next::Starved => {
                    held.drain(..used);
                    break;
                }
                Next::Tunnel => {
                    items.push(Item::Tunnel);
                    return items;
                }
                Next::Refused(kind) => {
                    items.push(Item::Refused(kind));
                    return items;
                }
            }
            held.drain(..used);
        }
    }
    items
}

fn requests(input: &[u8], piece: usize, limits: &Limits) -> Vec<Item<Request>> {
    let mut decoder = RequestDecoder::new(limits);
    trace(input, piece, |held| match decoder.decode(held) {
        Ok((used, Some(event))) => (used, Next::Event(event, decoder.framing(), decoder.keep_alive())),
        Ok((used, None)) => (used, Next::Starved),
        Err(error) => {
            assert_eq!(decoder.decode(b""), Err(error), "an error is final");
            (0, Next::Refused(error.kind()))
        }
    })
}

fn responses(input: &[u8], piece: usize, method: &[u8], limits: &Limits) -> Vec<Item<Response>> {
    let mut decoder = ResponseDecoder::new(limits);
    decoder.expect(method);
    trace(input, piece, |held| match decoder.decode(held) {
        Ok((used, Some(event))) => {
            let next = Next::Event(event, decoder.framing(), decoder.keep_alive());
            if decoder.is_idle() {
                decoder.expect(method);
            }
            (used, next)
        }
        Ok((used, None)) if decoder.is_tunnel() => (used, Next::Tunnel),
        Ok((used, None)) => (used, Next::Starved),
        Err(error) => (0, Next::Refused(error.kind())),
    })
}

/// However the input is cut, the events are the same, and every message encodes to one that decodes to it.
pub fn h1_request(data: &[u8]) {
    let limits = limits();
    let items = requests(data, usize::MAX, &limits);
    assert_eq!(items, requests(data, 1 + (hash(data) % 13) as usize, &limits), "cutting changes the events");
    let (mut wire, mut current) = (Vec::new(), Framing::None);
    for item in &items {
        match item {
            Item::Head(head, framing, _) => {
                current = *framing;
                wire.clear();
                h1::encode_request(head, *framing, &mut wire);
            }
            Item::Body(body) => h1::encode_data(current, body, &mut wire),
            Item::Trailers(_) | Item::Informational(_) | Item::Tunnel | Item::Refused(_) => {}
            Item::End => {
                h1::encode_end(current, None, &mut wire);
                same_request(&items, item, &wire);
            }
        }
    }
}

/// The last message before `end` in `items` is what `wire` says.
fn same_request(items: &[Item<Request>], end: &Item<Request>, wire: &[u8]) {
    let at = items.iter().position(|item| std::ptr::eq(item, end)).unwrap_or(0);
    let before = items.get(..at).unwrap_or_default();
    let start = before.iter().rposition(|item| matches!(item, Item::Head(..))).unwrap_or(0);
    let message = before.get(start..).unwrap_or_default();
    // The encoder may write a little more than was read: a host where there was none, spaces after colons.
    let again = requests(wire, usize::MAX, &Limits::default());
    let shape = |items: &[Item<Request>]| -> Vec<Vec<u8>> {
        items
            .iter()
            .filter_map(|item| match item {
                Item::Head(h, ..) => Some([&h.method[..], &h.scheme, &h.authority, &h.path].join(&b' ')),
                Item::Body(body) => Some(body.clone()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(shape(&again), shape(message), "{}", String::from_utf8_lossy(wire));
    assert_eq!(again.last(), Some(&Item::End), "{}", String::from_utf8_lossy(wire));
}

/// However the input is cut, the events are the same.
pub fn h1_response(data: &[u8]) {
    let limits = limits();
    let method: &[u8] = match hash(data) % 8 {
        0 => b"HEAD",
        1 => b"CONNECT",
        _ => b"GET",
    };
    let items = responses(data, usize::MAX, method, &limits);
    let piece = 1 + (hash(data) >> 8) as usize % 13;
    assert_eq!(items, responses(data, piece, method, &limits), "cutting changes the events");
    for item in &items {
        if let Item::Head(head, framing, keep) = item {
            let mut wire = Vec::new();
            h1::encode_response(head, *framing, *keep, head.version, &mut wire);
            let again = responses(&wire, usize::MAX, method, &Limits::default());
            match again.first() {
                Some(Item::Head(second, second_framing, _)) => {
                    assert_eq!((second.status, second_framing), (head.status, framing));
                }
                other => panic!("{other:?} from {:?}", String::from_utf8_lossy(&wire)),
            }
        }
    }
}

/// Places to cut at: all of a short input, some of a long one.
fn cuts(data: &[u8]) -> impl Iterator<Item = usize> {
    let step = (data.len() / 64).max(1);
    let shift = (hash(data) as usize) % step;
    (0..data.len()).skip(shift).step_by(step)
}

/// A decision is final: it is that of every continuation.
pub fn detect(data: &[u8]) {
    let whole = detect::detect(data);
    for cut in cuts(data) {
        let part = detect::detect(data.get(..cut).unwrap_or_default());
        assert!(part == Detected::NeedMore || part == whole, "{part:?} at {cut}, then {whole:?}");
    }
    let short = data.len() < detect::REQUEST_LINE_LIMIT;
    if let (true, Some(Item::Head(..))) = (short, requests(data, usize::MAX, &Limits::default()).first()) {
        assert!(matches!(whole, Detected::H1), "a request that the codec reads is {whole:?}");
    }
}

/// Undecided until it is complete; then decided for good, and fit for a log.
pub fn client_hello(data: &[u8]) {
    let whole = detect::client_hello(data);
    for cut in cuts(data) {
        let part = detect::client_hello(data.get(..cut).unwrap_or_default());
        assert!(part == ClientHello::NeedMore || part == whole, "{part:?} at {cut}, then {whole:?}");
    }
    if let ClientHello::Hello { sni, alpn } = whole {
        assert_eq!(detect::detect(data), Detected::Tls);
        assert!(sni.is_none_or(|name| name.len() <= 255 && name.bytes().all(|b| b.is_ascii_graphic())));
        assert!(alpn.iter().all(|name| !name.is_empty()));
    }
}

/// Undecided until it is complete, and encoding inverts decoding.
pub fn transport_header(data: &[u8]) {
    let whole = TransportHeader::decode(data);
    for cut in cuts(data) {
        let part = TransportHeader::decode(data.get(..cut).unwrap_or_default());
        assert!(part == Ok(None) || part == whole, "{part:?} at {cut}, then {whole:?}");
    }
    if let Ok(Some((used, header))) = whole {
        assert!(used <= data.len());
        let mut wire = Vec::new();
        header.encode(&mut wire);
        assert_eq!(TransportHeader::decode(&wire), Ok(Some((wire.len(), header))));
    }
}
