//! What the tests share: network namespaces and an API server, as those of the proxy and of the controller have them.
#![allow(dead_code, reason = "each test file uses a part of it")]

#[path = "../../../controller/tests/support/api_server.rs"]
pub mod api_server;
#[path = "../../../proxy/tests/support/netns.rs"]
pub mod netns;

use std::time::{Duration, Instant};

/// Longer than anything takes on a loaded machine; only a failing test waits this long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Tries until there is a result.
#[allow(clippy::disallowed_methods, reason = "polls in a test's own thread")]
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(begun.elapsed() < DEADLINE, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
