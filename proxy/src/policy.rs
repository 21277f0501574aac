//! Policies and endpoints as plain values: translated once from the wire ([`crate::control`]), cheap to match.
//!
//! Route selection is in [`crate::policy::matching`].

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

mod inbound;
mod matching;

pub use inbound::{
    Authentication, Authorization, AuthzLabels, Denied, InboundPolicy, InboundProtocol, InboundRoute, InboundRule,
};
pub use matching::{HeaderMatch, HostMatch, HttpMatch, Matched, PathMatch, Regex, ValueMatch};

/// Names a policy resource; becomes metric labels (`<prefix>_group`, `_kind`, `_namespace`, `_name`, `_port`, `_section_name`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Meta {
    /// API group; `core` for the core group; empty for defaults.
    pub group: String,
    /// Kind, or `default`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Section of the resource, such as a port's or a rule's name.
    pub section: String,
    /// Port, where it means something.
    pub port: Option<u16>,
}

impl Meta {
    /// A built-in policy of that name.
    pub fn default_named(name: &str) -> Arc<Self> {
        Arc::new(Self { kind: "default".into(), name: name.into(), ..Self::default() })
    }
}

/// How to carry connections to one outbound address.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboundPolicy {
    /// The parent resource (a Service, an EgressNetwork, or a default).
    pub meta: Arc<Meta>,
    /// What to do.
    pub protocol: OutboundProtocol,
}

impl OutboundPolicy {
    /// A policy that refuses everything with a reason: an HTTP response 500, or a closed connection.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self { meta: Meta::default_named("invalid"), protocol: OutboundProtocol::Invalid(reason.into().into()) }
    }

    /// A policy that forwards to one endpoint, whatever the protocol.
    pub fn forward(meta: Arc<Meta>, endpoint: Arc<Endpoint>, queue: Queue, detect_timeout: Duration) -> Self {
        let backend =
            Arc::new(Backend { meta: meta.clone(), target: Target::Forward(endpoint), queue, filters: Vec::new() });
        let backends = Distribution::First(vec![backend]);
        let http = Arc::new(HttpRoutes {
            grpc: false,
            accrual: None,
            routes: vec![HttpRoute {
                meta: meta.clone(),
                hosts: Vec::new(),
                rules: vec![HttpRule { backends: backends.clone(), ..HttpRule::default() }],
            }],
        });
        let opaque = Arc::new(OpaqueRoutes {
            routes: vec![OpaqueRoute { meta: meta.clone(), snis: Vec::new(), refuse: None, backends }],
        });
        let protocol = OutboundProtocol::Detect { timeout: detect_timeout, opaque, http1: http.clone(), http2: http };
        Self { meta, protocol }
    }

    /// The routes of connections whose protocol is opaque, if this policy allows such connections.
    pub fn opaque(&self) -> Option<&Arc<OpaqueRoutes>> {
        match &self.protocol {
            OutboundProtocol::Detect { opaque, .. } | OutboundProtocol::Opaque(opaque) => Some(opaque),
            _ => None,
        }
    }
}

/// The protocol of an outbound policy.
#[derive(Debug, Clone, PartialEq)]
pub enum OutboundProtocol {
    /// Look at the first octets.
    Detect {
        /// How long to wait for them.
        timeout: Duration,
        /// Neither HTTP nor anything in time.
        opaque: Arc<OpaqueRoutes>,
        /// HTTP/1.
        http1: Arc<HttpRoutes>,
        /// HTTP/2.
        http2: Arc<HttpRoutes>,
    },
    /// Bytes.
    Opaque(Arc<OpaqueRoutes>),
    /// HTTP/1 (declared); also serves HTTP/2 clients.
    Http1(Arc<HttpRoutes>),
    /// HTTP/2 (declared).
    Http2(Arc<HttpRoutes>),
    /// gRPC (declared): HTTP/2 with [`HttpRoutes::grpc`].
    Grpc(Arc<HttpRoutes>),
    /// TLS, routed by SNI and not terminated.
    Tls(Arc<OpaqueRoutes>),
    /// The control plane said something that makes no sense; answer 500 or close, with the reason.
    Invalid(Arc<str>),
}

impl OutboundProtocol {
    /// As metrics name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Detect { .. } => "detect",
            Self::Opaque(_) => "opaq",
            Self::Http1(_) => "http/1",
            Self::Http2(_) | Self::Grpc(_) => "http/2",
            Self::Tls(_) => "tls",
            Self::Invalid(_) => "invalid",
        }
    }
}

/// HTTP or gRPC routes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpRoutes {
    /// True for gRPC routes: errors are gRPC statuses, retries look at them.
    pub grpc: bool,
    /// Circuit breaking of endpoints.
    pub accrual: Option<FailureAccrual>,
    /// In order; [`HttpRoutes::find`] picks the most specific.
    pub routes: Vec<HttpRoute>,
}

/// One route.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    /// The resource (`route_*` labels).
    pub meta: Arc<Meta>,
    /// Hosts; empty: all.
    pub hosts: Vec<HostMatch>,
    /// Rules.
    pub rules: Vec<HttpRule>,
}

