//! Telling the authors of policies what became of them: a condition in each policy's status.
//!
//! Others' conditions stay as they are. The leading replica writes; what it writes changes no world, since status is
//! dropped on arrival.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::Request;
use serde_json::{Value, json};
use tokio::time::timeout;
use warren_core::identity::TrustDomain;
use warren_core::world::{Loaded, MeshConfig, ObjectState, ObjectStatus, Severity};

use super::custody::SharedStanding;
use crate::exit::chain;
use crate::world_kube::KubeWorld;

/// The condition's type.
const TYPE: &str = "warren.dev/Accepted";
/// How long changes are gathered: the watch that tells of a policy may be behind the object that is read for its status.
const GATHER: Duration = Duration::from_secs(1);
/// How often the number of pods is written anew where nothing else has changed: every write is told to all who watch.
const COUNT: Duration = Duration::from_secs(60);

/// What is said of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    accepted: bool,
    reason: &'static str,
    /// Without the number of pods.
    text: String,
    pods: usize,
}

impl Verdict {
    fn of(status: &ObjectStatus, loaded: &Loaded) -> Self {
        let name = status.to_string();
        let faults = loaded
            .rejections
            .iter()
            .filter(|one| one.severity == Severity::Error && one.object.as_deref() == Some(name.as_str()));
        let faults: Vec<String> = faults
            .map(|one| match &one.field {
                Some(field) => format!("{field}: {}", one.reason),
                None => one.reason.clone(),
            })
            .collect();
        let (accepted, reason) = match status.state {
            ObjectState::Accepted => (true, "Accepted"),
            ObjectState::AcceptedWithWarnings => (true, "AcceptedWithWarnings"),
            ObjectState::LastGood => (false, "LastGoodVersionInForce"),
            ObjectState::NotUnderstood => (false, "Refused"),
        };
        let said = if faults.is_empty() { status.messages.clone() } else { faults };
        let text = if said.is_empty() { "in force".to_owned() } else { said.join("; ") };
        Self { accepted, reason, text, pods: status.pods }
    }

    fn message(&self) -> String {
        let pods = if self.pods == 1 { "1 pod".to_owned() } else { format!("{} pods", self.pods) };
        format!("{}; binds {pods}", self.text)
    }

    fn differs_beyond_the_count(&self, other: &Self) -> bool {
        (self.accepted, self.reason, &self.text) != (other.accepted, other.reason, &other.text)
    }

    /// Puts the condition into an object's status; `false` if it is there already.
    fn write_into(&self, object: &mut Value, now: &str) -> bool {
        let generation = object["metadata"]["generation"].clone();
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        if !object["status"]["conditions"].is_array() {
            object["status"]["conditions"] = json!([]);
        }
        let Some(conditions) = object["status"]["conditions"].as_array_mut() else { return false };
        let status = if self.accepted { "True" } else { "False" };
        let mut mine = json!({"type": TYPE, "status": status, "reason": self.reason, "message": self.message(),
            "observedGeneration": generation, "lastTransitionTime": now});
        let Some(before) = conditions.iter_mut().find(|one| one["type"] == TYPE) else {
            conditions.push(mine);
            return true;
        };
        if before["status"] == mine["status"] && before["lastTransitionTime"].is_string() {
            mine["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
        let changed = *before != mine;
        *before = mine;
        changed
    }
}

/// Where a policy is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    plural: &'static str,
    namespace: String,
    name: String,
}

impl Place {
    fn of(status: &ObjectStatus) -> Option<Self> {
        let plural = match status.kind.as_str() {
            "AuthorizationPolicy" => "authorizationpolicies",
            "PeerAuthentication" => "peerauthentications",
            _ => return None,
        };
        Some(Self { plural, namespace: status.namespace.clone(), name: status.name.clone() })
    }

    fn path(&self) -> String {
        let Self { plural, namespace, name } = self;
        format!("/apis/security.istio.io/v1/namespaces/{namespace}/{plural}/{name}")
    }
}

/// The writer of conditions.
pub(crate) struct Conditions {
    pub(crate) client: kube::Client,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) standing: SharedStanding,
    written: BTreeMap<Place, (Verdict, Instant)>,
}

impl Conditions {
    /// Nothing is written yet.
    pub(crate) fn new(
        client: kube::Client,
        kubeconfig: Option<PathBuf>,
        trust_domain: TrustDomain,
        standing: SharedStanding,
    ) -> Self {
        Self { client, kubeconfig, trust_domain, standing, written: BTreeMap::new() }
    }

