//! Exit codes, and the errors that carry one of their own.

use std::fmt;
use std::process::ExitCode;

/// Something failed, or differs from what was expected.
pub(crate) const FAILED: u8 = 1;
/// Something is missing and `setup` may not or cannot install it here.
pub(crate) const CANNOT_INSTALL: u8 = 3;
/// SIGINT or SIGTERM ended the chore; everything it made was removed.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error that ends the process with a code of its own.
#[derive(Debug)]
pub(crate) struct Coded {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// The error of a chore that was interrupted.
pub(crate) fn interrupted() -> anyhow::Error {
    Coded { code: INTERRUPTED, message: "interrupted".into() }.into()
}

/// The error of a chore whose last line has said already what failed.
pub(crate) fn told() -> anyhow::Error {
    Coded { code: FAILED, message: String::new() }.into()
}

/// Prints the error with its causes and gives the process's exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let message = format!("{error:#}");
    if !message.is_empty() {
        eprintln!("error: {message}");
    }
    ExitCode::from(error.downcast_ref::<Coded>().map_or(FAILED, |coded| coded.code))
}
