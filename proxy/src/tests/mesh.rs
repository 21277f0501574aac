//! Between proxies: what is on the wire, who is let in.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::policy::{
    Authentication, Authorization, AuthzLabels, InboundPolicy, InboundProtocol, InboundRoute, InboundRule,
};

/// A wire between proxies that looks at everything which passes.
async fn tapped(to: SocketAddr, words: &'static [&'static str]) -> (SocketAddr, Arc<AtomicBool>, Arc<Mutex<Vec<u8>>>) {
    let found = Arc::new(AtomicBool::new(false));
    let all = Arc::new(Mutex::new(Vec::new()));
    let (flag, log) = (found.clone(), all.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.unwrap();
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            for (mut read, mut write) in [(near_read, far_write), (far_read, near_write)] {
                let (flag, log) = (flag.clone(), log.clone());
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    let mut chunk = vec![0; 16 * 1024];
                    while let Ok(n @ 1..) = read.read(&mut chunk).await {
                        seen.extend_from_slice(&chunk[..n]);
                        log.lock().unwrap().extend_from_slice(&chunk[..n]);
                        if words.iter().any(|w| seen.windows(w.len()).any(|at| at == w.as_bytes())) {
                            flag.store(true, Ordering::SeqCst);
                        }
                        if write.write_all(&chunk[..n]).await.is_err() {
                            break;
                        }
                    }
                    let _ = write.shutdown().await;
                });
            }
        }
    });
    (addr, found, all)
}

#[tokio::test]
async fn nothing_is_readable_on_the_wire() {
    let app = app(false, |_| async { Response::new(full("SECRET ANSWER")) }).await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let words: &[&str] = &["SECRET", "HTTP/1.1", "PRI * HTTP/2.0", "web.test", "transport.l5d.io/v1\r\n"];
    let (wire, found, all) = tapped(server.direct, words).await;
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    let endpoint = Endpoint { transport_port: Some(wire.port()), ..meshed(app, &server) };
    client.discovery.set_outbound(app, forward(endpoint));
    let mut request = http1(client.outbound(app)).await;
    let mut secret = get("/SECRET-PATH");
    secret.headers_mut().insert("authorization", "SECRET".parse().unwrap());
    let response = soon(request.send_request(secret)).await.unwrap();
    assert_eq!(text(response.into_body()).await, "SECRET ANSWER");
    // And bytes that are not HTTP.
    let mut stream = TcpStream::connect(client.outbound(app)).await.unwrap();
    stream.write_all(b"\x00SECRET").await.unwrap();
    let _ = soon(stream.read(&mut [0; 100])).await;
    assert!(!found.load(Ordering::SeqCst));
    assert!(all.lock().unwrap().len() > 2000, "the wire was not used");
}

#[tokio::test]
async fn without_transport_header_the_application_port_is_dialled() {
    let app = app(false, |request: Request<Incoming>| async move {
        Response::new(full(request.headers()["l5d-client-id"].to_str().unwrap().to_owned()))
    })
    .await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    let endpoint = Endpoint { addr: server.inbound(app), transport_port: None, ..meshed(app, &server) };
    client.discovery.set_outbound(app, forward(endpoint));
    let response = soon(http1(client.outbound(app)).await.send_request(get("/"))).await.unwrap();
    assert_eq!(text(response.into_body()).await, CLIENT);
    assert_eq!(
        server.metric("tcp_open_total", &["peer=\"src\"", "tls=\"true\"", &format!("client_id=\"{CLIENT}\"")]),
        1
    );
}

#[tokio::test]
async fn a_peer_with_another_identity_gets_nothing() {
    let app = app(false, |_| async { Response::new(full("never")) }).await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, "other.test.serviceaccount.identity.weft.cluster.local", &[], &[app]).await;
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    client.discovery.set_outbound(app, forward(meshed(app, &server)));
    let response = soon(http1(client.outbound(app)).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.headers()["l5d-proxy-error"].to_str().unwrap().contains("TLS"));
    assert_eq!(server.metric("request_total", &[]), 0);
    // The identity that the client asks for itself.
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    client.discovery.set_outbound(app, forward(meshed(app, &server)));
    let mut request = get("/");
    request.headers_mut().insert("l5d-require-id", "somebody.else".parse().unwrap());
    let response = soon(http1(client.outbound(app)).await.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 502);
}

