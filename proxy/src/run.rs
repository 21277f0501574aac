//! A data thread: its listeners and what they start.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::{
    Context,
    admission::Shed,
    drain::Phase,
    http::Router,
    inbound,
    metrics::Direction,
    net::{self, Accepted, OriginalDst, Spare},
    outbound,
    worker::Worker,
};

/// Pause after the system has refused an accept, such as for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Of so many refusals, one is told in the log.
const FAILURES_PER_LINE: u32 = 100;

/// The listeners of a data thread.
pub struct Listeners {
    /// Where other pods connect.
    pub inbound: Vec<TcpListener>,
    /// Where the application connects.
    pub outbound: Vec<TcpListener>,
}

impl Listeners {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(ctx: &Context) -> anyhow::Result<Self> {
        let shared = ctx.config.cores > 1;
        let all = |side: &crate::config::ProxySide, name: &str| {
            side.listen
                .iter()
                .map(|addr| net::listen(*addr, side, shared).with_context(|| format!("{name} listener on {addr}")))
                .collect::<anyhow::Result<Vec<_>>>()
        };
        Ok(Self { inbound: all(&ctx.config.inbound, "inbound")?, outbound: all(&ctx.config.outbound, "outbound")? })
    }
}

/// Runs a data thread until it has drained. To be called within a `LocalSet` on a single-threaded runtime.
///
/// # Errors
/// A listener cannot be bound.
pub async fn run(ctx: Context) -> anyhow::Result<()> {
    raise_file_limit();
    let listeners = Listeners::bind(&ctx)?;
    run_with(ctx, listeners, net::original_dst).await
}

/// How long proxies that are clients have to leave by themselves when this one drains, as the control plane tells them. Some,
/// linkerd2-proxy among them, fail requests that were about to go out when GOAWAY comes.
const PROXIES_LEAVE: Duration = Duration::from_secs(5);

/// Every connection through the proxy takes two files; the usual soft limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// As [`run`], on listeners that are bound already, with another way to find a connection's original destination.
///
/// # Errors
/// The control thread is gone before there was a certificate.
pub async fn run_with(mut ctx: Context, listeners: Listeners, original: OriginalDst) -> anyhow::Result<()> {
    // Nobody listens when the proxy is embedded in a test.
    let _ = ctx.bound.send(());
    let mut drain = ctx.drain.clone();
    // Clients wait in the accept queues until there is a certificate: nothing is carried before.
    tokio::select! {
        ready = ctx.credentials.wait_for(Option::is_some) => { ready.context("no certificate")?; }
        _ = drain.wait_for(|phase| *phase >= Phase::Draining) => return Ok(()),
    }
    let worker = Worker::new(ctx, original);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_local(worker.clone().run_flusher());
    tasks.spawn_local(worker.clone().run_timers());
    for listener in listeners.inbound {
        tasks.spawn_local(accept(worker.clone(), listener, Direction::Inbound));
    }
    for listener in listeners.outbound {
        tasks.spawn_local(accept(worker.clone(), listener, Direction::Outbound));
    }
    // Nobody drains when the proxy is embedded in a test.
    let _ = drain.wait_for(|phase| *phase >= Phase::Draining).await;
    // New connections are still served: the application may need some to finish its own work. Its own connections are its
    // to end: clients that are told to leave in the middle of their work may fail what they were about to send.
    let inbound = |router: &dyn Router| router.direction() == Direction::Inbound;
    worker.drain_fronts(|router| inbound(router) && !router.carries_others());
    let ending = drain.wait_for(|phase| *phase >= Phase::Ending);
    if tokio::time::timeout(PROXIES_LEAVE, ending).await.is_err() {
        worker.drain_fronts(inbound);
        let _ = drain.wait_for(|phase| *phase >= Phase::Ending).await;
    }
    worker.drain_fronts(|_| true);
    worker.drained().await;
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, direction: Direction) {
    let mut spare = Spare::take();
    let mut failures = 0u32;
    loop {
        match net::accept(&listener, worker.side(direction), worker.original).await {
            Ok(accepted) => match worker.connection(direction, accepted.client.ip()) {
                Ok(guard) => {
                    let worker = worker.clone();
                    tokio::task::spawn_local(async move {
                        serve(worker, accepted, direction).await;
                        drop(guard);
                    });
                }
                Err(why) => {
                    net::abort_on_close(&accepted.stream);
                    shed(&worker, direction, accepted.client, Some(accepted.original), why);
                }
            },
            Err(error) if net::is_exhausted(&error) && spare.is_there() => {
                if let Some((client, original)) = spare.shed(&listener, worker.original) {
                    shed(&worker, direction, client, original, Shed::Files);
                }
                // Connections that end give descriptors back: they get their turn.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                if failures.is_multiple_of(FAILURES_PER_LINE) {
                    tracing::warn!(direction = direction.as_str(), %error, "cannot accept connections");
                }
                failures = failures.wrapping_add(1);
                tokio::time::sleep(ACCEPT_RETRY).await;
                if !spare.is_there() {
                    spare = Spare::take();
                }
            }
        }
    }
}

/// Counts a connection that is not served, and says why.
fn shed(worker: &Worker, direction: Direction, client: SocketAddr, original: Option<SocketAddr>, why: Shed) {
    let listener = worker.side(direction).listen.first().copied();
    if let Some(target) = original.or(listener) {
        worker.ctx.metrics.tcp_error(direction, target, why.label()).incr();
    }
    worker.admission.log(direction, client.ip(), why);
}

async fn serve(worker: Rc<Worker>, accepted: Accepted, direction: Direction) {
    match direction {
        Direction::Inbound => inbound::serve(worker, accepted).await,
        Direction::Outbound => outbound::serve(worker, accepted).await,
    }
}
