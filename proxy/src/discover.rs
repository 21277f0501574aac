//! Discovery: what the data threads ask, answered from watches that the control thread keeps.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use crate::policy::{Endpoints, InboundPolicy, OutboundPolicy, Profile};

/// Handle for data threads; clones share one cache.
#[derive(Clone)]
pub struct Discovery {}

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
#[derive(Debug, Clone, thiserror::Error)]
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
    /// Resolves an outbound address. Cached; the first caller of an address waits for the control plane.
    ///
    /// # Errors
    /// The control plane refused, or did not answer within 10 s.
    pub async fn outbound(&self, _dst: SocketAddr) -> Result<Resolution, Error> {
        Err(Error::Closed)
    }

    /// The endpoints of a service (`name.namespace.svc.domain:port`).
    pub fn endpoints(&self, _path: &str) -> watch::Receiver<Arc<Endpoints>> {
        watch::channel(Arc::new(Endpoints::Unknown)).1
    }

    /// The policy of an inbound port: the default policy until the policy service answers.
    pub fn inbound(&self, _port: u16) -> watch::Receiver<Arc<InboundPolicy>> {
        watch::channel(Arc::new(InboundPolicy::invalid("not connected yet"))).1
    }
}
