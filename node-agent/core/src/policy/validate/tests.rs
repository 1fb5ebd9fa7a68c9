use serde_json::{Value, json};

use super::super::object::{AuthorizationPolicySpec, PeerAuthenticationSpec};

fn policy_errors(spec: Value) -> Vec<String> {
    let spec: AuthorizationPolicySpec = serde_json::from_value(spec).unwrap();
    spec.validate().unwrap_err().iter().map(|e| e.field.clone()).collect()
}

fn policy_warnings(spec: Value) -> Vec<String> {
    let spec: AuthorizationPolicySpec = serde_json::from_value(spec).unwrap();
    spec.validate().unwrap().iter().map(|w| w.field.clone()).collect()
}

fn source(action: &str, source: Value) -> Value {
    let provider = if action == "CUSTOM" { json!({"name": "p"}) } else { Value::Null };
    json!({"action": action, "provider": provider, "rules": [{"from": [{"source": source}]}]})
}

fn when(action: &str, condition: Value) -> Value {
    let provider = if action == "CUSTOM" { json!({"name": "p"}) } else { Value::Null };
    json!({"action": action, "provider": provider, "rules": [{"when": [condition]}]})
}

#[test]
fn refuses_unsound_policies_by_field() {
    let rules = json!([{}]);
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "w"});
    let many_rules: Vec<_> = (0..513).map(|_| json!({})).collect();
    let many_sources: Vec<_> = (0..513).map(|_| json!({"source": {"namespaces": ["a"]}})).collect();
    let many_accounts: Vec<_> = (0..17).map(|i| format!("a/s{i}")).collect();
    let cases = [
        (json!({"action": "DENY"}), "spec.rules"),
        (json!({"action": "CUSTOM", "provider": {"name": "p"}}), "spec.rules"),
        (json!({"action": "CUSTOM", "rules": rules}), "spec.provider"),
        (json!({"action": "CUSTOM", "rules": rules, "provider": {"name": ""}}), "spec.provider.name"),
        (json!({"provider": {"name": "p"}}), "spec.provider"),
        (json!({"rules": many_rules}), "spec.rules"),
        (json!({"rules": [{"from": many_sources}]}), "spec.rules[0].from"),
        (json!({"rules": [{"from": [{}]}]}), "spec.rules[0].from[0].source"),
        (json!({"rules": [{"from": [{"source": {}}]}]}), "spec.rules[0].from[0].source"),
        (json!({"rules": [{"to": [{}]}]}), "spec.rules[0].to[0].operation"),
        (json!({"rules": [{"to": [{"operation": {}}]}]}), "spec.rules[0].to[0].operation"),
        (json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}), "spec.rules[0].to[0].operation.ports[0]"),
        (json!({"rules": [{"to": [{"operation": {"paths": ["/{x}"]}}]}]}), "spec.rules[0].to[0].operation.paths[0]"),
        (source("ALLOW", json!({"principals": ["a", ""]})), "spec.rules[0].from[0].source.principals[1]"),
        (source("ALLOW", json!({"ipBlocks": ["10.0.0/8"]})), "spec.rules[0].from[0].source.ipBlocks[0]"),
        (source("ALLOW", json!({"notRemoteIpBlocks": ["x"]})), "spec.rules[0].from[0].source.notRemoteIpBlocks[0]"),
        (source("ALLOW", json!({"serviceAccounts": ["a/b/c"]})), "spec.rules[0].from[0].source.serviceAccounts[0]"),
        (source("ALLOW", json!({"serviceAccounts": ["a/*"]})), "spec.rules[0].from[0].source.serviceAccounts[0]"),
        (source("ALLOW", json!({"serviceAccounts": many_accounts})), "spec.rules[0].from[0].source.serviceAccounts"),
        (source("ALLOW", json!({"serviceAccounts": ["a/b"], "namespaces": ["a"]})), "spec.rules[0].from[0].source"),
        (source("CUSTOM", json!({"principals": ["*"]})), "spec.rules[0].from[0].source.principals"),
        (source("CUSTOM", json!({"notTrustDomains": ["x"]})), "spec.rules[0].from[0].source.notTrustDomains"),
        (when("CUSTOM", json!({"key": "source.principal", "values": ["*"]})), "spec.rules[0].when[0].key"),
        (when("CUSTOM", json!({"key": "request.auth.claims[a]", "values": ["*"]})), "spec.rules[0].when[0].key"),
        (when("ALLOW", json!({"key": "source.ip"})), "spec.rules[0].when[0]"),
        (when("ALLOW", json!({"key": "source.ip", "values": ["x"]})), "spec.rules[0].when[0].values[0]"),
        (when("ALLOW", json!({"key": "source.ports", "values": ["1"]})), "spec.rules[0].when[0].key"),
        (when("ALLOW", json!({"key": "request.headers", "values": ["1"]})), "spec.rules[0].when[0].key"),
        (when("ALLOW", json!({"key": "request.headers[]", "values": ["1"]})), "spec.rules[0].when[0].key"),
        (json!({"selector": {"matchLabels": {"app": "a*"}}}), "spec.selector.matchLabels[\"app\"]"),
        (json!({"selector": {}, "targetRef": gateway}), "spec"),
        (json!({"targetRefs": vec![&gateway; 17]}), "spec.targetRefs"),
        (json!({"targetRefs": [{"kind": "Pod", "name": "x"}]}), "spec.targetRefs[0]"),
        (json!({"targetRef": {"kind": "Service", "name": "x", "namespace": "y"}}), "spec.targetRef.namespace"),
    ];
    for (spec, field) in cases {
        assert_eq!(policy_errors(spec.clone()), [field], "{spec}");
    }
}

