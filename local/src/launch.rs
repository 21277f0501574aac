//! The launch role: makes the namespaces of a cluster and starts the node in them.
//!
//! A process of its own, because only a program with a single thread may enter a user namespace. Root needs none: its
//! cluster lives in the machine's own. For everybody else the user namespace comes first; `weft up`, which is outside of
//! it, gives it its users ([`crate::ids`]), and what follows belongs to it. Standard input and output are the node's, so
//! that its lifeline leads to `weft up` and ends with it.

use crate::error::Context;
use crate::node::Hello;
use crate::system::{self, SELF, role};
use crate::{Error, ids};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Whether the cluster of whoever calls this needs a user namespace.
pub(crate) fn needs_user_namespace() -> bool {
    !nix::unistd::geteuid().is_root()
}

/// Runs the role until the node ends.
pub(crate) fn main() -> ExitCode {
    system::set_process_name(c"weft-launch");
    match run() {
        Ok(code) => code,
        Err(e) => {
            Hello::Failed(e.to_string()).say();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Error> {
    tie()?;
    if needs_user_namespace() {
        if !enter_user_namespace()? {
            // `weft up` has gone, or says itself why there are no users.
            return Ok(ExitCode::FAILURE);
        }
        // Entering a user namespace may have cut the tie.
        tie()?;
    }
    unshare(system::all_namespaces()).map_err(refused)?;
    let mut node = Command::new(SELF);
    node.arg(role::NODE).env("PATH", system::path_with_system_programs());
    let mut node = node.spawn().map_err(|e| Error::new(format!("cannot start the node: {e}")))?;
    let ended = node.wait().map_err(|e| Error::new(format!("cannot wait for the node: {e}")))?;
    Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends with the thread of `weft up` that started this.
fn tie() -> Result<(), Error> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|e| Error::new(format!("cannot be tied to `weft up`: {e}")))
}

/// Makes a user namespace and waits for its users; false when there will be none.
fn enter_user_namespace() -> Result<bool, Error> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(refused)?;
    Hello::Unmapped.say();
    Ok(mapped())
}

/// Removes a directory in which there are files of a cluster's other users, which its user may not touch from outside.
///
/// # Errors
/// When there are no such users, or something cannot be removed.
pub(crate) fn remove_dir_all(dir: &Path) -> Result<(), Error> {
    let mut command = Command::new(SELF);
    command.arg(role::REMOVE).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a process that removes files")?;
    let pid = child.id();
    let (mut stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or_else(|| Error::new("no pipes"))?;
    let mut lines = BufReader::new(stdout).lines();
    let mut hear = move || lines.next()?.ok().and_then(|line| serde_json::from_str(&line).ok());
    let heard = match hear() {
        Some(Hello::Unmapped) => {
            ids::give(pid)?;
            stdin.write_all(b"\n").context("the process that removes files has ended")?;
            hear()
        }
        heard => heard,
    };
    child.wait().context("cannot wait for the process that removes files")?;
    match heard {
        Some(Hello::Ready) => Ok(()),
        Some(Hello::Failed(why)) => Err(Error::new(why)),
        Some(Hello::Unmapped) | None => Err(Error::new("the process that removes files has ended early")),
    }
}

/// Runs the role that removes a directory, as root of a user namespace of the same users as the cluster's.
pub(crate) fn remove_main(dir: Option<&OsStr>) -> ExitCode {
    let removed = || match enter_user_namespace()? {
        true => fs::remove_dir_all(dir.unwrap_or_default()).context("cannot remove it"),
        false => Err(Error::new("there are no users")),
    };
    match removed() {
        Ok(()) => Hello::Ready.say(),
        Err(e) => Hello::Failed(e.to_string()).say(),
    }
    ExitCode::SUCCESS
}

/// Waits until `weft up` has given this its users. What follows on standard input is the node's: not an octet more is read.
fn mapped() -> bool {
    let mut octet = [0];
    matches!(nix::unistd::read(io::stdin().as_fd(), &mut octet), Ok(1))
}

/// Why the kernel refuses namespaces, and what to do.
fn refused(error: Errno) -> Error {
    let read = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    Error::new(explain(error, needs_user_namespace(), read))
}

/// As [`refused`]; `setting` answers a kernel parameter, if the kernel has it.
fn explain(error: Errno, ordinary: bool, setting: impl Fn(&str) -> Option<String>) -> String {
    if !ordinary {
        return format!(
            "cannot make namespaces ({error}), although this is root: it lacks the capability SYS_ADMIN here"
        );
    }
    let switches =
        [("kernel/apparmor_restrict_unprivileged_userns", "1", "0"), ("kernel/unprivileged_userns_clone", "0", "1")];
    for (name, forbids, allows) in switches {
        if setting(name).is_some_and(|value| value.trim() == forbids) {
            let name = name.replace('/', ".");
            return format!(
                "this machine lets only root make namespaces ({name} is {forbids}): \
                 allow it with `sudo sysctl {name}={allows}`, or run weft as root"
            );
        }
    }
    if error == Errno::ENOSPC {
        return "this machine has no namespaces left: raise user.max_user_namespaces and its kind with \
                `sudo sysctl`, or run weft as root"
            .into();
    }
    format!("the kernel refuses namespaces ({error}), as it does inside many containers: run weft as root, or outside")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_namespaces_is_named_with_what_allows_them() {
        let only = |wanted: &'static str, value: &'static str| {
            move |name: &str| (name == wanted).then(|| format!("{value}\n"))
        };
        let apparmor = only("kernel/apparmor_restrict_unprivileged_userns", "1");
        let text = explain(Errno::EPERM, true, apparmor);
        assert!(text.contains("`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"), "{text}");
        let debian = only("kernel/unprivileged_userns_clone", "0");
        let text = explain(Errno::EPERM, true, debian);
        assert!(text.contains("`sudo sysctl kernel.unprivileged_userns_clone=1`"), "{text}");
        let allowed = only("kernel/unprivileged_userns_clone", "1");
        assert!(explain(Errno::EPERM, true, allowed).contains("inside many containers"));
        assert!(explain(Errno::ENOSPC, true, allowed).contains("max_user_namespaces"));
        assert!(explain(Errno::EPERM, false, debian).contains("SYS_ADMIN"));
    }
}
