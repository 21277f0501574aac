//! The transport header: the first octets inside a TLS connection between proxies that negotiated [`ALPN`].

/// The application protocol that announces a transport header.
pub const ALPN: &[u8] = b"transport.l5d.io/v1";

/// Where a connection is meant to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportHeader {
    /// The target port, on the receiving proxy's side.
    pub port: u16,
    /// The target's name, in gateway mode.
    pub name: Option<String>,
    /// The protocol inside; opaque without one.
    pub session_protocol: Option<SessionProtocol>,
}

/// A protocol that needs no detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionProtocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why a transport header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first octets are not those of a transport header.
    #[error("no transport header where one was announced")]
    Preface,
    /// Larger than [`LIMIT`].
    #[error("transport header is larger than the limit")]
    TooLarge,
    /// Not a well-formed message.
    #[error("malformed transport header")]
    Malformed,
    /// The port is missing, zero or above 65535.
    #[error("transport header without a valid port")]
    Port,
    /// The name is not a DNS name.
    #[error("transport header with an invalid name")]
    Name,
}

/// Largest message accepted, in octets.
pub const LIMIT: usize = 8192;

impl TransportHeader {
    /// Appends the header to `out`.
    pub fn encode(&self, _out: &mut Vec<u8>) {
        unimplemented!()
    }

    /// Reads the header at the front of `bytes`: octets consumed and the header, or none when more are needed.
    pub fn decode(_bytes: &[u8]) -> Result<Option<(usize, Self)>, Error> {
        unimplemented!()
    }
}
