//! Volumes of a pod: directories on the node's private tmpfs, filled from ConfigMaps, Secrets, the downward API and
//! service-account tokens, and filled again when those change, in one step as Kubernetes does it (`..data` is a link).
//! PersistentVolumeClaims are directories of the run directory, and live as long as the cluster.

use super::Node;
use super::env::{self, pod_field, resource_field};
use super::store::Store;
use crate::container::Bind;
use crate::ids::Ids;
use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use weft_core::kinds::{Key, Kind};
use weft_core::token::Subject;

/// Where Kubernetes puts a pod's default token.
pub(crate) const TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Name of the volume that the default token is in.
const TOKEN_VOLUME: &str = "kube-api-access";
/// Audience of the default token.
const API_AUDIENCE: &str = weft_core::token::ISSUER;
/// Life of a token that names none, in seconds.
const TOKEN_SECONDS: i64 = 3607;
/// Mode of files when nothing else is said.
const DEFAULT_MODE: i32 = 0o644;

/// A pod's volumes.
pub(crate) struct Volumes {
    dir: PathBuf,
    filled: BTreeMap<String, Files>,
    generation: u64,
    /// When tokens are to be made anew.
    pub(crate) refresh_at: Option<Instant>,
    tokens: BTreeMap<(String, String), (String, Instant)>,
    fs_group: Option<u32>,
    /// Directories of claims, by the volume's name.
    claims: BTreeMap<String, PathBuf>,
}

/// Path in the volume, content, mode.
type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

/// Adds the default service-account token to a pod, as Kubernetes' admission does.
pub(crate) fn add_default_token(pod: &mut Pod, account_automounts: Option<bool>) {
    let Some(spec) = pod.spec.as_mut() else { return };
    if spec.automount_service_account_token.or(account_automounts) == Some(false) {
        return;
    }
    let mut used = false;
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let mounts = container.volume_mounts.get_or_insert_default();
        if mounts.iter().any(|m| m.mount_path.trim_end_matches('/') == TOKEN_DIR) {
            continue;
        }
        used = true;
        mounts.push(k8s_openapi::api::core::v1::VolumeMount {
            name: TOKEN_VOLUME.into(),
            mount_path: TOKEN_DIR.into(),
            read_only: Some(true),
            ..Default::default()
        });
    }
    let volumes = spec.volumes.get_or_insert_default();
    if used && !volumes.iter().any(|v| v.name == TOKEN_VOLUME) {
        let volume = serde_json::json!({"name": TOKEN_VOLUME, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
            {"configMap": {"name": "kube-root-ca.crt", "optional": true}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}
        ]}});
        // Written here, so it is well-formed.
        volumes.extend(serde_json::from_value::<Volume>(volume).ok());
    }
}

impl Volumes {
    /// Volumes below a directory of the pod's own.
    pub(crate) fn new(dir: PathBuf, pod: &Pod) -> Self {
        let security = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let fs_group = security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
        // Where there is only one group, everything belongs to it.
        let fs_group = fs_group.filter(|_| !Ids::here().single());
        Self {
            dir,
            filled: BTreeMap::new(),
            generation: 0,
            refresh_at: None,
            tokens: BTreeMap::new(),
            fs_group,
            claims: BTreeMap::new(),
        }
    }

