//! Hand-written cases: the objects of the seeds and the sentences of
//! policy.md that a reader would look for.

use serde_json::{Value, json};

use super::testing::{mesh, pod};
use super::{
    AuthorizationPolicy, Connection, DenyReason, MtlsMode, NotUnderstood, PeerAuthentication, PlainVerdict,
    PolicyBuilder, PolicyIndex, PolicyKind, PolicySet, WorkloadSelector,
};
use crate::identity::SpiffeId;
use crate::world::{MeshConfig, Pod};

const ORDERS: &str = "spiffe://prod.example.com/ns/prod/sa/orders";
const OTHER: &str = "spiffe://prod.example.com/ns/prod/sa/other";
const FOREIGN: &str = "spiffe://partner.org/ns/prod/sa/orders";

struct Lab {
    mesh: MeshConfig,
    pod: Pod,
    policies: PolicySet,
}

impl Lab {
    fn new() -> Self {
        let mesh = mesh("prod.example.com");
        let pod = pod(&mesh, "prod", "payments-0", &[("app", "payments")]);
        Self { mesh, pod, policies: PolicySet::default() }
    }

    fn rules(mut self, name: &str, spec: Value) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        self.policies.authorization.push(AuthorizationPolicy {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            dry_run: false,
            spec: serde_json::from_value(spec).unwrap(),
        });
        self
    }

    fn dry_run(mut self) -> Self {
        self.policies.authorization.last_mut().unwrap().dry_run = true;
        self
    }

    fn mode(mut self, name: &str, created: Option<&str>, spec: Value) -> Self {
        let (namespace, name) = name.split_once('/').unwrap();
        self.policies.peer_authentication.push(PeerAuthentication {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            created: created.map(|c| c.parse().unwrap()),
            spec: serde_json::from_value(spec).unwrap(),
        });
        self
    }

    fn index(&self) -> PolicyIndex {
        PolicyIndex::build(&self.mesh, [&self.pod], &self.policies)
    }

    /// The policy that allowed, or the reason of the denial.
    fn ask(&self, source: &str, port: u16) -> Result<String, DenyReason> {
        let id = (source != "plaintext").then(|| source.parse::<SpiffeId>().unwrap());
        let connection = Connection {
            source: id.as_ref(),
            source_ip: "::ffff:10.9.0.1".parse().unwrap(),
            destination: &self.pod,
            destination_ip: "10.0.0.1".parse().unwrap(),
            destination_port: port,
        };
        let decision = self.index().decide(&connection);
        decision.map(|permit| permit.policy().to_string()).map_err(|denial| denial.reason)
    }

    fn allows(&self, source: &str, port: u16) -> bool {
        self.ask(source, port).is_ok()
    }
}

fn from(source: Value) -> Value {
    json!([{"from": [{"source": source}]}])
}

#[test]
fn without_policy_the_own_trust_domain_and_plaintext_are_allowed() {
    let lab = Lab::new();
    assert_eq!(lab.ask(ORDERS, 80).as_deref(), Ok("default-allow"));
    assert_eq!(lab.ask("plaintext", 80).as_deref(), Ok("default-allow"));
    assert_eq!(lab.ask(FOREIGN, 80), Err(DenyReason::ForeignTrustDomain));
}

#[test]
fn empty_forms_mean_what_the_table_says() {
    let nothing = Lab::new().rules("prod/nothing", json!({}));
    assert_eq!(nothing.ask(ORDERS, 80), Err(DenyReason::NoAllowMatched));
    let everything = Lab::new().rules("prod/everything", json!({"rules": [{}]}));
    assert_eq!(everything.ask("plaintext", 80).as_deref(), Ok("prod/everything"));
    assert_eq!(everything.ask(FOREIGN, 80), Err(DenyReason::ForeignTrustDomain));
    let deny = everything.rules("prod/z", json!({"action": "DENY", "rules": [{}]}));
    assert_eq!(deny.ask(ORDERS, 80), Err(DenyReason::DenyMatched));
}

