//! The agent's side: answers the plugin. It waits for what is not there yet, the pod's object and its SVID, and leaves
//! everything that changes the kernel to the control thread.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use warren_core::enrolment::mode::Decision;
use warren_core::identity::PodUid;
use warren_core::world::Pod;

use super::call::{Call, Place, Taken};
use super::protocol::{
    ADD_PATH, Answer, CHECK_PATH, DEL_PATH, GC_PATH, GcMessage, LONGEST, Outcome, PodMessage, STATUS_PATH,
};
use crate::http::{HEAD_TIMEOUT, serve_connection};
use crate::shared::Shared;

/// How often the world is looked at for a pod that is not in it yet.
const LOOK: Duration = Duration::from_millis(5);
/// How often a pod is asked for that could not be taken in, an address still being checked for duplicates, say.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Kept of the plugin's time for the way back.
const WAY_BACK: Duration = Duration::from_millis(100);
/// The longest that anybody may wait, whatever the plugin says.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Requests that are looked after at once; more wait in the socket's backlog.
const AT_ONCE: usize = 512;

/// Answers the plugin's requests.
#[derive(Clone)]
pub(crate) struct CniService {
    node: String,
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
}

impl CniService {
    /// A service and the questions it will ask.
    pub(crate) fn new(node: String, shared: Arc<Shared>) -> (Self, mpsc::Receiver<Call>) {
        let (calls, asked) = mpsc::channel(AT_ONCE);
        (Self { node, shared, calls }, asked)
    }

