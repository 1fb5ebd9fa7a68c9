//! One connection's evidence, from accept to end.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_core::audit::{AuditEvent, ConnectionEvent, Decision, Direction};
use warren_core::identity::SpiffeId;
use warren_core::tunnel::TraceId;

use super::Telemetry;
use super::facts::{ConnectionFacts, ConnectionName, ResponseFlag, ServiceFacts, WorkloadFacts};
use super::labels::{DeniedLabels, TcpLabels};
use super::live_bytes::{LiveBytes, request_response};
use super::metrics::TcpCounters;
use crate::copy::{ByteCounts, CopyEnd, CopyOutcome};
use crate::live::CancelReason;
use crate::tls::PeerFacts;

/// Writes access log, audit event and counters of one connection. Consumed by
/// the connection's end; dropped without one, it records an abort: evidence is
/// not lost by a forgotten branch.
///
/// It is boxed, as it goes from stage to stage: each would otherwise keep room
/// for it in the connection's task.
pub struct ConnectionRecord(Box<Record>);

impl Deref for ConnectionRecord {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0
    }
}

impl DerefMut for ConnectionRecord {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.0
    }
}

/// What a [`ConnectionRecord`] holds.
pub struct Record {
    telemetry: Arc<Telemetry>,
    facts: ConnectionFacts,
    started: Instant,
    proven: Option<Proven>,
    policy: Option<String>,
    route: &'static str,
    /// Why it is carried as it is, where that is not what one would expect.
    remark: Option<&'static str>,
    hbone_addr: Option<String>,
    application: Option<SocketAddr>,
    trace_id: Option<TraceId>,
    response_code: Option<u16>,
    latency: Option<Duration>,
    bytes: Arc<ByteCounts>,
    open: Option<OpenCounters>,
    ended: bool,
}

/// The identities of both ends, and what proved them.
struct Proven {
    source: SpiffeId,
    destination: SpiffeId,
    by: Proof,
}

enum Proof {
    /// TLS; with what is known of the other end's certificate.
    Tls(Arc<PeerFacts>),
    /// The kernel's word.
    Kernel,
}

impl Proven {
    fn tls(&self) -> Option<&PeerFacts> {
        match &self.by {
            Proof::Tls(peer) => Some(peer),
            Proof::Kernel => None,
        }
    }
}

/// Counters of an established connection, resolved once.
struct OpenCounters {
    tcp: Arc<TcpCounters>,
    bytes: Arc<LiveBytes>,
    follow: u64,
}

/// How a connection ended, as the evidence tells it.
struct End {
    decision: Decision,
    flag: ResponseFlag,
    reason: Option<String>,
}

impl ConnectionRecord {
    /// Starts the record of a connection just accepted.
    pub fn open(telemetry: &Arc<Telemetry>, facts: ConnectionFacts) -> Self {
        tracing::debug!(
            target: "access",
            connection_id = %facts.connection_id,
            src.addr = %facts.src_addr,
            dst.addr = %facts.dst_addr,
            direction = direction(facts.direction),
            "connection opened"
        );
        Self(Box::new(Record {
            telemetry: Arc::clone(telemetry),
            facts,
            started: Instant::now(),
            proven: None,
            policy: None,
            route: "none",
            remark: None,
            hbone_addr: None,
            application: None,
            trace_id: None,
            response_code: None,
            latency: None,
            bytes: Arc::default(),
            open: None,
            ended: false,
        }))
    }
}

impl ConnectionRecord {
    /// Refused by policy, before or after it was open.
    pub fn deny(mut self, reason: impl ToString, policy: Option<String>) {
        self.denied(reason.to_string(), policy);
    }

    /// Impossible, for another reason than policy. What fails before anything
    /// permitted it (TLS, identity, no route) counts as refused.
    pub fn fail(mut self, flag: ResponseFlag, reason: impl ToString) {
        let judged = self.policy.is_some() || self.open.is_some();
        let network =
            matches!(flag, ResponseFlag::Connect | ResponseFlag::NetworkPolicy | ResponseFlag::H2HandshakeFailure);
        let decision = if judged || network { Decision::Allow } else { Decision::Deny };
        self.end(&End { decision, flag, reason: Some(reason.to_string()) });
    }

    /// Copied to its end.
    pub fn finish(mut self, outcome: &CopyOutcome) {
        match &outcome.end {
            CopyEnd::Cancelled(CancelReason::PolicyChanged { policy, reason }) => {
                self.denied(reason.clone(), policy.clone());
            }
            end => {
                let flag = match end {
                    CopyEnd::Clean | CopyEnd::AppReset | CopyEnd::TunnelReset => ResponseFlag::None,
                    CopyEnd::Cancelled(_) | CopyEnd::Error(_) => ResponseFlag::Aborted,
                };
                let reason = (*end != CopyEnd::Clean).then(|| end.to_string());
                self.end(&End { decision: Decision::Allow, flag, reason });
            }
        }
    }
}

