//! The policies that apply to a set of pods, compiled once for all of them.

use std::sync::Arc;

use super::super::compile::{Effect, alternatives};
use super::super::decision::PolicyRef;
use super::super::matcher::{Principals, Reading, TrustNames};
use super::super::object::{Action, AuthorizationPolicy, WorkloadSelector};
use super::super::rule_index::RuleIndex;
use super::super::scope::{NotUnderstood, PolicyKind};
use super::PolicyBinding;
use crate::world::Text;

/// What orders objects and tells them apart. The order is that in which policies are named in answers, whatever order
/// they came in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ItemKey {
    pub(super) namespace: Text,
    pub(super) name: Text,
    pub(super) understood: bool,
    pub(super) kind: PolicyKind,
    /// Tells apart objects of one name, which only texts that were not understood can be.
    pub(super) number: u32,
}

/// An object that takes part in layers.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Rules(Arc<AuthorizationPolicy>),
    Refused(Arc<NotUnderstood>),
}

impl Item {
    pub(super) fn selector(&self) -> Option<&WorkloadSelector> {
        match self {
            Self::Rules(policy) => policy.spec.selector.as_ref(),
            Self::Refused(refused) => refused.selector.as_ref(),
        }
    }

    pub(super) fn is_for_waypoint(&self) -> bool {
        matches!(self, Self::Rules(policy) if policy.spec.has_targets())
    }

    fn reference(&self) -> PolicyRef {
        match self {
            Self::Rules(policy) => PolicyRef::authorization(&policy.namespace, &policy.name),
            Self::Refused(refused) if refused.kind == PolicyKind::PeerAuthentication => {
                PolicyRef::peer_authentication(&refused.namespace, &refused.name)
            }
            Self::Refused(refused) => PolicyRef::authorization(&refused.namespace, &refused.name),
        }
    }

    /// What is said of the object, before any pod is counted.
    pub(super) fn binding(&self, names: &TrustNames) -> PolicyBinding {
        let (kind, namespace, name, messages) = match self {
            Self::Rules(policy) => {
                (PolicyKind::AuthorizationPolicy, &policy.namespace, &policy.name, messages(policy, names))
            }
            Self::Refused(refused) => {
                let message = format!("not understood, its pods deny: {}", refused.reason);
                (refused.kind, &refused.namespace, &refused.name, vec![message])
            }
        };
        let understood = matches!(self, Self::Rules(_));
        PolicyBinding { kind, namespace: namespace.clone(), name: name.clone(), pods: 0, understood, messages }
    }
}

fn messages(policy: &AuthorizationPolicy, names: &TrustNames) -> Vec<String> {
    let warnings = policy.spec.validate().unwrap_or_default();
    let mut messages: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    messages.extend(foreign_patterns(policy, names));
    if policy.dry_run {
        messages.push(match policy.spec.action {
            Action::Allow | Action::Deny => "dry run: not enforced".to_owned(),
            action @ (Action::Audit | Action::Custom) => {
                format!("istio.io/dry-run has no meaning for {}", action.as_str())
            }
        });
    }
    messages
}

/// An ALLOW with a pattern for principals of a foreign trust domain looks as
/// if it let them in.
fn foreign_patterns(policy: &AuthorizationPolicy, names: &TrustNames) -> Vec<String> {
    if policy.spec.action != Action::Allow {
        return Vec::new();
    }
    let mut messages = Vec::new();
    for (i, rule) in policy.spec.rules.iter().enumerate() {
        let sources = rule.from.iter().filter_map(|from| from.source.as_ref());
        let conditions = rule.when.iter().filter(|condition| condition.key == "source.principal");
        let values = sources.flat_map(|s| &s.principals).chain(conditions.flat_map(|c| &c.values));
        for value in values.filter(|value| value.contains('*') && !value.starts_with("spiffe://")) {
            if Principals::new(std::slice::from_ref(value), Reading::Narrow, names).match_nobody() {
                messages.push(format!(
                    "spec.rules[{i}]: the principal {value:?} allows nobody: those of a foreign trust \
                     domain are allowed by their full names only"
                ));
            }
        }
    }
    messages
}

/// The policies of one scope.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) allow: RuleIndex,
    pub(super) refuse: RuleIndex,
    /// The first ALLOW policy by name, if there is any.
    pub(super) first_allow: Option<PolicyRef>,
    /// A policy that was not understood, and what is said to those it denies.
    pub(super) not_understood: Option<(PolicyRef, Arc<str>)>,
    /// Whether no policy, of whatever action, selects here.
    pub(super) is_empty: bool,
}

/// Compiles objects, given in their order.
pub(super) fn layer<'a>(items: impl Iterator<Item = &'a self::Item>, names: &TrustNames) -> Layer {
    let (mut allow, mut refuse) = (Vec::new(), Vec::new());
    let mut first_allow = None;
    let mut not_understood = None;
    let mut is_empty = true;
    for item in items {
        is_empty = false;
        let reference = item.reference();
        let policy = match item {
            Item::Rules(policy) => policy,
            Item::Refused(refused) => {
                let words = || format!("policy not understood: {}", refused.reason).into();
                not_understood.get_or_insert_with(|| (reference, words()));
                continue;
            }
        };
        match (policy.spec.action, policy.dry_run) {
            (Action::Allow, false) => {
                allow.extend(alternatives(policy, &reference, names));
                first_allow.get_or_insert(reference);
            }
            (Action::Deny, false) | (Action::Custom, _) => {
                refuse.extend(alternatives(policy, &reference, names));
            }
            (Action::Allow | Action::Deny, true) | (Action::Audit, _) => {}
        }
    }
    Layer {
        allow: RuleIndex::new(Effect::Grant, allow),
        refuse: RuleIndex::new(Effect::Refuse, refuse),
        first_allow,
        not_understood,
        is_empty,
    }
}
