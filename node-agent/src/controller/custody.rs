//! Keeping the certificate authority: every replica reads its state and signs by it; the one that leads makes it, changes
//! it and publishes what follows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use warren_core::identity::TrustDomain;
use warren_mesh::identity::AuthorityError;

use super::lease::Leadership;
use super::nodes::nodes;
use super::rotation::{Progress, advance, begin};
use super::signing::{Signing, SigningError};
use super::state::{CaState, StateError, What};
use super::store::{Store, StoreError, Stored, Wish};
use crate::ca_protocol::{RotationNotes, WaitingNode};
use crate::exit::chain;

/// How often the state is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why the state is not as it should be.
#[derive(Debug, thiserror::Error)]
enum CustodyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("Lease: {0}")]
    Lease(#[source] kube::Error),
    #[error("intermediate-cert.pem: {0}")]
    Authority(#[from] AuthorityError),
}

/// How the custody is, for health and metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// Whether this replica leads.
    pub(crate) leads: bool,
    /// What is wrong just now.
    pub(crate) trouble: Option<String>,
    /// Nodes that a rotation waits for.
    pub(crate) waiting: usize,
    /// Whether a rotation is under way.
    pub(crate) rotating: bool,
}

/// Shared with whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedStanding(Arc<Mutex<Standing>>);

