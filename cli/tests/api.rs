//! The HTTP exchange with the metrics API, against a server on a pipe.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft::api::{exchange, read};
use weft_core::api::StatResponse;

/// Sends a fixed answer once a request's head and body have come; returns what came.
async fn answer(mut server: tokio::io::DuplexStream, body_length: usize, text: &str) -> String {
    let mut request = Vec::new();
    let end = loop {
        let mut chunk = [0; 1024];
        let count = server.read(&mut chunk).await.unwrap();
        request.extend_from_slice(&chunk[..count]);
        if let Some(head) = request.windows(4).position(|w| w == b"\r\n\r\n")
            && request.len() >= head + 4 + body_length
        {
            break head;
        }
        assert!(count > 0, "the client went away");
    };
    server.write_all(text.as_bytes()).await.unwrap();
    server.shutdown().await.unwrap();
    assert!(end > 0);
    String::from_utf8(request).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn an_exchange() {
    block_on(async {
        let (client, server) = tokio::io::duplex(1 << 16);
        let body = r#"{"rows":[{"kind":"deployment","name":"web","meshed":1,"running":1}]}"#;
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let asked = exchange(client, "weft-metrics", "POST", "/api/stat", b"{}".to_vec());
        let (got, request) = tokio::join!(asked, answer(server, 2, &text));
        assert!(request.starts_with("POST /api/stat HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: weft-metrics\r\n"), "{request}");
        let rows = read::<StatResponse>(&got.unwrap()).unwrap().rows;
        assert_eq!((rows[0].name.as_str(), rows[0].rps), ("web", None));
    });
}

#[test]
fn refusals_and_garbage_have_a_reason() {
    block_on(async {
        for (text, expected) in [
            ("HTTP/1.1 400 Bad Request\r\ncontent-length: 24\r\n\r\n{\"error\":\"no such kind\"}\n", "no such kind"),
            ("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", "status 503"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nrows", "the answer is not understood"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\nrows", "answer:"),
            ("nonsense\r\n\r\n", "request:"),
            ("", "request:"),
        ] {
            let (client, server) = tokio::io::duplex(1 << 16);
            let asked = exchange(client, "weft-metrics", "GET", "/api/check", Vec::new());
            let (got, _) = tokio::join!(asked, answer(server, 0, text));
            let reason = match got {
                Ok(got) => read::<StatResponse>(&got).unwrap_err(),
                Err(reason) => reason,
            };
            assert!(reason.contains(expected), "{text:?}: {reason}");
        }
    });
}
