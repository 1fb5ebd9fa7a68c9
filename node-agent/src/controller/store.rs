//! Where the certificate authority's state lives in the API server: one Secret, and one ConfigMap that follows from it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use warren_core::identity::TrustDomain;

use super::rotation::issuer;
use super::state::{CaState, SecretData, StateError, What};
use crate::ca_protocol::{BUNDLE, BUNDLE_FORMAT, BUNDLE_NOTES, BUNDLE_PEM, BundleNotes, RotationNotes};
use crate::kube_client::is_status;

/// Name of the Secret.
pub(crate) const SECRET: &str = "warren-ca";
/// Annotation of the Secret by which an operator asks for something; what it says is a [`Wish`].
pub(crate) const WISH: &str = "warren.dev/ca-request";

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The API server said no, or cannot be reached.
    #[error("{what}: {error}")]
    Api {
        /// What was asked of it.
        what: &'static str,
        /// The cause.
        #[source]
        error: Box<kube::Error>,
    },
    /// Others trust roots of which the keys are gone.
    #[error(
        "Secret {SECRET} is not there, but ConfigMap {BUNDLE} is: agents trust roots whose keys are gone. A new root would \
         cut off every pod; put the Secret back with `warren ca restore`, or delete the ConfigMap to begin anew"
    )]
    Lost,
    /// What the Secret holds cannot be used.
    #[error("Secret {SECRET}: {0}")]
    State(#[from] StateError),
    /// Somebody else wrote it in between.
    #[error("somebody else has changed the Secret in between")]
    Conflict,
}

impl StoreError {
    fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |error| Self::Api { what, error: Box::new(error) }
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wish {
    /// Begin to replace something.
    Rotate(What),
    /// Wait no longer for these nodes, in the step that is under way.
    Skip(Vec<String>),
}

/// The Secret as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its contents; `None` if there is no Secret.
    pub(crate) data: Option<SecretData>,
    /// What an operator asks for.
    pub(crate) wish: Option<String>,
    version: Option<String>,
}

/// The objects of one namespace.
#[derive(Clone)]
pub(crate) struct Store {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
}

impl Store {
    /// The objects in a namespace.
    pub(crate) fn new(client: &kube::Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
        }
    }

    /// Reads the Secret.
    pub(crate) async fn read(&self) -> Result<Stored, StoreError> {
        let found = self.secrets.get_opt(SECRET).await.map_err(StoreError::api("reading Secret warren-ca"))?;
        Ok(match found {
            None => Stored { data: None, wish: None, version: None },
            Some(secret) => Stored {
                data: Some(secret.data.unwrap_or_default()),
                wish: secret.metadata.annotations.unwrap_or_default().remove(WISH),
                version: secret.metadata.resource_version,
            },
        })
    }

    /// Writes the Secret, if it is still as it was read; a wish that was there counts as done.
    pub(crate) async fn write(&self, state: &CaState, before: &Stored) -> Result<(), StoreError> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                resource_version: before.version.clone(),
                ..ObjectMeta::default()
            },
            data: Some(state.write()?),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        let options = PostParams::default();
        let written = match before.version {
            None => self.secrets.create(&options, &secret).await,
            Some(_) => self.secrets.replace(SECRET, &options, &secret).await,
        };
        match written {
            Ok(_) => Ok(()),
            Err(error) if is_status(&error, 409) => Err(StoreError::Conflict),
            Err(error) => Err(StoreError::api("writing Secret warren-ca")(error)),
        }
    }

    /// Asks the leading controller for something.
    pub(crate) async fn ask(&self, wish: &Wish) -> Result<(), StoreError> {
        let text = serde_json::to_string(wish).unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {"annotations": {WISH: text}}}));
        let done = self.secrets.patch(SECRET, &PatchParams::default(), &patch).await;
        done.map(drop).map_err(StoreError::api("writing Secret warren-ca"))
    }

    /// The roots that agents trust now, PEM.
    pub(crate) async fn published_roots(&self) -> Result<Option<String>, StoreError> {
        let found = self.config_maps.get_opt(BUNDLE).await;
        let found = found.map_err(StoreError::api("reading ConfigMap warren-trust-bundle"))?;
        Ok(found.and_then(|map| map.data?.remove(BUNDLE_PEM)))
    }

    /// The ConfigMap's notes, if it is there.
    pub(crate) async fn published(&self) -> Result<Option<BundleNotes>, StoreError> {
        let found = self.config_maps.get_opt(BUNDLE).await;
        let found = found.map_err(StoreError::api("reading ConfigMap warren-trust-bundle"))?;
        let Some(map) = found else { return Ok(None) };
        let text = map.data.unwrap_or_default().remove(BUNDLE_NOTES).unwrap_or_default();
        // What cannot be read is written anew.
        Ok(Some(serde_json::from_str(&text).unwrap_or(BundleNotes {
            format: BUNDLE_FORMAT,
            sequence: 0,
            trust_domain: String::new(),
            issuer: String::new(),
            rotation: None,
        })))
    }

    /// Publishes what follows from a state, if it is not there already.
    pub(crate) async fn publish(
        &self,
        state: &CaState,
        trust_domain: &TrustDomain,
        rotation: Option<RotationNotes>,
    ) -> Result<(), StoreError> {
        let notes = BundleNotes {
            format: BUNDLE_FORMAT,
            sequence: state.sequence,
            trust_domain: trust_domain.to_string(),
            issuer: issuer(state, trust_domain)?,
            rotation,
        };
        let before = self.published().await?;
        if before.as_ref() == Some(&notes) {
            return Ok(());
        }
        let text = serde_json::to_string(&notes).unwrap_or_default();
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(BUNDLE.to_owned()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(BUNDLE_PEM.to_owned(), state.bundle_pem()), (BUNDLE_NOTES.to_owned(), text)])),
            ..ConfigMap::default()
        };
        let options = PostParams::default();
        let written = match before {
            None => self.config_maps.create(&options, &map).await,
            Some(_) => self.config_maps.replace(BUNDLE, &options, &map).await,
        };
        written.map(drop).map_err(StoreError::api("writing ConfigMap warren-trust-bundle"))
    }
}