impl SharedStanding {
    /// How it is now.
    pub(crate) fn get(&self) -> Standing {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The keeper of the state.
pub(crate) struct Custody {
    client: kube::Client,
    namespace: String,
    trust_domain: TrustDomain,
    store: Store,
    leadership: Leadership,
    signing: Arc<Signing>,
    standing: SharedStanding,
}

impl Custody {
    /// Nothing has been read yet; `me` names this replica.
    pub(crate) fn new(
        client: kube::Client,
        namespace: &str,
        me: String,
        trust_domain: TrustDomain,
        signing: Arc<Signing>,
        standing: SharedStanding,
    ) -> Self {
        Self {
            store: Store::new(&client, namespace),
            leadership: Leadership::new(&client, namespace, me),
            namespace: namespace.to_owned(),
            client,
            trust_domain,
            signing,
            standing,
        }
    }

    /// Looks once a second until told to end; then another replica may lead at once.
    pub(crate) async fn run(mut self, mut end: tokio::sync::oneshot::Receiver<()>) {
        loop {
            let trouble = match self.look().await {
                // Another replica was faster; what it wrote is read next time.
                Ok(()) | Err(CustodyError::Store(StoreError::Conflict)) => None,
                Err(error) => Some(chain(&error)),
            };
            let before = self.standing.get().trouble;
            if before != trouble {
                match &trouble {
                    Some(trouble) => tracing::error!(trouble, "the certificate authority is not as it should be"),
                    None => tracing::info!("the certificate authority is well again"),
                }
            }
            self.standing.change(|standing| standing.trouble = trouble);
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = &mut end => break,
            }
        }
        self.leadership.let_go().await;
    }

    async fn look(&mut self) -> Result<(), CustodyError> {
        let leads = self.leadership.hold().await.map_err(CustodyError::Lease)?;
        if self.standing.get().leads != leads {
            tracing::info!(leads, "leadership");
            self.standing.change(|standing| standing.leads = leads);
        }
        let now = SystemTime::now();
        let stored = self.store.read().await?;
        let state = self.state(&stored, now).await?;
        self.signing.adopt(state.clone(), now)?;
        if leads { self.lead(&state, &stored, now).await } else { Ok(()) }
    }

    /// The state that is stored; made or completed where it is not.
    async fn state(&self, stored: &Stored, now: SystemTime) -> Result<CaState, CustodyError> {
        let Some(data) = &stored.data else {
            // Whoever deleted the Secret may have meant it: nothing is signed by keys that are nowhere else.
            if self.store.published().await?.is_some() {
                self.signing.stop();
                return Err(StoreError::Lost.into());
            }
            let state = CaState::new(&self.trust_domain, now)?;
            self.store.write(&state, stored).await?;
            tracing::info!("made a root and an intermediate");
            return Ok(state);
        };
        match CaState::read(data, &self.trust_domain, now) {
            Ok((state, false)) => Ok(state),
            Ok((state, true)) => {
                self.store.write(&state, stored).await?;
                tracing::info!("completed what an operator put into Secret warren-ca");
                Ok(state)
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    async fn lead(&self, state: &CaState, stored: &Stored, now: SystemTime) -> Result<(), CustodyError> {
        if let Some(wish) = &stored.wish {
            let next = self.fulfil(state, wish, now);
            return Ok(self.store.write(&next, stored).await?);
        }
        if state.rotation.is_none() && self.intermediate_is_due(state, now)? {
            tracing::info!("the intermediate has lived for half of its life and is replaced");
            let next = begin(state, What::Intermediate, &self.trust_domain, now)?;
            return Ok(self.store.write(&next, stored).await?);
        }
        let waiting = match self.progress(state, now).await? {
            Progress::Steady => Vec::new(),
            Progress::Waiting(waiting) => waiting,
            Progress::Next(next) => {
                let step = next.rotation.as_ref().map_or("done", |rotation| rotation.step.as_str());
                tracing::info!(step, "rotation goes on");
                return Ok(self.store.write(&next, stored).await?);
            }
        };
        self.standing.change(|standing| {
            standing.waiting = waiting.len();
            standing.rotating = state.rotation.is_some();
        });
        let notes = state.rotation.as_ref().map(|rotation| RotationNotes {
            what: rotation.what.as_str().to_owned(),
            step: rotation.step.as_str().to_owned(),
            since: humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(rotation.since))
                .to_string(),
            waiting,
        });
        Ok(self.store.publish(state, &self.trust_domain, notes).await?)
    }

    /// What an operator asks for, done; the same state where it cannot be, so that the wish is gone.
    fn fulfil(&self, state: &CaState, wish: &str, now: SystemTime) -> CaState {
        let next = match (serde_json::from_str(wish), &state.rotation) {
            (Ok(Wish::Rotate(what)), None) => begin(state, what, &self.trust_domain, now).map_err(|e| chain(&e)),
            (Ok(Wish::Rotate(_)), Some(_)) => Err("a rotation is under way; it must end first".to_owned()),
            (Ok(Wish::Skip(nodes)), Some(rotation)) => {
                let mut rotation = rotation.clone();
                rotation.skipped.extend(nodes);
                Ok(CaState { rotation: Some(rotation), ..state.clone() })
            }
            (Ok(Wish::Skip(_)), None) => Err("no rotation is under way".to_owned()),
            (Err(error), _) => Err(error.to_string()),
        };
        next.inspect(|_| tracing::info!(wish, "an operator's request")).unwrap_or_else(|error| {
            tracing::error!(wish, error, "an operator's request cannot be carried out");
            state.clone()
        })
    }

    /// Whether the controller can and should replace the intermediate by itself.
    fn intermediate_is_due(&self, state: &CaState, now: SystemTime) -> Result<bool, CustodyError> {
        if state.root_key.is_none() {
            return Ok(false);
        }
        let certificate = state.intermediate.read(&self.trust_domain)?;
        let life = certificate.not_after.duration_since(certificate.not_before).unwrap_or_default();
        Ok(now >= certificate.not_before + life / 2)
    }

    async fn progress(&self, state: &CaState, now: SystemTime) -> Result<Progress, CustodyError> {
        if state.rotation.is_none() {
            return Ok(Progress::Steady);
        }
        match nodes(&self.client, &self.namespace).await {
            Ok(nodes) => Ok(advance(state, &nodes, &self.trust_domain, now)?),
            Err(error) => {
                let reason = format!("what the agents say cannot be read: {}", chain(&error));
                Ok(Progress::Waiting(vec![WaitingNode { node: "(all)".to_owned(), reason }]))
            }
        }
    }
}
