//! weft-proxy: reads the environment and runs. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    match weft_proxy::config::Config::from_env() {
        Ok(config) => ExitCode::from(weft_proxy::start(config)),
        Err(error) => {
            eprintln!("weft-proxy: {error}");
            ExitCode::from(weft_proxy::config::EXIT_USAGE)
        }
    }
}
