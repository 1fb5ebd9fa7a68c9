use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::world::Capabilities;
use crate::world::tests::{pod, world};

const WORLD: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: case, labels: {warren.dev/mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: case, labels: {app: api}}
spec: {serviceAccountName: a, containers: [{ports: [{containerPort: 80, hostPort: 8081}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], hostIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: case, labels: {app: api}}
spec: {serviceAccountName: b}
status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: case, labels: {app: api}}
status: {podIP: 10.0.0.3, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: out, labels: {app: plain}}
status: {podIP: 10.0.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: case, labels: {app: host}}
spec: {hostNetwork: true}
status: {podIP: 192.168.0.2, hostIP: 192.168.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: case}
spec: {clusterIPs: [10.96.0.1, 'fd96::1'], selector: {app: api}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}, {port: 15, targetPort: 15008}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: out}
spec: {clusterIP: 10.96.0.2, selector: {app: plain}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: host, namespace: case}
spec: {clusterIP: 10.96.0.3, selector: {app: host}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: case}
spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}
";

fn route(from: &str, to: &str, pick: u64) -> Route {
    let world = world(WORLD);
    outbound(&world, pod(&world, "case", from), OriginalDst(to.parse().unwrap()), pick)
}

/// `authority by hbone expecting identity`, or what the route says otherwise.
fn told(from: &str, to: &str, pick: u64) -> String {
    match route(from, to, pick) {
        Route::Tunnel(r) => {
            let [expected] = &r.expected[..] else { panic!("{r:?}") };
            assert_eq!(expected, &r.destination.identity);
            format!("{} by {} to {}", r.authority, r.hbone, expected.principal())
        }
        Route::Deny(why) => why.as_str().to_owned(),
        other => other.to_string(),
    }
}

#[test]
fn a_pod_of_the_mesh_is_reached_by_tunnel() {
    let b = "prod.example.com/ns/case/sa/b";
    assert_eq!(told("a", "10.0.0.2:5432", 0), format!("10.0.0.2:5432 by 10.0.0.2:15008 to {b}"));
    assert_eq!(told("a", "[fd00::2]:80", 0), format!("[fd00::2]:80 by [fd00::2]:15008 to {b}"));
    assert_eq!(told("a", "[::ffff:10.0.0.2]:80", 0), format!("10.0.0.2:80 by 10.0.0.2:15008 to {b}"));
}

#[test]
fn a_service_leads_to_its_ready_endpoints_of_the_same_family() {
    let b = "prod.example.com/ns/case/sa/b";
    let told_of_any = |vip: &str| (0..50).map(|pick| told("a", vip, pick)).collect::<BTreeSet<_>>();
    let v4 = ["own 10.0.0.1:8080".to_owned(), format!("10.0.0.2:8080 by 10.0.0.2:15008 to {b}")];
    assert_eq!(told_of_any("10.96.0.1:80"), v4.into());
    let v6 = ["own [fd00::1]:8080".to_owned(), format!("[fd00::2]:8080 by [fd00::2]:15008 to {b}")];
    assert_eq!(told_of_any("[fd96::1]:80"), v6.into());
    let service = (0..50).find_map(|pick| match route("a", "10.96.0.1:80", pick) {
        Route::Tunnel(r) => r.service,
        _ => None,
    });
    assert_eq!(service.unwrap().hostname, "api.case.svc.cluster.local");
}

#[test]
fn every_usable_endpoint_is_as_likely_as_any_other() {
    let endpoints: Vec<Endpoint> = (0..100)
        .map(|i| Endpoint { ip: [10, 0, 0, i].into(), ready: i % 3 != 0, ports: [(80, 8080)].into() })
        .collect();
    // Of the last kind so few are usable that they are counted.
    for usable in
        [|e: &Endpoint| e.ready, |e: &Endpoint| e.ip.to_string().ends_with(".1") || e.ip.to_string().ends_with(".7")]
    {
        let wanted: Vec<IpAddr> = endpoints.iter().filter(|e| usable(e)).map(|e| e.ip).collect();
        let mut drawn = BTreeMap::<IpAddr, u32>::new();
        let each = 1000;
        for number in 0..each * wanted.len() as u64 {
            *drawn.entry(draw(&endpoints, usable, scatter(number)).unwrap().ip).or_default() += 1;
        }
        assert!(drawn.keys().eq(&wanted), "{drawn:?}");
        assert!(drawn.values().all(|count| (850..1150).contains(count)), "{drawn:?}");
    }
    assert!(draw(&endpoints, |_| false, 7).is_none());
    assert!(draw(&[], |_| true, 7).is_none());
}

