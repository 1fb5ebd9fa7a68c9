//! Who asks: an agent proves itself by its pod's token, which kubelet projects for this audience only.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};

use super::refusal::Refusal;
use crate::ca_protocol::{AGENT, AUDIENCE};
use crate::exit::chain;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// How long a proof counts: an agent asks for many SVIDs at once. A pod that is deleted proves no longer than that.
const KEPT: Duration = Duration::from_secs(5);
/// Longest token.
const MAX_TOKEN: usize = 16 * 1024;

/// Asks the API server about tokens.
pub(crate) struct Attestor {
    client: kube::Client,
    pods: Api<Pod>,
    agent: String,
    /// The node of each token that was proven lately, by the token's SHA-256.
    proven: Mutex<HashMap<Vec<u8>, (String, Instant)>>,
}

impl Attestor {
    /// An attestor of the agents of a namespace.
    pub(crate) fn new(client: kube::Client, namespace: &str) -> Self {
        Self {
            pods: Api::namespaced(client.clone(), namespace),
            client,
            agent: format!("system:serviceaccount:{namespace}:{AGENT}"),
            proven: Mutex::default(),
        }
    }

    /// The node whose agent has this token.
    pub(crate) async fn node(&self, token: &str) -> Result<String, Refusal> {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(Refusal::Token("there is none, or one of no sensible length".to_owned()));
        }
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if let Some(node) = self.known(&key) {
            return Ok(node);
        }
        let node = self.prove(token).await?;
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        proven.retain(|_, (_, at)| at.elapsed() < KEPT);
        proven.insert(key, (node.clone(), Instant::now()));
        Ok(node)
    }

    fn known(&self, key: &[u8]) -> Option<String> {
        let proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        proven.get(key).filter(|(_, at)| at.elapsed() < KEPT).map(|(node, _)| node.clone())
    }

    async fn prove(&self, token: &str) -> Result<String, Refusal> {
        let away = |error: kube::Error| Refusal::ApiServer(chain(&error));
        let review = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await.map_err(away)?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(Refusal::Token(status.error.unwrap_or_else(|| "the API server does not know it".to_owned())));
        }
        if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
            return Err(Refusal::Token(format!("it is not meant for {AUDIENCE}")));
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        if name != self.agent {
            return Err(Refusal::NotAnAgent(name));
        }
        let extra = user.extra.unwrap_or_default();
        let claim = |key: &str| extra.get(key).and_then(|values| values.first()).cloned().unwrap_or_default();
        let (pod, uid, node) = (claim(POD_NAME), claim(POD_UID), claim(NODE_NAME));
        if pod.is_empty() || uid.is_empty() {
            return Err(Refusal::Token("it is bound to no pod".to_owned()));
        }
        let found = self.pods.get_opt(&pod).await.map_err(away)?.ok_or(Refusal::AgentGone)?;
        if found.metadata.uid.as_deref() != Some(&uid) {
            return Err(Refusal::AgentGone);
        }
        let runs_on = found.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        // Before Kubernetes 1.32 the token does not name the node; the pod's object does.
        if runs_on.is_empty() || (!node.is_empty() && node != runs_on) {
            return Err(Refusal::AgentGone);
        }
        Ok(runs_on)
    }
}
