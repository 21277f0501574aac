//! The families: names, kinds and help texts. Names are Linkerd's.

use super::registry::{Family, Kind};

/// Bounds of latency histograms, in milliseconds.
pub const LATENCY_MS: &[u64] = &[
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 4000, 5000, 10_000, 20_000, 30_000,
    40_000, 50_000,
];

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: Kind::Counter }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: Kind::Gauge }
}

const fn latency(name: &'static str, help: &'static str) -> Family {
    Family { name, help, kind: Kind::Histogram(LATENCY_MS) }
}

/// Requests by endpoint.
pub static REQUEST_TOTAL: Family = counter("request_total", "Requests received, by where they went.");
/// Responses by endpoint, status and classification.
pub static RESPONSE_TOTAL: Family = counter("response_total", "Responses that ended, by outcome.");
/// Time from a request's head to its response's first octets.
pub static RESPONSE_LATENCY_MS: Family =
    latency("response_latency_ms", "Milliseconds from a request's head to its response.");
/// TCP connections opened.
pub static TCP_OPEN_TOTAL: Family = counter("tcp_open_total", "Connections opened.");
/// TCP connections closed.
pub static TCP_CLOSE_TOTAL: Family = counter("tcp_close_total", "Connections closed, by error if there was one.");
/// TCP connections now open.
pub static TCP_OPEN_CONNECTIONS: Family = gauge("tcp_open_connections", "Connections now open.");
/// Octets read from peers.
pub static TCP_READ_BYTES_TOTAL: Family = counter("tcp_read_bytes_total", "Octets read from the peer.");
/// Octets written to peers.
pub static TCP_WRITE_BYTES_TOTAL: Family = counter("tcp_write_bytes_total", "Octets written to the peer.");
/// Lifetimes of closed connections.
pub static TCP_CONNECTION_DURATION_MS: Family =
    latency("tcp_connection_duration_ms", "Milliseconds from a connection's opening to its close.");
/// Inbound requests that the proxy failed.
pub static INBOUND_HTTP_ERRORS: Family =
    counter("inbound_http_errors_total", "Inbound requests that failed in this proxy, by reason.");
/// Outbound requests that the proxy failed.
pub static OUTBOUND_HTTP_ERRORS: Family =
    counter("outbound_http_errors_total", "Outbound requests that failed in this proxy, by reason.");
/// Inbound connections that the proxy failed.
pub static INBOUND_TCP_ERRORS: Family =
    counter("inbound_tcp_errors_total", "Inbound connections that failed in this proxy, by reason.");
/// Outbound connections that the proxy failed.
pub static OUTBOUND_TCP_ERRORS: Family =
    counter("outbound_tcp_errors_total", "Outbound connections that failed in this proxy, by reason.");
/// Inbound requests authorized.
pub static INBOUND_HTTP_AUTHZ_ALLOW: Family =
    counter("inbound_http_authz_allow_total", "Inbound requests that were authorized.");
/// Inbound requests refused.
pub static INBOUND_HTTP_AUTHZ_DENY: Family =
    counter("inbound_http_authz_deny_total", "Inbound requests that no authorization permitted.");
/// Inbound requests without a route.
pub static INBOUND_HTTP_ROUTE_NOT_FOUND: Family =
    counter("inbound_http_route_not_found_total", "Inbound requests that matched no route.");
/// Inbound connections authorized.
pub static INBOUND_TCP_AUTHZ_ALLOW: Family =
    counter("inbound_tcp_authz_allow_total", "Inbound connections that were authorized.");
/// Inbound connections refused.
pub static INBOUND_TCP_AUTHZ_DENY: Family =
    counter("inbound_tcp_authz_deny_total", "Inbound connections that no authorization permitted.");
/// Inbound connections ended by a change of policy.
pub static INBOUND_TCP_AUTHZ_TERMINATE: Family =
    counter("inbound_tcp_authz_terminate_total", "Inbound connections that were ended when the policy changed.");
/// Outcomes of inbound protocol detection.
pub static INBOUND_DETECT: Family =
    counter("inbound_tcp_detect_http_results_total", "Outcomes of inbound protocol detection.");
/// Outcomes of outbound protocol detection.
pub static OUTBOUND_DETECT: Family =
    counter("outbound_tcp_detect_http_results_total", "Outcomes of outbound protocol detection.");
/// Outbound connections by declared protocol.
pub static OUTBOUND_PROTOCOL: Family = counter(
    "outbound_tcp_protocol_connections_total",
    "Outbound connections, by the protocol that their policy declares.",
);
/// Inbound connections with transport headers.
pub static INBOUND_TRANSPORT_HEADER: Family =
    counter("inbound_tcp_transport_header_connections_total", "Inbound connections with transport headers.");
/// Endpoints of HTTP balancers.
pub static OUTBOUND_HTTP_BALANCER_ENDPOINTS: Family =
    gauge("outbound_http_balancer_endpoints", "Endpoints of a balancer, by whether they can be chosen.");
/// Endpoints of TCP balancers.
pub static OUTBOUND_TCP_BALANCER_ENDPOINTS: Family =
    gauge("outbound_tcp_balancer_endpoints", "Endpoints of a balancer, by whether they can be chosen.");
/// Requests to the control plane.
pub static CONTROL_REQUEST_TOTAL: Family = counter("control_request_total", "Requests to the control plane.");
/// Responses of the control plane.
pub static CONTROL_RESPONSE_TOTAL: Family =
    counter("control_response_total", "Responses of the control plane that ended, by outcome.");
/// Latency of the control plane.
pub static CONTROL_RESPONSE_LATENCY_MS: Family =
    latency("control_response_latency_ms", "Milliseconds from a request to the control plane to its response's head.");
/// End of the certificate's validity.
pub static IDENTITY_CERT_EXPIRATION: Family =
    gauge("identity_cert_expiration_timestamp_seconds", "When the certificate expires, in seconds since the epoch.");
/// Renewals, by the name in Linkerd's older documentation.
pub static IDENTITY_CERT_REFRESH_COUNT: Family =
    counter("identity_cert_refresh_count", "Certificates received since the start.");
/// End of the certificate's validity.
pub static CONTROL_IDENTITY_CERT_EXPIRATION: Family = gauge(
    "control_identity_cert_expiration_timestamp_seconds",
    "When the certificate expires, in seconds since the epoch.",
);
/// Time of the last renewal.
pub static CONTROL_IDENTITY_CERT_REFRESH: Family = gauge(
    "control_identity_cert_refresh_timestamp_seconds",
    "When the certificate was last received, in seconds since the epoch.",
);
/// Renewals.
pub static CONTROL_IDENTITY_CERT_REFRESHES: Family =
    counter("control_identity_cert_refreshes_total", "Certificates received since the start.");
/// Attempts that failed.
pub static CONTROL_IDENTITY_CERT_ERRORS: Family =
    counter("control_identity_cert_errors_total", "Attempts to receive a certificate that failed, by reason.");
/// Build of the proxy.
pub static PROXY_BUILD_INFO: Family = gauge("proxy_build_info", "The proxy's version, as labels.");
/// TLS settings.
pub static RUSTLS_INFO: Family = gauge("rustls_info", "What the TLS library offers to peers, as labels.");
