//! The metrics API of the control plane, reached through the cluster.

use crate::Failure;
use crate::cluster::{Cluster, Mesh};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::api::{ApiError, CheckResponse, EdgesRequest, EdgesResponse, StatRequest, StatResponse};
use weft_core::names;

/// Answers larger than this, in octets, are refused.
pub(crate) const MAX_ANSWER: usize = 256 << 20;
/// How long one question may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A running cluster's metrics API.
#[derive(Debug)]
pub struct Api {
    cluster: Cluster,
    namespace: String,
}

/// One HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Api {
    /// The API of a mesh's control plane.
    ///
    /// # Errors
    /// When there is no cluster; the message says what to do.
    pub async fn connect(mesh: &Mesh) -> Result<Api, Failure> {
        Ok(Api::of(mesh.connect().await?, &mesh.control))
    }

    /// The API of the control plane in this namespace of a cluster.
    pub fn of(cluster: Cluster, control_namespace: &str) -> Api {
        Api { cluster, namespace: control_namespace.to_owned() }
    }

    /// Rows of `stat`.
    ///
    /// # Errors
    /// When the control plane cannot be reached or refuses.
    pub async fn stat(&self, request: &StatRequest) -> Result<StatResponse, Failure> {
        self.call("POST", "/api/stat", Some(request)).await
    }

    /// Rows of `edges`.
    ///
    /// # Errors
    /// As [`Api::stat`].
    pub async fn edges(&self, request: &EdgesRequest) -> Result<EdgesResponse, Failure> {
        self.call("POST", "/api/edges", Some(request)).await
    }

    /// What the metrics component says of itself.
    ///
    /// # Errors
    /// As [`Api::stat`].
    pub async fn check(&self) -> Result<CheckResponse, Failure> {
        self.call("GET", "/api/check", None::<&()>).await
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        question: Option<&Q>,
    ) -> Result<A, Failure> {
        let hop = format!("svc/{} in {}, port {}", names::METRICS_SERVICE, self.namespace, names::METRICS_HTTP_PORT);
        let asked = async {
            let target = format!("svc/{}", names::METRICS_SERVICE);
            let stream = self.cluster.dial(&self.namespace, &target, names::METRICS_HTTP_PORT).await;
            let stream = stream.map_err(|e| format!("cannot connect: {e}"))?;
            let body = question.map(serde_json::to_vec).transpose().map_err(|e| e.to_string())?.unwrap_or_default();
            exchange(stream, names::METRICS_SERVICE, method, path, body).await
        };
        let answer = match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => return Err(cannot_connect(&format!("{hop}: {reason}"))),
            Err(_) => return Err(cannot_connect(&format!("{hop}: no answer within {} s", TIMEOUT.as_secs()))),
        };
        read(&answer).map_err(|reason| match answer.status {
            // The question was wrong, and the reason says what about it.
            400 => Failure::new(reason),
            _ => Failure::new(format!("metrics API, {path}: {reason}")),
        })
    }
}

fn cannot_connect(reason: &str) -> Failure {
    Failure::new(format!("Cannot connect to the control plane: {reason}\nValidate the install with: weft check"))
}

/// The typed answer, or the reason that the server gives.
///
/// # Errors
/// One sentence.
pub fn read<A: DeserializeOwned>(answer: &Answer) -> Result<A, String> {
    if answer.status == 200 {
        return serde_json::from_slice(&answer.body).map_err(|e| format!("the answer is not understood: {e}"));
    }
    match serde_json::from_slice::<ApiError>(&answer.body) {
        Ok(error) if !error.error.is_empty() => Err(error.error),
        _ => Err(format!("status {}", answer.status)),
    }
}

/// One HTTP/1.1 exchange over a fresh stream.
///
/// # Errors
/// One sentence that says in which phase it failed.
pub async fn exchange<S>(stream: S, host: &str, method: &str, path: &str, body: Vec<u8>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|e| format!("HTTP: {e}"))?;
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| format!("request: {e}"))?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| format!("answer: {e}"))?.to_bytes();
        Ok(Answer { status, body })
    };
    // The connection's own error says no more than the request's.
    let (answer, _) = tokio::join!(asked, connection);
    answer
}
