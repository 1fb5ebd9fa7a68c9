//! The string grammar of policies (policy.md §3) and what it means for
//! identities once trust domains count (seeds.md §1, "Trust domains").

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::addr::canonical;
use crate::identity::SpiffeId;
use crate::world::MeshConfig;

/// A value of a policy: `*`, `*suffix`, `prefix*` or exact, tried in this
/// order; any other `*` is literal. Case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// Present and not empty.
    Any,
    /// Ends with.
    Suffix(String),
    /// Starts with.
    Prefix(String),
    /// Equals.
    Exact(String),
}

impl StringMatch {
    /// Reads a value.
    pub fn parse(value: &str) -> Self {
        if value == "*" {
            Self::Any
        } else if let Some(suffix) = value.strip_prefix('*') {
            Self::Suffix(suffix.to_owned())
        } else if let Some(prefix) = value.strip_suffix('*') {
            Self::Prefix(prefix.to_owned())
        } else {
            Self::Exact(value.to_owned())
        }
    }

    /// Whether `text` fits.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => !text.is_empty(),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Exact(exact) => text == exact,
        }
    }
}

/// Which way an identity pattern errs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// For patterns whose match grants: only an exact principal (or exact
    /// trust domain) reaches beyond the own trust domain.
    Narrow,
    /// For patterns whose match refuses: wildcards, namespaces and service
    /// accounts match in every trust domain, and a principal written with
    /// `spiffe://` is read as meant.
    Wide,
}

/// The names by which policies call the own trust domain.
#[derive(Debug, Clone)]
pub(super) struct TrustNames(Vec<String>);

impl TrustNames {
    pub(super) fn of(mesh: &MeshConfig) -> Self {
        let own = mesh.trust_domain.as_str().to_owned();
        let aliases = mesh.trust_domain_aliases.iter().cloned();
        let always = MeshConfig::CLUSTER_LOCAL.to_owned();
        Self(std::iter::once(own).chain(aliases).chain(std::iter::once(always)).collect())
    }

    fn any(&self, test: impl Fn(&str) -> bool) -> bool {
        self.0.iter().any(|name| test(name))
    }

    fn contains(&self, name: &str) -> bool {
        self.any(|n| n == name)
    }
}

/// A peer's identity as the matchers look at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer<'a> {
    id: &'a SpiffeId,
    own: bool,
}

impl<'a> Peer<'a> {
    pub(super) fn new(id: &'a SpiffeId, mesh: &MeshConfig) -> Self {
        let own = *id.trust_domain() == mesh.trust_domain;
        Self { id, own }
    }

    pub(super) fn is_own(&self) -> bool {
        self.own
    }

    pub(super) fn namespace(&self) -> &'a str {
        self.id.namespace()
    }

    /// `ns/NS/sa/SA`: the principal after its trust domain.
    pub(super) fn path(&self) -> &'a str {
        let principal = self.id.principal();
        &principal[self.id.trust_domain().as_str().len() + 1..]
    }
}

/// Values of `principals` and `source.principal`.
#[derive(Debug)]
pub(super) struct Principals {
    /// Any principal of the own trust domain.
    own_any: bool,
    /// Paths in the own trust domain.
    own_exact: HashSet<Box<str>>,
    own_prefixes: Vec<String>,
    own_suffixes: Vec<String>,
    /// Whole principals of foreign trust domains.
    foreign_exact: HashSet<Box<str>>,
    /// Patterns for whole principals of foreign trust domains; wide only.
    foreign_patterns: Vec<StringMatch>,
}

impl Principals {
    pub(super) fn new(values: &[String], reading: Reading, names: &TrustNames) -> Self {
        let mut this = Self {
            own_any: false,
            own_exact: HashSet::new(),
            own_prefixes: Vec::new(),
            own_suffixes: Vec::new(),
            foreign_exact: HashSet::new(),
            foreign_patterns: Vec::new(),
        };
        for value in values {
            let value = match reading {
                Reading::Narrow => value.as_str(),
                Reading::Wide => value.strip_prefix("spiffe://").unwrap_or(value),
            };
            let pattern = StringMatch::parse(value);
            this.add_own(&pattern, names);
            this.add_foreign(pattern, reading, names);
        }
        this
    }

