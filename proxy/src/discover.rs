//! Discovery: what the data threads ask, answered from watches that the control thread keeps.
//!
//! Each key (outbound address, service path, inbound port) has one entry with its watches, shared by all threads. An
//! entry lives while somebody holds a receiver of it, and the idle timeout longer.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use linkerd2_proxy_api::{
    destination::{GetDestination, destination_client::DestinationClient, update::Update as Change},
    inbound::{PortSpec, inbound_server_policies_client::InboundServerPoliciesClient},
    outbound::{TrafficSpec, outbound_policies_client::OutboundPoliciesClient, traffic_spec},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, Status};

use crate::{
    config::Config,
    control::{Link, Next, follow, translate},
    policy::{Distribution, Endpoint, Endpoints, InboundPolicy, Meta, OutboundPolicy, Profile, Queue, contains},
};

mod merge;
#[cfg(test)]
pub(crate) mod preset;

/// How long the first connection to an address waits for its policy.
const POLICY_TIMEOUT: Duration = Duration::from_secs(10);

/// Handle for data threads; clones share one cache.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    destination: Link,
    policy: Link,
    /// The control thread's runtime, on which watches run.
    runtime: Handle,
    outbound: Mutex<HashMap<SocketAddr, Entry>>,
    endpoints: Mutex<HashMap<Arc<str>, watch::Sender<Arc<Endpoints>>>>,
    inbound: Mutex<HashMap<u16, watch::Sender<Arc<InboundPolicy>>>>,
}

#[derive(Clone)]
struct Entry {
    phase: watch::Sender<Phase>,
    policy: watch::Sender<Arc<OutboundPolicy>>,
    profile: watch::Sender<Option<Arc<Profile>>>,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.phase.receiver_count() == 0 && self.policy.receiver_count() == 0 && self.profile.receiver_count() == 0
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// Asked, not answered; the last thing that went wrong.
    Pending(Option<String>),
    /// The policy can be used.
    Ready,
    /// The control plane said no.
    Refused(String),
}

/// What is known about an outbound address. Hold the receivers as long as the result is used: what nobody holds is
/// forgotten after the idle timeout.
#[derive(Clone)]
pub struct Resolution {
    /// The policy, already merged with the profile (opaque, overrides).
    pub policy: watch::Receiver<Arc<OutboundPolicy>>,
    /// The profile, if the control plane knows one.
    pub profile: watch::Receiver<Option<Arc<Profile>>>,
}

/// Why an address could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The policy service did not answer in time.
    #[error("no policy for {addr} within the time limit: {last}")]
    Timeout {
        /// The address asked for.
        addr: SocketAddr,
        /// The last thing that went wrong.
        last: String,
    },
    /// The policy service refused.
    #[error("the policy service refused {addr}: {status}")]
    Refused {
        /// The address asked for.
        addr: SocketAddr,
        /// Its gRPC status.
        status: String,
    },
    /// The proxy ends.
    #[error("the control thread is gone")]
    Closed,
}

impl Discovery {
    /// For the control thread: must be called within its runtime.
    pub(crate) fn new(config: Arc<Config>, destination: Link, policy: Link) -> Self {
        Self(Arc::new(Inner {
            config,
            destination,
            policy,
            runtime: Handle::current(),
            outbound: Mutex::default(),
            endpoints: Mutex::default(),
            inbound: Mutex::default(),
        }))
    }

