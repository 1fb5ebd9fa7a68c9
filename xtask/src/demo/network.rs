//! The lab's nodes and pods as network namespaces.

use anyhow::Result;

use super::lab::{NODES, Node, PODS, Pod};
use crate::netlab::network::{self, NodeNet, PodNet};

/// Builds all namespaces and links.
pub(super) fn build() -> Result<()> {
    network::build(&NODES.map(Node::net), &PODS.map(Pod::net))
}

impl Node {
    fn net(self) -> NodeNet {
        NodeNet {
            netns: self.name.to_owned(),
            addresses: self.addresses().to_vec(),
            pod_networks: self.pod_networks().to_vec(),
        }
    }
}

impl Pod {
    fn net(self) -> PodNet {
        PodNet {
            netns: self.netns_name(),
            node: self.node.name.to_owned(),
            host_interface: self.host_interface(),
            addresses: self.addresses().to_vec(),
        }
    }
}
