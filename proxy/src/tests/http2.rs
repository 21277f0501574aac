//! HTTP/2 and gRPC-shaped traffic.

use hyper::body::Frame;

use super::*;

fn grpc_end(status: &str) -> Frame<Bytes> {
    Frame::trailers([("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect())
}

fn grpc_request(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://web.test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// Answers `/ok`, `/unknown` and `/early` as a gRPC service would.
async fn grpc(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/early" {
        let response = Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
        return response.body(full("")).unwrap();
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let frames = [Frame::data(body), grpc_end(if path == "/ok" { "0" } else { "2" })];
    let stream = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(http_body_util::StreamBody::new(stream).boxed())
        .unwrap()
}

#[tokio::test]
async fn grpc_statuses_pass_in_trailers_and_are_counted() {
    let app = app(true, grpc).await;
    let pair = pair(app).await;
    let (one, entry) = single(app).await;
    for entry in [entry, pair.entry] {
        let mut client = http2(entry).await;
        for (path, status) in [("/ok", "0"), ("/unknown", "2")] {
            let response = soon(client.send_request(grpc_request(path, full("hello")))).await.unwrap();
            let body = soon(response.into_body().collect()).await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], status);
            assert_eq!(body.to_bytes(), "hello");
        }
        let response = soon(client.send_request(grpc_request("/early", full("hello")))).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "5");
    }
    for proxy in [&one, &pair.client, &pair.server] {
        let count = |class: &str, status: &str| {
            proxy.metric(
                "response_total",
                &[&format!("classification=\"{class}\""), &format!("grpc_status=\"{status}\"")],
            )
        };
        until("responses are classified", || count("success", "0") == 1 && count("failure", "2") == 1).await;
    }
}

#[tokio::test]
async fn streams_flow_both_ways_at_once() {
    let app = app(true, |request| async move {
        let body = request.into_body().map_err(|_| -> Infallible { panic!("broken") });
        Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
    })
    .await;
    let pair = pair(app).await;
    let mut client = http2(pair.entry).await;
    let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)).boxed();
    let response = soon(client.send_request(grpc_request("/chat", body))).await.unwrap();
    let mut back = response.into_body();
    for n in 0..100 {
        tx.send(Ok(Frame::data(Bytes::from(format!("message {n}"))))).await.unwrap();
        let frame = soon(back.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("message {n}"));
    }
    tx.send(Ok(grpc_end("0"))).await.unwrap();
    drop(tx);
    let last = soon(back.frame()).await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap()["grpc-status"], "0");
    assert!(soon(back.frame()).await.is_none());
}

#[tokio::test]
async fn many_streams_at_once() {
    let app = app(true, grpc).await;
    let pair = pair(app).await;
    let client = http2(pair.entry).await;
    let calls: Vec<_> = (0..300)
        .map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let request = grpc_request("/ok", full(format!("call {n}")));
                let response = soon(client.send_request(request)).await.unwrap();
                let body = soon(response.into_body().collect()).await.unwrap();
                assert_eq!(body.to_bytes(), format!("call {n}"));
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(pair.client.metric("tcp_open_total", &["peer=\"dst\""]), 1);
}

#[tokio::test]
async fn a_client_that_cancels_cancels_the_server() {
    let (started_tx, mut started) = mpsc::unbounded_channel();
    let (cancelled_tx, mut cancelled) = mpsc::unbounded_channel();
    let app = app(true, move |request| {
        let (started, cancelled) = (started_tx.clone(), cancelled_tx.clone());
        async move {
            started.send(()).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            cancelled.send(()).unwrap();
            Response::new(full(""))
        }
    })
    .await;
    let pair = pair(app).await;
    let mut client = http2(pair.entry).await;
    let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body = http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)).boxed();
    let call = tokio::spawn(async move { client.send_request(grpc_request("/hang", body)).await });
    tx.send(Ok(Frame::data(Bytes::from("x")))).await.unwrap();
    // A proxy that has it may still be connecting to the application, which then never hears of it.
    soon(started.recv()).await.unwrap();
    call.abort();
    drop(call);
    soon(cancelled.recv()).await.unwrap();
    until("it is counted", || pair.server.metric("response_total", &["error=\"canceled\""]) == 1).await;
    drop(tx);
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_client() {
    let app = raw_app(|stream| async move {
        let mut conn = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = conn.accept().await {
            if request.uri().path() == "/late" {
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data(Bytes::from("part"), false).unwrap();
                tokio::spawn(async move {
                    // The client has seen the part when it asks for this.
                    let mut body = request.into_body();
                    let _ = body.data().await;
                    send.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
                });
            } else {
                respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
            }
        }
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        let (mut client, conn) = h2::client::handshake(TcpStream::connect(entry).await.unwrap()).await.unwrap();
        tokio::spawn(conn);
        let request = |path: &str| http::Request::post(format!("http://web.test{path}")).body(()).unwrap();
        let (response, _) = client.send_request(request("/now"), true).unwrap();
        let error = soon(response).await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
        let (response, mut send) = client.send_request(request("/late"), false).unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), "part");
        send.send_data(Bytes::from("now"), false).unwrap();
        let error = soon(body.data()).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    }
}

