//! The way down: SIGTERM or SIGINT is announced to everything that serves; what is open ends, then the process.

use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long open exchanges may take to end after the signal.
pub const GRACE: Duration = Duration::from_secs(10);

/// Tells when to end.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<bool>);

/// Gives the signal to end.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A drain and what triggers it.
pub fn channel() -> (Trigger, Drain) {
    let (tx, rx) = watch::channel(false);
    (Trigger(tx), Drain(rx))
}

impl Trigger {
    /// Gives the signal.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Drain {
    /// Returns when it is time to end.
    pub async fn signaled(&self) {
        let mut rx = self.0.clone();
        // A trigger that is gone means the same as one that fired.
        let _ = rx.wait_for(|ended| *ended).await;
    }
}

/// Waits for SIGTERM or SIGINT and gives its name.
///
/// # Errors
/// When signals cannot be received.
pub async fn terminated() -> std::io::Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
