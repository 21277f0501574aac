//! Real clusters, each with a run directory of its own: nothing on the machine is shared between them. Root runs each test
//! three times: as itself, and as two ordinary users.
//!
//! This program is its own `weft`: started with `weft` as first argument it is the command line, and it re-executes
//! itself in the hidden roles of the cluster.

mod basics;
mod cleanup;
mod jobs;
mod lifecycle;
mod sets;
mod starting;
mod support;
mod workloads;

use clap::Parser;
use libtest_mimic::{Arguments, Trial};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use weft_e2e::{Stage, User};
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
        .chain(starting::TESTS)
        .chain(lifecycle::TESTS)
        .chain(cleanup::TESTS);
    let users: &[User] = if nix::unistd::geteuid().is_root() { &[User::Ranged, User::Bare] } else { &[] };
    let stage = Arc::new(LazyLock::new(|| Stage::new(&[(Path::new("/proc/self/exe"), "cluster")])));
    let mut trials = Vec::new();
    for &(name, test) in tests {
        trials.push(Trial::test(name, move || {
            test();
            Ok(())
        }));
        for &user in users {
            let stage = Arc::clone(&stage);
            trials.push(Trial::test(format!("{}::{name}", user.prefix()), move || {
                let stage = stage.as_ref().as_ref().map_err(|e| format!("cannot prepare the user: {e}"))?;
                Ok(stage.test(user, "cluster", name)?)
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The last owner: this removes the directory.
    drop(stage);
    conclusion.exit_code()
}
