//! Properties of the HTTP/1 codec: cutting changes nothing, encoding and decoding are inverse, nothing panics.

mod h1_support;

use h1_support::{Outcome, requests, responses};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use weft_wire::h1::{self, Event, Framing, RequestDecoder};
use weft_wire::{Headers, Limits, Request, Response, Version};

/// The same cases in every run.
fn config(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(0x77_65_66_74), failure_persistence: None, ..Config::default() }
}

fn small_limits() -> Limits {
    Limits {
        head_size: 300,
        header_count: 8,
        chunk_line: 24,
        chunk_extensions: 40,
        trailer_size: 80,
        ..Limits::default()
    }
}

/// Lines that real and hostile peers send, put together at random.
fn request_stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        5 => Just("GET / HTTP/1.1\r\n"),
        3 => Just("POST /a?b=c HTTP/1.1\r\n"),
        1 => Just("HEAD /x HTTP/1.0\r\n"),
        1 => Just("OPTIONS * HTTP/1.1\r\n"),
        1 => Just("GET http://web:80/p?q HTTP/1.1\r\n"),
        1 => Just("CONNECT web:443 HTTP/1.1\r\n"),
        1 => Just("GET /a b HTTP/1.1\r\n"),
        1 => Just("GET / HTTP/1.1\n"),
        1 => Just("\r\nGET / HTTP/1.1\r\n"),
    ];
    let field = prop_oneof![
        Just("accept: */*\r\n"),
        Just("content-length: 5\r\n"),
        Just("Content-Length: 0\r\n"),
        Just("content-length: 5, 5\r\n"),
        Just("transfer-encoding: chunked\r\n"),
        Just("Transfer-Encoding: gzip, chunked\r\n"),
        Just("connection: close\r\n"),
        Just("connection: keep-alive, x-hop\r\n"),
        Just("x-hop: 1\r\n"),
        Just("connection: upgrade\r\nupgrade: websocket\r\n"),
        Just("te: trailers\r\n"),
        Just("expect: 100-continue\r\n"),
        Just(" folded\r\n"),
        Just("x : y\r\n"),
        Just("x: a\rb\r\n"),
        Just("host: other\r\n"),
        Just("cookie: a=b; c=d\r\n"),
    ];
    let body = prop_oneof![
        4 => Just(""),
        3 => Just("hello"),
        3 => Just("5\r\nhello\r\n0\r\n\r\n"),
        1 => Just("5;x=y\r\nhello\r\n0\r\nx-t: 1\r\n\r\n"),
        1 => Just("00000005\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        1 => Just("5\r\nhelloX0\r\n\r\n"),
        1 => Just("5\nhello\r\n0\r\n\r\n"),
        1 => Just("0\r\ncontent-length: 4\r\n\r\n"),
        1 => Just("fffffffffffffffff\r\n"),
    ];
    let message = (line, prop::bool::weighted(0.9), prop::collection::vec(field, 0..4), body).prop_map(
        |(line, host, fields, body)| {
            let host = if host { "Host: web\r\n" } else { "" };
            format!("{line}{host}{}\r\n{body}", fields.concat()).into_bytes()
        },
    );
    prop::collection::vec(message, 1..4).prop_map(|m| m.concat())
}

fn response_stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        5 => Just("HTTP/1.1 200 OK\r\n"),
        1 => Just("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
        1 => Just("HTTP/1.1 204 No Content\r\n"),
        1 => Just("HTTP/1.1 304\r\n"),
        1 => Just("HTTP/1.0 200 \r\n"),
        1 => Just("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n"),
        1 => Just("HTTP/1.1 099 x\r\n"),
        1 => Just("HTTP/1.1 500 caf\u{e9}\r\n"),
    ];
    let field = prop_oneof![
        Just("content-type: text/plain\r\n"),
        Just("content-length: 5\r\n"),
        Just("transfer-encoding: chunked\r\n"),
        Just("connection: close\r\n"),
        Just("Keep-Alive: timeout=5\r\n"),
        Just("x: \u{1}\r\n"),
    ];
    let body = prop_oneof![
        2 => Just(""),
        3 => Just("hello"),
        3 => Just("5\r\nhello\r\n0\r\n\r\n"),
        1 => Just("5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n"),
        1 => Just("5 \r\nhello\r\n0\r\n\r\n"),
    ];
    let message = (line, prop::collection::vec(field, 0..3), body)
        .prop_map(|(line, fields, body)| format!("{line}{}\r\n{body}", fields.concat()).into_bytes());
    prop::collection::vec(message, 1..4).prop_map(|m| m.concat())
}

fn methods() -> impl Strategy<Value = Vec<&'static [u8]>> {
    prop::collection::vec(
        prop_oneof![4 => Just(&b"GET"[..]), 1 => Just(&b"HEAD"[..]), 1 => Just(&b"CONNECT"[..])],
        1..4,
    )
}

