//! The real binary as a certificate authority: what it signs and what it refuses.

mod support;

use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData, SanType};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::{Controller, until};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_core::names::IDENTITY_AUDIENCE;
use weft_core::token::{Signer, Subject};
use weft_core::trust::{self, Trust};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

const WEB: &str = "web.shop.serviceaccount.identity.weft.cluster.local";
const DAY: Duration = Duration::from_secs(86_400);

struct Authority {
    directory: tempfile::TempDir,
    signer: Signer,
}

fn der(pem: &str) -> Vec<u8> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    pem.contents
}

impl Authority {
    fn new(trust: &Trust) -> Authority {
        let (signer, _) = Signer::generate().unwrap();
        let authority = Authority { directory: tempfile::tempdir().unwrap(), signer };
        std::fs::create_dir(authority.path("issuer")).unwrap();
        std::fs::write(authority.path("anchors.pem"), &trust.anchor_pem).unwrap();
        std::fs::write(authority.path("tokens.pem"), authority.signer.public_key_pem()).unwrap();
        authority.set_issuer(trust);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn set_issuer(&self, trust: &Trust) {
        std::fs::write(self.path("issuer/tls.crt"), &trust.issuer_pem).unwrap();
        std::fs::write(self.path("issuer/tls.key"), &trust.issuer_key_pem).unwrap();
    }

    fn start(&self) -> Controller {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        let any = "127.0.0.1:0";
        let (anchors, issuer, tokens) = (path("anchors.pem"), path("issuer"), path("tokens.pem"));
        let args = [
            "--grpc-addr",
            any,
            "--admin-addr",
            any,
            "--trust-anchors",
            &anchors,
            "--issuer-dir",
            &issuer,
            "--token-keys",
            &tokens,
        ];
        Controller::start("identity", 2, &args)
    }

    fn token(&self, namespace: &str, account: &str, audience: &str, issued: SystemTime) -> Vec<u8> {
        let subject = Subject {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            pod: Some("web-1".to_owned()),
        };
        self.signer.issue(&subject, audience, DAY, issued).unwrap().into_bytes()
    }

    fn good_token(&self) -> Vec<u8> {
        self.token("shop", "web", IDENTITY_AUDIENCE, SystemTime::now())
    }

    fn request(&self, csr: Vec<u8>) -> CertifyRequest {
        CertifyRequest { identity: WEB.to_owned(), token: self.good_token(), certificate_signing_request: csr }
    }
}

fn csr_with(key: &KeyPair, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

fn csr(key: &KeyPair, name: &str) -> Vec<u8> {
    csr_with(key, &[name], |params| params.distinguished_name.push(DnType::CommonName, name))
}

async fn certify(client: &mut IdentityClient<Channel>, request: CertifyRequest) -> Result<CertifyResponse, Status> {
    client.certify(request).await.map(tonic::Response::into_inner)
}

async fn client(controller: &Controller) -> IdentityClient<Channel> {
    IdentityClient::new(controller.channel("identity").await)
}

#[tokio::test]
async fn a_leaf_is_what_the_contract_says() {
    let trust = trust::generate(SystemTime::now().into()).unwrap();
    let authority = Authority::new(&trust);
    let controller = authority.start();
    let mut client = client(&controller).await;
    let key = KeyPair::generate().unwrap();
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let response = certify(&mut client, authority.request(csr(&key, WEB))).await.unwrap();
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;

    let issuer_der = der(&trust.issuer_pem);
    assert_eq!(response.intermediate_certificates, std::slice::from_ref(&issuer_der), "the issuer, without the root");
    let (_, leaf) = X509Certificate::from_der(&response.leaf_certificate).unwrap();
    let (_, issuer) = X509Certificate::from_der(&issuer_der).unwrap();
    leaf.verify_signature(Some(issuer.public_key())).unwrap();
    assert_eq!(leaf.issuer().as_raw(), issuer.subject().as_raw());
    assert_eq!(leaf.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2", "ECDSA with SHA-256");
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.subject().iter_common_name().next().unwrap().as_str().unwrap(), WEB);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::DNSName(WEB)]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(!leaf.is_ca());
    let (start, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    assert_eq!(end - start, 86_400 + 40);
    assert!((before - 20..=after - 20).contains(&start), "{start} is not between {before} and {after} less 20 s");
    assert_eq!(response.valid_until.unwrap().seconds, end);

    // The same request again: another serial number.
    let again = certify(&mut client, authority.request(csr(&key, WEB))).await.unwrap();
    let (_, second) = X509Certificate::from_der(&again.leaf_certificate).unwrap();
    assert_ne!(second.raw_serial(), leaf.raw_serial());
    // Without a common name it stays without.
    let nameless = certify(&mut client, authority.request(csr_with(&key, &[WEB], |_| {}))).await.unwrap();
    let (_, nameless) = X509Certificate::from_der(&nameless.leaf_certificate).unwrap();
    assert_eq!(nameless.subject().iter().count(), 0);

    assert_eq!(controller.admin("/ready").await.0, 200);
    let (_, metrics) = controller.admin("/metrics").await;
    assert!(metrics.contains(r#"weft_identity_certify_total{result="issued"} 3"#), "{metrics}");
    assert!(metrics.contains("weft_identity_issuer_expiration_timestamp_seconds"), "{metrics}");
}

#[tokio::test]
async fn what_is_wrong_is_refused_logged_and_counted() {
    let trust = trust::generate(SystemTime::now().into()).unwrap();
    let authority = Authority::new(&trust);
    let controller = authority.start();
    let mut client = client(&controller).await;
    let key = KeyPair::generate().unwrap();
    let good = authority.request(csr(&key, WEB));
    let with_token = |token: Vec<u8>| CertifyRequest { token, ..good.clone() };
    let with_csr = |csr: Vec<u8>| CertifyRequest { certificate_signing_request: csr, ..good.clone() };
    let other = "other.shop.serviceaccount.identity.weft.cluster.local";
    let now = SystemTime::now();

    // Signed by another key than the one inside.
    let mut forged = csr(&key, WEB);
    *forged.last_mut().unwrap() ^= 1;
    let mut trailing = csr(&key, WEB);
    trailing.push(0);
    let stranger = Authority::new(&trust);
    let uri = SanType::URI("spiffe://cluster.local/web".try_into().unwrap());
    let email = SanType::Rfc822Name("web@example.org".try_into().unwrap());
    let ip = SanType::IpAddress([10, 0, 0, 1].into());

    let cases: Vec<(&str, CertifyRequest, Code)> = vec![
        ("no_identity", CertifyRequest { identity: String::new(), ..good.clone() }, Code::InvalidArgument),
        ("no_token", with_token(Vec::new()), Code::InvalidArgument),
        ("no_csr", with_csr(Vec::new()), Code::InvalidArgument),
        ("csr_malformed", with_csr(b"nonsense".to_vec()), Code::InvalidArgument),
        ("csr_malformed", with_csr(trailing), Code::InvalidArgument),
        ("csr_malformed", with_csr(vec![0x30; 100_000]), Code::InvalidArgument),
        ("csr_signature", with_csr(forged), Code::InvalidArgument),
        ("csr_name", with_csr(csr(&key, other)), Code::FailedPrecondition),
        ("csr_name", with_csr(csr_with(&key, &[], |_| {})), Code::FailedPrecondition),
        ("csr_name", with_csr(csr_with(&key, &[WEB, other], |_| {})), Code::FailedPrecondition),
        (
            "csr_name",
            with_csr(csr_with(&key, &[WEB], |p| p.distinguished_name.push(DnType::CommonName, other))),
            Code::FailedPrecondition,
        ),
        ("csr_name", with_csr(csr_with(&key, &[WEB], |p| p.subject_alt_names.push(uri))), Code::FailedPrecondition),
        ("csr_name", with_csr(csr_with(&key, &[WEB], |p| p.subject_alt_names.push(email))), Code::FailedPrecondition),
        ("csr_name", with_csr(csr_with(&key, &[WEB], |p| p.subject_alt_names.push(ip))), Code::FailedPrecondition),
        ("token_malformed", with_token(b"nonsense".to_vec()), Code::InvalidArgument),
        ("token_malformed", with_token(vec![0xff; 10]), Code::InvalidArgument),
        ("token_audience", with_token(authority.token("shop", "web", "api", now)), Code::FailedPrecondition),
        (
            "token_expired",
            with_token(authority.token("shop", "web", IDENTITY_AUDIENCE, now - 3 * DAY)),
            Code::FailedPrecondition,
        ),
        (
            "token_not_yet_valid",
            with_token(authority.token("shop", "web", IDENTITY_AUDIENCE, now + DAY)),
            Code::FailedPrecondition,
        ),
        ("token_signature", with_token(stranger.good_token()), Code::FailedPrecondition),
        ("token_subject", with_token(authority.token("shop", "we.b", IDENTITY_AUDIENCE, now)), Code::InvalidArgument),
        (
            "identity_mismatch",
            with_token(authority.token("shop", "other", IDENTITY_AUDIENCE, now)),
            Code::FailedPrecondition,
        ),
        (
            "identity_mismatch",
            with_token(authority.token("elsewhere", "web", IDENTITY_AUDIENCE, now)),
            Code::FailedPrecondition,
        ),
    ];
    let mut expected = std::collections::BTreeMap::new();
    for (reason, request, code) in &cases {
        let status = certify(&mut client, request.clone()).await.unwrap_err();
        assert_eq!((status.code(), reason), (*code, reason), "{}", status.message());
        *expected.entry(*reason).or_insert(0) += 1;
    }
    let (_, metrics) = controller.admin("/metrics").await;
    for (reason, count) in expected {
        let line = format!("weft_identity_certify_total{{result=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    // All of them are in the log, with the identity, and no token is.
    until("refusals are logged", || {
        let refused = |line: &&serde_json::Value| line["fields"]["message"].to_string().contains("certificate refused");
        std::future::ready(controller.logs().iter().filter(refused).count() == cases.len())
    })
    .await;
    let logs = serde_json::to_string(&controller.logs()).unwrap();
    assert!(logs.contains(WEB));
    for (_, request, _) in cases.iter().filter(|(_, request, _)| request.token.len() > 20) {
        assert!(!logs.contains(std::str::from_utf8(&request.token).unwrap()), "a token is in the log");
    }
    // And it still signs.
    certify(&mut client, good).await.unwrap();
}

#[tokio::test]
async fn the_issuer_is_read_again_when_it_changes() {
    let trust = trust::generate(SystemTime::now().into()).unwrap();
    let authority = Authority::new(&trust);
    std::fs::remove_file(authority.path("issuer/tls.crt")).unwrap();
    let controller = authority.start();
    let mut client = client(&controller).await;
    let key = KeyPair::generate().unwrap();
    let request = authority.request(csr(&key, WEB));
    assert_eq!(certify(&mut client, request.clone()).await.unwrap_err().code(), Code::Unavailable, "no issuer yet");
    assert_eq!(controller.admin("/ready").await.0, 503);

    authority.set_issuer(&trust);
    until("it is ready", async || controller.admin("/ready").await.0 == 200).await;
    let first = certify(&mut client, request.clone()).await.unwrap();
    assert_eq!(first.intermediate_certificates, [der(&trust.issuer_pem)]);

    // An issuer of somebody else, and half of a rotation: what was good before stays.
    let stranger = trust::generate(SystemTime::now().into()).unwrap();
    let complaints = || {
        let bad = |line: &&serde_json::Value| line["fields"]["message"].to_string().contains("stay in use");
        controller.logs().iter().filter(bad).count()
    };
    authority.set_issuer(&stranger);
    until("it complains", || std::future::ready(complaints() >= 1)).await;
    assert_eq!(
        certify(&mut client, request.clone()).await.unwrap().intermediate_certificates,
        [der(&trust.issuer_pem)]
    );

    // With both anchors the new issuer is good.
    let anchors = format!("{}{}", trust.anchor_pem, stranger.anchor_pem);
    std::fs::write(authority.path("anchors.pem"), &anchors).unwrap();
    let new = [der(&stranger.issuer_pem)];
    until("the new issuer signs", async || {
        certify(&mut client.clone(), request.clone()).await.unwrap().intermediate_certificates == new
    })
    .await;

    // When the new issuer's anchor goes, it must not sign any more.
    std::fs::write(authority.path("anchors.pem"), &trust.anchor_pem).unwrap();
    until("it is refused", async || {
        certify(&mut client.clone(), request.clone()).await.is_err_and(|status| status.code() == Code::Unavailable)
    })
    .await;
    assert_eq!(controller.admin("/ready").await.0, 503);
}

#[tokio::test]
async fn the_root_itself_may_be_the_issuer() {
    // As Linkerd's own installation without given certificates has it.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "identity.weft.cluster.local");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::hours(1);
    // Ends before a leaf would.
    params.not_after = (now + time::Duration::hours(2)).replace_nanosecond(0).unwrap();
    let end = params.not_after.unix_timestamp();
    let root = params.self_signed(&key).unwrap().pem();
    let trust = Trust {
        anchor_pem: root.clone(),
        issuer_pem: root,
        issuer_key_pem: key.serialize_pem(),
        ..trust::generate(now).unwrap()
    };
    let authority = Authority::new(&trust);
    let controller = authority.start();
    let mut client = client(&controller).await;
    let leaf_key = KeyPair::generate().unwrap();
    let response = certify(&mut client, authority.request(csr(&leaf_key, WEB))).await.unwrap();
    assert!(response.intermediate_certificates.is_empty());
    assert_eq!(response.valid_until.unwrap().seconds, end, "no leaf outlives its issuer");
}
