//! Which endpoint: power of two choices over peak EWMA.
//!
//! Two endpoints are drawn at random, by weight, and the one with the smaller load gets the request. Load is the round-trip
//! time as a peak-sensitive moving average, times the requests in flight: a slow answer counts at once, a fast one only
//! as the average decays. See Finagle's "peak EWMA" (2016) and Mitzenmacher's "The power of two choices" (2001).
//!
//! Nothing here does I/O or knows a clock; the caller passes the time.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use crate::policy::Load;

/// Seconds: as fast as any, or nearly, so that an endpoint which is back is found out to be.
const RENEWED: f64 = 0.001;

/// The load of one endpoint.
///
/// While requests are unanswered, the time since anything was answered is a lower bound of the round-trip time: an endpoint
/// that has stopped answering is left as fast as one that answers slowly.
#[derive(Debug)]
pub struct PeakEwma {
    /// Seconds.
    rtt: Cell<f64>,
    /// When `rtt` was last updated.
    at: Cell<Instant>,
    /// Seconds in which a sample's influence falls to 1/e.
    decay: f64,
    /// Unanswered requests.
    pending: Cell<u32>,
    /// Open connections of which nothing more is known.
    open: Cell<u32>,
    /// The last answer, or the first of the unanswered requests.
    progress: Cell<Instant>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was answered after that time.
    Answered(Duration),
    /// Nobody waited longer than that.
    GivenUp(Duration),
    /// That tells nothing about the endpoint.
    Untold,
}

impl PeakEwma {
    /// An endpoint that has not answered yet.
    pub fn new(load: Load, now: Instant) -> Self {
        Self {
            rtt: Cell::new(load.default_rtt.as_secs_f64()),
            at: Cell::new(now),
            decay: load.decay.as_secs_f64().max(1e-3),
            pending: Cell::new(0),
            open: Cell::new(0),
            progress: Cell::new(now),
        }
    }

    fn decayed(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at.get()).as_secs_f64();
        self.rtt.get() * (-age / self.decay).exp()
    }

    /// The load now, in seconds times requests. An estimate that is not renewed decays, so that an endpoint which was
    /// slow once is tried again.
    pub fn load(&self, now: Instant) -> f64 {
        let mut rtt = self.decayed(now);
        let pending = self.pending.get();
        if pending > 0 {
            rtt = rtt.max(now.saturating_duration_since(self.progress.get()).as_secs_f64());
        }
        rtt * (f64::from(pending) + f64::from(self.open.get()) + 1.0)
    }

    /// A request was sent.
    pub fn begin(&self, now: Instant) {
        let pending = self.pending.get();
        if pending == 0 {
            self.progress.set(now);
        }
        self.pending.set(pending.saturating_add(1));
    }

    /// A request has ended.
    pub fn end(&self, now: Instant, how: Ended) {
        self.pending.set(self.pending.get().saturating_sub(1));
        let (rtt, answered) = match how {
            Ended::Answered(rtt) => (rtt.as_secs_f64(), true),
            // A stream may have been given up after hours, but that is soon forgotten.
            Ended::GivenUp(after) => (after.as_secs_f64().min(self.decay), false),
            Ended::Untold => return,
        };
        let old = self.rtt.get();
        if answered {
            self.progress.set(now);
        } else if rtt <= self.decayed(now) {
            return;
        }
        let new = if rtt > old || !answered {
            rtt
        } else {
            let age = now.saturating_duration_since(self.at.get()).as_secs_f64();
            let keep = (-age / self.decay).exp();
            old * keep + rtt * (1.0 - keep)
        };
        self.rtt.set(new);
        self.at.set(now);
    }

    /// What was measured says nothing any more: the way to the endpoint was broken. It is tried soon, and the first answer
    /// tells.
    pub fn renew(&self, now: Instant) {
        self.rtt.set(RENEWED);
        self.at.set(now);
    }

    /// A connection for bytes was opened.
    pub fn open(&self) {
        self.open.set(self.open.get().saturating_add(1));
    }

    /// A connection for bytes was closed.
    pub fn close(&self) {
        self.open.set(self.open.get().saturating_sub(1));
    }

    /// Requests in flight.
    #[cfg(test)]
    fn pending(&self) -> u32 {
        self.pending.get()
    }
}

