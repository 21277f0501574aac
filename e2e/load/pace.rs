//! A constant rate of requests, with a bound on those that are in flight.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};

use crate::{NO_ANSWER, accounts::Ledger};

/// Requests in flight at most.
const IN_FLIGHT: usize = 128;
/// The rate never falls below this.
const LEAST_RATE: u32 = 20;
/// How often is judged whether the rate can be kept.
const JUDGED_EVERY: Duration = Duration::from_secs(1);

/// Turns that come later than this are not made up for. Timers alone are late by a millisecond or two.
const MADE_UP_FOR: Duration = Duration::from_millis(20);

/// Begins a request `rate` times a second, for ever. A machine that is too slow for that makes the rate smaller, not the
/// queue longer: turns that come much too late are not made up for, and when more than a tenth is left out since too many
/// requests are in flight, a fifth of the rate is given up; it comes back when none is.
/// While `paused` says so nothing is begun.
pub async fn keep<F>(wanted: u32, ledger: &Ledger, mut paused: watch::Receiver<bool>, request: impl Fn(u64) -> F)
where
    F: Future<Output = anyhow::Result<String>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let (mut number, mut rate) = (0, wanted);
    // An error means that nobody can pause it any more.
    while paused.wait_for(|paused| !*paused).await.is_ok() {
        let begun = Instant::now();
        let (mut turns, mut left_out) = (0u32, 0u32);
        let mut turn = begun;
        while begun.elapsed() < JUDGED_EVERY {
            sleep_until(turn).await;
            turn = (turn + Duration::from_secs(1) / rate).max(Instant::now() - MADE_UP_FOR);
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
        if left_out > turns / 10 {
            rate = (rate - rate / 5).max(LEAST_RATE);
        } else if left_out == 0 {
            rate = (rate + rate / 5).min(wanted);
        }
        ledger.set_rate(rate);
    }
}
