//! Draining: one signal that everybody watches, and how the proxy knows that its application has ended.

use std::{collections::HashSet, fs, io, path::Path, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::sleep,
};

/// How far the end of the proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It is not ending.
    Running,
    /// Connections are still accepted, as the application may need some to finish its work. HTTP/2 clients get GOAWAY,
    /// HTTP/1 clients `connection: close`.
    Draining,
    /// The application needs nothing any more: a data thread returns when its last connection is gone.
    Ending,
}

/// Tells how far the end is. It never goes back.
pub type DrainRx = watch::Receiver<Phase>;

/// How often it is looked whether the application has ended.
const LOOK: Duration = Duration::from_millis(100);
/// Looks in a row that must find nothing: an application may have no socket for a moment, between two connections.
const LOOKS: u32 = 3;

/// Why the proxy drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// SIGTERM: the whole pod ends, and the application takes as long as it takes.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// `POST /shutdown`: whoever asks knows that the application has done its work.
    Admin,
}

impl Cause {
    /// True when the application may still be at work.
    pub(crate) fn awaits_application(self) -> bool {
        self == Self::Terminate
    }
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
    pub(crate) fn new() -> io::Result<(Self, mpsc::Sender<()>)> {
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

/// Waits until nobody else in this network namespace, which is the pod's, has a TCP socket: who has none neither serves nor
/// asks. A proxy need not see its pod's processes to know that.
pub(crate) async fn application_ended() {
    let mut quiet = 0;
    while quiet < LOOKS {
        quiet = match others_have_sockets(Path::new("/proc/self")) {
            Ok(true) => 0,
            Ok(false) => quiet + 1,
            Err(error) => {
                tracing::warn!(%error, "cannot see the pod's sockets; not waiting for the application");
                return;
            }
        };
        sleep(LOOK).await;
    }
}

/// True when a process other than this one (`proc` is its directory) holds a TCP socket in its network namespace.
fn others_have_sockets(proc: &Path) -> io::Result<bool> {
    // Ours are listed first: one that is closed in between is in neither list, one that is made is in the second only.
    // Then this looks again, later.
    let own: HashSet<u64> = fs::read_dir(proc.join("fd"))?
        .filter_map(|entry| {
            let target = fs::read_link(entry.ok()?.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect();
    let mut held = held_sockets(&fs::read_to_string(proc.join("net/tcp"))?);
    // Without IPv6 there is no such file.
    if let Ok(table) = fs::read_to_string(proc.join("net/tcp6")) {
        held.extend(held_sockets(&table));
    }
    Ok(held.iter().any(|inode| !own.contains(inode)))
}

/// Inodes of a table's sockets, without those that no process holds any more (such as in TIME_WAIT).
fn held_sockets(table: &str) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(9)?.parse().ok())
        .filter(|inode| *inode != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:102F 00000000:0000 0A 00000000:00000000 00:00000000 00000000  2102        0 7001 1 0000000000000000 100 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7002 1 0000000000000000 100 0
   2: 0100007F:1F90 0100007F:9C40 06 00000000:00000000 03:00000FA0 00000000     0        0 0 3 0000000000000000
";

    #[test]
    fn sockets_that_somebody_holds() {
        assert_eq!(held_sockets(TABLE), [7001, 7002]);
        assert_eq!(held_sockets("nonsense\nmore nonsense\n"), [0u64; 0]);
    }

    #[test]
    fn own_sockets_are_not_the_applications() {
        let dir = tempfile::tempdir().unwrap();
        let (fd, net) = (dir.path().join("fd"), dir.path().join("net"));
        fs::create_dir(&fd).unwrap();
        fs::create_dir(&net).unwrap();
        fs::write(net.join("tcp"), TABLE).unwrap();
        let own = |number: &str, inode: u64| {
            std::os::unix::fs::symlink(format!("socket:[{inode}]"), fd.join(number)).unwrap();
        };
        own("3", 7001);
        std::os::unix::fs::symlink("/dev/null", fd.join("0")).unwrap();
        assert!(others_have_sockets(dir.path()).unwrap());
        own("4", 7002);
        assert!(!others_have_sockets(dir.path()).unwrap());
    }
}