/// What can be chosen.
pub trait Candidate {
    /// False while it must not be chosen.
    fn is_ready(&self) -> bool;
    /// True while others are preferred.
    fn is_suspect(&self) -> bool;
    /// Relative weight; zero is never chosen.
    fn weight(&self) -> u32;
    /// The smaller, the better.
    fn load(&self, now: Instant) -> f64;
}

/// Chooses one of `candidates`: its index, or none when none is ready.
pub fn pick<C: Candidate>(candidates: &[C], now: Instant, random: &mut fastrand::Rng) -> Option<usize> {
    let usable = |c: &C| c.is_ready() && c.weight() > 0;
    if let [only] = candidates {
        return usable(only).then_some(0);
    }
    let trusted = |c: &C| usable(c) && !c.is_suspect();
    if candidates.iter().any(trusted) {
        pick_of(candidates, now, random, trusted)
    } else {
        pick_of(candidates, now, random, usable)
    }
}

fn pick_of<C: Candidate>(
    candidates: &[C],
    now: Instant,
    random: &mut fastrand::Rng,
    usable: impl Fn(&C) -> bool + Copy,
) -> Option<usize> {
    let (mut total, mut count) = (0u64, 0usize);
    for c in candidates.iter().filter(|c| usable(c)) {
        total += u64::from(c.weight());
        count += 1;
    }
    if count == 0 {
        return None;
    }
    let first = draw(candidates, total, None, random, usable)?;
    if count == 1 {
        return Some(first);
    }
    let rest = total - u64::from(candidates.get(first)?.weight());
    let second = draw(candidates, rest, Some(first), random, usable)?;
    let load = |at: usize| candidates.get(at).map_or(f64::INFINITY, |c| c.load(now));
    Some(if load(second) < load(first) { second } else { first })
}

