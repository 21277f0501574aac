//! The smuggling corpus in the decoders: a case is either refused, with the reason that the corpus names, or read as it
//! says, and then hyper must read it alike.

mod h1_corpus;
mod h1_support;

use h1_corpus::{
    Case, REQUESTS, RESPONSES,
    Verdict::{Read, Refused},
};
use h1_support::{hyper_agrees_on_requests, hyper_agrees_on_response, line, requests, responses};
use weft_wire::h1;
use weft_wire::h1::ErrorKind::{self, *};
use weft_wire::{Limits, Request};

#[test]
fn requests_are_refused_or_read_alike() {
    let limits = Limits::default();
    for Case { name, input, verdict } in REQUESTS {
        let ours = requests(input.as_bytes(), &[], &limits);
        let complete: Vec<_> = ours.messages.iter().filter(|m| m.complete).collect();
        match verdict {
            Refused(before, kind) => {
                assert_eq!((complete.len(), ours.error), (*before, Some(*kind)), "{name}: {ours:?}");
            }
            Read(messages) => {
                assert_eq!(ours.error, None, "{name}: {ours:?}");
                let read: Vec<_> =
                    complete.iter().map(|m| (line(&m.head), String::from_utf8_lossy(&m.body).into_owned())).collect();
                let expected: Vec<_> = messages.iter().map(|(l, b)| ((*l).to_owned(), (*b).to_owned())).collect();
                assert_eq!(read, expected, "{name}");
            }
        }
        hyper_agrees_on_requests(input.as_bytes(), &ours);
    }
}

#[test]
fn responses_are_refused_or_read_alike() {
    let limits = Limits::default();
    for Case { name, input, verdict } in RESPONSES {
        let ours = responses(input.as_bytes(), &[], &[b"GET"], &limits);
        let complete: Vec<_> = ours.messages.iter().filter(|m| m.complete).collect();
        match verdict {
            Refused(before, kind) => {
                assert_eq!((complete.len(), ours.error), (*before, Some(*kind)), "{name}: {ours:?}");
            }
            Read(messages) => {
                assert_eq!(ours.error, None, "{name}: {ours:?}");
                let read: Vec<_> = complete
                    .iter()
                    .map(|m| (m.head.status.to_string(), String::from_utf8_lossy(&m.body).into_owned()))
                    .collect();
                let expected: Vec<_> = messages.iter().map(|(l, b)| ((*l).to_owned(), (*b).to_owned())).collect();
                assert_eq!(read, expected, "{name}");
            }
        }
        hyper_agrees_on_response(input.as_bytes(), "GET", &ours);
    }
}

/// What is read is written so that even a lenient server reads it alike: every accepted case, re-encoded, has one framing
/// field at most and decodes to itself.
#[test]
fn what_is_read_is_written_without_ambiguity() {
    for Case { name, input, .. } in REQUESTS {
        for message in requests(input.as_bytes(), &[], &Limits::default()).messages.iter().filter(|m| m.complete) {
            let mut wire = Vec::new();
            h1::encode_request(&message.head, message.framing, &mut wire);
            let text = String::from_utf8_lossy(&wire).into_owned();
            let count = |name: &str| text.matches(&format!("\r\n{name}: ")).count();
            assert_eq!(count("host"), 1, "{name}: {text}");
            assert!(count("content-length") + count("transfer-encoding") <= 1, "{name}: {text}");
            h1::encode_data(message.framing, &message.body, &mut wire);
            h1::encode_end(message.framing, message.trailers.as_ref(), &mut wire);
            let again = requests(&wire, &[], &Limits::default());
            assert_eq!(again.messages[0].body, message.body, "{name}");
            assert_eq!(line(&again.messages[0].head), line(&message.head), "{name}");
        }
    }
}

#[test]
fn hop_by_hop_fields_stay_on_their_hop() {
    let input = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret, te\r\nX-Secret: 1\r\nKeep-Alive: 1\r\n\
        Proxy-Connection: x\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nX-Kept: 2\r\n\r\n";
    let ours = requests(input, &[], &Limits::default());
    let head = &ours.messages[0].head;
    assert!(!ours.messages[0].keep_alive);
    let names: Vec<_> = head.headers.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    assert_eq!(names, [(b"x-kept".to_vec(), b"2".to_vec()), (b"te".to_vec(), b"trailers".to_vec())]);
    assert_eq!(head.authority, b"a");
}

