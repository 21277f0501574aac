//! Properties of HTTP/2 connections: any chunking gives the same events, no octets cause a panic, and two connections that
//! talk to each other at random deliver everything in order and within the windows.

mod h2_support;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fastrand::Rng;
use h2_support::*;
use proptest::prelude::*;
use weft_wire::{
    Limits,
    h2::{Connection, HIGH_MARK, Reason, fuzzing},
};

/// Frames that make sense more often than not, on few streams.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let id = prop::sample::select(vec![0u32, 1, 1, 1, 3, 3, 5, 7, 2]);
    let payload = prop_oneof![
        Just(Vec::new()),
        Just(block(&GET)),
        Just(block(&[(":status", "200")])),
        Just(block(&[("trailer", "1")])),
        Just(vec![0, 0, 0, 1]),
        Just(vec![0, 4, 0, 0, 0, 9]),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(any::<u8>(), 200..600),
    ];
    let kind = prop::sample::select(vec![0u8, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 77]);
    let flags = prop::sample::select(vec![0u8, 1, 4, 4, 5, 5, 8, 9, 0x24, 0x2d, 0xff]);
    let made = (kind, flags, id.clone(), payload).prop_map(|(k, f, id, p)| frame(k, f, id, &p));
    let good = prop_oneof![
        Just(headers(1, false, &POST)),
        Just(headers(3, true, &GET)),
        Just(headers(5, false, &POST)),
        Just(headers(1, false, &[(":status", "200")])),
        Just(headers(3, false, &[(":status", "103")])),
        Just(window_update(0, 1000)),
        Just(settings(&[(4, 100)])),
    ];
    let data =
        (id, prop::collection::vec(any::<u8>(), 0..300), 0u8..2).prop_map(|(id, p, end)| frame(DATA, end, id, &p));
    let padded = (prop::sample::select(vec![1u32, 3]), 0u8..60, prop::collection::vec(any::<u8>(), 0..100))
        .prop_map(|(id, pad, data)| frame(DATA, PADDED, id, &[&[pad], &data[..], &vec![0; pad.into()]].concat()));
    prop_oneof![2 => made, 3 => good, 3 => data, 1 => padded]
}

fn stream_of_frames() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any_frame(), 0..25).prop_map(|frames| frames.concat())
}

fn fresh(is_client: bool) -> Connection {
    if !is_client {
        return server(&Limits::default());
    }
    let mut c = client(&Limits::default());
    c.send_request(&request("POST", "/", &[]), false).unwrap();
    c.send_request(&request("GET", "/", &[]), true).unwrap();
    c.send_request(&request("HEAD", "/", &[]), true).unwrap();
    c
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_gives_the_same_events(
        input in stream_of_frames(),
        is_client: bool,
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        let run = |sizes: &mut dyn Iterator<Item = usize>| {
            let mut c = fresh(is_client);
            let (mut rest, mut events) = (&input[..], Vec::new());
            while !rest.is_empty() {
                let (mut piece, after) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
                rest = after;
                loop {
                    match c.next(&mut piece) {
                        Ok(Some(event)) => push(&mut events, own(event)),
                        Ok(None) => break,
                        Err(e) => return (events, Some(e), take(&mut c)),
                    }
                }
                assert!(piece.is_empty());
            }
            (events, None, take(&mut c))
        };
        let whole = run(&mut std::iter::repeat(usize::MAX));
        prop_assert_eq!(&run(&mut std::iter::repeat(1)), &whole);
        prop_assert_eq!(&run(&mut cuts.iter().copied().cycle()), &whole);
    }

    #[test]
    fn no_octets_cause_a_panic(data in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzzing::server(&data);
        fuzzing::client(&data);
        fuzzing::hpack(&data);
    }

    #[test]
    fn no_frames_cause_a_panic(piece: u8, answers: u8, frames in stream_of_frames()) {
        let data = [&[piece, answers], &frames[..]].concat();
        fuzzing::server(&data);
        fuzzing::client(&data);
    }
}

/// What one end may send, as far as the other end has told it; kept apart from the codec.
#[derive(Default)]
struct Windows {
    connection: i64,
    initial: i64,
    streams: HashMap<u32, i64>,
    in_part: Vec<u8>,
    out_part: Vec<u8>,
}

