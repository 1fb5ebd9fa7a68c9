//! Text to objects.

use std::fmt;

use serde::Serialize;

/// One manifest file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// Name for messages; usually the path as the user gave it.
    pub file: String,
    /// The whole content.
    pub text: String,
}

/// Whether a rejection is a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The user wrote something that cannot be honoured.
    Error,
    /// The object is none of Warren's business, or a hint.
    Ignored,
}

/// A document, or a part of one, that is not in the world, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// The file.
    pub file: String,
    /// 1-based line in the file.
    pub line: usize,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: Option<String>,
    /// Path of the field inside the object, e.g. `spec.rules[0].from`.
    pub field: Option<String>,
    /// Why, and what becomes of it.
    pub reason: String,
    /// Whether it is a fault.
    pub severity: Severity,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.reason)
    }
}
