//! The server: answers with the number it was sent and the name of its pod, as HTTP/1.1 and as gRPC.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use tokio::net::TcpListener;
use weft_demo::{
    grpc::{self, Answer, Answers, Calls, Incoming},
    serve::{self, Shutdown},
};

/// Header of HTTP requests that carries their number.
pub const NUMBER: &str = "x-number";
/// Full name of the gRPC service.
pub const SERVICE: &str = "weft.load.Echo";
/// Its only rpc.
pub const RPC: &str = "Call";
const TEXT: &str = "text/plain; charset=utf-8";

/// Request and answer of the rpc.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Called {
    /// The same in the answer as in the request.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The pod that answers; empty in the request.
    #[prost(string, tag = "2")]
    pub pod: String,
}

/// What both servers know.
#[derive(Debug, Clone)]
struct Echo {
    pod: Arc<str>,
    /// Milliseconds added to each answer.
    delay: Arc<AtomicU64>,
}

impl Echo {
    async fn wait(&self) {
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
    }

    async fn http(
        self,
        method: Method,
        path: String,
        number: Option<String>,
    ) -> http::Response<http_body_util::Full<bytes::Bytes>> {
        if path == "/ready" {
            return serve::text(StatusCode::OK, TEXT, "ready\n");
        }
        if let (Method::PUT, Some(delay)) = (method, path.strip_prefix("/delay/")) {
            return match delay.parse() {
                Ok(delay) => {
                    self.delay.store(delay, Ordering::Relaxed);
                    serve::text(StatusCode::OK, TEXT, "set\n")
                }
                Err(_) => serve::text(StatusCode::BAD_REQUEST, TEXT, "milliseconds are wanted\n"),
            };
        }
        self.wait().await;
        serve::text(StatusCode::OK, TEXT, format!("{} {}", number.unwrap_or_default(), self.pod))
    }
}

impl Answers for Echo {
    const NAME: &'static str = SERVICE;
    type Rpc = ();

    fn rpc(&self, name: &str) -> Option<()> {
        (name == RPC).then_some(())
    }

    async fn answer(&self, (): (), request: Incoming) -> Answer {
        let this = self.clone();
        let call = move |called: Called| async move {
            this.wait().await;
            Ok(Called { number: called.number, pod: this.pod.to_string() })
        };
        request.unary(call).await
    }
}

/// Serves until the end, then finishes what is in flight.
pub async fn run(http: TcpListener, grpc: TcpListener, shutdown: Shutdown) -> anyhow::Result<()> {
    let pod = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let echo = Echo { pod: pod.into(), delay: Arc::default() };
    let both = echo.clone();
    let http = serve::http(http, shutdown.clone(), move |request| {
        let number = request.headers().get(NUMBER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        both.clone().http(request.method().clone(), request.uri().path().to_owned(), number)
    });
    let ((), ended) = tokio::join!(http, grpc::serve(grpc, shutdown, echo, Calls::default()));
    ended
}
