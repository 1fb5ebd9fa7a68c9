//! Kubelet's probes: what a process of the node, outside of all pods, asks a pod at the ports that its spec names.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use warren_test_support::client::{assert_echo, assert_refused, connect, exchange, ping_pong, wait_cut};
use warren_test_support::lab::BRIDGE;
use warren_test_support::manifest::PodDocument;
use warren_test_support::pod_process::PodProcess;
use warren_test_support::spy::{Mac, Segment, mac_of};
use warren_test_support::wait::never;
use warren_test_support::{Agent, Capture, Lab, NetNs, Pod, Server, Spy, command, eventually};

use crate::dial;
use crate::fixture::{Probe, any, start_agent};

const SOON: Duration = Duration::from_secs(10);

/// Every kind of probe and hook, at a port of its own: 8080 to 8085.
const ASKED: &str = "containers: [{name: app, image: app, ports: [{name: web, containerPort: 8080}], \
    livenessProbe: {httpGet: {path: /, port: web}}, readinessProbe: {tcpSocket: {port: 8081}}, \
    startupProbe: {grpc: {port: 8082}}, \
    lifecycle: {postStart: {httpGet: {path: /, port: 8083}}, preStop: {tcpSocket: {port: 8084}}}}], \
    initContainers: [{name: sidecar, image: app, restartPolicy: Always, readinessProbe: {tcpSocket: {port: 8085}}}]";

/// A port that no probe asks at.
const OTHER: u16 = 9090;

/// One node with an agent, and a pod that kubelet probes and that accepts nothing in clear. Fields drop in this order.
struct Probed {
    agent: Agent,
    server: Pod,
    process: PodProcess,
    lab: Lab,
}

impl Probed {
    #[track_caller]
    fn start() -> Self {
        Self::with(Lab::bridged(), &[], |_| {})
    }

    #[track_caller]
    fn with(mut lab: Lab, flags: &[(&str, &str)], prepare: impl FnOnce(&mut Lab)) -> Self {
        let server = probed_pod(&mut lab);
        lab.manifest.set_mtls(None, "STRICT");
        prepare(&mut lab);
        lab.manifest.write();
        let process = PodProcess::start(lab.id(), &server.document.uid, &server.ns);
        let agent = start_agent(&lab, 0, flags);
        Self { agent, server, process, lab }
    }

    /// Waits until the pod's link is watched.
    #[track_caller]
    fn watched(self) -> Self {
        self.wait_watched();
        self
    }

    #[track_caller]
    fn wait_watched(&self) {
        self.agent.wait_status("probes are let in", |status| {
            let pods = status["pods"].as_array().unwrap();
            pods.iter().any(|pod| pod["name"] == "server" && pod["probe_error"].is_null())
        });
    }

    fn node(&self) -> &NetNs {
        self.lab.node(0)
    }

    /// The address that the node probes the pod from.
    fn own_address(&self, v4: bool) -> IpAddr {
        if v4 { "10.10.255.254".parse().unwrap() } else { "fd00:10::fffe".parse().unwrap() }
    }

    fn at(&self, v4: bool, port: u16) -> SocketAddr {
        SocketAddr::new(if v4 { self.server.v4() } else { self.server.v6() }, port)
    }