/// One rule of a route.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HttpRule {
    /// Any of them; empty: everything.
    pub matches: Vec<HttpMatch>,
    /// In order.
    pub filters: Vec<Filter>,
    /// Where to.
    pub backends: Distribution,
    /// Limits in time.
    pub timeouts: Timeouts,
    /// When to try again.
    pub retry: Option<Retry>,
    /// True when `l5d-timeout`, `l5d-retry-*` request headers may override the policy.
    pub allow_l5d_headers: bool,
}

/// Limits in time of a request; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From the end of the request to the end of the response.
    pub response: Option<Duration>,
    /// From the start of the request to the end of the response.
    pub request: Option<Duration>,
    /// Without any octet in either direction.
    pub idle: Option<Duration>,
}

/// When and how often a failed request is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Further tries.
    pub max_retries: u32,
    /// Octets of request body that are kept for another try; a larger body ends retrying.
    pub max_request_bytes: usize,
    /// HTTP status ranges, inclusive.
    pub statuses: Vec<(u16, u16)>,
    /// gRPC status codes.
    pub grpc: Vec<u32>,
    /// Limit of one try.
    pub timeout: Option<Duration>,
    /// Delay between tries.
    pub backoff: Option<crate::config::Backoff>,
}

/// Changes or answers a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Answers with a failure, `numerator` times out of `denominator`.
    FailHttp {
        /// HTTP status.
        status: u16,
        /// Body and header text.
        message: Arc<str>,
        /// See [`Ratio`].
        ratio: Ratio,
    },
    /// Answers with a gRPC failure.
    FailGrpc {
        /// gRPC status code.
        code: u16,
        /// grpc-message.
        message: Arc<str>,
        /// See [`Ratio`].
        ratio: Ratio,
    },
    /// Changes request headers.
    RequestHeaders(HeaderChange),
    /// Changes response headers.
    ResponseHeaders(HeaderChange),
    /// Answers with a redirect.
    Redirect(Redirect),
}

/// A share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    /// Of every `denominator` requests.
    pub numerator: u32,
    /// More than zero.
    pub denominator: u32,
}

impl Ratio {
    /// True for this share of calls, at random.
    pub fn sample(&self) -> bool {
        self.numerator >= self.denominator || fastrand::u32(0..self.denominator) < self.numerator
    }
}

/// Header fields to remove, set and add, in that order. Names are lower case and, like values, valid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChange {
    /// Added beside what is there.
    pub add: Vec<(Vec<u8>, Vec<u8>)>,
    /// Replaces what is there.
    pub set: Vec<(Vec<u8>, Vec<u8>)>,
    /// Removed.
    pub remove: Vec<Vec<u8>>,
}

impl HeaderChange {
    /// Applies the change.
    pub fn apply(&self, headers: &mut weft_wire::head::Headers) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.set(name, value);
        }
        for (name, value) in &self.add {
            headers.push(name, value);
        }
    }
}

/// A redirect: parts that are `None` stay as in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host, without port.
    pub host: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Replaces the path.
    pub path: Option<PathChange>,
    /// 3xx.
    pub status: u16,
}

/// How a redirect replaces the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// All of it.
    Full(String),
    /// The part that the route's prefix matched.
    Prefix(String),
}

/// Which backend a request or connection goes to.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Distribution {
    /// None: HTTP 500, or a closed connection.
    #[default]
    Empty,
    /// The first.
    First(Vec<Arc<Backend>>),
    /// By weight, at random.
    Random(Vec<(Arc<Backend>, u32)>),
}

impl Distribution {
    /// The backend of the next request or connection.
    pub fn pick(&self) -> Option<&Arc<Backend>> {
        match self {
            Self::Empty => None,
            Self::First(backends) => backends.first(),
            Self::Random(backends) => {
                let total: u64 = backends.iter().map(|(_, w)| u64::from(*w)).sum();
                if total == 0 {
                    return None;
                }
                let mut at = fastrand::u64(0..total);
                for (backend, weight) in backends {
                    match at.checked_sub(u64::from(*weight)) {
                        Some(rest) => at = rest,
                        None => return Some(backend),
                    }
                }
                None
            }
        }
    }

    /// All backends, in order.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let (first, random) = match self {
            Self::Empty => (&[][..], &[][..]),
            Self::First(b) => (&b[..], &[][..]),
            Self::Random(b) => (&[][..], &b[..]),
        };
        first.iter().chain(random.iter().map(|(b, _)| b))
    }
}

/// One backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// The resource (`backend_*` labels).
    pub meta: Arc<Meta>,
    /// Where to.
    pub target: Target,
    /// What happens while no endpoint is ready.
    pub queue: Queue,
    /// Filters of this backend only, after the rule's.
    pub filters: Vec<Filter>,
}

/// Where a backend leads.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// One known endpoint.
    Forward(Arc<Endpoint>),
    /// Endpoints from discovery, balanced.
    Balance {
        /// For [`crate::discover::Discovery::endpoints`].
        path: Arc<str>,
        /// Load measure.
        load: Load,
    },
}

