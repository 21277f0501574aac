//! The admin server of a component: `/metrics`, `/ready`, `/live`.

use crate::drain::Drain;
use crate::http::{Answer, serve, text};
use crate::telemetry::Telemetry;
use http::{Method, StatusCode};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Says why the component is not ready; `None` when it is.
pub type Readiness = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Serves until the drain.
pub async fn run(listener: TcpListener, drain: Drain, telemetry: Telemetry, ready: Readiness) {
    serve(listener, drain, move |request| {
        let answer = answer(request.method(), request.uri().path(), &telemetry, &ready);
        async move { answer }
    })
    .await;
}

fn answer(method: &Method, path: &str, telemetry: &Telemetry, ready: &Readiness) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match path {
        "/metrics" => text(StatusCode::OK, telemetry.render()),
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" => match ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "this is not here; there are /metrics, /ready and /live\n"),
    }
}
