//! What a connection sends: windows, fairness, the output's mark, large heads, settings of the peer, going away.

mod h2_support;

use h2_support::*;
use weft_wire::{
    Limits,
    h2::{Connection, HIGH_MARK, LOW_MARK, OUTPUT_MARK, Reason, SendError, hpack::Decoder},
};

fn data_of(frames: &[Frame], id: u32) -> usize {
    frames.iter().filter(|f| f.kind == DATA && f.id == id).map(|f| f.payload.len()).sum()
}

/// A server with unanswered requests on streams 1, 3, …, after those octets.
fn asked(count: u32, first: &[u8]) -> Connection {
    let mut c = server(&Limits::default());
    feed(&mut c, first).unwrap();
    for i in 0..count {
        feed(&mut c, &headers(2 * i + 1, true, &GET)).unwrap();
        c.send_response(2 * i + 1, &response(200, &[]), false);
    }
    take(&mut c);
    c
}

#[test]
fn settings_say_what_the_limits_are() {
    let limits = Limits {
        stream_window: 123_456,
        connection_window: 1_000_000,
        concurrent_streams: 77,
        head_size: 5000,
        frame_size: 20_000,
        hpack_table: 300,
        ..Limits::default()
    };
    let expected = |second: (u16, u32)| settings(&[(1, 300), second, (4, 123_456), (5, 20_000), (6, 5000)]);
    let update = window_update(0, 1_000_000 - 65_535);
    assert_eq!(*Connection::server(&limits).output(), [expected((3, 77)), update.clone()].concat());
    assert_eq!(*Connection::client(&limits).output(), [PREFACE.to_vec(), expected((2, 0)), update].concat());
}

#[test]
fn data_keeps_to_both_windows_and_to_frames_of_16k() {
    let mut c = asked(2, &settings(&[(4, 20_000), (5, 1 << 20)]));
    c.send_data(1, &[b'x'; 30_000], true);
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| f.payload.len()).collect::<Vec<_>>(), [16_384, 3616]);
    assert!(out.iter().all(|f| !f.end()));
    assert_eq!(c.queued(1), 10_000);
    feed(&mut c, &window_update(1, 10_000)).unwrap();
    let out = sent(&mut c);
    assert!(data_of(&out, 1) == 10_000 && out.last().unwrap().end());
    // The connection's window, 65535, has 35535 left.
    feed(&mut c, &window_update(3, 100_000)).unwrap();
    c.send_data(3, &[b'x'; 40_000], false);
    assert_eq!((data_of(&sent(&mut c), 3), c.queued(3)), (35_535, 4465));
    c.send_data(3, b"y", true);
    feed(&mut c, &window_update(0, 4465)).unwrap();
    assert!(!sent(&mut c).last().unwrap().end());
    feed(&mut c, &window_update(0, 1)).unwrap();
    let out = sent(&mut c);
    assert!(out[0].end() && out[0].payload == b"y");
    assert_eq!(c.streams(), 0);
}

#[test]
fn an_end_needs_no_window() {
    let mut c = asked(3, &settings(&[(4, 0)]));
    c.send_data(1, &[], true);
    c.send_trailers(3, &list(&[("grpc-status", "0")]));
    c.send_data(5, b"x", false);
    c.send_trailers(5, &list(&[("grpc-status", "0")]));
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| (f.kind, f.id, f.end())).collect::<Vec<_>>(), [(DATA, 1, true), (HEADERS, 3, true)]);
    feed(&mut c, &window_update(5, 1)).unwrap();
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| (f.kind, f.id, f.end())).collect::<Vec<_>>(), [(DATA, 5, false), (HEADERS, 5, true)]);
}

#[test]
fn waiting_streams_take_turns_by_frame() {
    let mut c = asked(4, &settings(&[(4, 1 << 20)]));
    // Uses up the connection's window.
    c.send_data(1, &[b'x'; 65_535], false);
    for id in [1, 3, 5, 7] {
        c.send_data(id, &[b'x'; 40_000], true);
    }
    take(&mut c);
    feed(&mut c, &window_update(0, 1 << 20)).unwrap();
    let order: Vec<(u32, usize)> = sent(&mut c).iter().map(|f| (f.id, f.payload.len())).collect();
    let round = |len| [1, 3, 5, 7].map(|id| (id, len));
    assert_eq!(order, [round(16_384), round(16_384), round(40_000 - 2 * 16_384)].concat());
}

