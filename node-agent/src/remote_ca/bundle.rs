//! The trusted roots, as the controllers publish them: through the API server, which the agent trusts anyway.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use warren_core::identity::TrustDomain;
use warren_mesh::identity::{CaCertificate, IssuerStatus, TrustBundle};

use super::error::RemoteError;
use crate::ca_protocol::{BUNDLE, BUNDLE_FORMAT, BUNDLE_NOTES, BUNDLE_PEM, BundleNotes};
use crate::exit::chain;

/// The roots, and who signs.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// Grows with every change.
    pub(crate) sequence: u64,
    /// Short name of the intermediate that signs.
    pub(crate) issuer: String,
    /// The roots.
    pub(crate) bundle: Arc<TrustBundle>,
    /// The roots once more, for status and metrics.
    pub(crate) roots: Vec<IssuerStatus>,
}

/// Reads the ConfigMap.
pub(crate) async fn read(
    client: &kube::Client,
    namespace: &str,
    trust_domain: &TrustDomain,
) -> Result<Published, RemoteError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = maps.get_opt(BUNDLE).await.map_err(|error| RemoteError::ApiServer {
        what: "reading ConfigMap warren-trust-bundle",
        error: chain(&error),
    })?;
    let name = format!("{namespace}/{BUNDLE}");
    let map = found.ok_or_else(|| RemoteError::NoBundle(name.clone()))?;
    parse(map, trust_domain).map_err(|reason| RemoteError::Bundle { name, reason })
}

fn parse(map: ConfigMap, trust_domain: &TrustDomain) -> Result<Published, String> {
    let data = map.data.unwrap_or_default();
    let part = |key: &str| data.get(key).ok_or_else(|| format!("it has no {key}"));
    let notes: BundleNotes = serde_json::from_str(part(BUNDLE_NOTES)?).map_err(|error| error.to_string())?;
    if notes.format > BUNDLE_FORMAT {
        return Err(format!("{BUNDLE_NOTES} has format {}; this release reads up to {BUNDLE_FORMAT}", notes.format));
    }
    if notes.trust_domain != trust_domain.as_str() {
        return Err(format!("its roots are of {}, this agent is of {trust_domain}", notes.trust_domain));
    }
    let roots = CaCertificate::all_from_pem(part(BUNDLE_PEM)?, trust_domain).map_err(|error| error.to_string())?;
    if roots.is_empty() {
        return Err(format!("{BUNDLE_PEM} holds no certificate"));
    }
    let ders = roots.iter().map(|root| root.der().clone()).collect();
    let bundle = TrustBundle::new(trust_domain.clone(), ders).map_err(|error| error.to_string())?;
    // The controllers write the root that is in use first.
    let status = |(at, root): (usize, &CaCertificate)| IssuerStatus {
        kind: "root",
        subject: root.subject.clone(),
        serial: root.serial.clone(),
        not_before: root.not_before,
        not_after: root.not_after,
        active: at == 0,
    };
    let roots = roots.iter().enumerate().map(status).collect();
    Ok(Published { sequence: notes.sequence, issuer: notes.issuer, bundle: Arc::new(bundle), roots })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;
    use warren_mesh::identity::CaPem;

    use super::*;

    fn parsed(change: impl FnOnce(&mut serde_json::Value)) -> Result<Published, String> {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let roots: String = (0..2).map(|_| CaPem::new_root(&domain, SystemTime::now()).unwrap().cert).collect();
        let notes = json!({"format": 1, "sequence": 7, "trust_domain": "cluster.local", "issuer": "ab", "later": 1});
        let mut map = json!({"data": {BUNDLE_PEM: roots, BUNDLE_NOTES: notes.to_string()}});
        change(&mut map);
        parse(serde_json::from_value(map).unwrap(), &domain)
    }

    #[test]
    fn roots_come_with_who_signs() {
        let published = parsed(|_| ()).unwrap();
        assert_eq!((published.sequence, published.issuer.as_str(), published.bundle.len()), (7, "ab", 2));
        assert_eq!(published.roots.iter().map(|root| root.active).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn what_is_no_bundle_is_not_taken() {
        let notes = |text: &str| text.to_owned();
        assert!(parsed(|map| map["data"] = json!({})).is_err());
        assert!(parsed(|map| map["data"][BUNDLE_PEM] = "".into()).unwrap_err().contains("no certificate"));
        let other = notes(r#"{"format":1,"sequence":7,"trust_domain":"example.org","issuer":"ab"}"#);
        assert!(parsed(|map| map["data"][BUNDLE_NOTES] = other.into()).unwrap_err().contains("example.org"));
        let later = notes(r#"{"format":2,"sequence":7,"trust_domain":"cluster.local","issuer":"ab"}"#);
        assert!(parsed(|map| map["data"][BUNDLE_NOTES] = later.into()).unwrap_err().contains("format 2"));
    }
}
