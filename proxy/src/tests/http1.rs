//! HTTP/1 to HTTP/1, through one proxy and through two.

use super::*;

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    let mut names: Vec<_> =
        request.headers().iter().map(|(n, v)| format!("{n}: {}\n", String::from_utf8_lossy(v.as_bytes()))).collect();
    names.sort();
    text.extend(names);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    text.push_str(&String::from_utf8_lossy(&body));
    Response::new(full(text))
}

#[tokio::test]
async fn requests_pass_one_after_another_on_one_connection() {
    let app = app(false, echo).await;
    let (proxy, entry) = single(app).await;
    let mut client = http1(entry).await;
    for n in 0..5 {
        let response = soon(client.send_request(get(&format!("/{n}?q")))).await.unwrap();
        assert_eq!(response.status(), 200);
        let text = text(response.into_body()).await;
        assert_eq!(text, format!("GET /{n}?q HTTP/1.1\nhost: web.test\n"));
    }
    assert_eq!(proxy.metric("request_total", &["direction=\"outbound\""]), 5);
    until("five responses", || {
        proxy.metric("response_total", &["status_code=\"200\"", "classification=\"success\""]) == 5
    })
    .await;
    // The connection to the application was used again.
    assert_eq!(proxy.metric("tcp_open_total", &["peer=\"dst\""]), 1);
}

#[tokio::test]
async fn a_pair_carries_http1_as_http2_and_restores_it() {
    let app = app(false, echo).await;
    let pair = pair(app).await;
    let mut client = http1(pair.entry).await;
    for n in 0..5 {
        let mut request = get(&format!("/{n}"));
        *request.method_mut() = hyper::Method::POST;
        *request.body_mut() = full("body");
        request.headers_mut().insert("l5d-client-id", "somebody else".parse().unwrap());
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.version(), hyper::Version::HTTP_11);
        assert!(response.headers().iter().all(|(name, _)| !name.as_str().starts_with("l5d-")));
        let text = text(response.into_body()).await;
        assert_eq!(
            text,
            format!("POST /{n} HTTP/1.1\ncontent-length: 4\nhost: web.test\nl5d-client-id: {CLIENT}\nbody")
        );
    }
    let mesh = format!("server_id=\"{SERVER}\"");
    assert_eq!(pair.client.metric("request_total", &["tls=\"true\"", &mesh]), 5);
    assert_eq!(pair.client.metric("tcp_open_total", &["peer=\"dst\"", "tls=\"true\""]), 1);
    let mesh = format!("client_id=\"{CLIENT}\"");
    assert_eq!(pair.server.metric("request_total", &["direction=\"inbound\"", "tls=\"true\"", &mesh]), 5);
}

