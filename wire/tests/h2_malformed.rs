//! Malformed input and the error it is answered with, in the order of RFC 9113 and in the manner of h2spec.

mod h2_support;

use h2_support::*;
use weft_wire::{Limits, h2::Connection};

const PROTOCOL: u32 = 1;
const FLOW: u32 = 3;
const CLOSED: u32 = 5;
const SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;
const CALM: u32 = 11;

/// What must come of some input.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// GOAWAY with that code, and `next` fails.
    Connection(u32),
    /// RST_STREAM with that code, and the connection lives.
    Stream(u32, u32),
    /// No complaint.
    Fine,
}
use Outcome::*;

fn judge(c: &mut Connection, input: &[u8]) -> Outcome {
    let result = feed(c, input);
    let out = sent(c);
    let find = |kind| out.iter().find(|f| f.kind == kind);
    match result {
        Err(e) => {
            let last = out.last().expect("GOAWAY");
            assert_eq!((last.kind, last.code()), (GOAWAY, e.reason.0));
            assert!(c.is_closed());
            Connection(e.reason.0)
        }
        Ok(_) => {
            assert!(find(GOAWAY).is_none());
            // The connection still works, and so does its compression state.
            let next = [frame(PING, 0, 0, b"still ok"), headers(101, true, &GET)].concat();
            let events = feed(c, &next).expect("the connection lives");
            assert!(matches!(events[..], [Owned::Request(101, ..)]), "{events:?}");
            assert!(sent(c).iter().any(|f| f.kind == PING && f.flags == ACK));
            find(RST_STREAM).map_or(Fine, |f| Stream(f.id, f.code()))
        }
    }
}

fn check(cases: Vec<(&str, Vec<Vec<u8>>, Outcome)>) {
    for (name, input, expected) in cases {
        let mut c = server(&Limits::default());
        assert_eq!(judge(&mut c, &input.concat()), expected, "{name}");
        // In single octets the outcome is the same, but for frames whose stream was reset in between.
        let mut c = server(&Limits::default());
        let input = input.concat();
        let failed = input.chunks(1).any(|octet| feed(&mut c, octet).is_err());
        assert_eq!(failed, matches!(expected, Connection(_)), "{name}, octet by octet");
    }
}

