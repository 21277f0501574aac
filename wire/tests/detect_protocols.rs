//! Detection: what real clients send, cut anywhere, and what only looks like it.

mod tls_support;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use tls_support::{Authority, End, Ours, SERVER};
use weft_wire::detect::{
    CLIENT_HELLO_LIMIT, ClientHello, Detected, REQUEST_LINE_LIMIT, client_hello, detect, is_http2_server,
};
use weft_wire::transport_header::ALPN;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Every prefix is undecided or already right, and once decided stays so.
fn decides(input: &[u8], expected: Detected) {
    let mut decided = false;
    for end in 0..=input.len() {
        match detect(&input[..end]) {
            Detected::NeedMore => assert!(!decided, "{:?} at {end}", String::from_utf8_lossy(input)),
            other => {
                decided = true;
                assert_eq!(other, expected, "{:?} at {end}", String::from_utf8_lossy(input));
            }
        }
    }
    assert!(decided || expected == Detected::NeedMore, "{:?}", String::from_utf8_lossy(input));
}

#[test]
fn http1_is_a_request_line() {
    for line in [
        "GET / HTTP/1.1\r\nhost: a\r\n",
        "GET / HTTP/1.0\n",
        "get / HTTP/1.1\r\n",
        "\r\n\r\nPOST /a?b HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "M-SEARCH http://a/ HTTP/1.1\r\n",
        "PRIVATE / HTTP/1.1\r\n",
        "AMETHODTHATISLONGERTHANMETHODSARE / HTTP/1.1\r\n",
        // The codec refuses these; a lenient server might serve them, so they must not pass as something else.
        "GET  / HTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET /a b HTTP/1.1 \r\n",
        "GET / HTTP/1.9\r\n",
    ] {
        decides(line.as_bytes(), Detected::H1);
    }
    let long = format!("GET /{}", "a".repeat(REQUEST_LINE_LIMIT));
    assert_eq!(detect(long.as_bytes()), Detected::H1);
}

#[test]
fn other_protocols_are_not_http() {
    for line in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "EHLO mail.example\r\n",
        "get key\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "CONNECT {\"verbose\":false}\r\n",
        "GET /\r\n",
        "HTTP/1.1 200 OK\r\n",
        "\u{0}\u{0}\u{0}\u{8}\u{4}\u{d2}\u{16}\u{2f}",
        "Q\u{0}\u{0}\u{0}\u{5}",
        "PRI * HTTP/2.1\r\n\r\n",
        "GET \u{1}\u{2}",
        " GET / HTTP/1.1\r\n",
    ] {
        decides(line.as_bytes(), Detected::Unknown);
    }
    let long = format!("NOTAMETHOD /{}", "a".repeat(REQUEST_LINE_LIMIT));
    assert_eq!(detect(long.as_bytes()), Detected::Unknown);
    assert_eq!(detect(&[b'a'; REQUEST_LINE_LIMIT - 1]), Detected::NeedMore);
    assert_eq!(detect(&[b'a'; REQUEST_LINE_LIMIT]), Detected::Unknown);
    decides(b"GET / HTTP/1.1", Detected::NeedMore);
}

#[test]
fn http2_is_its_preface() {
    decides(PREFACE, Detected::H2);
    decides(&[PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat(), Detected::H2);
    for end in 0..PREFACE.len() {
        assert_eq!(detect(&PREFACE[..end]), Detected::NeedMore);
    }
}

fn hello(config: rustls::ClientConfig) -> Vec<u8> {
    Ours::client(config).give()
}

#[test]
fn the_hello_of_a_real_client_is_read_wherever_it_is_cut() {
    let authority = Authority::new("root.weft");
    let mut fragmented = authority.client();
    fragmented.max_fragment_size = Some(40);
    let mut tls12 = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls12.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut silent = authority.anonymous_client();
    silent.enable_sni = false;
    let sni = Some(SERVER.to_owned());
    for (config, sni, alpn) in [
        (authority.client(), sni.clone(), vec![ALPN.to_vec()]),
        (fragmented, sni.clone(), vec![ALPN.to_vec()]),
        (authority.anonymous_client(), sni.clone(), Vec::new()),
        (tls12, sni, vec![b"h2".to_vec(), b"http/1.1".to_vec()]),
        (silent, None, Vec::new()),
    ] {
        let hello = hello(config);
        decides(&hello, Detected::Tls);
        for end in 0..hello.len() {
            assert_eq!(client_hello(&hello[..end]), ClientHello::NeedMore, "{end} of {}", hello.len());
        }
        let expected = ClientHello::Hello { sni, alpn };
        assert_eq!(client_hello(&hello), expected);
        // What follows in records of their own does not matter.
        assert_eq!(client_hello(&[&hello[..], &[20, 3, 3, 0, 1, 1]].concat()), expected);
    }
}

#[test]
fn what_is_no_hello_is_refused() {
    for input in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x02\x00\x00\x05\x01",
        b"\x16\x03\x05\x00\x05\x01",
        b"\x16\x03\x01\x00\x00\x01",
        b"\x16\x03\x01\x40\x01\x01",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x17\x03\x03\x00\x05\x01",
        b"\x16\x03\x01\x00\x04\x01\x00\xff\xff",
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    ] {
        assert_eq!(client_hello(input), ClientHello::NotTls, "{input:?}");
    }
    // Never more than the limit is waited for.
    let endless = [&b"\x16\x03\x01\x20\x10\x01\x00\x1f\xff"[..], &[0; CLIENT_HELLO_LIMIT]].concat();
    assert_eq!(client_hello(&endless[..CLIENT_HELLO_LIMIT - 1]), ClientHello::NeedMore);
    assert_eq!(client_hello(&endless), ClientHello::NotTls);
    let one_octet_records = b"\x16\x03\x01\x00\x01\x01".repeat(CLIENT_HELLO_LIMIT);
    assert_eq!(client_hello(&one_octet_records), ClientHello::NotTls);
}

