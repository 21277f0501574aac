//! Applying and deleting: everything is parsed, completed with Kubernetes' defaults and checked first; only when nothing
//! is wrong does anything change.

use super::services;
use super::spec::Programs;
use super::store::{Store, now};
use super::workloads::{check_cron_job, check_pod_failure_policy};
use crate::Error;
use crate::proto::{Document, Outcome};
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, PodSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use weft_core::kinds::{Key, Kind, Object};
use weft_core::manifest;

/// An object of a file, checked.
struct Entry {
    document: manifest::Document,
    key: Key,
    object: Object,
}

/// `deployment.apps/web`, as kubectl names objects.
pub(crate) fn shown(key: &Key) -> String {
    let group = key.kind.api_version().split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", key.kind.singular(), key.name)
}

/// Creates and changes objects, all or none.
///
/// # Errors
/// Names file, document and field of the first thing that is wrong.
pub(crate) fn apply(
    store: &mut Store,
    documents: Vec<Document>,
    namespace: &str,
    programs: &Programs,
) -> Result<Vec<Outcome>, Error> {
    let mut entries = parse(documents, namespace)?;
    let mut seen = BTreeSet::new();
    let namespaces: BTreeSet<String> = entries
        .iter()
        .filter(|e| e.key.kind == Kind::Namespace)
        .map(|e| e.key.name.clone())
        .chain(store.list(Kind::Namespace, None).filter(|(_, o)| !is_ending(o)).map(|(key, _)| key.name.clone()))
        .collect();
    for entry in &mut entries {
        let refuse = |field: &str, message: String| refusal(&entry.document, field, message);
        if !seen.insert(entry.key.clone()) {
            return Err(refuse("metadata.name", format!("{} is there twice", shown(&entry.key))));
        }
        if entry.key.kind.namespaced() && !namespaces.contains(&entry.key.namespace) {
            let message = format!("namespace {:?} does not exist", entry.key.namespace);
            return Err(refuse("metadata.namespace", message));
        }
        if store.get(&entry.key).is_some_and(is_ending) {
            let message = format!("{} is just being deleted; try again when it is gone", shown(&entry.key));
            return Err(refuse("metadata.name", message));
        }
        complete(&mut entry.object);
        check(&entry.object, programs).map_err(|(field, message)| refuse(&field, message))?;
        if let Some(old) = store.get(&entry.key) {
            check_change(old, &entry.object).map_err(|(field, message)| refuse(&field, message))?;
        }
    }
    check_service_ips(store, &entries)?;
    let mut outcomes = Vec::new();
    // Namespaces first, then in the order of the files.
    let (first, rest): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.key.kind == Kind::Namespace);
    for entry in first.into_iter().chain(rest) {
        let verb = put(store, entry.key.clone(), entry.document.value, entry.object)
            .map_err(|message| Error::new(format!("{}: {message}", shown(&entry.key))))?;
        outcomes.push(Outcome { object: shown(&entry.key), verb: verb.to_owned() });
    }
    Ok(outcomes)
}

/// Marks objects as deleted. Answers what was there, and the keys of what was meant.
///
/// # Errors
/// When a manifest is wrong, or an object does not exist and that is not to be ignored; nothing is deleted then.
pub(crate) fn delete(
    store: &mut Store,
    documents: Vec<Document>,
    namespace: &str,
    ignore_not_found: bool,
) -> Result<(Vec<Outcome>, Vec<Key>), Error> {
    let entries = parse(documents, namespace)?;
    let missing: Vec<String> = entries.iter().filter(|e| store.get(&e.key).is_none()).map(|e| shown(&e.key)).collect();
    if let (Some(first), false) = (missing.first(), ignore_not_found) {
        let others = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
        return Err(Error::new(format!("{first}{others} not found; nothing is deleted (see --ignore-not-found)")));
    }
    let mut outcomes = Vec::new();
    let mut keys = Vec::new();
    for entry in entries {
        if store.get(&entry.key).is_some() {
            delete_object(store, &entry.key);
            outcomes.push(Outcome { object: shown(&entry.key), verb: "deleted".into() });
            keys.push(entry.key);
        }
    }
    Ok((outcomes, keys))
}

