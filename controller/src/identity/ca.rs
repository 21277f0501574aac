//! The issuer: its chain to a trust anchor, and the certificates it signs.

use super::csr::Csr;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// A certificate, DER.
pub type Der = Vec<u8>;

/// An issuer that can sign.
pub struct Issuer {
    signer: rcgen::Issuer<'static, KeyPair>,
    /// Its certificate, then what leads from it to a trust anchor.
    pub chain: Vec<Der>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({} certificates)", self.chain.len())
    }
}

/// A signed certificate.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate.
    pub der: Der,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// How long a certificate is to be valid.
#[derive(Debug)]
pub struct Validity {
    /// From now.
    pub lifetime: Duration,
    /// Earlier and later, for clocks that differ.
    pub skew: Duration,
    /// Never later than this: when the chain ends.
    pub latest: OffsetDateTime,
}

/// Certificates in PEM.
///
/// # Errors
/// When there is none, or one cannot be read.
pub fn certificates(pem: &[u8]) -> Result<Vec<Der>, String> {
    let certificates: Vec<Der> = CertificateDer::pem_slice_iter(pem)
        .map(|der| der.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("not PEM: {e}"))?;
    if certificates.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    for der in &certificates {
        parse(der)?;
    }
    Ok(certificates)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("a certificate is followed by something else".to_owned()),
        Err(error) => Err(format!("a certificate cannot be read: {error}")),
    }
}

/// Follows a chain from the issuer to a trust anchor and gives the time when its first part ends.
///
/// # Errors
/// Where the chain breaks.
pub fn verify_chain(chain: &[Der], anchors: &[Der], now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    let anchors = anchors.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
    let chain = chain.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
    let mut expires: Option<OffsetDateTime> = None;
    let mut consider = |certificate: &X509Certificate<'_>| {
        let end = check_authority(certificate, now)?;
        expires = Some(expires.map_or(end, |e| e.min(end)));
        Ok::<_, String>(())
    };
    for (at, certificate) in chain.iter().enumerate() {
        consider(certificate)?;
        let anchor =
            anchors.iter().find(|anchor| certificate.as_raw() == anchor.as_raw() || signed_by(certificate, anchor));
        if let Some(anchor) = anchor {
            consider(anchor)?;
            return expires.ok_or_else(|| "the chain is empty".to_owned());
        }
        let next = chain.get(at + 1);
        if !next.is_some_and(|next| signed_by(certificate, next)) {
            return Err(format!("{} is signed by no trust anchor", certificate.subject()));
        }
    }
    Err("the chain is empty".to_owned())
}

/// Checks that a certificate may sign others now; gives the time when it ends.
fn check_authority(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    let name = certificate.subject();
    let validity = certificate.validity();
    let (start, end) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if now < start {
        return Err(format!("{name} is not valid before {start}"));
    }
    if now > end {
        return Err(format!("{name} has expired at {end}"));
    }
    if !certificate.is_ca() {
        return Err(format!("{name} is no certificate authority"));
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => Err(format!("{name} may not sign certificates")),
        Ok(_) => Ok(end),
        Err(_) => Err(format!("the key usage of {name} cannot be read")),
    }
}

fn signed_by(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The chain as proxies need it: they have the anchors themselves.
pub fn without_anchors(chain: &[Der], anchors: &[Der]) -> Vec<Der> {
    chain.iter().filter(|der| !anchors.contains(der)).cloned().collect()
}

impl Issuer {
    /// From a chain (PEM, issuer first) and the issuer's key (PEM).
    ///
    /// # Errors
    /// When they cannot be read or do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Issuer, String> {
        let chain = certificates(chain)?;
        let key = std::str::from_utf8(key).map_err(|_| "the key is not PEM".to_owned())?;
        let key = KeyPair::from_pem(key).map_err(|e| format!("the key cannot be read: {e}"))?;
        let first = chain.first().ok_or_else(|| "no certificate in it".to_owned())?;
        if parse(first)?.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("the key is not the certificate's".to_owned());
        }
        let der = CertificateDer::from(first.as_slice());
        let signer = rcgen::Issuer::from_ca_cert_der(&der, key).map_err(|e| e.to_string())?;
        Ok(Issuer { signer, chain })
    }

    /// Signs a certificate for the identity with the request's key.
    ///
    /// # Errors
    /// When the crypto library fails.
    pub fn sign(
        &self,
        csr: &Csr,
        identity: &str,
        validity: &Validity,
        serial: SerialNumber,
        now: OffsetDateTime,
    ) -> Result<Leaf, String> {
        let dns = identity.try_into().map_err(|_| "the identity is no DNS name".to_owned())?;
        // Times in certificates are whole seconds.
        let now = now.replace_nanosecond(0).map_err(|e| e.to_string())?;
        let not_after = now.saturating_add(validity.lifetime).saturating_add(validity.skew).min(validity.latest);
        let mut subject = DistinguishedName::new();
        if csr.common_names.iter().any(|name| !name.is_empty()) {
            subject.push(DnType::CommonName, identity);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.subject_alt_names = vec![SanType::DnsName(dns)];
        params.serial_number = Some(serial);
        params.not_before = now.saturating_sub(validity.skew);
        params.not_after = not_after;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&csr.key, &self.signer).map_err(|e| e.to_string())?;
        Ok(Leaf { der: certificate.der().to_vec(), not_after })
    }
}

/// Serial numbers that no other process, nor this one, uses again: the time of the start, then a counter.
#[derive(Debug)]
pub struct Serials {
    start: u64,
    next: AtomicU64,
}

impl Default for Serials {
    fn default() -> Serials {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Serials { start: u64::try_from(start).unwrap_or(u64::MAX), next: AtomicU64::new(1) }
    }
}

impl Serials {
    /// The next one.
    pub fn next(&self) -> SerialNumber {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.start.to_be_bytes().to_vec();
        bytes.extend(next.to_be_bytes());
        SerialNumber::from(bytes)
    }
}
