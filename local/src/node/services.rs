//! Service IPs: their allocation, and the nftables rules that lead a connection to one of a service's endpoints.
//!
//! Every pod has the table `ip weft_services` in its own network namespace, with a nat chain on output behind the
//! redirect of a meshed pod (priority -90 against -100): a meshed application's connection reaches the proxy with the
//! service's IP as original destination; the proxy's own connections, and those of pods without a proxy, are led to a
//! random ready endpoint. A service port without endpoints is refused at once.

use super::store::Store;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::rc::Rc;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use weft_core::kinds::{Kind, Object};
use weft_core::names::LOCAL_DNS_IP;

/// First and last address that is allocated by itself; others of 10.96.0.0/16 can be asked for by `clusterIP`.
const FIRST: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const LAST: u32 = u32::from_be_bytes([10, 96, 255, 254]);

/// An IP, protocol (`tcp` or `udp`) and port of a service.
pub(crate) type Frontend = (Ipv4Addr, &'static str, u16);
/// Where each leads: addresses and ports of ready endpoints, sorted.
pub(crate) type Table = BTreeMap<Frontend, Vec<(Ipv4Addr, u16)>>;

/// The cluster IP of a service, when it has one.
pub(crate) fn cluster_ip(service: &Service) -> Option<Ipv4Addr> {
    service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
}

/// Whether a service has no IP of its own by intention.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The external name of a service that is only an alias.
pub(crate) fn external_name(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref()?;
    (spec.type_.as_deref() == Some("ExternalName")).then_some(spec.external_name.as_deref()?)
}

/// Whether an IP may be a service's: in 10.96.0.0/16, and not one with a meaning of its own.
pub(crate) fn is_service_ip(ip: Ipv4Addr) -> bool {
    let [a, b, c, d] = ip.octets();
    a == 10 && b == 96 && (c, d) != (0, 0) && (c, d) != (255, 255) && ip.to_string() != LOCAL_DNS_IP
}

/// The service, if any, that has an IP.
pub(crate) fn owner_of_ip(store: &Store, ip: Ipv4Addr) -> Option<String> {
    let found = store.services().find(|(_, service)| cluster_ip(service) == Some(ip));
    found.map(|(key, _)| format!("{}/{}", key.namespace, key.name))
}

/// An IP that no service has. It follows from the name where it can, so that a service keeps it over a restart.
pub(crate) fn allocate(store: &Store, namespace: &str, name: &str) -> Option<Ipv4Addr> {
    let taken: std::collections::BTreeSet<Ipv4Addr> = store.services().filter_map(|(_, s)| cluster_ip(s)).collect();
    let range = LAST - FIRST + 1;
    let start = u32::try_from(super::fnv(format!("{namespace}/{name}").as_bytes()) % u64::from(range)).unwrap_or(0);
    (0..range).map(|i| Ipv4Addr::from(FIRST + (start + i) % range)).find(|ip| !taken.contains(ip))
}

/// Endpoint slices of a service.
pub(crate) fn slices<'a>(
    store: &'a Store,
    namespace: &'a str,
    service: &'a str,
) -> impl Iterator<Item = &'a EndpointSlice> {
    store.list(Kind::EndpointSlice, Some(namespace)).filter_map(move |(_, object)| match object {
        Object::EndpointSlice(slice) => {
            let label = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
            (label == service).then_some(&**slice)
        }
        _ => None,
    })
}

/// Ready endpoints of a service's port (its name; empty when it has none).
pub(crate) fn ready_endpoints(store: &Store, namespace: &str, service: &str, port: &str) -> Vec<(Ipv4Addr, u16)> {
    let mut found = Vec::new();
    for slice in slices(store, namespace, service) {
        let number = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == port);
        let Some(number) = number.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            if endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false) {
                found.extend(endpoint.addresses.iter().filter_map(|a| a.parse().ok()).map(|ip: Ipv4Addr| (ip, number)));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Where all service IPs lead now.
pub(crate) fn table(store: &Store) -> Table {
    let mut table = Table::new();
    for (key, service) in store.services() {
        let Some(ip) = cluster_ip(service) else { continue };
        for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
                "TCP" => "tcp",
                "UDP" => "udp",
                _ => continue,
            };
            let Ok(number) = u16::try_from(port.port) else { continue };
            let name = port.name.as_deref().unwrap_or_default();
            table.insert((ip, protocol, number), ready_endpoints(store, &key.namespace, &key.name, name));
        }
    }
    table
}