/// Deletes one object: pods and namespaces end in time, everything else goes at once.
pub(crate) fn delete_object(store: &mut Store, key: &Key) {
    match key.kind {
        Kind::Pod => store.update_pod(key, |pod| {
            if pod.metadata.deletion_timestamp.is_none() {
                let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
                pod.metadata.deletion_timestamp = Some(now());
                pod.metadata.deletion_grace_period_seconds = Some(grace);
            }
        }),
        Kind::Namespace => store.update(key, |object| {
            if let Object::Namespace(namespace) = object
                && namespace.metadata.deletion_timestamp.is_none()
            {
                namespace.metadata.deletion_timestamp = Some(now());
                namespace.status.get_or_insert_default().phase = Some("Terminating".into());
            }
        }),
        _ => {
            store.remove(key);
        }
    }
}

/// Whether an object has been deleted and is only waiting for its end.
pub(crate) fn is_ending(object: &Object) -> bool {
    object.metadata().deletion_timestamp.is_some()
}

fn parse(documents: Vec<Document>, namespace: &str) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for document in documents {
        let index = document.index;
        let mut parsed = manifest::parse_value(&document.file, document.value).map_err(|mut e| {
            e.document = index;
            Error::new(e.to_string())
        })?;
        parsed.index = index;
        let mut object = parsed.object.clone();
        let key = object.key(namespace);
        if key.kind.namespaced() {
            object.metadata_mut().namespace = Some(key.namespace.clone());
        }
        entries.push(Entry { document: parsed, key, object });
    }
    Ok(entries)
}

fn refusal(document: &manifest::Document, field: &str, message: String) -> Error {
    let error = manifest::Error {
        file: document.file.clone(),
        document: document.index,
        object: Some(format!(
            "{}/{}",
            document.object.kind(),
            document.object.metadata().name.as_deref().unwrap_or_default()
        )),
        field: Some(field.to_owned()),
        message,
    };
    Error::new(error.to_string())
}

/// Fills in what Kubernetes' API server would.
pub(crate) fn complete(object: &mut Object) {
    match object {
        Object::Namespace(namespace) => {
            namespace.status.get_or_insert_default().phase.get_or_insert_with(|| "Active".into());
            let name = namespace.metadata.name.clone().unwrap_or_default();
            namespace.metadata.labels.get_or_insert_default().insert("kubernetes.io/metadata.name".into(), name);
        }
        Object::Secret(secret) => {
            if let Some(text) = secret.string_data.take() {
                let data = secret.data.get_or_insert_default();
                data.extend(text.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))));
            }
            secret.type_.get_or_insert_with(|| "Opaque".into());
        }
        Object::Service(service) => {
            let spec = service.spec.get_or_insert_default();
            spec.type_.get_or_insert_with(|| "ClusterIP".into());
            for port in spec.ports.iter_mut().flatten() {
                port.protocol.get_or_insert_with(|| "TCP".into());
                port.target_port.get_or_insert(IntOrString::Int(port.port));
            }
        }
        Object::Deployment(deployment) => {
            deployment.spec.replicas.get_or_insert(1);
            complete_pod(deployment.spec.template.spec.get_or_insert_default());
        }
        Object::ReplicaSet(set) => {
            set.spec.replicas.get_or_insert(1);
            if let Some(template) = &mut set.spec.template {
                complete_pod(template.spec.get_or_insert_default());
            }
        }
        Object::CronJob(cron) => {
            cron.spec.concurrency_policy.get_or_insert_with(|| "Allow".into());
            cron.spec.suspend.get_or_insert(false);
            cron.spec.successful_jobs_history_limit.get_or_insert(3);
            cron.spec.failed_jobs_history_limit.get_or_insert(1);
            complete_job(cron.spec.job_template.spec.get_or_insert_default());
        }
        Object::StatefulSet(set) => {
            set.spec.replicas.get_or_insert(1);
            set.spec.pod_management_policy.get_or_insert_with(|| "OrderedReady".into());
            set.spec.update_strategy.get_or_insert_default().type_.get_or_insert_with(|| "RollingUpdate".into());
            complete_pod(set.spec.template.spec.get_or_insert_default());
        }
        Object::DaemonSet(set) => {
            set.spec.update_strategy.get_or_insert_default().type_.get_or_insert_with(|| "RollingUpdate".into());
            complete_pod(set.spec.template.spec.get_or_insert_default());
        }
        Object::PersistentVolumeClaim(claim) => {
            // There is room for it as long as the machine has room.
            let spec = claim.spec.get_or_insert_default();
            let status = claim.status.get_or_insert_default();
            status.phase = Some("Bound".into());
            status.access_modes.clone_from(&spec.access_modes);
            status.capacity = spec.resources.as_ref().and_then(|r| r.requests.clone());
        }
        Object::Job(job) => complete_job(job.spec.get_or_insert_default()),
        Object::Pod(pod) => complete_pod(pod.spec.get_or_insert_default()),
        _ => {}
    }
}

