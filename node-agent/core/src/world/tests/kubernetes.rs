//! Pods, services and the mesh as Kubernetes describes them.

use std::net::IpAddr;

use super::{loaded, pod, texts, world};
use crate::identity::PodUid;
use crate::world::{MeshMode, Service, WorkloadKind, World};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service<'a>(world: &'a World, name: &str) -> &'a Service {
    world.services().find(|s| s.name == name).unwrap()
}

const FULL_POD: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: payments-7d9f8c-abcde
  namespace: prod
  uid: 8a5a2f6e-0000-4000-8000-000000000001
  labels: {app: payments, version: v2, pod-template-hash: 7d9f8c}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: payments-7d9f8c, uid: x, controller: true, blockOwnerDeletion: true}
spec:
  nodeName: node-1
  serviceAccountName: payments
  containers:
  - name: app
    image: x
    ports:
    - {name: http, containerPort: 8080, protocol: TCP}
    - {name: dns, containerPort: 53, protocol: UDP}
status:
  phase: Running
  hostIP: 192.168.0.1
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]
  conditions:
  - {type: Initialized, status: 'True'}
  - {type: Ready, status: 'True'}
---
";

#[test]
fn a_pod_as_the_api_server_shows_it() {
    let world = world(FULL_POD);
    let pod = pod(&world, "prod", "payments-7d9f8c-abcde");
    assert_eq!(pod.uid.as_str(), "8a5a2f6e-0000-4000-8000-000000000001");
    assert_eq!(pod.identity.as_str(), "spiffe://prod.example.com/ns/prod/sa/payments");
    assert_eq!(*pod.ips, [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!((pod.workload.kind, pod.workload.name.as_str()), (WorkloadKind::Deployment, "payments"));
    assert_eq!((pod.canonical_name.as_str(), pod.canonical_revision.as_str()), ("payments", "v2"));
    assert!(pod.ready);
    assert_eq!(pod.mode, MeshMode::None, "nothing says that it is in the mesh");
    assert_eq!(world.pod_by_ip(ip("::ffff:10.0.0.1")).unwrap().uid, pod.uid);
}

#[test]
fn owners_become_workloads() {
    for (owner, kind, name) in [
        ("{kind: Job, name: sync-28391040}", WorkloadKind::CronJob, "sync"),
        ("{kind: Job, name: once}", WorkloadKind::Job, "once"),
        ("{kind: StatefulSet, name: db}", WorkloadKind::Pod, "p"),
        ("{kind: ReplicaSet, name: db-xyz}", WorkloadKind::Pod, "p"),
    ] {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, ownerReferences: [{owner}]}}\n");
        let world = world(&text);
        let workload = &pod(&world, "default", "p").workload;
        assert_eq!((workload.kind, workload.name.as_str()), (kind, name));
    }
}

#[test]
fn who_is_in_the_mesh() {
    let namespaces = "\
apiVersion: v1
kind: Namespace
metadata: {name: in, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {warren.dev/mode: ambient}}
---
";
    let cases = [
        ("in", "{}", "{}", "", MeshMode::Ambient),
        ("in", "{istio.io/dataplane-mode: none}", "{}", "", MeshMode::None),
        ("in", "{istio.io/dataplane-mode: ambient, warren.dev/mode: ambient}", "{}", "", MeshMode::Ambient),
        ("in", "{}", "{sidecar.istio.io/status: x}", "", MeshMode::None),
        ("in", "{}", "{}", "hostNetwork: true", MeshMode::None),
        ("out", "{}", "{}", "", MeshMode::None),
        ("out", "{warren.dev/mode: ambient}", "{}", "", MeshMode::Ambient),
        ("kube-system", "{}", "{}", "", MeshMode::None),
        ("in", "{warren.dev/mode: observe}", "{}", "", MeshMode::Observe),
        ("out", "{warren.dev/mode: observe}", "{}", "", MeshMode::Observe),
        ("in", "{}", "{}", "runtimeClassName: kata", MeshMode::None),
        ("out", "{istio.io/dataplane-mode: none, warren.dev/mode: ambient}", "{}", "", MeshMode::Ambient),
    ];
    for (namespace, labels, annotations, spec, mode) in cases {
        let pod_text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}, labels: {labels}, \
             annotations: {annotations}}}\nspec: {{{spec}}}\n"
        );
        let world = world(&format!("{namespaces}{pod_text}"));
        assert_eq!(pod(&world, namespace, "p").mode, mode, "{pod_text}");
    }
}