/// Where service IPs lead, for all pods to follow, and how far each of them has come.
pub(crate) struct Routes {
    current: watch::Sender<Current>,
    /// What each pod that follows has loaded.
    loaded: Rc<RefCell<BTreeMap<u64, u64>>>,
    next: Cell<u64>,
    moved: Rc<Notify>,
}

/// A table and its number.
#[derive(Clone, Default)]
pub(crate) struct Current {
    pub(crate) generation: u64,
    pub(crate) table: Rc<Table>,
}

/// A pod that follows, until it is dropped.
pub(crate) struct Follower {
    loaded: Rc<RefCell<BTreeMap<u64, u64>>>,
    moved: Rc<Notify>,
    id: u64,
}

impl Follower {
    /// The pod has loaded this generation.
    pub(crate) fn reached(&self, generation: u64) {
        self.loaded.borrow_mut().insert(self.id, generation);
        self.moved.notify_waiters();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.loaded.borrow_mut().remove(&self.id);
        self.moved.notify_waiters();
    }
}

impl Routes {
    /// Routes without any service.
    pub(crate) fn new() -> Self {
        let (current, _) = watch::channel(Current::default());
        Self { current, loaded: Rc::default(), next: Cell::new(0), moved: Rc::default() }
    }

    /// Follows the table.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Current> {
        self.current.subscribe()
    }

    /// Sets the table; nothing happens when it is the same.
    pub(crate) fn set(&self, table: Table) {
        self.current.send_if_modified(|current| {
            let changed = *current.table != table;
            if changed {
                *current = Current { generation: current.generation + 1, table: Rc::new(table) };
            }
            changed
        });
    }

    /// A pod that has loaded a generation.
    pub(crate) fn join(&self, generation: u64) -> Follower {
        let id = self.next.get();
        self.next.set(id + 1);
        let follower = Follower { loaded: Rc::clone(&self.loaded), moved: Rc::clone(&self.moved), id };
        follower.reached(generation);
        follower
    }

    /// Waits until every pod that follows has loaded what is current now, but not beyond a time.
    pub(crate) async fn settled(&self, until: Instant) {
        let wanted = self.current.borrow().generation;
        loop {
            let moved = self.moved.notified();
            if self.loaded.borrow().values().all(|generation| *generation >= wanted) {
                return;
            }
            if tokio::time::timeout_at(until, moved).await.is_err() {
                return;
            }
        }
    }
}

/// The rules of a new pod.
pub(crate) fn script(table: &Table) -> String {
    let base = "table ip weft_services {\n\
        \tmap services { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
        \tset refused { type ipv4_addr . inet_proto . inet_service; }\n\
        \tchain refuse {\n\
        \t\ttype filter hook output priority -95; policy accept;\n\
        \t\tip daddr 10.96.0.0/16 meta l4proto tcp ip daddr . meta l4proto . th dport @refused reject with tcp reset\n\
        \t\tip daddr 10.96.0.0/16 meta l4proto udp ip daddr . meta l4proto . th dport @refused reject\n\
        \t}\n\
        \tchain output {\n\
        \t\ttype nat hook output priority -90; policy accept;\n\
        \t\tip daddr 10.96.0.0/16 ip daddr . meta l4proto . th dport vmap @services\n\
        \t}\n\
        }\n";
    let mut script = base.to_owned();
    script.push_str(&changes(&Table::new(), table));
    script
}

