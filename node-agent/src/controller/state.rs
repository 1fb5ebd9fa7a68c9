//! What the certificate authority of a mesh keeps in its Secret: keys, certificates, and how far a rotation is.
//!
//! An operator may make the Secret himself: `root-cert.pem` with `root-key.pem`, or `root-cert.pem` with
//! `intermediate-cert.pem` and `intermediate-key.pem`, where the root's key stays elsewhere. The controller adds the rest.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use warren_core::identity::TrustDomain;
use warren_mesh::identity::{Authority, AuthorityError, BundleError, CaCertificate, CaPem, TrustBundle};
use zeroize::Zeroizing;

const ROOT_CERT: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
const INTERMEDIATE_CERT: &str = "intermediate-cert.pem";
const INTERMEDIATE_KEY: &str = "intermediate-key.pem";
const NEXT_ROOT_CERT: &str = "next-root-cert.pem";
const NEXT_ROOT_KEY: &str = "next-root-key.pem";
const OLD_ROOT_CERT: &str = "old-root-cert.pem";
const NOTES: &str = "state.json";
const FORMAT: u32 = 1;

/// Lifetime of an intermediate; it is replaced at half of it.
pub(crate) const INTERMEDIATE_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why a Secret is no certificate authority; names its key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// Something is not there.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// Something cannot be used.
    #[error("{0}: {1}")]
    Authority(&'static str, #[source] AuthorityError),
    /// Something is not text, or not what it should be.
    #[error("{0}: {1}")]
    Corrupt(&'static str, String),
    /// A later release wrote it.
    #[error("{NOTES} has format {0}; this release reads up to {FORMAT}: run the release that wrote it")]
    Format(u32),
    /// The roots cannot be trusted.
    #[error("{ROOT_CERT}: {0}")]
    Bundle(#[from] BundleError),
    /// What was asked for needs the root's key.
    #[error("it has no {ROOT_KEY}: the root is kept elsewhere, so a new intermediate must be signed there and put in")]
    RootIsElsewhere,
}

/// What is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// The root, and the intermediate under it.
    Root,
    /// The intermediate only.
    Intermediate,
}

impl What {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        }
    }
}

/// How far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// The next root is being made known; it signs nothing.
    Distribute,
    /// The new intermediate signs; SVIDs of the old one are being replaced.
    Renew,
}

