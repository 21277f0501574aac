//! weft: see the library of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The roles of the one-machine cluster re-execute this program and need it while it has a single thread.
    if let Some(code) = weft_local::internal() {
        return code;
    }
    weft::run(std::env::args_os())
}
