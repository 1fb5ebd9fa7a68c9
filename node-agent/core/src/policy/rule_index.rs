//! Alternatives by identity, then by port, then by address, so that a decision
//! looks at those that could cover the connection and not at all there are.

use std::collections::{BTreeMap, HashMap};
use std::iter;
use std::net::IpAddr;

use super::compile::{Alternative, BlockKeys, Effect, Facts, IdentityKeys};
use super::prefix_table::PrefixTable;

/// The alternatives of one effect in one layer.
#[derive(Debug)]
pub(super) struct RuleIndex {
    effect: Effect,
    alternatives: Vec<Alternative>,
    /// By `ns/NS/sa/SA`, whatever the trust domain.
    paths: HashMap<Box<str>, Bucket>,
    /// By the peer's namespace.
    namespaces: HashMap<Box<str>, Bucket>,
    /// Those whose identities cannot be listed.
    unlisted: Bucket,
}

/// Alternatives of one identity.
#[derive(Debug, Default)]
struct Bucket {
    any_port: OfPort,
    by_port: BTreeMap<u16, OfPort>,
}

/// Alternatives of one identity and port: positions in `alternatives`.
#[derive(Debug, Default)]
struct OfPort {
    any_address: Vec<usize>,
    by_address: Option<Box<ByAddress>>,
}

/// Those that name blocks of addresses.
#[derive(Debug, Default)]
struct ByAddress {
    source: PrefixTable<Vec<usize>>,
    destination: PrefixTable<Vec<usize>>,
}

impl RuleIndex {
    pub(super) fn new(effect: Effect, alternatives: Vec<Alternative>) -> Self {
        let mut this = Self {
            effect,
            alternatives: Vec::new(),
            paths: HashMap::new(),
            namespaces: HashMap::new(),
            unlisted: Bucket::default(),
        };
        for alternative in alternatives {
            this.add(alternative);
        }
        this
    }

    fn add(&mut self, alternative: Alternative) {
        let position = self.alternatives.len();
        let (ports, blocks) = (alternative.ports(), alternative.blocks());
        let put = |bucket: &mut Bucket| match &ports {
            None => bucket.any_port.add(position, blocks),
            Some(ports) => {
                for port in ports {
                    bucket.by_port.entry(*port).or_default().add(position, blocks);
                }
            }
        };
        match alternative.identity_keys() {
            IdentityKeys::Paths(paths) => {
                for path in dedup(paths) {
                    put(self.paths.entry(path.into()).or_default());
                }
            }
            IdentityKeys::Namespaces(names) => {
                for name in dedup(names) {
                    put(self.namespaces.entry(name.into()).or_default());
                }
            }
            IdentityKeys::Unlisted => put(&mut self.unlisted),
        }
        self.alternatives.push(alternative);
    }

    /// An alternative that covers the connection. Allocates nothing.
    pub(super) fn find(&self, facts: &Facts<'_>) -> Option<&Alternative> {
        self.candidates(facts).find(|alternative| alternative.covers(facts, self.effect))
    }

    /// The alternatives that identity, port and addresses do not rule out.
    fn candidates(&self, facts: &Facts<'_>) -> impl Iterator<Item = &Alternative> {
        let Facts { peer, port, source_ip, destination_ip } = *facts;
        let path = peer.and_then(|peer| self.paths.get(peer.path()));
        let namespace = peer.and_then(|peer| self.namespaces.get(peer.namespace()));
        [path, namespace, Some(&self.unlisted)]
            .into_iter()
            .flatten()
            .flat_map(move |bucket| bucket.at(port, source_ip, destination_ip))
            .filter_map(|position| self.alternatives.get(*position))
    }

    /// Whether some alternative lists the peer's identity, for explanations.
    pub(super) fn lists(&self, facts: &Facts<'_>) -> bool {
        facts
            .peer
            .is_some_and(|peer| self.paths.contains_key(peer.path()) || self.namespaces.contains_key(peer.namespace()))
    }
}

