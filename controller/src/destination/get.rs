//! `Get`: what changed between two snapshots of a service, for one port.

use super::endpoint::{Mesh, weighted};
use crate::index::service::ServiceView;
use linkerd2_proxy_api::destination::update::Update as Kind;
use linkerd2_proxy_api::destination::{AddrSet, NoEndpoints, Update, WeightedAddr, WeightedAddrSet};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

/// The endpoints of a service for one port.
pub type Endpoints = BTreeMap<SocketAddr, WeightedAddr>;

/// The deltas of one stream. What was sent is not kept: it is made again from the snapshot that it was made from,
/// which all streams share.
#[derive(Debug)]
pub struct Deltas {
    mesh: Arc<Mesh>,
    port: u16,
    hostname: Option<String>,
    /// `None` before the first message, then the last snapshot.
    last: Option<Option<Arc<ServiceView>>>,
}

impl Deltas {
    /// Deltas for a port of a service, or of one pod of it.
    pub fn new(mesh: Arc<Mesh>, port: u16, hostname: Option<String>) -> Deltas {
        Deltas { mesh, port, hostname, last: None }
    }

    /// The messages that lead from the last snapshot to this one.
    pub fn next(&mut self, view: Option<Arc<ServiceView>>) -> Vec<Update> {
        let resolve = |view: &Option<Arc<ServiceView>>| {
            view.as_ref().map(|view| resolve(&self.mesh, view, self.port, self.hostname.as_deref()))
        };
        let before = self.last.as_ref().map(resolve);
        let after = resolve(&view);
        let labels = view.as_ref().map(|view| set_labels(view)).unwrap_or_default();
        self.last = Some(view);
        delta(before.as_ref().map(Option::as_ref), after.as_ref(), &labels)
    }
}

/// The endpoints of a service for a port; none when it does not have the port.
pub fn resolve(mesh: &Mesh, view: &ServiceView, port: u16, hostname: Option<&str>) -> Endpoints {
    let mut endpoints = Endpoints::new();
    if view.service.external_name {
        return endpoints;
    }
    let name = match view.service.port(port) {
        Some(port) => Some(port.name.as_str()),
        // Clients of headless services connect to pods, on whatever port they like.
        None if view.service.headless => None,
        None => return endpoints,
    };
    for endpoint in &view.endpoints {
        if hostname.is_some() && endpoint.hostname.as_deref() != hostname {
            continue;
        }
        let target = match name {
            Some(name) => endpoint.ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port),
            None => Some(port),
        };
        let Some(target) = target else { continue };
        let addr = SocketAddr::new(endpoint.ip, target);
        endpoints.insert(addr, weighted(mesh, addr, endpoint.pod.as_deref(), endpoint.zone.as_deref()));
    }
    endpoints
}

fn set_labels(view: &ServiceView) -> HashMap<String, String> {
    let id = &view.service.id;
    [("namespace", &id.namespace), ("service", &id.name)].map(|(k, v)| (k.to_owned(), v.clone())).into()
}

/// The messages that lead from one state to another; `None` within stands for a service that is not there. New
/// endpoints come before old ones go, so that a proxy always has one.
pub fn delta(
    before: Option<Option<&Endpoints>>,
    after: Option<&Endpoints>,
    labels: &HashMap<String, String>,
) -> Vec<Update> {
    let message = |kind| Update { update: Some(kind) };
    let none = Endpoints::new();
    let new = after.unwrap_or(&none);
    if new.is_empty() {
        let exists = after.is_some();
        let said = before.is_some_and(|b| b.is_some() == exists && b.is_none_or(BTreeMap::is_empty));
        return if said { Vec::new() } else { vec![message(Kind::NoEndpoints(NoEndpoints { exists }))] };
    }
    let old = before.flatten().unwrap_or(&none);
    let add: Vec<WeightedAddr> =
        new.iter().filter(|(addr, endpoint)| old.get(addr) != Some(endpoint)).map(|(_, e)| e.clone()).collect();
    let remove: Vec<_> = old.keys().filter(|addr| !new.contains_key(addr)).map(|addr| (*addr).into()).collect();
    let mut messages = Vec::new();
    if !add.is_empty() {
        messages.push(message(Kind::Add(WeightedAddrSet { addrs: add, metric_labels: labels.clone() })));
    }
    if !remove.is_empty() {
        messages.push(message(Kind::Remove(AddrSet { addrs: remove })));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn state() -> impl Strategy<Value = Option<Endpoints>> {
        let endpoints = prop::collection::btree_map(0u8..6, 0u32..3, 0..6).prop_map(|map| {
            map.into_iter()
                .map(|(host, weight)| {
                    let addr = SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), 80));
                    (addr, WeightedAddr { addr: Some(addr.into()), weight, ..Default::default() })
                })
                .collect()
        });
        prop::option::weighted(0.8, endpoints)
    }

    /// What a proxy makes of the messages; `None` before the first.
    fn follow(state: &mut Option<Option<Endpoints>>, update: Update) {
        let addr_of = |addr: linkerd2_proxy_api::net::TcpAddress| SocketAddr::try_from(addr).unwrap();
        match update.update.unwrap() {
            Kind::Add(set) => {
                assert!(!set.addrs.is_empty(), "an empty addition");
                let endpoints = state.get_or_insert_default().get_or_insert_default();
                for endpoint in set.addrs {
                    let old = endpoints.insert(addr_of(endpoint.addr.unwrap()), endpoint.clone());
                    assert_ne!(old, Some(endpoint), "an addition that changes nothing");
                }
            }
            Kind::Remove(set) => {
                assert!(!set.addrs.is_empty(), "an empty removal");
                let endpoints = state.as_mut().unwrap().as_mut().unwrap();
                for addr in set.addrs {
                    assert!(endpoints.remove(&addr_of(addr)).is_some(), "a removal of what is not there");
                }
                assert!(!endpoints.is_empty(), "without endpoints for a moment");
            }
            Kind::NoEndpoints(none) => *state = Some(none.exists.then(Endpoints::new)),
        }
    }

    proptest! {
        #[test]
        fn deltas_lead_from_any_state_to_any_other(states in prop::collection::vec(state(), 1..8)) {
            let mut proxy = None;
            let mut before: Option<Option<Endpoints>> = None;
            for after in states {
                let messages = delta(before.as_ref().map(Option::as_ref), after.as_ref(), &HashMap::new());
                if before.as_ref() == Some(&after) {
                    prop_assert!(messages.is_empty());
                }
                for message in messages {
                    follow(&mut proxy, message);
                }
                prop_assert_eq!(proxy.as_ref(), Some(&after));
                before = Some(after);
            }
        }
    }
}
