//! A small HTTP/1.1 server for the admin endpoints, the metrics API and the webhooks.

use crate::drain::Drain;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at the same time; more wait.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most octets of a request's body.
const MAX_BODY: usize = 64 * 1024;

/// Answers of this server.
pub type Answer = Response<Full<Bytes>>;

/// Serves until the drain, each request by `handler`.
pub async fn serve<H, F>(listener: TcpListener, drain: Drain, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    serve_over(listener, drain, |stream| std::future::ready(Ok(stream)), handler).await;
}

/// Serves until the drain, each request by `handler`, over what `secure` makes of each connection.
pub async fn serve_over<S, T, I, H, F>(listener: TcpListener, drain: Drain, secure: S, handler: H)
where
    S: Fn(TcpStream) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = std::io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.signaled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => {
                // Answers are written at once and whole. Only a connection that is gone refuses.
                let _ = stream.set_nodelay(true);
                stream
            }
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back instead of spinning.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (secure, handler, drain) = (secure.clone(), handler.clone(), drain.clone());
        tokio::spawn(async move {
            let stream = match tokio::time::timeout(HEAD_TIMEOUT, secure(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "a connection is no use"),
                Err(_) => return tracing::debug!("a handshake took too long"),
            };
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = drain.signaled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "HTTP connection ended");
            }
            drop(slot);
        });
    }
}

/// Reads a request's body, bounded in size and time.
///
/// # Errors
/// What is wrong with it, for people.
pub async fn read_body(body: Incoming) -> Result<Bytes, String> {
    read_body_up_to(body, MAX_BODY).await
}

/// As [`read_body`], of at most this many octets.
///
/// # Errors
/// What is wrong with it, for people.
pub async fn read_body_up_to(body: Incoming, most: usize) -> Result<Bytes, String> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(format!("the request's body could not be read: {error}")),
        Err(_) => Err(format!("the request's body did not arrive within {} s", BODY_TIMEOUT.as_secs())),
    }
}

/// An answer of plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    respond(status, "text/plain; charset=utf-8", body.into())
}

/// An answer in JSON.
pub fn json<T: serde::Serialize>(status: StatusCode, body: &T) -> Answer {
    match serde_json::to_vec(body) {
        Ok(bytes) => respond(status, "application/json", bytes.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the answer: {error}\n")),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    answer
}
