//! What travels over `api.sock`: one JSON message asks, one answers, each behind its length in four octets; `dial`, `logs`, `exec` and `resolver` then go
//! on with bytes of their own.

use crate::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A request may be as long as a large directory of manifests.
const MESSAGE_LIMIT: usize = 64 << 20;

/// One manifest document, with where it was written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    pub file: String,
    pub index: usize,
    pub value: Value,
}

/// What a client asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Create or change objects, all or none. Answers `Vec<Outcome>`.
    Apply { documents: Vec<Document>, namespace: String },
    /// Delete objects and wait until they are gone. Answers `Vec<Outcome>`.
    Delete { documents: Vec<Document>, namespace: String, ignore_not_found: bool },
    /// Objects of one kind. Answers `Vec<Value>`.
    Objects { kind: String, namespace: Option<String> },
    /// Answers a [`Readiness`] as soon as its version is later than `since`.
    Readiness { since: u64 },
    /// A TCP connection made inside the cluster: after the answer the stream is that connection.
    Dial { namespace: String, target: String, port: u16 },
    /// What a container printed: after the answer its bytes follow until the end.
    Logs { namespace: String, pod: String, container: Option<String>, follow: bool, tail: Option<usize> },
    /// Run a command in a container: after the answer the stream carries [`frame`]s.
    Exec { namespace: String, pod: String, container: Option<String>, command: Vec<String>, stdin: bool },
    /// The host offers to resolve names outside the cluster: after the answer the stream carries DNS messages in frames.
    Resolver,
    /// End the cluster; answered when everything has been told to end.
    Shutdown,
}

/// The first line of every answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Ok(Value),
    Error { message: String, code: u8 },
}

/// What happened to one object, as kubectl prints it: `deployment.apps/web created`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub object: String,
    pub verb: String,
}

/// How far the cluster is from having everything that was asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Readiness {
    /// Grows with every change of any object.
    pub version: u64,
    /// Pods that are ready, or that have completed.
    pub ready: usize,
    /// Pods that there should be.
    pub wanted: usize,
    /// What is missing, one sentence each; empty when everything is ready.
    pub missing: Vec<String>,
    /// Whether something that is missing has failed for good, so that waiting is no use.
    pub hopeless: bool,
    /// Last lines of the logs of containers that fail, each after a heading.
    pub details: Vec<String>,
}

/// Kinds of frames of an `exec`: one octet, then the length in four octets (big-endian), then the bytes.
pub(crate) mod frame {
    /// Client to node: bytes of standard input; an empty frame ends it.
    pub const STDIN: u8 = 0;
    /// Node to client: bytes of standard output.
    pub const STDOUT: u8 = 1;
    /// Node to client: bytes of standard error.
    pub const STDERR: u8 = 2;
    /// Node to client: the exit code in one octet; nothing follows.
    pub const EXIT: u8 = 3;
    /// Node to client: why the command could not be run; nothing follows.
    pub const FAILED: u8 = 4;
    /// A DNS message, behind four octets that pair question and answer.
    pub const DNS: u8 = 5;
    /// Longest frame.
    pub const LIMIT: usize = 1 << 20;
}

/// Reads one JSON message; `None` at the end of the stream.
pub(crate) async fn receive<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Sends one JSON message.
pub(crate) async fn send<W: AsyncWrite + Unpin, T: Serialize>(stream: &mut W, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "too long"))?;
    let mut bytes = Vec::with_capacity(body.len() + 4);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await
}

/// Reads the answer's first message.
pub(crate) async fn answer<R: AsyncRead + Unpin, T: DeserializeOwned>(stream: &mut R) -> Result<T, Error> {
    let lost = |why: &dyn std::fmt::Display| Error::new(format!("the cluster ended the conversation: {why}"));
    let body = receive(stream).await.map_err(|e| lost(&e))?.ok_or_else(|| lost(&"it may have stopped"))?;
    match serde_json::from_slice(&body).map_err(|e| lost(&e))? {
        Answer::Ok(value) => serde_json::from_value(value).map_err(|e| lost(&e)),
        Answer::Error { message, code } => Err(Error::new(message).with_code(code)),
    }
}

/// Writes one frame.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(stream: &mut W, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "too long"))?;
    let mut whole = Vec::with_capacity(bytes.len() + 5);
    whole.push(kind);
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(bytes);
    stream.write_all(&whole).await
}

/// Reads one frame; `None` at the end of the stream.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let [kind, a, b, c, d] = head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > frame::LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some((kind, body)))
}
