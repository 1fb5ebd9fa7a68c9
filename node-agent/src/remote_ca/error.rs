//! Why a pod got no SVID from a controller.

/// The last failure; what is in use stays in use until it expires.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// The API server does not tell who signs and what to trust.
    #[error("{what}: {error}")]
    ApiServer {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        error: String,
    },
    /// There is no bundle yet.
    #[error("ConfigMap {0} is not there: no controller has made roots yet")]
    NoBundle(String),
    /// The bundle cannot be used.
    #[error("ConfigMap {name}: {reason}")]
    Bundle {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No controller is ready.
    #[error("Service {0} has no ready endpoint: no controller is running")]
    NoController(String),
    /// A controller cannot be reached, or is not one.
    #[error("controller {address}: {error}")]
    Unreachable {
        /// Where it should be.
        address: std::net::SocketAddr,
        /// What happened.
        error: String,
    },
    /// The agent's own token cannot be read.
    #[error("--ca-token {path}: {error}")]
    Token {
        /// The file.
        path: String,
        /// What happened.
        error: std::io::Error,
    },
    /// A controller said no.
    #[error("the controller refuses ({reason}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// A short, stable word.
        reason: String,
        /// The same for people.
        message: String,
    },
    /// What a controller gave is no SVID for this pod, or one that peers would not accept.
    #[error("the controller's answer cannot be used: {0}")]
    Answer(String),
    /// The library could not make a key.
    #[error(transparent)]
    Key(#[from] warren_mesh::identity::IssueError),
}

impl RemoteError {
    /// Whether another controller might do better.
    pub(crate) fn is_of_this_controller(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Answer(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }
}
