//! One X.509-SVID with its private key.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use warren_core::identity::SpiffeId;

use crate::tls::LeafFacts;

/// Why a certificate and key are not an SVID.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SvidError {
    /// The chain has no leaf.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf is not a certificate, or not one of an SVID.
    #[error("the leaf is not an SVID: {0}")]
    Leaf(String),
    /// The key cannot sign, or does not belong to the leaf.
    #[error("the private key does not fit: {0}")]
    Key(String),
    /// The leaf names someone else.
    #[error("the leaf names {presented}, expected {expected}")]
    OtherIdentity {
        /// Who the SVID was asked for.
        expected: SpiffeId,
        /// Whom it names.
        presented: SpiffeId,
    },
}

/// An X.509-SVID: leaf, intermediates, private key. The key is held by the
/// cryptographic library, which wipes it when the last user is gone; it has no
/// way out of this type.
pub struct Svid {
    id: SpiffeId,
    key: Arc<CertifiedKey>,
    facts: LeafFacts,
}

impl Svid {
    /// Takes a chain (leaf first, no root) and its PKCS#8 key. The leaf must
    /// name `expected`: an SVID of another name is not used (identity.md §13).
    pub fn new(
        expected: &SpiffeId,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<Self, SvidError> {
        let leaf = chain.first().ok_or(SvidError::Empty)?;
        let facts = LeafFacts::parse(leaf).map_err(|e| SvidError::Leaf(e.to_string()))?;
        let id = facts.identity().map_err(|e| SvidError::Leaf(e.to_string()))?;
        if id != *expected {
            return Err(SvidError::OtherIdentity { expected: expected.clone(), presented: id });
        }
        let signer = any_ecdsa_type(key).map_err(|e| SvidError::Key(e.to_string()))?;
        let key = CertifiedKey::new(chain, signer);
        key.keys_match().map_err(|e| SvidError::Key(e.to_string()))?;
        Ok(Self { id, key: Arc::new(key), facts })
    }

    /// The identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf, then intermediates; roots left out.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// Serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// Issuer, as RFC 4514 text.
    pub fn issuer(&self) -> &str {
        &self.facts.issuer
    }

    /// The same SVID from an issuer that forgot its intermediates.
    #[cfg(test)]
    pub(crate) fn without_intermediates(&self) -> Self {
        let leaf = self.key.cert[..1].to_vec();
        let key = CertifiedKey::new(leaf, Arc::clone(&self.key.key));
        Self { id: self.id.clone(), key: Arc::new(key), facts: self.facts.clone() }
    }

    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.facts.serial)
            .field("not_after", &self.facts.not_after)
            .finish_non_exhaustive()
    }
}
