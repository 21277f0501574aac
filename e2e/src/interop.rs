//! Meshes in which some pods have Linkerd's own proxy, linkerd2-proxy, in place of weft-proxy.
//!
//! Two environment variables decide, so that every test of programs and of load can be run in such a mesh:
//! `WEFT_INTEROP_PROXY` is the path of the other proxy, and `WEFT_INTEROP_SIDE` says who has it: `clients`, `servers` or
//! `all`. Without the first nothing is different. `scripts/interop.sh` sets them.

use std::{env, fs, path::Path, path::PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::{Cluster, wait_for};

/// The container that injection adds.
const CONTAINER: &str = "linkerd-proxy";
/// Deployments whose pods send requests; all others are servers.
const CLIENTS: [&str; 3] = ["client", "load", "vote-bot"];
/// Where Linkerd's proxy looks for its key and its signing request: a volume in memory, as Linkerd's injector makes it.
const IDENTITY: &str = "/var/run/linkerd/identity/end-entity";
const IDENTITY_VOLUME: &str = "linkerd-identity-end-entity";
/// What Linkerd's users write into `preStop`.
const LINGER_SECONDS: u32 = 5;
/// What the small program at the start of Linkerd's image does: makes a key and a signing request for the identity, then
/// becomes the proxy. Its certificates come from the control plane.
const START: &str = r#"
umask 077
cd "$LINKERD2_PROXY_IDENTITY_DIR"
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem 2>/dev/null
openssl pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.p8
openssl req -new -key key.pem -subj "/CN=$LINKERD2_PROXY_IDENTITY_LOCAL_NAME" \
  -addext "subjectAltName=DNS:$LINKERD2_PROXY_IDENTITY_LOCAL_NAME" -outform DER -out csr.der
rm key.pem
exec "$0"
"#;

/// Another proxy, and who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interop {
    proxy: PathBuf,
    side: String,
}

impl Interop {
    /// What the environment asks for.
    ///
    /// # Errors
    ///
    /// When it asks for something that is not there.
    pub fn asked() -> anyhow::Result<Option<Self>> {
        let Some(proxy) = env::var_os("WEFT_INTEROP_PROXY").map(PathBuf::from) else { return Ok(None) };
        ensure!(proxy.is_file(), "WEFT_INTEROP_PROXY: {} is no file", proxy.display());
        let side = env::var("WEFT_INTEROP_SIDE").unwrap_or_else(|_| "all".to_owned());
        ensure!(["clients", "servers", "all"].contains(&side.as_str()), "WEFT_INTEROP_SIDE is {side:?}");
        Ok(Some(Self { proxy, side }))
    }

    /// Whether the pods of this deployment have the other proxy.
    pub fn has(&self, deployment: &str) -> bool {
        match self.side.as_str() {
            "clients" => CLIENTS.contains(&deployment),
            "servers" => !CLIENTS.contains(&deployment),
            _ => true,
        }
    }

    /// Whether the pods of this deployment have the other proxy, when there is one at all.
    ///
    /// # Errors
    ///
    /// As [`Interop::asked`].
    pub fn is_other(deployment: &str) -> anyhow::Result<bool> {
        Ok(Self::asked()?.is_some_and(|interop| interop.has(deployment)))
    }

    /// The name of the proxy's program in the pods of this deployment.
    ///
    /// # Errors
    ///
    /// As [`Interop::asked`].
    pub fn program_of(deployment: &str) -> anyhow::Result<String> {
        let other = Self::asked()?.filter(|interop| interop.has(deployment));
        let name = other.as_ref().and_then(|interop| interop.proxy.file_name());
        Ok(name.map_or_else(|| "weft-proxy".to_owned(), |name| name.to_string_lossy().into_owned()))
    }

    /// Injects these manifests, with the other proxy where it is wanted.
    ///
    /// # Errors
    ///
    /// When `weft inject` refuses them or prints what it should not.
    pub fn inject<P: AsRef<Path>>(&self, cluster: &Cluster, files: &[P]) -> anyhow::Result<Value> {
        let mut arguments = vec!["inject".as_ref(), "--manual".as_ref(), "-o".as_ref(), "json".as_ref()];
        arguments.extend(files.iter().map(|file| file.as_ref().as_os_str()));
        let injected = cluster.weft(&arguments)?.success()?;
        // One object after the other.
        let items: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&injected).into_iter().collect();
        let items = items.with_context(|| format!("not JSON: {injected}"))?.into_iter();
        let mut items: Vec<Value> =
            items.flat_map(|item| item["items"].as_array().cloned().unwrap_or_else(|| vec![item])).collect();
        for item in items.iter_mut().filter(|item| item["kind"] == "Deployment") {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            let (has, server) = (self.has(name), !CLIENTS.contains(&name));
            let spec = &mut item["spec"]["template"]["spec"];
            if has {
                exchange(spec, &self.proxy)?;
            }
            if server {
                linger(spec)?;
            }
        }
        Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}))
    }
}

