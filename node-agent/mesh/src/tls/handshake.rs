//! The two handshakes, bounded in time, with failures classified.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::{CommonState, ExtractedSecrets};
use tokio::net::TcpStream;
use warren_core::identity::SpiffeId;
use webpki::KeyUsage;

use super::config::{self, ALPN};
use super::drive::{Handshake, drive};
use super::failure::HandshakeFailure;
use super::leaf::LeafFacts;
use super::record::{Opener, Sealer};
use super::secrets::{KeyError, Secrets, Traffic};
use super::verify::{Verdict, verify_path};
use crate::clock::Clock;
use crate::identity::{IdentitySnapshot, TrustBundle};

/// An established TLS connection, either role: the socket, and what is needed to go on with its records.
pub struct Secured {
    pub(crate) tcp: TcpStream,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    /// Application data that came with the end of the handshake.
    pub(crate) plaintext: Vec<u8>,
    /// What came behind it: the beginning of a record.
    pub(crate) ciphertext: Vec<u8>,
}

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
) -> Result<(Secured, PeerFacts), HandshakeFailure> {
    let verdict = Verdict::default();
    let secrets = Arc::new(Secrets::default());
    let config = config::client(snapshot, expected, &verdict, secrets.clone())?;
    // Never sent: SNI is off and the verifier looks at the SPIFFE ID only.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let connection = UnbufferedClientConnection::new(config, name).map_err(|e| config::bad_config(&e))?;
    let done = bounded(drive(connection, tcp), limit, &verdict).await?;
    let peer = peer_facts(&done.connection)?;
    let (extracted, _) = done.connection.dangerous_into_kernel_connection().map_err(|e| config::bad_config(&e))?;
    let (ours, theirs) = secrets.take();
    Ok((secured(done.tcp, &ours, &theirs, &extracted, done.plaintext, done.ciphertext)?, peer))
}

/// Server handshake: the peer must be of our own trust domain.
pub async fn accept(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
    limit: Duration,
) -> Result<(Secured, PeerFacts), HandshakeFailure> {
    let verdict = Verdict::default();
    let secrets = Arc::new(Secrets::default());
    let config = config::server(snapshot, &verdict, secrets.clone())?;
    let connection = UnbufferedServerConnection::new(config).map_err(|e| config::bad_config(&e))?;
    let done = bounded(drive(connection, tcp), limit, &verdict).await?;
    let peer = peer_facts(&done.connection)?;
    let (extracted, _) = done.connection.dangerous_into_kernel_connection().map_err(|e| config::bad_config(&e))?;
    let (theirs, ours) = secrets.take();
    Ok((secured(done.tcp, &ours, &theirs, &extracted, done.plaintext, done.ciphertext)?, peer))
}

fn secured(
    tcp: TcpStream,
    ours: &[u8],
    theirs: &[u8],
    extracted: &ExtractedSecrets,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
) -> Result<Secured, HandshakeFailure> {
    let failed = |error: KeyError| HandshakeFailure::Protocol(error.to_string());
    let send = Traffic::verified(ours, &extracted.tx).map_err(failed)?;
    let receive = Traffic::verified(theirs, &extracted.rx).map_err(failed)?;
    let broken = |error: super::record::RecordError| HandshakeFailure::Protocol(error.to_string());
    Ok(Secured {
        tcp,
        sealer: Sealer::new(send).map_err(broken)?,
        opener: Opener::new(receive).map_err(broken)?,
        plaintext,
        ciphertext,
    })
}

async fn bounded<T>(
    handshake: impl Future<Output = Result<Handshake<T>, HandshakeFailure>>,
    limit: Duration,
    verdict: &Verdict,
) -> Result<Handshake<T>, HandshakeFailure> {
    match tokio::time::timeout(limit, handshake).await {
        Err(_) => Err(HandshakeFailure::Timeout),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failure)) => Err(verdict.take().unwrap_or(failure)),
    }
}

fn peer_facts(state: &CommonState) -> Result<PeerFacts, HandshakeFailure> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(HandshakeFailure::Protocol("the peer did not agree on ALPN h2".into()));
    }
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
    chain_is_trusted(&peer.chain, bundle, clock)
}

/// Whether a chain, leaf first, is one that those who trust `bundle` accept now, as client and as server.
pub fn chain_is_trusted(chain: &[CertificateDer<'static>], bundle: &TrustBundle, clock: &dyn Clock) -> bool {
    let algorithms = config::provider().signature_verification_algorithms.all;
    let now = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(now);
    let Some((leaf, intermediates)) = chain.split_first() else { return false };
    let usages = [KeyUsage::server_auth(), KeyUsage::client_auth()];
    usages.into_iter().all(|usage| verify_path(bundle, algorithms, leaf, intermediates, now, usage).is_ok())
}

/// Shared facts of one connection's peer.
pub(crate) type SharedPeer = Arc<PeerFacts>;
