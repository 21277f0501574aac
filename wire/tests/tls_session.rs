//! [`Session`] against rustls's buffered API, over any cutting of the wire.

mod tls_support;

use rustls::{AlertDescription, Error};
use tls_support::{Authority, Buffered, CLIENT, End, Ours, shuttle, whole};
use weft_wire::transport_header::ALPN;

/// Both ways round, and ours at both ends.
fn pairs(authority: &Authority) -> [(Box<dyn End>, Box<dyn End>); 3] {
    [
        (Box::new(Ours::client(authority.client())), Box::new(Buffered::server(authority.server()))),
        (Box::new(Buffered::client(authority.client())), Box::new(Ours::server(authority.server()))),
        (Box::new(Ours::client(authority.client())), Box::new(Ours::server(authority.server()))),
    ]
}

/// A handshaken pair of ours and a buffered server or client.
fn client_side(authority: &Authority) -> (Ours, Buffered) {
    let (mut ours, mut theirs) = (Ours::client(authority.client()), Buffered::server(authority.server()));
    shuttle(&mut ours, &mut theirs, &mut whole()).expect("handshake");
    (ours, theirs)
}

fn server_side(authority: &Authority) -> (Ours, Buffered) {
    let (mut ours, mut theirs) = (Ours::server(authority.server()), Buffered::client(authority.client()));
    shuttle(&mut ours, &mut theirs, &mut whole()).expect("handshake");
    (ours, theirs)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

#[test]
fn handshakes_and_data_survive_any_cutting() {
    let authority = Authority::new("root.weft");
    let mut rng = fastrand::Rng::with_seed(3);
    for size in [1, 2, 3, 4, 5, 6, 7, 64, 1000, 0] {
        for (mut client, mut server) in pairs(&authority) {
            let mut piece = || if size == 0 { rng.usize(1..400) } else { size };
            shuttle(&mut *client, &mut *server, &mut piece).expect("handshake");
            assert!(!client.is_handshaking() && !server.is_handshaking());
            client.write(b"hello");
            server.write(b"world");
            shuttle(&mut *client, &mut *server, &mut piece).expect("data");
            assert_eq!((&client.plain()[..], &server.plain()[..]), (&b"world"[..], &b"hello"[..]));
        }
    }
}

/// Records so small that every handshake message spans several, the session tickets after the handshake among them; and
/// something is sent while half of one is there.
#[test]
fn messages_in_many_records_are_put_together() {
    let authority = Authority::new("root.weft");
    for size in [1, 11, 37, 100, usize::MAX] {
        let (mut client_config, mut server_config) = (authority.client(), authority.server());
        client_config.max_fragment_size = Some(32);
        server_config.max_fragment_size = Some(32);
        for flip in [false, true] {
            let (mut ours, mut theirs): (Ours, Buffered) = if flip {
                (Ours::server(server_config.clone()), Buffered::client(client_config.clone()))
            } else {
                (Ours::client(client_config.clone()), Buffered::server(server_config.clone()))
            };
            let mut sent = 0;
            for round in 0.. {
                assert!(
                    round < 1000,
                    "the handshake stands still: {:?} {:?}",
                    ours.is_handshaking(),
                    theirs.is_handshaking()
                );
                let (from_ours, from_theirs) = (ours.give(), theirs.give());
                if from_ours.is_empty() && from_theirs.is_empty() && !ours.is_handshaking() && sent > 0 {
                    break;
                }
                theirs.take(&from_ours).expect("theirs");
                for piece in from_theirs.chunks(size.min(from_theirs.len().max(1))) {
                    ours.take(piece).expect("ours");
                    if !ours.is_handshaking() && sent < 200 {
                        ours.write(b"x");
                        sent += 1;
                    }
                }
                if from_theirs.is_empty() && !ours.is_handshaking() && sent == 0 {
                    ours.write(b"x");
                    sent += 1;
                }
            }
            assert_eq!(theirs.plain, vec![b'x'; sent]);
        }
    }
}

#[test]
fn the_hybrid_group_and_tls13_are_negotiated() {
    let authority = Authority::new("root.weft");
    for (ours, _) in [client_side(&authority), server_side(&authority)] {
        assert_eq!(ours.session.protocol_version(), Some("TLSv1.3"));
        assert_eq!(ours.session.key_exchange(), Some("X25519MLKEM768"));
        assert!(ours.session.cipher_suite().is_some_and(|suite| suite.starts_with("TLS13_")));
        assert_eq!(ours.session.alpn(), Some(ALPN));
    }
}

#[test]
fn peers_show_their_certificates() {
    let authority = Authority::new("root.weft");
    let (ours, theirs) = client_side(&authority);
    assert_eq!(ours.session.peer_certificates().map(<[_]>::len), Some(1));
    let certificate = &theirs.conn.peer_certificates().expect("client certificate")[0];
    assert!(certificate.windows(CLIENT.len()).any(|w| w == CLIENT.as_bytes()));

    let (ours, _) = server_side(&authority);
    let certificate = &ours.session.peer_certificates().expect("client certificate")[0];
    assert!(certificate.windows(CLIENT.len()).any(|w| w == CLIENT.as_bytes()));
}

#[test]
fn a_client_without_certificate_and_protocol_is_served() {
    let authority = Authority::new("root.weft");
    let (mut ours, mut theirs) = (Ours::server(authority.server()), Buffered::client(authority.anonymous_client()));
    shuttle(&mut ours, &mut theirs, &mut whole()).expect("handshake");
    assert!(!ours.is_handshaking());
    assert_eq!((ours.session.peer_certificates(), ours.session.alpn()), (None, None));
}

#[test]
fn a_mebibyte_passes_both_ways() {
    let authority = Authority::new("root.weft");
    let (there, back) = (noise(4, 1 << 20), noise(5, 1 << 20));
    for (mut client, mut server) in pairs(&authority) {
        let mut rng = fastrand::Rng::with_seed(6);
        let mut piece = || rng.usize(1..70_000);
        shuttle(&mut *client, &mut *server, &mut piece).expect("handshake");
        client.write(&there);
        server.write(&back);
        shuttle(&mut *client, &mut *server, &mut piece).expect("data");
        assert!(*server.plain() == there && *client.plain() == back);
    }
}

#[test]
fn data_is_sealed_in_full_records() {
    let authority = Authority::new("root.weft");
    let (mut ours, _) = client_side(&authority);
    ours.write(&noise(7, 40_000));
    let wire = ours.give();
    let mut lengths = Vec::new();
    let mut at = 0;
    while at < wire.len() {
        let length = usize::from(u16::from_be_bytes([wire[at + 3], wire[at + 4]]));
        lengths.push(length - 17);
        at += 5 + length;
    }
    assert_eq!(lengths, [16384, 16384, 40_000 - 2 * 16384]);
    ours.write(b"");
    assert!(ours.give().is_empty(), "no empty records");
}

#[test]
fn key_updates_are_followed_and_answered() {
    let authority = Authority::new("root.weft");
    for (mut ours, mut theirs) in [client_side(&authority), server_side(&authority)] {
        for round in 0..5u8 {
            theirs.conn.refresh_traffic_keys().expect("key update");
            theirs.write(&[round; 100]);
            ours.write(&[round; 50]);
            shuttle(&mut ours, &mut theirs, &mut || 9).expect("data");
            ours.write(&[round; 50]);
            theirs.write(&[round; 100]);
            shuttle(&mut ours, &mut theirs, &mut whole()).expect("data");
            assert_eq!(std::mem::take(&mut ours.plain), [round; 200]);
            assert_eq!(std::mem::take(&mut theirs.plain), [round; 100]);
        }
    }
}

#[test]
fn closing_is_seen_by_both_ends() {
    let authority = Authority::new("root.weft");
    for (mut ours, mut theirs) in [client_side(&authority), server_side(&authority)] {
        theirs.write(b"last words");
        theirs.close();
        shuttle(&mut ours, &mut theirs, &mut whole()).expect("close");
        assert!(ours.session.received_close());
        assert_eq!(ours.plain, b"last words");
        // The other direction is still open.
        ours.write(b"answer");
        ours.close();
        ours.close();
        assert_eq!(ours.session.send(b"more", &mut Vec::new()), Err(Error::General("data after close_notify".into())));
        shuttle(&mut ours, &mut theirs, &mut whole()).expect("close");
        assert!(theirs.closed);
        assert_eq!(theirs.plain, b"answer");
    }
}

#[test]
fn an_end_without_close_notify_is_told_apart() {
    let authority = Authority::new("root.weft");
    let (mut ours, mut theirs) = client_side(&authority);
    theirs.write(b"hello");
    shuttle(&mut ours, &mut theirs, &mut whole()).expect("data");
    assert!(!ours.session.received_close());
}

#[test]
fn nothing_is_sent_during_the_handshake() {
    let authority = Authority::new("root.weft");
    let mut ours = Ours::client(authority.client());
    let hello = ours.give();
    assert!(!hello.is_empty());
    assert_eq!(ours.session.send(b"early", &mut ours.out), Err(Error::HandshakeNotComplete));
    ours.close();
    assert!(ours.give().is_empty());
    // A server that has sent its flight waits for the client's.
    let mut server = Ours::server(authority.server());
    server.take(&hello).expect("hello");
    assert_eq!(server.session.send(b"early", &mut Vec::new()), Err(Error::HandshakeNotComplete));
}

#[test]
fn tampering_is_refused_with_an_alert() {
    let authority = Authority::new("root.weft");
    for at in [0, 1, 4, 5, 20, 60] {
        let (mut ours, mut theirs) = server_side(&authority);
        theirs.write(b"first");
        let good = theirs.give();
        theirs.write(&[7; 50]);
        let mut bad = theirs.give();
        bad[at] ^= 0x40;
        let result = ours.take(&[good, bad, vec![0; 20_000]].concat());
        let error = result.expect_err("a damaged record is refused");
        assert_eq!(ours.plain, b"first", "what came before is good");
        let alert = ours.give();
        assert!(!alert.is_empty());
        assert!(matches!(theirs.take(&alert), Err(Error::AlertReceived(_))), "{error}");
        // Nothing works any more.
        assert_eq!(ours.take(b""), Err(error.clone()));
        assert_eq!(ours.session.send(b"x", &mut Vec::new()), Err(error));
        ours.close();
        assert!(ours.give().is_empty());
    }
}

#[test]
fn replayed_and_reordered_records_are_refused() {
    let authority = Authority::new("root.weft");
    let (mut ours, mut theirs) = client_side(&authority);
    theirs.write(b"one");
    theirs.give();
    theirs.write(b"two");
    let second = theirs.give();
    assert!(ours.take(&second).is_err());
    let (mut ours, mut theirs) = client_side(&authority);
    theirs.write(b"one");
    let again = theirs.give();
    ours.take(&again).expect("once");
    assert!(ours.take(&again).is_err());
    assert_eq!(ours.plain, b"one");
}

#[test]
fn strangers_are_refused_and_told() {
    let (authority, stranger) = (Authority::new("root.weft"), Authority::new("another root"));
    // A server that our client does not know.
    let (mut ours, mut theirs) = (Ours::client(authority.client()), Buffered::server(stranger.server()));
    let result = shuttle(&mut ours, &mut theirs, &mut whole());
    assert!(matches!(result, Err(Error::InvalidCertificate(_))), "{result:?}");
    let alert = ours.give();
    assert_eq!(theirs.take(&alert), Err(Error::AlertReceived(AlertDescription::UnknownCA)));
    // A client that our server does not know.
    let mut config = authority.anonymous_client();
    config.client_auth_cert_resolver = stranger.client().client_auth_cert_resolver.clone();
    let (mut ours, mut theirs) = (Ours::server(authority.server()), Buffered::client(config));
    let result = shuttle(&mut theirs, &mut ours, &mut whole());
    assert!(matches!(result, Err(Error::InvalidCertificate(_))), "{result:?}");
    let alert = ours.give();
    assert!(matches!(theirs.take(&alert), Err(Error::AlertReceived(_))));
    // A client that does not like our server.
    let (mut ours, mut theirs) = (Ours::server(authority.server()), Buffered::client(stranger.client()));
    let result = shuttle(&mut ours, &mut theirs, &mut whole());
    assert!(matches!(result, Err(Error::InvalidCertificate(_))), "{result:?}");
    let alert = theirs.give();
    assert_eq!(ours.take(&alert), Err(Error::AlertReceived(AlertDescription::UnknownCA)));
}

/// Not after as many octets as the text would mean as a record's length.
#[test]
fn plain_text_is_refused_at_once() {
    let authority = Authority::new("root.weft");
    for size in [1, 3, 100] {
        let mut ours = Ours::server(authority.server());
        let result = b"GET / HTTP/1.1\r\n".chunks(size).try_for_each(|piece| ours.take(piece));
        assert!(matches!(result, Err(Error::InvalidMessage(_))), "{result:?}");
        assert!(!ours.give().is_empty(), "an alert says so");
    }
}

#[test]
fn any_octets_are_survived() {
    let authority = Authority::new("root.weft");
    let mut rng = fastrand::Rng::with_seed(8);
    let (client, server) = (authority.client(), authority.server());
    let hello = Ours::client(client.clone()).give();
    let answer = {
        let mut server = Ours::server(server.clone());
        server.take(&hello).expect("hello");
        server.give()
    };
    for _ in 0..600 {
        let (mut ours, mut input) = if rng.bool() {
            (Ours::server(server.clone()), hello.clone())
        } else {
            (Ours::client(client.clone()), answer.clone())
        };
        for _ in 0..rng.usize(..4) {
            let at = rng.usize(..input.len());
            input[at] = rng.u8(..);
        }
        input.truncate(rng.usize(..=input.len()));
        let size = rng.usize(1..300);
        for piece in input.chunks(size) {
            if ours.take(piece).is_err() {
                break;
            }
        }
    }
}

/// A handshake message cut into as many records as there are octets is not collected without end.
#[test]
fn what_is_kept_of_a_handshake_is_bounded() {
    let authority = Authority::new("root.weft");
    let mut ours = Ours::server(authority.server());
    // A ClientHello that says it is 65535 octets long, one octet a record.
    let mut message = vec![1, 0, 0xff, 0xff];
    message.resize(4 + 65_535, 0);
    let result = message.iter().try_for_each(|&octet| ours.take(&[22, 3, 1, 0, 1, octet]));
    assert!(result.is_err());
}
