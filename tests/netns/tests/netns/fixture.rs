//! Worlds that many tests share the shape of.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use warren_test_support::{Agent, Lab, NetNs, Pod, Server};

/// Two nodes with an agent each; `client` on the first, `server` on the second. Fields drop in this order.
pub(crate) struct Pair {
    pub(crate) near: Agent,
    pub(crate) far: Agent,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) lab: Lab,
}

/// One node with an agent; `client` and `server` are both on it.
pub(crate) struct Single {
    pub(crate) agent: Agent,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) lab: Lab,
}

/// A wildcard of both families.
pub(crate) fn any(port: u16) -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))
}

impl Pair {
    /// Starts it with the agents' defaults.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with(&[], |_| {})
    }

    /// Starts it with flags for both agents, after `prepare` has added to the manifest.
    #[track_caller]
    pub(crate) fn with(flags: &[(&str, &str)], prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut lab = Lab::new(2);
        let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
        prepare(&mut lab);
        lab.manifest.write();
        let [near, far] = [0, 1].map(|node| start_agent(&lab, node, flags));
        Self { near, far, client, server, lab }
    }

    /// An echo server in the `server` pod, on both families.
    #[track_caller]
    pub(crate) fn echo(&self, port: u16) -> Server {
        Server::echo(&self.server.ns, any(port))
    }

    /// Writes the manifest and waits until both agents serve it.
    #[track_caller]
    pub(crate) fn apply(&self) {
        self.lab.apply(&[&self.near, &self.far]);
    }
}

impl Single {
    /// Starts it with flags, after `prepare` has added to the manifest.
    #[track_caller]
    pub(crate) fn with(flags: &[(&str, &str)], prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut lab = Lab::new(1);
        let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
        prepare(&mut lab);
        lab.manifest.write();
        let agent = start_agent(&lab, 0, flags);
        Self { agent, client, server, lab }
    }

    /// Writes the manifest and waits until the agent serves it.
    #[track_caller]
    pub(crate) fn apply(&self) {
        self.lab.apply(&[&self.agent]);
    }
}

#[track_caller]
pub(crate) fn start_agent(lab: &Lab, node: usize, flags: &[(&str, &str)]) -> Agent {
    flags.iter().fold(lab.agent(node), |builder, (flag, value)| builder.flag(flag, value)).start()
}

/// Who runs a probe.
#[derive(Debug, Clone, Copy)]
pub(crate) enum User {
    /// uid 65534, no capability.
    Nobody,
    /// uid 65534 with CAP_NET_RAW alone.
    NobodyWithNetRaw,
    /// root without CAP_NET_ADMIN, as in an ordinary container, but with CAP_NET_RAW.
    RootWithNetRaw,
}

impl User {
    pub(crate) const ALL: [Self; 3] = [Self::Nobody, Self::NobodyWithNetRaw, Self::RootWithNetRaw];

    fn setpriv(self) -> Command {
        let mut command = Command::new("setpriv");
        match self {
            Self::Nobody => command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]),
            Self::NobodyWithNetRaw => command.args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=+net_raw",
                "--ambient-caps=+net_raw",
            ]),
            Self::RootWithNetRaw => command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]),
        };
        command
    }

    /// Runs `warren-probe` in a pod; gives what it printed.
    #[track_caller]
    pub(crate) fn probe(self, probe: &Probe, ns: &NetNs, to: SocketAddr, say: &str, options: &[&str]) -> String {
        let mut command = self.setpriv();
        command.arg(&probe.0).arg(to.to_string()).arg(say).args(options);
        self.finish(ns, command)
    }

    /// Runs another program in a pod as this user; gives what it printed.
    #[track_caller]
    pub(crate) fn program(self, ns: &NetNs, program: &str, arguments: &[&str]) -> String {
        let mut command = self.setpriv();
        command.arg(program).args(arguments);
        self.finish(ns, command)
    }

    #[track_caller]
    fn finish(self, ns: &NetNs, mut command: Command) -> String {
        let output = ns.output(&mut command);
        let text = warren_test_support::command::text(&output);
        assert!(!text.contains("usage: warren-probe") && !text.contains("setpriv:"), "{self:?}: {text}");
        text
    }
}

/// A copy of the probe that every user may run, wherever the build directory is.
pub(crate) struct Probe(PathBuf);

impl Probe {
    pub(crate) fn new(lab: &Lab) -> Self {
        let path = std::env::temp_dir().join(format!("{}-probe", lab.id()));
        // By another process: a descriptor of ours, open for writing, would be inherited by whatever another test
        // starts meanwhile, and the copy could not be executed.
        let target = path.to_str().expect("UTF-8 path");
        warren_test_support::command::run("install", &["-m", "0755", env!("CARGO_BIN_EXE_warren-probe"), target]);
        Self(path)
    }

    /// Where the copy is.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
