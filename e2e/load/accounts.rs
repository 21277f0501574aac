//! Accounts of what was sent, and the server that tells them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use tokio::{net::TcpListener, sync::watch};
use weft_demo::serve::{self, Shutdown};
use weft_e2e::{Account, Report};

/// Reasons of failures that are kept.
const REASONS: usize = 50;

/// One protocol's account while it is written.
#[derive(Debug, Clone)]
pub struct Ledger {
    begun: Instant,
    account: Arc<Mutex<Account>>,
}

impl Ledger {
    fn new(rate: u32) -> Self {
        Self { begun: Instant::now(), account: Arc::new(Mutex::new(Account { rate, ..Default::default() })) }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    pub fn sent(&self) {
        self.account().sent += 1;
    }

    /// A turn is left out.
    pub fn left_out(&self) {
        self.account().left_out += 1;
    }

    /// The rate is another one from now on.
    pub fn set_rate(&self, rate: u32) {
        self.account().rate = rate;
    }

    /// A request has ended after that time: answered by this pod, or why not.
    pub fn ended(&self, after: Duration, result: anyhow::Result<String>) {
        let mut account = self.account();
        match result {
            Ok(pod) => {
                account.answered += 1;
                account.slowest_ms = account.slowest_ms.max(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                *account.by_pod.entry(pod).or_default() += 1;
            }
            Err(why) => {
                account.failed += 1;
                let at = self.begun.elapsed().as_secs_f32();
                if account.failures.len() < REASONS {
                    account.failures.push(format!("at {at:.1} s, after {after:.1?}: {why:#}"));
                }
            }
        }
    }
}

/// Both protocols' accounts, and whether anything is sent.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// HTTP/1.1.
    pub http: Ledger,
    /// gRPC.
    pub grpc: Ledger,
    paused: watch::Sender<bool>,
}

impl Accounts {
    /// Accounts without requests, of so many a second.
    pub fn new(http: u32, grpc: u32) -> Self {
        Self { http: Ledger::new(http), grpc: Ledger::new(grpc), paused: watch::Sender::new(false) }
    }

    /// Whether nothing is to be sent.
    pub fn paused(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    fn report(&self) -> Report {
        Report { http: self.http.account().clone(), grpc: self.grpc.account().clone() }
    }

    /// Tells the report to everybody who asks; `PUT /pause` and `PUT /resume` say whether requests are sent.
    pub async fn tell(self, listener: TcpListener, shutdown: Shutdown) {
        serve::http(listener, shutdown, move |request| {
            match request.uri().path() {
                "/pause" => drop(self.paused.send_replace(true)),
                "/resume" => drop(self.paused.send_replace(false)),
                _ => {}
            }
            let text = serde_json::to_vec(&self.report());
            async move {
                match text {
                    Ok(text) => serve::text(StatusCode::OK, "application/json", text),
                    Err(error) => serve::text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
                }
            }
        })
        .await;
    }
}
