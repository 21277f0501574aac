//! The Kubernetes API, as far as the control plane needs it: requests and watches that always end.
//!
//! kube-rs finds the server, authenticates and speaks TLS. What is done over that is a little of our own, because the
//! server is not trusted to behave: every request has a deadline, every answer a longest size, a watch that falls
//! silent is given up, and nothing of an answer that cannot be understood (it may hold a Secret) goes into the log.

pub mod lease;
pub mod lines;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use lines::Lines;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// Most octets of an answer. A page of 500 large pods has a few million.
const MAX_ANSWER: usize = 64 << 20;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Asks for metadata instead of whole objects.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// As [`METADATA`], for lists.
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// How to reach the API server.
#[derive(Debug, Clone)]
pub struct Options {
    /// A file that says where it is and who we are; else what a pod is given by its cluster, or `KUBECONFIG` outside of one.
    pub kubeconfig: Option<PathBuf>,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server says no.
    #[error("the API server answers {code} {reason}: {message}")]
    Status {
        /// Status of the answer.
        code: u16,
        /// Its one-word reason, such as `NotFound`; may be empty.
        reason: String,
        /// Its sentence.
        message: String,
    },
    /// It did not answer in time.
    #[error("the API server did not answer within {0:?}")]
    Timeout(Duration),
    /// It could not be reached, or hung up.
    #[error("the API server cannot be reached: {0}")]
    Transport(String),
    /// It answered what nobody can understand.
    #[error("the API server's answer makes no sense: {0}")]
    Malformed(String),
}

impl Error {
    /// Whether the server answered with this status.
    pub fn is(&self, status: StatusCode) -> bool {
        matches!(self, Error::Status { code, .. } if *code == status.as_u16())
    }
}

/// A kind of object at the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// As a manifest's `apiVersion`: `v1`, `apps/v1`.
    pub api_version: &'static str,
    /// Lower-case plural.
    pub plural: &'static str,
}

impl Resource {
    /// Where all objects are, in every namespace.
    pub fn all(&self) -> String {
        format!("{}/{}", self.base(), self.plural)
    }

    /// Where the objects of a namespace are.
    pub fn within(&self, namespace: &str) -> String {
        format!("{}/namespaces/{namespace}/{}", self.base(), self.plural)
    }

    fn base(&self) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{}", self.api_version)
    }
}

/// A client of the API server. Cloning is cheap and refers to the same.
#[derive(Clone)]
pub struct Api {
    client: Client,
    timeout: Duration,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    /// A client. Nothing is asked yet: a server that is away may come.
    ///
    /// # Errors
    /// When it is not said where the server is.
    pub async fn new(options: &Options) -> anyhow::Result<Api> {
        let mut config = match &options.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
                let proxied = file.clusters.iter().filter_map(|c| c.cluster.as_ref()).any(|c| c.proxy_url.is_some());
                let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("cannot use {}", path.display()))?;
                // A proxy of the environment is one to the world, as container runtimes have it, not to the cluster.
                config.proxy_url = config.proxy_url.filter(|_| proxied);
                config
            }
            None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                Config::incluster().context("this pod's service account cannot be used")?
            }
            None => Config::from_kubeconfig(&KubeConfigOptions::default())
                .await
                .context("this is no pod, and no usable kubeconfig says where the API server is")?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT.min(options.timeout));
        // How often and when to try again is decided here, by those who ask.
        config.default_retry = false;
        let client = Client::try_from(config).context("cannot make a client of the API server")?;
        Ok(Api { client, timeout: options.timeout })
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// `GET`s what is at the path.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.read(|| request(Method::GET, path, &[])).await
    }

    /// One page of a list.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, path: &str, query: &[(&str, &str)], metadata: bool) -> Result<Value, Error> {
        let mut request = request(Method::GET, path, query);
        if metadata {
            accept(&mut request, METADATA_LIST);
        }
        self.call(request).await
    }

    /// `GET`s an object's metadata alone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metadata(&self, path: &str) -> Result<Value, Error> {
        let make = || {
            let mut request = request(Method::GET, path, &[]);
            accept(&mut request, METADATA);
            request
        };
        self.read(make).await
    }

    /// `POST`s an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.call(with_body(Method::POST, path, "application/json", object)).await
    }

    /// `PUT`s an object; with a `resourceVersion` in it, only over that version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.call(with_body(Method::PUT, path, "application/json", object)).await
    }

    /// `PATCH`es an object by operations (RFC 6902).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn patch(&self, path: &str, operations: &Value) -> Result<Value, Error> {
        self.call(with_body(Method::PATCH, path, "application/json-patch+json", operations)).await
    }

    /// `DELETE`s the object that has this uid.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, path: &str, uid: &str) -> Result<Value, Error> {
        let options =
            serde_json::json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid } });
        self.call(with_body(Method::DELETE, path, "application/json", &options)).await
    }

    /// Starts a watch; its lines are events.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(&self, path: &str, query: &[(&str, &str)], metadata: bool) -> Result<Lines, Error> {
        let mut request = request(Method::GET, path, query);
        if metadata {
            accept(&mut request, METADATA);
        }
        // Events must come when they happen, not when a compressor has gathered enough.
        request.headers_mut().insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"));
        let started = async {
            let response = self.send(request).await?;
            if !response.status().is_success() {
                let status = response.status();
                return Err(refused(status, &collect(response).await?));
            }
            Ok(Lines::new(response.into_body()))
        };
        self.in_time(started).await
    }

    /// Asks for one object, and once more when the connection ends meanwhile: one that was kept may be just about to.
    async fn read(&self, make: impl Fn() -> Request<Body>) -> Result<Value, Error> {
        match self.call(make()).await {
            Err(Error::Transport(_)) => self.call(make()).await,
            answer => answer,
        }
    }

    async fn call(&self, request: Request<Body>) -> Result<Value, Error> {
        let answered = async {
            let response = self.send(request).await?;
            let status = response.status();
            let body = collect(response).await?;
            if !status.is_success() {
                return Err(refused(status, &body));
            }
            serde_json::from_slice(&body).map_err(|error| Error::Malformed(format!("not JSON: {error}")))
        };
        self.in_time(answered).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(Error::Timeout(self.timeout)))
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        self.client.send(request).await.map_err(|error| Error::Transport(causes(&error)))
    }
}

