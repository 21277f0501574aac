//! Large bodies, slow readers, slow writers: nothing is lost, and memory stays bounded.

use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::StreamBody;
use hyper::body::Frame;

use super::*;

const PIECE: usize = 64 * 1024;

/// A body of that many octets, which can be told apart by position, and a count of what was taken of it.
fn pattern(octets: usize) -> (Body, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let pieces = (0..octets / PIECE).map(move |n| {
        count.fetch_add(PIECE, Ordering::SeqCst);
        Ok::<_, Infallible>(Frame::data(piece(n)))
    });
    (StreamBody::new(futures_util::stream::iter(pieces)).boxed(), taken)
}

/// Octets that differ from piece to piece: a window into random ones.
fn piece(n: usize) -> Bytes {
    static RANDOM: OnceLock<Bytes> = OnceLock::new();
    let random = RANDOM.get_or_init(|| {
        let mut random = fastrand::Rng::with_seed(5);
        let mut octets = vec![0; 2 * PIECE];
        random.fill(&mut octets);
        octets.into()
    });
    let at = n * 977 % PIECE;
    random.slice(at..at + PIECE)
}

/// Reads a body to its end and checks every octet.
async fn verify(mut body: Incoming) -> usize {
    let mut at = 0;
    let mut expected = Bytes::new();
    while let Some(frame) = soon(body.frame()).await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        let mut data = &data[..];
        while !data.is_empty() {
            if at % PIECE == 0 {
                expected = piece(at / PIECE);
            }
            let n = data.len().min(PIECE - at % PIECE);
            assert!(data[..n] == expected[at % PIECE..at % PIECE + n], "wrong octets at {at}");
            at += n;
            data = &data[n..];
        }
    }
    at
}

/// Sends back what it gets.
async fn mirror(request: Request<Incoming>) -> Response<Body> {
    Response::new(request.into_body().map_err(|_| unreachable_body()).boxed())
}

fn unreachable_body() -> Infallible {
    panic!("the request's body broke")
}

fn post(body: Body) -> Request<Body> {
    Request::post("/").header("host", "web.test").body(body).unwrap()
}

const LARGE: usize = 32 * 1024 * 1024;

#[tokio::test]
async fn large_bodies_pass_both_ways_over_http1() {
    let app = app(false, mirror).await;
    for (entry, _keep) in [
        {
            let (proxy, entry) = single(app).await;
            (entry, vec![proxy])
        },
        {
            let pair = pair(app).await;
            (pair.entry, vec![pair.client, pair.server])
        },
    ] {
        let mut client = http1(entry).await;
        let (body, _) = pattern(LARGE);
        let response = soon(client.send_request(post(body))).await.unwrap();
        assert_eq!(verify(response.into_body()).await, LARGE);
    }
}

#[tokio::test]
async fn large_bodies_pass_both_ways_over_http2() {
    let app = app(true, mirror).await;
    for (entry, _keep) in [
        {
            let (proxy, entry) = single(app).await;
            (entry, vec![proxy])
        },
        {
            let pair = pair(app).await;
            (pair.entry, vec![pair.client, pair.server])
        },
    ] {
        let mut client = http2(entry).await;
        let (body, _) = pattern(LARGE);
        let request = Request::post("http://web.test/").body(body).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(verify(response.into_body()).await, LARGE);
    }
}

