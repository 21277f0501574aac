//! The Kubernetes kinds that weft reads, and one typed object of any of them.

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, PodTemplateSpec, Secret, Service,
        ServiceAccount,
    },
    discovery::v1::EndpointSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

use crate::mesh::types::{
    AuthorizationPolicy, EgressNetwork, ExternalWorkload, GrpcRoute, HttpLocalRateLimitPolicy, HttpRoute,
    MeshTlsAuthentication, NetworkAuthentication, Server, ServerAuthorization, ServiceProfile, TrafficSplit,
};

macro_rules! kinds {
    ($($kind:ident, $name:literal, $type:ty, [$($api:literal),+], $singular:literal, $plural:literal, $namespaced:literal, [$($short:literal),*];)*) => {
        /// A kind of object.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "each variant is the kind of that name")]
        pub enum Kind { $($kind,)* }

        impl Kind {
            /// All kinds, in the order in which objects are best created.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// The name as in a manifest's `kind`: `Deployment`.
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }

            /// Every `apiVersion` that a manifest may have, the one that is written first.
            pub fn api_versions(self) -> &'static [&'static str] {
                match self { $(Kind::$kind => &[$($api),+],)* }
            }

            /// Lower-case singular: `deployment`. With its group where another kind has the same name.
            pub fn singular(self) -> &'static str {
                match self { $(Kind::$kind => $singular,)* }
            }

            /// Lower-case plural, as in the state directory: `deployments`. With its group where another kind has the same.
            pub fn plural(self) -> &'static str {
                match self { $(Kind::$kind => $plural,)* }
            }

            /// Whether objects of this kind live in a namespace.
            pub fn namespaced(self) -> bool {
                match self { $(Kind::$kind => $namespaced,)* }
            }

            /// The kind that a person means by singular, plural or short name, in any case: `deploy`, `Pods`, `svc`.
            pub fn from_any_name(name: &str) -> Option<Kind> {
                match name.to_ascii_lowercase().as_str() {
                    $($singular | $plural $(| $short)* => Some(Kind::$kind),)*
                    _ => None,
                }
            }
        }

        /// One object of a kind known to weft, typed.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "each variant is the kind of that name")]
        pub enum Object { $($kind(Box<$type>),)* }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self { $(Object::$kind(_) => Kind::$kind,)* }
            }

            /// Name, namespace, labels, annotations.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Object::$kind(o) => &o.metadata,)* }
            }

            /// See [`Object::metadata`].
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Object::$kind(o) => &mut o.metadata,)* }
            }

            /// The object as Kubernetes JSON, with `apiVersion` and `kind`.
            pub fn to_value(&self) -> Value {
                let value = match self { $(Object::$kind(o) => serde_json::to_value(o),)* };
                // Maps with string keys and finite numbers only: serialising cannot fail.
                let mut value = value.unwrap_or_default();
                // Types of our own do not say what they are.
                if let Some(object) = value.as_object_mut()
                    && !object.contains_key("kind")
                {
                    object.shift_insert(0, "apiVersion".into(), self.kind().api_version().into());
                    object.shift_insert(1, "kind".into(), self.kind().as_str().into());
                }
                value
            }

            /// Types a JSON value whose kind is known. The error names the field.
            ///
            /// # Errors
            /// When a field has the wrong type or a required one is missing.
            pub fn from_value(kind: Kind, value: Value) -> Result<Object, serde_path_to_error::Error<serde_json::Error>> {
                Ok(match kind { $(Kind::$kind => Object::$kind(Box::new(serde_path_to_error::deserialize(value)?)),)* })
            }
        }

    };
}