    /// Watches and writes while this replica leads.
    pub(crate) async fn run(mut self) {
        let mut world: Option<KubeWorld> = None;
        let mut latest: Option<Loaded> = None;
        loop {
            if !self.standing.get().leads {
                (world, latest) = (None, None);
                self.written.clear();
                tokio::time::sleep(GATHER).await;
                continue;
            }
            let watching = match world.take() {
                Some(watching) => watching,
                None => {
                    let mesh = MeshConfig::new(self.trust_domain.clone());
                    match KubeWorld::start_policies(self.kubeconfig.clone(), mesh) {
                        Ok(started) => started,
                        Err(error) => {
                            tracing::error!(%error, "cannot start a thread");
                            tokio::time::sleep(GATHER).await;
                            continue;
                        }
                    }
                }
            };
            let watching = world.insert(watching);
            let until = tokio::time::Instant::now() + GATHER;
            while let Ok(loaded) = tokio::time::timeout_at(until, watching.next()).await {
                latest = Some(loaded);
            }
            if let Some(loaded) = &latest {
                self.write_all(loaded).await;
            }
        }
    }

    async fn write_all(&mut self, loaded: &Loaded) {
        let statuses = loaded.world.status();
        let places: Vec<(Place, Verdict)> =
            statuses.iter().filter_map(|status| Some((Place::of(status)?, Verdict::of(status, loaded)))).collect();
        let present: BTreeMap<&Place, ()> = places.iter().map(|(place, _)| (place, ())).collect();
        self.written.retain(|place, _| present.contains_key(place));
        for (place, verdict) in &places {
            let is_due = self.written.get(place).is_none_or(|(before, at)| {
                verdict.differs_beyond_the_count(before) || (verdict.pods != before.pods && at.elapsed() >= COUNT)
            });
            if !is_due {
                continue;
            }
            if !self.standing.get().leads {
                return;
            }
            match self.write(place, verdict).await {
                Ok(()) => {
                    self.written.insert(place.clone(), (verdict.clone(), Instant::now()));
                }
                Err(error) => {
                    tracing::warn!(policy = place.path(), error = chain(&error), "its status cannot be written");
                }
            }
        }
    }

    /// Reads the object and writes its status back, unless somebody else has in between: then the next look does.
    async fn write(&self, place: &Place, verdict: &Verdict) -> Result<(), kube::Error> {
        let path = place.path();
        let get = Request::get(&path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let mut object: Value = self.client.request(get).await?;
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        if !verdict.write_into(&mut object, &now) {
            return Ok(());
        }
        let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
        let put = Request::put(format!("{path}/status")).header(http::header::CONTENT_TYPE, "application/json");
        let put = put.body(body).map_err(kube::Error::HttpError)?;
        let limit = Duration::from_secs(10);
        let sent = timeout(limit, self.client.request::<Value>(put)).await;
        sent.unwrap_or_else(|_| Err(kube::Error::Service("the API server does not answer".into()))).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(accepted: bool, pods: usize) -> Verdict {
        let reason = if accepted { "Accepted" } else { "Refused" };
        Verdict { accepted, reason, text: "in force".to_owned(), pods }
    }

    #[test]
    fn conditions_of_others_stay() {
        let theirs = json!({"type": "istio.io/Reconciled", "status": "True", "more": 1});
        let mut object = json!({"metadata": {"generation": 3}, "status": {"conditions": [theirs], "other": "field"}});
        assert!(verdict(true, 1).write_into(&mut object, "t1"));
        assert_eq!(object["status"]["conditions"][0], theirs);
        assert_eq!(object["status"]["other"], "field");
        let mine = &object["status"]["conditions"][1];
        assert_eq!(
            *mine,
            json!({"type": TYPE, "status": "True", "reason": "Accepted", "message": "in force; binds 1 pod",
                "observedGeneration": 3, "lastTransitionTime": "t1"})
        );
    }

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let mut object = json!({"metadata": {"generation": 1}});
        assert!(verdict(true, 2).write_into(&mut object, "t1"));
        assert!(!verdict(true, 2).write_into(&mut object, "t2"), "the same is not written twice");
        assert!(verdict(true, 3).write_into(&mut object, "t2"));
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "t1");
        assert!(verdict(false, 3).write_into(&mut object, "t3"));
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "t3");
        assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 1);
    }
}
