//! The index against the naive reference, on generated worlds, every
//! connection of a small universe judged in each.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::object::{AuthorizationPolicy, AuthorizationPolicySpec};
use super::reference::{Reference, Verdict};
use super::testing::{mesh, pod};
use super::{Connection, PlainVerdict, PolicyIndex, PolicySet};
use crate::identity::SpiffeId;
use crate::world::{MeshConfig, Pod};

mod objects;

use objects::policy_set;

const PORTS: [u16; 3] = [80, 8080, 9090];
const SOURCE_IPS: [&str; 4] = ["10.0.0.1", "10.1.0.1", "fd00::1", "::ffff:10.0.0.1"];
const IDENTITIES: [&str; 7] = [
    "spiffe://own.example/ns/a/sa/x",
    "spiffe://own.example/ns/a/sa/y",
    "spiffe://own.example/ns/b/sa/x",
    "spiffe://partner.org/ns/a/sa/x",
    "spiffe://partner.org/ns/b/sa/y",
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://old.example/ns/a/sa/x",
];
fn pods(mesh: &MeshConfig) -> Vec<Pod> {
    let app_p = [("app", "p")];
    let app_q = [("app", "q"), ("tier", "t")];
    [("a", &app_p[..]), ("a", &app_q[..]), ("b", &app_p[..]), ("b", &[][..]), ("istio-system", &app_q[..])]
        .iter()
        .enumerate()
        .map(|(i, (namespace, labels))| pod(mesh, namespace, &format!("pod-{i}"), labels))
        .collect()
}

/// Calls `judge` with every connection of the universe.
fn for_each_connection(pods: &[Pod], mut judge: impl FnMut(&Connection<'_>)) {
    let identities = IDENTITIES.map(|id| id.parse::<SpiffeId>().unwrap());
    let sources: Vec<_> = std::iter::once(None).chain(identities.iter().map(Some)).collect();
    for destination in pods {
        for source in &sources {
            for source_ip in SOURCE_IPS {
                for destination_port in PORTS {
                    judge(&Connection {
                        source: *source,
                        source_ip: source_ip.parse().unwrap(),
                        destination,
                        destination_ip: IpAddr::from([10, 0, 0, 1]),
                        destination_port,
                    });
                }
            }
        }
    }
}

fn check_against_reference(mesh: &MeshConfig, policies: &PolicySet) {
    let pods = pods(mesh);
    let index = PolicyIndex::build(mesh, &pods, policies);
    let reference = Reference { mesh, policies };
    for_each_connection(&pods, |connection| {
        let wanted = reference.decide(connection);
        match (index.decide(connection), &wanted) {
            (Ok(permit), Verdict::Allow(by)) => {
                assert!(by.contains(permit.policy().as_str()), "{permit:?} {wanted:?}");
            }
            (Err(denial), Verdict::Deny(by)) => {
                let policy = denial.policy.as_ref().map(ToString::to_string);
                assert!(by.contains(&(denial.reason, policy)), "{denial:?} {wanted:?}");
            }
            (got, _) => panic!("index {got:?}, reference {wanted:?}, {connection:?}"),
        }
        let (mode, _) = reference.mode(connection.destination, connection.destination_port);
        assert_eq!(index.mode(connection.destination, connection.destination_port), mode);
        check_plan(&index, connection, &wanted);
    });
}

fn check_plan(index: &PolicyIndex, connection: &Connection<'_>, wanted: &Verdict) {
    if connection.source.is_some() {
        return;
    }
    let plan = index.inbound_plan(connection.destination);
    let port = connection.destination_port;
    match plan.ports.get(&port).unwrap_or(&plan.default) {
        PlainVerdict::Pass => assert!(matches!(wanted, Verdict::Allow(_)), "passed {wanted:?}"),
        PlainVerdict::Refuse => assert!(matches!(wanted, Verdict::Deny(_)), "refused {wanted:?}"),
        PlainVerdict::Agent => {}
    }
}

fn decisions(mesh: &MeshConfig, policies: &PolicySet) -> Vec<String> {
    let pods = pods(mesh);
    let index = PolicyIndex::build(mesh, &pods, policies);
    let mut decisions = Vec::new();
    for_each_connection(&pods, |c| decisions.push(format!("{:?}", index.decide(c))));
    decisions
}

fn meshes() -> impl Strategy<Value = MeshConfig> {
    let aliases = subsequence(vec!["old.example".to_owned()], 0..=1);
    let names = prop_oneof![4 => Just("own.example"), 1 => Just("cluster.local")];
    (names, aliases).prop_map(|(name, aliases)| {
        let mut mesh = mesh(name);
        mesh.trust_domain_aliases.extend(aliases);
        mesh
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn index_agrees_with_reference(mesh in meshes(), policies in policy_set()) {
        check_against_reference(&mesh, &policies);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn order_of_reading_does_not_matter(
        (straight, shuffled) in policy_set().prop_flat_map(|straight| {
            let set = straight.clone();
            let rules = Just(set.authorization).prop_shuffle();
            let modes = Just(set.peer_authentication).prop_shuffle();
            let not_understood = set.not_understood;
            let shuffled = (rules, modes).prop_map(move |(authorization, peer_authentication)| {
                PolicySet {
                    authorization,
                    peer_authentication,
                    not_understood: not_understood.clone(),
                }
            });
            (Just(straight), shuffled)
        }),
    ) {
        let mesh = mesh("own.example");
        prop_assert_eq!(decisions(&mesh, &straight), decisions(&mesh, &shuffled));
    }
}

/// The universe must tell policies apart, or the properties prove little.
#[test]
fn universe_sees_both_answers() {
    let mesh = mesh("own.example");
    let spec: AuthorizationPolicySpec =
        serde_json::from_str(r#"{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/a/sa/x"]}}]}]}"#)
            .unwrap();
    let policies = PolicySet {
        authorization: vec![AuthorizationPolicy {
            namespace: "a".to_owned(),
            name: "p".to_owned(),
            dry_run: false,
            spec,
        }],
        ..PolicySet::default()
    };
    let mut counts: BTreeMap<bool, usize> = BTreeMap::new();
    let pods = pods(&mesh);
    let index = PolicyIndex::build(&mesh, &pods, &policies);
    for_each_connection(&pods, |c| *counts.entry(index.decide(c).is_ok()).or_default() += 1);
    assert!(counts.values().all(|count| *count > 50), "{counts:?}");
    check_against_reference(&mesh, &policies);
}
