//! The directory that agents share: trusted roots, and which of them signs.
//!
//! ```text
//! DIR/version            "warren-ca 1"
//! DIR/trust-domain       the one trust domain of all roots
//! DIR/lock               held (flock) by whoever changes something
//! DIR/active             id of the root that signs new intermediates
//! DIR/roots/ID/cert.pem  trusted as long as it is here
//! DIR/roots/ID/key.pem   mode 0600; absent for a root that only verifies
//! ```
//!
//! A root appears by one rename of its whole directory, a file by one rename of
//! its own: a reader never sees half of anything, and takes no lock. The order
//! of a rotation is `add_root`, wait until every agent has read it, `activate`,
//! wait for the leaves to be renewed, `remove_root`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use warren_core::identity::TrustDomain;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::issue::{IssueError, RootSigner, new_root};

const VERSION: &str = "warren-ca 1";

/// Why the CA directory cannot be used; names the file.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file has other contents than it must have.
    #[error("{path}: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory was never initialised.
    #[error("{0}: no CA here; create it with `warren ca init`")]
    Missing(PathBuf),
    /// The directory belongs to another trust domain.
    #[error("{path}: the CA is of trust domain {found}, not {expected}")]
    TrustDomain {
        /// The directory.
        path: PathBuf,
        /// Its trust domain.
        found: TrustDomain,
        /// The one asked for.
        expected: TrustDomain,
    },
    /// No trusted root has this id.
    #[error("no root {0} in this CA")]
    UnknownRoot(String),
    /// The active root cannot be removed.
    #[error("root {0} is active; activate another one first")]
    ActiveRoot(String),
    /// A root without its key cannot sign.
    #[error("root {0} has no key here and cannot sign")]
    NoKey(String),
    /// The cryptographic library failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// One trusted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootInfo {
    /// Its id: the name of its directory.
    pub id: String,
    /// Subject, as RFC 4514 text.
    pub subject: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Whether it signs new intermediates.
    pub active: bool,
    /// Whether its key is here.
    pub has_key: bool,
}

/// A root with its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) info: RootInfo,
    pub(super) der: CertificateDer<'static>,
}

/// A CA directory.
#[derive(Debug, Clone)]
pub struct CaDir {
    path: PathBuf,
    trust_domain: TrustDomain,
}

