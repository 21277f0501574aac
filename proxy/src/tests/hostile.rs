//! Clients and servers that want what they must not get, and ends that come at a bad moment.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// An HTTP/2 connection of a meshed client straight to the server's proxy, as a peer that is not ours might make it.
async fn peer(ca: &Authority, entry: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let connector = tokio_rustls::TlsConnector::from(ca.issue(CLIENT).client.clone());
    let name = rustls::pki_types::ServerName::try_from(SERVER).unwrap();
    let stream = connector.connect(name, connect(entry).await).await.unwrap();
    let (send, conn) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(conn);
    send
}

fn claims_http1(method: &str, uri: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).header("l5d-orig-proto", "HTTP/1.1").body(full("")).unwrap()
}

#[tokio::test]
async fn a_shared_connection_never_becomes_a_tunnel() {
    let (go, wait) = watch::channel(false);
    let app = app(false, move |request: Request<Incoming>| {
        let mut wait = wait.clone();
        async move {
            if request.uri().path() == "/wait" {
                let _ = wait.wait_for(|go| *go).await;
            }
            Response::new(full("ok"))
        }
    })
    .await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let mut client = peer(&ca, server.inbound(app)).await;
    let first = tokio::spawn({
        let mut client = client.clone();
        async move { soon(client.send_request(claims_http1("GET", "http://web.test/wait"))).await.unwrap() }
    });
    until("the first request is there", || server.metric("request_total", &[]) == 1).await;
    // This application says 200 to everything; that must not make the connection its own.
    let connect = soon(client.send_request(claims_http1("CONNECT", "other.test:443"))).await;
    assert!(connect.is_err() || connect.unwrap().status() == 502);
    go.send_replace(true);
    assert_eq!(text(first.await.unwrap().into_body()).await, "ok");
    let last = soon(client.send_request(claims_http1("GET", "http://web.test/"))).await.unwrap();
    assert_eq!(text(last.into_body()).await, "ok");
}

#[tokio::test]
async fn a_server_cannot_switch_protocols_by_itself() {
    let app = raw_app(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let _ = stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: mine\r\nconnection: upgrade\r\n\r\nmine")
            .await;
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let pair = pair(app).await;
    for entry in [single(app).await.1, pair.entry] {
        let response = soon(http1(entry).await.send_request(get("/"))).await.unwrap();
        assert_eq!(response.status(), 502);
    }
}

#[tokio::test]
async fn only_identified_peers_say_that_a_request_was_http1() {
    let versions = |h2| {
        app(h2, |r: Request<Incoming>| async move {
            let marked = r.headers().contains_key("l5d-orig-proto");
            Response::new(full(format!("{:?} {marked}", r.version())))
        })
    };
    let http1_app = versions(false).await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[http1_app]).await;
    let mut known = peer(&ca, server.inbound(http1_app)).await;
    let response = soon(known.send_request(claims_http1("GET", "http://web.test/"))).await.unwrap();
    assert_eq!(text(response.into_body()).await, "HTTP/1.1 false");
    // Nobody knows this client, so the application gets what it sends: HTTP/2, which it does not speak.
    let mut unknown = http2(server.inbound(http1_app)).await;
    let response = soon(unknown.send_request(claims_http1("GET", "http://web.test/"))).await;
    assert!(response.is_err() || response.unwrap().status() == 502);
    // An application cannot say it to its own proxy either.
    let http2_app = versions(true).await;
    let pair = pair(http2_app).await;
    let response = soon(http2(pair.entry).await.send_request(claims_http1("GET", "http://web.test/"))).await.unwrap();
    assert_eq!(text(response.into_body()).await, "HTTP/2.0 false");
}

