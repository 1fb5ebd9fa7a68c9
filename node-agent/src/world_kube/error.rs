//! What goes wrong between the agent and the API server. None of it takes anything out of the world.

/// Why a list or a watch ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The server's name, certificate or credentials cannot be read.
    #[error("{0}")]
    Config(String),
    /// It cannot be reached, or the connection broke.
    #[error("the API server cannot be reached: {0}")]
    Reach(String),
    /// It said nothing for too long.
    #[error("the API server said nothing for {} s", .0.as_secs())]
    Silent(std::time::Duration),
    /// It wants other credentials; they are read again.
    #[error("the API server does not accept the agent's credentials (401)")]
    Unauthorized,
    /// The agent may not do that.
    #[error("the agent may not list and watch {0} (403): its ClusterRole lacks the verbs")]
    Forbidden(&'static str),
    /// It no longer knows the version that the watch was at.
    #[error("the API server has forgotten the version last seen (410); everything is listed anew")]
    Gone,
    /// It has no such resource.
    #[error("the API server has no {0}")]
    NotFound(&'static str),
    /// It does not send lists as streams.
    #[error("the API server streams no lists; they are read page by page")]
    NoStreaming,
    /// Another refusal.
    #[error("the API server answered {status}: {message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// The beginning of what it said.
        message: String,
    },
    /// An answer that is none.
    #[error("the API server answered nonsense: {0}")]
    Nonsense(String),
    /// The agent ends.
    #[error("the agent ends")]
    Closed,
}
