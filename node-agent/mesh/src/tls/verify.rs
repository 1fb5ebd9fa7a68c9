//! Verification of the peer: SVID leaf, own trust domain's bundle, then who it
//! is. Client and server differ in the last step only.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use warren_core::identity::SpiffeId;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::failure::HandshakeFailure;
use super::leaf::LeafFacts;
use crate::identity::TrustBundle;

/// Where a verifier leaves the reason of its refusal, which rustls' own error
/// cannot carry beside the right alert. One per handshake.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<HandshakeFailure>>>);

impl Verdict {
    fn refuse(&self, refusal: Refusal) -> Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal.failure);
        Error::InvalidCertificate(refusal.alert)
    }

    pub(super) fn take(&self) -> Option<HandshakeFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A refusal for us (`failure`) and for the peer (`alert`).
struct Refusal {
    failure: HandshakeFailure,
    alert: CertificateError,
}

/// Which identities the verifier accepts after the chain is valid.
pub(super) enum Accept {
    /// Anybody of the own trust domain: the server side; policy decides later.
    TrustDomain,
    /// Exactly these: the client side.
    Exactly(Vec<SpiffeId>),
}

/// Verifies a peer against one bundle.
pub(super) struct PeerVerifier {
    pub(super) bundle: Arc<TrustBundle>,
    pub(super) accept: Accept,
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) verdict: Verdict,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        self.check(leaf, intermediates, now, usage).map_err(|refusal| self.verdict.refuse(refusal))
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Refusal> {
        let facts = LeafFacts::parse(leaf).and_then(|facts| Ok((facts.identity()?, facts)));
        let (presented, facts) = facts.map_err(|error| Refusal {
            failure: HandshakeFailure::ChainValidationFailed(error.to_string()),
            alert: CertificateError::BadEncoding,
        })?;
        if presented.trust_domain() != self.bundle.trust_domain() {
            let own = self.bundle.trust_domain().clone();
            return Err(Refusal {
                failure: HandshakeFailure::TrustDomain { own, presented },
                alert: CertificateError::ApplicationVerificationFailure,
            });
        }
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_path(&self.bundle, algorithms, leaf, intermediates, now, usage)
            .map_err(|error| refusal(&error, &self.bundle, &facts, intermediates))?;
        match &self.accept {
            Accept::TrustDomain => Ok(()),
            Accept::Exactly(expected) if expected.contains(&presented) => Ok(()),
            Accept::Exactly(expected) => Err(Refusal {
                failure: HandshakeFailure::IdentityMismatch { expected: expected.clone(), presented },
                alert: CertificateError::ApplicationVerificationFailure,
            }),
        }
    }
}

type Algorithms = &'static [&'static dyn rustls::pki_types::SignatureVerificationAlgorithm];

/// RFC 5280 path validation, validity period and EKU.
pub(super) fn verify_path(
    bundle: &TrustBundle,
    algorithms: Algorithms,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let leaf = EndEntityCert::try_from(leaf)?;
    leaf.verify_for_usage(algorithms, bundle.anchors(), intermediates, now, usage, None, None)?;
    Ok(())
}

fn refusal(
    error: &webpki::Error,
    bundle: &TrustBundle,
    leaf: &LeafFacts,
    intermediates: &[CertificateDer<'_>],
) -> Refusal {
    use webpki::Error as E;
    let text = error.to_string();
    let (failure, alert) = match error {
        E::CertExpired { .. } => (HandshakeFailure::CertificateExpired(text), CertificateError::Expired),
        E::CertNotValidYet { .. } => (HandshakeFailure::NotYetValid(text), CertificateError::NotValidYet),
        E::CertRevoked => (HandshakeFailure::Revoked, CertificateError::Revoked),
        E::UnknownIssuer if issuer_is_missing(bundle, leaf, intermediates) => {
            let issuer = leaf.issuer.clone();
            (HandshakeFailure::MissingIssuer(issuer), CertificateError::UnknownIssuer)
        }
        E::UnknownIssuer => {
            let text = "it leads to no trusted root".to_owned();
            (HandshakeFailure::ChainValidationFailed(text), CertificateError::UnknownIssuer)
        }
        E::InvalidSignatureForPublicKey => {
            (HandshakeFailure::ChainValidationFailed(text), CertificateError::BadSignature)
        }
        _ => (HandshakeFailure::ChainValidationFailed(text), CertificateError::BadEncoding),
    };
    Refusal { failure, alert }
}

/// Whether nothing the peer sent, and no root, has the name of the leaf's
/// issuer: a forgotten intermediate rather than a foreign root.
fn issuer_is_missing(bundle: &TrustBundle, leaf: &LeafFacts, intermediates: &[CertificateDer<'_>]) -> bool {
    let issuer = leaf.issuer_raw();
    let sent = intermediates
        .iter()
        .any(|der| X509Certificate::from_der(der).is_ok_and(|(_, cert)| cert.subject().as_raw() == issuer));
    !sent && !bundle.has_subject(issuer)
}

fn only_tls13() -> Error {
    Error::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// No hints: the list would tell strangers which roots are trusted.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("bundle", &self.bundle).finish_non_exhaustive()
    }
}
