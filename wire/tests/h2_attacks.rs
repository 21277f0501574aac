//! What peers do to exhaust an HTTP/2 endpoint, each refused with the right code and within bounded memory.

mod h2_support;

use h2_support::*;
use weft_wire::{
    Limits,
    h2::{Connection, HIGH_MARK, OUTPUT_MARK, Reason},
};

const CALM: u32 = 11;

/// Inputs in one read of a flood.
const BATCH: usize = 50;

/// Feeds inputs, many in a read, until the connection fails; gives the code and after how many it was at the latest.
fn until_refused(c: &mut Connection, most: usize, mut input: impl FnMut(usize) -> Vec<u8>) -> (u32, usize) {
    for i in (0..most).step_by(BATCH) {
        let batch: Vec<u8> = (i..i + BATCH).flat_map(&mut input).collect();
        if let Err(e) = feed(c, &batch) {
            return (e.reason.0, i + BATCH);
        }
        take(c);
        assert!(c.memory() < 1 << 20, "{} octets", c.memory());
    }
    panic!("tolerated {most} times");
}

fn id(i: usize) -> u32 {
    2 * i as u32 + 1
}

#[test]
fn rapid_reset_in_one_write() {
    // CVE-2023-44487
    let limits = Limits::default();
    let mut c = server(&limits);
    let mut input = Vec::new();
    for i in 0..10_000 {
        input.extend(headers(id(i), true, &GET));
        input.extend(rst(id(i), 8));
    }
    let (mut rest, mut requests) = (&input[..], 0);
    let error = loop {
        match c.next(&mut rest) {
            Ok(Some(event)) => requests += usize::from(matches!(own(event), Owned::Request(..))),
            Ok(None) => panic!("tolerated"),
            Err(e) => break e,
        }
    };
    assert_eq!(error.reason, Reason::ENHANCE_YOUR_CALM);
    assert_eq!(requests, limits.rapid_resets as usize + 1);
    assert!(c.streams() <= 1 && c.memory() < 64 * 1024);
    // Another connection does not notice.
    assert!(feed(&mut server(&limits), &headers(1, true, &GET)).is_ok());
}

#[test]
fn occasional_cancellations_are_tolerated() {
    let mut c = server(&Limits::default());
    for i in 0..20_000 {
        let mut input = headers(id(i), true, &GET);
        let cancelled = i % 30 == 0;
        if cancelled {
            input.extend(rst(id(i), 8));
        }
        feed(&mut c, &input).unwrap();
        if !cancelled {
            c.send_response(id(i), &response(200, &[]), true);
        }
        take(&mut c);
    }
    assert_eq!(c.streams(), 0);
}

#[test]
fn resets_that_the_server_is_made_to_send() {
    // CVE-2025-8671: the client breaks a rule on each of its streams instead of resetting it.
    for fault in [window_update as fn(u32, u32) -> Vec<u8>, |id, _| frame(PRIORITY, 0, id, &[0; 4])] {
        let mut c = server(&Limits::default());
        let (code, times) = until_refused(&mut c, 2000, |i| [headers(id(i), true, &GET), fault(id(i), 0)].concat());
        assert_eq!((code, times), (CALM, 250));
    }
}

#[test]
fn malformed_requests_are_bounded() {
    let mut c = server(&Limits::default());
    let (code, times) = until_refused(&mut c, 5000, |i| headers(id(i), true, &[(":method", "GET")]));
    assert!(code == CALM && times <= 1100, "{times}");
}

#[test]
fn continuation_flood() {
    // CVE-2024-27316 and its family
    for piece in [0, 1, 16_000] {
        let limits = Limits::default();
        let mut c = server(&limits);
        feed(&mut c, &frame(HEADERS, 1, 1, &[])).unwrap();
        let (code, times) = until_refused(&mut c, 100, |_| frame(CONTINUATION, 0, 1, &vec![0; piece]));
        assert_eq!(code, CALM);
        assert!(times <= BATCH);
    }
}