impl CaDir {
    /// Opens an initialised directory.
    pub fn open(path: &Path) -> Result<Self, CaError> {
        let version = path.join("version");
        match fs::read_to_string(&version) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CaError::Missing(path.into()));
            }
            Err(source) => return Err(CaError::Io { path: version, source }),
            Ok(text) if text.trim() != VERSION => {
                let reason = format!("layout {:?} is not {VERSION:?}", text.trim());
                return Err(CaError::Corrupt { path: version, reason });
            }
            Ok(_) => {}
        }
        let file = path.join("trust-domain");
        let trust_domain =
            read(&file)?.trim().parse().map_err(|e| CaError::Corrupt { path: file, reason: format!("{e}") })?;
        Ok(Self { path: path.into(), trust_domain })
    }

    /// Opens the directory, or creates it with one active root. Several agents
    /// may do so at once.
    pub fn init(path: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| io_at(path, e))?;
        let _lock = lock(path)?;
        let ca = match Self::open(path) {
            Err(CaError::Missing(_)) => Self::create(path, trust_domain, now)?,
            opened => opened?,
        };
        if ca.trust_domain != *trust_domain {
            let (found, expected) = (ca.trust_domain, trust_domain.clone());
            return Err(CaError::TrustDomain { path: path.into(), found, expected });
        }
        Ok(ca)
    }

    /// Under the lock. `version` comes last: without it the rest is not there,
    /// and an interrupted creation is done again.
    fn create(path: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let ca = Self { path: path.into(), trust_domain: trust_domain.clone() };
        make_dir(&ca.roots())?;
        let root = ca.write_root(now)?;
        replace(&path.join("trust-domain"), trust_domain.as_str())?;
        replace(&path.join("active"), &root)?;
        replace(&path.join("version"), VERSION)?;
        Ok(ca)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The trust domain of all its roots.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Adds a new root with its key. It is trusted at once and signs only after
    /// [`activate`](Self::activate).
    pub fn add_root(&self, now: SystemTime) -> Result<RootInfo, CaError> {
        let _lock = lock(&self.path)?;
        let id = self.write_root(now)?;
        self.find(&id)
    }

    /// Makes a trusted root the signer of new intermediates.
    pub fn activate(&self, id: &str) -> Result<(), CaError> {
        let _lock = lock(&self.path)?;
        let root = self.find(id)?;
        if !root.has_key {
            return Err(CaError::NoKey(root.id));
        }
        replace(&self.path.join("active"), &root.id)
    }

    /// Takes a root out of the trusted ones; its key is deleted.
    pub fn remove_root(&self, id: &str) -> Result<(), CaError> {
        let _lock = lock(&self.path)?;
        let root = self.find(id)?;
        if root.active {
            return Err(CaError::ActiveRoot(root.id));
        }
        let (from, gone) = (self.roots().join(id), self.roots().join(format!(".gone-{id}")));
        fs::rename(&from, &gone).map_err(|e| io_at(&from, e))?;
        fs::remove_dir_all(&gone).map_err(|e| io_at(&gone, e))
    }

    /// All trusted roots, by id.
    pub fn list(&self) -> Result<Vec<RootInfo>, CaError> {
        Ok(self.read_roots()?.into_iter().map(|root| root.info).collect())
    }

    /// All trusted roots with their certificates, by id; one of them is active.
    pub(super) fn read_roots(&self) -> Result<Vec<Root>, CaError> {
        let file = self.path.join("active");
        let active = read(&file)?.trim().to_owned();
        let mut roots = Vec::new();
        for id in self.root_ids()? {
            if let Some(root) = self.read_root(&id, &active)? {
                roots.push(root);
            }
        }
        if !roots.iter().any(|root| root.info.active) {
            let reason = format!("names root {active:?}, which is not there");
            return Err(CaError::Corrupt { path: file, reason });
        }
        Ok(roots)
    }

    /// The key of a root, to sign an intermediate with.
    pub(super) fn signer(&self, root: &Root) -> Result<RootSigner, CaError> {
        let file = self.roots().join(&root.info.id).join("key.pem");
        let pem = match fs::read_to_string(&file) {
            Ok(pem) => Zeroizing::new(pem),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CaError::NoKey(root.info.id.clone()));
            }
            Err(source) => return Err(CaError::Io { path: file, source }),
        };
        RootSigner::new(&root.der, &pem).map_err(|e| CaError::Corrupt { path: file, reason: e.to_string() })
    }

    fn roots(&self) -> PathBuf {
        self.path.join("roots")
    }

    fn find(&self, id: &str) -> Result<RootInfo, CaError> {
        let found = self.list()?.into_iter().find(|root| root.id == id);
        found.ok_or_else(|| CaError::UnknownRoot(id.into()))
    }

    /// Names starting with a dot are roots on their way in or out.
    fn root_ids(&self) -> Result<Vec<String>, CaError> {
        let dir = self.roots();
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| io_at(&dir, e))? {
            let name = entry.map_err(|e| io_at(&dir, e))?.file_name();
            match name.to_str() {
                Some(name) if !name.starts_with('.') => ids.push(name.to_owned()),
                _ => {}
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// `None` if the root was removed between listing and reading.
    fn read_root(&self, id: &str, active: &str) -> Result<Option<Root>, CaError> {
        let dir = self.roots().join(id);
        let file = dir.join("cert.pem");
        let pem = match fs::read(&file) {
            Ok(pem) => pem,
            Err(_) if !dir.exists() => return Ok(None),
            Err(source) => return Err(CaError::Io { path: file, source }),
        };
        let parsed = parse_root(&pem, &self.trust_domain);
        let (der, mut info) = parsed.map_err(|reason| CaError::Corrupt { path: file, reason })?;
        info.id = id.into();
        info.active = id == active;
        info.has_key = dir.join("key.pem").exists();
        Ok(Some(Root { info, der }))
    }

    fn write_root(&self, now: SystemTime) -> Result<String, CaError> {
        let root = new_root(&self.trust_domain, now)?;
        let (new, dir) = (self.roots().join(format!(".new-{}", root.id)), self.roots().join(&root.id));
        make_dir(&new)?;
        write_file(&new.join("cert.pem"), 0o644, root.cert_pem.as_bytes())?;
        write_file(&new.join("key.pem"), 0o600, root.key_pem.as_bytes())?;
        fs::rename(&new, &dir).map_err(|e| io_at(&dir, e))?;
        sync_dir(&self.roots())?;
        Ok(root.id)
    }
}

fn parse_root(pem: &[u8], trust_domain: &TrustDomain) -> Result<(CertificateDer<'static>, RootInfo), String> {
    let mut all = CertificateDer::pem_slice_iter(pem);
    let der = all.next().ok_or("holds no certificate")?.map_err(|e| e.to_string())?;
    if all.next().is_some() {
        return Err("holds more than one certificate".into());
    }
    let (_, cert) = X509Certificate::from_der(&der).map_err(|e| e.to_string())?;
    if !cert.is_ca() {
        return Err("is not a CA certificate".into());
    }
    let names = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    let own = format!("spiffe://{trust_domain}");
    for name in names.map(|san| san.value.general_names.as_slice()).unwrap_or_default() {
        if let GeneralName::URI(uri) = name
            && *uri != own
        {
            return Err(format!("is a root of {uri}, not of {own}"));
        }
    }
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    };
    let info = RootInfo {
        id: String::new(),
        subject: cert.subject().to_string(),
        serial: format!("{:x}", cert.tbs_certificate.serial),
        not_before: time(cert.validity().not_before.timestamp()),
        not_after: time(cert.validity().not_after.timestamp()),
        active: false,
        has_key: false,
    };
    Ok((der, info))
}

fn io_at(path: &Path, source: io::Error) -> CaError {
    CaError::Io { path: path.into(), source }
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|e| io_at(path, e))
}

fn make_dir(path: &Path) -> Result<(), CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| io_at(path, e))
}

/// Held until the file is dropped; the kernel releases it if we die.
fn lock(dir: &Path) -> Result<File, CaError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open.map_err(|e| io_at(&path, e))?;
    file.lock().map_err(|e| io_at(&path, e))?;
    Ok(file)
}

fn write_file(path: &Path, mode: u32, contents: &[u8]) -> Result<(), CaError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(path)?;
        file.write_all(contents)?;
        file.sync_all()
    };
    write().map_err(|e| io_at(path, e))
}

/// Writes beside the file and renames over it.
fn replace(path: &Path, text: &str) -> Result<(), CaError> {
    let new = path.with_extension("new");
    write_file(&new, 0o644, format!("{text}\n").as_bytes())?;
    fs::rename(&new, path).map_err(|e| io_at(path, e))?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(path: &Path) -> Result<(), CaError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| io_at(path, e))
}
