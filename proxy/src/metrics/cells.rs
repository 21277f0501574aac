//! The values: atomics that are added to without order.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};

/// A number that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(pub(super) Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn incr(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(pub(super) Arc<AtomicI64>);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// A distribution of whole numbers over fixed buckets.
#[derive(Debug, Clone)]
pub struct Histogram(pub(super) Arc<Buckets>);

#[derive(Debug)]
pub(super) struct Buckets {
    /// Upper bounds, inclusive, ascending; one more count than bounds, for what is above the last.
    pub(super) bounds: &'static [u64],
    pub(super) counts: Box<[AtomicU64]>,
    pub(super) sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Buckets { bounds, counts, sum: AtomicU64::new(0) }))
    }

    /// Records a value.
    pub fn record(&self, value: u64) {
        let at = self.0.bounds.partition_point(|b| *b < value);
        if let Some(count) = self.0.counts.get(at) {
            count.fetch_add(1, Relaxed);
        }
        self.0.sum.fetch_add(value, Relaxed);
    }

    /// Number of values recorded.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|c| c.load(Relaxed)).sum()
    }
}