#[test]
fn a_finished_pod_has_no_address_any_more() {
    let finished = FULL_POD.replace("Running", "Succeeded");
    let next = FULL_POD.replace("abcde", "fghij").replace("000001", "000002");
    let world = world(&format!("{finished}{next}"));
    assert_eq!(world.pods.len(), 1);
    assert_eq!(world.pod_by_ip(ip("10.0.0.1")).unwrap().name, "payments-7d9f8c-fghij");
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: payments, namespace: prod}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  selector: {app: payments}
  ports:
  - {name: web, port: 80, targetPort: http}
  - {name: raw, port: 81, targetPort: 9090}
  - {name: gone, port: 82, targetPort: missing}
  - {name: dns, port: 53, protocol: UDP}
---
";

#[test]
fn endpoints_by_selector() {
    let world = world(&format!("{FULL_POD}{SERVICE}"));
    let service = service(&world, "payments");
    assert_eq!(service.hostname, "payments.prod.svc.cluster.local");
    assert_eq!(service.vips, [ip("10.96.0.1"), ip("fd96::1")]);
    assert_eq!(service.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80, 81, 82]);
    assert_eq!(service.endpoints.len(), 2);
    assert!(service.endpoints.iter().all(|e| e.ready && world.pod_by_ip(e.ip).is_some()));
    assert_eq!(service.endpoints[0].ports, [(80, 8080), (81, 9090)].into());
    assert!(world.service_by_hostname("PAYMENTS.prod.svc.cluster.local").is_some());
}

#[test]
fn an_unready_or_dying_pod_is_an_unready_endpoint() {
    for change in [("Ready, status: 'True'", "Ready, status: 'False'"), ("  uid:", "  deletionTimestamp: x\n  uid:")] {
        let world = world(&format!("{}{SERVICE}", FULL_POD.replace(change.0, change.1)));
        assert!(service(&world, "payments").endpoints.iter().all(|e| !e.ready), "{change:?}");
    }
}

#[test]
fn endpoint_slices_count_more_than_selectors() {
    let slice = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: payments-1, namespace: prod, labels: {kubernetes.io/service-name: payments}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}}
- {addresses: [172.16.0.9], conditions: {ready: false}}
ports:
- {name: web, port: 8080, protocol: TCP}
";
    let world = world(&format!("{FULL_POD}{SERVICE}{slice}"));
    let endpoints = &service(&world, "payments").endpoints;
    assert_eq!(endpoints.len(), 2);
    assert_eq!(
        world.pod_by_ip(endpoints[0].ip).map(|pod| pod.uid.as_str()),
        Some("8a5a2f6e-0000-4000-8000-000000000001")
    );
    assert_eq!(endpoints[0].ports, [(80, 8080)].into());
    assert_eq!((world.pod_by_ip(endpoints[1].ip), endpoints[1].ready), (None, false));
}

#[test]
fn a_service_cannot_take_a_pods_or_another_services_address() {
    let thief = "\
apiVersion: v1
kind: Service
metadata: {name: thief, namespace: evil}
spec: {clusterIP: 10.96.0.7, externalIPs: [10.0.0.1, 10.96.0.1], ports: [{port: 80}]}
";
    let loaded = loaded(&format!("{FULL_POD}{SERVICE}{thief}"));
    assert_eq!(texts(&loaded.rejections).len(), 2, "{:?}", loaded.rejections);
    assert!(loaded.rejections[0].reason.starts_with("10.0.0.1 belongs to Pod prod/payments-7d9f8c-abcde"));
    assert_eq!(loaded.rejections[0].field.as_deref(), Some("spec.externalIPs[0]"));
    assert_eq!(service(&loaded.world, "thief").vips, [ip("10.96.0.7")]);
    assert_eq!(loaded.world.service_by_vip(ip("10.96.0.1")).unwrap().name, "payments");
}

