//! Applying and deleting: everything is parsed, completed with Kubernetes' defaults and checked first; only when nothing
//! is wrong does anything change.

mod check;

use super::services;
use super::spec::Programs;
use super::store::{Store, now};
use crate::Error;
use crate::proto::{Document, Outcome};
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::{PodSpec, Service};
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
    let (kind, group) = (key.kind.singular(), key.kind.group());
    let group = if group.is_empty() || kind.contains('.') { String::new() } else { format!(".{group}") };
    format!("{kind}{group}/{}", key.name)
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
        check::object(&entry.object, programs).map_err(|(field, message)| refuse(&field, message))?;
        if let Some(old) = store.get(&entry.key) {
            check::change(old, &entry.object).map_err(|(field, message)| refuse(&field, message))?;
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
