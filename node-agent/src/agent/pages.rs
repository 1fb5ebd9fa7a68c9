//! The pages of the status socket and of the loopback endpoint.

use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use warren_core::world::{ObjectState, World};
use warren_mesh::identity::{IdentityStatus, PodIdentity, SvidSource};
use warren_mesh::live::CancelReason;
use warren_mesh::telemetry::Direction;

use super::board::{Board, Notes, PodEntry, PodState};
use super::gauges::Gauges;
use crate::http::{Page, Pages};
use crate::shared::{LiveConnection, Shared, Transport};
use crate::status::{
    CUT_PATH, ConnectionStatus, DescriptorStatus, IssuerStatus, ObjectStatus, PodError, PodStatus, RENEW_PATH,
    STATUS_PATH, STATUS_VERSION, Status, SvidStatus, WatchStatus, WorldStatus,
};
use crate::world_kube::{Health, Standing, WatchHealth};

/// Everything the pages are made of.
#[derive(Clone)]
pub(crate) struct AgentPages {
    pub(crate) node: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) board: Arc<Board>,
    pub(crate) issuers: Arc<dyn SvidSource>,
    pub(crate) gauges: Gauges,
    /// Of the watches, if the world is a cluster's.
    pub(crate) health: Option<Health>,
}

/// On the status socket.
#[derive(Clone)]
pub(crate) struct StatusPages(pub(crate) AgentPages);

/// On loopback TCP: nothing here names a connection or an address.
#[derive(Clone)]
pub(crate) struct PublicPages(pub(crate) AgentPages);

impl Pages for StatusPages {
    fn page(&self, path: &str) -> Option<Page> {
        if path != STATUS_PATH {
            return None;
        }
        Some(match serde_json::to_string(&self.0.status()) {
            Ok(body) => Page { status: StatusCode::OK, content_type: "application/json", body },
            Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        })
    }

    fn action(&self, path: &str) -> Option<Page> {
        if let Some(pod) = path.strip_prefix(RENEW_PATH) {
            let (status, said) = match self.0.renew(pod) {
                Some(serial) => (StatusCode::OK, serial),
                None => (StatusCode::NOT_FOUND, String::new()),
            };
            return Some(Page::text(status, format!("{said}\n")));
        }
        (path == CUT_PATH).then(|| Page::text(StatusCode::OK, format!("{}\n", self.0.cut())))
    }
}

impl Pages for PublicPages {
    fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(Page {
                status: StatusCode::OK,
                content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body: self.0.metrics(),
            }),
            "/healthz/ready" if self.0.board.notes().ready => Some(Page::text(StatusCode::OK, "ready\n")),
            "/healthz/ready" => Some(Page::text(StatusCode::SERVICE_UNAVAILABLE, self.0.why_not_ready())),
            "/healthz/live" => Some(Page::text(StatusCode::OK, "alive\n")),
            _ => None,
        }
    }
}

impl AgentPages {
    fn metrics(&self) -> String {
        self.gauges.refresh(&self.board.notes(), &self.shared.budget);
        self.shared.telemetry.metrics_text()
    }

    /// Tells connections that are older than their pod's enrolment to end; how many there are.
    fn cut(&self) -> usize {
        let live = self.shared.live.snapshot();
        let older = live.iter().filter(|(_, connection)| connection.transport == Transport::PreEnrolment);
        let told = older.filter(|(id, _)| self.shared.live.cancel(*id, CancelReason::Cut)).count();
        tracing::info!(told, "an operator ends connections that are older than their pods' enrolment");
        self.board.told_to_end();
        told
    }

    /// Has the SVID of a pod, `NAMESPACE/NAME`, made anew; the serial of the one in use, empty if there is none.
    fn renew(&self, pod: &str) -> Option<String> {
        let notes = self.board.notes();
        let named = |entry: &&PodEntry| format!("{}/{}", entry.pod.namespace, entry.pod.name) == pod;
        let entry = notes.pods.iter().find(named)?;
        let serial = identity_status(entry).and_then(|identity| identity.serial).unwrap_or_default();
        tracing::info!(pod, "an operator has its SVID made anew");
        self.issuers.renew(&entry.pod.uid).then_some(serial)
    }

    fn why_not_ready(&self) -> String {
        let unsynced = self.health.as_ref().map(Health::unsynced).unwrap_or_default();
        match unsynced[..] {
            [] => "starting\n".to_owned(),
            _ => format!("starting: the API server has not told of all {} yet\n", unsynced.join(", ")),
        }
    }

