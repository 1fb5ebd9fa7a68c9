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

/// Python's own HTTP server on both families. (Run as `-m http.server` it would ask DNS for its own name.)
const SERVER: &str = "
import http.server, socket, socketserver, sys
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
Server(('::', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
";

/// A server of a directory's files.
struct Http {
    child: Child,
}

impl Http {
    #[track_caller]
    fn start(ns: &NetNs, directory: &Path, at: SocketAddr) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", SERVER, &at.port().to_string()]);
        command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = ns.spawn(&mut command);
        eventually("the HTTP server listens", IO_LIMIT, || {
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
    // Each side knows a service whose one endpoint is the other's pod.
    let (vip, their_vip) = (IpAddr::from([10, 96, 0, 10]), IpAddr::from([10, 96, 0, 11]));
    let mesh = Mesh::with(peer, &[], |draft| {
        draft.lab.manifest.set_service("shop", "theirs", &[vip], &[(80, 8080)]);
        draft.known.pods[0].service = Some((their_vip, 80, 8080));
    });
    let mut file = vec![0; 3_000_000];
    pattern(0, &mut file);
    std::fs::write(mesh.lab.dir().join(FILE), &file).expect("lab directory");
    for way in Way::BOTH {
        let (client, server) = mesh.ends(way);
        let _server = Http::start(&server.ns, mesh.lab.dir(), server.at(8080));
        let vip = if way == Way::ToZtunnel { vip } else { their_vip };
        for url in [server.at(8080), server.at6(8080), SocketAddr::new(vip, 80)] {
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
