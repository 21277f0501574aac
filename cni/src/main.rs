//! weft-cni: as a container runtime calls it, the plugin; else what installs it. Everything is in the library.

use clap::Parser;
use std::io::Read;
use std::process::ExitCode;
use weft_cni::{install, plugin};

/// The redirection of pods as a CNI plugin, and what installs it on a node.
#[derive(Debug, Parser)]
#[command(name = "weft-cni", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: install::Command,
    /// How to log.
    #[command(flatten)]
    log: weft_controller::cli::LogOptions,
}

fn main() -> ExitCode {
    if let Some(call) = plugin::Call::from_env() {
        let mut configuration = Vec::new();
        let answer = match std::io::stdin().read_to_end(&mut configuration) {
            Ok(_) => plugin::answer(&call, &configuration),
            Err(error) => plugin::Answer::unreadable(&error),
        };
        print!("{}", answer.text);
        return if answer.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let args = Args::parse();
    weft_controller::run::init_logging(&args.log);
    match install::run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
