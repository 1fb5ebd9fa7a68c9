//! Programs that people use, unchanged, across the two.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use warren_test_support::client::{IO_LIMIT, pattern};
use warren_test_support::{NetNs, command, eventually};

use crate::mesh::{Mesh, Way};
use crate::peer::Peer;

const FILE: &str = "file.bin";

/// Python's own HTTP server over a directory.
struct Http {
    child: Child,
}

impl Http {
    #[track_caller]
    fn start(ns: &NetNs, directory: &Path, at: SocketAddr) -> Self {
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", &at.ip().to_string(), &at.port().to_string()]);
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = ns.spawn(&mut command);
        eventually("python3 -m http.server listens", IO_LIMIT, || {
            ns.run(|| std::net::TcpStream::connect_timeout(&at, Duration::from_millis(200))).ok()
        });
        Self { child }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn curl_fetches_from_a_http_server(peer: &Peer) {
    let vip: IpAddr = "10.96.0.10".parse().expect("address");
    let mesh = Mesh::with(peer, &[], |draft| draft.lab.manifest.set_service("shop", "theirs", &[vip], &[(80, 8080)]));
    let mut file = vec![0; 3_000_000];
    pattern(0, &mut file);
    std::fs::write(mesh.lab.dir().join(FILE), &file).expect("lab directory");
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _servers = [server.at(8080), server.at6(8080)].map(|at| Http::start(&server.ns, mesh.lab.dir(), at));
        let mut urls = vec![server.at(8080), server.at6(8080)];
        if way == Way::ToZtunnel {
            urls.push(SocketAddr::new(vip, 80));
        }
        for url in urls {
            for _ in 0..3 {
                let got = fetch(&client.ns, &format!("http://{url}/{FILE}"));
                assert!(got == file, "{way:?} {url}: {} bytes, not the file", got.len());
            }
        }
    }
}

#[track_caller]
fn fetch(ns: &NetNs, url: &str) -> Vec<u8> {
    let output = ns.output(Command::new("curl").args(["-sS", "--fail", "--max-time", "10", url]));
    assert!(output.status.success(), "curl {url}: {}", command::text(&output));
    output.stdout
}