#[test]
fn prefaces() {
    for (name, input) in [
        ("not a preface", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("one octet wrong", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", &settings(&[])[..]].concat()),
        ("first frame is not SETTINGS", [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat()),
        ("first frame is an acknowledgement", [PREFACE, &frame(SETTINGS, ACK, 0, &[])].concat()),
    ] {
        let mut c = Connection::server(&Limits::default());
        assert_eq!(feed(&mut c, &input).unwrap_err().reason.0, PROTOCOL, "{name}");
    }
    let mut c = Connection::client(&Limits::default());
    let hello = take(&mut c);
    assert!(hello.starts_with(PREFACE));
    assert_eq!(feed(&mut c, &frame(PING, 0, 0, &[0; 8])).unwrap_err().reason.0, PROTOCOL);
}

#[test]
fn frames_and_their_sizes() {
    let header_only = |len: u32, kind, flags, id: u32| {
        let mut f = len.to_be_bytes()[1..].to_vec();
        f.extend([kind, flags]);
        f.extend(id.to_be_bytes());
        f
    };
    check(vec![
        ("4.1 unknown type", vec![frame(0xbe, 0xff, 0, b"what"), frame(0xbe, 0, 7, &[])], Fine),
        ("4.1 reserved bit", vec![frame(PING, 0, 1 << 31, &[0; 8])], Fine),
        ("4.2 frame of 2^14 octets", vec![headers(1, false, &POST), frame(DATA, 1, 1, &[0; 16384])], Fine),
        ("4.2 larger DATA", vec![headers(1, false, &POST), header_only(16385, DATA, 0, 1)], Connection(SIZE)),
        ("4.2 larger HEADERS", vec![header_only(16385, HEADERS, 4, 1)], Connection(SIZE)),
        ("4.2 larger unknown", vec![header_only(1 << 20, 0xbe, 0, 1)], Connection(SIZE)),
        ("4.3 broken block", vec![frame(HEADERS, 5, 1, &[0x80])], Connection(COMPRESSION)),
        ("4.3 block cut off", vec![frame(HEADERS, 5, 1, &block(&GET)[..6])], Connection(COMPRESSION)),
        (
            "4.3 PRIORITY inside a block",
            vec![frame(HEADERS, 1, 1, &block(&GET)), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 0])],
            Connection(PROTOCOL),
        ),
        (
            "4.3 HEADERS of another stream inside a block",
            vec![frame(HEADERS, 1, 1, &block(&GET)), headers(3, true, &GET)],
            Connection(PROTOCOL),
        ),
        (
            "4.3 unknown type inside a block",
            vec![frame(HEADERS, 1, 1, &block(&GET)), frame(0xbe, 0, 1, &[])],
            Connection(PROTOCOL),
        ),
        ("6.1 DATA on stream 0", vec![frame(DATA, 0, 0, b"x")], Connection(PROTOCOL)),
        (
            "6.1 padding longer than DATA",
            vec![headers(1, false, &POST), frame(DATA, PADDED, 1, &[5, 1, 2, 3, 4])],
            Connection(PROTOCOL),
        ),
        ("6.1 padding without an octet", vec![headers(1, false, &POST), frame(DATA, PADDED, 1, &[])], Connection(SIZE)),
        ("6.1 nothing but padding", vec![headers(1, false, &POST), frame(DATA, PADDED | 1, 1, &[4, 0, 0, 0, 0])], Fine),
        ("6.2 HEADERS on stream 0", vec![headers(0, true, &GET)], Connection(PROTOCOL)),
        ("6.2 padding longer than HEADERS", vec![frame(HEADERS, 5 | PADDED, 1, &[2, 0x82])], Connection(PROTOCOL)),
        ("6.2 priority cut off", vec![frame(HEADERS, 5 | PRIO, 1, &[0, 0])], Connection(SIZE)),
        (
            "6.2 padding and priority",
            vec![frame(HEADERS, 5 | PRIO | PADDED, 1, &[&[2, 0, 0, 0, 0, 9][..], &block(&GET), &[0, 0]].concat())],
            Fine,
        ),
        ("6.3 PRIORITY on stream 0", vec![frame(PRIORITY, 0, 0, &[0; 5])], Connection(PROTOCOL)),
        (
            "6.3 PRIORITY of four octets",
            vec![headers(1, false, &POST), frame(PRIORITY, 0, 1, &[0; 4])],
            Stream(1, SIZE),
        ),
        ("6.3 PRIORITY on an idle stream", vec![frame(PRIORITY, 0, 5, &[0; 5])], Fine),
        (
            "5.3.1 HEADERS depend on themselves",
            vec![frame(HEADERS, 5 | PRIO, 1, &[&[0, 0, 0, 1, 9][..], &block(&GET)].concat())],
            Stream(1, PROTOCOL),
        ),
        (
            "5.3.1 PRIORITY depends on itself",
            vec![headers(1, false, &POST), frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])],
            Stream(1, PROTOCOL),
        ),
        ("6.4 RST_STREAM on stream 0", vec![rst(0, 8)], Connection(PROTOCOL)),
        ("6.4 RST_STREAM on an idle stream", vec![rst(1, 8)], Connection(PROTOCOL)),
        (
            "6.4 RST_STREAM of three octets",
            vec![headers(1, false, &POST), frame(RST_STREAM, 0, 1, &[0; 3])],
            Connection(SIZE),
        ),
        ("6.5 SETTINGS on a stream", vec![frame(SETTINGS, 0, 1, &[])], Connection(PROTOCOL)),
        ("6.5 SETTINGS of five octets", vec![frame(SETTINGS, 0, 0, &[0; 5])], Connection(SIZE)),
        ("6.5 acknowledgement with payload", vec![frame(SETTINGS, ACK, 0, &[0; 6])], Connection(SIZE)),
        ("6.5 acknowledgement of nothing", vec![frame(SETTINGS, ACK, 0, &[])], Connection(PROTOCOL)),
        ("6.5.2 ENABLE_PUSH of 2", vec![settings(&[(2, 2)])], Connection(PROTOCOL)),
        ("6.5.2 window of 2^31", vec![settings(&[(4, 1 << 31)])], Connection(FLOW)),
        ("6.5.2 frames of 16383", vec![settings(&[(5, 16383)])], Connection(PROTOCOL)),
        ("6.5.2 frames of 2^24", vec![settings(&[(5, 1 << 24)])], Connection(PROTOCOL)),
        ("6.5.2 unknown setting", vec![settings(&[(0xff, 1), (1, 0), (1, 100)])], Fine),
        (
            "6.9.2 windows pushed over 2^31-1",
            vec![headers(1, false, &POST), window_update(1, (1 << 31) - 1 - 65535), settings(&[(4, 65536)])],
            Connection(FLOW),
        ),
        (
            "6.6 PUSH_PROMISE from a client",
            vec![headers(1, false, &POST), frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])],
            Connection(PROTOCOL),
        ),
        ("6.7 PING on a stream", vec![frame(PING, 0, 1, &[0; 8])], Connection(PROTOCOL)),
        ("6.7 PING of seven octets", vec![frame(PING, 0, 0, &[0; 7])], Connection(SIZE)),
        ("6.7 answer to no PING", vec![frame(PING, ACK, 0, &[0; 8])], Fine),
        ("6.8 GOAWAY on a stream", vec![frame(GOAWAY, 0, 1, &[0; 8])], Connection(PROTOCOL)),
        ("6.8 GOAWAY of seven octets", vec![frame(GOAWAY, 0, 0, &[0; 7])], Connection(SIZE)),
        ("6.9 update by 0", vec![window_update(0, 0)], Connection(PROTOCOL)),
        ("6.9 update of a stream by 0", vec![headers(1, false, &POST), window_update(1, 0)], Stream(1, PROTOCOL)),
        ("6.9 update of three octets", vec![frame(WINDOW_UPDATE, 0, 0, &[0; 3])], Connection(SIZE)),
        ("6.9 update of an idle stream", vec![window_update(1, 1)], Connection(PROTOCOL)),
        ("6.9.1 window over 2^31-1", vec![window_update(0, (1 << 31) - 1)], Connection(FLOW)),
        (
            "6.9.1 window of a stream over 2^31-1",
            vec![headers(1, false, &POST), window_update(1, (1 << 31) - 1)],
            Stream(1, FLOW),
        ),
        ("6.10 CONTINUATION without HEADERS", vec![frame(CONTINUATION, 4, 1, &block(&GET))], Connection(PROTOCOL)),
        (
            "6.10 CONTINUATION after the end",
            vec![headers(1, true, &GET), frame(CONTINUATION, 4, 1, &[])],
            Connection(PROTOCOL),
        ),
        (
            "6.10 CONTINUATION on stream 0",
            vec![frame(HEADERS, 1, 1, &block(&GET)), frame(CONTINUATION, 4, 0, &[])],
            Connection(PROTOCOL),
        ),
        (
            "6.10 a block in three frames",
            vec![
                frame(HEADERS, 1, 1, &block(&GET)[..2]),
                frame(CONTINUATION, 0, 1, &[]),
                frame(CONTINUATION, 4, 1, &block(&GET)[2..]),
            ],
            Fine,
        ),
    ]);
}

