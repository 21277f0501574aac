//! `InboundServerPolicies` and `OutboundPolicies`: what a proxy may do and how.

pub mod inbound;
pub mod outbound;
mod route;
pub(crate) use route::method;
pub mod server;
mod traffic;

/// A built-in thing, as metric labels name it.
pub(crate) fn default_meta(name: &str) -> linkerd2_proxy_api::meta::Metadata {
    use linkerd2_proxy_api::meta::{Metadata, metadata::Kind};
    Metadata { kind: Some(Kind::Default(name.to_owned())) }
}

/// A resource of the mesh, as metric labels name it.
pub(crate) fn policy_meta(group: &str, kind: &str, name: &str) -> linkerd2_proxy_api::meta::Metadata {
    use linkerd2_proxy_api::meta::{Metadata, Resource, metadata::Kind};
    let (group, kind, name) = (group.to_owned(), kind.to_owned(), name.to_owned());
    Metadata { kind: Some(Kind::Resource(Resource { group, kind, name, ..Resource::default() })) }
}
