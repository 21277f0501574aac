//! The container role: makes a container's view of the files and becomes its program.
//!
//! Started by the pod role inside the pod's namespaces, it enters a mount namespace of its own: the host's files under
//! an overlay whose changes live in memory, fresh /proc, /sys, /dev and /run, the pod's volumes, and the cluster's
//! resolv.conf, hosts and hostname. For `exec` it enters a running container's mount namespace instead. Then it drops
//! its rights and executes the command. What fails is reported on the pipe that is its standard input until then.

use crate::pod::report;
use crate::system;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, chdir, execve, pivot_root, setgid, setgroups, setsid, setuid};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the programs beside `weft` are found inside a container.
pub(crate) const BIN_DIR: &str = "/run/weft/bin";
/// Where the host's files hang while a container's are being put together.
const OLD_ROOT: &str = "/run/.host";

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
    /// Mount points of the host that are not part of its root file system.
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

struct Failure {
    reason: &'static str,
    message: String,
}

fn failed(reason: &'static str, message: impl Into<String>) -> Failure {
    Failure { reason, message: message.into() }
}

/// Says what was being done when a step fails.
trait Step<T> {
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
        make_files(&spec)?;
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

/// Puts the container's files together and makes them its root.
fn make_files(spec: &Spec) -> Result<(), Failure> {
    system::make_mounts_private().step(|| "cannot make mounts private".into())?;
    let scratch = &spec.scratch;
    fs::create_dir_all(scratch).step(|| format!("cannot make {}", scratch.display()))?;
    system::mount_tmpfs(scratch, "mode=0700", MsFlags::empty()).step(|| "cannot mount a tmpfs for changes".into())?;
    let root = scratch.join("root");
    fs::create_dir(&root).step(|| format!("cannot make {}", root.display()))?;
    overlay(Path::new("/"), &root, scratch, "0").map_err(|e| {
        let message = format!("this kernel refuses an overlay over the host's files ({e}), which containers need");
        failed("CreateContainerError", message)
    })?;
    for (index, host) in spec.host_mounts.iter().enumerate() {
        let Ok(relative) = host.strip_prefix("/") else { continue };
        let target = root.join(relative);
        // A mount that cannot be overlaid (network file systems, single files) is shown read-only; one that cannot be
        // shown at all is left out.
        if host.is_dir() && overlay(host, &target, scratch, &(index + 1).to_string()).is_ok() {
            continue;
        }
        if mount(Some(host.as_path()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).is_ok() {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            if mount(None::<&str>, &target, None::<&str>, flags, None::<&str>).is_err() {
                let _ = umount2(&target, MntFlags::MNT_DETACH);
            }
        }
    }
    let hidden = root.join(spec.hidden.strip_prefix("/").unwrap_or(&spec.hidden));
    if !spec.hidden.as_os_str().is_empty() && hidden.is_dir() {
        system::mount_tmpfs(&hidden, "mode=0000,size=4k", MsFlags::MS_RDONLY)
            .step(|| format!("cannot hide {}", spec.hidden.display()))?;
    }
    make_proc_and_sys(spec, &root)?;
    make_dev(&root.join("dev"))?;
    let run = root.join("run");
    system::mount_tmpfs(&run, "mode=0755", MsFlags::MS_NOSUID | MsFlags::MS_NODEV).step(|| "/run".into())?;
    let old = root.join(OLD_ROOT.trim_start_matches('/'));
    fs::create_dir(&old).step(|| format!("cannot make {OLD_ROOT}"))?;
    fs::create_dir(run.join("lock")).step(|| "cannot make /run/lock".into())?;
    pivot_root(&root, &old).step(|| "cannot change the root".into())?;
    chdir("/").step(|| "cannot enter the new root".into())?;

    let programs = Bind { source: spec.programs.clone(), target: BIN_DIR.into(), read_only: true };
    bind(&programs)?;
    for (path, content) in
        [("/etc/resolv.conf", &spec.resolv_conf), ("/etc/hosts", &spec.hosts), ("/etc/hostname", &spec.hostname)]
    {
        // The host's may be a link to somewhere else.
        let _ = fs::remove_file(path);
        fs::write(path, content).step(|| format!("cannot write {path}"))?;
    }
    for volume in &spec.volumes {
        bind(volume)?;
    }
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).step(|| "cannot leave the host's files".into())?;
    let _ = fs::remove_dir(OLD_ROOT);
    if spec.read_only_root {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).step(|| "cannot make / read-only".into())?;
    }
    Ok(())
}

