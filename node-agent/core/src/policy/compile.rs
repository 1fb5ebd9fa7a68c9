//! Rules as written → alternatives that can be judged and looked up.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::decision::PolicyRef;
use super::matcher::{
    IpBlocks, Namespaces, Peer, Principals, Reading, ServiceAccounts, TrustDomains, TrustNames, parse_port,
};
use super::object::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source};

/// What is known of a connection; addresses are canonical.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) peer: Option<Peer<'a>>,
    pub(super) source_ip: IpAddr,
    pub(super) destination_ip: IpAddr,
    pub(super) port: u16,
}

/// Whether matching an alternative grants or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Grant,
    Refuse,
}

/// One `from` entry of one rule, with the rest of that rule.
#[derive(Debug)]
pub(super) struct Alternative {
    pub(super) policy: PolicyRef,
    pub(super) custom: bool,
    source: Vec<Term>,
    rest: Arc<Rest>,
}

/// What the alternatives of one rule share.
#[derive(Debug)]
struct Rest {
    /// Any of these; none means everything.
    operations: Vec<Vec<Term>>,
    conditions: Vec<Term>,
}

/// A field: any of its values, or none of them.
#[derive(Debug)]
struct Term {
    values: Values,
    negated: bool,
}

#[derive(Debug)]
enum Values {
    Principals(Principals),
    Namespaces(Namespaces),
    ServiceAccounts(ServiceAccounts),
    TrustDomains(TrustDomains),
    SourceIp(IpBlocks),
    DestinationIp(IpBlocks),
    Ports(BTreeSet<u16>),
}

/// By what the identity of every matching peer can be looked up.
#[derive(Debug)]
pub(super) enum IdentityKeys<'a> {
    Paths(Vec<&'a str>),
    Namespaces(Vec<&'a str>),
    Unlisted,
}

/// By which end's address every matching connection can be looked up.
#[derive(Debug, Clone, Copy)]
pub(super) enum BlockKeys<'a> {
    Source(&'a [IpNet]),
    Destination(&'a [IpNet]),
}

impl Alternative {
    /// Whether it covers the connection. In an ALLOW, a peer of a foreign
    /// trust domain must also be named by its whole principal.
    pub(super) fn covers(&self, facts: &Facts<'_>, effect: Effect) -> bool {
        let foreign = facts.peer.is_some_and(|peer| !peer.is_own());
        let named = || self.positive().any(|v| matches!(v, Values::Principals(_)));
        (effect == Effect::Refuse || !foreign || named())
            && all(&self.source, facts)
            && (self.rest.operations.is_empty() || self.rest.operations.iter().any(|o| all(o, facts)))
            && all(&self.rest.conditions, facts)
    }

    pub(super) fn identity_keys(&self) -> IdentityKeys<'_> {
        let paths = self.positive().find_map(|values| match values {
            Values::Principals(p) => p.listed_paths().map(|paths| paths.collect()),
            Values::ServiceAccounts(accounts) => Some(accounts.paths().collect()),
            _ => None,
        });
        let namespaces = || {
            self.positive().find_map(|values| match values {
                Values::Namespaces(n) => n.listed().map(|names| names.collect()),
                Values::Principals(p) => p.listed_namespaces(),
                _ => None,
            })
        };
        match paths {
            Some(paths) => IdentityKeys::Paths(paths),
            None => namespaces().map_or(IdentityKeys::Unlisted, IdentityKeys::Namespaces),
        }
    }

    /// The ports that can match, if they can be listed.
    pub(super) fn ports(&self) -> Option<BTreeSet<u16>> {
        let condition = self.rest.conditions.iter().find_map(Term::listed_ports);
        condition.cloned().or_else(|| {
            let listed = |terms: &Vec<Term>| terms.iter().find_map(Term::listed_ports).cloned();
            let operations = &self.rest.operations;
            let sets: Option<Vec<_>> = operations.iter().map(listed).collect();
            sets.filter(|s| !s.is_empty()).map(|s| s.into_iter().flatten().collect())
        })
    }

    /// The blocks of addresses that can match, if they can be listed.
    pub(super) fn blocks(&self) -> Option<BlockKeys<'_>> {
        self.positive().find_map(|values| match values {
            Values::SourceIp(blocks) => Some(BlockKeys::Source(blocks.listed())),
            Values::DestinationIp(blocks) => Some(BlockKeys::Destination(blocks.listed())),
            _ => None,
        })
    }

    fn positive(&self) -> impl Iterator<Item = &Values> {
        let terms = self.source.iter().chain(&self.rest.conditions);
        terms.filter(|t| !t.negated).map(|t| &t.values)
    }
}

impl Term {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        self.values.match_any(facts) != self.negated
    }

    fn listed_ports(&self) -> Option<&BTreeSet<u16>> {
        match &self.values {
            Values::Ports(ports) if !self.negated => Some(ports),
            _ => None,
        }
    }
}

