//! Rules of Kubernetes that types alone do not check. Each error is a field path and a sentence.

use crate::kinds::Object;
use crate::selector::Selector;
use k8s_openapi::api::apps::v1::StatefulSetSpec;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, PodSpec, PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeSet;

type Fault = (String, String);

/// Checks an object.
pub(crate) fn object(object: &Object) -> Result<(), Fault> {
    metadata(object)?;
    match object {
        Object::Pod(pod) => match &pod.spec {
            Some(spec) => pod_spec(spec, "spec", &[]),
            None => Err(("spec".into(), "is required".into())),
        },
        Object::Service(service) => self::service(service),
        Object::Deployment(o) => {
            let spec = &o.spec;
            always(&spec.template)?;
            workload(Some(&spec.selector), &spec.template, "spec.template", spec.replicas, &[])
        }
        Object::StatefulSet(o) => stateful_set(&o.spec),
        Object::DaemonSet(o) => {
            let spec = &o.spec;
            let strategy = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
            one_of(strategy, &["RollingUpdate", "OnDelete"], "spec.updateStrategy.type")?;
            always(&spec.template)?;
            workload(Some(&spec.selector), &spec.template, "spec.template", None, &[])
        }
        Object::ReplicaSet(o) => {
            let spec = &o.spec;
            let template = spec.template.as_ref().ok_or_else(|| ("spec.template".into(), "is required".into()))?;
            always(template)?;
            workload(Some(&spec.selector), template, "spec.template", spec.replicas, &[])
        }
        Object::Job(o) => job(o.spec.as_ref().ok_or_else(spec_missing)?, "spec"),
        Object::CronJob(o) => {
            let spec = &o.spec;
            if spec.schedule.trim().is_empty() {
                return Err(("spec.schedule".into(), "is required".into()));
            }
            let path = "spec.jobTemplate.spec";
            job(spec.job_template.spec.as_ref().ok_or_else(|| (path.into(), "is required".into()))?, path)
        }
        _ => Ok(()),
    }
}

fn spec_missing() -> Fault {
    ("spec".into(), "is required".into())
}

fn fault(field: impl Into<String>, message: impl Into<String>) -> Result<(), Fault> {
    Err((field.into(), message.into()))
}

fn metadata(object: &Object) -> Result<(), Fault> {
    let metadata = object.metadata();
    let Some(name) = metadata.name.as_deref().filter(|n| !n.is_empty()) else {
        return fault("metadata.name", "is required");
    };
    let (valid, rule) = match object {
        Object::Namespace(_) => (is_dns_label(name), DNS_LABEL),
        Object::Service(_) => (is_dns_label(name) && !name.starts_with(|c: char| c.is_ascii_digit()), DNS_LABEL),
        _ => (is_dns_name(name), DNS_NAME),
    };
    if !valid {
        return fault("metadata.name", format!("{name:?} is not a valid name: {rule}"));
    }
    if let Some(namespace) = &metadata.namespace {
        if !object.kind().namespaced() {
            return fault("metadata.namespace", format!("a {} has no namespace", object.kind()));
        }
        if !is_dns_label(namespace) {
            return fault("metadata.namespace", format!("{namespace:?} is not a valid name: {DNS_LABEL}"));
        }
    }
    labels(metadata, "metadata")
}

const DNS_LABEL: &str = "1 to 63 lower-case letters, digits or '-', beginning and ending with a letter or digit";
pub(crate) const DNS_NAME: &str =
    "1 to 253 lower-case letters, digits, '-' or '.', each part beginning and ending with a letter or digit";

fn is_dns_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 63
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && edge(name.chars().next())
        && edge(name.chars().next_back())
}

