//! Generated policy objects. Their vocabulary is small, so that they often
//! speak of the connections that are judged.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;

use super::super::object::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Condition, From, Mode, MutualTls, Operation,
    PeerAuthentication, PeerAuthenticationSpec, Provider, Rule, Source, TargetRef, To, WorkloadSelector,
};
use super::super::{NotUnderstood, PolicyKind, PolicySet};
use super::PORTS;

const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const PRINCIPALS: [&str; 24] = [
    "own.example/ns/a/sa/x",
    "own.example/ns/a/sa/x",
    "own.example/ns/b/sa/x",
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/a/sa/y",
    "old.example/ns/a/sa/x",
    "partner.org/ns/a/sa/x",
    "partner.org/ns/a/sa/x",
    "partner.org/ns/b/sa/y",
    "*",
    "*/sa/x",
    "*/ns/a/sa/x",
    "*ns/a/sa/x",
    "*.org/ns/a/sa/x",
    "*.example/ns/a/sa/x",
    "*x",
    "own.example/ns/a/*",
    "cluster.local/ns/*",
    "partner.org/*",
    "par*",
    "clu*",
    "*foo*",
    "spiffe://own.example/ns/a/sa/x",
    "spiffe://partner.org/*",
];
const NAMESPACE_VALUES: [&str; 6] = ["a", "b", "*", "a*", "*b", "istio-*"];
const ACCOUNTS: [&str; 5] = ["a/x", "a/y", "b/x", "x", "y"];
const TRUST_DOMAINS: [&str; 8] =
    ["own.example", "cluster.local", "old.example", "partner.org", "*", "*.org", "own*", "*.example"];
const IP_BLOCKS: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.0/16",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "fd00::/8",
    "::/0",
    "::ffff:10.0.0.1",
    "::ffff:10.0.0.0/112",
    "192.0.2.1",
];

fn values(vocabulary: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let some = vec(select(vocabulary).prop_map(str::to_owned), 1..3);
    prop_oneof![4 => Just(Vec::new()), 1 => some]
}

