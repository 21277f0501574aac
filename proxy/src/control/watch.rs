//! Following a stream of the control plane forever.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout, timeout_at};
use tonic::{Code, Response, Status, Streaming};

use super::Channel;
use crate::{
    config::{Backoff, StreamLimits},
    metrics::{Labels, Metrics, families},
};

/// What every watch of a service shares.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) channel: Channel,
    pub(crate) backoff: Backoff,
    pub(crate) limits: StreamLimits,
    pub(crate) metrics: Arc<Metrics>,
    /// `addr` and TLS labels of `control_*` metrics.
    pub(crate) labels: Labels,
    /// How long a watch that the control plane refused rests before it asks again.
    pub(crate) refused_retry: Duration,
}

/// What to do after an event of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on; after a failure, try again with back-off.
    Continue,
    /// The refusal is an answer: ask again only after a good while.
    Rest,
}

/// Opens a stream, hands every message to `on`, and opens it again whenever it ends. Never returns.
///
/// `on` gets `Ok((first, message))`, where `first` says that the message is the first of its stream and so replaces what
/// earlier streams said, or the status that ended a stream.
pub(crate) async fn follow<M, F, Fut>(
    link: &Link,
    what: &str,
    mut open: F,
    mut on: impl FnMut(Result<(bool, M), &Status>) -> Next,
) where
    F: FnMut(Channel) -> Fut,
    Fut: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let mut failures = 0;
    loop {
        let channel = link.channel.ready().await;
        let began = Instant::now();
        link.metrics.counter(&families::CONTROL_REQUEST_TOTAL, &link.labels).incr();
        let mut messages = 0u64;
        let opened = match link.limits.initial {
            Some(limit) => match timeout(limit, open(channel)).await {
                Ok(opened) => opened,
                Err(_) => Err(Status::deadline_exceeded("no answer within the time limit")),
            },
            None => open(channel).await,
        };
        let status = match opened {
            Ok(response) => {
                let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let labels = link.labels.with([("status_code", "200")]);
                link.metrics.histogram(&families::CONTROL_RESPONSE_LATENCY_MS, &labels).record(ms);
                read(link, response.into_inner(), began, |message| {
                    messages += 1;
                    on(Ok((messages == 1, message)));
                })
                .await
            }
            Err(status) => status,
        };
        let class = if status.code() == Code::Ok { "success" } else { "failure" };
        let code = (status.code() as i32).to_string();
        let labels = link.labels.with([
            ("status_code", "200"),
            ("classification", class),
            ("grpc_status", code.as_str()),
            ("error", ""),
        ]);
        link.metrics.counter(&families::CONTROL_RESPONSE_TOTAL, &labels).incr();

        failures = if messages > 0 { 1 } else { failures + 1 };
        let next = on(Err(&status));
        match next {
            Next::Rest => {
                tracing::debug!(what, code = ?status.code(), message = status.message(), "the control plane refuses");
                // Spread, so that what was refused together is not asked for together again.
                sleep(link.refused_retry.mul_f64(1.0 + fastrand::f64() / 4.0)).await;
            }
            Next::Continue => {
                tracing::debug!(what, code = ?status.code(), message = status.message(), failures, "stream ended");
                sleep(link.backoff.delay(failures)).await;
            }
        }
    }
}

/// Reads a stream to its end and tells why it ended.
async fn read<M>(link: &Link, mut stream: Streaming<M>, began: Instant, mut on: impl FnMut(M)) -> Status {
    let StreamLimits { initial, idle, lifetime } = link.limits;
    let end = lifetime.map(|l| began + l);
    let mut limit = initial.or(idle);
    loop {
        let now = Instant::now();
        let quiet = limit.map(|l| now + l);
        let deadline = [quiet, end].into_iter().flatten().min();
        let next = match deadline {
            None => stream.message().await,
            Some(at) => match timeout_at(at.into(), stream.message()).await {
                Ok(next) => next,
                Err(_) => return Status::deadline_exceeded("the stream's time limit passed"),
            },
        };
        match next {
            Ok(Some(message)) => on(message),
            Ok(None) => return Status::ok("the stream ended"),
            Err(status) => return status,
        }
        limit = idle;
    }
}
