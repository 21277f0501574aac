//! This proxy's certificate: asked for, verified, renewed, and published to the data threads.
//!
//! The key is made in memory at start, or read from the directory that Linkerd's injector fills; it and the signing
//! request stay the same for the life of the process, as Linkerd's do.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use tokio::sync::watch;

mod client;
#[cfg(test)]
pub(crate) mod preset;
mod verify;

pub(crate) use client::{Client, maintain};

/// ALPN of connections that begin with a transport header.
pub const TRANSPORT_ALPN: &[u8] = weft_core::names::TRANSPORT_ALPN;

/// The TLS configurations that one certificate makes possible: TLS 1.3 only, X25519MLKEM768 preferred, no resumption.
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
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// `None` until the first certificate.
pub type CredentialsRx = watch::Receiver<Option<Arc<Credentials>>>;

impl Credentials {
    /// The client configuration for a peer, with ALPN for a transport header or without. The peer's certificate must
    /// hold the identity's name as DNS or URI SAN; the server name of the session is the identity's server name.
    pub fn client_for(&self, peer: &crate::policy::Identity, transport: bool) -> Arc<rustls::ClientConfig> {
        let config = if transport { &self.client_transport } else { &self.client };
        if peer.name == peer.server_name {
            return config.clone();
        }
        let mut config = rustls::ClientConfig::clone(config);
        let verifier = verify::SanVerifier::new(self.roots.clone(), peer.name.clone());
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }
}

/// The identity that a verified certificate names: its first DNS SAN, else its first URI SAN.
pub fn peer_identity(cert: &CertificateDer<'_>) -> Option<String> {
    let (dns, uris) = verify::subject_names(cert)?;
    dns.into_iter().next().or_else(|| uris.into_iter().next())
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key or signing request could not be read or made.
    #[error("{0}")]
    Key(String),
    /// The token could not be read.
    #[error("cannot read the token {path}: {error}")]
    Token {
        /// Where it should be.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The identity service could not be reached.
    #[error("cannot reach the identity service at {addr}: {error}")]
    Connect {
        /// Its address.
        addr: String,
        /// Which step failed.
        error: std::io::Error,
    },
    /// The identity service refused.
    #[error("the identity service refuses: {code:?}: {message}")]
    Refused {
        /// Its gRPC status.
        code: tonic::Code,
        /// Its reason.
        message: String,
    },
    /// The identity service's answer cannot be used.
    #[error("the identity service's answer is of no use: {0}")]
    Answer(String),
}

impl Error {
    /// A short text for a metric label.
    fn label(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Token { .. } => "token",
            Self::Connect { .. } => "connect",
            Self::Refused { .. } => "refused",
            Self::Answer(_) => "answer",
        }
    }
}

/// This proxy's key and the signing request made with it.
pub(crate) struct Key {
    signing: Arc<dyn SigningKey>,
    csr: Vec<u8>,
}

impl Key {
    /// Reads `key.p8` and `csr.der` from a directory.
    ///
    /// # Errors
    /// Names the file that is missing, empty or wrong.
    pub(crate) fn read(dir: &Path) -> Result<Self, Error> {
        let file = |name: &str| {
            let path = dir.join(name);
            match std::fs::read(&path) {
                Ok(bytes) if !bytes.is_empty() => Ok(bytes),
                Ok(_) => Err(Error::Key(format!("{} is empty", path.display()))),
                Err(e) => Err(Error::Key(format!("cannot read {}: {e}", path.display()))),
            }
        };
        let signing = signing_key(file("key.p8")?)
            .map_err(|e| Error::Key(format!("{} is no ECDSA key in PKCS#8: {e}", dir.join("key.p8").display())))?;
        Ok(Self { signing, csr: file("csr.der")? })
    }

    /// Makes a P-256 key and a request for `name`: its CN and exactly one DNS SAN, no key usage.
    ///
    /// # Errors
    /// The name is not one that a certificate can hold.
    pub(crate) fn generate(name: &str) -> Result<Self, Error> {
        let wrong = |e: rcgen::Error| Error::Key(format!("cannot make a signing request for {name}: {e}"));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).map_err(wrong)?;
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(rcgen::DnType::CommonName, name);
        params.distinguished_name = subject;
        let csr = params.serialize_request(&key).map_err(wrong)?.der().to_vec();
        let signing = signing_key(key.serialize_der()).map_err(|e| Error::Key(e.to_string()))?;
        Ok(Self { signing, csr })
    }
}

fn signing_key(pkcs8: Vec<u8>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(pkcs8).into())
}

/// What verifies peers.
#[derive(Clone)]
pub(crate) struct Trust {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    server_verifier: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// # Errors
    /// No certificate of `anchors` is a trust anchor.
    pub(crate) fn new(anchors: &[CertificateDer<'static>]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(anchors.iter().cloned());
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server_verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| Error::Key(format!("no usable trust anchor: {e}")))?;
        Ok(Self { roots, provider, server_verifier })
    }

