//! What Warren's chores need from the machine: each with a reason, a check
//! that takes milliseconds, and a remedy.

use std::fs;
use std::path::Path;

use clap::ValueEnum;

use crate::cluster::Parts;
use crate::ebpf::Toolchain;
use crate::process;
use crate::programs;

/// What a need is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Group {
    /// Compiling Warren, the kernel side included.
    Build,
    /// Simulated nodes and pods with Warren's agents; all that the benchmark needs without peers.
    Lab,
    /// The demo.
    Demo,
    /// Running real peers beside Warren in the benchmark.
    Peers,
    /// A Kubernetes cluster of this machine's own.
    Cluster,
    /// Real programs as images for the cluster's pods.
    Workloads,
    /// Lints and tests.
    Test,
}

impl Group {
    /// The groups that a group builds upon, itself included.
    pub(crate) fn with_lower(self) -> &'static [Self] {
        match self {
            Self::Build => &[Self::Build],
            Self::Lab => &[Self::Build, Self::Lab],
            Self::Demo => &[Self::Build, Self::Lab, Self::Demo],
            Self::Peers => &[Self::Build, Self::Lab, Self::Peers],
            Self::Cluster => &[Self::Build, Self::Lab, Self::Cluster],
            Self::Workloads => &[Self::Build, Self::Lab, Self::Demo, Self::Cluster, Self::Workloads],
            Self::Test => &[Self::Build, Self::Lab, Self::Demo, Self::Test],
        }
    }
}

/// One thing that must be there.
#[derive(Debug)]
pub(crate) struct Need {
    pub(crate) what: &'static str,
    pub(crate) why: &'static str,
    pub(crate) group: Group,
    pub(crate) met: fn() -> bool,
    pub(crate) remedy: Remedy,
}

/// How a need is met where it is not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Remedy {
    /// Debian packages.
    Packages(&'static [&'static str]),
    /// A program from the crate registry, and the Debian packages its build wants.
    Crate(CrateInstall),
    /// Components of rustup's toolchain.
    Components(&'static [&'static str]),
    /// A file system to be mounted: its type, and the directory that suits this machine.
    Mount { kind: &'static str, at: fn() -> &'static str },
}

/// A program that `cargo install` brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CrateInstall {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) flags: &'static [&'static str],
    pub(crate) packages: &'static [&'static str],
    /// Prefix of an LLVM that its build links.
    pub(crate) llvm: Option<&'static str>,
}

