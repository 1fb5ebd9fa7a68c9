//! One tunnelled connection: the two halves of a CONNECT stream.

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use warren_core::tunnel::Baggage;

use super::tunnel::StreamGuard;
use crate::tls::{PeerFacts, SharedPeer};

/// An open CONNECT stream, either role: 200 has been sent or received. The copy
/// loop takes it apart; dropping it unfinished resets the stream.
pub struct HboneStream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
    pub(crate) peer: SharedPeer,
    pub(crate) peer_baggage: Baggage,
    /// Bytes of the application already sent along with CONNECT.
    pub(crate) early_sent: u64,
    /// The application has ended its direction already; END_STREAM is due.
    pub(crate) app_ended: bool,
    /// Client side: keeps the pooled connection's stream count.
    pub(crate) guard: Option<StreamGuard>,
}

impl HboneStream {
    /// What the handshake proved about the peer.
    pub fn peer(&self) -> &PeerFacts {
        &self.peer
    }

    /// How the peer describes itself: of the destination on the client side, of
    /// the source on the server side. Telemetry only, never trusted.
    pub fn peer_baggage(&self) -> &Baggage {
        &self.peer_baggage
    }

    /// Bytes of the application that went out with CONNECT.
    pub fn early_sent(&self) -> u64 {
        self.early_sent
    }
}