pub(crate) fn is_dns_name(name: &str) -> bool {
    let part = |part: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && edge(part.chars().next())
            && edge(part.chars().next_back())
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn is_qualified(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= 63
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && edge(name.chars().next())
        && edge(name.chars().next_back())
}

fn labels(metadata: &ObjectMeta, path: &str) -> Result<(), Fault> {
    for (map, what) in [(&metadata.labels, "labels"), (&metadata.annotations, "annotations")] {
        for (key, value) in map.iter().flatten() {
            let (prefix, name) = key.split_once('/').map_or((None, key.as_str()), |(p, n)| (Some(p), n));
            // Annotation keys may have any case in their prefix.
            let prefix_ok = prefix.is_none_or(|p| is_dns_name(&p.to_ascii_lowercase()));
            if !is_qualified(name) || !prefix_ok {
                return fault(format!("{path}.{what}"), format!("{key:?} is not a valid key"));
            }
            if what == "labels" && !value.is_empty() && !is_qualified(value) {
                return fault(
                    format!("{path}.labels.{key}"),
                    format!("{value:?} is not a valid label value: up to 63 letters, digits, '-', '_' or '.'"),
                );
            }
        }
    }
    Ok(())
}

fn workload(
    selector: Option<&LabelSelector>,
    template: &PodTemplateSpec,
    path: &str,
    replicas: Option<i32>,
    claims: &[PersistentVolumeClaim],
) -> Result<(), Fault> {
    if replicas.is_some_and(|n| n < 0) {
        return fault("spec.replicas", "must not be negative");
    }
    if let Some(metadata) = &template.metadata {
        labels(metadata, &format!("{path}.metadata"))?;
    }
    if let Some(selector) = selector {
        let parsed = Selector::try_from(selector).map_err(|e| ("spec.selector".to_owned(), e.to_string()))?;
        if parsed.is_empty() {
            return fault("spec.selector", "must select by at least one label");
        }
        if !parsed.matches(template.metadata.as_ref().and_then(|m| m.labels.as_ref())) {
            return fault(format!("{path}.metadata.labels"), "the selector does not match the labels of the template");
        }
    }
    match &template.spec {
        Some(spec) => pod_spec(spec, &format!("{path}.spec"), claims),
        None => fault(format!("{path}.spec"), "is required"),
    }
}

fn job(spec: &JobSpec, path: &str) -> Result<(), Fault> {
    for (field, number) in [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
    ] {
        if number.is_some_and(|n| n < 0) {
            return fault(format!("{path}.{field}"), "must not be negative");
        }
    }
    let mode = format!("{path}.completionMode");
    one_of(spec.completion_mode.as_deref(), &["NonIndexed", "Indexed"], &mode)?;
    if spec.completion_mode.as_deref() == Some("Indexed") && spec.completions.is_none() {
        return fault(format!("{path}.completions"), "is required when completionMode is Indexed");
    }
    let template = format!("{path}.template");
    workload(None, &spec.template, &template, None, &[])?;
    job_restart_policy(&spec.template, &template)
}

fn job_restart_policy(template: &PodTemplateSpec, path: &str) -> Result<(), Fault> {
    match template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
        Some("OnFailure" | "Never") => Ok(()),
        _ => fault(format!("{path}.spec.restartPolicy"), "a job needs OnFailure or Never"),
    }
}

/// What is kept running is started again however it ends.
fn always(template: &PodTemplateSpec) -> Result<(), Fault> {
    let policy = template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    one_of(policy, &["Always"], "spec.template.spec.restartPolicy")
}

fn stateful_set(spec: &StatefulSetSpec) -> Result<(), Fault> {
    one_of(spec.pod_management_policy.as_deref(), &["OrderedReady", "Parallel"], "spec.podManagementPolicy")?;
    let strategy = spec.update_strategy.as_ref();
    let type_ = strategy.and_then(|s| s.type_.as_deref());
    one_of(type_, &["RollingUpdate", "OnDelete"], "spec.updateStrategy.type")?;
    let partition = strategy.and_then(|s| s.rolling_update.as_ref()?.partition);
    let start = spec.ordinals.as_ref().and_then(|o| o.start);
    for (field, number) in [("updateStrategy.rollingUpdate.partition", partition), ("ordinals.start", start)] {
        if number.is_some_and(|n| n < 0) {
            return fault(format!("spec.{field}"), "must not be negative");
        }
    }
    let claims = spec.volume_claim_templates.as_deref().unwrap_or_default();
    for (at, claim) in claims.iter().enumerate() {
        if !claim.metadata.name.as_deref().is_some_and(is_dns_label) {
            return fault(format!("spec.volumeClaimTemplates[{at}].metadata.name"), DNS_LABEL);
        }
    }
    always(&spec.template)?;
    workload(Some(&spec.selector), &spec.template, "spec.template", spec.replicas, claims)
}