impl Windows {
    fn received(&mut self, octets: &[u8]) {
        self.in_part.extend(octets);
        if self.in_part.starts_with(b"PRI") {
            if self.in_part.len() < PREFACE.len() {
                return;
            }
            self.in_part.drain(..PREFACE.len());
        }
        for f in frames(&mut self.in_part) {
            match f.kind {
                WINDOW_UPDATE if f.id == 0 => self.connection += i64::from(f.code()),
                WINDOW_UPDATE => *self.streams.entry(f.id).or_default() += i64::from(f.code()),
                SETTINGS => {
                    for s in f.payload.chunks(6).filter(|s| s[..2] == [0, 4]) {
                        self.initial = i64::from(u32::from_be_bytes(s[2..].try_into().unwrap()));
                    }
                }
                _ => {}
            }
        }
    }

    fn sent(&mut self, octets: &[u8]) {
        self.out_part.extend(octets);
        if self.out_part.starts_with(b"PRI") {
            if self.out_part.len() < PREFACE.len() {
                return;
            }
            self.out_part.drain(..PREFACE.len());
        }
        for f in frames(&mut self.out_part).into_iter().filter(|f| f.kind == DATA) {
            let used = self.streams.entry(f.id).or_default();
            *used -= f.payload.len() as i64;
            self.connection -= f.payload.len() as i64;
            assert!(f.payload.is_empty() || self.initial + *used >= 0, "the window of stream {} is exceeded", f.id);
            assert!(f.payload.is_empty() || self.connection >= 0, "the connection's window is exceeded");
            assert!(f.payload.len() <= 16_384);
        }
    }
}

/// One direction of one stream.
#[derive(Default, Clone, Copy, Debug, PartialEq)]
struct Flow {
    octets: usize,
    ended: bool,
}

struct End {
    conn: Connection,
    windows: Windows,
    /// Octets on their way to this end.
    inbox: Vec<u8>,
    /// Octets that left the connection and are not on their way yet.
    outbox: Vec<u8>,
    /// By stream: what this end sent and what it got.
    sent: BTreeMap<u32, Flow>,
    got: BTreeMap<u32, Flow>,
    held: Vec<(u32, u32)>,
    /// Streams that were reset, by either end.
    dead: BTreeSet<u32>,
    /// Requests not answered yet (server).
    unanswered: Vec<u32>,
    pongs: usize,
}

fn octet(id: u32, at: usize) -> u8 {
    (id as usize).wrapping_mul(31).wrapping_add(at.wrapping_mul(7)) as u8 ^ (at >> 8) as u8
}

fn body(id: u32, at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| octet(id, i)).collect()
}

impl End {
    fn new(conn: Connection) -> Self {
        Self {
            conn,
            windows: Windows { connection: 65_535, initial: 65_535, ..Windows::default() },
            inbox: Vec::new(),
            outbox: Vec::new(),
            sent: BTreeMap::new(),
            got: BTreeMap::new(),
            held: Vec::new(),
            dead: BTreeSet::new(),
            unanswered: Vec::new(),
            pongs: 0,
        }
    }

    /// Octets for the network.
    fn take(&mut self, most: usize) -> Vec<u8> {
        if self.outbox.is_empty() {
            self.outbox.append(self.conn.output());
            self.windows.sent(&self.outbox);
            self.conn.pump();
        }
        self.outbox.drain(..most.min(self.outbox.len())).collect()
    }

    /// Counts everything that was sent before some input as sent without what that input permits or forbids.
    fn settle(&mut self) {
        while self.conn.wants_write() {
            let mut out = std::mem::take(self.conn.output());
            self.windows.sent(&out);
            self.outbox.append(&mut out);
            self.conn.pump();
        }
    }

