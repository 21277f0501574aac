//! `stat`: one row a resource, with what came into it, or what went from one resource to another.

use super::resources::{Resource, Resources, Type, Wanted};
use super::store::{Peer, Side, Store, Traffic, WINDOW};
use crate::index::pod::Id;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::api::{ResourceRef, StatRequest, StatResponse, StatRow};
use weft_core::selector::Selector;

/// Seconds to look back when the request does not say.
const DEFAULT_WINDOW: u64 = 60;

/// Answers a request.
///
/// # Errors
/// What is wrong with the request, for people.
pub fn stat(store: &Store, resources: &Resources, asked: &StatRequest, now: f64) -> Result<StatResponse, String> {
    let kinds = match asked.kind.as_str() {
        "all" => Type::ALL.to_vec(),
        kind => vec![Type::parse(kind)?],
    };
    let selector: Selector = asked.selector.as_deref().unwrap_or_default().parse().map_err(|e| format!("{e}"))?;
    let direction = match (&asked.to, &asked.from) {
        (Some(_), Some(_)) => {
            return Err("traffic can be narrowed by where it goes to or by where it comes from, not by both".into());
        }
        (Some(to), None) => Direction::To(Wanted::parse(to)?),
        (None, Some(from)) => Direction::From(resources.members_of_all(&Wanted::parse(from)?)),
        (None, None) => Direction::Into,
    };
    let seconds = if asked.window_seconds == 0 { DEFAULT_WINDOW } else { asked.window_seconds } as f64;
    let view = View { store, resources, direction, now, seconds, peers: peers(store, resources) };
    let mut rows = Vec::new();
    for kind in kinds {
        let wanted = Wanted::parse(&ResourceRef {
            kind: kind.name().to_owned(),
            name: asked.name.clone(),
            namespace: asked.namespace.clone(),
        })?;
        let listed = match kind {
            Type::Authority => view.authorities(&wanted),
            _ => resources.list(&wanted, &selector),
        };
        // A name that is nowhere is a mistake; one without traffic is not.
        let can_be_wrong = asked.kind != "all" && kind != Type::Authority;
        if let Some(name) = wanted.name.as_ref().filter(|_| can_be_wrong && !resources.exists(&wanted)) {
            let place = wanted.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}"));
            return Err(format!("{} \"{name}\" not found{}", kind.name(), place.unwrap_or_default()));
        }
        rows.extend(listed.into_iter().filter_map(|resource| view.row(resource)));
    }
    rows.sort_by(|a, b| (&a.kind, &a.namespace, &a.name).cmp(&(&b.kind, &b.namespace, &b.name)));
    Ok(StatResponse { rows, window_seconds: seconds.min(WINDOW) as u64 })
}

enum Direction<'a> {
    /// All that comes in.
    Into,
    /// From the rows to something.
    To(Wanted),
    /// From these pods to the rows.
    From(BTreeSet<&'a Id>),
}

struct View<'a> {
    store: &'a Store,
    resources: &'a Resources,
    direction: Direction<'a>,
    now: f64,
    seconds: f64,
    /// What every peer is a part of, found once.
    peers: HashMap<Arc<Peer>, Vec<Resource>>,
}

fn peers(store: &Store, resources: &Resources) -> HashMap<Arc<Peer>, Vec<Resource>> {
    store.all_peers().map(|peer| (peer.clone(), resources.of_peer(peer))).collect()
}

impl View<'_> {
    fn authorities(&self, wanted: &Wanted) -> Vec<Resource> {
        let all: BTreeSet<&Resource> = self.peers.values().flatten().filter(|r| wanted.matches(r)).collect();
        all.into_iter().cloned().collect()
    }

    fn row(&self, resource: Resource) -> Option<StatRow> {
        let traffic = self.traffic(&resource);
        let total = traffic.success + traffic.failure;
        if !matches!(self.direction, Direction::Into) && total <= 0.0 && !traffic.tcp {
            return None;
        }
        let mut row = StatRow {
            namespace: resource.namespace.clone(),
            kind: resource.kind.name().to_owned(),
            name: resource.name.clone(),
            ..StatRow::default()
        };
        for pod in self.resources.pods_of(&resource) {
            if pod.running() {
                row.running += 1;
                row.meshed += u32::from(pod.proxy.is_some() && pod.control_plane.is_some());
            }
            if resource.kind == Type::Pod {
                row.status = Some(pod.status.clone());
            }
        }
        let seconds = traffic.seconds();
        if let Some(seconds) = seconds.filter(|_| total > 0.0) {
            row.success = Some(traffic.success / total);
            row.rps = Some(total / seconds);
            let quantile = |q: f64| traffic.latency.quantile(q).map(|ms| ms.round() as u64);
            row.latency_ms_p50 = quantile(0.5);
            row.latency_ms_p95 = quantile(0.95);
            row.latency_ms_p99 = quantile(0.99);
        }
        if traffic.tcp {
            row.tcp_open_connections = Some(traffic.open);
            row.tcp_read_bytes_rate = seconds.map(|seconds| traffic.read / seconds);
            row.tcp_write_bytes_rate = seconds.map(|seconds| traffic.write / seconds);
        }
        Some(row)
    }

    fn traffic(&self, resource: &Resource) -> Traffic {
        let is_peer = |side: &Side, wanted: &dyn Fn(&Resource) -> bool| match side {
            Side::Outbound(peer) => self.peers.get(peer).is_some_and(|all| all.iter().any(wanted)),
            Side::Inbound => false,
        };
        let itself = |side: &Side| is_peer(side, &|r| r == resource);
        let through = |side: &Side, to: &Wanted| match side {
            Side::Outbound(peer) => self
                .peers
                .get(peer)
                .is_some_and(|all| all.iter().any(|r| r == resource) && all.iter().any(|r| to.matches(r))),
            Side::Inbound => false,
        };
        let alive = |pod: &Id| self.resources.alive(pod);
        let members = self.resources.members(resource);
        let (now, seconds) = (self.now, self.seconds);
        match &self.direction {
            // Services and authorities are what clients see: their proxies know.
            Direction::Into if matches!(resource.kind, Type::Service | Type::Authority) => {
                self.store.traffic(now, seconds, self.resources.all_pods(), itself, alive)
            }
            Direction::Into => self.store.traffic(now, seconds, members, |side| *side == Side::Inbound, alive),
            // They send nothing by themselves: what reaches one thing by way of them.
            Direction::To(to) if matches!(resource.kind, Type::Service | Type::Authority) => {
                self.store.traffic(now, seconds, self.resources.all_pods(), |side| through(side, to), alive)
            }
            Direction::To(to) => {
                self.store.traffic(now, seconds, members, |side| is_peer(side, &|r| to.matches(r)), alive)
            }
            Direction::From(from) => self.store.traffic(now, seconds, from.iter().copied(), itself, alive),
        }
    }
}
