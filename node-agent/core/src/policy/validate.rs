//! What the types of [`object`](super::object) cannot express: limits,
//! forbidden combinations and the grammar of values (policy.md §1, §3).
//!
//! An error refuses the object. A warning leaves it in force and tells the
//! user where it does not do what it seems to say.

mod paths;
mod values;
mod warnings;

use super::object::{
    Action, AuthorizationPolicySpec, Condition, PeerAuthenticationSpec, Rule, Source, TargetRef, WorkloadSelector,
};

const MAX_RULES: usize = 512;
const MAX_FROM: usize = 512;
const MAX_TARGET_REFS: usize = 16;

/// A field that makes the object unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Where, e.g. `spec.rules[0].from[0].source`.
    pub field: String,
    /// Why, for a human.
    pub reason: String,
}

/// A field that does not do what it seems to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldWarning {
    /// Where, e.g. `spec.rules[0].to[0].operation.methods`.
    pub field: String,
    /// What it does instead, for a human.
    pub text: String,
}

impl std::fmt::Display for FieldWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

impl AuthorizationPolicySpec {
    /// Checks what the types cannot; gives the warnings of a sound object.
    pub fn validate(&self) -> Result<Vec<FieldWarning>, Vec<FieldError>> {
        let mut errors = Errors::default();
        errors.selector(self.selector.as_ref());
        self.check_targets(&mut errors);
        self.check_action(&mut errors);
        if self.rules.len() > MAX_RULES {
            errors.add("spec.rules", format!("more than {MAX_RULES} rules"));
        }
        for (i, rule) in self.rules.iter().enumerate() {
            check_rule(rule, &format!("spec.rules[{i}]"), self.action, &mut errors);
        }
        errors.into_result().map(|()| warnings::of_policy(self))
    }

    fn check_targets(&self, errors: &mut Errors) {
        let ways = [self.selector.is_some(), self.target_ref.is_some(), !self.target_refs.is_empty()];
        if ways.iter().filter(|set| **set).count() > 1 {
            errors.add("spec", "at most one of selector, targetRef and targetRefs may be set");
        }
        if self.target_refs.len() > MAX_TARGET_REFS {
            errors.add("spec.targetRefs", format!("more than {MAX_TARGET_REFS} entries"));
        }
        if let Some(target) = &self.target_ref {
            check_target(target, "spec.targetRef", errors);
        }
        for (i, target) in self.target_refs.iter().enumerate() {
            check_target(target, &format!("spec.targetRefs[{i}]"), errors);
        }
    }

    fn check_action(&self, errors: &mut Errors) {
        let action = self.action.as_str();
        let refuses = matches!(self.action, Action::Deny | Action::Custom);
        if refuses && self.rules.is_empty() {
            errors.add("spec.rules", format!("{action} without rules would never match"));
        }
        match (&self.provider, self.action) {
            (None, Action::Custom) => errors.add("spec.provider", "CUSTOM needs a provider"),
            (Some(p), Action::Custom) if p.name.is_empty() => {
                errors.add("spec.provider.name", "empty");
            }
            (Some(_), Action::Allow | Action::Deny | Action::Audit) => {
                errors.add("spec.provider", format!("only with action CUSTOM, not {action}"))
            }
            _ => {}
        }
    }
}

impl PeerAuthenticationSpec {
    /// Checks what the types cannot; gives the warnings of a sound object.
    pub fn validate(&self) -> Result<Vec<FieldWarning>, Vec<FieldError>> {
        let mut errors = Errors::default();
        errors.selector(self.selector.as_ref());
        if let Some(ports) = &self.port_level_mtls {
            if ports.is_empty() {
                errors.add("spec.portLevelMtls", "has no entry");
            }
            if self.narrowing_selector().is_none() {
                errors.add("spec.portLevelMtls", "needs a selector with at least one label");
            }
        }
        errors.into_result().map(|()| warnings::of_peer_authentication(self))
    }
}

