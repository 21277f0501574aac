//! `weft install` and `weft upgrade`: what to apply, as YAML on stdout. Nothing in the cluster is changed by them.

mod cni;
mod difference;
mod removal;
mod settings;

pub use cni::{cni_rendered, install_cni};
pub use difference::difference;
pub use removal::{prune, uninstall};

use crate::args::{Install, InstallSettings, ManifestOutput, Upgrade, ValueSettings};
use crate::chart::{self, CONTROL_PLANE, RESOURCES, Release};
use crate::checks::kubernetes::new_enough;
use crate::cluster::Mesh;
use crate::inject::write;
use crate::kubernetes::{Kubernetes, path_of};
use crate::{Failure, print};
use base64::Engine;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use time::OffsetDateTime;
use weft_core::{names, trust};

/// Secret with the settings that differ from the defaults, for `weft upgrade`.
const OVERRIDES: &str = "weft-config-overrides";
/// ConfigMap that every control plane has.
pub(crate) const CONFIG: &str = "weft-config";
/// What an API server is taken to have when it is not asked: what all versions from 1.21 have.
const NEWEST: &[&str] = &["v1", "policy/v1"];

/// Runs `weft install`.
///
/// # Errors
/// When there is a control plane already, the cluster cannot be asked, or a setting cannot be used.
pub async fn install(args: Install, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let cluster = match args.ignore_cluster {
        true => None,
        false => Some(mesh.kubernetes().await?),
    };
    let mut versions = owned(NEWEST);
    if let Some(cluster) = &cluster {
        let unreachable = |e| {
            let hint = "with --ignore-cluster no cluster is asked";
            Failure::new(format!("Cannot connect to Kubernetes: {e}; {hint}"))
        };
        new_enough(&cluster.version().await.map_err(unreachable)?).map_err(Failure::new)?;
        versions = cluster.api_versions().await.map_err(unreachable)?;
    }
    if args.crds {
        print(&write(&resources(&args.settings, &mesh.control)?, args.output));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(cluster) = &cluster {
        must_be_absent(cluster, &mesh.control).await?;
    }
    let mut overrides = Value::Object(Map::new());
    args.settings.put_over(&mut overrides)?;
    let found = match &cluster {
        Some(cluster) if args.settings.identity_external_issuer => Some(cluster),
        _ => None,
    };
    let mut values = with_defaults(&overrides)?;
    identity(&mut values, &args.settings, mesh, found).await?;
    print(&write(&objects(&values, &overrides, &mesh.control, &versions)?, args.output));
    Ok(ExitCode::SUCCESS)
}

/// Runs `weft upgrade`: what is installed, as this version has it, with its certificates and settings.
///
/// # Errors
/// When there is no control plane that `weft install` made, or a setting cannot be used.
pub async fn upgrade(args: Upgrade, mesh: &Mesh) -> Result<ExitCode, Failure> {
    let cluster = mesh.kubernetes().await?;
    new_enough(&cluster.version().await?).map_err(Failure::new)?;
    let wanted = if args.crds {
        resources(&args.settings, &mesh.control)?
    } else {
        installed(&cluster, mesh, &args.settings, args.reset_values).await?
    };
    if !args.dry_run {
        print(&write(&wanted, args.output));
        return Ok(ExitCode::SUCCESS);
    }
    let mut changed = 0;
    for object in &wanted {
        let live = cluster.find(&path_to(object)).await?;
        let text = difference(live.as_ref(), object);
        changed += usize::from(!text.is_empty());
        print(&text);
    }
    if changed == 0 {
        print("Nothing would change.\n");
    }
    Ok(ExitCode::SUCCESS)
}

/// The objects of the installed control plane as this version has them.
async fn installed(
    cluster: &Kubernetes,
    mesh: &Mesh,
    settings: &InstallSettings,
    reset: bool,
) -> Result<Vec<Value>, Failure> {
    let control = mesh.control.as_str();
    let versions = cluster.api_versions().await?;
    if cluster.find(&path_of("v1", "configmaps", Some(control), Some(CONFIG))).await?.is_none() {
        let hint = "install it with: weft install | kubectl apply -f -";
        return Err(Failure::new(format!("weft is not installed in namespace {control}; {hint}")));
    }
    let secret = cluster.find(&path_of("v1", "secrets", Some(control), Some(OVERRIDES))).await?;
    let secret = secret.ok_or_else(|| {
        Failure::new(format!("there is no Secret {OVERRIDES} in {control}: what Helm installed is upgraded by Helm"))
    })?;
    let text = secret.pointer("/data").and_then(|d| d.get(OVERRIDES)?.as_str()).and_then(decode);
    let text = text.ok_or_else(|| Failure::new(format!("Secret {OVERRIDES} in {control} has no settings in it")))?;
    let stored: Value = serde_yaml_ng::from_str(&text)
        .map_err(|e| Failure::new(format!("Secret {OVERRIDES} in {control}: not YAML: {e}")))?;
    let shape = CONTROL_PLANE.defaults()?;
    let mut overrides = Value::Object(Map::new());
    if !reset {
        chart::merge(&mut overrides, &stored, &shape, chart::Nulls::Keep)
            .map_err(|e| Failure::new(format!("Secret {OVERRIDES} in {control}: {e}")))?;
    }
    settings.put_over(&mut overrides)?;
    let mut values = with_defaults(&overrides)?;
    keep_identity(&mut values, settings, cluster, control).await?;
    identity(&mut values, settings, mesh, Some(cluster)).await?;
    objects(&values, &overrides, control, &versions)
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

/// The definitions of the mesh's resources.
fn resources(settings: &InstallSettings, control: &str) -> Result<Vec<Value>, Failure> {
    // Settings are checked also where they have no effect.
    settings.put_over(&mut Value::Object(Map::new()))?;
    RESOURCES.render(&json!({}), &Release { namespace: control, api_versions: NEWEST })
}

/// All objects of the control plane, and the Secret that remembers what was set.
fn objects(values: &Value, overrides: &Value, control: &str, versions: &[String]) -> Result<Vec<Value>, Failure> {
    settings::check(values, control)?;
    let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
    let mut objects = CONTROL_PLANE.render(values, &Release { namespace: control, api_versions: &versions })?;
    let mut remembered = overrides.clone();
    // Certificates have objects of their own.
    if let Some(map) = remembered.as_object_mut() {
        map.shift_remove("identityTrustAnchorsPEM");
        if let Some(issuer) = map.get_mut("identity").and_then(|i| i.get_mut("issuer")).and_then(Value::as_object_mut) {
            issuer.shift_remove("tls");
        }
    }
    let text = serde_yaml_ng::to_string(&remembered).map_err(|e| Failure::new(e.to_string()))?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": OVERRIDES,
            "namespace": control,
            "labels": { names::LABEL_CONTROL_PLANE_NS: control },
        },
        "type": "Opaque",
        "data": { OVERRIDES: base64::engine::general_purpose::STANDARD.encode(text) },
    });
    let at = objects.iter().position(|o| o.get("kind") == Some(&"Secret".into())).unwrap_or(objects.len().min(1));
    objects.insert(at, secret);
    Ok(objects)
}