    /// Verifies servers and shows no certificate: for the identity service, before there is one.
    ///
    /// # Errors
    /// The TLS library refuses the settings.
    pub(crate) fn anonymous(&self) -> Result<Arc<rustls::ClientConfig>, Error> {
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Error::Key(e.to_string()))?
            .with_webpki_verifier(self.server_verifier.clone())
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// Verifies a new certificate as a peer would, and makes the TLS configurations from it.
    fn credentials(
        &self,
        name: &str,
        key: &Key,
        chain: Vec<CertificateDer<'static>>,
        expires: SystemTime,
    ) -> Result<Credentials, Error> {
        let wrong = |e: rustls::Error| Error::Answer(e.to_string());
        let (leaf, intermediates) = chain.split_first().ok_or_else(|| Error::Answer("it holds no leaf".into()))?;
        let server_name = ServerName::try_from(name).map_err(|e| Error::Answer(e.to_string()))?;
        self.server_verifier
            .verify_server_cert(leaf, intermediates, &server_name, &[], UnixTime::now())
            .map_err(|e| Error::Answer(format!("its certificate is not valid for {name}: {e}")))?;
        if peer_identity(leaf).as_deref() != Some(name) {
            return Err(Error::Answer(format!("its certificate names somebody else than {name}")));
        }
        let certified = CertifiedKey::new(chain, key.signing.clone());
        certified.keys_match().map_err(|e| Error::Answer(format!("its certificate is for another key: {e}")))?;
        let certified = Arc::new(certified);

        let mut client = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_webpki_verifier(self.server_verifier.clone())
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
        client.resumption = Resumption::disabled();
        let mut client_transport = client.clone();
        client_transport.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];

        let client_verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::Answer(e.to_string()))?;
        let mut server = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(client_verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];

        Ok(Credentials {
            name: name.to_owned(),
            client: Arc::new(client),
            client_transport: Arc::new(client_transport),
            server: Arc::new(server),
            expires,
            roots: self.roots.clone(),
        })
    }
}

/// When to ask for the next certificate: after 70 % of the remaining life, within bounds.
fn refresh_in(expires: SystemTime, now: SystemTime, min: Duration, max: Duration) -> Duration {
    let left = expires.duration_since(now).unwrap_or_default();
    left.mul_f64(0.7).clamp(min, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "web.emojivoto.serviceaccount.identity.weft.cluster.local";

    #[test]
    fn a_request_has_one_name_and_no_usages() {
        use x509_parser::prelude::*;
        let key = Key::generate(NAME).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&key.csr).unwrap();
        csr.verify_signature().unwrap();
        assert_eq!(csr.certification_request_info.subject.to_string(), format!("CN={NAME}"));
        let extensions: Vec<_> = csr.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(san)] = &extensions[..] else {
            panic!("only a SAN is asked for, not {extensions:?}")
        };
        assert_eq!(san.general_names, [GeneralName::DNSName(NAME)]);
    }

    #[test]
    fn refresh_is_at_seventy_percent_within_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (min, max) = (Duration::from_secs(10), Duration::from_secs(86_400));
        let at = |life: u64| refresh_in(now + Duration::from_secs(life), now, min, max);
        assert_eq!(at(1000), Duration::from_secs(700));
        assert_eq!(at(1), min);
        assert_eq!(at(10_000_000), max);
        assert_eq!(refresh_in(now - Duration::from_secs(5), now, min, max), min);
    }

    struct Ca {
        cert: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    }

    impl Ca {
        fn new() -> Self {
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let cert = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
            Self { cert }
        }

        fn sign(&self, csr: &[u8]) -> CertificateDer<'static> {
            let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
            csr.signed_by(&self.cert).unwrap().der().clone()
        }
    }

    #[test]
    fn a_certificate_is_verified_before_it_is_used() {
        let (ours, other) = (Ca::new(), Ca::new());
        let trust = Trust::new(&[ours.cert.der().clone()]).unwrap();
        let key = Key::generate(NAME).unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);

        let good = trust.credentials(NAME, &key, vec![ours.sign(&key.csr)], later).unwrap();
        assert_eq!(good.name, NAME);
        assert_eq!(good.server.alpn_protocols, [TRANSPORT_ALPN]);
        assert!(good.client.alpn_protocols.is_empty());

        let wrong_ca = trust.credentials(NAME, &key, vec![other.sign(&key.csr)], later);
        assert!(matches!(wrong_ca, Err(Error::Answer(_))));
        let stranger = Key::generate(NAME).unwrap();
        let wrong_key = trust.credentials(NAME, &key, vec![ours.sign(&stranger.csr)], later);
        assert!(wrong_key.unwrap_err().to_string().contains("another key"));
        let somebody = Key::generate("other.example").unwrap();
        let wrong_name = trust.credentials(NAME, &somebody, vec![ours.sign(&somebody.csr)], later);
        assert!(wrong_name.unwrap_err().to_string().contains("not valid for"));
        assert!(trust.credentials(NAME, &key, Vec::new(), later).is_err());
    }

    #[test]
    fn peers_are_named_by_their_certificates() {
        let key = Key::generate(NAME).unwrap();
        assert_eq!(peer_identity(&Ca::new().sign(&key.csr)).as_deref(), Some(NAME));
        assert_eq!(peer_identity(&b"nonsense".to_vec().into()), None);
    }
}
