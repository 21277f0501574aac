//! What containers print: read from a FIFO, kept in a file with a bound, followed by `weft logs -f`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// A file is put aside when it has this many octets; the one put aside before goes. So twice this is kept.
const FILE_LIMIT: u64 = 8 << 20;

/// The log of one container, over all its restarts.
pub(crate) struct Log {
    path: PathBuf,
    /// Octets written in all; the file holds the last of them.
    written: watch::Sender<Position>,
}

/// How far a log has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    /// Counts the files put aside.
    file: u64,
    /// Octets in the current file.
    length: u64,
    /// Nothing more will come.
    ended: bool,
}

impl Log {
    /// The log in a file.
    pub(crate) fn new(path: PathBuf) -> Rc<Log> {
        let (written, _) = watch::channel(Position::default());
        Rc::new(Log { path, written })
    }

    /// Copies what comes from a FIFO until it ends. A disk that is full loses lines, and the container goes on.
    pub(crate) async fn copy(self: Rc<Self>, mut from: pipe::Receiver) {
        let mut buffer = vec![0; 16 << 10];
        let mut file = open(&self.path);
        loop {
            let n = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(n) => n,
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            if file.is_err() {
                file = open(&self.path);
            }
            match file.as_mut().map(|f| f.write_all(bytes)) {
                Ok(Ok(())) => self.advance(n as u64, &mut file),
                _ => file = open(&self.path),
            }
        }
    }

    fn advance(&self, n: u64, file: &mut io::Result<File>) {
        let full = {
            let position = self.written.borrow();
            position.length + n >= FILE_LIMIT
        };
        if full && fs::rename(&self.path, aside(&self.path)).is_ok() {
            *file = open(&self.path);
            self.written.send_modify(|p| {
                p.file += 1;
                p.length = 0;
            });
        } else {
            self.written.send_modify(|p| p.length += n);
        }
    }

    /// Nothing more will come; followers end.
    pub(crate) fn end(&self) {
        self.written.send_modify(|p| p.ended = true);
    }

    /// The last lines, as text.
    pub(crate) fn last_lines(&self, lines: usize) -> String {
        let start = tail_start(&self.path, lines).unwrap_or(0);
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.path)
            && file.seek(SeekFrom::Start(start)).is_ok()
        {
            // Half of it is better than nothing.
            let _ = file.take(64 << 10).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes the log, all of it or its last lines, and what comes from now on if `follow`.
    pub(crate) async fn send<W: AsyncWrite + Unpin>(
        &self,
        to: &mut W,
        tail: Option<usize>,
        follow: bool,
    ) -> io::Result<()> {
        let mut changes = self.written.subscribe();
        let mut at = *changes.borrow_and_update();
        let mut offset = 0;
        match tail {
            Some(lines) => offset = tail_start(&self.path, lines)?,
            None if at.file > 0 => copy_file(&aside(&self.path), 0, to).await.map(drop)?,
            None => {}
        }
        loop {
            offset += copy_file(&self.path, offset, to).await?;
            if !follow || at.ended {
                return Ok(());
            }
            if changes.changed().await.is_err() {
                return Ok(());
            }
            let now = *changes.borrow_and_update();
            if now.file != at.file {
                copy_file(&aside(&self.path), offset, to).await?;
                offset = 0;
            }
            at = now;
        }
    }
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

async fn copy_file<W: AsyncWrite + Unpin>(path: &Path, from: u64, to: &mut W) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    file.seek(SeekFrom::Start(from))?;
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(copied);
        }
        to.write_all(buffer.get(..n).unwrap_or_default()).await?;
        copied += n as u64;
    }
}

/// Where the last `lines` lines of a file begin.
fn tail_start(path: &Path, lines: usize) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut end = file.seek(SeekFrom::End(0))?;
    let length = end;
    let mut missing = lines;
    let mut buffer = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let part = buffer.get_mut(..usize::try_from(end - start).unwrap_or(0)).unwrap_or_default();
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (i, byte) in part.iter().enumerate().rev() {
            let at = start + i as u64;
            if *byte == b'\n' && at + 1 != length {
                if missing <= 1 {
                    return Ok(if lines == 0 { length } else { at + 1 });
                }
                missing -= 1;
            }
        }
        end = start;
    }
    Ok(if lines == 0 { length } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        fs::write(&path, "a\nb\nc\n").unwrap();
        for (lines, start) in [(0, 6), (1, 4), (2, 2), (3, 0), (9, 0)] {
            assert_eq!(tail_start(&path, lines).unwrap(), start, "{lines}");
        }
        let log = Log::new(path);
        assert_eq!(log.last_lines(2), "b\nc\n");
    }
}
