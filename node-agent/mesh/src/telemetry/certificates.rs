//! Expiry of the certificates in use, computed when metrics are read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use warren_core::identity::PodUid;

use crate::clock::Clock;

/// What a certificate is for; the label `kind` (seeds.md §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertificateKind {
    /// A pod's SVID.
    Leaf,
    /// An intermediate that signs SVIDs.
    Intermediate,
    /// A trusted root.
    Root,
}

impl CertificateKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: CertificateKind,
    /// Pod UID of a leaf, serial of an issuer.
    holder: String,
}

#[derive(Debug, Clone)]
struct Validity {
    subject: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The certificates in use. Bounded by the pods of the node and the roots of
/// the trust domain.
#[derive(Clone)]
pub(super) struct Certificates {
    known: Arc<Mutex<BTreeMap<Key, Validity>>>,
    clock: Arc<dyn Clock>,
}

impl Certificates {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { known: Arc::default(), clock }
    }

    fn change<T>(&self, f: impl FnOnce(&mut BTreeMap<Key, Validity>) -> T) -> T {
        f(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn leaf(&self, uid: &PodUid, subject: &str, from: SystemTime, to: SystemTime) {
        let key = Key { kind: CertificateKind::Leaf, holder: uid.as_str().into() };
        let validity = Validity { subject: subject.into(), not_before: from, not_after: to };
        self.change(|known| known.insert(key, validity));
    }

    pub(super) fn forget_leaf(&self, uid: &PodUid) {
        let key = Key { kind: CertificateKind::Leaf, holder: uid.as_str().into() };
        self.change(|known| known.remove(&key));
    }

    /// Replaces all issuers of one kind: (subject, serial, from, to).
    pub(super) fn issuers(
        &self,
        kind: CertificateKind,
        all: impl IntoIterator<Item = (String, String, SystemTime, SystemTime)>,
    ) {
        self.change(|known| {
            known.retain(|key, _| key.kind != kind);
            for (subject, holder, not_before, not_after) in all {
                known.insert(Key { kind, holder }, Validity { subject, not_before, not_after });
            }
        });
    }

    /// Seconds by (kind, subject): the certificate of that subject that ends
    /// first speaks for all, so pods of one account share a series.
    fn seconds(&self, of: impl Fn(&Validity, SystemTime) -> f64) -> BTreeMap<(CertificateKind, String), f64> {
        let now = self.clock.now();
        self.change(|known| {
            let mut least = BTreeMap::new();
            for (key, validity) in known.iter() {
                let value = of(validity, now);
                let slot = least.entry((key.kind, validity.subject.clone())).or_insert(value);
                *slot = slot.min(value);
            }
            least
        })
    }

    fn encode_gauge(
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        values: BTreeMap<(CertificateKind, String), f64>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for ((kind, subject), value) in values {
            let labels = [("kind", kind.as_str().to_owned()), ("subject", subject)];
            let series = family.encode_family(&labels)?;
            ConstGauge::new(value).encode(series)?;
        }
        Ok(())
    }
}

/// Seconds from `now` to `end`, negative after it.
fn remaining(end: SystemTime, now: SystemTime) -> f64 {
    match end.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(over) => -over.duration().as_secs_f64(),
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Self::encode_gauge(
            &mut encoder,
            "certificate_expiration_seconds",
            "Remaining seconds until the certificate expires; negative when it has",
            self.seconds(|validity, now| remaining(validity.not_after, now)),
        )?;
        let lifetime = |validity: &Validity, _| {
            let span = validity.not_after.duration_since(validity.not_before);
            span.unwrap_or(Duration::ZERO).as_secs_f64()
        };
        Self::encode_gauge(
            &mut encoder,
            "certificate_lifetime_seconds",
            "Whole validity period of the certificate",
            self.seconds(lifetime),
        )
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}