#[test]
fn plaintext_only_where_the_destination_is_known_to_be_outside() {
    assert_eq!(told("a", "10.0.0.4:80", 0), "plain to 10.0.0.4:80");
    assert_eq!(told("a", "10.96.0.2:80", 0), "plain to 10.0.0.4:80");
    assert_eq!(told("a", "10.96.0.3:80", 0), "plain to 192.168.0.2:80");
    assert_eq!(told("a", "192.168.0.2:22", 0), "plain to 192.168.0.2:22");
    assert_eq!(told("a", "10.0.0.4:15008", 0), "plain to 10.0.0.4:15008");
}

#[test]
fn ports_of_a_node() {
    assert_eq!(told("b", "192.168.0.1:30080", 1), "own 10.0.0.2:8080");
    let a = "prod.example.com/ns/case/sa/a";
    assert_eq!(told("b", "192.168.0.1:8081", 0), format!("10.0.0.1:80 by 10.0.0.1:15008 to {a}"));
}

#[test]
fn only_a_pod_of_the_same_node_that_is_dialled_by_its_own_address_is_near() {
    let near = |text: &str, to: &str| {
        let world = world(text);
        near(&world, pod(&world, "case", "a"), to.parse().unwrap()).map(|pod| pod.name.clone())
    };
    assert_eq!(near(WORLD, "10.0.0.2:80"), Some("b".into()));
    assert_eq!(near(WORLD, "[fd00::2]:80"), Some("b".into()));
    let elsewhere = WORLD.replace("{serviceAccountName: b}", "{serviceAccountName: b, nodeName: far}");
    assert_eq!(near(&elsewhere, "10.0.0.2:80"), None);
    // Itself, the mesh's own port, a service, a port of the node, outside of the mesh, nobody.
    for to in ["10.0.0.1:80", "10.0.0.2:15008", "10.96.0.1:80", "192.168.0.1:8081", "10.0.0.4:80", "203.0.113.1:443"] {
        assert_eq!(near(WORLD, to), None, "{to}");
    }
}

#[test]
fn everything_else_is_denied_with_a_reason() {
    assert_eq!(told("a", "203.0.113.1:443", 0), "unknown_destination");
    assert_eq!(told("a", "10.96.0.99:80", 0), "unknown_destination");
    assert_eq!(told("a", "10.96.0.1:81", 0), "no_such_service_port");
    assert_eq!(told("a", "10.96.0.4:80", 0), "no_ready_endpoint");
    assert_eq!(told("a", "127.0.0.1:80", 0), "illegal_port");
    assert_eq!(told("a", "10.0.0.2:15008", 0), "illegal_port");
    assert_eq!(told("a", "10.96.0.1:15", 1), "illegal_port");
    let old = world(WORLD);
    let new = world("");
    let denied = outbound(&new, pod(&old, "case", "a"), OriginalDst("10.0.0.2:80".parse().unwrap()), 0);
    assert_eq!(denied, Route::Deny(RouteDenied::SourceUnknown));
}

/// Three nodes: `a` is on the first, which says nothing of itself; `b` on one that takes tunnels; the others on one that
/// does not.
const NODES: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: case, labels: {warren.dev/mode: ambient, app: near}}
spec: {nodeName: own}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: beside, namespace: case, labels: {warren.dev/mode: ambient, app: near}}
spec: {nodeName: own}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: case, labels: {warren.dev/mode: ambient, app: api, mixed: 'yes'}}
spec: {nodeName: able, containers: [{ports: [{containerPort: 80, hostPort: 8081}]}]}
status: {podIP: 10.0.0.3, hostIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: case, labels: {warren.dev/mode: ambient, app: api, odd: 'yes'}}
spec: {nodeName: bare, containers: [{ports: [{containerPort: 80, hostPort: 8081}]}]}
status: {podIP: 10.0.0.4, hostIP: 192.168.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: out, namespace: case, labels: {app: api, mixed: 'yes', odd: 'yes'}}
spec: {nodeName: bare}
status: {podIP: 10.0.0.5}
---
apiVersion: warren.dev/v1alpha1
kind: MeshNode
metadata: {name: able}
spec: {format: 1, capabilities: [hbone, more], agentVersion: x}
---
apiVersion: warren.dev/v1alpha1
kind: MeshNode
metadata: {name: bare}
spec: {format: 1, capabilities: []}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: case}
spec: {clusterIP: 10.96.0.1, selector: {app: api}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: odd, namespace: case}
spec: {clusterIP: 10.96.0.2, selector: {odd: 'yes'}, ports: [{port: 80}]}
";

/// The world of [`NODES`] as a cluster's: what says nothing of itself can do nothing.
fn nodes(fate: IncapableDestination) -> World {
    let mut world = world(NODES);
    world.mesh.unpublished = Capabilities::NONE;
    world.mesh.incapable_destination = fate;
    world
}

