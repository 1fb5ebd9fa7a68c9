//! A certificate authority whose certificates and keys are kept elsewhere as PEM: it signs SVIDs for keys that others
//! made.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::Issuer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use warren_core::identity::{SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::TrustBundle;
use super::issue::{
    IssueError, NewCa, RootSigner, SecretKey, hex, leaf_params, make, new_intermediate, new_root, validity,
};
use super::request::RequestedKey;
use crate::tls::LeafFacts;

/// Why PEM text is not the certificate authority that was expected.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthorityError {
    /// It cannot be read.
    #[error("not a certificate in PEM: {0}")]
    Pem(String),
    /// There must be exactly one certificate.
    #[error("{0} certificates where one is expected")]
    Count(usize),
    /// It may not sign certificates.
    #[error("{0} is not a CA certificate that may sign certificates")]
    NotCa(String),
    /// It is one of another trust domain.
    #[error("it is a CA certificate of {found}, not of {expected}")]
    TrustDomain {
        /// The SPIFFE ID that it bears.
        found: String,
        /// The one that it may bear.
        expected: String,
    },
    /// Certificate and key, or certificate and issuer, do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// The cryptographic library failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// A CA certificate, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    /// Subject, as RFC 4514 text.
    pub subject: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl CaCertificate {
    /// Reads one certificate, which must be a CA's, and of no other trust domain.
    pub fn from_pem(pem: &str, trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        let mut all = Self::all_from_pem(pem, trust_domain)?;
        match all.pop() {
            Some(one) if all.is_empty() => Ok(one),
            last => Err(AuthorityError::Count(all.len() + usize::from(last.is_some()))),
        }
    }

    /// Reads any number of them.
    pub fn all_from_pem(pem: &str, trust_domain: &TrustDomain) -> Result<Vec<Self>, AuthorityError> {
        let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let ders = read.map_err(|error| AuthorityError::Pem(error.to_string()))?;
        ders.into_iter().map(|der| Self::from_der(der, trust_domain)).collect()
    }

    /// Reads one that is not in PEM.
    pub fn from_der(der: CertificateDer<'static>, trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        let pem = |error: &dyn fmt::Display| AuthorityError::Pem(error.to_string());
        let (_, cert) = X509Certificate::from_der(&der).map_err(|e| pem(&e))?;
        let subject = cert.subject().to_string();
        let may_sign = cert.key_usage().map_err(|e| pem(&e))?.is_none_or(|usage| usage.value.key_cert_sign());
        if !cert.is_ca() || !may_sign {
            return Err(AuthorityError::NotCa(subject));
        }
        let expected = format!("spiffe://{trust_domain}");
        let names = cert.subject_alternative_name().map_err(|e| pem(&e))?;
        for name in names.map(|san| san.value.general_names.as_slice()).unwrap_or_default() {
            if let GeneralName::URI(found) = name
                && *found != expected
            {
                return Err(AuthorityError::TrustDomain { found: (*found).to_owned(), expected });
            }
        }
        let time = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let serial = format!("{:x}", cert.tbs_certificate.serial);
        let (not_before, not_after) =
            (time(cert.validity().not_before.timestamp()), time(cert.validity().not_after.timestamp()));
        Ok(Self { subject, serial, not_before, not_after, der })
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// A short name that no other certificate has: the beginning of its SHA-256, hex.
    pub fn id(&self) -> String {
        certificate_id(&self.der)
    }
}

/// A short name of a certificate: the first 8 bytes of its SHA-256, hex.
pub fn certificate_id(der: &CertificateDer<'_>) -> String {
    hex(&digest(&SHA256, der).as_ref()[..8])
}

impl TrustBundle {
    /// A name of this set of roots, whatever their order: hex.
    pub fn digest(&self) -> String {
        let mut each: Vec<Vec<u8>> = self.roots().iter().map(|root| digest(&SHA256, root).as_ref().to_vec()).collect();
        each.sort();
        each.dedup();
        hex(&digest(&SHA256, &each.concat()).as_ref()[..16])
    }
}

/// A CA certificate with its key, as PEM: what is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct CaPem {
    /// The certificate.
    pub cert: String,
    /// Its key, PKCS#8; wiped when dropped.
    pub key: Zeroizing<String>,
}

impl From<NewCa> for CaPem {
    fn from(new: NewCa) -> Self {
        Self { cert: new.cert_pem, key: new.key_pem }
    }
}

