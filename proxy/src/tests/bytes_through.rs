//! What is not HTTP: relayed, whoever speaks first.

use super::*;

/// Sends back what it gets, and ends when its client ends.
async fn echo() -> SocketAddr {
    raw_app(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn entries(app: SocketAddr) -> (Vec<SocketAddr>, Vec<Proxy>) {
    let (one, entry) = single(app).await;
    let pair = pair(app).await;
    (vec![entry, pair.entry], vec![one, pair.client, pair.server])
}

#[tokio::test]
async fn bytes_pass_with_half_close() {
    let (entries, _proxies) = entries(echo().await).await;
    for entry in entries {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7) as u8 | 0x80).collect();
        let (mut read, mut write) = stream.split();
        let copy = sent.clone();
        let send = async move {
            write.write_all(&copy).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let receive = async move {
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = soon(async { tokio::join!(send, receive) }).await;
        assert!(got == sent);
    }
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let app = raw_app(|mut stream| async move {
        stream.write_all(b"220 mail.test ready\r\n").await.unwrap();
        let hello = read_until(&mut stream, "\r\n").await;
        stream.write_all(format!("250 {hello}").as_bytes()).await.unwrap();
    })
    .await;
    let (entries, proxies) = entries(app).await;
    for entry in entries {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n").await, "220 mail.test ready\r\n");
        stream.write_all(b"EHLO me\r\n").await.unwrap();
        assert_eq!(read_until(&mut stream, "\r\n").await, "250 EHLO me\r\n");
    }
    // A plain client from outside, through the inbound proxy alone.
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let mut stream = TcpStream::connect(server.inbound(app)).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n").await, "220 mail.test ready\r\n");
    drop(proxies);
}

#[tokio::test]
async fn octets_are_counted_and_connections_too() {
    let app = echo().await;
    let (proxy, entry) = single(app).await;
    let mut stream = TcpStream::connect(entry).await.unwrap();
    stream.write_all(&[0xff; 1000]).await.unwrap();
    let mut back = [0; 1000];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(proxy.metric("tcp_open_connections", &["peer=\"src\""]), 1);
    drop(stream);
    until("both connections closed", || {
        proxy.metric("tcp_open_connections", &[]) == 0 && proxy.metric("tcp_close_total", &[]) == 2
    })
    .await;
    for peer in ["peer=\"src\"", "peer=\"dst\""] {
        assert_eq!(proxy.metric("tcp_read_bytes_total", &[peer]), 1000);
        assert_eq!(proxy.metric("tcp_write_bytes_total", &[peer]), 1000);
    }
}

#[tokio::test]
async fn a_reset_passes_as_a_reset() {
    let app = raw_app(|stream| async move {
        crate::net::abort_on_close(&stream);
        drop(stream);
    })
    .await;
    let (entries, _proxies) = entries(app).await;
    for entry in entries {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        stream.write_all(&[0xff; 10]).await.unwrap();
        let mut rest = Vec::new();
        let end = soon(stream.read_to_end(&mut rest)).await;
        assert!(end.is_err() && rest.is_empty(), "{end:?}");
    }
}

#[tokio::test]
async fn an_unreachable_destination_ends_the_connection() {
    // Bound, but nobody listens.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = socket.local_addr().unwrap();
    let (proxy, entry) = single(nobody).await;
    let mut stream = TcpStream::connect(entry).await.unwrap();
    stream.write_all(&[0xff; 10]).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    until("the error is counted", || proxy.metric("outbound_tcp_errors_total", &["error=\"i/o\""]) == 1).await;
}

#[tokio::test]
async fn foreign_tls_passes_untouched() {
    let app = echo().await;
    let ca = Authority::new();
    let server = Proxy::start(&ca, SERVER, &[], &[app]).await;
    let mut stream = TcpStream::connect(server.inbound(app)).await.unwrap();
    let config = ca.issue("other.test").client.clone();
    let mut hello = Vec::new();
    let name = rustls::pki_types::ServerName::try_from("shop.example").unwrap();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut back = vec![0; hello.len()];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert!(back == hello);
    until("it is counted as passed through", || {
        server.metric("tcp_open_total", &["tls=\"opaque\"", "sni=\"shop.example\""]) == 1
    })
    .await;
}
