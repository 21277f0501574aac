//! What is kept of scrapes: for each pod, how its counters grew from scrape to scrape, summed over the label sets that
//! `stat` and `edges` do not tell apart. The last minutes are kept as they came, older ones by half minutes, nothing
//! for longer than [`WINDOW`]; the number of sums is limited. Memory is bounded by pods and whom they talk to.

use super::parse::{Sample, labels, samples};
use super::quantile::{Bound, Histogram};
use crate::index::pod::{Id, Pod};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;

/// How far back anything is known, in seconds.
pub const WINDOW: f64 = 15.0 * 60.0;
/// How far back scrapes are told apart, in seconds.
const FINE: f64 = 3.0 * 60.0;
/// Length of what older growth is summed up to, in seconds.
const COARSE: f64 = 30.0;
/// Sums of one pod; whatever it talks to beyond that is one more.
const MAX_PEERS: usize = 1_000;
/// Sums of all pods together.
const MAX_TOTAL: usize = 50_000;
/// Series of one exposition whose last value is remembered.
const MAX_SERIES: usize = 50_000;
/// Different bucket bounds.
const MAX_BOUNDS: usize = 256;

/// Whose traffic a sum is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// What comes into the pod.
    Inbound,
    /// What it sends to a peer.
    Outbound(Arc<Peer>),
}

/// Whom a pod talks to, as its proxy labels it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Label `dst_namespace`.
    pub namespace: String,
    /// Label `dst_pod`.
    pub pod: String,
    /// Label `dst_service`.
    pub service: String,
    /// The label that names a workload, as kind and name: `dst_deployment` and its like.
    pub workload: Option<(String, String)>,
    /// Label `authority`.
    pub authority: String,
    /// Label `server_id`.
    pub server_id: String,
    /// Label `tls`.
    pub tls: String,
    /// Label `no_tls_reason`.
    pub no_tls_reason: String,
    /// Label `target_addr`, only when nothing else says who it is.
    pub addr: Option<SocketAddr>,
}

/// How much something grew in a stretch of time.
#[derive(Debug, Clone, Default)]
struct Growth {
    from: f64,
    to: f64,
    success: u64,
    failure: u64,
    read: u64,
    write: u64,
    buckets: Vec<(Bound, u32)>,
}

/// One sum.
#[derive(Debug, Default)]
struct Sum {
    fine: VecDeque<Growth>,
    coarse: VecDeque<Growth>,
    state: Current,
}

/// What the last scrape said of a sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Current {
    /// Whether requests were ever answered.
    pub http: bool,
    /// Whether connections were ever opened.
    pub tcp: bool,
    /// Connections that are open.
    pub open: u64,
}

/// All scrapes of one pod.
#[derive(Debug)]
struct Series {
    pod: Arc<Pod>,
    first: f64,
    last: f64,
    /// When the proxy started, as it says; another value means that its counters began anew.
    started: f64,
    values: HashMap<u64, f64>,
    sums: HashMap<Side, Sum>,
}

/// The store.
#[derive(Debug, Default)]
pub struct Store {
    pods: HashMap<Id, Series>,
    bounds: BTreeSet<Bound>,
    hasher: RandomState,
}

/// Growth within a window.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Answers that were successes.
    pub success: f64,
    /// Answers that were failures.
    pub failure: f64,
    /// Octets read.
    pub read: f64,
    /// Octets written.
    pub write: f64,
    /// Latencies, in milliseconds.
    pub latency: Histogram,
    /// Connections that are open.
    pub open: u64,
    /// Whether there was ever a connection.
    pub tcp: bool,
    /// The stretch of time that is known, in seconds of the store's clock.
    pub known: Option<(f64, f64)>,
}

impl Traffic {
    /// For how many seconds something is known.
    pub fn seconds(&self) -> Option<f64> {
        self.known.map(|(from, to)| to - from).filter(|seconds| *seconds > 0.0)
    }
}

