//! Where common distributions keep plugins and their configurations.

use std::path::Path;

/// How sure we are that a distribution works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// Pods were started on it.
    Tested,
    /// Its documentation says that it works like one that was tested.
    Expected,
    /// Known not to work, and why.
    Unsupported(&'static str),
}

/// A distribution or runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Folder of configurations.
    pub(crate) conf_dir: &'static str,
    /// Folder of plugins.
    pub(crate) bin_dir: &'static str,
    /// How sure we are.
    pub(crate) support: Support,
    sign: Sign,
}

/// What a distribution is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// `ID` in os-release.
    Os(&'static str),
    /// A path that exists.
    Path(&'static str),
}

const ETC: &str = "/etc/cni/net.d";
const OPT: &str = "/opt/cni/bin";
const MULTUS: &str = "Multus owns the primary configuration and would take ours for one of its delegates";

/// In the order in which they are looked for: whole distributions before the runtimes that they contain.
const ALL: [Distribution; 7] = [
    Distribution { name: "Talos", conf_dir: ETC, bin_dir: OPT, support: Support::Expected, sign: Sign::Os("talos") },
    Distribution {
        name: "Bottlerocket",
        conf_dir: ETC,
        bin_dir: OPT,
        support: Support::Expected,
        sign: Sign::Os("bottlerocket"),
    },
    Distribution {
        name: "Container-Optimized OS",
        conf_dir: ETC,
        bin_dir: "/home/kubernetes/bin",
        support: Support::Expected,
        sign: Sign::Os("cos"),
    },
    Distribution {
        name: "OpenShift",
        conf_dir: "/etc/cni/multus/net.d",
        bin_dir: "/var/lib/cni/bin",
        support: Support::Unsupported(MULTUS),
        sign: Sign::Os("rhcos"),
    },
    Distribution {
        name: "k3s",
        conf_dir: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
        bin_dir: "/var/lib/rancher/k3s/data/cni",
        support: Support::Expected,
        sign: Sign::Path("/var/lib/rancher/k3s/agent"),
    },
    Distribution {
        name: "CRI-O",
        conf_dir: ETC,
        bin_dir: OPT,
        support: Support::Expected,
        sign: Sign::Path("/etc/crio"),
    },
    Distribution {
        name: "containerd",
        conf_dir: ETC,
        bin_dir: OPT,
        support: Support::Tested,
        sign: Sign::Path("/run/containerd"),
    },
];

/// The distribution whose root file system is at `root`.
pub(crate) fn detect(root: &Path) -> Option<Distribution> {
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    let read = |path: &str| std::fs::read_to_string(within(path)).ok();
    let os = read("/etc/os-release").or_else(|| read("/usr/lib/os-release")).unwrap_or_default();
    let id = os.lines().find_map(|line| line.strip_prefix("ID=")).map(|id| id.trim_matches('"').to_owned());
    ALL.into_iter().find(|one| match one.sign {
        Sign::Os(name) => id.as_deref() == Some(name),
        Sign::Path(path) => within(path).exists(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distribution_counts_before_its_runtime() {
        let root = std::env::temp_dir().join(format!("warren-paths-{}", std::process::id()));
        std::fs::create_dir_all(root.join("run/containerd")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let name = || detect(&root).map(|found| found.name);
        assert_eq!(name(), Some("containerd"));
        std::fs::create_dir_all(root.join("var/lib/rancher/k3s/agent")).unwrap();
        assert_eq!(name(), Some("k3s"));
        std::fs::write(root.join("etc/os-release"), "NAME=x\nID=\"rhcos\"\n").unwrap();
        assert!(matches!(detect(&root).unwrap().support, Support::Unsupported(_)));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(name(), None);
    }
}