kinds! {
    Namespace, "Namespace", Namespace, ["v1"], "namespace", "namespaces", false, ["ns"];
    ServiceAccount, "ServiceAccount", ServiceAccount, ["v1"], "serviceaccount", "serviceaccounts", true, ["sa"];
    ConfigMap, "ConfigMap", ConfigMap, ["v1"], "configmap", "configmaps", true, ["cm"];
    Secret, "Secret", Secret, ["v1"], "secret", "secrets", true, [];
    PersistentVolumeClaim, "PersistentVolumeClaim", PersistentVolumeClaim, ["v1"], "persistentvolumeclaim", "persistentvolumeclaims", true, ["pvc"];
    Service, "Service", Service, ["v1"], "service", "services", true, ["svc"];
    Endpoints, "Endpoints", Endpoints, ["v1"], "endpoint", "endpoints", true, ["ep"];
    EndpointSlice, "EndpointSlice", EndpointSlice, ["discovery.k8s.io/v1"], "endpointslice", "endpointslices", true, [];
    Deployment, "Deployment", Deployment, ["apps/v1"], "deployment", "deployments", true, ["deploy"];
    StatefulSet, "StatefulSet", StatefulSet, ["apps/v1"], "statefulset", "statefulsets", true, ["sts"];
    DaemonSet, "DaemonSet", DaemonSet, ["apps/v1"], "daemonset", "daemonsets", true, ["ds"];
    ReplicaSet, "ReplicaSet", ReplicaSet, ["apps/v1"], "replicaset", "replicasets", true, ["rs"];
    Job, "Job", Job, ["batch/v1"], "job", "jobs", true, [];
    CronJob, "CronJob", CronJob, ["batch/v1"], "cronjob", "cronjobs", true, ["cj"];
    Pod, "Pod", Pod, ["v1"], "pod", "pods", true, ["po"];
    Server, "Server", Server, ["policy.linkerd.io/v1beta3", "policy.linkerd.io/v1beta2", "policy.linkerd.io/v1beta1"], "server", "servers", true, ["srv"];
    ServerAuthorization, "ServerAuthorization", ServerAuthorization, ["policy.linkerd.io/v1beta1"], "serverauthorization", "serverauthorizations", true, ["saz", "serverauthz", "srvauthz"];
    AuthorizationPolicy, "AuthorizationPolicy", AuthorizationPolicy, ["policy.linkerd.io/v1alpha1"], "authorizationpolicy", "authorizationpolicies", true, ["authzpolicy"];
    MeshTlsAuthentication, "MeshTLSAuthentication", MeshTlsAuthentication, ["policy.linkerd.io/v1alpha1"], "meshtlsauthentication", "meshtlsauthentications", true, ["meshtlsauthn"];
    NetworkAuthentication, "NetworkAuthentication", NetworkAuthentication, ["policy.linkerd.io/v1alpha1"], "networkauthentication", "networkauthentications", true, ["netauthn", "networkauthn"];
    HttpLocalRateLimitPolicy, "HTTPLocalRateLimitPolicy", HttpLocalRateLimitPolicy, ["policy.linkerd.io/v1alpha1"], "httplocalratelimitpolicy", "httplocalratelimitpolicies", true, [];
    HttpRoute, "HTTPRoute", HttpRoute, ["policy.linkerd.io/v1beta3", "policy.linkerd.io/v1beta2", "policy.linkerd.io/v1beta1", "policy.linkerd.io/v1alpha1"], "httproute", "httproutes", true, ["httproute.policy.linkerd.io", "httproutes.policy.linkerd.io"];
    EgressNetwork, "EgressNetwork", EgressNetwork, ["policy.linkerd.io/v1alpha1"], "egressnetwork", "egressnetworks", true, [];
    GatewayHttpRoute, "HTTPRoute", HttpRoute, ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"], "httproute.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io", true, [];
    GrpcRoute, "GRPCRoute", GrpcRoute, ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"], "grpcroute", "grpcroutes", true, [];
    ServiceProfile, "ServiceProfile", ServiceProfile, ["linkerd.io/v1alpha2", "linkerd.io/v1alpha1"], "serviceprofile", "serviceprofiles", true, ["sp"];
    TrafficSplit, "TrafficSplit", TrafficSplit, ["split.smi-spec.io/v1alpha2", "split.smi-spec.io/v1alpha1"], "trafficsplit", "trafficsplits", true, ["ts"];
    ExternalWorkload, "ExternalWorkload", ExternalWorkload, ["workload.linkerd.io/v1beta1", "workload.linkerd.io/v1alpha1"], "externalworkload", "externalworkloads", true, [];
    Node, "Node", Node, ["v1"], "node", "nodes", false, ["no"];
}

macro_rules! conversions {
    ($($kind:ident),*) => {
        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Object {
                Object::$kind(Box::new(object))
            }
        })*
    };
}