/// A client that does not read must stop the application, wherever the proxies are: what is under way is bounded.
async fn slow_reader(h2: bool, two: bool) {
    let (sent_tx, sent) = watch::channel(None);
    let app = app(h2, move |_| {
        let (body, taken) = pattern(LARGE * 4);
        sent_tx.send_replace(Some(taken));
        async move { Response::new(body) }
    })
    .await;
    let (entry, _keep) = if two {
        let pair = pair(app).await;
        (pair.entry, vec![pair.client, pair.server])
    } else {
        let (proxy, entry) = single(app).await;
        (entry, vec![proxy])
    };
    let response = if h2 {
        soon(http2(entry).await.send_request(Request::get("http://web.test/").body(full("")).unwrap())).await.unwrap()
    } else {
        soon(http1(entry).await.send_request(get("/"))).await.unwrap()
    };
    let taken = sent.borrow().clone().unwrap();
    // It comes to rest: socket buffers (each up to 6 MB and more on loopback) and the proxies' own bounds.
    let mut last = usize::MAX;
    let mut still = 0;
    until("the application stops", || {
        let now = taken.load(Ordering::SeqCst);
        still = if now == last { still + 1 } else { 0 };
        last = now;
        still > 100
    })
    .await;
    assert!(last < LARGE * 3, "{last}");
    assert_eq!(verify(response.into_body()).await, LARGE * 4);
}