    /// The hardware address that the node probes the pod from.
    #[track_caller]
    fn bridge_mac(&self) -> Mac {
        let shown = self.node().check("ip", &["link", "show", "dev", BRIDGE]);
        let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// How many connections of the host had this outcome.
    fn counted(&self, outcome: &str) -> f64 {
        self.agent.metric("warren_probe_connections_total", &[&format!("outcome=\"{outcome}\"")])
    }

    /// Waits until so many had it, and no more.
    #[track_caller]
    fn wait_counted(&self, outcome: &str, number: f64) {
        eventually(outcome, SOON, || (self.counted(outcome) >= number).then_some(()));
        assert_eq!(self.counted(outcome), number, "{outcome}");
    }

    /// Waits for the audit event of a refusal that gives this reason.
    #[track_caller]
    fn wait_denied(&self, reason: &str) -> Value {
        self.agent.wait_audit(reason, |event| {
            event["decision"] == "DENY" && event["reason"].as_str().is_some_and(|said| said.contains(reason))
        })
    }

    /// What a process of the pod, or of another one like it, finds at an address when it uses the node's network.
    #[track_caller]
    fn as_pod_on_the_host(&self, probe: &Probe, to: SocketAddr) -> String {
        let output = self.process.output(self.node(), &probe.command(to, "CANARY-pod"));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn probed_pod(lab: &mut Lab) -> Pod {
    let mut server = lab.pod(0, "server");
    server.document.containers = ASKED.replace("], initContainers", "]\n  initContainers");
    lab.manifest.set_pod(&server.document);
    server
}

#[test]
fn probes_of_every_kind_reach_a_strict_pod_with_their_own_address() {
    let world = Probed::start().watched();
    let echoes = [8080, 8081, 8082, 8083, 8084, 8085].map(|port| Server::echo(&world.server.ns, any(port)));
    assert_eq!(world.agent.pod("server")["probe_ports"].to_string(), "[8080,8081,8082,8083,8084,8085]");
    for v4 in [true, false] {
        for echo in &echoes {
            let to = world.at(v4, echo.address().port());
            assert_echo(world.node(), to, b"are you well?");
            assert_eq!(echo.peer_ips().last(), Some(&world.own_address(v4)), "the application sees who asks");
        }
    }
    world.wait_counted("passed", 12.0);
    let event = world.agent.wait_audit("a probe", |event| event["route"] == "probe");
    assert_eq!((&event["decision"], &event["policy"]), (&"ALLOW".into(), &"probe".into()), "{event:#}");
    assert_eq!((&event["mtls"], &event["direction"]), (&false.into(), &"inbound".into()));
    assert_eq!(event["bytes_sent"], 13, "{event:#}");
    assert!(event["source_identity"].is_null());
    assert_eq!(world.agent.metric("warren_unprobed_pods", &[]), 0.0);

    let mut open = connect(world.node(), world.at(true, 8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"well").unwrap(), b"well");
    world.agent.wait_status("an open one is listed", |status| {
        let source = open.local_addr().unwrap().to_string();
        let listed = status["connections"].as_array().unwrap();
        listed.iter().any(|one| one["transport"] == "probe" && one["source"] == source)
    });
}

#[test]
fn probes_pass_in_whichever_way_they_are_dialled_and_over_routed_links() {
    let world = Probed::with(Lab::new(1), &[("--same-node", "tunnel")], |_| {}).watched();
    let echo = Server::echo(&world.server.ns, any(8080));
    let to = world.server.at(8080);
    for attempt in [dial::nonblocking, dial::deferred] {
        let mut stream = world.node().run(|| attempt(to)).unwrap();
        assert_eq!(ping_pong(&mut stream, b"well").unwrap(), b"well");
    }
    assert_eq!(echo.peer_ips()[0], "169.254.1.1".parse::<IpAddr>().unwrap());
    assert_echo(world.node(), world.server.at6(8080), b"over IPv6");
    // What a probe of TCP does: it connects, and leaves.
    for _ in 0..50 {
        drop(connect(world.node(), to).unwrap());
    }
    world.wait_counted("passed", 53.0);
    let map = format!("/sys/fs/bpf/warren/{}/v3/maps/HOST_CONNECTIONS", world.agent.node());
    eventually("the kernel has forgotten them", SOON, || {
        command::run("bpftool", &["-j", "map", "dump", "pinned", &map]).trim().eq("[]").then_some(())
    });
}

#[test]
fn probes_pass_where_policies_deny_plaintext_and_nothing_else_of_the_host_does() {
    let world = Probed::with(Lab::bridged(), &[], |lab| {
        lab.manifest.set_mtls(None, "PERMISSIVE");
        lab.manifest.set_policy("mesh", "server", "ALLOW", "[{from: [{source: {namespaces: [prod]}}]}]");
    })
    .watched();
    let (_asked, other) = (Server::echo(&world.server.ns, any(8080)), Server::echo(&world.server.ns, any(OTHER)));
    for v4 in [true, false] {
        assert_echo(world.node(), world.at(v4, 8080), b"well?");
        assert_refused(world.node(), world.at(v4, OTHER), b"CANARY-other");
    }
    world.wait_counted("port_not_declared", 2.0);
    let denied = world.agent.wait_audit("the denial", |event| event["decision"] == "DENY");
    assert_eq!(denied["policy"], "prod/mesh", "the agent decides on them as on any plaintext: {denied:#}");
    assert!(other.peers().is_empty());
}

#[test]
fn a_port_that_the_spec_does_not_name_is_refused() {
    let mut world = Probed::start().watched();
    let (echo, other) = (Server::echo(&world.server.ns, any(8081)), Server::echo(&world.server.ns, any(OTHER)));
    for v4 in [true, false] {
        assert_refused(world.node(), world.at(v4, OTHER), b"CANARY-other");
    }
    world.wait_denied("names the port in no probe");
    world.wait_counted("port_not_declared", 2.0);
    assert!(other.peers().is_empty());

    // The spec changes: so does what is let in, and what is open ends.
    let mut open = connect(world.node(), world.at(true, 8081)).unwrap();
    assert_eq!(ping_pong(&mut open, b"well").unwrap(), b"well");
    let probe = format!("containers: [{{name: app, image: app, livenessProbe: {{tcpSocket: {{port: {OTHER}}}}}}}]");
    world.lab.manifest.set_pod(&PodDocument { containers: probe, ..world.server.document.clone() });
    world.lab.apply(&[&world.agent]);
    wait_cut(&mut open, SOON);
    assert_echo(world.node(), world.at(true, OTHER), b"named now");
    assert_refused(world.node(), world.at(true, 8081), b"CANARY-other");
    assert_eq!(echo.peers().len(), 1);
}

#[test]
fn pods_on_the_nodes_network_are_refused_whatever_the_port() {
    let world = Probed::start().watched();
    let echo = Server::echo(&world.server.ns, any(8080));
    let probe = Probe::new(&world.lab);
    for v4 in [true, false] {
        let said = world.as_pod_on_the_host(&probe, world.at(v4, 8080));
        assert!(said.starts_with("failed connect"), "{said}");
    }
    world.wait_denied("a process in a pod's cgroup");
    world.wait_counted("pod_process", 2.0);
    assert!(echo.peers().is_empty());
    // The control: the same program outside of pods.
    let said = world.node().output(&mut probe.command(world.at(true, 8080), "well?")).stdout;
    assert_eq!(String::from_utf8(said).unwrap().trim(), "answered well?");
}

#[test]
fn other_nodes_pods_and_what_the_host_forwards_are_refused() {
    let mut stranger = None;
    let world = Probed::with(Lab::new(2), &[], |lab| stranger = Some(lab.stranger(0, "stranger"))).watched();
    let (stranger, other_node) = (stranger.unwrap(), world.lab.node(1));
    // The other node's agent knows no such pod, and would not speak for this node if it did.
    let far = start_agent(&world.lab, 1, &[]);
    let echo = Server::echo(&world.server.ns, any(8080));
    assert_echo(world.node(), world.server.at(8080), b"the control");
    assert_refused(other_node, world.server.at(8080), b"CANARY-node");
    assert_refused(&stranger.ns, world.server.at(8080), b"CANARY-stranger");

    // A node port, with the node's own address for its clients'.
    let link = &world.server.host_link;
    let rules = format!(
        "table ip nodeport {{\n chain pre {{ type nat hook prerouting priority dstnat;\n  \
         tcp dport 30080 dnat to {}\n }}\n chain post {{ type nat hook postrouting priority srcnat;\n  \
         oifname \"{link}\" ct status dnat masquerade\n }}\n}}\n",
        world.server.at(8080)
    );
    let file = world.lab.dir().join("nodeport.nft");
    std::fs::write(&file, rules).unwrap();
    world.node().check("nft", &["-f", file.to_str().unwrap()]);
    for (ns, node) in [(&stranger.ns, "169.254.1.1:30080"), (other_node, "172.31.0.1:30080")] {
        assert_refused(ns, node.parse().unwrap(), b"CANARY-forwarded");
    }
    assert_eq!(echo.peers().len(), 1);
    let forwarded = world.agent.wait_audit("the forwarded one", |event| {
        let from = event["source"]["address"].as_str().unwrap_or_default();
        event["decision"] == "DENY" && from.starts_with("169.254.1.1:")
    });
    assert!(!forwarded["reason"].as_str().unwrap().contains("probe"), "it is nobody's probe: {forwarded:#}");
    drop(far);
}

/// A bridged node with a spy on the bridge.
fn with_spy() -> (Probed, Pod) {
    let mut spy = None;
    let world = Probed::with(Lab::bridged(), &[], |lab| spy = Some(lab.stranger(0, "spy")));
    (world.watched(), spy.unwrap())
}

#[test]
fn a_syn_in_the_nodes_name_is_no_probe_even_while_the_node_probes() {
    let (world, spy) = with_spy();
    let echo = Server::echo(&world.server.ns, any(8080));
    let forger = Spy::new(&spy.ns);
    for v4 in [true, false] {
        let (node, to) = (world.own_address(v4), world.at(v4, 8080));
        let syn = |port| Segment {
            from: SocketAddr::new(node, port),
            to,
            sequence: 7,
            acknowledged: 0,
            flags: 0x02,
            payload: b"",
        };
        forger.forge(mac_of(&world.server.ns), &syn(4242));
        // The node's own SYN is led astray, so that its place is free.
        eventually("the lie is believed", SOON, || {
            forger.claim((node, world.bridge_mac()), to.ip());
            let told = world.node().check("ip", &["neigh", "show", &to.ip().to_string()]);
            told.contains(&hex(forger.mac())).then_some(())
        });
        let _ = forger.packets();
        let socket = world.node().run(|| {
            let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&to.into());
            socket
        });
        let from = socket.local_addr().unwrap().as_socket().unwrap();
        eventually("the node's SYN goes astray", SOON, || {
            forger.packets().iter().any(|packet| packet.is_syn() && packet.source == from).then_some(())
        });
        let before = world.agent.metric("warren_kernel_host_forged", &[]);
        forger.forge(mac_of(&world.server.ns), &syn(from.port()));
        eventually("the forgery is dropped", SOON, || {
            (world.agent.metric("warren_kernel_host_forged", &[]) > before).then_some(())
        });
    }
    never("a forged SYN was accepted", Duration::from_millis(300), || (!echo.peers().is_empty()).then_some(()));
    assert_eq!(world.counted("passed"), 0.0);
}

#[test]
fn a_segment_in_the_nodes_name_does_not_enter_a_probe() {
    let (world, spy) = with_spy();
    let forger = Spy::new(&spy.ns);
    let (tell, heard) = std::sync::mpsc::channel();
    let _server = Server::start(&world.server.ns, any(8080), move |mut stream: TcpStream| {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let _ = tell.send(buffer[..length].to_vec());
            let _ = stream.write_all(b"ok");
        }
    });
    for v4 in [true, false] {
        let to = world.at(v4, 8080);
        let capture = Capture::start(world.node());
        let mut stream = connect(world.node(), to).unwrap();
        let from = stream.local_addr().unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        assert_eq!(heard.recv_timeout(SOON).unwrap(), b"hello");
        std::thread::sleep(Duration::from_millis(100));
        let (sequence, acknowledged) = crate::samenode::next_segment(&capture.stop().0, from, to);
        let forged = Segment { from, to, sequence, acknowledged, flags: 0x18, payload: b"forged" };
        let before = world.agent.metric("warren_kernel_host_forged", &[]);
        forger.forge(mac_of(&world.server.ns), &forged);
        assert!(heard.recv_timeout(Duration::from_millis(500)).is_err(), "a forgery was believed");
        assert!(world.agent.metric("warren_kernel_host_forged", &[]) > before);
        stream.write_all(b"still").unwrap();
        assert_eq!(heard.recv_timeout(SOON).unwrap(), b"still");
    }
}

#[test]
fn probes_go_on_while_the_agent_is_away_and_so_do_refusals() {
    let mut world = Probed::with(Lab::bridged(), &[("--away-wait", "1s")], |_| {}).watched();
    let (echo, _other) = (Server::echo(&world.server.ns, any(8080)), Server::echo(&world.server.ns, any(OTHER)));
    let probe = Probe::new(&world.lab);
    let mut open = connect(world.node(), world.at(true, 8080)).unwrap();
    assert_eq!(ping_pong(&mut open, b"before").unwrap(), b"before");
    world.agent.kill9();
    std::thread::sleep(Duration::from_millis(1500));
    for v4 in [true, false] {
        assert_echo(world.node(), world.at(v4, 8080), b"well?");
        assert_refused(world.node(), world.at(v4, OTHER), b"CANARY-other");
        assert!(world.as_pod_on_the_host(&probe, world.at(v4, 8080)).starts_with("failed connect"));
    }
    assert_eq!(echo.peers().len(), 3);
    world.agent.start();
    world.wait_watched();
    assert_eq!(ping_pong(&mut open, b"after").unwrap(), b"after", "an open one is known by what it is");
    world.agent.wait_status("it is listed", |status| {
        status["connections"].as_array().unwrap().iter().any(|one| one["transport"] == "probe")
    });
    assert_echo(world.node(), world.at(true, 8080), b"well?");
}

#[test]
fn without_knowing_where_pods_are_nothing_is_a_probe_and_the_reason_is_told() {
    let world = Probed::with(Lab::bridged(), &[("--pod-cgroup", "/not/there")], |_| {});
    let _echo = Server::echo(&world.server.ns, any(8080));
    assert_refused(world.node(), world.at(true, 8080), b"CANARY-unknown");
    world.wait_denied("not known which cgroups are pods'");
    assert_eq!(world.counted("pod_cgroups_unknown"), 1.0);
    let unprobed = |reason: &str| world.agent.metric("warren_unprobed_pods", &[&format!("reason=\"{reason}\"")]);
    eventually("it is a metric", SOON, || (unprobed("pod_cgroups_unknown") >= 1.0).then_some(()));
    assert!(world.agent.pod("server")["probe_error"].as_str().unwrap().contains("/not/there"));
    let said = command::text(&world.agent.status_command(&[]));
    assert!(said.contains("kubelet's probes are refused"), "{said}");
    assert!(world.agent.log_tail(200).contains("pods' cgroups are not known"));
}

#[test]
fn an_operator_names_the_cgroup_of_all_pods() {
    let mut lab = Lab::bridged();
    let server = probed_pod(&mut lab);
    lab.manifest.set_mtls(None, "STRICT");
    lab.manifest.write();
    let process = PodProcess::start(lab.id(), &server.document.uid, &server.ns);
    let agent = start_agent(&lab, 0, &[("--pod-cgroup", &process.parent())]);
    let world = Probed { agent, server, process, lab }.watched();
    let _echo = Server::echo(&world.server.ns, any(8080));
    let probe = Probe::new(&world.lab);
    assert_echo(world.node(), world.at(true, 8080), b"well?");
    assert!(world.as_pod_on_the_host(&probe, world.at(true, 8080)).starts_with("failed connect"));
}

#[test]
fn a_pod_whose_link_cannot_be_watched_has_no_probes_and_it_is_told() {
    let world = Probed::with(Lab::bridged(), &[], |_| {}).watched();
    let _echo = Server::echo(&world.server.ns, any(8080));
    assert_echo(world.node(), world.at(true, 8080), b"well?");
    world.server.ns.check("ip", &["link", "add", "name", "eth1", "type", "veth", "peer", "name", "eth2"]);
    world.server.ns.check("ip", &["link", "set", "eth1", "up"]);
    world.server.ns.check("ip", &["link", "set", "eth2", "up"]);
    let unwatched = world.agent.wait_status("it is told", |status| {
        status["pods"].as_array().unwrap().iter().any(|pod| pod["probe_error"].is_string())
    });
    assert!(unwatched.to_string().contains("its link is not watched"));
    eventually("nothing comes in", SOON, || exchange(world.node(), world.at(true, 8080), b"").is_err().then_some(()));
}

fn hex(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Probe {
    /// The probe as a command, for whoever runs it.
    fn command(&self, to: SocketAddr, say: &str) -> Command {
        let mut command = Command::new(self.path());
        command.arg(to.to_string()).arg(say);
        command
    }
}
