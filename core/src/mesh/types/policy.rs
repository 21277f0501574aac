//! Servers and who may connect to them.

use super::{Network, Reference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

/// See [`super::Server`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerSpec {
    /// The pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Workloads outside of the cluster, in place of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_workload_selector: Option<LabelSelector>,
    /// Number, or name of a port of the pods.
    pub port: IntOrString,
    /// What is spoken; none is `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<String>,
    /// Who else may connect; none is `deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_policy: Option<String>,
}

/// See [`super::ServerAuthorization`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerAuthorizationSpec {
    /// The servers.
    pub server: ServerSelector,
    /// The clients.
    pub client: Client,
}

/// Servers by name or by labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerSelector {
    /// One of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// The clients of a [`ServerAuthorizationSpec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// Where they are; none is everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<Network>>,
    /// Also without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unauthenticated: Option<bool>,
    /// By the mesh's TLS.
    #[serde(default, rename = "meshTLS", skip_serializing_if = "Option::is_none")]
    pub mesh_tls: Option<MeshTls>,
}

/// Clients by the mesh's TLS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshTls {
    /// Also without an identity.
    #[serde(default, rename = "unauthenticatedTLS", skip_serializing_if = "Option::is_none")]
    pub unauthenticated_tls: Option<bool>,
    /// With one of these identities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<String>>,
    /// With the identity of one of these service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<Vec<ServiceAccountReference>>,
}

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccountReference {
    /// Name.
    pub name: String,
    /// Namespace; none is that of the object with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// See [`super::AuthorizationPolicy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// What it is about.
    pub target_ref: Reference,
    /// What a client must satisfy, all of it.
    #[serde(default)]
    pub required_authentication_refs: Vec<Reference>,
}

/// See [`super::MeshTlsAuthentication`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshTlsAuthenticationSpec {
    /// `*`, `*.suffix`, or names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<Vec<String>>,
    /// Service accounts, or namespaces with all of theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_refs: Option<Vec<Reference>>,
}

/// See [`super::NetworkAuthentication`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkAuthenticationSpec {
    /// The networks.
    pub networks: Vec<Network>,
}

/// See [`super::HttpLocalRateLimitPolicy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpLocalRateLimitPolicySpec {
    /// The server.
    pub target_ref: Reference,
    /// All clients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Limit>,
    /// Each client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Limit>,
    /// Each of some clients, instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<Vec<LimitOverride>>,
}

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Requests in a second.
    pub requests_per_second: u32,
}

/// A rate of some clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitOverride {
    /// Requests in a second.
    pub requests_per_second: u32,
    /// The clients: service accounts.
    pub client_refs: Vec<Reference>,
}

/// See [`super::EgressNetwork`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressNetworkSpec {
    /// What happens to traffic that no route is about.
    pub traffic_policy: TrafficPolicy,
    /// The networks; none is everything outside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<Network>>,
}

/// What happens to traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// It goes.
    Allow,
    /// It does not.
    Deny,
}
