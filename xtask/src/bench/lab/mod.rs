//! One path, built: namespaces, proxies, the load's server. Only one stands at
//! a time, so that no path pays for another one's programs in the kernel.

mod envoy;
mod load;
pub(crate) mod net;
pub(crate) mod warren;
pub(crate) mod ztunnel;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path as FilePath, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use warren_load::report::{Report, Served};

pub(crate) use self::envoy::Envoy;
pub(crate) use self::load::Load;
use self::net::{CLIENT, FAR, NEAR, PORT, Pod};
use self::warren::Agents;
use self::ztunnel::Ztunnel;
use super::path::Path;
use crate::netlab::network;
use crate::netlab::process::{Daemon, inside};
use crate::process;

/// How often the kernel path is looked for, and the pause between two looks.
const TRIES: u32 = 24;
const PAUSE: Duration = Duration::from_millis(250);
const DIRECTORY: &str = "/run/warren-bench";
/// The flag of agents that carry same-node bytes in the kernel.
const SPLICE: &str = "--splice";

/// The programs that are measured and that measure.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) load: PathBuf,
    pub(crate) warren: PathBuf,
    /// More flags for it.
    pub(crate) agent_flags: Vec<String>,
    /// Micro-benchmarks, where they are built.
    pub(crate) micro: PathBuf,
    pub(crate) ztunnel: Option<Ztunnel>,
    pub(crate) envoy: Option<Envoy>,
    /// Where logs of proxies go when something is wrong.
    pub(crate) logs: PathBuf,
}

impl Programs {
    /// Whether a path can be built.
    pub(crate) fn offer(&self, path: Path) -> bool {
        match path {
            Path::Ztunnel => self.ztunnel.is_some(),
            Path::Envoy => self.envoy.is_some(),
            Path::SameNodeSplice => warren::knows(&self.warren, SPLICE),
            _ => true,
        }
    }
}

/// What a lab has beyond pods and proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Nothing.
    Ordinary,
    /// The far pod has this many more addresses, each of which wants a tunnel of its own.
    Addresses(u32),
    /// The link between the nodes delays every packet for so many milliseconds.
    Delayed(u64),
}

/// A path that stands. Dropping it takes it down.
#[derive(Debug)]
pub(crate) struct Lab {
    programs: Programs,
    path: Path,
    directory: PathBuf,
    agents: Option<Agents>,
    proxies: Vec<Daemon>,
    helpers: Vec<Daemon>,
    server: Option<Load>,
    /// The process that is the link, where there is one.
    link: Option<Load>,
}

impl Lab {
    /// Builds it, and proves it with one connection.
    pub(crate) fn up(programs: &Programs, path: Path, shape: Shape) -> Result<Self> {
        take_down(&programs.warren)?;
        fs::create_dir_all(DIRECTORY).context(DIRECTORY)?;
        let mut lab = Self {
            programs: programs.clone(),
            path,
            directory: DIRECTORY.into(),
            agents: None,
            proxies: Vec::new(),
            helpers: Vec::new(),
            server: None,
            link: None,
        };
        match lab.build(shape) {
            Ok(()) => Ok(lab),
            Err(error) => {
                lab.save_logs();
                Err(error)
            }
        }
    }

    fn build(&mut self, shape: Shape) -> Result<()> {
        match shape {
            Shape::Delayed(each_way) => {
                let each_way = Duration::from_millis(each_way);
                self.link = Some(net::build_delayed(&self.pods(), &self.programs.load, each_way)?);
            }
            _ => net::build(&self.pods())?,
        }
        let more = self.more_addresses(shape)?;
        self.start_proxies(&more)?;
        let listen = SocketAddr::new("0.0.0.0".parse::<IpAddr>()?, PORT);
        self.server = Some(load::serve(&self.programs.load, &self.server_pod().netns(), listen)?);
        self.prove()
    }