#[test]
fn hpack_bombs() {
    // One entry of 4000 octets, then an octet for each repetition: 64 MB of header list in 20 kB.
    let mut bomb = block(&GET);
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'v'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let mut c = server(&Limits::default());
    for i in 0..50 {
        assert_eq!(feed(&mut c, &frame(HEADERS, 5, id(i), &bomb)).unwrap(), []);
        assert_eq!(sent(&mut c).len(), 1, "an answer of 431");
        assert!(c.memory() < 64 * 1024, "{} octets", c.memory());
    }
    // Fields that are dropped or merged count as well (CVE-2026-73550, CVE-2026-47774).
    for name in ["host", "cookie"] {
        let mut bomb = block(&GET);
        bomb.extend([0x40, name.len() as u8]);
        bomb.extend(name.bytes());
        bomb.extend([6]);
        bomb.extend(b"a.test");
        bomb.extend([0xbe; 200]);
        let mut c = server(&Limits::default());
        assert_eq!(feed(&mut c, &frame(HEADERS, 5, 1, &bomb)).unwrap(), [], "{name}");
    }
    // A Huffman string at its densest: 5 bits an octet.
    let mut dense = block(&GET);
    dense.extend([0, 1, b'x', 0xff, 0xe0, 0x7c]);
    dense.extend([0; 16_095]);
    let mut c = server(&Limits { head_size: 17_000, ..Limits::default() });
    assert_eq!(feed(&mut c, &frame(HEADERS, 5, 1, &dense)).unwrap(), []);
}

#[test]
fn absurdly_many_fields() {
    let mut many = block(&GET);
    (0..3000).for_each(|_| many.extend([0, 1, b'x', 0]));
    let mut c = server(&Limits::default());
    assert_eq!(feed(&mut c, &frame(HEADERS, 5, 1, &many)).unwrap(), []);
}

#[test]
fn floods_of_frames_without_progress() {
    let ping = frame(PING, 0, 0, &[0; 8]);
    for (name, input) in [
        ("SETTINGS", settings(&[(3, 100)])),
        ("SETTINGS that change windows", [settings(&[(4, 1)]), settings(&[(4, 70_000)])].concat()),
        ("PING", ping.clone()),
        ("answers to no PING", frame(PING, ACK, 0, &[0; 8])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0; 5])),
        ("PRIORITY of idle streams", frame(PRIORITY, 0, 99, &[0; 5])),
        ("empty DATA", frame(DATA, 0, 1, &[])),
        ("DATA of padding", frame(DATA, PADDED, 1, &[200; 201])),
        ("unknown frames", frame(0x42, 0, 0, &[])),
        ("WINDOW_UPDATE", window_update(0, 1)),
        ("WINDOW_UPDATE of a stream", window_update(1, 1)),
        ("RST_STREAM of a closed stream", rst(3, 8)),
        ("GOAWAY", frame(GOAWAY, 0, 0, &[0; 8])),
        ("HEADERS of a stream reset here", headers(5, true, &[("x", "y")])),
    ] {
        let limits = Limits::default();
        let mut c = server(&limits);
        let streams = [headers(1, false, &POST), headers(3, true, &GET), rst(3, 8), headers(5, false, &POST)].concat();
        feed(&mut c, &streams).unwrap();
        c.reset(5, Reason::CANCEL);
        let (code, times) = until_refused(&mut c, 4000, |_| input.clone());
        assert_eq!(code, CALM, "{name}");
        assert!(times <= limits.idle_frames as usize + 250, "{name}: {times}");
    }
}