#[test]
fn windows_can_be_negative() {
    let mut c = asked(1, &[]);
    c.send_data(1, &[b'x'; 60_000], false);
    take(&mut c);
    feed(&mut c, &settings(&[(4, 10_000)])).unwrap(); // 50000 below zero
    c.send_data(1, &[b'y'; 100], true);
    feed(&mut c, &window_update(1, 50_000)).unwrap();
    assert_eq!(data_of(&sent(&mut c), 1), 0);
    feed(&mut c, &window_update(1, 40)).unwrap();
    assert_eq!(data_of(&sent(&mut c), 1), 40);
    feed(&mut c, &settings(&[(4, 10_060)])).unwrap();
    assert_eq!(data_of(&sent(&mut c), 1), 60);
}

#[test]
fn a_full_queue_becomes_writable_at_the_low_mark() {
    let mut c = asked(1, &settings(&[(4, 0)]));
    c.send_data(1, &vec![0; HIGH_MARK - 1], false);
    assert!(!c.is_full(1));
    c.send_data(1, &[0], false);
    assert!(c.is_full(1));
    let above = (HIGH_MARK - LOW_MARK) as u32 - 1;
    assert_eq!(feed(&mut c, &[window_update(0, 1 << 20), window_update(1, above)].concat()).unwrap(), []);
    assert!(c.is_full(1));
    assert_eq!(feed(&mut c, &window_update(1, 1)).unwrap(), [Owned::Writable(1)]);
    assert!(!c.is_full(1) && c.queued(1) == LOW_MARK);
    assert_eq!(feed(&mut c, &window_update(1, 1 << 20)).unwrap(), []);
    // Of a stream whose end was sent, too, as long as it is there: here the request has not ended.
    let mut c = server(&Limits::default());
    feed(&mut c, &[settings(&[(4, 0)]), headers(1, false, &GET)].concat()).unwrap();
    c.send_response(1, &response(200, &[]), false);
    take(&mut c);
    c.send_data(1, &vec![0; HIGH_MARK], true);
    let open = [window_update(0, 1 << 20), window_update(1, 1 << 20)].concat();
    assert_eq!(feed(&mut c, &open).unwrap(), [Owned::Writable(1)]);
    // Nothing is told of a stream that is over.
    let mut c = asked(1, &settings(&[(4, 0)]));
    c.send_data(1, &vec![0; HIGH_MARK], true);
    assert_eq!(feed(&mut c, &open).unwrap(), []);
}

#[test]
fn bodies_wait_while_the_output_is_large() {
    let mut c = asked(2, &[settings(&[(4, 1 << 30)]), window_update(0, 1 << 30)].concat());
    let body = vec![b'x'; OUTPUT_MARK + 200_000];
    c.send_data(1, &body, true);
    c.send_data(3, &body[..1000], true);
    assert!(c.output().len() < OUTPUT_MARK + 20_000);
    assert!(c.queued(1) > 150_000 && c.queued(3) == 1000);
    let mut out = Vec::new();
    while c.wants_write() {
        let waiting = c.output();
        out.extend(waiting.drain(..50_000.min(waiting.len())));
        c.pump();
    }
    let out = frames(&mut out);
    assert_eq!((data_of(&out, 1), data_of(&out, 3)), (body.len(), 1000));
    assert!(out.last().unwrap().id == 1, "the short one did not wait for the long one");
    assert_eq!(feed(&mut c, &[]).unwrap(), []);
    assert_eq!(c.streams(), 0);
}

#[test]
fn a_driver_that_forgets_to_pump_loses_nothing() {
    let mut c = asked(1, &[settings(&[(4, 1 << 30)]), window_update(0, 1 << 30)].concat());
    let body = vec![b'x'; 3 * OUTPUT_MARK];
    c.send_data(1, &body, true);
    let mut out = Vec::new();
    let mut writable = 0;
    while c.wants_write() {
        out.append(c.output());
        writable += feed(&mut c, &[]).unwrap().len();
    }
    assert_eq!((data_of(&frames(&mut out), 1), c.streams()), (body.len(), 0));
    assert_eq!(writable, 0, "the end was sent");
}

