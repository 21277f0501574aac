//! Files by URL: `http://` and `https://`, with the system's trust anchors.

use crate::api::{MAX_ANSWER, TIMEOUT};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Whether this is a URL, not the name of a file.
pub fn is_url(input: &str) -> bool {
    input.starts_with("http://") || input.starts_with("https://")
}

/// The text that a URL answers with.
///
/// # Errors
/// One sentence that begins with the URL.
pub async fn text(url: &str) -> Result<String, String> {
    let fetched = tokio::time::timeout(TIMEOUT, follow(url)).await;
    let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())));
    fetched.map_err(|reason| format!("{url}: {reason}"))
}

async fn follow(url: &str) -> Result<String, String> {
    let mut url: http::Uri = url.parse().map_err(|e| format!("not a URL: {e}"))?;
    for _ in 0..=MAX_REDIRECTS {
        match get(&url).await? {
            Got::Text(text) => return Ok(text),
            Got::Elsewhere(location) => {
                let next: http::Uri = location.parse().map_err(|e| format!("redirect to {location:?}: {e}"))?;
                if url.scheme_str() == Some("https") && next.scheme_str() == Some("http") {
                    return Err(format!("redirect to {location}, which is not secured"));
                }
                let mut parts = next.into_parts();
                // A redirect may name only a path.
                parts.scheme = parts.scheme.or(url.scheme().cloned());
                parts.authority = parts.authority.or(url.authority().cloned());
                url = http::Uri::from_parts(parts).map_err(|e| format!("redirect to {location:?}: {e}"))?;
            }
        }
    }
    Err(format!("more than {MAX_REDIRECTS} redirects"))
}

enum Got {
    Text(String),
    Elsewhere(String),
}

async fn get(url: &http::Uri) -> Result<Got, String> {
    let host = url.host().ok_or("the URL has no host")?;
    let secured = match url.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("only http:// and https:// are known".into()),
    };
    let port = url.port_u16().unwrap_or(if secured { 443 } else { 80 });
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, port)).await.map_err(|e| format!("cannot connect: {e}"))?;
    if !secured {
        return ask(stream, url).await;
    }
    let mut anchors = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    anchors.add_parsable_certificates(found.certs);
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?
        .with_root_certificates(anchors)
        .with_no_client_auth();
    let name = ServerName::try_from(address.to_owned()).map_err(|_| format!("{address:?} is not a server name"))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    ask(connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?, url).await
}

async fn ask<S>(stream: S, url: &http::Uri) -> Result<Got, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|e| format!("HTTP: {e}"))?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = hyper::Request::get(path)
        .header(http::header::HOST, authority.rsplit('@').next().unwrap_or_default())
        .header(http::header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")))
        .header(http::header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|e| format!("request: {e}"))?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
        let status = response.status();
        let location = response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok());
        if let (true, Some(location)) = (status.is_redirection(), location) {
            return Ok(Got::Elsewhere(location.to_owned()));
        }
        if !status.is_success() {
            return Err(format!("status {}", status.as_u16()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| format!("answer: {e}"))?.to_bytes();
        String::from_utf8(body.to_vec()).map(Got::Text).map_err(|_| "the answer is no text".to_owned())
    };
    // A connection that is closed after the answer says no more than the answer.
    let connection = async {
        let _ = connection.await;
    };
    tokio::pin!(connection);
    let mut connected = true;
    tokio::pin!(asked);
    loop {
        tokio::select! {
            answer = &mut asked => return answer,
            () = &mut connection, if connected => connected = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn served(answers: Vec<&'static str>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a.yml", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn files_by_url() {
        let moved = "HTTP/1.1 302 Found\r\nlocation: /b.yml\r\ncontent-length: 0\r\n\r\n";
        let found = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nkind: A\n";
        assert_eq!(text(&served(vec![moved, found]).await).await.as_deref(), Ok("kind: A\n"));
        let missing = served(vec!["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]).await;
        assert_eq!(text(&missing).await, Err(format!("{missing}: status 404")));
        let endless = served(vec![moved; 7]).await;
        assert_eq!(text(&endless).await, Err(format!("{endless}: more than 5 redirects")));
        assert!(text("https://127.0.0.1:1/x").await.unwrap_err().contains("cannot connect"));
        assert!(is_url("https://a") && !is_url("a.yml") && !is_url("httpd/a.yml"));
    }
}
