//! Objects one by one: the same world as from a file, whatever came before and in whatever order.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use serde::de::DeserializeSeed;
use serde_json::{Value, json};

use super::{mesh, source};
use crate::addr::OriginalDst;
use crate::policy::{Connection, DenyReason};
use crate::route::outbound;
use crate::world::{Kind, MeshMode, ObjectState, ObjectStore, Projected, Projection, World, load};

fn kind_of(object: &Value) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == object["kind"]).unwrap()
}

fn project(object: &Value) -> Projected {
    Projection(kind_of(object)).deserialize(&mut serde_json::Deserializer::from_str(&object.to_string())).unwrap()
}

fn names(object: &Value) -> (Kind, String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (kind_of(object), text("namespace"), text("name"))
}

fn delete(store: &mut ObjectStore, object: &Value) {
    let (kind, namespace, name) = names(object);
    store.delete(kind, &namespace, &name);
}

fn stored(objects: &[Value]) -> World {
    let mut store = ObjectStore::new(mesh());
    for object in objects {
        assert!(store.put(project(object)).is_empty(), "{object}");
    }
    store.snapshot(1)
}

fn from_file(objects: &[Value]) -> World {
    let text: Vec<String> = objects.iter().map(ToString::to_string).collect();
    load(&[source(&text.join("\n---\n"))], &mesh(), None, 1).world
}

/// Everything of a world that anybody can see.
fn seen(world: &World) -> Vec<String> {
    let mut seen: Vec<String> = world.status().iter().map(|status| format!("{status:?}")).collect();
    seen.push(format!("{:?} {:?}", world.captured().prefixes(), world.captured().exact));
    let mut services: Vec<_> = world.services().map(|service| format!("{service:?}")).collect();
    services.sort();
    seen.extend(services);
    let targets = world.captured().prefixes();
    let ports = [80, 443, 8080, 30080, 9000];
    for pod in world.pods.values() {
        let plan = world.policy().inbound_plan(pod);
        seen.push(format!("{pod:?} {plan:?} {:?}", world.local_pods(&pod.node).map(|p| &p.name).collect::<Vec<_>>()));
        for ip in targets.iter().map(ipnet::IpNet::addr).chain(pod.host_ips.iter().copied()) {
            for port in ports {
                let to = OriginalDst(SocketAddr::new(ip, port));
                seen.push(format!("{} {to} {:?}", pod.name, outbound(world, pod, to, 7)));
            }
        }
        for other in world.pods.values() {
            let from = &other.identity;
            let source_ip: IpAddr = other.ips.first().copied().unwrap_or([10, 9, 9, 9].into());
            let destination_ip = pod.ips.first().copied().unwrap_or(source_ip);
            for source in [None, Some(from)] {
                let connection =
                    Connection { source, source_ip, destination: pod, destination_ip, destination_port: 8080 };
                let decided = world.policy().decide(&connection);
                seen.push(format!("{}->{}: {decided:?}", other.name, pod.name));
            }
        }
    }
    seen.sort();
    seen
}

fn pod(number: u8, shape: u8) -> Value {
    let namespace = format!("ns{}", number % 3);
    let labels = match shape % 4 {
        0 => json!({"app": "a"}),
        1 => json!({"app": "b", "warren.dev/mode": "ambient"}),
        2 => json!({"app": "a", "tier": "x", "warren.dev/mode": "none"}),
        _ => json!({"app": format!("own-{number}")}),
    };
    let phase = if shape % 7 == 6 { "Succeeded" } else { "Running" };
    let ports = match shape % 5 {
        0 => json!([{"name": "http", "containerPort": 8080, "hostPort": 9000 + u16::from(number)}]),
        _ => json!([{"name": "http", "containerPort": 8080}]),
    };
    let ip = match shape % 11 {
        10 => format!("192.168.0.{}", number % 2),
        _ => format!("10.0.0.{number}"),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{number}"), "namespace": namespace,
            "uid": format!("uid-{number}-{}", shape / 12),
            "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": format!("n{}", number % 2), "serviceAccountName": format!("sa{}", shape % 3),
            "hostNetwork": shape % 11 == 10, "containers": [{
                "ports": ports, "readinessProbe": {"httpGet": {"port": 80 + shape % 3, "path": "/"}}
            }]},
        "status": {"phase": phase, "hostIP": format!("192.168.0.{}", number % 2),
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": if shape.is_multiple_of(3) { "False" } else { "True" }}]}
    })
}