#[test]
fn large_heads_are_continued() {
    let mut c = client(&Limits::default());
    let value = "\u{1}".repeat(40_000); // not shortened by Huffman
    c.send_request(&request("GET", "/", &[("x-big", &value)]), true).unwrap();
    let out = sent(&mut c);
    let shape: Vec<_> = out.iter().map(|f| (f.kind, f.flags, f.payload.len())).collect();
    let rest = shape[2].2;
    assert_eq!(shape, [(HEADERS, END_STREAM, 16_384), (CONTINUATION, 0, 16_384), (CONTINUATION, END_HEADERS, rest)]);
    let block: Vec<u8> = out.iter().flat_map(|f| f.payload.clone()).collect();
    let mut last = Vec::new();
    Decoder::new(4096).decode(&block, |f| last = f.value.to_vec()).unwrap();
    assert_eq!(last, value.as_bytes());
    // The peer takes larger frames.
    feed(&mut c, &settings(&[(5, 50_000)])).unwrap();
    take(&mut c);
    c.send_request(&request("GET", "/", &[("x-big", &value)]), true).unwrap();
    assert_eq!(sent(&mut c).len(), 1);
}

#[test]
fn the_table_follows_the_peers_setting() {
    let mut c = client(&Limits::default());
    let head = request("GET", "/some/path", &[("x-a", "b"), ("x-c", "d")]);
    let mut decoder = Decoder::new(4096);
    let mut send = |c: &mut Connection, first: Option<u8>| {
        c.send_request(&head, true).unwrap();
        let out = sent(c);
        let block = &out.iter().find(|f| f.kind == HEADERS).unwrap().payload;
        assert_eq!(first.is_some(), block[0] & 0xe0 == 0x20);
        let mut got = Vec::new();
        decoder.decode(block, |f| got.push(f.name.to_vec())).unwrap();
        assert_eq!(got.len(), 6);
        block.len()
    };
    let first = send(&mut c, None);
    send(&mut c, None);
    assert_eq!(send(&mut c, None), 6);
    feed(&mut c, &settings(&[(1, 0), (1, 4096)])).unwrap();
    assert!(send(&mut c, Some(0)) > first);
    feed(&mut c, &settings(&[(1, 0)])).unwrap();
    assert!(send(&mut c, Some(0)) > first);
    assert_eq!(send(&mut c, None), first);
}

#[test]
fn no_more_streams_than_the_peer_allows() {
    let head = request("GET", "/", &[]);
    let mut c = Connection::client(&Limits::default());
    (0..100).for_each(|_| assert!(c.send_request(&head, true).is_ok()));
    assert_eq!(c.send_request(&head, true), Err(SendError::Busy));
    feed(&mut c, &settings(&[(3, 102)])).unwrap();
    assert!(c.can_open());
    assert_eq!((c.send_request(&head, true), c.send_request(&head, true)), (Ok(201), Ok(203)));
    assert_eq!(c.send_request(&head, true), Err(SendError::Busy));
    feed(&mut c, &headers(5, true, &[(":status", "200")])).unwrap();
    assert!(c.can_open());
    feed(&mut c, &settings(&[(3, 0)])).unwrap();
    assert!(!c.can_open());
    assert_eq!(Connection::server(&Limits::default()).send_request(&head, true), Err(SendError::GoingAway));
}

