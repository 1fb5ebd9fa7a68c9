//! The rule that turns the URI SANs of a leaf certificate into one identity.
//!
//! X.509-SVID demands exactly one URI SAN (identity.md §2). ztunnel takes the
//! first that parses; being strict loses nothing with real issuers and closes
//! the question of which of two names a policy meant.

use crate::identity::{SpiffeId, SpiffeIdError};

/// Why a leaf's URI SANs do not name one workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SanError {
    /// The leaf has no URI SAN at all.
    #[error("the certificate has no URI SAN")]
    Missing,
    /// The leaf has more than one URI SAN.
    #[error("the certificate has {0} URI SANs, an SVID has exactly one")]
    Several(usize),
    /// The one URI SAN is not a SPIFFE ID that HBONE can carry.
    #[error("the URI SAN is not an identity: {0}")]
    NotSpiffe(#[from] SpiffeIdError),
}

/// The identity named by a leaf's URI SANs, given in certificate order.
pub fn spiffe_id_from_uri_sans<'a>(uris: impl IntoIterator<Item = &'a str>) -> Result<SpiffeId, SanError> {
    let mut uris = uris.into_iter();
    let only = uris.next().ok_or(SanError::Missing)?;
    match uris.count() {
        0 => Ok(only.parse()?),
        more => Err(SanError::Several(more + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://td/ns/a/sa/b";

    #[test]
    fn exactly_one() {
        assert_eq!(spiffe_id_from_uri_sans([ID]).unwrap().as_str(), ID);
        assert_eq!(spiffe_id_from_uri_sans([]), Err(SanError::Missing));
        assert_eq!(spiffe_id_from_uri_sans([ID, ID]), Err(SanError::Several(2)));
        assert_eq!(spiffe_id_from_uri_sans(["https://example.org", ID]), Err(SanError::Several(2)));
    }

    #[test]
    fn and_of_the_right_form() {
        assert_eq!(spiffe_id_from_uri_sans(["spiffe://td"]), Err(SanError::NotSpiffe(SpiffeIdError::Form)));
        assert_eq!(spiffe_id_from_uri_sans(["https://example.org"]), Err(SanError::NotSpiffe(SpiffeIdError::Scheme)));
    }
}