fn with_defaults(overrides: &Value) -> Result<Value, Failure> {
    let mut values = CONTROL_PLANE.defaults()?;
    let shape = values.clone();
    chart::merge(&mut values, overrides, &shape, chart::Nulls::Remove).map_err(|e| Failure::new(e.to_string()))?;
    if let Some(map) = values.as_object_mut() {
        // Helm has a flag for it; whoever pipes into kubectl has not.
        map.insert("installNamespace".into(), true.into());
    }
    Ok(values)
}

impl InstallSettings {
    /// Puts what the flags say over settings.
    fn put_over(&self, overrides: &mut Value) -> Result<(), Failure> {
        let shape = CONTROL_PLANE.defaults()?;
        let fail = |origin: &str, e: chart::ValuesError| Failure::new(format!("{origin}: {e}"));
        if self.ha {
            chart::merge(overrides, &CONTROL_PLANE.high_availability()?, &shape, chart::Nulls::Keep)
                .map_err(|e| fail("--ha", e))?;
        }
        self.values.put_over(overrides, &shape)?;
        if self.linkerd_cni_enabled {
            chart::set(overrides, "cniEnabled=true", &shape).map_err(|e| fail("flag", e))?;
        }
        if let Some(domain) = &self.identity_trust_domain {
            chart::set_text(overrides, "identityTrustDomain", domain, &shape).map_err(|e| fail("flag", e))?;
        }
        if self.identity_external_issuer {
            chart::set_text(overrides, "identity.issuer.scheme", "kubernetes.io/tls", &shape)
                .map_err(|e| fail("flag", e))?;
        }
        Ok(())
    }
}

