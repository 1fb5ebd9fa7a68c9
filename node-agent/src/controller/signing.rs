//! What a controller signs with at this moment, and its own SVID under it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use warren_core::identity::{SpiffeId, TrustDomain};
use warren_mesh::identity::{Authority, IssueError, IssuerStatus, NewKey, SvidError};
use warren_mesh::telemetry::Telemetry;
use warren_mesh::tls::ServiceSvid;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::state::{CaState, StateError};

/// Lifetime of the controller's own SVID.
const OWN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Why there is nothing to sign with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SigningError {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The controller's own SVID cannot be made.
    #[error("no SVID for the controller itself: {0}")]
    Own(#[from] IssueError),
    /// The same.
    #[error("no SVID for the controller itself: {0}")]
    Svid(#[from] SvidError),
    /// The same.
    #[error("no SVID for the controller itself: {0}")]
    Key(#[from] warren_mesh::identity::RequestError),
}

/// A state in force.
pub(crate) struct Current {
    pub(crate) state: CaState,
    pub(crate) authority: Authority,
    /// When the controller's own SVID is made anew.
    own_until: SystemTime,
}

/// What is in force, for all that sign.
pub(crate) struct Signing {
    current: ArcSwapOption<Current>,
    own: ServiceSvid,
    own_id: SpiffeId,
    trust_domain: TrustDomain,
    telemetry: Arc<Telemetry>,
}

impl Signing {
    /// Nothing is in force yet.
    pub(crate) fn new(own_id: SpiffeId, trust_domain: TrustDomain, telemetry: Arc<Telemetry>) -> Self {
        Self { current: ArcSwapOption::empty(), own: ServiceSvid::default(), own_id, trust_domain, telemetry }
    }

    /// The controller's own SVID, for its listener.
    pub(crate) fn own(&self) -> ServiceSvid {
        self.own.clone()
    }

    /// What is in force.
    pub(crate) fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    /// Takes a state over, unless it is in force already.
    pub(crate) fn adopt(&self, state: CaState, now: SystemTime) -> Result<(), SigningError> {
        if self.current().is_some_and(|current| current.state == state && now < current.own_until) {
            return Ok(());
        }
        let authority = state.authority(&self.trust_domain, now)?;
        let key = NewKey::generate()?;
        let requested = warren_mesh::identity::RequestedKey::read(&key.request()?)?;
        let issued = authority.sign(&requested, &self.own_id, now, OWN_TTL)?;
        let chain = CertificateDer::pem_slice_iter(issued.pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| IssueError::Make(error.to_string()))?;
        self.own.set(&key.svid(&self.own_id, chain)?);
        let left = issued.not_after.duration_since(now).unwrap_or_default();
        self.telemetry.metrics().issuers(&issuers(&state, &authority, &self.trust_domain)?);
        tracing::info!(sequence = state.sequence, issuer = authority.id(), "signing");
        self.current.store(Some(Arc::new(Current { state, authority, own_until: now + left / 2 })));
        Ok(())
    }

    /// Signs no more.
    pub(crate) fn stop(&self) {
        if self.current.swap(None).is_some() {
            self.own.clear();
        }
    }
}

fn issuers(
    state: &CaState,
    authority: &Authority,
    trust_domain: &TrustDomain,
) -> Result<Vec<IssuerStatus>, StateError> {
    let roots = state.roots(trust_domain)?;
    let status = |kind, one: &warren_mesh::identity::CaCertificate, active| IssuerStatus {
        kind,
        subject: one.subject.clone(),
        serial: one.serial.clone(),
        not_before: one.not_before,
        not_after: one.not_after,
        active,
    };
    let roots = roots.iter().enumerate().map(|(at, root)| status("root", root, at == 0));
    Ok(roots.chain([status("intermediate", authority.certificate(), true)]).collect())
}
