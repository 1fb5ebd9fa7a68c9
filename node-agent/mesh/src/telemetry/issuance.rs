//! Evidence of a certificate authority: an event and a count for each SVID.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use warren_core::identity::SpiffeId;
use warren_core::issuance::{IssuanceEvent, IssuanceKind, IssuanceResult};

use super::Telemetry;
use super::facts::rfc3339;
use crate::identity::IssuedChain;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
    reason: &'static str,
}

/// Whose SVID it is about, in the words of who asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// Its name.
    pub pod: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// The node whose agent asked, if it proved itself.
    pub node: Option<&'a str>,
}

/// Records what a certificate authority issues and refuses.
pub struct IssuanceLog {
    telemetry: Arc<Telemetry>,
    count: Family<ResultLabels, Counter>,
}

impl IssuanceLog {
    /// Registers its counter.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        let count = Family::<ResultLabels, Counter>::default();
        let help = "Requests for an SVID, by result and by the reason of a refusal";
        telemetry.metrics().register("warren_ca_svids", help, count.clone());
        Self { telemetry, count }
    }

    /// An SVID was signed.
    pub fn issued(&self, asked: Asked<'_>, id: &SpiffeId, issued: &IssuedChain, issuer: &str) {
        self.count.get_or_create(&ResultLabels { result: "issued", reason: "" }).inc();
        self.telemetry.audit().write(&IssuanceEvent {
            identity: Some(id.clone()),
            serial: Some(issued.serial.clone()),
            issuer: Some(issuer.to_owned()),
            not_after: Some(rfc3339(issued.not_after)),
            ..self.event(asked, IssuanceResult::Issued)
        });
    }

    /// None was: `reason` is a short word, `detail` for people.
    pub fn refused(&self, asked: Asked<'_>, reason: &'static str, detail: String) {
        self.count.get_or_create(&ResultLabels { result: "refused", reason }).inc();
        self.telemetry.audit().write(&IssuanceEvent {
            reason: Some(reason.to_owned()),
            detail: Some(detail),
            ..self.event(asked, IssuanceResult::Refused)
        });
    }

    fn event(&self, asked: Asked<'_>, result: IssuanceResult) -> IssuanceEvent {
        IssuanceEvent {
            event: IssuanceKind::Svid,
            timestamp: self.telemetry.timestamp(),
            result,
            reason: None,
            detail: None,
            node: asked.node.map(str::to_owned),
            namespace: asked.namespace.to_owned(),
            pod: asked.pod.to_owned(),
            pod_uid: asked.uid.to_owned(),
            identity: None,
            serial: None,
            issuer: None,
            not_after: None,
        }
    }
}