    fn deliver(&mut self, most: usize) {
        self.settle();
        let input: Vec<u8> = self.inbox.drain(..most.min(self.inbox.len())).collect();
        self.windows.received(&input);
        for event in feed(&mut self.conn, &input).expect("neither end breaks a rule") {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Owned) {
        match event {
            Owned::Request(id, head, end) => {
                assert_eq!(head.path, format!("/{id}").as_bytes());
                self.got.insert(id, Flow { octets: 0, ended: end });
                self.unanswered.push(id);
            }
            Owned::Response(id, head, end) => {
                assert_eq!(head.headers.get(b"x-id"), Some(id.to_string().as_bytes()));
                assert!(self.got.insert(id, Flow { octets: 0, ended: end }).is_none());
            }
            Owned::Informational(id, head) => assert!(head.status == 103 && !self.got.contains_key(&id)),
            Owned::Data(id, data, flow, end) => {
                assert!(!self.dead.contains(&id));
                let got = self.got.get_mut(&id).expect("a head came first");
                assert!(!got.ended);
                assert!(data == body(id, got.octets, data.len()), "stream {id} is out of order at {}", got.octets);
                got.octets += data.len();
                got.ended = end;
                self.held.push((id, flow));
            }
            Owned::Trailers(id, headers) => {
                let got = self.got.get_mut(&id).expect("a head came first");
                assert!(!std::mem::replace(&mut got.ended, true));
                assert_eq!(headers.get(b"x-octets"), Some(got.octets.to_string().as_bytes()));
            }
            Owned::Reset(id, code) => {
                assert!(code == 8 || code == 7, "stream {id} was reset with {code}");
                self.dead.insert(id);
                self.unanswered.retain(|u| *u != id);
            }
            Owned::Pong => self.pongs += 1,
            Owned::Writable(id) => assert!(!self.conn.is_full(id)),
            Owned::Settings | Owned::GoAway(..) => {}
        }
    }

    /// A stream on which this end still sends.
    fn sending(&self, rng: &mut Rng) -> Option<u32> {
        let open: Vec<u32> =
            self.sent.iter().filter(|(id, f)| !f.ended && !self.dead.contains(id)).map(|(id, _)| *id).collect();
        (!open.is_empty()).then(|| open[rng.usize(..open.len())])
    }

    fn send(&mut self, id: u32, len: usize, end: bool) {
        if self.conn.is_full(id) {
            return;
        }
        let flow = self.sent.get_mut(&id).unwrap();
        let data = body(id, flow.octets, len);
        flow.octets += len;
        flow.ended = end;
        self.conn.send_data(id, &data, end);
        assert!(self.conn.queued(id) < HIGH_MARK + len);
    }

    fn finish(&mut self, id: u32) {
        let flow = self.sent.get_mut(&id).unwrap();
        flow.ended = true;
        let octets = flow.octets.to_string();
        self.conn.send_trailers(id, &list(&[("x-octets", &octets)]));
    }
}

fn respond(end: &mut End, id: u32, rng: &mut Rng) {
    if rng.u8(..4) == 0 {
        end.conn.send_informational(id, &response(103, &[("link", "</a>")]));
    }
    let ended = rng.u8(..4) == 0;
    let (number, big) = (id.to_string(), "b".repeat(rng.usize(..30_000)));
    let mut fields = vec![("x-id", &number[..])];
    if rng.u8(..10) == 0 {
        fields.push(("x-big", &big));
    }
    end.conn.send_response(id, &response(200, &fields), ended);
    end.sent.insert(id, Flow { octets: 0, ended });
}

fn converse(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let mut limits = || Limits {
        stream_window: *rng.choice(&[0, 1000, 5000, 65_535, 200_000]).unwrap(),
        connection_window: *rng.choice(&[0, 65_535, 70_000, 1 << 20]).unwrap(),
        held: *rng.choice(&[0, 1000, 100_000, 16 << 20]).unwrap(),
        hpack_table: *rng.choice(&[0, 100, 4096, 10_000]).unwrap(),
        frame_size: *rng.choice(&[16_384, 50_000]).unwrap(),
        concurrent_streams: *rng.choice(&[1, 10, 100]).unwrap(),
        ..Limits::default()
    };
    let (limits_a, limits_b) = (limits(), limits());
    let mut ends = [End::new(Connection::client(&limits_a)), End::new(Connection::server(&limits_b))];
    let mut pings = [0, 0];
    for _ in 0..rng.usize(100..600) {
        let at = rng.usize(..2);
        let (a, b) = ends.split_at_mut(1);
        let (me, other) = if at == 0 { (&mut a[0], &mut b[0]) } else { (&mut b[0], &mut a[0]) };
        match rng.u8(..14) {
            0..=2 => other.inbox.extend(me.take(1 << rng.u8(..18))),
            3..=5 => me.deliver(1 << rng.u8(..18)),
            6 | 7 if at == 0 => {
                let ended = rng.u8(..3) == 0;
                let path = format!("/{}", 2 * me.sent.len() + 1);
                if me.conn.can_open() {
                    let id = me.conn.send_request(&request("POST", &path, &[("x", "y")]), ended).unwrap();
                    me.sent.insert(id, Flow { octets: 0, ended });
                }
            }
            6 | 7 if !me.unanswered.is_empty() => {
                let id = me.unanswered.swap_remove(rng.usize(..me.unanswered.len()));
                respond(me, id, &mut rng);
            }
            8 | 9 => {
                if let Some(id) = me.sending(&mut rng) {
                    let len = *rng.choice(&[0, 1, 1000, 16_384, 50_000]).unwrap();
                    me.send(id, len, rng.u8(..6) == 0);
                }
            }
            10 => {
                if let Some(id) = me.sending(&mut rng).filter(|_| rng.u8(..4) == 0) {
                    me.finish(id);
                }
            }
            11 if !me.held.is_empty() => {
                let (id, flow) = me.held.swap_remove(rng.usize(..me.held.len()));
                me.conn.release(id, flow);
            }
            12 if rng.u8(..8) == 0 => {
                if let Some(id) = me.sending(&mut rng) {
                    me.dead.insert(id);
                    me.unanswered.retain(|u| *u != id);
                    me.conn.reset(id, Reason::CANCEL);
                }
            }
            13 if rng.u8(..8) == 0 => {
                me.conn.ping([seed as u8; 8]);
                pings[at] += 1;
            }
            _ => {}
        }
    }
    // Both ends finish what they began, and everything arrives.
    for round in 0.. {
        assert!(round < 100_000, "the connection does not come to rest");
        let mut moved = false;
        for at in 0..2 {
            let (a, b) = ends.split_at_mut(1);
            let (me, other) = if at == 0 { (&mut a[0], &mut b[0]) } else { (&mut b[0], &mut a[0]) };
            let out = me.take(usize::MAX);
            moved |= !out.is_empty() || !me.inbox.is_empty();
            other.inbox.extend(out);
            me.deliver(usize::MAX);
            for id in std::mem::take(&mut me.unanswered) {
                respond(me, id, &mut rng);
                moved = true;
            }
            for (id, flow) in std::mem::take(&mut me.held) {
                me.conn.release(id, flow);
                moved = true;
            }
            let open: Vec<u32> = me.sent.iter().filter(|(_, f)| !f.ended).map(|(id, _)| *id).collect();
            for id in open {
                me.finish(id);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    ends.iter_mut().for_each(|e| *e.conn.output() = Vec::new());
    let [client, server] = &ends;
    let stalls = |l: &Limits| l.stream_window == 0;
    for (from, to, to_limits) in [(client, server, &limits_b), (server, client, &limits_a)] {
        for (id, sent) in &from.sent {
            if from.dead.contains(id) || to.dead.contains(id) {
                continue;
            }
            // Without a window nothing comes but what was sent before the peer said so.
            if stalls(to_limits) {
                let got = to.got.get(id).map_or(0, |f| f.octets);
                assert!(got == sent.octets || got + from.conn.queued(*id) == sent.octets);
            } else {
                assert_eq!(to.got.get(id), Some(sent), "stream {id}");
            }
        }
    }
    if !stalls(&limits_a) && !stalls(&limits_b) {
        assert_eq!((client.conn.streams(), server.conn.streams()), (0, 0));
        assert!(client.conn.memory() < 100_000 && server.conn.memory() < 100_000);
        // No connection window has leaked: at least half of it is there.
        assert!(client.windows.connection >= i64::from(limits_b.connection_window.max(65_535) / 2));
        assert!(server.windows.connection >= i64::from(limits_a.connection_window.max(65_535) / 2));
    }
    assert_eq!([client.pongs, server.pongs], pings);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_connections_deliver_everything_in_order(seed: u64) {
        converse(seed);
    }
}
