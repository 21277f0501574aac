//! Load at a constant average rate: arrivals at random times on several connections, whatever the answers do.
//!
//! Arrivals are jittered because clients that fire on one tick measure their own bursts. A request that had to wait for
//! the one before it counts from when it was due, so that a stall is not hidden by the requests it held back.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Where to.
    pub target: SocketAddr,
    /// Requests per second, all connections together.
    pub rate: u32,
    /// Connections.
    pub connections: u32,
    /// How long.
    pub time: Duration,
}

/// What came of it. Latencies in nanoseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latencies {
    /// Requests answered.
    pub requests: u64,
    /// Answers that were not 200.
    pub failures: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
}

impl Load {
    /// Sends.
    ///
    /// # Errors
    ///
    /// When a connection cannot be opened or breaks.
    pub async fn run(self) -> anyhow::Result<Latencies> {
        let mut connections = JoinSet::new();
        for _ in 0..self.connections.max(1) {
            connections.spawn(self.connection());
        }
        let (mut all, mut failures) = (Vec::new(), 0);
        while let Some(done) = connections.join_next().await {
            let (latencies, failed) = done??;
            all.extend(latencies);
            failures += failed;
        }
        all.sort_unstable();
        let at = |share: f64| quantile(&all, share);
        Ok(Latencies { requests: all.len() as u64, failures, p50: at(0.5), p99: at(0.99), p999: at(0.999) })
    }

    async fn connection(self) -> anyhow::Result<(Vec<u64>, u64)> {
        let socket = TcpStream::connect(self.target).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let mean = f64::from(self.connections.max(1)) / f64::from(self.rate.max(1));
        let host = self.target.to_string();
        let (mut latencies, mut failures) = (Vec::new(), 0);
        let begun = Instant::now();
        let mut due = begun;
        loop {
            // Times between independent arrivals are distributed exponentially.
            due += Duration::from_secs_f64(-mean * (1.0 - fastrand::f64()).ln());
            if due - begun > self.time {
                return Ok((latencies, failures));
            }
            let late = Instant::now() >= due;
            tokio::time::sleep_until(due).await;
            let from = if late { due } else { Instant::now() };
            let request = Request::get("/").header(header::HOST, &host).body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            if response.status() != http::StatusCode::OK {
                failures += 1;
            }
            response.into_body().collect().await?;
            sender.ready().await?;
            latencies.push(u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

/// The value at a share of sorted values; 0 when there is none.
fn quantile(sorted: &[u64], share: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    // Rounding keeps the index within the slice.
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact() {
        let values: Vec<u64> = (0..=1000).collect();
        assert_eq!([0.0, 0.5, 0.99, 0.999, 1.0].map(|share| quantile(&values, share)), [0, 500, 990, 999, 1000]);
        assert_eq!(quantile(&[], 0.5), 0);
        assert_eq!(quantile(&[7], 0.999), 7);
    }

    #[tokio::test]
    async fn requests_are_sent_and_answered() {
        use hyper::{server::conn::http1, service::service_fn};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let answer = service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
            }
        });
        let load = Load { target, rate: 10_000, connections: 4, time: Duration::from_millis(200) };
        let seen = load.run().await.unwrap();
        assert!(seen.requests > 0);
        assert_eq!(seen.failures, 0);
        assert!(seen.p50 <= seen.p99 && seen.p99 <= seen.p999);
    }
}
