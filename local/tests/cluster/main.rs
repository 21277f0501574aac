//! Real clusters, as root, each with a run directory of its own: nothing on the machine is shared between them.
//!
//! This program is its own `weft`: started with `weft` as first argument it is the command line, and it re-executes
//! itself in the hidden roles of the cluster.

mod basics;
mod cleanup;
mod jobs;
mod lifecycle;
mod sets;
mod support;
mod workloads;

use clap::Parser;
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use weft_local::{Options, args};

#[derive(Parser)]
#[command(name = "weft")]
enum Cli {
    Up(args::Up),
    Down(args::Down),
    Apply(args::Apply),
    Delete(args::Delete),
    Ps(args::Ps),
    Logs(args::Logs),
    Exec(args::Exec),
}

fn command_line() -> ExitCode {
    let cli = Cli::parse_from(std::env::args_os().skip(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let result = runtime.block_on(async {
        match cli {
            Cli::Up(args) => weft_local::up_with(args, Options { control_plane: false, run_dir: None }).await,
            Cli::Down(args) => weft_local::down(args).await,
            Cli::Apply(args) => weft_local::apply(args).await,
            Cli::Delete(args) => weft_local::delete(args).await,
            Cli::Ps(args) => weft_local::ps(args).await,
            Cli::Logs(args) => weft_local::logs(args).await,
            Cli::Exec(args) => weft_local::exec(args).await,
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft: {error}");
            ExitCode::from(error.code())
        }
    }
}

fn main() -> ExitCode {
    if let Some(code) = weft_local::internal() {
        return code;
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == "weft") {
        return command_line();
    }
    let mut arguments = Arguments::from_args();
    // Every test starts a cluster of its own; more at a time would only wait for each other.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let tests = basics::TESTS
        .iter()
        .chain(workloads::TESTS)
        .chain(jobs::TESTS)
        .chain(sets::TESTS)
        .chain(lifecycle::TESTS)
        .chain(cleanup::TESTS);
    let trials = tests.map(|(name, test)| {
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
