//! The real binary as a certificate authority on Kubernetes: the API server says whose a token is.

mod support;

use linkerd2_proxy_api::identity::CertifyRequest;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use rcgen::{CertificateParams, DnType, KeyPair};
use std::time::SystemTime;
use support::api_server::{ApiServer, Fault};
use support::{Controller, until};
use tonic::Code;
use weft_core::trust;

const WEB: &str = "web.shop.serviceaccount.identity.weft.cluster.local";

fn csr() -> Vec<u8> {
    let mut params = CertificateParams::new(vec![WEB.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, WEB);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn start(api: &ApiServer) -> Controller {
    let trust = trust::generate(SystemTime::now().into()).unwrap();
    let directory = api.directory();
    std::fs::write(directory.join("anchors.pem"), &trust.anchor_pem).unwrap();
    std::fs::write(directory.join("crt.pem"), &trust.issuer_pem).unwrap();
    std::fs::write(directory.join("key.pem"), &trust.issuer_key_pem).unwrap();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (kubeconfig, anchors, issuer) = (path("kubeconfig"), path("anchors.pem"), path(""));
    let any = "127.0.0.1:0";
    let args = [
        "--source",
        "kubernetes",
        "--kubeconfig",
        &kubeconfig,
        "--api-timeout",
        "2s",
        "--grpc-addr",
        any,
        "--admin-addr",
        any,
        "--trust-anchors",
        &anchors,
        "--issuer-dir",
        &issuer,
    ];
    Controller::start("identity", 2, &args)
}

fn account(name: &str, audience: &str) -> (String, Vec<String>) {
    (format!("system:serviceaccount:{name}"), vec![audience.to_owned()])
}

#[tokio::test]
async fn the_api_server_says_whose_a_token_is() {
    let api = ApiServer::start();
    let audience = "identity.l5d.io";
    {
        let mut world = api.world();
        world.tokens.insert("token-of-web".into(), account("shop:web", audience));
        world.tokens.insert("token-of-other".into(), account("shop:other", audience));
        world.tokens.insert("token-for-the-api".into(), account("shop:web", "https://kubernetes.default.svc"));
        world.tokens.insert("token-of-a-node".into(), ("system:node:n1".into(), vec![audience.into()]));
    }
    let controller = start(&api);
    // The issuer is all it needs to be ready: the API server may be away.
    assert_eq!(controller.admin("/ready").await.0, 200);
    let client = IdentityClient::new(controller.channel("identity").await);
    let certify = async |token: &str| {
        let request = CertifyRequest {
            identity: WEB.to_owned(),
            token: token.as_bytes().to_vec(),
            certificate_signing_request: csr(),
        };
        client.clone().certify(request).await.map(|response| response.into_inner().leaf_certificate.len())
    };
    assert!(certify("token-of-web").await.unwrap() > 100);
    let expected = [
        ("token-nobody-knows", Code::FailedPrecondition),
        ("token-of-other", Code::FailedPrecondition),
        ("token-for-the-api", Code::FailedPrecondition),
        ("token-of-a-node", Code::InvalidArgument),
        ("token with spaces", Code::InvalidArgument),
        ("", Code::InvalidArgument),
    ];
    for (token, code) in expected {
        let status = certify(token).await.unwrap_err();
        assert_eq!(status.code(), code, "{token}: {}", status.message());
    }
    // A server that knows no audiences accepts too much.
    api.world().no_audiences = true;
    assert_eq!(certify("token-of-web").await.unwrap_err().code(), Code::FailedPrecondition);
    api.world().no_audiences = false;

    // Away, hanging, lying: no certificate, and no harm; proxies ask again.
    for fault in [Fault::Hang, Fault::Garbage, Fault::Other, Fault::Error, Fault::HangUp] {
        api.fault("tokenreviews", Some(fault));
        let status = certify("token-of-web").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{fault:?}: {}", status.message());
        api.fault("tokenreviews", None);
        assert!(certify("token-of-web").await.is_ok(), "{fault:?}");
    }
    api.stop();
    assert_eq!(certify("token-of-web").await.unwrap_err().code(), Code::Unavailable);
    api.resume();
    until("it signs again", async || certify("token-of-web").await.is_ok()).await;
    api.assert_allowed("identity");
    let logs = serde_json::to_string(&controller.logs()).unwrap();
    assert!(logs.contains(WEB) && !logs.contains("token-of-web"), "a token is in the log");
}