    /// Resolves an outbound address. Cached; the first caller of an address waits for the control plane.
    ///
    /// # Errors
    /// The control plane refused, or did not answer within 10 s.
    pub async fn outbound(&self, dst: SocketAddr) -> Result<Resolution, Error> {
        let (mut phase, resolution) = {
            let mut map = lock(&self.0.outbound);
            let entry = map.entry(dst).or_insert_with(|| {
                let entry = Entry {
                    phase: watch::channel(Phase::Pending(None)).0,
                    policy: watch::channel(Arc::new(OutboundPolicy::invalid("not known yet"))).0,
                    profile: watch::channel(None).0,
                };
                self.0.runtime.spawn(keep_outbound(self.0.clone(), dst, entry.clone()));
                entry
            });
            let resolution = Resolution { policy: entry.policy.subscribe(), profile: entry.profile.subscribe() };
            (entry.phase.subscribe(), resolution)
        };
        let answered = timeout(POLICY_TIMEOUT, phase.wait_for(|p| !matches!(p, Phase::Pending(_)))).await;
        if let Ok(Err(_)) = answered {
            return Err(Error::Closed);
        }
        drop(answered);
        match &*phase.borrow() {
            Phase::Ready => Ok(resolution),
            Phase::Refused(status) => Err(Error::Refused { addr: dst, status: status.clone() }),
            Phase::Pending(last) => {
                let trouble = || self.0.policy.channel.trouble().map(|t| t.to_string());
                let last = last.clone().or_else(trouble).unwrap_or_else(|| "no answer".into());
                Err(Error::Timeout { addr: dst, last })
            }
        }
    }

    /// The endpoints of a service (`name.namespace.svc.domain:port`).
    pub fn endpoints(&self, path: &str) -> watch::Receiver<Arc<Endpoints>> {
        let mut map = lock(&self.0.endpoints);
        if let Some(known) = map.get(path) {
            return known.subscribe();
        }
        let (tx, rx) = watch::channel(Arc::new(Endpoints::Unknown));
        let path: Arc<str> = path.into();
        map.insert(path.clone(), tx.clone());
        self.0.runtime.spawn(keep_endpoints(self.0.clone(), path, tx));
        rx
    }

