//! All objects of the cluster, in memory and, one JSON file each, in the run directory's `objects/`, where the control
//! plane reads them. Secrets are kept in memory only: the control plane needs none but its issuer, which reaches the one
//! pod that may have it as a volume. Every change makes a new version, which the reconciler, the pods and waiting clients
//! follow.

use crate::system;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use tokio::sync::watch;
use weft_core::k8s_openapi::api::core::v1::{ConfigMap, Pod, PodTemplateSpec, Secret, Service};
use weft_core::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use weft_core::k8s_openapi::jiff::Timestamp;
use weft_core::kinds::{Key, Kind, Object};

/// The objects.
pub(crate) struct Store {
    objects: BTreeMap<Key, Object>,
    /// What was last applied under a key, to tell `configured` from `unchanged`.
    pub(crate) applied: HashMap<Key, Value>,
    /// Templates that StatefulSets have had, by uid and hash, as long as pods may have to be made from them again.
    pub(crate) revisions: HashMap<(String, String), PodTemplateSpec>,
    dir: PathBuf,
    version: watch::Sender<u64>,
    /// Counts changes of what pods are configured by.
    configuration: watch::Sender<u64>,
}

/// Now, in whole seconds as Kubernetes writes times.
pub(crate) fn now() -> Time {
    Time(timestamp())
}