#[test]
fn every_limit_is_kept_at_any_cutting() {
    let limits = Limits {
        head_size: 200,
        header_count: 3,
        chunk_line: 20,
        chunk_extensions: 30,
        trailer_size: 40,
        ..Limits::default()
    };
    let host = "host: a\r\n";
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let cases = [
        (format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(300)), TargetTooLong),
        (format!("GET /{}", "a".repeat(300)), TargetTooLong),
        (format!("GET / HTTP/1.1\r\n{host}x: {}\r\n\r\n", "a".repeat(300)), HeadTooLarge),
        (format!("GET / HTTP/1.1\r\n{host}a: 1\r\nb: 2\r\nc: 3\r\n\r\n"), TooManyHeaders),
        (format!("{chunked}2;{}\r\nhi\r\n0\r\n\r\n", "x".repeat(20)), ChunkLineTooLong),
        (format!("{chunked}{}", "0".repeat(21)), ChunkLineTooLong),
        (format!("{chunked}{}0\r\n\r\n", "2;xxxxxxxxx\r\nhi\r\n".repeat(4)), ChunkExtensionsTooLarge),
        (format!("{chunked}0\r\nx: {}\r\n\r\n", "a".repeat(40)), TrailerTooLarge),
        (format!("{chunked}0\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n\r\n"), TooManyHeaders),
    ];
    for (input, kind) in cases {
        for cuts in [Vec::new(), (0..input.len()).collect()] {
            let ours = requests(input.as_bytes(), &cuts, &limits);
            assert_eq!(ours.error, Some(kind), "{input:?}");
        }
    }
    // At the limits exactly, all is well.
    let head = format!("GET /{} HTTP/1.1\r\n{host}\r\n", "a".repeat(200 - 27));
    assert_eq!(head.len(), 200);
    assert_eq!(requests(head.as_bytes(), &[], &limits).error, None);
    let fields = format!("GET / HTTP/1.1\r\n{host}a: 1\r\nb: 2\r\n\r\n");
    assert_eq!(requests(fields.as_bytes(), &[], &limits).error, None);
}

#[test]
fn every_reason_has_a_status_and_a_sentence() {
    for kind in ErrorKind::ALL {
        let error = h1::Error::from(*kind);
        assert!(matches!(error.status(), 400 | 414 | 431 | 501 | 505), "{kind:?}");
        assert!(!error.reason().is_empty() && error.to_string() == error.reason());
    }
}

/// What HTTP/2 lets through must not become a second request of HTTP/1.
#[test]
fn downgraded_requests_stay_one_request() {
    let mut head =
        Request { method: b"GET".to_vec(), authority: b"a".to_vec(), path: b"/".to_vec(), ..Request::default() };
    head.path = b"/ HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled".to_vec();
    head.headers.push(b"x", b"1\r\n\r\nGET /smuggled HTTP/1.1");
    head.headers.push(b"x\r\ny", b"1");
    head.headers.push(b"transfer-encoding", b"chunked");
    head.headers.push(b"content-length", b"999");
    head.headers.push(b"connection", b"x-kept");
    head.headers.push(b"host", b"b");
    head.headers.push(b"x-kept", b"1");
    let mut wire = Vec::new();
    h1::encode_request(&head, h1::request_framing(&head, true), &mut wire);
    let text = String::from_utf8(wire.clone()).unwrap();
    assert_eq!(
        text,
        "GET /%20HTTP/1.1%0D%0Ahost:%20a%0D%0A%0D%0AGET%20/smuggled HTTP/1.1\r\nhost: a\r\nx-kept: 1\r\ncontent-length: 0\r\n\r\n"
    );
    let ours = requests(&wire, &[], &Limits::default());
    assert_eq!((ours.messages.len(), ours.error), (1, None));
    hyper_agrees_on_requests(&wire, &ours);
}