    fn status(&self) -> Status {
        let world = self.shared.world.load();
        let live = self.shared.live.snapshot();
        let notes = self.board.notes();
        let count = |entry: &PodEntry| live.iter().filter(|(_, one)| one.pod == entry.pod.uid).count();
        Status {
            version: STATUS_VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            trust_domain: world.mesh.trust_domain.to_string(),
            ready: notes.ready,
            world: world_status(&world, &notes, self.health.as_ref()),
            pods: notes.pods.iter().map(|entry| pod_status(&world, &notes, entry, count(entry))).collect(),
            connections: live.iter().map(|(id, connection)| connection_status(*id, connection)).collect(),
            issuers: self.issuers.issuers().iter().map(issuer_status).collect(),
            descriptors: DescriptorStatus { used: self.shared.budget.used(), total: self.shared.budget.total() },
            findings: notes.findings.iter().cloned().collect(),
        }
    }
}

fn world_status(world: &World, notes: &Notes, health: Option<&Health>) -> WorldStatus {
    let watches = health.map(Health::all).unwrap_or_default();
    WorldStatus {
        watches: watches.iter().map(watch_status).collect(),
        generation: world.generation,
        age_seconds: notes.world_loaded.map_or(0, |loaded| loaded.elapsed().as_secs()),
        source_error: notes.source_error.clone().or_else(|| health?.fault()),
        rejections: notes.rejections.clone(),
        objects: world
            .status()
            .iter()
            .map(|status| ObjectStatus {
                object: status.to_string(),
                accepted: status.state != ObjectState::NotUnderstood,
                pods: status.pods,
                messages: status.messages.clone(),
            })
            .collect(),
    }
}

fn watch_status(watch: &WatchHealth) -> WatchStatus {
    WatchStatus {
        kind: watch.watched.kind.as_str().to_owned(),
        standing: match watch.standing {
            Standing::Connecting => "connecting",
            Standing::Listing => "listing",
            Standing::Watching => "watching",
            Standing::Missing => "missing",
        }
        .to_owned(),
        synced: watch.synced,
        age_seconds: watch.age().as_secs(),
        error: watch.error.clone(),
    }
}

/// Of a pod that is served, or only observed.
fn identity_status(entry: &PodEntry) -> Option<IdentityStatus> {
    let local = entry.local.as_ref().map(|local| local.identity().status());
    local.or_else(|| entry.identity.as_ref().map(PodIdentity::status))
}

fn pod_status(world: &World, notes: &Notes, entry: &PodEntry, connections: usize) -> PodStatus {
    let pod = &entry.pod;
    let identity = identity_status(entry);
    let (state, error) = match &entry.state {
        PodState::Enrolled => ("enrolled", None),
        PodState::Leaving => ("leaving", None),
        PodState::Observed => ("observed", None),
        PodState::Refused(reason) => {
            ("refused", Some(PodError { step: reason.as_str().to_owned(), reason: reason.to_string() }))
        }
        PodState::Failed(error) => ("failed", Some(error.clone())),
    };
    let svid = identity.as_ref().and_then(|identity| {
        let not_after = identity.not_after?;
        Some(SvidStatus {
            serial: identity.serial.clone().unwrap_or_default(),
            not_after: rfc3339(not_after),
            remaining_seconds: remaining_seconds(not_after),
        })
    });
    PodStatus {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        identity: pod.identity.to_string(),
        ips: pod.ips.iter().map(ToString::to_string).collect(),
        state: state.to_owned(),
        error,
        mode: world.policy().default_mode(pod).to_string(),
        svid,
        svid_error: identity.and_then(|identity| identity.last_error),
        netns: netns(entry),
        cookie: entry.local.as_ref().map(|local| local.netns.cookie()),
        connections,
        probe_ports: pod.probed.to_vec(),
        probe_error: notes.unprobed.iter().find(|one| one.uid == pod.uid).map(|one| one.reason.clone()),
    }
}

/// Where the pod was taken in, or else where its manifest says that it is.
fn netns(entry: &PodEntry) -> String {
    let taken = entry.local.as_ref().map(|local| local.netns.path());
    taken.or(entry.pod.netns.as_deref()).map(|path| path.display().to_string()).unwrap_or_default()
}

fn connection_status(id: u64, connection: &LiveConnection) -> ConnectionStatus {
    let text = |id: &Option<warren_core::identity::SpiffeId>| id.as_ref().map(ToString::to_string);
    ConnectionStatus {
        id,
        direction: match connection.direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
        .to_owned(),
        transport: connection.transport.as_str().to_owned(),
        source: connection.source.to_string(),
        destination: connection.destination.to_string(),
        source_identity: text(&connection.source_identity),
        destination_identity: text(&connection.destination_identity),
        policy: connection.policy.get().cloned(),
        age_seconds: connection.age().as_secs(),
    }
}

fn issuer_status(issuer: &warren_mesh::identity::IssuerStatus) -> IssuerStatus {
    IssuerStatus {
        kind: issuer.kind.to_owned(),
        subject: issuer.subject.clone(),
        serial: issuer.serial.clone(),
        not_after: rfc3339(issuer.not_after),
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn remaining_seconds(until: SystemTime) -> i64 {
    let seconds = |duration: std::time::Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match until.duration_since(SystemTime::now()) {
        Ok(left) => seconds(left),
        Err(past) => -seconds(past.duration()),
    }
}
