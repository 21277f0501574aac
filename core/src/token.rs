//! Service-account tokens of the one-machine cluster: JSON Web Tokens signed with ES256, with the claims of Kubernetes'
//! projected tokens, so that what checks them need not know which cluster issued them.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::PublicKeyData;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The `iss` claim of tokens of the one-machine cluster.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Clocks of one cluster may differ by this much.
const LEEWAY_SECONDS: u64 = 10;

/// Whom a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Name of the pod it was made for, when it was made for one.
    pub pod: Option<String>,
}

impl Subject {
    /// As Kubernetes writes it: `system:serviceaccount:<namespace>:<name>`.
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }
}

/// Why a token was refused. Nothing of the token is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a JSON Web Token signed with ES256, or claims of another shape.
    #[error("the token is malformed")]
    Malformed,
    /// No known key made the signature.
    #[error("the token is not signed by this cluster")]
    Signature,
    /// Past its `exp`.
    #[error("the token has expired")]
    Expired,
    /// Before its `nbf`.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Made for another audience.
    #[error("the token is for another audience")]
    Audience,
    /// Made by another issuer.
    #[error("the token is from another issuer")]
    Issuer,
    /// `sub` is no service account.
    #[error("the token is not a service account's")]
    Subject,
    /// The key given to this program cannot be used.
    #[error("token key: {0}")]
    Key(String),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Audience,
    exp: u64,
    iat: u64,
    nbf: u64,
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

/// Makes tokens.
pub struct Signer {
    key: EncodingKey,
    public_pem: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl Signer {
    /// Makes a new P-256 key. Returns the signer and the private key as PKCS#8 PEM, to be kept secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<(Signer, String), Error> {
        let key =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| Error::Key(e.to_string()))?;
        let pem = key.serialize_pem();
        Ok((Signer::from_key(&key), pem))
    }

    /// Reads a private key (P-256, PKCS#8 PEM).
    ///
    /// # Errors
    /// [`Error::Key`] when it is none.
    pub fn from_pem(private_key: &str) -> Result<Signer, Error> {
        let key = rcgen::KeyPair::from_pem(private_key).map_err(|e| Error::Key(e.to_string()))?;
        if !key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
            return Err(Error::Key("it is not a P-256 key".into()));
        }
        Ok(Signer::from_key(&key))
    }

    fn from_key(key: &rcgen::KeyPair) -> Signer {
        Signer { key: EncodingKey::from_ec_der(key.serialized_der()), public_pem: key.public_key_pem() }
    }

    /// The public key as PEM (`SubjectPublicKeyInfo`), for [`TokenKeys`].
    pub fn public_key_pem(&self) -> &str {
        &self.public_pem
    }

    /// Makes a token for a service account and audience, valid from now.
    ///
    /// # Errors
    /// [`Error::Key`] when signing fails.
    pub fn issue(
        &self,
        subject: &Subject,
        audience: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, Error> {
        let now = unix_seconds(now);
        let mut kubernetes = serde_json::json!({
            "namespace": subject.namespace,
            "serviceaccount": { "name": subject.service_account },
        });
        if let Some(pod) = &subject.pod {
            kubernetes["pod"] = serde_json::json!({ "name": pod });
        }
        let claims = Claims {
            aud: Audience::Many(vec![audience.to_owned()]),
            exp: now.saturating_add(lifetime.as_secs()),
            iat: now,
            nbf: now,
            iss: ISSUER.to_owned(),
            sub: subject.username(),
            kubernetes,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key).map_err(|e| Error::Key(e.to_string()))
    }
}

/// Public keys that tokens are checked with. Several, so that keys can be rotated.
#[derive(Clone, Default)]
pub struct TokenKeys {
    keys: Vec<DecodingKey>,
}

impl std::fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenKeys({})", self.keys.len())
    }
}

