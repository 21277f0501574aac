//! A one-machine cluster of a test's own.

use std::{
    ffi::OsStr,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{DEADLINE, Process, wait_for};

/// What a cluster of the tests is made of.
pub const PROGRAMS: [&str; 6] = ["weft", "weft-proxy", "weft-init", "weft-controller", "weft-demo", "weft-load"];

/// The directory of the binaries that were built together with this test.
///
/// # Panics
///
/// When they are not there: `make test` builds them.
pub fn binaries() -> PathBuf {
    let this = std::env::current_exe().expect("a test knows its own path");
    let directory = this.ancestors().nth(2).expect("a test is in target/*/deps").to_owned();
    for name in PROGRAMS {
        assert!(directory.join(name).exists(), "{} has no {name}; `make test` builds it", directory.display());
    }
    directory
}

/// A file of the repository, by its path from the root.
pub fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What a command that ended did.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    command: String,
}

impl Ran {
    /// Standard output, when it ended well.
    ///
    /// # Errors
    ///
    /// With all it said, when it did not.
    pub fn success(self) -> anyhow::Result<String> {
        ensure!(self.status.success(), "{self}");
        Ok(self.stdout)
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n{}{}", self.command, self.status, self.stdout, self.stderr)
    }
}

/// Runs a command to its end, or kills it at the deadline.
///
/// # Errors
///
/// When it cannot be started or does not end.
#[allow(clippy::disallowed_methods, reason = "tests are ordinary threads; this is their way to poll")]
pub fn run(command: &mut Command) -> anyhow::Result<Ran> {
    let shown = format!("{command:?}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|error| anyhow::anyhow!("{shown}: {error}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > DEADLINE * 2 {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{shown} does not end:\n{}{}", stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(20));
    };
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    Ok(Ran { status, stdout, stderr, command: shown })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut octets = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut octets);
        }
        String::from_utf8_lossy(&octets).into_owned()
    })
}

/// The `weft` command for a run directory.
pub fn weft(run_dir: &Path) -> Command {
    let mut command = Command::new(binaries().join("weft"));
    command.env("WEFT_RUN_DIR", run_dir).env_remove("KUBECONFIG");
    command
}

/// A running cluster. It is stopped when this is dropped, whatever happened.
#[derive(Debug)]
pub struct Cluster {
    run_dir: PathBuf,
    _parent: tempfile::TempDir,
}

impl Cluster {
    /// Starts one with `weft up --detach` and these further arguments.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn up<S: AsRef<OsStr>>(arguments: &[S]) -> anyhow::Result<Self> {
        let cluster = Self::down()?;
        run(weft(&cluster.run_dir).args(["up", "--detach"]).args(arguments))?.success()?;
        Ok(cluster)
    }

    /// A run directory in which nothing was started yet.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn down() -> anyhow::Result<Self> {
        let parent = tempfile::Builder::new().prefix("weft-e2e-").tempdir()?;
        Ok(Self { run_dir: parent.path().join("run"), _parent: parent })
    }

    /// The run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The `weft` command for this cluster.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = weft(&self.run_dir);
        command.args(arguments);
        command
    }

    /// Runs a `weft` command to its end.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn weft<S: AsRef<OsStr>>(&self, arguments: &[S]) -> anyhow::Result<Ran> {
        run(&mut self.command(arguments))
    }

    /// Runs a `weft` command that must end well and print JSON.
    ///
    /// # Errors
    ///
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.weft(arguments)?.success()?;
        serde_json::from_str(&text).with_context(|| format!("weft {arguments:?} did not print JSON:\n{text}"))
    }

    /// Runs a command in a pod; `pod` as `weft exec` takes it.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> anyhow::Result<Ran> {
        let mut arguments = vec!["exec", "-n", namespace, pod, "--"];
        arguments.extend(command);
        self.weft(&arguments)
    }

    /// Pods as Kubernetes objects.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    pub fn pods(&self, namespace: &str) -> anyhow::Result<Vec<Value>> {
        let listed = self.json(&["ps", "-n", namespace, "-o", "json"])?;
        let items = listed.get("items").unwrap_or(&listed).as_array();
        Ok(items.with_context(|| format!("no list: {listed}"))?.clone())
    }

    /// The one pod of a deployment.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub fn pod_of(&self, namespace: &str, deployment: &str) -> anyhow::Result<Value> {
        let prefix = format!("{deployment}-");
        let is_of = |pod: &Value| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            // `<deployment>-<hash>-<five letters>`
            name.strip_prefix(&prefix).is_some_and(|rest| rest.split('-').count() == 2)
        };
        let mut pods: Vec<Value> = self.pods(namespace)?.into_iter().filter(is_of).collect();
        ensure!(pods.len() == 1, "{deployment} has {} pods", pods.len());
        pods.pop().context("no pod")
    }

    /// An object as the cluster keeps it, with status; `kind` in lower-case plural.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<Value> {
        let path = self.run_dir.join("objects").join(kind).join(namespace).join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("no {kind} {namespace}/{name}"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Processes of this cluster.
    pub fn processes(&self) -> Vec<Process> {
        Process::of_cluster(&self.run_dir)
    }

    /// The one process of this cluster that is this program with these first arguments.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub fn process(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Process> {
        let mut found: Vec<Process> = self.processes();
        found.retain(|process| process.is(program, arguments));
        ensure!(found.len() == 1, "{} processes are {program} {arguments:?}", found.len());
        found.pop().context("no process")
    }

    /// Waits until nothing of the cluster is left: no process, no mount, no file.
    ///
    /// # Errors
    ///
    /// With what is left.
    pub fn nothing_is_left(&self) -> anyhow::Result<()> {
        wait_for("nothing is left of the cluster", || {
            let processes = self.processes();
            ensure!(processes.is_empty(), "processes: {processes:?}");
            let run_dir = self.run_dir.display().to_string();
            let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
            let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(&run_dir)).collect();
            ensure!(mounts.is_empty(), "mounts: {mounts:?}");
            ensure!(!self.run_dir.exists(), "{run_dir} still exists");
            Ok(())
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.weft(&["down"]);
        // What a broken `down` leaves would disturb every test after this one.
        for process in self.processes() {
            let _ = process.kill();
        }
    }
}

/// A child that is killed when dropped.
#[derive(Debug)]
pub struct Foreground(pub Child);

impl Foreground {
    /// Sends what Ctrl-C does.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), Signal::SIGINT)?)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
