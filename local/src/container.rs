//! The container role: makes a container's view of the files and becomes its program.
//!
//! Started by the pod role inside the pod's namespaces, it enters a mount namespace of its own and makes it the container's
//! ([`crate::files`]). For `exec` it enters a running container's mount namespace instead. Then it drops
//! its rights and executes the command. What fails is reported on the pipe that is its standard input until then.

use crate::files;
use crate::ids::Ids;
use crate::pod::report;
use crate::system;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, chdir, execve, setgid, setgroups, setsid, setuid};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the programs beside `weft` are found inside a container.
pub(crate) const BIN_DIR: &str = "/run/weft/bin";

/// Everything about a process that is to run in a pod. Passed in a file, because it may hold secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Enter the mount namespace of this process (by its number in the pod) instead of making one.
    pub enter: Option<i32>,
    /// Control groups to join: their files of processes.
    pub control_groups: Vec<PathBuf>,
    /// Standard input: a FIFO; nothing when absent.
    pub stdin: Option<PathBuf>,
    /// Standard output: a FIFO.
    pub stdout: PathBuf,
    /// Standard error: a FIFO.
    pub stderr: PathBuf,
    /// Command and arguments; the command is looked up on PATH when it has no slash.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Capabilities to keep; `None` keeps all.
    pub capabilities: Option<Vec<String>>,
    /// Whether the container's own files are read-only, volumes apart.
    pub read_only_root: bool,
    /// A directory for the overlay, the container's own.
    pub scratch: PathBuf,
    /// All mount points of the host.
    pub mounts: Vec<PathBuf>,
    /// Those of them that a container is to see.
    pub host_mounts: Vec<PathBuf>,
    /// The cluster's run directory, of which containers see nothing: it leads to the cluster's API.
    pub hidden: PathBuf,
    /// The directory of the weft programs, on the host.
    pub programs: PathBuf,
    /// Content of /etc/resolv.conf.
    pub resolv_conf: String,
    /// Content of /etc/hosts.
    pub hosts: String,
    /// Content of /etc/hostname.
    pub hostname: String,
    /// Volumes, in order.
    pub volumes: Vec<Bind>,
}

/// A volume at its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// File or directory of the node.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

pub(crate) struct Failure {
    reason: &'static str,
    message: String,
}

pub(crate) fn failed(reason: &'static str, message: impl Into<String>) -> Failure {
    Failure { reason, message: message.into() }
}

/// Says what was being done when a step fails.
pub(crate) trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|e| failed("CreateContainerError", format!("{}: {e}", what())))
    }
}

/// Runs the role. Only returns when something failed.
pub(crate) fn main(spec: Option<&OsStr>) -> ExitCode {
    system::set_process_name(c"weft-container");
    let Ok(report) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let mut report = File::from(report);
    let result = match spec {
        Some(path) => run(Path::new(path), &mut report),
        None => Err(failed("CreateContainerError", "no specification given")),
    };
    if let Err(failure) = result {
        let message = failure.message.replace('\n', " ");
        // Nobody is left to be told when this fails.
        let _ = writeln!(report, "{}{} {message}", report::FAILED, failure.reason);
    }
    ExitCode::FAILURE
}

fn run(path: &Path, report: &mut File) -> Result<(), Failure> {
    let text = fs::read(path).step(|| "cannot read the container's specification".into())?;
    // It may hold secrets, and nobody needs it any more.
    let _ = fs::remove_file(path);
    let spec: Spec = serde_json::from_slice(&text).step(|| "the container's specification is wrong".into())?;
    setsid().step(|| "cannot make a session".into())?;
    for group in &spec.control_groups {
        fs::write(group, "0").step(|| format!("cannot join {}", group.display()))?;
    }
    let open_fifo =
        |path: &Path| OpenOptions::new().write(true).open(path).step(|| format!("cannot open {}", path.display()));
    let stdin = match &spec.stdin {
        Some(path) => File::open(path).step(|| format!("cannot open {}", path.display()))?,
        None => File::open("/dev/null").step(|| "cannot open /dev/null".into())?,
    };
    let stdout = open_fifo(&spec.stdout)?;
    let stderr = open_fifo(&spec.stderr)?;
    if let Some(pid) = spec.enter {
        let namespace = File::open(format!("/proc/{pid}/ns/mnt")).step(|| "the container has ended".into())?;
        setns(&namespace, CloneFlags::CLONE_NEWNS).step(|| "cannot enter the container".into())?;
    } else {
        unshare(CloneFlags::CLONE_NEWNS).step(|| "cannot make a mount namespace".into())?;
        let namespace = fs::read_link("/proc/self/ns/mnt").step(|| "cannot name the mount namespace".into())?;
        writeln!(report, "{}{}", report::NAMESPACE, namespace.display()).step(|| "cannot report".into())?;
        files::make(&spec)?;
    }
    nix::unistd::dup2_stdin(stdin).step(|| "cannot set standard input".into())?;
    nix::unistd::dup2_stdout(stdout).step(|| "cannot set standard output".into())?;
    nix::unistd::dup2_stderr(stderr).step(|| "cannot set standard error".into())?;
    drop_rights(&spec)?;
    let cwd = if spec.cwd.is_empty() { "/" } else { &spec.cwd };
    chdir(cwd).map_err(|e| failed("CreateContainerError", format!("working directory {cwd}: {}", e.desc())))?;
    SigSet::empty().thread_set_mask().step(|| "cannot reset signals".into())?;
    execute(&spec)
}