/// An encoder's input: whatever a codec could have produced.
fn headers() -> impl Strategy<Value = Headers> {
    let name = "[a-z][a-z0-9_-]{0,12}";
    let value = "([!-~\u{a1}-\u{ff}]([ \t!-~]{0,20}[!-~])?)?";
    prop::collection::vec((name, value), 0..8).prop_map(|fields| {
        let mut headers = Headers::new();
        for (name, value) in fields {
            let owned = ["host", "te", "connection", "upgrade", "expect", "keep-alive"];
            if !owned.contains(&&name[..]) {
                headers.push(name.as_bytes(), value.as_bytes());
            }
        }
        headers
    })
}

fn request_head() -> impl Strategy<Value = Request> {
    (
        "[A-Z]{1,9}",
        "[a-z0-9.-]{1,20}(:[1-9][0-9]{0,3})?",
        "/[a-zA-Z0-9/._~%-]{0,30}(\\?[a-z=&]{0,10})?",
        headers(),
        any::<bool>(),
    )
        .prop_filter("CONNECT has no path", |(method, ..)| method != "CONNECT")
        .prop_map(|(method, authority, path, headers, absolute)| Request {
            version: Version::H11,
            method: method.into_bytes(),
            scheme: if absolute { b"http".to_vec() } else { Vec::new() },
            authority: authority.into_bytes(),
            path: path.into_bytes(),
            absolute_form: absolute,
            headers,
        })
}

#[derive(Debug, Clone)]
struct Body {
    framing: Framing,
    pieces: Vec<Vec<u8>>,
    trailers: Option<Headers>,
}

fn body() -> impl Strategy<Value = Body> {
    (prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5), headers(), 0..3u8).prop_map(
        |(pieces, trailers, kind)| {
            let length = pieces.iter().map(|p| p.len() as u64).sum();
            match kind {
                0 => Body { framing: Framing::None, pieces: Vec::new(), trailers: None },
                1 => Body { framing: Framing::Length(length), pieces, trailers: None },
                _ => Body { framing: Framing::Chunked, pieces, trailers: (!trailers.is_empty()).then_some(trailers) },
            }
        },
    )
}

fn put_body(body: &Body, out: &mut Vec<u8>) {
    for piece in &body.pieces {
        h1::encode_data(body.framing, piece, out);
    }
    h1::encode_end(body.framing, body.trailers.as_ref(), out);
}