fn service(number: u8, shape: u8) -> Value {
    let app = if shape.is_multiple_of(2) { "a" } else { "b" };
    let mut spec = json!({"clusterIP": format!("10.96.0.{number}"), "selector": {"app": app},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]});
    if shape.is_multiple_of(3) {
        spec["type"] = json!("NodePort");
        spec["ports"][0]["nodePort"] = json!(30080 + u16::from(number));
    }
    if shape.is_multiple_of(5) {
        spec["externalIPs"] = json!([format!("192.168.0.{number}")]);
        spec["ports"][0]["port"] = json!(440 + u16::from(number));
    }
    json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": {"name": format!("s{number}"), "namespace": format!("ns{}", number % 3)}})
}

fn slice(number: u8, shape: u8) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("e{number}"), "namespace": format!("ns{}", number % 3),
            "labels": {"kubernetes.io/service-name": format!("s{}", number + 3 * (shape % 2))}},
        "endpoints": [{"addresses": [format!("10.0.0.{}", shape % 8)], "conditions": {"ready": !shape.is_multiple_of(3)}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

fn policy(number: u8, shape: u8) -> Value {
    let namespace = if shape % 6 == 5 { "istio-system".to_owned() } else { format!("ns{}", number % 3) };
    let mut spec = json!({"action": if shape.is_multiple_of(2) { "DENY" } else { "ALLOW" },
        "rules": [{"from": [{"source": {"namespaces": [format!("ns{}", shape % 3)]}}]}]});
    if !shape.is_multiple_of(3) {
        spec["selector"] = json!({"matchLabels": {"app": if shape.is_multiple_of(4) { "a" } else { "b" }}});
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": format!("ap{number}"), "namespace": namespace}, "spec": spec})
}

fn mode(number: u8, shape: u8) -> Value {
    let namespace = if shape % 6 == 5 { "istio-system".to_owned() } else { format!("ns{}", number % 3) };
    let mut spec = json!({"mtls": {"mode": if shape.is_multiple_of(2) { "STRICT" } else { "PERMISSIVE" }}});
    if shape % 3 == 1 {
        spec["selector"] = json!({"matchLabels": {"app": "a"}});
        spec["portLevelMtls"] = json!({"8080": {"mode": "STRICT"}});
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": format!("pa{number}"), "namespace": namespace,
            "creationTimestamp": format!("2026-01-0{}T00:00:00Z", 1 + shape % 9)}, "spec": spec})
}

fn namespace(number: u8, shape: u8) -> Value {
    let labels = if shape.is_multiple_of(2) { json!({"istio.io/dataplane-mode": "ambient"}) } else { json!({}) };
    let name = format!("ns{}", number % 3);
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn other(number: u8, shape: u8) -> Value {
    match shape % 3 {
        0 => json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.0.{}", shape % 3)},
                {"type": "Hostname", "address": "n"}]}}),
        1 => json!({"apiVersion": "warren.dev/v1alpha1", "kind": "MeshNode",
            "metadata": {"name": format!("n{}", number % 2)},
            "spec": {"format": 1, "capabilities": if shape.is_multiple_of(2) { json!(["hbone"]) } else { json!([]) }}}),
        _ => {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": format!("c{number}")},
            "spec": {"cidrs": [format!("10.9{}.0.0/16", shape % 4 + 5)]}})
        }
    }
}

fn object() -> impl Strategy<Value = Value> {
    let make = prop::sample::select(vec![
        pod as fn(u8, u8) -> Value,
        pod,
        pod,
        service,
        slice,
        policy,
        policy,
        mode,
        namespace,
        other,
    ]);
    (make, 0u8..8, 0u8..60).prop_map(|(make, number, shape)| make(number, shape))
}

