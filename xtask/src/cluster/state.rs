//! What a cluster keeps in files: its folder, found again by name alone.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::names::{ClusterName, Member, Node};
use super::proxy_mode::ProxyMode;

/// Form of the folder. Another one is taken down by the program that made it.
const VERSION: u32 = 1;
const FILE: &str = "cluster.json";

/// The folder of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct State {
    name: ClusterName,
    folder: PathBuf,
}

/// What the folder says of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// Numbers of the nodes, in order.
    nodes: Vec<u8>,
    pub(crate) proxy_mode: ProxyMode,
    /// Set when all of it has come up once; what has not is the rest of a run that was killed.
    pub(crate) complete: bool,
}

impl Record {
    /// A cluster that comes up.
    pub(crate) fn new(nodes: u8, proxy_mode: ProxyMode) -> Self {
        Self { version: VERSION, nodes: (1..=nodes).collect(), proxy_mode, complete: false }
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        self.nodes.iter().map(|number| Node::new(*number)).collect()
    }

    /// A node behind the last one.
    pub(crate) fn add_node(&mut self) -> Result<Node> {
        let node = Node::new(self.nodes.last().copied().unwrap_or_default().saturating_add(1))?;
        self.nodes.push(node.number());
        Ok(node)
    }
}

impl State {
    /// The folder of a cluster, which need not exist.
    pub(crate) fn of(name: &ClusterName) -> Result<Self> {
        let user = match (env::var_os("XDG_STATE_HOME"), env::var_os("HOME")) {
            (Some(state), _) => PathBuf::from(state),
            (None, Some(home)) => PathBuf::from(home).join(".local/state"),
            (None, None) => bail!("neither XDG_STATE_HOME nor HOME says where a cluster's files may be"),
        };
        Ok(Self { name: name.clone(), folder: user.join("warren/cluster").join(name.to_string()) })
    }

    pub(crate) fn name(&self) -> &ClusterName {
        &self.name
    }

    /// Makes the folder. It holds keys: nobody else may look into it.
    pub(crate) fn create(&self) -> Result<()> {
        for folder in ["pki", "images"] {
            let path = self.folder.join(folder);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| shown(&path))?;
        }
        Ok(())
    }

    /// What it says, if there is a cluster.
    pub(crate) fn read(&self) -> Result<Option<Record>> {
        let path = self.folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| shown(&path))?,
        };
        let record = parse(&text).with_context(|| shown(&path))?;
        Ok(Some(record))
    }

    /// What it says of a cluster that has come up.
    pub(crate) fn expect(&self) -> Result<Record> {
        match self.read()? {
            Some(record) if record.complete => Ok(record),
            _ => bail!("there is no cluster {}: `cargo xtask cluster --name {} up` makes it", self.name, self.name),
        }
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let path = self.folder.join(FILE);
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_vec_pretty(record)?).with_context(|| shown(&unfinished))?;
        fs::rename(&unfinished, &path).with_context(|| shown(&path))
    }

    /// Removes the folder; says why if it stays.
    pub(crate) fn remove(&self) -> Option<String> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Some(format!("{}: {error}", shown(&self.folder))),
            _ => None,
        }
    }

    pub(crate) fn exists(&self) -> bool {
        self.folder.exists()
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    /// Kubeconfig of the administrator.
    pub(crate) fn admin(&self) -> PathBuf {
        self.folder.join("admin.conf")
    }

    /// Archives that every node imports when it starts.
    pub(crate) fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    /// A member's own folder.
    pub(crate) fn member(&self, member: Member) -> PathBuf {
        self.folder.join(member.to_string())
    }

    /// Where a member's programs log.
    pub(crate) fn logs(&self, member: Member) -> PathBuf {
        match member {
            Member::ControlPlane => self.member(member).join("log"),
            Member::Node(_) => self.root(member).join("var/log"),
        }
    }

    /// What a node sees as `/`; of the other members the folder itself.
    pub(crate) fn root(&self, member: Member) -> PathBuf {
        match member {
            Member::ControlPlane => self.member(member),
            Member::Node(_) => self.member(member).join("root"),
        }
    }
}

fn parse(text: &str) -> Result<Record> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    let version = value["version"].as_u64();
    if version != Some(VERSION.into()) {
        bail!("made by another version of this program ({version:?} instead of {VERSION}); take it down with that one");
    }
    Ok(serde_json::from_value(value)?)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_added_behind_the_last() {
        let mut record = Record::new(2, ProxyMode::Iptables);
        assert_eq!(record.add_node().unwrap().number(), 3);
        assert_eq!(record.nodes().unwrap().len(), 3);
    }

    #[test]
    fn another_versions_folder_is_not_guessed_at() {
        let mut value = serde_json::to_value(Record::new(2, ProxyMode::Iptables)).unwrap();
        assert!(parse(&value.to_string()).is_ok());
        value["version"] = 2.into();
        assert!(parse(&value.to_string()).unwrap_err().to_string().contains("another version"));
    }
}
