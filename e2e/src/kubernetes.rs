//! A real Kubernetes cluster: the one that `make kubernetes` builds, or any other that `WEFT_TEST_KUBECONFIG` names.

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{Process, REPORT_PORT, Ran, Report, binaries, manifest, run, wait_for};

/// The images of the tests, and the programs in each. The first is the entry point.
const IMAGES: [(&str, &[&str]); 6] = [
    ("proxy", &["weft-proxy", "weft-init"]),
    ("controller", &["weft-controller"]),
    ("cni", &["weft-cni"]),
    ("demo", &["weft-demo"]),
    ("load", &["weft-load"]),
    ("cluster-dns", &["weft-cluster-dns"]),
];

/// A cluster. One that was started for the tests is stopped when this is dropped, whatever happened.
#[derive(Debug)]
pub struct Kubernetes {
    kubeconfig: PathBuf,
    own: bool,
    scratch: tempfile::TempDir,
}

impl Kubernetes {
    /// The cluster of `WEFT_TEST_KUBECONFIG`, which must have the images (`make images`), or one of its own.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn up() -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("weft-e2e-").tempdir()?;
        if let Some(kubeconfig) = std::env::var_os("WEFT_TEST_KUBECONFIG") {
            return Ok(Self { kubeconfig: kubeconfig.into(), own: false, scratch });
        }
        // Nothing to do for whoever ran `make kubernetes`, else it takes ten minutes.
        ensure!(recipe("build.sh").status()?.success(), "the cluster could not be built");
        let mut up = recipe("up.sh");
        up.args(images()?);
        // What is started in the background keeps its output, so only files can be waited for.
        let (out, err) = (scratch.path().join("up.out"), scratch.path().join("up.err"));
        let status = up
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&out)?)
            .stderr(std::fs::File::create(&err)?)
            .status()
            .context("e2e/kubernetes/up.sh")?;
        ensure!(status.success(), "the cluster did not start: {}", std::fs::read_to_string(&err)?);
        let kubeconfig = std::fs::read_to_string(&out)?.trim().into();
        let cluster = Self { kubeconfig, own: true, scratch };
        cluster.apply(&std::fs::read_to_string(manifest("e2e/kubernetes/dns.yml"))?)?;
        cluster.rolled_out("kube-system", "cluster-dns")?;
        Ok(cluster)
    }

    /// Whether it was started for the tests, so that nothing else is in it.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn command(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        // No cluster of this machine is in the way.
        command.env("KUBECONFIG", &self.kubeconfig).env("WEFT_RUN_DIR", self.scratch.path().join("run"));
        command.args(arguments);
        command
    }

    /// Runs `weft` for this cluster.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn weft(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        run(&mut self.command(binaries().join("weft"), arguments))
    }

    /// Runs `weft` with this on standard input, and answers what it prints.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn weft_piped(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        piped(&mut self.command(binaries().join("weft"), arguments), input)
    }

    /// Runs `kubectl`.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(&mut self.command(kubectl(), arguments))?.success()
    }

    /// Objects of a kind, of all namespaces.
    ///
    /// # Errors
    ///
    /// When they cannot be had.
    pub fn list(&self, kind: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let text = self.kubectl(&["get", kind, "-A", "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// `kubectl apply -f -`
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn apply(&self, text: &str) -> anyhow::Result<String> {
        piped(&mut self.command(kubectl(), &["apply", "-f", "-"]), text)
    }

    /// `kubectl delete -f -`
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn delete(&self, text: &str) -> anyhow::Result<String> {
        piped(&mut self.command(kubectl(), &["delete", "--wait=false", "-f", "-"]), text)
    }

    /// Waits until a Deployment has the pods that it should have, and no other.
    ///
    /// # Errors
    ///
    /// With what its pods are doing, when it has not in time.
    pub fn rolled_out(&self, namespace: &str, deployment: &str) -> anyhow::Result<()> {
        let target = format!("deployment/{deployment}");
        let ran =
            run(&mut self.command(kubectl(), &["rollout", "status", &target, "-n", namespace, "--timeout=180s"]))?;
        if ran.status.success() {
            return Ok(());
        }
        let pods = self.kubectl(&["describe", "pods", "-n", namespace])?;
        anyhow::bail!("{ran}\n{pods}")
    }

    /// What the load generator in a pod of Deployment `load` has seen so far.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn report(&self, namespace: &str) -> anyhow::Result<Report> {
        let pods = self.list("pods", "app=load")?;
        let pod = pods.iter().find(|pod| pod["metadata"]["namespace"] == namespace).context("no load is made")?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{REPORT_PORT}/proxy/");
        let text = self.kubectl(&["get", "--raw", &path])?;
        serde_json::from_str(&text).with_context(|| format!("not a report: {text}"))
    }

    /// Waits until so many more requests of each protocol that is sent were answered, and answers the report then.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn report_after(&self, namespace: &str, answered: u64) -> anyhow::Result<Report> {
        let begin = wait_for("a report", || self.report(namespace))?;
        wait_for(&format!("{answered} more answers"), || {
            let now = self.report(namespace)?;
            for (begin, now) in [(&begin.http, &now.http), (&begin.grpc, &now.grpc)] {
                ensure!(now.rate == 0 || now.answered >= begin.answered + answered, "{now:?}");
            }
            Ok(now)
        })
    }

    /// The names of the pods with these labels in a namespace that are not being deleted.
    ///
    /// # Errors
    ///
    /// When they cannot be had.
    pub fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<String>> {
        let mut pods = self.list("pods", selector)?;
        pods.retain(|pod| {
            pod["metadata"]["namespace"] == namespace && pod["metadata"].get("deletionTimestamp").is_none()
        });
        Ok(pods.iter().filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect())
    }

    /// The proxy of a pod, of a cluster that was started for the tests.
    ///
    /// # Errors
    ///
    /// When it does not run, or runs elsewhere.
    pub fn proxy(&self, namespace: &str, pod: &str) -> anyhow::Result<Process> {
        ensure!(self.own, "the processes of another cluster cannot be seen");
        let pods = self.list("pods", "linkerd.io/control-plane-ns")?;
        let id = |pod: &Value| (pod["metadata"]["namespace"].clone(), pod["metadata"]["name"].clone());
        let found = pods.iter().find(|one| id(one) == (namespace.into(), pod.into())).context("no such pod")?;
        let statuses = found["status"]["containerStatuses"].as_array().context("no containers")?;
        let proxy = statuses.iter().find(|status| status["name"] == "linkerd-proxy").context("no proxy")?;
        let container = proxy["containerID"].as_str().context("it has not started")?;
        let container = container.rsplit('/').next().unwrap_or_default();
        // The shim that runs a container has its name, and the control group of its processes too.
        let member = |process: &Process| {
            process.program() == "weft-proxy" && process.control_groups().is_ok_and(|groups| groups.contains(container))
        };
        Process::all().into_iter().find(member).with_context(|| format!("no process of {container}"))
    }

    /// Stops the API server of a cluster that was started for the tests, without a warning, or starts it again.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn api_server(&self, what: &str) -> anyhow::Result<()> {
        ensure!(self.own, "the API server of another cluster cannot be stopped");
        let script = manifest("e2e/kubernetes/apiserver.sh");
        // What is started keeps its output, so only a file can be waited for.
        let err = self.scratch.path().join("apiserver.err");
        let mut command = Command::new(script);
        let status = command
            .arg(what)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&err)?)
            .status()?;
        ensure!(status.success(), "apiserver.sh {what}: {}", std::fs::read_to_string(&err)?);
        Ok(())
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if self.own && std::env::var_os("WEFT_TEST_KEEP").is_none() {
            // A test that fails has said why already.
            let _ = run(&mut recipe("down.sh"));
        }
    }
}

