//! One connection's transport: the socket, TLS when there is any, and what waits to be written.
//!
//! Everything here is for one thread. The task that owns a connection polls [`Io::poll_read`] and [`Io::poll_flush`];
//! any other task of the thread may [`Io::write`], and wakes the owner when the socket did not take it all.
//!
//! Read buffers are shared by all connections of a thread and write buffers come from a small pool, so that a connection
//! which has nothing to say owns no buffer.

use std::{
    cell::{Cell, RefCell},
    future::Future as _,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _},
    net::TcpStream,
};
use weft_wire::tls::Session;

use crate::{metrics::TcpConnection, net};

/// Octets read from a socket at once.
const READ_SIZE: usize = 64 * 1024;
/// Write buffers kept per thread.
const SPARE_BUFFERS: usize = 32;
/// Largest write buffer kept; larger ones are given back to the system.
const SPARE_SIZE: usize = 128 * 1024;

thread_local! {
    static READ: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer, from the thread's pool if there is one.
pub fn take_buffer() -> Vec<u8> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives a buffer's memory to the thread's pool.
pub fn give_buffer(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > SPARE_SIZE {
        return;
    }
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

/// The thread's read buffers, taken for the length of one turn.
#[derive(Default)]
struct Buffers {
    plain: Vec<u8>,
    sealed: Vec<u8>,
}

/// Plaintext that was read. Its memory goes back to the thread when this is dropped.
pub struct Input(Option<Box<Buffers>>);

impl Input {
    /// An empty input with room for one read.
    pub fn take() -> Self {
        let mut buffers = READ.take().unwrap_or_default();
        buffers.plain.clear();
        Self(Some(buffers))
    }

    /// The octets.
    pub fn octets(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |b| &b.plain)
    }

    /// The octets, to append to or to shorten.
    pub fn plain(&mut self) -> &mut Vec<u8> {
        &mut self.0.get_or_insert_default().plain
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let Some(mut buffers) = self.0.take() else { return };
        // A large burst does not stay.
        if buffers.plain.capacity() > 4 * READ_SIZE {
            buffers.plain = Vec::new();
        }
        READ.set(Some(buffers));
    }
}

struct Inner {
    stream: TcpStream,
    tls: Option<Box<Session>>,
    /// An incomplete TLS record.
    sealed: Vec<u8>,
    /// Plaintext that was read before this connection had its owner.
    early: Vec<u8>,
    /// What the socket did not take yet, from `at` on.
    out: Vec<u8>,
    at: usize,
    /// The first error of a write. What is written after it is dropped.
    broken: Option<io::ErrorKind>,
    meter: Option<TcpConnection>,
}

/// A connection's transport.
pub struct Io {
    inner: RefCell<Inner>,
    peer: SocketAddr,
}

impl Io {
    /// A plain connection.
    pub fn plain(stream: TcpStream, peer: SocketAddr) -> Self {
        let inner = Inner {
            stream,
            tls: None,
            sealed: Vec::new(),
            early: Vec::new(),
            out: Vec::new(),
            at: 0,
            broken: None,
            meter: None,
        };
        Self { inner: RefCell::new(inner), peer }
    }

    /// The other end's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Counts this connection's octets from here on, those that wait to be looked at included.
    pub fn meter(&self, meter: TcpConnection) {
        let mut inner = self.inner.borrow_mut();
        meter.read(inner.early.len() + inner.sealed.len());
        inner.meter = Some(meter);
    }

    /// Records why the connection ended.
    pub fn failed(&self, error: &io::Error) {
        if let Some(meter) = &mut self.inner.borrow_mut().meter {
            meter.failed(error);
        }
    }

    /// Puts octets back in front of what will be read next.
    pub fn unread(&self, octets: &[u8]) {
        if !octets.is_empty() {
            self.inner.borrow_mut().early.splice(0..0, octets.iter().copied());
        }
    }

    /// Begins TLS. What was read before (and put back by [`Io::unread`]) is its first ciphertext.
    pub fn start_tls(&self, session: Session) {
        let mut inner = self.inner.borrow_mut();
        inner.sealed = std::mem::take(&mut inner.early);
        inner.tls = Some(Box::new(session));
    }

    /// Looks at the TLS session, if there is one.
    pub fn with_tls<T>(&self, look: impl FnOnce(&Session) -> T) -> Option<T> {
        self.inner.borrow().tls.as_deref().map(look)
    }

    /// Runs the TLS handshake to its end.
    ///
    /// # Errors
    /// The peer broke off, or did not convince.
    pub async fn handshake(&self) -> io::Result<()> {
        let mut started = false;
        std::future::poll_fn(|cx| {
            loop {
                let mut input = Input::take();
                let mut inner = self.inner.borrow_mut();
                let inner = &mut *inner;
                ready!(inner.poll_flush(cx))?;
                match &inner.tls {
                    Some(tls) if tls.is_handshaking() => {}
                    _ => return Poll::Ready(Ok(())),
                }
                // The first turn runs on what is there already: nothing for a client, the ClientHello for a server.
                let fill = std::mem::replace(&mut started, true);
                let end = ready!(inner.poll_unseal(cx, &mut input, fill))? == Unsealed::End;
                // The end of the handshake may bring everything that the peer has to say, and its end.
                inner.early.extend_from_slice(input.octets());
                if end && inner.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        })
        .await
    }

    /// Reads once and appends plaintext to `input`: the number of octets, 0 at the proper end.
    ///
    /// # Errors
    /// What the socket or TLS says; the end of a TLS stream without its closing alert is `UnexpectedEof`.
    pub fn poll_read(&self, cx: &mut Context<'_>, input: &mut Input) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.early.is_empty() {
            let early = std::mem::take(&mut inner.early);
            input.plain().extend_from_slice(&early);
            return Poll::Ready(Ok(early.len()));
        }
        if inner.tls.is_none() {
            let plain = input.plain();
            plain.reserve(READ_SIZE);
            let n = ready!(pin!(inner.stream.read_buf(plain)).poll(cx))?;
            inner.count_read(n);
            return Poll::Ready(Ok(n));
        }
        if inner.tls.as_ref().is_some_and(|tls| tls.received_close()) {
            return Poll::Ready(Ok(0));
        }
        let before = input.octets().len();
        loop {
            let end = ready!(inner.poll_unseal(cx, input, true))?;
            let n = input.octets().len() - before;
            if n > 0 || end == Unsealed::End {
                return Poll::Ready(Ok(n));
            }
        }
    }

    /// Writes `plain` and empties it: as much as the socket takes now, the rest later by [`Io::poll_flush`]. True when
    /// nothing is left over.
    pub fn write(&self, plain: &mut Vec<u8>) -> bool {
        self.inner.borrow_mut().write(plain)
    }

    /// Octets that wait for the socket.
    pub fn backlog(&self) -> usize {
        let inner = self.inner.borrow();
        inner.out.len() - inner.at
    }

    /// Continues to write what waits.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().poll_flush(cx)
    }

    /// Writes what waits, then tells the peer that nothing follows.
    ///
    /// # Errors
    /// What the socket says.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        if let Some(tls) = &mut inner.tls {
            // Repeated calls append nothing.
            tls.close(&mut inner.out);
        }
        ready!(inner.poll_flush(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }

    /// True after a write has failed.
    pub fn is_broken(&self) -> bool {
        self.inner.borrow().broken.is_some()
    }

    /// Waits until the peer resets the connection, as it may after it has ended its own side; it is asked now and then
    /// whether it is still there.
    pub async fn reset_by_peer(&self) -> io::Error {
        let watch = net::ErrorWatch::new(&self.inner.borrow().stream);
        match watch {
            Ok(watch) => watch.error().await,
            Err(error) => {
                // Then the next write finds out.
                tracing::debug!(peer = %self.peer, %error, "the end of a connection is not watched for");
                std::future::pending().await
            }
        }
    }

    /// Makes the end of this connection a reset.
    pub fn abort_on_close(&self) {
        net::abort_on_close(&self.inner.borrow().stream);
    }
}

