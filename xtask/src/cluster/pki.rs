//! The cluster's certificates: one authority for the API, one for what it
//! serves on behalf of others, and a key that signs service account tokens.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use super::names::{API_SERVER, API_SERVER_V6, API_SERVICE, Node};

/// A clock that is a little behind must not refuse what was made a moment ago.
const BACKDATED: Duration = Duration::from_secs(3600);
/// Longer than any lab stands.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Names by which clients know the API server.
const API_SERVER_NAMES: [&str; 5] =
    ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// A folder with an authority's certificate and key.
#[derive(Debug)]
pub(crate) struct Pki {
    folder: PathBuf,
}

/// Whom a certificate names.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    /// The user, as Kubernetes reads a certificate.
    pub(crate) name: &'a str,
    /// The user's group.
    pub(crate) group: Option<&'a str>,
    /// DNS names and addresses it may serve at.
    pub(crate) serves_at: Vec<String>,
}

impl<'a> Subject<'a> {
    fn client(name: &'a str, group: Option<&'a str>) -> Self {
        Self { name, group, serves_at: Vec::new() }
    }
}

impl Pki {
    /// Makes everything that the control plane and the administrator need.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let pki = Self { folder: folder.to_owned() };
        pki.authority("ca", "warren-lab")?;
        pki.authority("front-proxy-ca", "warren-lab-front-proxy")?;
        let service_accounts = KeyPair::generate()?;
        pki.write("sa.key", &service_accounts.serialize_pem())?;
        pki.write("sa.pub", &service_accounts.public_key_pem())?;
        let places = [API_SERVER, API_SERVER_V6, API_SERVICE[0], API_SERVICE[1], "127.0.0.1", "::1"];
        let serves_at = places.into_iter().chain(API_SERVER_NAMES).map(str::to_owned).collect();
        pki.issue("apiserver", &Subject { name: "kube-apiserver", group: None, serves_at })?;
        pki.issue("kubelet-client", &Subject::client("apiserver-kubelet-client", Some("system:masters")))?;
        pki.issue("admin", &Subject::client("admin", Some("system:masters")))?;
        pki.issue("controller-manager", &Subject::client("system:kube-controller-manager", None))?;
        pki.issue("scheduler", &Subject::client("system:kube-scheduler", None))?;
        pki.issue("proxy", &Subject::client("system:kube-proxy", None))?;
        pki.issue_by("front-proxy-ca", "front-proxy-client", &Subject::client("front-proxy-client", None))?;
        Ok(pki)
    }

    /// The folder of a cluster that is there.
    pub(crate) fn open(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// A node's certificate, with which its kubelet serves and calls.
    pub(crate) fn issue_node(&self, node: Node) -> Result<()> {
        let [v4, v6] = node.addresses();
        let serves_at = vec![node.to_string(), v4, v6];
        let name = format!("system:node:{node}");
        self.issue(&node.to_string(), &Subject { name: &name, group: Some("system:nodes"), serves_at })
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn authority(&self, file: &str, name: &str) -> Result<()> {
        let mut params = params(&Subject::client(name, None))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = Vec::new();
        let made = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        self.write(&format!("{file}.crt"), &made.pem())?;
        self.write(&format!("{file}.key"), &made.key().serialize_pem())
    }

    fn issue(&self, file: &str, subject: &Subject<'_>) -> Result<()> {
        self.issue_by("ca", file, subject)
    }

    fn issue_by(&self, authority: &str, file: &str, subject: &Subject<'_>) -> Result<()> {
        let certificate = self.read(&format!("{authority}.crt"))?;
        let key = KeyPair::from_pem(&self.read(&format!("{authority}.key"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        let key = KeyPair::generate()?;
        let made = params(subject)?.signed_by(&key, &issuer)?;
        self.write(&format!("{file}.crt"), &made.pem())?;
        self.write(&format!("{file}.key"), &key.serialize_pem())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.file(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        open.and_then(|mut file| file.write_all(text.as_bytes())).with_context(|| path.display().to_string())
    }
}

fn params(subject: &Subject<'_>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(subject.serves_at.clone())?;
    let mut name = DistinguishedName::new();
    if let Some(group) = subject.group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, subject.name);
    params.distinguished_name = name;
    params.not_before = (SystemTime::now() - BACKDATED).into();
    params.not_after = (SystemTime::now() + LIFE).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("warren-pki-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_nodes_certificate_says_what_kubernetes_reads_in_it() {
        let folder = folder("node");
        let pki = Pki::create(&folder).unwrap();
        pki.issue_node(Node::new(2).unwrap()).unwrap();
        let bytes = [fs::read(pki.file("node2.crt")).unwrap(), fs::read(pki.file("ca.crt")).unwrap()];
        let [(_, leaf), (_, ca)] = bytes.each_ref().map(|bytes| parse_x509_pem(bytes).unwrap());
        let (leaf, ca) = (leaf.parse_x509().unwrap(), ca.parse_x509().unwrap());
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        assert!(ca.is_ca() && !leaf.is_ca());
        assert_eq!(leaf.subject().to_string(), "O=system:nodes, CN=system:node:node2");
        let names = format!("{:?}", leaf.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert!(names.contains("node2") && names.contains("[10, 200, 0, 3]"), "{names}");
        assert!(leaf.validity().is_valid());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder("modes");
        Pki::create(&folder).unwrap();
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
