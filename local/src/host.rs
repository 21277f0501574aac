//! The host's side of a running cluster: it holds the run directory and the node's lifeline, publishes ports, and
//! resolves names outside the cluster for the pods. `weft up` does it itself, or leaves a background process to do it.

use crate::args::Publish;
use crate::client::Client;
use crate::error::Context;
use crate::follow::Follower;
use crate::node::{Config, Hello};
use crate::proto::{self, frame};
use crate::rundir::{Lock, RunDir};
use crate::system::{self, SELF, role};
use crate::{Error, dns_forward, ids, launch};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// What a cluster is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) node: Config,
    pub(crate) publish: Vec<Publish>,
    /// Directories of manifests to follow.
    pub(crate) follow: Vec<PathBuf>,
}

/// A cluster that this process holds. It ends with this process.
pub(crate) struct Host {
    run: RunDir,
    lock: Lock,
    ended: watch::Receiver<bool>,
    lifeline: Option<std::process::ChildStdin>,
    pub(crate) client: Client,
    _tasks: tokio::task::JoinSet<()>,
}

impl Host {
    /// Takes the run directory, starts the node, serves what is published, and follows directories.
    ///
    /// # Errors
    /// When a cluster already runs there, a port is taken, or the node cannot start.
    pub(crate) async fn start(plan: &Plan) -> Result<Host, Error> {
        let run = RunDir::at(&plan.node.run_dir)?;
        let mut listeners = Vec::new();
        for publish in &plan.publish {
            let listener = TcpListener::bind(("127.0.0.1", publish.host_port)).await;
            listeners.push((
                listener.context(format!("cannot publish at 127.0.0.1:{}", publish.host_port))?,
                publish.clone(),
            ));
        }
        let follower = if plan.follow.is_empty() { None } else { Some(Follower::new(&plan.follow)?) };
        let lock = run.lock()?;
        let (lifeline, ended) = match start_node(&run, &plan.node).await {
            Ok(started) => started,
            Err(e) => {
                let log = std::fs::read_to_string(run.logs().join("node.log")).unwrap_or_default();
                // The cause is what counts; the directory is cleaned the next time otherwise.
                let _ = run.remove(lock);
                let log: Vec<&str> = log.lines().rev().take(5).collect();
                let log: String = log.into_iter().rev().map(|line| format!("\n    {line}")).collect();
                return Err(Error::new(format!("{e}{log}")));
            }
        };
        let client = Client::at(run.clone()).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for (listener, publish) in listeners {
            tasks.spawn(serve_published(listener, publish, client.clone()));
        }
        tasks.spawn(resolve(client.clone()));
        if let Some(follower) = follower {
            tasks.spawn(follower.run(client.clone(), |what| eprintln!("{what}")));
        }
        Ok(Host { run, lock, ended, lifeline: Some(lifeline), client, _tasks: tasks })
    }

    /// Waits until the node has ended.
    pub(crate) async fn ended(&mut self) {
        // An error means that the thread is gone, and with it the node.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// Ends the cluster if it still runs, and removes the run directory.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        let client = self.client.clone();
        tokio::select! {
            () = self.ended() => {}
            shut_down = client.shut_down() => {
                if let Err(e) = shut_down {
                    tracing::debug!(error = %e, "the node did not end by itself");
                }
            }
        }
        drop(self.lifeline.take());
        self.ended().await;
        self.run.remove(self.lock)
    }
}

/// Starts the node by way of the launch role; a thread waits for its end, because the launcher is tied to the thread that
/// started it.
async fn start_node(run: &RunDir, config: &Config) -> Result<(std::process::ChildStdin, watch::Receiver<bool>), Error> {
    let (started, start) = oneshot::channel();
    let (ended, end) = watch::channel(false);
    let log_path = run.logs().join("node.log");
    let log = File::create(&log_path).context(format!("cannot make {}", log_path.display()))?;
    std::thread::Builder::new()
        .name("node".into())
        .spawn(move || {
            let mut command = Command::new(SELF);
            command.arg(role::LAUNCH).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(e) => {
                    let _ = started.send(Err(e));
                    return;
                }
            };
            let pipes = child.stdin.take().zip(child.stdout.take()).map(|(stdin, stdout)| (child.id(), stdin, stdout));
            // The receivers are only gone when this process is about to be.
            let _ = started.send(pipes.ok_or_else(|| std::io::Error::other("no pipes")));
            let _ = child.wait();
            ended.send_replace(true);
        })
        .context("cannot start a thread")?;
    let (pid, mut stdin, stdout) = start.await.context("cannot start the node")?.context("cannot start the node")?;
    let mut stdout = BufReader::new(stdout);
    let mut hello;
    if launch::needs_user_namespace() {
        (hello, stdout) = hear(stdout).await?;
        match hello {
            Hello::Unmapped => {
                ids::give(pid)?;
                stdin.write_all(b"\n").context("the launcher ended at once")?;
            }
            Hello::Failed(why) => return Err(Error::new(why)),
            Hello::Ready => return Err(Error::new("the launcher made no user namespace")),
        }
    }
    let mut line = serde_json::to_vec(config).context("cannot write the configuration")?;
    line.push(b'\n');
    // When the launcher has ended it has said why.
    let told = stdin.write_all(&line);
    (hello, _) = hear(stdout).await?;
    match hello {
        Hello::Ready => told.map(|()| (stdin, end)).context("the node ended at once"),
        Hello::Failed(why) => Err(Error::new(format!("the node cannot start: {why}"))),
        Hello::Unmapped => Err(Error::new("the launcher made a user namespace for root")),
    }
}

