//! Adds the proxy to pods: the pure function behind `weft inject`, the one-machine cluster and the admission webhook, and
//! its inverse.
//!
//! [`inject`] and [`uninject`] add and remove containers; [`annotate`] and [`unannotate`] only ask for injection. All of
//! them work on untyped JSON, so that what they do not understand passes through unchanged, and take a Pod, anything
//! with a pod template, a Namespace (annotation only) or a List of those.

mod containers;
pub mod forms;
mod settings;
pub mod values;

use crate::kinds::Object;
use crate::{kinds::Kind, names, owner};
use serde_json::{Map, Value, json};
use settings::Settings;
use std::collections::BTreeMap;

/// Annotation: which program injected.
pub const ANNOTATION_CREATED_BY: &str = "linkerd.io/created-by";
/// Annotation: version of the proxy.
pub const ANNOTATION_PROXY_VERSION: &str = "linkerd.io/proxy-version";
/// Annotation: SHA-256 of the trust anchors in the proxy's environment, in hexadecimal.
pub const ANNOTATION_TRUST_ROOT: &str = "linkerd.io/trust-root-sha256";
/// Prefix of the annotations that configure the proxy.
pub const CONFIG_PREFIX: &str = "config.linkerd.io/";

/// Name of the volume with the identity token.
pub const TOKEN_VOLUME: &str = "linkerd-identity-token";
/// Where that volume is mounted.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/tokens";

/// First argument of `weft-init` in the validator's container; how to redirect is said behind it.
const VALIDATE: &str = "validate";

/// What injection needs to know besides the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectConfig {
    /// Namespace of the control plane.
    pub control_namespace: String,
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
    /// Trust anchors, PEM.
    pub trust_anchors_pem: String,
    /// Networks that count as the cluster, comma-separated.
    pub cluster_networks: String,
    /// Image of the proxy and of the init container; [`InjectConfig::proxy_version`] is its tag unless it has one.
    pub proxy_image: String,
    /// Version of the proxy, also written to the annotation `linkerd.io/proxy-version`.
    pub proxy_version: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Written to the annotation `linkerd.io/created-by`, such as `weft/cli 0.1.0`.
    pub created_by: String,
    /// Annotations of the namespaces that are known, by name.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Namespace of objects that name none.
    pub default_namespace: String,
    /// Settings of pods and namespaces that say nothing else, by the name of their annotation without its prefix.
    pub defaults: BTreeMap<String, String>,
    /// Whether the cluster has sidecars of its own: init containers that go on.
    pub native_sidecars: bool,
    /// Whether the control plane must end the proxies of Jobs that are done, as the cluster does not.
    pub ends_jobs: bool,
    /// Whether a CNI plugin redirects the traffic of pods: they get a validator in place of the init container.
    pub cni: bool,
    /// Inject every pod that does not say `disabled`, as on the command line; else only pods that ask for it, or whose
    /// namespace does, as in a cluster.
    pub unless_disabled: bool,
}

impl InjectConfig {
    /// The configuration of the one-machine cluster, with the default names.
    pub fn local(trust_anchors_pem: &str, version: &str) -> InjectConfig {
        InjectConfig {
            control_namespace: names::CONTROL_NAMESPACE.into(),
            trust_domain: names::TRUST_DOMAIN.into(),
            cluster_domain: names::CLUSTER_DOMAIN.into(),
            trust_anchors_pem: trust_anchors_pem.into(),
            cluster_networks: names::CLUSTER_NETWORKS.into(),
            proxy_image: "weft/proxy".into(),
            proxy_version: version.into(),
            image_pull_policy: "IfNotPresent".into(),
            created_by: format!("weft/local {version}"),
            namespaces: BTreeMap::new(),
            default_namespace: "default".into(),
            defaults: BTreeMap::new(),
            native_sidecars: false,
            ends_jobs: false,
            cni: false,
            unless_disabled: false,
        }
    }
}

