//! What data threads hold: counters of one endpoint, route or kind of connection.

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use weft_wire::transport_header::SessionProtocol;

use super::{Counter, Direction, Gauge, Histogram, Labels, Metrics, NoTls, Tls, families};
use crate::policy::{Endpoint, Meta};

/// Whether a response counts as a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Classification {
    /// Neither a 5xx status, nor a gRPC failure, nor an error.
    Success,
    /// Anything else.
    Failure,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseClass {
    /// A response without gRPC status ended; success below 500.
    Http,
    /// A response with this gRPC status ended; success unless it is a failure of the service.
    Grpc(u32),
    /// It did not end, for this reason: one of a fixed set of short texts, as each makes a new series.
    Error(&'static str),
}

/// True for the gRPC statuses that tell about the service rather than about the request, Linkerd's default set: Unknown,
/// DeadlineExceeded, PermissionDenied, Internal, Unavailable, DataLoss. A status that is not defined counts as Unknown.
fn grpc_failed(code: u32) -> bool {
    matches!(code, 2 | 4 | 7 | 13 | 14 | 15) || code > 16
}

/// Counts requests and responses. For one thread; ask [`Metrics`] again on another.
pub struct RequestMetrics {
    metrics: Arc<Metrics>,
    labels: Labels,
    total: Counter,
    outcomes: RefCell<SmallVec<[(u16, ResponseClass, Counter); 2]>>,
    latencies: RefCell<SmallVec<[(u16, Histogram); 2]>>,
}

impl RequestMetrics {
    fn new(metrics: &Arc<Metrics>, labels: Labels) -> Self {
        Self {
            total: metrics.counter(&families::REQUEST_TOTAL, &labels),
            metrics: metrics.clone(),
            labels,
            outcomes: RefCell::default(),
            latencies: RefCell::default(),
        }
    }

    /// A request's head was received.
    pub fn request(&self) {
        self.total.incr();
    }

    /// A response began: time since the request's head.
    pub fn latency(&self, status: u16, since: Duration) {
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut known = self.latencies.borrow_mut();
        if let Some((_, h)) = known.iter().find(|(s, _)| *s == status) {
            return h.record(ms);
        }
        let labels = self.labels.with([("status_code", status.to_string().as_str())]);
        let histogram = self.metrics.histogram(&families::RESPONSE_LATENCY_MS, &labels);
        histogram.record(ms);
        known.push((status, histogram));
    }

    /// A response ended. The status is the one sent to the client, also when the proxy made it.
    pub fn response(&self, status: u16, class: ResponseClass) -> Classification {
        let classification = match class {
            ResponseClass::Http if status < 500 => Classification::Success,
            ResponseClass::Grpc(code) if !grpc_failed(code) => Classification::Success,
            _ => Classification::Failure,
        };
        let mut known = self.outcomes.borrow_mut();
        if let Some((_, _, c)) = known.iter().find(|(s, c, _)| *s == status && *c == class) {
            c.incr();
            return classification;
        }
        let (grpc, error) = match class {
            ResponseClass::Http => (String::new(), ""),
            ResponseClass::Grpc(code) => (code.to_string(), ""),
            ResponseClass::Error(text) => (String::new(), text),
        };
        let labels = self.labels.with([
            ("status_code", status.to_string().as_str()),
            ("classification", if classification == Classification::Success { "success" } else { "failure" }),
            ("grpc_status", &grpc),
            ("error", error),
        ]);
        let counter = self.metrics.counter(&families::RESPONSE_TOTAL, &labels);
        counter.incr();
        known.push((status, class, counter));
        classification
    }
}

/// Counts connections.
#[derive(Clone)]
pub struct TcpMetrics(Arc<Tcp>);

struct Tcp {
    metrics: Arc<Metrics>,
    labels: Labels,
    open_total: Counter,
    open: Gauge,
    read: Counter,
    wrote: Counter,
    closed: Counter,
    duration: Histogram,
}

impl TcpMetrics {
    fn new(metrics: &Arc<Metrics>, labels: Labels) -> Self {
        let closed = labels.with([("errno", "")]);
        Self(Arc::new(Tcp {
            open_total: metrics.counter(&families::TCP_OPEN_TOTAL, &labels),
            open: metrics.gauge(&families::TCP_OPEN_CONNECTIONS, &labels),
            read: metrics.counter(&families::TCP_READ_BYTES_TOTAL, &labels),
            wrote: metrics.counter(&families::TCP_WRITE_BYTES_TOTAL, &labels),
            closed: metrics.counter(&families::TCP_CLOSE_TOTAL, &closed),
            duration: metrics.histogram(&families::TCP_CONNECTION_DURATION_MS, &closed),
            metrics: metrics.clone(),
            labels,
        }))
    }

    /// A connection opened. It is counted as closed when the guard is dropped.
    pub fn open(&self) -> TcpConnection {
        self.0.open_total.incr();
        self.0.open.add(1);
        TcpConnection { tcp: self.0.clone(), opened: Instant::now(), errno: None }
    }
}

/// One open connection.
pub struct TcpConnection {
    tcp: Arc<Tcp>,
    opened: Instant,
    errno: Option<String>,
}

impl TcpConnection {
    /// Octets were read from the socket.
    pub fn read(&self, octets: usize) {
        self.tcp.read.add(octets as u64);
    }

    /// Octets were written to the socket.
    pub fn wrote(&self, octets: usize) {
        self.tcp.wrote.add(octets as u64);
    }

    /// The connection ended by an error, which labels its close.
    pub fn failed(&mut self, error: &std::io::Error) {
        self.errno = Some(match error.raw_os_error() {
            Some(code) => format!("{:?}", nix::errno::Errno::from_raw(code)),
            None => error.kind().to_string(),
        });
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        let ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tcp.open.add(-1);
        match &self.errno {
            None => {
                self.tcp.closed.incr();
                self.tcp.duration.record(ms);
            }
            Some(errno) => {
                let labels = self.tcp.labels.with([("errno", errno.as_str())]);
                self.tcp.metrics.counter(&families::TCP_CLOSE_TOTAL, &labels).incr();
                self.tcp.metrics.histogram(&families::TCP_CONNECTION_DURATION_MS, &labels).record(ms);
            }
        }
    }
}

fn directed(direction: Direction) -> Labels {
    Labels::new([("direction", direction.as_str())])
}

fn with_authority(labels: Labels, authority: Option<&str>) -> Labels {
    match authority {
        Some(a) => labels.with([("authority", a)]),
        None => labels,
    }
}

fn endpoint_labels(labels: Labels, endpoint: &Endpoint, authority: Option<&str>) -> Labels {
    let tls = match &endpoint.identity {
        Some(id) => Tls::Client { server_id: &id.name },
        None if endpoint.addr.ip().is_loopback() => Tls::None(NoTls::Loopback),
        None => Tls::None(NoTls::NotProvidedByServiceDiscovery),
    };
    with_authority(labels, authority)
        .target(endpoint.addr)
        .tls(&tls)
        .with(endpoint.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

/// Asked for once per endpoint, route or kind of connection.
impl Metrics {
    /// Requests to an endpoint. `authority` is the request's, without port 80.
    pub fn outbound_requests(self: &Arc<Self>, endpoint: &Endpoint, authority: Option<&str>) -> RequestMetrics {
        RequestMetrics::new(self, endpoint_labels(directed(Direction::Outbound), endpoint, authority))
    }

    /// Requests to the application of this pod. `target` is its address, `authority` only when configured.
    #[allow(clippy::too_many_arguments, reason = "each is a label group of Linkerd's")]
    pub fn inbound_requests(
        self: &Arc<Self>,
        target: SocketAddr,
        authority: Option<&str>,
        tls: &Tls<'_>,
        server: &Meta,
        route: &Meta,
        authz: &Meta,
    ) -> RequestMetrics {
        let labels = with_authority(directed(Direction::Inbound), authority)
            .target(target)
            .tls(tls)
            .server(server, target.port())
            .inbound_ref("route", route)
            .inbound_ref("authz", authz);
        RequestMetrics::new(self, labels)
    }

    /// Connections accepted from the application of this pod, for `target`.
    pub fn outbound_accepted(self: &Arc<Self>, target: SocketAddr) -> TcpMetrics {
        let labels =
            directed(Direction::Outbound).with([("peer", "src")]).target(target).tls(&Tls::None(NoTls::Loopback));
        TcpMetrics::new(self, labels)
    }

    /// Connections to an endpoint. `authority` is the logical destination's, if there is one.
    pub fn outbound_connections(self: &Arc<Self>, endpoint: &Endpoint, authority: Option<&str>) -> TcpMetrics {
        let labels = directed(Direction::Outbound).with([("peer", "dst")]);
        TcpMetrics::new(self, endpoint_labels(labels, endpoint, authority))
    }

    /// Connections accepted for the application of this pod.
    pub fn inbound_accepted(self: &Arc<Self>, target: SocketAddr, tls: &Tls<'_>, server: &Meta) -> TcpMetrics {
        let labels =
            directed(Direction::Inbound).with([("peer", "src")]).target(target).tls(tls).server(server, target.port());
        TcpMetrics::new(self, labels)
    }

    /// Connections to the application of this pod.
    pub fn inbound_connections(self: &Arc<Self>) -> TcpMetrics {
        let labels = directed(Direction::Inbound).with([("peer", "dst")]).tls(&Tls::None(NoTls::Loopback));
        TcpMetrics::new(self, labels)
    }

    /// Requests that this proxy failed; `error` is one of a fixed set: `failfast`, `loadshed`, `i/o`,
    /// `identity required`, `response timeout`, `unexpected`, ….
    pub fn http_error(&self, direction: Direction, error: &'static str) -> Counter {
        let labels = Labels::new([("error", error)]);
        match direction {
            Direction::Inbound => self.counter(&families::INBOUND_HTTP_ERRORS, &labels),
            Direction::Outbound => self.counter(&families::OUTBOUND_HTTP_ERRORS, &labels),
        }
    }

    /// Connections that this proxy failed; `error` as in [`Metrics::http_error`].
    pub fn tcp_error(&self, direction: Direction, target: SocketAddr, error: &'static str) -> Counter {
        let labels = Labels::new([("error", error)]).target(target);
        match direction {
            Direction::Inbound => self.counter(&families::INBOUND_TCP_ERRORS, &labels),
            Direction::Outbound => self.counter(&families::OUTBOUND_TCP_ERRORS, &labels),
        }
    }

    /// Requests that an authorization permitted.
    pub fn http_allow(&self, target: SocketAddr, tls: &Tls<'_>, server: &Meta, route: &Meta, authz: &Meta) -> Counter {
        let labels = Labels::none()
            .target(target)
            .server(server, target.port())
            .inbound_ref("route", route)
            .inbound_ref("authz", authz)
            .tls(tls);
        self.counter(&families::INBOUND_HTTP_AUTHZ_ALLOW, &labels)
    }

    /// Requests that no authorization permitted.
    pub fn http_deny(&self, target: SocketAddr, tls: &Tls<'_>, server: &Meta, route: &Meta) -> Counter {
        let labels = Labels::none().target(target).server(server, target.port()).inbound_ref("route", route).tls(tls);
        self.counter(&families::INBOUND_HTTP_AUTHZ_DENY, &labels)
    }

    /// Requests without a route.
    pub fn http_route_not_found(&self, target: SocketAddr, tls: &Tls<'_>, server: &Meta) -> Counter {
        let labels = Labels::none().target(target).server(server, target.port()).tls(tls);
        self.counter(&families::INBOUND_HTTP_ROUTE_NOT_FOUND, &labels)
    }

    /// Connections that an authorization permitted.
    pub fn tcp_allow(&self, target: SocketAddr, tls: &Tls<'_>, server: &Meta, authz: &Meta) -> Counter {
        let labels = Labels::none().target(target).server(server, target.port()).inbound_ref("authz", authz).tls(tls);
        self.counter(&families::INBOUND_TCP_AUTHZ_ALLOW, &labels)
    }

    /// Connections that no authorization permitted.
    pub fn tcp_deny(&self, target: SocketAddr, tls: &Tls<'_>, server: &Meta) -> Counter {
        let labels = Labels::none().target(target).server(server, target.port()).tls(tls);
        self.counter(&families::INBOUND_TCP_AUTHZ_DENY, &labels)
    }

    /// Connections ended because a new policy does not permit them.
    pub fn tcp_terminate(&self, target: SocketAddr, tls: &Tls<'_>, server: &Meta) -> Counter {
        let labels = Labels::none().target(target).server(server, target.port()).tls(tls);
        self.counter(&families::INBOUND_TCP_AUTHZ_TERMINATE, &labels)
    }

    /// Outcomes of inbound detection: `http/1`, `http/2`, `tls`, `not_http`, `server_first`, `read_timeout`, `closed` or
    /// `error`.
    pub fn inbound_detected(&self, server: &Meta, port: u16, result: &'static str) -> Counter {
        self.counter(&families::INBOUND_DETECT, &Labels::new([("result", result)]).server(server, port))
    }

    /// Outcomes of outbound detection, as [`Metrics::inbound_detected`].
    pub fn outbound_detected(&self, parent: &Meta, result: &'static str) -> Counter {
        self.counter(&families::OUTBOUND_DETECT, &Labels::new([("result", result)]).outbound_ref("parent", parent))
    }

    /// Outbound connections by what the policy declares: `detect`, `opaq`, `tls`, `http/1`, `http/2` or `invalid`.
    pub fn outbound_protocol(&self, parent: &Meta, protocol: &'static str) -> Counter {
        self.counter(
            &families::OUTBOUND_PROTOCOL,
            &Labels::new([("protocol", protocol)]).outbound_ref("parent", parent),
        )
    }

    /// Inbound connections with a transport header.
    pub fn transport_header(&self, session: Option<SessionProtocol>, port: u16, client: &str) -> Counter {
        let session = match session {
            Some(SessionProtocol::Http1) => "http/1",
            Some(SessionProtocol::Http2) => "http/2",
            None => "",
        };
        let labels = Labels::new([
            ("session_protocol", session),
            ("target_port", port.to_string().as_str()),
            ("target_name", ""),
            ("client_id", client),
        ]);
        self.counter(&families::INBOUND_TRANSPORT_HEADER, &labels)
    }

    /// Endpoints of a balancer in a state: `ready` or `pending`.
    pub fn balancer_endpoints(&self, http: bool, parent: &Meta, backend: &Meta, state: &'static str) -> Gauge {
        let labels =
            Labels::new([("endpoint_state", state)]).outbound_ref("parent", parent).outbound_ref("backend", backend);
        let family =
            if http { &families::OUTBOUND_HTTP_BALANCER_ENDPOINTS } else { &families::OUTBOUND_TCP_BALANCER_ENDPOINTS };
        self.gauge(family, &labels)
    }
}