    /// The policy of an inbound port: the default policy until the policy service answers.
    pub fn inbound(&self, port: u16) -> watch::Receiver<Arc<InboundPolicy>> {
        let mut map = lock(&self.0.inbound);
        if let Some(known) = map.get(&port) {
            return known.subscribe();
        }
        let default = translate::default_policy(&self.0.config.policy, port, self.0.config.inbound.detect_timeout);
        let (tx, rx) = watch::channel(Arc::new(default));
        map.insert(port, tx.clone());
        self.0.runtime.spawn(keep_inbound(self.0.clone(), port, tx));
        rx
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns once nobody has held a receiver for the idle timeout and the entry has been removed.
async fn idle<'a, K: Hash + Eq, V>(
    map: &'a Mutex<HashMap<K, V>>,
    key: &'a K,
    timeout: Duration,
    closed: impl Fn() -> BoxFuture<'a, ()>,
    is_idle: impl Fn() -> bool,
) {
    loop {
        closed().await;
        sleep(timeout).await;
        // Under the lock, as new receivers are only made under it.
        let mut map = lock(map);
        if is_idle() {
            map.remove(key);
            return;
        }
    }
}

async fn keep_inbound(inner: Arc<Inner>, port: u16, tx: watch::Sender<Arc<InboundPolicy>>) {
    let what = format!("inbound policy of port {port}");
    let spec = PortSpec { workload: inner.config.policy.workload.clone(), port: port.into() };
    let mut answered = false;
    let watch = follow(
        &inner.policy,
        &what,
        |channel| {
            let (origin, spec) = (channel.origin(), spec.clone());
            async move { InboundServerPoliciesClient::with_origin(channel, origin).watch_port(spec).await }
        },
        |event| {
            match event {
                Ok((_, message)) => match translate::server(message) {
                    Ok(policy) => {
                        answered = true;
                        publish(&tx, Arc::new(policy));
                    }
                    Err(error) if answered => {
                        tracing::warn!(port, %error, "refusing an inbound policy; the last good one stays in force");
                    }
                    Err(error) => {
                        tracing::warn!(port, %error, "refusing an inbound policy; there is no good one");
                        publish(&tx, Arc::new(InboundPolicy::invalid(error.to_string())));
                    }
                },
                Err(status) if is_refusal(status) => return Next::Rest,
                Err(_) => {}
            }
            Next::Continue
        },
    );
    let idle = idle(
        &inner.inbound,
        &port,
        inner.config.inbound.discovery_idle,
        || Box::pin(tx.closed()),
        || tx.receiver_count() == 0,
    );
    tokio::select! {
        () = watch => {}
        () = idle => {}
    }
}

async fn keep_endpoints(inner: Arc<Inner>, path: Arc<str>, tx: watch::Sender<Arc<Endpoints>>) {
    let what = format!("endpoints of {path}");
    let request = GetDestination {
        scheme: "k8s".into(),
        path: path.to_string(),
        context_token: inner.config.destination.context.clone(),
    };
    // Keyed by address: a later message about an address replaces an earlier one.
    let mut known: BTreeMap<SocketAddr, Arc<Endpoint>> = BTreeMap::new();
    let watch = follow(
        &inner.destination,
        &what,
        |channel| {
            let (origin, request) = (channel.origin(), request.clone());
            async move { DestinationClient::with_origin(channel, origin).get(request).await }
        },
        |event| {
            match event {
                Ok((first, message)) => {
                    if let Some(state) = change_endpoints(&path, &mut known, first, message.update) {
                        publish(&tx, Arc::new(state));
                    }
                }
                Err(status) if status.code() == Code::NotFound || is_refusal(status) => {
                    known.clear();
                    publish(&tx, Arc::new(Endpoints::DoesNotExist));
                    return Next::Rest;
                }
                Err(_) => {}
            }
            Next::Continue
        },
    );
    let idle = idle(
        &inner.endpoints,
        &path,
        inner.config.outbound.discovery_idle,
        || Box::pin(tx.closed()),
        || tx.receiver_count() == 0,
    );
    tokio::select! {
        () = watch => {}
        () = idle => {}
    }
}

/// Applies an update; `None` when it makes no sense and nothing changes.
fn change_endpoints(
    path: &str,
    known: &mut BTreeMap<SocketAddr, Arc<Endpoint>>,
    first: bool,
    change: Option<Change>,
) -> Option<Endpoints> {
    let Some(change) = change else {
        tracing::warn!(path, "refusing an empty update of endpoints");
        return None;
    };
    match change {
        Change::Add(set) => {
            let mut fresh = Vec::with_capacity(set.addrs.len());
            let total = set.addrs.len();
            for addr in set.addrs {
                match translate::endpoint(addr, &set.metric_labels) {
                    Ok(endpoint) => fresh.push(Arc::new(endpoint)),
                    Err(error) => tracing::warn!(path, %error, "refusing an endpoint"),
                }
            }
            // A set without any usable endpoint tells nothing that should replace what works.
            if fresh.is_empty() && total > 0 {
                return None;
            }
            if first {
                known.clear();
            }
            known.extend(fresh.into_iter().map(|e| (e.addr, e)));
        }
        Change::Remove(set) => {
            if first {
                known.clear();
            }
            for addr in set.addrs {
                match translate::socket_addr(addr) {
                    Ok(addr) => drop(known.remove(&addr)),
                    Err(error) => tracing::warn!(path, %error, "refusing to remove an endpoint"),
                }
            }
        }
        Change::NoEndpoints(none) => {
            known.clear();
            if !none.exists {
                return Some(Endpoints::DoesNotExist);
            }
        }
    }
    Some(Endpoints::Some(known.values().cloned().collect()))
}

/// What both services said about an outbound address.
#[derive(Default)]
struct Sides {
    policy: Option<Arc<OutboundPolicy>>,
    /// The control plane has no policy for the address.
    no_policy: bool,
    refused: Option<String>,
    trouble: Option<String>,
    profile: Option<Arc<Profile>>,
    overrides: Option<Distribution>,
    profile_done: bool,
}

async fn keep_outbound(inner: Arc<Inner>, dst: SocketAddr, entry: Entry) {
    let asks_profile = contains(&inner.config.destination.profile_networks, dst.ip());
    let sides = Mutex::new(Sides { profile_done: !asks_profile, ..Sides::default() });
    let update = |change: &mut dyn FnMut(&mut Sides)| {
        let mut sides = lock(&sides);
        change(&mut sides);
        settle(&inner.config, dst, &sides, &entry);
    };

    let policies = async {
        let spec = TrafficSpec {
            source_workload: inner.config.policy.workload.clone(),
            target: Some(traffic_spec::Target::Addr(dst.into())),
        };
        let what = format!("outbound policy of {dst}");
        follow(
            &inner.policy,
            &what,
            |channel| {
                let (origin, spec) = (channel.origin(), spec.clone());
                async move { OutboundPoliciesClient::with_origin(channel, origin).watch(spec).await }
            },
            |event| {
                match event {
                    Ok((_, message)) => match translate::outbound_policy(message) {
                        Ok(policy) => update(&mut |s| {
                            s.policy = Some(Arc::new(policy.clone()));
                            (s.no_policy, s.refused) = (false, None);
                        }),
                        Err(error) => {
                            tracing::warn!(%dst, %error, "refusing an outbound policy");
                            update(&mut |s| {
                                let invalid = || Arc::new(OutboundPolicy::invalid(error.to_string()));
                                s.policy.get_or_insert_with(invalid);
                            });
                        }
                    },
                    Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
                        update(&mut |s| (s.policy, s.no_policy, s.refused) = (None, true, None));
                        return Next::Rest;
                    }
                    Err(status) if is_refusal(status) => {
                        let text = describe(status);
                        update(&mut |s| s.refused = Some(text.clone()));
                        return Next::Rest;
                    }
                    Err(status) => {
                        let text = describe(status);
                        update(&mut |s| s.trouble = Some(text.clone()));
                    }
                }
                Next::Continue
            },
        )
        .await;
    };