/// What happened to one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Kind, in lower case.
    pub kind: String,
    /// Its name, or its generateName.
    pub name: String,
    /// Changed or not, and why not.
    pub outcome: Outcome,
    /// Whether a container has a UDP port, which no proxy handles.
    pub udp: bool,
}

/// See [`Report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The proxy was added, or removed.
    Changed,
    /// Only an annotation was changed.
    Annotated,
    /// Left as it was.
    Skipped(Reason),
}

/// Why an object was left as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Shares the network of its node.
    HostNetwork,
    /// Has a container of this or another mesh.
    Sidecar,
    /// `linkerd.io/inject: disabled`.
    Disabled,
    /// Neither it nor its namespace asks.
    NotEnabled,
    /// Not a pod, and makes none.
    Unsupported,
    /// There was nothing to remove.
    NothingToRemove,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::HostNetwork => "hostNetwork is enabled",
            Reason::Sidecar => "it already has a proxy",
            Reason::Disabled => "it has the annotation linkerd.io/inject: disabled",
            Reason::NotEnabled => "neither it nor its namespace has the annotation linkerd.io/inject: enabled",
            Reason::Unsupported => "it is neither a pod nor makes pods",
            Reason::NothingToRemove => "it has no proxy",
        })
    }
}

/// The result of [`inject`] and its companions.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The object, changed or not.
    pub value: Value,
    /// One report an object (a List has several).
    pub reports: Vec<Report>,
}

/// A configuration annotation that cannot be used, or an object that is no valid manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {message}")]
pub struct Error {
    /// `kind/name`.
    pub object: String,
    /// Annotation or field.
    pub field: String,
    /// One sentence.
    pub message: String,
}

/// Adds the proxy. A pod that has one already is left as it is, so doing it twice is doing it once.
///
/// # Errors
/// See [`Error`].
pub fn inject(value: &Value, config: &InjectConfig) -> Result<Injected, Error> {
    each(value, &mut |object| inject_one(object, config))
}

/// Removes what [`inject`] adds. Labels, annotations and volumes that are empty then are removed too.
pub fn uninject(value: &Value) -> Injected {
    let result = each(value, &mut |object| Ok(uninject_one(object)));
    result.unwrap_or_else(|_| Injected { value: value.clone(), reports: Vec::new() })
}

/// Asks for injection: adds `linkerd.io/inject: enabled` and the given configuration annotations.
///
/// # Errors
/// See [`Error`].
pub fn annotate(value: &Value, annotations: &BTreeMap<String, String>) -> Result<Injected, Error> {
    each(value, &mut |object| {
        let (kind, name) = kind_and_name(object);
        if let Some(reason) = template_path(&kind).and_then(|path| object.pointer(path)).and_then(|template| {
            let asked = annotation(template, names::ANNOTATION_INJECT);
            refusal(template).or((asked == Some("disabled")).then_some(Reason::Disabled))
        }) {
            return Ok(report(object, kind, name, Outcome::Skipped(reason)));
        }
        let Some(place) = annotated_path(&kind) else {
            return Ok(report(object, kind, name, Outcome::Skipped(Reason::Unsupported)));
        };
        let outcome = if kind == "Namespace" { Outcome::Annotated } else { Outcome::Changed };
        let id = identify(&kind, &name);
        let target = object.pointer_mut(place).ok_or_else(|| malformed(&id, place))?;
        let map = child_map(target, &["metadata", "annotations"]).ok_or_else(|| malformed(&id, "metadata"))?;
        if map.get(names::ANNOTATION_INJECT).and_then(Value::as_str) != Some("ingress") {
            map.insert(names::ANNOTATION_INJECT.into(), "enabled".into());
        }
        for (key, value) in annotations {
            map.insert(key.clone(), value.clone().into());
        }
        Ok(report(object, kind, name, outcome))
    })
}

