//! Sockets: listeners, their options, and where a redirected connection was meant to go.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::FutureExt as _;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
};

use crate::config::ProxySide;

/// Finds the address that the client of an accepted connection dialled. Tests, which have no redirection, bring their own.
pub type OriginalDst = fn(&TcpStream) -> io::Result<SocketAddr>;

/// Set once a connection was accepted.
static USED: AtomicBool = AtomicBool::new(false);

/// Accept queue when the configuration names none; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A peer that has ended its side is asked so often whether it is still there. One that has only ended its side answers; of
/// one that has closed, the system forgets the connection after a minute, and answers with a reset.
const PROBE: Duration = Duration::from_secs(15);

/// An accepted connection.
pub struct Accepted {
    /// The socket, with its options set.
    pub stream: TcpStream,
    /// The client.
    pub client: SocketAddr,
    /// Where the client meant to go.
    pub original: SocketAddr,
}

/// Binds a listener. With `shared`, several threads bind the same address and the kernel spreads connections over them.
///
/// # Errors
/// What the system says.
pub fn listen(addr: SocketAddr, side: &ProxySide, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(side.backlog.map_or(BACKLOG, |n| i32::try_from(n).unwrap_or(BACKLOG)))?;
    TcpListener::from_std(socket.into())
}

/// Accepts the next connection. A connection that dies before its options are set is not an error of the listener: the
/// next one is waited for.
///
/// # Errors
/// What the system says about the listener, such as that file descriptors have run out.
pub async fn accept(listener: &TcpListener, side: &ProxySide, original: OriginalDst) -> io::Result<Accepted> {
    loop {
        let (stream, client) = listener.accept().await?;
        if !USED.load(Ordering::Relaxed) {
            USED.store(true, Ordering::Relaxed);
        }
        let options = set_options(&stream, side.accept_keepalive, side.accept_user_timeout);
        match options.and_then(|()| original(&stream)) {
            Ok(original) => return Ok(Accepted { stream, client: canonical(client), original: canonical(original) }),
            Err(error) => tracing::debug!(%client, %error, "connection lost before it could be served"),
        }
    }
}

/// True when the system has no file descriptor, or no memory, for another socket.
pub fn is_exhausted(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// A file descriptor kept for the moment when there is no other: it is given up to accept a connection, so that its client
/// can be told instead of being left in the accept queue.
#[derive(Debug)]
pub struct Spare(Option<File>);

impl Spare {
    /// Takes one.
    pub fn take() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Accepts a connection that is not to be served: its client and where it meant to go. None when nobody waits, or
    /// when the descriptor went to somebody else. The connection is reset.
    pub fn shed(&mut self, listener: &TcpListener, original: OriginalDst) -> Option<(SocketAddr, Option<SocketAddr>)> {
        self.0 = None;
        // Polled once: this never waits, but has the runtime learn that the queue is empty.
        let accepted = listener.accept().now_or_never();
        let shed = match accepted {
            Some(Ok((stream, client))) => {
                abort_on_close(&stream);
                Some((canonical(client), original(&stream).ok().map(canonical)))
            }
            Some(Err(_)) | None => None,
        };
        *self = Self::take();
        shed
    }

    /// True when there is one.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }
}

/// File descriptors that this process may have.
pub fn max_files() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    // Without an answer the system's own default is assumed.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Sets what every connection has: no delay, keepalive, user timeout.
///
/// # Errors
/// What the system says.
pub fn set_options(stream: &TcpStream, keepalive: Option<Duration>, user_timeout: Option<Duration>) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    if let Some(time) = keepalive.filter(|t| !t.is_zero()) {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time))?;
    }
    if user_timeout.is_some_and(|t| !t.is_zero()) {
        socket.set_tcp_user_timeout(user_timeout)?;
    }
    Ok(())
}

/// Sees a connection break from which nothing is read and to which nothing is written.
pub struct ErrorWatch(TcpStream);

impl ErrorWatch {
    /// Watches a connection by a file descriptor of its own.
    ///
    /// # Errors
    /// There is none left.
    pub fn new(stream: &TcpStream) -> io::Result<Self> {
        SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE))?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        TcpStream::from_std(socket.into()).map(Self)
    }

    /// Waits until the connection breaks: why.
    pub async fn error(&self) -> io::Error {
        match self.0.ready(Interest::ERROR).await {
            Ok(_) => {
                let error = self.0.take_error();
                error.ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
            }
            Err(error) => error,
        }
    }
}

/// Makes closing the socket send a reset: the peer learns that what it got is not all.
pub fn abort_on_close(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The original destination as the kernel's redirection remembers it (SO_ORIGINAL_DST); for a connection that was not
/// redirected, the address it came in on.
///
/// # Errors
/// The connection is gone.
pub fn original_dst(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    let socket = SockRef::from(stream);
    // A dual-stack listener gets IPv4 connections under IPv6 addresses; the kernel keeps their destination with IPv4.
    let answer = match canonical(local).ip() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    Ok(answer.ok().and_then(|a| a.as_socket()).unwrap_or(local))
}

/// True once this process has accepted a connection to be carried: somebody depends on it.
pub fn was_used() -> bool {
    USED.load(Ordering::Relaxed)
}

/// An IPv4 address that is wrapped in IPv6, unwrapped.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_addresses_are_unwrapped() {
        let wrapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(wrapped), "10.0.0.1:80".parse().unwrap());
        let v6: SocketAddr = "[fd00::1]:80".parse().unwrap();
        assert_eq!(canonical(v6), v6);
    }
}