#[test]
fn states_of_streams() {
    check(vec![
        ("5.1 DATA on an idle stream", vec![frame(DATA, 1, 1, b"x")], Connection(PROTOCOL)),
        ("5.1 DATA after END_STREAM", vec![headers(1, true, &GET), frame(DATA, 1, 1, b"x")], Stream(1, CLOSED)),
        ("5.1 HEADERS after END_STREAM", vec![headers(1, true, &GET), headers(1, true, &GET)], Stream(1, CLOSED)),
        ("5.1 update after END_STREAM", vec![headers(1, true, &GET), window_update(1, 9)], Fine),
        (
            "5.1 DATA after RST_STREAM",
            vec![headers(1, false, &POST), rst(1, 8), frame(DATA, 1, 1, b"x")],
            Connection(CLOSED),
        ),
        (
            "5.1 HEADERS after RST_STREAM",
            vec![headers(1, false, &POST), rst(1, 8), headers(1, true, &GET)],
            Connection(CLOSED),
        ),
        (
            "5.1 update, PRIORITY and RST_STREAM after RST_STREAM",
            vec![headers(1, false, &POST), rst(1, 8), window_update(1, 9), frame(PRIORITY, 0, 1, &[0; 5]), rst(1, 8)],
            Fine,
        ),
        ("5.1.1 even stream", vec![headers(2, true, &GET)], Connection(PROTOCOL)),
        ("5.1.1 lower stream", vec![headers(5, true, &GET), headers(3, true, &GET)], Connection(PROTOCOL)),
        (
            "5.1 late frames of a stream that was reset here",
            vec![
                headers(1, false, &POST),
                window_update(1, 0),
                frame(DATA, 0, 1, b"late"),
                headers(1, true, &[("x", "y")]),
            ],
            Stream(1, PROTOCOL),
        ),
        (
            "6.9 more than the stream's window",
            vec![
                headers(1, false, &POST),
                frame(DATA, 0, 1, &[0; 16384]),
                frame(DATA, 0, 1, &[0; 16384]),
                frame(DATA, 0, 1, &[0; 16384]),
                frame(DATA, 0, 1, &[0; 16384]),
                frame(DATA, 0, 1, b"x"),
            ],
            Stream(1, FLOW),
        ),
    ]);
    let small = Limits { concurrent_streams: 2, ..Limits::default() };
    let mut c = server(&small);
    feed(&mut c, &[headers(1, false, &POST), headers(3, false, &POST), headers(5, false, &POST)].concat()).unwrap();
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| (f.kind, f.id, f.code())).collect::<Vec<_>>(), [(RST_STREAM, 5, REFUSED)]);
}

