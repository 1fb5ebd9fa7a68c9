//! What the service asks of the control thread, and what it is told.

use std::net::IpAddr;
use std::path::PathBuf;

use tokio::sync::oneshot;
use warren_core::identity::PodUid;
use warren_mesh::identity::PodIdentity;

/// Where a runtime has put a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The sandbox: a pod that is started anew has another one.
    pub(crate) container: String,
    /// Path of its network namespace, as the runtime gave it.
    pub(crate) netns: PathBuf,
    /// Its addresses.
    pub(crate) ips: Vec<IpAddr>,
}

/// A pod that was taken in.
pub(crate) struct Taken {
    /// To wait for its SVID.
    pub(crate) identity: PodIdentity,
}

/// One question to the control thread.
pub(crate) enum Call {
    /// Take the pod in, here; `Err` says why it is not in yet.
    Enrol {
        /// The pod.
        uid: PodUid,
        /// Where it is.
        place: Place,
        /// The runtime asks anew: what failed before is tried at once.
        anew: bool,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Taken, String>>,
    },
    /// Is the pod in, here?
    Check {
        /// The pod.
        uid: PodUid,
        /// Where its answer goes.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// The sandbox goes.
    Remove {
        /// The sandbox.
        container: String,
        /// Told when the pod's connections and keys are gone.
        answer: oneshot::Sender<()>,
    },
    /// Only these sandboxes are left.
    Retain {
        /// Their names.
        containers: Vec<String>,
    },
}