/// What is left after steps: each puts an object or takes it out.
fn left(steps: &[(Value, bool)]) -> BTreeMap<(Kind, String, String), Value> {
    let mut left = BTreeMap::new();
    for (object, is_put) in steps {
        match is_put {
            true => left.insert(names(object), object.clone()),
            false => left.remove(&names(object)),
        };
    }
    left
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_order_of_updates_makes_the_world_of_what_is_left(
        steps in prop::collection::vec((object(), prop::bool::weighted(0.75)), 0..60),
        looks in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut store = ObjectStore::new(mesh());
        for ((object, is_put), look) in steps.iter().zip(looks) {
            match is_put {
                true => prop_assert!(store.put(project(object)).is_empty(), "{}", object),
                false => delete(&mut store, object),
            }
            if look {
                let _ = store.snapshot(0);
            }
        }
        let left: Vec<Value> = left(&steps).into_values().collect();
        let (got, wanted) = (seen(&store.snapshot(1)), seen(&from_file(&left)));
        for (got, wanted) in got.iter().zip(&wanted) {
            prop_assert_eq!(got, wanted);
        }
        prop_assert_eq!(got.len(), wanted.len());
        let reversed: Vec<Value> = left.into_iter().rev().collect();
        prop_assert_eq!(seen(&stored(&reversed)), wanted);
    }

    #[test]
    fn a_list_leaves_what_it_told_of(
        first in prop::collection::vec(object(), 0..30),
        second in prop::collection::vec(object(), 0..30),
    ) {
        let mut store = ObjectStore::new(mesh());
        let put_all = |store: &mut ObjectStore, objects: &[Value]| {
            for kind in Kind::ALL {
                store.begin_list(kind);
            }
            for object in objects {
                store.put(project(object));
            }
            for kind in Kind::ALL {
                store.end_list(kind);
            }
        };
        put_all(&mut store, &first);
        put_all(&mut store, &second);
        let steps: Vec<_> = second.into_iter().map(|object| (object, true)).collect();
        let left: Vec<Value> = left(&steps).into_values().collect();
        prop_assert_eq!(seen(&store.snapshot(1)), seen(&from_file(&left)));
    }

    #[test]
    fn nothing_that_is_read_is_dropped_on_arrival(object in object()) {
        let whole = Projected { kind: kind_of(&object), value: object.clone() };
        let read = |projected: Projected| {
            let mut store = ObjectStore::new(mesh());
            store.put(projected);
            seen(&store.snapshot(1))
        };
        prop_assert_eq!(read(project(&object)), read(whole));
    }
}

#[test]
fn a_pod_that_names_a_namespace_or_addresses_in_annotations_is_not_believed() {
    let mut stray = pod(1, 1);
    stray["metadata"]["annotations"] = json!({"warren.dev/netns": "/proc/1/ns/net", "warren.dev/ips": "10.7.7.7"});
    stray["status"] = json!({});
    let world = stored(&[stray]);
    let pod = world.pods.values().next().unwrap();
    assert_eq!((pod.netns.as_ref(), pod.ips.len()), (None, 0));
}