    let profiles = async {
        if !asks_profile {
            return std::future::pending().await;
        }
        let request = GetDestination {
            scheme: String::new(),
            path: dst.to_string(),
            context_token: inner.config.destination.context.clone(),
        };
        let what = format!("profile of {dst}");
        follow(
            &inner.destination,
            &what,
            |channel| {
                let (origin, request) = (channel.origin(), request.clone());
                async move { DestinationClient::with_origin(channel, origin).get_profile(request).await }
            },
            |event| {
                match event {
                    Ok((_, message)) => {
                        let known = translate::profile(&message).and_then(|p| Ok((p, translate::overrides(&message)?)));
                        match known {
                            Ok((profile, overrides)) => update(&mut |s| {
                                s.profile = Some(Arc::new(profile.clone()));
                                s.overrides.clone_from(&overrides);
                                s.profile_done = true;
                            }),
                            Err(error) => {
                                tracing::warn!(%dst, %error, "refusing a profile; what was known stays");
                                update(&mut |s| s.profile_done = true);
                            }
                        }
                    }
                    Err(status) => {
                        tracing::debug!(%dst, code = ?status.code(), message = status.message(), "no profile");
                        // A failure is no answer: the address may be of a meshed pod, which must not get plaintext
                        // because of it. How long an answer is waited for is limited below.
                        if status.code() == Code::NotFound || is_refusal(status) {
                            update(&mut |s| s.profile_done = true);
                            return Next::Rest;
                        }
                    }
                }
                Next::Continue
            },
        )
        .await;
    };

    // A connection does not wait long for a profile: most addresses have nothing in it.
    let patience = async {
        sleep(inner.config.destination.profile_initial_timeout).await;
        update(&mut |s| s.profile_done = true);
        std::future::pending::<()>().await;
    };

    let closed = || -> BoxFuture<'_, ()> {
        Box::pin(async {
            entry.phase.closed().await;
            entry.policy.closed().await;
            entry.profile.closed().await;
        })
    };
    let idle = idle(&inner.outbound, &dst, inner.config.outbound.discovery_idle, closed, || entry.is_idle());
    tokio::select! {
        () = policies => {}
        () = profiles => {}
        () = patience => {}
        () = idle => {}
    }
}

