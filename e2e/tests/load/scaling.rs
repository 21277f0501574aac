//! What an operator does every day costs no request.

use anyhow::ensure;
use weft_e2e::{Interop, Traffic};

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("scaling_up_and_down_fails_no_request", scaling),
    ("a_rolling_replacement_fails_no_request", replacement),
    ("a_drain_of_each_pod_in_turn_fails_no_request", drains),
    ("a_slow_replica_gets_little", slow_replica),
];

/// The share of the requests that a replica may get which is slower than the others.
const SHARE_OF_SLOW: f64 = 0.05;
/// How long after it became slow.
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

fn scaling(traffic: &mut Traffic) -> anyhow::Result<()> {
    let seen = traffic.during("3 replicas, 1, 5, 3", |traffic| {
        for replicas in [3, 1, 5, 3] {
            traffic.scale(replicas)?;
            traffic.more(100)?;
        }
        Ok(())
    })?;
    seen.nothing_failed()
}

fn replacement(traffic: &mut Traffic) -> anyhow::Result<()> {
    traffic.during("every replica replaced", Traffic::replace)?.nothing_failed()
}

fn drains(traffic: &mut Traffic) -> anyhow::Result<()> {
    let seen = traffic.during("every replica drained", |traffic| {
        for pod in traffic.names()? {
            traffic.drain(&pod)?;
        }
        Ok(())
    })?;
    seen.nothing_failed()
}

#[allow(clippy::disallowed_methods, reason = "the promise is about what is after this time")]
fn slow_replica(traffic: &mut Traffic) -> anyhow::Result<()> {
    let names = traffic.names()?;
    let Some(slow) = names.first() else { anyhow::bail!("no replica") };
    let mut share = 1.0;
    let seen = traffic.during("one of three is slow", |traffic| {
        traffic.delay(slow, 500)?;
        std::thread::sleep(SOON);
        let before = traffic.report()?;
        share = traffic.more(1000)?.since(&before).share_of(slow);
        traffic.delay(slow, 0)
    })?;
    eprintln!("the slow replica got {:.1} % of the requests", share * 100.0);
    seen.nothing_failed()?;
    // How another proxy balances is its own affair.
    ensure!(
        share < SHARE_OF_SLOW || Interop::is_other("load")?,
        "the slow replica got {:.1} % of the requests",
        share * 100.0
    );
    Ok(())
}