/// Everything, in the order of installation.
pub(crate) const NEEDS: &[Need] = &[
    Need {
        what: "C compiler",
        why: "links every Rust program and builds aws-lc, the TLS library's cryptography",
        group: Group::Build,
        met: || programs::find("cc").is_some(),
        remedy: Remedy::Packages(&["gcc", "libc6-dev"]),
    },
    Need {
        what: "cmake, make",
        why: "build aws-lc where its plain build does not fit the machine",
        group: Group::Build,
        met: || programs::find("cmake").is_some() && programs::find("make").is_some(),
        remedy: Remedy::Packages(&["cmake", "make"]),
    },
    Need {
        what: "compiler for bpfel-unknown-none",
        why: "compiles the kernel programs (a rustup nightly with rust-src does as well)",
        group: Group::Build,
        met: || Toolchain::find(None).is_some(),
        remedy: Remedy::Packages(&["rustc-web", "libstd-rust-web-dev-bpf"]),
    },
    Need {
        what: "bpf-linker",
        why: "links the kernel programs",
        group: Group::Build,
        met: bpf_linker_runs,
        remedy: Remedy::Crate(CrateInstall {
            name: "bpf-linker",
            version: "0.13.0",
            flags: &["--no-default-features", "--features", "llvm-22"],
            packages: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "g++", "zlib1g-dev"],
            llvm: Some("/usr/lib/llvm-22"),
        }),
    },
    Need {
        what: "cgroup v2 hierarchy",
        why: "the capture programs are attached at its root (beside a v1 hierarchy is fine)",
        group: Group::Lab,
        met: || mounted("cgroup2", None),
        remedy: Remedy::Mount { kind: "cgroup2", at: cgroup2_place },
    },
    Need {
        what: "bpf file system",
        why: "keeps the capture programs when the agent is away",
        group: Group::Lab,
        met: || mounted("bpf", Some(BPF_PLACE)),
        remedy: Remedy::Mount { kind: "bpf", at: || BPF_PLACE },
    },
    Need {
        what: "ip, nsenter, setpriv, prlimit",
        why: "make the simulated nodes and pods, and start programs in them",
        group: Group::Lab,
        met: || ["ip", "nsenter", "setpriv", "prlimit"].iter().all(|name| programs::find(name).is_some()),
        remedy: Remedy::Packages(&["iproute2", "util-linux"]),
    },
    Need {
        what: "ping",
        why: "shows that traffic other than TCP is untouched",
        group: Group::Demo,
        met: || programs::find("ping").is_some(),
        remedy: Remedy::Packages(&["iputils-ping"]),
    },
    Need {
        what: "nginx",
        why: "serves in the demo's pods",
        group: Group::Demo,
        met: || programs::find("nginx").is_some(),
        remedy: Remedy::Packages(&["nginx-light"]),
    },
    Need {
        what: "redis-server, redis-cli",
        why: "are the demo's evidence-store and its client",
        group: Group::Demo,
        met: || programs::find("redis-server").is_some() && programs::find("redis-cli").is_some(),
        remedy: Remedy::Packages(&["redis-server", "redis-tools"]),
    },
    Need {
        what: "curl",
        why: "calls in the demo's pods",
        group: Group::Demo,
        met: || programs::find("curl").is_some(),
        remedy: Remedy::Packages(&["curl", "ca-certificates"]),
    },
    Need {
        what: "tcpdump",
        why: "records the link between the nodes",
        group: Group::Demo,
        met: || programs::find("tcpdump").is_some(),
        remedy: Remedy::Packages(&["tcpdump"]),
    },
    Need {
        what: "iptables-restore",
        why: "leads pods' connections to a real ztunnel, by its own rules",
        group: Group::Peers,
        met: || programs::find("iptables-restore").is_some(),
        remedy: Remedy::Packages(&["iptables"]),
    },
    Need {
        what: "openssl",
        why: "makes the certificates of a pair of Envoys",
        group: Group::Peers,
        met: || programs::find("openssl").is_some(),
        remedy: Remedy::Packages(&["openssl"]),
    },
    Need {
        what: "containerd, runc, unshare",
        why: "run the pods of a cluster's nodes",
        group: Group::Cluster,
        met: || ["containerd", "ctr", "runc", "unshare"].iter().all(|name| programs::find(name).is_some()),
        remedy: Remedy::Packages(&["containerd", "runc", "util-linux"]),
    },
    Need {
        what: "CNI plugins",
        why: "give a cluster's pods their network",
        group: Group::Cluster,
        met: || Path::new("/usr/lib/cni/bridge").exists(),
        remedy: Remedy::Packages(&["containernetworking-plugins"]),
    },
    Need {
        what: "iptables, nft, conntrack",
        why: "are kube-proxy's means, and the portmap plugin's",
        group: Group::Cluster,
        met: || ["iptables", "ip6tables", "nft", "conntrack"].iter().all(|name| programs::find(name).is_some()),
        remedy: Remedy::Packages(&["iptables", "nftables", "conntrack"]),
    },
    Need {
        what: "ipset, ipvsadm",
        why: "are kube-proxy's means in its mode ipvs",
        group: Group::Cluster,
        met: || ["ipset", "ipvsadm"].iter().all(|name| programs::find(name).is_some()),
        remedy: Remedy::Packages(&["ipset", "ipvsadm"]),
    },
    Need {
        what: "socat",
        why: "carries what `kubectl port-forward` forwards",
        group: Group::Cluster,
        met: || programs::find("socat").is_some(),
        remedy: Remedy::Packages(&["socat"]),
    },
    Need {
        what: "busybox",
        why: "is what the cluster's own images are made of",
        group: Group::Cluster,
        met: || programs::find("busybox").is_some(),
        remedy: Remedy::Packages(&["busybox-static"]),
    },
    Need {
        what: "Go, or pip",
        why: "builds Kubernetes' own programs; where there is no Go, a Python wheel brings it",
        group: Group::Cluster,
        met: || Parts::have_go() || has_pip(),
        remedy: Remedy::Packages(&["python3-pip"]),
    },
    Need {
        what: "Debian's python3",
        why: "is a client and a server in the cluster's pods",
        group: Group::Workloads,
        met: || {
            // The interpreter alone is another package than its library.
            let interpreter = fs::canonicalize("/usr/bin/python3").ok();
            let name = interpreter.as_deref().and_then(Path::file_name);
            name.is_some_and(|name| Path::new("/usr/lib").join(name).join("asyncio").exists())
        },
        remedy: Remedy::Packages(&["python3"]),
    },
    Need {
        what: "rustfmt, clippy",
        why: "format and lint user space",
        group: Group::Test,
        met: || {
            ["fmt", "clippy"].iter().all(|tool| process::succeeds(process::command("cargo").args([tool, "--version"])))
        },
        remedy: Remedy::Components(&["rustfmt", "clippy"]),
    },
    Need {
        what: "clippy for the kernel programs",
        why: "is the one that fits their compiler",
        group: Group::Test,
        met: || {
            !matches!(Toolchain::find(None), Some(Toolchain::Debian(_)) | None) || Toolchain::debian_clippy().is_some()
        },
        remedy: Remedy::Packages(&["rust-web-clippy"]),
    },
    Need {
        what: "nft",
        why: "forwards connections in the tests, as a node port does",
        group: Group::Test,
        met: || programs::find("nft").is_some(),
        remedy: Remedy::Packages(&["nftables"]),
    },
    Need {
        what: "bpftool",
        why: "shows the tests what is left in the kernel",
        group: Group::Test,
        met: || programs::find("bpftool").is_some(),
        remedy: Remedy::Packages(&["bpftool"]),
    },
    Need {
        what: "C++ compiler",
        why: "builds libFuzzer for the fuzz targets",
        group: Group::Test,
        met: || programs::find("c++").is_some(),
        remedy: Remedy::Packages(&["g++"]),
    },
    Need {
        what: "cargo-deny",
        why: "checks licences, sources and advisories of dependencies",
        group: Group::Test,
        met: || programs::find("cargo-deny").is_some(),
        remedy: Remedy::Crate(CrateInstall {
            name: "cargo-deny",
            version: "0.20.2",
            flags: &["--locked"],
            packages: &[],
            llvm: None,
        }),
    },
    Need {
        what: "cargo-fuzz",
        why: "runs the fuzz targets",
        group: Group::Test,
        met: || programs::find("cargo-fuzz").is_some(),
        remedy: Remedy::Crate(CrateInstall {
            name: "cargo-fuzz",
            version: "0.13.2",
            flags: &["--locked"],
            packages: &[],
            llvm: None,
        }),
    },
];