    /// Keeps the proxies' logs for whoever looks for a fault.
    pub(crate) fn save_logs(&self) {
        let to = self.programs.logs.join(self.path.id());
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "log"));
        let kept = fs::create_dir_all(&to).is_ok()
            && logs.fold(true, |kept, log| kept & fs::copy(&log, to.join(log.file_name().unwrap_or_default())).is_ok());
        if kept {
            eprintln!("         logs: {}", to.display());
        }
    }

    fn pods(&self) -> Vec<Pod> {
        if self.path.is_same_node() { vec![CLIENT, NEAR, FAR] } else { vec![CLIENT, FAR] }
    }

    fn server_pod(&self) -> Pod {
        match self.path {
            Path::Loopback => CLIENT,
            path if path.is_same_node() => NEAR,
            _ => FAR,
        }
    }

    fn start_proxies(&mut self, more: &[String]) -> Result<()> {
        match self.path {
            Path::Loopback | Path::Plain | Path::PlainSameNode => {}
            Path::Warren | Path::SameNode | Path::SameNodeSplice => {
                let agents = Agents::new(&self.programs.warren, &self.directory, self.flags());
                self.proxies = agents.start(&self.pods(), more)?;
                self.agents = Some(agents);
            }
            Path::Ztunnel => {
                let ztunnel = self.programs.ztunnel.as_ref().context(ztunnel::HELP)?;
                let started = ztunnel.start(&self.directory, &self.pods(), more)?;
                (self.proxies, self.helpers) = (started.proxies, started.helpers);
            }
            Path::Envoy => {
                let envoy = self.programs.envoy.as_ref().context(envoy::HELP)?;
                self.proxies = envoy.start(&self.directory, CLIENT, FAR)?;
            }
        }
        Ok(())
    }

    /// The agents' flags: splice as the path wants it, whatever the agent's default is.
    fn flags(&self) -> Vec<String> {
        let mut flags = self.programs.agent_flags.clone();
        let word = if self.path == Path::SameNodeSplice { "on" } else { "off" };
        if self.path.is_same_node() && warren::knows(&self.programs.warren, SPLICE) {
            flags.extend([SPLICE.to_owned(), word.to_owned()]);
        }
        flags
    }

    /// One round trip; and between nodes there is a tunnel now, or none where there should be none.
    fn prove(&self) -> Result<()> {
        self.run(&["connect", "--count", "1", "--warmup", "0"])?;
        if matches!(self.path, Path::SameNode | Path::SameNodeSplice) {
            return self.prove_kernel_path();
        }
        let tunnelled = self.tunnels() > 0;
        match self.path {
            Path::Warren | Path::Ztunnel if !tunnelled => bail!("no tunnel carries the connections of {}", self.path),
            Path::Plain | Path::PlainSameNode | Path::Loopback if tunnelled => bail!("{} is tunnelled", self.path),
            _ => Ok(()),
        }
    }

    /// The first connection of a pair goes through the agent, and the kernel path is there soon after: waits for it, or
    /// says that what follows is measured without it.
    fn prove_kernel_path(&self) -> Result<()> {
        let audit = self.directory.join(format!("{}-audit.jsonl", net::NODES[0]));
        for _ in 0..TRIES {
            self.run(&["connect", "--count", "1", "--warmup", "0"])?;
            thread::sleep(PAUSE);
            if fs::read_to_string(&audit)?.contains("\"route\":\"kernel\"") {
                return Ok(());
            }
        }
        eprintln!("         {}: no connection takes the kernel path here; the agent's log says why", self.path);
        self.save_logs();
        Ok(())
    }

    /// The programs.
    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Tunnels that lead out of the client's pod.
    pub(crate) fn tunnels(&self) -> usize {
        ztunnel::tunnels(CLIENT)
    }

    /// The path that stands.
    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// What the clients connect to.
    pub(crate) fn target(&self) -> SocketAddr {
        match self.path {
            Path::Envoy => Envoy::outbound(),
            Path::Loopback => SocketAddr::new([127, 0, 0, 1].into(), PORT),
            _ => SocketAddr::new(self.server_pod().address(), PORT),
        }
    }

    /// Runs a client to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Report> {
        load::checked(self.start(arguments)?.finish()?)
    }

    /// Starts a client.
    pub(crate) fn start(&self, arguments: &[&str]) -> Result<Load> {
        let mut arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        if !arguments.iter().any(|word| word == "--to") {
            arguments.extend(["--to".to_owned(), self.target().to_string()]);
        }
        Load::start(&self.programs.load, &CLIENT.netns(), &arguments)
    }

    /// The proxies' processes.
    pub(crate) fn proxies(&mut self) -> &mut [Daemon] {
        &mut self.proxies
    }

    /// The agents, on Warren's paths.
    pub(crate) fn agents(&self) -> Result<&Agents> {
        self.agents.as_ref().context("no agents on this path")
    }

    /// Takes it down; what the server found wrong is an error.
    pub(crate) fn down(mut self) -> Result<Served> {
        let served = self.server.take().context("the server has ended").and_then(load::stop);
        self.end()?;
        served
    }

    fn end(&mut self) -> Result<()> {
        (self.server, self.link) = (None, None);
        self.proxies.iter_mut().chain(&mut self.helpers).for_each(Daemon::kill);
        self.proxies.clear();
        self.helpers.clear();
        take_down(&self.programs.warren)
    }

    /// Gives the far pod addresses behind its own, all of them served by its wildcard listener.
    fn more_addresses(&self, shape: Shape) -> Result<Vec<String>> {
        let Shape::Addresses(count) = shape else { return Ok(Vec::new()) };
        let addresses: Vec<String> = (0..count).map(|number| extra_address(number).to_string()).collect();
        let [network, far] = ["10.89.0.0/16".to_owned(), FAR.address().to_string()];
        network::ip(Some(net::NODES[0]), &format!("route add {network} via 10.88.0.2\n"))?;
        network::ip(Some(net::NODES[1]), &format!("route add {network} via {far} dev pod13 onlink\n"))?;
        let lines: String = addresses.iter().map(|address| format!("address add {address}/32 dev eth0\n")).collect();
        network::ip(Some(&FAR.netns_name()), &lines)?;
        Ok(addresses)
    }
}