#[tokio::test]
async fn a_slow_reader_stops_the_application_over_http1() {
    slow_reader(false, false).await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_application_over_http2() {
    slow_reader(true, false).await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_application_through_two_proxies() {
    slow_reader(false, true).await;
    slow_reader(true, true).await;
}

/// An application that does not read must stop the client.
async fn slow_application(h2: bool, two: bool) {
    let (go, wait) = watch::channel(false);
    let app = app(h2, move |request: Request<Incoming>| {
        let mut wait = wait.clone();
        async move {
            let _ = wait.wait_for(|go| *go).await;
            Response::new(full(verify(request.into_body()).await.to_string()))
        }
    })
    .await;
    let (entry, _keep) = if two {
        let pair = pair(app).await;
        (pair.entry, vec![pair.client, pair.server])
    } else {
        let (proxy, entry) = single(app).await;
        (entry, vec![proxy])
    };
    let (body, taken) = pattern(LARGE * 4);
    let response = tokio::spawn(async move {
        if h2 {
            http2(entry).await.send_request(Request::post("http://web.test/").body(body).unwrap()).await.unwrap()
        } else {
            http1(entry).await.send_request(post(body)).await.unwrap()
        }
    });
    let mut last = usize::MAX;
    let mut still = 0;
    until("the client stops", || {
        let now = taken.load(Ordering::SeqCst);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
        still > 100
    })
    .await;
    assert!(last < LARGE * 3, "{last}");
    go.send_replace(true);
    let response = soon(response).await.unwrap();
    assert_eq!(text(response.into_body()).await, (LARGE * 4).to_string());
}

#[tokio::test]
async fn a_slow_application_stops_the_client() {
    slow_application(false, false).await;
    slow_application(true, false).await;
}

#[tokio::test]
async fn a_slow_application_stops_the_client_through_two_proxies() {
    slow_application(false, true).await;
    slow_application(true, true).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_stop_others() {
    let app = app(false, |request| async move {
        if request.uri().path() == "/large" { Response::new(pattern(LARGE).0) } else { Response::new(full("small")) }
    })
    .await;
    let pair = pair(app).await;
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut client = http1(pair.entry).await;
        let response = soon(client.send_request(get("/large"))).await.unwrap();
        stuck.push((client, response));
    }
    for _ in 0..50 {
        let response = soon(http1(pair.entry).await.send_request(get("/"))).await.unwrap();
        assert_eq!(text(response.into_body()).await, "small");
    }
    for (_client, response) in stuck {
        assert_eq!(verify(response.into_body()).await, LARGE);
    }
}

/// Streams that together hold more than the window of the connection that they share.
const STUCK: usize = 40;
/// Octets of what the others want: more than all windows.
const ENOUGH: usize = 4 * 1024 * 1024;

type Counts = Arc<Mutex<Vec<Arc<AtomicUsize>>>>;

/// Waits until nothing more is taken of all those bodies, and not all was.
async fn stand_still(counts: &Counts) {
    let mut last = (0, 0);
    until("all stand still", || {
        let counts = counts.lock().unwrap();
        let now = counts.iter().map(|c| c.load(Ordering::SeqCst)).sum::<usize>();
        last = if now == last.0 && counts.len() == STUCK { (now, last.1 + 1) } else { (now, 0) };
        last.1 > 50
    })
    .await;
    let taken: Vec<_> = counts.lock().unwrap().iter().map(|c| c.load(Ordering::SeqCst)).collect();
    assert!(taken.iter().all(|&n| n < LARGE), "{taken:?}");
}

/// True when the proxies have had one connection only. A machine that is too busy to answer pings in time gets another
/// one, and then nothing has been shown about sharing.
fn was_shared(pair: &Pair) -> bool {
    pair.client.metric("tcp_open_total", &["peer=\"dst\""]) == 1
}

/// Runs it until it was about one connection.
async fn sharing(case: impl AsyncFn() -> bool) {
    for _ in 0..5 {
        if case().await {
            return;
        }
    }
    panic!("they never shared a connection");
}

#[tokio::test]
async fn clients_that_do_not_read_leave_the_shared_connection_to_others() {
    sharing(clients_do_not_read).await;
}

async fn clients_do_not_read() -> bool {
    let counts = Counts::default();
    let app = app(false, {
        let counts = counts.clone();
        move |request| {
            let stuck = request.uri().path() == "/stuck";
            let (body, count) = pattern(if stuck { LARGE } else { ENOUGH });
            if stuck {
                counts.lock().unwrap().push(count);
            }
            async move { Response::new(body) }
        }
    })
    .await;
    let pair = pair(app).await;
    let mut stuck = Vec::new();
    for _ in 0..STUCK {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(pair.entry).await.unwrap();
        stream.write_all(b"GET /stuck HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stuck.push(stream);
    }
    stand_still(&counts).await;
    for _ in 0..3 {
        let response = soon(http1(pair.entry).await.send_request(get("/"))).await.unwrap();
        assert_eq!(verify(response.into_body()).await, ENOUGH);
    }
    let shared = was_shared(&pair);
    // They can go on whenever they like.
    for mut stream in stuck.drain(..3) {
        let mut octets = vec![0; ENOUGH];
        soon(stream.read_exact(&mut octets)).await.unwrap();
    }
    shared
}

#[tokio::test]
async fn an_application_that_does_not_read_leaves_the_shared_connection_to_others() {
    sharing(an_application_does_not_read).await;
}

async fn an_application_does_not_read() -> bool {
    let app = app(false, |request: Request<Incoming>| async move {
        if request.uri().path() == "/stuck" {
            std::future::pending::<()>().await;
        }
        Response::new(full(verify(request.into_body()).await.to_string()))
    })
    .await;
    let pair = pair(app).await;
    let counts = Counts::default();
    let mut calls = Vec::new();
    for _ in 0..STUCK {
        let (body, count) = pattern(LARGE);
        counts.lock().unwrap().push(count);
        let mut client = http1(pair.entry).await;
        let request = Request::post("/stuck").header("host", "web.test").body(body).unwrap();
        calls.push(tokio::spawn(async move { client.send_request(request).await.map(drop) }));
    }
    stand_still(&counts).await;
    for _ in 0..3 {
        let response = soon(http1(pair.entry).await.send_request(post(pattern(ENOUGH).0))).await.unwrap();
        assert_eq!(text(response.into_body()).await, ENOUGH.to_string());
    }
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    was_shared(&pair)
}

#[tokio::test]
async fn windows_shared_by_streams_are_not_lost_one_by_one() {
    // Each response ends while the client's side is full. 64 of them would use up the connection between the proxies.
    const SIZE: usize = 1024 * 1024;
    let app = app(true, |_| async { Response::new(pattern(SIZE).0) }).await;
    let pair = pair(app).await;
    let mut client = http2(pair.entry).await;
    for _ in 0..64 {
        let request = Request::get("http://web.test/").body(full("")).unwrap();
        let response = soon(client.send_request(request)).await.unwrap();
        assert_eq!(verify(response.into_body()).await, SIZE);
    }
}
