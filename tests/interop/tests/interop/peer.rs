//! Where the peer is. Nothing of it is part of this tree: it comes by environment, or not at all.

use std::fmt;
use std::path::PathBuf;

const BINARY: &str = "WARREN_ZTUNNEL";
const INPODSERVER: &str = "WARREN_ZTUNNEL_INPODSERVER";
const SOURCE: &str = "WARREN_ZTUNNEL_SOURCE";

/// A ztunnel that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The proxy.
    pub(crate) ztunnel: PathBuf,
    /// Its example program that hands a pod's namespace to a proxy.
    pub(crate) inpodserver: PathBuf,
    /// Its source tree: the root that its test CA signs with, and its script of redirect rules.
    pub(crate) source: PathBuf,
}

/// Why there is no peer.
#[derive(Debug)]
pub(crate) enum NoPeer {
    /// A variable is not set.
    Unset(&'static str),
    /// A variable names something that is not there, which is a mistake and no skip.
    Missing(&'static str, PathBuf),
}

impl Peer {
    /// Reads the environment.
    pub(crate) fn find() -> Result<Self, NoPeer> {
        let source = at(SOURCE)?;
        let peer = Self { ztunnel: at(BINARY)?, inpodserver: at(INPODSERVER)?, source };
        for file in [peer.root_certificate(), peer.root_key(), peer.redirect_script()] {
            if !file.is_file() {
                return Err(NoPeer::Missing(SOURCE, file));
            }
        }
        Ok(peer)
    }

    /// Certificate of the root that `FAKE_CA` signs with.
    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.source.join("src/tls/root-cert.pem")
    }

    /// Its key.
    pub(crate) fn root_key(&self) -> PathBuf {
        self.source.join("src/tls/ca-key.pem")
    }

    /// The rules that lead a pod's IPv4 connections to ztunnel.
    pub(crate) fn redirect_script(&self) -> PathBuf {
        self.source.join("scripts/ztunnel-redirect-inpod.sh")
    }
}

fn at(variable: &'static str) -> Result<PathBuf, NoPeer> {
    let path = PathBuf::from(std::env::var_os(variable).ok_or(NoPeer::Unset(variable))?);
    if path.exists() { Ok(path) } else { Err(NoPeer::Missing(variable, path)) }
}

impl fmt::Display for NoPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset(variable) => write!(f, "{variable} is not set (how to get ztunnel: tests/interop/README.md)"),
            Self::Missing(variable, path) => write!(f, "{variable}: there is no {}", path.display()),
        }
    }
}