fn complete_job(spec: &mut JobSpec) {
    if spec.completions.is_none() && spec.parallelism.is_none() {
        spec.completions = Some(1);
    }
    spec.parallelism.get_or_insert(1);
    spec.backoff_limit.get_or_insert(6);
    spec.completion_mode.get_or_insert_with(|| "NonIndexed".into());
    spec.suspend.get_or_insert(false);
    complete_pod(spec.template.spec.get_or_insert_default());
}

fn complete_pod(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    let account = spec.service_account_name.clone().or(spec.service_account.clone()).filter(|a| !a.is_empty());
    spec.service_account_name = Some(account.unwrap_or_else(|| "default".into()));
    for port in spec.containers.iter_mut().flat_map(|c| c.ports.iter_mut().flatten()) {
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
}

type Fault = (String, String);

/// What a cluster on one machine cannot do is refused by name, before anything happens.
fn check(object: &Object, programs: &Programs) -> Result<(), Fault> {
    let fault = |field: &str, message: &str| Err((field.to_owned(), message.to_owned()));
    match object {
        Object::Job(job) => job.spec.as_ref().map_or(Ok(()), |spec| check_job(spec, "spec", programs)),
        Object::CronJob(cron) => {
            check_cron_job(cron)?;
            let spec = cron.spec.job_template.spec.as_ref();
            spec.map_or(Ok(()), |spec| check_job(spec, "spec.jobTemplate.spec", programs))
        }
        Object::StatefulSet(set) => {
            let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
            if policy.and_then(|p| p.when_scaled.as_deref()) == Some("Delete") {
                let message = "on one machine claims stay when a set is scaled down";
                return fault("spec.persistentVolumeClaimRetentionPolicy.whenScaled", message);
            }
            check_endless(set.spec.template.spec.as_ref(), programs)
        }
        Object::DaemonSet(set) => check_endless(set.spec.template.spec.as_ref(), programs),
        Object::Pod(pod) => pod.spec.as_ref().map_or(Ok(()), |spec| check_pod(spec, "spec", programs)),
        Object::Service(service) => check_service(service),
        Object::Deployment(deployment) => {
            let spec = &deployment.spec;
            let (deadline, ready) = (spec.progress_deadline_seconds, spec.min_ready_seconds.unwrap_or(0));
            if deadline.is_some_and(|deadline| deadline <= ready) {
                return fault("spec.progressDeadlineSeconds", "must be more than minReadySeconds");
            }
            check_endless(spec.template.spec.as_ref(), programs)
        }
        Object::ReplicaSet(set) => check_endless(set.spec.template.as_ref().and_then(|t| t.spec.as_ref()), programs),
        _ => Ok(()),
    }
}

/// The template of pods that are to run for ever.
fn check_endless(spec: Option<&PodSpec>, programs: &Programs) -> Result<(), Fault> {
    let Some(spec) = spec else { return Ok(()) };
    if spec.active_deadline_seconds.is_some() {
        let message = "is for Pods and Jobs: the pods of this kind have no end";
        return Err(("spec.template.spec.activeDeadlineSeconds".into(), message.into()));
    }
    check_pod(spec, "spec.template.spec", programs)
}

fn check_job(spec: &JobSpec, path: &str, programs: &Programs) -> Result<(), Fault> {
    for (field, used) in [
        ("successPolicy", spec.success_policy.is_some()),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.is_some()),
        ("maxFailedIndexes", spec.max_failed_indexes.is_some()),
        ("managedBy", spec.managed_by.is_some()),
    ] {
        if used {
            return Err((format!("{path}.{field}"), "does not exist on one machine".to_owned()));
        }
    }
    check_pod_failure_policy(spec).map_err(|(field, message)| (format!("{path}.{field}"), message))?;
    let template = format!("{path}.template.spec");
    spec.template.spec.as_ref().map_or(Ok(()), |spec| check_pod(spec, &template, programs))
}

