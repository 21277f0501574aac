//! weft-proxy: the data plane. One small process beside every pod, compatible with linkerd2-proxy on both wires: to the
//! control plane (linkerd2-proxy-api) and to other proxies.
//!
//! A control thread ([`discover`], [`identity`], [`admin`]) talks to the control plane; data threads ([`run`]) carry
//! the traffic and only read what the control thread publishes.

use std::sync::Arc;

pub mod config;
pub mod discover;
pub mod drain;
pub mod identity;
pub mod metrics;
pub mod policy;

/// What a data thread is given.
#[derive(Clone)]
pub struct Context {
    /// The configuration.
    pub config: Arc<config::Config>,
    /// Asks the control thread.
    pub discovery: discover::Discovery,
    /// The current certificate.
    pub credentials: identity::CredentialsRx,
    /// Where to count.
    pub metrics: Arc<metrics::Metrics>,
    /// Tells when to drain.
    pub drain: drain::DrainRx,
}