impl ValueSettings {
    /// Puts the settings over others; `shape` is the chart's defaults.
    fn put_over(&self, overrides: &mut Value, shape: &Value) -> Result<(), Failure> {
        let fail = |origin: &str, e: chart::ValuesError| Failure::new(format!("{origin}: {e}"));
        for file in &self.values {
            let (name, text) = read_values(file)?;
            let values: Value =
                serde_yaml_ng::from_str(&text).map_err(|e| Failure::new(format!("{name}: not YAML: {e}")))?;
            chart::merge(overrides, &values, shape, chart::Nulls::Keep).map_err(|e| fail(&name, e))?;
        }
        for text in &self.set {
            chart::set(overrides, text, shape).map_err(|e| fail("--set", e))?;
        }
        for (flag, list) in [("--set-string", &self.set_string), ("--set-file", &self.set_file)] {
            for text in list {
                let wrong = || Failure::new(format!("{flag}: {text} has no ="));
                let (path, value) = text.split_once('=').ok_or_else(wrong)?;
                let value = if flag == "--set-file" { read_file(Path::new(value))? } else { value.to_owned() };
                chart::set_text(overrides, path, &value, shape).map_err(|e| fail(flag, e))?;
            }
        }
        Ok(())
    }
}

fn read_values(file: &Path) -> Result<(String, String), Failure> {
    if file.as_os_str() != "-" {
        return Ok((file.display().to_string(), read_file(file)?));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Failure::new(format!("standard input: {e}")))?;
    Ok(("standard input".into(), text))
}

fn read_file(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
}

fn text<'a>(values: &'a Value, path: &str) -> &'a str {
    values.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn put(values: &mut Value, path: &str, text: String) {
    if let Some(slot) = values.pointer_mut(path) {
        *slot = text.into();
    }
}

const ANCHORS: &str = "/identityTrustAnchorsPEM";
const CERTIFICATE: &str = "/identity/issuer/tls/crtPEM";
const KEY: &str = "/identity/issuer/tls/keyPEM";

/// Puts trust anchors and issuer into values: those of the flags, else those that are there, else new ones.
async fn identity(
    values: &mut Value,
    settings: &InstallSettings,
    mesh: &Mesh,
    cluster: Option<&Kubernetes>,
) -> Result<(), Failure> {
    if let Some(file) = &settings.identity_trust_anchors_file {
        put(values, ANCHORS, read_file(file)?);
    }
    if let (Some(certificate), Some(key)) =
        (&settings.identity_issuer_certificate_file, &settings.identity_issuer_key_file)
    {
        put(values, CERTIFICATE, read_file(certificate)?);
        put(values, KEY, read_file(key)?);
    }
    let external = text(values, "/identity/issuer/scheme") == "kubernetes.io/tls";
    let external_anchors = values.pointer("/identity/externalCA") == Some(&Value::Bool(true));
    if external {
        if text(values, ANCHORS).is_empty() && !external_anchors {
            put(values, ANCHORS, anchors_of_issuer(cluster, &mesh.control).await?);
        }
    } else if [ANCHORS, CERTIFICATE, KEY].iter().all(|path| text(values, path).is_empty()) && !external_anchors {
        let trust = trust::generate_for(&mesh.control, text(values, "/identityTrustDomain"), OffsetDateTime::now_utc())
            .map_err(|e| Failure::new(e.to_string()))?;
        put(values, ANCHORS, trust.anchor_pem);
        put(values, CERTIFICATE, trust.issuer_pem);
        put(values, KEY, trust.issuer_key_pem);
    }
    let now = OffsetDateTime::now_utc();
    if !external_anchors {
        trust::check_validity(text(values, ANCHORS), now)
            .map_err(|e| Failure::new(format!("trust anchors (identityTrustAnchorsPEM): {e}")))?;
    }
    if !external {
        let (issuer, key) = (text(values, CERTIFICATE), text(values, KEY));
        let fail = |e: String| Failure::new(format!("issuer (identity.issuer.tls): {e}"));
        trust::check_issuer(issuer, key, now).map_err(|e| fail(e.to_string()))?;
        if !external_anchors && !trust::issued_by(issuer, text(values, ANCHORS)).map_err(|e| fail(e.to_string()))? {
            return Err(fail("none of the trust anchors signed it".into()));
        }
    }
    Ok(())
}