fn check_pod(spec: &PodSpec, path: &str, programs: &Programs) -> Result<(), Fault> {
    for (field, used) in [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)] {
        if used == Some(true) {
            let message = "a pod cannot share the machine's own namespaces on one machine".to_owned();
            return Err((format!("{path}.{field}"), message));
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let known = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
            || volume.empty_dir.is_some()
            || volume.host_path.is_some()
            || volume.persistent_volume_claim.is_some();
        if !known {
            let message = "one machine has volumes of the kinds configMap, secret, emptyDir, hostPath, projected, \
                           downwardAPI and persistentVolumeClaim only";
            return Err((format!("{path}.volumes[{index}]"), message.to_owned()));
        }
    }
    let lists = [("initContainers", spec.init_containers.as_deref()), ("containers", Some(spec.containers.as_slice()))];
    for (list, containers) in lists {
        for (index, container) in containers.into_iter().flatten().enumerate() {
            check_container(container, programs).map_err(|(f, m)| (format!("{path}.{list}[{index}].{f}"), m))?;
        }
    }
    Ok(())
}

fn check_container(container: &Container, programs: &Programs) -> Result<(), Fault> {
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        let message = "is required: no image is pulled on one machine, `command` names a program of this machine";
        return Err(("command".into(), message.into()));
    }
    if let Some(message) = programs.missing(container) {
        return Err(("command[0]".into(), message));
    }
    if container.tty == Some(true) || container.stdin == Some(true) {
        return Err(("stdin".into(), "containers have no standard input on one machine".into()));
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        let Some(probe) = probe else { continue };
        let actions =
            [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
        if actions.into_iter().filter(|a| *a).count() != 1 {
            return Err((name.into(), "needs exactly one of exec, httpGet, tcpSocket and grpc".into()));
        }
        let scheme = probe.http_get.as_ref().and_then(|h| h.scheme.as_deref());
        if scheme.is_some_and(|s| !["HTTP", "HTTPS"].contains(&s.to_ascii_uppercase().as_str())) {
            return Err((format!("{name}.httpGet.scheme"), "is neither HTTP nor HTTPS".into()));
        }
    }
    Ok(())
}

fn check_service(service: &Service) -> Result<(), Fault> {
    let Some(spec) = &service.spec else { return Ok(()) };
    if let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") {
        let parsed: Result<Ipv4Addr, _> = ip.parse();
        if !parsed.is_ok_and(services::is_service_ip) {
            let message = format!("{ip} is no free address of the service network 10.96.0.0/16");
            return Err(("spec.clusterIP".into(), message));
        }
    }
    Ok(())
}

/// Two services cannot have one IP.
fn check_service_ips(store: &Store, entries: &[Entry]) -> Result<(), Error> {
    let mut asked: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    for entry in entries {
        let Object::Service(service) = &entry.object else { continue };
        let Some(ip) = services::cluster_ip(service) else { continue };
        let name = format!("{}/{}", entry.key.namespace, entry.key.name);
        let owner = services::owner_of_ip(store, ip).filter(|owner| *owner != name);
        if let Some(other) = owner.or_else(|| asked.get(&ip).cloned()) {
            return Err(refusal(&entry.document, "spec.clusterIP", format!("{ip} is the address of service {other}")));
        }
        asked.insert(ip, name);
    }
    Ok(())
}

