//! rustls configurations. Each handshake gets its own, made of shared parts:
//! the verifier holds that handshake's verdict.

use std::sync::{Arc, OnceLock};

use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use warren_core::identity::SpiffeId;

use super::failure::HandshakeFailure;
use super::secrets::Secrets;
use super::verify::{Accept, PeerVerifier, Verdict};
use crate::clock::TlsTime;
use crate::identity::IdentitySnapshot;

pub(super) const ALPN: &[u8] = b"h2";

/// AES-GCM only, as ztunnel has it (hbone.md §4), the smaller key first: it is faster, and no weaker against anything
/// that could break the other today. Servers follow their client's order.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
        Arc::new(CryptoProvider { cipher_suites, ..default_provider() })
    };
    Arc::clone(PROVIDER.get_or_init(make))
}

pub(super) fn bad_config(error: &rustls::Error) -> HandshakeFailure {
    HandshakeFailure::Protocol(error.to_string())
}

fn verifier(snapshot: &IdentitySnapshot, accept: Accept, verdict: &Verdict) -> Arc<PeerVerifier> {
    Arc::new(PeerVerifier {
        bundle: Arc::clone(&snapshot.bundle),
        accept,
        provider: provider(),
        verdict: verdict.clone(),
    })
}

pub(super) fn client(
    snapshot: &IdentitySnapshot,
    expected: &[SpiffeId],
    verdict: &Verdict,
    secrets: Arc<Secrets>,
) -> Result<Arc<ClientConfig>, HandshakeFailure> {
    let time = Arc::new(TlsTime(Arc::clone(snapshot.clock())));
    let key = SingleCertAndKey::from(Arc::clone(snapshot.svid.certified_key()));
    let verifier = verifier(snapshot, Accept::Exactly(expected.to_vec()), verdict);
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| bad_config(&e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    config.key_log = secrets;
    Ok(Arc::new(config))
}

pub(super) fn server(
    snapshot: &IdentitySnapshot,
    verdict: &Verdict,
    secrets: Arc<Secrets>,
) -> Result<Arc<ServerConfig>, HandshakeFailure> {
    let time = Arc::new(TlsTime(Arc::clone(snapshot.clock())));
    let key = SingleCertAndKey::from(Arc::clone(snapshot.svid.certified_key()));
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| bad_config(&e))?
        .with_client_cert_verifier(verifier(snapshot, Accept::TrustDomain, verdict))
        .with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.enable_secret_extraction = true;
    config.key_log = secrets;
    Ok(Arc::new(config))
}