#[test]
fn heads_hold_only_what_exists_in_http2() {
    let mut c = client(&Limits::default());
    let fields = [
        ("connection", "keep-alive, x"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("x-keep", "1"),
    ];
    let mut head = request("GET", "", &fields);
    head.scheme.clear();
    head.authority.clear();
    c.send_request(&head, true).unwrap();
    let mut got = Vec::new();
    let mut decoder = Decoder::new(4096);
    let mut decode = |c: &mut Connection, got: &mut Vec<String>| {
        got.clear();
        let block = &sent(c)[0].payload;
        let show = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        decoder.decode(block, |f| got.push(format!("{}={}", show(f.name), show(f.value)))).unwrap();
    };
    decode(&mut c, &mut got);
    assert_eq!(got, [":method=GET", ":scheme=http", ":path=/", "x-keep=1"]);
    c.send_request(&request("CONNECT", "/ignored", &[("te", "trailers")]), false).unwrap();
    decode(&mut c, &mut got);
    assert_eq!(got, [":method=CONNECT", ":authority=a.test", "te=trailers"]);
}

#[test]
fn sends_out_of_order_are_ignored() {
    let mut c = server(&Limits::default());
    feed(&mut c, &headers(1, true, &GET)).unwrap();
    c.send_data(1, b"before the head", true);
    c.send_trailers(1, &list(&[("x", "y")]));
    c.send_response(3, &response(200, &[]), true);
    assert!(!c.wants_write());
    c.send_response(1, &response(200, &[]), false);
    c.send_response(1, &response(500, &[]), false);
    c.send_informational(1, &response(103, &[]));
    c.send_data(1, b"x", true);
    c.send_data(1, b"after the end", true);
    c.send_trailers(1, &list(&[("x", "y")]));
    c.reset(1, Reason::CANCEL);
    c.release(1, 1000);
    assert_eq!(sent(&mut c).iter().map(|f| f.kind).collect::<Vec<_>>(), [HEADERS, DATA]);
}

#[test]
fn a_server_drains_in_two_steps() {
    let mut c = asked(1, &[]);
    c.go_away(Reason::NO_ERROR);
    c.go_away(Reason::NO_ERROR);
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| (f.kind, f.payload.len())).collect::<Vec<_>>(), [(GOAWAY, 8), (PING, 8)]);
    assert_eq!(out[0].payload, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert!(c.is_going_away() && !c.is_closed());
    // One was on its way; after the answer to the PING none can be.
    let input = [headers(3, true, &GET), frame(PING, ACK, 0, &out[1].payload), headers(5, true, &GET)].concat();
    let events = feed(&mut c, &input).unwrap();
    assert!(matches!(events[..], [Owned::Request(3, ..)]));
    let out = sent(&mut c);
    assert_eq!((out[0].kind, &out[0].payload[..]), (GOAWAY, &[0, 0, 0, 3, 0, 0, 0, 0][..]));
    assert_eq!((out[1].kind, out[1].id, out[1].code()), (RST_STREAM, 5, 7));
    c.send_data(1, b"last", true);
    c.send_response(3, &response(200, &[]), false);
    assert!(!c.is_closed());
    c.send_data(3, b"words", true);
    assert!(c.is_closed());
    assert_eq!(data_of(&sent(&mut c), 3), 5);
}

#[test]
fn a_client_learns_what_was_refused() {
    let mut c = client(&Limits::default());
    let head = request("POST", "/", &[]);
    for _ in 0..4 {
        c.send_request(&head, false).unwrap();
    }
    feed(&mut c, &headers(1, true, &[(":status", "200")])).unwrap();
    let go_away = |last: u8, code: u8| frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, code, b'b', b'y', b'e']);
    let all = frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(feed(&mut c, &all).unwrap(), [Owned::GoAway((1 << 31) - 1, 0)]);
    assert_eq!((c.send_request(&head, true), c.streams()), (Err(SendError::GoingAway), 4));
    let events = feed(&mut c, &go_away(3, 0)).unwrap();
    assert_eq!(events, [Owned::GoAway(3, 0), Owned::Reset(5, 7), Owned::Reset(7, 7)]);
    // It cannot take that back, and late frames of refused streams do no harm.
    let late = [go_away(9, 11), frame(DATA, 0, 5, b"x"), headers(7, true, &[(":status", "200")])].concat();
    assert_eq!(feed(&mut c, &late).unwrap(), [Owned::GoAway(3, 11)]);
    assert!(!c.is_closed());
    c.send_data(1, b"x", true);
    c.send_data(3, b"x", true);
    feed(&mut c, &headers(3, true, &[(":status", "200")])).unwrap();
    assert!(c.is_closed());
}

#[test]
fn a_client_goes_away_at_once() {
    let mut c = client(&Limits::default());
    c.send_request(&request("GET", "/", &[]), true).unwrap();
    take(&mut c);
    c.go_away(Reason::NO_ERROR);
    assert_eq!(sent(&mut c)[0].payload, [0; 8]);
    assert!(!c.can_open() && !c.is_closed());
    feed(&mut c, &headers(1, true, &[(":status", "200")])).unwrap();
    assert!(c.is_closed());
}

