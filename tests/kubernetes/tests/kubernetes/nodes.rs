//! Nodes come, go, fall silent and come back.

use crate::cluster::{Cluster, eventually, name_of};
use crate::objects::{Namespace, Pod, host};

fn is_ready(cluster: &Cluster, node: &str) -> bool {
    let object = cluster.get(&["node", node]);
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub(crate) fn are_ready_with_addresses_of_both_families(cluster: &Cluster) {
    let list = cluster.get(&["nodes"]);
    let nodes = list["items"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        let name = name_of(node).unwrap();
        assert!(is_ready(cluster, name), "{name}");
        let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap();
        assert!(version.starts_with("v1.36."), "{version}");
        let addresses = node["status"]["addresses"].as_array().unwrap();
        let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
        assert_eq!(internal.filter_map(|address| address["address"].as_str()).count(), 2, "{name}");
    }
}

pub(crate) fn a_rebooted_node_runs_its_pods_again(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "reboot");
    namespace.run(&[Pod::web("here").on("node1"), Pod::web("there").on("node2"), Pod::idle("client").on("node1")]);
    let boot = |node: &str| cluster.get(&["node", node])["status"]["nodeInfo"]["bootID"].clone();
    let restarts = |pod: &str| namespace.get(&["pod", pod])["status"]["containerStatuses"][0]["restartCount"].clone();
    let before = [boot("node1"), boot("node2")];
    cluster.run(&["node", "node2", "sh", "-c", "echo kept > /var/lib/kept; echo lost > /run/lost"]);
    cluster.run(&["node-reboot", "node2"]);
    assert_eq!(boot("node1"), before[0]);
    assert_ne!(boot("node2"), before[1]);
    let files = cluster.run(&["node", "node2", "sh", "-c", "cat /var/lib/kept; ls /run/lost 2>&1 || true"]);
    assert!(files.starts_with("kept\n") && files.contains("No such file"), "{files}");
    eventually("the pod has been started again", || {
        if restarts("there") == 1 { Ok(()) } else { Err(format!("{} restarts", restarts("there"))) }
    });
    namespace.ready("there");
    for address in namespace.addresses("there") {
        assert_eq!(namespace.fetch("client", &format!("http://{}:8080/", host(&address))), "there");
    }
    assert_eq!(restarts("here"), 0);
}

pub(crate) fn a_node_that_is_cut_off_is_missed_and_comes_back(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "cut");
    namespace.run(&[Pod::web("there").on("node2"), Pod::idle("client").on("node1")]);
    let [address, _] = namespace.addresses("there");
    let url = format!("http://{address}:8080/");
    assert_eq!(namespace.fetch("client", &url), "there");
    cluster.run(&["node-cut", "node2"]);
    let cut = cluster.kubectl(&["-n", "cut", "exec", "client", "--", "timeout", "2", "wget", "-qO-", &url]).output();
    let missed = || if is_ready(cluster, "node2") { Err("still ready".into()) } else { Ok(()) };
    eventually("the control plane misses the node", missed);
    cluster.run(&["node-heal", "node2"]);
    eventually("it is back", || if is_ready(cluster, "node2") { Ok(()) } else { Err("not ready".into()) });
    assert!(!cut.unwrap().status.success(), "the pod answered over a cable that was cut");
    assert_eq!(namespace.fetch("client", &url), "there");
}

pub(crate) fn pods_go_on_without_the_control_plane(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "alone");
    namespace.run(&[Pod::web("there").on("node2")]);
    let [address, _] = namespace.addresses("there");
    cluster.run(&["power-off", "control-plane"]);
    assert!(!cluster.kubectl(&["get", "--raw", "/readyz"]).output().unwrap().status.success());
    let fetched = cluster.run(&["node", "node1", "busybox", "wget", "-qO-", &format!("http://{address}:8080/")]);
    cluster.run(&["power-on"]);
    assert_eq!(fetched.trim(), "there");
    let object = namespace.get(&["pod", "there"]);
    assert_eq!(object["status"]["containerStatuses"][0]["restartCount"], 0);
}

pub(crate) fn one_more_node_joins(cluster: &Cluster) {
    cluster.run(&["image", "redis"]);
    let archive = cluster.archive("redis");
    cluster.run(&["image", &format!("example.org/known:1={}", archive.display())]);
    let node = cluster.run(&["node-add"]);
    let node = node.trim();
    assert!(is_ready(cluster, node));
    let namespace = Namespace::new(cluster, "joins");
    let given = Pod::new("given", "example.org/known:1").on(node);
    namespace.run(&[Pod::web("new").on(node), Pod::web("old").on("node1"), given]);
    for (from, to) in [("new", "old"), ("old", "new")] {
        for address in namespace.addresses(to) {
            assert_eq!(namespace.fetch(from, &format!("http://{}:8080/", host(&address))), to);
        }
    }
}
