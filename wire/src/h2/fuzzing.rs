//! Bodies of the fuzz targets: each takes any octets and panics when a promise is broken. The tests run them, too.

use super::{
    Connection, Event, OUTPUT_MARK, Reason,
    frame::{PREFACE, kind},
    hpack::{Decoder, Encoder},
};
use crate::{Headers, Limits, Request, Response, Version};

/// Limits small enough for a fuzzer to reach.
fn limits() -> Limits {
    Limits {
        head_size: 4096,
        header_count: 32,
        concurrent_streams: 8,
        continuations: 4,
        rapid_resets: 16,
        idle_frames: 64,
        hpack_table: 512,
        stream_window: 4096,
        connection_window: 70_000,
        ..Limits::default()
    }
}

/// Feeds octets to a server that answers in every way there is. The first octets choose the size of the pieces and the
/// answers; preface and SETTINGS are supplied, so that the rest begins with a frame.
pub fn server(data: &[u8]) {
    let [piece, answers, data @ ..] = data else { return };
    let mut input = PREFACE.to_vec();
    input.extend_from_slice(&[0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0]);
    input.extend_from_slice(data);
    run(Connection::server(&limits()), &input, usize::from(*piece) + 1, *answers);
}

/// Feeds octets to a client that has sent a few requests.
pub fn client(data: &[u8]) {
    let [piece, answers, data @ ..] = data else { return };
    let mut connection = Connection::client(&limits());
    for (i, method) in [&b"GET"[..], b"POST", b"HEAD", b"PUT"].into_iter().enumerate() {
        let head = Request {
            version: Version::H2,
            method: method.to_vec(),
            scheme: b"http".to_vec(),
            authority: b"fuzz.test".to_vec(),
            path: b"/".to_vec(),
            ..Request::default()
        };
        let sent = connection.send_request(&head, i % 2 == 0);
        if let (Ok(id), 1) = (sent, i) {
            connection.send_data(id, &[b'b'; 100_000], true);
        }
    }
    let mut input = vec![0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];
    input.extend_from_slice(data);
    run(connection, &input, usize::from(*piece) + 1, *answers);
}

fn run(mut connection: Connection, input: &[u8], piece: usize, answers: u8) {
    let mut trailers = Headers::new();
    trailers.push(b"x-checksum", b"1");
    let mut turn = answers;
    for piece in input.chunks(piece) {
        let mut piece = piece;
        loop {
            let event = match connection.next(&mut piece) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    assert_ne!(error.reason, Reason::INTERNAL_ERROR);
                    assert!(connection.is_closed());
                    assert_eq!(connection.next(&mut piece), Err(error), "an error is final");
                    return;
                }
            };
            turn = turn.wrapping_mul(5).wrapping_add(3);
            match event {
                Event::Request { id, .. } if turn & 1 == 0 => {
                    let head = Response { version: Version::H2, status: 200, headers: trailers.clone() };
                    connection.send_informational(id, &Response { status: 103, ..head.clone() });
                    connection.send_response(id, &head, turn & 2 != 0);
                    connection.send_data(id, &[b'd'; 9000], turn & 4 != 0);
                    connection.send_trailers(id, &trailers);
                }
                Event::Data { id, flow, .. } if turn & 1 == 0 => connection.release(id, flow),
                Event::Data { id, .. } | Event::Response { id, .. } if turn & 6 == 6 => {
                    connection.reset(id, Reason::CANCEL);
                }
                _ => {}
            }
        }
        assert!(piece.is_empty(), "None means that the input is used up");
        if turn & 8 == 0 {
            connection.output().clear();
            connection.pump();
        }
        // Heads and control frames are bounded by their own limits.
        assert!(connection.output().len() < 2 * OUTPUT_MARK + 256 * 1024);
    }
}

/// Decodes a header block; what it decodes to must survive encoding and decoding again.
pub fn hpack(data: &[u8]) {
    let mut fields = Vec::new();
    let decoded = Decoder::new(4096).decode(data, |f| fields.push((f.name.to_vec(), f.value.to_vec())));
    if decoded.is_err() {
        return;
    }
    let (mut encoder, mut decoder) = (Encoder::new(512), Decoder::new(4096));
    for _ in 0..3 {
        let (mut block, mut again) = (Vec::new(), Vec::new());
        encoder.begin(&mut block);
        fields.iter().for_each(|(n, v)| encoder.field(n, v, &mut block));
        let decoded = decoder.decode(&block, |f| again.push((f.name.to_vec(), f.value.to_vec())));
        assert_eq!(decoded, Ok(()));
        assert!(again == fields, "decoding does not invert encoding");
    }
}
