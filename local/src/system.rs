//! Small pieces of the operating system that several roles need: namespaces by thread, mounts, files, names.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Command-line words of the hidden roles; see [`crate::internal`].
pub(crate) mod role {
    /// Makes the cluster's namespaces and starts the node in them.
    pub const LAUNCH: &str = "__launch";
    /// The node: first process of the cluster's namespaces.
    pub const NODE: &str = "__node";
    /// A pod: first process of its namespaces.
    pub const POD: &str = "__pod";
    /// A container: becomes the container's command.
    pub const CONTAINER: &str = "__container";
    /// Removes a directory with files of a cluster's other users.
    pub const REMOVE: &str = "__remove";
    /// What a detached `weft up` leaves running in the host's namespaces.
    pub const HOST: &str = "__host";
}

/// This program, to be run again in another role. The link outlives a rebuild of the file on disk.
pub(crate) const SELF: &str = "/proc/self/exe";

/// The namespaces that the node and every pod have of their own.
pub(crate) fn all_namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
}

/// Enters new namespaces with the calling thread, which must end (or only wait) afterwards: what it starts lives in them.
pub(crate) fn enter_new_namespaces(flags: CloneFlags) -> io::Result<()> {
    unshare(flags).map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("cannot make namespaces: {e}")))
}

/// Where system programs are that an ordinary user's `PATH` may lack.
const SYSTEM_PROGRAMS: &[&str] = &["/usr/sbin", "/sbin"];

/// `PATH`, with the directories of system programs in the end.
pub(crate) fn path_with_system_programs() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(SYSTEM_PROGRAMS.iter().map(PathBuf::from).filter(|dir| !dirs.contains(dir)).collect::<Vec<_>>());
    // Only a directory with a colon in its name cannot be joined, and none has: they came from a split.
    std::env::join_paths(dirs).unwrap_or(path)
}

/// A program on `PATH` or among the system's.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path_with_system_programs()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Stops mounts made here from being seen elsewhere, and the other way round.
pub(crate) fn make_mounts_private() -> nix::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// Mounts the /proc of the calling process's own PID namespace.
pub(crate) fn mount_proc(target: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), target, Some("proc"), flags, None::<&str>)
}

/// Makes a mount read-only. It keeps what else it forbids: in a user namespace nobody may take that away.
pub(crate) fn remount_read_only(target: &Path) -> nix::Result<()> {
    let now = statvfs(target)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (has, keep) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if now.contains(has) {
            flags |= keep;
        }
    }
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

/// Mounts a tmpfs.
pub(crate) fn mount_tmpfs(target: &Path, options: &str, flags: MsFlags) -> nix::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
}

/// Sets a kernel parameter such as `net/ipv4/ip_forward`; ones that this kernel does not have are not missed.
pub(crate) fn sysctl(name: &str, value: &str) {
    if let Err(e) = fs::write(Path::new("/proc/sys").join(name), value) {
        tracing::debug!(name, value, error = %e, "kernel parameter left alone");
    }
}

/// Replaces a file in one step, so that a reader sees the old or the new content and never a part.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    fs::write(&temporary, content)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, path)
}

/// The name that `ps` of the system shows.
pub(crate) fn set_process_name(name: &std::ffi::CStr) {
    // A wrong name is no reason to fail.
    let _ = nix::sys::prctl::set_name(name);
}