impl Step {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Distribute => "distribute",
            Self::Renew => "renew",
        }
    }
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rotation {
    /// What is replaced.
    pub(crate) what: What,
    /// How far.
    pub(crate) step: Step,
    /// When the step began, seconds since 1970.
    pub(crate) since: u64,
    /// Nodes that this step waits for no longer, because an operator said so.
    #[serde(default)]
    pub(crate) skipped: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    format: u32,
    sequence: u64,
    #[serde(default)]
    rotation: Option<Rotation>,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaState {
    /// Grows with every change that agents must see.
    pub(crate) sequence: u64,
    /// The root that the intermediate leads to.
    pub(crate) root_cert: String,
    /// Its key, if it is here.
    pub(crate) root_key: Option<Zeroizing<String>>,
    /// What signs.
    pub(crate) intermediate: CaPem,
    /// The root that comes next.
    pub(crate) next_root: Option<CaPem>,
    /// The root before, still trusted.
    pub(crate) old_root_cert: Option<String>,
    /// How far a rotation is.
    pub(crate) rotation: Option<Rotation>,
}

/// The data of a Secret.
pub(crate) type SecretData = BTreeMap<String, ByteString>;

impl CaState {
    /// A new root with an intermediate.
    pub(crate) fn new(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, StateError> {
        let root = CaPem::new_root(trust_domain, now).map_err(|e| StateError::Authority(ROOT_CERT, e))?;
        Self::under(root, trust_domain, now)
    }

    fn under(root: CaPem, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, StateError> {
        let intermediate = intermediate(&root, trust_domain, now)?;
        Ok(Self {
            sequence: first_sequence(now),
            root_cert: root.cert,
            root_key: Some(root.key),
            intermediate,
            next_root: None,
            old_root_cert: None,
            rotation: None,
        })
    }

    /// Reads a Secret; `true` if something was added that must be written back.
    pub(crate) fn read(
        data: &SecretData,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(Self, bool), StateError> {
        let root_cert = text(data, ROOT_CERT)?.ok_or(StateError::Missing(ROOT_CERT))?;
        CaCertificate::from_pem(&root_cert, trust_domain).map_err(|e| StateError::Authority(ROOT_CERT, e))?;
        let root_key = text(data, ROOT_KEY)?.map(Zeroizing::new);
        if let Some(key) = &root_key {
            let root = CaPem { cert: root_cert.clone(), key: key.clone() };
            root.read(trust_domain).map_err(|e| StateError::Authority(ROOT_KEY, e))?;
        }
        let intermediate = pair(data, INTERMEDIATE_CERT, INTERMEDIATE_KEY)?;
        let notes = match text(data, NOTES)? {
            Some(text) => Some(notes(&text)?),
            None => None,
        };
        let Some(intermediate) = intermediate else {
            let key = root_key.ok_or(StateError::Missing(ROOT_KEY))?;
            return Ok((Self::under(CaPem { cert: root_cert, key }, trust_domain, now)?, true));
        };
        let incomplete = notes.is_none();
        let notes = notes.unwrap_or(Notes { format: FORMAT, sequence: first_sequence(now), rotation: None });
        let state = Self {
            sequence: notes.sequence,
            root_cert,
            root_key,
            intermediate,
            next_root: pair(data, NEXT_ROOT_CERT, NEXT_ROOT_KEY)?,
            old_root_cert: text(data, OLD_ROOT_CERT)?,
            rotation: notes.rotation,
        };
        Ok((state, incomplete))
    }

    /// As the Secret keeps it.
    pub(crate) fn write(&self) -> Result<SecretData, StateError> {
        let notes = Notes { format: FORMAT, sequence: self.sequence, rotation: self.rotation.clone() };
        let notes = serde_json::to_string(&notes).map_err(|error| StateError::Corrupt(NOTES, error.to_string()))?;
        let next = self.next_root.as_ref();
        let parts = [
            (ROOT_CERT, Some(self.root_cert.as_str())),
            (ROOT_KEY, self.root_key.as_ref().map(|key| key.as_str())),
            (INTERMEDIATE_CERT, Some(self.intermediate.cert.as_str())),
            (INTERMEDIATE_KEY, Some(self.intermediate.key.as_str())),
            (NEXT_ROOT_CERT, next.map(|next| next.cert.as_str())),
            (NEXT_ROOT_KEY, next.map(|next| next.key.as_str())),
            (OLD_ROOT_CERT, self.old_root_cert.as_deref()),
            (NOTES, Some(notes.as_str())),
        ];
        let present = parts.into_iter().filter_map(|(name, text)| Some((name, text?)));
        Ok(present.map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect())
    }

    /// The trusted roots, PEM: the one in use first.
    pub(crate) fn bundle_pem(&self) -> String {
        let next = self.next_root.as_ref().map(|next| next.cert.as_str());
        [Some(self.root_cert.as_str()), next, self.old_root_cert.as_deref()].into_iter().flatten().collect()
    }

    /// The trusted roots.
    pub(crate) fn bundle(&self, trust_domain: &TrustDomain) -> Result<TrustBundle, StateError> {
        let roots = self.roots(trust_domain)?;
        Ok(TrustBundle::new(trust_domain.clone(), roots.iter().map(|root| root.der().clone()).collect())?)
    }

    /// The trusted roots' certificates, the one in use first.
    pub(crate) fn roots(&self, trust_domain: &TrustDomain) -> Result<Vec<CaCertificate>, StateError> {
        CaCertificate::all_from_pem(&self.bundle_pem(), trust_domain).map_err(|e| StateError::Authority(ROOT_CERT, e))
    }

    /// What signs.
    pub(crate) fn authority(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Authority, StateError> {
        let bundle = self.bundle(trust_domain)?;
        Authority::open(&self.intermediate, &bundle, now).map_err(|e| StateError::Authority(INTERMEDIATE_CERT, e))
    }

    /// The root with its key.
    pub(crate) fn root(&self) -> Result<CaPem, StateError> {
        let key = self.root_key.clone().ok_or(StateError::RootIsElsewhere)?;
        Ok(CaPem { cert: self.root_cert.clone(), key })
    }
}

/// The sequence of a state that follows no other one that is known: later than any that was published before.
pub(crate) fn first_sequence(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A new intermediate under a root.
pub(crate) fn intermediate(root: &CaPem, trust_domain: &TrustDomain, now: SystemTime) -> Result<CaPem, StateError> {
    root.new_intermediate(trust_domain, now, INTERMEDIATE_TTL).map_err(|e| StateError::Authority(ROOT_CERT, e))
}

fn text(data: &SecretData, name: &'static str) -> Result<Option<String>, StateError> {
    let Some(ByteString(bytes)) = data.get(name) else { return Ok(None) };
    let text = String::from_utf8(bytes.clone()).map_err(|error| StateError::Corrupt(name, error.to_string()))?;
    // PEM texts are put one behind another.
    let closed = name == NOTES || text.ends_with('\n');
    Ok(Some(if closed { text } else { text + "\n" }))
}

fn pair(data: &SecretData, cert: &'static str, key: &'static str) -> Result<Option<CaPem>, StateError> {
    match (text(data, cert)?, text(data, key)?) {
        (Some(cert), Some(key)) => Ok(Some(CaPem { cert, key: Zeroizing::new(key) })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(StateError::Missing(key)),
        (None, Some(_)) => Err(StateError::Missing(cert)),
    }
}

fn notes(text: &str) -> Result<Notes, StateError> {
    let corrupt = |error: serde_json::Error| StateError::Corrupt(NOTES, error.to_string());
    let value: serde_json::Value = serde_json::from_str(text).map_err(corrupt)?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format > u64::from(FORMAT) => {
            Err(StateError::Format(u32::try_from(format).unwrap_or(u32::MAX)))
        }
        _ => serde_json::from_value(value).map_err(corrupt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn data(parts: &[(&str, &str)]) -> SecretData {
        parts.iter().map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec()))).collect()
    }

    fn read(parts: &[(&str, &str)]) -> Result<(CaState, bool), String> {
        CaState::read(&data(parts), &domain(), SystemTime::now()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_an_operator_puts_in_is_completed() {
        let now = SystemTime::now();
        let root = CaPem::new_root(&domain(), now).unwrap();
        let (state, incomplete) = read(&[(ROOT_CERT, &root.cert), (ROOT_KEY, &root.key)]).unwrap();
        assert!(incomplete && state.root_key.is_some());
        assert!(state.authority(&domain(), now).is_ok());
        let online = root.new_intermediate(&domain(), now, INTERMEDIATE_TTL).unwrap();
        let parts =
            [(ROOT_CERT, root.cert.as_str()), (INTERMEDIATE_CERT, &online.cert), (INTERMEDIATE_KEY, &online.key)];
        let (state, incomplete) = read(&parts).unwrap();
        assert!(incomplete && state.root_key.is_none());
        assert_eq!(state.intermediate, online);
        let again = CaState::read(&state.write().unwrap(), &domain(), now).unwrap();
        assert_eq!(again, (state, false));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let now = SystemTime::now();
        let root = CaPem::new_root(&domain(), now).unwrap();
        let other = CaPem::new_root(&domain(), now).unwrap();
        let refused = |parts: &[(&str, &str)]| read(parts).unwrap_err();
        assert!(refused(&[]).contains(ROOT_CERT));
        assert!(refused(&[(ROOT_CERT, &root.cert)]).contains(ROOT_KEY));
        assert!(refused(&[(ROOT_CERT, &root.cert), (ROOT_KEY, &other.key)]).contains(ROOT_KEY));
        assert!(refused(&[(ROOT_CERT, "nonsense")]).contains(ROOT_CERT));
        assert!(refused(&[(ROOT_CERT, &root.cert), (INTERMEDIATE_CERT, &root.cert)]).contains(INTERMEDIATE_KEY));
        let foreign = CaPem::new_root(&"example.org".parse().unwrap(), now).unwrap();
        assert!(refused(&[(ROOT_CERT, &foreign.cert), (ROOT_KEY, &foreign.key)]).contains("example.org"));
    }

    #[test]
    fn a_later_format_is_left_alone() {
        let state = CaState::new(&domain(), SystemTime::now()).unwrap();
        let mut data = state.write().unwrap();
        data.insert(NOTES.to_owned(), ByteString(br#"{"format": 2, "all": "other"}"#.to_vec()));
        let error = CaState::read(&data, &domain(), SystemTime::now()).unwrap_err();
        assert!(matches!(error, StateError::Format(2)), "{error}");
    }
}