/// Publishes what both sides together mean.
fn settle(config: &Config, dst: SocketAddr, sides: &Sides, entry: &Entry) {
    let profile = sides.profile.clone();
    publish(&entry.profile, profile.clone());
    let raw = match &sides.policy {
        Some(policy) => Some(policy.clone()),
        None if sides.no_policy => {
            let endpoint = profile.as_ref().and_then(|p| p.endpoint.clone());
            let endpoint = endpoint.unwrap_or_else(|| Arc::new(Endpoint::plain(dst)));
            let queue = Queue { capacity: config.outbound.http_queue, failfast: config.outbound.http_failfast };
            let meta = Meta::default_named("forward");
            Some(Arc::new(OutboundPolicy::forward(meta, endpoint, queue, config.outbound.detect_timeout)))
        }
        None => None,
    };
    let phase = match raw {
        Some(raw) if sides.profile_done => {
            publish(&entry.policy, merge::merge(raw, profile.as_deref(), sides.overrides.as_ref()));
            Phase::Ready
        }
        Some(_) => Phase::Pending(Some("waiting for the profile".into())),
        // A policy that was good stays in force whatever happens later; there is none here.
        None => match &sides.refused {
            Some(status) => Phase::Refused(status.clone()),
            None => Phase::Pending(sides.trouble.clone()),
        },
    };
    publish(&entry.phase, phase);
}

/// Sends a value if it differs, so that watchers wake for real changes only.
fn publish<T: PartialEq>(tx: &watch::Sender<T>, value: T) {
    tx.send_if_modified(|current| {
        let differs = *current != value;
        if differs {
            *current = value;
        }
        differs
    });
}

/// A status that says no and would say it again.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented)
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::destination::{AddrSet, NoEndpoints, WeightedAddr, WeightedAddrSet};

    use super::*;

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn add(lasts: &[u8]) -> Option<Change> {
        let addrs = lasts
            .iter()
            .map(|l| WeightedAddr { addr: Some(addr(*l).into()), weight: 1, ..WeightedAddr::default() })
            .collect();
        Some(Change::Add(WeightedAddrSet { addrs, metric_labels: HashMap::new() }))
    }

    fn addrs(state: Option<Endpoints>) -> Option<Vec<SocketAddr>> {
        match state? {
            Endpoints::Some(all) => Some(all.iter().map(|e| e.addr).collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn updates_change_the_set() {
        let mut known = BTreeMap::new();
        let mut change = |first, change| change_endpoints("test", &mut known, first, change);
        assert_eq!(addrs(change(true, add(&[2, 1, 1]))), Some(vec![addr(1), addr(2)]), "each address once, in order");
        assert_eq!(addrs(change(false, add(&[3]))), Some(vec![addr(1), addr(2), addr(3)]));
        let remove = Some(Change::Remove(AddrSet { addrs: vec![addr(1).into(), addr(9).into()] }));
        assert_eq!(addrs(change(false, remove)), Some(vec![addr(2), addr(3)]));
        assert_eq!(addrs(change(true, add(&[4]))), Some(vec![addr(4)]), "a new stream begins anew");
        let empty = Some(Change::NoEndpoints(NoEndpoints { exists: true }));
        assert_eq!(addrs(change(false, empty)), Some(vec![]));
        let gone = Some(Change::NoEndpoints(NoEndpoints { exists: false }));
        assert_eq!(change(false, gone), Some(Endpoints::DoesNotExist));
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut known = BTreeMap::new();
        change_endpoints("test", &mut known, true, add(&[1]));
        assert_eq!(change_endpoints("test", &mut known, false, None), None);
        let wrong = || WeightedAddr { addr: None, ..WeightedAddr::default() };
        let set = Change::Add(WeightedAddrSet { addrs: vec![wrong()], metric_labels: HashMap::new() });
        assert_eq!(change_endpoints("test", &mut known, true, Some(set)), None);
        assert_eq!(known.len(), 1);
        // An identity that cannot be understood never becomes plaintext.
        let mut odd = WeightedAddr { addr: Some(addr(2).into()), ..WeightedAddr::default() };
        odd.tls_identity = Some(linkerd2_proxy_api::destination::TlsIdentity::default());
        let Some(Change::Add(mut set)) = add(&[3]) else { panic!() };
        set.addrs.push(odd);
        assert_eq!(
            addrs(change_endpoints("test", &mut known, false, Some(Change::Add(set)))),
            Some(vec![addr(1), addr(3)])
        );
    }
}