fn recipe(script: &str) -> Command {
    Command::new(manifest("e2e/kubernetes").join(script))
}

/// Where `make kubernetes` puts what it builds.
pub fn kubernetes_dir() -> PathBuf {
    let named = std::env::var_os("WEFT_KUBERNETES_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
        cache.unwrap_or_else(home).join("weft/kubernetes")
    })
}

fn kubectl() -> PathBuf {
    let own = kubernetes_dir().join("bin/kubectl");
    if own.exists() { own } else { "kubectl".into() }
}

/// Writes the archives of the images, from the programs that were built together with this test.
fn images() -> anyhow::Result<Vec<PathBuf>> {
    let binaries = binaries();
    let directory = binaries.join("images");
    std::fs::create_dir_all(&directory)?;
    let mut archives = Vec::new();
    for (name, programs) in IMAGES {
        let archive = directory.join(format!("{name}.tar"));
        let tag = format!("localhost/weft/{name}:{}", env!("CARGO_PKG_VERSION"));
        let mut command = Command::new(manifest("scripts/image.sh"));
        command.arg("--libraries").arg(&archive).arg(tag).args(programs.iter().map(|p| binaries.join(p)));
        run(&mut command)?.success()?;
        archives.push(archive);
    }
    Ok(archives)
}

fn piped(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // A program that ends early has said why.
    let _ = writer.join();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{shown}: {}\n{out}{err}", output.status);
    Ok(out.into_owned())
}
