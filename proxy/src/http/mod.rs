//! HTTP between two connections.
//!
//! A [`Conn`] is one connection with its codec, of a client ("front") or of a server ("back"), HTTP/1 or HTTP/2, plain or
//! TLS. Each has one task, which reads its socket and decodes it. An [`Exchange`] is one request and its response: it
//! links a stream of a front with a stream of a back. What one side's task decodes, the exchange has encoded straight
//! into the other side's output; when all tasks that were ready have run, every connection with output writes once.
//!
//! So there is no task, no channel and no queue per request, and whatever arrived together leaves together.
//!
//! Who may call whom: tasks and timers call exchanges; exchanges call connections; connections call nobody. That keeps
//! every `RefCell` borrow short: none is held over a call to another of these.
//!
//! Back-pressure: a source that has handed on more than its sink can take ([`Conn::is_full`]) is paused: an HTTP/1 source
//! is not read, an HTTP/2 source gets no window. The sink's task resumes it.

mod client;
mod conn;
mod exchange;
mod failure;
mod filters;
mod headers;
mod liveness;
mod plan;
mod server;
mod slow;
mod streams;

pub use client::run as run_client;
pub use conn::Conn;
pub use exchange::Exchange;
pub use failure::{Failure, Kind};
pub use filters::apply as apply_filters;
pub use headers::{downgrade_request, refuse_downgrade};
pub use plan::{Lost, Plan, Router, Want};
pub use server::serve;
pub use slow::interval as slow_interval;
