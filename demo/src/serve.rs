//! What the three services share: ends of life, an HTTP/1.1 server, and the Prometheus page.

use std::{convert::Infallible, future::Future, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

/// A client that has not sent its head after this long is let go.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept, which means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Resolves when the process is told to end. Cheap to clone; every server of the process has one.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Ends every [`Shutdown`] made with it.
#[derive(Debug)]
pub struct ShutdownHandle(watch::Sender<bool>);

impl Shutdown {
    /// One that ends when its handle says so, or is dropped.
    pub fn manual() -> (ShutdownHandle, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownHandle(sender), Self(receiver))
    }

    /// One that ends with SIGTERM or SIGINT.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (handle, shutdown) = Self::manual();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => tracing::info!("SIGTERM: finishing what is in flight"),
                _ = int.recv() => tracing::info!("SIGINT: finishing what is in flight"),
            }
            handle.end();
        });
        Ok(shutdown)
    }

    /// Waits for the end.
    pub async fn ended(&mut self) {
        // An error means that the handle is gone, which is an end too.
        let _ = self.0.wait_for(|ended| *ended).await;
    }
}

impl ShutdownHandle {
    /// Tells everybody.
    pub fn end(&self) {
        self.0.send_replace(true);
    }
}

/// Serves HTTP/1.1 on the listener until the end, then finishes the requests in flight.
pub async fn http<H, F>(listener: TcpListener, mut shutdown: Shutdown, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.ended() => break,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small; waiting to fill a segment only adds latency.
        let _ = socket.set_nodelay(true);
        while connections.try_join_next().is_some() {}
        let (handle, mut shutdown) = (handle.clone(), shutdown.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = handle(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut connection = pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(socket), service)
            );
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = shutdown.ended() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    // Who connects from now on is refused, and does not wait for somebody who will never accept.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves `/metrics` with what `render` writes, and `/ready`.
pub async fn prometheus<R>(listener: TcpListener, shutdown: Shutdown, render: R)
where
    R: Fn() -> String + Clone + Send + 'static,
{
    http(listener, shutdown, move |request| {
        let answer = match request.uri().path() {
            "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render()),
            "/ready" => text(StatusCode::OK, "text/plain; charset=utf-8", "ready\n"),
            _ => text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n"),
        };
        async move { answer }
    })
    .await;
}

/// A whole answer.
pub fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
