//! What the TLS tests share: certificates made on the spot, and rustls's buffered API as the peer.
#![allow(dead_code, reason = "every test file uses a part")]

use std::io::{Read, Write};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, Connection, RootCertStore, ServerConfig};
use weft_wire::tls::Session;

pub const SERVER: &str = "server.ns.serviceaccount.identity.weft.cluster.local";
pub const CLIENT: &str = "client.ns.serviceaccount.identity.weft.cluster.local";

/// A root, and what it signed.
pub struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let root = params.self_signed(&key).expect("root").der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("key");
        let leaf = params.signed_by(&key, &self.issuer).expect("leaf").der().clone();
        (vec![leaf], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("root");
        roots
    }

    pub fn server(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("verifier");
        let (chain, key) = self.leaf(SERVER);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .expect("certificate");
        config.alpn_protocols = vec![b"transport.l5d.io/v1".to_vec()];
        config
    }

    pub fn client(&self) -> ClientConfig {
        let (chain, key) = self.leaf(CLIENT);
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .expect("certificate");
        config.alpn_protocols = vec![b"transport.l5d.io/v1".to_vec()];
        config
    }

    pub fn anonymous_client(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }
}

pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER).expect("name")
}

/// One end of a connection.
pub trait End {
    /// Takes octets of the wire; what was decrypted is kept.
    fn take(&mut self, wire: &[u8]) -> Result<(), rustls::Error>;
    /// Gives octets for the wire.
    fn give(&mut self) -> Vec<u8>;
    fn write(&mut self, plain: &[u8]);
    fn close(&mut self);
    fn plain(&mut self) -> &mut Vec<u8>;
    fn is_handshaking(&self) -> bool;
}

/// Ours.
pub struct Ours {
    pub session: Session,
    pub plain: Vec<u8>,
    pub out: Vec<u8>,
}

impl Ours {
    pub fn client(config: ClientConfig) -> Self {
        let mut ours = Self::new(Session::client(Arc::new(config), server_name()).expect("client"));
        ours.take(b"").expect("ClientHello");
        ours
    }

    pub fn server(config: ServerConfig) -> Self {
        Self::new(Session::server(Arc::new(config)).expect("server"))
    }

    fn new(session: Session) -> Self {
        Self { session, plain: Vec::new(), out: Vec::new() }
    }
}

impl End for Ours {
    fn take(&mut self, wire: &[u8]) -> Result<(), rustls::Error> {
        let mut input = wire.to_vec();
        let result = self.session.recv(&mut input, &mut self.plain, &mut self.out);
        assert!(input.is_empty(), "the read buffer is always used up");
        result
    }

    fn give(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn write(&mut self, plain: &[u8]) {
        self.session.send(plain, &mut self.out).expect("send");
    }

    fn close(&mut self) {
        self.session.close(&mut self.out);
    }

    fn plain(&mut self) -> &mut Vec<u8> {
        &mut self.plain
    }

    fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }
}

/// rustls with its own buffers.
pub struct Buffered {
    pub conn: Connection,
    pub plain: Vec<u8>,
    pub closed: bool,
}

impl Buffered {
    pub fn client(config: ClientConfig) -> Self {
        let mut conn = rustls::ClientConnection::new(Arc::new(config), server_name()).expect("client");
        conn.set_buffer_limit(None);
        Self { conn: conn.into(), plain: Vec::new(), closed: false }
    }

    pub fn server(config: ServerConfig) -> Self {
        let mut conn = rustls::ServerConnection::new(Arc::new(config)).expect("server");
        conn.set_buffer_limit(None);
        Self { conn: conn.into(), plain: Vec::new(), closed: false }
    }
}

impl End for Buffered {
    fn take(&mut self, mut wire: &[u8]) -> Result<(), rustls::Error> {
        while !wire.is_empty() {
            self.conn.read_tls(&mut wire).expect("a slice is read");
            let state = self.conn.process_new_packets()?;
            let mut piece = vec![0; state.plaintext_bytes_to_read()];
            self.conn.reader().read_exact(&mut piece).expect("plaintext");
            self.plain.extend_from_slice(&piece);
            self.closed |= state.peer_has_closed();
        }
        Ok(())
    }

    fn give(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.conn.wants_write() {
            self.conn.write_tls(&mut wire).expect("a vector is written");
        }
        wire
    }

    fn write(&mut self, plain: &[u8]) {
        self.conn.writer().write_all(plain).expect("write");
    }

    fn close(&mut self) {
        self.conn.send_close_notify();
    }

    fn plain(&mut self) -> &mut Vec<u8> {
        &mut self.plain
    }

    fn is_handshaking(&self) -> bool {
        self.conn.is_handshaking()
    }
}

/// Carries octets both ways, in pieces, until there are none.
pub fn shuttle(a: &mut dyn End, b: &mut dyn End, piece: &mut dyn FnMut() -> usize) -> Result<(), rustls::Error> {
    loop {
        let (from_a, from_b) = (a.give(), b.give());
        if from_a.is_empty() && from_b.is_empty() {
            return Ok(());
        }
        carry(&from_a, b, piece)?;
        carry(&from_b, a, piece)?;
    }
}

fn carry(mut wire: &[u8], to: &mut dyn End, piece: &mut dyn FnMut() -> usize) -> Result<(), rustls::Error> {
    while !wire.is_empty() {
        let (front, rest) = wire.split_at(piece().clamp(1, wire.len()));
        to.take(front)?;
        wire = rest;
    }
    Ok(())
}

/// Pieces as large as they come.
pub fn whole() -> impl FnMut() -> usize {
    || usize::MAX
}
