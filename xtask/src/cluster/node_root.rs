//! What a node sees as `/`: the machine's programs, and configuration, state
//! and run-time folders of its own. State outlives the node's processes, as a
//! disk does; /run, /tmp and the bpf file system do not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{pivot_root, sethostname};

use super::cgroups::{self, Hierarchy, Kind};

/// Of the machine's /etc: names of users and services, and where libraries and
/// alternatives of programs are.
const SHARED_ETC: [&str; 8] =
    ["alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "passwd", "protocols"];
/// Folders, or links into /usr, that hold programs and libraries.
const PROGRAMS: [&str; 6] = ["bin", "lib", "lib32", "lib64", "libx32", "sbin"];
const OWN: [&str; 17] = [
    "dev",
    "etc/cni/net.d",
    "etc/kubernetes/pki",
    "opt/cni/bin",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "var/lib/cni",
    "var/lib/containerd",
    "var/lib/kubelet",
    "var/lib/lab-images",
    "var/log/containers",
    "var/log/pods",
    "var/tmp",
];
/// Where Debian has the CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Makes the folders of a node, once.
pub(crate) fn create(root: &Path) -> Result<()> {
    for folder in OWN {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    }
    let machine = Path::new("/");
    for name in PROGRAMS {
        share(&machine.join(name), &root.join(name))?;
    }
    for name in SHARED_ETC {
        copy(&Path::new("/etc").join(name), &root.join("etc").join(name))?;
    }
    link("../usr/lib/os-release", &root.join("etc/os-release"))?;
    link("/run", &root.join("var/run"))?;
    for plugin in fs::read_dir(CNI_PLUGINS).with_context(|| CNI_PLUGINS.to_owned())? {
        let plugin = plugin?;
        fs::copy(plugin.path(), root.join("opt/cni/bin").join(plugin.file_name()))?;
    }
    Ok(())
}

/// A link stays a link; a folder becomes a place to mount it at.
fn share(from: &Path, to: &Path) -> Result<()> {
    match fs::read_link(from) {
        Ok(target) => link(target, to),
        Err(_) if from.is_dir() => fs::create_dir_all(to).with_context(|| to.display().to_string()),
        Err(_) => Ok(()),
    }
}

fn link(target: impl AsRef<Path>, at: &Path) -> Result<()> {
    if at.is_symlink() { Ok(()) } else { symlink(target, at).with_context(|| at.display().to_string()) }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Ok(target) = fs::read_link(from) {
        return link(target, to);
    }
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| to.display().to_string())?;
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())?.flatten() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if from.is_file() {
        fs::copy(from, to).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// What is mounted into a node from outside.
#[derive(Debug)]
pub(crate) struct Outside<'a> {
    /// Kubernetes' programs.
    pub(crate) bin: &'a Path,
    /// Archives of images.
    pub(crate) images: &'a Path,
}

/// Makes a prepared folder this process's `/`; it is in a mount namespace, a
/// cgroup namespace and so on of its own. Everything else of the machine's file
/// systems goes out of sight, and so is not kept in use.
pub(crate) fn enter(root: &Path, hostname: &str, outside: &Outside<'_>, hierarchies: &[Hierarchy]) -> Result<()> {
    sethostname(hostname).context("hostname")?;
    change(Path::new("/"), MsFlags::MS_PRIVATE | MsFlags::MS_REC)?;
    bind(root, root)?;
    for name in PROGRAMS.into_iter().chain(["usr"]) {
        let at = root.join(name);
        if !at.is_symlink() && at.is_dir() {
            bind(&Path::new("/").join(name), &at)?;
        }
    }
    bind(Path::new("/dev"), &root.join("dev"))?;
    bind(outside.bin, &root.join("usr/local/bin"))?;
    bind(outside.images, &root.join("var/lib/lab-images"))?;
    fresh("proc", &root.join("proc"), "")?;
    fresh("sysfs", &root.join("sys"), "")?;
    fresh("tmpfs", &root.join("run"), "mode=755")?;
    fresh("tmpfs", &root.join("tmp"), "mode=1777")?;
    mount_cgroups(&root.join("sys/fs/cgroup"), hierarchies)?;
    fresh("bpf", &root.join("sys/fs/bpf"), "")?;
    // Not every kernel has these, and nothing of Kubernetes needs them.
    for (kind, at) in [("securityfs", "sys/kernel/security"), ("tracefs", "sys/kernel/tracing")] {
        let _ = fresh(kind, &root.join(at), "");
    }
    new_boot(root)?;
    std::env::set_current_dir(root).context("node's root")?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("the machine's own root")?;
    std::env::set_current_dir("/").context("/")?;
    // Containers ask for mounts that propagate to them and from them.
    change(Path::new("/"), MsFlags::MS_SHARED | MsFlags::MS_REC)?;
    fs::create_dir_all("/run/netns").context("/run/netns")
}

/// A node that starts again has another boot id, by which kubelet knows.
fn new_boot(root: &Path) -> Result<()> {
    let id = root.join("run/boot_id");
    let (a, b, c, d, e): (u32, u16, u16, u16, u64) = rand::random();
    fs::write(&id, format!("{a:08x}-{b:04x}-{c:04x}-{d:04x}-{:012x}\n", e >> 16)).context("boot id")?;
    bind(&id, &root.join("proc/sys/kernel/random/boot_id"))
}

fn mount_cgroups(at: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    if cgroups::is_unified(hierarchies) {
        return fresh("cgroup2", at, "");
    }
    fresh("tmpfs", at, "mode=755")?;
    for hierarchy in hierarchies {
        let (kind, options, name) = match &hierarchy.kind {
            Kind::V1(options) => ("cgroup", options.as_str(), hierarchy.mounted_at.file_name()),
            Kind::V2 => ("cgroup2", "", Some("unified".as_ref())),
        };
        let place = at.join(name.context("a cgroup hierarchy is mounted at /")?);
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        fresh(kind, &place, options)?;
    }
    Ok(())
}

fn fresh(kind: &str, at: &Path, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount -t {kind} -o '{options}' {}", at.display()))
}

fn bind(from: &Path, at: &Path) -> Result<()> {
    mount(Some(from), at, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("mount --rbind {} {}", from.display(), at.display()))
}

fn change(at: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, at, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("propagation of {}", at.display()))
}

/// How containerd keeps images' layers on a folder's file system: stacked by
/// the kernel, or copied where that cannot be stacked again (a container's own
/// root, for one).
pub(crate) fn snapshotter(folder: &Path) -> Result<&'static str> {
    let probe = folder.join("overlay-probe");
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| probe.join(name));
    for place in [&lower, &upper, &work, &merged] {
        fs::create_dir_all(place).with_context(|| place.display().to_string())?;
    }
    let mounted = mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(overlay_options(&lower, &upper, &work).as_str()),
    );
    if mounted.is_ok() {
        umount2(&merged, MntFlags::MNT_DETACH).context("overlay probe")?;
    }
    fs::remove_dir_all(&probe).with_context(|| probe.display().to_string())?;
    Ok(if mounted.is_ok() { "overlayfs" } else { "native" })
}

fn overlay_options(lower: &Path, upper: &Path, work: &Path) -> String {
    let shown = |path: &Path| -> String { PathBuf::from(path).display().to_string() };
    format!("lowerdir={},upperdir={},workdir={}", shown(lower), shown(upper), shown(work))
}
