//! weft-proxy: reads the environment and runs, or is a hook of the container of another one: waits until that is ready, or
//! before it ends. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        None => run(),
        Some("await") => weft_proxy::wait_until_ready(arguments),
        Some("sleep") => weft_proxy::sleep_seconds(arguments),
        Some(other) => {
            eprintln!(
                "weft-proxy: {other:?} is no command; without one it is the proxy, with `await` it waits for it, with \
                 `sleep` it lets it work on for some seconds"
            );
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
