//! The clients: HTTP/1.1 and gRPC, without retries of their own.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch};
use tonic::transport::{Channel, Endpoint};

use crate::{
    accounts::Ledger,
    echo::{Called, NUMBER, RPC, SERVICE},
    pace,
};

/// Octets of an answer at most.
const BODY_LIMIT: usize = 64 * 1024;
/// Every so many requests one has a connection of its own.
const NEW_CONNECTION_EVERY: u64 = 10;
/// gRPC connections.
const CHANNELS: u64 = 4;

type Connection = SendRequest<Empty<Bytes>>;

/// Whom requests are sent to.
#[derive(Debug, Clone, Copy)]
pub enum Server {
    /// `weft-load serve`, which says who it is.
    Echo,
    /// The web of an emojivoto, which asks its two services.
    Emojivoto,
}

impl Server {
    fn path(self, number: u64) -> &'static str {
        match self {
            Self::Echo => "/",
            Self::Emojivoto if number.is_multiple_of(2) => "/api/list",
            Self::Emojivoto => "/api/vote?choice=:joy:",
        }
    }

    /// Who says that it has answered this request.
    fn answered(self, body: &str, number: u64) -> anyhow::Result<String> {
        match self {
            Self::Echo => answered(body, number),
            Self::Emojivoto if number.is_multiple_of(2) => {
                let list: Vec<serde_json::Value> = serde_json::from_str(body).context("not a list")?;
                ensure!(list.len() == 100, "{} emoji", list.len());
                Ok("list".into())
            }
            Self::Emojivoto => Ok("vote".into()),
        }
    }
}

/// Sends GET requests, for ever.
pub async fn http(host: String, server: Server, rate: u32, ledger: &Ledger, paused: watch::Receiver<bool>) {
    let client = Http { host: host.into(), server, idle: Arc::default() };
    pace::keep(rate, ledger, paused, move |number| client.clone().request(number)).await;
}

#[derive(Clone)]
struct Http {
    host: Arc<str>,
    server: Server,
    /// As many as there were requests in flight at most.
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Http {
    async fn request(self, number: u64) -> anyhow::Result<String> {
        let keep = !number.is_multiple_of(NEW_CONNECTION_EVERY);
        let mut connection = match keep.then(|| self.take_idle()).flatten() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let request = Request::get(self.server.path(number)).header(header::HOST, &*self.host).header(NUMBER, number);
        let request = if keep { request } else { request.header(header::CONNECTION, "close") };
        let response = connection.send_request(request.body(Empty::new())?).await.context("request")?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("body: {error}"))?.to_bytes();
        let body = String::from_utf8_lossy(&body);
        if !head.status.is_success() {
            bail!("{}: {body} {:?}", head.status, head.headers.get("l5d-proxy-error"));
        }
        let pod = self.server.answered(&body, number)?;
        if keep && connection.ready().await.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        Ok(pod)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Whatever was closed while nobody used it is no failure.
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(&*self.host).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The pod that says it has answered this request.
fn answered(body: &str, number: u64) -> anyhow::Result<String> {
    let (said, pod) = body.split_once(' ').with_context(|| format!("not an answer: {body}"))?;
    ensure!(said == number.to_string(), "the answer to another request: {body}");
    Ok(pod.to_owned())
}

/// Makes unary calls, for ever.
pub async fn grpc(host: String, rate: u32, ledger: &Ledger, paused: watch::Receiver<bool>) {
    let channels: anyhow::Result<Vec<Channel>> = (0..CHANNELS)
        .map(|_| Ok(Endpoint::from_shared(format!("http://{host}"))?.tcp_nodelay(true).connect_lazy()))
        .collect();
    let channels = match channels {
        Ok(channels) => channels,
        Err(error) => return eprintln!("weft-load: {host}: {error}"),
    };
    let request = move |number: u64| {
        let channel = usize::try_from(number % CHANNELS).unwrap_or_default();
        call(channels[channel].clone(), number)
    };
    pace::keep(rate, ledger, paused, request).await;
}

async fn call(channel: Channel, number: u64) -> anyhow::Result<String> {
    let message = Called { number, pod: String::new() };
    let answer: Called = weft_demo::grpc::call(&channel, SERVICE, RPC, message).await?;
    ensure!(answer.number == number, "the answer to another call: {answer:?}");
    Ok(answer.pod)
}
