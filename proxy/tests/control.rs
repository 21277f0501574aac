//! The proxy against a control plane: configuration, identity, watches, admin server, metrics, drain.

mod support;

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use linkerd2_proxy_api::inbound;
use nix::sys::signal::Signal;
use support::{
    DEADLINE, FakeControl, Mesh, Proxy, app, bless,
    control::{Certify, Endpoints},
    eventually,
    netns::{Bridge, Netns},
    policies,
    proxy::{http_request, metric},
};
use tonic::Status;

const NAME: &str = "web.emojivoto.serviceaccount.identity.weft.cluster.local";

/// Not to be granted before the test says so.
fn stalled() -> FakeControl {
    let control = FakeControl::start();
    control.set_certify(Certify::Stall);
    control
}

// --- configuration ---

fn exit(vars: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
        .env_clear()
        .envs(vars.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_missing_variable_ends_the_proxy_with_its_name() {
    let (code, message) = exit(&[]);
    assert_eq!(code, Some(64), "{message}");
    assert_eq!(message, "weft-proxy: LINKERD2_PROXY_IDENTITY_LOCAL_NAME: must be set\n");
}

#[test]
fn a_bad_variable_ends_the_proxy_with_its_name() {
    let control = FakeControl::start();
    let mut proxy = Proxy::builder(&control, NAME).env("OUTBOUND_CONNECT_TIMEOUT", "100").spawn();
    assert_eq!(proxy.wait_exit().code(), Some(64));
    assert_eq!(
        proxy.log(),
        "weft-proxy: LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT: must be a duration with a unit: ms, s, m, h or d, \
         but is \"100\"\n"
    );

    let builder = Proxy::builder(&control, NAME);
    let dir = builder.dir();
    let mut proxy = builder.env("IDENTITY_DIR", dir.to_str().unwrap()).spawn();
    assert_eq!(proxy.wait_exit().code(), Some(64));
    let log = proxy.log();
    assert!(log.contains("LINKERD2_PROXY_IDENTITY_DIR") && log.contains("key.p8"), "{log}");
}

// --- identity ---

#[test]
fn nothing_is_ready_before_the_first_certificate() {
    let control = stalled();
    let mut proxy = Proxy::builder(&control, NAME).spawn();
    assert_eq!(proxy.get("/live"), (200, "live\n".into()));
    assert_eq!(proxy.get("/ready"), (503, "waiting for the first certificate\n".into()));
    control.set_certify(Certify::Accept { lifetime: Duration::from_secs(3600) });
    proxy.wait_ready();
    let certified = control.certified();
    assert_eq!((certified[0].identity.as_str(), certified[0].token.as_str()), (NAME, "the token"));
    assert_eq!(metric(&proxy.metrics(), "control_identity_cert_refreshes_total", &[]), Some(1.0));
}

#[test]
fn what_is_refused_is_logged_counted_and_tried_again() {
    let control = FakeControl::start();
    control.set_certify(Certify::Refuse(Status::permission_denied("not today")));
    let mut proxy = Proxy::builder(&control, NAME).spawn();
    proxy.wait_log("not today");
    proxy.wait_metric("control_identity_cert_errors_total", &["reason=\"refused\""], |v| v >= 2.0);
    assert_eq!(proxy.get("/ready").0, 503);
    control.set_certify(Certify::Accept { lifetime: Duration::from_secs(3600) });
    proxy.wait_ready();
}

#[test]
fn a_certificate_that_is_not_ours_is_not_used() {
    let control = FakeControl::start();
    control.set_certify(Certify::Nonsense);
    let mut proxy = Proxy::builder(&control, NAME).spawn();
    proxy.wait_metric("control_identity_cert_errors_total", &["reason=\"answer\""], |v| v >= 1.0);
    control.set_certify(Certify::OtherCa);
    proxy.wait_log("UnknownIssuer");
    control.set_certify(Certify::OtherName);
    proxy.wait_log("not valid for name");
    assert_eq!(proxy.get("/ready").0, 503);
    control.set_certify(Certify::Accept { lifetime: Duration::from_secs(3600) });
    proxy.wait_ready();
}

#[test]
fn certificates_are_renewed_with_the_same_request_and_a_fresh_token() {
    let control = FakeControl::start();
    control.set_certify(Certify::Accept { lifetime: Duration::from_secs(3) });
    let proxy = Proxy::builder(&control, NAME).env("IDENTITY_MIN_REFRESH", "100ms");
    let token = proxy.dir().join("token");
    let mut proxy = proxy.spawn_ready();
    let granted = || control.certified().into_iter().filter(|c| c.granted).collect::<Vec<_>>();
    eventually("a renewal", || (granted().len() >= 2).then_some(()));

    // Written aside and renamed, as the kubelet does.
    let fresh = token.with_file_name("fresh");
    std::fs::write(&fresh, "another token").unwrap();
    control.set_token(NAME, "another token");
    std::fs::rename(&fresh, &token).unwrap();
    eventually("a renewal with the other token", || granted().iter().any(|c| c.token == "another token").then_some(()));
    let granted = granted();
    assert!(granted.iter().all(|c| c.csr == granted[0].csr), "one key and request for the life of the proxy");
    proxy.wait_metric("control_identity_cert_refreshes_total", &[], |v| v >= 3.0);
    assert_eq!(proxy.get("/ready").0, 200);
}

#[test]
fn an_expired_certificate_is_told_and_replaced_when_possible() {
    let control = FakeControl::start();
    control.set_certify(Certify::Accept { lifetime: Duration::from_secs(2) });
    let mut proxy = Proxy::builder(&control, NAME).env("IDENTITY_MIN_REFRESH", "100ms").spawn_ready();
    control.set_certify(Certify::Refuse(Status::unavailable("no issuer")));
    proxy.wait_log("has expired and cannot be renewed");
    let before = metric(&proxy.metrics(), "control_identity_cert_refreshes_total", &[]).unwrap();
    control.set_certify(Certify::Accept { lifetime: Duration::from_secs(3600) });
    proxy.wait_metric("control_identity_cert_refreshes_total", &[], |v| v > before);
}

#[test]
fn an_unreachable_identity_service_is_waited_for() {
    let control = FakeControl::start();
    let builder = Proxy::builder_in(&control, NAME, &Netns::new());
    control.pause();
    let mut proxy = builder.spawn();
    proxy.wait_log("cannot reach the identity service");
    assert_eq!(proxy.get("/ready").0, 503);
    control.resume();
    proxy.wait_ready();
}

#[test]
fn a_key_from_a_directory_is_used() {
    let control = FakeControl::start();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let csr = params.serialize_request(&key).unwrap();
    let builder = Proxy::builder(&control, NAME);
    let dir = builder.dir();
    std::fs::write(dir.join("key.p8"), key.serialize_der()).unwrap();
    std::fs::write(dir.join("csr.der"), csr.der()).unwrap();
    let _proxy = builder.env("IDENTITY_DIR", dir.to_str().unwrap()).spawn_ready();
    assert_eq!(control.certified()[0].csr, csr.der().to_vec());
}

#[test]
fn the_control_plane_is_spoken_to_with_mutual_tls() {
    let control = FakeControl::start();
    let mut bridge = Bridge::new();
    let (ns, ip) = bridge.plug();
    let (pod, _) = bridge.plug();
    let addr = control.listen_tls(&ns, ip, "control.test").to_string();
    let secured = |identity_name: &str| {
        let mut builder = Proxy::builder_in(&control, NAME, &pod);
        for service in ["IDENTITY", "DESTINATION", "POLICY"] {
            builder = builder.env(&format!("{service}_SVC_ADDR"), &addr).env(
                &format!("{service}_SVC_NAME"),
                if service == "IDENTITY" { identity_name } else { "control.test" },
            );
        }
        builder
    };
    {
        let mut proxy = secured("another.test").spawn();
        proxy.wait_log("TLS with another.test");
        assert_eq!(proxy.get("/ready").0, 503, "the token is not shown to somebody else");
        assert!(control.certified().is_empty());
    }
    let mut proxy = secured("control.test").spawn_ready();
    eventually("a watch", || control.calls().contains(&"WatchPort 4191".to_owned()).then_some(()));
    let calls = control.calls();
    assert!(calls.contains(&"TLS -".to_owned()), "the identity service is asked without a certificate: {calls:?}");
    assert!(calls.contains(&format!("TLS {NAME}")), "all else is asked with it: {calls:?}");
    let labels = ["tls=\"true\"", "server_id=\"control.test\""];
    proxy.wait_metric("control_request_total", &labels, |v| v >= 1.0);
}

// --- watches, seen through the policy of the admin port ---

/// A pod without a proxy asks the client pod for its metrics.
struct Scraper {
    mesh: Mesh,
    pod: support::Pod,
}

impl Scraper {
    fn new() -> Self {
        let mut mesh = Mesh::with(Some(&|b| b), None);
        let pod = mesh.add_pod("scraper", None);
        Self { mesh, pod }
    }

    fn scrape(&self, path: &str) -> u16 {
        let stream = self.pod.connect(self.mesh.client.addr(4191)).unwrap();
        http_request(stream, "GET", path, "").0
    }

    fn wait(&self, status: u16) {
        eventually(&format!("status {status}"), || (self.scrape("/metrics") == status).then_some(()));
    }
}

fn nonsense() -> inbound::Server {
    inbound::Server { protocol: None, ..policies::server(Vec::new()) }
}

#[test]
fn the_last_good_policy_stays_through_nonsense_and_outages() {
    let mut scraper = Scraper::new();
    scraper.wait(200);
    let control = &scraper.mesh.control;
    control.set_inbound(4191, Ok(policies::server(Vec::new())));
    scraper.wait(403);
    assert_eq!(scraper.scrape("/ready"), 200, "probes are always answered");
    assert_eq!(scraper.scrape("/live"), 200);
    assert_eq!(scraper.mesh.client.proxy().get("/metrics").0, 200, "callers of the same pod too");

    scraper.mesh.control.set_inbound(4191, Ok(nonsense()));
    scraper.mesh.client.proxy().wait_log("the last good one stays in force");
    assert_eq!(scraper.scrape("/metrics"), 403);

    scraper.mesh.control.pause();
    scraper.mesh.client.proxy().wait_log("cannot connect to the control plane");
    assert_eq!(scraper.scrape("/metrics"), 403);
    scraper.mesh.control.set_inbound(4191, Ok(policies::server(vec![policies::allow_all()])));
    scraper.mesh.control.resume();
    scraper.wait(200);
}

#[test]
fn paths_that_change_something_answer_this_pod_only() {
    let scraper = Scraper::new();
    for path in ["/proxy-log-level", "/env.json", "/shutdown"] {
        assert_eq!(scraper.scrape(path), 403, "{path}");
    }
}

// --- admin server ---

#[test]
fn admin_paths_answer() {
    let control = FakeControl::start();
    let mut proxy = Proxy::builder(&control, NAME).env("DESTINATION_CONTEXT", "a context").spawn_ready();
    assert_eq!(proxy.get("/nowhere").0, 404);
    assert_eq!(proxy.admin_request("POST", "/metrics", "").0, 405);
    assert_eq!(proxy.get("/proxy-log-level"), (200, "info,weft_proxy=debug\n".into()));
    assert_eq!(proxy.admin_request("PUT", "/proxy-log-level", "warn,linkerd=trace").0, 204);
    assert_eq!(proxy.get("/proxy-log-level").1, "warn,weft_proxy=trace\n");
    assert_eq!(proxy.admin_request("PUT", "/proxy-log-level", "weft_proxy=shout").0, 400);
    assert_eq!(proxy.get("/proxy-log-level").1, "warn,weft_proxy=trace\n");
    assert_eq!(proxy.admin_request("DELETE", "/proxy-log-level", "").0, 405);

    let (status, env) = proxy.get("/env.json");
    assert_eq!(status, 200);
    let env: serde_json::Value = serde_json::from_str(&env).unwrap();
    assert_eq!(env["LINKERD2_PROXY_DESTINATION_CONTEXT"], "a context");
    assert!(env["LINKERD2_PROXY_IDENTITY_TOKEN_FILE"].is_string(), "where the token is is no secret");

    let (status, text) = proxy.admin_request("POST", "/shutdown", "");
    assert_eq!((status, text.contains("SHUTDOWN_ENDPOINT_ENABLED")), (404, true));
}

#[test]
fn secrets_of_the_environment_are_not_shown() {
    let control = FakeControl::start();
    let mut proxy = Proxy::builder(&control, NAME).env("EXAMPLE_PASSWORD", "hunter2").spawn_ready();
    let (_, env) = proxy.get("/env.json");
    assert!(!env.contains("hunter2") && !env.contains("PASSWORD"), "{env}");
}

#[test]
fn shutdown_drains_when_enabled() {
    let control = FakeControl::start();
    let mut proxy = Proxy::builder(&control, NAME).env("SHUTDOWN_ENDPOINT_ENABLED", "true").spawn_ready();
    assert_eq!(proxy.get("/shutdown").0, 405);
    assert_eq!(proxy.admin_request("POST", "/shutdown", "").0, 200);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn the_admin_server_speaks_the_meshs_tls() {
    let control = FakeControl::start();
    let mut proxy = Proxy::builder(&control, NAME).spawn_ready();
    let addr = proxy.admin();
    let (chain, key) = control.issue("scraper.test");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(control.root()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let tls = rustls::ClientConnection::new(Arc::new(config), NAME.try_into().unwrap()).unwrap();
    let tcp = std::net::TcpStream::connect(addr).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, tcp);
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

// --- metrics ---

#[test]
fn an_idle_proxy_exposes_linkerds_names() {
    let control = FakeControl::start();
    let mut proxy = Proxy::builder(&control, NAME).spawn_ready();
    proxy.wait_metric("control_request_total", &["tls=\"no_identity\"", "no_tls_reason=\"loopback\""], |v| v >= 1.0);
    let metrics = proxy.wait_metric_text("control_response_latency_ms_count");
    // On a slow machine an attempt may have failed; that adds these two.
    let extra = |l: &str| l.contains("control_response_total") || l.contains("control_identity_cert_errors_total");
    let mut types: Vec<&str> = metrics.lines().filter(|l| l.starts_with("# TYPE") && !extra(l)).collect();
    types.sort_unstable();
    bless::assert("metrics-idle.txt", &format!("{}\n", types.join("\n")));
    let start = metric(&metrics, "process_start_time_seconds", &[]).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(start > now - 24.0 * 3600.0 && start < now + 60.0, "{start}");
    let expires = metric(&metrics, "identity_cert_expiration_timestamp_seconds", &[]).unwrap();
    assert!(expires > now, "{expires}");
}

#[test]
fn the_exposition_is_as_agreed() {
    use weft_proxy::{
        metrics::{Direction, Metrics, NoTls, ResponseClass, Tls},
        policy::{Endpoint, Identity, Meta},
    };
    use weft_wire::transport_header::SessionProtocol;
    let metrics = Metrics::new(Duration::from_secs(600));
    let endpoint = Endpoint {
        identity: Some(Identity { name: NAME.into(), server_name: NAME.into() }),
        labels: Arc::new([("dst_deployment".into(), "web".into()), ("dst_odd".into(), "a\"b\\c\nd".into())]),
        ..Endpoint::plain("10.244.0.5:8080".parse().unwrap())
    };
    let out = metrics.outbound_requests(&endpoint, Some("web.emojivoto"));
    for (status, ms, class) in [(200, 3, ResponseClass::Http), (200, 70_000, ResponseClass::Grpc(0))] {
        out.request();
        out.latency(status, Duration::from_millis(ms));
        out.response(status, class);
    }
    out.request();
    out.response(502, ResponseClass::Error("i/o"));
    let (server, route) = (Meta::default_named("all-unauthenticated"), Meta::default_named("default"));
    let target = "10.244.0.6:80".parse().unwrap();
    let tls = Tls::Server { client_id: Some("client.test") };
    let inbound = metrics.inbound_requests(target, None, &tls, &server, &route, &server);
    inbound.request();
    inbound.response(500, ResponseClass::Http);
    let mut broken = metrics.inbound_accepted(target, &Tls::None(NoTls::NoTlsFromRemote), &server).open();
    broken.read(10);
    broken.wrote(20);
    broken.failed(&std::io::Error::from_raw_os_error(104));
    let open = metrics.outbound_connections(&endpoint, None).open();
    metrics.http_error(Direction::Outbound, "failfast").incr();
    metrics.tcp_deny(target, &tls, &server).incr();
    metrics.outbound_detected(&Meta { port: Some(80), ..Meta::default() }, "http/1").incr();
    metrics.outbound_protocol(&Meta { port: Some(80), ..Meta::default() }, "detect").incr();
    metrics.transport_header(Some(SessionProtocol::Http2), 80, "client.test").incr();
    // Both connections are open: how long one lasted differs from run to run.
    bless::assert("metrics.txt", &metrics.render_registry());
    drop((broken, open));
    let closed = ["errno=\"ECONNRESET\"", "peer=\"src\""];
    assert_eq!(metric(&metrics.render_registry(), "tcp_close_total", &closed), Some(1.0));
}

// --- discovery, seen through traffic ---

#[test]
fn traffic_is_secured_and_both_ends_say_so() {
    let mut mesh = Mesh::two_pods();
    app::http(mesh.server.listen(mesh.app_port), "server");
    assert_eq!(app::get(&mesh.client, mesh.vip, "/"), (200, "server".into()));
    let (client, server) = (mesh.client.identity.clone(), mesh.server.identity.clone());
    let server_id = format!("server_id=\"{server}\"");
    let outbound = ["direction=\"outbound\"", "tls=\"true\"", &server_id, "dst_deployment=\"web\"", "success"];
    mesh.client.proxy().wait_metric("response_total", &outbound, |v| v == 1.0);
    let client_id = format!("client_id=\"{client}\"");
    let inbound = ["direction=\"inbound\"", "tls=\"true\"", &client_id, "status_code=\"200\"", "success"];
    mesh.server.proxy().wait_metric("response_total", &inbound, |v| v == 1.0);
}

#[test]
fn traffic_goes_on_without_the_control_plane_and_follows_its_return() {
    let mut mesh = Mesh::with(Some(&|b| b.env("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "1h")), None);
    let other = mesh.add_pod("other", None);
    app::http(mesh.server.listen(mesh.app_port), "server");
    app::http(other.listen(mesh.app_port), "other");
    assert_eq!(app::get(&mesh.client, mesh.vip, "/"), (200, "server".into()));
    mesh.control.pause();
    mesh.client.proxy().wait_log("connection to the control plane ended");
    let endpoint = policies::endpoint(other.addr(mesh.app_port));
    mesh.control.set_endpoints(&mesh.service, Endpoints::Set(vec![endpoint]));
    assert_eq!(app::get(&mesh.client, mesh.vip, "/"), (200, "server".into()));

    mesh.control.resume();
    eventually("the other endpoint", || (app::get(&mesh.client, mesh.vip, "/") == (200, "other".into())).then_some(()));
}

#[test]
fn an_address_that_the_control_plane_does_not_know_is_dialled() {
    let mesh = Mesh::with(Some(&|b| b), None);
    app::http(mesh.server.listen(mesh.app_port), "server");
    assert_eq!(app::get(&mesh.client, mesh.server.addr(mesh.app_port), "/"), (200, "server".into()));
    let addr = mesh.server.addr(mesh.app_port);
    let calls = mesh.control.calls();
    assert!(calls.contains(&format!("Watch {addr}")) && calls.contains(&format!("GetProfile {addr}")), "{calls:?}");
}

#[test]
fn an_address_that_the_control_plane_refuses_is_not_dialled() {
    let mut mesh = Mesh::with(Some(&|b| b), None);
    app::http(mesh.server.listen(mesh.app_port), "server");
    let addr = mesh.server.addr(mesh.app_port);
    mesh.control.set_outbound(addr, Err(Status::invalid_argument("never")));
    let answer = mesh.client.say(addr, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    mesh.client.proxy().wait_log("never");
}

#[test]
fn what_nobody_uses_is_forgotten_and_asked_for_again() {
    let mesh = Mesh::with(Some(&|b| b.env("OUTBOUND_DISCOVERY_IDLE_TIMEOUT", "1ms")), None);
    app::http(mesh.server.listen(mesh.app_port), "server");
    let watch = format!("Watch {}", mesh.vip);
    eventually("a second watch", || {
        assert_eq!(app::get(&mesh.client, mesh.vip, "/"), (200, "server".into()));
        (mesh.control.calls().iter().filter(|c| **c == watch).count() >= 2).then_some(())
    });
}

#[test]
fn metrics_are_scraped_through_the_mesh() {
    let mut mesh = Mesh::two_pods();
    let admin = mesh.server.addr(4191);
    // With a transport header through the inbound proxy, and with TLS straight to the admin server.
    for transport_port in [Some(4143), None] {
        let endpoint = policies::meshed(admin, &mesh.server.identity, transport_port);
        mesh.control.set_outbound(admin, Ok(policies::detect(policies::forward(endpoint))));
        let (status, metrics) = eventually("metrics over the mesh", || {
            Some(app::get(&mesh.client, admin, "/metrics")).filter(|(status, _)| *status == 200)
        });
        assert!(status == 200 && metrics.contains("process_cpu_seconds_total"), "{status} {metrics}");
        for path in ["/proxy-log-level", "/env.json", "/shutdown"] {
            assert_eq!(app::get(&mesh.client, admin, path).0, 403, "{path} is for the pod itself");
        }
    }
    let labels = ["target_port=\"4191\"", "tls=\"true\""];
    mesh.client.proxy().wait_metric("response_total", &labels, |v| v >= 2.0);
}

#[test]
fn whom_a_job_was_told_of_may_end_its_proxy() {
    // The client's identity in this mesh, which the server's proxy was told at injection.
    let probe = Mesh::two_pods();
    let (client, server) = (probe.client.identity.clone(), probe.server.identity.clone());
    drop(probe);
    for (told, expected) in [(server, 403), (client, 200)] {
        let told = |b: support::proxy::Builder| b.env("WEFT_PROXY_SHUTDOWN_IDENTITY", told.clone());
        let mut mesh = Mesh::with(Some(&|b| b), Some(&told));
        let admin = mesh.server.addr(4191);
        let endpoint = policies::meshed(admin, &mesh.server.identity, None);
        mesh.control.set_outbound(admin, Ok(policies::detect(policies::forward(endpoint))));
        eventually("the mesh", || (app::get(&mesh.client, admin, "/metrics").0 == 200).then_some(()));
        // Without TLS nobody is anybody.
        assert_eq!(app::post(&mesh.server, admin, "/shutdown").0, 403);
        assert_eq!(app::post(&mesh.client, admin, "/shutdown").0, expected);
        if expected == 200 {
            assert_eq!(mesh.server.proxy().wait_exit().code(), Some(0));
        }
    }
}

// --- drain ---

#[test]
fn sigterm_and_sigint_end_an_idle_proxy() {
    let control = FakeControl::start();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut proxy = Proxy::builder(&control, NAME).spawn_ready();
        proxy.signal(signal);
        assert_eq!(proxy.wait_exit().code(), Some(0));
        assert!(proxy.log().contains("drained"), "{}", proxy.log());
    }
}

#[test]
fn a_drain_waits_for_connections_until_told_again() {
    let mut mesh = Mesh::with(Some(&|b| b.env("SHUTDOWN_GRACE_PERIOD", "1h")), None);
    let app = mesh.server.listen(mesh.app_port);
    mesh.control.set_outbound(mesh.vip, Ok(policies::opaque(policies::balance(&mesh.service))));
    let mut client = mesh.client.connect(mesh.vip).unwrap();
    client.write_all(b"ping").unwrap();
    let (mut served, _) = app.accept().unwrap();
    let mut octets = [0; 4];
    served.read_exact(&mut octets).unwrap();
    let proxy = mesh.client.proxy();
    proxy.signal(Signal::SIGTERM);
    proxy.wait_log("draining");
    served.write_all(b"pong").unwrap();
    client.read_exact(&mut octets).unwrap();
    assert_eq!(&octets, b"pong", "an open connection goes on");
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(proxy.log().contains("told to end again"), "{}", proxy.log());
}

#[test]
fn a_drain_ends_with_its_grace_period() {
    let mut mesh = Mesh::with(Some(&|b| b.env("SHUTDOWN_GRACE_PERIOD", "100ms")), None);
    let app = mesh.server.listen(mesh.app_port);
    mesh.control.set_outbound(mesh.vip, Ok(policies::opaque(policies::balance(&mesh.service))));
    let mut client = mesh.client.connect(mesh.vip).unwrap();
    client.write_all(b"ping").unwrap();
    let _served = app.accept().unwrap();
    let proxy = mesh.client.proxy();
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(proxy.log().contains("after the grace period"), "{}", proxy.log());
}
