//! The certificate that the webhooks show, and who vouches for it.
//!
//! Nobody else makes it: an authority signs one certificate and its key is thrown away. Replicas share certificate and
//! key in a Secret. The API server is told of a new authority before anybody shows what that signed, and keeps the one
//! before as long as somebody may.

use crate::identity::ca;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use weft_core::names;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Certificates begin this much in the past, for clocks that lag.
const SKEW: Duration = Duration::minutes(5);

/// A certificate with its key and authorities.
pub struct Bundle {
    chain_pem: String,
    key_pem: String,
    /// The authority, and the one before while that may still be needed; PEM.
    pub authorities_pem: String,
    /// When it ends.
    pub not_after: OffsetDateTime,
    /// Names that it is for.
    names: Vec<String>,
    /// What a TLS server needs.
    pub certified: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The names under which the API server knows the webhooks.
pub fn dns_names(namespace: &str) -> Vec<String> {
    let name = format!("{}.{namespace}.svc", names::INJECTOR_SERVICE);
    vec![name.clone(), format!("{}.{namespace}", names::INJECTOR_SERVICE), names::INJECTOR_SERVICE.to_owned()]
}

impl Bundle {
    /// A new one, beside these older authorities.
    ///
    /// # Errors
    /// When the system has no randomness, or a name cannot stand in a certificate.
    pub fn generate(
        namespace: &str,
        lifetime: Duration,
        older_pem: &str,
        now: OffsetDateTime,
    ) -> Result<Bundle, String> {
        let text = |error: rcgen::Error| error.to_string();
        let names = dns_names(namespace);
        let not_after = now.saturating_add(lifetime);
        let mut authority = CertificateParams::default();
        // Authorities of different times have different names, so that they are not taken for each other.
        let name = format!("{}.{namespace}.svc {}", names::INJECTOR_SERVICE, now.unix_timestamp_nanos());
        authority.distinguished_name = DistinguishedName::new();
        authority.distinguished_name.push(DnType::CommonName, name);
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut leaf = CertificateParams::new(names.clone()).map_err(text)?;
        leaf.distinguished_name = DistinguishedName::new();
        leaf.distinguished_name.push(DnType::CommonName, names.first().map_or("", String::as_str));
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        for params in [&mut authority, &mut leaf] {
            (params.not_before, params.not_after) = (now.saturating_sub(SKEW), not_after);
        }
        let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(text);
        let authority = CertifiedIssuer::self_signed(authority, key()?).map_err(text)?;
        let leaf_key = key()?;
        let leaf = leaf.signed_by(&leaf_key, &authority).map_err(text)?;
        Bundle::read(&leaf.pem(), &leaf_key.serialize_pem(), &format!("{}{older_pem}", authority.pem()))
    }

    fn read(chain_pem: &str, key_pem: &str, authorities_pem: &str) -> Result<Bundle, String> {
        let chain = ca::certificates(chain_pem.as_bytes())?;
        let first = chain.first().ok_or_else(|| "no certificate in it".to_owned())?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|e| format!("a certificate cannot be read: {e}"))?;
        let not_after = parsed.validity().not_after.to_datetime();
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let names = alternatives.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let names = names.collect();
        let authorities = ca::certificates(authorities_pem.as_bytes()).map_err(|e| format!("authorities: {e}"))?;
        let vouched = authorities.iter().any(|authority| {
            X509Certificate::from_der(authority)
                .is_ok_and(|(_, authority)| parsed.verify_signature(Some(authority.public_key())).is_ok())
        });
        if !vouched {
            return Err("the certificate is signed by none of its authorities".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| "the key cannot be read".to_owned())?;
        let key =
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| "the key is of no use".to_owned())?;
        let certified = CertifiedKey::new(chain.into_iter().map(CertificateDer::from).collect(), key);
        certified.keys_match().map_err(|_| "the key is not the certificate's".to_owned())?;
        Ok(Bundle {
            chain_pem: chain_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            authorities_pem: authorities_pem.to_owned(),
            not_after,
            names,
            certified: Arc::new(certified),
        })
    }