/// A hello with these extensions.
fn with_extensions(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[0; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
    body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    body.extend_from_slice(extensions);
    let mut wire = vec![0x16, 3, 1];
    wire.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
    wire.extend_from_slice(&[1, 0]);
    wire.extend_from_slice(&(body.len() as u16).to_be_bytes());
    wire.extend_from_slice(&body);
    wire
}

fn sni(name: &[u8]) -> Vec<u8> {
    let n = name.len() as u16;
    [&[0, 0][..], &(n + 5).to_be_bytes(), &(n + 3).to_be_bytes(), &[0], &n.to_be_bytes(), name].concat()
}

#[test]
fn malformed_extensions_are_refused() {
    let read = |extensions: &[u8]| client_hello(&with_extensions(extensions));
    let plain = |sni: Option<&str>| ClientHello::Hello { sni: sni.map(str::to_owned), alpn: Vec::new() };
    assert_eq!(read(&[]), plain(None));
    assert_eq!(read(&sni(b"Web.Example")), plain(Some("web.example")));
    assert_eq!(read(&[0x12, 0x34, 0, 0]), plain(None));
    for bad in [
        sni(b""),
        sni(b"a b"),
        sni(b"a\0b"),
        sni("caf\u{e9}".as_bytes()),
        sni(&[b'a'; 256]),
        [sni(b"a"), sni(b"b")].concat(),
        vec![0, 0, 0, 0],
        vec![0, 0, 0, 2, 0, 0],
        vec![0, 0, 0, 6, 0, 4, 1, 0, 1, b'a'],
        vec![0, 0, 0, 7, 0, 4, 0, 0, 1, b'a', 0],
        vec![0, 16, 0, 0],
        vec![0, 16, 0, 2, 0, 0],
        vec![0, 16, 0, 3, 0, 1, 0],
        vec![0, 16, 0, 4, 0, 2, 5, b'a'],
        vec![0, 16, 0, 9],
        vec![0],
    ] {
        assert_eq!(read(&bad), ClientHello::NotTls, "{bad:?}");
    }
}

proptest! {
    #![proptest_config(Config { cases: 4000, rng_seed: RngSeed::Fixed(9), failure_persistence: None, ..Config::default() })]

    #[test]
    fn decisions_are_final(input in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"GET /HTP1.0\r\n\x16\x03\x01"[..])], 0..60)) {
        let mut decided = None;
        for end in 0..=input.len() {
            let now = detect(&input[..end]);
            client_hello(&input[..end]);
            match decided {
                Some(before) => prop_assert_eq!(before, now),
                None if now != Detected::NeedMore => decided = Some(now),
                None => {}
            }
        }
    }

    #[test]
    fn damaged_hellos_are_survived(damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>()) {
        let mut wire = with_extensions(&[sni(b"web.example"), vec![0, 16, 0, 5, 0, 3, 2, b'h', b'2']].concat());
        for (at, octet) in damage {
            let at = at % wire.len();
            wire[at] = octet;
        }
        wire.truncate(cut % (wire.len() + 1));
        client_hello(&wire);
        detect(&wire);
    }
}

#[test]
fn the_settings_of_an_http2_server_are_known() {
    let mut server = weft_wire::h2::Connection::server(&weft_wire::Limits::default());
    assert!(is_http2_server(server.output()));
    assert!(is_http2_server(b"\0\0\0\x04\0\0\0\0\0"));
    for other in [
        &b""[..],
        b"\0\0\x06\x04\0\0\0\0",
        b"220 mail ESMTP\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x4a\0\0\0\x0a8.0.36\0",
        b"\0\0\x07\x04\0\0\0\0\0",
        b"\0\0\x06\x04\x01\0\0\0\0",
        b"\0\0\x06\x04\0\0\0\0\x01",
    ] {
        assert!(!is_http2_server(other), "{other:?}");
    }
}
