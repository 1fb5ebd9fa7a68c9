//! Certificates as a hostile or broken peer would present them.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority whose key the tests hold.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// Certificates to be sent between a leaf and the root.
    chain: Vec<CertificateDer<'static>>,
}

/// A chain and its key, ready for TLS.
pub struct Credentials {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

/// What a leaf says.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// URI SANs.
    pub uris: Vec<String>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Leaf {
    /// A leaf that is valid now, with one SPIFFE id.
    pub fn valid(uri: &str) -> Self {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        Self { uris: vec![uri.to_owned()], not_before: now - hour, not_after: now + hour }
    }

    /// One that ended a minute ago.
    pub fn expired(uri: &str) -> Self {
        Self { not_after: SystemTime::now() - Duration::from_secs(60), ..Self::valid(uri) }
    }

    /// One that begins in half an hour.
    pub fn not_yet_valid(uri: &str) -> Self {
        Self { not_before: SystemTime::now() + Duration::from_secs(1800), ..Self::valid(uri) }
    }
}

impl Authority {
    /// The root in a CA directory of the product: whichever certificate and key there belong together.
    #[track_caller]
    pub fn from_ca_dir(dir: &Path) -> Self {
        let texts: Vec<Vec<u8>> = files(dir).iter().filter_map(|path| std::fs::read(path).ok()).collect();
        let keys = texts.iter().filter_map(|text| PrivatePkcs8KeyDer::from_pem_slice(text).ok());
        let pairs: Vec<KeyPair> = keys.filter_map(|key| KeyPair::try_from(key.secret_pkcs8_der()).ok()).collect();
        for text in &texts {
            for certificate in CertificateDer::pem_slice_iter(text).flatten() {
                for pair in &pairs {
                    if holds(&certificate, pair.der_bytes()) {
                        let pair = KeyPair::try_from(pair.serialize_der()).expect("own key");
                        let issuer = Issuer::from_ca_cert_der(&certificate, pair).expect("CA certificate");
                        return Self { issuer, certificate, chain: Vec::new() };
                    }
                }
            }
        }
        panic!("no CA certificate with its key (PEM, PKCS#8) under {}", dir.display());
    }

    /// A root that nobody trusts.
    pub fn unknown() -> Self {
        let made = CertifiedIssuer::self_signed(ca_params("unknown root"), new_key()).expect("root");
        let certificate = made.der().clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, copy(made.key())).expect("CA certificate");
        Self { issuer, certificate, chain: Vec::new() }
    }

    /// An intermediate below this authority.
    pub fn intermediate(&self) -> Self {
        let made = CertifiedIssuer::signed_by(ca_params("test intermediate"), new_key(), &self.issuer);
        let made = made.expect("intermediate");
        let certificate = made.der().clone();
        let issuer = Issuer::from_ca_cert_der(&certificate, copy(made.key())).expect("CA certificate");
        let chain = std::iter::once(certificate.clone()).chain(self.chain.iter().cloned()).collect();
        Self { issuer, certificate, chain }
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A leaf with its intermediates.
    pub fn issue(&self, leaf: &Leaf) -> Credentials {
        let mut credentials = self.issue_bare(leaf);
        credentials.chain.extend(self.chain.iter().cloned());
        credentials
    }

    /// A leaf alone, as of a peer that forgot its intermediates.
    pub fn issue_bare(&self, leaf: &Leaf) -> Credentials {
        let key = new_key();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.into();
        params.subject_alt_names =
            leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII"))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Credentials { chain: vec![certificate.der().clone()], key }
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("ECDSA P-256 key")
}

fn copy(key: &KeyPair) -> KeyPair {
    KeyPair::try_from(key.serialize_der()).expect("own key")
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(86_400)).into();
    params
}

fn holds(certificate: &CertificateDer<'_>, public_key: &[u8]) -> bool {
    certificate.windows(public_key.len()).any(|window| window == public_key)
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
