//! Against the h2 crate, as its client and as its server, over a small in-memory pipe.

mod h2_support;

use bytes::Bytes;
use futures_util::future::{join_all, poll_fn};
use h2_support::{driver::*, list};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::io::DuplexStream;
use weft_wire::{
    Limits,
    h2::{Connection, Reason},
};

/// Waits until the h2 crate lets a body send, then sends; true when all of it went.
async fn send_body(stream: &mut h2::SendStream<Bytes>, len: usize, trailers: bool) -> bool {
    let mut at = 0;
    while at < len {
        stream.reserve_capacity((len - at).min(9000));
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return false };
        let n = room.min(len - at);
        if stream.send_data(body(at, n).into(), !trailers && at + n == len).is_err() {
            return false;
        }
        at += n;
    }
    if trailers {
        let mut map = HeaderMap::new();
        map.insert("x-sum", "9".parse().unwrap());
        return stream.send_trailers(map).is_ok();
    }
    len > 0 || stream.send_data(Bytes::new(), true).is_ok()
}

/// Reads a body that must be the pattern; its length and trailers.
async fn read_body(stream: &mut h2::RecvStream) -> Result<(usize, Option<HeaderMap>), h2::Error> {
    let mut got = 0;
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        assert!(piece == body(got, piece.len()), "out of order");
        got += piece.len();
        stream.flow_control().release_capacity(piece.len())?;
    }
    Ok((got, stream.trailers().await?))
}

fn ask(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://a.test{path}")).body(()).unwrap()
}

/// An h2 client that talks to our server; what the server saw comes when the client is dropped.
async fn connect(
    builder: &h2::client::Builder,
    limits: Limits,
    pipe: usize,
) -> (h2::client::SendRequest<Bytes>, tokio::task::JoinHandle<Site>) {
    let (a, b) = tokio::io::duplex(pipe);
    let server = tokio::spawn(async move { deadline("our server", serve(b, &limits)).await.unwrap() });
    let (sender, connection) = builder.handshake::<_, Bytes>(a).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender, server)
}

/// Sends a body and reads the answer at the same time.
async fn echo(sender: h2::client::SendRequest<Bytes>, len: usize, trailers: bool) -> (usize, Option<HeaderMap>) {
    let mut sender = sender.ready().await.unwrap();
    let (response, mut stream) = sender.send_request(ask(Method::POST, "/echo"), false).unwrap();
    let receive = async {
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        read_body(&mut response.into_body()).await.unwrap()
    };
    let (sent, got) = tokio::join!(send_body(&mut stream, len, trailers), receive);
    assert!(sent);
    got
}

#[tokio::test]
async fn many_streams_with_bodies_both_ways() {
    for (pipe, small) in [(1000, true), (65_536, false)] {
        let mut builder = h2::client::Builder::new();
        let mut limits = Limits::default();
        if small {
            builder.initial_window_size(3000).initial_connection_window_size(70_000).header_table_size(0);
            limits = Limits { stream_window: 5000, connection_window: 65_535, hpack_table: 100, ..limits };
        }
        let (sender, server) = connect(&builder, limits, pipe).await;
        let echoes = (0..150).map(|i| {
            let (len, sender) = (i * i * 5 % 60_000, sender.clone());
            async move {
                let (got, trailers) = echo(sender, len, i % 3 == 0).await;
                assert_eq!(got, len);
                assert_eq!(trailers.is_some_and(|t| t["x-sum"] == "9"), i % 3 == 0);
            }
        });
        deadline("the echoes", join_all(echoes)).await;
        drop(sender);
        let site = server.await.unwrap();
        assert_eq!((site.served, site.resets.len()), (150, 0));
    }
}