#[tokio::test]
async fn a_server_that_goes_away_is_replaced_without_loss() {
    let app = raw_app(|stream| async move {
        let mut conn = h2::server::handshake(stream).await.unwrap();
        // Each connection serves one request and says goodbye.
        if let Some(Ok((_, mut respond))) = conn.accept().await {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            send.send_data(Bytes::from("ok"), true).unwrap();
            conn.graceful_shutdown();
        }
        while let Some(Ok((_, mut respond))) = conn.accept().await {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let pair = pair(app).await;
    let client = http2(pair.entry).await;
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let response = soon(client.send_request(grpc_request("/", full("")))).await.unwrap();
                assert_eq!(text(response.into_body()).await, "ok");
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_server_with_few_streams_gets_more_connections() {
    let (open, opened) = watch::channel(0);
    let app = raw_app(move |stream| {
        let open = open.clone();
        async move {
            open.send_modify(|n| *n += 1);
            let mut conn = h2::server::Builder::new().max_concurrent_streams(1).handshake(stream).await.unwrap();
            let all = open.subscribe();
            while let Some(Ok((_, mut respond))) = conn.accept().await {
                let mut all = all.clone();
                tokio::spawn(async move {
                    // Nobody is answered before there are two connections.
                    let _ = all.wait_for(|n| *n >= 2).await;
                    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                    send.send_data(Bytes::from("ok"), true).unwrap();
                });
            }
        }
    })
    .await;
    let (_proxy, entry) = single(app).await;
    let client = http2(entry).await;
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let request = Request::get("http://web.test/").body(full("")).unwrap();
                let response = soon(client.send_request(request)).await.unwrap();
                assert_eq!(text(response.into_body()).await, "ok");
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert!(*opened.borrow() >= 2);
}

#[tokio::test]
async fn a_draining_proxy_finishes_what_it_has() {
    let (go, wait) = watch::channel(false);
    let app = app(true, move |_| {
        let mut wait = wait.clone();
        async move {
            let _ = wait.wait_for(|go| *go).await;
            Response::new(full("done"))
        }
    })
    .await;
    let (mut proxy, entry) = single(app).await;
    let (mut client, conn) = h2::client::handshake(TcpStream::connect(entry).await.unwrap()).await.unwrap();
    let conn = tokio::spawn(conn);
    let request = || http::Request::get("http://web.test/").body(()).unwrap();
    let (response, _) = client.send_request(request(), true).unwrap();
    until("the request is there", || proxy.metric("request_total", &[]) == 1).await;
    proxy.drain.send_replace(Phase::Ending);
    // GOAWAY: new streams are refused, the old one goes on.
    loop {
        let refused = match soon(std::future::poll_fn(|cx| client.poll_ready(cx))).await {
            Err(_) => true,
            Ok(()) => match client.send_request(request(), true) {
                Err(_) => true,
                Ok((response, _)) => {
                    drop(response);
                    false
                }
            },
        };
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // While a request takes its time, the proxy must not.
    proxy.rests().await;
    go.send_replace(true);
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "done");
    drop((client, body));
    let _ = soon(conn).await.unwrap();
    let thread = proxy.thread.take().unwrap();
    until("the proxy has ended", || thread.is_finished()).await;
}

#[tokio::test]
async fn http2_clients_reach_http1_servers_only_as_they_ask() {
    // A gRPC client behind which there is an HTTP/1 application gets an error, not silence.
    let app = app(false, |_| async { Response::new(full("one")) }).await;
    let (_proxy, entry) = single(app).await;
    let mut client = http2(entry).await;
    let request = Request::get("http://web.test/").body(full("")).unwrap();
    let response = soon(client.send_request(request)).await;
    match response {
        Ok(response) => assert_eq!(response.status(), 502),
        Err(error) => assert!(error.is_closed() || !error.is_timeout(), "{error:?}"),
    }
}
