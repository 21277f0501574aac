//! Certificates of a new mesh: a root (the trust anchor) and a separate issuer that it signs, both P-256.

use crate::names::{CONTROL_NAMESPACE, TRUST_DOMAIN};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// Life of a root: 10 years of 365 days.
pub const ROOT_DAYS: i64 = 3650;
/// Life of an issuer: 1 year of 365 days. Leaves live 24 h, so it can be replaced at any time before.
pub const ISSUER_DAYS: i64 = 365;
/// Certificates begin this much in the past, for clocks that lag.
const SKEW: Duration = Duration::minutes(5);

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make certificates: {0}")]
pub struct Error(#[from] rcgen::Error);

/// A new root and issuer, as PEM.
pub struct Trust {
    /// Root certificate: what every proxy trusts.
    pub anchor_pem: String,
    /// Root key. Only needed to sign another issuer; secret.
    pub anchor_key_pem: String,
    /// Issuer certificate.
    pub issuer_pem: String,
    /// Issuer key, PKCS#8; secret.
    pub issuer_key_pem: String,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("anchor_pem", &self.anchor_pem).finish_non_exhaustive()
    }
}

/// The common name of an issuer: `identity.<control namespace>.<trust domain>`.
pub fn issuer_name(control_namespace: &str, trust_domain: &str) -> String {
    format!("identity.{control_namespace}.{trust_domain}")
}

/// Makes a root and an issuer for the default control namespace and trust domain, valid from now.
///
/// # Errors
/// When the system has no randomness.
pub fn generate(now: OffsetDateTime) -> Result<Trust, Error> {
    generate_for(CONTROL_NAMESPACE, TRUST_DOMAIN, now)
}

/// As [`generate`], for another control namespace and trust domain.
///
/// # Errors
/// When the system has no randomness, or a name cannot stand in a certificate.
pub fn generate_for(control_namespace: &str, trust_domain: &str, now: OffsetDateTime) -> Result<Trust, Error> {
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root_params = params(&format!("root.{control_namespace}.{trust_domain}"), 1, now, ROOT_DAYS)?;
    let anchor_key_pem = root_key.serialize_pem();
    let root = CertifiedIssuer::self_signed(root_params, root_key)?;
    let issuer_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut issuer_params = params(&issuer_name(control_namespace, trust_domain), 0, now, ISSUER_DAYS)?;
    issuer_params.use_authority_key_identifier_extension = true;
    let issuer = issuer_params.signed_by(&issuer_key, &root)?;
    Ok(Trust {
        anchor_pem: root.pem(),
        anchor_key_pem,
        issuer_pem: issuer.pem(),
        issuer_key_pem: issuer_key.serialize_pem(),
    })
}

fn params(name: &str, path_length: u8, now: OffsetDateTime, days: i64) -> Result<CertificateParams, Error> {
    // The name is also a DNS name of the certificate, as Linkerd's own issuers have it.
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(days);
    // Positive, never zero, and distinct between roots made in the same second.
    let mut serial = now.unix_timestamp_nanos().unsigned_abs().to_be_bytes();
    serial[0] = 1;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// What people want to know about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Common name of the subject; empty when it has none.
    pub name: String,
    /// Valid from.
    pub not_before: OffsetDateTime,
    /// Valid until.
    pub not_after: OffsetDateTime,
}

/// Why certificates could not be read, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(String);

/// Reads every certificate of a PEM text.
///
/// # Errors
/// When there is none, or one cannot be read.
pub fn inspect(pem: &str) -> Result<Vec<CertificateInfo>, ReadError> {
    let mut out = Vec::new();
    for der in certificates(pem)? {
        let certificate = parse(&der)?;
        let name = certificate.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok());
        out.push(CertificateInfo {
            name: name.unwrap_or_default().to_owned(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
        });
    }
    Ok(out)
}

