//! Making certificates: root, intermediate, leaf (identity.md §2).

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use warren_core::identity::{SpiffeId, TrustDomain};
use zeroize::{Zeroize, Zeroizing};

use super::svid::{Svid, SvidError};

/// Certificates start this long in the past, for clocks that run behind.
const BACKDATE: Duration = Duration::from_secs(10);
/// Lifetime of a root.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The library could not make a key or a certificate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssueError {
    /// Key or certificate generation failed.
    #[error("cannot make a certificate: {0}")]
    Make(String),
    /// The result is not an SVID.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// The issuer itself has expired.
    #[error("the issuer has expired")]
    IssuerExpired,
}

pub(super) fn make(error: &rcgen::Error) -> IssueError {
    IssueError::Make(error.to_string())
}

/// A private key that is wiped when dropped.
pub(super) struct SecretKey(KeyPair);

impl SecretKey {
    pub(super) fn generate() -> Result<Self, IssueError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|e| make(&e))
    }

    /// Reads the key of a certificate, and checks that it is its.
    pub(super) fn of(cert: &CertificateDer<'_>, key_pem: &str) -> Result<Self, IssueError> {
        let key = KeyPair::from_pem(key_pem).map(Self).map_err(|e| make(&e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| IssueError::Make(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(IssueError::Make("the key does not belong to the certificate".into()));
        }
        Ok(key)
    }

    /// PKCS#8, wiped when dropped like the key it was taken from.
    pub(super) fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// A new CA certificate with its key, to be written down.
pub(super) struct NewCa {
    pub(super) id: String,
    pub(super) cert_pem: String,
    pub(super) key_pem: Zeroizing<String>,
}

pub(super) fn new_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<NewCa, IssueError> {
    let key = SecretKey::generate()?;
    let serial = random_serial();
    let id = hex(&serial[..8]);
    let validity = validity(now, ROOT_TTL, None);
    let name = format!("Warren root {id}");
    let mut params = ca_params(&name, &serial, validity, BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    let cert = params.self_signed(&key).map_err(|e| make(&e))?;
    Ok(NewCa { id, cert_pem: cert.pem(), key_pem: Zeroizing::new(key.0.serialize_pem()) })
}

/// A root that can sign.
pub(super) struct RootSigner {
    issuer: Issuer<'static, SecretKey>,
    not_after: SystemTime,
}

impl RootSigner {
    /// Reads the key and checks that it belongs to the certificate.
    pub(super) fn new(cert: &CertificateDer<'_>, key_pem: &str) -> Result<Self, IssueError> {
        let key = SecretKey::of(cert, key_pem)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| IssueError::Make(e.to_string()))?;
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = Issuer::from_ca_cert_der(cert, key).map_err(|e| make(&e))?;
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
        Ok(Self { issuer, not_after })
    }
}

/// An agent's own signing certificate. Its key never leaves memory.
pub(super) struct Intermediate {
    issuer: Issuer<'static, SecretKey>,
    pub(super) der: CertificateDer<'static>,
    pub(super) subject: String,
    pub(super) serial: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Id of the root above it.
    pub(super) root: String,
}

impl Intermediate {
    pub(super) fn new(
        root: &RootSigner,
        root_id: &str,
        node: &str,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Self, IssueError> {
        let made = IntermediateCert::new(root, node, now, ttl)?;
        let (not_before, not_after) = made.span;
        Ok(Self {
            der: made.cert.der().clone(),
            issuer: Issuer::new(made.params, made.key),
            subject: format!("CN={}", made.subject),
            serial: hex(&made.serial),
            not_before,
            not_after,
            root: root_id.into(),
        })
    }

    /// An SVID with a key of its own.
    pub(super) fn issue(&self, id: &SpiffeId, now: SystemTime, ttl: Duration) -> Result<Svid, IssueError> {
        if self.not_after <= now {
            return Err(IssueError::IssuerExpired);
        }
        let key = SecretKey::generate()?;
        let validity = validity(now, ttl, Some(self.not_after));
        let params = leaf_params(id, validity)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(|e| make(&e))?;
        let chain = vec![cert.der().clone(), self.der.clone()];
        let pkcs8 = key.pkcs8();
        let borrowed = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        Ok(Svid::new(id, chain, &borrowed)?)
    }
}

/// An intermediate as it was made.
struct IntermediateCert {
    key: SecretKey,
    cert: rcgen::Certificate,
    params: CertificateParams,
    subject: String,
    serial: [u8; 16],
    span: (SystemTime, SystemTime),
}

impl IntermediateCert {
    fn new(root: &RootSigner, name: &str, now: SystemTime, ttl: Duration) -> Result<Self, IssueError> {
        if root.not_after <= now {
            return Err(IssueError::IssuerExpired);
        }
        let key = SecretKey::generate()?;
        let serial = random_serial();
        let span = validity(now, ttl, Some(root.not_after));
        let subject = format!("Warren intermediate {name} {}", hex(&serial[..4]));
        let mut params = ca_params(&subject, &serial, span, BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &root.issuer).map_err(|e| make(&e))?;
        Ok(Self { key, cert, params, subject, serial, span })
    }
}

/// A new intermediate, to be written down.
pub(super) fn new_intermediate(
    root: &RootSigner,
    name: &str,
    now: SystemTime,
    ttl: Duration,
) -> Result<NewCa, IssueError> {
    let made = IntermediateCert::new(root, name, now, ttl)?;
    let key_pem = Zeroizing::new(made.key.0.serialize_pem());
    Ok(NewCa { id: hex(&made.serial[..8]), cert_pem: made.cert.pem(), key_pem })
}

pub(super) fn leaf_params(
    id: &SpiffeId,
    (not_before, not_after): (SystemTime, SystemTime),
) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.subject_alt_names = vec![uri(id.as_str())?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    Ok(params)
}

fn ca_params(
    name: &str,
    serial: &[u8],
    (not_before, not_after): (SystemTime, SystemTime),
    constraints: BasicConstraints,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    params
}

fn uri(text: &str) -> Result<SanType, IssueError> {
    Ok(SanType::URI(text.try_into().map_err(|e: rcgen::Error| make(&e))?))
}

/// X.509 knows whole seconds: the end is rounded up, or a certificate of two
/// seconds might live one. It never outlives its issuer.
pub(super) fn validity(now: SystemTime, ttl: Duration, limit: Option<SystemTime>) -> (SystemTime, SystemTime) {
    let since = (now + ttl).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() + u64::from(since.subsec_nanos() > 0);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    (now - BACKDATE, limit.map_or(end, |limit| end.min(limit)))
}

/// 16 random bytes, positive and of full length as DER integer.
fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