#[derive(Default)]
struct Gathered {
    growth: Growth,
    cumulative: BTreeMap<Bound, f64>,
    current: Current,
}

impl Store {
    /// Takes in the exposition of a pod's proxy, read at `now` (seconds of any clock that only goes forward).
    pub fn ingest(&mut self, pod: &Arc<Pod>, now: f64, text: &str) {
        let total: usize = self.pods.values().map(|series| series.sums.len()).sum();
        let known = self.pods.get(&pod.id).filter(|series| now > series.last);
        let started = samples(text).find(|s| s.name == "process_start_time_seconds").map_or(0.0, |s| s.value);
        let restarted = known.is_some_and(|series| (series.started - started).abs() > f64::EPSILON);
        let mut values = HashMap::new();
        let mut gathered: HashMap<Side, Gathered> = HashMap::new();
        let room = MAX_PEERS.min(MAX_TOTAL.saturating_sub(total) + known.map_or(0, |s| s.sums.len())).max(2);
        for sample in samples(text) {
            let Some(what) = What::of(&sample) else { continue };
            let Some((mut side, detail)) = classify(&sample, what, pod) else { continue };
            if !gathered.contains_key(&side) && gathered.len() + 1 >= room {
                side = Side::Outbound(Arc::default());
            }
            let entry = gathered.entry(side).or_default();
            if what == What::Open {
                entry.current.open = entry.current.open.saturating_add(sample.value.max(0.0) as u64);
                continue;
            }
            if values.len() >= MAX_SERIES {
                continue;
            }
            let key = self.hasher.hash_one((sample.name, sample.labels));
            values.insert(key, sample.value);
            // What is known of a proxy begins with its first scrape; a series that is new later began at zero.
            let before = known.map(|series| if restarted { 0.0 } else { *series.values.get(&key).unwrap_or(&0.0) });
            let grown = match before {
                None => 0.0,
                Some(before) if sample.value >= before => sample.value - before,
                // Only a counter that began anew can be smaller.
                Some(_) => sample.value,
            };
            entry.add(what, &detail, grown, sample.value);
        }
        let from = known.map_or(now, |series| series.last);
        for bound in gathered.values().flat_map(|g| g.cumulative.keys()) {
            if self.bounds.len() < MAX_BOUNDS {
                self.bounds.insert(*bound);
            }
        }
        let series = self.pods.entry(pod.id.clone()).or_insert_with(|| Series {
            pod: pod.clone(),
            first: now,
            last: now,
            started,
            values: HashMap::new(),
            sums: HashMap::new(),
        });
        (series.pod, series.last, series.started, series.values) = (pod.clone(), now, started, values);
        for sum in series.sums.values_mut() {
            sum.state = Current::default();
        }
        for (side, gathered) in gathered {
            let sum = series.sums.entry(side).or_default();
            sum.state = gathered.current;
            sum.push(gathered.growth(from, now));
        }
        series.sums.retain(|_, sum| sum.prune(now));
    }

    /// Forgets what is too old.
    pub fn prune(&mut self, now: f64) {
        self.pods.retain(|_, series| series.last >= now - WINDOW);
    }

    /// How many pods and sums there are.
    pub fn size(&self) -> (usize, usize) {
        (self.pods.len(), self.pods.values().map(|series| series.sums.len()).sum())
    }