    fn add_own(&mut self, pattern: &StringMatch, names: &TrustNames) {
        match pattern {
            StringMatch::Any => self.own_any = true,
            StringMatch::Exact(text) => {
                if let Some((td, path)) = text.split_once('/')
                    && names.contains(td)
                {
                    self.own_exact.insert(path.into());
                }
            }
            StringMatch::Prefix(text) => match text.split_once('/') {
                Some((td, path)) if names.contains(td) => self.own_prefixes.push(path.to_owned()),
                Some(_) => {}
                None => self.own_any |= names.any(|name| name.starts_with(text.as_str())),
            },
            // A principal has four slashes: a suffix with fewer of them lies
            // within the path, one with four begins in the trust domain.
            StringMatch::Suffix(text) => match text.matches('/').count() {
                0..4 => self.own_suffixes.push(text.clone()),
                4 => {
                    if let Some((td, path)) = text.split_once('/')
                        && names.any(|name| name.ends_with(td))
                    {
                        self.own_exact.insert(path.into());
                    }
                }
                _ => {}
            },
        }
    }

    fn add_foreign(&mut self, pattern: StringMatch, reading: Reading, names: &TrustNames) {
        match (pattern, reading) {
            (StringMatch::Exact(text), Reading::Wide) => {
                self.foreign_exact.insert(text.into());
            }
            (StringMatch::Exact(text), Reading::Narrow) => {
                let foreign = text.split_once('/').is_some_and(|(td, _)| !names.contains(td));
                if foreign {
                    self.foreign_exact.insert(text.into());
                }
            }
            (pattern, Reading::Wide) => self.foreign_patterns.push(pattern),
            (_, Reading::Narrow) => {}
        }
    }

    pub(super) fn matches(&self, peer: &Peer<'_>) -> bool {
        if peer.own {
            let path = peer.path();
            self.own_any
                || self.own_exact.contains(path)
                || self.own_prefixes.iter().any(|p| path.starts_with(p.as_str()))
                || self.own_suffixes.iter().any(|s| path.ends_with(s.as_str()))
        } else {
            let principal = peer.id.principal();
            self.foreign_exact.contains(principal) || self.foreign_patterns.iter().any(|p| p.matches(principal))
        }
    }

    /// Whether no principal can match, e.g. for `partner.org/*` read narrowly.
    pub(super) fn match_nobody(&self) -> bool {
        self.listed_paths().is_some_and(|mut paths| paths.next().is_none())
    }

    /// The paths of every principal that can match, if they can be listed.
    pub(super) fn listed_paths(&self) -> Option<impl Iterator<Item = &str>> {
        let listed = !self.own_any
            && self.own_prefixes.is_empty()
            && self.own_suffixes.is_empty()
            && self.foreign_patterns.is_empty();
        let foreign = self.foreign_exact.iter().filter_map(|p| p.split_once('/'));
        let own = self.own_exact.iter().map(|p| &**p);
        listed.then(|| own.chain(foreign.map(|(_, path)| path)))
    }

    /// The namespace of every principal that can match, if they can be listed:
    /// `cluster.local/ns/foo/*` is as good a key as `namespaces: [foo]`.
    pub(super) fn listed_namespaces(&self) -> Option<Vec<&str>> {
        if self.own_any || !self.own_suffixes.is_empty() {
            return None;
        }
        let own = self.own_exact.iter().map(|p| &**p).chain(self.own_prefixes.iter().map(String::as_str));
        let full = self.foreign_exact.iter().map(|p| Some(&**p));
        let patterns = self.foreign_patterns.iter().map(|pattern| match pattern {
            StringMatch::Prefix(text) => Some(text.as_str()),
            _ => None,
        });
        let foreign = full.chain(patterns).map(|text| Some(text?.split_once('/')?.1));
        own.map(Some).chain(foreign).map(|path| namespace_of(path?)).collect()
    }
}

/// Values of `namespaces` and `source.namespace`.
#[derive(Debug)]
pub(super) struct Namespaces {
    exact: HashSet<Box<str>>,
    patterns: Vec<StringMatch>,
    reading: Reading,
}

impl Namespaces {
    pub(super) fn new(values: &[String], reading: Reading) -> Self {
        let mut exact = HashSet::new();
        let mut patterns = Vec::new();
        for value in values {
            match StringMatch::parse(value) {
                StringMatch::Exact(text) => _ = exact.insert(text.into()),
                pattern => patterns.push(pattern),
            }
        }
        Self { exact, patterns, reading }
    }

