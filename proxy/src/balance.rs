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

/// The load of one endpoint.
#[derive(Debug)]
pub struct PeakEwma {
    /// Seconds.
    rtt: Cell<f64>,
    /// When `rtt` was last updated.
    at: Cell<Instant>,
    /// Seconds in which a sample's influence falls to 1/e.
    decay: f64,
    pending: Cell<u32>,
}

impl PeakEwma {
    /// An endpoint that has not answered yet.
    pub fn new(load: Load, now: Instant) -> Self {
        Self {
            rtt: Cell::new(load.default_rtt.as_secs_f64()),
            at: Cell::new(now),
            decay: load.decay.as_secs_f64().max(1e-3),
            pending: Cell::new(0),
        }
    }

    /// The load now, in seconds times requests. An estimate that is not renewed decays, so that an endpoint which was
    /// slow once is tried again.
    pub fn load(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at.get()).as_secs_f64();
        self.rtt.get() * (-age / self.decay).exp() * f64::from(self.pending.get() + 1)
    }

    /// A request was sent.
    pub fn begin(&self) {
        self.pending.set(self.pending.get().saturating_add(1));
    }

    /// A request was answered after that time, or given up (`None`).
    pub fn end(&self, now: Instant, rtt: Option<Duration>) {
        self.pending.set(self.pending.get().saturating_sub(1));
        let Some(rtt) = rtt.map(|r| r.as_secs_f64()) else { return };
        let old = self.rtt.get();
        let new = if rtt > old {
            rtt
        } else {
            let age = now.saturating_duration_since(self.at.get()).as_secs_f64();
            let keep = (-age / self.decay).exp();
            old * keep + rtt * (1.0 - keep)
        };
        self.rtt.set(new);
        self.at.set(now);
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
        weight: u32,
        load: PeakEwma,
    }

    impl Candidate for Fake {
        fn is_ready(&self) -> bool {
            self.ready
        }
        fn weight(&self) -> u32 {
            self.weight
        }
        fn load(&self, now: Instant) -> f64 {
            self.load.load(now)
        }
    }

    fn fake(ready: bool, weight: u32, now: Instant) -> Fake {
        Fake { ready, weight, load: PeakEwma::new(Load::default(), now) }
    }

    /// One request at a time against servers of fixed latency, in a clock of its own: how often each was chosen.
    fn simulate(latencies: &[u64], rounds: usize, seed: u64) -> Vec<usize> {
        let mut now = Instant::now();
        let fakes: Vec<Fake> = latencies
            .iter()
            .map(|_| Fake { ready: true, weight: 1, load: PeakEwma::new(Load::default(), now) })
            .collect();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut chosen = vec![0; latencies.len()];
        for _ in 0..rounds {
            let at = pick(&fakes, now, &mut random).unwrap();
            let rtt = Duration::from_millis(latencies[at]);
            fakes[at].load.begin();
            now += rtt;
            fakes[at].load.end(now, Some(rtt));
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
                load.begin();
                load.end(now, Some(Duration::from_millis(rtt)));
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
        slow.begin();
        slow.end(start, Some(Duration::from_secs(2)));
        assert!(slow.load(start) > fast.load(start));
        let later = start + Duration::from_secs(120);
        fast.begin();
        fast.end(later, Some(Duration::from_millis(5)));
        assert!(slow.load(later) < fast.load(later));
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
