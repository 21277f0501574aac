//! What an exchange is told by the side of the proxy it is on, and what it tells.

use std::rc::Rc;

use weft_wire::{Request, h2::Reason};

use super::Failure;
use crate::{
    balancer::Balancer,
    metrics::{Direction, RequestMetrics},
    policy::{HeaderChange, Queue, Timeouts},
};

/// Where a request goes and what applies to it.
pub struct Plan {
    /// The endpoints to choose from.
    pub to: Rc<Balancer>,
    /// What holds while none is ready.
    pub queue: Queue,
    /// Limits in time.
    pub timeouts: Timeouts,
    /// Changes to the response.
    pub response: Vec<HeaderChange>,
    /// The request came over HTTP/2 and was HTTP/1 originally.
    pub downgraded: bool,
    /// The identity that the endpoint must have.
    pub require_identity: Option<Vec<u8>>,
    /// Where to count; by endpoint if not set.
    pub metrics: Option<Rc<RequestMetrics>>,
}

/// Decides where the requests of a client's connection go.
pub trait Router {
    /// Which side of the proxy this is.
    fn direction(&self) -> Direction;
    /// True when the proxy's own responses may say why.
    fn emits_reasons(&self) -> bool;
    /// True when the client is a proxy, whose connection carries the requests of many.
    fn carries_others(&self) -> bool {
        false
    }
    /// Chooses a request's destination, and changes its head.
    fn route(&self, head: &mut Request) -> Result<Plan, Failure>;
}

/// The kind of connection that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A stream of an HTTP/2 connection.
    H2,
    /// An HTTP/1 connection.
    H1,
    /// An HTTP/1 connection of its own, which may become a tunnel.
    Tunnel,
}

/// How a server was lost.
pub struct Lost {
    /// The code, if the stream was reset.
    pub reset: Option<Reason>,
    /// The server says, or it is certain, that the request was not processed.
    pub unprocessed: bool,
    /// The server was silent until the system, or this proxy, gave it up.
    pub silent: bool,
    /// One line.
    pub message: String,
}