    pub(super) fn matches(&self, peer: &Peer<'_>) -> bool {
        let namespace = peer.namespace();
        reaches(self.reading, peer)
            && (self.exact.contains(namespace) || self.patterns.iter().any(|p| p.matches(namespace)))
    }

    /// Every namespace that can match, if they can be listed.
    pub(super) fn listed(&self) -> Option<impl Iterator<Item = &str>> {
        self.patterns.is_empty().then(|| self.exact.iter().map(|n| &**n))
    }
}

/// Values of `serviceAccounts` and `source.serviceAccount`: `ns/sa`, or `sa`
/// in the policy's namespace.
#[derive(Debug)]
pub(super) struct ServiceAccounts {
    paths: HashSet<Box<str>>,
    reading: Reading,
}

impl ServiceAccounts {
    pub(super) fn new(values: &[String], policy_namespace: &str, reading: Reading) -> Self {
        let path = |value: &String| {
            let (ns, sa) = value.split_once('/').unwrap_or((policy_namespace, value));
            format!("ns/{ns}/sa/{sa}").into_boxed_str()
        };
        Self { paths: values.iter().map(path).collect(), reading }
    }

    pub(super) fn matches(&self, peer: &Peer<'_>) -> bool {
        reaches(self.reading, peer) && self.paths.contains(peer.path())
    }

    /// The path of every principal that can match.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(|p| &**p)
    }
}

/// Values of `trustDomains` and `source.trustDomain`.
#[derive(Debug)]
pub(super) struct TrustDomains {
    own: bool,
    foreign: Vec<StringMatch>,
}

impl TrustDomains {
    pub(super) fn new(values: &[String], reading: Reading, names: &TrustNames) -> Self {
        let patterns: Vec<_> = values.iter().map(|v| StringMatch::parse(v)).collect();
        let own = patterns.iter().any(|p| names.any(|name| p.matches(name)));
        let foreign = patterns
            .into_iter()
            .filter(|pattern| match (pattern, reading) {
                (_, Reading::Wide) => true,
                (StringMatch::Exact(text), Reading::Narrow) => !names.contains(text),
                (_, Reading::Narrow) => false,
            })
            .collect();
        Self { own, foreign }
    }

    pub(super) fn matches(&self, peer: &Peer<'_>) -> bool {
        if peer.own {
            self.own
        } else {
            let name = peer.id.trust_domain().as_str();
            self.foreign.iter().any(|p| p.matches(name))
        }
    }
}

/// Values of `ipBlocks`, `source.ip` and `destination.ip`.
#[derive(Debug)]
pub(super) struct IpBlocks(Vec<IpNet>);

impl IpBlocks {
    pub(super) fn new(values: &[String]) -> Self {
        Self(values.iter().filter_map(|v| parse_ip_block(v)).collect())
    }

    /// Every block that can match.
    pub(super) fn listed(&self) -> &[IpNet] {
        &self.0
    }

    /// `ip` must be canonical.
    pub(super) fn matches(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|block| block.contains(&ip))
    }
}

/// Reads an address or a CIDR. A v4-mapped one becomes the IPv4 block it
/// means, since peers' addresses are made canonical too.
pub fn parse_ip_block(value: &str) -> Option<IpNet> {
    let block: IpNet = match value.parse::<IpAddr>() {
        Ok(ip) => canonical(ip).into(),
        Err(_) => value.parse().ok()?,
    };
    match (canonical(block.addr()), block) {
        (IpAddr::V4(ip), IpNet::V6(mapped)) => match mapped.prefix_len().checked_sub(96) {
            Some(len) => Ipv4Net::new(ip, len).ok().map(IpNet::V4),
            None => Some(block),
        },
        _ => Some(block),
    }
}

/// Reads a port: decimal digits, 1 to 65535.
pub fn parse_port(value: &str) -> Option<u16> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten().filter(|port| *port != 0)
}

/// NS of a path that starts with `ns/NS/`.
fn namespace_of(path: &str) -> Option<&str> {
    Some(path.strip_prefix("ns/")?.split_once('/')?.0)
}

fn reaches(reading: Reading, peer: &Peer<'_>) -> bool {
    peer.own || reading == Reading::Wide
}

#[cfg(test)]
mod tests;