impl CaPem {
    /// Makes a root of a trust domain; it lives for ten years.
    pub fn new_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        Ok(new_root(trust_domain, now)?.into())
    }

    /// Makes an intermediate under this root.
    pub fn new_intermediate(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Self, AuthorityError> {
        let root = CaCertificate::from_pem(&self.cert, trust_domain)?;
        let signer = RootSigner::new(root.der(), &self.key)?;
        Ok(new_intermediate(&signer, trust_domain.as_str(), now, ttl)?.into())
    }

    /// Reads the certificate and checks that the key is its.
    pub fn read(&self, trust_domain: &TrustDomain) -> Result<CaCertificate, AuthorityError> {
        let certificate = CaCertificate::from_pem(&self.cert, trust_domain)?;
        SecretKey::of(certificate.der(), &self.key)?;
        Ok(certificate)
    }
}

impl fmt::Debug for CaPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaPem").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// A signed leaf with what leads to its root.
#[derive(Debug, Clone)]
pub struct IssuedChain {
    /// Leaf, then the intermediates, in PEM.
    pub pem: String,
    /// Serial number of the leaf, lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// An intermediate that signs SVIDs.
pub struct Authority {
    certificate: CaCertificate,
    id: String,
    issuer: Issuer<'static, SecretKey>,
    /// It and those above it, as they go behind each leaf.
    chain_pem: String,
}

impl Authority {
    /// Reads an intermediate with its key. Certificates of its own issuers may follow it; the last one must be signed
    /// by one of the trusted roots, and the intermediate not have expired.
    pub fn open(pem: &CaPem, bundle: &TrustBundle, now: SystemTime) -> Result<Self, AuthorityError> {
        let mut chain = CaCertificate::all_from_pem(&pem.cert, bundle.trust_domain())?;
        for pair in chain.windows(2) {
            if !signed_by(&pair[0], pair[1].der())? {
                let (lower, upper) = (&pair[0].subject, &pair[1].subject);
                return Err(AuthorityError::Mismatch(format!("{lower} is not signed by {upper}, which follows it")));
            }
        }
        let last = chain.last().ok_or(AuthorityError::Count(0))?;
        let trusted = bundle.roots().iter().map(|root| signed_by(last, root)).collect::<Result<Vec<_>, _>>()?;
        if !trusted.contains(&true) {
            return Err(AuthorityError::Mismatch(format!("{} is signed by none of the trusted roots", last.subject)));
        }
        let certificate = chain.swap_remove(0);
        if certificate.not_after <= now {
            return Err(IssueError::IssuerExpired.into());
        }
        let key = SecretKey::of(certificate.der(), &pem.key)?;
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key).map_err(|e| make(&e))?;
        let id = certificate.id();
        Ok(Self { certificate, id, issuer, chain_pem: pem.cert.clone() })
    }

