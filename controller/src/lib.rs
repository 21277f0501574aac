//! The control plane of weft, one binary with a subcommand for each component: `identity`, `destination` (with policy),
//! `metrics` and, on Kubernetes, `injector`.
//!
//! A [`source`] of Kubernetes objects feeds an [`index`]: one in-memory picture of the cluster, published as immutable
//! snapshots. The components read the index and never the source, so that the same code serves a directory of
//! manifests and a Kubernetes API server. What goes to proxies is exactly `linkerd2-proxy-api`.

pub mod admin;
pub mod cli;
pub mod destination;
pub mod drain;
pub mod duration;
pub mod grpc;
pub mod http;
pub mod identity;
pub mod index;
pub mod injector;
pub mod kubernetes;
pub mod metrics;
pub mod policy;
pub mod run;
pub mod source;
pub mod telemetry;
