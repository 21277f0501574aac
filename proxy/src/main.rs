//! weft-proxy: reads the environment and runs, or waits until another one is ready. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        None => run(),
        Some("await") => weft_proxy::wait_until_ready(arguments),
        Some(other) => {
            eprintln!("weft-proxy: {other:?} is no command; without one it is the proxy, with `await` it waits for it");
            ExitCode::from(weft_proxy::config::EXIT_USAGE)
        }
    }
}

fn run() -> ExitCode {
    match weft_proxy::config::Config::from_env() {
        Ok(config) => ExitCode::from(weft_proxy::start(config)),
        Err(error) => {
            eprintln!("weft-proxy: {error}");
            ExitCode::from(weft_proxy::config::EXIT_USAGE)
        }
    }
}