#[tokio::test]
async fn strangers_are_not_let_in_by_the_own_port() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    assert_eq!(talk(server.direct, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    // TLS, but without a certificate or without the header.
    let stranger = Authority::new().issue("stranger.test");
    for config in [stranger.client_transport.clone(), ca.issue(CLIENT).client.clone()] {
        let connector = tokio_rustls::TlsConnector::from(config);
        let name = rustls::pki_types::ServerName::try_from(SERVER).unwrap();
        let stream = TcpStream::connect(server.direct).await.unwrap();
        if let Ok(mut tls) = soon(connector.connect(name, stream)).await {
            let _ = tls.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = soon(tls.read_to_end(&mut answer)).await;
            assert!(answer.is_empty());
        }
    }
    assert_eq!(server.metric("request_total", &[]), 0);
    until("refusals are counted", || server.metric("inbound_tcp_errors_total", &[]) >= 2).await;
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let server = Proxy::start(&Authority::new(), SERVER, &[], &[app]).await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from(SERVER).unwrap();
    for port in [server.inbound(app), server.direct] {
        let stream = TcpStream::connect(port).await.unwrap();
        let error = soon(connector.connect(name.clone(), stream)).await.unwrap_err().to_string();
        assert!(error.contains("ProtocolVersion"), "{error}");
    }
}

/// A policy that lets clients with those identities in.
fn only(names: &[&str], protocol: impl FnOnce(Arc<[InboundRoute]>) -> InboundProtocol) -> InboundPolicy {
    let everywhere = |net: &str| (net.parse().unwrap(), Vec::new());
    let authorization = Authorization {
        networks: vec![everywhere("0.0.0.0/0"), everywhere("::/0")],
        authentication: Authentication::Identities {
            names: names.iter().map(|&n| n.to_owned()).collect(),
            suffixes: Vec::new(),
        },
        labels: Arc::new(AuthzLabels { meta: Meta::default_named("only") }),
    };
    let route = InboundRoute {
        meta: Meta::default_named("route"),
        hosts: Vec::new(),
        authorizations: Vec::new(),
        rules: vec![InboundRule::default()],
    };
    InboundPolicy {
        meta: Meta::default_named("server"),
        protocol: protocol(Arc::new([route])),
        authorizations: vec![authorization],
    }
}

fn detect(routes: Arc<[InboundRoute]>) -> InboundProtocol {
    InboundProtocol::Detect { timeout: Duration::from_secs(10), routes }
}

#[tokio::test]
async fn authorization_holds_for_requests_and_connections() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let pair = pair(app).await;
    pair.server.discovery.set_inbound(app.port(), only(&[CLIENT], detect));
    let response = soon(http1(pair.entry).await.send_request(get("/"))).await.unwrap();
    assert_eq!(text(response.into_body()).await, "ok");
    // Unmeshed: refused, and not told why.
    let response = soon(http1(pair.server.inbound(app)).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 403);
    assert!(response.headers().iter().all(|(name, _)| !name.as_str().starts_with("l5d-")));
    // Refused from now on, on the same connection between the proxies.
    pair.server.discovery.set_inbound(app.port(), only(&["somebody.else"], detect));
    until("the policy has changed", || true).await;
    let mut client = http1(pair.entry).await;
    let response = soon(client.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 403);
    assert!(pair.server.metric("inbound_http_authz_deny_total", &[]) >= 2);
    assert_eq!(pair.server.metric("inbound_http_authz_allow_total", &["authz_name=\"only\""]), 1);
}

#[tokio::test]
async fn a_tcp_connection_ends_when_it_is_no_longer_permitted() {
    let app = raw_app(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let pair = pair(app).await;
    pair.server.discovery.set_inbound(app.port(), only(&[CLIENT], |_| InboundProtocol::Opaque));
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    stream.write_all(b"\x00ping\n").await.unwrap();
    read_until(&mut stream, "ping\n").await;
    pair.server.discovery.set_inbound(app.port(), only(&["somebody.else"], |_| InboundProtocol::Opaque));
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert_eq!(pair.server.metric("inbound_tcp_authz_terminate_total", &[]), 1);
    // And a new one is not permitted at all.
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    let _ = stream.write_all(b"\x00ping\n").await;
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    until("the refusal is counted", || pair.server.metric("inbound_tcp_authz_deny_total", &[]) == 1).await;
}

#[tokio::test]
async fn an_invalid_policy_refuses_with_a_reason() {
    let app = app(false, |_| async { Response::new(full("never")) }).await;
    let (proxy, entry) = single(app).await;
    proxy.discovery.set_outbound(app, OutboundPolicy::invalid("nonsense"));
    assert_eq!(talk(entry, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    until("it is counted", || proxy.metric("outbound_tcp_errors_total", &["error=\"invalid policy\""]) == 1).await;
    // Of the server's side the peer is told.
    let pair = pair(app).await;
    pair.server.discovery.set_inbound(app.port(), only(&[CLIENT], detect));
    let mut client = http1(pair.entry).await;
    assert_eq!(soon(client.send_request(get("/"))).await.unwrap().status(), 200);
    pair.server.discovery.set_inbound(app.port(), InboundPolicy::invalid("nonsense"));
    let mut client = http1(pair.entry).await;
    let response = soon(client.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 500);
}