/// Whether the first certificate of `issuer_pem` is signed by one of `anchors_pem`, or is one of them.
///
/// # Errors
/// As [`inspect`].
pub fn issued_by(issuer_pem: &str, anchors_pem: &str) -> Result<bool, ReadError> {
    let chain = certificates(issuer_pem)?;
    let Some(first) = chain.first() else { return Ok(false) };
    let issuer = parse(first)?;
    for der in certificates(anchors_pem)? {
        let anchor = parse(&der)?;
        let named = issuer.issuer() == anchor.subject();
        if &der == first || (named && issuer.verify_signature(Some(anchor.public_key())).is_ok()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether every certificate of a PEM text is valid now.
///
/// # Errors
/// Which one is not, or as [`inspect`].
pub fn check_validity(pem: &str, now: OffsetDateTime) -> Result<(), ReadError> {
    for certificate in inspect(pem)? {
        if now < certificate.not_before || now > certificate.not_after {
            let (from, to) = (certificate.not_before.date(), certificate.not_after.date());
            return Err(ReadError(format!("{} is valid from {from} to {to}", certificate.name)));
        }
    }
    Ok(())
}

/// Whether the first certificate of `issuer_pem` may sign others now, and `key_pem` is its key.
///
/// # Errors
/// What is wrong with them, or as [`inspect`].
pub fn check_issuer(issuer_pem: &str, key_pem: &str, now: OffsetDateTime) -> Result<(), ReadError> {
    check_validity(issuer_pem, now)?;
    let chain = certificates(issuer_pem)?;
    let Some(first) = chain.first() else { return Ok(()) };
    let issuer = parse(first)?;
    if !issuer.is_ca() {
        return Err(ReadError("the certificate is not one of an authority".into()));
    }
    let key = KeyPair::from_pem(key_pem).map_err(|error| ReadError(format!("the key cannot be read: {error}")))?;
    if key.public_key_raw() != issuer.public_key().subject_public_key.data.as_ref() {
        return Err(ReadError("the key does not belong to the certificate".into()));
    }
    Ok(())
}

fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, ReadError> {
    let mut out = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|error| ReadError(format!("not PEM: {error}")))?;
        if block.label == "CERTIFICATE" {
            out.push(block.contents);
        }
    }
    if out.is_empty() { Err(ReadError("there is no certificate in it".into())) } else { Ok(out) }
}

fn parse(der: &[u8]) -> Result<x509_parser::certificate::X509Certificate<'_>, ReadError> {
    match x509_parser::parse_x509_certificate(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(ReadError(format!("not a certificate: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_is_signed_by_the_root() {
        let trust = generate(OffsetDateTime::now_utc()).unwrap();
        assert!(trust.anchor_pem.starts_with("-----BEGIN CERTIFICATE-----"));
        assert_ne!(trust.anchor_pem, trust.issuer_pem);
        let key = KeyPair::from_pem(&trust.issuer_key_pem).unwrap();
        // The issuer can sign, and its key belongs to it.
        let issuer = rcgen::Issuer::from_ca_cert_pem(&trust.issuer_pem, key).unwrap();
        assert!(issuer.key_usages().contains(&KeyUsagePurpose::KeyCertSign));
        assert!(!format!("{trust:?}").contains("PRIVATE"));
        assert_eq!(issued_by(&trust.issuer_pem, &trust.anchor_pem), Ok(true));
        assert_eq!(issued_by(&trust.anchor_pem, &trust.anchor_pem), Ok(true));
        let other = generate(OffsetDateTime::now_utc()).unwrap();
        assert_eq!(issued_by(&trust.issuer_pem, &other.anchor_pem), Ok(false));
        let both = format!("{}{}", other.anchor_pem, trust.anchor_pem);
        assert_eq!(issued_by(&trust.issuer_pem, &both), Ok(true));
        let info = inspect(&both).unwrap();
        assert_eq!(info.len(), 2);
        assert_eq!((info[0].not_after - info[0].not_before - SKEW).whole_days(), ROOT_DAYS);
        assert_eq!(inspect(&trust.issuer_pem).unwrap()[0].name, "identity.weft.cluster.local");
        for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(inspect(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn issuers_are_checked() {
        let now = OffsetDateTime::now_utc();
        let (trust, other) = (generate(now).unwrap(), generate(now).unwrap());
        let check = |pem: &str, key: &str, days: i64| {
            check_issuer(pem, key, now + Duration::days(days)).map_err(|error| error.to_string())
        };
        assert_eq!(check(&trust.issuer_pem, &trust.issuer_key_pem, 0), Ok(()));
        let problem = |result: Result<(), String>| result.unwrap_err();
        assert!(problem(check(&trust.issuer_pem, &other.issuer_key_pem, 0)).contains("does not belong"));
        assert!(problem(check(&trust.issuer_pem, "nothing", 0)).contains("the key cannot be read"));
        assert!(problem(check(&trust.issuer_pem, &trust.issuer_key_pem, 400)).contains("is valid from"));
        let leaf = CertificateParams::new(vec!["leaf".to_owned()]).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = leaf.self_signed(&key).unwrap().pem();
        assert!(problem(check(&leaf, &key.serialize_pem(), 0)).contains("not one of an authority"));
    }

    #[test]
    fn serials_of_root_and_issuer_differ_from_other_meshes() {
        let now = OffsetDateTime::now_utc();
        let (a, b) = (generate(now).unwrap(), generate(now + Duration::seconds(1)).unwrap());
        assert_ne!(a.anchor_pem, b.anchor_pem);
        assert_eq!(issuer_name("weft", "cluster.local"), "identity.weft.cluster.local");
    }
}
