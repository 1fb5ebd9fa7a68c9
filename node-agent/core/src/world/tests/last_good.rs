//! What a faulty new version leaves in force.

use super::{loaded, pod, reloaded, texts, world};
use crate::policy::{Connection, DenyReason};
use crate::world::{Loaded, ObjectState, World};

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: case, labels: {app: a, warren.dev/mode: ambient}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: case, labels: {app: b, warren.dev/mode: ambient}}
status: {podIP: 10.0.0.2}
---
";

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-web, namespace: case}
spec:
  selector: {matchLabels: {app: a}}
  action: DENY
  rules: [{from: [{source: {namespaces: [web]}}]}]
";

fn decide(world: &World, from: &str, to: &str) -> Result<(), DenyReason> {
    let source = format!("spiffe://prod.example.com/ns/{from}/sa/x").parse().unwrap();
    let destination = pod(world, "case", to);
    let connection = Connection {
        source: Some(&source),
        source_ip: "10.1.0.1".parse().unwrap(),
        destination,
        destination_ip: destination.ips[0],
        destination_port: 80,
    };
    world.policy().decide(&connection).map(drop).map_err(|denial| denial.reason)
}

#[test]
fn a_policy_refused_from_the_start_denies_what_it_selects() {
    let Loaded { world, rejections } = loaded(&format!("{PODS}{}", DENY.replace("DENY", "DENNY")));
    assert!(texts(&rejections)[0].contains("spec.action: unknown variant `DENNY`"), "{rejections:?}");
    assert!(texts(&rejections)[0].ends_with("the pods it is about deny everything"));
    assert_eq!(decide(&world, "case", "a"), Err(DenyReason::PolicyNotUnderstood));
    assert_eq!(decide(&world, "case", "b"), Ok(()));
    assert_eq!(world.status()[0].state, ObjectState::NotUnderstood);
    assert_eq!(world.status()[0].pods, 1);
}

#[test]
fn in_doubt_the_whole_namespace_denies() {
    let unreadable_selector = DENY.replace("matchLabels", "matchLabel");
    let not_yaml = DENY.replace("DENY", "[");
    let misspelt = DENY.replace("AuthorizationPolicy", "AuthorizationPolcy");
    let foreign = DENY.replace("istio.io", "istio.oi");
    let no_colon = DENY.replace("kind:", "kind");
    let no_kind = DENY.replace("kind: AuthorizationPolicy\n", "");
    for text in [unreadable_selector, not_yaml, misspelt, foreign, no_colon, no_kind] {
        let world = loaded(&format!("{PODS}{text}")).world;
        assert_eq!(decide(&world, "case", "a"), Err(DenyReason::PolicyNotUnderstood), "{text}");
        assert_eq!(decide(&world, "case", "b"), Err(DenyReason::PolicyNotUnderstood), "{text}");
    }
}

#[test]
fn in_the_root_namespace_the_mesh_denies() {
    let text = DENY.replace("namespace: case", "namespace: istio-system").replace("selector:", "selectors:");
    let world = loaded(&format!("{PODS}{text}")).world;
    assert_eq!(decide(&world, "case", "b"), Err(DenyReason::PolicyNotUnderstood));
}

#[test]
fn a_refused_policy_for_a_waypoint_denies_no_pod() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: w, namespace: case}\n\
                spec: {targetRefs: [{kind: Service, name: s}], bogus: 1}\n";
    let Loaded { world, rejections } = loaded(&format!("{PODS}{text}"));
    assert_eq!(rejections.len(), 1);
    assert_eq!(decide(&world, "case", "a"), Ok(()));
}

#[test]
fn the_version_before_stays() {
    let good = format!("{PODS}{DENY}");
    let first = world(&good);
    let broken = good.replace("DENY", "DENNY").replace("10.0.0.2", "10.0.0.x");
    let Loaded { world: second, rejections } = reloaded(&first, &broken);
    assert_eq!(rejections.len(), 2);
    assert!(texts(&rejections).iter().all(|t| t.ends_with("the version accepted before stays in force")));
    assert_eq!(decide(&second, "web", "a"), Err(DenyReason::DenyMatched));
    assert_eq!(decide(&second, "case", "a"), Ok(()));
    assert!(second.pod_by_ip("10.0.0.2".parse().unwrap()).is_some());
    assert_eq!(second.status()[0].state, ObjectState::LastGood);

    let third = reloaded(&second, &broken).world;
    assert_eq!(decide(&third, "web", "a"), Err(DenyReason::DenyMatched), "and stays a second time");
    let fourth = reloaded(&third, &good).world;
    assert_eq!(fourth.status()[0].state, ObjectState::Accepted);
    let fifth = reloaded(&fourth, PODS).world;
    assert_eq!(decide(&fifth, "web", "a"), Ok(()), "an object that is gone is gone");
}

#[test]
fn a_document_that_cannot_be_named_keeps_its_files_objects() {
    let first = world(&format!("{PODS}{DENY}"));
    for broken in ["]\n", "metadata: {name: [}\n", "kind AuthorizationPolicy\nmetadata: {namespace: case}\n"] {
        let Loaded { world: second, rejections } = reloaded(&first, &format!("{PODS}{broken}"));
        assert_eq!(rejections.len(), 1, "{broken}");
        assert_eq!(decide(&second, "web", "a"), Err(DenyReason::DenyMatched), "{broken}");
        assert_eq!(decide(&second, "case", "a"), Ok(()), "{broken}");
    }
}

#[test]
fn a_pod_refused_for_its_address_keeps_its_old_one_if_that_is_free() {
    let first = world(PODS);
    let taken = PODS.replace("10.0.0.2", "10.0.0.1");
    let second = reloaded(&first, &taken).world;
    assert_eq!(*pod(&second, "case", "b").ips, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    // Now `a` takes the old address of `b`, which still claims it too.
    let third = PODS.replace("10.0.0.1", "10.0.0.2");
    let Loaded { world: third, rejections } = reloaded(&second, &third);
    assert_eq!(rejections.len(), 1);
    assert_eq!(third.pods.len(), 1, "nothing is left for b");
}
