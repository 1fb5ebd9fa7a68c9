use super::super::testing::mesh;
use super::*;

#[test]
fn grammar_tries_suffix_before_prefix() {
    assert_eq!(StringMatch::parse("*"), StringMatch::Any);
    assert_eq!(StringMatch::parse("*foo*"), StringMatch::Suffix("foo*".to_owned()));
    assert_eq!(StringMatch::parse("foo*"), StringMatch::Prefix("foo".to_owned()));
    assert_eq!(StringMatch::parse("f*o"), StringMatch::Exact("f*o".to_owned()));
    assert_eq!(StringMatch::parse("**"), StringMatch::Suffix("*".to_owned()));
    assert!(!StringMatch::Any.matches(""));
}

#[test]
fn mapped_blocks_become_ipv4() {
    let block = |text| parse_ip_block(text).map(|b| b.to_string());
    assert_eq!(block("::ffff:10.0.0.1").as_deref(), Some("10.0.0.1/32"));
    assert_eq!(block("::ffff:10.0.0.0/104").as_deref(), Some("10.0.0.0/8"));
    assert_eq!(block("10.0.0.1").as_deref(), Some("10.0.0.1/32"));
    assert_eq!(block("::/0").as_deref(), Some("::/0"));
    for bad in ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/-1", "a", "1.2.3.4/8/8"] {
        assert_eq!(block(bad), None, "{bad}");
    }
}

#[test]
fn ports_are_plain_decimals() {
    assert_eq!(parse_port("65535"), Some(65535));
    for bad in ["", "0", "65536", "+80", "-1", "80 ", "http", "8_0"] {
        assert_eq!(parse_port(bad), None, "{bad}");
    }
}

/// (pattern, principal, narrow, wide)
#[test]
fn principals_reach_foreign_domains_only_where_that_is_safe() {
    let cases = [
        ("*", "own.example/ns/a/sa/x", true, true),
        ("*", "partner.org/ns/a/sa/x", false, true),
        ("*/sa/x", "own.example/ns/a/sa/x", true, true),
        ("*/sa/x", "partner.org/ns/a/sa/x", false, true),
        ("partner.org/*", "partner.org/ns/a/sa/x", false, true),
        ("partner.org/ns/a/sa/x", "partner.org/ns/a/sa/x", true, true),
        ("partner.org/ns/a/sa/x", "own.example/ns/a/sa/x", false, false),
        ("cluster.local/ns/a/sa/x", "own.example/ns/a/sa/x", true, true),
        ("cluster.local/ns/a/*", "own.example/ns/a/sa/x", true, true),
        // An alias names the own trust domain, not a foreign one that is called so.
        ("cluster.local/ns/a/sa/x", "cluster.local/ns/a/sa/x", false, true),
        ("spiffe://own.example/ns/a/sa/x", "own.example/ns/a/sa/x", false, true),
        ("*.local/ns/a/sa/x", "own.example/ns/a/sa/x", true, true),
        ("*n.example/ns/a/sa/x", "own.example/ns/a/sa/x", true, true),
        ("own.example/ns/a/sa/x", "own.example/ns/a/sa/xy", false, false),
        ("own.example/ns/a/sa/x*", "own.example/ns/a/sa/xy", true, true),
        ("own.exampl", "own.example/ns/a/sa/x", false, false),
    ];
    let mesh = mesh("own.example");
    let names = TrustNames::of(&mesh);
    for (pattern, principal, narrow, wide) in cases {
        let id: SpiffeId = format!("spiffe://{principal}").parse().unwrap();
        let peer = Peer::new(&id, &mesh);
        for (reading, wanted) in [(Reading::Narrow, narrow), (Reading::Wide, wide)] {
            let principals = Principals::new(&[pattern.to_owned()], reading, &names);
            assert_eq!(principals.matches(&peer), wanted, "{pattern} {principal} {reading:?}");
        }
    }
}