#[tokio::test]
async fn large_bodies_and_trailers_down() {
    let (sender, server) = connect(&h2::client::Builder::new(), Limits::default(), 8192).await;
    for path in ["/bytes/3000000", "/trailers/100000", "/trailers/0", "/bytes/0", "/early", "/head", "/none"] {
        let mut sender = sender.clone().ready().await.unwrap();
        let (mut response, _) = sender.send_request(ask(Method::GET, path), true).unwrap();
        if path == "/early" {
            let early = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!((early.status().as_u16(), &early.headers()["link"]), (103, &"</style.css>".parse().unwrap()));
        }
        let response = deadline(path, response).await.unwrap();
        let expected = match path {
            "/head" => StatusCode::NO_CONTENT,
            "/none" => StatusCode::NOT_FOUND,
            _ => StatusCode::OK,
        };
        assert_eq!(response.status(), expected);
        let (got, trailers) = deadline(path, read_body(&mut response.into_body())).await.unwrap();
        let size: usize = path.rsplit('/').next().unwrap().parse().unwrap_or(0);
        assert_eq!((got, trailers.is_some()), (size, path.starts_with("/trailers")));
    }
    drop(sender);
    assert_eq!(server.await.unwrap().served, 7);
}

#[tokio::test]
async fn resets_both_ways() {
    let (sender, server) = connect(&h2::client::Builder::new(), Limits::default(), 8192).await;
    for i in 0..40 {
        let mut sender = sender.clone().ready().await.unwrap();
        if i % 2 == 0 {
            let (response, _) = sender.send_request(ask(Method::GET, "/reset"), true).unwrap();
            let error = deadline("the reset", response).await.unwrap_err();
            assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        } else {
            let (response, _) = sender.send_request(ask(Method::GET, "/bytes/500000"), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            let piece = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            // Dropping it resets the stream.
        }
    }
    assert_eq!(deadline("an echo", echo(sender.clone(), 200_000, true)).await.0, 200_000);
    drop(sender);
    let site = server.await.unwrap();
    assert_eq!(site.resets.len(), 20);
    assert!(site.resets.iter().all(|(_, code)| *code == 8));
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_only_itself() {
    let (sender, server) = connect(&h2::client::Builder::new(), Limits::default(), 8192).await;
    let mut ready = sender.ready().await.unwrap();
    let (response, _) = ready.send_request(ask(Method::GET, "/bytes/400000"), true).unwrap();
    let mut stalled = response.await.unwrap().into_body();
    // The connection's window is larger than the stream's here, so others go on.
    let mut held = 0;
    while held < 65_535 {
        held += stalled.data().await.unwrap().unwrap().len();
    }
    ready = ready.ready().await.unwrap();
    let (response, _) = ready.send_request(ask(Method::GET, "/early"), true).unwrap();
    assert_eq!(deadline("another request", response).await.unwrap().status(), 200);
    stalled.flow_control().release_capacity(held).unwrap();
    let mut got = held;
    while let Some(piece) = deadline("the rest", stalled.data()).await {
        let piece = piece.unwrap();
        assert!(piece == body(got, piece.len()));
        got += piece.len();
        stalled.flow_control().release_capacity(piece.len()).unwrap();
    }
    assert_eq!(got, 400_000);
    drop((stalled, ready));
    server.await.unwrap();
}

#[tokio::test]
async fn our_server_drains() {
    let (a, b) = tokio::io::duplex(8192);
    let (tell, mut told) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let mut driver = Driver::new(b, Connection::server(&Limits::default()));
        let mut site = Site::default();
        let mut going = false;
        loop {
            tokio::select! {
                events = driver.turn() => match events.unwrap() {
                    Some(events) => events.into_iter().for_each(|e| site.handle(&mut driver.conn, e)),
                    None => return (driver.conn.is_closed(), site.served),
                },
                _ = &mut told, if !going => {
                    going = true;
                    driver.conn.go_away(Reason::NO_ERROR);
                }
            }
        }
    });
    let (sender, connection) = h2::client::handshake(a).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut ready = sender.ready().await.unwrap();
    let (response, mut stream) = ready.send_request(ask(Method::POST, "/echo"), false).unwrap();
    let mut back = deadline("the response", response).await.unwrap().into_body();
    tell.send(()).unwrap();
    // The exchange in flight is finished, then the connection ends without an error.
    let (sent, got) =
        deadline("the exchange", async { tokio::join!(send_body(&mut stream, 300_000, true), read_body(&mut back)) })
            .await;
    assert!(sent);
    assert_eq!(got.unwrap().0, 300_000);
    assert_eq!(deadline("our server", server).await.unwrap(), (true, 1));
    // Whether it could still write its last updates does not matter.
    let _ = deadline("their client", connection).await.unwrap();
    assert!(ready.ready().await.is_err());
}

