//! The one-machine cluster: ordinary Kubernetes manifests run as plain processes, each pod in a network namespace with
//! an IP of its own, with cluster DNS, service IPs, tokens, volumes, probes and restarts, and nothing left behind.
//!
//! - Commands: [`up`], [`down`], [`apply`], [`delete`], [`ps`], [`logs`], [`exec`], each with its clap arguments in
//!   [`args`]. They print to stdout and stderr themselves and answer the exit code.
//! - [`internal`] must be the first thing that `main` calls, while there is only one thread: the program re-executes
//!   itself (`/proc/self/exe`) for the node, the pods and the containers.
//! - [`client::Client`] is how other commands reach the running cluster.

pub mod args;
pub mod client;
mod error;

pub use error::Error;

use std::process::ExitCode;

/// Runs one of the hidden roles (node, pod, container, host) when the command line asks for it, and answers its exit
/// code; `None` for every ordinary command line. Call it first in `main`, before any thread or runtime exists.
pub fn internal() -> Option<ExitCode> {
    None
}

/// `weft up`: starts the cluster, applies the files, waits until everything is ready, then stays until Ctrl-C, or
/// returns with `--detach`.
pub async fn up(args: args::Up) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}

/// `weft down`: stops the cluster and removes what a crashed one left.
pub async fn down(args: args::Down) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}

/// `weft apply -f`: creates and changes objects, all or none.
pub async fn apply(args: args::Apply) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}

/// `weft delete -f`: deletes the objects that the files name.
pub async fn delete(args: args::Delete) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}

/// `weft ps`: the table of pods.
pub async fn ps(args: args::Ps) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}

/// `weft logs`: what a container printed.
pub async fn logs(args: args::Logs) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}

/// `weft exec`: runs a command in a container's namespaces; answers its exit code.
pub async fn exec(args: args::Exec) -> Result<ExitCode, Error> {
    let _ = args;
    Err(Error::new("the cluster is not built yet"))
}
