//! The metrics API: JSON over HTTP, served by the metrics component on [`crate::names::METRICS_HTTP_PORT`], used by the
//! command line and the dashboard.
//!
//! - `POST /api/stat` takes a [`StatRequest`], answers a [`StatResponse`].
//! - `POST /api/edges` takes an [`EdgesRequest`], answers an [`EdgesResponse`].
//! - `GET /api/check` answers a [`CheckResponse`].
//! - Errors are status 4xx or 5xx with an [`ApiError`].

use serde::{Deserialize, Serialize};

/// What to summarise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatRequest {
    /// Singular lower-case kind: `deployment`, `pod`, `namespace`, `statefulset`, `daemonset`, `job`, `cronjob`,
    /// `replicaset`, `replicationcontroller`, `service`, `authority`, or `all`.
    pub kind: String,
    /// One name, or all when absent.
    pub name: Option<String>,
    /// The namespace; all when absent.
    pub namespace: Option<String>,
    /// Kubernetes label selector.
    pub selector: Option<String>,
    /// Seconds to look back.
    pub window_seconds: u64,
    /// Only traffic to this resource: rows are then the outbound side.
    pub to: Option<ResourceRef>,
    /// Only traffic from this resource.
    pub from: Option<ResourceRef>,
}

/// A resource, or all of a kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceRef {
    /// As [`StatRequest::kind`].
    pub kind: String,
    /// One name, or all when absent.
    pub name: Option<String>,
    /// The namespace; all when absent.
    pub namespace: Option<String>,
}

/// Rows, sorted by kind, namespace and name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatResponse {
    /// One row a resource.
    pub rows: Vec<StatRow>,
    /// Seconds that were looked back: fewer than asked for where less is kept.
    pub window_seconds: u64,
}

/// One resource. Traffic figures are absent where there was no traffic in the window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatRow {
    /// Namespace; empty for namespaces themselves.
    pub namespace: String,
    /// As [`StatRequest::kind`].
    pub kind: String,
    /// Name.
    pub name: String,
    /// For pods: the phase, or the reason of a waiting container.
    pub status: Option<String>,
    /// Running pods with a proxy.
    pub meshed: u32,
    /// Running pods.
    pub running: u32,
    /// Success rate, 0 to 1.
    pub success: Option<f64>,
    /// Requests per second.
    pub rps: Option<f64>,
    /// Latency to the first byte of the answer, in milliseconds.
    pub latency_ms_p50: Option<u64>,
    /// See `latency_ms_p50`.
    pub latency_ms_p95: Option<u64>,
    /// See `latency_ms_p50`.
    pub latency_ms_p99: Option<u64>,
    /// Connections open now.
    pub tcp_open_connections: Option<u64>,
    /// Octets per second read from clients.
    pub tcp_read_bytes_rate: Option<f64>,
    /// Octets per second written to clients.
    pub tcp_write_bytes_rate: Option<f64>,
}

/// Which edges to list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EdgesRequest {
    /// As [`StatRequest::kind`], without service, authority and all.
    pub kind: String,
    /// The namespace of either end; all when absent.
    pub namespace: Option<String>,
}

/// Edges, sorted by source and destination.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgesResponse {
    /// One a pair of resources that talk.
    pub edges: Vec<Edge>,
}

/// Who talks to whom, and whether that is secured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edge {
    /// Client resource.
    pub src: String,
    /// Its namespace.
    pub src_namespace: String,
    /// Server resource.
    pub dst: String,
    /// Its namespace.
    pub dst_namespace: String,
    /// Identity of the client, when secured.
    pub client_id: String,
    /// Identity of the server, when secured.
    pub server_id: String,
    /// Why it is not secured; empty when it is.
    pub no_tls_reason: String,
}

/// State of the control plane, as the metrics component sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckResponse {
    /// Version of the component that answers.
    pub version: String,
    /// Proxies scraped at the last round.
    pub proxies_scraped: u64,
    /// Proxies that did not answer at the last round, as `namespace/pod: reason`.
    pub proxies_failed: Vec<String>,
}

/// Why a request was refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// One sentence.
    pub error: String,
}