impl Bucket {
    fn at(&self, port: u16, source: IpAddr, destination: IpAddr) -> impl Iterator<Item = &usize> {
        let of_port = self.by_port.get(&port).into_iter();
        of_port.chain(iter::once(&self.any_port)).flat_map(move |of_port| of_port.at(source, destination))
    }
}

impl OfPort {
    fn add(&mut self, position: usize, blocks: Option<BlockKeys<'_>>) {
        let Some(blocks) = blocks else { return self.any_address.push(position) };
        let by_address = self.by_address.get_or_insert_default();
        let (table, blocks) = match blocks {
            BlockKeys::Source(blocks) => (&mut by_address.source, blocks),
            BlockKeys::Destination(blocks) => (&mut by_address.destination, blocks),
        };
        for block in blocks {
            table.entry(*block).push(position);
        }
    }

    fn at(&self, source: IpAddr, destination: IpAddr) -> impl Iterator<Item = &usize> {
        let by_address = self.by_address.iter().flat_map(move |by_address| {
            let source = by_address.source.containing(source);
            source.chain(by_address.destination.containing(destination)).flatten()
        });
        self.any_address.iter().chain(by_address)
    }
}

/// Two values of one list may come down to the same key.
fn dedup(mut keys: Vec<&str>) -> Vec<&str> {
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::super::PolicyRef;
    use super::super::compile::{Effect, Facts, alternatives};
    use super::super::matcher::{Peer, TrustNames};
    use super::super::object::AuthorizationPolicy;
    use super::super::testing::mesh;
    use super::RuleIndex;

    /// `count` policies like `rules`, with `%` replaced by the policy's number.
    fn index(effect: Effect, count: usize, rules: &str) -> RuleIndex {
        let names = TrustNames::of(&mesh("own.example"));
        let policies = (0..count).map(|i| AuthorizationPolicy {
            namespace: "a".to_owned(),
            name: format!("p{i}"),
            dry_run: false,
            spec: serde_json::from_str(&rules.replace('%', &i.to_string())).unwrap(),
        });
        let all = policies.flat_map(|p| alternatives(&p, &PolicyRef::authorization("a", &p.name), &names));
        RuleIndex::new(effect, all.collect())
    }

    #[test]
    fn listed_identities_and_ports_are_looked_up() {
        let cases = [
            r#"{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/c/sa/s%"]}}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"principals":["*/ns/c/sa/s%"]}}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/n%/*","partner.org/ns/n%/sa/x"]}}]}]}"#,
            r#"{"action":"DENY","rules":[{"from":[{"source":{"principals":["cluster.local/ns/n%/*"]}}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"serviceAccounts":["c/s%"]}}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"namespaces":["n%"]}}]}]}"#,
            r#"{"rules":[{"when":[{"key":"source.namespace","values":["n%"]}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"namespaces":["n7"]}}],"to":[{"operation":{"ports":["1%"]}}]}]}"#,
            r#"{"rules":[{"to":[{"operation":{"ports":["1%"]}}]}]}"#,
            r#"{"rules":[{"when":[{"key":"destination.port","values":["1%"]}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"ipBlocks":["10.%.0.0/16","fd00:%::/32"]}}]}]}"#,
            r#"{"action":"DENY","rules":[{"when":[{"key":"destination.ip","values":["10.%.0.1"]}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"ipBlocks":["10.%.0.0/16"],"namespaces":["n7"]}}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"ipBlocks":["10.%.0.0/16"]}}],"to":[{"operation":{"ports":["17"]}}]}]}"#,
            r#"{"rules":[{"from":[{"source":{"ipBlocks":["10.%.0.0/16"],"notNamespaces":["x"]}}]}]}"#,
        ];
        let mesh = mesh("own.example");
        for rules in cases {
            for id in ["spiffe://own.example/ns/c/sa/s7", "spiffe://own.example/ns/n7/sa/x"] {
                let id = id.parse().unwrap();
                let address = "10.7.0.1".parse().unwrap();
                let facts =
                    Facts { peer: Some(Peer::new(&id, &mesh)), source_ip: address, destination_ip: address, port: 17 };
                let index = index(Effect::Grant, 250, rules);
                assert!(index.candidates(&facts).count() <= 1, "{rules}");
            }
        }
    }
}