#[derive(PartialEq)]
enum Unsealed {
    More,
    End,
}

impl Inner {
    fn count_read(&self, n: usize) {
        if let Some(meter) = &self.meter {
            meter.read(n);
        }
    }

    /// Decrypts, after reading from the socket if `fill`.
    fn poll_unseal(&mut self, cx: &mut Context<'_>, input: &mut Input, fill: bool) -> Poll<io::Result<Unsealed>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(Unsealed::End)) };
        let Some(buffers) = &mut input.0 else { return Poll::Ready(Ok(Unsealed::End)) };
        let Buffers { plain, sealed } = &mut **buffers;
        sealed.clear();
        sealed.extend_from_slice(&self.sealed);
        if fill {
            sealed.reserve(READ_SIZE);
            let n = ready!(pin!(self.stream.read_buf(sealed)).poll(cx))?;
            if n == 0 {
                let proper = tls.received_close() && self.sealed.is_empty();
                return Poll::Ready(if proper { Ok(Unsealed::End) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            if let Some(meter) = &self.meter {
                meter.read(n);
            }
        }
        let result = tls.recv(sealed, plain, &mut self.out);
        let end = tls.received_close();
        self.sealed.clear();
        self.sealed.extend_from_slice(sealed);
        if self.sealed.is_empty() {
            self.sealed = Vec::new();
        }
        self.try_write();
        match result {
            Err(error) => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            Ok(()) if end => Poll::Ready(Ok(Unsealed::End)),
            Ok(()) => Poll::Ready(Ok(Unsealed::More)),
        }
    }

    fn write(&mut self, plain: &mut Vec<u8>) -> bool {
        if self.broken.is_some() {
            plain.clear();
            return true;
        }
        match &mut self.tls {
            Some(tls) => {
                if self.out.capacity() == 0 {
                    self.out = take_buffer();
                }
                if let Err(error) = tls.send(plain, &mut self.out) {
                    tracing::debug!(%error, "TLS cannot send");
                    self.broken = Some(io::ErrorKind::BrokenPipe);
                }
                plain.clear();
            }
            None if self.out.is_empty() => std::mem::swap(&mut self.out, plain),
            None => {
                self.out.extend_from_slice(plain);
                plain.clear();
            }
        }
        let done = self.try_write();
        if done && plain.capacity() == 0 {
            // The caller's buffer was lent to the socket; here it is again.
            std::mem::swap(&mut self.out, plain);
        } else if done {
            give_buffer(std::mem::take(&mut self.out));
        }
        done
    }

    /// Writes what waits, as far as the socket takes it: true when nothing is left.
    fn try_write(&mut self) -> bool {
        while let Some(rest) = self.out.get(self.at..).filter(|r| !r.is_empty()) {
            match self.stream.try_write(rest) {
                Ok(n) => {
                    self.at += n;
                    if let Some(meter) = &self.meter {
                        meter.wrote(n);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.compact();
                    return false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.broken = Some(error.kind());
                    break;
                }
            }
        }
        self.out.clear();
        self.at = 0;
        true
    }

    /// Drops what was written once that is the larger part.
    fn compact(&mut self) {
        if self.at > 64 * 1024 && self.at * 2 > self.out.len() {
            self.out.drain(..self.at);
            self.at = 0;
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.try_write() {
                if self.out.capacity() > 0 {
                    give_buffer(std::mem::take(&mut self.out));
                }
                return Poll::Ready(match self.broken {
                    Some(kind) => Err(kind.into()),
                    None => Ok(()),
                });
            }
            ready!(self.stream.poll_write_ready(cx))?;
        }
    }
}
