//! Pods and nodes that are let go: nothing of Warren stays behind, and nothing of others is taken along.

use warren_test_support::client::{IO_LIMIT, assert_echo};
use warren_test_support::{Capture, Lab, Server, eventually};

use crate::fixture::{Single, any, start_agent};
use crate::inspect::{exists, pinned, pinned_links, pods_enrolled, traces};

#[test]
fn nothing_is_left_after_cleanup() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    lab.manifest.write();
    let before = [traces(&client.ns), traces(&server.ns)];
    let mut agent = start_agent(&lab, 0, &[]);
    let echo = Server::echo(&server.ns, any(8080));
    assert_echo(&client.ns, server.at(8080), b"works");
    drop(echo);
    assert_ne!(traces(&client.ns), before[0], "enrolment leaves traces that can be seen");
    let (links, maps) = (pinned_links(agent.node()), pinned("map", agent.node()));
    assert!(!links.is_empty() && !maps.is_empty());
    agent.stop();
    let done = agent.cleanup();
    assert!(done.status.success(), "{}", warren_test_support::command::text(&done));
    eventually("links and maps are gone", IO_LIMIT, || {
        let left = links.iter().any(|id| exists("link", *id)) || maps.iter().any(|id| exists("map", *id));
        (!left).then_some(())
    });
    assert!(!std::path::Path::new("/sys/fs/bpf/warren").join(agent.node()).exists(), "pins");
    assert_eq!([traces(&client.ns), traces(&server.ns)], before);
    // And the pods talk as if nothing had ever been there.
    let _echo = Server::echo(&server.ns, any(8080));
    let capture = Capture::start(lab.node(0));
    assert_echo(&client.ns, server.at(8080), b"in clear again");
    capture.stop().assert_present(b"in clear again");
    let again = agent.cleanup();
    assert!(
        again.status.success(),
        "a second cleanup finds nothing to do: {}",
        warren_test_support::command::text(&again)
    );
}

#[test]
fn cleanup_after_a_crash_and_a_deleted_pod_succeeds() {
    let mut lab = Lab::new(1);
    let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
    lab.manifest.write();
    let before = traces(&server.ns);
    let mut agent = start_agent(&lab, 0, &[]);
    agent.kill9();
    drop(client);
    let done = agent.cleanup();
    assert!(done.status.success(), "{}", warren_test_support::command::text(&done));
    assert_eq!(traces(&server.ns), before);
    assert!(!std::path::Path::new("/sys/fs/bpf/warren").join(agent.node()).exists(), "pins");
}

#[test]
fn what_a_namespace_had_of_its_own_is_kept_and_restored() {
    let mut lab = Lab::new(2);
    let (client, server) = (lab.pod(0, "client"), lab.pod(1, "server"));
    lab.manifest.write();
    // Another tool's rules, some of them where the capture wants to be; a setting; a queueing discipline on lo.
    for rule in ["pref 1 from 192.0.2.1 lookup 100", "pref 2 fwmark 0x9 lookup 101", "pref 500 to 192.0.2.2 lookup 102"]
    {
        let words: Vec<&str> = rule.split(' ').collect();
        client.ns.check("ip", &[&["rule", "add"], &words[..]].concat());
    }
    client.ns.check("ip", &["route", "add", "unreachable", "192.0.2.0/24", "table", "100"]);
    client.ns.set_sysctl("net/ipv4/tcp_fwmark_accept", "1");
    client.ns.check("tc", &["qdisc", "add", "dev", "lo", "clsact"]);
    let before = traces(&client.ns);
    let mut near = start_agent(&lab, 0, &[]);
    let _far = start_agent(&lab, 1, &[]);
    assert_eq!(near.pod("client")["state"], "enrolled", "{:#}", near.pod("client"));
    let _echo = Server::echo(&server.ns, any(8080));
    let capture = Capture::start(lab.node(0));
    assert_echo(&client.ns, server.at(8080), b"CANARY-beside-others");
    assert_echo(&client.ns, server.at6(8080), b"CANARY-beside-others");
    let packets = capture.stop();
    packets.assert_absent(b"CANARY-");
    packets.assert_only_tls();
    near.stop();
    assert!(near.cleanup().status.success());
    assert_eq!(traces(&client.ns), before);
}

#[test]
fn a_pod_that_leaves_the_mesh_is_released_and_holds_no_descriptor() {
    let mut world = Single::with(&[], |_| {});
    let echo = Server::echo(&world.server.ns, any(8080));
    assert_echo(&world.client.ns, world.server.at(8080), b"in the mesh");
    drop(echo);
    // By then every thread of the agent has what it keeps.
    pinned_links(world.agent.node());
    let before = world.agent.descriptors();
    let pod = world.lab.pod(0, "third");
    let fresh = traces(&pod.ns);
    world.apply();
    world.agent.wait_status("enrolled", |status| pods_enrolled(status) == 3);
    assert_ne!(traces(&pod.ns), fresh);
    world.lab.manifest.remove("pod third");
    world.apply();
    world.agent.wait_status("released", |status| status["pods"].as_array().is_some_and(|pods| pods.len() == 2));
    eventually("no trace is left in the pod", IO_LIMIT, || (traces(&pod.ns) == fresh).then_some(()));
    eventually("its descriptors are closed", IO_LIMIT, || (world.agent.descriptors() <= before).then_some(()));
}

#[test]
fn thirty_pods_are_enrolled_and_released_together() {
    let mut lab = Lab::new(1);
    let pods: Vec<_> = (0..30).map(|n| lab.pod(0, &format!("p{n}"))).collect();
    lab.manifest.write();
    let before = traces(&pods[29].ns);
    let mut agent = start_agent(&lab, 0, &[]);
    assert_eq!(pods_enrolled(&agent.status()), 30);
    let servers: Vec<_> = pods.iter().map(|pod| Server::echo(&pod.ns, any(8080))).collect();
    for (n, pod) in pods.iter().enumerate() {
        assert_echo(&pod.ns, pods[(n + 7) % 30].at(8080), b"round the ring");
    }
    assert!(servers.iter().all(|server| server.peers().len() == 1));
    drop(servers);
    agent.stop();
    assert!(agent.cleanup().status.success());
    assert_eq!(traces(&pods[29].ns), before);
}
