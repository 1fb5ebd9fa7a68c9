//! Exit codes: one per kind of failure, so that scripts and units can tell them apart.

/// Why `warren` ended; the discriminant is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The command line cannot work.
    Usage = 2,
    /// The world cannot be read at all.
    World = 3,
    /// The certificate authority's directory is unusable.
    Ca = 4,
    /// The kernel refuses what capture needs.
    Capture = 5,
    /// The agent's socket cannot be reached, or its answer not be read; or an address is in use.
    Socket = 6,
    /// Something could not be removed.
    CleanupIncomplete = 7,
    /// The CNI plugin cannot be installed or removed.
    Cni = 8,
    /// `warren doctor` found what keeps Warren from working.
    Doctor = 9,
    /// Any other failure while running.
    Runtime = 1,
}

/// An error with the exit code it ends the process with.
#[derive(Debug)]
pub(crate) struct Fatal {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Fatal {
    /// Attaches an exit code to any error, keeping its whole chain of causes.
    pub(crate) fn new(exit: Exit, what: impl AsRef<str>, error: &dyn std::error::Error) -> Self {
        Self { exit, message: format!("{}: {}", what.as_ref(), chain(error)) }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
