//! Arbitrary policies of a small mesh, judged by the compiled index and by the naive reference: the same answer for
//! every connection, and a plan for the kernel that never says more than the answer.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use warren_core::enrolment::mode::Decision;
use warren_core::identity::SpiffeId;
use warren_core::policy::object::{Action, Condition, From, Mode, MutualTls, Operation, Provider, Rule, Source, To};
use warren_core::policy::reference::{Reference, Verdict};
use warren_core::policy::{
    AuthorizationPolicy, AuthorizationPolicySpec, Connection, PeerAuthentication, PeerAuthenticationSpec, PlainVerdict,
    PolicyIndex, PolicySet, WorkloadSelector,
};
use warren_core::world::{MeshConfig, MeshMode, Pod, Workload, WorkloadKind};

/// Words that appear in policies. Half of them can match something here; the rest can be read wrongly.
const WORDS: [&str; 44] = [
    "*",
    "",
    "a",
    "b",
    "x",
    "y",
    "a/x",
    "b/y",
    "a*",
    "*b",
    "*a*",
    "istio-system",
    "istio-*",
    "mesh.test",
    "*.test",
    "mesh*",
    "cluster.local",
    "partner.org",
    "mesh.test/ns/a/sa/x",
    "mesh.test/ns/b/sa/y",
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/a/*",
    "partner.org/ns/a/sa/x",
    "partner.org/*",
    "*/sa/x",
    "*/ns/a/sa/x",
    "*x",
    "spiffe://mesh.test/ns/a/sa/x",
    "spiffe://*",
    "10.0.0.1",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "fd00::/8",
    "::/0",
    "::ffff:10.0.0.0/112",
    "::ffff:10.0.0.1",
    "10.0.0.0/33",
    "80",
    "8080",
    "080",
    "65536",
    "GET",
    "/x",
];
const KEYS: [&str; 10] = [
    "source.principal",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.ip",
    "remote.ip",
    "destination.ip",
    "destination.port",
    "request.headers[x]",
    "connection.sni",
];
const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const IDENTITIES: [&str; 5] = [
    "spiffe://mesh.test/ns/a/sa/x",
    "spiffe://mesh.test/ns/b/sa/y",
    "spiffe://partner.org/ns/a/sa/x",
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://mesh.test.org/ns/a/sa/x",
];

type Made<T> = arbitrary::Result<T>;

fn word(u: &mut Unstructured<'_>) -> Made<String> {
    // Now and then a word that nobody thought of.
    if u.ratio(1, 16)? {
        Ok(u.arbitrary::<&str>()?.chars().take(24).collect())
    } else {
        u.choose(&WORDS).map(|w| (*w).to_owned())
    }
}

fn words(u: &mut Unstructured<'_>) -> Made<Vec<String>> {
    if u.ratio(3, 4)? {
        return Ok(Vec::new());
    }
    (0..u.int_in_range(1..=2)?).map(|_| word(u)).collect()
}

fn several<T>(u: &mut Unstructured<'_>, most: usize, one: impl Fn(&mut Unstructured<'_>) -> Made<T>) -> Made<Vec<T>> {
    (0..u.int_in_range(0..=most)?).map(|_| one(u)).collect()
}

fn source(u: &mut Unstructured<'_>) -> Made<From> {
    Ok(From {
        source: Some(Source {
            principals: words(u)?,
            not_principals: words(u)?,
            request_principals: if u.ratio(1, 16)? { words(u)? } else { Vec::new() },
            namespaces: words(u)?,
            not_namespaces: words(u)?,
            service_accounts: words(u)?,
            not_service_accounts: words(u)?,
            trust_domains: words(u)?,
            not_trust_domains: words(u)?,
            ip_blocks: words(u)?,
            not_ip_blocks: words(u)?,
            not_remote_ip_blocks: if u.ratio(1, 16)? { words(u)? } else { Vec::new() },
            ..Source::default()
        }),
    })
}

fn operation(u: &mut Unstructured<'_>) -> Made<To> {
    Ok(To {
        operation: Some(Operation {
            ports: words(u)?,
            not_ports: words(u)?,
            methods: if u.ratio(1, 8)? { words(u)? } else { Vec::new() },
            not_paths: if u.ratio(1, 16)? { words(u)? } else { Vec::new() },
            ..Operation::default()
        }),
    })
}

fn condition(u: &mut Unstructured<'_>) -> Made<Condition> {
    Ok(Condition { key: (*u.choose(&KEYS)?).to_owned(), values: words(u)?, not_values: words(u)? })
}

fn rule(u: &mut Unstructured<'_>) -> Made<Rule> {
    Ok(Rule { from: several(u, 2, source)?, to: several(u, 2, operation)?, when: several(u, 2, condition)? })
}

fn selector(u: &mut Unstructured<'_>) -> Made<Option<WorkloadSelector>> {
    if u.arbitrary()? {
        return Ok(None);
    }
    let label = |u: &mut Unstructured<'_>| u.choose(&[("app", "p"), ("app", "q"), ("tier", "t")]).copied();
    let labels = several(u, 2, label)?;
    let match_labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Ok(Some(WorkloadSelector { match_labels }))
}

