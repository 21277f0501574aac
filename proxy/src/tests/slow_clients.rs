//! HTTP/1 clients that take too long, and those who may.

use super::*;
use crate::config::Http1Config;

const SHORT: Duration = Duration::from_millis(40);
const LONG: Duration = Duration::from_secs(3600);
const NEVER: Http1Config = Http1Config { head: LONG, body: LONG, idle: LONG };

/// A proxy in front of `app` with those limits.
async fn limited(app: SocketAddr, limits: Http1Config) -> (Proxy, SocketAddr) {
    let ca = Authority::new();
    let proxy = Proxy::start_tuned(&ca, CLIENT, &[app], &[], &[], |config| config.http1 = limits).await;
    proxy.discovery.set_outbound(app, forward(Endpoint::plain(app)));
    let entry = proxy.outbound(app);
    (proxy, entry)
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).to_lowercase()
}

fn timeouts(proxy: &Proxy) -> u64 {
    proxy.metric("outbound_http_errors_total", &["error=\"client timeout\""])
}

/// Octets of a head, one now and then, until the proxy has had enough.
async fn drip(entry: SocketAddr) -> String {
    let (mut read, mut write) = connect(entry).await.into_split();
    let dripping = tokio::spawn(async move {
        write.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ").await?;
        loop {
            write.write_all(b"x").await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        #[allow(unreachable_code, reason = "says what the loop ends with")]
        io::Result::Ok(())
    });
    let mut answer = Vec::new();
    let _ = soon(read.read_to_end(&mut answer)).await;
    dripping.abort();
    String::from_utf8_lossy(&answer).to_lowercase()
}

#[tokio::test]
async fn a_head_that_drips_is_ended_with_408() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let (proxy, entry) = limited(app, Http1Config { head: SHORT, ..NEVER }).await;
    let answer = drip(entry).await;
    assert!(answer.starts_with("http/1.1 408 request timeout\r\n"), "{answer}");
    assert!(answer.contains("connection: close") && answer.contains("its head took longer than 40ms"), "{answer}");
    assert_eq!(timeouts(&proxy), 1);
    // The same behind a request that was served.
    let mut stream = connect(entry).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut stream, "\r\n\r\nok").await;
    stream.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    assert!(rest(stream).await.starts_with("http/1.1 408 "));
    assert_eq!(timeouts(&proxy), 2);
}

#[tokio::test]
async fn a_body_that_stalls_is_ended_with_408_and_the_server_is_told() {
    let (broken_tx, mut broken) = mpsc::unbounded_channel();
    let app = app(false, move |request| {
        let broken = broken_tx.clone();
        async move {
            broken.send(request.into_body().collect().await.is_err()).unwrap();
            Response::new(full(""))
        }
    })
    .await;
    let (proxy, entry) = limited(app, Http1Config { body: SHORT, ..NEVER }).await;
    let mut stream = connect(entry).await;
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("http/1.1 408 ") && answer.contains("no octet of its body for 40ms"), "{answer}");
    assert_eq!((soon(broken.recv()).await, timeouts(&proxy)), (Some(true), 1));
}

#[tokio::test]
async fn a_connection_without_requests_ends_one_day() {
    let app = app(false, |_| async { Response::new(full("ok")) }).await;
    let (proxy, entry) = limited(app, Http1Config { idle: SHORT, ..NEVER }).await;
    let mut stream = connect(entry).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut stream, "\r\n\r\nok").await;
    assert_eq!(rest(stream).await, "");
    assert_eq!(timeouts(&proxy), 0);
}

#[tokio::test]
async fn who_waits_or_is_answered_is_not_hurried() {
    // A busy machine may stop anybody for a moment.
    let limits = Http1Config { head: SHORT, body: Duration::from_secs(1), idle: LONG };
    let (go, wait) = watch::channel(false);
    let app = raw_app(move |mut stream| {
        let mut go = wait.clone();
        async move {
            let head = read_until(&mut stream, "\r\n\r\n").await;
            let (first, second): (&[u8], &[u8]) = if head.starts_with("GET /events") {
                (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n", b"3\r\ntwo\r\n0\r\n\r\n")
            } else if head.starts_with("GET /chat") {
                (b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\none", b"two")
            } else {
                (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo")
            };
            stream.write_all(first).await.unwrap();
            let _ = go.wait_for(|go| *go).await;
            if head.starts_with("POST") {
                // Only now is the body looked at.
                let mut left = 20_000_000 - (head.len() - head.find("\r\n\r\n").unwrap() - 4);
                while left > 0 {
                    left -= stream.read(&mut [0; 65536]).await.unwrap();
                }
            }
            stream.write_all(second).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await;
    let (proxy, entry) = limited(app, limits).await;
    let mut streams = Vec::new();
    for (request, first) in [
        // A server that takes its time; events; a tunnel; a server that does not read.
        ("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n", ""),
        ("GET /events HTTP/1.1\r\nhost: a\r\n\r\n", "one"),
        ("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n", "one"),
    ] {
        let mut stream = connect(entry).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut stream, first).await;
        streams.push(stream);
    }
    let (mut read, mut write) = connect(entry).await.into_split();
    let upload = tokio::spawn(async move {
        write.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20000000\r\n\r\n").await.unwrap();
        write.write_all(&[b'x'; 20_000_000]).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"two") {
            assert!(read.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
        write
    });
    // Others come to their limits meanwhile, again and again.
    let (started, mut ended) = (std::time::Instant::now(), 0);
    while started.elapsed() < 3 * limits.body {
        assert!(drip(entry).await.starts_with("http/1.1 408 "));
        ended += 1;
    }
    go.send_replace(true);
    for mut stream in streams {
        read_until(&mut stream, "two").await;
    }
    soon(upload).await.unwrap();
    assert_eq!(timeouts(&proxy), ended);
}
