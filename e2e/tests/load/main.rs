//! Pods come, go, break and become slow while requests flow, all in one cluster, one after the other. Every request is
//! accounted for.

mod faults;
mod scaling;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Trial};
use weft_e2e::Traffic;

type Test = fn(&mut Traffic) -> anyhow::Result<()>;

/// Requests a second of each protocol, as far as the machine can.
const RATE: u32 = 500;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    // Started by the first test that wants it.
    let shared: Arc<Mutex<Option<anyhow::Result<Traffic>>>> = Arc::default();
    let tests = [scaling::TESTS, faults::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let traffic = match shared.get_or_insert_with(|| Traffic::start(RATE)) {
                Ok(traffic) => traffic,
                Err(error) => return Err(format!("the cluster did not start: {error:#}").into()),
            };
            test(traffic).map_err(|error| format!("{error:#}\n{}", traffic.state()).into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // The last owner: this ends the cluster.
    drop(shared);
    conclusion.exit_code()
}