/// Draws one by weight, but never `without`.
fn draw<C: Candidate>(
    candidates: &[C],
    total: u64,
    without: Option<usize>,
    random: &mut fastrand::Rng,
    usable: impl Fn(&C) -> bool,
) -> Option<usize> {
    if total == 0 {
        return None;
    }
    let mut at = random.u64(0..total);
    for (index, c) in candidates.iter().enumerate() {
        if Some(index) == without || !usable(c) {
            continue;
        }
        match at.checked_sub(u64::from(c.weight())) {
            Some(rest) => at = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Fake {
        ready: bool,
        suspect: bool,
        weight: u32,
        load: PeakEwma,
    }

    impl Candidate for Fake {
        fn is_ready(&self) -> bool {
            self.ready
        }
        fn is_suspect(&self) -> bool {
            self.suspect
        }
        fn weight(&self) -> u32 {
            self.weight
        }
        fn load(&self, now: Instant) -> f64 {
            self.load.load(now)
        }
    }

    fn fake(ready: bool, weight: u32, now: Instant) -> Fake {
        Fake { ready, suspect: false, weight, load: PeakEwma::new(Load::default(), now) }
    }

    /// One request at a time against servers of fixed latency, in a clock of its own: how often each was chosen.
    fn simulate(latencies: &[u64], rounds: usize, seed: u64) -> Vec<usize> {
        let mut now = Instant::now();
        let fakes: Vec<Fake> = latencies.iter().map(|_| fake(true, 1, now)).collect();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut chosen = vec![0; latencies.len()];
        for _ in 0..rounds {
            let at = pick(&fakes, now, &mut random).unwrap();
            let rtt = Duration::from_millis(latencies[at]);
            fakes[at].load.begin(now);
            now += rtt;
            fakes[at].load.end(now, Ended::Answered(rtt));
            chosen[at] += 1;
        }
        chosen
    }

    proptest! {
        #[test]
        fn only_ready_endpoints_with_weight_are_chosen(
            set in proptest::collection::vec((any::<bool>(), 0u32..3), 0..12), seed: u64,
        ) {
            let now = Instant::now();
            let fakes: Vec<Fake> = set.iter().map(|&(ready, weight)| fake(ready, weight, now)).collect();
            let usable = fakes.iter().any(|f| f.ready && f.weight > 0);
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..20 {
                match pick(&fakes, now, &mut random) {
                    Some(at) => prop_assert!(fakes[at].ready && fakes[at].weight > 0),
                    None => prop_assert!(!usable),
                }
            }
        }

        #[test]
        fn a_slow_endpoint_gets_little(seed: u64, slow_at in 0usize..4) {
            let mut latencies = [5; 4];
            latencies[slow_at] = 500;
            let chosen = simulate(&latencies, 2000, seed);
            prop_assert!(chosen[slow_at] < 2000 / 10, "{chosen:?}");
        }

        #[test]
        fn equals_share(seed: u64) {
            let chosen = simulate(&[10; 4], 2000, seed);
            prop_assert!(chosen.iter().all(|&n| n > 2000 / 16), "{chosen:?}");
        }

        #[test]
        fn load_is_finite_and_never_negative(samples in proptest::collection::vec((0u64..100_000, 0u64..100_000), 0..50)) {
            let mut now = Instant::now();
            let load = PeakEwma::new(Load::default(), now);
            for (wait, rtt) in samples {
                now += Duration::from_millis(wait);
                load.begin(now);
                load.end(now, Ended::Answered(Duration::from_millis(rtt)));
                let value = load.load(now);
                prop_assert!(value.is_finite() && value >= 0.0);
            }
            prop_assert_eq!(load.pending(), 0);
        }
    }

    #[test]
    fn a_slow_endpoint_is_tried_again() {
        let start = Instant::now();
        let (slow, fast) = (PeakEwma::new(Load::default(), start), PeakEwma::new(Load::default(), start));
        slow.begin(start);
        slow.end(start, Ended::Answered(Duration::from_secs(2)));
        assert!(slow.load(start) > fast.load(start));
        let later = start + Duration::from_secs(120);
        fast.begin(later);
        fast.end(later, Ended::Answered(Duration::from_millis(5)));
        assert!(slow.load(later) < fast.load(later));
    }

    #[test]
    fn an_endpoint_that_stops_answering_is_left() {
        let start = Instant::now();
        let (dead, live) = (PeakEwma::new(Load::default(), start), PeakEwma::new(Load::default(), start));
        let ms = Duration::from_millis;
        for at in 0..1000 {
            let now = start + ms(at * 20);
            for load in [&dead, &live] {
                load.begin(now);
                load.end(now + ms(10), Ended::Answered(ms(10)));
            }
        }
        let stop = start + ms(20_000);
        dead.begin(stop);
        assert!(dead.load(stop + ms(100)) > 10.0 * live.load(stop + ms(100)), "one request without an answer tells");
        assert!(dead.load(stop + ms(60_000)) > 10.0 * live.load(stop + ms(60_000)), "and goes on to tell");
        // Whoever waited gives up; that is remembered for a while.
        let later = stop + ms(5000);
        dead.end(later, Ended::GivenUp(ms(5000)));
        assert!(dead.load(later + ms(1000)) > 10.0 * live.load(later + ms(1000)));
        assert!(dead.load(later + ms(300_000)) < 0.001, "it is tried again one day");
        // An open connection is no unanswered request.
        live.open();
        assert!(live.load(later + ms(300_000)) < 0.001);
        live.close();
    }

    #[test]
    fn suspects_are_chosen_only_without_others() {
        let now = Instant::now();
        let suspect = |suspect| Fake { suspect, ..fake(true, 1, now) };
        let mut random = fastrand::Rng::with_seed(7);
        let fakes = [suspect(true), suspect(false), suspect(true)];
        assert!((0..100).all(|_| pick(&fakes, now, &mut random) == Some(1)));
        let fakes = [suspect(true), suspect(true)];
        assert!((0..100).all(|_| pick(&fakes, now, &mut random).is_some()));
    }

    #[test]
    fn weights_are_followed() {
        let now = Instant::now();
        let fakes = [fake(true, 1, now), fake(true, 1, now), fake(true, 18, now)];
        let mut random = fastrand::Rng::with_seed(7);
        let n = (0..1000).filter(|_| pick(&fakes, now, &mut random) == Some(2)).count();
        assert!(n > 800, "{n}");
        let fakes = [fake(true, 0, now), fake(true, 5, now)];
        assert!((0..100).all(|_| pick(&fakes, now, &mut random) == Some(1)));
    }
}
