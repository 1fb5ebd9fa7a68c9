//! Making a tunnel's TLS connection, whoever wants it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use warren_core::pool::PoolKey;

use crate::hbone::TunnelError;
use crate::identity::IdentitySnapshot;
use crate::limits::Limits;
use crate::telemetry::{HandshakeFacts, Parties, Telemetry};
use crate::tls::{self, HandshakeFailure, PeerFacts, Secured};

/// One handshake in so many is for tunnels that nobody waits for.
const SHARE_AHEAD: usize = 16;

/// A TCP connection under way.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + 'a>>;

/// What reaches peers in a pod's name, for connections and ahead of them.
pub trait Dialler {
    /// Connects to `key.destination` from `key.source_ip`; the pool limits the time.
    fn connect<'a>(&'a self, key: &'a PoolKey) -> Connecting<'a>;

    /// What a dial that no connection caused goes by. `None` if there should be none now: the pod has no SVID of this
    /// name, or the peer is not there any more, or is another one.
    fn occasion(&self, key: &PoolKey) -> Option<Occasion>;
}

/// What a dial ahead goes by.
pub struct Occasion {
    /// The pod's identity now.
    pub snapshot: Arc<IdentitySnapshot>,
    /// Who will talk to whom; without a connection's id.
    pub parties: Parties,
}

/// For whom a handshake is.
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    pub(super) parties: &'a Parties,
    pub(super) ahead: bool,
}

/// All that dialling needs. It outlives the pool while a dial is under way.
pub(super) struct Dials {
    pub(super) limits: Arc<Limits>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) dialler: Box<dyn Dialler>,
    for_connections: Semaphore,
    pub(super) ahead: Semaphore,
}

impl Dials {
    pub(super) fn new(limits: Arc<Limits>, telemetry: Arc<Telemetry>, dialler: Box<dyn Dialler>) -> Self {
        // Two separate shares: a dial ahead never takes the slot of a connection that waits.
        let ahead = (limits.inflight_handshakes / SHARE_AHEAD).max(1);
        let for_connections = limits.inflight_handshakes.saturating_sub(ahead).max(1);
        let (for_connections, ahead) = (Semaphore::new(for_connections), Semaphore::new(ahead));
        Self { limits, telemetry, dialler, for_connections, ahead }
    }

    /// TCP and TLS for a connection that waits.
    pub(super) async fn dial_for_connection(
        &self,
        key: &PoolKey,
        snapshot: &IdentitySnapshot,
        parties: &Parties,
    ) -> Result<(Secured, PeerFacts), TunnelError> {
        let _slot = self.for_connections.acquire().await;
        self.dial(key, snapshot, Purpose { parties, ahead: false }).await
    }

    /// TCP and TLS, and the record of the handshake.
    pub(super) async fn dial(
        &self,
        key: &PoolKey,
        snapshot: &IdentitySnapshot,
        purpose: Purpose<'_>,
    ) -> Result<(Secured, PeerFacts), TunnelError> {
        let limits = &self.limits;
        let tcp = match timeout(limits.tcp_connect_timeout, self.dialler.connect(key)).await {
            Err(_) => return Err(TunnelError::DialTimeout),
            Ok(tcp) => tcp.map_err(|error| TunnelError::dial(&error))?,
        };
        let started = Instant::now();
        let handshake = tls::connect(tcp, snapshot, &key.expected, limits.handshake_timeout).await;
        let outcome = handshake.as_ref().map(|(_, peer)| peer);
        self.record(key, purpose, outcome, started.elapsed());
        Ok(handshake?)
    }

    /// Writes a handshake's record.
    pub(super) fn record(
        &self,
        key: &PoolKey,
        Purpose { parties, ahead }: Purpose<'_>,
        outcome: Result<&PeerFacts, &HandshakeFailure>,
        duration: std::time::Duration,
    ) {
        let facts = HandshakeFacts::outbound(parties, &key.source, &key.expected, outcome, duration);
        self.telemetry.handshake(&if ahead { facts.ahead() } else { facts });
    }
}