    /// Makes and fills what is not yet as it should be. Called again when an object changes or a token gets old.
    ///
    /// # Errors
    /// One sentence when something that is referred to does not exist.
    pub(crate) fn fill(&mut self, node: &Node, pod: &Pod) -> Result<(), String> {
        self.refresh_at = None;
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let files = self.files(node, pod, volume).map_err(|e| format!("volume {}: {e}", volume.name))?;
            let dir = self.dir.join(&volume.name);
            let Some(files) = files else { continue };
            if self.filled.get(&volume.name) != Some(&files) {
                self.generation += 1;
                write_volume(&dir, &files, self.generation, self.fs_group)
                    .map_err(|e| format!("volume {}: cannot write {}: {e}", volume.name, dir.display()))?;
                self.filled.insert(volume.name.clone(), files);
            }
        }
        Ok(())
    }

    /// What a volume is to hold; `None` for kinds that hold what containers write.
    fn files(&mut self, node: &Node, pod: &Pod, volume: &Volume) -> Result<Option<Files>, String> {
        let mut files = Files::new();
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let content = config_map_content(node, pod, &source.name);
            select(&mut files, "configmap", &source.name, content, source.items.as_ref(), mode, source.optional)?;
        } else if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let name = source.secret_name.as_deref().unwrap_or_default();
            let content = secret_content(node, pod, name);
            select(&mut files, "secret", name, content, source.items.as_ref(), mode, source.optional)?;
        } else if let Some(source) = &volume.downward_api {
            downward(&mut files, pod, source.items.iter().flatten(), source.default_mode.unwrap_or(DEFAULT_MODE))?;
        } else if let Some(source) = &volume.projected {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            for projection in source.sources.iter().flatten() {
                self.project(&mut files, node, pod, projection, mode)?;
            }
        } else if volume.empty_dir.is_some() {
            self.make_empty(&self.dir.join(&volume.name))?;
            return Ok(None);
        } else if let Some(source) = &volume.persistent_volume_claim {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let key = Key::new(Kind::PersistentVolumeClaim, namespace, &source.claim_name);
            if node.store.borrow().get(&key).is_none() {
                return Err(format!("persistentvolumeclaim {:?} not found", source.claim_name));
            }
            let dir = claim_dir(&node.run_dir, &key);
            self.make_empty(&dir)?;
            self.claims.insert(volume.name.clone(), dir);
            return Ok(None);
        } else if let Some(source) = &volume.host_path {
            host_path(&source.path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(None);
        } else {
            return Err("this kind of volume does not exist on one machine".into());
        }
        Ok(Some(files))
    }

    /// Makes a directory that every user may write to, unless it is there.
    fn make_empty(&self, dir: &Path) -> Result<(), String> {
        if dir.exists() {
            return Ok(());
        }
        let make = || {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
            if let Some(group) = self.fs_group {
                chown(dir, None, Some(group))?;
                fs::set_permissions(dir, fs::Permissions::from_mode(0o2777))?;
            }
            io::Result::Ok(())
        };
        make().map_err(|e| format!("cannot make {}: {e}", dir.display()))
    }

    fn project(
        &mut self,
        files: &mut Files,
        node: &Node,
        pod: &Pod,
        projection: &VolumeProjection,
        mode: i32,
    ) -> Result<(), String> {
        if let Some(source) = &projection.config_map {
            let content = config_map_content(node, pod, &source.name);
            select(files, "configmap", &source.name, content, source.items.as_ref(), mode, source.optional)
        } else if let Some(source) = &projection.secret {
            let content = secret_content(node, pod, &source.name);
            select(files, "secret", &source.name, content, source.items.as_ref(), mode, source.optional)
        } else if let Some(source) = &projection.downward_api {
            downward(files, pod, source.items.iter().flatten(), mode)
        } else if let Some(source) = &projection.service_account_token {
            let audience = source.audience.as_deref().filter(|a| !a.is_empty()).unwrap_or(API_AUDIENCE);
            let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS).max(600).unsigned_abs();
            let token = self.token(node, pod, audience, Duration::from_secs(seconds))?;
            // Readable by the pod's own user only; that is whoever the container runs as.
            insert(files, &source.path, token.into_bytes(), DEFAULT_MODE)
        } else {
            Err("this kind of projection does not exist on one machine".into())
        }
    }

    /// A token, made anew when four fifths of its life are over.
    fn token(&mut self, node: &Node, pod: &Pod, audience: &str, lifetime: Duration) -> Result<String, String> {
        let account = env::service_account(pod).to_owned();
        let key = (account.clone(), audience.to_owned());
        let now = Instant::now();
        if self.tokens.get(&key).is_none_or(|(_, renew)| *renew <= now) {
            let subject = Subject {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                service_account: account,
                pod: pod.metadata.name.clone(),
            };
            let token =
                node.signer.issue(&subject, audience, lifetime, SystemTime::now()).map_err(|e| e.to_string())?;
            self.tokens.insert(key.clone(), (token, now + lifetime.mul_f64(0.8)));
        }
        let Some((token, renew)) = self.tokens.get(&key) else { return Err("no token".into()) };
        self.refresh_at = Some(self.refresh_at.map_or(*renew, |at| at.min(*renew)));
        Ok(token.clone())
    }

    /// The mounts of a container.
    ///
    /// # Errors
    /// One sentence when a mount names no volume, or a path that leads elsewhere.
    pub(crate) fn binds(&self, pod: &Pod, container: &Container, env: &env::Env) -> Result<Vec<Bind>, String> {
        let mut binds = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
            let volume = volumes.and_then(|v| v.iter().find(|v| v.name == mount.name));
            let volume = volume.ok_or_else(|| format!("volumeMount {:?} names no volume of the pod", mount.name))?;
            let mut source = match (&volume.host_path, self.claims.get(&volume.name)) {
                (Some(host), _) => PathBuf::from(&host.path),
                (None, Some(claim)) => claim.clone(),
                (None, None) => self.dir.join(&volume.name),
            };
            let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
                (Some(path), _) => Some(path.clone()),
                (None, Some(expression)) => Some(env::expand(expression, &env.iter().cloned().collect())),
                (None, None) => None,
            };
            if let Some(sub_path) = sub_path.filter(|p| !p.is_empty()) {
                let relative =
                    inside(&sub_path).ok_or_else(|| format!("subPath {sub_path:?} leads out of its volume"))?;
                source.push(relative);
                if !source.exists() {
                    fs::create_dir_all(&source).map_err(|e| format!("subPath {sub_path:?}: {e}"))?;
                }
            }
            let target = PathBuf::from(&mount.mount_path);
            let target = if target.is_absolute() { target } else { Path::new("/").join(target) };
            let claim = volume.persistent_volume_claim.as_ref();
            let filled = volume.empty_dir.is_none() && volume.host_path.is_none() && claim.is_none();
            let filled = filled || claim.and_then(|c| c.read_only) == Some(true);
            binds.push(Bind { source, target, read_only: mount.read_only == Some(true) || filled });
        }
        // Outer ones first, so that none hides another.
        binds.sort_by_key(|b| b.target.components().count());
        Ok(binds)
    }
}

