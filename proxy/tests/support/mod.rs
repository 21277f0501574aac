//! The whole-proxy harness: a fake control plane made of `linkerd2-proxy-api` alone, real proxies as child processes,
//! and pods as network namespaces. Everything is removed on drop, and nothing has a fixed name, so tests run in parallel.
//!
//! ```ignore
//! let mesh = Mesh::two_pods();                     // client and server pod, each with a ready proxy
//! let app = mesh.server.listen(mesh.app_port);     // the application behind the server's proxy
//! let conn = mesh.client.connect(mesh.vip);        // an application's connection, redirected through both proxies
//! assert!(mesh.client.metrics().contains("server_id="));
//! ```
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of the harness")]

use std::{
    io::{self, Read as _},
    net::TcpStream,
    time::{Duration, Instant},
};

pub mod app;
pub mod background;
pub mod bless;
pub mod control;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod policies;
pub mod proxy;

pub use background::Background;
pub use control::FakeControl;
pub use load::{Load, Speak};
pub use mesh::{Mesh, Pod};
pub use netns::Netns;
pub use proxy::Proxy;

/// How long anything may take before a test fails. Generous: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Tries until there is a result; fails the test at the deadline, saying what was waited for.
#[allow(clippy::disallowed_methods, reason = "polls in a test's own thread")]
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads once. A process that was stopped for a moment, as happens to whole machines, has its reads interrupted.
pub fn read(stream: &mut TcpStream, octets: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(octets) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
