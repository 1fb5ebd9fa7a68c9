//! Why a controller gives no SVID.

use http::StatusCode;

/// A refusal; what it says goes to the agent, to the log and, as a word, into metric and audit event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No token, or one that the API server does not know for this audience.
    #[error("the token proves nobody: {0}")]
    Token(String),
    /// The token is of somebody who is no agent.
    #[error("{0} is no agent of this mesh")]
    NotAnAgent(String),
    /// The agent's pod is gone, or is another one by now.
    #[error("the agent's pod is not there any more")]
    AgentGone,
    /// The request cannot be read.
    #[error("{0}")]
    Request(String),
    /// There is no such pod, or it is another one by now.
    #[error("there is no pod {0}")]
    UnknownPod(String),
    /// It runs elsewhere, or nowhere yet.
    #[error("the pod runs on {0}, not on the agent's node")]
    OtherNode(String),
    /// It has ended.
    #[error("the pod has finished")]
    Finished,
    /// It is a static pod: whoever can write to the node's disk makes it.
    #[error("the pod is a static one, of which the API server knows only what the node says")]
    Mirror,
    /// Nothing says who it is.
    #[error("the pod has no ServiceAccount")]
    NoServiceAccount,
    /// It shares its node's network, so its connections are not its own.
    #[error("the pod uses its node's network")]
    HostNetwork,
    /// Its namespace is that of Warren itself.
    #[error("pods of namespace {0} get no SVID by an agent")]
    SystemNamespace(String),
    /// The node asks for too many.
    #[error("node {0} asks for more SVIDs than it may")]
    Rate(String),
    /// The API server does not answer: nothing can be known.
    #[error("the API server does not answer: {0}")]
    ApiServer(String),
    /// There is nothing to sign with just now.
    #[error("the controller cannot sign: {0}")]
    NotReady(String),
}

impl Refusal {
    /// A short, stable word.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::NotAnAgent(_) => "not_an_agent",
            Self::AgentGone => "agent_gone",
            Self::Request(_) => "request",
            Self::UnknownPod(_) => "unknown_pod",
            Self::OtherNode(_) => "other_node",
            Self::Finished => "finished",
            Self::Mirror => "mirror",
            Self::NoServiceAccount => "no_service_account",
            Self::HostNetwork => "host_network",
            Self::SystemNamespace(_) => "system_namespace",
            Self::Rate(_) => "rate",
            Self::ApiServer(_) => "api_server",
            Self::NotReady(_) => "not_ready",
        }
    }

    /// The HTTP status that goes with it.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::Request(_) => StatusCode::BAD_REQUEST,
            Self::UnknownPod(_) => StatusCode::NOT_FOUND,
            Self::Rate(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::ApiServer(_) | Self::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotAnAgent(_)
            | Self::AgentGone
            | Self::OtherNode(_)
            | Self::Finished
            | Self::Mirror
            | Self::NoServiceAccount
            | Self::HostNetwork
            | Self::SystemNamespace(_) => StatusCode::FORBIDDEN,
        }
    }
}
