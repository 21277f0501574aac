//! What the load generator (`weft-load send`) has seen so far, and how tests read it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::{Cluster, wait_for};

/// Port in its own pod on which the generator tells its report.
pub const REPORT_PORT: u16 = 9000;

/// One protocol's account. Every request that was sent is in flight, answered or failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Requests begun.
    pub sent: u64,
    /// Requests answered as they should be.
    pub answered: u64,
    /// All others that have ended.
    pub failed: u64,
    /// Turns that were left out because too many requests were in flight: the generator was late, nobody failed.
    pub left_out: u64,
    /// Requests a second that it tries to send.
    pub rate: u32,
    /// The longest time to an answer, in milliseconds.
    pub slowest_ms: u64,
    /// Answers by the pod that gave them.
    pub by_pod: BTreeMap<String, u64>,
    /// What failed, first ones only: seconds since the start and why.
    pub failures: Vec<String>,
}

impl Account {
    /// Requests that have no end yet.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.answered - self.failed
    }

    /// What happened after `before`.
    pub fn since(&self, before: &Self) -> Self {
        let by_pod = self.by_pod.iter().map(|(pod, n)| (pod.clone(), n - before.by_pod.get(pod).copied().unwrap_or(0)));
        Self {
            sent: self.sent - before.sent,
            answered: self.answered - before.answered,
            failed: self.failed - before.failed,
            left_out: self.left_out - before.left_out,
            rate: self.rate,
            slowest_ms: self.slowest_ms,
            by_pod: by_pod.filter(|(_, n)| *n > 0).collect(),
            failures: self.failures.get(before.failures.len()..).unwrap_or_default().to_vec(),
        }
    }
}

/// Both protocols' accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// HTTP/1.1: GET, on kept connections and on new ones.
    pub http: Account,
    /// gRPC: unary calls.
    pub grpc: Account,
}

impl Report {
    /// Asks the generator in that pod, such as `deploy/load`.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn of(cluster: &Cluster, namespace: &str, pod: &str) -> anyhow::Result<Self> {
        let url = format!("http://127.0.0.1:{REPORT_PORT}/");
        let text = cluster.exec(namespace, pod, &["curl", "-sS", "-f", "-m", "60", &url])?.success()?;
        serde_json::from_str(&text).with_context(|| format!("not a report: {text}"))
    }

    /// Waits until so many more requests of each protocol were answered, and answers the report then.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn after(cluster: &Cluster, namespace: &str, pod: &str, answered: u64) -> anyhow::Result<Self> {
        let begin = Self::of(cluster, namespace, pod)?;
        wait_for(&format!("{answered} more answers"), || {
            let now = Self::of(cluster, namespace, pod)?;
            for (begin, now) in [(&begin.http, &now.http), (&begin.grpc, &now.grpc)] {
                ensure!(now.answered >= begin.answered + answered, "{now:?}");
            }
            Ok(now)
        })
    }

    /// What happened after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self { http: self.http.since(&before.http), grpc: self.grpc.since(&before.grpc) }
    }

    /// Fails when a request has.
    ///
    /// # Errors
    ///
    /// With what failed.
    pub fn nothing_failed(&self) -> anyhow::Result<()> {
        let Self { http, grpc } = self;
        ensure!(
            http.failed == 0 && grpc.failed == 0,
            "requests failed: {} of {} HTTP: {:?}, {} of {} gRPC: {:?}",
            http.failed,
            http.sent,
            http.failures,
            grpc.failed,
            grpc.sent,
            grpc.failures
        );
        Ok(())
    }

    /// The share of the answers that came from this pod, 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "counts of requests are small")]
    pub fn share_of(&self, pod: &str) -> f64 {
        let of = |account: &Account| account.by_pod.get(pod).copied().unwrap_or(0);
        let all = (self.http.answered + self.grpc.answered).max(1);
        (of(&self.http) + of(&self.grpc)) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(pods: &[(&str, u64)], failures: &[&str]) -> Account {
        let by_pod: BTreeMap<String, u64> = pods.iter().map(|&(pod, n)| (pod.to_owned(), n)).collect();
        let (answered, failed) = (by_pod.values().sum(), failures.len() as u64);
        let failures = failures.iter().map(|&text| text.to_owned()).collect();
        Account { sent: answered + failed + 1, answered, failed, by_pod, failures, ..Default::default() }
    }

    #[test]
    fn a_window_is_what_came_after() {
        let before = Report { http: account(&[("a", 3), ("b", 1)], &["one"]), grpc: Account::default() };
        let after = Report { http: account(&[("a", 3), ("b", 5)], &["one", "two"]), grpc: account(&[("a", 12)], &[]) };
        let window = after.since(&before);
        assert_eq!(window.http.by_pod, BTreeMap::from([("b".to_owned(), 4)]));
        assert_eq!(window.http.failures, ["two"]);
        assert_eq!((window.http.in_flight(), window.grpc.in_flight()), (0, 1));
        assert!((window.share_of("a") - 0.75).abs() < 1e-9);
        assert!(window.nothing_failed().is_err() && after.since(&after).nothing_failed().is_ok());
    }
}