/// The trust anchors that come with an issuer which somebody else makes.
async fn anchors_of_issuer(cluster: Option<&Kubernetes>, control: &str) -> Result<String, Failure> {
    let hint = "name the trust anchors with --identity-trust-anchors-file";
    let Some(cluster) = cluster else {
        return Err(Failure::new(format!("the trust anchors are missing: {hint}")));
    };
    let secret = names::ISSUER_SECRET;
    let found = cluster.find(&path_of("v1", "secrets", Some(control), Some(secret))).await?;
    let found = found.ok_or_else(|| Failure::new(format!("there is no Secret {secret} in {control}; {hint}")))?;
    let anchors = found.pointer("/data").and_then(|data| data.get("ca.crt")?.as_str()).and_then(decode);
    anchors.ok_or_else(|| Failure::new(format!("Secret {secret} in {control} has no ca.crt; {hint}")))
}

/// Puts those certificates of the installed control plane into values that nobody brings anew.
async fn keep_identity(
    values: &mut Value,
    settings: &InstallSettings,
    cluster: &Kubernetes,
    control: &str,
) -> Result<(), Failure> {
    let brought = settings.identity_trust_anchors_file.is_some() || !text(values, ANCHORS).is_empty();
    if !brought && values.pointer("/identity/externalCA") != Some(&Value::Bool(true)) {
        let name = names::TRUST_ROOTS_CONFIG_MAP;
        let map = cluster.find(&path_of("v1", "configmaps", Some(control), Some(name))).await?;
        let anchors = map.as_ref().and_then(|map| map.get("data")?.get(names::TRUST_ROOTS_KEY)?.as_str());
        let anchors =
            anchors.ok_or_else(|| Failure::new(format!("ConfigMap {name} in {control} has no trust anchors")))?;
        put(values, ANCHORS, anchors.to_owned());
    }
    let brought = settings.identity_issuer_certificate_file.is_some() || !text(values, CERTIFICATE).is_empty();
    if !brought && text(values, "/identity/issuer/scheme") != "kubernetes.io/tls" {
        let name = names::ISSUER_SECRET;
        let secret = cluster.find(&path_of("v1", "secrets", Some(control), Some(name))).await?;
        let part = |keys: [&str; 2]| {
            let data = secret.as_ref()?.get("data")?;
            keys.iter().find_map(|key| data.get(*key)?.as_str()).and_then(decode)
        };
        match (part(["crt.pem", "tls.crt"]), part(["key.pem", "tls.key"])) {
            (Some(certificate), Some(key)) => {
                put(values, CERTIFICATE, certificate);
                put(values, KEY, key);
            }
            _ => return Err(Failure::new(format!("Secret {name} in {control} has no issuer"))),
        }
    }
    Ok(())
}

async fn must_be_absent(cluster: &Kubernetes, control: &str) -> Result<(), Failure> {
    if cluster.find(&path_of("v1", "configmaps", Some(control), Some(CONFIG))).await?.is_some() {
        return Err(Failure::new(format!(
            "weft is installed in namespace {control} already; change it with: weft upgrade | kubectl apply -f -"
        )));
    }
    let definitions = "apiextensions.k8s.io/v1";
    let name = "servers.policy.linkerd.io";
    if cluster.find(&path_of(definitions, "customresourcedefinitions", None, Some(name))).await?.is_none() {
        return Err(Failure::new(
            "the resources of the mesh come first: weft install --crds | kubectl apply -f -".to_owned(),
        ));
    }
    let mut others = Vec::new();
    for (version, kind) in removal::CLUSTER_KINDS {
        let path = path_of(version, &crate::kubernetes::plural(kind), None, None);
        let selector = format!("{}={control}", names::LABEL_CONTROL_PLANE_NS);
        let found = cluster.list(&path, Some(&selector)).await?;
        let left = found.iter().filter(|_| *kind != "CustomResourceDefinition");
        others.extend(left.map(|o| format!("{}/{}", kind.to_ascii_lowercase(), crate::pods::name(o))));
    }
    match others.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "of an earlier installation there still are: {}\nRemove them with: weft uninstall | kubectl delete -f -",
            others.join(", ")
        ))),
    }
}

fn path_to(object: &Value) -> String {
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
    path_of(version, &crate::kubernetes::plural(kind), namespace, Some(crate::pods::name(object)))
}

fn decode(base64: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64.trim()).ok()?;
    String::from_utf8(bytes).ok()
}

/// The control plane with these settings, without asking a cluster: what the chart's tests compare with Helm.
///
/// # Errors
/// When a setting cannot be used.
pub fn rendered(overrides: &Value, control: &str, api_versions: &[&str]) -> Result<Vec<Value>, Failure> {
    CONTROL_PLANE.render(&with_defaults(overrides)?, &Release { namespace: control, api_versions })
}

/// The form in which objects are printed.
pub(crate) fn show(objects: &[Value]) {
    print(&write(objects, ManifestOutput::Yaml));
}
