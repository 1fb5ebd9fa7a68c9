//! Names: trust domains, SPIFFE IDs of the `ns/…/sa/…` form, pod UIDs.
//!
//! HBONE peers represent only `spiffe://TD/ns/NS/sa/SA` (hbone.md §5), so no
//! other form of SPIFFE ID exists in this crate.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// Longest trust domain name, in bytes (SPIFFE-ID §2.1).
pub const MAX_TRUST_DOMAIN: usize = 255;
/// Longest SPIFFE ID, in bytes (SPIFFE-ID §2.3).
pub const MAX_SPIFFE_ID: usize = 2048;

const SCHEME: &str = "spiffe://";

/// Why a text is not a trust domain or not a SPIFFE ID that HBONE can carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The text does not start with `spiffe://`.
    #[error("does not start with spiffe://")]
    Scheme,
    /// The trust domain is empty.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain has a character outside `[a-z0-9.-_]`.
    #[error("the trust domain has the illegal character {0:?}; allowed are a-z 0-9 . - _")]
    TrustDomainCharacter(char),
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN`].
    #[error("the trust domain is longer than {MAX_TRUST_DOMAIN} bytes")]
    TrustDomainLength,
    /// The path is not exactly `/ns/NAMESPACE/sa/SERVICEACCOUNT`.
    #[error("the path is not /ns/NAMESPACE/sa/SERVICEACCOUNT")]
    Form,
    /// A path segment is empty, `.` or `..`.
    #[error("a path segment is empty, \".\" or \"..\"")]
    Segment,
    /// A path segment has a character outside `[a-zA-Z0-9.-_]`.
    #[error("the path has the illegal character {0:?}; allowed are a-z A-Z 0-9 . - _")]
    PathCharacter(char),
    /// The whole ID is longer than [`MAX_SPIFFE_ID`].
    #[error("longer than {MAX_SPIFFE_ID} bytes")]
    Length,
}

/// A validated SPIFFE trust domain name, always lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// Upper case is refused rather than folded: two spellings of one name
    /// would compare differently everywhere else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(SpiffeIdError::EmptyTrustDomain);
        }
        if text.len() > MAX_TRUST_DOMAIN {
            return Err(SpiffeIdError::TrustDomainLength);
        }
        let legal = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        match text.chars().find(|c| !legal(*c)) {
            Some(c) => Err(SpiffeIdError::TrustDomainCharacter(c)),
            None => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A SPIFFE ID of the form `spiffe://TD/ns/NAMESPACE/sa/SERVICEACCOUNT`.
///
/// Cheap to clone, and one word: connections keep up to four of them. Ordered and hashed by its text.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct SpiffeId(Arc<Parts>);

struct Parts {
    text: Box<str>,
    trust_domain: TrustDomain,
    namespace_len: u16,
}

impl SpiffeId {
    /// The ID of a service account, from its parts.
    pub fn new(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        check_segment(namespace)?;
        check_segment(service_account)?;
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        if text.len() > MAX_SPIFFE_ID {
            return Err(SpiffeIdError::Length);
        }
        let namespace_len = u16::try_from(namespace.len()).map_err(|_| SpiffeIdError::Length)?;
        Ok(Self(Arc::new(Parts { text: text.into(), trust_domain: trust_domain.clone(), namespace_len })))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        let start = self.namespace_start();
        &self.0.text[start..start + usize::from(self.0.namespace_len)]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        let after = self.namespace_start() + usize::from(self.0.namespace_len) + "/sa/".len();
        &self.0.text[after..]
    }

    /// The whole ID, with `spiffe://`.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// How many hold this very text.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The ID as AuthorizationPolicy's `principals` spell it: without
    /// `spiffe://` (policy.md §3).
    pub fn principal(&self) -> &str {
        &self.0.text[SCHEME.len()..]
    }

