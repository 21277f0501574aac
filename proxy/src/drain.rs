//! Draining: one signal that everybody watches.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

/// Becomes true when the proxy drains. Connections are still accepted; HTTP/2 clients get GOAWAY, HTTP/1 clients
/// `connection: close`, and a data thread returns when its last connection is gone.
pub type DrainRx = watch::Receiver<bool>;

/// Why the proxy drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// `POST /shutdown`.
    Admin,
}

/// Delivers a cause for each signal and each request of the admin server.
pub(crate) struct Causes {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    admin: mpsc::Receiver<()>,
}

impl Causes {
    /// Listens for signals from now on.
    ///
    /// # Errors
    /// The system refuses signal handlers.
    pub(crate) fn new() -> std::io::Result<(Self, mpsc::Sender<()>)> {
        let (tx, admin) = mpsc::channel(1);
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok((Self { terminate, interrupt, admin }, tx))
    }

    /// The next cause.
    pub(crate) async fn next(&mut self) -> Cause {
        tokio::select! {
            Some(()) = self.terminate.recv() => Cause::Terminate,
            Some(()) = self.interrupt.recv() => Cause::Interrupt,
            Some(()) = self.admin.recv() => Cause::Admin,
            else => std::future::pending().await,
        }
    }
}
