//! The roots of one trust domain.

use std::fmt;

use rustls::pki_types::{CertificateDer, TrustAnchor};
use warren_core::identity::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A root that cannot be trusted because it cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not a usable root certificate: {0}")]
pub struct BundleError(String);

/// Roots of exactly one trust domain. An empty bundle is valid and trusts
/// nobody: all authorities were withdrawn (identity.md §3).
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    subjects: Vec<Vec<u8>>,
}

impl TrustBundle {
    /// Reads the roots.
    pub fn new(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut anchors = Vec::with_capacity(roots.len());
        let mut subjects = Vec::with_capacity(roots.len());
        for root in &roots {
            let anchor = webpki::anchor_from_trusted_cert(root).map_err(|e| BundleError(e.to_string()))?;
            anchors.push(anchor.to_owned());
            let (_, parsed) = X509Certificate::from_der(root).map_err(|e| BundleError(e.to_string()))?;
            subjects.push(parsed.subject().as_raw().to_vec());
        }
        Ok(Self { trust_domain, roots, anchors, subjects })
    }

    /// The trust domain these roots speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Number of roots.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Whether a root has this subject (raw DER name).
    pub(crate) fn has_subject(&self, name: &[u8]) -> bool {
        self.subjects.iter().any(|subject| subject == name)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain)
            .field("roots", &self.roots.len())
            .finish()
    }
}
