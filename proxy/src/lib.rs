//! weft-proxy: the data plane. One small process beside every pod, compatible with linkerd2-proxy on both wires: to the
//! control plane (linkerd2-proxy-api) and to other proxies.
//!
//! A control thread ([`discover`], [`identity`], `admin`) talks to the control plane; data threads ([`run`]) carry
//! the traffic and only read what the control thread publishes.

use std::sync::Arc;

use tokio::sync::mpsc;

mod admin;
mod admission;
mod balance;
mod balancer;
pub mod config;
mod control;
mod detect;
mod dial;
pub mod discover;
pub mod drain;
mod http;
pub mod identity;
mod inbound;
mod io;
mod logging;
mod memory;
pub mod metrics;
pub mod net;
mod outbound;
pub mod policy;
pub mod redirect;
pub mod run;
mod start;
mod tcp;
#[cfg(test)]
mod tests;
mod timer;
mod upstream;
pub mod validate;
mod waiting;
mod worker;

pub use start::start;
pub use waiting::{sleep_seconds, wait_until_ready};

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
    /// Told once by each data thread, when its listeners are bound; `/ready` waits for all.
    pub bound: mpsc::UnboundedSender<()>,
}
