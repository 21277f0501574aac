//! How each kind that the index knows is found at an API server, and what an older server has instead.

use crate::kubernetes::Resource;
use serde_json::{Map, Value, json};
use weft_core::kinds::{Kind, Object};
use weft_core::mesh;

/// One way to get the objects of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Where they are.
    pub resource: Resource,
    /// Whether their metadata is enough.
    pub metadata: bool,
    convert: fn(Value) -> Vec<Value>,
}

const fn whole(api_version: &'static str, plural: &'static str) -> Form {
    Form { resource: Resource { api_version, plural }, metadata: false, convert: same }
}

const fn metadata(api_version: &'static str, plural: &'static str) -> Form {
    Form { resource: Resource { api_version, plural }, metadata: true, convert: same }
}

const NAMESPACES: &[Form] = &[metadata("v1", "namespaces")];
const PODS: &[Form] = &[whole("v1", "pods")];
const SERVICES: &[Form] = &[whole("v1", "services")];
const SLICES: &[Form] = &[
    whole("discovery.k8s.io/v1", "endpointslices"),
    Form { convert: slice_of_beta, ..whole("discovery.k8s.io/v1beta1", "endpointslices") },
    Form { convert: slices_of_endpoints, ..whole("v1", "endpoints") },
];
const DEPLOYMENTS: &[Form] = &[metadata("apps/v1", "deployments")];
const STATEFUL_SETS: &[Form] = &[metadata("apps/v1", "statefulsets")];
const DAEMON_SETS: &[Form] = &[metadata("apps/v1", "daemonsets")];
const REPLICA_SETS: &[Form] = &[metadata("apps/v1", "replicasets")];
const JOBS: &[Form] = &[metadata("batch/v1", "jobs")];
const CRON_JOBS: &[Form] = &[metadata("batch/v1", "cronjobs"), metadata("batch/v1beta1", "cronjobs")];
const NODES: &[Form] = &[metadata("v1", "nodes")];
const SERVERS: &[Form] = &[
    whole("policy.linkerd.io/v1beta3", "servers"),
    whole("policy.linkerd.io/v1beta2", "servers"),
    whole("policy.linkerd.io/v1beta1", "servers"),
];
const SERVER_AUTHORIZATIONS: &[Form] = &[whole("policy.linkerd.io/v1beta1", "serverauthorizations")];
const AUTHORIZATION_POLICIES: &[Form] = &[whole("policy.linkerd.io/v1alpha1", "authorizationpolicies")];
const MESH_TLS_AUTHENTICATIONS: &[Form] = &[whole("policy.linkerd.io/v1alpha1", "meshtlsauthentications")];
const NETWORK_AUTHENTICATIONS: &[Form] = &[whole("policy.linkerd.io/v1alpha1", "networkauthentications")];
const RATE_LIMITS: &[Form] = &[whole("policy.linkerd.io/v1alpha1", "httplocalratelimitpolicies")];
const HTTP_ROUTES: &[Form] = &[
    whole("policy.linkerd.io/v1beta3", "httproutes"),
    whole("policy.linkerd.io/v1beta2", "httproutes"),
    whole("policy.linkerd.io/v1beta1", "httproutes"),
    whole("policy.linkerd.io/v1alpha1", "httproutes"),
];
const EGRESS_NETWORKS: &[Form] = &[whole("policy.linkerd.io/v1alpha1", "egressnetworks")];
const GATEWAY_HTTP_ROUTES: &[Form] =
    &[whole("gateway.networking.k8s.io/v1", "httproutes"), whole("gateway.networking.k8s.io/v1beta1", "httproutes")];
const GRPC_ROUTES: &[Form] =
    &[whole("gateway.networking.k8s.io/v1", "grpcroutes"), whole("gateway.networking.k8s.io/v1alpha2", "grpcroutes")];
const SERVICE_PROFILES: &[Form] =
    &[whole("linkerd.io/v1alpha2", "serviceprofiles"), whole("linkerd.io/v1alpha1", "serviceprofiles")];
const TRAFFIC_SPLITS: &[Form] =
    &[whole("split.smi-spec.io/v1alpha2", "trafficsplits"), whole("split.smi-spec.io/v1alpha1", "trafficsplits")];
const EXTERNAL_WORKLOADS: &[Form] = &[
    whole("workload.linkerd.io/v1beta1", "externalworkloads"),
    whole("workload.linkerd.io/v1alpha1", "externalworkloads"),
];