/// Takes back the request for injection: removes `linkerd.io/inject` unless it says `disabled`.
pub fn unannotate(value: &Value) -> Injected {
    let result = each(value, &mut |object| {
        let (kind, name) = kind_and_name(object);
        let target = annotated_path(&kind).and_then(|place| object.pointer_mut(place));
        let metadata = target.and_then(|t| t.get_mut("metadata")).and_then(Value::as_object_mut);
        let removed = metadata.is_some_and(|metadata| {
            prune(metadata, "annotations", |key, value| {
                key == names::ANNOTATION_INJECT && value.as_str() != Some("disabled")
            })
        });
        let outcome = if removed { Outcome::Annotated } else { Outcome::Skipped(Reason::NothingToRemove) };
        Ok(report(object, kind, name, outcome))
    });
    result.unwrap_or_else(|_| Injected { value: value.clone(), reports: Vec::new() })
}

/// Where the pod of this kind is: a pointer to what has `metadata` and `spec`.
fn template_path(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        _ => None,
    }
}

fn annotated_path(kind: &str) -> Option<&'static str> {
    if kind == "Namespace" { Some("") } else { template_path(kind) }
}

/// Runs the function on the object, or on each item of a List.
fn each(value: &Value, change: &mut dyn FnMut(&mut Value) -> Result<Report, Error>) -> Result<Injected, Error> {
    let mut value = value.clone();
    let mut reports = Vec::new();
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|k| k == "List");
    match value.get_mut("items").and_then(Value::as_array_mut).filter(|_| is_list) {
        Some(items) => {
            for item in items {
                reports.push(change(item)?);
            }
        }
        None => reports.push(change(&mut value)?),
    }
    Ok(Injected { value, reports })
}

fn kind_and_name(object: &Value) -> (String, String) {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).filter(|s| !s.is_empty());
    let name = text("/metadata/name").or(text("/metadata/generateName"));
    (text("/kind").unwrap_or_default().to_owned(), name.unwrap_or_default().to_owned())
}

fn identify(kind: &str, name: &str) -> String {
    format!("{}/{name}", kind.to_ascii_lowercase())
}

fn malformed(object: &str, field: &str) -> Error {
    let field = if field.is_empty() { "metadata" } else { field }.trim_start_matches('/').replace('/', ".");
    Error { object: object.to_owned(), field, message: "is missing or of the wrong type".into() }
}

fn report(object: &Value, kind: String, name: String, outcome: Outcome) -> Report {
    let udp = template_path(&kind).and_then(|path| object.pointer(path)).is_some_and(|template| {
        containers_of(template, "containers")
            .flat_map(|c| c.get("ports").and_then(Value::as_array).into_iter().flatten())
            .any(|p| p.get("protocol").and_then(Value::as_str) == Some("UDP"))
    });
    Report { kind: kind.to_ascii_lowercase(), name, outcome, udp }
}

fn annotation<'a>(template: &'a Value, key: &str) -> Option<&'a str> {
    template.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

fn containers_of<'a>(template: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    template.get("spec").and_then(|s| s.get(list)).and_then(Value::as_array).into_iter().flatten()
}

/// Why this pod can have no proxy, whatever its annotations.
fn refusal(template: &Value) -> Option<Reason> {
    if template.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Some(Reason::HostNetwork);
    }
    const NAMES: &[&str] = &[
        names::PROXY_CONTAINER,
        names::INIT_CONTAINER,
        names::VALIDATOR_CONTAINER,
        "istio-proxy",
        "istio-init",
        "contour",
        "envoy",
    ];
    const IMAGES: &[&str] = &[
        "cr.l5d.io/linkerd/proxy",
        "ghcr.io/linkerd/proxy",
        "gcr.io/istio-release/proxyv2",
        "docker.io/istio/proxyv2",
        "docker.io/envoyproxy/envoy",
        "envoyproxy/envoy",
    ];
    let known = containers_of(template, "containers").chain(containers_of(template, "initContainers")).any(|c| {
        let text = |key: &str| c.get(key).and_then(Value::as_str).unwrap_or_default();
        NAMES.contains(&text("name")) || IMAGES.iter().any(|image| text("image").starts_with(image))
    });
    known.then_some(Reason::Sidecar)
}