/// The next thing that launcher or node say.
async fn hear(mut from: BufReader<ChildStdout>) -> Result<(Hello, BufReader<ChildStdout>), Error> {
    let heard = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        from.read_line(&mut line).map(|_| (line, from))
    });
    let (line, from) = heard.await.context("cannot hear the node")?.context("cannot hear the node")?;
    let hello = serde_json::from_str(&line).map_err(|_| Error::new("the node ended before it was ready"))?;
    Ok((hello, from))
}

async fn serve_published(listener: TcpListener, publish: Publish, client: Client) {
    loop {
        let Ok((mut outside, _)) = listener.accept().await else {
            // No descriptors left; some will be closed.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (client, publish) = (client.clone(), publish.clone());
        tokio::spawn(async move {
            let target = format!("svc/{}", publish.service);
            match client.dial(&publish.namespace, &target, publish.port).await {
                Ok(mut inside) => {
                    // Either side may break off; the other is closed then.
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                }
                Err(e) => tracing::warn!(port = publish.host_port, error = %e, "published port"),
            }
        });
    }
}

/// Answers the pods' questions about names outside the cluster, as long as the cluster lives.
async fn resolve(client: Client) {
    let Ok(stream) = client.resolver().await else { return };
    let (mut reader, mut writer) = stream.into_split();
    let (answers, mut outgoing) = tokio::sync::mpsc::channel::<Vec<u8>>(64);
    let write = async {
        while let Some(body) = outgoing.recv().await {
            if proto::write_frame(&mut writer, frame::DNS, &body).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        while let Ok(Some((frame::DNS, body))) = proto::read_frame(&mut reader).await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let Some((id, question)) = body.split_first_chunk::<4>() else { return };
                if let Some(answer) = dns_forward::ask(question).await {
                    let mut body = id.to_vec();
                    body.extend_from_slice(&answer);
                    // The node may have gone.
                    let _ = answers.send(body).await;
                }
            });
        }
    };
    tokio::select! { () = write => {}, () = read => {} }
}

/// Starts a background process that holds the cluster, and returns when it serves.
///
/// # Errors
/// As [`Host::start`].
pub(crate) async fn start_detached(plan: &Plan) -> Result<(), Error> {
    let mut command = tokio::process::Command::new(SELF);
    command.arg(role::HOST).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start the background process")?;
    if let Some(mut stdin) = child.stdin.take() {
        use tokio::io::AsyncWriteExt;
        let plan = serde_json::to_vec(plan).context("cannot write the plan")?;
        stdin.write_all(&plan).await.context("the background process ended at once")?;
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        use tokio::io::AsyncBufReadExt;
        tokio::io::BufReader::new(stdout).read_line(&mut line).await.context("cannot hear the background process")?;
    }
    match serde_json::from_str(&line) {
        Ok(Hello::Ready) => Ok(()),
        Ok(Hello::Failed(why)) => Err(Error::new(why)),
        Ok(Hello::Unmapped) | Err(_) => Err(Error::new("the background process ended before the cluster was ready")),
    }
}

/// Runs the role of the background process.
pub(crate) fn main() -> ExitCode {
    system::set_process_name(c"weft-up");
    let run = || -> Result<(), Error> {
        // The terminal of `weft up --detach` is not ours.
        nix::unistd::setsid().context("cannot make a session")?;
        let plan: Plan = serde_json::from_reader(std::io::stdin()).context("cannot read the plan")?;
        std::env::set_current_dir("/").context("cannot leave the directory")?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        runtime.block_on(async {
            let mut host = Host::start(&plan).await?;
            Hello::Ready.say();
            // Nobody reads what we print any more.
            let null = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
            nix::unistd::dup2_stdout(&null).context("standard output")?;
            nix::unistd::dup2_stdin(&null).context("standard input")?;
            let log = RunDir::at(&plan.node.run_dir)?.logs().join("up.log");
            nix::unistd::dup2_stderr(File::create(log).context("cannot make a log")?).context("standard error")?;
            tokio::select! {
                () = host.ended() => {}
                () = wait_for_signal() => {}
            }
            host.stop().await
        })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            Hello::Failed(e.to_string()).say();
            ExitCode::FAILURE
        }
    }
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal.
pub(crate) async fn wait_for_signal() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    let any = std::future::poll_fn(|context| {
        // All of them are asked, so that each wakes this task.
        let came = signals.iter_mut().map(|s| s.poll_recv(context)).filter(|p| p.is_ready()).count();
        if came > 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    any.await;
}
