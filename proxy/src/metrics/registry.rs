//! The registry: families, their label sets, and the text that a scrape gets.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    cells::{Counter, Gauge, Histogram},
    labels::Labels,
    process,
};

/// A family of metrics.
#[derive(Debug)]
pub struct Family {
    /// Its name in the exposition.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// How.
    pub kind: Kind,
}

/// The kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution over buckets of these upper bounds.
    Histogram(&'static [u64]),
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

enum Cell {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Cell {
    /// True when a handle exists outside of the registry.
    fn is_held(&self) -> bool {
        match self {
            Self::Counter(c) => Arc::strong_count(&c.0) > 1,
            Self::Gauge(g) => Arc::strong_count(&g.0) > 1,
            Self::Histogram(h) => Arc::strong_count(&h.0) > 1,
        }
    }

    fn fingerprint(&self) -> u64 {
        match self {
            Self::Counter(c) => c.value(),
            Self::Gauge(g) => g.value() as u64,
            Self::Histogram(h) => h.count(),
        }
    }
}

struct Entry {
    cell: Cell,
    seen: u64,
    changed: Instant,
}

struct Members {
    family: &'static Family,
    entries: BTreeMap<Labels, Entry>,
}

/// All metrics of the process.
pub struct Metrics {
    families: Mutex<BTreeMap<&'static str, Members>>,
    retain: Duration,
}

impl Metrics {
    /// An empty registry that keeps unused label sets for `retain`.
    pub fn new(retain: Duration) -> Arc<Self> {
        Arc::new(Self { families: Mutex::default(), retain })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Members>> {
        // Nothing panics while it holds the lock; a poisoned registry would still be consistent.
        self.families.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn entry<T>(
        &self,
        family: &'static Family,
        labels: &Labels,
        make: impl FnOnce() -> Cell,
        get: impl FnOnce(&Cell) -> Option<T>,
    ) -> Option<T> {
        let mut families = self.lock();
        let members = families.entry(family.name).or_insert_with(|| Members { family, entries: BTreeMap::new() });
        let entry = members.entries.entry(labels.clone()).or_insert_with(|| {
            let cell = make();
            Entry { seen: cell.fingerprint(), cell, changed: Instant::now() }
        });
        get(&entry.cell)
    }

    /// The counter of a family with these labels.
    pub fn counter(&self, family: &'static Family, labels: &Labels) -> Counter {
        self.entry(
            family,
            labels,
            || Cell::Counter(Counter::default()),
            |c| match c {
                Cell::Counter(c) => Some(c.clone()),
                _ => None,
            },
        )
        .unwrap_or_default()
    }

    /// The gauge of a family with these labels.
    pub fn gauge(&self, family: &'static Family, labels: &Labels) -> Gauge {
        self.entry(
            family,
            labels,
            || Cell::Gauge(Gauge::default()),
            |c| match c {
                Cell::Gauge(g) => Some(g.clone()),
                _ => None,
            },
        )
        .unwrap_or_default()
    }

    /// The histogram of a family with these labels.
    pub fn histogram(&self, family: &'static Family, labels: &Labels) -> Histogram {
        let bounds = match family.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge => &[],
        };
        self.entry(
            family,
            labels,
            || Cell::Histogram(Histogram::new(bounds)),
            |c| match c {
                Cell::Histogram(h) => Some(h.clone()),
                _ => None,
            },
        )
        .unwrap_or_else(|| Histogram::new(bounds))
    }

    /// Drops what nobody holds and what has not changed for the retention time. Called once a minute.
    pub fn sweep(&self, now: Instant) {
        let mut families = self.lock();
        for members in families.values_mut() {
            members.entries.retain(|_, entry| {
                let value = entry.cell.fingerprint();
                if entry.cell.is_held() || value != entry.seen {
                    entry.seen = value;
                    entry.changed = now;
                }
                now.saturating_duration_since(entry.changed) < self.retain
            });
        }
        families.retain(|_, members| !members.entries.is_empty());
    }

    /// The exposition: the registry and the process' own figures.
    pub fn render(&self) -> String {
        let mut out = self.render_registry();
        process::render(&mut out);
        out
    }

    /// The exposition of the registry alone, sorted by name and labels.
    pub fn render_registry(&self) -> String {
        let mut out = String::with_capacity(8 * 1024);
        let families = self.lock();
        for members in families.values() {
            head(&mut out, members.family.name, members.family.help, members.family.kind.as_str());
            for (labels, entry) in &members.entries {
                let name = members.family.name;
                match &entry.cell {
                    Cell::Counter(c) => sample(&mut out, name, labels.as_str(), c.value()),
                    Cell::Gauge(g) => sample(&mut out, name, labels.as_str(), g.value()),
                    Cell::Histogram(h) => histogram(&mut out, name, labels, h),
                }
            }
        }
        out
    }
}

pub(super) fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(super) fn sample(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

fn histogram(out: &mut String, name: &str, labels: &Labels, histogram: &Histogram) {
    let bucket = format!("{name}_bucket");
    let buckets = &histogram.0;
    let mut total = 0;
    let bounds = buckets.bounds.iter().map(u64::to_string).chain(std::iter::once("+Inf".to_owned()));
    for (bound, count) in bounds.zip(buckets.counts.iter()) {
        total += count.load(Relaxed);
        sample(out, &bucket, labels.with([("le", bound.as_str())]).as_str(), total);
    }
    sample(out, &format!("{name}_count"), labels.as_str(), total);
    sample(out, &format!("{name}_sum"), labels.as_str(), buckets.sum.load(Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::families;

    #[test]
    fn unused_label_sets_are_dropped_and_used_ones_kept() {
        let retain = Duration::from_secs(600);
        let metrics = Metrics::new(retain);
        let labels = |name: &str| Labels::new([("name", name)]);
        let held = metrics.counter(&families::REQUEST_TOTAL, &labels("held"));
        metrics.counter(&families::REQUEST_TOTAL, &labels("left")).incr();
        let begin = Instant::now();
        metrics.sweep(begin + retain / 2);
        assert!(metrics.render_registry().contains("left"));
        metrics.sweep(begin + retain * 2);
        let text = metrics.render_registry();
        assert!(text.contains("held") && !text.contains("left"), "{text}");
        drop(held);
        metrics.sweep(begin + retain * 4);
        assert_eq!(metrics.render_registry(), "");
    }

    #[test]
    fn one_label_set_is_one_counter() {
        let metrics = Metrics::new(Duration::from_secs(1));
        let one = metrics.counter(&families::REQUEST_TOTAL, &Labels::none());
        one.add(2);
        metrics.counter(&families::REQUEST_TOTAL, &Labels::none()).incr();
        assert_eq!(one.value(), 3);
    }
}
