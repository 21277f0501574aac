//! Which protocol a connection speaks, from its first octets.

/// What the first octets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.0 or HTTP/1.1: a request line.
    H1,
    /// HTTP/2: the connection preface.
    H2,
    /// A TLS handshake that begins with a ClientHello.
    Tls,
    /// None of these.
    Unknown,
    /// Not decided yet.
    NeedMore,
}

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHello {
    /// Not a well-formed ClientHello, or one larger than [`CLIENT_HELLO_LIMIT`].
    NotTls,
    /// Incomplete.
    NeedMore,
    /// Complete.
    Hello {
        /// The server's name, in lower case.
        sni: Option<String>,
        /// The application protocols offered, in order.
        alpn: Vec<Vec<u8>>,
    },
}

/// Largest ClientHello that is looked at, in octets with its record headers.
pub const CLIENT_HELLO_LIMIT: usize = 8192;

/// Says what `bytes`, the first octets of a connection, are.
pub fn detect(_bytes: &[u8]) -> Detected {
    unimplemented!()
}

/// Reads the ClientHello that `bytes`, the first octets of a connection, hold.
pub fn client_hello(_bytes: &[u8]) -> ClientHello {
    unimplemented!()
}