fn drop_rights(spec: &Spec) -> Result<(), Failure> {
    if let Some(keep) = &spec.capabilities {
        let known = CapabilitySet::all();
        for (name, capability) in known.iter_names() {
            let name = name.trim_start_matches("CAP_");
            if !keep.iter().any(|k| k == name) {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // A capability that this kernel does not know.
                    Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                    Err(e) => return Err(e).step(|| format!("cannot drop capability {name}")),
                }
            }
        }
    }
    become_user(spec)?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().step(|| "cannot give up gaining privileges".into())?;
    }
    Ok(())
}

/// Becomes the user of the container. Where there is only one, it already is.
fn become_user(spec: &Spec) -> Result<(), Failure> {
    let here = Ids::here();
    if here.single() {
        return Ok(());
    }
    let mut groups = spec.groups.iter().chain([&spec.gid]);
    let missing = match groups.find(|group| **group >= here.groups) {
        Some(group) => Some(("group", *group, here.groups, "/etc/subgid")),
        None => (spec.uid >= here.users).then_some(("user", spec.uid, here.users, "/etc/subuid")),
    };
    if let Some((kind, id, count, file)) = missing.filter(|_| !here.all()) {
        let message = format!("{kind} {id} does not exist without root: {file} gives this user those below {count}");
        return Err(failed("CreateContainerError", message));
    }
    let groups: Vec<Gid> = spec.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).step(|| "cannot set groups".into())?;
    setgid(Gid::from_raw(spec.gid)).step(|| format!("cannot become group {}", spec.gid))?;
    setuid(Uid::from_raw(spec.uid)).step(|| format!("cannot become user {}", spec.uid))
}

/// Becomes the command. Looks it up as `execvp` does, beside the weft program first (PATH begins with [`BIN_DIR`]).
fn execute(spec: &Spec) -> Result<(), Failure> {
    let text = |s: &str| CString::new(s).step(|| "the command or its environment has a NUL octet".into());
    let argv = spec.argv.iter().map(|a| text(a)).collect::<Result<Vec<_>, _>>()?;
    let mut env = Vec::with_capacity(spec.env.len());
    for (name, value) in &spec.env {
        env.push(text(&format!("{name}={value}"))?);
    }
    let Some(name) = spec.argv.first().filter(|n| !n.is_empty()) else {
        return Err(failed("CreateContainerError", "the command is empty"));
    };
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.clone()]
    } else {
        let path = spec.env.iter().rev().find(|(n, _)| n == "PATH").map(|(_, v)| v.as_str()).unwrap_or_default();
        path.split(':').filter(|d| !d.is_empty()).map(|d| format!("{d}/{name}")).collect()
    };
    let mut refused = None;
    for candidate in &candidates {
        let Err(e) = execve(&text(candidate)?, &argv, &env);
        match e {
            Errno::ENOENT | Errno::ENOTDIR if !Path::new(candidate).exists() => {}
            e => refused = refused.or(Some((candidate.clone(), e))),
        }
    }
    Err(match refused {
        Some((path, Errno::ENOEXEC)) => {
            failed("CreateContainerError", format!("command {path} is no program: no known format, no `#!` line"))
        }
        Some((path, Errno::ENOENT)) => {
            failed("CreateContainerError", format!("command {path} needs an interpreter that does not exist"))
        }
        Some((path, Errno::EACCES)) => {
            failed("CreateContainerError", format!("command {path} may not be executed by user {}", spec.uid))
        }
        Some((path, e)) => failed("CreateContainerError", format!("command {path} cannot be executed: {}", e.desc())),
        None if name.contains('/') => failed("CreateContainerError", format!("command {name} does not exist")),
        None => {
            let beside = spec.programs.display();
            failed("CreateContainerError", format!("command {name} exists neither in {beside} nor on PATH"))
        }
    })
}