/// The ways to get a kind, the best first. None for kinds that the index does not know.
pub fn of(kind: Kind) -> &'static [Form] {
    match kind {
        Kind::Namespace => NAMESPACES,
        Kind::Pod => PODS,
        Kind::Service => SERVICES,
        Kind::EndpointSlice => SLICES,
        Kind::Deployment => DEPLOYMENTS,
        Kind::StatefulSet => STATEFUL_SETS,
        Kind::DaemonSet => DAEMON_SETS,
        Kind::ReplicaSet => REPLICA_SETS,
        Kind::Job => JOBS,
        Kind::CronJob => CRON_JOBS,
        Kind::Node => NODES,
        Kind::Server => SERVERS,
        Kind::ServerAuthorization => SERVER_AUTHORIZATIONS,
        Kind::AuthorizationPolicy => AUTHORIZATION_POLICIES,
        Kind::MeshTlsAuthentication => MESH_TLS_AUTHENTICATIONS,
        Kind::NetworkAuthentication => NETWORK_AUTHENTICATIONS,
        Kind::HttpLocalRateLimitPolicy => RATE_LIMITS,
        Kind::HttpRoute => HTTP_ROUTES,
        Kind::EgressNetwork => EGRESS_NETWORKS,
        Kind::GatewayHttpRoute => GATEWAY_HTTP_ROUTES,
        Kind::GrpcRoute => GRPC_ROUTES,
        Kind::ServiceProfile => SERVICE_PROFILES,
        Kind::TrafficSplit => TRAFFIC_SPLITS,
        Kind::ExternalWorkload => EXTERNAL_WORKLOADS,
        _ => &[],
    }
}

/// Whether a cluster may do without this kind: then it has no such objects. Where it may not, an API server that says
/// so is not believed.
pub fn optional(kind: Kind) -> bool {
    of(kind).last().is_some_and(|form| !matches!(form.resource.api_version, "v1" | "apps/v1"))
}

impl Form {
    /// What is told of one object of this form: itself, or what it stands for.
    ///
    /// # Errors
    /// A field and what is wrong with it.
    pub fn read(&self, kind: Kind, mut value: Value) -> Result<Vec<Object>, (String, String)> {
        // Who set which field, and how the object was applied: most of the octets, and nothing that is read here.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.shift_remove("managedFields");
        }
        (self.convert)(value)
            .into_iter()
            .map(|mut value| {
                // Whoever admits them may have been away: one that makes no sense would spoil what others say.
                if kind.is_mesh() && value.is_object() {
                    value["apiVersion"] = self.resource.api_version.into();
                    value["kind"] = kind.as_str().into();
                    mesh::validate(&value).map_err(|error| (error.field, error.message))?;
                }
                Object::from_value(kind, value)
                    .map_err(|error| (error.path().to_string(), error.into_inner().to_string()))
            })
            .collect()
    }
}

fn same(mut value: Value) -> Vec<Value> {
    // Items of a list do not say what they are, and metadata says that it is only metadata; the kind is known.
    if let Some(object) = value.as_object_mut() {
        object.shift_remove("apiVersion");
        object.shift_remove("kind");
    }
    vec![value]
}

/// v1beta1 had the node and the zone in a map, at first.
fn slice_of_beta(mut slice: Value) -> Vec<Value> {
    for endpoint in slice.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(endpoint) = endpoint.as_object_mut() else { continue };
        let topology = endpoint.shift_remove("topology").unwrap_or_default();
        for (key, field) in [("topology.kubernetes.io/zone", "zone"), ("kubernetes.io/hostname", "nodeName")] {
            if let Some(value) = topology.get(key)
                && !endpoint.contains_key(field)
            {
                endpoint.insert(field.into(), value.clone());
            }
        }
    }
    same(slice)
}

