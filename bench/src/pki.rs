//! Certificates for one run: a root that signs what a proxy asks for, and ready-made leaves for HAProxy.

use std::{fs, path::Path, time::Duration};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateSigningRequestDer;

/// How long a leaf is valid.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The identity of one end.
pub fn identity(name: &str) -> String {
    format!("{name}.bench.serviceaccount.identity.weft.cluster.local")
}

/// The root.
pub struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    /// A new one.
    ///
    /// # Errors
    ///
    /// When the key cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_key(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    fn with_key(key: KeyPair) -> anyhow::Result<Self> {
        let mut params = params("root.weft.cluster.local")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(params, key)?))
    }

    /// The certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a request, for the names in it.
    ///
    /// # Errors
    ///
    /// When the request cannot be read or is not signed by its key.
    pub fn sign(&self, request: &[u8]) -> anyhow::Result<Vec<u8>> {
        let request = CertificateSigningRequestDer::from(request);
        let mut request = CertificateSigningRequestParams::from_der(&request).context("bad certificate request")?;
        leaf(&mut request.params);
        Ok(request.signed_by(&self.0)?.der().to_vec())
    }

    /// Certificate and key of a new leaf, PEM, as HAProxy wants them in one file.
    ///
    /// # Errors
    ///
    /// When the key cannot be made.
    pub fn leaf(&self, identity: &str) -> anyhow::Result<String> {
        let mut params = params(identity)?;
        leaf(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(params.signed_by(&key, &self.0)?.pem() + &key.serialize_pem())
    }

    /// Writes certificate and key for a process that will sign with them.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn save(&self, directory: &Path) -> anyhow::Result<()> {
        fs::write(directory.join("root.pem"), self.0.pem())?;
        fs::write(directory.join("root-key.pem"), self.0.key().serialize_pem())?;
        Ok(())
    }

    /// Reads what [`Self::save`] wrote. The certificate is made anew with the same name and key, which is what matters
    /// for signing.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn load(directory: &Path) -> anyhow::Result<Self> {
        Self::with_key(KeyPair::from_pem(&fs::read_to_string(directory.join("root-key.pem"))?)?)
    }
}

/// For one name, as subject and as alternative name. Root and leaves must differ in their subjects.
fn params(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn leaf(params: &mut CertificateParams) {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + LIFETIME).into();
}
