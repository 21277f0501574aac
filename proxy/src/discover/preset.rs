//! For tests of the data path: discovery whose answers are set by hand.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{Discovery, Entry, Phase, lock, publish};
use crate::{
    config::{Backoff, Config, StreamLimits},
    control::{Channel, Connector, Link, Tls},
    identity::CredentialsRx,
    metrics::{Labels, Metrics},
    policy::{Endpoint, Endpoints, InboundPolicy, OutboundPolicy},
};

impl Discovery {
    /// Knows nothing but what is set; everything else is asked of a control plane that is not there.
    pub(crate) fn preset(config: &Arc<Config>, credentials: &CredentialsRx, metrics: &Arc<Metrics>) -> Self {
        let link = || {
            let connector =
                Connector::new(config.policy.addr.clone(), &config.outbound, Tls::Mutual(credentials.clone()));
            Link {
                channel: Channel::new(connector),
                backoff: Backoff { min: Duration::from_secs(60), max: Duration::from_secs(60), jitter: 0.0 },
                limits: StreamLimits::default(),
                metrics: metrics.clone(),
                labels: Labels::none(),
                refused_retry: Duration::from_secs(60),
            }
        };
        Self::new(config.clone(), link(), link())
    }

    /// Sets the policy of an outbound address.
    pub(crate) fn set_outbound(&self, dst: SocketAddr, policy: OutboundPolicy) {
        let mut map = lock(&self.0.outbound);
        let entry = map.entry(dst).or_insert_with(|| Entry {
            phase: watch::channel(Phase::Ready).0,
            policy: watch::channel(Arc::new(OutboundPolicy::invalid("unset"))).0,
            profile: watch::channel(None).0,
        });
        publish(&entry.policy, Arc::new(policy));
    }

    /// Sets the endpoints of a service.
    pub(crate) fn set_endpoints(&self, path: &str, endpoints: Vec<Endpoint>) {
        let mut map = lock(&self.0.endpoints);
        let entry = map.entry(path.into()).or_insert_with(|| watch::channel(Arc::new(Endpoints::Unknown)).0);
        publish(entry, Arc::new(Endpoints::Some(endpoints.into_iter().map(Arc::new).collect())));
    }

    /// Who watches the policy of an inbound port.
    pub(crate) fn inbound_watchers(&self, port: u16) -> usize {
        lock(&self.0.inbound).get(&port).map_or(0, watch::Sender::receiver_count)
    }

    /// Sets the policy of an inbound port.
    pub(crate) fn set_inbound(&self, port: u16, policy: InboundPolicy) {
        let mut map = lock(&self.0.inbound);
        let entry = map.entry(port).or_insert_with(|| watch::channel(Arc::new(InboundPolicy::invalid("unset"))).0);
        publish(entry, Arc::new(policy));
    }
}
