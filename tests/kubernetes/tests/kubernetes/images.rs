//! Images come from files.

use std::fs;
use std::path::PathBuf;

use crate::cluster::{Cluster, succeeded, xtask};
use crate::objects::{Namespace, Pod, host};

pub(crate) fn an_archive_runs_under_the_name_it_was_given(cluster: &Cluster) {
    let loaded = cluster.run(&["image", "curl"]);
    assert_eq!(loaded.trim(), "warren.local/curl:1");
    let archive = cluster.archive("curl");
    cluster.run(&["image", &format!("example.org/another/name:7={}", archive.display())]);
    let namespace = Namespace::new(cluster, "archive");
    let version = |name: &str| Pod::new(name, "example.org/another/name:7").command(&["/usr/bin/curl", "--version"]);
    for node in ["node1", "node2"] {
        let name = format!("on-{node}");
        namespace.complete(&version(&name).on(node));
        assert!(namespace.kube(&["logs", &name]).starts_with("curl "));
    }
}

pub(crate) fn servers_made_of_this_machines_programs_serve(cluster: &Cluster) {
    cluster.run(&["image", "nginx", "redis", "python"]);
    let namespace = Namespace::new(cluster, "servers");
    let python = Pod::new("python", "warren.local/python:1").command(&["/usr/bin/python3", "-c", PYTHON]);
    let redis = Pod::new("redis", "warren.local/redis:1").on("node1");
    let nginx = Pod::new("nginx", "warren.local/nginx:1").on("node2");
    namespace.run(&[nginx, redis, python.on("node1"), Pod::idle("client").on("node1")]);
    for address in namespace.addresses("nginx") {
        assert_eq!(namespace.fetch("client", &format!("http://{}:8080/", host(&address))), "nginx");
    }
    let [address, _] = namespace.addresses("redis");
    assert_eq!(namespace.exec("redis", &["redis-cli", "-h", &address, "ping"]).trim(), "PONG");
    let [_, address] = namespace.addresses("python");
    assert_eq!(namespace.fetch("client", &format!("http://[{address}]:8080/")), "python");
}

pub(crate) fn warrens_own_is_one_static_program_and_the_same_each_time(cluster: &Cluster) {
    let folder = std::env::temp_dir().join(format!("warren-image-{}", std::process::id()));
    let archives = ["a", "b"].map(|name| {
        let made = succeeded(xtask(["image", "--name", "warren.local/own:1", "--out"]).arg(folder.join(name)));
        PathBuf::from(made.trim())
    });
    let bytes = archives.each_ref().map(|archive| fs::read(archive).unwrap());
    assert!(bytes[0] == bytes[1], "two archives of one tree differ");
    cluster.run(&["image", &format!("warren.local/own:1={}", archives[0].display())]);
    fs::remove_dir_all(&folder).unwrap();
    let namespace = Namespace::new(cluster, "own");
    let mut version = Pod::new("version", "warren.local/own:1").arguments(&["--version"]);
    for node in ["node1", "node2"] {
        version = version.named(&format!("on-{node}")).on(node);
        namespace.complete(&version);
        assert!(namespace.kube(&["logs", &format!("on-{node}")]).starts_with("warren "));
    }
}

/// A server that also shows that TLS, name look-up and threads are there.
const PYTHON: &str = "
import http.server, socket, ssl, threading, urllib.request
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'python')
socket.getaddrinfo('kubernetes.default.svc.cluster.local', 443); ssl.create_default_context()
Server(('::', 8080), Handler).serve_forever()
";