#[test]
fn a_connection_window_cannot_be_exceeded() {
    let limits = Limits { connection_window: 65535, stream_window: 1 << 20, held: 0, ..Limits::default() };
    let mut c = server(&limits);
    let mut input = headers(1, false, &POST);
    (0..3).for_each(|_| input.extend(frame(DATA, 0, 1, &[0; 16384])));
    input.extend(frame(DATA, 0, 1, &[0; 16383]));
    assert!(feed(&mut c, &input).is_ok());
    assert_eq!(feed(&mut c, &frame(DATA, 0, 1, b"x")).unwrap_err().reason.0, FLOW);
}

#[test]
fn requests() {
    let get = |more: &[(&'static str, &'static str)]| vec![frame(HEADERS, 5, 1, &with(&GET, more))];
    let raw = |parts: &[(&str, &str)]| vec![headers(1, true, parts)];
    let octets = |name: &[u8], value: &[u8]| vec![frame(HEADERS, 5, 1, &[block(&GET), literal(name, value)].concat())];
    let post = |length: &'static str| frame(HEADERS, 4, 1, &with(&POST, &[("content-length", length)]));
    let bad = Stream(1, PROTOCOL);
    check(vec![
        ("8.2.1 upper case", octets(b"X-A", b"1"), bad),
        ("8.2.1 space in a name", octets(b"x a", b"1"), bad),
        ("8.2.1 colon in a name", octets(b"x:a", b"1"), bad),
        ("8.2.1 empty name", octets(b"", b"1"), bad),
        ("8.2.1 octet over 127 in a name", octets(b"x\xe4", b"1"), bad),
        ("8.2.1 NUL", octets(b"x", b"a\0b"), bad),
        ("8.2.1 CR", octets(b"x", b"a\rb"), bad),
        ("8.2.1 LF", octets(b"x", b"a\nb"), bad),
        ("8.2.1 other control", octets(b"x", b"a\x7fb"), bad),
        ("8.2.1 leading space", octets(b"x", b" a"), bad),
        ("8.2.1 trailing tab", octets(b"x", b"a\t"), bad),
        ("8.2.1 inner blanks and octets over 127", octets(b"x", b"a \t\xc3\xa4"), Fine),
        ("8.2.2 connection", get(&[("connection", "close")]), bad),
        ("8.2.2 keep-alive", get(&[("keep-alive", "1")]), bad),
        ("8.2.2 proxy-connection", get(&[("proxy-connection", "close")]), bad),
        ("8.2.2 transfer-encoding", get(&[("transfer-encoding", "chunked")]), bad),
        ("8.2.2 upgrade", get(&[("upgrade", "h2c")]), bad),
        ("8.2.2 te: trailers, deflate", get(&[("te", "trailers, deflate")]), bad),
        ("8.2.2 te: trailers", get(&[("te", "trailers")]), Fine),
        (
            "8.3 unknown pseudo-header",
            raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":test", "1")]),
            bad,
        ),
        (
            "8.3 :status in a request",
            raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":status", "1")]),
            bad,
        ),
        ("8.3 pseudo after regular", raw(&[(":method", "GET"), (":scheme", "http"), ("x", "y"), (":path", "/")]), bad),
        ("8.3.1 no :method", raw(&[(":scheme", "http"), (":path", "/")]), bad),
        ("8.3.1 no :scheme", raw(&[(":method", "GET"), (":path", "/")]), bad),
        ("8.3.1 no :path", raw(&[(":method", "GET"), (":scheme", "http")]), bad),
        ("8.3.1 empty :path", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "")]), bad),
        (
            "8.3.1 two :method",
            get(&[])
                .into_iter()
                .map(|_| {
                    headers(1, true, &[(":method", "GET"), (":method", "GET"), (":scheme", "http"), (":path", "/")])
                })
                .collect(),
            bad,
        ),
        (
            "8.3.1 two :scheme",
            raw(&[(":method", "GET"), (":scheme", "http"), (":scheme", "http"), (":path", "/")]),
            bad,
        ),
        ("8.3.1 two :path", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":path", "/")]), bad),
        (
            "8.3.1 two :authority",
            raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"), (":authority", "a")]),
            bad,
        ),
        (
            "8.3.1 userinfo",
            raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "u@a.test")]),
            bad,
        ),
        (
            "8.3.1 empty :authority",
            raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "")]),
            bad,
        ),
        ("8.3.1 no authority at all", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/")]), Fine),
        ("8.3.1 space in :path", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/a b")]), bad),
        ("8.3.1 absolute :path", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "http://a/")]), bad),
        ("8.3.1 asterisk of GET", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "*")]), bad),
        ("8.3.1 asterisk of OPTIONS", raw(&[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")]), Fine),
        ("8.3.1 method with a space", raw(&[(":method", "GE T"), (":scheme", "http"), (":path", "/")]), bad),
        ("8.3.1 scheme with a slash", raw(&[(":method", "GET"), (":scheme", "ht/tp"), (":path", "/")]), bad),
        ("8.5 CONNECT", raw(&[(":method", "CONNECT"), (":authority", "a.test:80")]), Fine),
        ("8.5 CONNECT with :path", raw(&[(":method", "CONNECT"), (":authority", "a.test:80"), (":path", "/")]), bad),
        ("8.5 CONNECT without :authority", raw(&[(":method", "CONNECT")]), bad),
        ("host equal", get(&[("host", "A.test")]), Fine),
        ("host different", get(&[("host", "b.test")]), bad),
        (
            "two hosts",
            raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a"), ("host", "a")]),
            bad,
        ),
        ("host invalid", raw(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a/b")]), bad),
        ("8.1.1 content-length of a GET without body", get(&[("content-length", "1")]), bad),
        ("8.1.1 content-length 0", get(&[("content-length", "0")]), Fine),
        ("8.1.1 content-length +5", get(&[("content-length", "+5")]), bad),
        ("8.1.1 content-length 5, 5", vec![post("5, 5")], bad),
        (
            "8.1.1 two different lengths",
            vec![frame(HEADERS, 4, 1, &with(&POST, &[("content-length", "1"), ("content-length", "2")]))],
            bad,
        ),
        ("8.1.1 length too large for a number", vec![post("99999999999999999999")], bad),
        ("8.1.1 body as long as it says", vec![post("3"), frame(DATA, 0, 1, b"ab"), frame(DATA, 1, 1, b"c")], Fine),
        ("8.1.1 body too short", vec![post("3"), frame(DATA, 1, 1, b"ab")], bad),
        ("8.1.1 body too long", vec![post("3"), frame(DATA, 0, 1, b"ab"), frame(DATA, 0, 1, b"cd")], bad),
        (
            "8.1.1 too short before trailers",
            vec![post("3"), frame(DATA, 0, 1, b"ab"), headers(1, true, &[("x", "y")])],
            bad,
        ),
        (
            "8.1 trailers",
            vec![headers(1, false, &POST), frame(DATA, 0, 1, b"ab"), headers(1, true, &[("x", "y")])],
            Fine,
        ),
        ("8.1 trailers without END_STREAM", vec![headers(1, false, &POST), headers(1, false, &[("x", "y")])], bad),
        ("8.1 pseudo-header in trailers", vec![headers(1, false, &POST), headers(1, true, &[(":method", "GET")])], bad),
        (
            "8.1 content-length in trailers",
            vec![headers(1, false, &POST), headers(1, true, &[("content-length", "0")])],
            bad,
        ),
        ("8.1 connection in trailers", vec![headers(1, false, &POST), headers(1, true, &[("connection", "x")])], bad),
    ]);
}

#[test]
fn cookies_are_joined_and_hosts_become_the_authority() {
    let mut c = server(&Limits::default());
    let crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")];
    let fields = [&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "h.test")][..], &crumbs].concat();
    let events = feed(&mut c, &headers(1, true, &fields)).unwrap();
    let [Owned::Request(1, head, true)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(head.authority, b"h.test");
    assert_eq!(head.headers, list(&[("x", "y"), ("cookie", "a=1; b=2")]));
    assert!(!head.headers.contains(b"host"));
}

/// A client with a GET on stream 1, a HEAD on 3 and an unfinished POST on 5.
fn asking() -> Connection {
    let mut c = client(&Limits::default());
    for (method, end) in [("GET", true), ("HEAD", true), ("POST", false)] {
        c.send_request(&request(method, "/", &[]), end).unwrap();
    }
    take(&mut c);
    c
}

#[test]
fn responses() {
    let ok = [(":status", "200")];
    for (name, input, expected) in [
        ("even stream", headers(2, true, &ok), Connection(PROTOCOL)),
        ("stream never opened", headers(7, true, &ok), Connection(PROTOCOL)),
        ("DATA on a stream never opened", frame(DATA, 1, 7, b"x"), Connection(PROTOCOL)),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]), Connection(PROTOCOL)),
        ("ENABLE_PUSH of 1", settings(&[(2, 1)]), Connection(PROTOCOL)),
        ("ENABLE_PUSH of 0", settings(&[(2, 0)]), Fine),
        ("no :status", headers(1, true, &[("x", "y")]), Stream(1, PROTOCOL)),
        (":status of two digits", headers(1, true, &[(":status", "20")]), Stream(1, PROTOCOL)),
        (":status 099", headers(1, true, &[(":status", "099")]), Stream(1, PROTOCOL)),
        (":status 101", headers(1, false, &[(":status", "101")]), Stream(1, PROTOCOL)),
        ("two :status", headers(1, true, &[(":status", "200"), (":status", "200")]), Stream(1, PROTOCOL)),
        (":path in a response", headers(1, true, &[(":status", "200"), (":path", "/")]), Stream(1, PROTOCOL)),
        ("connection", headers(1, true, &[(":status", "200"), ("connection", "x")]), Stream(1, PROTOCOL)),
        ("1xx ends the stream", headers(1, true, &[(":status", "103")]), Stream(1, PROTOCOL)),
        ("1xx, then 200", [headers(1, false, &[(":status", "103")]), headers(1, true, &ok)].concat(), Fine),
        ("DATA before the head", frame(DATA, 1, 1, b"x"), Stream(1, PROTOCOL)),
        ("second head", [headers(1, false, &ok), headers(1, true, &ok)].concat(), Stream(1, PROTOCOL)),
        (
            "body longer than content-length",
            [headers(1, false, &[(":status", "200"), ("content-length", "1")]), frame(DATA, 1, 1, b"ab")].concat(),
            Stream(1, PROTOCOL),
        ),
        (
            "content-length without body",
            headers(1, true, &[(":status", "200"), ("content-length", "1")]),
            Stream(1, PROTOCOL),
        ),
        ("content-length of HEAD", headers(3, true, &[(":status", "200"), ("content-length", "1")]), Fine),
        ("body of HEAD", [headers(3, false, &ok), frame(DATA, 1, 3, b"a")].concat(), Stream(3, PROTOCOL)),
        (
            "body of 204",
            [headers(1, false, &[(":status", "204")]), frame(DATA, 1, 1, b"a")].concat(),
            Stream(1, PROTOCOL),
        ),
        ("304 with content-length", headers(1, true, &[(":status", "304"), ("content-length", "9")]), Fine),
        ("DATA after the end", [headers(5, true, &ok), frame(DATA, 0, 5, b"x")].concat(), Stream(5, CLOSED)),
        ("DATA on a closed stream", [headers(1, true, &ok), frame(DATA, 0, 1, b"x")].concat(), Connection(CLOSED)),
        ("HEADERS on a closed stream", [headers(1, true, &ok), headers(1, true, &ok)].concat(), Connection(CLOSED)),
    ] {
        let mut c = asking();
        let result = feed(&mut c, &input);
        let out = sent(&mut c);
        match (result, expected) {
            (Err(e), Connection(code)) => assert_eq!(e.reason.0, code, "{name}"),
            (Ok(events), Stream(id, code)) => {
                assert_eq!(
                    out.iter().find(|f| f.kind == RST_STREAM).map(|f| (f.id, f.code())),
                    Some((id, code)),
                    "{name}"
                );
                assert_eq!(events.last(), Some(&Owned::Reset(id, code)), "{name}");
            }
            (Ok(_), Fine) => assert!(!out.iter().any(|f| matches!(f.kind, RST_STREAM | GOAWAY)), "{name}"),
            (result, expected) => panic!("{name}: {result:?}, not {expected:?}"),
        }
    }
}