/// The h2 crate's server, which answers like [`Site`].
async fn h2_server(io: DuplexStream, builder: h2::server::Builder, drain_after: usize) -> usize {
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    let mut served = 0;
    while let Some(request) = connection.accept().await {
        let Ok((request, respond)) = request else { break };
        served += 1;
        if served == drain_after {
            connection.graceful_shutdown();
        }
        tokio::spawn(h2_answer(request, respond));
    }
    served
}

async fn h2_answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (head, mut incoming) = request.into_parts();
    let ok = |status: u16| Response::builder().status(status).body(()).unwrap();
    match head.uri.path() {
        "/echo" => {
            let Ok(mut outgoing) = respond.send_response(ok(200), false) else { return };
            let mut at = 0;
            while let Some(Ok(piece)) = incoming.data().await {
                let mut left = piece;
                while !left.is_empty() {
                    outgoing.reserve_capacity(left.len());
                    let Some(Ok(room)) = poll_fn(|cx| outgoing.poll_capacity(cx)).await else { return };
                    let now = left.split_to(room.min(left.len()));
                    at += now.len();
                    let n = now.len();
                    if outgoing.send_data(now, false).is_err() {
                        return;
                    }
                    let _ = incoming.flow_control().release_capacity(n);
                }
            }
            let mut map = incoming.trailers().await.ok().flatten().unwrap_or_default();
            map.insert("x-octets", at.into());
            let _ = outgoing.send_trailers(map);
        }
        "/early" => {
            respond.send_informational(ok(103)).unwrap();
            respond.send_informational(ok(100)).unwrap();
            let _ = respond.send_response(ok(200), true);
        }
        "/reset" => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        "/unread" => {
            // Answers without reading the body, which makes h2 reset the stream with NO_ERROR.
            let _ = respond.send_response(ok(413), true);
        }
        path => {
            let len = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()).unwrap_or(0);
            let Ok(mut outgoing) = respond.send_response(ok(200), false) else { return };
            send_body(&mut outgoing, len, false).await;
        }
    }
}

async fn against_h2(builder: h2::server::Builder, limits: Limits, pipe: usize, todo: Vec<Exchange>) -> Vec<Exchange> {
    let (a, b) = tokio::io::duplex(pipe);
    let server = tokio::spawn(h2_server(b, builder, usize::MAX));
    let done = deadline("the exchange", exchange(a, &limits, todo)).await.unwrap();
    deadline("their server", server).await.unwrap();
    done
}

