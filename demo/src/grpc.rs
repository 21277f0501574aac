//! gRPC without generated code: unary calls on a channel, unary answers by path.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    codegen::http as tonic_http,
    server::{Grpc, NamedService},
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;

use crate::{messages, serve::Shutdown};

/// A call that takes longer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that takes longer to open has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A channel to `host:port`, connected when first used and again whenever it breaks.
///
/// # Errors
///
/// When `host:port` cannot be part of a URI.
pub fn channel(host: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{host}"))
        .map_err(|error| anyhow::anyhow!("`{host}` is not a host and port: {error}"))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).connect_lazy())
}

/// Calls `service`/`rpc` and waits for its one answer.
///
/// # Errors
///
/// The status of the server, or `Unavailable` when it was not reached.
pub async fn call<Req, Res>(channel: &Channel, service: &str, rpc: &str, message: Req) -> Result<Res, Status>
where
    Req: Message + 'static,
    Res: Message + Default + 'static,
{
    let path = messages::path(service, rpc).ok_or_else(|| Status::internal(format!("`{rpc}` cannot be an rpc")))?;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(format!("{service}: {error}")))?;
    let codec = ProstCodec::<Req, Res>::default();
    client.unary(Request::new(message), path, codec).await.map(Response::into_inner)
}

/// Calls so far, by rpc and by rpc and status, in the form that Prometheus reads.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<Mutex<Counters>>);

#[derive(Debug, Default)]
struct Counters {
    started: BTreeMap<String, u64>,
    /// The code is a number because [`Code`] has no order.
    handled: BTreeMap<(String, i32), u64>,
}

impl Calls {
    fn started(&self, rpc: &str) {
        *self.counters().started.entry(rpc.to_owned()).or_default() += 1;
    }

    fn handled(&self, rpc: &str, code: Code) {
        *self.counters().handled.entry((rpc.to_owned(), code as i32)).or_default() += 1;
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the counters of `service`.
    pub fn render(&self, service: &str, out: &mut String) {
        let counters = self.counters();
        out.push_str("# HELP grpc_server_started_total Calls begun.\n# TYPE grpc_server_started_total counter\n");
        for (rpc, count) in &counters.started {
            let _ =
                writeln!(out, "grpc_server_started_total{{grpc_service=\"{service}\",grpc_method=\"{rpc}\"}} {count}");
        }
        out.push_str("# HELP grpc_server_handled_total Calls answered.\n# TYPE grpc_server_handled_total counter\n");
        for ((rpc, code), count) in &counters.handled {
            let code = Code::from_i32(*code);
            let _ = writeln!(
                out,
                "grpc_server_handled_total{{grpc_service=\"{service}\",grpc_method=\"{rpc}\",grpc_code=\"{code:?}\"}} {count}"
            );
        }
    }
}

/// Answers the rpcs of one service.
pub trait Answers: Clone + Send + Sync + 'static {
    /// Full name of the service.
    const NAME: &'static str;
    /// The rpcs.
    type Rpc: Send;
    /// The rpc of this name.
    fn rpc(&self, name: &str) -> Option<Self::Rpc>;
    /// Answers a call.
    fn answer(&self, rpc: Self::Rpc, request: Incoming) -> impl Future<Output = Answer> + Send;
}

/// A call that was not decoded yet.
#[derive(Debug)]
pub struct Incoming(tonic_http::Request<Body>);

/// What goes back, and how it ended.
#[derive(Debug)]
pub struct Answer {
    response: tonic_http::Response<Body>,
    code: Code,
}

impl Incoming {
    /// Decodes the message, runs `work` on it, and encodes what comes out.
    pub async fn unary<Req, Res, W, F>(self, work: W) -> Answer
    where
        Req: Message + Default + Send + 'static,
        Res: Message + Send + 'static,
        W: FnOnce(Req) -> F + Send + 'static,
        F: Future<Output = Result<Res, Status>> + Send + 'static,
    {
        let code = Arc::new(Mutex::new(Code::Internal));
        let service = Unary { work: Some(work), code: code.clone() };
        let response = Grpc::new(ProstCodec::<Res, Req>::default()).unary(service, self.0).await;
        let code = *code.lock().unwrap_or_else(PoisonError::into_inner);
        Answer { response, code }
    }
}

/// One call as tonic wants it.
struct Unary<W> {
    work: Option<W>,
    code: Arc<Mutex<Code>>,
}

impl<Req, Res, W, F> tower::Service<Request<Req>> for Unary<W>
where
    W: FnOnce(Req) -> F,
    F: Future<Output = Result<Res, Status>> + Send + 'static,
{
    type Response = Response<Res>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Res>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let Some(work) = self.work.take() else {
            return Box::pin(async { Err(Status::internal("called twice")) });
        };
        let (work, code) = (work(request.into_inner()), self.code.clone());
        Box::pin(async move {
            let result = work.await;
            *code.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().map_or(Code::Ok, Status::code);
            result.map(Response::new)
        })
    }
}

/// A gRPC server for one service.
#[derive(Debug, Clone)]
struct Routed<A> {
    answers: A,
    calls: Calls,
}

impl<A: Answers> NamedService for Routed<A> {
    const NAME: &'static str = A::NAME;
}

impl<A: Answers> tower::Service<tonic_http::Request<Body>> for Routed<A> {
    type Response = tonic_http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic_http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let name = path.rsplit('/').next().unwrap_or_default();
            // An unknown rpc is not counted: its name is the client's.
            let Some(rpc) = this.answers.rpc(name) else {
                return Ok(Status::unimplemented(format!("{} has no {name}", A::NAME)).into_http());
            };
            this.calls.started(name);
            let answer = this.answers.answer(rpc, Incoming(request)).await;
            this.calls.handled(name, answer.code);
            Ok(answer.response)
        })
    }
}

/// Serves one gRPC service on the listener until the end, then finishes the calls in flight.
///
/// # Errors
///
/// When the server ends for another reason.
pub async fn serve<A: Answers>(
    listener: TcpListener,
    mut shutdown: Shutdown,
    answers: A,
    calls: Calls,
) -> anyhow::Result<()> {
    let end = async move { shutdown.ended().await };
    let router = Server::builder().tcp_nodelay(true).add_service(Routed { answers, calls });
    Ok(router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), end).await?)
}