#[test]
fn the_server_can_flood_neither() {
    for (name, input) in [
        ("1xx", headers(1, false, &[(":status", "103")])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("empty DATA", frame(DATA, 0, 3, &[])),
        ("DATA of a stream reset here", frame(DATA, 0, 5, &[])),
    ] {
        let mut c = client(&Limits::default());
        for _ in 0..3 {
            c.send_request(&request("GET", "/", &[]), true).unwrap();
        }
        feed(&mut c, &headers(3, false, &[(":status", "200")])).unwrap();
        c.reset(5, Reason::CANCEL);
        if name.starts_with("DATA") {
            // Not an error, as it may have been on its way; and it holds nothing.
            for _ in 0..5000 {
                feed(&mut c, &input).unwrap();
            }
            continue;
        }
        assert_eq!(until_refused(&mut c, 2000, |_| input.clone()).0, CALM, "{name}");
    }
}

#[test]
fn what_comes_one_by_one_is_no_flood() {
    // Keep-alive for days.
    let mut c = server(&Limits::default());
    for _ in 0..20_000 {
        feed(&mut c, &frame(PING, 0, 0, &[0; 8])).unwrap();
        take(&mut c);
    }
    // gRPC measures the path with a PING for each DATA it gets, here several in a read.
    feed(&mut c, &[headers(1, true, &GET), settings(&[(4, 1 << 30)]), window_update(0, 1 << 30)].concat()).unwrap();
    c.send_response(1, &response(200, &[]), false);
    for _ in 0..5_000 {
        (0..4).for_each(|_| c.send_data(1, b"message", false));
        take(&mut c);
        feed(&mut c, &frame(PING, 0, 0, &[0; 8]).repeat(4)).unwrap();
        feed(&mut c, &[window_update(0, 7), window_update(1, 7)].concat().repeat(4)).unwrap();
    }
    // A long poll that is given up every now and then, and a tick in between.
    for i in 1..2000 {
        feed(&mut c, &headers(id(i), true, &GET)).unwrap();
        c.tick();
        feed(&mut c, &rst(id(i), 8)).unwrap();
        take(&mut c);
    }
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let limits = Limits { idle_frames: u32::MAX, ..Limits::default() };
    let ping = frame(PING, 0, 0, &[0; 8]);
    let mut c = server(&limits);
    let mut count = 0;
    while feed(&mut c, &ping).is_ok() {
        count += 1;
        assert!(count < 10_000);
    }
    assert!(c.output().len() <= limits.control_backlog + 128);
    // A peer that reads may ask for as many as it likes, also when the output is never empty.
    let mut c = server(&limits);
    feed(&mut c, &ping).unwrap();
    for _ in 0..50_000 {
        feed(&mut c, &ping).unwrap();
        c.output().drain(..17);
        c.pump();
    }
    assert_eq!(c.output().len(), 17);
}

#[test]
fn streams_over_the_limit_are_refused() {
    let limits = Limits { concurrent_streams: 100, ..Limits::default() };
    let mut c = server(&limits);
    let mut requests = 0;
    for i in 0..500 {
        requests += feed(&mut c, &headers(id(i), false, &POST)).unwrap().len();
    }
    assert_eq!((requests, c.streams()), (100, 100));
    assert_eq!(sent(&mut c).iter().filter(|f| f.kind == RST_STREAM && f.code() == 7).count(), 400);
}

#[test]
fn a_window_that_never_opens_stalls_only_its_stream() {
    let mut c = server(&Limits::default());
    let input = [settings(&[(4, 0)]), headers(1, true, &GET), headers(3, true, &GET), window_update(3, 1 << 20)];
    feed(&mut c, &input.concat()).unwrap();
    for id in [1, 3] {
        c.send_response(id, &response(200, &[]), false);
        while !c.is_full(id) && c.output().len() < 60_000 {
            c.send_data(id, &[b'x'; 8192], false);
        }
    }
    assert!(c.is_full(1) && c.queued(1) < HIGH_MARK + 8192);
    assert!(!c.is_full(3));
    let out = sent(&mut c);
    assert!(out.iter().all(|f| f.kind != DATA || f.id == 3));
    // The driver gives up.
    c.reset(1, Reason::CANCEL);
    assert_eq!((c.queued(1), c.streams()), (0, 1));
    assert!(c.memory() < 400 * 1024, "{}", c.memory());
}

#[test]
fn resets_with_closed_windows_leave_nothing() {
    // GHSA-8r5v-vm4m-4g25: what is queued for streams that error out must go with them.
    let limits = Limits { rapid_resets: u32::MAX, ..Limits::default() };
    let mut c = server(&limits);
    feed(&mut c, &settings(&[(4, 100)])).unwrap();
    // The connection's window is used up first, so that every stream waits in the list.
    feed(&mut c, &[headers(1, true, &GET), window_update(1, 65_535)].concat()).unwrap();
    c.send_response(1, &response(200, &[]), false);
    c.send_data(1, &[0; 65_535], true);
    for i in 1..5000 {
        feed(&mut c, &headers(id(i), true, &GET)).unwrap();
        c.send_response(id(i), &response(200, &[]), false);
        c.send_data(id(i), &[b'x'; 1000], true);
        assert_eq!(c.queued(id(i)), 1000);
        feed(&mut c, &window_update(id(i), 0)).unwrap();
        take(&mut c);
        assert!(c.memory() < 64 * 1024, "{} octets after {i}", c.memory());
    }
    assert_eq!(c.streams(), 0);
}

/// The connection window that the peer sees, from what a connection sent.
fn credit(frames: &[Frame]) -> i64 {
    frames.iter().filter(|f| f.kind == WINDOW_UPDATE && f.id == 0).map(|f| i64::from(f.code())).sum()
}

#[test]
fn no_way_of_ending_a_stream_leaks_connection_window() {
    // h2 0.4.14 to 0.4.18: padding, resets and late data each leaked.
    let limits = Limits { rapid_resets: u32::MAX, ..Limits::default() };
    let mut c = server(&limits);
    let mut window = i64::from(limits.connection_window);
    let data = frame(DATA, PADDED, 1, &[&[99][..], &[b'd'; 500], &[0; 99]].concat());
    let data_on = |id: u32, flags: u8| {
        let mut f = data.clone();
        f[4] |= flags;
        f[5..9].copy_from_slice(&id.to_be_bytes());
        f
    };
    for i in 0..30_000 {
        let id = id(i);
        let mut input = headers(id, false, &POST);
        input.extend(data_on(id, 0));
        match i % 6 {
            0 => input.extend(rst(id, 8)),
            1 => input.extend(window_update(id, 0)),
            2 => input.extend([frame(DATA, PADDED, id, &[7, 0, 0, 0, 0, 0, 0, 0]), data_on(id, END_STREAM)].concat()),
            _ => input.extend(data_on(id, 0)),
        }
        let events = feed(&mut c, &input).unwrap();
        match i % 6 {
            // The driver resets it; more data is on its way.
            3 => {
                c.reset(id, Reason::CANCEL);
                feed(&mut c, &data_on(id, END_STREAM)).unwrap();
            }
            // It is reset in the middle of a frame.
            4 => {
                let f = data_on(id, END_STREAM);
                feed(&mut c, &f[..200]).unwrap();
                c.reset(id, Reason::CANCEL);
                feed(&mut c, &f[200..]).unwrap();
            }
            // It is answered, ended and released piece by piece.
            2 | 5 => {
                c.send_response(id, &response(200, &[]), true);
                if i % 6 == 5 {
                    let end = feed(&mut c, &frame(DATA, END_STREAM, id, &[])).unwrap();
                    assert!(matches!(end[..], [Owned::Data(_, _, 0, true)]));
                }
                for event in &events {
                    if let Owned::Data(_, _, flow, _) = event {
                        c.release(id, flow / 2);
                        c.release(id, flow - flow / 2);
                    }
                }
            }
            _ => {}
        }
        let payloads = match i % 6 {
            0 | 1 => 600,
            2 => 600 + 8 + 600,
            5 => 1200,
            _ => 1800,
        };
        window += credit(&sent(&mut c)) - payloads;
    }
    assert_eq!(c.streams(), 0);
    let half = i64::from(limits.connection_window / 2);
    assert!(window > half && window <= 2 * half, "{window} octets left");
}

#[test]
fn tiny_data_frames_cost_no_memory_and_few_updates() {
    let limits = Limits::default();
    let mut c = server(&limits);
    feed(&mut c, &headers(1, false, &POST)).unwrap();
    let mut updates = 0;
    for _ in 0..200_000 {
        let one = frame(DATA, 0, 1, b"x");
        let mut input = &one[..];
        while let Some(event) = c.next(&mut input).unwrap() {
            let Owned::Data(id, _, flow, false) = own(event) else { panic!() };
            c.release(id, flow);
        }
        updates += sent(&mut c).len();
    }
    assert!(updates <= 200_000 / 32_000 + 1, "{updates} updates");
    assert!(c.memory() < 16 * 1024);
}

#[test]
fn a_peer_that_reads_nothing_gets_no_more_than_the_output_mark() {
    let mut c = server(&Limits { concurrent_streams: 200, ..Limits::default() });
    feed(&mut c, &[settings(&[(4, 1 << 30)]), window_update(0, 1 << 30)].concat()).unwrap();
    for i in 0..200 {
        feed(&mut c, &headers(id(i), true, &GET)).unwrap();
        c.send_response(id(i), &response(200, &[]), false);
        while !c.is_full(id(i)) && c.queued(id(i)) + c.output().len() < OUTPUT_MARK {
            c.send_data(id(i), &[b'x'; 16_384], false);
        }
    }
    assert!(c.output().len() < OUTPUT_MARK + 64 * 1024);
}
