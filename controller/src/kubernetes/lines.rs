//! The lines of a body that goes on, as a watch has them.

use super::Error;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use kube::client::Body;

/// Most octets of a line. Objects have at most about three million, by the limits of etcd and of the server.
const MAX_LINE: usize = 16 << 20;

/// Reads lines.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Octets of the buffer that hold no end of line.
    searched: usize,
    ended: bool,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// Lines of this body.
    pub fn new(body: Body) -> Lines {
        Lines { body, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next line that is not empty, without its end; `None` when the body has ended. What came before an end in the
    /// middle of a line is lost: it is no whole event. Giving up in between loses nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            while let Some(line) = self.take() {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return Ok(Some(line));
                }
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                    if self.buffer.len() > MAX_LINE && !self.buffer.contains(&b'\n') {
                        return Err(Error::Malformed(format!("a line of more than {MAX_LINE} octets")));
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Err(Error::Transport(super::causes(&error)));
                }
                None => self.ended = true,
            }
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_whole_and_not_empty() {
        let mut lines = Lines::new(Body::from(b"{\"a\":1}\n\n  \r\nsecond\nhalf".to_vec()));
        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(lines.next().await.unwrap(), None);
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused() {
        let mut lines = Lines::new(Body::from(vec![b'x'; MAX_LINE + 1]));
        assert!(matches!(lines.next().await, Err(Error::Malformed(_))));
    }
}