fn source() -> impl Strategy<Value = Source> {
    let identity = (
        values(&PRINCIPALS),
        values(&PRINCIPALS),
        values(&NAMESPACE_VALUES),
        values(&NAMESPACE_VALUES),
        values(&ACCOUNTS),
        values(&ACCOUNTS),
        values(&TRUST_DOMAINS),
        values(&TRUST_DOMAINS),
    );
    let rest = (
        values(&IP_BLOCKS),
        values(&IP_BLOCKS),
        prop_oneof![9 => Just(Vec::new()), 1 => Just(vec!["iss/sub".to_owned()])],
        prop_oneof![9 => Just(Vec::new()), 1 => Just(vec!["10.0.0.1".to_owned()])],
    );
    (identity, rest).prop_map(|((p, np, n, nn, s, ns, t, nt), (ip, nip, jwt, remote))| Source {
        principals: p,
        not_principals: np,
        namespaces: n,
        not_namespaces: nn,
        service_accounts: s,
        not_service_accounts: ns,
        trust_domains: t,
        not_trust_domains: nt,
        ip_blocks: ip,
        not_ip_blocks: nip,
        request_principals: jwt,
        not_remote_ip_blocks: remote,
        ..Source::default()
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let ports = || values(&["80", "8080", "9090"]);
    (ports(), ports(), values(&["GET"]), values(&["/x"])).prop_map(|(ports, not_ports, methods, not_paths)| Operation {
        ports,
        not_ports,
        methods,
        not_paths,
        ..Operation::default()
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    const KEYS: [(&str, &[&str]); 8] = [
        ("source.principal", &PRINCIPALS),
        ("source.namespace", &NAMESPACE_VALUES),
        ("source.serviceAccount", &ACCOUNTS),
        ("source.trustDomain", &TRUST_DOMAINS),
        ("source.ip", &IP_BLOCKS),
        ("destination.ip", &IP_BLOCKS),
        ("destination.port", &["80", "8080"]),
        ("request.headers[x]", &["y"]),
    ];
    select(&KEYS[..])
        .prop_flat_map(|(key, vocabulary)| (Just(key), values(vocabulary), values(vocabulary)))
        .prop_map(|(key, values, not_values)| Condition { key: key.to_owned(), values, not_values })
}

fn rule() -> impl Strategy<Value = Rule> {
    (vec(source(), 0..3), vec(operation(), 0..2), vec(condition(), 0..2)).prop_map(|(sources, operations, when)| Rule {
        from: sources.into_iter().map(|s| From { source: Some(s) }).collect(),
        to: operations.into_iter().map(|o| To { operation: Some(o) }).collect(),
        when,
    })
}

fn selector() -> impl Strategy<Value = Option<WorkloadSelector>> {
    let labels = select(&[("app", "p"), ("app", "q"), ("tier", "t")][..]);
    let some = vec(labels, 0..3).prop_map(|pairs| WorkloadSelector {
        match_labels: pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    });
    proptest::option::of(some)
}

/// Entries that set nothing are dropped rather than generated away, so that
/// most of what is generated is sound.
fn sound(mut rule: Rule) -> Rule {
    rule.from.retain(|f| f.source.as_ref() != Some(&Source::default()));
    rule.to.retain(|t| t.operation.as_ref() != Some(&Operation::default()));
    rule.when.retain(|c| !c.values.is_empty() || !c.not_values.is_empty());
    for source in rule.from.iter_mut().filter_map(|f| f.source.as_mut()) {
        if source.service_accounts.len() + source.not_service_accounts.len() > 0 {
            source.principals.clear();
            source.not_principals.clear();
            source.namespaces.clear();
            source.not_namespaces.clear();
        }
    }
    rule
}

fn policy() -> impl Strategy<Value = (String, bool, AuthorizationPolicySpec)> {
    let action = prop_oneof![
        8 => Just(Action::Allow),
        5 => Just(Action::Deny),
        1 => Just(Action::Audit),
        1 => Just(Action::Custom),
    ];
    let rules = vec(rule().prop_map(sound), 0..3);
    let namespace = select(&NAMESPACES[..]).prop_map(str::to_owned);
    let rarely = || prop::bool::weighted(0.05);
    (namespace, rarely(), rarely(), selector(), action, rules).prop_map(
        |(namespace, dry_run, targets, selector, action, rules)| {
            let target = TargetRef {
                group: "gateway.networking.k8s.io".to_owned(),
                kind: "Gateway".to_owned(),
                name: "w".to_owned(),
                namespace: String::new(),
            };
            let spec = AuthorizationPolicySpec {
                selector: selector.filter(|_| !targets),
                target_ref: targets.then_some(target),
                action,
                provider: (action == Action::Custom).then(|| Provider { name: "z".to_owned() }),
                rules,
                ..AuthorizationPolicySpec::default()
            };
            (namespace, dry_run, spec)
        },
    )
}

fn mode() -> impl Strategy<Value = MutualTls> {
    select(&[Mode::Unset, Mode::Disable, Mode::Permissive, Mode::Strict][..]).prop_map(|mode| MutualTls { mode })
}

fn peer_authentication() -> impl Strategy<Value = PeerAuthentication> {
    let ports = proptest::option::of(btree_map(select(&PORTS[..]), mode(), 1..3));
    let created = proptest::option::of(select(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"][..]));
    let namespace = select(&NAMESPACES[..]).prop_map(str::to_owned);
    (namespace, created, selector(), proptest::option::of(mode()), ports).prop_map(
        |(namespace, created, selector, mtls, ports)| PeerAuthentication {
            namespace,
            name: String::new(),
            created: created.map(|c| c.parse().unwrap()),
            spec: PeerAuthenticationSpec {
                port_level_mtls: ports.filter(|_| selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())),
                selector,
                mtls,
            },
        },
    )
}

fn not_understood() -> impl Strategy<Value = NotUnderstood> {
    const KINDS: [PolicyKind; 2] = [PolicyKind::AuthorizationPolicy, PolicyKind::PeerAuthentication];
    (select(&KINDS[..]), select(&NAMESPACES[..]), selector()).prop_map(|(kind, namespace, selector)| NotUnderstood {
        kind,
        namespace: namespace.to_owned(),
        name: "unread".to_owned(),
        selector,
        reason: "spec.rulez: unknown field".to_owned(),
    })
}

prop_compose! {
    pub(super) fn policy_set()(
        authorization in vec(policy(), 0..6),
        mut peer_authentication in vec(peer_authentication(), 0..4),
        not_understood in prop_oneof![12 => vec(not_understood(), 0..1), 1 => vec(not_understood(), 1..2)],
    ) -> PolicySet {
        let named = authorization.into_iter().enumerate();
        let named = named.map(|(i, (namespace, dry_run, spec))| AuthorizationPolicy {
            namespace,
            name: format!("p{i}"),
            dry_run,
            spec,
        });
        for (i, object) in peer_authentication.iter_mut().enumerate() {
            object.name = format!("m{i}");
        }
        PolicySet {
            authorization: named.filter(|p| p.spec.validate().is_ok()).collect(),
            peer_authentication,
            not_understood,
        }
    }
}
