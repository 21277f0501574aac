//! Compares proxies side by side on one machine: client, outbound proxy, mutual TLS over a veth pair, inbound proxy, server,
//! with real redirects, in two network namespaces that vanish with the program.
//!
//! Absolute figures of a small machine drift by tens of per cent within minutes; ratios inside one round are what counts.
//! So every round runs every subject, fresh, one after the other, and the report shows medians of ratios.

pub mod compare;
pub mod control;
pub mod load;
pub mod measure;
pub mod net;
pub mod pki;
pub mod report;
pub mod steady;
pub mod subjects;
