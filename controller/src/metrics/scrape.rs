//! Reads the metrics of every proxy, a bounded number at a time, each bounded in time and size.

use crate::cli::MetricsOptions;
use crate::index::pod::Pod;
use crate::telemetry::Telemetry;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Most octets of an exposition; a proxy with two thousand series has about 600 KB.
const MAX_BODY: usize = 16 << 20;
/// Failed proxies that are told by name.
const MAX_FAILED: usize = 100;

/// How a round went.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// Proxies that answered.
    pub scraped: u64,
    /// Proxies that did not, as `namespace/pod: reason`.
    pub failed: Vec<String>,
}

/// Scrapes.
#[derive(Debug)]
pub struct Scraper {
    client: Client<HttpConnector, Empty<Bytes>>,
    interval: Duration,
    timeout: Duration,
    concurrency: usize,
    telemetry: Telemetry,
}

impl Scraper {
    /// A scraper with these options.
    pub fn new(options: &MetricsOptions, telemetry: &Telemetry) -> Scraper {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(options.scrape_timeout));
        connector.set_nodelay(true);
        // Connections stay open from round to round; a proxy that is gone takes its own along.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.scrape_interval.saturating_mul(4))
            .pool_max_idle_per_host(1)
            .build(connector);
        Scraper {
            client,
            interval: options.scrape_interval,
            timeout: options.scrape_timeout,
            concurrency: options.scrape_concurrency.max(1),
            telemetry: telemetry.clone(),
        }
    }

    /// Time from round to round.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Scrapes every running pod that has a proxy; `take` gets what they say.
    pub async fn round(&self, pods: Vec<Arc<Pod>>, take: impl Fn(&Arc<Pod>, &str)) -> Round {
        let targets = pods.into_iter().filter_map(|pod| {
            let admin_port = pod.proxy.as_ref().filter(|_| pod.running())?.admin_port;
            let ip = *pod.ips.first()?;
            Some((pod, SocketAddr::new(ip, admin_port)))
        });
        let scrapes = stream::iter(targets).map(async |(pod, addr)| (pod, self.scrape(addr).await));
        let mut scrapes = scrapes.buffer_unordered(self.concurrency);
        let mut round = Round::default();
        while let Some((pod, result)) = scrapes.next().await {
            let outcome = match &result {
                Ok(text) => {
                    take(&pod, text);
                    round.scraped += 1;
                    "ok"
                }
                Err((outcome, reason)) => {
                    tracing::debug!(pod = %pod.id, reason, "scrape failed");
                    if round.failed.len() < MAX_FAILED {
                        round.failed.push(format!("{}: {reason}", pod.id));
                    }
                    outcome
                }
            };
            self.telemetry
                .counter("weft_metrics_scrapes_total", "Scrapes of proxies, by outcome", &[("outcome", outcome)])
                .inc();
        }
        round.failed.sort();
        round
    }

    /// Asks the proxies to end whose pods would be over without them. They know us by our identity, since we come through
    /// our own proxy.
    pub async fn end_proxies_of_jobs(&self, pods: Vec<Arc<Pod>>, control_namespace: &str) {
        let targets = pods.into_iter().filter_map(|pod| {
            let ours = pod.control_plane.as_deref() == Some(control_namespace);
            let admin_port = pod.proxy.as_ref().filter(|_| ours && pod.only_proxy_left && pod.running())?.admin_port;
            let ip = *pod.ips.first()?;
            Some((pod, SocketAddr::new(ip, admin_port)))
        });
        let asked = stream::iter(targets).map(async |(pod, addr)| (pod, self.end(addr).await));
        let mut asked = asked.buffer_unordered(self.concurrency);
        while let Some((pod, result)) = asked.next().await {
            let outcome = match result {
                Ok(()) => {
                    tracing::info!(pod = %pod.id, "the work is done: its proxy ends");
                    "ok"
                }
                // It is asked again in the next round, as long as the pod is there.
                Err(reason) => {
                    tracing::debug!(pod = %pod.id, reason, "its proxy does not end");
                    "failed"
                }
            };
            self.telemetry
                .counter(
                    "weft_metrics_job_proxies_total",
                    "Proxies of finished Jobs asked to end",
                    &[("outcome", outcome)],
                )
                .inc();
        }
    }

    async fn end(&self, addr: SocketAddr) -> Result<(), String> {
        let request = http::Request::post(format!("http://{addr}/shutdown")).body(Empty::new());
        let request = request.map_err(|e| e.to_string())?;
        match tokio::time::timeout(self.timeout, self.client.request(request)).await {
            Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
            Ok(Ok(answer)) => Err(format!("{addr} answered {}", answer.status())),
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err(format!("no answer of {addr} within {} ms", self.timeout.as_millis())),
        }
    }

    async fn scrape(&self, addr: SocketAddr) -> Result<String, (&'static str, String)> {
        let exchange = async {
            let uri = Uri::builder()
                .scheme("http")
                .authority(addr.to_string())
                .path_and_query("/metrics")
                .build()
                .map_err(|e| ("address", e.to_string()))?;
            let answer = self.client.get(uri).await.map_err(|e| ("connect", reason(&e)))?;
            if !answer.status().is_success() {
                return Err(("status", format!("{addr} answered {}", answer.status())));
            }
            let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
            let body = body.map_err(|e| ("body", format!("the answer of {addr} broke off: {e}")))?.to_bytes();
            String::from_utf8(body.into()).map_err(|_| ("body", format!("the answer of {addr} is no text")))
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(("timeout", format!("no answer of {addr} within {} ms", self.timeout.as_millis()))),
        }
    }
}

/// The error with what caused it.
fn reason(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