fn check_change(old: &Object, new: &Object) -> Result<(), Fault> {
    let immutable = |field: &str| Err((field.to_owned(), "cannot be changed; delete the object first".to_owned()));
    match (old, new) {
        (Object::Deployment(old), Object::Deployment(new)) if old.spec.selector != new.spec.selector => {
            immutable("spec.selector")
        }
        (Object::DaemonSet(old), Object::DaemonSet(new)) if old.spec.selector != new.spec.selector => {
            immutable("spec.selector")
        }
        (Object::StatefulSet(old), Object::StatefulSet(new)) => {
            let (old, new) = (&old.spec, &new.spec);
            for (field, changed) in [
                ("spec.selector", old.selector != new.selector),
                ("spec.serviceName", old.service_name != new.service_name),
                ("spec.podManagementPolicy", old.pod_management_policy != new.pod_management_policy),
                ("spec.volumeClaimTemplates", old.volume_claim_templates != new.volume_claim_templates),
            ] {
                if changed {
                    return immutable(field);
                }
            }
            Ok(())
        }
        (Object::Job(old), Object::Job(new)) => {
            let part = |job: &Job| job.spec.clone().map(|s| (s.template, s.completions, s.completion_mode));
            match (part(old), part(new)) {
                (Some(old), Some(new)) if old.0 != new.0 => immutable("spec.template"),
                (Some(old), Some(new)) if old.1 != new.1 => immutable("spec.completions"),
                (Some(old), Some(new)) if old.2 != new.2 => immutable("spec.completionMode"),
                _ => Ok(()),
            }
        }
        (Object::Service(old), Object::Service(new)) => {
            let asked = services::cluster_ip(new);
            let headless = (services::is_headless(old), services::is_headless(new));
            match (services::cluster_ip(old), asked) {
                (Some(old), Some(new)) if old != new => immutable("spec.clusterIP"),
                _ if headless == (true, false) || headless == (false, true) => immutable("spec.clusterIP"),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn put(store: &mut Store, key: Key, written: serde_json::Value, mut object: Object) -> Result<&'static str, String> {
    let old = store.get(&key).cloned();
    if old.is_some() && store.applied.get(&key) == Some(&written) {
        return Ok("unchanged");
    }
    match (&mut object, &old) {
        (Object::Service(service), old) => {
            let kept = match old {
                Some(Object::Service(old)) => old.spec.as_ref().and_then(|s| s.cluster_ip.clone()),
                _ => None,
            };
            give_address(store, &key, service, kept)?;
        }
        (Object::Pod(new), Some(Object::Pod(old))) => {
            if store.applied.contains_key(&key) {
                return Err("a pod cannot be changed; delete it first".into());
            }
            new.status.clone_from(&old.status);
        }
        (Object::Deployment(new), Some(Object::Deployment(old))) => {
            new.status.clone_from(&old.status);
            new.metadata.generation = next_generation(&old.metadata, new.spec == old.spec);
        }
        (Object::StatefulSet(new), Some(Object::StatefulSet(old))) => {
            new.status.clone_from(&old.status);
            new.metadata.generation = next_generation(&old.metadata, new.spec == old.spec);
        }
        (Object::DaemonSet(new), Some(Object::DaemonSet(old))) => {
            new.status.clone_from(&old.status);
            new.metadata.generation = next_generation(&old.metadata, new.spec == old.spec);
        }
        (Object::Deployment(_) | Object::StatefulSet(_) | Object::DaemonSet(_), None) => {
            object.metadata_mut().generation = Some(1);
        }
        (Object::CronJob(new), Some(Object::CronJob(old))) => new.status.clone_from(&old.status),
        (Object::Job(new), Some(Object::Job(old))) => new.status.clone_from(&old.status),
        (Object::ReplicaSet(new), Some(Object::ReplicaSet(old))) => new.status.clone_from(&old.status),
        _ => {}
    }
    store.put(object);
    store.applied.insert(key, written);
    Ok(if old.is_some() { "configured" } else { "created" })
}

/// A generation counts the changes of what is asked for.
fn next_generation(old: &ObjectMeta, same: bool) -> Option<i64> {
    let generation = old.generation.unwrap_or(1);
    Some(if same { generation } else { generation + 1 })
}

fn give_address(store: &Store, key: &Key, service: &mut Service, kept: Option<String>) -> Result<(), String> {
    if services::external_name(service).is_some() || services::is_headless(service) {
        return Ok(());
    }
    let spec = service.spec.get_or_insert_default();
    let asked = spec.cluster_ip.take().filter(|ip| !ip.is_empty());
    let ip = match asked.or(kept.filter(|ip| ip != "None")) {
        Some(ip) => ip,
        None => services::allocate(store, &key.namespace, &key.name)
            .ok_or("the service network has no free address")?
            .to_string(),
    };
    spec.cluster_ips = Some(vec![ip.clone()]);
    spec.cluster_ip = Some(ip);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn documents(values: &[Value]) -> Vec<Document> {
        let document = |(i, v): (usize, &Value)| Document { file: "f.yaml".into(), index: i + 1, value: v.clone() };
        values.iter().enumerate().map(document).collect()
    }

    fn deployment(command: Value) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                         "spec": {"containers": [{"name": "web", "image": "x", "command": command}]}}}})
    }

    fn programs() -> Programs {
        Programs::new(&crate::node::Config {
            run_dir: "/".into(),
            programs: "/".into(),
            path: String::new(),
            control_plane: false,
            log_level: String::new(),
        })
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        apply(&mut store, documents(&[namespace]), "default", &programs()).unwrap();
        (dir, store)
    }

    #[test]
    fn verbs_are_kubectls() {
        let (_dir, mut store) = store();
        let mut verbs = |value: Value| apply(&mut store, documents(&[value]), "default", &programs()).unwrap();
        let first = verbs(deployment(json!(["sleep"])));
        assert_eq!((first[0].object.as_str(), first[0].verb.as_str()), ("deployment.apps/web", "created"));
        assert_eq!(verbs(deployment(json!(["sleep"])))[0].verb, "unchanged");
        assert_eq!(verbs(deployment(json!(["cat"])))[0].verb, "configured");
    }

    #[test]
    fn all_or_nothing_with_file_document_and_field() {
        let (_dir, mut store) = store();
        let good = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
        for (bad, field) in [
            (deployment(json!([])), "spec.template.spec.containers[0].command"),
            (deployment(json!(["no-such-program"])), "spec.template.spec.containers[0].command[0]"),
            (deployment(json!(["/no/such/program"])), "spec.template.spec.containers[0].command[0]"),
            (
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d", "namespace": "none"}}),
                "metadata.namespace",
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
                    "spec": {"clusterIP": "192.0.2.1", "ports": [{"port": 80}]}}),
                "spec.clusterIP",
            ),
            (good.clone(), "metadata.name"),
        ] {
            let error =
                apply(&mut store, documents(&[good.clone(), bad]), "default", &programs()).unwrap_err().to_string();
            assert!(error.starts_with("f.yaml: document 2"), "{error}");
            assert!(error.contains(field), "{error}");
            assert!(store.get(&Key::new(Kind::ConfigMap, "default", "c")).is_none());
        }
    }

    #[test]
    fn services_get_an_address_and_keep_it() {
        let (_dir, mut store) = store();
        let service = |port: i32| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": port}]}});
        apply(&mut store, documents(&[service(80)]), "default", &programs()).unwrap();
        let ip = services::cluster_ip(store.service("default", "s").unwrap()).unwrap();
        apply(&mut store, documents(&[service(81)]), "default", &programs()).unwrap();
        assert_eq!(services::cluster_ip(store.service("default", "s").unwrap()), Some(ip));
        let thief = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "t"},
            "spec": {"clusterIP": ip.to_string(), "ports": [{"port": 80}]}});
        let error = apply(&mut store, documents(&[thief]), "default", &programs()).unwrap_err().to_string();
        assert!(error.contains("is the address of service default/s"), "{error}");
    }

    #[test]
    fn deleting_what_is_not_there_deletes_nothing() {
        let (_dir, mut store) = store();
        let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        apply(&mut store, documents(&[map("a")]), "default", &programs()).unwrap();
        assert!(delete(&mut store, documents(&[map("a"), map("b")]), "default", false).is_err());
        assert!(store.get(&Key::new(Kind::ConfigMap, "default", "a")).is_some());
        let (outcomes, _) = delete(&mut store, documents(&[map("a"), map("b")]), "default", true).unwrap();
        assert_eq!(outcomes.len(), 1);
        assert!(store.get(&Key::new(Kind::ConfigMap, "default", "a")).is_none());
    }
}
