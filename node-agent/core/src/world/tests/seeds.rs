//! Every object of seeds.md §1: what is accepted works, what is not is told.

use super::{loaded, pod};
use crate::identity::SpiffeId;
use crate::policy::{Connection, DenyReason, MtlsMode, PlainVerdict};
use crate::world::{Loaded, ObjectState, Severity, World};

const SEEDS: &str = include_str!("seeds.yaml");

/// Whether `from` (or plaintext) may connect to the pod.
fn decide(world: &World, from: Option<&str>, to: (&str, &str), port: u16) -> Result<String, DenyReason> {
    let source: Option<SpiffeId> = from.map(|path| format!("spiffe://prod.example.com/{path}").parse().unwrap());
    let destination = pod(world, to.0, to.1);
    let connection = Connection {
        source: source.as_ref(),
        source_ip: "10.1.0.1".parse().unwrap(),
        destination,
        destination_ip: destination.ips[0],
        destination_port: port,
    };
    world.policy().decide(&connection).map(|permit| permit.policy().to_string()).map_err(|denial| denial.reason)
}

#[test]
fn one_is_refused_and_says_which_field_and_what_follows() {
    let Loaded { rejections, .. } = loaded(SEEDS);
    let errors: Vec<_> = rejections.iter().filter(|r| r.severity == Severity::Error).collect();
    let [error] = errors[..] else { panic!("{errors:#?}") };
    assert_eq!(error.object.as_deref(), Some("PeerAuthentication default/strict-with-pin"));
    assert_eq!(error.field.as_deref(), Some("spec.peerMetadataCertificate"));
    let line = SEEDS.lines().position(|l| l.contains("peerMetadataCertificate:")).unwrap() + 1;
    assert_eq!(error.line, line);
    assert!(error.reason.contains("unknown field"), "{error}");
    assert!(error.reason.contains("deny everything"), "{error}");
}

#[test]
fn what_is_not_ours_is_told_without_fuss() {
    let Loaded { rejections, .. } = loaded(SEEDS);
    let ignored = rejections.iter().filter(|r| r.severity == Severity::Ignored);
    let ignored: Vec<_> = ignored.map(|r| r.object.clone().unwrap()).collect();
    assert_eq!(
        ignored,
        [
            "Deployment prod/payments",
            "Issuer my-ca",
            "Certificate service-a-cert",
            "EnvoyFilter limit-session-tickets",
            "NetworkPolicy restrict-payment-to-invoice",
            "NetworkPolicy ledger/ledger-default-deny",
            "NetworkPolicy ledger/allow-payment-to-ledger",
        ]
    );
}

#[test]
fn an_injection_label_alone_is_hinted_at() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: prod\n  labels: {istio-injection: enabled}\n";
    let Loaded { rejections, .. } = loaded(text);
    assert_eq!(rejections.len(), 1);
    assert_eq!((rejections[0].severity, rejections[0].line), (Severity::Ignored, 5));
    assert!(rejections[0].reason.contains("istio.io/dataplane-mode: ambient"));
}

#[test]
fn identity_and_port_rules_of_001() {
    let world = loaded(SEEDS).world;
    let payments = ("prod", "payments");
    let tcp = Ok("prod/payments-tcp-allow-orders".to_owned());
    assert_eq!(decide(&world, Some("ns/prod/sa/orders"), payments, 9090), tcp);
    assert_eq!(decide(&world, Some("ns/prod/sa/orders"), payments, 8080), Err(DenyReason::NoAllowMatched));
    assert_eq!(decide(&world, Some("ns/prod/sa/inventory"), payments, 9090), Err(DenyReason::NoAllowMatched));
    assert_eq!(decide(&world, None, payments, 9090), Err(DenyReason::PlaintextIntoStrict));
    let status = world.status().iter().find(|s| s.name == "payments-allow-orders").unwrap();
    assert_eq!((status.state, status.pods), (ObjectState::AcceptedWithWarnings, 1));
    assert!(status.messages.iter().any(|m| m.contains("methods")), "{status:?}");
}

#[test]
fn modes_and_pairs_of_002() {
    let world = loaded(SEEDS).world;
    let invoice = ("production", "invoice");
    let allowed = Ok("production/allow-payment-to-invoice".to_owned());
    assert_eq!(decide(&world, Some("ns/production/sa/payment-service"), invoice, 80), allowed);
    assert_eq!(decide(&world, Some("ns/production/sa/other"), invoice, 80), Err(DenyReason::NoAllowMatched));
    let other = ("production", "other");
    assert_eq!(decide(&world, Some("ns/production/sa/payment-service"), other, 80), Err(DenyReason::NoAllowMatched));
    assert_eq!(world.policy().mode(pod(&world, "production", "other"), 80), MtlsMode::Strict);
    assert_eq!(world.policy().mode(pod(&world, "staging", "web"), 80), MtlsMode::Permissive);
    let plan = world.policy().inbound_plan(pod(&world, "staging", "web"));
    assert_eq!(plan.default, PlainVerdict::Pass);
}

#[test]
fn a_refused_mode_denies_its_namespace() {
    let world = loaded(SEEDS).world;
    let reason = decide(&world, Some("ns/production/sa/payment-service"), ("default", "invoice"), 80);
    assert_eq!(reason, Err(DenyReason::PolicyNotUnderstood));
    let status = world.status().iter().find(|s| s.name == "strict-with-pin").unwrap();
    assert_eq!(status.state, ObjectState::NotUnderstood);
}

#[test]
fn without_the_refused_one_the_broad_rule_of_002_works() {
    let documents: Vec<_> = SEEDS.split("---\n").filter(|d| !d.contains("strict-with-pin")).collect();
    let world = loaded(&documents.join("---\n")).world;
    for source in ["ns/production/sa/payment-service", "ns/production/sa/anyone"] {
        let allowed = Ok("default/payment-to-invoice-authz".to_owned());
        assert_eq!(decide(&world, Some(source), ("default", "invoice"), 80), allowed);
    }
    assert_eq!(decide(&world, Some("ns/dev/sa/x"), ("default", "invoice"), 80), Err(DenyReason::NoAllowMatched));
}

#[test]
fn rules_of_003_and_004() {
    let world = loaded(SEEDS).world;
    let ledger = decide(&world, Some("ns/payments/sa/payment-api"), ("ledger", "ledger"), 8443);
    assert_eq!(ledger, Err(DenyReason::NoAllowMatched), "an L7 rule allows nothing without a waypoint");
    // cluster.local means the own trust domain, which is prod.example.com.
    let checkout = decide(&world, Some("ns/payments/sa/checkout"), ("payments", "payments"), 80);
    assert_eq!(checkout, Ok("payments/checkout-to-payments".to_owned()));
}