/// Seconds since 1970.
pub(crate) fn timestamp() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_second(i64::try_from(since.as_secs()).unwrap_or(0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A random identifier in the form of a UUID.
pub(crate) fn new_uid() -> String {
    let bits = fastrand::u128(..);
    let (a, b, c) = (bits >> 96, (bits >> 80) & 0xffff, (bits >> 64) & 0xfff);
    let (d, e) = (((bits >> 48) & 0x3fff) | 0x8000, bits & 0xffff_ffff_ffff);
    format!("{a:08x}-{b:04x}-4{c:03x}-{d:04x}-{e:012x}")
}

/// A reference to an owner that controls what it owns.
pub(crate) fn owner_reference(owner: &Object) -> OwnerReference {
    OwnerReference {
        api_version: owner.kind().api_version().to_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: owner.kind().as_str().to_owned(),
        name: owner.metadata().name.clone().unwrap_or_default(),
        uid: owner.metadata().uid.clone().unwrap_or_default(),
    }
}

/// The owner that controls an object.
pub(crate) fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_ref()?.iter().find(|o| o.controller == Some(true))
}

impl Store {
    /// An empty store whose files go to a directory, with the receiver of its versions.
    pub(crate) fn new(dir: PathBuf) -> Self {
        let (version, _) = watch::channel(0);
        let (configuration, _) = watch::channel(0);
        Self {
            objects: BTreeMap::new(),
            applied: HashMap::new(),
            revisions: HashMap::new(),
            dir,
            version,
            configuration,
        }
    }

    /// Follows the version.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Follows changes of what pods are configured by: ConfigMaps, Secrets, ServiceAccounts, PersistentVolumeClaims.
    pub(crate) fn subscribe_configuration(&self) -> watch::Receiver<u64> {
        self.configuration.subscribe()
    }

    fn configured(&self, kind: Kind) {
        let configures = [Kind::ConfigMap, Kind::Secret, Kind::ServiceAccount, Kind::PersistentVolumeClaim];
        if configures.contains(&kind) {
            self.configuration.send_modify(|v| *v += 1);
        }
    }

    /// The version now.
    pub(crate) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Makes a new version without a change of an object, for what is decided anew as time passes.
    pub(crate) fn touch(&self) {
        self.version.send_modify(|v| *v += 1);
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    /// All objects of a kind, of one namespace or all, sorted by namespace and name.
    pub(crate) fn list<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Object)> {
        let from = Key::new(kind, "", "");
        self.objects
            .range(from..)
            .take_while(move |(key, _)| key.kind == kind)
            .filter(move |(key, _)| namespace.is_none_or(|n| !kind.namespaced() || key.namespace == n))
    }

    /// All objects.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.objects.iter()
    }

    /// All pods.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&Key, &Pod)> {
        self.list(Kind::Pod, None).filter_map(|(key, object)| match object {
            Object::Pod(pod) => Some((key, &**pod)),
            _ => None,
        })
    }

    /// All services.
    pub(crate) fn services(&self) -> impl Iterator<Item = (&Key, &Service)> {
        self.list(Kind::Service, None).filter_map(|(key, object)| match object {
            Object::Service(service) => Some((key, &**service)),
            _ => None,
        })
    }

    /// One pod.
    pub(crate) fn pod(&self, key: &Key) -> Option<&Pod> {
        match self.get(key)? {
            Object::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    /// One service.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        match self.get(&Key::new(Kind::Service, namespace, name))? {
            Object::Service(service) => Some(service),
            _ => None,
        }
    }

    /// One ConfigMap.
    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        match self.get(&Key::new(Kind::ConfigMap, namespace, name))? {
            Object::ConfigMap(map) => Some(map),
            _ => None,
        }
    }

    /// One Secret.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        match self.get(&Key::new(Kind::Secret, namespace, name))? {
            Object::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    /// Puts an object, new or changed; nothing happens when it is what is there already. Fills in what the cluster
    /// itself keeps: uid, creation time, resource version.
    pub(crate) fn put(&mut self, mut object: Object) {
        let key = object.key("default");
        let old = self.objects.get(&key);
        let metadata = object.metadata_mut();
        if key.kind.namespaced() {
            metadata.namespace = Some(key.namespace.clone());
        }
        if let Some(old) = old {
            let known = old.metadata();
            metadata.uid.clone_from(&known.uid);
            metadata.creation_timestamp.clone_from(&known.creation_timestamp);
            metadata.resource_version.clone_from(&known.resource_version);
        } else {
            metadata.uid = Some(new_uid());
            metadata.creation_timestamp = Some(now());
        }
        if old == Some(&object) {
            return;
        }
        let version = self.version() + 1;
        object.metadata_mut().resource_version = Some(version.to_string());
        self.write(&key, &object);
        let kind = key.kind;
        self.objects.insert(key, object);
        self.version.send_replace(version);
        self.configured(kind);
    }

    /// Changes an object in place; nothing happens when there is none or the change changes nothing.
    pub(crate) fn update(&mut self, key: &Key, change: impl FnOnce(&mut Object)) {
        if let Some(mut object) = self.objects.get(key).cloned() {
            change(&mut object);
            self.put(object);
        }
    }

    /// Changes a pod in place.
    pub(crate) fn update_pod(&mut self, key: &Key, change: impl FnOnce(&mut Pod)) {
        self.update(key, |object| {
            if let Object::Pod(pod) = object {
                change(pod);
            }
        });
    }

    /// Removes an object.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Object> {
        let object = self.objects.remove(key)?;
        self.applied.remove(key);
        let path = self.dir.join(key.state_path());
        if key.kind != Kind::Secret
            && let Err(e) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), error = %e, "object file not removed");
        }
        self.touch();
        self.configured(key.kind);
        Some(object)
    }

    fn write(&self, key: &Key, object: &Object) {
        if key.kind == Kind::Secret {
            return;
        }
        let path = self.dir.join(key.state_path());
        let write = || {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let text = serde_json::to_vec(&object.to_value())?;
            system::write_atomically(&path, &text, 0o644)
        };
        if let Err(e) = write() {
            tracing::error!(path = %path.display(), error = %e, "object file not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(name: &str, value: &str) -> Object {
        let value = serde_json::json!({"metadata": {"name": name, "namespace": "a"}, "data": {"k": value}});
        Object::from_value(Kind::ConfigMap, value).unwrap()
    }

    #[test]
    fn a_put_of_the_same_makes_no_version() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        store.put(config_map("x", "1"));
        let version = store.version();
        store.put(config_map("x", "1"));
        assert_eq!(store.version(), version);
        store.put(config_map("x", "2"));
        assert_ne!(store.version(), version);
        let text = fs::read_to_string(dir.path().join("configmaps/a/x.json")).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["kind"], "ConfigMap");
        assert_eq!(value["data"]["k"], "2");
        assert!(value["metadata"]["uid"].as_str().unwrap().len() == 36);
        store.remove(&Key::new(Kind::ConfigMap, "a", "x"));
        assert!(!dir.path().join("configmaps/a/x.json").exists());
    }

    #[test]
    fn secrets_are_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let value = serde_json::json!({"metadata": {"name": "s", "namespace": "a"}, "data": {"k": "eA=="}});
        store.put(Object::from_value(Kind::Secret, value).unwrap());
        assert!(store.secret("a", "s").is_some());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        store.remove(&Key::new(Kind::Secret, "a", "s"));
        assert!(store.secret("a", "s").is_none());
    }

    #[test]
    fn lists_are_by_kind_and_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        store.put(config_map("x", "1"));
        store.put(config_map("y", "1"));
        assert_eq!(store.list(Kind::ConfigMap, Some("a")).count(), 2);
        assert_eq!(store.list(Kind::ConfigMap, Some("b")).count(), 0);
        assert_eq!(store.list(Kind::Pod, None).count(), 0);
    }
}