#[test]
fn heads_over_the_limits() {
    let limits = Limits { head_size: 2000, header_count: 20, trailer_size: 300, ..Limits::default() };
    // Too large when decoded: answered with 431, and the connection goes on.
    let big = "v".repeat(1900);
    let many: Vec<(&str, &str)> = (0..17).map(|_| ("x", "y")).collect();
    for fields in [[&GET[..], &[("x", &big[..])]].concat(), [&GET[..], &many].concat()] {
        for end in [true, false] {
            let mut c = server(&limits);
            assert_eq!(feed(&mut c, &headers(1, end, &fields)).unwrap(), []);
            let out = sent(&mut c);
            let kinds: Vec<u8> = out.iter().map(|f| f.kind).collect();
            assert_eq!(kinds, if end { vec![HEADERS] } else { vec![HEADERS, RST_STREAM] });
            assert_eq!((out[0].id, out[0].end(), &out[0].payload[out[0].payload.len() - 3..]), (1, true, &b"431"[..]));
            assert!(matches!(feed(&mut c, &headers(3, true, &GET)).unwrap()[..], [Owned::Request(3, ..)]));
        }
    }
    // Too large as it comes.
    let mut c = server(&limits);
    assert_eq!(feed(&mut c, &frame(HEADERS, 4, 1, &[0; 2001])).unwrap_err().reason.0, CALM);
    // Trailers have their own limit.
    let mut c = server(&limits);
    let trailers = "t".repeat(290);
    let input = [headers(1, false, &POST), headers(1, true, &[("x", &trailers)])].concat();
    assert_eq!(feed(&mut c, &input).unwrap().last(), Some(&Owned::Reset(1, CALM)));
}
