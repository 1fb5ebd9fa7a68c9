//! Which of the replicas leads: it alone changes the certificate authority's state. All of them sign.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::ca_protocol::CONTROLLER;
use crate::kube_client::is_status;

/// A leader that did not renew for so long has lost its place.
const DURATION: Duration = Duration::from_secs(15);
/// A leader renews when this long has gone by.
const RENEW: Duration = Duration::from_secs(4);

/// One replica's view of the Lease.
pub(crate) struct Leadership {
    leases: Api<Lease>,
    me: String,
    /// What the Lease said when it changed last, and when that was by our own clock: others' clocks are not trusted.
    seen: Option<(Option<MicroTime>, Instant)>,
    /// When we renewed last.
    mine: Option<Instant>,
}

impl Leadership {
    /// A replica that does not lead yet.
    pub(crate) fn new(client: &kube::Client, namespace: &str, me: String) -> Self {
        Self { leases: Api::namespaced(client.clone(), namespace), me, seen: None, mine: None }
    }

    /// Takes or renews the Lease if it can be had; whether this replica leads now.
    pub(crate) async fn hold(&mut self) -> Result<bool, kube::Error> {
        if self.mine.is_some_and(|renewed| renewed.elapsed() < RENEW) {
            return Ok(true);
        }
        // While the API server is away nobody can take the Lease, but our own must not be trusted for longer.
        let started = Instant::now();
        let done = self.take().await;
        match done {
            Ok(true) => self.mine = Some(started),
            Ok(false) => self.mine = None,
            Err(_) if self.mine.is_some_and(|renewed| renewed.elapsed() >= DURATION) => self.mine = None,
            Err(_) => {}
        }
        done
    }

    async fn take(&mut self) -> Result<bool, kube::Error> {
        let options = PostParams::default();
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.leases.get_opt(CONTROLLER).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(CONTROLLER.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.spec(now, None, 0)),
            };
            return taken(self.leases.create(&options, &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let fresh = match &self.seen {
            Some((renewed, at)) if *renewed == spec.renew_time => at.elapsed() < DURATION,
            _ => {
                self.seen = Some((spec.renew_time.clone(), Instant::now()));
                true
            }
        };
        if holder != self.me && !holder.is_empty() && fresh {
            return Ok(false);
        }
        let changes = spec.lease_transitions.unwrap_or(0) + i32::from(holder != self.me);
        let since = if holder == self.me { spec.acquire_time } else { None };
        lease.spec = Some(self.spec(now, since, changes));
        taken(self.leases.replace(CONTROLLER, &options, &lease).await)
    }

    /// Lets another replica lead at once.
    pub(crate) async fn let_go(&mut self) {
        if self.mine.take().is_none() {
            return;
        }
        if let Ok(Some(mut lease)) = self.leases.get_opt(CONTROLLER).await
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(self.me.as_str())
        {
            spec.holder_identity = Some(String::new());
            let _ = self.leases.replace(CONTROLLER, &PostParams::default(), &lease).await;
        }
    }

    fn spec(&self, now: MicroTime, since: Option<MicroTime>, changes: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(since.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }
}

fn taken(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(error) if is_status(&error, 409) => Ok(false),
        Err(error) => Err(error),
    }
}