    /// From a Secret.
    ///
    /// # Errors
    /// What is wrong with it, without a word of the key.
    pub fn from_secret(secret: &Value) -> Result<Bundle, String> {
        let text = |key: &str| -> Result<String, String> {
            let data = secret.get("data").and_then(|data| data.get(key)).and_then(Value::as_str);
            let octets = data.and_then(|data| BASE64.decode(data).ok());
            octets
                .and_then(|octets| String::from_utf8(octets).ok())
                .ok_or_else(|| format!("{key} is missing or no text"))
        };
        Bundle::read(&text("tls.crt")?, &text("tls.key")?, &text("ca.crt")?)
    }

    /// As a Secret; over this one when it is there, and nobody else changed it meanwhile.
    pub fn to_secret(&self, namespace: &str, before: Option<&Value>) -> Value {
        let mut secret = before.filter(|before| before.is_object()).cloned().unwrap_or_else(|| {
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": names::INJECTOR_TLS_SECRET,
                    "namespace": namespace,
                    "labels": {
                        names::LABEL_COMPONENT: "injector",
                        names::LABEL_CONTROL_PLANE_NS: namespace,
                    },
                },
                "type": "kubernetes.io/tls",
            })
        });
        secret["data"] = json!({
            "tls.crt": BASE64.encode(&self.chain_pem),
            "tls.key": BASE64.encode(&self.key_pem),
            "ca.crt": BASE64.encode(&self.authorities_pem),
        });
        secret
    }

    /// Whether it serves for now: for these names, and with a third of this life ahead.
    pub fn serves(&self, namespace: &str, lifetime: Duration, now: OffsetDateTime) -> bool {
        self.not_after - now > lifetime / 3 && dns_names(namespace).iter().all(|name| self.names.contains(name))
    }

    /// The newest authority of these, if it has not ended: certificates of its may still be shown.
    pub fn newest_authority(&self, now: OffsetDateTime) -> String {
        const END: &str = "-----END CERTIFICATE-----";
        if self.not_after < now {
            return String::new();
        }
        let end = self.authorities_pem.find(END).map(|at| at + END.len());
        end.and_then(|end| self.authorities_pem.get(..end))
            .map(|pem| format!("{}\n", pem.trim_start()))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_survives_its_secret() {
        let now = OffsetDateTime::now_utc();
        let life = Duration::days(90);
        let first = Bundle::generate("weft", life, "", now).unwrap();
        let secret = first.to_secret("weft", None);
        let read = Bundle::from_secret(&secret).unwrap();
        assert!(read.serves("weft", life, now));
        assert!(!read.serves("elsewhere", life, now));
        assert!(read.serves("weft", life, now + Duration::days(59)));
        assert!(!read.serves("weft", life, now + Duration::days(61)));
        assert!(!format!("{read:?}").contains("KEY"));

        let second = Bundle::generate("weft", life, &read.newest_authority(now), now).unwrap();
        let both = ca::certificates(second.authorities_pem.as_bytes()).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both[1], ca::certificates(first.authorities_pem.as_bytes()).unwrap()[0]);
        // The third keeps the second's authority and not the first's.
        let third = Bundle::generate("weft", life, &second.newest_authority(now), now).unwrap();
        let both = ca::certificates(third.authorities_pem.as_bytes()).unwrap();
        assert_eq!(both[1], ca::certificates(second.authorities_pem.as_bytes()).unwrap()[0]);
        assert_eq!(second.newest_authority(now + Duration::days(91)), "");
    }

    #[test]
    fn secrets_that_are_of_no_use_are_refused() {
        let now = OffsetDateTime::now_utc();
        let (one, other) = (
            Bundle::generate("weft", Duration::days(1), "", now).unwrap().to_secret("weft", None),
            Bundle::generate("weft", Duration::days(1), "", now).unwrap().to_secret("weft", None),
        );
        for key in ["tls.crt", "tls.key", "ca.crt"] {
            for bad in [Value::Null, json!("%"), json!(""), json!("aGVsbG8="), other["data"][key].clone()] {
                let mut secret = one.clone();
                secret["data"][key] = bad;
                assert!(Bundle::from_secret(&secret).is_err(), "{key}");
            }
        }
        assert!(Bundle::from_secret(&json!({ "data": "none" })).is_err());
        assert!(Bundle::from_secret(&json!([])).is_err());
    }
}
