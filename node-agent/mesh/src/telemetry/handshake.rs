//! The handshake record: event `mtls_handshake` of seeds.md §2.

use std::time::Duration;

use warren_core::audit::{Direction, HandshakeEvent, HandshakeRecord, HandshakeResult};
use warren_core::identity::SpiffeId;

use super::Telemetry;
use crate::tls::{HandshakeFailure, PeerFacts};

/// Whose connection a handshake is for.
#[derive(Debug, Clone, Default)]
pub struct Parties {
    /// From [`Telemetry::connection_id`]; empty if no connection caused the handshake.
    pub connection_id: String,
    /// Source workload, if known.
    pub source_workload: Option<String>,
    /// Destination workload, if known.
    pub destination_workload: Option<String>,
}

/// One finished handshake.
#[derive(Debug, Clone)]
pub struct HandshakeFacts<'a> {
    parties: &'a Parties,
    direction: Direction,
    source: Option<SpiffeId>,
    destination: Option<SpiffeId>,
    outcome: Result<&'a PeerFacts, &'a HandshakeFailure>,
    duration: Duration,
    ahead: bool,
}

impl<'a> HandshakeFacts<'a> {
    /// A handshake that we started as `own`, towards one of `expected`.
    pub fn outbound(
        parties: &'a Parties,
        own: &SpiffeId,
        expected: &[SpiffeId],
        outcome: Result<&'a PeerFacts, &'a HandshakeFailure>,
        duration: Duration,
    ) -> Self {
        let destination = match outcome {
            Ok(peer) => Some(peer.id.clone()),
            Err(_) => expected.first().cloned(),
        };
        let source = Some(own.clone());
        Self { parties, direction: Direction::Outbound, source, destination, outcome, duration, ahead: false }
    }

    /// No connection wanted it yet.
    #[must_use]
    pub fn ahead(self) -> Self {
        Self { ahead: true, ..self }
    }

    /// A handshake that a peer started towards `own`.
    pub fn inbound(
        parties: &'a Parties,
        own: &SpiffeId,
        outcome: Result<&'a PeerFacts, &'a HandshakeFailure>,
        duration: Duration,
    ) -> Self {
        let source = match outcome {
            Ok(peer) => Some(peer.id.clone()),
            Err(failure) => failure.presented().cloned(),
        };
        let destination = Some(own.clone());
        Self { parties, direction: Direction::Inbound, source, destination, outcome, duration, ahead: false }
    }
}

impl Telemetry {
    /// Records a handshake: counters, and the record in the audit stream.
    pub fn handshake(&self, facts: &HandshakeFacts<'_>) {
        let failure = facts.outcome.err();
        self.shared_metrics().handshake(failure.map(HandshakeFailure::as_str), facts.duration);
        let reason = failure.map(HandshakeFailure::as_str).unwrap_or_default();
        let detail = failure.map(ToString::to_string);
        tracing::debug!(
            target: "handshake",
            connection_id = facts.parties.connection_id,
            direction = ?facts.direction,
            ahead = facts.ahead,
            reason,
            detail = detail.as_deref().unwrap_or_default(),
            "mtls_handshake"
        );
        self.audit().write(&HandshakeRecord {
            event: HandshakeEvent::MtlsHandshake,
            timestamp: self.timestamp(),
            connection_id: facts.parties.connection_id.clone(),
            direction: facts.direction,
            ahead: facts.ahead,
            source_workload: facts.parties.source_workload.clone(),
            destination_workload: facts.parties.destination_workload.clone(),
            source_identity: facts.source.clone(),
            destination_identity: facts.destination.clone(),
            result: match failure {
                None => HandshakeResult::Success,
                Some(_) => HandshakeResult::Failure,
            },
            failure_reason: failure.map(|failure| failure.as_str().to_owned()),
            detail,
            tls_version: facts.outcome.ok().map(|_| "1.3".to_owned()),
            cipher_suite: facts.outcome.ok().map(|peer| peer.cipher_suite.clone()),
            duration_ms: u64::try_from(facts.duration.as_millis()).unwrap_or(u64::MAX),
        });
    }
}
