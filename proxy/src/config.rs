//! Configuration: the `LINKERD2_PROXY_*` environment variables that have an effect here.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;

mod parse;

pub(crate) use parse::duration;

/// Exit status of a proxy whose environment is wrong (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// Everything that the environment decides, parsed and checked once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this proxy is and where its certificate comes from.
    pub identity: IdentityConfig,
    /// Where and how services are discovered.
    pub destination: DestinationConfig,
    /// Where and how policies are discovered.
    pub policy: PolicyConfig,
    /// The side that serves the application in this pod.
    pub inbound: ProxySide,
    /// The side that carries what the application sends.
    pub outbound: ProxySide,
    /// Local addresses that inbound connections may be for; empty: all. `INBOUND_IPS`.
    pub inbound_ips: BTreeSet<IpAddr>,
    /// True when responses that the proxy makes itself carry `l5d-proxy-error` and `l5d-proxy-connection`.
    pub emit_headers: bool,
    /// The admin server.
    pub admin: AdminConfig,
    /// How long metrics of label sets that nobody uses are kept. `METRICS_RETAIN_IDLE`.
    pub metrics_retain_idle: Duration,
    /// Data threads. `CORES`.
    pub cores: usize,
    /// What is logged. `LOG`, `LOG_FORMAT`.
    pub log: LogConfig,
    /// How long a drain may take. `SHUTDOWN_GRACE_PERIOD`.
    pub shutdown_grace: Duration,
    /// HTTP/2 flow control windows of the data path.
    pub http2: Http2Config,
    /// How long HTTP/1 clients may stand still. Not the environment's to decide.
    pub http1: Http1Config,
    /// Limits of watches on the control plane.
    pub control_streams: StreamLimits,
}

/// Limits of watches on the control plane; `None`: no limit. Not applied on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamLimits {
    /// Until the first message. `CONTROL_STREAM_INITIAL_TIMEOUT`.
    pub initial: Option<Duration>,
    /// Between messages. `CONTROL_STREAM_IDLE_TIMEOUT`.
    pub idle: Option<Duration>,
    /// All together; spreads watches anew over the replicas. `CONTROL_STREAM_LIFETIME`.
    pub lifetime: Option<Duration>,
}

/// HTTP/2 windows and limits of the data path.
#[derive(Debug, Clone)]
pub struct Http2Config {
    /// Octets of a stream's receive window. `HTTP2_INITIAL_STREAM_WINDOW_SIZE`.
    pub stream_window: u32,
    /// Octets of a connection's receive window. `HTTP2_INITIAL_CONNECTION_WINDOW_SIZE`.
    pub connection_window: u32,
}

/// How long HTTP/1 clients may stand still. Only a client that is waited for is meant, never one that waits.
#[derive(Debug, Clone, Copy)]
pub struct Http1Config {
    /// From the first octet of a request's head to its last one.
    pub head: Duration,
    /// Without an octet of a request's body or of its response.
    pub body: Duration,
    /// Between requests.
    pub idle: Duration,
}

impl Default for Http1Config {
    fn default() -> Self {
        Self {
            // hyper's limit; nginx and node have twice as much.
            head: Duration::from_secs(30),
            // Envoy's limit for streams that stand still.
            body: Duration::from_secs(300),
            // Applications keep connections for long; each that is closed may cost a request that is just on its way.
            idle: Duration::from_secs(3600),
        }
    }
}

/// Identity settings.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// This proxy's identity and TLS server name, a DNS name. `IDENTITY_LOCAL_NAME`.
    pub name: String,
    /// Directory of `key.p8` and `csr.der`; without it both are made in memory. `IDENTITY_DIR`.
    pub dir: Option<PathBuf>,
    /// Trust anchors, one or more. `IDENTITY_TRUST_ANCHORS`, PEM.
    pub trust_anchors: Vec<CertificateDer<'static>>,
    /// File of the token shown to the identity service, read anew each time. `IDENTITY_TOKEN_FILE`.
    pub token_file: PathBuf,
    /// Shortest time between renewals. `IDENTITY_MIN_REFRESH`.
    pub min_refresh: Duration,
    /// Longest time between renewals. `IDENTITY_MAX_REFRESH`.
    pub max_refresh: Duration,
    /// The identity service. `IDENTITY_SVC_ADDR`, `IDENTITY_SVC_NAME`.
    pub addr: ControlAddr,
}

/// Service discovery settings.
#[derive(Debug, Clone)]
pub struct DestinationConfig {
    /// The destination service. `DESTINATION_SVC_ADDR`, `DESTINATION_SVC_NAME`.
    pub addr: ControlAddr,
    /// Sent with every lookup. `DESTINATION_CONTEXT`.
    pub context: String,
    /// Addresses whose profiles are looked up. `DESTINATION_PROFILE_NETWORKS`.
    pub profile_networks: Vec<IpNet>,
    /// How long a connection waits for a profile before it goes on without. `DESTINATION_PROFILE_INITIAL_TIMEOUT`.
    pub profile_initial_timeout: Duration,
}

