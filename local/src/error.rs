//! The error of every command: one clear sentence and an exit code.

use std::fmt;

/// Why a command failed: a sentence for the user, and the exit code of the program (1 unless said otherwise).
#[derive(Debug, Clone)]
pub struct Error {
    message: String,
    code: u8,
}

impl Error {
    /// An error with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// The same error with another exit code.
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The exit code of the program.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Puts what was being done before an error's own words.
pub(crate) trait Context<T> {
    /// `what: error`.
    fn context(self, what: impl fmt::Display) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T, Error> {
        self.map_err(|e| Error::new(format!("{what}: {e}")))
    }
}
