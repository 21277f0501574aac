//! A cluster for one test, and the ways to look at it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes anywhere near as long; a loaded machine may.
const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster of this test's own. Stopped when dropped.
pub struct Cluster {
    dir: tempfile::TempDir,
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Outcome {
    /// Standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Cluster {
    /// A place for a cluster that does not run yet.
    pub fn prepared() -> Cluster {
        Cluster { dir: tempfile::Builder::new().prefix("weft-test-").tempdir().expect("a directory") }
    }

    /// A running cluster with the objects of a manifest, all ready.
    #[track_caller]
    pub fn up(manifest: &str) -> Cluster {
        let cluster = Cluster::prepared();
        let file = cluster.file("up.yaml", manifest);
        cluster.weft(&["up", "--detach", "-f", &file]).ok();
        cluster
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Writes a file of the test's own; answers its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path.to_string_lossy().into_owned()
    }

    /// `weft` with arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // The link outlives a rebuild of the file meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg("weft").args(arguments).env("WEFT_RUN_DIR", self.run_dir()).stdin(Stdio::null());
        command
    }

    /// Runs `weft` to its end.
    pub fn weft(&self, arguments: &[&str]) -> Outcome {
        self.command(arguments).output().expect("weft runs").into()
    }

    /// Starts `weft` and does not wait.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("weft starts")
    }

    /// Applies a manifest that must be good.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let file = self.file("apply.yaml", manifest);
        self.weft(&["apply", "-f", &file]).ok()
    }

    /// Runs a shell command in a pod (`NAME` or `deploy/NAME`).
    pub fn sh(&self, pod: &str, command: &str) -> Outcome {
        self.weft(&["exec", pod, "--", "sh", "-c", command])
    }

    /// An object of the default namespace as the control plane reads it from the run directory.
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let path = self.run_dir().join("objects").join(kind).join("default").join(format!("{name}.json"));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// All pods of the default namespace.
    pub fn pods(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.weft(&["ps", "-o", "json"]).ok()).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The pod of a name.
    pub fn pod(&self, name: &str) -> Value {
        self.pods().into_iter().find(|p| p["metadata"]["name"] == name).unwrap_or_default()
    }

    /// Waits for something about a pod.
    #[track_caller]
    pub fn wait_for_pod(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll(|| {
            last = self.pod(name);
            holds(&last)
        });
        assert!(found, "pod {name}: {what}: {last:#}");
        last
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let outcome = self.weft(&["down"]);
        if !std::thread::panicking() {
            assert_eq!(outcome.code, 0, "down: {}", outcome.stderr);
            assert!(!self.run_dir().exists(), "the run directory is left");
        }
    }
}

/// Tries until it holds; false when it never does.
#[allow(clippy::disallowed_methods, reason = "a test waits for other processes, and has nothing else to do")]
pub fn poll(mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Waits until it holds, or fails.
#[track_caller]
pub fn wait(what: &str, holds: impl FnMut() -> bool) {
    assert!(poll(holds), "never: {what}");
}

/// The state of the first container: `running`, or the reason of waiting or ending.
pub fn state(pod: &Value) -> String {
    let state = &pod["status"]["containerStatuses"][0]["state"];
    if state.get("running").is_some() {
        return "running".into();
    }
    let reason = state["waiting"]["reason"].as_str().or(state["terminated"]["reason"].as_str());
    reason.unwrap_or_default().to_owned()
}

/// Whether a pod's condition Ready holds.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Processes of the machine whose environment or arguments name a directory, as PIDs of the machine.
pub fn processes_of(dir: &Path) -> Vec<i32> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if pid.cast_unsigned() == std::process::id() {
            continue;
        }
        let has = |file: &str| {
            let content = std::fs::read(entry.path().join(file)).unwrap_or_default();
            content.windows(needle.len()).any(|w| w == needle)
        };
        if has("environ") || has("cmdline") || has("mountinfo") {
            found.push(pid);
        }
    }
    found
}

/// Processes in a role of the cluster of a run directory, as PIDs of the machine.
pub fn roles(run_dir: &Path, role: &str) -> Vec<i32> {
    let is_role = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).nth(1) == Some(role.as_bytes())
    };
    processes_of(run_dir).into_iter().filter(is_role).collect()
}

/// Holders of pods of the cluster of a run directory.
pub fn holders(run_dir: &Path) -> Vec<i32> {
    roles(run_dir, "__pod")
}