impl Values {
    /// A constraint on identity never matches plaintext; its negation does.
    fn match_any(&self, facts: &Facts<'_>) -> bool {
        let peer = |test: &dyn Fn(&Peer<'_>) -> bool| facts.peer.as_ref().is_some_and(test);
        match self {
            Self::Principals(values) => peer(&|p| values.matches(p)),
            Self::Namespaces(values) => peer(&|p| values.matches(p)),
            Self::ServiceAccounts(values) => peer(&|p| values.matches(p)),
            Self::TrustDomains(values) => peer(&|p| values.matches(p)),
            Self::SourceIp(blocks) => blocks.matches(facts.source_ip),
            Self::DestinationIp(blocks) => blocks.matches(facts.destination_ip),
            Self::Ports(ports) => ports.contains(&facts.port),
        }
    }
}

fn all(terms: &[Term], facts: &Facts<'_>) -> bool {
    terms.iter().all(|term| term.holds(facts))
}

/// Compiles the rules of one policy that grants (ALLOW) or refuses (DENY,
/// CUSTOM).
pub(super) fn alternatives(
    policy: &AuthorizationPolicy,
    reference: &PolicyRef,
    names: &TrustNames,
) -> Vec<Alternative> {
    let compiler = Compiler { effect: effect(policy.spec.action), namespace: &policy.namespace, names };
    let rules = policy.spec.rules.iter();
    rules
        .filter_map(|rule| compiler.rule(rule))
        .flat_map(|(sources, rest)| {
            let rest = Arc::new(rest);
            sources.into_iter().map(move |source| Alternative {
                policy: reference.clone(),
                custom: policy.spec.action == Action::Custom,
                source,
                rest: rest.clone(),
            })
        })
        .collect()
}

fn effect(action: Action) -> Effect {
    match action {
        Action::Allow | Action::Audit => Effect::Grant,
        Action::Deny | Action::Custom => Effect::Refuse,
    }
}

/// The rule has an attribute that L4 cannot see, and its match would grant.
struct Unseen;

struct Compiler<'a> {
    effect: Effect,
    namespace: &'a str,
    names: &'a TrustNames,
}

impl Compiler<'_> {
    /// `None` if the rule cannot match at L4.
    fn rule(&self, rule: &Rule) -> Option<(Vec<Vec<Term>>, Rest)> {
        self.try_rule(rule).ok()
    }

    fn try_rule(&self, rule: &Rule) -> Result<(Vec<Vec<Term>>, Rest), Unseen> {
        let empty_source = Source::default();
        let empty_operation = Operation::default();
        let sources = rule.from.iter().map(|from| from.source.as_ref());
        let mut sources = sources.map(|s| self.source(s.unwrap_or(&empty_source))).collect::<Result<Vec<_>, _>>()?;
        if sources.is_empty() {
            sources.push(Vec::new());
        }
        let operations = rule.to.iter().map(|to| to.operation.as_ref());
        let operations =
            operations.map(|o| self.operation(o.unwrap_or(&empty_operation))).collect::<Result<Vec<_>, _>>()?;
        let mut conditions = Vec::new();
        for condition in &rule.when {
            self.condition(condition, &mut conditions)?;
        }
        Ok((sources, Rest { operations, conditions }))
    }

    fn source(&self, source: &Source) -> Result<Vec<Term>, Unseen> {
        let mut terms = Vec::new();
        let mut add = |key, values, not_values| self.add(&mut terms, key, values, not_values);
        add("source.principal", &source.principals, &source.not_principals)?;
        add("source.namespace", &source.namespaces, &source.not_namespaces)?;
        add("source.serviceAccount", &source.service_accounts, &source.not_service_accounts)?;
        add("source.trustDomain", &source.trust_domains, &source.not_trust_domains)?;
        add("source.ip", &source.ip_blocks, &source.not_ip_blocks)?;
        add("remote.ip", &source.remote_ip_blocks, &source.not_remote_ip_blocks)?;
        add("request.auth.principal", &source.request_principals, &source.not_request_principals)?;
        Ok(terms)
    }

    fn operation(&self, operation: &Operation) -> Result<Vec<Term>, Unseen> {
        let mut terms = Vec::new();
        let mut add = |key, values, not_values| self.add(&mut terms, key, values, not_values);
        add("destination.port", &operation.ports, &operation.not_ports)?;
        add("hosts", &operation.hosts, &operation.not_hosts)?;
        add("methods", &operation.methods, &operation.not_methods)?;
        add("paths", &operation.paths, &operation.not_paths)?;
        Ok(terms)
    }

    fn condition(&self, condition: &Condition, terms: &mut Vec<Term>) -> Result<(), Unseen> {
        let Condition { key, values, not_values } = condition;
        self.add(terms, key, values, not_values)
    }

    /// Adds the terms of one attribute. One that L4 cannot see drops a rule
    /// that grants and is taken as satisfied in a rule that refuses.
    fn add(&self, terms: &mut Vec<Term>, key: &str, values: &[String], not_values: &[String]) -> Result<(), Unseen> {
        let wanted = match self.effect {
            Effect::Grant => Reading::Narrow,
            Effect::Refuse => Reading::Wide,
        };
        let excepted = match self.effect {
            Effect::Grant => Reading::Wide,
            Effect::Refuse => Reading::Narrow,
        };
        for (list, reading, negated) in [(values, wanted, false), (not_values, excepted, true)] {
            if list.is_empty() {
                continue;
            }
            match self.values(key, list, reading) {
                Some(values) => terms.push(Term { values, negated }),
                None if self.effect == Effect::Grant => return Err(Unseen),
                None => {}
            }
        }
        Ok(())
    }

    /// `None` for an attribute that L4 cannot see.
    fn values(&self, key: &str, list: &[String], reading: Reading) -> Option<Values> {
        Some(match key {
            "source.principal" => Values::Principals(Principals::new(list, reading, self.names)),
            "source.namespace" => Values::Namespaces(Namespaces::new(list, reading)),
            "source.serviceAccount" => Values::ServiceAccounts(ServiceAccounts::new(list, self.namespace, reading)),
            "source.trustDomain" => Values::TrustDomains(TrustDomains::new(list, reading, self.names)),
            "source.ip" => Values::SourceIp(IpBlocks::new(list)),
            "destination.ip" => Values::DestinationIp(IpBlocks::new(list)),
            "destination.port" => Values::Ports(list.iter().filter_map(|p| parse_port(p)).collect()),
            _ => return None,
        })
    }
}