    /// The intermediate's certificate.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Its short name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Signs an SVID for a key. It starts a moment before `now`, and never outlives the intermediate.
    pub fn sign(
        &self,
        key: &RequestedKey,
        id: &SpiffeId,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<IssuedChain, IssueError> {
        if self.certificate.not_after <= now {
            return Err(IssueError::IssuerExpired);
        }
        let params = leaf_params(id, validity(now, ttl, Some(self.certificate.not_after)))?;
        let leaf = params.signed_by(key.public_key(), &self.issuer).map_err(|e| make(&e))?;
        let facts = LeafFacts::parse(leaf.der()).map_err(|e| IssueError::Make(e.to_string()))?;
        Ok(IssuedChain {
            pem: format!("{}{}", leaf.pem(), self.chain_pem),
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate.subject).finish_non_exhaustive()
    }
}

/// Whether `issuer` signed a certificate.
fn signed_by(certificate: &CaCertificate, issuer: &CertificateDer<'_>) -> Result<bool, AuthorityError> {
    let unreadable = |error: &dyn fmt::Display| AuthorityError::Pem(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate.der()).map_err(|e| unreadable(&e))?;
    let (_, issuer) = X509Certificate::from_der(issuer).map_err(|e| unreadable(&e))?;
    Ok(issuer.subject().as_raw() == parsed.issuer().as_raw()
        && parsed.verify_signature(Some(issuer.public_key())).is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::identity::{NewKey, RequestError};
    use crate::tls::chain_is_trusted;

    const DAY: Duration = Duration::from_secs(86_400);

    struct Scene {
        domain: TrustDomain,
        root: CaPem,
        bundle: TrustBundle,
        clock: Arc<ManualClock>,
    }

    fn bundle(domain: &TrustDomain, roots: &[&CaPem]) -> TrustBundle {
        let ders = roots.iter().map(|root| CaCertificate::from_pem(&root.cert, domain).unwrap().der().clone());
        TrustBundle::new(domain.clone(), ders.collect()).unwrap()
    }

    fn scene() -> Scene {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let clock = Arc::new(ManualClock::new(SystemTime::UNIX_EPOCH + 20_000 * DAY));
        let root = CaPem::new_root(&domain, clock.now()).unwrap();
        Scene { bundle: bundle(&domain, &[&root]), domain, root, clock }
    }

    fn requested(key: &NewKey) -> RequestedKey {
        RequestedKey::read(&key.request().unwrap()).unwrap()
    }

    #[test]
    fn a_key_made_elsewhere_gets_an_svid_that_the_bundle_trusts() {
        let scene = scene();
        let now = scene.clock.now();
        let intermediate = scene.root.new_intermediate(&scene.domain, now, 30 * DAY).unwrap();
        let authority = Authority::open(&intermediate, &scene.bundle, now).unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let key = NewKey::generate().unwrap();
        let issued = authority.sign(&requested(&key), &id, now, DAY).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(issued.pem.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(chain.len(), 2);
        assert!(chain_is_trusted(&chain, &scene.bundle, &*scene.clock));
        assert_eq!(certificate_id(&chain[1]), authority.id());
        let svid = key.svid(&id, chain.clone()).unwrap();
        assert_eq!((svid.serial(), svid.not_after()), (issued.serial.as_str(), issued.not_after));
        // Another key does not fit, and another name is not taken.
        assert!(NewKey::generate().unwrap().svid(&id, chain).is_err());
        scene.clock.advance(31 * DAY);
        assert!(authority.sign(&requested(&NewKey::generate().unwrap()), &id, scene.clock.now(), DAY).is_err());
    }

    #[test]
    fn a_leaf_ends_with_its_intermediate() {
        let scene = scene();
        let now = scene.clock.now();
        let intermediate = scene.root.new_intermediate(&scene.domain, now, DAY).unwrap();
        let authority = Authority::open(&intermediate, &scene.bundle, now).unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let issued = authority.sign(&requested(&NewKey::generate().unwrap()), &id, now, 9 * DAY).unwrap();
        assert_eq!(issued.not_after, authority.certificate().not_after);
    }

    #[test]
    fn an_intermediate_must_lead_to_a_trusted_root() {
        let scene = scene();
        let now = scene.clock.now();
        let stranger = CaPem::new_root(&scene.domain, now).unwrap();
        let foreign = stranger.new_intermediate(&scene.domain, now, DAY).unwrap();
        assert!(matches!(Authority::open(&foreign, &scene.bundle, now), Err(AuthorityError::Mismatch(_))));
        let own = scene.root.new_intermediate(&scene.domain, now, DAY).unwrap();
        let crossed = CaPem { key: foreign.key, ..own.clone() };
        assert!(Authority::open(&crossed, &scene.bundle, now).is_err(), "another's key");
        let expired = now + 2 * DAY;
        assert!(matches!(
            Authority::open(&own, &scene.bundle, expired),
            Err(AuthorityError::Issue(IssueError::IssuerExpired))
        ));
        let longer = CaPem { cert: format!("{}{}", own.cert, stranger.cert), ..own };
        assert!(matches!(Authority::open(&longer, &scene.bundle, now), Err(AuthorityError::Mismatch(_))));
    }

    #[test]
    fn a_root_is_of_one_trust_domain() {
        let scene = scene();
        let other: TrustDomain = "example.org".parse().unwrap();
        assert!(matches!(scene.root.read(&other), Err(AuthorityError::TrustDomain { .. })));
        let leafless = format!("{}{}", scene.root.cert, scene.root.cert);
        assert!(matches!(CaCertificate::from_pem(&leafless, &scene.domain), Err(AuthorityError::Count(2))));
        assert!(matches!(CaCertificate::from_pem("", &scene.domain), Err(AuthorityError::Count(0))));
    }

    #[test]
    fn a_bundle_is_named_whatever_its_order() {
        let scene = scene();
        let next = CaPem::new_root(&scene.domain, scene.clock.now()).unwrap();
        let one = bundle(&scene.domain, &[&scene.root, &next]);
        let other = bundle(&scene.domain, &[&next, &scene.root]);
        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), scene.bundle.digest());
    }

    #[test]
    fn keys_that_are_not_p256_are_refused() {
        use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
        for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
            assert_eq!(RequestedKey::read(&request).unwrap_err(), RequestError::Key);
        }
    }

    #[test]
    fn a_request_needs_the_private_key() {
        use rustls::pki_types::CertificateSigningRequestDer;
        let request = NewKey::generate().unwrap().request().unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
        let asked = RequestedKey::from_der(&der).unwrap();
        for at in 0..der.len() {
            let mut broken = der.to_vec();
            broken[at] ^= 1;
            let other = RequestedKey::from_der(&broken).is_ok_and(|key| key.public_key() != asked.public_key());
            assert!(!other, "byte {at}: another key is taken without its signature");
        }
        assert!(RequestedKey::read("").is_err());
        assert!(RequestedKey::read(&"x".repeat(5000)).is_err());
    }
}
