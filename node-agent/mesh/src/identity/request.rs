//! A request for an SVID: a key that its owner made, and the proof that he has it. Everything else that a certificate
//! says, the issuer knows better.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use warren_core::identity::SpiffeId;

use super::issue::{IssueError, SecretKey, make};
use super::svid::{Svid, SvidError};

/// Longest request that is read.
pub const MAX_REQUEST: usize = 4096;
/// A point of P-256, uncompressed.
const P256_POINT: usize = 65;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is none, or its signature is not by the key in it.
    #[error("not a certificate signing request: {0}")]
    Unreadable(String),
    /// The key is not one of ECDSA on P-256.
    #[error("the key is not one of ECDSA on P-256")]
    Key,
}

/// A key for one SVID, made for it and used for no other. Wiped when dropped.
pub struct NewKey(SecretKey);

impl NewKey {
    /// Makes a key.
    pub fn generate() -> Result<Self, IssueError> {
        SecretKey::generate().map(Self)
    }

    /// The request that proves that we have it: PKCS#10 without any name, PEM.
    pub fn request(&self) -> Result<String, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(|e| make(&e))
    }

    /// The SVID, once it was issued for this key.
    pub fn svid(self, expected: &SpiffeId, chain: Vec<CertificateDer<'static>>) -> Result<Svid, SvidError> {
        let pkcs8 = self.0.pkcs8();
        Svid::new(expected, chain, &PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice())))
    }
}

/// The public key of a request whose signature proves that its sender has the private one.
#[derive(Debug, Clone)]
pub struct RequestedKey(PublicKey);

impl RequestedKey {
    /// Reads a PKCS#10 request in PEM. Whatever it says beside the key is not looked at.
    pub fn read(pem: &str) -> Result<Self, RequestError> {
        if pem.len() > MAX_REQUEST {
            return Err(RequestError::Unreadable(format!("more than {MAX_REQUEST} bytes")));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| RequestError::Unreadable(error.to_string()))?;
        Self::from_der(&der)
    }

    pub(super) fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| RequestError::Unreadable(error.to_string()))?;
        let key = request.public_key;
        // The algorithm is that of the signature: a key of another curve may sign with SHA-256 as well.
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(RequestError::Key);
        }
        Ok(Self(key))
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        &self.0
    }
}
