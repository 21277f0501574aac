//! The controller's own metrics: a small registry, written out in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// A number that is shown at `/metrics`: a counter or a gauge.
#[derive(Debug, Clone, Default)]
pub struct Value(Arc<AtomicI64>);

impl Value {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds, or takes away.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets, for gauges.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Family {
    help: &'static str,
    kind: &'static str,
    values: BTreeMap<String, Value>,
}

type Collector = Box<dyn Fn(&Telemetry) + Send + Sync>;

/// All metrics of the process. Cloning is cheap and refers to the same.
#[derive(Clone, Default)]
pub struct Telemetry {
    families: Arc<Mutex<BTreeMap<&'static str, Family>>>,
    collectors: Arc<Mutex<Vec<Collector>>>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telemetry")
    }
}

impl Telemetry {
    /// A registry that already has the figures of the process.
    pub fn new() -> Telemetry {
        let telemetry = Telemetry::default();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        telemetry
            .gauge("process_start_time_seconds", "Time that the process started, since the UNIX epoch, in seconds", &[])
            .set(i64::try_from(started).unwrap_or(i64::MAX));
        telemetry.gauge("weft_build_info", "Always 1", &[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        telemetry.collect(|telemetry| {
            if let Some(bytes) = resident_bytes() {
                telemetry
                    .gauge("process_resident_memory_bytes", "Resident memory, in octets", &[])
                    .set(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        });
        telemetry
    }

    /// The counter of this name and these labels, made when new. Names of counters end in `_total`.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Value {
        self.value("counter", name, help, labels)
    }

    /// The gauge of this name and these labels, made when new.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Value {
        self.value("gauge", name, help, labels)
    }

    /// Calls `f` before every exposition, to set gauges that would be costly to keep.
    pub fn collect(&self, f: impl Fn(&Telemetry) + Send + Sync + 'static) {
        self.collectors.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(f));
    }

    fn value(&self, kind: &'static str, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Value {
        let mut key = String::new();
        for (name, value) in labels {
            let separator = if key.is_empty() { "" } else { "," };
            let _ = write!(key, "{separator}{name}=\"{}\"", escape(value));
        }
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(name).or_insert_with(|| Family { help, kind, values: BTreeMap::new() });
        family.values.entry(key).or_default().clone()
    }

    /// Everything, in the Prometheus text format.
    pub fn render(&self) -> String {
        for collector in self.collectors.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            collector(self);
        }
        let mut out = String::new();
        for (name, family) in self.families.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "# HELP {name} {}", family.help);
            let _ = writeln!(out, "# TYPE {name} {}", family.kind);
            for (labels, value) in &family.values {
                let value = value.get();
                let _ = if labels.is_empty() {
                    writeln!(out, "{name} {value}")
                } else {
                    writeln!(out, "{name}{{{labels}}} {value}")
                };
            }
        }
        out
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition() {
        let telemetry = Telemetry::new();
        telemetry.counter("weft_x_total", "Things", &[("a", "b\"c"), ("d", "e")]).add(2);
        telemetry.counter("weft_x_total", "Things", &[("a", "b\"c"), ("d", "e")]).inc();
        let text = telemetry.render();
        assert!(text.contains("# TYPE weft_x_total counter\nweft_x_total{a=\"b\\\"c\",d=\"e\"} 3\n"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
