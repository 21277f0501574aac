//! This proxy's certificate: asked for, verified, renewed, and published to the data threads.

use std::{sync::Arc, time::SystemTime};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

/// ALPN of connections that begin with a transport header.
pub const TRANSPORT_ALPN: &[u8] = weft_core::names::TRANSPORT_ALPN;

/// The TLS configurations that one certificate makes possible.
pub struct Credentials {
    /// This proxy's identity, which is also the SNI that it terminates.
    pub name: String,
    /// For connections to peers, without ALPN.
    pub client: Arc<rustls::ClientConfig>,
    /// For connections that begin with a transport header (ALPN `transport.l5d.io/v1`).
    pub client_transport: Arc<rustls::ClientConfig>,
    /// For connections from peers: a client certificate is asked for and verified when given; ALPN
    /// `transport.l5d.io/v1` is accepted, none is fine.
    pub server: Arc<rustls::ServerConfig>,
    /// End of the certificate's validity.
    pub expires: SystemTime,
}

/// `None` until the first certificate.
pub type CredentialsRx = watch::Receiver<Option<Arc<Credentials>>>;

/// The identity that a verified certificate names: its first DNS SAN, else its first URI SAN.
pub fn peer_identity(cert: &CertificateDer<'_>) -> Option<String> {
    use x509_parser::prelude::*;
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let san = cert.subject_alternative_name().ok()??;
    let names = &san.value.general_names;
    let dns = names.iter().find_map(|n| match n {
        GeneralName::DNSName(name) => Some(name.to_string()),
        _ => None,
    });
    dns.or_else(|| {
        names.iter().find_map(|n| match n {
            GeneralName::URI(uri) => Some(uri.to_string()),
            _ => None,
        })
    })
}
