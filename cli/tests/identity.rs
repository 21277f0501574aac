//! `weft identity`: certificates as text, against golden files (`WEFT_BLESS=1` rewrites them), and how they are fetched.

use rustls::ServerConfig;
use rustls::server::Acceptor;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use weft::identity::{choose, fetch, identity, render};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// A certificate made by `openssl x509 -req`.
fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(tests().join("certificates").join(format!("{name}.pem"))).unwrap()
}

#[test]
fn certificates_are_printed() {
    let shown: Vec<Result<Vec<CertificateDer>, String>> = vec![
        Ok(vec![certificate("leaf"), certificate("ca")]),
        Ok(vec![certificate("rsa")]),
        Ok(vec![certificate("ed")]),
        Err("legacy-1 has no proxy".to_owned()),
        Ok(vec![CertificateDer::from(&b"nonsense"[..])]),
        Ok(Vec::new()),
    ];
    let text: String = shown
        .iter()
        .enumerate()
        .map(|(at, fetched)| render(&format!("web-{at}"), at + 1, shown.len(), fetched))
        .collect();
    let path = tests().join("golden/identity.txt");
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap_or_default(),
        "run with WEFT_BLESS=1 when the change is meant"
    );
}

#[test]
fn no_certificate_is_too_odd() {
    let whole = certificate("leaf");
    for at in 0..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x55;
        let _ = render("web", 1, 1, &Ok(vec![CertificateDer::from(bytes.clone())]));
        bytes.truncate(at);
        let text = render("web", 1, 1, &Ok(vec![CertificateDer::from(bytes)]));
        assert!(text.contains("not a certificate"), "{text}");
    }
}

fn pod(name: &str, app: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": app } },
        "spec": {
            "serviceAccountName": "web",
            "containers": [{
                "name": "linkerd-proxy",
                "env": [{
                    "name": "LINKERD2_PROXY_IDENTITY_LOCAL_NAME",
                    "value": "$(_pod_sa).$(_pod_ns).serviceaccount.identity.weft.cluster.local",
                }],
            }],
        },
        "status": { "phase": "Running" },
    })
}

#[test]
fn pods_and_their_names() {
    let pods = vec![pod("web-1", "web"), pod("web-2", "web"), pod("db-1", "db")];
    let chosen = |named: &[&str], selector: Option<&str>| {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let found = choose(&pods, &named, selector).map_err(|failure| failure.message)?;
        Ok::<_, String>(found.iter().map(|p| p["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(chosen(&["db-1", "po/web-2"], None).unwrap(), ["db-1", "web-2"]);
    assert_eq!(chosen(&[], Some("app=web")).unwrap(), ["web-1", "web-2"]);
    assert!(chosen(&[], Some("app=none")).unwrap().is_empty());
    assert_eq!(chosen(&["web-1", "web-9"], None).unwrap_err(), "pods \"web-9\" not found");

    assert_eq!(identity(&pods[0]).unwrap(), "web.shop.serviceaccount.identity.weft.cluster.local");
    let mut anonymous = pod("web-1", "web");
    anonymous["spec"]["containers"][0]["env"] = json!([]);
    assert_eq!(identity(&anonymous).unwrap_err(), "the proxy of web-1 has no identity");
    anonymous["spec"]["containers"] = json!([{ "name": "web" }]);
    assert_eq!(identity(&anonymous).unwrap_err(), "web-1 has no proxy");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_certificate_is_fetched_whoever_signed_it() {
    let name = "web.shop.serviceaccount.identity.weft.cluster.local";
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    block_on(async {
        let (client, server) = tokio::io::duplex(1 << 16);
        let served = async {
            let hello = tokio_rustls::LazyConfigAcceptor::new(Acceptor::default(), server).await.unwrap();
            let asked = hello.client_hello().server_name().map(str::to_owned);
            // The client leaves as soon as it has seen the certificate.
            let _ = hello.into_stream(config).await;
            asked
        };
        let (fetched, asked) = tokio::join!(fetch(client, name), served);
        assert_eq!(fetched.unwrap(), [made.cert.der().clone()]);
        assert_eq!(asked.as_deref(), Some(name));

        // Who does not speak TLS is told so.
        let (client, mut server) = tokio::io::duplex(1 << 16);
        let answer = async { server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap() };
        let (fetched, ()) = tokio::join!(fetch(client, name), answer);
        assert!(fetched.unwrap_err().starts_with("TLS: "));
        let (client, _) = tokio::io::duplex(16);
        assert!(fetch(client, "not a name").await.unwrap_err().contains("is not a server name"));
    });
}
