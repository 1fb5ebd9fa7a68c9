//! The naive evaluator that the index is compared with: every object, every
//! rule, every value, straight from policy.md and seeds.md, for each question.
//!
//! It shares nothing with the index but the object types. Objects must have
//! passed validation.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::decision::{Connection, DenyReason, MtlsMode};
use super::object::{
    Action, AuthorizationPolicy, Mode, MutualTls, Operation, PeerAuthentication, Rule, Source, WorkloadSelector,
};
use super::scope::PolicySet;
use crate::identity::SpiffeId;
use crate::world::{MeshConfig, Pod};

/// What the specification says about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed by any of these (`ns/name`, or `default-allow`).
    Allow(BTreeSet<String>),
    /// Denied for any of these reasons, with the policy that may be named.
    Deny(BTreeSet<(DenyReason, Option<String>)>),
}

/// Every object of a world, unprepared.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// Facts of the mesh.
    pub mesh: &'a MeshConfig,
    /// All objects.
    pub policies: &'a PolicySet,
}

impl Reference<'_> {
    /// Judges a connection.
    pub fn decide(&self, connection: &Connection<'_>) -> Verdict {
        let pod = connection.destination;
        let refused: BTreeSet<_> = self
            .policies
            .not_understood
            .iter()
            .filter(|n| self.applies(&n.namespace, n.selector.as_ref(), pod))
            .map(|n| match n.kind {
                super::PolicyKind::AuthorizationPolicy => format!("{}/{}", n.namespace, n.name),
                super::PolicyKind::PeerAuthentication => {
                    format!("peer-authentication {}/{}", n.namespace, n.name)
                }
            })
            .map(|name| (DenyReason::PolicyNotUnderstood, Some(name)))
            .collect();
        if !refused.is_empty() {
            return Verdict::Deny(refused);
        }
        let (mode, by) = self.mode(pod, connection.destination_port);
        if connection.source.is_none() && mode == MtlsMode::Strict {
            return Verdict::Deny([(DenyReason::PlaintextIntoStrict, by)].into());
        }
        self.judge_rules(connection)
    }

    fn judge_rules(&self, connection: &Connection<'_>) -> Verdict {
        let pod = connection.destination;
        let name = |p: &AuthorizationPolicy| format!("{}/{}", p.namespace, p.name);
        let effective = |action| {
            let all = self.policies.authorization.iter();
            all.filter(move |p| p.spec.action == action)
                .filter(|p| !(p.dry_run && p.spec.action != Action::Custom))
                .filter(|p| p.spec.target_ref.is_none() && p.spec.target_refs.is_empty())
                .filter(|p| self.applies(&p.namespace, p.spec.selector.as_ref(), pod))
        };
        let covers = |policy: &AuthorizationPolicy| {
            let question = Question {
                mesh: self.mesh,
                connection,
                policy_namespace: &policy.namespace,
                grants: policy.spec.action == Action::Allow,
            };
            policy.spec.rules.iter().any(|rule| question.rule(rule))
        };
        let denying = effective(Action::Deny).map(|p| (DenyReason::DenyMatched, p));
        let custom = effective(Action::Custom).map(|p| (DenyReason::CustomMatched, p));
        let matched: BTreeSet<_> =
            denying.chain(custom).filter(|(_, p)| covers(p)).map(|(reason, p)| (reason, Some(name(p)))).collect();
        if !matched.is_empty() {
            return Verdict::Deny(matched);
        }
        let allowing: BTreeSet<_> = effective(Action::Allow).filter(|p| covers(p)).map(name).collect();
        if !allowing.is_empty() {
            return Verdict::Allow(allowing);
        }
        let considered: BTreeSet<_> = effective(Action::Allow).map(name).collect();
        let foreign = connection.source.is_some_and(|id| *id.trust_domain() != self.mesh.trust_domain);
        let reason = if foreign {
            DenyReason::ForeignTrustDomain
        } else if considered.is_empty() {
            return Verdict::Allow(["default-allow".to_owned()].into());
        } else {
            DenyReason::NoAllowMatched
        };
        let mut named: BTreeSet<_> = considered.into_iter().map(|n| (reason, Some(n))).collect();
        if named.is_empty() {
            named.insert((reason, None));
        }
        Verdict::Deny(named)
    }

    /// The mode of a port, and what set it.
    pub fn mode(&self, pod: &Pod, port: u16) -> (MtlsMode, Option<String>) {
        let root = &self.mesh.root_namespace;
        let has_labels = |p: &PeerAuthentication| {
            let selector = p.spec.selector.as_ref();
            selector.is_some_and(|s| !s.match_labels.is_empty())
        };
        let oldest = |test: &dyn Fn(&PeerAuthentication) -> bool| {
            let all = self.policies.peer_authentication.iter();
            all.filter(|p| test(p)).min_by_key(|p| {
                let undated = p.created.is_none();
                (undated, p.created, p.name.clone())
            })
        };
        let workload = oldest(&|p| {
            has_labels(p) && p.namespace != *root && self.applies(&p.namespace, p.spec.selector.as_ref(), pod)
        });
        let namespace = oldest(&|p| !has_labels(p) && pod.namespace == p.namespace && p.namespace != *root);
        let mesh = oldest(&|p| !has_labels(p) && p.namespace == *root);
        let of_port = workload.and_then(|p| {
            let ports = p.spec.port_level_mtls.as_ref()?;
            Some((p, *ports.get(&port)?))
        });
        let of_scope = |p: &PeerAuthentication| p.spec.mtls.unwrap_or_default();
        let candidates = [
            of_port,
            workload.map(|p| (p, of_scope(p))),
            namespace.map(|p| (p, of_scope(p))),
            mesh.map(|p| (p, of_scope(p))),
        ];
        for (policy, MutualTls { mode }) in candidates.into_iter().flatten() {
            let name = format!("peer-authentication {}/{}", policy.namespace, policy.name);
            match mode {
                Mode::Unset => {}
                Mode::Strict => return (MtlsMode::Strict, Some(name)),
                Mode::Permissive | Mode::Disable => return (MtlsMode::Permissive, Some(name)),
            }
        }
        (MtlsMode::Permissive, None)
    }

    /// The scope table of policy.md §1.1.
    fn applies(&self, namespace: &str, selector: Option<&WorkloadSelector>, pod: &Pod) -> bool {
        let in_namespace = namespace == self.mesh.root_namespace || pod.namespace == namespace;
        let mut labels = selector.iter().flat_map(|s| &s.match_labels);
        in_namespace && labels.all(|(key, value)| pod.labels.get(key) == Some(value.as_str()))
    }
}

