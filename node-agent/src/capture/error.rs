use std::io;
use std::path::PathBuf;

use super::bpf::BpfError;

/// Why the node's capture does not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// Another agent of the same node name is running.
    #[error("another agent of node {node} is running: it holds {}", lock.display())]
    Busy {
        /// The node.
        node: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// A configuration that cannot work.
    #[error("{0}")]
    Config(String),
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted here: `mount -t cgroup2 none DIR` mounts one (`ip netns exec` hides it: \
         `nsenter --net=/run/netns/NAME` does not)"
    )]
    NoCgroup,
    /// There is no bpf file system and none could be mounted.
    #[error("no bpf file system at {}: {source}", path.display())]
    NoBpfFs {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be mounted.
        source: io::Error,
    },
    /// The kernel refused an eBPF operation.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// A file or pin could not be read, written or removed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program is not attached though the kernel took it.
    #[error("{program} is not attached after all")]
    NotAttached {
        /// The program.
        program: &'static str,
    },
    /// No pod with this UID is enrolled.
    #[error("pod {0} is not enrolled")]
    UnknownPod(String),
    /// A pod's rules, routes or settings could not be restored.
    #[error("network namespace {}: {source}", path.display())]
    Plumbing {
        /// The namespace.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The events are being read already.
    #[error("the events of this node are being read already")]
    EventsTaken,
}

impl CaptureError {
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// The steps of an enrolment, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnrolStep {
    /// Opening the network namespace.
    OpenNetns,
    /// Finding the pod's addresses in it.
    Addresses,
    /// Writing down what a cleanup would have to undo.
    State,
    /// Making the listeners.
    Listeners,
    /// Loading the pod's programs.
    Load,
    /// Handing the listeners to the kernel.
    Sockmap,
    /// Rules, routes and settings.
    Plumbing,
    /// Attaching the pod's programs.
    Attach,
    /// Telling the node's programs of the pod.
    Register,
    /// A connection through the new path.
    SelfTest,
    /// Starting to capture.
    Activate,
}

impl EnrolStep {
    /// A short name for status and events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::OpenNetns => "open-netns",
            Self::Addresses => "addresses",
            Self::State => "state",
            Self::Listeners => "listeners",
            Self::Load => "load",
            Self::Sockmap => "sockmap",
            Self::Plumbing => "plumbing",
            Self::Attach => "attach",
            Self::Register => "register",
            Self::SelfTest => "self-test",
            Self::Activate => "activate",
        }
    }
}

/// Why a pod could not be enrolled; nothing of the attempt is left.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", step.as_str())]
pub(crate) struct EnrolError {
    /// The step that failed.
    pub(crate) step: EnrolStep,
    /// Why.
    #[source]
    pub(crate) source: EnrolFailure,
}

impl EnrolError {
    /// Whether the same attempt may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.source, EnrolFailure::Tentative(_) | EnrolFailure::AddressMissing(_))
    }
}

/// What went wrong in a step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolFailure {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The kernel refused an eBPF operation.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// An address the world gives the pod is not in its namespace.
    #[error("the pod does not have its address {0}")]
    AddressMissing(std::net::IpAddr),
    /// Duplicate address detection still runs.
    #[error("address {0} is still tentative")]
    Tentative(std::net::IpAddr),
    /// The world gives the pod no address.
    #[error("the world gives the pod no address")]
    NoAddress,
    /// The pod, or another in the same namespace, is enrolled already.
    #[error("pod {0} is enrolled already")]
    Enrolled(String),
    /// The test connection did not go the way of a captured one.
    #[error("the test connection {0}")]
    SelfTest(String),
}

impl From<BpfError> for EnrolFailure {
    fn from(error: BpfError) -> Self {
        Self::Capture(error.into())
    }
}

/// Names the step in which something failed.
pub(super) trait AtStep<T> {
    fn at(self, step: EnrolStep) -> Result<T, EnrolError>;
}

impl<T, E: Into<EnrolFailure>> AtStep<T> for Result<T, E> {
    fn at(self, step: EnrolStep) -> Result<T, EnrolError> {
        self.map_err(|error| EnrolError { step, source: error.into() })
    }
}
