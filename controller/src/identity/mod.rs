//! `Identity.Certify`: the certificate authority of the mesh.
//!
//! A proxy shows the token of its service account and a request for a certificate in that account's name. The checks
//! come in a fixed order; the first that fails is logged, counted and answered, without a word of the token.

pub mod ca;
pub mod credentials;
pub mod csr;
pub mod review;

use crate::cli::IdentityOptions;
use crate::grpc::Method;
use crate::telemetry::Telemetry;
use credentials::Credentials;
use linkerd2_proxy_api::identity::identity_server::Identity;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use review::Reviewer;
use std::time::SystemTime;
use time::Duration;
use tonic::{Code, Request, Response, Status};
use weft_core::{names, token};

const SERVICE: &str = "io.linkerd.proxy.identity.Identity";

/// The service.
#[derive(Debug)]
pub struct Server {
    credentials: Credentials,
    reviewer: Reviewer,
    controller_namespace: String,
    trust_domain: String,
    lifetime: Duration,
    skew: Duration,
    serials: ca::Serials,
    telemetry: Telemetry,
    certify: Method,
}

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub code: Code,
    /// Short name, for the counter.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, reason, message: message.into() }
    }
}

impl Server {
    /// A service that signs with these credentials whom this reviewer vouches for.
    pub fn new(
        options: &IdentityOptions,
        credentials: Credentials,
        reviewer: Reviewer,
        telemetry: &Telemetry,
    ) -> Server {
        Server {
            credentials,
            reviewer,
            controller_namespace: options.mesh.controller_namespace.clone(),
            trust_domain: options.mesh.trust_domain.clone(),
            // Beyond what the type holds means without end, in effect.
            lifetime: Duration::try_from(options.issuance_lifetime).unwrap_or(Duration::days(36_500)),
            skew: Duration::try_from(options.clock_skew).unwrap_or(Duration::seconds(20)),
            serials: ca::Serials::default(),
            telemetry: telemetry.clone(),
            certify: Method::new(telemetry, SERVICE, "Certify"),
        }
    }

    async fn decide(&self, request: &CertifyRequest, now: SystemTime) -> Result<CertifyResponse, Refusal> {
        use Code::{FailedPrecondition, Internal, InvalidArgument, Unavailable};
        let current = self.credentials.current();
        let issuer =
            current.issuer.as_ref().ok_or_else(|| Refusal::new(Unavailable, "no_issuer", "there is no issuer yet"))?;
        for (missing, reason, message) in [
            (request.identity.is_empty(), "no_identity", "the identity is missing"),
            (request.token.is_empty(), "no_token", "the token is missing"),
            (request.certificate_signing_request.is_empty(), "no_csr", "the certificate signing request is missing"),
        ] {
            if missing {
                return Err(Refusal::new(InvalidArgument, reason, message));
            }
        }
        let csr = csr::parse(&request.certificate_signing_request)?;
        let expires = ca::verify_chain(&issuer.chain, &current.anchors, now.into())
            .map_err(|message| Refusal::new(Unavailable, "issuer_invalid", format!("issuer: {message}")))?;
        csr.check(&request.identity)?;
        let token = std::str::from_utf8(&request.token).map_err(|_| review::refused(&token::Error::Malformed))?;
        let subject = self.reviewer.review(token.trim(), &current, now).await?;
        for label in [&subject.namespace, &subject.service_account] {
            if label.contains('.') {
                return Err(Refusal::new(
                    InvalidArgument,
                    "token_subject",
                    format!("{label:?} cannot be a part of an identity: it has a dot"),
                ));
            }
        }
        let found = names::identity(
            &subject.service_account,
            &subject.namespace,
            &self.controller_namespace,
            &self.trust_domain,
        );
        if found != request.identity {
            return Err(Refusal::new(
                FailedPrecondition,
                "identity_mismatch",
                format!("the token is for {found}, the request for {}", request.identity),
            ));
        }
        let validity = ca::Validity { lifetime: self.lifetime, skew: self.skew, latest: expires };
        let leaf = issuer
            .sign(&csr, &request.identity, &validity, self.serials.next(), now.into())
            .map_err(|error| Refusal::new(Internal, "signing", format!("cannot sign: {error}")))?;
        tracing::info!(
            identity = request.identity, until = %leaf.not_after, pod = subject.pod.as_deref().unwrap_or_default(),
            "certificate issued"
        );
        Ok(CertifyResponse {
            leaf_certificate: leaf.der,
            intermediate_certificates: ca::without_anchors(&issuer.chain, &current.anchors),
            valid_until: Some(prost_types::Timestamp { seconds: leaf.not_after.unix_timestamp(), nanos: 0 }),
        })
    }
}

#[tonic::async_trait]
impl Identity for Server {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let request = request.into_inner();
        let result = self.decide(&request, SystemTime::now()).await;
        let reason = result.as_ref().err().map_or("issued", |refusal| refusal.reason);
        self.telemetry
            .counter("weft_identity_certify_total", "Requests for certificates, by result", &[("result", reason)])
            .inc();
        self.certify.ended(result.map_err(|refusal| {
            // Names come from outside: never more of one than a name can be long.
            let identity: String = request.identity.chars().take(253).collect();
            tracing::warn!(identity, reason = refusal.reason, "certificate refused: {}", refusal.message);
            Status::new(refusal.code, refusal.message)
        }))
    }
}