impl Record {
    /// The connection's id.
    pub fn connection_id(&self) -> &ConnectionName {
        &self.facts.connection_id
    }

    /// What is known of the two ends.
    pub fn facts(&self) -> &ConnectionFacts {
        &self.facts
    }

    /// Bytes moved; to be given to the copy loop, and read by status.
    pub fn bytes(&self) -> &Arc<ByteCounts> {
        &self.bytes
    }

    /// The destination became known.
    pub fn set_destination(&mut self, destination: Arc<WorkloadFacts>) {
        self.facts.destination = Some(destination);
    }

    /// The addressed service became known.
    pub fn set_service(&mut self, service: ServiceFacts) {
        self.facts.service = Some(service);
    }

    /// How it is carried: `tunnel`, `plain`, `own`, `kernel`, `probe`.
    pub fn set_route(&mut self, route: &'static str) {
        self.route = route;
    }

    /// Why it is carried as it is: the audit event's reason, unless it ends for one of its own.
    pub fn set_remark(&mut self, remark: &'static str) {
        self.remark = Some(remark);
    }

    /// The CONNECT authority.
    pub fn set_hbone_addr(&mut self, authority: impl ToString) {
        self.hbone_addr = Some(authority.to_string());
    }

    /// Address of the application that a tunnelled request is for: what the
    /// audit event names instead of the tunnel port.
    pub fn set_application(&mut self, application: SocketAddr) {
        self.application = Some(application);
    }

    /// Both ends proved their identity by TLS; `peer` is the other one.
    pub fn set_mtls(&mut self, source: &SpiffeId, destination: &SpiffeId, peer: &Arc<PeerFacts>) {
        self.proved(source, destination, Proof::Tls(Arc::clone(peer)));
    }

    /// The kernel vouches for both ends without TLS: pods of this node, known
    /// by their network namespaces.
    pub fn set_attested(&mut self, source: &SpiffeId, destination: &SpiffeId) {
        self.proved(source, destination, Proof::Kernel);
    }

    fn proved(&mut self, source: &SpiffeId, destination: &SpiffeId, by: Proof) {
        self.proven = Some(Proven { source: source.clone(), destination: destination.clone(), by });
    }

    /// The policy that permitted it.
    pub fn set_policy(&mut self, policy: impl ToString) {
        self.policy = Some(policy.to_string());
    }

    /// W3C trace id.
    pub fn set_trace_id(&mut self, trace_id: TraceId) {
        self.trace_id = Some(trace_id);
    }

    /// Status of the CONNECT response, sent or received.
    pub fn set_response_code(&mut self, code: u16) {
        self.response_code = Some(code);
    }

    /// Bytes can flow from now on: counts the connection as opened.
    pub fn established(&mut self) {
        if self.open.is_some() {
            return;
        }
        self.latency = Some(self.started.elapsed());
        let metrics = self.telemetry.shared_metrics();
        let proven = self.proven();
        let find = || metrics.tcp(TcpLabels::of(&self.facts, proven, ResponseFlag::None));
        let tcp = metrics.counted().of(&self.facts, proven, find);
        tcp.opened.inc();
        tcp.open.inc();
        let bytes = Arc::new(LiveBytes::new(self.facts.direction, Arc::clone(&self.bytes), Arc::clone(&tcp)));
        let follow = metrics.follow_live(&bytes);
        self.open = Some(OpenCounters { tcp, bytes, follow });
    }

    fn denied(&mut self, reason: String, policy: Option<String>) {
        let destination = self.facts.destination.as_ref();
        let text = |pick: fn(&WorkloadFacts) -> &String| {
            destination.map(|facts| pick(facts).clone()).unwrap_or_else(|| "unknown".into())
        };
        self.telemetry.shared_metrics().denied(DeniedLabels {
            destination: text(|facts| &facts.workload),
            destination_namespace: text(|facts| &facts.namespace),
            policy: policy.clone().unwrap_or_else(|| "none".into()),
        });
        self.policy = policy;
        self.end(&End { decision: Decision::Deny, flag: ResponseFlag::Deny, reason: Some(reason) });
    }

    fn end(&mut self, end: &End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.count(end);
        self.log(end);
        self.telemetry.audit().write(&self.event(end));
    }

    fn count(&mut self, end: &End) {
        let metrics = self.telemetry.shared_metrics();
        if let Some(open) = self.open.take() {
            open.bytes.settle();
            metrics.forget_live(open.follow);
            open.tcp.open.dec();
            open.tcp.closed.inc();
            if end.flag == ResponseFlag::None {
                return;
            }
        }
        metrics.tcp_failed(TcpLabels::of(&self.facts, self.proven(), end.flag));
    }