#[tokio::test]
async fn requests_that_a_server_refuses_by_going_away_are_sent_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let app = raw_app(move |mut stream| {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        async move {
            if number == 0 {
                // SETTINGS, and once the request's head is there: GOAWAY, nothing was processed.
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                let mut seen = Vec::new();
                while !has_headers(&seen) {
                    stream.read_buf(&mut seen).await.unwrap();
                }
                stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
                let _ = stream.read_to_end(&mut seen).await;
                return;
            }
            let mut conn = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = conn.accept().await {
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data(Bytes::from("ok"), true).unwrap();
            }
        }
    })
    .await;
    let (_proxy, entry) = single(app).await;
    // Not safe to repeat, had it been processed.
    let request = Request::post("http://web.test/").body(full("")).unwrap();
    let response = soon(http2(entry).await.send_request(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), text(response.into_body()).await.as_str()), (200, "ok"));
}

/// True when a client's octets hold a HEADERS frame.
fn has_headers(octets: &[u8]) -> bool {
    let mut rest = octets.get(24..).unwrap_or_default();
    while let [a, b, c, kind, ..] = rest {
        if *kind == 1 {
            return true;
        }
        rest = rest.get(9 + u32::from_be_bytes([0, *a, *b, *c]) as usize..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn a_draining_proxy_serves_what_comes_meanwhile() {
    let (go, wait) = watch::channel(false);
    let handler = move |request: Request<Incoming>| {
        let mut wait = wait.clone();
        async move {
            if request.uri().path() == "/wait" {
                let _ = wait.wait_for(|go| *go).await;
            }
            Response::new(full("done"))
        }
    };
    let (one, two) = (app(false, handler.clone()).await, app(true, handler).await);
    let ca = Authority::new();
    let mut proxy = Proxy::start(&ca, CLIENT, &[one, two], &[]).await;
    for app in [one, two] {
        proxy.discovery.set_outbound(app, forward(Endpoint::plain(app)));
    }
    let mut first = http1(proxy.outbound(one)).await;
    let first = tokio::spawn(async move { soon(first.send_request(get("/wait"))).await.unwrap() });
    until("the request is there", || proxy.metric("request_total", &[]) == 1).await;
    // Begun before the drain, ended in it.
    let mut begun = connect(proxy.outbound(one)).await;
    begun.write_all(b"GET /begun HTTP/1.1\r\nHo").await.unwrap();
    until("the request has begun", || {
        proxy.metric("outbound_http_detect", &[]) > 1 || proxy.metric("tcp_open_total", &["peer=\"src\""]) == 2
    })
    .await;
    proxy.drain.send_replace(Phase::Ending);
    begun.write_all(b"st: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(begun.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
    // New connections: one request each.
    let answer = talk(proxy.outbound(one), b"GET /new HTTP/1.1\r\nHost: a\r\n\r\n").await.to_lowercase();
    assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
    let request = Request::get("http://web.test/").body(full("")).unwrap();
    let response = soon(http2(proxy.outbound(two)).await.send_request(request)).await.unwrap();
    assert_eq!(text(response.into_body()).await, "done");
    go.send_replace(true);
    assert_eq!(text(first.await.unwrap().into_body()).await, "done");
    let thread = proxy.thread.take().unwrap();
    until("the proxy has ended", || thread.is_finished()).await;
}

#[tokio::test]
async fn a_client_that_reads_no_responses_is_asked_for_no_more_requests() {
    let app = app(false, |_| async { Response::new(full(vec![b'x'; 16 * 1024])) }).await;
    let (proxy, entry) = single(app).await;
    let mut stream = connect(entry).await;
    let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    // More than all buffers hold is never answered, as nobody reads the answers.
    let sent = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move {
            while stream.write_all(&requests).await.is_ok() {
                sent.fetch_add(1000, Ordering::SeqCst);
            }
        }
    });
    let count = || proxy.metric("response_total", &[]);
    until("requests are answered", || count() > 20).await;
    // It comes to rest: the count stays the same for many looks.
    let mut last = (0, 0);
    until("it stops", || {
        let now = count();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        last.1 > 100
    })
    .await;
    // Socket buffers hold some megabytes on a loopback; what the proxy holds beyond is bounded.
    assert!(count() * 16 * 1024 < 64 * 1024 * 1024, "{} of {}", count(), sent.load(Ordering::SeqCst));
    writer.abort();
}

#[tokio::test]
async fn ports_that_were_only_probed_are_forgotten() {
    let app = raw_app(|mut stream| async move {
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let ca = Authority::new();
    let env = [("INBOUND_DISCOVERY_IDLE_TIMEOUT", "10ms")];
    let server = Proxy::start_with(&ca, SERVER, &[], &[app], &env).await;
    let probe = connect(server.inbound(app)).await;
    until("the policy is watched", || server.discovery.inbound_watchers(app.port()) > 0).await;
    drop(probe);
    until("nobody watches it", || server.discovery.inbound_watchers(app.port()) == 0).await;
}

#[tokio::test]
async fn names_that_clients_make_up_make_few_series() {
    let app = raw_app(|_| async {}).await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    for n in 0..100 {
        let name = rustls::pki_types::ServerName::try_from(format!("n{n}.test")).unwrap();
        let mut tls = rustls::ClientConnection::new(ca.issue(CLIENT).client.clone(), name).unwrap();
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).unwrap();
        let mut stream = connect(server.inbound(app)).await;
        stream.write_all(&hello).await.unwrap();
        let _ = soon(stream.read(&mut [0])).await;
    }
    assert_eq!(server.metric("tcp_open_total", &["peer=\"src\"", "tls=\"opaque\""]), 100);
    let text = server.metrics.render();
    let series = text.lines().filter(|l| l.starts_with("tcp_open_total") && l.contains("tls=\"opaque\"")).count();
    assert!((2..=65).contains(&series), "{series}");
}

#[tokio::test]
async fn requests_do_not_wait_for_ever_for_a_stream() {
    // This server never says how many streams it takes, and answers nobody.
    let app = raw_app(|mut stream| async move { while let Ok(1..) = stream.read(&mut [0; 4096]).await {} }).await;
    let (proxy, entry) = single(app).await;
    let queue = Queue { capacity: 100, failfast: Duration::from_millis(50) };
    let endpoint = Arc::new(Endpoint::plain(app));
    let policy = OutboundPolicy::forward(Meta::default_named("test"), endpoint, queue, Duration::from_secs(10));
    proxy.discovery.set_outbound(app, policy);
    let client = http2(entry).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let calls: Vec<_> = (0..110)
        .map(|_| {
            let (mut client, tell) = (client.clone(), tell.clone());
            tokio::spawn(async move {
                let request = Request::get("http://web.test/").body(full("")).unwrap();
                if let Ok(response) = client.send_request(request).await {
                    let _ = tell.send(response.status().as_u16());
                }
            })
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(soon(told.recv()).await, Some(504));
    }
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn clients_that_give_up_do_not_cost_a_peer_its_connection() {
    let app = app(true, |request: Request<Incoming>| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        Response::new(full("ok"))
    })
    .await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let connector = tokio_rustls::TlsConnector::from(ca.issue(CLIENT).client.clone());
    let name = rustls::pki_types::ServerName::try_from(SERVER).unwrap();
    let stream = connector.connect(name, connect(server.inbound(app)).await).await.unwrap();
    let (client, conn) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(conn);
    let mut client = soon(client.ready()).await.unwrap();
    let request = |path: &str| http::Request::get(format!("http://web.test{path}")).body(()).unwrap();
    for round in 1..=10u64 {
        let mut given_up = Vec::new();
        for _ in 0..50 {
            client = soon(client.ready()).await.unwrap();
            given_up.push(client.send_request(request("/never"), true).unwrap().0);
        }
        until("they are there", || server.metric("request_total", &[]) == round * 50).await;
        drop(given_up);
    }
    until("all were given up", || server.metric("response_total", &["error=\"canceled\""]) == 500).await;
    let mut client = soon(client.ready()).await.unwrap();
    let (response, _) = client.send_request(request("/"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
}
