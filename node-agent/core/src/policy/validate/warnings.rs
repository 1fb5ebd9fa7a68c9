//! Where a sound object does not do what it seems to say.

use super::super::matcher::StringMatch;
use super::super::object::{Action, AuthorizationPolicySpec, Condition, Mode, PeerAuthenticationSpec, Rule, Source};
use super::values::{operation_lists, seen_at_l4, source_lists};
use super::{FieldWarning, set};

pub(super) fn of_policy(spec: &AuthorizationPolicySpec) -> Vec<FieldWarning> {
    let mut warnings = Warnings { action: spec.action, list: Vec::new() };
    if spec.has_targets() {
        warnings.add("spec", "addressed to a waypoint or gateway: not enforced at L4, a waypoint is needed");
        return warnings.list;
    }
    match spec.action {
        Action::Custom => {
            warnings.add("spec.action", "an external authorizer cannot be asked at L4: what the rules match is denied")
        }
        Action::Audit => warnings.add("spec.action", "AUDIT has no effect at L4"),
        Action::Allow | Action::Deny => {}
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        warnings.rule(rule, &format!("spec.rules[{i}]"));
    }
    warnings.list
}

pub(super) fn of_peer_authentication(spec: &PeerAuthenticationSpec) -> Vec<FieldWarning> {
    let main = (spec.mode() == Mode::Disable).then(|| "spec.mtls.mode".to_owned());
    let ports = spec.port_level_mtls.iter().flatten();
    let ports =
        ports.filter(|(_, mtls)| mtls.mode == Mode::Disable).map(|(port, _)| format!("spec.portLevelMtls.{port}.mode"));
    main.into_iter()
        .chain(ports)
        .map(|field| FieldWarning {
            field,
            text: "DISABLE is PERMISSIVE here: mTLS stays in use between mesh pods".to_owned(),
        })
        .collect()
}

struct Warnings {
    action: Action,
    list: Vec<FieldWarning>,
}

impl Warnings {
    fn add(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.list.push(FieldWarning { field: field.into(), text: text.into() });
    }

    fn rule(&mut self, rule: &Rule, field: &str) {
        for (i, from) in rule.from.iter().enumerate() {
            let field = format!("{field}.from[{i}].source");
            if let Some(source) = &from.source {
                self.source(source, &field);
            }
        }
        for (i, to) in rule.to.iter().enumerate() {
            let lists = to.operation.as_ref().map(operation_lists);
            for (name, _) in lists.into_iter().flat_map(set) {
                self.unseen(name, &format!("{field}.to[{i}].operation.{name}"));
            }
        }
        for (i, condition) in rule.when.iter().enumerate() {
            self.condition(condition, &format!("{field}.when[{i}]"));
        }
    }

    fn source(&mut self, source: &Source, field: &str) {
        for (name, list) in set(source_lists(source)) {
            let field = format!("{field}.{name}");
            self.unseen(name, &field);
            match name {
                "principals" | "notPrincipals" => self.principals(list, &field),
                "namespaces" | "notNamespaces" | "trustDomains" | "notTrustDomains" => {
                    self.stars(list, &field);
                }
                _ => {}
            }
        }
        let demanded = [&source.principals, &source.namespaces, &source.service_accounts, &source.trust_domains];
        let excepted =
            [&source.not_principals, &source.not_namespaces, &source.not_service_accounts, &source.not_trust_domains];
        if self.action == Action::Allow
            && demanded.iter().all(|list| list.is_empty())
            && excepted.iter().any(|list| !list.is_empty())
        {
            self.add(field, "excludes identities but demands none: plaintext, which has none, is allowed too");
        }
    }

    fn condition(&mut self, condition: &Condition, field: &str) {
        self.unseen(&condition.key, field);
        let lists = [("values", &condition.values), ("notValues", &condition.not_values)];
        for (name, list) in lists {
            let field = format!("{field}.{name}");
            match condition.key.as_str() {
                "source.principal" => self.principals(list, &field),
                "source.namespace" | "source.trustDomain" => self.stars(list, &field),
                _ => {}
            }
        }
    }

    fn unseen(&mut self, name: &str, field: &str) {
        if seen_at_l4(name) {
            return;
        }
        let effect = match self.action {
            Action::Allow => "the rule allows nothing without a waypoint",
            Action::Deny => "the rule denies whatever the value is",
            Action::Custom => "the rule denies whatever the value is, like the whole policy",
            Action::Audit => "the rule has no effect",
        };
        self.add(field, format!("{name} cannot be seen at L4: {effect}"));
    }

    fn principals(&mut self, list: &[String], field: &str) {
        self.stars(list, field);
        for (i, value) in list.iter().enumerate() {
            let field = format!("{field}[{i}]");
            if value.starts_with("spiffe://") {
                self.add(
                    field,
                    "principals are written without spiffe://; as it stands this value grants \
                     nothing, though it may deny",
                );
            } else if matches!(StringMatch::parse(value), StringMatch::Exact(_))
                && format!("spiffe://{value}").parse::<crate::identity::SpiffeId>().is_err()
            {
                self.add(field, "not of the form TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT: matches nobody");
            }
        }
    }

    fn stars(&mut self, list: &[String], field: &str) {
        for (i, value) in list.iter().enumerate() {
            let literal = match StringMatch::parse(value) {
                StringMatch::Any => false,
                StringMatch::Suffix(s) | StringMatch::Prefix(s) | StringMatch::Exact(s) => s.contains('*'),
            };
            if literal {
                self.add(
                    format!("{field}[{i}]"),
                    "only one * is a wildcard, the first or else the last character; the other \
                     is taken literally and matches nobody",
                );
            }
        }
    }
}
