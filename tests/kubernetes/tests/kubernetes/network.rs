//! Pods, Services and names are reached as on any cluster.

use crate::cluster::Cluster;
use crate::objects::{Namespace, Pod, host};

/// A web server and a client on each of two nodes.
fn pods(cluster: &Cluster) -> Vec<Pod> {
    let nodes = cluster.nodes();
    let on = |node: &String| [Pod::web(&format!("web-{node}")).on(node), Pod::idle(&format!("client-{node}")).on(node)];
    nodes.iter().take(2).flat_map(on).collect()
}

pub(crate) fn pods_of_two_nodes_reach_each_other_over_both_families(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "reach");
    namespace.run(&pods(cluster));
    for (from, to) in [("client-node1", "web-node2"), ("client-node2", "web-node1"), ("client-node1", "web-node1")] {
        for address in namespace.addresses(to) {
            assert_eq!(namespace.fetch(from, &format!("http://{}:8080/", host(&address))), to);
        }
    }
}

pub(crate) fn a_service_is_reached_by_its_addresses_from_every_node(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "services");
    namespace.run(&pods(cluster));
    for address in namespace.service("web-node2", 80) {
        for client in ["client-node1", "client-node2"] {
            assert_eq!(namespace.fetch(client, &format!("http://{}/", host(&address))), "web-node2");
        }
    }
}

pub(crate) fn names_of_services_and_pods_resolve(cluster: &Cluster) {
    let namespace = Namespace::new(cluster, "names");
    namespace.run(&pods(cluster));
    let addresses = namespace.service("web-node1", 80);
    for name in ["web-node1", "web-node1.names", "web-node1.names.svc.cluster.local"] {
        assert_eq!(namespace.fetch("client-node2", &format!("http://{name}/")), "web-node1");
    }
    let answer = namespace.exec("client-node1", &["nslookup", "web-node1.names.svc.cluster.local"]);
    for address in addresses {
        assert!(answer.contains(&address), "{address} is not in {answer}");
    }
}