/// Where the files of a PersistentVolumeClaim are.
fn claim_dir(run_dir: &Path, key: &Key) -> PathBuf {
    run_dir.join("volumes").join(&key.namespace).join(&key.name)
}

/// Removes the files of claims that are gone and that no pod uses any more.
pub(crate) fn remove_unclaimed(store: &Store, run_dir: &Path) {
    let uses = |pod: &Pod, name: &str| {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        volumes.filter_map(|v| v.persistent_volume_claim.as_ref()).any(|claim| claim.claim_name == name)
    };
    let entries = |dir: &Path| -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path()))).collect()
    };
    for (namespace, dir) in entries(&run_dir.join("volumes")) {
        for (name, dir) in entries(&dir) {
            let claimed = store.get(&Key::new(Kind::PersistentVolumeClaim, &namespace, &name)).is_some();
            let used = || store.pods().any(|(key, pod)| key.namespace == namespace && uses(pod, &name));
            if !claimed
                && !used()
                && let Err(e) = fs::remove_dir_all(&dir)
            {
                tracing::warn!(path = %dir.display(), error = %e, "volume not removed");
            }
        }
    }
}

fn config_map_content(node: &Node, pod: &Pod, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
    let store = node.store.borrow();
    let map = store.config_map(pod.metadata.namespace.as_deref().unwrap_or_default(), name)?;
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    Some(text.chain(binary).collect())
}

fn secret_content(node: &Node, pod: &Pod, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
    let store = node.store.borrow();
    let secret = store.secret(pod.metadata.namespace.as_deref().unwrap_or_default(), name)?;
    Some(secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect())
}