fn check_target(target: &TargetRef, field: &str, errors: &mut Errors) {
    const KINDS: [(&str, &str); 5] = [
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
        ("", "Service"),
        ("core", "Service"),
        ("networking.istio.io", "ServiceEntry"),
    ];
    if !KINDS.contains(&(target.group.as_str(), target.kind.as_str())) {
        errors.add(
            field,
            format!(
                "kind {:?} of group {:?} cannot be a target; Gateway, GatewayClass, Service and \
                 ServiceEntry can",
                target.kind, target.group
            ),
        );
    }
    if target.name.is_empty() {
        errors.add(format!("{field}.name"), "empty");
    }
    if !target.namespace.is_empty() {
        errors.add(format!("{field}.namespace"), "a target of another namespace cannot be named; leave it out");
    }
}

fn check_rule(rule: &Rule, field: &str, action: Action, errors: &mut Errors) {
    if rule.from.len() > MAX_FROM {
        errors.add(format!("{field}.from"), format!("more than {MAX_FROM} entries"));
    }
    for (i, from) in rule.from.iter().enumerate() {
        let field = format!("{field}.from[{i}].source");
        match from.source.as_ref().filter(|s| **s != Source::default()) {
            Some(source) => check_source(source, &field, action, errors),
            None => errors.add(field, "sets no field; leave out the whole from for anyone"),
        }
    }
    for (i, to) in rule.to.iter().enumerate() {
        let field = format!("{field}.to[{i}].operation");
        match to.operation.as_ref().filter(|o| **o != Default::default()) {
            Some(operation) => {
                for (name, list) in set(values::operation_lists(operation)) {
                    errors.values(&format!("{field}.{name}"), list, values::of_field(name));
                }
            }
            None => errors.add(field, "sets no field; leave out the whole to for anything"),
        }
    }
    for (i, condition) in rule.when.iter().enumerate() {
        check_condition(condition, &format!("{field}.when[{i}]"), action, errors);
    }
}

fn check_source(source: &Source, field: &str, action: Action, errors: &mut Errors) {
    for (name, list) in set(values::source_lists(source)) {
        let field = format!("{field}.{name}");
        if action == Action::Custom && values::forbidden_in_custom(name) {
            errors.add(&field, "cannot be used with action CUSTOM");
        }
        if values::is_service_accounts(name) && list.len() > values::MAX_SERVICE_ACCOUNTS {
            errors.add(&field, format!("more than {} entries", values::MAX_SERVICE_ACCOUNTS));
        }
        errors.values(&field, list, values::of_field(name));
    }
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        errors.add(field, "serviceAccounts cannot be combined with principals or namespaces");
    }
}

/// The lists that say something.
fn set<'a, const N: usize>(
    lists: [(&'static str, &'a [String]); N],
) -> impl Iterator<Item = (&'static str, &'a [String])> {
    lists.into_iter().filter(|(_, list)| !list.is_empty())
}

fn check_condition(condition: &Condition, field: &str, action: Action, errors: &mut Errors) {
    let Some(grammar) = values::of_key(&condition.key) else {
        errors.add(format!("{field}.key"), format!("unknown attribute {:?}", condition.key));
        return;
    };
    if condition.values.is_empty() && condition.not_values.is_empty() {
        errors.add(field, "needs values or notValues");
    }
    if action == Action::Custom && values::key_forbidden_in_custom(&condition.key) {
        errors.add(format!("{field}.key"), format!("{:?} cannot be used with action CUSTOM", condition.key));
    }
    errors.values(&format!("{field}.values"), &condition.values, grammar);
    errors.values(&format!("{field}.notValues"), &condition.not_values, grammar);
}

/// Collects every error, so that a user mends a file once.
#[derive(Debug, Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.0.push(FieldError { field: field.into(), reason: reason.into() });
    }

    fn values(&mut self, field: &str, list: &[String], grammar: values::Grammar) {
        for (i, value) in list.iter().enumerate() {
            if let Err(reason) = grammar.check(value) {
                self.add(format!("{field}[{i}]"), reason);
            }
        }
    }

    fn selector(&mut self, selector: Option<&WorkloadSelector>) {
        let labels = selector.iter().flat_map(|s| &s.match_labels);
        for (key, value) in labels {
            let field = format!("spec.selector.matchLabels[{key:?}]");
            if key.is_empty() {
                self.add(&field, "empty label key");
            }
            if key.contains('*') || value.contains('*') {
                self.add(&field, "labels are compared as they are; * is not a wildcard");
            }
        }
    }

    fn into_result(self) -> Result<(), Vec<FieldError>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

#[cfg(test)]
mod tests;
