//! Ends of one direction: who has said all may still listen.

use super::*;

/// One proxy and two, in front of `app`.
async fn entries(app: SocketAddr) -> [(SocketAddr, Vec<Proxy>); 2] {
    let (one, entry) = single(app).await;
    let pair = pair(app).await;
    [(entry, vec![one]), (pair.entry, vec![pair.client, pair.server])]
}

/// An application that answers when told to, with a body larger than buffers, and tells of requests that begin and of
/// bodies that break off.
async fn slow_app(go: watch::Receiver<bool>, tell: mpsc::UnboundedSender<&'static str>) -> SocketAddr {
    app(false, move |request: Request<Incoming>| {
        let (mut go, tell) = (go.clone(), tell.clone());
        async move {
            let path = request.uri().path().to_owned();
            let _ = tell.send("begun");
            let Ok(body) = request.into_body().collect().await else {
                let _ = tell.send("broken");
                return Response::new(full(""));
            };
            let _ = go.wait_for(|go| *go).await;
            let text = [path.as_bytes(), &body.to_bytes(), &vec![b'x'; 8_000_000]].concat();
            Response::new(full(text))
        }
    })
    .await
}

/// Sends octets and ends the sending side.
async fn say(entry: SocketAddr, octets: &[u8]) -> TcpStream {
    let mut stream = connect(entry).await;
    stream.write_all(octets).await.unwrap();
    stream.shutdown().await.unwrap();
    stream
}

#[tokio::test]
async fn a_client_that_has_said_all_gets_its_whole_response() {
    for request in [
        &b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"GET /a HTTP/1.0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ] {
        let (go, wait) = watch::channel(false);
        let app = slow_app(wait, mpsc::unbounded_channel().0).await;
        for (entry, proxies) in entries(app).await {
            let mut stream = say(entry, request).await;
            let last = proxies.last().unwrap();
            until("the request is there", || last.metric("request_total", &[]) == 1).await;
            // Each proxy has seen what there is to see, and does not turn round and round over it.
            for proxy in &proxies {
                proxy.rests().await;
            }
            go.send_replace(true);
            let mut answer = Vec::new();
            soon(stream.read_to_end(&mut answer)).await.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            let body = answer.split_once("\r\n\r\n").unwrap().1;
            let expected = if request.starts_with(b"POST") { "/abody" } else { "/a" };
            assert_eq!((&body[..expected.len()], body.len()), (expected, expected.len() + 8_000_000));
            go.send_replace(false);
            for proxy in &proxies {
                until("it is counted", || proxy.metric("response_total", &["classification=\"success\""]) == 1).await;
                assert_eq!(proxy.metric("response_total", &["error=\"canceled\""]), 0);
                until("connections end", || proxy.metric("tcp_open_connections", &["peer=\"src\""]) <= 1).await;
            }
        }
    }
}

#[tokio::test]
async fn requests_that_wait_their_turn_are_answered_after_the_clients_end() {
    let app =
        app(
            false,
            |request: Request<Incoming>| async move { Response::new(full(format!("<{}>", request.uri().path()))) },
        )
        .await;
    for (entry, _proxies) in entries(app).await {
        let mut requests = Vec::new();
        for n in 0..5 {
            requests.extend(format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes());
        }
        // Of the last one there is only the beginning.
        requests.extend(b"GET /5 HTTP/1.1\r\nhost");
        let mut stream = say(entry, &requests).await;
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        let bodies: Vec<_> = answer.split('<').skip(1).map(|part| part.split('>').next().unwrap()).collect();
        assert_eq!(bodies, ["/0", "/1", "/2", "/3", "/4"], "{answer}");
    }
}