    /// Serves for ever.
    pub(crate) async fn serve(self, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) if is_root(&stream) => {
                    let service = self.clone();
                    tokio::task::spawn_local(async move {
                        service.connection(stream).await;
                        drop(place);
                    });
                }
                Ok(_) => tracing::warn!("somebody who is not root asked on the CNI socket"),
                Err(error) => {
                    tracing::warn!(%error, "the CNI socket cannot accept");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: UnixStream) {
        serve_connection(stream, |request| async move {
            let (status, body) = match self.answer(request).await {
                Ok(answer) => (StatusCode::OK, serde_json::to_vec(&answer).unwrap_or_default()),
                Err((status, why)) => (status, why.into_bytes()),
            };
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status;
            response
        })
        .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, (StatusCode, String)> {
        if request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "only POST".to_owned()));
        }
        let path = request.uri().path().to_owned();
        let body = tokio::time::timeout(HEAD_TIMEOUT, Limited::new(request.into_body(), LONGEST).collect()).await;
        let body = body.map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the message did not come".to_owned()))?;
        let body = body.map_err(|error| (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?.to_bytes();
        match path.as_str() {
            ADD_PATH => Ok(self.add(read(&body)?).await),
            CHECK_PATH => Ok(self.check(&read(&body)?).await),
            DEL_PATH => Ok(self.remove(read(&body)?).await),
            GC_PATH => {
                let containers = read::<GcMessage>(&body)?.containers;
                let _ = self.calls.send(Call::Retain { containers }).await;
                Ok(Answer::new(Outcome::Done, ""))
            }
            STATUS_PATH => Ok(Answer::new(Outcome::Done, "")),
            _ => Err((StatusCode::NOT_FOUND, format!("{path} is not known to this release"))),
        }
    }

    async fn add(&self, message: PodMessage) -> Answer {
        let name = format!("{}/{}", message.namespace, message.name);
        let limit = Duration::from_millis(message.timeout_ms).min(LONGEST_WAIT).saturating_sub(WAY_BACK);
        let deadline = Instant::now() + limit;
        let Some(pod) = self.pod(&message, deadline).await else {
            let limit = humantime::format_duration(limit);
            let why = format!(
                "the pod's object did not reach the agent within {limit}: see `warren status` for the age of its world"
            );
            tracing::warn!(pod = name, why, "pod not started");
            return Answer::new(Outcome::TimedOut, why);
        };
        match pod.decision {
            Decision::Enrol => {}
            Decision::Refuse(reason) if reason.is_undecidable() => {
                tracing::warn!(pod = name, %reason, "pod not started");
                return Answer::new(Outcome::Refused, reason.to_string());
            }
            Decision::Refuse(reason) => return Answer::new(Outcome::Left, reason.to_string()),
            Decision::Observe => return Answer::new(Outcome::Left, "observed only"),
            Decision::Leave(_) => return Answer::new(Outcome::Left, ""),
        }
        let Some(netns) = message.netns else {
            return Answer::new(Outcome::Failed, "the plugin named no network namespace");
        };
        if message.ips.is_empty() {
            return Answer::new(Outcome::Failed, "the plugins before this one gave the pod no address");
        }
        let place = Place { container: message.container_id, netns, ips: message.ips };
        match self.enrol(&pod, place, deadline).await {
            Ok(taken) => {
                let wait = Duration::from_millis(message.svid_wait_ms).min(deadline - Instant::now());
                let svid = taken.identity.wait(wait).await;
                if let Err(error) = &svid {
                    tracing::info!(pod = name, %error, "pod starts without an SVID; its connections are held");
                }
                Answer::new(Outcome::Enrolled, svid.err().map(|error| error.to_string()).unwrap_or_default())
            }
            Err((outcome, why)) => {
                tracing::warn!(pod = name, why, "pod not started");
                Answer::new(outcome, why)
            }
        }
    }

    /// The pod's object, as soon as it is in the world.
    async fn pod(&self, message: &PodMessage, deadline: Instant) -> Option<Arc<Pod>> {
        loop {
            let found = self.find(message);
            if found.is_some() || Instant::now() >= deadline {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// By its UID; where a manifest has none, or the runtime gives none, by its name on this node.
    fn find(&self, message: &PodMessage) -> Option<Arc<Pod>> {
        let world = self.shared.world.load();
        let named = |pod: &&Arc<Pod>| *pod.namespace == *message.namespace && *pod.name == *message.name;
        let unnamed = PodUid::from(format!("{}_{}", message.namespace, message.name).as_str());
        let by_uid = message.uid.as_deref().and_then(|uid| world.pod(&PodUid::from(uid)));
        let found = by_uid.or_else(|| world.pod(&unnamed)).filter(named);
        let by_name = || world.pods_on(&self.node).find(named);
        if message.uid.is_some() { found.cloned() } else { found.or_else(by_name).cloned() }
    }

    /// Asks for the pod until it is in.
    async fn enrol(&self, pod: &Pod, place: Place, deadline: Instant) -> Result<Taken, (Outcome, String)> {
        let mut anew = true;
        loop {
            let (answer, told) = oneshot::channel();
            let call = Call::Enrol { uid: pod.uid.clone(), place: place.clone(), anew, answer };
            anew = false;
            let asked = async { self.calls.send(call).await.ok().map(|()| told)?.await.ok() };
            let why = match tokio::time::timeout_at(deadline, asked).await {
                Ok(Some(Ok(taken))) => return Ok(taken),
                Ok(Some(Err(why))) => why,
                Ok(None) => return Err((Outcome::Failed, "the agent stops".to_owned())),
                Err(_) => return Err((Outcome::TimedOut, "the agent is busy with other pods".to_owned())),
            };
            if Instant::now() + ASK_AGAIN >= deadline {
                return Err((Outcome::Failed, why));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn check(&self, message: &PodMessage) -> Answer {
        let Some(pod) = self.find(message) else {
            return Answer::new(Outcome::Failed, "the world has no such pod");
        };
        if pod.decision != Decision::Enrol {
            return Answer::new(Outcome::Left, "");
        }
        let (answer, told) = oneshot::channel();
        let sent = self.calls.send(Call::Check { uid: pod.uid.clone(), answer }).await;
        match (sent, told.await) {
            (Ok(()), Ok(Ok(()))) => Answer::new(Outcome::Enrolled, ""),
            (Ok(()), Ok(Err(why))) => Answer::new(Outcome::Failed, why),
            _ => Answer::new(Outcome::Failed, "the agent stops"),
        }
    }

    async fn remove(&self, message: PodMessage) -> Answer {
        let (answer, told) = oneshot::channel();
        if self.calls.send(Call::Remove { container: message.container_id, answer }).await.is_ok() {
            let _ = told.await;
        }
        Answer::new(Outcome::Done, "")
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, format!("not a message: {error}")))
}

/// The socket's mode says it already; a descriptor may have been handed on.
fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

/// Binds the plugin's socket; nobody else listens there, because the caller holds the node's lock.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