/// Whether something in these manifests asks for a proxy: by hand everything would be injected.
fn asks(manifest: &Path) -> bool {
    manifest.is_dir() || fs::read_to_string(manifest).is_ok_and(|text| text.contains("linkerd.io/inject: enabled"))
}

/// Puts the other proxy in the place of ours.
fn exchange(spec: &mut Value, proxy: &Path) -> anyhow::Result<()> {
    let list = |spec: &mut Value, name: &str| spec[name].as_array().cloned().unwrap_or_default();
    let mut volumes = list(spec, "volumes");
    volumes.push(json!({"name": IDENTITY_VOLUME, "emptyDir": {"medium": "Memory"}}));
    spec["volumes"] = volumes.into();
    let containers = spec["containers"].as_array_mut().context("no containers")?;
    let Some(container) = containers.iter_mut().find(|container| container["name"] == CONTAINER) else {
        bail!("no {CONTAINER}: {containers:?}");
    };
    container["command"] = json!(["sh", "-ec", START, proxy]);
    let mut mounts = list(container, "volumeMounts");
    mounts.push(json!({"name": IDENTITY_VOLUME, "mountPath": IDENTITY}));
    container["volumeMounts"] = mounts.into();
    let mut variables = list(container, "env");
    variables.retain(|variable| variable["name"] != "LINKERD2_PROXY_LOG");
    variables.push(json!({"name": "LINKERD2_PROXY_LOG", "value": "warn,linkerd=info"}));
    variables.push(json!({"name": "LINKERD2_PROXY_IDENTITY_DIR", "value": IDENTITY}));
    container["env"] = variables.into();
    Ok(())
}

/// Lets applications serve for a while after their pods were taken out of their services. A request that is on its way to an
/// endpoint fails when nobody serves it there any more; only between two of our proxies it goes to another one.
fn linger(spec: &mut Value) -> anyhow::Result<()> {
    for container in spec["containers"].as_array_mut().context("no containers")? {
        if container["name"] != CONTAINER {
            container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": LINGER_SECONDS}}});
        }
    }
    Ok(())
}

impl Cluster {
    /// Starts a cluster with these manifests, in which those have another proxy who should.
    ///
    /// # Errors
    ///
    /// When not everything becomes ready.
    pub fn up_with<P: AsRef<Path>>(manifests: &[P]) -> anyhow::Result<Self> {
        let mut arguments = Vec::new();
        if Interop::asked()?.is_none() {
            for manifest in manifests {
                arguments.extend(["-f".as_ref(), manifest.as_ref().as_os_str()]);
            }
            return Self::up(&arguments);
        }
        let cluster = Self::up(&arguments)?;
        cluster.apply(manifests)?;
        cluster.everything_is_ready()?;
        Ok(cluster)
    }

    /// Applies these manifests, with another proxy for those who should have it.
    ///
    /// # Errors
    ///
    /// When they are refused.
    pub fn apply<P: AsRef<Path>>(&self, manifests: &[P]) -> anyhow::Result<()> {
        let Some(interop) = Interop::asked()? else {
            let mut arguments = vec!["apply".as_ref()];
            for manifest in manifests {
                arguments.extend(["-f".as_ref(), manifest.as_ref().as_os_str()]);
            }
            return self.weft(&arguments)?.success().map(drop);
        };
        let (meshed, plain): (Vec<&Path>, Vec<&Path>) = manifests.iter().map(AsRef::as_ref).partition(|m| asks(m));
        let mut file = tempfile::Builder::new().suffix(".json").tempfile()?;
        serde_json::to_writer(&mut file, &interop.inject(self, &meshed)?)?;
        let mut arguments = vec!["apply".as_ref(), "-f".as_ref(), file.path().as_os_str()];
        arguments.extend(plain.iter().flat_map(|manifest| ["-f".as_ref(), manifest.as_os_str()]));
        self.weft(&arguments)?.success().map(drop)
    }

    /// Waits until every Deployment has all its pods.
    ///
    /// # Errors
    ///
    /// When it does not come to that.
    fn everything_is_ready(&self) -> anyhow::Result<()> {
        let directory = self.run_dir().join("objects/deployments");
        let ready = wait_for("every deployment has its pods", || {
            for namespace in fs::read_dir(&directory)? {
                for file in fs::read_dir(namespace?.path())? {
                    let deployment: Value = serde_json::from_str(&fs::read_to_string(file?.path())?)?;
                    let (name, wanted) = (&deployment["metadata"]["name"], deployment["spec"]["replicas"].as_u64());
                    let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
                    ensure!(ready == wanted.unwrap_or(1), "{name} has {ready} pods that are ready");
                }
            }
            Ok(())
        });
        ready.with_context(|| self.weft(&["ps", "-A"]).map_or_else(|e| format!("{e:#}"), |ran| ran.to_string()))
    }
}
