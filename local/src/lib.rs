//! The one-machine cluster: ordinary Kubernetes manifests run as plain processes, each pod in a network namespace with
//! an IP of its own, with cluster DNS, service IPs, tokens, volumes, probes and restarts, and nothing left behind.
//!
//! - Commands: [`up`], [`down`], [`apply`], [`delete`], [`ps`], [`logs`], [`exec`], each with its clap arguments in
//!   [`args`]. They print to stdout and stderr themselves and answer the exit code.
//! - [`internal`] must be the first thing that `main` calls, while there is only one thread: the program re-executes
//!   itself (`/proc/self/exe`) for the node, the pods and the containers.
//! - [`client::Client`] is how other commands reach the running cluster.
//!
//! Processes: `weft up` (or its background process) starts a launcher, which makes network, mount, PID, UTS and IPC
//! namespaces, for an ordinary user in a user namespace, and starts the node in them; `weft up` holds the node's lifeline.
//! The node starts one holder a pod, in namespaces nested in its own; the holder starts the
//! containers. No namespace has a name and nothing is mounted outside them, so when the node ends, for whatever reason,
//! the kernel removes everything. Pods have no way out to the host's network: none is needed, and nothing of the host is
//! changed. Containers are no security boundary: they see the machine's files, read-only in effect.

pub mod args;
mod cgroup;
pub mod client;
mod commands;
mod container;
mod dns_forward;
mod error;
mod files;
mod follow;
mod host;
mod ids;
mod launch;
mod manifests;
mod node;
mod pod;
mod proto;
pub mod rundir;
mod system;
mod table;
pub mod unverified;

pub use commands::{Options, apply, delete, down, down_at, exec, logs, ps, up, up_with};
pub use error::Error;

use std::process::ExitCode;

/// Runs one of the hidden roles (launcher, node, pod, container, host, remover) when the command line asks for it, and answers its exit
/// code; `None` for every ordinary command line. Call it first in `main`, before any thread or runtime exists.
pub fn internal() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next()?.to_str()? {
        system::role::LAUNCH => Some(launch::main()),
        system::role::REMOVE => Some(launch::remove_main(arguments.next().as_deref())),
        system::role::NODE => Some(node::main()),
        system::role::POD => Some(pod::main(arguments.next().as_deref())),
        system::role::CONTAINER => Some(container::main(arguments.next().as_deref())),
        system::role::HOST => Some(host::main()),
        _ => None,
    }
}