/// What turns the rules of one table into those of another, in one transaction.
pub(crate) fn changes(old: &Table, new: &Table) -> String {
    let mut script = String::new();
    // Writing to a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(script, "{text}");
    };
    for (frontend @ (ip, protocol, port), endpoints) in old {
        if new.contains_key(frontend) {
            continue;
        }
        if endpoints.is_empty() {
            line(format_args!("delete element ip weft_services refused {{ {ip} . {protocol} . {port} }}"));
        } else {
            line(format_args!("delete element ip weft_services services {{ {ip} . {protocol} . {port} }}"));
            line(format_args!("delete chain ip weft_services {}", chain(frontend)));
        }
    }
    for (frontend @ (ip, protocol, port), endpoints) in new {
        let before = old.get(frontend);
        if before == Some(endpoints) {
            continue;
        }
        let had = before.is_some_and(|e| !e.is_empty());
        let chain = chain(frontend);
        if endpoints.is_empty() {
            if had {
                line(format_args!("delete element ip weft_services services {{ {ip} . {protocol} . {port} }}"));
                line(format_args!("delete chain ip weft_services {chain}"));
            }
            line(format_args!("add element ip weft_services refused {{ {ip} . {protocol} . {port} }}"));
            continue;
        }
        if before.is_some_and(Vec::is_empty) {
            line(format_args!("delete element ip weft_services refused {{ {ip} . {protocol} . {port} }}"));
        }
        line(format_args!("add chain ip weft_services {chain}"));
        line(format_args!("flush chain ip weft_services {chain}"));
        let choices: Vec<String> =
            endpoints.iter().enumerate().map(|(i, (ip, port))| format!("{i} : {ip} . {port}")).collect();
        line(format_args!(
            "add rule ip weft_services {chain} meta l4proto {protocol} dnat ip to numgen random mod {} map {{ {} }}",
            endpoints.len(),
            choices.join(", ")
        ));
        if !had {
            line(format_args!("add element ip weft_services services {{ {ip} . {protocol} . {port} : goto {chain} }}"));
        }
    }
    script
}

fn chain((ip, protocol, port): &Frontend) -> String {
    let [_, _, c, d] = ip.octets();
    format!("service_{c}_{d}_{protocol}_{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_pod_ends_when_all_others_know_that_it_does() {
        let routes = Routes::new();
        let (fast, slow) = (routes.join(0), routes.join(0));
        routes.set([((Ipv4Addr::new(10, 96, 1, 2), "tcp", 80), vec![])].into());
        fast.reached(1);
        let begun = Instant::now();
        routes.settled(begun + Duration::from_secs(5)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5), "one is still led there");
        slow.reached(1);
        routes.settled(Instant::now() + Duration::from_secs(5)).await;
        routes.set(Table::new());
        drop(slow);
        fast.reached(2);
        routes.settled(Instant::now() + Duration::from_secs(5)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }

    #[test]
    fn only_what_changes_is_written() {
        let frontend = (Ipv4Addr::new(10, 96, 1, 2), "tcp", 80);
        let other = (Ipv4Addr::new(10, 96, 1, 3), "udp", 53);
        let one: Table = [(frontend, vec![(Ipv4Addr::new(10, 244, 0, 2), 8080)]), (other, vec![])].into();
        let two: Table = [(frontend, vec![]), (other, vec![(Ipv4Addr::new(10, 244, 0, 3), 53)])].into();
        assert_eq!(changes(&one, &one), "");
        let text = changes(&one, &two);
        assert!(text.contains("delete chain ip weft_services service_1_2_tcp_80"));
        assert!(text.contains("add element ip weft_services refused { 10.96.1.2 . tcp . 80 }"));
        assert!(text.contains("delete element ip weft_services refused { 10.96.1.3 . udp . 53 }"));
        assert!(text.contains("numgen random mod 1 map { 0 : 10.244.0.3 . 53 }"));
        assert!(
            changes(&two, &Table::new()).contains("delete element ip weft_services services { 10.96.1.3 . udp . 53 }")
        );
    }

    #[test]
    fn ips_follow_from_names_and_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let first = allocate(&store, "a", "web").unwrap();
        assert_eq!(allocate(&store, "a", "web"), Some(first));
        let value = serde_json::json!({"metadata": {"name": "other", "namespace": "a"}, "spec": {"clusterIP": first.to_string()}});
        store.put(Object::from_value(Kind::Service, value).unwrap());
        assert_ne!(allocate(&store, "a", "web"), Some(first));
        assert!(is_service_ip(first));
        assert_eq!(owner_of_ip(&store, first).as_deref(), Some("a/other"));
    }
}
