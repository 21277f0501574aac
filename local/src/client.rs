//! The client of the running cluster: asks the node over the run directory's socket.

use crate::error::Context;
use crate::proto::{self, Document, Outcome, Readiness, Request, frame};
use crate::rundir::RunDir;
use crate::{Error, args};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A running cluster. Every call opens a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    run: RunDir,
}

impl Client {
    /// The cluster of the run directory that the environment names. Fails with one sentence when none runs.
    ///
    /// # Errors
    /// When no cluster runs there.
    pub async fn connect() -> Result<Self, Error> {
        Self::at(RunDir::from_env()?).await
    }

    /// The cluster of a run directory.
    ///
    /// # Errors
    /// When no cluster runs there.
    pub async fn at(run: RunDir) -> Result<Self, Error> {
        let client = Self { run };
        client.open().await?;
        Ok(client)
    }

    /// The cluster's run directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    async fn open(&self) -> Result<UnixStream, Error> {
        match UnixStream::connect(self.run.socket()).await {
            Ok(stream) => Ok(stream),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(Error::new(format!("the cluster in {} belongs to another user", self.run.path().display())))
            }
            Err(_) => {
                let shown = self.run.path().display();
                let advice = if self.run.has_contents() && !self.run.is_held() {
                    "a cluster crashed there; `weft down` cleans up, `weft up` starts anew"
                } else {
                    "start one with `weft up`"
                };
                Err(Error::new(format!("no cluster is running (run directory {shown}): {advice}")))
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<(T, UnixStream), Error> {
        let mut stream = self.open().await?;
        proto::send(&mut stream, request).await.context("the cluster does not listen")?;
        let answer = proto::answer(&mut stream).await?;
        Ok((answer, stream))
    }

    /// A TCP connection made inside the cluster. `target` is `NAME` or `pod/NAME` for a pod, `svc/NAME` for one of a
    /// service's ready endpoints, `deploy/NAME` for one of its pods; the connection stands when this returns.
    ///
    /// # Errors
    /// When there is no such target, or nobody answers there.
    pub async fn dial(&self, namespace: &str, target: &str, port: u16) -> Result<UnixStream, Error> {
        let request = Request::Dial { namespace: namespace.into(), target: target.into(), port };
        let ((), stream) = self.ask(&request).await?;
        Ok(stream)
    }

    /// Current objects of a kind (singular, plural or short name, such as `pods`) as Kubernetes JSON with status, of one
    /// namespace or all, sorted by namespace and name.
    ///
    /// # Errors
    /// When there is no such kind.
    pub async fn objects(&self, kind: &str, namespace: Option<&str>) -> Result<Vec<Value>, Error> {
        let request = Request::Objects { kind: kind.into(), namespace: namespace.map(str::to_owned) };
        Ok(self.ask(&request).await?.0)
    }

    pub(crate) async fn apply(&self, documents: Vec<Document>, namespace: &str) -> Result<Vec<Outcome>, Error> {
        Ok(self.ask(&Request::Apply { documents, namespace: namespace.into() }).await?.0)
    }

    pub(crate) async fn delete(
        &self,
        documents: Vec<Document>,
        namespace: &str,
        ignore_not_found: bool,
    ) -> Result<Vec<Outcome>, Error> {
        Ok(self.ask(&Request::Delete { documents, namespace: namespace.into(), ignore_not_found }).await?.0)
    }

    /// How far the cluster is, as soon as something has changed since a version.
    pub(crate) async fn readiness(&self, since: u64) -> Result<Readiness, Error> {
        Ok(self.ask(&Request::Readiness { since }).await?.0)
    }

    /// Tells the cluster to end, and waits until its pods have.
    pub(crate) async fn shut_down(&self) -> Result<(), Error> {
        self.ask::<()>(&Request::Shutdown).await.map(drop)
    }

    /// Offers to resolve names outside the cluster; DNS messages follow in frames.
    pub(crate) async fn resolver(&self) -> Result<UnixStream, Error> {
        Ok(self.ask::<()>(&Request::Resolver).await?.1)
    }

    /// What a container printed, as a stream of bytes.
    ///
    /// # Errors
    /// When there is no such pod or container.
    pub async fn logs(&self, args: &args::Logs) -> Result<UnixStream, Error> {
        let request = Request::Logs {
            namespace: args.namespace.clone(),
            pod: args.pod.clone(),
            container: args.container.clone(),
            follow: args.follow,
            tail: args.tail,
        };
        Ok(self.ask::<()>(&request).await?.1)
    }

    /// Runs a command in a container. Standard input comes from `stdin` when `args.stdin` is set; output goes to
    /// `stdout` and `stderr`. Answers the exit code.
    ///
    /// # Errors
    /// When there is no such container, or the command cannot be run (exit code 126).
    pub async fn exec<I, O, E>(
        &self,
        args: &args::Exec,
        mut stdin: I,
        mut stdout: O,
        mut stderr: E,
    ) -> Result<u8, Error>
    where
        I: tokio::io::AsyncRead + Unpin,
        O: tokio::io::AsyncWrite + Unpin,
        E: tokio::io::AsyncWrite + Unpin,
    {
        let request = Request::Exec {
            namespace: args.namespace.clone(),
            pod: args.pod.clone(),
            container: args.container.clone(),
            command: args.command.clone(),
            stdin: args.stdin,
        };
        let ((), stream) = self.ask(&request).await?;
        let (mut reader, mut writer) = stream.into_split();
        let pass_stdin = args.stdin;
        let input = async move {
            let mut buffer = vec![0; 32 << 10];
            if pass_stdin {
                loop {
                    let n = stdin.read(&mut buffer).await.unwrap_or(0);
                    let bytes = buffer.get(..n).unwrap_or_default();
                    if proto::write_frame(&mut writer, frame::STDIN, bytes).await.is_err() || n == 0 {
                        break;
                    }
                }
            }
            // The writing half stays open: its end would mean that we have gone.
            std::future::pending::<()>().await;
            drop(writer);
        };
        let output = async {
            loop {
                match proto::read_frame(&mut reader).await.context("the cluster ended the command")? {
                    Some((frame::STDOUT, bytes)) => stdout.write_all(&bytes).await.context("standard output")?,
                    Some((frame::STDERR, bytes)) => stderr.write_all(&bytes).await.context("standard error")?,
                    Some((frame::EXIT, bytes)) => {
                        stdout.flush().await.context("standard output")?;
                        stderr.flush().await.context("standard error")?;
                        return Ok(bytes.first().copied().unwrap_or(255));
                    }
                    Some((frame::FAILED, bytes)) => return Err(Error::new(String::from_utf8_lossy(&bytes))),
                    Some(_) => {}
                    None => return Err(Error::new("the cluster ended before the command did")),
                }
            }
        };
        tokio::select! {
            result = output => result,
            () = input => Err(Error::new("standard input ended the command")),
        }
    }
}