/// 001, payments-tcp-allow-orders and payments-allow-orders.
#[test]
fn allows_by_principal_and_port_and_not_by_what_l4_cannot_see() {
    let selector = json!({"matchLabels": {"app": "payments"}});
    let principal = json!({"principals": ["cluster.local/ns/prod/sa/orders"]});
    let tcp = json!({"selector": selector, "action": "ALLOW", "rules": [
        {"from": [{"source": principal}], "to": [{"operation": {"ports": ["9090"]}}]}]});
    let http = json!({"selector": selector, "action": "ALLOW", "rules": [
        {"from": [{"source": principal}], "to": [{"operation": {"methods": ["POST"], "paths": ["/charge"]}}]}]});
    let lab = Lab::new().rules("prod/tcp", tcp).rules("prod/http", http);
    assert_eq!(lab.ask(ORDERS, 9090).as_deref(), Ok("prod/tcp"));
    assert_eq!(lab.ask(ORDERS, 8080), Err(DenyReason::NoAllowMatched));
    assert_eq!(lab.ask(OTHER, 9090), Err(DenyReason::NoAllowMatched));
    assert_eq!(lab.ask("plaintext", 9090), Err(DenyReason::NoAllowMatched));
    let index = lab.index();
    let [http, tcp] = index.bindings() else { panic!("{:?}", index.bindings()) };
    assert_eq!((http.pods, http.messages.len()), (1, 2));
    assert_eq!((tcp.pods, tcp.messages.len()), (1, 0));
}

#[test]
fn a_denial_tells_a_human_why() {
    let lab = Lab::new().rules("prod/only-orders", json!({"rules": from(json!({"serviceAccounts": ["orders"]}))}));
    let id: SpiffeId = OTHER.parse().unwrap();
    let connection = Connection {
        source: Some(&id),
        source_ip: "10.9.0.1".parse().unwrap(),
        destination: &lab.pod,
        destination_ip: "10.0.0.1".parse().unwrap(),
        destination_port: 80,
    };
    let denial = lab.index().decide(&connection).unwrap_err();
    assert_eq!(denial.to_string(), "source principal not allowed");
    assert_eq!(denial.policy.unwrap().as_str(), "prod/only-orders");
}

#[test]
fn foreign_trust_domains_need_their_full_name() {
    for source in [
        json!({"principals": ["*"]}),
        json!({"principals": ["*/ns/prod/sa/orders"]}),
        json!({"principals": ["partner.org/ns/prod/*"]}),
        json!({"namespaces": ["prod"]}),
        json!({"serviceAccounts": ["prod/orders"]}),
        json!({"trustDomains": ["partner.org"]}),
        json!({"notTrustDomains": ["prod.example.com"]}),
        json!({"ipBlocks": ["0.0.0.0/0"]}),
    ] {
        let lab = Lab::new().rules("prod/p", json!({"rules": from(source.clone())}));
        assert_eq!(lab.ask(FOREIGN, 80), Err(DenyReason::ForeignTrustDomain), "{source}");
    }
    let pattern = json!({"principals": ["partner.org/ns/prod/*", "prod.example.com/*", "*/sa/orders"]});
    let lab = Lab::new().rules("prod/p", json!({"rules": from(pattern)}));
    let messages = lab.index().bindings()[0].messages.clone();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].contains("partner.org/ns/prod/*"));
    let named = json!({"principals": ["partner.org/ns/prod/sa/orders"]});
    let lab = Lab::new().rules("prod/p", json!({"rules": from(named)}));
    assert_eq!(lab.ask(FOREIGN, 80).as_deref(), Ok("prod/p"));
    assert!(!lab.allows(ORDERS, 80));
}

#[test]
fn a_deny_reaches_foreign_trust_domains_by_any_pattern() {
    let named = json!({"rules": from(json!({"principals": ["partner.org/ns/prod/sa/orders"]}))});
    for source in [
        json!({"principals": ["*"]}),
        json!({"notPrincipals": ["*"]}),
        json!({"namespaces": ["prod"]}),
        json!({"notNamespaces": ["prod"]}),
        json!({"serviceAccounts": ["prod/orders"]}),
        json!({"trustDomains": ["*.org"]}),
        json!({"notTrustDomains": ["*"]}),
    ] {
        let deny = json!({"action": "DENY", "rules": from(source.clone())});
        let lab = Lab::new().rules("prod/allow", named.clone()).rules("prod/deny", deny);
        assert_eq!(lab.ask(FOREIGN, 80), Err(DenyReason::DenyMatched), "{source}");
    }
}

#[test]
fn a_deny_takes_what_l4_cannot_see_as_satisfied() {
    for rule in [
        json!({"to": [{"operation": {"methods": ["POST"]}}]}),
        json!({"from": [{"source": {"requestPrincipals": ["*"]}}]}),
        json!({"from": [{"source": {"notRequestPrincipals": ["*"]}}]}),
        json!({"when": [{"key": "request.headers[x]", "notValues": ["y"]}]}),
        json!({"from": [{"source": {"namespaces": ["prod"], "remoteIpBlocks": ["1.1.1.1"]}}]}),
    ] {
        let lab = Lab::new().rules("prod/deny", json!({"action": "DENY", "rules": [rule.clone()]}));
        assert_eq!(lab.ask(ORDERS, 80), Err(DenyReason::DenyMatched), "{rule}");
    }
}

