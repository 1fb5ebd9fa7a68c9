//! Telling whoever looks at a pod, by a Kubernetes event, why it is not in the mesh though it should be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::timeout;
use warren_core::identity::PodUid;
use warren_core::world::Pod;

use super::board::{Board, PodState};
use crate::exit::chain;
use crate::kube_client;

/// Name of the reporter.
const REPORTER: &str = "warren.dev/agent";
/// How often the pods are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// A failure that goes by itself within this time is not told: a pod's namespace comes after its object.
const LASTING: Duration = Duration::from_secs(10);
/// Events that are written in one look at most.
const AT_ONCE: usize = 20;
/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(10);

/// What is to be said of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remark {
    reason: &'static str,
    message: String,
}

impl Remark {
    fn of(state: &PodState) -> Option<Self> {
        match state {
            PodState::Refused(reason) => {
                Some(Self { reason: "WarrenRefused", message: format!("not taken into the mesh: {reason}") })
            }
            PodState::Failed(error) => Some(Self {
                reason: "WarrenNotEnrolled",
                message: format!("not in the mesh yet, tried again: {}: {}", error.step, error.reason),
            }),
            PodState::Enrolled | PodState::Leaving | PodState::Observed => None,
        }
    }
}

/// What was seen of a pod.
struct Seen {
    remark: Remark,
    since: Instant,
    told: bool,
}

/// What was said, and what is to be said next.
#[derive(Default)]
struct Journal(BTreeMap<PodUid, Seen>);

impl Journal {
    /// The pods of which something is to be said now; each thing is said once as long as it stays the same.
    fn look<'a>(
        &mut self,
        pods: impl Iterator<Item = (&'a Arc<Pod>, &'a PodState)>,
        now: Instant,
    ) -> Vec<(Arc<Pod>, Remark)> {
        let mut before = std::mem::take(&mut self.0);
        let mut due = Vec::new();
        for (pod, state) in pods {
            let Some(remark) = Remark::of(state) else { continue };
            let mut seen = match before.remove(&pod.uid) {
                // Causes may change from one try to the next; that it does not work is said once.
                Some(seen) if seen.remark.reason == remark.reason => Seen { remark, ..seen },
                _ => Seen { remark, since: now, told: false },
            };
            let lasts = matches!(state, PodState::Refused(_)) || now.duration_since(seen.since) >= LASTING;
            if lasts && !seen.told && due.len() < AT_ONCE {
                seen.told = true;
                due.push((pod.clone(), seen.remark.clone()));
            }
            self.0.insert(pod.uid.clone(), seen);
        }
        due
    }
}

/// Writes events for as long as the agent runs.
pub(super) async fn run(board: Arc<Board>, node: String, kubeconfig: Option<PathBuf>) {
    let mut journal = Journal::default();
    let mut client = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let due = {
            let notes = board.notes();
            journal.look(notes.pods.iter().map(|entry| (&entry.pod, &entry.state)), Instant::now())
        };
        for (pod, remark) in due {
            if client.is_none() {
                client = kube_client::connect(kubeconfig.as_deref()).await.ok();
            }
            let Some(client) = &client else { continue };
            let events: Api<Event> = Api::namespaced(client.clone(), &pod.namespace);
            let options = PostParams::default();
            let event = event(&pod, &remark, &node);
            match timeout(ANSWER, events.create(&options, &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(error = chain(&error), "an event cannot be written"),
                Err(_) => tracing::debug!("an event cannot be written: the API server does not answer"),
            }
        }
    }
}

fn event(pod: &Pod, remark: &Remark, node: &str) -> Event {
    let now = Timestamp::now();
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", pod.name)),
            namespace: Some(pod.namespace.to_string()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(remark.reason.to_owned()),
        message: Some(remark.message.clone()),
        action: Some("Enrol".to_owned()),
        source: Some(EventSource { component: Some(REPORTER.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(REPORTER.to_owned()),
        reporting_instance: Some(node.to_owned()),
        event_time: Some(MicroTime(now)),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use warren_core::enrolment::mode::RefuseReason;
    use warren_core::world::{MeshConfig, SourceText, load};

    use super::*;
    use crate::status::PodError;

    fn pod() -> Arc<Pod> {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b, uid: u}\nspec: {nodeName: n}\n\
                    status: {podIPs: [{ip: 10.1.1.1}]}\n";
        let mesh = MeshConfig::new("cluster.local".parse().unwrap());
        let world = load(&[SourceText { file: "f".into(), text: text.into() }], &mesh, None, 1).world;
        world.pods.values().next().unwrap().clone()
    }

    #[test]
    fn a_refusal_is_told_once_and_a_failure_when_it_lasts() {
        let (pod, start) = (pod(), Instant::now());
        let mut journal = Journal::default();
        let mut told =
            |state: &PodState, after: Duration| journal.look([(&pod, state)].into_iter(), start + after).len();
        let refused = PodState::Refused(RefuseReason::HostNetwork);
        assert_eq!((told(&refused, LOOK), told(&refused, 2 * LOOK)), (1, 0));
        let failed = |reason: &str| PodState::Failed(PodError { step: "attach".into(), reason: reason.into() });
        let minute = Duration::from_secs(60);
        assert_eq!(told(&failed("one"), minute), 0);
        assert_eq!(told(&failed("two"), minute + LASTING), 1);
        assert_eq!(told(&failed("three"), minute + 2 * LASTING), 0);
        assert_eq!(told(&PodState::Enrolled, 2 * minute), 0);
        assert_eq!(told(&failed("one"), 2 * minute + LOOK), 0, "it begins anew");
    }
}
