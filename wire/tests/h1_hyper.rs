//! hyper as the oracle: whatever our decoders accept, hyper accepts with the same framing.

mod h1_support;

use h1_support::{hyper_agrees_on_requests, hyper_agrees_on_response, requests, responses};
use weft_wire::Limits;

const LINES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a?b=c HTTP/1.1\r\n",
    "PUT /\u{e9} HTTP/1.1\r\n",
    "GET /a|b{c}?d=`e` HTTP/1.1\r\n",
    "GET /?a=b#c HTTP/1.1\r\n",
    "HEAD /x HTTP/1.0\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "OPTIONS http://web HTTP/1.1\r\n",
    "GET http://web:80/p?q HTTP/1.1\r\n",
    "GET HTTP://[::1]:80?q HTTP/1.1\r\n",
    "GET http://u@web/ HTTP/1.1\r\n",
    "CONNECT web:443 HTTP/1.1\r\n",
    "GET  / HTTP/1.1\r\n",
    "GET / HTTP/1.1 \r\n",
    "GET / HTTP/1.2\r\n",
    "GET\t/ HTTP/1.1\r\n",
    "M-SEARCH /x HTTP/1.1\r\n",
    "\r\nGET / HTTP/1.1\r\n",
];

const FIELDS: &[&str] = &[
    "accept: */*\r\n",
    "content-length: 5\r\n",
    "Content-Length: 005\r\n",
    "Content-Length: 0\r\n",
    "content-length: +5\r\n",
    "content-length: 5, 5\r\n",
    "content-length: 5 \r\n",
    "content-length:\t5\r\n",
    "content-length: 0x5\r\n",
    "content-length: 9223372036854775807\r\n",
    "content-length: \r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: Chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: chunked, identity\r\n",
    "transfer-encoding: chunked,\r\n",
    "transfer-encoding:\r\n",
    "transfer-encoding : chunked\r\n",
    "transfer-encoding: \"chunked\"\r\n",
    "transfer_encoding: chunked\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "connection: content-length\r\n",
    "connection: transfer-encoding\r\n",
    "te: trailers\r\n",
    "x: a\tb\r\n",
    "x:\r\n",
    "x: \u{e9}\r\n",
    "x: a\rb\r\n",
    "x: a\nb: c\r\n",
    " x: y\r\n",
    "expect: 100-continue\r\n",
    "upgrade: h2c\r\nconnection: upgrade\r\n",
];

const BODIES: &[&str] = &[
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x=y\r\nhello\r\n0\r\nx-t: 1\r\nx-u: 2\r\n\r\n",
    "5 ;x\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n00\r\n\r\n",
    "5\r\nhello\r\n0;last\r\n\r\n",
    "5;\"\n\"\r\nhello\r\n0\r\n\r\n",
    "5\r\nhelloworld\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "0\r\ntransfer-encoding: chunked\r\n\r\n",
    "0\r\n x: folded\r\n\r\n",
    "0\r\n\r\nGET /behind HTTP/1.1\r\nhost: b\r\n\r\n",
];

const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200\r\n",
    "HTTP/1.1 200 \r\n",
    "HTTP/1.1 404 caf\u{e9}\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1 999 x\r\n",
    "HTTP/1.1 99 x\r\n",
    "HTTP/1.1 2000 x\r\n",
    "HTTP/1.1  200 x\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
    "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 201 Created\r\n",
];

fn pick<'a>(rng: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

/// Damages some octets, now and then.
fn damage(rng: &mut fastrand::Rng, mut input: Vec<u8>) -> Vec<u8> {
    if rng.u8(..4) == 0 && !input.is_empty() {
        let interesting = b"\r\n\t :,;0123abcXHTP/.\x00\x0b\x7f\x80\xff";
        for _ in 0..rng.usize(1..3) {
            let at = rng.usize(..input.len());
            let octet = interesting[rng.usize(..interesting.len())];
            match rng.u8(..3) {
                0 => input[at] = octet,
                1 => input.insert(at, octet),
                _ => drop(input.remove(at)),
            }
            if input.is_empty() {
                break;
            }
        }
    }
    input
}

#[test]
fn hyper_sees_the_requests_that_we_see() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut stream = String::new();
        for _ in 0..rng.usize(1..4) {
            // Mostly good lines, so that the oracle has something to compare.
            stream.push_str(if rng.bool() { LINES[rng.usize(..2)] } else { pick(&mut rng, LINES) });
            if rng.u8(..10) > 0 {
                stream.push_str("host: web\r\n");
            }
            for _ in 0..rng.usize(..3) {
                stream.push_str(pick(&mut rng, FIELDS));
            }
            if rng.u8(..3) == 0 {
                stream.push_str(["content-length: 5\r\n", "transfer-encoding: chunked\r\n"][rng.usize(..2)]);
            }
            stream.push_str("\r\n");
            stream.push_str(pick(&mut rng, BODIES));
        }
        let input = damage(&mut rng, stream.into_bytes());
        let ours = requests(&input, &[], &Limits::default());
        accepted += ours.messages.iter().filter(|m| m.complete).count();
        refused += usize::from(ours.error.is_some());
        hyper_agrees_on_requests(&input, &ours);
    }
    assert!(accepted > 1000 && refused > 1000, "both kinds are tried: {accepted} accepted, {refused} refused");
}

#[test]
fn hyper_sees_the_responses_that_we_see() {
    let mut rng = fastrand::Rng::with_seed(2);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut stream = String::new();
        stream.push_str(if rng.bool() { STATUS_LINES[0] } else { pick(&mut rng, STATUS_LINES) });
        for _ in 0..rng.usize(..3) {
            stream.push_str(pick(&mut rng, FIELDS));
        }
        if rng.bool() {
            stream.push_str(["content-length: 5\r\n", "transfer-encoding: chunked\r\n"][rng.usize(..2)]);
        }
        stream.push_str("\r\n");
        stream.push_str(pick(&mut rng, BODIES));
        let input = damage(&mut rng, stream.into_bytes());
        let method = ["GET", "GET", "POST", "HEAD"][rng.usize(..4)];
        let ours = responses(&input, &[], &[method.as_bytes()], &Limits::default());
        accepted += ours.messages.iter().filter(|m| m.complete).count();
        refused += usize::from(ours.error.is_some());
        hyper_agrees_on_response(&input, method, &ours);
    }
    assert!(accepted > 1000 && refused > 500, "both kinds are tried: {accepted} accepted, {refused} refused");
}