fn inject_one(object: &mut Value, config: &InjectConfig) -> Result<Report, Error> {
    let (kind, name) = kind_and_name(object);
    let id = identify(&kind, &name);
    if kind == "Namespace" && config.unless_disabled {
        let map = child_map(object, &["metadata", "annotations"]).ok_or_else(|| malformed(&id, "metadata"))?;
        let disabled = map.get(names::ANNOTATION_INJECT).and_then(Value::as_str) == Some("disabled");
        if !disabled {
            map.insert(names::ANNOTATION_INJECT.into(), "enabled".into());
        }
        let outcome = if disabled { Outcome::Skipped(Reason::Disabled) } else { Outcome::Annotated };
        return Ok(report(object, kind, name, outcome));
    }
    let Some(path) = template_path(&kind) else {
        return Ok(report(object, kind, name, Outcome::Skipped(Reason::Unsupported)));
    };
    let own_namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
    let namespace = own_namespace.unwrap_or(&config.default_namespace).to_owned();
    let workload = workload_of(object, &kind, &name);
    let Some(template) = object.pointer_mut(path).filter(|t| t.is_object()) else {
        return Err(malformed(&id, path));
    };
    let nothing = BTreeMap::new();
    let namespace_annotations = config.namespaces.get(&namespace).unwrap_or(&nothing);
    let asked = annotation(template, names::ANNOTATION_INJECT);
    let asked = asked.or(namespace_annotations.get(names::ANNOTATION_INJECT).map(String::as_str));
    let skipped = refusal(template).or(match asked {
        Some("enabled" | "ingress") => None,
        Some("disabled") => Some(Reason::Disabled),
        _ if config.unless_disabled => None,
        _ => Some(Reason::NotEnabled),
    });
    if let Some(reason) = skipped {
        return Ok(report(object, kind, name, Outcome::Skipped(reason)));
    }
    let settings = Settings::read(template, namespace_annotations, config).map_err(|(field, message)| Error {
        object: id.clone(),
        field,
        message,
    })?;
    add(template, &settings, config, &namespace, workload).ok_or_else(|| malformed(&id, "spec"))?;
    Ok(report(object, kind, name, Outcome::Changed))
}

/// Kind and name for the label that says which workload a pod belongs to.
fn workload_of(object: &Value, kind: &str, name: &str) -> Option<(String, String)> {
    if kind != "Pod" {
        return Some((kind.to_ascii_lowercase(), name.to_owned()));
    }
    // Only metadata matters here: a pod that does not type for another reason is the caller's to refuse.
    let metadata = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": object.get("metadata") });
    let pod = Object::from_value(Kind::Pod, metadata).ok()?;
    let workload = owner::workload(pod.metadata());
    (workload.kind != "pod").then_some((workload.kind, workload.name))
}

fn add(
    template: &mut Value,
    settings: &Settings,
    config: &InjectConfig,
    namespace: &str,
    workload: Option<(String, String)>,
) -> Option<()> {
    let labels = child_map(template, &["metadata", "labels"])?;
    labels.insert(names::LABEL_CONTROL_PLANE_NS.into(), config.control_namespace.clone().into());
    labels.insert(names::LABEL_WORKLOAD_NS.into(), namespace.into());
    if let Some((kind, name)) = workload {
        labels.insert(names::workload_label(&kind), name.into());
    }
    let annotations = child_map(template, &["metadata", "annotations"])?;
    annotations.insert(ANNOTATION_CREATED_BY.into(), config.created_by.clone().into());
    annotations.insert(ANNOTATION_PROXY_VERSION.into(), settings.version.clone().into());
    annotations.insert(ANNOTATION_TRUST_ROOT.into(), trust_root_sha256(&config.trust_anchors_pem).into());
    let spec = template.get_mut("spec")?.as_object_mut()?;
    let init = if config.cni { containers::validator(settings) } else { containers::init(settings) };
    if settings.native {
        // Both are first: other init containers have a proxy already.
        let list = child_list(spec, "initContainers")?;
        list.insert(0, init);
        list.insert(1, containers::sidecar(settings, config));
        child_list(spec, "containers")?;
    } else {
        // The proxy is first so that it starts first; the init container is last so that the others have a network. A
        // validator changes nothing, so it is first: what is wrong is said before anything else runs.
        child_list(spec, "containers")?.insert(0, containers::proxy(settings, config));
        let list = child_list(spec, "initContainers")?;
        list.insert(if config.cni { 0 } else { list.len() }, init);
    }
    child_list(spec, "volumes")?.push(containers::token_volume());
    Some(())
}

