//! The ports of a pod at which kubelet asks: those that its spec names in probes and lifecycle hooks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;

use super::TargetPort;
use super::pod::Container;
use crate::addr::canonical;

/// A probe, of any purpose.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Probe {
    http_get: Option<Ask>,
    tcp_socket: Option<Ask>,
    grpc: Option<Call>,
}

/// What is done at the beginning and the end of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Lifecycle {
    post_start: Option<Hook>,
    pre_stop: Option<Hook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    http_get: Option<Ask>,
    tcp_socket: Option<Ask>,
}

/// A request, or a connection alone.
#[derive(Debug, Deserialize)]
struct Ask {
    port: TargetPort,
    #[serde(default)]
    host: String,
}

#[derive(Debug, Deserialize)]
struct Call {
    port: u16,
}

impl Ask {
    /// Whether it is the pod that is asked, and not another host in its name.
    fn is_of(&self, ips: &[IpAddr]) -> bool {
        self.host.is_empty() || self.host.parse().is_ok_and(|host| ips.contains(&canonical(host)))
    }
}

/// The ports at which kubelet asks a pod with these addresses.
pub(super) fn ports(containers: &[Container], init_containers: &[Container], ips: &[IpAddr]) -> Vec<u16> {
    // Kubelet probes no init container but those that go on beside the others.
    let sidecars = init_containers.iter().filter(|container| container.restart_policy == "Always");
    let asked = containers.iter().chain(sidecars).flat_map(|container| of_container(container, ips));
    asked.filter(|port| *port != 0).collect::<BTreeSet<u16>>().into_iter().collect()
}

fn of_container(container: &Container, ips: &[IpAddr]) -> impl Iterator<Item = u16> {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let probes = probes.into_iter().flatten();
    let hooks = container.lifecycle.iter().flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]).flatten();
    let asks = probes.clone().flat_map(|probe| [&probe.http_get, &probe.tcp_socket]);
    let asks = asks.chain(hooks.flat_map(|hook| [&hook.http_get, &hook.tcp_socket])).flatten();
    let named = asks.filter(|ask| ask.is_of(ips)).filter_map(|ask| number(&ask.port, container));
    named.chain(probes.filter_map(|probe| probe.grpc.as_ref()).map(|call| call.port))
}

/// A name is one of the container's own ports, or else a number in quotes.
fn number(port: &TargetPort, container: &Container) -> Option<u16> {
    match port {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => {
            let named = container.ports.iter().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(containers: &str, init_containers: &str) -> Vec<u16> {
        let read = |text: &str| serde_json::from_str::<Vec<Container>>(text).unwrap();
        ports(&read(containers), &read(init_containers), &["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
    }

    #[test]
    fn probes_of_every_kind_and_purpose_and_hooks() {
        let containers = r#"[
            {"livenessProbe": {"httpGet": {"port": 1, "path": "/"}, "periodSeconds": 10},
             "readinessProbe": {"tcpSocket": {"port": 2}}, "startupProbe": {"grpc": {"port": 3, "service": "s"}},
             "lifecycle": {"postStart": {"httpGet": {"port": 4}}, "preStop": {"tcpSocket": {"port": 5}}}},
            {"livenessProbe": {"exec": {"command": ["true"]}}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
            {"livenessProbe": {"tcpSocket": {"port": 2}}, "readinessProbe": null, "ports": [{"containerPort": 9}]}
        ]"#;
        assert_eq!(asked(containers, "[]"), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn names_are_of_the_own_container_and_numbers_may_be_quoted() {
        let containers = r#"[
            {"ports": [{"name": "web", "containerPort": 80}, {"name": "81", "containerPort": 8081}],
             "livenessProbe": {"httpGet": {"port": "web"}}, "readinessProbe": {"httpGet": {"port": "81"}},
             "startupProbe": {"httpGet": {"port": "82"}}},
            {"livenessProbe": {"httpGet": {"port": "web"}}, "readinessProbe": {"tcpSocket": {"port": 0}}}
        ]"#;
        assert_eq!(asked(containers, "[]"), [80, 82, 8081]);
    }

    #[test]
    fn of_init_containers_only_those_that_go_on() {
        let init = r#"[
            {"readinessProbe": {"tcpSocket": {"port": 1}}},
            {"restartPolicy": "Never", "readinessProbe": {"tcpSocket": {"port": 2}}},
            {"restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": 3}}}
        ]"#;
        assert_eq!(asked("[]", init), [3]);
    }

    #[test]
    fn what_asks_another_host_is_no_port_of_the_pod() {
        let containers = r#"[
            {"livenessProbe": {"httpGet": {"host": "10.0.0.2", "port": 1}},
             "readinessProbe": {"tcpSocket": {"host": "example.com", "port": 2}},
             "startupProbe": {"httpGet": {"host": "fd00:0::1", "port": 3}},
             "lifecycle": {"preStop": {"httpGet": {"host": "", "port": 4}}}}
        ]"#;
        assert_eq!(asked(containers, "[]"), [3, 4]);
    }
}