/// An error with what caused it, once each.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn request(method: Method, path: &str, query: &[(&str, &str)]) -> Request<Body> {
    let mut uri = path.to_owned();
    for (at, (name, value)) in query.iter().enumerate() {
        uri.push(if at == 0 { '?' } else { '&' });
        uri.push_str(name);
        uri.push('=');
        uri.push_str(&escape(value));
    }
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    // Paths are made of names that Kubernetes allows, values are escaped; what is no URI nonetheless is answered 404.
    *request.uri_mut() = uri.parse().unwrap_or_default();
    accept(&mut request, "application/json");
    request
}

fn with_body(method: Method, path: &str, content_type: &'static str, body: &Value) -> Request<Body> {
    let mut request = request(method, path, &[]);
    request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    *request.body_mut() = Body::from(body.to_string().into_bytes());
    request
}

fn accept(request: &mut Request<Body>, what: &'static str) {
    request.headers_mut().insert(header::ACCEPT, header::HeaderValue::from_static(what));
}

/// The value of a query, percent-encoded.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

async fn collect(response: Response<Body>) -> Result<Bytes, Error> {
    match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Error::Malformed(format!("longer than {MAX_ANSWER} octets")))
        }
        Err(error) => Err(Error::Transport(causes(error.as_ref()))),
    }
}

/// What an answer that is no success says.
fn refused(status: StatusCode, body: &[u8]) -> Error {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    // Only what a Status says of itself, and never more of it than a line.
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(300).collect();
    let is_status = value.get("kind").and_then(Value::as_str) == Some("Status");
    let (reason, message): (String, String) =
        if is_status { (text("reason"), text("message")) } else { Default::default() };
    let reason = if reason.is_empty() { status.canonical_reason().unwrap_or_default().to_owned() } else { reason };
    Error::Status { code: status.as_u16(), reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries() {
        let pods = Resource { api_version: "v1", plural: "pods" };
        let jobs = Resource { api_version: "batch/v1", plural: "jobs" };
        assert_eq!(pods.all(), "/api/v1/pods");
        assert_eq!(jobs.within("a"), "/apis/batch/v1/namespaces/a/jobs");
        let request = request(Method::GET, &pods.all(), &[("limit", "5"), ("continue", "a&b= /+é")]);
        assert_eq!(request.uri(), "/api/v1/pods?limit=5&continue=a%26b%3D%20%2F%2B%C3%A9");
    }

    #[test]
    fn refusals_say_what_a_status_says_and_nothing_else() {
        let status = br#"{"kind":"Status","reason":"Forbidden","message":"pods is forbidden"}"#;
        let error = refused(StatusCode::FORBIDDEN, status);
        assert!(error.is(StatusCode::FORBIDDEN));
        assert_eq!(error.to_string(), "the API server answers 403 Forbidden: pods is forbidden");
        let secret = refused(StatusCode::BAD_GATEWAY, br#"{"kind":"Secret","message":"hush"}"#);
        assert_eq!(secret.to_string(), "the API server answers 502 Bad Gateway: ");
    }
}
