//! One request for an SVID: who asks, for whom, and whether it may be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use warren_core::identity::{SpiffeId, TrustDomain};
use warren_mesh::identity::RequestedKey;
use warren_mesh::telemetry::{Asked, IssuanceLog};

use super::attest::Attestor;
use super::facts;
use super::rate::Rates;
use super::refusal::Refusal;
use super::signing::Signing;
use crate::ca_protocol::{SvidAnswer, SvidRequest};
use crate::exit::chain;

/// What answers requests.
pub(crate) struct Issuer {
    pub(crate) client: kube::Client,
    pub(crate) attestor: Attestor,
    pub(crate) signing: Arc<Signing>,
    pub(crate) rates: Mutex<Rates>,
    pub(crate) log: IssuanceLog,
    pub(crate) trust_domain: TrustDomain,
    /// Warren's own namespace.
    pub(crate) system: String,
    pub(crate) leaf_ttl: Duration,
}

impl Issuer {
    /// Answers one request, and records the answer.
    pub(crate) async fn answer(&self, token: &str, request: &SvidRequest) -> Result<SvidAnswer, Refusal> {
        let asked = Asked { namespace: &request.namespace, pod: &request.pod, uid: &request.uid, node: None };
        let node = self.attestor.node(token).await.inspect_err(|refusal| self.refused(asked, refusal))?;
        let asked = Asked { node: Some(&node), ..asked };
        self.issue(&node, asked, request).await.inspect_err(|refusal| self.refused(asked, refusal))
    }

    async fn issue(&self, node: &str, asked: Asked<'_>, request: &SvidRequest) -> Result<SvidAnswer, Refusal> {
        if !self.rates.lock().unwrap_or_else(PoisonError::into_inner).take(node, Instant::now()) {
            return Err(Refusal::Rate(node.to_owned()));
        }
        let key = RequestedKey::read(&request.request).map_err(|error| Refusal::Request(error.to_string()))?;
        let id = self.identity(node, request).await?;
        let nothing = || Refusal::NotReady("its keys are not loaded".to_owned());
        let current = self.signing.current().ok_or_else(nothing)?;
        let signed = current.authority.sign(&key, &id, SystemTime::now(), self.leaf_ttl);
        let issued = signed.map_err(|error| Refusal::NotReady(error.to_string()))?;
        self.log.issued(asked, &id, &issued, &current.authority.certificate().subject);
        Ok(SvidAnswer { chain: issued.pem })
    }

    /// Asks the API server each time, and never what it has in a cache.
    async fn identity(&self, node: &str, request: &SvidRequest) -> Result<SpiffeId, Refusal> {
        let name = format!("{}/{}", request.namespace, request.pod);
        // Names become a part of a path.
        let legal =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
        if !legal(&request.namespace) || !legal(&request.pod) {
            return Err(Refusal::UnknownPod(name));
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &request.namespace);
        let found = pods.get_opt(&request.pod).await.map_err(|error| Refusal::ApiServer(chain(&error)))?;
        let pod = found.ok_or(Refusal::UnknownPod(name))?;
        facts::identity(&pod, &request.uid, node, &self.system, &self.trust_domain)
    }

    fn refused(&self, asked: Asked<'_>, refusal: &Refusal) {
        tracing::warn!(namespace = asked.namespace, pod = asked.pod, node = asked.node, %refusal, "no SVID");
        self.log.refused(asked, refusal.reason(), refusal.to_string());
    }
}