#[test]
fn refuses_what_the_types_do_not_know() {
    let unknown = [
        json!({"rulez": []}),
        json!({"action": "allow"}),
        json!({"selector": {"matchExpressions": []}}),
        json!({"rules": [{"form": []}]}),
        json!({"rules": [{"from": [{"source": {"principal": ["a"]}}]}]}),
        json!({"rules": [{"from": [{"namespaces": ["a"]}]}]}),
        json!({"rules": [{"to": [{"operation": {"ports": [80]}}]}]}),
        json!({"rules": [{"when": [{"values": ["a"]}]}]}),
        json!({"rules": [{"from": null}]}),
    ];
    for spec in unknown {
        assert!(serde_json::from_value::<AuthorizationPolicySpec>(spec.clone()).is_err(), "{spec}");
    }
}

#[test]
fn warns_where_a_policy_misleads() {
    let principals = |value: &str| source("ALLOW", json!({"principals": [value]}));
    let first = "spec.rules[0].from[0].source.principals[0]";
    let cases = [
        (principals("cluster.local/ns/a/sa/b"), vec![]),
        (principals("*/sa/b"), vec![]),
        (principals("spiffe://td/ns/a/sa/b"), vec![first]),
        (principals("td/ns/a/sa"), vec![first]),
        (principals("*foo*"), vec![first]),
        (source("ALLOW", json!({"notNamespaces": ["a"]})), vec!["spec.rules[0].from[0].source"]),
        (source("DENY", json!({"notNamespaces": ["a"]})), vec![]),
        (
            json!({"rules": [{"to": [{"operation": {"ports": ["1"], "methods": ["GET"], "paths": ["/"]}}]}]}),
            vec!["spec.rules[0].to[0].operation.methods", "spec.rules[0].to[0].operation.paths"],
        ),
        (when("DENY", json!({"key": "connection.sni", "values": ["a"]})), vec!["spec.rules[0].when[0]"]),
        (when("DENY", json!({"key": "source.trustDomain", "values": ["a"]})), vec![]),
        (json!({"action": "AUDIT"}), vec!["spec.action"]),
        (json!({"targetRef": {"kind": "Service", "name": "x"}}), vec!["spec"]),
    ];
    for (spec, fields) in cases {
        assert_eq!(policy_warnings(spec.clone()), fields, "{spec}");
    }
}

#[test]
fn checks_peer_authentications() {
    let read = |spec: Value| serde_json::from_value::<PeerAuthenticationSpec>(spec);
    let labels = json!({"matchLabels": {"app": "a"}});
    let ports = json!({"8080": {"mode": "DISABLE"}});
    let sound = read(json!({"selector": labels, "portLevelMtls": ports})).unwrap();
    let warnings = sound.validate().unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].field, "spec.portLevelMtls.8080.mode");
    for unsound in [
        json!({"portLevelMtls": ports}),
        json!({"selector": {}, "portLevelMtls": ports}),
        json!({"selector": labels, "portLevelMtls": {}}),
    ] {
        let errors = read(unsound).unwrap().validate().unwrap_err();
        assert_eq!(errors[0].field, "spec.portLevelMtls");
    }
    for unknown in [
        json!({"mtls": {"mode": "strict"}}),
        json!({"mtls": {"mode": "STRICT", "peerMetadataCertificate": {}}}),
        json!({"portLevelMtls": {"0": {}}}),
        json!({"portLevelMtls": {"70000": {}}}),
        json!({"portLevelMtls": {"http": {}}}),
    ] {
        assert!(read(unknown.clone()).is_err(), "{unknown}");
    }
}