#[tokio::test]
async fn many_clients_share_one_connection_between_proxies() {
    let app = app(false, echo).await;
    let pair = pair(app).await;
    let clients = (0..20).map(|n| {
        let entry = pair.entry;
        tokio::spawn(async move {
            let mut client = http1(entry).await;
            for i in 0..10 {
                let response = soon(client.send_request(get(&format!("/{n}/{i}")))).await.unwrap();
                assert!(text(response.into_body()).await.starts_with(&format!("GET /{n}/{i} ")));
            }
        })
    });
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(pair.client.metric("tcp_open_total", &["peer=\"dst\""]), 1);
    until("all responses", || pair.server.metric("response_total", &["direction=\"inbound\""]) == 200).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = app(false, echo).await;
    for entry in [single(app).await.1, pair(app).await.entry] {
        let answer = talk(
            entry,
            b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
              GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        let at = |what: &str| answer.find(what).unwrap_or_else(|| panic!("{what} in {answer}"));
        assert!(at("GET /1") < at("POST /2") && at("POST /2") < at("GET /3"), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn http10_clients_get_what_they_can_read() {
    let app = app(false, |_| async {
        let chunks = futures_util::stream::iter(
            ["a", "b", "c"].map(|c| Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(c)))),
        );
        Response::new(http_body_util::StreamBody::new(chunks).boxed())
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        let answer = talk(entry, b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
        assert!(!answer.to_lowercase().contains("transfer-encoding"), "{answer}");
        let answer = talk(entry, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.to_lowercase().contains("transfer-encoding: chunked"), "{answer}");
        assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn head_and_empty_answers_keep_the_connection_in_step() {
    let app = raw_app(|mut stream| async move {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(b) => head.push(b),
                    Err(_) => return,
                }
            }
            let answer: &[u8] = if head.starts_with(b"HEAD") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"
            } else if head.starts_with(b"GET /204") {
                b"HTTP/1.1 204 No Content\r\n\r\n"
            } else if head.starts_with(b"GET /304") {
                b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\netag: \"x\"\r\n\r\n"
            } else {
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            };
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        let mut client = http1(entry).await;
        for _ in 0..2 {
            let mut head = get("/");
            *head.method_mut() = hyper::Method::HEAD;
            let response = soon(client.send_request(head)).await.unwrap();
            assert_eq!(response.headers()["content-length"], "1234");
            assert_eq!(text(response.into_body()).await, "");
            for (path, status) in [("/204", 204), ("/304", 304)] {
                let response = soon(client.send_request(get(path))).await.unwrap();
                assert_eq!(response.status(), status);
                assert_eq!(text(response.into_body()).await, "");
            }
            let response = soon(client.send_request(get("/"))).await.unwrap();
            assert_eq!(text(response.into_body()).await, "ok");
        }
    }
}

#[tokio::test]
async fn continue_and_other_informational_responses_pass() {
    let app = raw_app(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let body = read_until(&mut stream, "body").await;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .await
            .unwrap();
        let hints = read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(hints.starts_with("HTTP/1.1 103 "), "{hints}");
        stream.write_all(b"body").await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\nbody").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}

#[tokio::test]
async fn a_final_answer_instead_of_continue_ends_the_connection() {
    let app = raw_app(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let (_proxy, entry) = single(app).await;
    let answer = talk(entry, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 417"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let app = app(false, |request| async move {
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|t| t.get("x-sum")).map(|v| v.to_str().unwrap().to_owned());
        let frames = [
            hyper::body::Frame::data(body.to_bytes()),
            hyper::body::Frame::trailers(
                [("x-back".parse().unwrap(), sum.unwrap_or_default().parse().unwrap())].into_iter().collect(),
            ),
        ];
        let stream = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
        let mut response = Response::new(http_body_util::StreamBody::new(stream).boxed());
        response.headers_mut().insert("trailer", "x-back".parse().unwrap());
        response
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        let answer = talk(
            entry,
            b"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, te\r\nTransfer-Encoding: chunked\r\n\
              Trailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n",
        )
        .await;
        assert!(answer.contains("3\r\nabc\r\n"), "{answer}");
        assert!(answer.ends_with("0\r\nx-back: 42\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn upgraded_connections_become_tunnels() {
    let app = raw_app(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.to_lowercase().contains("upgrade: echo"), "{head}");
        assert!(head.to_lowercase().contains("connection: upgrade"), "{head}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\nhello ")
            .await
            .unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let (_proxy, single_entry) = single(app).await;
    let pair = pair(app).await;
    for entry in [single_entry, pair.entry] {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        // The client is eager: its first octets for the tunnel come with the request.
        stream
            .write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\neager ")
            .await
            .unwrap();
        let answer = read_until(&mut stream, "hello eager ").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.to_lowercase().contains("connection: upgrade"), "{answer}");
        stream.write_all(&[b'x'; 200_000]).await.unwrap();
        stream.write_all(b"end").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest.len(), 200_003);
        assert!(rest.ends_with(b"xend"));
    }
}

#[tokio::test]
async fn connect_makes_a_tunnel() {
    let app = raw_app(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with("CONNECT other.test:443 HTTP/1.1\r\n"), "{head}");
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let pair = pair(app).await;
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    stream.write_all(b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n").await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(read_until(&mut stream, "ping").await, "ping");
}

#[tokio::test]
async fn cleartext_http2_is_not_reached_by_upgrade() {
    let app = app(false, echo).await;
    let (_proxy, entry) = single(app).await;
    let answer = talk(
        entry,
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n\
          GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("h2c"), "{answer}");
}

/// One proxy and two, in front of `app`.
async fn entries(app: SocketAddr) -> [(SocketAddr, Vec<Proxy>); 2] {
    let (one, entry) = single(app).await;
    let pair = pair(app).await;
    [(entry, vec![one]), (pair.entry, vec![pair.client, pair.server])]
}

#[tokio::test]
async fn targets_and_hosts_arrive_as_they_were_sent() {
    let app = raw_app(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    for (entry, _proxies) in entries(app).await {
        for (request, target, host) in [
            ("GET / HTTP/1.1\r\nHost: web.test:8080\r\n", "/", "web.test:8080"),
            ("GET / HTTP/1.1\r\nHost: WEB.Test\r\n", "/", "WEB.Test"),
            ("GET / HTTP/1.1\r\nHost: web.test.\r\n", "/", "web.test."),
            ("GET / HTTP/1.1\r\nHost: [fd00::1]:80\r\n", "/", "[fd00::1]:80"),
            ("GET http://other.test/a?b HTTP/1.1\r\nHost: other.test\r\n", "http://other.test/a?b", "other.test"),
            // What the target says counts (RFC 9112 §3.2.2).
            ("GET http://other.test:81/ HTTP/1.1\r\nHost: web.test\r\n", "http://other.test:81/", "other.test:81"),
            ("OPTIONS * HTTP/1.1\r\nHost: web.test\r\n", "*", "web.test"),
            ("GET //a//b/../c%2f?x=/.. HTTP/1.1\r\nHost: web.test\r\n", "//a//b/../c%2f?x=/..", "web.test"),
            ("GET / HTTP/1.0\r\nHost: web.test\r\n", "/", "web.test"),
            // The address that was dialled, in place of what HTTP/1.0 need not say.
            ("GET / HTTP/1.0\r\n", "/", &app.to_string()),
        ] {
            let answer = talk(entry, format!("{request}Connection: close\r\n\r\n").as_bytes()).await;
            let (_, head) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {answer}"));
            let line = head.lines().next().unwrap();
            assert_eq!(line.split(' ').nth(1), Some(target), "{request}");
            let hosts: Vec<_> = head.lines().filter_map(|l| l.strip_prefix("host: ")).collect();
            assert_eq!(hosts, [host], "{request}");
        }
        for refused in ["Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n", "Host: a b\r\n", "Host: u@a\r\n", ""] {
            let answer = talk(entry, format!("GET / HTTP/1.1\r\n{refused}\r\n").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{refused}: {answer}");
        }
    }
}

#[tokio::test]
async fn http10_clients_keep_a_connection_if_they_ask_for_it() {
    let app = app(false, echo).await;
    for (entry, _proxies) in entries(app).await {
        let mut stream = connect(entry).await;
        for n in 0..3 {
            let request = format!("POST /{n} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody");
            stream.write_all(request.as_bytes()).await.unwrap();
            let answer = read_until(&mut stream, "\nbody").await.to_lowercase();
            assert!(answer.starts_with("http/1.0 200 ") && answer.contains("connection: keep-alive"), "{answer}");
            assert!(answer.contains("content-length: ") && answer.contains(&format!("post /{n} ")), "{answer}");
        }
        // And not otherwise.
        stream.write_all(b"GET /last HTTP/1.0\r\n\r\n").await.unwrap();
        let mut rest = String::new();
        soon(stream.read_to_string(&mut rest)).await.unwrap();
        assert!(rest.contains("GET /last "), "{rest}");
    }
}

/// A server that answers as soon as it has seen a request's head, and then reads the body, or closes.
async fn hasty(reads: bool) -> SocketAddr {
    raw_app(move |mut stream| async move {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(b) => head.push(b),
                    Err(_) => return,
                }
            }
            let end = if reads { "" } else { "connection: close\r\n" };
            let answer = format!("HTTP/1.1 413 Too Large\r\n{end}content-length: 4\r\n\r\nhuge");
            stream.write_all(answer.as_bytes()).await.unwrap();
            if !reads {
                return;
            }
            let length = String::from_utf8_lossy(&head).to_lowercase();
            let length: u64 =
                length.split("content-length: ").nth(1).map_or(0, |l| l.split("\r\n").next().unwrap().parse().unwrap());
            // The test may be over before that.
            if tokio::io::copy(&mut (&mut stream).take(length), &mut tokio::io::sink()).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_response_may_come_before_the_requests_end() {
    for reads in [true, false] {
        let app = hasty(reads).await;
        for (entry, _proxies) in entries(app).await {
            for version in ["1.1", "1.0"] {
                let (mut read, mut write) = connect(entry).await.into_split();
                let upload = tokio::spawn(async move {
                    let head = format!("POST / HTTP/{version}\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n");
                    write.write_all(head.as_bytes()).await?;
                    // Nobody promised to read all this.
                    write.write_all(&[b'x'; 10_000_000]).await
                });
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\nhuge") {
                    let n = soon(read.read_buf(&mut answer)).await.unwrap();
                    assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
                }
                assert!(answer.starts_with(format!("HTTP/{version} 413 ").as_bytes()));
                let _ = soon(upload).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_refuses_instead_of_continuing_is_heard() {
    let app = hasty(false).await;
    for (entry, _proxies) in entries(app).await {
        let answer =
            talk(entry, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\nhuge"), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    }
}