fn has_pip() -> bool {
    process::succeeds(process::command("python3").args(["-m", "pip", "--version"]))
}

const BPF_PLACE: &str = "/sys/fs/bpf";

/// Where v1 hierarchies are mounted, v2 stands beside them; else it is the only one.
fn cgroup2_place() -> &'static str {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if is_mounted(&mounts, "tmpfs", Some("/sys/fs/cgroup")) { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" }
}

/// Installed is not enough: it must find the LLVM it was linked with.
fn bpf_linker_runs() -> bool {
    let version = process::output(process::command("bpf-linker").arg("--version")).unwrap_or_default();
    version.split_whitespace().nth(1).and_then(minor_version).is_some_and(|version| version >= (0, 13))
}

fn minor_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn mounted(kind: &str, at: Option<&str>) -> bool {
    is_mounted(&fs::read_to_string("/proc/mounts").unwrap_or_default(), kind, at)
}

fn is_mounted(mounts: &str, kind: &str, at: Option<&str>) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let (dir, this) = (fields.next(), fields.next());
        this == Some(kind) && (at.is_none() || dir == at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn mounts_are_found_wherever_they_are() {
        assert!(is_mounted(HYBRID, "cgroup2", None));
        assert!(!is_mounted(HYBRID, "bpf", Some("/sys/fs/bpf")));
        assert!(!is_mounted("bpf /elsewhere bpf rw 0 0\n", "bpf", Some("/sys/fs/bpf")));
    }

    #[test]
    fn linker_versions_are_compared_as_numbers() {
        assert!(minor_version("0.13.0") >= Some((0, 13)));
        assert!(minor_version("0.9.14") < Some((0, 13)));
        assert_eq!(minor_version("unknown"), None);
    }

    #[test]
    fn every_need_says_why() {
        for need in NEEDS {
            assert!(!need.why.is_empty() && !need.what.is_empty());
        }
    }
}
