//! A pod's identity over time: written by an [`SvidSource`](super::SvidSource),
//! read by the pod's connections.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use warren_core::identity::{PodUid, SpiffeId};

use super::IdentitySnapshot;
use crate::clock::Clock;

/// Why a pod has no identity at this moment. Connections are held or refused,
/// never sent in clear.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// The source has not delivered an SVID yet.
    #[error("no SVID issued yet{}", .last_error.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    NotIssued {
        /// The source's last error, if it tried and failed.
        last_error: Option<String>,
    },
    /// The last good SVID has expired and no new one came.
    #[error("the SVID expired{}", .last_error.as_ref().map(|e| format!(" and renewal failed: {e}")).unwrap_or_default())]
    Expired {
        /// End of its validity.
        not_after: SystemTime,
        /// The source's last error.
        last_error: Option<String>,
    },
    /// The pod was removed, or its identity taken back.
    #[error("the identity was withdrawn")]
    Withdrawn,
}

impl NoIdentity {
    /// A short, stable name for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotIssued { .. } => "not_issued",
            Self::Expired { .. } => "expired",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// What `warren status` tells of a pod's identity.
#[derive(Debug, Clone)]
pub struct IdentityStatus {
    /// The identity the pod should have.
    pub id: SpiffeId,
    /// Serial of the SVID in use, lower-case hex.
    pub serial: Option<String>,
    /// Issuer of the SVID in use, as RFC 4514 text.
    pub issuer: Option<String>,
    /// Start of validity of the SVID in use.
    pub not_before: Option<SystemTime>,
    /// End of validity of the SVID in use.
    pub not_after: Option<SystemTime>,
    /// Time left; `None` without SVID, zero when expired.
    pub remaining: Option<Duration>,
    /// Last failure to get a new SVID; `None` after a success.
    pub last_error: Option<String>,
}

#[derive(Default)]
struct State {
    snapshot: Option<Arc<IdentitySnapshot>>,
    last_error: Option<String>,
    withdrawn: bool,
}

/// A pod's identity, as its connections see it. Cheap to clone.
#[derive(Clone)]
pub struct PodIdentity {
    uid: PodUid,
    id: SpiffeId,
    state: watch::Receiver<State>,
    clock: Arc<dyn Clock>,
}

/// The source's end of a [`PodIdentity`].
pub struct PodIdentityWriter {
    state: watch::Sender<State>,
    reader: PodIdentity,
}

/// A pod's identity without an SVID yet.
pub fn pod_identity(uid: &PodUid, id: &SpiffeId, clock: Arc<dyn Clock>) -> PodIdentityWriter {
    let (state, rx) = watch::channel(State::default());
    let reader = PodIdentity { uid: uid.clone(), id: id.clone(), state: rx, clock };
    PodIdentityWriter { state, reader }
}

impl PodIdentity {
    /// The pod.
    pub fn uid(&self) -> &PodUid {
        &self.uid
    }

    /// The identity the pod should have.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The snapshot for a handshake now.
    pub fn current(&self) -> Result<Arc<IdentitySnapshot>, NoIdentity> {
        self.judge(&self.state.borrow())
    }

    /// Follows what becomes of the identity from now on.
    pub fn changes(&self) -> IdentityChanges {
        IdentityChanges(self.state.clone())
    }

    /// Like [`current`](Self::current), but waits up to `limit` for an SVID. A
    /// withdrawn identity does not come back, so that is told at once.
    pub async fn wait(&self, limit: Duration) -> Result<Arc<IdentitySnapshot>, NoIdentity> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut state = self.state.clone();
        loop {
            let verdict = self.judge(&state.borrow_and_update());
            if matches!(verdict, Ok(_) | Err(NoIdentity::Withdrawn)) {
                return verdict;
            }
            match tokio::time::timeout_at(deadline, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(NoIdentity::Withdrawn),
                Err(_) => return verdict,
            }
        }
    }

    /// Facts for `warren status`.
    pub fn status(&self) -> IdentityStatus {
        let state = self.state.borrow();
        let svid = state.snapshot.as_ref().map(|snapshot| &snapshot.svid);
        IdentityStatus {
            id: self.id.clone(),
            serial: svid.map(|svid| svid.serial().to_owned()),
            issuer: svid.map(|svid| svid.issuer().to_owned()),
            not_before: svid.map(|svid| svid.not_before()),
            not_after: svid.map(|svid| svid.not_after()),
            remaining: state.snapshot.as_ref().map(|snapshot| snapshot.remaining()),
            last_error: state.last_error.clone(),
        }
    }

    fn judge(&self, state: &State) -> Result<Arc<IdentitySnapshot>, NoIdentity> {
        if state.withdrawn {
            return Err(NoIdentity::Withdrawn);
        }
        let last_error = || state.last_error.clone();
        match &state.snapshot {
            None => Err(NoIdentity::NotIssued { last_error: last_error() }),
            Some(snapshot) if self.clock.now() >= snapshot.svid.not_after() => {
                let not_after = snapshot.svid.not_after();
                Err(NoIdentity::Expired { not_after, last_error: last_error() })
            }
            Some(snapshot) => Ok(Arc::clone(snapshot)),
        }
    }
}

/// The changes of a [`PodIdentity`].
pub struct IdentityChanges(watch::Receiver<State>);

impl IdentityChanges {
    /// Waits for the next change, good or bad; none is missed, and several may be told as one. `false` once there will
    /// be none: the source has gone.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl PodIdentityWriter {
    /// A handle for connections.
    pub fn reader(&self) -> PodIdentity {
        self.reader.clone()
    }

    /// Puts a new snapshot in place; clears the last error.
    pub fn publish(&self, snapshot: IdentitySnapshot) {
        self.state.send_modify(|state| {
            state.snapshot = Some(Arc::new(snapshot));
            state.last_error = None;
        });
    }

    /// Notes a failure; the last good snapshot stays until it expires.
    pub fn failed(&self, error: &str) {
        self.state.send_modify(|state| state.last_error = Some(error.to_owned()));
    }

    /// Takes the identity back for good and drops the key.
    pub fn withdraw(&self) {
        self.state.send_modify(|state| {
            state.withdrawn = true;
            state.snapshot = None;
        });
    }

    /// The snapshot in place, expired or not.
    pub fn snapshot(&self) -> Option<Arc<IdentitySnapshot>> {
        self.state.borrow().snapshot.clone()
    }
}

impl Drop for PodIdentityWriter {
    fn drop(&mut self) {
        self.withdraw();
    }
}
