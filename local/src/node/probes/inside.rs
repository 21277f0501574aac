//! Connections that begin in a pod's own network, where nothing leads them to its proxy.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// Connects to an address from within the network of a process.
///
/// # Errors
/// When the process is gone, or nobody listens.
pub(super) async fn connect(pid: u32, address: SocketAddr) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    // A thread of its own: entering a network changes the calling thread. A socket belongs to the network in which it
    // was made, wherever it is used.
    std::thread::Builder::new().name("inside".into()).spawn(move || {
        let make = || {
            let network = File::open(format!("/proc/{pid}/ns/net"))?;
            setns(network, CloneFlags::CLONE_NEWNET)?;
            let _context = runtime.enter();
            TcpSocket::new_v4()
        };
        // A probe that has timed out does not wait for it any more.
        let _ = sender.send(make());
    })?;
    receiver.await.map_err(io::Error::other)??.connect(address).await
}
