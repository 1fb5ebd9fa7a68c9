//! What a leaf certificate says, and whether it is the leaf of an SVID
//! (identity.md §2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use warren_core::identity::SpiffeId;
use warren_core::san::{SanError, spiffe_id_from_uri_sans};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate is not the leaf of an SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not X.509.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not exactly one SPIFFE ID.
    #[error(transparent)]
    San(#[from] SanError),
    /// A CA certificate used as a leaf.
    #[error("the certificate is a CA certificate")]
    IsCa,
    /// keyUsage is missing or lacks digitalSignature.
    #[error("keyUsage does not allow digitalSignature")]
    NoDigitalSignature,
    /// keyUsage allows signing certificates or CRLs.
    #[error("keyUsage allows signing certificates or CRLs")]
    MaySign,
    /// extKeyUsage is there but lacks one of the two roles.
    #[error("extKeyUsage lacks serverAuth or clientAuth")]
    ExtendedKeyUsage,
}

/// The parts of a leaf certificate that Warren looks at.
#[derive(Debug, Clone)]
pub struct LeafFacts {
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Issuer, as RFC 4514 text.
    pub issuer: String,
    issuer_raw: Vec<u8>,
    uri_sans: Vec<String>,
    profile: Result<(), LeafError>,
}

impl LeafFacts {
    /// Reads a certificate.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let unreadable = |e: &dyn std::fmt::Display| LeafError::Unreadable(e.to_string());
        let (rest, cert) = X509Certificate::from_der(der).map_err(|e| unreadable(&e))?;
        if !rest.is_empty() {
            return Err(LeafError::Unreadable("bytes after the certificate".into()));
        }
        let san = cert.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let names = san.map(|san| san.value.general_names.as_slice()).unwrap_or_default();
        let uri_sans = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        Ok(Self {
            not_before: at(cert.validity().not_before.timestamp()),
            not_after: at(cert.validity().not_after.timestamp()),
            serial: format!("{:x}", cert.tbs_certificate.serial),
            issuer: cert.issuer().to_string(),
            issuer_raw: cert.issuer().as_raw().to_vec(),
            uri_sans,
            profile: check_profile(&cert),
        })
    }

    /// The one identity the leaf names, if its profile is that of an SVID.
    pub fn identity(&self) -> Result<SpiffeId, LeafError> {
        let id = spiffe_id_from_uri_sans(self.uri_sans.iter().map(String::as_str))?;
        self.profile.clone().map(|()| id)
    }

    /// Raw DER name of the issuer.
    pub(crate) fn issuer_raw(&self) -> &[u8] {
        &self.issuer_raw
    }
}

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn check_profile(cert: &X509Certificate<'_>) -> Result<(), LeafError> {
    let unreadable = |e: &dyn std::fmt::Display| LeafError::Unreadable(e.to_string());
    if cert.is_ca() {
        return Err(LeafError::IsCa);
    }
    let usage = cert.key_usage().map_err(|e| unreadable(&e))?;
    let usage = usage.ok_or(LeafError::NoDigitalSignature)?.value;
    if !usage.digital_signature() {
        return Err(LeafError::NoDigitalSignature);
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(LeafError::MaySign);
    }
    match cert.extended_key_usage().map_err(|e| unreadable(&e))? {
        Some(eku) if !(eku.value.server_auth && eku.value.client_auth) => Err(LeafError::ExtendedKeyUsage),
        _ => Ok(()),
    }
}
