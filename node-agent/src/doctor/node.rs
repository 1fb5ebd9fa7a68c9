//! This machine, as a node.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use super::finding::Finding;
use crate::capture::features;
use crate::cni::install::{Distribution, Support, detect};
use crate::command::mount_bpffs::is_bpffs;
use crate::config::{default_run_dir, socket_path};
use crate::exit::chain;

/// The oldest kernel that is tested.
const KERNEL: (u32, u32) = (6, 6);
/// Of metrics and health.
const ADMIN_PORT: u16 = 15020;

/// Looks at everything that an agent needs here.
pub(crate) fn check_node() -> Vec<Finding> {
    let mut findings = vec![kernel(), program_types(), btf(), bpffs()];
    findings.extend(cgroup());
    findings.extend(cni(Path::new("/")));
    findings.push(admin_port());
    findings.push(istio(Path::new("/")));
    findings
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match version(&release) {
        None => Finding::skipped("kernel", format!("its release {:?} is not understood", release.trim())),
        Some(found) if found >= KERNEL => Finding::ok("kernel", format!("Linux {}", release.trim())),
        Some(_) => Finding::error(
            "kernel",
            format!("Linux {}", release.trim()),
            format!(
                "Linux {}.{} or later on this node; label it so that no enrolled pod comes here",
                KERNEL.0, KERNEL.1
            ),
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn program_types() -> Finding {
    match features::missing_program_types() {
        Ok(missing) if missing.is_empty() => Finding::ok("bpf", "the kernel has every type of program that is needed"),
        Ok(missing) => Finding::error(
            "bpf",
            format!("the kernel has no programs of type {}", missing.join(", ")),
            "a kernel with CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_INET, as distributions' \
             are",
        ),
        Err(why) => Finding::skipped("bpf", format!("it takes root to ask the kernel ({why})")),
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::ok("btf", "the kernel tells its types");
    }
    Finding::warning(
        "btf",
        "the kernel does not tell its types (/sys/kernel/btf/vmlinux)",
        "nothing, unless you want --splice: it needs CONFIG_DEBUG_INFO_BTF",
    )
}

fn bpffs() -> Finding {
    if is_bpffs(Path::new("/sys/fs/bpf")) {
        return Finding::ok("bpffs", "mounted at /sys/fs/bpf");
    }
    Finding::warning(
        "bpffs",
        "no BPF file system at /sys/fs/bpf",
        "the DaemonSet mounts it before its agent; by hand: mount -t bpf bpf /sys/fs/bpf",
    )
}

fn cgroup() -> Vec<Finding> {
    let root = match features::cgroup_root() {
        Ok(root) => root,
        Err(error) => {
            let cure = "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or mount it beside version 1";
            return vec![Finding::error("cgroup", chain(&error), cure)];
        }
    };
    let mounted = Finding::ok("cgroup", "cgroup v2 is mounted");
    let others = match features::other_connect_programs(&root) {
        Ok(names) if names.is_empty() => Finding::ok("connect-programs", "nobody else rewrites connections here"),
        Ok(names) => Finding::warning(
            "connect-programs",
            format!("other programs see connections of this node's pods as well: {}", names.join(", ")),
            "a socket load balancer (Cilium's sock4_connect, for one) must leave pods alone: \
             bpf-lb-sock-hostns-only: \"true\"",
        ),
        Err(error) => Finding::skipped("connect-programs", format!("it takes root to ask the kernel ({error})")),
    };
    vec![mounted, others]
}

fn cni(root: &Path) -> Vec<Finding> {
    let Some(found) = detect(root) else {
        return vec![Finding::skipped("cni", "no container runtime that is known is here: not a node of Kubernetes?")];
    };
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    vec![distribution(&found), folder(&within(found.conf_dir)), programs(&within(found.bin_dir))]
}

fn distribution(found: &Distribution) -> Finding {
    let text = format!("{}: configurations in {}, plugins in {}", found.name, found.conf_dir, found.bin_dir);
    let by_default = ("/etc/cni/net.d", "/opt/cni/bin");
    match found.support {
        Support::Unsupported(why) => {
            Finding::error("cni", format!("{text}: {why}"), "leave out --cni: pods are captured after their start then")
        }
        _ if (found.conf_dir, found.bin_dir) != by_default => {
            Finding::warning("cni", text, "give the DaemonSet these two paths (deploy/README.md, \"Other CNI paths\")")
        }
        Support::Tested | Support::Expected => Finding::ok("cni", text),
    }
}

fn folder(conf_dir: &Path) -> Finding {
    let primary = "install the cluster's network first; the agent chains itself behind it as soon as it is there";
    let mut names: Vec<String> = match fs::read_dir(conf_dir) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        Err(error) => return Finding::error("cni-config", format!("{}: {error}", conf_dir.display()), primary),
    };
    names.retain(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)));
    names.sort();
    let ours = names.iter().position(|name| name.ends_with("-warren.conflist"));
    match (ours, names.first()) {
        (_, None) => Finding::error("cni-config", format!("{} is empty", conf_dir.display()), primary),
        (Some(0), _) if names.len() == 1 => Finding::error("cni-config", "the primary plugin's is gone", primary),
        (Some(0), _) => Finding::ok("cni-config", format!("{} comes first", names[0])),
        (None, Some(first)) => Finding::ok("cni-config", format!("{first} counts; Warren's is not installed")),
        (Some(_), Some(first)) => Finding::error(
            "cni-config",
            format!("{first} sorts before Warren's, so that pods start without it"),
            format!("rename {first} so that it sorts behind 00-warren.conflist"),
        ),
    }
}

