//! Probes and lifecycle hooks: httpGet, tcpSocket, grpc and exec, made from the node to the pod's IP as a kubelet does.
//!
//! In a meshed pod that would ask the proxy. It answers for the application where it understands what is asked; where it
//! does not, in tcpSocket and HTTPS, the question is asked from within the pod, where nothing leads it to the proxy.

mod inside;

use super::endpoints::resolve_port;
use super::shared::Shared;
use crate::unverified;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{HTTPGetAction, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weft_core::names::PROXY_CONTAINER;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    /// No probe: the hook after the start, made in the same way.
    PostStart,
    Startup,
    Readiness,
    Liveness,
}

/// A probe's verdict has changed.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) container: usize,
    /// Which start of the container was probed.
    pub(crate) run: u64,
    pub(crate) kind: ProbeKind,
    /// Passed, or why not.
    pub(crate) result: Result<(), String>,
}

/// Where and what to probe.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) shared: Rc<Shared>,
    pub(crate) pod: Rc<Pod>,
    pub(crate) ip: Ipv4Addr,
    pub(crate) container_name: String,
}

fn seconds(value: Option<i32>, default: u64, least: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default).max(least))
}

/// Probes until dropped; sends a verdict when it changes.
pub(crate) async fn watch(
    probe: Probe,
    target: Target,
    container: usize,
    run: u64,
    kind: ProbeKind,
    verdicts: mpsc::UnboundedSender<Verdict>,
) {
    let period = seconds(probe.period_seconds, 10, 1);
    let timeout = seconds(probe.timeout_seconds, 1, 1);
    let failures_needed = probe.failure_threshold.unwrap_or(3).max(1);
    let successes_needed = if kind == ProbeKind::Readiness { probe.success_threshold.unwrap_or(1).max(1) } else { 1 };
    let (mut failures, mut successes) = (0, 0);
    let mut passed: Option<bool> = None;
    let mut told: Option<String> = None;
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0, 0)).await;
    loop {
        let result = match tokio::time::timeout(timeout, check(&probe, &target)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", timeout.as_secs())),
        };
        let change = match &result {
            Ok(()) => {
                failures = 0;
                successes += 1;
                successes >= successes_needed && passed != Some(true)
            }
            Err(_) => {
                successes = 0;
                failures += 1;
                // A pod that is not ready says why with the newest answer; the other kinds end the container only once.
                let other = kind == ProbeKind::Readiness && result.as_ref().err() != told.as_ref();
                failures >= failures_needed && (passed != Some(false) || other)
            }
        };
        if change {
            passed = Some(result.is_ok());
            told = result.as_ref().err().cloned();
            // The pod has ended when nobody hears it.
            if verdicts.send(Verdict { container, run, kind, result }).is_err() {
                return;
            }
        }
        // Until the first verdict, and while not ready, look more often than asked for: it is only our own machine.
        let waiting = passed.is_none_or(|p| !p) && kind != ProbeKind::Liveness && failures < failures_needed;
        let pause = if waiting && passed.is_none() { period.min(Duration::from_millis(500)) } else { period };
        tokio::time::sleep(pause).await;
    }
}

async fn check(probe: &Probe, target: &Target) -> Result<(), String> {
    if let Some(action) = &probe.exec {
        exec(action.command.as_deref().unwrap_or_default(), target).await
    } else if let Some(action) = &probe.http_get {
        http_get(action, target).await
    } else if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|h| !h.is_empty());
        connect(host, &action.port, true, target).await.map(drop)
    } else if let Some(action) = &probe.grpc {
        grpc(action.port, action.service.as_deref().unwrap_or_default(), target).await
    } else {
        Ok(())
    }
}

/// Runs a command in the container; anything but exit code 0 is a failure.
pub(crate) async fn exec(command: &[String], target: &Target) -> Result<(), String> {
    let (code, output) = target.shared.run_command(&target.container_name, command).await?;
    if code == 0 { Ok(()) } else { Err(format!("exit code {code}: {}", output.trim())) }
}

