//! Log lines on their way to standard error, which may be a pipe that nobody reads, or a full disk.
//!
//! Whoever logs puts the line into a buffer of bounded size and goes on; a thread of its own writes. What does not fit, or
//! cannot be written, is dropped and counted, and the number is told once lines can be written again.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Octets that wait to be written. With them, about as many may be on their way into the file.
const LIMIT: usize = 256 * 1024;
/// A buffer that has become larger than this is not kept.
const KEPT: usize = 16 * 1024;
/// Stack of the writing thread. Unoptimised code needs more.
const STACK: usize = if cfg!(debug_assertions) { 1024 * 1024 } else { 128 * 1024 };

/// Takes lines without waiting.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There are lines.
    some: Condvar,
    /// All lines are written.
    none: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Some have been taken and are not written yet.
    writing: bool,
    /// Lines dropped since that was told last.
    lost: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Starts the thread that writes to `out`. `tell` logs that lines were lost; it is called on that thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(out: impl Write + Send + 'static, tell: fn(u64)) -> io::Result<Self> {
        let lines = Self(Arc::default());
        let shared = lines.0.clone();
        thread::Builder::new().name("log".into()).stack_size(STACK).spawn(move || write(&shared, out, tell))?;
        Ok(lines)
    }

    /// Waits until everything is written, but not longer than that: nobody may ever read it.
    pub fn flush(&self, limit: Duration) {
        let state = self.0.lock();
        drop(self.0.none.wait_timeout_while(state, limit, |s| s.writing || !s.waiting.is_empty()));
    }
}

/// Writes for as long as the process lives.
fn write(shared: &Shared, mut out: impl Write, tell: fn(u64)) {
    let mut lines = Vec::new();
    loop {
        let mut state = shared.lock();
        state.writing = false;
        if state.waiting.is_empty() {
            shared.none.notify_all();
        }
        while state.waiting.is_empty() {
            state = shared.some.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writing = true;
        std::mem::swap(&mut state.waiting, &mut lines);
        drop(state);

        let unwritten = write_all(&mut out, &lines);
        lines.clear();
        if lines.capacity() > KEPT {
            lines = Vec::new();
        }
        let mut state = shared.lock();
        state.lost += unwritten;
        let told = if unwritten == 0 { std::mem::take(&mut state.lost) } else { 0 };
        drop(state);
        if told > 0 {
            tell(told);
        }
    }
}

/// Writes as much as possible: the number of lines that could not be written.
fn write_all(out: &mut impl Write, mut octets: &[u8]) -> u64 {
    while !octets.is_empty() {
        match out.write(octets) {
            Ok(n @ 1..) => octets = octets.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return octets.iter().filter(|o| **o == b'\n').count() as u64,
        }
    }
    0
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// Takes one line.
pub struct Line<'a>(&'a Shared);

impl Write for Line<'_> {
    /// The line has been formatted already, and is given at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.waiting.len() + line.len() > LIMIT {
            state.lost += 1;
        } else {
            state.waiting.extend_from_slice(line);
            self.0.some.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Hands over what is written, piece by piece, and is told whether that went well.
    struct Slow(SyncSender<Vec<u8>>, Receiver<bool>);

    impl Write for Slow {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(octets.to_vec());
            if self.1.recv() == Ok(true) { Ok(octets.len()) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Slow, Receiver<Vec<u8>>, SyncSender<bool>) {
        let (written_tx, written) = sync_channel(0);
        let (go, go_rx) = sync_channel(0);
        (Slow(written_tx, go_rx), written, go)
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_nobody_waits() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let count = |n| {
            LOST.fetch_add(n, Ordering::SeqCst);
        };
        let (out, written, go) = slow();
        let lines = Lines::start(out, count).unwrap();
        let log = |line: &str| lines.make_writer().write_all(line.as_bytes()).unwrap();
        log("first\n");
        assert_eq!(written.recv_timeout(LONG).unwrap(), b"first\n");
        // From here on nothing is written until it is allowed.
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..LIMIT / line.len() + 7 {
            log(&line);
        }
        lines.flush(Duration::from_millis(1));
        go.send(true).unwrap();
        assert_eq!(written.recv_timeout(LONG).unwrap().len(), LIMIT, "as much as fits");
        assert_eq!(LOST.load(Ordering::SeqCst), 7);
        go.send(true).unwrap();
        lines.flush(LONG);
        log("last\n");
        assert_eq!(written.recv_timeout(LONG).unwrap(), b"last\n");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let count = |n| {
            LOST.fetch_add(n, Ordering::SeqCst);
        };
        let (out, written, go) = slow();
        let lines = Lines::start(out, count).unwrap();
        let log = |line: &str| lines.make_writer().write_all(line.as_bytes()).unwrap();
        log("one\n");
        assert_eq!(written.recv_timeout(LONG).unwrap(), b"one\n");
        log("two\n");
        log("three\n");
        go.send(false).unwrap();
        assert_eq!(written.recv_timeout(LONG).unwrap(), b"two\nthree\n");
        go.send(false).unwrap();
        lines.flush(LONG);
        assert_eq!(LOST.load(Ordering::SeqCst), 0, "nobody would read that");
        log("four\n");
        assert_eq!(written.recv_timeout(LONG).unwrap(), b"four\n");
        go.send(true).unwrap();
        lines.flush(LONG);
        assert_eq!(LOST.load(Ordering::SeqCst), 3);
    }
}