#[tokio::test]
async fn our_client_makes_every_kind_of_request() {
    let small = Limits { stream_window: 2000, connection_window: 65_535, hpack_table: 0, ..Limits::default() };
    for (limits, pipe) in [(Limits::default(), 65_536), (small, 1000)] {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(20).initial_window_size(4000).max_concurrent_reset_streams(200);
        let mut todo = Vec::new();
        for i in 0..140 {
            todo.push(match i % 7 {
                0 => get(format!("/bytes/{}", i * 500)),
                1 => post("/echo", i * 700),
                2 => Exchange { send_trailers: true, ..post("/echo", 10 * i) },
                3 => get("/early"),
                4 => get("/reset"),
                5 => Exchange { reset_at: Some(1), ..get("/bytes/300000") },
                _ => post("/unread", 20_000),
            });
        }
        for (i, e) in against_h2(builder, limits, pipe, todo).await.iter().enumerate() {
            let fine = e.intact
                && match i % 7 {
                    0 => (e.status, e.got) == (200, i * 500),
                    1 | 2 => {
                        let octets = e.trailers.as_ref().and_then(|t| t.get(b"x-octets")).unwrap_or_default();
                        let sum = e.trailers.as_ref().and_then(|t| t.get(b"x-sum"));
                        let sum_ok = (sum == Some(&b"9"[..])) == e.send_trailers;
                        (e.status, e.got) == (200, e.send) && octets == e.send.to_string().as_bytes() && sum_ok
                    }
                    3 => e.status == 200 && e.informational == [103, 100],
                    4 => e.reset == Some(2),
                    5 => (1..200_000).contains(&e.got),
                    _ => e.status == 413,
                };
            assert!(fine, "{i}: {e:?}");
        }
    }
}

#[tokio::test]
async fn their_server_drains() {
    let (a, b) = tokio::io::duplex(8192);
    let server = tokio::spawn(h2_server(b, h2::server::Builder::new(), 3));
    let mut driver = Driver::new(a, Connection::client(&Limits::default()));
    // Three in flight; the third makes the server announce its end.
    let mut left = 3;
    for _ in 0..3 {
        driver.conn.send_request(&h2_support::request("GET", "/bytes/50000", &[]), true).unwrap();
    }
    let mut announced = false;
    let run = async {
        while let Some(events) = driver.turn().await.unwrap() {
            for event in events {
                match event {
                    h2_support::Owned::Data(id, _, flow, end) => {
                        driver.conn.release(id, flow);
                        left -= usize::from(end);
                    }
                    h2_support::Owned::GoAway(..) => announced = true,
                    h2_support::Owned::Reset(..) => panic!("a stream in flight was lost"),
                    _ => {}
                }
            }
        }
    };
    deadline("our client", run).await;
    assert_eq!((left, announced), (0, true));
    assert!(!driver.conn.can_open());
    drop(driver);
    assert_eq!(deadline("their server", server).await.unwrap(), 3);
}

#[tokio::test]
async fn heads_survive_the_other_implementation() {
    // Repeated and changing fields, secrets, large values: what their HPACK decodes is what ours encoded.
    let (a, b) = tokio::io::duplex(65_536);
    let server = tokio::spawn(async move {
        let mut connection = h2::server::Builder::new().handshake::<_, Bytes>(b).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut response = Response::new(());
            *response.headers_mut() = request.headers().clone();
            respond.send_response(response, true).unwrap();
        }
    });
    let mut driver = Driver::new(a, Connection::client(&Limits::default()));
    let large = "Zx".repeat(3000);
    for i in 0..200 {
        let number = i.to_string();
        let mut fields = vec![("user-agent", "weft/1"), ("x-request-id", &number[..]), ("authorization", "Bearer t")];
        if i % 3 == 0 {
            fields.extend([("accept", "*/*"), ("accept", "text/html"), ("x-empty", "")]);
        }
        if i % 50 == 0 {
            fields.push(("x-large", &large));
        }
        driver.conn.send_request(&h2_support::request("GET", "/h", &fields), true).unwrap();
        let answered = async {
            loop {
                for event in driver.turn().await.unwrap().expect("the connection lives") {
                    if let h2_support::Owned::Response(_, head, true) = event {
                        return head.headers;
                    }
                }
            }
        };
        let got = deadline("the response", answered).await;
        let sorted = |h: &weft_wire::Headers| {
            let mut all: Vec<_> = h.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            all.sort();
            all
        };
        assert_eq!(sorted(&got), sorted(&list(&fields)));
    }
    drop(driver);
    deadline("their server", server).await.unwrap();
}
