//! Why a connection did not go as planned.

use std::io;

use warren_load::Fault;
use warren_load::pattern::Mismatch;

use super::super::ledger::End;

/// Why a connection did not go as planned.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A clean end while bytes were owed.
    Early,
    /// A reset, a refusal, silence.
    Broken(String),
    /// Bytes that are not what was sent.
    Wrong(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Early,
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<Mismatch> for Trouble {
    fn from(mismatch: Mismatch) -> Self {
        Self::Wrong(mismatch.to_string())
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(error) => error.into(),
            Fault::Ended => Self::Early,
            wrong => Self::Wrong(wrong.to_string()),
        }
    }
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Early => Self::Early,
            Trouble::Broken(words) => Self::Broken(words),
            Trouble::Wrong(words) => Self::Wrong(words),
        }
    }
}
