//! weft-controller: see the library of this crate.

use clap::Parser;
use std::process::ExitCode;
use weft_controller::{cli::Cli, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    run::init_logging(&cli.log);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