/// Policy settings.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// The policy service. `POLICY_SVC_ADDR`, `POLICY_SVC_NAME`.
    pub addr: ControlAddr,
    /// Names this workload to the policy service. `POLICY_WORKLOAD`.
    pub workload: String,
    /// Ports whose policies are watched from the start. `INBOUND_PORTS`.
    pub ports: BTreeSet<u16>,
    /// Ports whose default policy is opaque. `INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION`.
    pub opaque_ports: BTreeSet<u16>,
    /// What holds until the policy service answers. `INBOUND_DEFAULT_POLICY`.
    pub default: DefaultPolicy,
    /// What "the cluster" is in default policies. `POLICY_CLUSTER_NETWORKS`.
    pub cluster_networks: Vec<IpNet>,
}

/// The default inbound policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Everybody.
    AllUnauthenticated,
    /// Meshed clients, wherever they are.
    AllAuthenticated,
    /// Clients in the cluster's networks.
    ClusterUnauthenticated,
    /// Meshed clients in the cluster's networks.
    ClusterAuthenticated,
    /// Nobody.
    Deny,
    /// Everybody; what would be denied otherwise is recorded.
    Audit,
}

/// Settings that both directions have.
#[derive(Debug, Clone)]
pub struct ProxySide {
    /// Where connections are accepted.
    pub listen: Vec<SocketAddr>,
    /// Length of the accept queue; the system's own limit when unset.
    pub backlog: Option<u32>,
    /// Limit of one connection attempt.
    pub connect_timeout: Duration,
    /// How long protocol detection waits for octets.
    pub detect_timeout: Duration,
    /// TCP keepalive of accepted connections; none when unset or zero.
    pub accept_keepalive: Option<Duration>,
    /// TCP keepalive of connections made; none when unset or zero.
    pub connect_keepalive: Option<Duration>,
    /// TCP user timeout of accepted connections; none when unset or zero.
    pub accept_user_timeout: Option<Duration>,
    /// TCP user timeout of connections made; none when unset or zero.
    pub connect_user_timeout: Option<Duration>,
    /// Back-off between attempts to connect to an endpoint.
    pub connect_backoff: Backoff,
    /// How long a request may wait for an endpoint.
    pub http_failfast: Duration,
    /// Requests that may wait for an endpoint.
    pub http_queue: usize,
    /// How long unused discovery results are kept.
    pub discovery_idle: Duration,
    /// Requests in flight, all together.
    pub max_in_flight: usize,
    /// Connections accepted at once, all together; file descriptors may allow fewer.
    pub max_connections: usize,
    /// Idle HTTP/1 connections kept per endpoint.
    pub max_idle_per_endpoint: usize,
    /// How long an idle HTTP/1 connection is kept.
    pub http1_idle: Duration,
    /// How often a quiet HTTP/2 client is pinged; never when unset.
    pub http2_keepalive_interval: Option<Duration>,
    /// How long an HTTP/2 client may take to answer a ping.
    pub http2_keepalive_timeout: Option<Duration>,
    /// Streams that an HTTP/2 client may open at once; the codec's default when unset.
    pub http2_max_concurrent_streams: Option<u32>,
}

/// Exponential back-off with jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// First delay.
    pub min: Duration,
    /// Longest delay.
    pub max: Duration,
    /// Share of the delay that is added at random, 0 to 1.
    pub jitter: f64,
}

impl Backoff {
    /// The delay before attempt `failures + 1`, after `failures` failures in a row (1 or more).
    pub fn delay(&self, failures: u32) -> Duration {
        let factor = 2f64.powi(failures.saturating_sub(1).min(30) as i32);
        let base = self.min.as_secs_f64() * factor;
        let base = base.min(self.max.as_secs_f64());
        Duration::from_secs_f64(base + base * self.jitter * fastrand::f64())
    }
}

/// The admin server's settings.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it listens. `ADMIN_LISTEN_ADDR`.
    pub listen: SocketAddr,
    /// True when `POST /shutdown` works. `SHUTDOWN_ENDPOINT_ENABLED`.
    pub shutdown_enabled: bool,
    /// Who of the mesh may ask for it too, whether that is set or not. `WEFT_PROXY_SHUTDOWN_IDENTITY`.
    pub shutdown_identity: Option<String>,
}

/// What is logged and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Directives, such as `warn,weft_proxy=debug`.
    pub filter: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// A control-plane service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlAddr {
    /// Host name (absolute, without the final dot) or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Its identity and TLS server name; `None` means plaintext, for loopback only.
    pub identity: Option<String>,
}

impl fmt::Display for ControlAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A variable that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The variable's full name.
    pub variable: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.reason)
    }
}

impl std::error::Error for Error {}