    /// Pods that were scraped within the window, also those that are gone.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values().map(|series| &series.pod)
    }

    /// Adds up what the chosen sums of the chosen pods grew within the last `seconds`. Whatever was chosen, the time
    /// that is known is that of all chosen pods together: a pod that is new in a workload had no traffic before.
    pub fn traffic<'a>(
        &self,
        now: f64,
        seconds: f64,
        pods: impl Iterator<Item = &'a Id>,
        sides: impl Fn(&Side) -> bool,
        alive: impl Fn(&Id) -> bool,
    ) -> Traffic {
        let start = now - seconds.min(WINDOW);
        let mut traffic = Traffic::default();
        for bound in &self.bounds {
            traffic.latency.add(*bound, 0.0);
        }
        for series in pods.filter_map(|id| self.pods.get(id)) {
            let (from, to) = (series.first.max(start), series.last);
            if to > from {
                traffic.known = Some(traffic.known.map_or((from, to), |(f, t)| (f.min(from), t.max(to))));
            }
            let alive = alive(&series.pod.id);
            for (_, sum) in series.sums.iter().filter(|(side, _)| sides(side)) {
                if alive {
                    traffic.open += sum.state.open;
                }
                traffic.tcp |= sum.state.tcp;
                for growth in sum.coarse.iter().chain(&sum.fine).filter(|growth| growth.to > start) {
                    traffic.add(growth, start);
                }
            }
        }
        traffic
    }

    /// What the pod talked to at its last scrape.
    pub fn peers(&self, pod: &Id) -> impl Iterator<Item = (&Arc<Peer>, Current)> {
        self.pods.get(pod).into_iter().flat_map(|series| {
            series.sums.iter().filter_map(|(side, sum)| match side {
                Side::Outbound(peer) => Some((peer, sum.state)),
                Side::Inbound => None,
            })
        })
    }

    /// All peers of all pods.
    pub fn all_peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.pods.values().flat_map(|series| series.sums.keys()).filter_map(|side| match side {
            Side::Outbound(peer) => Some(peer),
            Side::Inbound => None,
        })
    }
}

impl Traffic {
    fn add(&mut self, growth: &Growth, start: f64) {
        // What reaches beyond the window counts by the part that is within.
        let length = growth.to - growth.from;
        let part = if length > 0.0 { ((growth.to - start.max(growth.from)) / length).clamp(0.0, 1.0) } else { 1.0 };
        self.success += growth.success as f64 * part;
        self.failure += growth.failure as f64 * part;
        self.read += growth.read as f64 * part;
        self.write += growth.write as f64 * part;
        for (bound, count) in &growth.buckets {
            self.latency.add(*bound, f64::from(*count) * part);
        }
    }
}

impl Gathered {
    fn add(&mut self, what: What, detail: &Detail, grown: f64, value: f64) {
        let count = grown.max(0.0) as u64;
        let used = value > 0.0;
        match what {
            What::Responses => {
                let counter = if detail.success { &mut self.growth.success } else { &mut self.growth.failure };
                *counter += count;
                self.current.http |= used;
            }
            What::Latency => {
                if let Some(bound) = detail.bound {
                    *self.cumulative.entry(bound).or_default() += grown;
                }
            }
            What::Opened => self.current.tcp |= used,
            What::Read => self.growth.read += count,
            What::Written => self.growth.write += count,
            What::Open => {}
        }
    }

    /// The growth, with observations by bucket instead of cumulative ones.
    fn growth(mut self, from: f64, to: f64) -> Growth {
        let mut below = 0.0_f64;
        for (bound, cumulative) in self.cumulative {
            let count = (cumulative - below).round();
            if count >= 1.0 {
                // Saturates, which is as good as it gets for four thousand million requests between two scrapes.
                self.growth.buckets.push((bound, count as u32));
            }
            below = below.max(cumulative);
        }
        (self.growth.from, self.growth.to) = (from, to);
        self.growth
    }
}

impl Growth {
    fn is_empty(&self) -> bool {
        self.success == 0 && self.failure == 0 && self.read == 0 && self.write == 0 && self.buckets.is_empty()
    }

    fn merge(&mut self, later: &Growth) {
        self.to = later.to;
        self.success += later.success;
        self.failure += later.failure;
        self.read += later.read;
        self.write += later.write;
        for (bound, count) in &later.buckets {
            match self.buckets.binary_search_by(|(b, _)| b.cmp(bound)) {
                Ok(at) => {
                    if let Some((_, sum)) = self.buckets.get_mut(at) {
                        *sum = sum.saturating_add(*count);
                    }
                }
                Err(at) => self.buckets.insert(at, (*bound, *count)),
            }
        }
    }
}