#[test]
fn the_older_pod_has_an_address_and_a_dying_one_gives_it_up() {
    let (mut old, mut new) = (pod(1, 1), pod(2, 1));
    new["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}]);
    new["metadata"]["creationTimestamp"] = json!("2026-02-01T00:00:00Z");
    let ip = "10.0.0.1".parse().unwrap();
    for order in [[&old, &new], [&new, &old]] {
        let mut store = ObjectStore::new(mesh());
        for object in order {
            store.put(project(object));
        }
        let world = store.snapshot(1);
        assert_eq!(world.pod_by_ip(ip).unwrap().name, "p1");
        assert_eq!(world.pods.len(), 2, "the other one stays captured");
        assert!(store.rejections()[0].reason.contains("10.0.0.1 is claimed by Pod ns1/p1, Pod ns2/p2"));
    }
    old["metadata"]["deletionTimestamp"] = json!("2026-02-01T00:00:00Z");
    let world = stored(&[new, old]);
    assert_eq!(world.pod_by_ip(ip).unwrap().name, "p2");
}

#[test]
fn a_refused_object_keeps_the_version_before_and_a_new_policy_denies() {
    let mut store = ObjectStore::new(mesh());
    let good = policy(0, 1);
    let mut bad = good.clone();
    bad["spec"]["action"] = json!("DENNY");
    assert!(store.put(project(&pod(0, 1))).is_empty());
    let fault = store.put(project(&bad))[0].to_string();
    assert!(fault.starts_with("kubernetes: AuthorizationPolicy ns0/ap0: spec.action: "), "{fault}");
    assert!(fault.ends_with("deny everything"), "{fault}");
    let world = store.snapshot(1);
    let destination = world.pods.values().next().unwrap();
    let (source_ip, destination_ip) = ([10, 0, 0, 9].into(), destination.ips[0]);
    let connection =
        Connection { source: Some(&destination.identity), source_ip, destination, destination_ip, destination_port: 1 };
    assert_eq!(world.policy().decide(&connection).unwrap_err().reason, DenyReason::PolicyNotUnderstood);
    assert!(store.put(project(&good)).is_empty());
    assert_eq!(store.snapshot(2).status()[0].state, ObjectState::Accepted);
    assert!(store.put(project(&bad))[0].reason.ends_with("stays in force"));
    let world = store.snapshot(3);
    assert_eq!((world.status().len(), world.status()[0].state), (1, ObjectState::LastGood));
    delete(&mut store, &good);
    assert!(store.snapshot(4).status().is_empty() && store.rejections().is_empty());
}

#[test]
fn a_namespaces_word_reaches_its_pods_later_too() {
    let mut store = ObjectStore::new(mesh());
    store.put(project(&pod(0, 0)));
    let mode = |store: &mut ObjectStore| store.snapshot(1).pods.values().next().unwrap().mode;
    assert_eq!(mode(&mut store), MeshMode::None);
    store.put(project(&namespace(0, 0)));
    assert_eq!(mode(&mut store), MeshMode::Ambient);
    delete(&mut store, &namespace(0, 0));
    assert_eq!(mode(&mut store), MeshMode::None);
}

/// A pod of a cluster of many: some hundred to a node, some twenty to a workload.
fn foreign_pod(number: u32) -> Value {
    let (workload, node) = (number / 20, number % 1000);
    let [_, high, middle, low] = number.to_be_bytes();
    json!({
        "metadata": {"name": format!("workload-{workload}-7d9f8c5b6-{number:05x}"),
            "namespace": format!("team-{}", workload % 200), "uid": format!("8a5a2f6e-0000-4000-8000-{number:012}"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": format!("workload-{workload}"), "pod-template-hash": "7d9f8c5b6", "version": "v1"}},
        "spec": {"nodeName": format!("node-{node}"), "serviceAccountName": format!("workload-{workload}"),
            "containers": [{"ports": [{"name": "http", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": "http", "path": "/"}}}]},
        "status": {"phase": "Running", "hostIP": format!("192.168.{}.{}", node / 250, node % 250),
            "podIPs": [{"ip": format!("10.{high}.{middle}.{low}")}, {"ip": format!("fd00::{number:x}")}],
            "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

#[test]
fn a_foreign_pod_costs_less_than_a_kilobyte_and_its_change_next_to_nothing() {
    const PODS: u32 = 20_000;
    let mut kept = None;
    let whole = allocation_counter::measure(|| {
        let mut store = ObjectStore::new(mesh());
        for number in 0..PODS {
            let mut pod = foreign_pod(number);
            pod["kind"] = json!("Pod");
            store.put(project(&pod));
        }
        let world = store.snapshot(1);
        kept = Some((store, world));
    });
    let each = whole.bytes_current / i64::from(PODS);
    let (mut store, world) = kept.unwrap();
    assert_eq!(world.pods.len(), PODS as usize);
    let mut changed = foreign_pod(7);
    changed["kind"] = json!("Pod");
    changed["status"]["conditions"][0]["status"] = json!("False");
    let projected = project(&changed);
    let mut next = None;
    let change = allocation_counter::measure(|| {
        store.put(projected);
        next = Some(store.snapshot(2));
    });
    println!("{each} bytes a pod; a change allocates {} bytes", change.bytes_total);
    assert!(each <= 1024, "{each} bytes a pod");
    assert!(change.bytes_total < 256 << 10, "a change of one of {PODS} pods allocates {} bytes", change.bytes_total);
    let mut differences = 0;
    next.unwrap().pods.since(&world.pods, |_| differences += 1);
    assert_eq!(differences, 1);
}
