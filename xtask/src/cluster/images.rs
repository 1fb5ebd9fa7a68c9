//! The lab's own images: programs of this machine with the libraries they
//! need. No registry is asked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::config::PAUSE;
use super::member::Members;
use super::names::Member;
use super::parts::Parts;
use super::units;
use crate::image::{Image, Rootfs, name_in};
use crate::process;
use crate::programs;
use crate::setup::{self, Group};
use crate::workspace::Workspace;

/// An image of real programs that `cluster image` can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// nginx, serving /www on port 8080.
    Nginx,
    /// redis-server, and redis-cli beside it.
    Redis,
    /// Python, with its standard library.
    Python,
    /// curl.
    Curl,
}

/// What `cluster image` is given.
#[derive(Debug, Clone)]
pub(crate) enum Given {
    /// One of the lab's own.
    Workload(Workload),
    /// An archive, and the name it is to have.
    Archive { name: String, path: PathBuf },
}

impl std::str::FromStr for Given {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((name, path)) = text.split_once('=') {
            return Ok(Self::Archive { name: name.to_owned(), path: path.into() });
        }
        match Workload::from_str(text, false) {
            Ok(workload) => Ok(Self::Workload(workload)),
            Err(_) => bail!("{text} is neither NAME=ARCHIVE.tar nor one of nginx, redis, python, curl"),
        }
    }
}

/// Makes those without which no node works.
pub(crate) fn make_basic(workspace: &Workspace, parts: &Parts, folder: &Path) -> Result<()> {
    setup::ensure(workspace, Group::Cluster)?;
    let busybox = programs::find("busybox").context("busybox is not installed")?;
    let mut pause = Rootfs::default();
    pause.program_as("bin/busybox", &busybox)?.link("bin/sleep", "busybox");
    Image::new(PAUSE, pause).entrypoint(&["/bin/sleep", "2147483647"]).write(&folder.join("pause.tar"))?;
    let mut shell = Rootfs::default();
    shell.program_as("bin/busybox", &busybox)?.directory("tmp", 0o1777).directory("www", 0o755);
    for applet in process::output(process::command(&busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            shell.link(&format!("bin/{applet}"), "busybox");
        }
    }
    let image = Image::new("warren.local/busybox:1", shell).entrypoint(&["/bin/sh"]).path("/bin");
    image.write(&folder.join("busybox.tar"))?;
    let mut dns = Rootfs::default();
    dns.file("coredns", &parts.program("coredns"));
    Image::new("warren.local/coredns:1", dns).entrypoint(&["/coredns"]).write(&folder.join("coredns.tar"))
}

/// Brings an image to every node, now and whenever one starts; returns its name.
pub(crate) fn load(workspace: &Workspace, members: &Members, given: &Given) -> Result<String> {
    let (name, archive) = match given {
        Given::Workload(workload) => {
            setup::ensure(workspace, Group::Workloads)?;
            let image = workload.image()?;
            let archive = members.state().images().join(format!("{}.tar", workload.title()));
            image.write(&archive)?;
            (image.name().to_owned(), archive)
        }
        Given::Archive { name, path } => {
            let archive = members.state().images().join(format!("{}.tar", file_name(name)));
            fs::copy(path, &archive).with_context(|| path.display().to_string())?;
            // Nodes that start later read it as well.
            let beside = archive.with_extension("tar.name");
            fs::write(&beside, format!("{} {name}\n", name_in(path)?)).with_context(|| beside.display().to_string())?;
            (name.clone(), archive)
        }
    };
    let file = Path::new(archive.file_name().context("the archive has no name")?);
    for node in members.state().expect()?.nodes()?.into_iter().map(Member::Node) {
        if members.is_on(node) {
            process::output(members.command_in(node)?.args(units::import_image(file)))?;
        }
    }
    Ok(name)
}

/// A name of an image as that of a file.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect()
}

impl Workload {
    fn title(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Python => "python",
            Self::Curl => "curl",
        }
    }

    fn image(self) -> Result<Image> {
        let mut root = Rootfs::default();
        root.directory("tmp", 0o1777).directory("var/log", 0o755);
        root.text("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n");
        root.text("etc/group", "root:x:0:\nnogroup:x:65534:\n").text("etc/nsswitch.conf", "hosts: files dns\n");
        let entrypoint: &[&str] = match self {
            Self::Nginx => {
                root.program("nginx")?.text("etc/nginx/nginx.conf", NGINX).text("www/index.html", "nginx\n");
                root.directory("var/lib/nginx", 0o755).directory("var/log/nginx", 0o755);
                &["/usr/sbin/nginx", "-c", "/etc/nginx/nginx.conf"]
            }
            Self::Redis => {
                root.program("redis-server")?.program("redis-cli")?.directory("data", 0o777);
                &["/usr/bin/redis-server", "--bind", "*", "-::*", "--protected-mode", "no", "--dir", "/data"]
            }
            Self::Python => {
                python(&mut root)?;
                &["/usr/bin/python3"]
            }
            Self::Curl => {
                root.program("curl")?;
                &["/usr/bin/curl"]
            }
        };
        root.name_service()?;
        let name = format!("warren.local/{}:1", self.title());
        Ok(Image::new(&name, root).entrypoint(entrypoint).path("/usr/sbin:/usr/bin:/bin"))
    }
}

/// Debian's own interpreter, whatever other one stands before it in PATH.
fn python(root: &mut Rootfs) -> Result<()> {
    let interpreter = fs::canonicalize("/usr/bin/python3").context("/usr/bin/python3")?;
    let name = interpreter.file_name().context("python3 has no name")?.to_string_lossy().into_owned();
    root.program_at(&interpreter)?.link("usr/bin/python3", &name);
    root.tree(&Path::new("/usr/lib").join(&name), &["__pycache__", "test", "ensurepip", "idlelib"])
}

const NGINX: &str = "daemon off;
pid /tmp/nginx.pid;
error_log /dev/stderr;
worker_processes 1;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 8080; listen [::]:8080; root /www; }
}
";
