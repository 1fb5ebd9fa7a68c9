//! SVIDs, trust bundles and the handles through which a pod's connections get
//! them.
//!
//! State is keyed by pod UID, never by SPIFFE ID: two pods of one service
//! account do not share keys (identity.md §13). A handshake takes one
//! [`IdentitySnapshot`], so SVID and bundle always belong together.

mod authority;
mod bundle;
pub mod ca_dir;
pub mod embedded;
mod issue;
mod pod;
mod request;
mod schedule;
mod svid;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use warren_core::identity::{PodUid, SpiffeId};

pub use authority::{Authority, AuthorityError, CaCertificate, CaPem, IssuedChain, certificate_id};
pub use bundle::{BundleError, TrustBundle};
pub use issue::IssueError;
pub use pod::{IdentityChanges, IdentityStatus, NoIdentity, PodIdentity, PodIdentityWriter, pod_identity};
pub use request::{MAX_REQUEST, NewKey, RequestError, RequestedKey};
pub use schedule::Schedule;
pub use svid::{Svid, SvidError};

use crate::clock::Clock;

/// What one handshake needs: an SVID and the roots it may trust, swapped
/// together.
pub struct IdentitySnapshot {
    /// The pod's SVID.
    pub svid: Arc<Svid>,
    /// Roots of the pod's own trust domain.
    pub bundle: Arc<TrustBundle>,
    /// Grows with every change of either.
    pub generation: u64,
    clock: Arc<dyn Clock>,
}

impl IdentitySnapshot {
    /// Joins an SVID with the bundle it is used with.
    pub fn new(svid: Arc<Svid>, bundle: Arc<TrustBundle>, generation: u64, clock: Arc<dyn Clock>) -> Self {
        Self { svid, bundle, generation, clock }
    }

    /// Time left until the SVID expires; zero when it has.
    pub fn remaining(&self) -> Duration {
        self.svid.not_after().duration_since(self.clock.now()).unwrap_or_default()
    }

    /// The clock that decides about validity.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

impl fmt::Debug for IdentitySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentitySnapshot")
            .field("svid", &self.svid)
            .field("roots", &self.bundle.len())
            .field("generation", &self.generation)
            .finish()
    }
}

/// An issuing certificate that Warren depends on, for status and expiry
/// metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerStatus {
    /// `root` or `intermediate`.
    pub kind: &'static str,
    /// Subject, as RFC 4514 text.
    pub subject: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Whether new certificates are signed under it.
    pub active: bool,
}

/// A pod, as an issuer of SVIDs wants it named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Its UID: the pod of that name may be another one by now.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Where SVIDs come from.
pub trait SvidSource: Send + Sync {
    /// Starts serving a pod; issuing and renewal follow by themselves. A second
    /// call for the same UID and identity gives the same state again; with
    /// another identity the pod starts anew, without an SVID of the old name.
    fn add_pod(&self, pod: &PodRef, id: &SpiffeId) -> PodIdentity;

    /// Forgets a pod and its key at once; its handles turn to
    /// [`NoIdentity::Withdrawn`].
    fn remove_pod(&self, uid: &PodUid);

    /// Issuing certificates in use or trusted.
    fn issuers(&self) -> Vec<IssuerStatus>;

    /// Makes a pod's SVID anew, soon, whatever is left of the one in use; `false` if the pod is not known.
    fn renew(&self, uid: &PodUid) -> bool;

    /// What the certificate authority of the whole mesh must know of this node before it changes its keys; `None` if
    /// there is no such authority.
    fn trust(&self) -> Option<TrustNotes> {
        None
    }
}

/// What a node trusts, and who signed what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustNotes {
    /// [`TrustBundle::digest`] of the bundle in use.
    pub bundle: String,
    /// [`certificate_id`]s of the intermediates above the SVIDs in use, in order.
    pub issuers: Vec<String>,
}
