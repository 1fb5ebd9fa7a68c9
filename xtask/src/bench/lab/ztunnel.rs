//! A real ztunnel on each node, in its own in-pod mode.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::net::{NAMESPACE, NODES, PREFIX, Pod};
use super::{established_to, listening};
use crate::interrupt;
use crate::netlab::process::{Daemon, inside};
use crate::netlab::{netns_path, network};
use crate::process;

const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// The ports in a pod that show it has taken the pod over: outbound, inbound plaintext, inbound HBONE.
const PORTS: [u16; 3] = [15001, 15006, HBONE];
const HBONE: u16 = 15008;

/// How to get one.
pub(crate) const HELP: &str = "ztunnel is not there. To get it (some minutes; needs protoc and iptables):
  git clone https://github.com/istio/ztunnel && cd ztunnel
  cargo build --release --no-default-features --features tls-aws-lc,jemalloc,testing --bin ztunnel --example inpodserver
(if its BoringSSL crates cannot be built, take the lines with `boring` out of its Cargo.toml), then
  cargo xtask bench --peer ztunnel=$PWD/out/rust/release/ztunnel";

/// Where its programs are.
#[derive(Debug, Clone)]
pub(crate) struct Ztunnel {
    binary: PathBuf,
    inpodserver: PathBuf,
    redirect: PathBuf,
}

/// The processes of both nodes.
#[derive(Debug, Default)]
pub(super) struct Started {
    pub(super) proxies: Vec<Daemon>,
    /// Handed a pod to a proxy; they may end when that is done.
    pub(super) helpers: Vec<Daemon>,
}

impl Ztunnel {
    /// From the binary's path, or from the environment that the interop tests use.
    pub(crate) fn find(binary: Option<&Path>, source: Option<&Path>) -> Result<Self> {
        let variable = |name| env::var_os(name).map(PathBuf::from);
        let Some(binary) = binary.map(Path::to_owned).or_else(|| variable("WARREN_ZTUNNEL")) else { bail!("{HELP}") };
        let beside = binary.parent().map(|dir| dir.join("examples/inpodserver")).unwrap_or_default();
        let inpodserver = variable("WARREN_ZTUNNEL_INPODSERVER").unwrap_or(beside);
        // out/rust/release/ztunnel below the source tree.
        let above = binary.ancestors().nth(4).map(Path::to_owned).unwrap_or_default();
        let source = source.map(Path::to_owned).or_else(|| variable("WARREN_ZTUNNEL_SOURCE")).unwrap_or(above);
        let redirect = source.join("scripts/ztunnel-redirect-inpod.sh");
        for file in [&binary, &inpodserver, &redirect] {
            if !file.is_file() {
                bail!("there is no {}\n{HELP}", file.display());
            }
        }
        Ok(Self { binary, inpodserver, redirect })
    }

    /// What it calls itself.
    pub(crate) fn version(&self) -> String {
        let said = process::output(process::command(&self.binary).arg("version")).unwrap_or_default();
        let field = |name: &str| said.split(&format!("{name}:\"")).nth(1)?.split('"').next().map(str::to_owned);
        let words = [field("GitRevision"), field("CryptoProvider"), field("BuildProfile")];
        format!("ztunnel {}", words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    /// Redirects the pods' connections and starts one on each node.
    pub(super) fn start(&self, directory: &Path, pods: &[Pod], more_addresses: &[String]) -> Result<Started> {
        let world = directory.join("ztunnel.yaml");
        fs::write(&world, known(pods, more_addresses))?;
        let names: Vec<String> = pods.iter().map(|pod| own_netns(*pod)).collect();
        network::add_namespaces(names.iter())?;
        let mut started = Started::default();
        for pod in pods {
            process::output(inside(&pod.netns(), "sh").arg(&self.redirect))?;
            network::ip(Some(&own_netns(*pod)), "link set lo up\n")?;
            self.launch(directory, &world, *pod, &mut started)?;
        }
        for pod in pods {
            wait("ztunnel serves its pod", || PORTS.iter().all(|port| listening(&pod.netns()).contains(port)))
                .map_err(|error| error.context(super::tail(&log(directory, *pod, "ztunnel"))))?;
        }
        Ok(started)
    }

    fn launch(&self, directory: &Path, world: &Path, pod: Pod, started: &mut Started) -> Result<()> {
        let netns = netns_path(&own_netns(pod));
        let socket = directory.join(format!("{}.sock", pod.name));
        let file = |program: &str| directory.join(format!("{program}-{}.log", pod.name));
        let mut helper = inside(&netns, &self.inpodserver);
        helper.arg(pod.netns_name()).env("INPOD_UDS", &socket);
        helper.env("PROXY_WORKLOAD_INFO", format!("{NAMESPACE}/{0}/{0}", pod.name));
        started.helpers.push(Daemon::start("ztunnel's helper", &file("inpodserver"), &mut helper)?);
        wait("ztunnel's helper listens", || socket.exists())?;
        let mut ztunnel = inside(&netns, &self.binary);
        ztunnel.env("INPOD_UDS", &socket).env("NODE_NAME", NODES[pod.node()]).env("PROXY_MODE", "shared");
        ztunnel.env("FAKE_CA", "true").env("XDS_ADDRESS", "").env("LOCAL_XDS_PATH", world);
        ztunnel.env("CONNECTION_TERMINATION_DEADLINE", "0s").env("RUST_LOG", "error");
        started.proxies.push(Daemon::start("ztunnel", &file("ztunnel"), &mut ztunnel)?);
        Ok(())
    }
}

/// How many tunnels a pod has to the other node's ztunnel, or Warren's agent.
pub(super) fn tunnels(pod: Pod) -> usize {
    established_to(&pod.netns()).into_iter().filter(|port| *port == HBONE).count()
}

fn log(directory: &Path, pod: Pod, program: &str) -> String {
    fs::read_to_string(directory.join(format!("{program}-{}.log", pod.name))).unwrap_or_default()
}

fn own_netns(pod: Pod) -> String {
    format!("{PREFIX}z-{}", pod.name)
}

fn wait(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !done() {
        interrupt::check()?;
        if started.elapsed() > LIMIT {
            bail!("not within {} s: {what}", LIMIT.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Its world: what Istio's control plane would tell it.
fn known(pods: &[Pod], more_addresses: &[String]) -> String {
    let mut text = String::from("workloads:\n");
    for pod in pods {
        let mut ips = vec![format!("\"{}\"", pod.address())];
        if *pod == super::net::FAR {
            ips.extend(more_addresses.iter().map(|ip| format!("\"{ip}\"")));
        }
        text += &format!(
            "- {{uid: uid-{0}, name: {0}, namespace: {NAMESPACE}, serviceAccount: {0}, workloadIps: [{1}], \
             protocol: HBONE, node: {2}, network: \"\", services: {{}}}}\n",
            pod.name,
            ips.join(", "),
            NODES[pod.node()]
        );
    }
    text + "policies: []\nservices: []\n"
}