/// Peak EWMA's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Load {
    /// Assumed for an endpoint that has not answered yet.
    pub default_rtt: Duration,
    /// Decay of the average.
    pub decay: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self { default_rtt: Duration::from_millis(30), decay: Duration::from_secs(10) }
    }
}

/// Limits while no endpoint is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Requests that may wait.
    pub capacity: usize,
    /// How long they may wait.
    pub failfast: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self { capacity: 100, failfast: Duration::from_secs(3) }
    }
}

/// Circuit breaking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailureAccrual {
    /// What opens the circuit.
    pub kind: AccrualKind,
    /// How long it stays open.
    pub backoff: crate::config::Backoff,
    /// Endpoints that stay in use however bad they are.
    pub min_ready_endpoints: u32,
}

/// What opens a circuit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AccrualKind {
    /// So many failures in a row.
    Consecutive {
        /// Failures.
        max_failures: u32,
    },
    /// A success rate below a threshold, or failures in a row.
    Unified {
        /// 0 to 1.
        success_rate_threshold: f64,
        /// Window of the rate.
        decay: Duration,
        /// Requests before the rate counts.
        min_requests: u32,
        /// Failures in a row; 0: not looked at.
        max_consecutive_failures: u32,
    },
}

/// Routes of connections that are not looked into.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OpaqueRoutes {
    /// In order.
    pub routes: Vec<OpaqueRoute>,
}

/// One route of [`OpaqueRoutes`].
#[derive(Debug, Clone, PartialEq)]
pub struct OpaqueRoute {
    /// The resource.
    pub meta: Arc<Meta>,
    /// Server names of a TLS route; empty: all.
    pub snis: Vec<HostMatch>,
    /// Why connections are refused, if they are.
    pub refuse: Option<Arc<str>>,
    /// Where to.
    pub backends: Distribution,
}

impl OpaqueRoutes {
    /// The route for a connection, of that TLS server name if it has one: the most specific match, else the first.
    pub fn find(&self, sni: Option<&str>) -> Option<&OpaqueRoute> {
        self.routes
            .iter()
            .filter_map(|r| {
                if r.snis.is_empty() {
                    return Some((0, r));
                }
                let sni = sni?;
                r.snis.iter().filter_map(|m| m.matches(sni.as_bytes())).max().map(|score| (score, r))
            })
            .fold(None, |best: Option<(usize, &OpaqueRoute)>, (score, r)| match best {
                Some((s, _)) if s >= score => best,
                _ => Some((score, r)),
            })
            .map(|(_, r)| r)
    }
}

/// A service profile, as far as it is not in the merged policy already.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Profile {
    /// The service's full name, empty when there is none.
    pub fully_qualified_name: Arc<str>,
    /// True when connections are opaque; the merged policy says so too.
    pub opaque: bool,
    /// Set when the address is one known endpoint.
    pub endpoint: Option<Arc<Endpoint>>,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address of the application.
    pub addr: SocketAddr,
    /// Relative weight, 10000 normally; 0 is never chosen.
    pub weight: u32,
    /// Metric labels, names with their `dst_` prefix, sorted by name.
    pub labels: Arc<[(String, String)]>,
    /// Set for a meshed endpoint: mTLS is used, never plaintext.
    pub identity: Option<Identity>,
    /// True when the endpoint speaks HTTP/2 and understands `l5d-orig-proto`.
    pub h2: bool,
    /// True when the endpoint's port is opaque: no session protocol goes into the transport header.
    pub opaque: bool,
    /// The port of the endpoint's own proxy, where a connection with a transport header may go.
    pub transport_port: Option<u16>,
    /// Replaces the authority of requests.
    pub authority_override: Option<Arc<str>>,
    /// HTTP/2 settings that the control plane asks for.
    pub http2: Option<Http2Params>,
}

impl Endpoint {
    /// An unmeshed endpoint about which nothing is known.
    pub fn plain(addr: SocketAddr) -> Self {
        Self {
            addr,
            weight: 10_000,
            labels: Arc::new([]),
            identity: None,
            h2: false,
            opaque: false,
            transport_port: None,
            authority_override: None,
            http2: None,
        }
    }
}

/// Whom to expect at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Name that the peer's certificate must hold as DNS or URI SAN.
    pub name: Arc<str>,
    /// SNI to send.
    pub server_name: Arc<str>,
}

/// HTTP/2 client settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Params {
    /// Receive window of a stream, in octets.
    pub stream_window: Option<u32>,
    /// Receive window of the connection, in octets.
    pub connection_window: Option<u32>,
    /// How often a quiet connection is pinged.
    pub keepalive_interval: Option<Duration>,
    /// How long the answer may take.
    pub keepalive_timeout: Option<Duration>,
}

/// The endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoints {
    /// The control plane has not answered yet.
    Unknown,
    /// The service does not exist.
    DoesNotExist,
    /// The service exists; sorted by address, each address once, maybe empty.
    Some(Vec<Arc<Endpoint>>),
}

/// True when one of `networks` holds `ip`.
pub fn contains(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|n| n.contains(&ip))
}