#[test]
fn custom_fails_closed_and_audit_and_dry_run_have_no_effect() {
    let rules = json!([{"to": [{"operation": {"ports": ["80"]}}]}]);
    let custom = json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": rules});
    let lab = Lab::new().rules("prod/custom", custom);
    assert_eq!(lab.ask(ORDERS, 80), Err(DenyReason::CustomMatched));
    assert!(lab.allows(ORDERS, 81));
    assert!(lab.index().bindings()[0].messages[0].contains("denied"));
    let audit = Lab::new().rules("prod/audit", json!({"action": "AUDIT", "rules": rules}));
    assert_eq!(audit.ask(ORDERS, 80).as_deref(), Ok("default-allow"));
    let dry = Lab::new().rules("prod/dry", json!({})).dry_run();
    assert_eq!(dry.ask(ORDERS, 80).as_deref(), Ok("default-allow"));
    assert_eq!(dry.index().bindings()[0].messages, ["dry run: not enforced"]);
    assert_eq!(dry.index().inbound_plan(&dry.pod).default, PlainVerdict::Agent);
}

#[test]
fn policies_for_waypoints_are_not_enforced_at_l4() {
    let lab = Lab::new().rules("prod/w", json!({"targetRefs": [{"kind": "Service", "name": "payments"}]}));
    assert_eq!(lab.ask(ORDERS, 80).as_deref(), Ok("default-allow"));
    let index = lab.index();
    assert_eq!(index.bindings()[0].pods, 0);
    assert!(index.bindings()[0].messages[0].contains("waypoint is needed"));
}

#[test]
fn negations_hold_for_plaintext() {
    let istio_strict = json!({"action": "DENY", "rules": from(json!({"notPrincipals": ["*"]}))});
    let lab = Lab::new().rules("prod/strict", istio_strict);
    assert_eq!(lab.ask("plaintext", 80), Err(DenyReason::DenyMatched));
    assert!(lab.allows(ORDERS, 80));
    let allow = Lab::new().rules("prod/allow", json!({"rules": from(json!({"notNamespaces": ["x"]}))}));
    assert!(allow.allows("plaintext", 80));
}

#[test]
fn addresses_are_compared_canonically() {
    let lab = Lab::new().rules("prod/ip", json!({"rules": from(json!({"ipBlocks": ["10.9.0.0/16"]}))}));
    assert!(lab.allows("plaintext", 80));
    let not = json!({"ipBlocks": ["0.0.0.0/0"], "notIpBlocks": ["::ffff:10.9.0.1"]});
    assert!(!Lab::new().rules("prod/ip", json!({"rules": from(not)})).allows(ORDERS, 80));
}

#[test]
fn scopes_bind_as_the_table_says() {
    let selector = |app: &str| json!({"selector": {"matchLabels": {"app": app}}});
    for (policy, spec, applies) in [
        ("istio-system/p", json!({}), true),
        ("prod/p", json!({}), true),
        ("other/p", json!({}), false),
        ("prod/p", selector("payments"), true),
        ("prod/p", selector("orders"), false),
        ("istio-system/p", selector("payments"), true),
        ("istio-system/p", selector("orders"), false),
        ("other/p", selector("payments"), false),
        ("prod/p", json!({"selector": {}}), true),
    ] {
        let lab = Lab::new().rules(policy, spec.clone());
        assert_eq!(!lab.allows(ORDERS, 80), applies, "{policy} {spec}");
        assert_eq!(lab.index().bindings()[0].pods, usize::from(applies), "{policy} {spec}");
    }
}

#[test]
fn what_was_not_understood_denies_its_scope_only() {
    let mut lab = Lab::new().rules("prod/everything", json!({"rules": [{}]}));
    let selector = |app: &str| WorkloadSelector { match_labels: [("app".to_owned(), app.to_owned())].into() };
    lab.policies.not_understood.push(NotUnderstood {
        kind: PolicyKind::PeerAuthentication,
        namespace: "prod".to_owned(),
        name: "pinned".to_owned(),
        selector: Some(selector("orders")),
        reason: "spec.mtls: unknown field".to_owned(),
    });
    assert!(lab.allows(ORDERS, 80));
    lab.policies.not_understood[0].selector = Some(selector("payments"));
    assert_eq!(lab.ask(ORDERS, 80), Err(DenyReason::PolicyNotUnderstood));
    assert_eq!(lab.index().inbound_plan(&lab.pod).default, PlainVerdict::Agent);
    assert!(lab.index().bindings().iter().any(|b| !b.understood && b.pods == 1));
}

