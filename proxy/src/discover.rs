//! Discovery: what the data threads ask, answered from watches that the control thread keeps.
//!
//! Each key (outbound address, service path, inbound port) has one entry with its watches, shared by all threads. An
//! entry lives while somebody holds a receiver of it, and the idle timeout longer. While the control plane does not answer,
//! what it has said is not forgotten.

use std::{
    collections::HashMap,
    hash::Hash,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use linkerd2_proxy_api::inbound::{PortSpec, inbound_server_policies_client::InboundServerPoliciesClient};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, Status};

use crate::{
    config::Config,
    control::{Link, Next, follow, translate},
    policy::{Endpoints, InboundPolicy, OutboundPolicy, Profile},
};

mod endpoints;
mod merge;
mod outbound;
#[cfg(test)]
pub(crate) mod preset;

/// How long the first connection to an address waits for its policy.
const POLICY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether an entry that nobody uses need not be kept any longer.
const LOOK: Duration = Duration::from_secs(1);

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
                self.0.runtime.spawn(outbound::keep(self.0.clone(), dst, entry.clone()));
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
        self.0.runtime.spawn(endpoints::keep(self.0.clone(), path, tx));
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

/// What the control plane says about an entry, as far as that decides whether the entry may be forgotten.
#[derive(Default)]
struct Standing {
    known: AtomicBool,
    broken: AtomicBool,
}

impl Standing {
    /// It has answered.
    fn answered(&self) {
        self.known.store(true, Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
    }

    /// It does not answer any more.
    fn failed(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// True when something is known that could not be asked for again.
    fn is_needed(&self) -> bool {
        self.known.load(Ordering::Relaxed) && self.broken.load(Ordering::Relaxed)
    }
}

/// Returns once nobody has held a receiver for the idle timeout and the entry has been removed.
async fn idle<'a, K: Hash + Eq + std::fmt::Display, V>(
    map: &'a Mutex<HashMap<K, V>>,
    key: &'a K,
    timeout: Duration,
    closed: impl Fn() -> BoxFuture<'a, ()>,
    is_idle: impl Fn() -> bool,
    is_needed: impl Fn() -> bool,
) {
    let mut told = false;
    loop {
        closed().await;
        sleep(timeout).await;
        if is_needed() {
            if !std::mem::replace(&mut told, true) {
                tracing::debug!(%key, "nobody uses it, but it is kept while the control plane does not answer");
            }
            sleep(LOOK).await;
            continue;
        }
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
    let standing = Standing::default();
    let watch = follow(
        &inner.policy,
        &what,
        |channel| {
            let (origin, spec) = (channel.origin(), spec.clone());
            async move { InboundServerPoliciesClient::with_origin(channel, origin).watch_port(spec).await }
        },
        |event| {
            match event {
                Ok((_, message)) => {
                    standing.answered();
                    match translate::server(message) {
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
                    }
                }
                Err(status) if is_refusal(status) => return Next::Rest,
                Err(_) => standing.failed(),
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
        || standing.is_needed(),
    );
    tokio::select! {
        () = watch => {}
        () = idle => {}
    }
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
