//! What happens when something is missing, breaks, or is malformed. The proxy goes on in any case.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::policy::{
    Backend, Distribution, Filter, HttpRoute, HttpRoutes, HttpRule, Load, OpaqueRoutes, OutboundProtocol, Ratio,
    Target, Timeouts,
};

/// A port where nobody listens, for as long as the socket lives.
fn nobody() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

fn routes(rule: HttpRule) -> OutboundPolicy {
    let meta = Meta::default_named("test");
    let http = Arc::new(HttpRoutes {
        grpc: false,
        accrual: None,
        routes: vec![HttpRoute { meta: meta.clone(), hosts: Vec::new(), rules: vec![rule] }],
    });
    let protocol = OutboundProtocol::Detect {
        timeout: Duration::from_secs(10),
        opaque: Arc::new(OpaqueRoutes::default()),
        http1: http.clone(),
        http2: http,
    };
    OutboundPolicy { meta, protocol }
}

fn balanced(path: &str, failfast: Duration) -> Distribution {
    queued(path, Queue { capacity: 2, failfast })
}

fn queued(path: &str, queue: Queue) -> Distribution {
    Distribution::First(vec![Arc::new(Backend {
        meta: Meta::default_named("backend"),
        target: Target::Balance { path: path.into(), load: Load::default() },
        queue,
        filters: Vec::new(),
    })])
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_502_and_says_so() {
    let (_socket, addr) = nobody();
    let (proxy, entry) = single(addr).await;
    let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 502);
    let reason = response.headers()["l5d-proxy-error"].to_str().unwrap().to_owned();
    assert!(reason.contains(&addr.to_string()) && reason.contains("connect"), "{reason}");
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(proxy.metric("outbound_http_errors_total", &["error=\"i/o\""]), 1);
    // gRPC is told in its own way.
    let request = Request::post("http://web.test/").header("content-type", "application/grpc").body(full("")).unwrap();
    let (_socket, addr) = nobody();
    let (_proxy, entry) = single(addr).await;
    let response = soon(http2(entry).await.send_request(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
}

#[tokio::test]
async fn requests_go_to_endpoints_that_live() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let ((_one, dead), (_two, dead_too)) = (nobody(), nobody());
    let (proxy, entry) = single(app).await;
    proxy
        .discovery
        .set_outbound(app, routes(HttpRule { backends: balanced("web.test:80", PATIENCE), ..HttpRule::default() }));
    proxy.discovery.set_endpoints("web.test:80", [dead, app, dead_too].map(Endpoint::plain).into());
    for _ in 0..20 {
        let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    assert_eq!(proxy.metric("request_total", &["authority=\"web.test\""]), 20);
    let ready = proxy.metric("outbound_http_balancer_endpoints", &["endpoint_state=\"ready\""]);
    let pending = proxy.metric("outbound_http_balancer_endpoints", &["endpoint_state=\"pending\""]);
    assert_eq!(ready + pending, 3);
}

/// An endpoint whose proxy lives and whose application does not listen, such as one that starts anew.
#[tokio::test]
async fn requests_that_no_application_has_seen_go_to_another_endpoint() {
    let (_socket, dead) = nobody();
    let app = app(true, |request: Request<Incoming>| async move {
        let body = text(request.into_body()).await;
        Response::new(full(body))
    })
    .await;
    let ca = Authority::new();
    let (broken, whole) = (Proxy::start(&ca, SERVER, &[], &[dead]).await, Proxy::start(&ca, SERVER, &[], &[app]).await);
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    client
        .discovery
        .set_outbound(app, routes(HttpRule { backends: balanced("web.test:80", PATIENCE), ..HttpRule::default() }));
    client.discovery.set_endpoints("web.test:80", vec![meshed(dead, &broken), meshed(app, &whole)]);
    let mut connection = http2(client.outbound(app)).await;
    let large = "x".repeat(50_000);
    for body in ["", "a small body", &large] {
        for _ in 0..20 {
            let request = Request::post("http://web.test/").body(full(body.to_owned())).unwrap();
            let response = soon(connection.send_request(request)).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(response.headers().keys().all(|name| !name.as_str().starts_with("l5d-proxy")));
            assert_eq!(text(response.into_body()).await, body);
        }
    }
    assert!(broken.metric("inbound_http_errors_total", &["error=\"i/o\""]) > 0, "the broken one was not tried");
    // When it is the only one, that is the answer.
    client.discovery.set_endpoints("web.test:80", vec![meshed(dead, &broken)]);
    until("the last endpoint is known", || {
        client.metric("outbound_http_balancer_endpoints", &["endpoint_state=\"ready\""])
            + client.metric("outbound_http_balancer_endpoints", &["endpoint_state=\"pending\""])
            == 1
    })
    .await;
    let request = Request::post("http://web.test/").body(full("nobody")).unwrap();
    let response = soon(connection.send_request(request)).await.unwrap();
    assert!([502, 504].contains(&response.status().as_u16()), "{response:?}");
    assert!(!response.headers().contains_key("l5d-proxy-request"));
}

/// As when the only pod of a service is replaced: its application has ended, and the news of the next one is on its way.
#[tokio::test]
async fn requests_that_no_application_has_seen_wait_for_the_next_endpoint() {
    let (_socket, dead) = nobody();
    let app = app(true, |request: Request<Incoming>| async move {
        let body = text(request.into_body()).await;
        Response::new(full(body))
    })
    .await;
    let ca = Authority::new();
    let (ended, next) = (Proxy::start(&ca, SERVER, &[], &[dead]).await, Proxy::start(&ca, SERVER, &[], &[app]).await);
    let client = Proxy::start(&ca, CLIENT, &[app], &[]).await;
    let backends = queued("web.test:80", Queue { capacity: 40, failfast: PATIENCE });
    client.discovery.set_outbound(app, routes(HttpRule { backends, ..HttpRule::default() }));
    client.discovery.set_endpoints("web.test:80", vec![meshed(dead, &ended)]);
    let connection = http2(client.outbound(app)).await;
    let requests: Vec<_> = (0..40)
        .map(|number| {
            let mut connection = connection.clone();
            tokio::spawn(async move {
                let body = format!("body {number}");
                let request = Request::post("http://web.test/").body(full(body.clone())).unwrap();
                let response = soon(connection.send_request(request)).await.unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(text(response.into_body()).await, body);
            })
        })
        .collect();
    until("the one that has ended was tried", || ended.metric("inbound_http_errors_total", &["error=\"i/o\""]) > 0)
        .await;
    client.discovery.set_endpoints("web.test:80", vec![meshed(app, &next)]);
    for request in requests {
        soon(request).await.unwrap();
    }
    // They do not wait for ever.
    let backends = balanced("web.test:80", Duration::from_millis(300));
    client.discovery.set_outbound(app, routes(HttpRule { backends, ..HttpRule::default() }));
    client.discovery.set_endpoints("web.test:80", vec![meshed(dead, &ended)]);
    loop {
        // What has changed is seen with some delay.
        let mut connection = http2(client.outbound(app)).await;
        let response = soon(connection.send_request(get("http://web.test/"))).await.unwrap();
        if response.status() != 200 {
            assert!([502, 504].contains(&response.status().as_u16()), "{response:?}");
            break;
        }
    }
}

/// As when a pod ends while a client takes its time: its connection is not the server's that has ended.
#[tokio::test]
async fn a_server_that_ends_before_a_slow_client_has_spoken_costs_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let addr = raw_app(move |mut stream| {
        let count = count.clone();
        async move {
            if count.fetch_add(1, Ordering::SeqCst) > 0 {
                read_until(&mut stream, "\r\n\r\n").await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let (_proxy, entry) = single(addr).await;
    let mut client = TcpStream::connect(entry).await.unwrap();
    until("the server was asked, ended, and was asked again", || asked.load(Ordering::SeqCst) > 1).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n").await.unwrap();
    let answer = soon(read_until(&mut client, "ok")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// What proxies say to each other is theirs: an application that says it can have nothing repeated.
#[tokio::test]
async fn applications_do_not_speak_for_their_proxies() {
    let seen = Arc::new(AtomicUsize::new(0));
    let ca = Authority::new();
    let mut servers = Vec::new();
    for _ in 0..3 {
        let seen = seen.clone();
        let addr = app(true, move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
            let response = Response::builder()
                .header("l5d-proxy-request", "unseen")
                .header("l5d-proxy-connection", "close")
                .header("l5d-proxy-error", "nothing is wrong");
            async move { response.body(full("answer")).unwrap() }
        })
        .await;
        servers.push((addr, Proxy::start(&ca, SERVER, &[], &[addr]).await));
    }
    let any = servers[0].0;
    let client = Proxy::start(&ca, CLIENT, &[any], &[]).await;
    client
        .discovery
        .set_outbound(any, routes(HttpRule { backends: balanced("web.test:80", PATIENCE), ..HttpRule::default() }));
    client.discovery.set_endpoints("web.test:80", servers.iter().map(|(addr, server)| meshed(*addr, server)).collect());
    let mut connection = http2(client.outbound(any)).await;
    for count in 1..=10 {
        let response = soon(connection.send_request(get("http://web.test/"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("l5d-proxy")), "{response:?}");
        assert_eq!(text(response.into_body()).await, "answer");
        assert_eq!(seen.load(Ordering::SeqCst), count, "a request was repeated");
    }
}

/// An application that dies over each request.
#[tokio::test]
async fn a_request_that_kills_is_repeated_once_if_that_does_no_harm() {
    let seen = Arc::new(AtomicUsize::new(0));
    let killed = |seen: Arc<AtomicUsize>| {
        raw_app(move |mut stream| {
            let seen = seen.clone();
            async move {
                read_until(&mut stream, "\r\n\r\n").await;
                seen.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let apps = [killed(seen.clone()).await, killed(seen.clone()).await, killed(seen.clone()).await];
    let alive = app(false, |_| async { Response::new(full("ok")) }).await;
    let ca = Authority::new();
    let mut servers = Vec::new();
    for addr in apps.into_iter().chain([alive]) {
        servers.push((addr, Proxy::start(&ca, SERVER, &[], &[addr]).await));
    }
    let client = Proxy::start(&ca, CLIENT, &[alive], &[]).await;
    client
        .discovery
        .set_outbound(alive, routes(HttpRule { backends: balanced("web.test:80", PATIENCE), ..HttpRule::default() }));
    let set = |servers: &[(SocketAddr, Proxy)]| {
        let endpoints = servers.iter().map(|(addr, server)| meshed(*addr, server)).collect();
        client.discovery.set_endpoints("web.test:80", endpoints);
    };
    // Only those that die: two of three.
    set(&servers[..3]);
    let response = soon(http1(client.outbound(alive)).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    // One that dies and one that lives: nobody notices, but for what might do harm.
    set(&servers[2..]);
    let entry = client.outbound(alive);
    let ask = async |method: &str| {
        let request = Request::builder().method(method).uri("/").header("host", "web.test").body(full("")).unwrap();
        soon(http1(entry).await.send_request(request)).await.unwrap().status()
    };
    while seen.load(Ordering::SeqCst) == 2 {
        assert_eq!(ask("GET").await, 200);
    }
    while ask("POST").await == 200 {}
}

#[tokio::test]
async fn requests_wait_for_endpoints_but_not_for_ever() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let (proxy, entry) = single(app).await;
    let wait = |limit| routes(HttpRule { backends: balanced("web.test:80", limit), ..HttpRule::default() });
    proxy.discovery.set_outbound(app, wait(PATIENCE));
    proxy.discovery.set_endpoints("web.test:80", Vec::new());
    let waiting = tokio::spawn(async move { http1(entry).await.send_request(get("/")).await.unwrap() });
    until("the request waits", || proxy.metric("tcp_open_connections", &["peer=\"src\""]) == 1).await;
    proxy.discovery.set_endpoints("web.test:80", vec![Endpoint::plain(app)]);
    assert_eq!(soon(waiting).await.unwrap().status(), 200);
    proxy.discovery.set_endpoints("web.test:80", Vec::new());
    proxy.discovery.set_outbound(app, wait(Duration::from_millis(20)));
    loop {
        // Endpoints that are gone are seen with some delay.
        let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
        if response.status() != 200 {
            assert_eq!(response.status(), 504);
            assert_eq!(response.headers()["l5d-proxy-error"], "web.test:80: no endpoints");
            break;
        }
    }
}

/// A policy that balances over `web.test:80` and has many requests wait so long.
fn patient(failfast: Duration) -> OutboundPolicy {
    let backends = Distribution::First(vec![Arc::new(Backend {
        meta: Meta::default_named("backend"),
        target: Target::Balance { path: "web.test:80".into(), load: Load::default() },
        queue: Queue { capacity: 100, failfast },
        filters: Vec::new(),
    })]);
    routes(HttpRule { backends, ..HttpRule::default() })
}

#[tokio::test]
async fn requests_outlive_the_last_endpoint() {
    let (one, two) = {
        let answer = |_| async { Response::new(full("ok")) };
        (app(false, answer).await, app(true, answer).await)
    };
    // It is connected to, but says nothing that makes sense in TLS: as good as refused, and it can be counted.
    let attempts = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = attempts.clone();
    let dead = raw_app(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async {}
    })
    .await;
    let ca = Authority::new();
    let env = [("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", "1ms"), ("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", "1ms")];
    let proxy = Proxy::start_with(&ca, CLIENT, &[one, two], &[], &env).await;
    let broken = || Endpoint {
        identity: Some(Identity { name: SERVER.into(), server_name: SERVER.into() }),
        ..Endpoint::plain(dead)
    };
    for (app, h2) in [(one, false), (two, true)] {
        attempts.store(0, std::sync::atomic::Ordering::SeqCst);
        proxy.discovery.set_outbound(app, patient(PATIENCE));
        proxy.discovery.set_endpoints("web.test:80", vec![broken()]);
        let entry = proxy.outbound(app);
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                tokio::spawn(async move {
                    if h2 {
                        let request = Request::get("http://web.test/").body(full("")).unwrap();
                        http2(entry).await.send_request(request).await.unwrap()
                    } else {
                        http1(entry).await.send_request(get("/")).await.unwrap()
                    }
                })
            })
            .collect();
        // More often than a request is tried on endpoints of which there are many.
        until("they are refused again and again", || attempts.load(std::sync::atomic::Ordering::SeqCst) > 200).await;
        proxy.discovery.set_endpoints("web.test:80", vec![Endpoint::plain(app)]);
        for response in waiting {
            assert_eq!(soon(response).await.unwrap().status(), 200);
        }
    }
    assert_eq!(proxy.metric("outbound_http_errors_total", &[]), 0);
}

#[tokio::test]
async fn requests_that_have_outlived_every_endpoint_say_why_they_fail() {
    let (_socket, dead) = nobody();
    let (proxy, entry) = single(dead).await;
    proxy.discovery.set_outbound(dead, patient(Duration::from_millis(300)));
    proxy.discovery.set_endpoints("web.test:80", vec![Endpoint::plain(dead)]);
    let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 504);
    let reason = response.headers()["l5d-proxy-error"].to_str().unwrap();
    assert!(reason.starts_with("web.test:80: its endpoint cannot be connected to (endpoint "), "{reason}");
    assert!(reason.contains(&dead.to_string()) && reason.contains("connect: Connection refused"), "{reason}");
}

#[tokio::test]
async fn all_who_come_before_discovery_has_answered_wait_for_it() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let (proxy, entry) = single(app).await;
    // The queue takes two.
    let rule = HttpRule { backends: balanced("web.test:80", PATIENCE), ..HttpRule::default() };
    proxy.discovery.set_outbound(app, routes(rule));
    let waiting: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { http1(entry).await.send_request(get("/")).await.unwrap() }))
        .collect();
    until("the requests are there", || proxy.metric("tcp_open_connections", &["peer=\"src\""]) == 10).await;
    proxy.discovery.set_endpoints("web.test:80", vec![Endpoint::plain(app)]);
    for response in waiting {
        assert_eq!(soon(response).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_is_told_to_the_client() {
    let app = raw_app(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        if head.starts_with("POST /part") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart").await.unwrap();
        } else if head.starts_with("POST /chunk") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n").await.unwrap();
        } else if head.starts_with("POST /garbage") {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        for path in ["/", "/garbage"] {
            let answer = talk(entry, format!("POST {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{path}: {answer}");
        }
        // What has begun well and ends badly must not look complete.
        let answer = talk(entry, b"POST /part HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            answer.is_empty() || answer.contains("content-length: 10") && !answer.ends_with("0\r\n\r\n"),
            "{answer}"
        );
        let answer = talk(entry, b"POST /chunk HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_speak_http2_is_named() {
    let app = raw_app(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        // What the client still says is of no interest, but no reason to reset the connection.
        while stream.read_u8().await.is_ok() {}
    })
    .await;
    let (_proxy, entry) = single(app).await;
    let request = Request::get("http://web.test/").body(full("")).unwrap();
    let response = soon(http2(entry).await.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 502);
    let reason = response.headers()["l5d-proxy-error"].to_str().unwrap();
    assert!(reason.contains(&app.to_string()) && reason.contains("HTTP/2"), "{reason}");
}

#[tokio::test]
async fn a_connection_that_the_server_closes_while_idle_costs_no_request() {
    // One request a connection, without saying so.
    let app = raw_app(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(b) => head.push(b),
                Err(_) => return,
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let (_proxy, entry) = single(app).await;
    let mut client = http1(entry).await;
    for _ in 0..20 {
        let response = soon(client.send_request(get("/"))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(text(response.into_body()).await, "ok");
    }
}

#[tokio::test]
async fn time_limits_of_routes_hold() {
    let app = app(false, |_| async {
        std::future::pending::<()>().await;
        Response::new(full(""))
    })
    .await;
    let (proxy, entry) = single(app).await;
    let backends = Distribution::First(vec![Arc::new(Backend {
        meta: Meta::default_named("backend"),
        target: Target::Forward(Arc::new(Endpoint::plain(app))),
        queue: Queue::default(),
        filters: Vec::new(),
    })]);
    let short = Some(Duration::from_millis(30));
    for timeouts in [
        Timeouts { request: short, ..Timeouts::default() },
        Timeouts { response: short, ..Timeouts::default() },
        Timeouts { idle: short, ..Timeouts::default() },
    ] {
        let rule = HttpRule { timeouts, backends: backends.clone(), ..HttpRule::default() };
        proxy.discovery.set_outbound(app, routes(rule));
        let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
        assert_eq!(response.status(), 504);
    }
    assert_eq!(proxy.metric("outbound_http_errors_total", &["error=\"response timeout\""]), 3);
    assert_eq!(proxy.metric("response_total", &["error=\"timeout\"", "classification=\"failure\""]), 3);
}

#[tokio::test]
async fn filters_answer_and_change() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let (proxy, entry) = single(app).await;
    let always = Ratio { numerator: 1, denominator: 1 };
    let never = Ratio { numerator: 0, denominator: 1 };
    let fail = |ratio| Filter::FailHttp { status: 418, message: "teapot".into(), ratio };
    proxy
        .discovery
        .set_outbound(app, routes(HttpRule { filters: vec![fail(never), fail(always)], ..HttpRule::default() }));
    let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 418);
    proxy.discovery.set_outbound(app, routes(HttpRule::default()));
    let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 500);
    assert!(response.headers()["l5d-proxy-error"].to_str().unwrap().contains("no backend"));
}

#[tokio::test]
async fn malformed_input_never_ends_the_proxy() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let pair = pair(app).await;
    let mut inputs: Vec<(Vec<u8>, &str)> = vec![
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), "400"),
        (b"GET / HTTP/1.1\r\n\r\n".into(), "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n".into(), "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(), "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), "501"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(), "400"),
        ([b"GET / HTTP/1.1\r\nHost: a\r\nx: ".to_vec(), vec![b'a'; 200_000], b"\r\n\r\n".to_vec()].concat(), "431"),
        ([b"GET /".to_vec(), vec![b'a'; 200_000], b" HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()].concat(), ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage that is no frame".into(), ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00".into(), ""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage".into(), ""),
    ];
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..50 {
        let len = random.usize(1..2000);
        let mut octets: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
        if random.bool() {
            octets.splice(0..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
        inputs.push((octets, ""));
    }
    for entry in [pair.entry, pair.server.inbound(app), pair.server.direct] {
        for (input, status) in &inputs {
            let mut stream = TcpStream::connect(entry).await.unwrap();
            let _ = stream.write_all(input).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = soon(stream.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer);
            if !status.is_empty() && entry == pair.entry {
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
            }
        }
        let response = soon(http1(pair.entry).await.send_request(get("/"))).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test]
async fn a_client_that_leaves_leaves_nothing_behind() {
    let app = app(false, |_| async {
        std::future::pending::<()>().await;
        Response::new(full(""))
    })
    .await;
    let pair = pair(app).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = connect(pair.entry).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // A client that only ends its side still waits; see `half_close`.
        crate::net::abort_on_close(&client);
        clients.push(client);
    }
    until("the requests are there", || pair.server.metric("request_total", &[]) == 10).await;
    drop(clients);
    for proxy in [&pair.client, &pair.server] {
        until("all are counted as cancelled", || proxy.metric("response_total", &["error=\"canceled\""]) == 10).await;
    }
    // Connections to the application, which cannot be used again, are closed.
    until("they are closed", || {
        pair.server.metric("tcp_open_connections", &["peer=\"dst\""]) == 0
            && pair.client.metric("tcp_open_connections", &["peer=\"src\""]) == 0
    })
    .await;
}
