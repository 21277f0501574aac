//! Draining: one signal that everybody watches.

use tokio::sync::watch;

/// Becomes true when the proxy drains. Connections are still accepted; HTTP/2 clients get GOAWAY, HTTP/1 clients
/// `connection: close`, and a data thread returns when its last connection is gone.
pub type DrainRx = watch::Receiver<bool>;