#[test]
fn what_is_captured() {
    let text = "\
apiVersion: warren.dev/v1alpha1
kind: Mesh
spec: {captureRanges: [10.200.0.5/16]}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}
status: {podIP: 10.0.0.1, hostIP: 192.168.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec: {hostNetwork: true}
status: {podIP: 192.168.0.1, hostIP: 192.168.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {clusterIP: 10.96.0.1, type: LoadBalancer, ports: [{port: 443, nodePort: 30443}]}
status: {loadBalancer: {ingress: [{ip: 192.168.0.1}, {ip: 203.0.113.1}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
";
    let world = world(text);
    let captured = world.captured();
    let prefixes: Vec<_> = captured.prefixes().iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.0.0.1/32", "10.96.0.1/32", "10.200.0.0/16", "203.0.113.1/32"]);
    let node = ip("192.168.0.1");
    assert_eq!(captured.exact.iter().copied().collect::<Vec<_>>(), [(node, 443), (node, 8080), (node, 30443)]);
    assert!(world.service_by_vip(node).is_none());
}

#[test]
fn local_pods_by_section_or_annotation() {
    let text = "\
apiVersion: warren.dev/v1alpha1
kind: Mesh
metadata: {name: anything}
spec:
  trustDomain: reg-prod.example.com
  trustDomainAliases: [old.example.com]
  cluster: c1
  region: r1
  localPods:
  - {namespace: case, name: a, netns: /run/netns/a, ips: [10.0.0.1, '::ffff:10.0.0.9']}
---
apiVersion: v1
kind: Namespace
metadata: {name: case, labels: {warren.dev/mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: case}
spec: {nodeName: n1, serviceAccountName: case-api}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: case, annotations: {warren.dev/netns: /run/netns/b, warren.dev/ips: '10.0.0.2,fd00::2'}}
spec: {nodeName: n2}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: case}
spec: {nodeName: n1}
status: {podIP: 10.0.0.3}
";
    let world = world(text);
    assert_eq!(world.mesh.trust_domain.as_str(), "reg-prod.example.com");
    assert_eq!(world.mesh.trust_domain_aliases, ["old.example.com", "cluster.local"]);
    let local = |node| world.local_pods(node).map(|p| p.name.as_str()).collect::<Vec<_>>();
    assert_eq!((local("n1"), local("n2"), local("")), (vec!["a", "c"], vec!["b"], vec![]));
    let a = pod(&world, "case", "a");
    assert_eq!(a.uid.as_str(), "case_a");
    assert_eq!(a.identity.as_str(), "spiffe://reg-prod.example.com/ns/case/sa/case-api");
    assert_eq!(*a.ips, [ip("10.0.0.1"), ip("10.0.0.9")]);
    assert_eq!(*pod(&world, "case", "b").ips, [ip("10.0.0.2"), ip("fd00::2")]);
}

#[test]
fn a_local_pod_without_a_node_is_hinted_at() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {warren.dev/mode: ambient}\n  \
                annotations: {warren.dev/netns: /x}\n";
    let texts = texts(&loaded(text).rejections);
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("mesh.yaml:1: Pod default/a: spec.nodeName: missing"), "{texts:?}");
}

#[test]
fn a_pod_has_the_addresses_of_its_sandbox_and_nobody_else_has_them() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop, uid: u-new}
spec: {nodeName: n}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop, uid: u-old}
spec: {nodeName: n}
status: {podIP: 10.0.0.1}
";
    let world = world(text);
    let (new, old) = (PodUid::from("u-new"), PodUid::from("u-old"));
    let [one, two]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
    let ips = |world: &World, name| pod(world, "shop", name).ips.to_vec();
    let one_more = world.with_addresses([(&new, &[two][..])].into_iter()).unwrap();
    assert_eq!((ips(&one_more, "new"), ips(&one_more, "old")), (vec![two], vec![one]));
    assert_eq!(one_more.pod_by_ip(two).unwrap().uid, new);
    assert!(one_more.captured().addresses.contains_key(&two));
    assert!(one_more.with_addresses([(&new, &[two][..])].into_iter()).is_none(), "no news");
    let used_again = world.with_addresses([(&new, &[one][..])].into_iter()).unwrap();
    assert_eq!((ips(&used_again, "new"), ips(&used_again, "old")), (vec![one], vec![]), "its former owner is gone");
    assert_eq!(used_again.pod_by_ip(one).unwrap().uid, new);
    let both = world.with_addresses([(&new, &[one, two][..]), (&old, &[one][..])].into_iter()).unwrap();
    assert_eq!((ips(&both, "new"), ips(&both, "old")), (vec![one, two], vec![]), "one address, one pod");
    assert_eq!(*world.namespaces().get("shop").unwrap(), crate::enrolment::mode::Said::Mode(MeshMode::Ambient));
}