impl Sum {
    fn push(&mut self, growth: Growth) {
        if !growth.is_empty() {
            self.fine.push_back(growth);
        }
    }

    /// Sums up what is older and forgets what is too old; `false` when nothing is left.
    fn prune(&mut self, now: f64) -> bool {
        while self.fine.front().is_some_and(|growth| growth.to < now - FINE) {
            let Some(growth) = self.fine.pop_front() else { break };
            match self.coarse.back_mut() {
                Some(last) if growth.to - last.from <= COARSE => last.merge(&growth),
                _ => self.coarse.push_back(growth),
            }
        }
        while self.coarse.front().is_some_and(|growth| growth.to < now - WINDOW) {
            self.coarse.pop_front();
        }
        let current = self.state;
        !self.fine.is_empty() || !self.coarse.is_empty() || current.http || current.tcp || current.open > 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Responses,
    Latency,
    Opened,
    Open,
    Read,
    Written,
}

impl What {
    fn of(sample: &Sample<'_>) -> Option<What> {
        let what = match sample.name {
            "response_total" => What::Responses,
            "response_latency_ms_bucket" => What::Latency,
            "tcp_open_total" => What::Opened,
            "tcp_open_connections" => What::Open,
            "tcp_read_bytes_total" => What::Read,
            "tcp_write_bytes_total" => What::Written,
            _ => return None,
        };
        sample.value.is_finite().then_some(what)
    }
}

#[derive(Debug, Default)]
struct Detail {
    success: bool,
    bound: Option<Bound>,
}

/// Which sum a sample belongs to; `None` when to none.
fn classify(sample: &Sample<'_>, what: What, pod: &Pod) -> Option<(Side, Detail)> {
    const WORKLOADS: [&str; 7] = [
        "dst_deployment",
        "dst_statefulset",
        "dst_daemonset",
        "dst_cronjob",
        "dst_k8s_job",
        "dst_replicaset",
        "dst_replicationcontroller",
    ];
    let (mut inbound, mut outbound, mut own_server) = (false, false, false);
    let (mut detail, mut peer, mut far_end) = (Detail::default(), Peer::default(), String::new());
    let admin_port = pod.proxy.as_ref().map(|proxy| proxy.admin_port);
    for (name, value) in labels(sample.labels) {
        match name {
            "direction" => (inbound, outbound) = (value == "inbound", value == "outbound"),
            "peer" => far_end = value.into_owned(),
            "classification" => detail.success = value == "success",
            "le" => detail.bound = value.parse().ok().and_then(Bound::new),
            "tls" => peer.tls = value.into_owned(),
            "no_tls_reason" => peer.no_tls_reason = value.into_owned(),
            "server_id" => peer.server_id = value.into_owned(),
            "authority" => peer.authority = value.into_owned(),
            "dst_namespace" => peer.namespace = value.into_owned(),
            "dst_pod" => peer.pod = value.into_owned(),
            "dst_service" => peer.service = value.into_owned(),
            "target_addr" => peer.addr = value.parse().ok(),
            "target_port" | "srv_port" => own_server |= value.parse().ok() == admin_port && admin_port.is_some(),
            _ if WORKLOADS.contains(&name) => {
                let kind = name.trim_start_matches("dst_").trim_start_matches("k8s_");
                peer.workload = Some((kind.to_owned(), value.into_owned()));
            }
            _ => {}
        }
    }
    let connections = !matches!(what, What::Responses | What::Latency);
    if inbound && (!connections || far_end == "src") {
        // Probes and scrapes of the proxy itself are not the application's traffic.
        own_server |= peer.addr.is_some_and(|addr| Some(addr.port()) == admin_port);
        return (!own_server).then_some((Side::Inbound, detail));
    }
    if outbound && (!connections || far_end == "dst") {
        if !peer.pod.is_empty() {
            peer.addr = None;
        }
        return Some((Side::Outbound(Arc::new(peer)), detail));
    }
    None
}

#[cfg(test)]
mod tests;