fn without_length(headers: &Headers) -> Headers {
    let mut headers = headers.clone();
    headers.remove(b"content-length");
    headers
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn requests_do_not_depend_on_how_the_input_is_cut(input in request_stream(), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
        for limits in [Limits::default(), small_limits()] {
            let whole = requests(&input, &[], &limits);
            prop_assert_eq!(&whole, &requests(&input, &cuts, &limits));
            let every: Vec<usize> = (0..input.len()).collect();
            prop_assert_eq!(&whole, &requests(&input, &every, &limits));
        }
    }

    #[test]
    fn responses_do_not_depend_on_how_the_input_is_cut(input in response_stream(), methods in methods(), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
        for limits in [Limits::default(), small_limits()] {
            let whole = responses(&input, &[], &methods, &limits);
            prop_assert_eq!(&whole, &responses(&input, &cuts, &methods, &limits));
            let every: Vec<usize> = (0..input.len()).collect();
            prop_assert_eq!(&whole, &responses(&input, &every, &methods, &limits));
        }
    }

    #[test]
    fn damaged_streams_do_not_depend_on_how_they_are_cut(
        mut input in request_stream(),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        for (at, octet) in damage {
            let at = at % input.len();
            input[at] = octet;
        }
        let limits = Limits::default();
        prop_assert_eq!(requests(&input, &[], &limits), requests(&input, &cuts, &limits));
        prop_assert_eq!(responses(&input, &[], &[b"GET"], &limits), responses(&input, &cuts, &[b"GET"], &limits));
    }

    #[test]
    fn any_octets_are_survived(input in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(any::<usize>(), 0..4)) {
        requests(&input, &cuts, &Limits::default());
        responses(&input, &cuts, &[b"GET", b"HEAD"], &Limits::default());
    }

    #[test]
    fn requests_come_out_as_they_went_in(head in request_head(), body in body()) {
        let mut wire = Vec::new();
        h1::encode_request(&head, body.framing, &mut wire);
        put_body(&body, &mut wire);
        // A second one behind it shows that the end was found.
        wire.extend_from_slice(b"GET /next HTTP/1.1\r\nhost: web\r\n\r\n");
        let outcome = requests(&wire, &[], &Limits::default());
        prop_assert_eq!(outcome.error, None, "{}", String::from_utf8_lossy(&wire));
        prop_assert_eq!(outcome.messages.len(), 2);
        let first = &outcome.messages[0];
        prop_assert_eq!(first.framing, body.framing);
        prop_assert_eq!(&without_length(&first.head.headers), &head.headers);
        let parts = |h: &Request| (h.method.clone(), h.scheme.clone(), h.authority.clone(), h.path.clone(), h.absolute_form);
        prop_assert_eq!(parts(&first.head), parts(&head));
        prop_assert_eq!(&first.body, &body.pieces.concat());
        prop_assert_eq!(&first.trailers, &body.trailers);
        // What was decoded encodes to the same octets.
        let mut again = Vec::new();
        h1::encode_request(&first.head, first.framing, &mut again);
        prop_assert!(wire.starts_with(&again));
    }

    #[test]
    fn responses_come_out_as_they_went_in(
        status in 200u16..1000, headers in headers(), mut body in body(), keep_alive in any::<bool>(), h10 in any::<bool>(),
    ) {
        let version = if h10 { Version::H10 } else { Version::H11 };
        let bodiless = status == 204 || status == 304;
        if bodiless {
            body = Body { framing: Framing::None, pieces: Vec::new(), trailers: None };
        } else if body.framing == Framing::None {
            body.framing = Framing::UntilClose;
        }
        body.framing = body.framing.towards(version);
        let head = Response { version, status, headers };
        let mut wire = Vec::new();
        h1::encode_response(&head, body.framing, keep_alive, version, &mut wire);
        put_body(&body, &mut wire);
        let outcome = responses(&wire, &[], &[b"GET"], &Limits::default());
        prop_assert_eq!(outcome.error, None, "{}", String::from_utf8_lossy(&wire));
        let first = &outcome.messages[0];
        prop_assert!(first.complete);
        prop_assert_eq!(first.framing, body.framing);
        prop_assert_eq!(first.keep_alive, keep_alive && body.framing != Framing::UntilClose);
        prop_assert_eq!((first.head.status, first.head.version), (status, version));
        prop_assert_eq!(&without_length(&first.head.headers), &head.headers);
        prop_assert_eq!(&first.body, &body.pieces.concat());
        prop_assert_eq!(&first.trailers, &body.trailers.filter(|_| body.framing == Framing::Chunked));
    }

    /// The second lock: heads that no codec would have let through still make exactly one message.
    #[test]
    fn hostile_heads_are_written_as_one_message(
        method in prop::collection::vec(any::<u8>(), 0..12),
        authority in prop::collection::vec(any::<u8>(), 0..12),
        path in prop::collection::vec(any::<u8>(), 0..24),
        fields in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..20)), 0..5),
        smuggled in any::<bool>(),
    ) {
        let mut head = Request { method, authority, path, ..Request::default() };
        for (name, value) in &fields {
            head.headers.push(name, value);
        }
        if smuggled {
            head.path.extend_from_slice(b" HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled");
            head.headers.push(b"x", b"y\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
            head.headers.push(b"transfer-encoding", b"chunked");
            head.headers.push(b"content-length", b"100");
        }
        let mut wire = Vec::new();
        h1::encode_request(&head, Framing::Length(3), &mut wire);
        let end = wire.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        prop_assert_eq!(end, Some(wire.len()), "one head");
        prop_assert_eq!(wire.split(|&b| b == b'\n').next().map(|l| l.split(|&b| b == b' ').count()), Some(3), "three words");
        h1::encode_data(Framing::Length(3), b"abc", &mut wire);
        let outcome = requests(&wire, &[], &Limits::default());
        prop_assert!(outcome.messages.len() <= 1, "{:?}", outcome);
    }

    /// Responses keep to one head as well.
    #[test]
    fn hostile_responses_are_written_as_one_message(
        status in any::<u16>(),
        fields in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..20)), 0..5),
    ) {
        let mut head = Response { status, ..Response::default() };
        for (name, value) in &fields {
            head.headers.push(name, value);
        }
        let mut wire = Vec::new();
        h1::encode_response(&head, Framing::Chunked, true, Version::H11, &mut wire);
        let end = wire.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        prop_assert_eq!(end, Some(wire.len()), "one head");
    }
}

#[test]
fn a_body_is_passed_without_a_copy() {
    let mut decoder = RequestDecoder::new(&Limits::default());
    let input = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
    let (used, event) = decoder.decode(input).unwrap();
    assert!(matches!(event, Some(Event::Head(_))));
    let rest = &input[used..];
    let (_, event) = decoder.decode(rest).unwrap();
    let Some(Event::Data(data)) = event else { panic!("{event:?}") };
    assert!(std::ptr::eq(data, rest));
}

#[test]
fn helpers_agree_on_an_outcome() {
    let outcome: Outcome<Request> = requests(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &[3, 9], &Limits::default());
    assert!(outcome.messages[0].complete && outcome.error.is_none());
}