fn uninject_one(object: &mut Value) -> Report {
    let (kind, name) = kind_and_name(object);
    let Some(path) = template_path(&kind) else {
        return report(object, kind, name, Outcome::Skipped(Reason::Unsupported));
    };
    let mut changed = false;
    let template = object.pointer_mut(path).and_then(Value::as_object_mut);
    if let Some(template) = template {
        if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
            for (list, ours) in [
                ("containers", names::PROXY_CONTAINER),
                ("initContainers", names::INIT_CONTAINER),
                ("initContainers", names::VALIDATOR_CONTAINER),
                // A native sidecar.
                ("initContainers", names::PROXY_CONTAINER),
                ("volumes", TOKEN_VOLUME),
                ("volumes", "linkerd-identity-end-entity"),
                ("volumes", "linkerd-proxy-init-xtables-lock"),
            ] {
                changed |= remove_named(spec, list, ours);
            }
        }
        if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
            changed |= prune(metadata, "labels", |key, _| {
                key == names::LABEL_CONTROL_PLANE_NS
                    || key == names::LABEL_WORKLOAD_NS
                    || key.starts_with("linkerd.io/proxy-")
            });
            changed |= prune(metadata, "annotations", |key, _| {
                [ANNOTATION_CREATED_BY, ANNOTATION_PROXY_VERSION, ANNOTATION_TRUST_ROOT].contains(&key)
            });
        }
        if template.get("metadata").and_then(Value::as_object).is_some_and(Map::is_empty) {
            template.shift_remove("metadata");
        }
    }
    let outcome = if changed { Outcome::Changed } else { Outcome::Skipped(Reason::NothingToRemove) };
    report(object, kind, name, outcome)
}

fn remove_named(spec: &mut Map<String, Value>, list: &str, name: &str) -> bool {
    let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) else { return false };
    let before = items.len();
    items.retain(|item| item.get("name").and_then(Value::as_str) != Some(name));
    let changed = items.len() != before;
    if changed && items.is_empty() {
        spec.shift_remove(list);
    }
    changed
}

/// Removes entries of a map, and the map when nothing is left of it.
fn prune(metadata: &mut Map<String, Value>, map: &str, remove: impl Fn(&str, &Value) -> bool) -> bool {
    let Some(entries) = metadata.get_mut(map).and_then(Value::as_object_mut) else { return false };
    let before = entries.len();
    entries.retain(|key, value| !remove(key, value));
    let changed = entries.len() != before;
    if changed && entries.is_empty() {
        metadata.shift_remove(map);
    }
    changed
}

/// The map at the path, made where it is missing; `None` when something else is there.
fn child_map<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    let mut map = value.as_object_mut()?;
    for key in path {
        let child = map.entry((*key).to_owned()).or_insert_with(|| Value::Object(Map::new()));
        if child.is_null() {
            *child = Value::Object(Map::new());
        }
        map = child.as_object_mut()?;
    }
    Some(map)
}

fn child_list<'a>(spec: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let child = spec.entry(key.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
    if child.is_null() {
        *child = Value::Array(Vec::new());
    }
    child.as_array_mut()
}

/// Whether this is a Go duration, such as `1m30s`.
pub(crate) fn is_duration(text: &str) -> bool {
    settings::go_duration(text).is_ok()
}

/// The value of [`ANNOTATION_TRUST_ROOT`] for these anchors.
pub fn trust_root_sha256(pem: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pem.trim().as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
