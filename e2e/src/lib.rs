//! What the end-to-end tests share: a cluster of their own from the binaries that were just built, its processes as the
//! machine sees them, and packets from its bridge.
//!
//! Nothing here measures time. Tests wait for conditions, with a deadline that only a broken mesh reaches.

mod cluster;
mod demo;
mod interop;
mod kubernetes;
mod packets;
mod processes;
mod report;
mod samples;
mod traffic;
mod user;

pub use cluster::{Cluster, Foreground, PROGRAMS, Ran, binaries, manifest, run, weft};
pub use demo::demo;
pub use interop::Interop;
pub use kubernetes::{Kubernetes, kubernetes_dir};
pub use packets::{Capture, Packet};
pub use processes::{Process, Usage};
pub use report::{Account, REPORT_PORT, Report};
pub use samples::{Sample, Samples};
pub use traffic::{CLIENT, NAMESPACE, Traffic};
pub use user::{Stage, User};

use std::time::{Duration, Instant};

/// How long a condition may take to come true on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Asks again and again until the answer is `Ok`, and gives up with the last reason at the [`DEADLINE`].
///
/// # Errors
///
/// With what was waited for and why it is not there.
#[allow(clippy::disallowed_methods, reason = "tests are ordinary threads; this is their way to poll")]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > DEADLINE => {
                return Err(error.context(format!("{what}: not after {DEADLINE:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