#[tokio::test]
async fn an_end_in_the_middle_of_a_request_cancels_it() {
    let (_go, wait) = watch::channel(false);
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = slow_app(wait, tell).await;
    for (entry, proxies) in entries(app).await {
        for request in [
            &b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf"[..],
            b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ] {
            let mut stream = connect(entry).await;
            stream.write_all(request).await.unwrap();
            assert_eq!(soon(told.recv()).await, Some("begun"));
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = soon(stream.read_to_end(&mut answer)).await;
            assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
            assert_eq!(soon(told.recv()).await, Some("broken"));
        }
        for proxy in &proxies {
            until("it is counted", || proxy.metric("response_total", &["error=\"canceled\""]) == 2).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_is_gone_after_its_end_cancels() {
    let (_go, wait) = watch::channel(false);
    let app = slow_app(wait, mpsc::unbounded_channel().0).await;
    for (entry, proxies) in entries(app).await {
        let stream = say(entry, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let last = proxies.last().unwrap();
        until("the request is there", || last.metric("request_total", &[]) == 1).await;
        // Its end alone is no cancellation.
        for proxy in &proxies {
            proxy.rests().await;
        }
        assert_eq!(last.metric("response_total", &["error=\"canceled\""]), 0);
        crate::net::abort_on_close(&stream);
        drop(stream);
        for proxy in &proxies {
            until("it is counted", || proxy.metric("response_total", &["error=\"canceled\""]) == 1).await;
        }
    }
}

#[tokio::test]
async fn an_endless_response_ends_with_its_client() {
    let app = app(false, |_| async {
        let piece = Bytes::from(vec![b'x'; 10_000]);
        let endless = futures_util::stream::repeat_with(move || Ok(hyper::body::Frame::data(piece.clone())));
        Response::new(http_body_util::StreamBody::new(endless).boxed())
    })
    .await;
    for (entry, proxies) in entries(app).await {
        let mut stream = say(entry, b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
        read_until(&mut stream, "xxx").await;
        // Closed, not reset, as far as the client is concerned.
        drop(stream);
        for proxy in &proxies {
            until("it is counted", || proxy.metric("response_total", &["error=\"canceled\""]) == 1).await;
            until("connections end", || proxy.metric("tcp_open_connections", &["peer=\"src\""]) == 0).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_has_said_all_is_heard_to_the_end() {
    let app = raw_app(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        stream.write_all(&[b'x'; 3_000_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        // It listens on, as long as there may be something to hear.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    for (entry, _proxies) in entries(app).await {
        let mut stream = say(entry, b"GET / HTTP/1.0\r\n\r\n").await;
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(answer.len() - head, 3_000_000);
    }
}

/// A tunnel whose server speaks and ends first, then listens to the end, and tells what it heard.
async fn tunnel(request: &'static str, agreed: &'static str) {
    let (heard_tx, mut heard) = mpsc::unbounded_channel();
    let app = raw_app(move |mut stream| {
        let heard = heard_tx.clone();
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(agreed.as_bytes()).await.unwrap();
            stream.write_all(b"that is all").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut octets = Vec::new();
            stream.read_to_end(&mut octets).await.unwrap();
            heard.send(octets.len()).unwrap();
        }
    })
    .await;
    for (entry, proxies) in entries(app).await {
        let mut stream = connect(entry).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nthat is all"), "{answer}");
        stream.write_all(&[b'y'; 1_000_000]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(soon(heard.recv()).await, Some(1_000_000));
        for proxy in &proxies {
            until("connections end", || proxy.metric("tcp_open_connections", &[]) == 0).await;
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_ends_one_direction_at_a_time() {
    tunnel(
        "GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\n",
    )
    .await;
}

#[tokio::test]
async fn a_connect_tunnel_ends_one_direction_at_a_time() {
    tunnel("CONNECT other.test:443 HTTP/1.1\r\nhost: other.test:443\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n").await;
}

#[tokio::test]
async fn what_a_client_says_before_its_early_end_arrives() {
    let app = raw_app(|mut stream| async move {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        stream.write_all(&[b"heard ", &said[..]].concat()).await.unwrap();
    })
    .await;
    for (entry, _proxies) in entries(app).await {
        // Neither HTTP nor anything else yet.
        for word in ["hi", "\x16\x03", "GET / HT"] {
            let mut stream = say(entry, word.as_bytes()).await;
            let mut answer = String::new();
            soon(stream.read_to_string(&mut answer)).await.unwrap_or_else(|e| panic!("{word:?}: {e}"));
            assert_eq!(answer, format!("heard {word}"));
        }
    }
}
