//! ServiceProfiles, TrafficSplits and ExternalWorkloads.

use serde::{Deserialize, Serialize};

/// See [`super::ServiceProfile`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceProfileSpec {
    /// In order; the first that matches counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<ProfileRoute>>,
    /// How much may be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// Where the traffic goes instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_overrides: Option<Vec<DestinationOverride>>,
    /// Ports and ranges of ports whose protocol is not looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opaque_ports: Option<Vec<String>>,
}

/// One route of a [`ServiceProfileSpec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileRoute {
    /// Name, as metrics have it.
    pub name: String,
    /// Requests.
    pub condition: RequestCondition,
    /// Which responses are failures; the first that matches counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_classes: Option<Vec<ResponseClass>>,
    /// Whether a failed request may be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_retryable: Option<bool>,
    /// Go duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// Requests; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCondition {
    /// Regular expression of the whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<String>,
    /// Method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// All of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<RequestCondition>>,
    /// One of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<RequestCondition>>,
    /// Not this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<RequestCondition>>,
}

/// A class of responses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponseClass {
    /// Responses.
    pub condition: ResponseCondition,
    /// Whether they are failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_failure: Option<bool>,
}

/// Responses; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseCondition {
    /// Statuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusRange>,
    /// All of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<ResponseCondition>>,
    /// One of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<ResponseCondition>>,
    /// Not this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<ResponseCondition>>,
}

/// Statuses. One end alone means exactly that status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRange {
    /// The first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// The last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// How much may be tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries for each request.
    pub retry_ratio: f32,
    /// Retries beside them.
    pub min_retries_per_second: u32,
    /// How long requests count, a Go duration.
    pub ttl: String,
}

/// Where traffic goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationOverride {
    /// Full name of a service, with a port or without.
    pub authority: String,
    /// Its share.
    #[serde(default)]
    pub weight: Weight,
}

/// See [`super::TrafficSplit`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficSplitSpec {
    /// The service that clients know.
    pub service: String,
    /// Where its traffic goes.
    pub backends: Vec<SplitBackend>,
}

/// One service of a [`TrafficSplitSpec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitBackend {
    /// Its name, in the same namespace.
    pub service: String,
    /// Its share.
    pub weight: Weight,
}

/// A share: a number, or a quantity such as `500m`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Weight {
    /// A number.
    Number(serde_json::Number),
    /// A quantity.
    Quantity(String),
}

impl Default for Weight {
    fn default() -> Weight {
        Weight::Number(0.into())
    }
}

impl Weight {
    /// In thousandths; `None` when it is no share.
    pub fn milli(&self) -> Option<u64> {
        let number = match self {
            Weight::Number(number) => number.as_f64()?,
            Weight::Quantity(text) => match text.strip_suffix('m') {
                Some(milli) => milli.parse::<f64>().ok()? / 1000.0,
                None => text.parse().ok()?,
            },
        };
        // Within what a double counts exactly, so nothing is cut off.
        (0.0..=1e12).contains(&number).then(|| (number * 1000.0).round() as u64)
    }
}

/// See [`super::ExternalWorkload`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadSpec {
    /// Who it is.
    #[serde(rename = "meshTLS")]
    pub mesh_tls: MeshTlsIdentity,
    /// Its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<WorkloadPort>>,
    /// Its addresses.
    #[serde(default, rename = "workloadIPs", skip_serializing_if = "Option::is_none")]
    pub workload_ips: Option<Vec<WorkloadIp>>,
}

/// Who a workload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshTlsIdentity {
    /// Its identity.
    pub identity: String,
    /// The server name to ask for.
    pub server_name: String,
}

/// A port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadPort {
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number.
    pub port: u16,
    /// `TCP`, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// An address of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadIp {
    /// The address.
    pub ip: String,
}