/// One connection asked of one policy.
struct Question<'a> {
    mesh: &'a MeshConfig,
    connection: &'a Connection<'a>,
    policy_namespace: &'a str,
    grants: bool,
}

/// What one attribute says: `None` if L4 cannot see it.
type Seen = Option<bool>;

impl Question<'_> {
    fn rule(&self, rule: &Rule) -> bool {
        let sources: Vec<_> = rule.from.iter().filter_map(|f| f.source.as_ref()).collect();
        let operations: Vec<_> = rule.to.iter().filter_map(|t| t.operation.as_ref()).collect();
        let froms: Vec<Vec<Seen>> = sources.iter().map(|s| self.source(s)).collect();
        let tos: Vec<Vec<Seen>> = operations.iter().map(|o| self.operation(o)).collect();
        let whens: Vec<Seen> =
            rule.when.iter().flat_map(|c| self.attribute(&c.key, &c.values, &c.not_values)).collect();
        let everything = froms.iter().chain(&tos).flatten().chain(&whens);
        if self.grants && everything.into_iter().any(|seen| seen.is_none()) {
            return false;
        }
        let holds = |list: &Vec<Seen>| list.iter().all(|seen| seen.unwrap_or(true));
        let is_foreign = |id: &&SpiffeId| id.trust_domain() != &self.mesh.trust_domain;
        let named_by = |values: &[String]| {
            let foreign = self.connection.source.filter(is_foreign);
            foreign.is_none_or(|id| values.iter().any(|v| v == id.principal()))
        };
        let named_by_when = rule.when.iter().any(|c| c.key == "source.principal" && named_by(&c.values));
        let from_holds = if froms.is_empty() {
            !self.grants || named_by_when || named_by(&[])
        } else {
            froms
                .iter()
                .zip(&sources)
                .any(|(from, source)| holds(from) && (!self.grants || named_by_when || named_by(&source.principals)))
        };
        from_holds && (tos.is_empty() || tos.iter().any(holds)) && holds(&whens)
    }

    fn source(&self, s: &Source) -> Vec<Seen> {
        [
            self.attribute("source.principal", &s.principals, &s.not_principals),
            self.attribute("source.namespace", &s.namespaces, &s.not_namespaces),
            self.attribute("source.serviceAccount", &s.service_accounts, &s.not_service_accounts),
            self.attribute("source.trustDomain", &s.trust_domains, &s.not_trust_domains),
            self.attribute("source.ip", &s.ip_blocks, &s.not_ip_blocks),
            self.attribute("remote.ip", &s.remote_ip_blocks, &s.not_remote_ip_blocks),
            self.attribute("jwt", &s.request_principals, &s.not_request_principals),
        ]
        .concat()
    }

    fn operation(&self, o: &Operation) -> Vec<Seen> {
        [
            self.attribute("destination.port", &o.ports, &o.not_ports),
            self.attribute("host", &o.hosts, &o.not_hosts),
            self.attribute("method", &o.methods, &o.not_methods),
            self.attribute("path", &o.paths, &o.not_paths),
        ]
        .concat()
    }

    /// Any of `values`, none of `not_values`; an empty list says nothing.
    fn attribute(&self, key: &str, values: &[String], not_values: &[String]) -> Vec<Seen> {
        let mut said = Vec::new();
        if !values.is_empty() {
            let wide = !self.grants;
            said.push(any(values.iter().map(|v| self.value(key, v, wide))));
        }
        if !not_values.is_empty() {
            let wide = self.grants;
            let any = any(not_values.iter().map(|v| self.value(key, v, wide)));
            said.push(any.map(|matched| !matched));
        }
        said
    }

    fn value(&self, key: &str, value: &str, wide: bool) -> Seen {
        let connection = self.connection;
        Some(match key {
            "source.ip" => in_block(value, connection.source_ip),
            "destination.ip" => in_block(value, connection.destination_ip),
            "destination.port" => value == connection.destination_port.to_string(),
            "source.principal" | "source.namespace" | "source.serviceAccount" | "source.trustDomain" => {
                connection.source.is_some_and(|id| self.identity(key, value, wide, id))
            }
            _ => return None,
        })
    }

    fn identity(&self, key: &str, value: &str, wide: bool, id: &SpiffeId) -> bool {
        let (ns, sa, td) = (id.namespace(), id.service_account(), id.trust_domain());
        let is_own = *td == self.mesh.trust_domain;
        let own_names: Vec<&str> = [self.mesh.trust_domain.as_str(), "cluster.local"]
            .into_iter()
            .chain(self.mesh.trust_domain_aliases.iter().map(String::as_str))
            .collect();
        match key {
            "source.namespace" => (is_own || wide) && fits(value, ns),
            "source.serviceAccount" => {
                let full = format!("{ns}/{sa}");
                (is_own || wide) && (value == full || (value == sa && ns == self.policy_namespace))
            }
            "source.trustDomain" if is_own => own_names.iter().any(|n| fits(value, n)),
            "source.trustDomain" if wide => fits(value, td.as_str()),
            "source.trustDomain" => value == td.as_str() && !own_names.contains(&value),
            _ => {
                let value = match value.strip_prefix("spiffe://") {
                    Some(rest) if wide => rest,
                    _ => value,
                };
                let as_named = |name: &str| format!("{name}/ns/{ns}/sa/{sa}");
                if is_own {
                    own_names.iter().any(|name| fits(value, &as_named(name)))
                } else if wide {
                    fits(value, &as_named(td.as_str()))
                } else {
                    value == as_named(td.as_str()) && !own_names.contains(&td.as_str())
                }
            }
        }
    }
}

fn any(seen: impl Iterator<Item = Seen>) -> Seen {
    seen.reduce(|a, b| Some(a? | b?)).flatten()
}

/// The grammar of policy.md §3, in its order.
fn fits(value: &str, text: &str) -> bool {
    if value == "*" {
        return !text.is_empty();
    }
    match (value.starts_with('*'), value.ends_with('*')) {
        (true, _) => text.ends_with(&value[1..]),
        (false, true) => text.starts_with(&value[..value.len() - 1]),
        (false, false) => value == text,
    }
}

/// Compares in IPv6, where every IPv4 address has its mapped place. A block
/// wider than the mapped range means IPv6 only.
fn in_block(value: &str, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(ip.to_ipv6_mapped()),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let block = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(block) = block else { return false };
    let len = match block {
        IpNet::V4(block) => block.prefix_len() + 96,
        IpNet::V6(block) => block.prefix_len(),
    };
    let is_mapped = Ipv6Addr::from(bits(ip)).to_ipv4_mapped().is_some();
    if len < 96 && is_mapped {
        return false;
    }
    let shift = 128 - u32::from(len);
    let top = |ip| bits(ip).checked_shr(shift).unwrap_or(0);
    top(ip) == top(block.addr())
}