    /// The identities of both ends, if TLS or the kernel proved them, and whether it was TLS.
    fn proven(&self) -> Option<(&SpiffeId, &SpiffeId, bool)> {
        self.proven.as_ref().map(|proven| (&proven.source, &proven.destination, proven.tls().is_some()))
    }

    fn log(&self, end: &End) {
        let text = |of: Option<&WorkloadFacts>, pick: fn(&WorkloadFacts) -> &String| {
            of.map(|facts| pick(facts).clone()).unwrap_or_default()
        };
        let (src, dst) = (self.facts.source.as_deref(), self.facts.destination.as_deref());
        let proven = self.proven.as_ref();
        let (request, response) = request_response(self.facts.direction, &self.bytes);
        let duration = format!("{}ms", self.started.elapsed().as_millis());
        macro_rules! line {
            ($level:expr, $text:literal) => {
                tracing::event!(
                    target: "access",
                    $level,
                    connection_id = %self.facts.connection_id,
                    src.addr = %self.facts.src_addr,
                    src.workload = text(src, |f| &f.pod),
                    src.namespace = text(src, |f| &f.namespace),
                    src.identity = proven.map(|proven| proven.source.as_str()).unwrap_or_default(),
                    src.cluster = text(src, |f| &f.cluster),
                    dst.addr = %self.facts.dst_addr,
                    dst.hbone_addr = self.hbone_addr.as_deref().unwrap_or_default(),
                    dst.service = self.facts.service.as_ref().map(|s| s.hostname.as_str())
                        .unwrap_or_default(),
                    dst.workload = text(dst, |f| &f.pod),
                    dst.namespace = text(dst, |f| &f.namespace),
                    dst.identity = proven.map(|proven| proven.destination.as_str()).unwrap_or_default(),
                    dst.cluster = text(dst, |f| &f.cluster),
                    direction = direction(self.facts.direction),
                    bytes_sent = request,
                    bytes_recv = response,
                    duration,
                    error = end.reason.as_deref().unwrap_or_default(),
                    $text
                )
            };
        }
        match end.flag {
            ResponseFlag::None => line!(tracing::Level::INFO, "connection complete"),
            _ => line!(tracing::Level::ERROR, "connection failed"),
        }
    }

    fn event(&self, end: &End) -> AuditEvent {
        let config = self.telemetry.config();
        let facts = &self.facts;
        let proven = self.proven.as_ref();
        let peer = proven.and_then(Proven::tls);
        let world_identity = |of: &Option<Arc<WorkloadFacts>>| of.as_ref()?.identity.clone();
        let (request, response) = request_response(facts.direction, &self.bytes);
        let opened = self.latency.is_some();
        AuditEvent {
            event: ConnectionEvent::Connection,
            timestamp: self.telemetry.timestamp(),
            connection_id: facts.connection_id.to_string(),
            direction: facts.direction,
            source_identity: match (proven, facts.direction) {
                (Some(proven), _) => Some(proven.source.clone()),
                // The agent knows its own pods; a peer must prove who it is.
                (None, Direction::Outbound) => world_identity(&facts.source),
                (None, Direction::Inbound) => None,
            },
            destination_identity: proven
                .map(|proven| proven.destination.clone())
                .or_else(|| world_identity(&facts.destination)),
            source: WorkloadFacts::party(facts.source.as_deref(), facts.src_addr),
            destination: WorkloadFacts::party(facts.destination.as_deref(), self.application.unwrap_or(facts.dst_addr)),
            destination_service: facts
                .service
                .as_ref()
                .map(|service| format!("{}/{}", service.namespace, service.name)),
            method: None,
            path: None,
            mtls: peer.is_some(),
            authenticated_by: proven.map(|proven| match proven.by {
                Proof::Tls(_) => "tls".into(),
                Proof::Kernel => "kernel".into(),
            }),
            issuer: peer.map(|peer| peer.issuer.clone()),
            trust_domain: peer.map(|peer| peer.id.trust_domain().to_string()),
            policy: self.policy.clone(),
            decision: end.decision,
            reason: end.reason.clone().or_else(|| self.remark.map(str::to_owned)),
            route: self.route.into(),
            response_code: self.response_code,
            response_flags: end.flag.as_str().into(),
            latency_ms: self.latency.map(millis),
            duration_ms: Some(millis(self.started.elapsed())),
            bytes_sent: opened.then_some(request),
            bytes_received: opened.then_some(response),
            node: config.node.clone(),
            cluster: config.cluster.clone(),
            region: config.region.clone(),
            trace_id: self.trace_id.map(|id| id.to_string()),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.end(&End {
                decision: Decision::Allow,
                flag: ResponseFlag::Aborted,
                reason: Some("the connection was given up".into()),
            });
        }
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