fn authorization(u: &mut Unstructured<'_>) -> Made<AuthorizationPolicy> {
    let action =
        *u.choose(&[Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit, Action::Custom])?;
    Ok(AuthorizationPolicy {
        namespace: (*u.choose(&NAMESPACES)?).to_owned(),
        name: String::new(),
        dry_run: u.ratio(1, 16)?,
        spec: AuthorizationPolicySpec {
            selector: selector(u)?,
            action,
            provider: (action == Action::Custom).then(|| Provider { name: "z".to_owned() }),
            rules: several(u, 3, rule)?,
            ..AuthorizationPolicySpec::default()
        },
    })
}

fn mode(u: &mut Unstructured<'_>) -> Made<MutualTls> {
    u.choose(&[Mode::Unset, Mode::Disable, Mode::Permissive, Mode::Strict]).map(|mode| MutualTls { mode: *mode })
}

fn peer_authentication(u: &mut Unstructured<'_>) -> Made<PeerAuthentication> {
    let port = |u: &mut Unstructured<'_>| Ok((*u.choose(&[80u16, 8080])?, mode(u)?));
    let ports: BTreeMap<_, _> = several(u, 2, port)?.into_iter().collect();
    Ok(PeerAuthentication {
        namespace: (*u.choose(&NAMESPACES)?).to_owned(),
        name: String::new(),
        created: None,
        spec: PeerAuthenticationSpec {
            selector: selector(u)?,
            mtls: if u.arbitrary()? { Some(mode(u)?) } else { None },
            port_level_mtls: (!ports.is_empty()).then_some(ports),
        },
    })
}

#[derive(Debug)]
struct Policies(PolicySet);

impl<'a> Arbitrary<'a> for Policies {
    fn arbitrary(u: &mut Unstructured<'a>) -> Made<Self> {
        let mut authorization = several(u, 5, authorization)?;
        let mut peer_authentication = several(u, 3, peer_authentication)?;
        authorization.iter_mut().enumerate().for_each(|(i, policy)| policy.name = format!("p{i}"));
        peer_authentication.iter_mut().enumerate().for_each(|(i, policy)| policy.name = format!("m{i}"));
        authorization.retain(|policy| policy.spec.validate().is_ok());
        peer_authentication.retain(|policy| policy.spec.validate().is_ok());
        Ok(Self(PolicySet { authorization, peer_authentication, not_understood: Vec::new() }))
    }
}

fn pod(mesh: &MeshConfig, namespace: &str, number: usize, labels: &[(&str, &str)]) -> Pod {
    let name = format!("pod-{number}");
    Pod {
        uid: format!("{namespace}/{name}").as_str().into(),
        namespace: namespace.into(),
        service_account: "default".into(),
        node: "n".into(),
        ips: ["10.0.0.9".parse().expect("address")].into(),
        labels: labels.iter().map(|(k, v)| (*k, *v)).collect(),
        ready: true,
        identity: SpiffeId::new(&mesh.trust_domain, namespace, "default").expect("identity"),
        decision: Decision::Enrol,
        mode: MeshMode::Ambient,
        netns: None,
        workload: Workload { kind: WorkloadKind::Pod, name: name.as_str().into() },
        canonical_name: name.as_str().into(),
        canonical_revision: "latest".into(),
        probed: [].into(),
        ports: [].into(),
        host_network: false,
        host_ips: [].into(),
        name: name.into(),
    }
}

fn check(index: &PolicyIndex, reference: &Reference<'_>, connection: &Connection<'_>) {
    let wanted = reference.decide(connection);
    let got = index.decide(connection);
    match (&got, &wanted) {
        (Ok(permit), Verdict::Allow(by)) => assert!(by.contains(permit.policy().as_str()), "{permit:?} {wanted:?}"),
        (Err(denial), Verdict::Deny(by)) => {
            let policy = denial.policy.as_ref().map(ToString::to_string);
            assert!(by.contains(&(denial.reason, policy)), "{denial:?} {wanted:?}");
        }
        _ => panic!("index {got:?}, reference {wanted:?}, {connection:?}"),
    }
    if connection.source.is_none() {
        let plan = index.inbound_plan(connection.destination);
        match plan.ports.get(&connection.destination_port).unwrap_or(&plan.default) {
            PlainVerdict::Pass => assert!(got.is_ok(), "the kernel would pass what policy denies"),
            PlainVerdict::Refuse => assert!(got.is_err(), "the kernel would refuse what policy allows"),
            PlainVerdict::Agent => {}
        }
    }
}

fuzz_target!(|policies: Policies| {
    let mesh = MeshConfig::new("mesh.test".parse().expect("trust domain"));
    let pods = [
        pod(&mesh, "a", 0, &[("app", "p")]),
        pod(&mesh, "a", 1, &[("app", "q"), ("tier", "t")]),
        pod(&mesh, "b", 2, &[]),
        pod(&mesh, "istio-system", 3, &[("app", "p")]),
    ];
    let index = PolicyIndex::build(&mesh, &pods, &policies.0);
    let reference = Reference { mesh: &mesh, policies: &policies.0 };
    let identities = IDENTITIES.map(|id| id.parse::<SpiffeId>().expect("identity"));
    for destination in &pods {
        for source in std::iter::once(None).chain(identities.iter().map(Some)) {
            for source_ip in ["10.0.0.1", "fd00::1", "::ffff:10.1.0.1"] {
                for destination_port in [80, 8080] {
                    let source_ip = source_ip.parse().expect("address");
                    let destination_ip = destination.ips[0];
                    check(
                        &index,
                        &reference,
                        &Connection { source, source_ip, destination, destination_ip, destination_port },
                    );
                }
            }
        }
    }
});