impl TokenKeys {
    /// Reads every `PUBLIC KEY` block (P-256) of the texts.
    ///
    /// # Errors
    /// [`Error::Key`] when a block is no P-256 key, or when there is none at all.
    pub fn from_pems<'a>(pems: impl IntoIterator<Item = &'a str>) -> Result<TokenKeys, Error> {
        const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
        let mut keys = Vec::new();
        for text in pems {
            for block in text.split(BEGIN).skip(1) {
                let key = rcgen::SubjectPublicKeyInfo::from_pem(&format!("{BEGIN}{block}"))
                    .map_err(|e| Error::Key(e.to_string()))?;
                if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
                    return Err(Error::Key("it is not a P-256 key".into()));
                }
                keys.push(DecodingKey::from_ec_der(key.der_bytes()));
            }
        }
        if keys.is_empty() {
            return Err(Error::Key("no public key found".into()));
        }
        Ok(TokenKeys { keys })
    }

    /// Checks signature, times, issuer and audience, and says whose token it is.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify(&self, token: &str, audience: &str, now: SystemTime) -> Result<Subject, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        // Times and audience are checked below, against the caller's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let mut result = Err(Error::Signature);
        for key in &self.keys {
            match jsonwebtoken::decode::<Claims>(token, key, &validation) {
                Ok(data) => {
                    result = Ok(data.claims);
                    break;
                }
                Err(error) => match error.kind() {
                    ErrorKind::InvalidSignature => {}
                    _ => return Err(Error::Malformed),
                },
            }
        }
        let claims = result?;
        let now = unix_seconds(now);
        if now > claims.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(Error::Expired);
        }
        if now.saturating_add(LEEWAY_SECONDS) < claims.nbf {
            return Err(Error::NotYetValid);
        }
        if claims.iss != ISSUER {
            return Err(Error::Issuer);
        }
        let meant = match &claims.aud {
            Audience::One(one) => one == audience,
            Audience::Many(many) => many.iter().any(|one| one == audience),
        };
        if !meant {
            return Err(Error::Audience);
        }
        let mut parts = claims.sub.split(':');
        let (Some("system"), Some("serviceaccount"), Some(namespace), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::Subject);
        };
        if namespace.is_empty() || name.is_empty() {
            return Err(Error::Subject);
        }
        let pod = claims.kubernetes.pointer("/pod/name").and_then(Value::as_str).map(str::to_owned);
        Ok(Subject { namespace: namespace.to_owned(), service_account: name.to_owned(), pod })
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIENCE: &str = crate::names::IDENTITY_AUDIENCE;
    const DAY: Duration = Duration::from_secs(86_400);

    fn web() -> Subject {
        Subject { namespace: "emojivoto".into(), service_account: "web".into(), pod: Some("web-1".into()) }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    #[test]
    fn a_token_says_whose_it_is() {
        let (signer, pem) = Signer::generate().unwrap();
        let other = Signer::generate().unwrap().0;
        let keys = TokenKeys::from_pems([other.public_key_pem(), signer.public_key_pem()]).unwrap();
        let token = signer.issue(&web(), AUDIENCE, DAY, at(0)).unwrap();
        assert_eq!(keys.verify(&token, AUDIENCE, at(1)), Ok(web()));
        let again = Signer::from_pem(&pem).unwrap().issue(&web(), AUDIENCE, DAY, at(0)).unwrap();
        assert_eq!(keys.verify(&again, AUDIENCE, at(1)), Ok(web()));
        assert_eq!(web().username(), "system:serviceaccount:emojivoto:web");
    }

    #[test]
    fn every_fault_has_its_reason() {
        let (signer, _) = Signer::generate().unwrap();
        let keys = TokenKeys::from_pems([signer.public_key_pem()]).unwrap();
        let token = signer.issue(&web(), AUDIENCE, DAY, at(0)).unwrap();
        assert_eq!(keys.verify(&token, AUDIENCE, at(86_500)), Err(Error::Expired));
        assert_eq!(keys.verify(&token, AUDIENCE, UNIX_EPOCH), Err(Error::NotYetValid));
        assert_eq!(keys.verify(&token, "another", at(1)), Err(Error::Audience));
        assert_eq!(keys.verify("", AUDIENCE, at(1)), Err(Error::Malformed));
        assert_eq!(keys.verify("a.b.c", AUDIENCE, at(1)), Err(Error::Malformed));
        let stranger = Signer::generate().unwrap().0.issue(&web(), AUDIENCE, DAY, at(0)).unwrap();
        assert_eq!(keys.verify(&stranger, AUDIENCE, at(1)), Err(Error::Signature));
        let (head, _) = token.rsplit_once('.').unwrap();
        assert!(keys.verify(head, AUDIENCE, at(1)).is_err());
        let mut nobody = web();
        nobody.service_account = String::new();
        let token = signer.issue(&nobody, AUDIENCE, DAY, at(0)).unwrap();
        assert_eq!(keys.verify(&token, AUDIENCE, at(1)), Err(Error::Subject));
    }

    #[test]
    fn bad_keys_are_refused() {
        assert!(matches!(TokenKeys::from_pems(["nothing"]), Err(Error::Key(_))));
        assert!(TokenKeys::from_pems(["-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]).is_err());
        assert!(Signer::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
    }
}
