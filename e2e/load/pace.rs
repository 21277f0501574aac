//! A constant rate of requests, with a bound on those that are in flight.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{NO_ANSWER, accounts::Ledger};

/// Requests in flight at most.
const IN_FLIGHT: usize = 128;
/// The rate never falls below this.
const LEAST_RATE: u32 = 20;
/// How often is judged whether the rate can be kept.
const JUDGED_EVERY: Duration = Duration::from_secs(1);

/// Begins a request `rate` times a second, for ever. A machine that is too slow for that makes the rate smaller, not the
/// queue longer: turns that come late are not made up for, and when more than a tenth is left out since too many
/// requests are in flight, a fifth of the rate is given up.
/// While `paused` says so nothing is begun.
pub async fn keep<F>(mut rate: u32, ledger: &Ledger, mut paused: watch::Receiver<bool>, request: impl Fn(u64) -> F)
where
    F: Future<Output = anyhow::Result<String>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut number = 0;
    // An error means that nobody can pause it any more.
    while paused.wait_for(|paused| !*paused).await.is_ok() {
        let begun = Instant::now();
        let (mut turns, mut left_out) = (0u32, 0u32);
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while begun.elapsed() < JUDGED_EVERY {
            ticks.tick().await;
            turns += 1;
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                left_out += 1;
                ledger.left_out();
                continue;
            };
            number += 1;
            ledger.sent();
            let (request, ledger) = (request(number), ledger.clone());
            tokio::spawn(async move {
                let begun = Instant::now();
                let result = tokio::time::timeout(NO_ANSWER, request).await;
                let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer")));
                ledger.ended(begun.elapsed(), result);
                drop(permit);
            });
        }
        if left_out > turns / 10 && rate > LEAST_RATE {
            rate = (rate - rate / 5).max(LEAST_RATE);
            ledger.set_rate(rate);
        }
    }
}