    fn namespace_start(&self) -> usize {
        SCHEME.len() + self.0.trust_domain.as_str().len() + "/ns/".len()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(SpiffeIdError::Length);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        let trust_domain: TrustDomain = trust_domain.parse()?;
        let mut segments = path.split('/');
        let parts = [(); 4].map(|()| segments.next());
        match (parts, segments.next()) {
            ([Some("ns"), Some(namespace), Some("sa"), Some(account)], None) => {
                Self::new(&trust_domain, namespace, account)
            }
            _ => Err(SpiffeIdError::Form),
        }
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    if matches!(segment, "" | "." | "..") {
        return Err(SpiffeIdError::Segment);
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match segment.chars().find(|c| !legal(*c)) {
        Some(c) => Err(SpiffeIdError::PathCharacter(c)),
        None => Ok(()),
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for SpiffeId {}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.text.cmp(&other.0.text)
    }
}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.0.text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.text)
    }
}

/// A pod's UID: the key of identity state, because two pods of one service
/// account never share keys (identity.md §13).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// The UID as the manifest wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({})", self.0)
    }
}

impl Serialize for PodUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_an_id_apart() {
        let id: SpiffeId = "spiffe://reg-prod.example.com/ns/case/sa/case-api".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "reg-prod.example.com");
        assert_eq!(id.namespace(), "case");
        assert_eq!(id.service_account(), "case-api");
        assert_eq!(id.principal(), "reg-prod.example.com/ns/case/sa/case-api");
    }

    #[test]
    fn refuses_what_hbone_cannot_carry() {
        let long = format!("spiffe://td/ns/a/sa/{}", "x".repeat(MAX_SPIFFE_ID));
        let long_domain = format!("spiffe://{}/ns/a/sa/b", "x".repeat(256));
        let cases = [
            ("", SpiffeIdError::Scheme),
            ("SPIFFE://td/ns/a/sa/b", SpiffeIdError::Scheme),
            ("https://td/ns/a/sa/b", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::EmptyTrustDomain),
            ("spiffe:///ns/a/sa/b", SpiffeIdError::EmptyTrustDomain),
            ("spiffe://TD/ns/a/sa/b", SpiffeIdError::TrustDomainCharacter('T')),
            ("spiffe://td:80/ns/a/sa/b", SpiffeIdError::TrustDomainCharacter(':')),
            ("spiffe://u@td/ns/a/sa/b", SpiffeIdError::TrustDomainCharacter('@')),
            ("spiffe://td", SpiffeIdError::Form),
            ("spiffe://td/", SpiffeIdError::Form),
            ("spiffe://td/ns/a/sa", SpiffeIdError::Form),
            ("spiffe://td/ns/a/sa/b/", SpiffeIdError::Form),
            ("spiffe://td/ns/a/sa/b/c", SpiffeIdError::Form),
            ("spiffe://td/NS/a/sa/b", SpiffeIdError::Form),
            ("spiffe://td/ns//sa/b", SpiffeIdError::Segment),
            ("spiffe://td/ns/../sa/b", SpiffeIdError::Segment),
            ("spiffe://td/ns/a/sa/", SpiffeIdError::Segment),
            ("spiffe://td/ns/a/sa/b?x", SpiffeIdError::PathCharacter('?')),
            ("spiffe://td/ns/a/sa/%62", SpiffeIdError::PathCharacter('%')),
            ("spiffe://td/ns/ä/sa/b", SpiffeIdError::PathCharacter('ä')),
            (long.as_str(), SpiffeIdError::Length),
            (long_domain.as_str(), SpiffeIdError::TrustDomainLength),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(
            td in "[a-z0-9._-]{1,40}",
            ns in "[a-z0-9][a-z0-9.-]{0,40}",
            sa in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,40}",
        ) {
            let td: TrustDomain = td.parse().unwrap();
            let id = SpiffeId::new(&td, &ns, &sa).unwrap();
            let again: SpiffeId = id.to_string().parse().unwrap();
            prop_assert_eq!(&again, &id);
            prop_assert_eq!(again.trust_domain(), &td);
            prop_assert_eq!(again.namespace(), ns);
            prop_assert_eq!(again.service_account(), sa);
        }

        #[test]
        fn what_parses_prints_unchanged(text in "(spiffe://)?[a-zA-Z0-9./_:-]{0,60}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }
}
