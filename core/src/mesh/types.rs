//! The mesh resources as types: what is kept of them, in every version that a cluster may have. They are read after
//! [`super::validate`], whose messages are about what people write; unknown fields are left to whoever reads.

mod policy;
mod route;
mod service;

pub use policy::{
    AuthorizationPolicySpec, Client, EgressNetworkSpec, HttpLocalRateLimitPolicySpec, Limit, LimitOverride, MeshTls,
    MeshTlsAuthenticationSpec, NetworkAuthenticationSpec, ServerAuthorizationSpec, ServerSelector, ServerSpec,
    ServiceAccountReference, TrafficPolicy,
};
pub use route::{
    BackendReference, Filter, GrpcMatch, GrpcMethod, GrpcRouteSpec, GrpcRule, Header, HeaderModifier, HttpMatch,
    HttpRouteSpec, HttpRule, ParentReference, PathMatch, PathModifier, RequestRedirect, RouteTimeouts, ValueMatch,
};
pub use service::{
    DestinationOverride, ExternalWorkloadSpec, MeshTlsIdentity, ProfileRoute, RequestCondition, ResponseClass,
    ResponseCondition, RetryBudget, ServiceProfileSpec, SplitBackend, StatusRange, TrafficSplitSpec, Weight,
    WorkloadIp, WorkloadPort,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object of a kind that a CustomResourceDefinition defines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resource<S> {
    /// Name, namespace, labels, annotations.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: S,
    /// What controllers say of it; nothing here reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// A port of pods, and who may connect to it.
pub type Server = Resource<ServerSpec>;
/// Who may connect to a server, the older form.
pub type ServerAuthorization = Resource<ServerAuthorizationSpec>;
/// Who may connect to a server, a route or a namespace.
pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec>;
/// Clients of the mesh by identity.
pub type MeshTlsAuthentication = Resource<MeshTlsAuthenticationSpec>;
/// Clients by network.
pub type NetworkAuthentication = Resource<NetworkAuthenticationSpec>;
/// How many requests each proxy of a server lets in.
pub type HttpLocalRateLimitPolicy = Resource<HttpLocalRateLimitPolicySpec>;
/// Networks outside of the cluster.
pub type EgressNetwork = Resource<EgressNetworkSpec>;
/// Routes of HTTP requests.
pub type HttpRoute = Resource<HttpRouteSpec>;
/// Routes of gRPC calls.
pub type GrpcRoute = Resource<GrpcRouteSpec>;
/// Routes and other settings of a service, the older form.
pub type ServiceProfile = Resource<ServiceProfileSpec>;
/// Shares of a service's traffic that other services get.
pub type TrafficSplit = Resource<TrafficSplitSpec>;
/// A workload with a proxy that does not run in the cluster.
pub type ExternalWorkload = Resource<ExternalWorkloadSpec>;

/// A reference to an object, perhaps of another namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// API group; none and `core` are Kubernetes' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind.
    pub kind: String,
    /// Name. A reference to the namespace that it is in may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Namespace; none is that of the object with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

impl Reference {
    /// Whether it is to an object of this group and kind. Case does not matter, as in Linkerd.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        let own = self.group.as_deref().unwrap_or_default();
        let own = if own == "core" { "" } else { own };
        own.eq_ignore_ascii_case(group) && self.kind.eq_ignore_ascii_case(kind)
    }

    /// The name, empty when there is none.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

/// A network with exceptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// `10.0.0.0/8`, or one address.
    pub cidr: String,
    /// Networks within, which do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
}

/// A network in the form `10.0.0.0/8`, or one address.
pub fn network(text: &str) -> Option<ipnet::IpNet> {
    let address = || text.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from);
    text.parse().ok().or_else(address)
}
