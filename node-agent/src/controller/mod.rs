//! `warren controller`: the mesh's certificate authority where there is no SPIRE.
//!
//! ```text
//! agent ─ token, key ─▶ serve ─▶ issuer ─ attest (TokenReview) ─▶ rate ─▶ facts (the pod) ─▶ signing ─▶ SVID
//! Secret ─▶ custody ─▶ signing                 custody, leading: rotation ─▶ Secret ─▶ ConfigMap
//! ```

mod attest;
mod conditions;
mod custody;
mod facts;
mod issuer;
mod lease;
mod nodes;
mod rate;
mod refusal;
pub(crate) mod rotation;
mod serve;
mod signing;
pub(crate) mod state;
pub(crate) mod store;
mod taints;

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use warren_core::identity::{SpiffeId, TrustDomain};
use warren_mesh::clock::SystemClock;
use warren_mesh::telemetry::{AuditTarget, FloatGauge, IssuanceLog, Telemetry, TelemetryConfig};
use warren_mesh::tls::service_server;

use self::attest::Attestor;
use self::conditions::Conditions;
use self::custody::{Custody, SharedStanding};
use self::issuer::Issuer;
use self::rate::Rates;
use self::signing::Signing;
use crate::ca_protocol::{CONTROLLER, controller_id};
use crate::cli::ControllerArgs;
use crate::exit::{Exit, Fatal};
use crate::http::{Page, Pages, serve_tcp};
use crate::kube_client;

/// Shortest lifetime of an SVID.
const MIN_LEAF_TTL: Duration = Duration::from_secs(60);
/// Longest: what an SVID vouches for cannot be taken back before its end.
const MAX_LEAF_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Audit events that may wait to be written.
const AUDIT_QUEUE: usize = 16_384;
/// How long the Lease may take to be given back.
const LET_GO: Duration = Duration::from_secs(3);

/// Runs the controller until SIGTERM or SIGINT.
pub(crate) async fn run(args: ControllerArgs) -> Result<(), Fatal> {
    let runtime = |error: std::io::Error| Fatal::new(Exit::Runtime, "cannot go on", &error);
    let usage = |flag: &str, reason: &dyn std::fmt::Display| Fatal {
        exit: Exit::Usage,
        message: format!("configuration: {flag}: {reason}"),
    };
    if args.leaf_ttl < MIN_LEAF_TTL || args.leaf_ttl > MAX_LEAF_TTL {
        return Err(usage("--leaf-ttl", &"from 1m to 7d"));
    }
    let trust_domain: TrustDomain = args.trust_domain.parse().map_err(|error| usage("--trust-domain", &error))?;
    let own_id = controller_id(trust_domain.as_str(), &args.namespace);
    let own_id: SpiffeId = own_id.parse().map_err(|error| usage("--namespace", &error))?;
    let me = args.name.clone().unwrap_or_else(|| format!("{CONTROLLER}-{:08x}", rand::random::<u32>()));
    let telemetry = telemetry(&me)?;
    let client = kube_client::connect(args.kubeconfig.as_deref())
        .await
        .map_err(|error| Fatal::new(Exit::Usage, "--kubeconfig", &error))?;
    let bound = |flag: &'static str, at| async move {
        TcpListener::bind(at).await.map_err(|error| Fatal::new(Exit::Socket, format!("{flag} {at}"), &error))
    };
    let listener = bound("--listen", args.listen).await?;
    let admin = bound("--admin", args.admin).await?;
    let signing = Arc::new(Signing::new(own_id, trust_domain.clone(), telemetry.clone()));
    let tls = service_server(signing.own(), Arc::new(SystemClock))
        .map_err(|error| Fatal::new(Exit::Runtime, "TLS", &error))?;
    let issuer = Issuer {
        attestor: Attestor::new(client.clone(), &args.namespace),
        client: client.clone(),
        signing: signing.clone(),
        rates: Mutex::new(Rates::default()),
        log: IssuanceLog::new(telemetry.clone()),
        trust_domain: trust_domain.clone(),
        system: args.namespace.clone(),
        leaf_ttl: args.leaf_ttl,
    };
    let standing = SharedStanding::default();
    let pages = ControllerPages::new(telemetry.clone(), signing.clone(), standing.clone());
    tokio::task::spawn_local(serve_tcp(admin, pages));
    let conditions = Conditions::new(client.clone(), args.kubeconfig.clone(), trust_domain.clone(), standing.clone());
    tokio::spawn(conditions.run());
    tokio::spawn(taints::run(client.clone(), standing.clone()));
    let custody = Custody::new(client, &args.namespace, me.clone(), trust_domain, signing, standing);
    let (end, ended) = oneshot::channel();
    let custody = tokio::spawn(custody.run(ended));
    tokio::spawn(serve::serve(listener, TlsAcceptor::from(tls), Arc::new(issuer)));
    announce(&format!("controller {me} serves"));
    let mut terminate = signal(SignalKind::terminate()).map_err(runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(runtime)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = end.send(());
    let _ = tokio::time::timeout(LET_GO, custody).await;
    if !telemetry.audit().flush(Duration::from_secs(2)) {
        tracing::error!("some audit events could not be written");
    }
    announce(&format!("controller {me} stopped"));
    Ok(())
}

fn telemetry(me: &str) -> Result<Arc<Telemetry>, Fatal> {
    Telemetry::new(TelemetryConfig {
        node: me.to_owned(),
        cluster: "Kubernetes".to_owned(),
        region: String::new(),
        audit: AuditTarget::Stdout,
        queue: AUDIT_QUEUE,
    })
    .map_err(|error| Fatal::new(Exit::Runtime, "audit events", &error))
}

/// Tells whoever started the controller; nobody listening is no reason to end.
fn announce(what: &str) {
    let _ = writeln!(std::io::stdout(), "warren: {what}");
}

/// Health and metrics.
#[derive(Clone)]
struct ControllerPages {
    telemetry: Arc<Telemetry>,
    signing: Arc<Signing>,
    standing: SharedStanding,
    leads: FloatGauge,
    rotating: FloatGauge,
    waiting: FloatGauge,
}

impl ControllerPages {
    fn new(telemetry: Arc<Telemetry>, signing: Arc<Signing>, standing: SharedStanding) -> Self {
        let metrics = telemetry.metrics();
        Self {
            leads: metrics.gauge("warren_ca_leads", "1 on the replica that changes the certificate authority's state"),
            rotating: metrics.gauge("warren_ca_rotating", "1 while a root or an intermediate is being replaced"),
            waiting: metrics.gauge("warren_ca_waiting_nodes", "Nodes that a rotation waits for"),
            telemetry,
            signing,
            standing,
        }
    }
}

impl Pages for ControllerPages {
    fn page(&self, path: &str) -> Option<Page> {
        let standing = self.standing.get();
        match path {
            "/healthz" => Some(Page::text(StatusCode::OK, "alive\n")),
            "/readyz" if self.signing.current().is_some() => Some(Page::text(StatusCode::OK, "ready\n")),
            "/readyz" => {
                let why = standing.trouble.unwrap_or_else(|| "the keys are not read yet".to_owned());
                Some(Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")))
            }
            "/metrics" => {
                self.leads.set(f64::from(u8::from(standing.leads)));
                self.rotating.set(f64::from(u8::from(standing.leads && standing.rotating)));
                self.waiting.set(if standing.leads { standing.waiting as f64 } else { 0.0 });
                Some(Page {
                    status: StatusCode::OK,
                    content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    body: self.telemetry.metrics_text(),
                })
            }
            _ => None,
        }
    }
}
