//! Connections that the proxy makes: TCP, TLS when the endpoint has an identity, the transport header.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use weft_wire::{
    tls::Session,
    transport_header::{ALPN, SessionProtocol, TransportHeader},
};

use crate::{identity::CredentialsRx, io::Io, net, policy::Endpoint};

use crate::config::ProxySide;

/// A TLS handshake may take longer than the TCP connection before it: it costs CPU on both sides.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an endpoint could not be connected to. Every variant says which endpoint and in which phase.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No TCP connection.
    #[error("endpoint {addr}: connect: {source}")]
    Connect {
        /// The endpoint.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No TCP connection in time.
    #[error("endpoint {addr}: connect: timed out after {after:?}")]
    Timeout {
        /// The endpoint.
        addr: SocketAddr,
        /// The limit.
        after: Duration,
    },
    /// TLS failed.
    #[error("endpoint {addr}: TLS with {name}: {source}")]
    Tls {
        /// The endpoint.
        addr: SocketAddr,
        /// Whom it should be.
        name: Arc<str>,
        /// What went wrong.
        source: io::Error,
    },
    /// This proxy has no certificate, so it cannot reach a meshed endpoint. Plaintext is no alternative.
    #[error("endpoint {addr}: TLS with {name}: this proxy has no certificate yet")]
    NoCertificate {
        /// The endpoint.
        addr: SocketAddr,
        /// Whom it should be.
        name: Arc<str>,
    },
    /// The endpoint is this proxy itself.
    #[error("endpoint {addr}: this is the proxy's own port: a loop")]
    Loop {
        /// The endpoint.
        addr: SocketAddr,
    },
}

impl Error {
    /// True when this process, or this host, has no room for another socket.
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if net::is_exhausted(source))
    }

    /// True when time ran out.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

/// Connects to an endpoint. `session` is the protocol that will be spoken, for the transport header.
///
/// # Errors
/// See [`Error`]. A meshed endpoint is never connected to in plaintext.
pub async fn connect(
    endpoint: &Endpoint,
    session: Option<SessionProtocol>,
    side: &ProxySide,
    credentials: &CredentialsRx,
) -> Result<Io, Error> {
    let Some(identity) = &endpoint.identity else {
        return tcp(endpoint.addr, side).await.map(|stream| Io::plain(stream, endpoint.addr));
    };
    let addr = SocketAddr::new(endpoint.addr.ip(), endpoint.transport_port.unwrap_or(endpoint.addr.port()));
    let current = credentials.borrow().clone();
    let Some(current) = current else {
        return Err(Error::NoCertificate { addr, name: identity.name.clone() });
    };
    let tls = |source: io::Error| Error::Tls { addr, name: identity.name.clone(), source };
    let name = ServerName::try_from(identity.server_name.to_string())
        .map_err(|e| tls(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
    let config = current.client_for(identity, endpoint.transport_port.is_some());
    let tls_session = Session::client(config, name).map_err(|e| tls(io::Error::other(e)))?;

    let io = Io::plain(tcp(addr, side).await?, addr);
    io.start_tls(tls_session);
    match timeout(HANDSHAKE_TIMEOUT.max(side.connect_timeout), io.handshake()).await {
        Err(_) => return Err(tls(io::Error::new(io::ErrorKind::TimedOut, "the handshake timed out"))),
        Ok(result) => result.map_err(tls)?,
    }
    if endpoint.transport_port.is_some() && io.with_tls(|t| t.alpn() == Some(ALPN)) == Some(true) {
        let header = TransportHeader {
            port: endpoint.addr.port(),
            name: None,
            session_protocol: session.filter(|_| !endpoint.opaque),
        };
        let mut octets = Vec::new();
        header.encode(&mut octets);
        io.write(&mut octets);
        if io.is_broken() {
            return Err(tls(io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed after the handshake")));
        }
    } else if endpoint.transport_port.is_some() {
        // Without the header the peer would not know the application's port.
        return Err(tls(io::Error::new(io::ErrorKind::Unsupported, "the peer did not negotiate the transport header")));
    }
    Ok(io)
}

async fn tcp(addr: SocketAddr, side: &ProxySide) -> Result<TcpStream, Error> {
    let stream = match timeout(side.connect_timeout, TcpStream::connect(addr)).await {
        Err(_) => return Err(Error::Timeout { addr, after: side.connect_timeout }),
        Ok(result) => result.map_err(|source| Error::Connect { addr, source })?,
    };
    // A port without a listener can connect to itself on loopback when it is drawn as the ephemeral one.
    if stream.local_addr().is_ok_and(|local| local == addr) {
        return Err(Error::Loop { addr });
    }
    net::set_options(&stream, side.connect_keepalive, side.connect_user_timeout)
        .map_err(|source| Error::Connect { addr, source })?;
    Ok(stream)
}

/// True when `addr` is one of this proxy's own listeners, as far as the port tells, on an address of this host.
pub fn is_own_port(addr: SocketAddr, side: &ProxySide) -> bool {
    side.listen.iter().any(|l| l.port() == addr.port() && (l.ip() == addr.ip() || is_local(addr)))
}

/// True when the address belongs to this host: a socket can be bound to it.
fn is_local(addr: SocketAddr) -> bool {
    if addr.ip().is_loopback() {
        return true;
    }
    std::net::UdpSocket::bind(SocketAddr::new(addr.ip(), 0)).is_ok_and(|s| SockRef::from(&s).local_addr().is_ok())
}