fn pod_spec(spec: &PodSpec, path: &str, claims: &[PersistentVolumeClaim]) -> Result<(), Fault> {
    if spec.containers.is_empty() {
        return fault(format!("{path}.containers"), "at least one container is required");
    }
    one_of(spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"], &format!("{path}.restartPolicy"))?;
    let mut volumes = BTreeSet::new();
    for (at, volume) in spec.volumes.iter().flatten().enumerate() {
        let field = format!("{path}.volumes[{at}].name");
        if !is_dns_label(&volume.name) {
            return fault(field, format!("{:?} is not a valid name: {DNS_LABEL}", volume.name));
        }
        if !volumes.insert(volume.name.as_str()) {
            return fault(field, format!("there is already a volume {:?}", volume.name));
        }
    }
    volumes.extend(claims.iter().filter_map(|claim| claim.metadata.name.as_deref()));
    let mut names = BTreeSet::new();
    let init =
        spec.init_containers.iter().flatten().enumerate().map(|(at, c)| (format!("{path}.initContainers[{at}]"), c));
    let plain = spec.containers.iter().enumerate().map(|(at, c)| (format!("{path}.containers[{at}]"), c));
    for (path, container) in init.chain(plain) {
        if !names.insert(container.name.as_str()) {
            return fault(format!("{path}.name"), format!("there is already a container {:?}", container.name));
        }
        self::container(container, &path, &volumes)?;
    }
    let mut taken = BTreeSet::new();
    for (at, container) in spec.containers.iter().enumerate() {
        for (port_at, declared) in container.ports.iter().flatten().enumerate() {
            let Some(number) = declared.host_port else { continue };
            let field = format!("{path}.containers[{at}].ports[{port_at}].hostPort");
            port(number, &field)?;
            let protocol = declared.protocol.as_deref().unwrap_or("TCP");
            if !taken.insert((number, protocol, declared.host_ip.as_deref())) {
                return fault(field, format!("there is already a hostPort {number}"));
            }
        }
    }
    Ok(())
}

fn container(container: &Container, path: &str, volumes: &BTreeSet<&str>) -> Result<(), Fault> {
    if !is_dns_label(&container.name) {
        return fault(format!("{path}.name"), format!("{:?} is not a valid name: {DNS_LABEL}", container.name));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(container.image_pull_policy.as_deref(), &policies, &format!("{path}.imagePullPolicy"))?;
    let mut names = BTreeSet::new();
    for (at, declared) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{at}]");
        port(declared.container_port, &format!("{path}.containerPort"))?;
        protocol(declared.protocol.as_deref(), &path)?;
        if let Some(name) = &declared.name {
            port_name(name, &format!("{path}.name"))?;
            if !names.insert(name) {
                return fault(format!("{path}.name"), format!("there is already a port {name:?}"));
            }
        }
    }
    for (at, variable) in container.env.iter().flatten().enumerate() {
        let field = format!("{path}.env[{at}]");
        if variable.name.is_empty() || variable.name.contains('=') {
            return fault(format!("{field}.name"), "must be a name without '='");
        }
        if variable.value.as_ref().is_some_and(|v| !v.is_empty()) && variable.value_from.is_some() {
            return fault(field, "value and valueFrom exclude each other");
        }
    }
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if !volumes.contains(mount.name.as_str()) {
            return fault(format!("{path}.volumeMounts[{at}].name"), format!("the pod has no volume {:?}", mount.name));
        }
        if mount.mount_path.is_empty() {
            return fault(format!("{path}.volumeMounts[{at}].mountPath"), "is required");
        }
    }
    Ok(())
}

fn service(service: &Service) -> Result<(), Fault> {
    let Some(spec) = &service.spec else { return Err(spec_missing()) };
    let kind = spec.type_.as_deref();
    one_of(kind, &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"], "spec.type")?;
    if kind == Some("ExternalName") && spec.external_name.as_deref().unwrap_or_default().is_empty() {
        return fault("spec.externalName", "is required for type ExternalName");
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if ports.is_empty() && !headless && kind != Some("ExternalName") {
        return fault("spec.ports", "at least one port is required");
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (at, declared) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        port(declared.port, &format!("{path}.port"))?;
        protocol(declared.protocol.as_deref(), &path)?;
        match &declared.target_port {
            Some(IntOrString::Int(number)) => port(*number, &format!("{path}.targetPort"))?,
            Some(IntOrString::String(name)) => port_name(name, &format!("{path}.targetPort"))?,
            None => {}
        }
        let name = declared.name.as_deref().unwrap_or_default();
        if ports.len() > 1 && name.is_empty() {
            return fault(format!("{path}.name"), "is required when a service has several ports");
        }
        if !name.is_empty() && !is_dns_label(name) {
            return fault(format!("{path}.name"), format!("{name:?} is not a valid name: {DNS_LABEL}"));
        }
        if !names.insert(name) {
            return fault(format!("{path}.name"), format!("there is already a port {name:?}"));
        }
        if !numbers.insert((declared.port, declared.protocol.as_deref().unwrap_or("TCP"))) {
            return fault(format!("{path}.port"), format!("there is already a port {}", declared.port));
        }
    }
    Ok(())
}

fn port(number: i32, field: &str) -> Result<(), Fault> {
    if (1..=65535).contains(&number) { Ok(()) } else { fault(field, format!("{number} is no port: 1 to 65535")) }
}

fn port_name(name: &str, field: &str) -> Result<(), Fault> {
    let valid = is_dns_label(name) && name.len() <= 15 && name.contains(|c: char| c.is_ascii_lowercase());
    if valid {
        Ok(())
    } else {
        fault(
            field,
            format!("{name:?} is no port name: 1 to 15 lower-case letters, digits or '-', one letter at least"),
        )
    }
}

fn protocol(protocol: Option<&str>, path: &str) -> Result<(), Fault> {
    one_of(protocol, &["TCP", "UDP", "SCTP"], &format!("{path}.protocol"))
}

fn one_of(value: Option<&str>, allowed: &[&str], field: &str) -> Result<(), Fault> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            fault(field, format!("{value:?} is none of {}", allowed.join(", ")))
        }
        _ => Ok(()),
    }
}