conversions!(CronJob, DaemonSet, Deployment, EndpointSlice, Job, PersistentVolumeClaim, Pod, ReplicaSet, StatefulSet);

impl Kind {
    /// The kind of a manifest with this `apiVersion` and `kind`.
    pub fn from_manifest(api_version: &str, kind: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|k| k.as_str() == kind && k.api_versions().contains(&api_version))
    }

    /// The `apiVersion` that is written: `apps/v1`.
    pub fn api_version(self) -> &'static str {
        self.api_versions().first().copied().unwrap_or_default()
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        self.api_version().split_once('/').map(|(group, _)| group).unwrap_or_default()
    }

    /// Lower-case plural as in URLs, without a group.
    pub fn resource(self) -> &'static str {
        self.plural().split('.').next().unwrap_or_default()
    }

    /// Whether it is a resource of the mesh, and none of Kubernetes itself.
    pub fn is_mesh(self) -> bool {
        MESH_GROUPS.contains(&self.group())
    }
}

const MESH_GROUPS: &[&str] =
    &["policy.linkerd.io", "gateway.networking.k8s.io", "linkerd.io", "split.smi-spec.io", "workload.linkerd.io"];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What tells one object from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key; the namespace is dropped for kinds that have none.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Key {
        let namespace = if kind.namespaced() { namespace.to_owned() } else { String::new() };
        Key { kind, namespace, name: name.to_owned() }
    }

    /// Path in the state directory, relative to `objects`: `pods/emojivoto/web-1.json`, `namespaces/_/weft.json`.
    pub fn state_path(&self) -> String {
        let namespace = if self.namespace.is_empty() { "_" } else { &self.namespace };
        format!("{}/{namespace}/{}.json", self.kind.plural(), self.name)
    }
}

impl fmt::Display for Key {
    /// `deployment/web` and, with a namespace, `deployment/web in emojivoto`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.singular(), self.name)?;
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

impl Object {
    /// Its key. An object of a namespaced kind that names no namespace gets `default_namespace`.
    pub fn key(&self, default_namespace: &str) -> Key {
        let metadata = self.metadata();
        let namespace = metadata.namespace.as_deref().unwrap_or(default_namespace);
        Key::new(self.kind(), namespace, metadata.name.as_deref().unwrap_or_default())
    }

    /// The template of the pods that this object makes; `None` for a Pod itself and for kinds that make none.
    pub fn pod_template(&self) -> Option<&PodTemplateSpec> {
        match self {
            Object::Deployment(o) => Some(&o.spec.template),
            Object::StatefulSet(o) => Some(&o.spec.template),
            Object::DaemonSet(o) => Some(&o.spec.template),
            Object::ReplicaSet(o) => o.spec.template.as_ref(),
            Object::Job(o) => o.spec.as_ref().map(|s| &s.template),
            Object::CronJob(o) => o.spec.job_template.spec.as_ref().map(|s| &s.template),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_names() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_any_name(kind.singular()), Some(*kind));
            assert_eq!(Kind::from_any_name(kind.plural()), Some(*kind));
            for version in kind.api_versions() {
                assert_eq!(Kind::from_manifest(version, kind.as_str()), Some(*kind));
            }
            if *kind != Kind::GatewayHttpRoute {
                assert_eq!(Kind::from_any_name(kind.as_str()), Some(*kind));
            }
        }
        assert_eq!(Kind::from_any_name("deploy"), Some(Kind::Deployment));
        assert_eq!(Kind::from_any_name("nonsense"), None);
        assert_eq!(Kind::from_manifest("v1", "Deployment"), None);
    }

    #[test]
    fn keys_name_files() {
        assert_eq!(Key::new(Kind::Pod, "a", "b").state_path(), "pods/a/b.json");
        assert_eq!(Key::new(Kind::Namespace, "ignored", "b").state_path(), "namespaces/_/b.json");
        // Two kinds of one name never share a file.
        let route = |kind| Key::new(kind, "a", "b").state_path();
        assert_eq!(route(Kind::HttpRoute), "httproutes/a/b.json");
        assert_eq!(route(Kind::GatewayHttpRoute), "httproutes.gateway.networking.k8s.io/a/b.json");
        assert_eq!(Kind::GatewayHttpRoute.resource(), "httproutes");
    }
}
