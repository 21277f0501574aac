//! What the gRPC services share: streams fed by a watch, figures of them, serving until the drain.

use crate::drain::{Drain, GRACE};
use crate::telemetry::{Telemetry, Value};
use futures_util::stream::{self, BoxStream, StreamExt};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Response, Status};

/// A server stream.
pub type Messages<M> = BoxStream<'static, Result<M, Status>>;

/// Figures of one method.
#[derive(Debug, Clone)]
pub struct Method {
    telemetry: Telemetry,
    service: &'static str,
    method: &'static str,
    open: Value,
    sent: Value,
}

impl Method {
    /// Figures of this method.
    pub fn new(telemetry: &Telemetry, service: &'static str, method: &'static str) -> Method {
        let labels = [("grpc_service", service), ("grpc_method", method)];
        Method {
            telemetry: telemetry.clone(),
            service,
            method,
            open: telemetry.gauge("grpc_server_streams", "Server streams that are open", &labels),
            sent: telemetry.counter("grpc_server_msg_sent_total", "Messages sent on server streams", &labels),
        }
    }

    /// Counts a call that ended at once, and gives its result back.
    ///
    /// # Errors
    /// The given one.
    pub fn ended<T>(&self, result: Result<T, Status>) -> Result<Response<T>, Status> {
        self.count(result.as_ref().err().map_or(Code::Ok, Status::code));
        result.map(Response::new)
    }

    fn count(&self, code: Code) {
        let labels = [("grpc_service", self.service), ("grpc_method", self.method), ("grpc_code", code_name(code))];
        self.telemetry.counter("grpc_server_handled_total", "Calls that ended, by status", &labels).inc();
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "InvalidArgument",
        Code::NotFound => "NotFound",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Unavailable => "Unavailable",
        Code::Internal => "Internal",
        _ => "Other",
    }
}

/// What a new snapshot means for a stream.
#[derive(Debug)]
pub enum Next<M> {
    /// Send these, possibly none, and go on.
    Send(Vec<M>),
    /// End the stream.
    End(Status),
}

/// An open stream is counted as long as it lives, also when the client just goes away.
struct Open(Method);

impl Open {
    fn new(method: Method) -> Open {
        method.open.inc();
        Open(method)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.add(-1);
        self.0.count(Code::Ok);
    }
}

struct Watched<T, M, F> {
    rx: watch::Receiver<T>,
    translate: F,
    queue: VecDeque<M>,
    drain: Drain,
    first: bool,
    status: Option<Status>,
    open: Open,
}

/// A stream of what `translate` makes of each snapshot, beginning with the one that is there. Snapshots that come
/// faster than the client reads are skipped over: only the newest counts.
pub fn watched<T, M, F>(rx: watch::Receiver<T>, drain: Drain, method: &Method, translate: F) -> Messages<M>
where
    T: Clone + Send + Sync + 'static,
    M: Send + 'static,
    F: FnMut(T) -> Next<M> + Send + 'static,
{
    let open = Open::new(method.clone());
    let state = Watched { rx, translate, queue: VecDeque::new(), drain, first: true, status: None, open };
    stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        loop {
            if let Some(message) = state.queue.pop_front() {
                state.open.0.sent.inc();
                return Some((Ok(message), Some(state)));
            }
            if let Some(status) = state.status.take() {
                return Some((Err(status), None));
            }
            if !state.first {
                let changed = tokio::select! {
                    changed = state.rx.changed() => changed.is_ok(),
                    () = state.drain.signaled() => false,
                };
                if !changed {
                    return None;
                }
            }
            state.first = false;
            let snapshot = state.rx.borrow_and_update().clone();
            match (state.translate)(snapshot) {
                Next::Send(messages) => state.queue.extend(messages),
                Next::End(status) => state.status = Some(status),
            }
        }
    })
    .boxed()
}

/// Tells whether a message differs from the last one, which it keeps.
#[derive(Debug)]
pub struct Changed<M>(Option<M>);

impl<M> Default for Changed<M> {
    fn default() -> Self {
        Changed(None)
    }
}

impl<M: PartialEq + Clone> Changed<M> {
    /// The message, when it differs from the last one.
    pub fn filter(&mut self, message: M) -> Vec<M> {
        if self.0.as_ref() == Some(&message) {
            return Vec::new();
        }
        self.0 = Some(message.clone());
        vec![message]
    }
}

/// Serves until the drain, then as long as streams need to end, at most [`GRACE`].
///
/// # Errors
/// When the server fails as a whole.
pub async fn serve(listener: TcpListener, routes: Routes, drain: Drain) -> anyhow::Result<()> {
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), {
            let drain = drain.clone();
            async move { drain.signaled().await }
        });
    tokio::select! {
        result = server => result.map_err(Into::into),
        () = async { drain.signaled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}