#[test]
fn an_unsound_object_that_reaches_the_index_denies() {
    let lab = Lab::new().rules("prod/p", json!({"action": "DENY", "rules": from(json!({"ipBlocks": ["10.9.0"]}))}));
    assert_eq!(lab.ask(ORDERS, 80), Err(DenyReason::PolicyNotUnderstood));
}

#[test]
fn a_pod_that_the_index_does_not_know_is_denied() {
    let mut lab = Lab::new();
    let index = lab.index();
    lab.pod.uid = "other".into();
    let connection = Connection {
        source: None,
        source_ip: "10.9.0.1".parse().unwrap(),
        destination: &lab.pod,
        destination_ip: "10.0.0.1".parse().unwrap(),
        destination_port: 80,
    };
    assert_eq!(index.decide(&connection).unwrap_err().reason, DenyReason::DestinationUnknown);
    assert_eq!(index.mode(&lab.pod, 80), MtlsMode::Strict);
    assert_eq!(index.inbound_plan(&lab.pod).default, PlainVerdict::Refuse);
}

#[test]
fn modes_inherit_from_port_to_mesh() {
    let strict = json!({"mtls": {"mode": "STRICT"}});
    let unset = json!({"mtls": {"mode": "UNSET"}});
    let selector = json!({"matchLabels": {"app": "payments"}});
    let port = |mode: &str| json!({"selector": selector, "portLevelMtls": {"8080": {"mode": mode}}});
    let lab = Lab::new().mode("istio-system/default", None, strict.clone());
    assert_eq!(lab.ask("plaintext", 80), Err(DenyReason::PlaintextIntoStrict));
    assert!(lab.allows(OTHER, 80));
    // policy.md §7: both corner cases of Istio's encoding.
    let lab = lab.mode("prod/default", None, unset).mode("prod/ports", None, port("DISABLE"));
    assert_eq!(lab.index().mode(&lab.pod, 80), MtlsMode::Strict);
    assert_eq!(lab.index().mode(&lab.pod, 8080), MtlsMode::Permissive);
    let plan = lab.index().inbound_plan(&lab.pod);
    assert_eq!(plan.default, PlainVerdict::Refuse);
    assert_eq!(plan.ports, [(8080, PlainVerdict::Pass)].into());
    let lab = Lab::new().mode("prod/default", None, strict).mode("prod/ports", None, port("UNSET"));
    assert_eq!(lab.index().mode(&lab.pod, 8080), MtlsMode::Strict);
    let lab = Lab::new().mode("prod/ports", None, port("STRICT"));
    assert_eq!(lab.index().inbound_plan(&lab.pod).ports, [(8080, PlainVerdict::Refuse)].into());
}

#[test]
fn the_oldest_of_a_scope_wins_and_a_selector_in_the_root_is_ignored() {
    let mode = |mode: &str| json!({"mtls": {"mode": mode}});
    let lab = Lab::new()
        .mode("prod/a", None, mode("PERMISSIVE"))
        .mode("prod/young", Some("2026-02-01T00:00:00Z"), mode("PERMISSIVE"))
        .mode("prod/old", Some("2026-01-01T00:00:00Z"), mode("STRICT"));
    assert_eq!(lab.index().default_mode(&lab.pod), MtlsMode::Strict);
    let index = lab.index();
    let ignored = index.bindings().iter().filter(|b| b.messages.iter().any(|m| m.starts_with("ignored")));
    assert_eq!(ignored.count(), 2);
    let selected = json!({"selector": {"matchLabels": {"app": "payments"}}, "mtls": {"mode": "STRICT"}});
    let lab = Lab::new().mode("istio-system/s", None, selected);
    assert_eq!(lab.index().default_mode(&lab.pod), MtlsMode::Permissive);
}

#[test]
fn a_pod_comes_and_goes_at_the_same_cost_however_many_policies_bind_it() {
    let mut lab = Lab::new();
    for number in 0..1000 {
        lab = lab.rules(&format!("prod/p{number}"), json!({"action": "DENY", "rules": [{}]}));
    }
    let mut builder = PolicyBuilder::new(lab.mesh.clone());
    builder.put_all(&lab.policies);
    builder.commit(|_| std::iter::empty());
    builder.put_pod(&lab.pod);
    let held = builder.index();
    let other = pod(&lab.mesh, "prod", "payments-1", &[("app", "payments")]);
    let cost = allocation_counter::measure(|| {
        builder.put_pod(&other);
        builder.remove_pod(&lab.pod);
    });
    assert!(cost.count_total < 100, "{} allocations", cost.count_total);
    builder.put_pod(&lab.pod);
    assert!(held.bindings().iter().all(|binding| binding.pods == 1));
    assert!(builder.index().bindings().iter().all(|binding| binding.pods == 2));
}