#[test]
fn windows_before_the_acknowledgement_are_the_default_ones() {
    // A peer that has not seen our smaller settings yet breaks no rule by using the defaults.
    let limits = Limits { stream_window: 1000, hpack_table: 0, ..Limits::default() };
    let mut c = Connection::server(&limits);
    let mut indexed = block(&POST);
    indexed.extend([0x40, 1, b'x', 1, b'y', 0xbe]);
    feed(&mut c, &[PREFACE, &settings(&[]), &frame(HEADERS, 4, 1, &indexed)].concat()).unwrap();
    for _ in 0..3 {
        feed(&mut c, &frame(DATA, 0, 1, &[0; 16_384])).unwrap();
    }
    feed(&mut c, &frame(SETTINGS, ACK, 0, &[])).unwrap();
    // Now 48152 below zero, until it was released and given back. Only an empty frame needs no window.
    let mut empty = Connection::server(&limits);
    feed(&mut empty, &[PREFACE, &settings(&[]), &headers(1, false, &POST), &frame(DATA, 0, 1, &[0; 9000])].concat())
        .unwrap();
    let end = [frame(SETTINGS, ACK, 0, &[]), frame(DATA, END_STREAM, 1, &[])].concat();
    assert_eq!(feed(&mut empty, &end).unwrap(), [Owned::Data(1, vec![], 0, true)]);
    assert_eq!(feed(&mut c, &frame(DATA, 0, 1, b"x")).unwrap().last(), Some(&Owned::Reset(1, 3)));
    assert_eq!(feed(&mut c, &frame(HEADERS, 5, 3, &[0x82, 0x20])).unwrap_err().reason, Reason::COMPRESSION_ERROR);
}

#[test]
fn updates_are_batched_at_half_windows() {
    let mut c = server(&Limits::default());
    feed(&mut c, &headers(1, false, &POST)).unwrap();
    for _ in 0..4 {
        feed(&mut c, &frame(DATA, 0, 1, &[0; 16_000])).unwrap();
    }
    c.release(1, 32_767);
    assert!(!c.wants_write());
    c.release(1, 1);
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| (f.kind, f.id, f.code())).collect::<Vec<_>>(), [(WINDOW_UPDATE, 1, 32_768)]);
    // More than was delivered cannot be released.
    c.release(1, u32::MAX);
    feed(&mut c, &frame(DATA, 0, 1, &[0; 1000])).unwrap();
    c.release(1, u32::MAX);
    let out = sent(&mut c);
    assert_eq!(out.iter().map(|f| (f.id, f.code())).collect::<Vec<_>>(), []);
}

/// Sends bodies of 16,000 octets on as many streams until the connection's window stops it; none is taken. The number of
/// octets, and the window that is left.
fn fill(c: &mut Connection, mut window: i64, streams: u32) -> (i64, i64) {
    let mut sent_octets = 0;
    for id in (1..=2 * streams).step_by(2) {
        feed(c, &headers(id, false, &POST)).unwrap();
        for _ in 0..4 {
            if window < 16_000 {
                return (sent_octets, window);
            }
            feed(c, &frame(DATA, 0, id, &[0; 16_000])).unwrap();
            sent_octets += 16_000;
            window -= 16_000;
            window += sent(c)
                .iter()
                .filter(|f| f.kind == WINDOW_UPDATE && f.id == 0)
                .map(|f| i64::from(f.code()))
                .sum::<i64>();
        }
    }
    (sent_octets, window)
}

#[test]
fn streams_that_stand_still_leave_the_connections_window_to_others() {
    let limits = Limits::default();
    let window = i64::from(limits.connection_window);
    let mut c = server(&limits);
    // Four times what the window would hold.
    let (octets, left) = fill(&mut c, window, 64);
    assert_eq!(octets, 64 * 64_000);
    assert!(left >= window / 2, "{left}");
    // What they hold is bounded all the same.
    let limits = Limits { held: 2_000_000, ..limits };
    let mut c = server(&limits);
    let (octets, _) = fill(&mut c, window, 1000);
    assert!(octets <= 2_000_000 + window && octets > 2_000_000, "{octets}");
    // Some that are taken from let the others go on, however many stand still.
    for id in (1..2 * 10).step_by(2) {
        c.release(id, u32::MAX);
    }
    let given: u32 = sent(&mut c).iter().filter(|f| f.kind == WINDOW_UPDATE && f.id == 0).map(Frame::code).sum();
    assert!(given > 0);
}

#[test]
fn pings_are_answered_and_matched() {
    let mut c = server(&Limits::default());
    c.ping(*b"12345678");
    assert_eq!(sent(&mut c)[0].payload, b"12345678");
    let input = [frame(PING, 0, 0, b"abcdefgh"), frame(PING, ACK, 0, b"12345678"), frame(PING, ACK, 0, b"12345678")];
    assert_eq!(feed(&mut c, &input.concat()).unwrap(), [Owned::Pong]);
    let out = sent(&mut c);
    assert_eq!((out.len(), out[0].flags, &out[0].payload[..]), (1, ACK, &b"abcdefgh"[..]));
}