/// Endpoints as slices: one for each subset, since their ports differ.
fn slices_of_endpoints(endpoints: Value) -> Vec<Value> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let metadata = endpoints.get("metadata").cloned().unwrap_or_default();
    let (namespace, name) = (text(&metadata, "namespace"), text(&metadata, "name"));
    let mut slices = Vec::new();
    for (at, subset) in endpoints.get("subsets").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let mut addresses = Vec::new();
        for (list, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset.get(list).and_then(Value::as_array).into_iter().flatten() {
                let mut endpoint = Map::new();
                endpoint.insert("addresses".into(), json!([text(address, "ip")]));
                endpoint.insert("conditions".into(), json!({ "ready": ready }));
                for key in ["hostname", "nodeName", "targetRef"] {
                    if let Some(value) = address.get(key) {
                        endpoint.insert(key.into(), value.clone());
                    }
                }
                addresses.push(Value::from(endpoint));
            }
        }
        let six =
            addresses.first().is_some_and(|e| e.pointer("/addresses/0").is_some_and(|a| text_of(a).contains(':')));
        slices.push(json!({
            "metadata": {
                "namespace": namespace,
                "name": format!("{name}-{at}"),
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": if six { "IPv6" } else { "IPv4" },
            "endpoints": addresses,
            "ports": subset.get("ports").cloned().unwrap_or_default(),
        }));
    }
    slices
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(kind: usize, value: Value) -> Vec<Value> {
        let read = SLICES[kind].read(Kind::EndpointSlice, value).unwrap();
        read.iter().map(Object::to_value).collect()
    }

    #[test]
    fn zones_of_old_slices() {
        let slice = json!({
            "metadata": { "namespace": "a", "name": "b-1", "managedFields": [{ "manager": "x" }] },
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["10.0.0.1"],
                "topology": { "kubernetes.io/hostname": "n", "topology.kubernetes.io/zone": "z" },
            }],
            "ports": [],
        });
        let read = slices(1, slice);
        assert_eq!(read[0].pointer("/endpoints/0/zone"), Some(&json!("z")));
        assert_eq!(read[0].pointer("/endpoints/0/nodeName"), Some(&json!("n")));
        assert_eq!(read[0].pointer("/metadata/managedFields"), None);
    }

    /// As when the webhook was away when it was made.
    #[test]
    fn a_mesh_resource_that_makes_no_sense_is_not_read() {
        let route = |path: &str| {
            let matches = json!([{ "path": { "type": "RegularExpression", "value": path } }]);
            let parents = json!([{ "group": "policy.linkerd.io", "kind": "Server", "name": "s" }]);
            let spec = json!({ "parentRefs": parents, "rules": [{ "matches": matches }] });
            of(Kind::HttpRoute)[0]
                .read(Kind::HttpRoute, json!({ "metadata": { "namespace": "a", "name": "b" }, "spec": spec }))
        };
        assert_eq!(route("/a+").unwrap().len(), 1);
        let (field, message) = route("/(").unwrap_err();
        assert_eq!(field, "spec.rules[0].matches[0].path.value", "{message}");
    }

    #[test]
    fn endpoints_become_a_slice_for_each_subset() {
        let endpoints = json!({
            "metadata": { "namespace": "a", "name": "b" },
            "subsets": [
                {
                    "addresses": [{ "ip": "10.0.0.1", "nodeName": "n", "targetRef": { "kind": "Pod", "name": "b-0" } }],
                    "notReadyAddresses": [{ "ip": "10.0.0.2" }],
                    "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
                },
                { "addresses": [{ "ip": "fd00::1" }], "ports": [{ "port": 81 }] },
            ],
        });
        let read = slices(2, endpoints);
        assert_eq!(read.len(), 2);
        assert_eq!(read[0]["metadata"]["name"], "b-0");
        assert_eq!(read[0]["metadata"]["labels"]["kubernetes.io/service-name"], "b");
        assert_eq!(read[0]["endpoints"][0]["targetRef"]["name"], "b-0");
        assert_eq!(read[0]["endpoints"][0]["nodeName"], "n");
        assert_eq!(read[0]["endpoints"][1]["conditions"]["ready"], false);
        assert_eq!(read[1]["addressType"], "IPv6");
        assert!(slices(2, json!({ "metadata": { "namespace": "a", "name": "leader" } })).is_empty());
    }

    #[test]
    fn metadata_alone_is_enough_for_workloads() {
        for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet, Kind::ReplicaSet, Kind::Job, Kind::CronJob] {
            let value = json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": { "namespace": "a", "name": "b", "labels": { "c": "d" } },
            });
            let read = of(kind)[0].read(kind, value).unwrap();
            assert_eq!(read[0].key("").to_string(), format!("{}/b in a", kind.singular()));
        }
        assert!(optional(Kind::CronJob) && !optional(Kind::Pod) && !optional(Kind::EndpointSlice));
    }

    #[test]
    fn mesh_resources_are_found_in_every_version_and_may_be_missing() {
        for kind in Kind::ALL.iter().copied().filter(|kind| kind.is_mesh()) {
            let versions: Vec<_> = of(kind).iter().map(|form| form.resource.api_version).collect();
            assert_eq!(versions, kind.api_versions(), "{kind}");
            assert!(of(kind).iter().all(|form| form.resource.plural == kind.resource()), "{kind}");
            assert!(optional(kind), "{kind}");
        }
    }
}