/// Connects to a port of the pod, or of another host; the application itself when `past_proxy` is set.
async fn connect(
    host: Option<&str>,
    port: &IntOrString,
    past_proxy: bool,
    target: &Target,
) -> Result<TcpStream, String> {
    let number = resolve_port(&target.pod, port, "TCP").and_then(|p| u16::try_from(p).ok());
    let number = number.ok_or_else(|| format!("no container port is named {port:?}"))?;
    let connected = match host {
        Some(host) => TcpStream::connect((host, number)).await,
        None if past_proxy && is_meshed(&target.pod) => {
            let holder = target.shared.holder.borrow().clone().ok_or("the pod is not running")?;
            inside::connect(holder.pid(), (target.ip, number).into()).await
        }
        None => TcpStream::connect((target.ip, number)).await,
    };
    let host = host.map_or_else(|| target.ip.to_string(), str::to_owned);
    connected.map_err(|e| format!("connect to {host}:{number}: {e}"))
}

/// Whether a proxy stands between the pod's network and its application.
fn is_meshed(pod: &Pod) -> bool {
    let spec = pod.spec.iter();
    let mut containers = spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    containers.any(|c| c.name == PROXY_CONTAINER)
}

/// Gets a page; any status from 200 to 399 is a success.
pub(crate) async fn http_get(action: &HTTPGetAction, target: &Target) -> Result<(), String> {
    let host = action.host.as_deref().filter(|h| !h.is_empty());
    let secure = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS"));
    let stream = connect(host, &action.port, secure, target).await?;
    let peer = stream.peer_addr().map_err(|e| e.to_string())?;
    if secure {
        // As a kubelet, which asks how it is and not who it is. An address is no server name, so none is sent.
        let stream = unverified::connect(stream, ServerName::IpAddress(peer.ip().into())).await?;
        get(action, stream, peer).await
    } else {
        get(action, stream, peer).await
    }
}

async fn get<S>(action: &HTTPGetAction, stream: S, peer: SocketAddr) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = http::Request::get(&path).header("user-agent", "kube-probe/weft").header("accept", "*/*");
    let mut host = peer.to_string();
    for header in action.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request.header("host", host).header("connection", "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| format!("GET {path}: {e}"))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| format!("GET {path}: {e}"))?;
        let status = response.status();
        if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(format!("GET {path}: status {status}")) }
    };
    drive(exchange, connection).await
}

/// Asks `grpc.health.v1.Health/Check`; only SERVING is a success.
async fn grpc(port: i32, service: &str, target: &Target) -> Result<(), String> {
    let stream = connect(None, &IntOrString::Int(port), false, target).await?;
    let peer = stream.peer_addr().map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    // HealthCheckRequest { string service = 1 }, behind the five octets of a gRPC message.
    let mut message = Vec::new();
    if !service.is_empty() {
        let length = u8::try_from(service.len()).ok().filter(|l| *l < 128).ok_or("service name too long")?;
        message.extend_from_slice(&[0x0a, length]);
        message.extend_from_slice(service.as_bytes());
    }
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(&message);
    let request = http::Request::post(format!("http://{peer}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/weft")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| format!("health check: {e}"))?;
        let collected = response.into_body().collect().await.map_err(|e| format!("health check: {e}"))?;
        let status = collected.trailers().and_then(|t| t.get("grpc-status")).map(|s| s.as_bytes().to_vec());
        if let Some(status) = status.filter(|s| s != b"0") {
            return Err(format!("health check: gRPC status {}", String::from_utf8_lossy(&status)));
        }
        // HealthCheckResponse { ServingStatus status = 1 }; SERVING is 1.
        match collected.to_bytes().get(5..) {
            Some([0x08, 1, ..]) => Ok(()),
            _ => Err("health check: not serving".into()),
        }
    };
    drive(exchange, connection).await
}

/// Waits for an exchange while its connection is driven; the answer may have come with the connection's end.
async fn drive<E, C>(exchange: E, connection: C) -> Result<(), String>
where
    E: Future<Output = Result<(), String>>,
    C: Future,
{
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        result = &mut exchange => return result,
        _ = connection => {}
    }
    exchange.await
}