fn leads(world: &World, to: &str) -> BTreeSet<String> {
    let from = pod(world, "case", "a");
    let one = |pick| match outbound(world, from, OriginalDst(to.parse().unwrap()), scatter(pick)) {
        Route::Tunnel(r) => format!("tunnel {}", r.authority),
        Route::Deny(why) => why.as_str().to_owned(),
        other => other.to_string(),
    };
    (0..100).map(one).collect()
}

#[test]
fn a_pod_whose_node_takes_no_tunnels_is_refused_or_let_pass_in_clear_by_configuration_alone() {
    let refusing = nodes(IncapableDestination::Refuse);
    assert_eq!(leads(&refusing, "10.0.0.3:80"), ["tunnel 10.0.0.3:80".to_owned()].into());
    let refused = BTreeSet::from(["none to incapable 10.0.0.4:80".to_owned()]);
    assert_eq!(leads(&refusing, "10.0.0.4:80"), refused);
    assert_eq!(leads(&refusing, "192.168.0.2:8081"), refused, "by a port of its node");
    assert_eq!(leads(&refusing, "10.0.0.4:15008"), ["illegal_port".to_owned()].into());
    let passing = nodes(IncapableDestination::Plain);
    assert_eq!(leads(&passing, "10.0.0.3:80"), ["tunnel 10.0.0.3:80".to_owned()].into());
    assert_eq!(leads(&passing, "10.0.0.4:80"), ["plain to incapable 10.0.0.4:80".to_owned()].into());
    assert_eq!(leads(&passing, "10.0.0.4:15008"), ["illegal_port".to_owned()].into());
    // Who is outside of the mesh needs no agent.
    for world in [&refusing, &passing] {
        assert_eq!(leads(world, "10.0.0.5:80"), ["plain to 10.0.0.5:80".to_owned()].into());
    }
}

#[test]
fn pods_of_the_sources_own_node_are_served_by_the_agent_that_asks() {
    let world = nodes(IncapableDestination::Refuse);
    let from = pod(&world, "case", "a");
    assert_eq!(leads(&world, "10.0.0.2:80"), ["tunnel 10.0.0.2:80".to_owned()].into());
    assert_eq!(near(&world, from, "10.0.0.2:80".parse().unwrap()).unwrap().name, "beside");
    for (to, fate) in [("10.0.0.4:80", IncapableDestination::Plain), ("10.0.0.4:80", IncapableDestination::Refuse)] {
        assert_eq!(near(&nodes(fate), from, to.parse().unwrap()), None);
    }
    // Pods that no node is known of are not all on one.
    let homeless = NODES.replace("spec: {nodeName: own}", "spec: {}");
    let mut world = crate::world::tests::world(&homeless);
    world.mesh.unpublished = Capabilities::NONE;
    assert_eq!(leads(&world, "10.0.0.2:80"), ["none to incapable 10.0.0.2:80".to_owned()].into());
}

#[test]
fn the_share_of_an_incapable_endpoint_goes_to_capable_ones_and_never_into_the_clear() {
    let refusing = nodes(IncapableDestination::Refuse);
    let (tunnel, plain) = ("tunnel 10.0.0.3:80".to_owned(), "plain to 10.0.0.5:80".to_owned());
    assert_eq!(leads(&refusing, "10.96.0.1:80"), [tunnel.clone(), plain.clone()].into());
    let refused = "none to incapable 10.0.0.4:80".to_owned();
    assert_eq!(leads(&refusing, "10.96.0.2:80"), [refused, plain.clone()].into());
    let shares = (0..3000).filter(|pick| {
        let to = OriginalDst("10.96.0.1:80".parse().unwrap());
        matches!(outbound(&refusing, pod(&refusing, "case", "a"), to, scatter(*pick)), Route::Plain(_))
    });
    let shares = shares.count();
    assert!((850..1150).contains(&shares), "one endpoint of three is outside of the mesh: {shares} of 3000");
    let passing = nodes(IncapableDestination::Plain);
    let migrating = "plain to incapable 10.0.0.4:80".to_owned();
    assert_eq!(leads(&passing, "10.96.0.1:80"), [tunnel, migrating, plain].into());
}

#[test]
fn in_a_world_from_files_a_node_that_says_nothing_of_itself_takes_tunnels() {
    let silent = NODES.replace("capabilities: []", "capabilities: [hbone]").replace("name: able", "name: other");
    let world = world(&silent);
    for to in ["10.0.0.3:80", "10.0.0.4:80"] {
        assert_eq!(leads(&world, to), [format!("tunnel {to}")].into());
    }
}
