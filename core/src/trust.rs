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
    }

    #[test]
    fn serials_of_root_and_issuer_differ_from_other_meshes() {
        let now = OffsetDateTime::now_utc();
        let (a, b) = (generate(now).unwrap(), generate(now + Duration::seconds(1)).unwrap());
        assert_ne!(a.anchor_pem, b.anchor_pem);
        assert_eq!(issuer_name("weft", "cluster.local"), "identity.weft.cluster.local");
    }
}