fn programs(bin_dir: &Path) -> Finding {
    let (installed, there) = (bin_dir.join(crate::cni::PLUGIN).exists(), bin_dir.is_dir());
    match (there, installed) {
        (false, _) => Finding::error(
            "cni-plugins",
            format!("{} is not there", bin_dir.display()),
            "where does the runtime look for plugins? `warren cni paths` knows common places",
        ),
        (true, true) => Finding::ok("cni-plugins", format!("{} has the plugin", bin_dir.display())),
        (true, false) => Finding::ok("cni-plugins", format!("{} is there", bin_dir.display())),
    }
}

fn admin_port() -> Finding {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, ADMIN_PORT)) {
        Ok(_) => Finding::ok("port", format!("127.0.0.1:{ADMIN_PORT} is free")),
        Err(_) if an_agent_runs() => Finding::ok("port", format!("an agent has 127.0.0.1:{ADMIN_PORT}")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::error(
            "port",
            format!("somebody else has 127.0.0.1:{ADMIN_PORT}"),
            "end it, or give the agent --admin 127.0.0.1:PORT and its probes the same (`ss -ltnp` says who it is)",
        ),
        Err(error) => Finding::skipped("port", format!("127.0.0.1:{ADMIN_PORT}: {error}")),
    }
}

fn an_agent_runs() -> bool {
    let nodes = fs::read_dir(default_run_dir("")).into_iter().flatten().flatten();
    nodes.map(|node| socket_path(&node.path())).any(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok())
}

fn istio(root: &Path) -> Finding {
    let signs = ["run/istio-cni/pluginevent.sock", "var/run/istio-cni/pluginevent.sock", "run/ztunnel/ztunnel.sock"];
    match signs.iter().find(|sign| root.join(sign).exists()) {
        None => Finding::ok("istio-ambient", "Istio's ambient mode is not on this node"),
        Some(sign) => Finding::warning(
            "istio-ambient",
            format!("Istio's ambient mode is on this node (/{sign}); both read istio.io/dataplane-mode"),
            "label namespaces for Warren with warren.dev/mode, and end Istio's ambient mode there first: a pod that it \
             redirects is refused",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(version("6.18.44-fc-v782\n"), Some((6, 18)));
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("strange"), None);
        assert!(version("6.1.0-18-amd64") < Some(KERNEL) && version("10.0") > Some(KERNEL));
    }

    #[test]
    fn whose_configuration_counts_is_said() {
        let dir = std::env::temp_dir().join(format!("warren-doctor-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let level = || folder(&dir).level;
        assert_eq!(level(), Level::Error, "no primary");
        fs::write(dir.join("10-pods.conflist"), "{}").unwrap();
        assert_eq!(level(), Level::Ok, "not installed yet");
        fs::write(dir.join("00-warren.conflist"), "{}").unwrap();
        assert_eq!(level(), Level::Ok);
        fs::write(dir.join("00-early.conflist"), "{}").unwrap();
        assert_eq!(level(), Level::Error, "another one is first");
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(level(), Level::Error);
    }
}