fn overlay(lower: &Path, target: &Path, scratch: &Path, name: &str) -> io::Result<()> {
    let upper = scratch.join(format!("upper-{name}"));
    let work = scratch.join(format!("work-{name}"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // The root of the upper directory is what the merged root looks like.
    let metadata = fs::metadata(lower)?;
    fs::set_permissions(&upper, metadata.permissions())?;
    std::os::unix::fs::chown(
        &upper,
        Some(std::os::unix::fs::MetadataExt::uid(&metadata)),
        Some(std::os::unix::fs::MetadataExt::gid(&metadata)),
    )?;
    let mut options = Vec::new();
    for (key, path) in [("lowerdir=", lower), (",upperdir=", &upper), (",workdir=", &work)] {
        options.extend_from_slice(key.as_bytes());
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b',' | b':' | b'\\') {
                options.push(b'\\');
            }
            options.push(*byte);
        }
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(OsStr::from_bytes(&options)))?;
    Ok(())
}

fn make_proc_and_sys(spec: &Spec, root: &Path) -> Result<(), Failure> {
    let proc = root.join("proc");
    system::mount_proc(&proc).step(|| "cannot mount /proc".into())?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if spec.capabilities.is_some() {
        // The kernel's parameters belong to the whole machine.
        for name in ["sys", "sysrq-trigger", "irq", "bus"] {
            let path = proc.join(name);
            if mount(Some(path.as_path()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).is_ok() {
                mount(None::<&str>, &path, None::<&str>, read_only, None::<&str>)
                    .step(|| format!("cannot make /proc/{name} read-only"))?;
            }
        }
    }
    let sys = root.join("sys");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), &sys, Some("sysfs"), flags, None::<&str>).step(|| "cannot mount /sys".into())
}

fn make_dev(dev: &Path) -> Result<(), Failure> {
    system::mount_tmpfs(dev, "mode=0755", MsFlags::MS_NOSUID).step(|| "cannot mount /dev".into())?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let (source, target) = (Path::new("/dev").join(name), dev.join(name));
        if !source.exists() {
            continue;
        }
        File::create(&target).step(|| format!("cannot make /dev/{name}"))?;
        mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .step(|| format!("cannot bind /dev/{name}"))?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, dev.join(link)).step(|| format!("cannot make /dev/{link}"))?;
    }
    let shm = dev.join("shm");
    fs::create_dir(&shm).step(|| "cannot make /dev/shm".into())?;
    system::mount_tmpfs(&shm, "mode=1777", MsFlags::MS_NOSUID | MsFlags::MS_NODEV).step(|| "/dev/shm".into())?;
    let pts = dev.join("pts");
    fs::create_dir(&pts).step(|| "cannot make /dev/pts".into())?;
    let options = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), &pts, Some("devpts"), flags, Some(options)).step(|| "cannot mount /dev/pts".into())?;
    symlink("pts/ptmx", dev.join("ptmx")).step(|| "cannot make /dev/ptmx".into())
}

/// Binds a volume at its place in the new root; the source is still under [`OLD_ROOT`].
fn bind(volume: &Bind) -> Result<(), Failure> {
    let shown = || format!("cannot mount {} at {}", volume.source.display(), volume.target.display());
    let relative = volume.source.strip_prefix("/").step(shown)?;
    let source = Path::new(OLD_ROOT).join(relative);
    let target = &volume.target;
    if fs::metadata(&source).step(shown)?.is_dir() {
        fs::create_dir_all(target).step(shown)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).step(shown)?;
        }
        if !target.exists() {
            File::create(target).step(shown)?;
        }
    }
    mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).step(shown)?;
    if volume.read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>).step(shown)?;
    }
    Ok(())
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
    let groups: Vec<Gid> = spec.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).step(|| "cannot set groups".into())?;
    setgid(Gid::from_raw(spec.gid)).step(|| format!("cannot become group {}", spec.gid))?;
    setuid(Uid::from_raw(spec.uid)).step(|| format!("cannot become user {}", spec.uid))?;
    if spec.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().step(|| "cannot give up gaining privileges".into())?;
    }
    Ok(())
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