/// The far pod's further addresses.
pub(crate) fn extra_address(number: u32) -> IpAddr {
    std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 89, 0, 1)) + number).into()
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.directory.exists()
            && let Err(error) = self.end()
        {
            eprintln!("warning: {error:#}");
        }
    }
}

/// What of a lab is there although none should be.
pub(crate) fn leftovers() -> Vec<String> {
    let mut left: Vec<String> = network::existing(net::PREFIX).iter().map(|name| format!("namespace {name}")).collect();
    let paths = net::NODES.map(warren::pins).into_iter().chain([PathBuf::from(DIRECTORY)]);
    left.extend(paths.filter(|path| path.exists()).map(|path| path.display().to_string()));
    left
}

/// Removes what a lab made, of this run or an earlier one.
pub(crate) fn take_down(warren: &FilePath) -> Result<()> {
    let mut left = net::remove();
    if let Err(error) = Agents::new(warren, FilePath::new(DIRECTORY), Vec::new()).clean_up() {
        left.push(format!("{error:#}"));
    }
    match fs::remove_dir_all(DIRECTORY) {
        Err(error) if error.kind() != ErrorKind::NotFound => left.push(format!("{DIRECTORY}: {error}")),
        _ => {}
    }
    if left.is_empty() { Ok(()) } else { bail!("left behind: {}", left.join(", ")) }
}

/// Ports with a TCP listener in a namespace.
fn listening(netns: &FilePath) -> Vec<u16> {
    const LISTEN: &str = "0A";
    sockets(netns).into_iter().filter(|(_, _, state)| state == LISTEN).map(|(own, _, _)| own).collect()
}

/// Remote ports of a namespace's established connections.
fn established_to(netns: &FilePath) -> Vec<u16> {
    const ESTABLISHED: &str = "01";
    sockets(netns).into_iter().filter(|(_, _, state)| state == ESTABLISHED).map(|(_, remote, _)| remote).collect()
}

/// Own port, remote port and state of a namespace's TCP sockets.
fn sockets(netns: &FilePath) -> Vec<(u16, u16, String)> {
    let text = process::output(inside(netns, "cat").args(["/proc/net/tcp", "/proc/net/tcp6"])).unwrap_or_default();
    text.lines().filter_map(socket).collect()
}

fn socket(line: &str) -> Option<(u16, u16, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
    Some((port(fields.get(1)?)?, port(fields.get(2)?)?, (*fields.get(3)?).to_owned()))
}

/// The end of a log.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_sockets_is_understood() {
        let line = "   1: 0B01580A:9C4E 0D02580A:3AA0 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1";
        assert_eq!(socket(line), Some((40014, 15008, "01".into())));
        assert_eq!(socket("  sl  local_address rem_address   st tx_queue"), None);
    }

    #[test]
    fn further_addresses_are_counted_on() {
        assert_eq!(extra_address(256).to_string(), "10.89.1.1");
    }
}
