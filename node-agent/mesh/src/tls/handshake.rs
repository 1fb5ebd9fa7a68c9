//! The two handshakes, bounded in time, with failures classified.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::CommonState;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use warren_core::identity::SpiffeId;
use webpki::KeyUsage;

use super::config::{self, ALPN};
use super::failure::{HandshakeFailure, classify_io};
use super::leaf::LeafFacts;
use super::verify::{Verdict, verify_path};
use crate::clock::Clock;
use crate::identity::{IdentitySnapshot, TrustBundle};

/// An established TLS connection, either role.
pub type TlsStream = tokio_rustls::TlsStream<TcpStream>;

/// Plaintext that rustls may hold before it asks to be written out: a few
/// records per write instead of its default of four.
const TLS_BUFFER: usize = 512 * 1024;

/// What a handshake proved about the peer.
#[derive(Debug, Clone)]
pub struct PeerFacts {
    /// Who the peer is.
    pub id: SpiffeId,
    /// Issuer of its SVID, as RFC 4514 text.
    pub issuer: String,
    /// Serial of its SVID, lower-case hex.
    pub serial: String,
    /// End of validity of its SVID.
    pub not_after: SystemTime,
    /// Negotiated cipher suite, by its IANA name.
    pub cipher_suite: String,
    chain: Vec<CertificateDer<'static>>,
}

#[cfg(test)]
impl PeerFacts {
    /// Facts about a peer that nobody met.
    pub(crate) fn for_test(id: &SpiffeId) -> Self {
        Self {
            id: id.clone(),
            issuer: "CN=test".into(),
            serial: "1".into(),
            not_after: SystemTime::UNIX_EPOCH,
            cipher_suite: "TLS13_AES_256_GCM_SHA384".into(),
            chain: Vec::new(),
        }
    }
}

/// Client handshake: the peer must be one of `expected`, exactly.
pub async fn connect(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
    expected: &[SpiffeId],
    limit: Duration,
) -> Result<(TlsStream, PeerFacts), HandshakeFailure> {
    let verdict = Verdict::default();
    let config = config::client(snapshot, expected, &verdict)?;
    // Never sent: SNI is off and the verifier looks at the SPIFFE ID only.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let handshake = TlsConnector::from(config).connect(name, tcp);
    let stream = bounded(handshake, limit, &verdict).await?;
    finish(stream.into())
}

/// Server handshake: the peer must be of our own trust domain.
pub async fn accept(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
    limit: Duration,
) -> Result<(TlsStream, PeerFacts), HandshakeFailure> {
    let verdict = Verdict::default();
    let config = config::server(snapshot, &verdict)?;
    let stream = bounded(TlsAcceptor::from(config).accept(tcp), limit, &verdict).await?;
    finish(stream.into())
}

async fn bounded<T>(
    handshake: impl Future<Output = io::Result<T>>,
    limit: Duration,
    verdict: &Verdict,
) -> Result<T, HandshakeFailure> {
    match tokio::time::timeout(limit, handshake).await {
        Err(_) => Err(HandshakeFailure::Timeout),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(verdict.take().unwrap_or_else(|| classify_io(&error))),
    }
}

fn finish(mut stream: TlsStream) -> Result<(TlsStream, PeerFacts), HandshakeFailure> {
    match &mut stream {
        tokio_rustls::TlsStream::Client(s) => s.get_mut().1.set_buffer_limit(Some(TLS_BUFFER)),
        tokio_rustls::TlsStream::Server(s) => s.get_mut().1.set_buffer_limit(Some(TLS_BUFFER)),
    }
    let (_, state) = stream.get_ref();
    if state.alpn_protocol() != Some(ALPN) {
        return Err(HandshakeFailure::Protocol("the peer did not agree on ALPN h2".into()));
    }
    let facts = peer_facts(state)?;
    Ok((stream, facts))
}

fn peer_facts(state: &CommonState) -> Result<PeerFacts, HandshakeFailure> {
    let failed = HandshakeFailure::ChainValidationFailed;
    let chain = state.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or_else(|| failed("no peer certificate".into()))?;
    let leaf = LeafFacts::parse(leaf).map_err(|e| failed(e.to_string()))?;
    let id = leaf.identity().map_err(|e| failed(e.to_string()))?;
    let suite = state.negotiated_cipher_suite();
    Ok(PeerFacts {
        id,
        issuer: leaf.issuer.clone(),
        serial: leaf.serial.clone(),
        not_after: leaf.not_after,
        cipher_suite: suite.map(|s| format!("{:?}", s.suite())).unwrap_or_default(),
        chain: chain.to_vec(),
    })
}

/// Whether a peer verified earlier would still be accepted under `bundle`: for
/// connections that outlive a root. Its validity period is judged as of now.
pub fn peer_still_trusted(peer: &PeerFacts, bundle: &TrustBundle, clock: &dyn Clock) -> bool {
    let algorithms = config::provider().signature_verification_algorithms.all;
    let now = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(now);
    let Some((leaf, intermediates)) = peer.chain.split_first() else { return false };
    let usages = [KeyUsage::server_auth(), KeyUsage::client_auth()];
    usages.into_iter().all(|usage| verify_path(bundle, algorithms, leaf, intermediates, now, usage).is_ok())
}

/// Shared facts of one connection's peer.
pub(crate) type SharedPeer = Arc<PeerFacts>;
