//! Requests for certificates: what a proxy may ask for.

use super::Refusal;
use tonic::Code::{FailedPrecondition, InvalidArgument};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Most octets of a request; a proxy's has about 400.
const MAX_SIZE: usize = 8 * 1024;

/// What matters of a request whose signature is its own key's.
#[derive(Debug)]
pub struct Csr {
    /// The key to certify.
    pub key: rcgen::SubjectPublicKeyInfo,
    /// Common names of the subject.
    pub common_names: Vec<String>,
    dns: Vec<String>,
    /// A name of a kind that cannot be vouched for.
    other: Option<&'static str>,
}

/// Reads a request, DER.
///
/// # Errors
/// When it is none, or when its signature is not its key's.
pub fn parse(der: &[u8]) -> Result<Csr, Refusal> {
    let malformed = |message: &str| {
        Refusal::new(InvalidArgument, "csr_malformed", format!("the certificate signing request {message}"))
    };
    if der.len() > MAX_SIZE {
        return Err(malformed("is too long"));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| malformed("cannot be read"))?;
    if !rest.is_empty() {
        return Err(malformed("is followed by something else"));
    }
    csr.verify_signature().map_err(|_| {
        Refusal::new(
            InvalidArgument,
            "csr_signature",
            "the certificate signing request is not signed by the key that it is for",
        )
    })?;
    let info = &csr.certification_request_info;
    let key = rcgen::SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
        .map_err(|_| malformed("is for a key of an unknown kind"))?;
    let elliptic = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !elliptic.contains(&rcgen::PublicKeyData::algorithm(&key)) {
        return Err(malformed("is for a key that is neither P-256, P-384 nor Ed25519"));
    }
    let common_names = info
        .subject
        .iter_common_name()
        .map(|name| name.as_str().map(str::to_owned).map_err(|_| malformed("has a common name that is no text")))
        .collect::<Result<_, _>>()?;
    let (mut dns, mut other) = (Vec::new(), None);
    for extension in csr.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                        GeneralName::RFC822Name(_) => other = Some("an email address"),
                        GeneralName::IPAddress(_) => other = Some("an IP address"),
                        GeneralName::URI(_) => other = Some("a URI"),
                        _ => other = Some("a name of another kind"),
                    }
                }
            }
            ParsedExtension::ParseError { .. } => return Err(malformed("has an extension that cannot be read")),
            _ => {}
        }
    }
    Ok(Csr { key, common_names, dns, other })
}

impl Csr {
    /// Checks that the request is for this identity and nothing else.
    ///
    /// # Errors
    /// What it is for instead.
    pub fn check(&self, identity: &str) -> Result<(), Refusal> {
        let refuse = |message: String| Err(Refusal::new(FailedPrecondition, "csr_name", message));
        match self.dns.as_slice() {
            [name] if name == identity => {}
            [name] => {
                return refuse(format!("the certificate signing request is for {name:?}, not for {identity:?}"));
            }
            names => {
                return refuse(format!("the certificate signing request has {} DNS names instead of one", names.len()));
            }
        }
        if let Some(name) = self.common_names.iter().find(|name| !name.is_empty() && *name != identity) {
            return refuse(format!("the common name {name:?} is not the identity {identity:?}"));
        }
        match self.other {
            Some(kind) => refuse(format!("{kind} cannot be certified")),
            None => Ok(()),
        }
    }
}
