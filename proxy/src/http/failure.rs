//! Responses that the proxy makes itself, and why.

use weft_wire::{Headers, Response, Version};

use crate::{dial, metrics::Direction};

/// What went wrong, as metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No endpoint was ready in time.
    Failfast,
    /// Too many requests wait or are in flight.
    LoadShed,
    /// A time limit of the policy.
    Timeout,
    /// An endpoint could not be reached.
    Connect,
    /// An endpoint could not be reached in time.
    ConnectTimeout,
    /// A connection broke, or its peer did not keep to the protocol.
    Io,
    /// No endpoint has the identity that the client requires.
    Identity,
    /// No route for the request.
    NoRoute,
    /// Not authorized.
    Unauthorized,
    /// The policy makes no sense, or leads nowhere.
    Policy,
    /// The policy says so.
    Injected,
    /// The policy redirects.
    Redirect,
    /// The proxy would talk to itself.
    Loop,
    /// The client's message was refused.
    BadRequest,
}

impl Kind {
    /// The value of the metrics' label `error`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Failfast => "failfast",
            Self::LoadShed => "loadshed",
            Self::Timeout => "response timeout",
            Self::Connect | Self::Io => "i/o",
            Self::ConnectTimeout => "connect timeout",
            Self::Identity => "identity required",
            Self::NoRoute => "route not found",
            Self::Unauthorized => "unauthorized",
            Self::Policy => "invalid policy",
            Self::Injected => "injected failure",
            Self::Redirect => "redirect",
            Self::Loop => "loop",
            Self::BadRequest => "bad request",
        }
    }

    /// Nobody could be reached to give the request to.
    pub fn is_unreachable(self) -> bool {
        matches!(self, Self::Connect | Self::ConnectTimeout | Self::Failfast)
    }

    /// HTTP status, gRPC status, and whether the client's connection should end.
    fn answer(self) -> (u16, u16, bool) {
        const NOT_FOUND: u16 = 5;
        const DEADLINE: u16 = 4;
        const DENIED: u16 = 7;
        const PRECONDITION: u16 = 9;
        const ABORTED: u16 = 10;
        const INTERNAL: u16 = 13;
        const UNAVAILABLE: u16 = 14;
        match self {
            Self::Failfast | Self::ConnectTimeout => (504, DEADLINE, true),
            Self::LoadShed => (503, UNAVAILABLE, true),
            Self::Timeout => (504, DEADLINE, false),
            Self::Connect | Self::Io | Self::Identity => (502, UNAVAILABLE, true),
            Self::NoRoute => (404, NOT_FOUND, false),
            Self::Unauthorized => (403, DENIED, false),
            Self::Policy => (500, INTERNAL, true),
            Self::Injected => (500, PRECONDITION, false),
            Self::Redirect => (302, NOT_FOUND, false),
            Self::Loop => (508, ABORTED, true),
            Self::BadRequest => (400, INTERNAL, true),
        }
    }
}

/// A failed request: what the client is told.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Why.
    pub kind: Kind,
    /// HTTP status.
    pub status: u16,
    /// gRPC status, for gRPC clients.
    pub grpc: u16,
    /// The client's connection should end, so that it tries another replica.
    pub close: bool,
    /// One line, naming hop, endpoint and phase.
    pub message: String,
    /// Of a redirect.
    pub location: Option<Vec<u8>>,
}

impl Failure {
    /// A failure with its kind's statuses.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let (status, grpc, close) = kind.answer();
        Self { kind, status, grpc, close, message: message.into(), location: None }
    }

    /// The endpoint could not be reached.
    pub fn dial(error: &dial::Error) -> Self {
        let kind = match error {
            dial::Error::Loop { .. } => Kind::Loop,
            _ if error.is_exhausted() => Kind::LoadShed,
            _ if error.is_timeout() => Kind::ConnectTimeout,
            _ => Kind::Connect,
        };
        Self::new(kind, error.to_string())
    }

    /// The response: for gRPC a head that is also the end, with the status in it.
    pub fn response(&self, grpc: bool, emit: bool, version: Version) -> Response {
        let mut headers = Headers::new();
        let message = header_text(&self.message);
        headers.push(b"content-length", b"0");
        if grpc {
            headers.push(b"content-type", b"application/grpc");
            headers.push(b"grpc-status", self.grpc.to_string().as_bytes());
            headers.push(b"grpc-message", &percent_encode(&message));
        }
        if let Some(location) = &self.location {
            headers.push(b"location", location);
        }
        if emit {
            headers.push(b"l5d-proxy-error", &message);
            if self.close {
                headers.push(b"l5d-proxy-connection", b"close");
            }
        }
        Response { version, status: if grpc { 200 } else { self.status }, headers }
    }

    /// Writes the failure to the log.
    pub fn log(&self, direction: Direction, client: std::net::SocketAddr) {
        let direction = direction.as_str();
        match self.kind {
            Kind::Injected | Kind::Redirect => {
                tracing::debug!(direction, %client, status = self.status, "{}", self.message)
            }
            _ => {
                tracing::info!(direction, %client, status = self.status, error = self.kind.label(), "{}", self.message)
            }
        }
    }
}

/// Text as a header value: visible ASCII and spaces.
fn header_text(text: &str) -> Vec<u8> {
    text.bytes().map(|b| if (0x20..0x7f).contains(&b) { b } else { b'?' }).collect()
}

/// grpc-message is percent-encoded.
fn percent_encode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for &b in text {
        if b == b'%' { out.extend_from_slice(b"%25") } else { out.push(b) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_failures_are_heads_with_a_status() {
        let failure = Failure::new(Kind::Failfast, "no endpoint of\nweb 100%");
        let response = failure.response(true, true, Version::H2);
        assert_eq!(response.status, 200);
        assert_eq!(response.headers.get(b"grpc-status"), Some(&b"4"[..]));
        assert_eq!(response.headers.get(b"grpc-message"), Some(&b"no endpoint of?web 100%25"[..]));
        assert_eq!(response.headers.get(b"l5d-proxy-connection"), Some(&b"close"[..]));
    }

    #[test]
    fn silent_when_the_peer_is_not_meshed() {
        let response = Failure::new(Kind::Unauthorized, "no").response(false, false, Version::H11);
        assert_eq!(response.status, 403);
        assert!(response.headers.iter().all(|(name, _)| name == b"content-length"));
    }
}
