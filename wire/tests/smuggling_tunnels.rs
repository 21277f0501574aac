//! Smuggling by what follows: octets behind an upgrade, a CONNECT, an answer to HEAD, or an answer that nobody asked for.

mod h1_support;

use h1_support::{hyper_agrees_on_response, responses};
use weft_wire::Limits;
use weft_wire::h1::ErrorKind::Unsolicited;
use weft_wire::h1::{self, Event, Framing, RequestDecoder, ResponseDecoder};

#[test]
fn an_upgrade_is_passed_on_and_an_upgrade_to_http2_is_not() {
    let websocket = b"GET / HTTP/1.1\r\nhost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut decoder = RequestDecoder::new(&Limits::default());
    let (_, event) = decoder.decode(websocket).unwrap();
    let Some(Event::Head(head)) = event else { panic!("{event:?}") };
    assert!(decoder.upgrade());
    let mut wire = Vec::new();
    h1::encode_request(&head, Framing::None, &mut wire);
    let text = String::from_utf8(wire).unwrap();
    assert!(text.contains("\r\nupgrade: websocket\r\n") && text.contains("\r\nconnection: upgrade\r\n"), "{text}");

    for input in [
        &b"GET / HTTP/1.1\r\nhost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let mut decoder = RequestDecoder::new(&Limits::default());
        let (_, event) = decoder.decode(input).unwrap();
        let Some(Event::Head(head)) = event else { panic!("{event:?}") };
        assert!(!decoder.upgrade() && head.headers.is_empty());
    }
}

/// CVE-2026-2833 and its kind: octets behind an upgrade belong to the tunnel once the server agreed, and only then.
#[test]
fn octets_behind_an_upgrade_are_the_tunnels_after_101() {
    let mut decoder = ResponseDecoder::new(&Limits::default());
    decoder.expect(b"GET");
    let input =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    let (used, event) = decoder.decode(input).unwrap();
    assert!(matches!(event, Some(Event::Head(head)) if head.status == 101));
    assert!(decoder.is_tunnel() && !decoder.keep_alive());
    assert_eq!(decoder.decode(&input[used..]).unwrap(), (0, None));
    assert_eq!(decoder.eof().unwrap(), None);

    let mut decoder = RequestDecoder::new(&Limits::default());
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    assert!(matches!(decoder.decode(request).unwrap(), (_, Some(Event::Head(_)))));
    assert_eq!(decoder.decode(b"").unwrap(), (0, Some(Event::End)));
    decoder.set_tunnel();
    assert_eq!(decoder.decode(b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n").unwrap(), (0, None));
    assert!(decoder.is_tunnel() && decoder.eof().is_ok());
}

#[test]
fn connect_is_a_tunnel_after_2xx_alone() {
    for (status, tunnel) in [(200, true), (204, true), (407, false), (502, false)] {
        let mut decoder = ResponseDecoder::new(&Limits::default());
        decoder.expect(b"CONNECT");
        let input = format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nhi");
        let (_, event) = decoder.decode(input.as_bytes()).unwrap();
        let Some(Event::Head(head)) = event else { panic!("{event:?}") };
        assert_eq!(decoder.is_tunnel(), tunnel, "{status}");
        assert_eq!(head.headers.contains(b"content-length"), !tunnel, "{status}");
    }
}

/// CVE-2025-4366: a response that nobody asked for must not answer the next request.
#[test]
fn unsolicited_responses_are_refused() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let mut decoder = ResponseDecoder::new(&Limits::default());
    assert!(decoder.is_idle());
    assert_eq!(decoder.decode(answer).unwrap_err().kind(), Unsolicited);

    let mut decoder = ResponseDecoder::new(&Limits::default());
    decoder.expect(b"GET");
    assert!(!decoder.is_idle());
    let two = [&answer[..], answer].concat();
    let (used, event) = decoder.decode(&two).unwrap();
    assert!(matches!(event, Some(Event::Head(_))));
    assert_eq!(decoder.decode(&two[used..]).unwrap(), (0, Some(Event::End)));
    assert!(decoder.is_idle());
    assert_eq!(decoder.decode(&two[used..]).unwrap_err().kind(), Unsolicited);
}

#[test]
fn head_answers_have_no_body_whatever_they_say() {
    for fields in ["content-length: 5\r\n", "transfer-encoding: chunked\r\n", ""] {
        let input = format!("HTTP/1.1 200 OK\r\n{fields}\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        let ours = responses(input.as_bytes(), &[], &[b"HEAD", b"GET"], &Limits::default());
        assert_eq!(ours.error, None);
        assert_eq!((ours.messages[0].body.len(), &ours.messages[1].body[..]), (0, &b"hi"[..]), "{fields}");
        hyper_agrees_on_response(input.as_bytes(), "HEAD", &ours);
    }
}
