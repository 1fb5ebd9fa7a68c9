//! Who is in the lab, where, and who may call whom: the regulatory workflow
//! case → decision → sanction → notification, with its evidence store.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::netlab::netns_path;

/// The world both agents are given; the lab's names and addresses stand in it.
pub(super) const WORLD: &str = include_str!("mesh.yaml");
pub(super) const TRUST_DOMAIN: &str = "reg-prod.example.com";
/// Everything the demo makes carries this prefix.
pub(super) const PREFIX: &str = "wdemo-";
/// The port that the servers' pods listen on, and redis's own.
pub(super) const HTTP_PORT: u16 = 8080;
pub(super) const REDIS_PORT: u16 = 6379;
/// The port of the HTTP services.
pub(super) const HTTP_SERVICE_PORT: u16 = 80;

/// A simulated node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// Its name, which is its namespace's as well.
    pub(super) name: &'static str,
    /// Third group of its addresses on the link, and of its pods' networks.
    pub(super) number: u8,
}

pub(super) const NODES: [Node; 2] = [Node { name: "wdemo-a", number: 1 }, Node { name: "wdemo-b", number: 2 }];

impl Node {
    /// Its addresses on the link.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 77, 0, self.number).into(), v6(0, u16::from(self.number))]
    }

    /// The networks its pods' addresses come from.
    pub(super) fn pod_networks(self) -> [String; 2] {
        [format!("10.77.{}.0/24", self.number), format!("fd77:0:0:{}::/64", self.number)]
    }

    /// The path of its network namespace.
    pub(super) fn netns(self) -> PathBuf {
        netns_path(self.name)
    }
}

/// What a pod runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Nginx,
    Redis,
    /// It only calls.
    Nothing,
}

/// A pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: &'static str,
    pub(super) namespace: &'static str,
    pub(super) node: Node,
    pub(super) server: Server,
    /// Last group of its addresses and of its service's.
    pub(super) number: u8,
    pub(super) enrolled: bool,
}

const fn pod(name: &'static str, namespace: &'static str, node: Node, server: Server, number: u8) -> Pod {
    Pod { name, namespace, node, server, number, enrolled: true }
}

pub(super) const PODS: [Pod; 6] = [
    pod("case-api", "case", NODES[0], Server::Nginx, 11),
    pod("decision-engine", "decision", NODES[1], Server::Nginx, 12),
    pod("evidence-store", "evidence", NODES[1], Server::Redis, 13),
    pod("sanction-service", "sanction", NODES[0], Server::Nginx, 14),
    pod("notification-service", "notification", NODES[0], Server::Nginx, 15),
    Pod { enrolled: false, ..pod("outsider", "outside", NODES[0], Server::Nothing, 16) },
];

/// The lab's allowed calls; all others are to be denied.
const ALLOWED: [(&str, &str); 4] = [
    ("case-api", "decision-engine"),
    ("case-api", "evidence-store"),
    ("decision-engine", "sanction-service"),
    ("sanction-service", "notification-service"),
];

impl Pod {
    /// The pod of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        PODS.into_iter().find(|pod| pod.name == name)
    }

    /// The name of its network namespace.
    pub(super) fn netns_name(self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The path of its network namespace.
    pub(super) fn netns(self) -> PathBuf {
        netns_path(&self.netns_name())
    }

    /// The node's end of its link.
    pub(super) fn host_interface(self) -> String {
        format!("pod{}", self.number)
    }

    /// Its own addresses.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        let network = self.node.number;
        [Ipv4Addr::new(10, 77, network, self.number).into(), v6(u16::from(network), u16::from(self.number))]
    }

    /// The addresses of the service in front of it.
    pub(super) fn service_addresses(self) -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 77, 100, self.number).into(), v6(100, u16::from(self.number))]
    }

    /// Its identity, if it is in the mesh.
    pub(super) fn identity(self) -> Option<String> {
        let Self { namespace, name, .. } = self;
        self.enrolled.then(|| format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}"))
    }

    /// What it sends and answers, to be looked for on the wire.
    pub(super) fn canary(self) -> String {
        format!("CANARY-{}-7f3a91", self.name)
    }
}

/// Whether the lab lets one call the other.
pub(super) fn allowed(from: Pod, to: Pod) -> bool {
    ALLOWED.contains(&(from.name, to.name))
}

/// Every pair of a caller and a server other than itself.
pub(super) fn pairs() -> impl Iterator<Item = (Pod, Pod)> {
    PODS.into_iter().flat_map(|from| {
        PODS.into_iter()
            .filter(move |to| to.server != Server::Nothing && to.name != from.name)
            .map(move |to| (from, to))
    })
}

// The groups are written in hexadecimal and read as decimal digits, so that a
// pod's two addresses look alike: 10.77.1.11 and fd77:0:0:1::11.
fn v6(network: u16, host: u16) -> IpAddr {
    Ipv6Addr::new(0xfd77, 0, 0, as_digits(network), 0, 0, 0, as_digits(host)).into()
}

fn as_digits(number: u16) -> u16 {
    let (hundreds, tens, ones) = (number / 100, number / 10 % 10, number % 10);
    hundreds << 8 | tens << 4 | ones
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_look_alike() {
        let case = Pod::named("case-api").unwrap();
        assert_eq!(case.addresses().map(|ip| ip.to_string()), ["10.77.1.11", "fd77:0:0:1::11"]);
        assert_eq!(case.service_addresses().map(|ip| ip.to_string()), ["10.77.100.11", "fd77:0:0:100::11"]);
    }

    #[test]
    fn the_world_names_every_pod_as_the_lab_has_it() {
        for pod in PODS {
            let document = WORLD
                .split("\n---\n")
                .find(|text| text.contains("kind: Pod") && text.contains(&format!("name: {}\n", pod.name)))
                .unwrap_or_else(|| panic!("no Pod {}", pod.name));
            for word in [pod.namespace, pod.node.name, &pod.netns().display().to_string()] {
                assert!(document.contains(word), "{}: {word}", pod.name);
            }
            for ip in pod.addresses() {
                assert!(document.contains(&format!("ip: \"{ip}\"")), "{}: {ip}", pod.name);
            }
            if pod.server != Server::Nothing {
                for ip in pod.service_addresses() {
                    assert!(WORLD.contains(&format!("\"{ip}\"")), "service of {}: {ip}", pod.name);
                }
            }
        }
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        assert!(PODS.iter().all(|pod| pod.host_interface().len() < 16));
    }

    #[test]
    fn the_lab_has_four_calls_and_denies_the_rest() {
        assert_eq!(pairs().filter(|(from, to)| allowed(*from, *to)).count(), 4);
        assert_eq!(pairs().count(), 25);
    }
}
