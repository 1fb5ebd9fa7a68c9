//! TLS for Warren's own services: the server alone proves who it is, by an SVID, to clients that know exactly whom they
//! want. TLS 1.3, ALPN `h2`, nothing resumed, as between tunnels.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::{ClientConfig, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use warren_core::identity::SpiffeId;

use super::config::{ALPN, bad_config, provider};
use super::failure::HandshakeFailure;
use super::verify::{Accept, PeerVerifier, Verdict};
use crate::clock::{Clock, TlsTime};
use crate::identity::{Svid, TrustBundle};

/// The SVID under which a service answers; it may be replaced at any time.
#[derive(Clone, Default)]
pub struct ServiceSvid(Arc<Mutex<Option<Arc<CertifiedKey>>>>);

impl ServiceSvid {
    /// Takes the next SVID for handshakes from now on.
    pub fn set(&self, svid: &Svid) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(svid.certified_key()));
    }

    /// Takes it away: handshakes fail until there is another one.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ResolvesServerCert for ServiceSvid {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for ServiceSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceSvid").finish_non_exhaustive()
    }
}

/// The server's side; clients prove who they are in what they ask, not in TLS.
pub fn service_server(svid: ServiceSvid, clock: Arc<dyn Clock>) -> Result<Arc<ServerConfig>, HandshakeFailure> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| bad_config(&e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(svid));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// The client's side: whoever answers must be `expected`, by a chain to one of the roots of `bundle`.
pub fn service_client(
    bundle: Arc<TrustBundle>,
    expected: SpiffeId,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, HandshakeFailure> {
    let verifier = PeerVerifier {
        bundle,
        accept: Accept::Exactly(vec![expected]),
        provider: provider(),
        verdict: Verdict::default(),
    };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| bad_config(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