fn select(
    files: &mut Files,
    kind: &str,
    name: &str,
    content: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: Option<bool>,
) -> Result<(), String> {
    let Some(content) = content else {
        return if optional == Some(true) { Ok(()) } else { Err(format!("{kind} {name:?} not found")) };
    };
    match items.filter(|i| !i.is_empty()) {
        None => content.into_iter().try_for_each(|(key, value)| insert(files, &key, value, mode)),
        Some(items) => {
            for item in items {
                match content.get(&item.key) {
                    Some(value) => insert(files, &item.path, value.clone(), item.mode.unwrap_or(mode))?,
                    None if optional == Some(true) => {}
                    None => return Err(format!("{kind} {name:?} has no key {:?}", item.key)),
                }
            }
            Ok(())
        }
    }
}

fn downward<'a>(
    files: &mut Files,
    pod: &Pod,
    items: impl Iterator<Item = &'a DownwardAPIVolumeFile>,
    mode: i32,
) -> Result<(), String> {
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => pod_field(pod, &field.field_path)?,
            (None, Some(resource)) => resource_field(pod, None, resource)?,
            (None, None) => return Err(format!("downwardAPI item {:?} names no field", item.path)),
        };
        insert(files, &item.path, value.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

fn insert(files: &mut Files, path: &str, content: Vec<u8>, mode: i32) -> Result<(), String> {
    let path = inside(path).ok_or_else(|| format!("path {path:?} leads out of its volume"))?;
    files.insert(path, (content, u32::try_from(mode).unwrap_or(0o644) & 0o7777));
    Ok(())
}

/// A relative path that stays below where it starts.
fn inside(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let relative: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    (plain && !relative.as_os_str().is_empty()).then_some(relative)
}

/// Writes all files into a directory of their own, then turns the link `..data` to it.
fn write_volume(dir: &Path, files: &Files, generation: u64, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let name = format!("..{generation}");
    let content = dir.join(&name);
    fs::create_dir(&content)?;
    for (path, (bytes, mode)) in files {
        let file = content.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes)?;
        if let Some(group) = group {
            chown(&file, None, Some(group))?;
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    let (data, new) = (dir.join("..data"), dir.join("..data.new"));
    let old = fs::read_link(&data).ok();
    symlink(&name, &new)?;
    fs::rename(&new, &data)?;
    let mut wanted: Vec<_> =
        files.keys().filter_map(|p| p.components().next()).map(|c| c.as_os_str().to_owned()).collect();
    wanted.dedup();
    for top in &wanted {
        let link = dir.join(top);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(top), &link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let top = entry.file_name();
        if !top.as_encoded_bytes().starts_with(b"..") && !wanted.contains(&top) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

fn host_path(path: &str, kind: &str) -> Result<(), String> {
    let path = Path::new(path);
    let shown = path.display();
    let is = |what: &str, holds: bool| if holds { Ok(()) } else { Err(format!("hostPath {shown} is no {what}")) };
    match kind {
        "" => is("file or directory", path.exists()),
        "Directory" => is("directory", path.is_dir()),
        "File" => is("file", path.is_file()),
        "DirectoryOrCreate" => fs::create_dir_all(path).map_err(|e| format!("hostPath {shown}: {e}")),
        "FileOrCreate" => {
            let made = fs::OpenOptions::new().create(true).append(true).open(path);
            made.map(drop).map_err(|e| format!("hostPath {shown}: {e}"))
        }
        "Socket" | "CharDevice" | "BlockDevice" => is("such file", path.exists()),
        other => Err(format!("hostPath type {other:?} is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_change_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let files = |entries: &[(&str, &str)]| -> Files {
            entries.iter().map(|(p, c)| (PathBuf::from(p), (c.as_bytes().to_vec(), 0o640))).collect()
        };
        write_volume(&volume, &files(&[("a", "1"), ("d/b", "2")]), 1, None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        write_volume(&volume, &files(&[("a", "3")]), 2, None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("d").exists());
        assert!(!volume.join("..1").exists());
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(inside("a/b"), Some(PathBuf::from("a/b")));
        assert_eq!(inside("../a"), None);
        assert_eq!(inside("/a"), None);
        assert_eq!(inside(""), None);
    }
}
