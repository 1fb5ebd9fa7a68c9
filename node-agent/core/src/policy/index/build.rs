//! From policy objects and pods to the index.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::compile::{Effect, alternatives};
use super::super::decision::PolicyRef;
use super::super::matcher::{Principals, Reading, TrustNames};
use super::super::object::{Action, AuthorizationPolicy, PeerAuthentication, WorkloadSelector};
use super::super::peer_authentication::PeerAuthentications;
use super::super::rule_index::RuleIndex;
use super::super::scope::{NotUnderstood, PolicyKind, PolicySet, Scopes};
use super::super::validate::FieldError;
use super::{Layer, PodPolicy, PolicyBinding, PolicyIndex};
use crate::world::{MeshConfig, MeshMode, Pod};

pub(super) fn build<'a>(
    mesh: &MeshConfig,
    pods: impl IntoIterator<Item = &'a Pod>,
    policies: &PolicySet,
) -> PolicyIndex {
    let checked = Checked::new(policies);
    let items = checked.items(policies);
    let mut layers = Layers::new(mesh, &items);
    let modes = PeerAuthentications::new(&checked.modes, &mesh.root_namespace);
    let mut pods_of_mode = vec![0; checked.modes.len()];
    let mut compiled = HashMap::new();
    for pod in pods {
        let counts = usize::from(pod.mode == MeshMode::Ambient && !pod.host_network);
        let layers = layers.of(pod, counts);
        let (modes, counting) = modes.of(pod);
        for position in counting {
            pods_of_mode[position] += counts;
        }
        compiled.insert(pod.uid.clone(), PodPolicy { modes, layers });
    }
    let of_rules = items.iter().zip(layers.pods_by_item()).map(|(item, pods)| item.binding(pods, &layers.names));
    let of_modes = modes.objects().zip(pods_of_mode).map(|(object, pods)| mode_binding(object, pods));
    let mut bindings: Vec<_> = of_rules.chain(of_modes).collect();
    bindings.sort_by(|a, b| a.key().cmp(&b.key()));
    PolicyIndex { mesh: mesh.clone(), pods: compiled, default_allow: PolicyRef::default_allow(), bindings }
}

fn mode_binding((object, messages): (&PeerAuthentication, Vec<String>), pods: usize) -> PolicyBinding {
    PolicyBinding {
        kind: PolicyKind::PeerAuthentication,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        pods,
        understood: true,
        messages,
    }
}

impl PolicyBinding {
    fn key(&self) -> (PolicyKind, &str, &str) {
        (self.kind, &self.namespace, &self.name)
    }
}

/// The objects once more validated: a value that slipped past validation
/// would lose its constraint.
struct Checked<'a> {
    rules: Vec<&'a AuthorizationPolicy>,
    modes: Vec<&'a PeerAuthentication>,
    unsound: Vec<NotUnderstood>,
}

impl<'a> Checked<'a> {
    fn new(policies: &'a PolicySet) -> Self {
        let mut this = Self { rules: Vec::new(), modes: Vec::new(), unsound: Vec::new() };
        for policy in &policies.authorization {
            match policy.spec.validate() {
                Ok(_) => this.rules.push(policy),
                Err(errors) => this.refuse(
                    PolicyKind::AuthorizationPolicy,
                    (&policy.namespace, &policy.name),
                    policy.spec.selector.as_ref(),
                    &errors,
                ),
            }
        }
        for policy in &policies.peer_authentication {
            match policy.spec.validate() {
                Ok(_) => this.modes.push(policy),
                Err(errors) => this.refuse(
                    PolicyKind::PeerAuthentication,
                    (&policy.namespace, &policy.name),
                    policy.spec.selector.as_ref(),
                    &errors,
                ),
            }
        }
        this
    }

    fn refuse(
        &mut self,
        kind: PolicyKind,
        (namespace, name): (&str, &str),
        selector: Option<&WorkloadSelector>,
        errors: &[FieldError],
    ) {
        let reasons: Vec<_> = errors.iter().map(ToString::to_string).collect();
        self.unsound.push(NotUnderstood {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            selector: selector.cloned(),
            reason: reasons.join("; "),
        });
    }

    /// In an order that does not depend on the order of reading.
    fn items(&'a self, policies: &'a PolicySet) -> Vec<Item<'a>> {
        let rules = self.rules.iter().copied().map(Item::Rules);
        let refused = policies.not_understood.iter().chain(&self.unsound);
        let mut items: Vec<_> = rules.chain(refused.map(Item::Refused)).collect();
        items.sort_by(|a, b| a.key().cmp(&b.key()));
        items
    }
}

/// An object that takes part in layers.
#[derive(Debug, Clone, Copy)]
enum Item<'a> {
    Rules(&'a AuthorizationPolicy),
    Refused(&'a NotUnderstood),
}

impl<'a> Item<'a> {
    fn key(&self) -> (&'a str, &'a str, bool) {
        match self {
            Self::Rules(policy) => (&policy.namespace, &policy.name, true),
            Self::Refused(refused) => (&refused.namespace, &refused.name, false),
        }
    }

    fn namespace(&self) -> &'a str {
        self.key().0
    }

    fn selector(&self) -> Option<&'a WorkloadSelector> {
        match self {
            Self::Rules(policy) => policy.spec.selector.as_ref(),
            Self::Refused(refused) => refused.selector.as_ref(),
        }
    }

    fn is_for_waypoint(&self) -> bool {
        matches!(self, Self::Rules(policy) if policy.spec.has_targets())
    }

    fn reference(&self) -> PolicyRef {
        let (namespace, name, _) = self.key();
        match self {
            Self::Refused(refused) if refused.kind == PolicyKind::PeerAuthentication => {
                PolicyRef::peer_authentication(namespace, name)
            }
            _ => PolicyRef::authorization(namespace, name),
        }
    }

    fn binding(&self, pods: usize, names: &TrustNames) -> PolicyBinding {
        let (namespace, name, understood) = self.key();
        let (kind, messages) = match self {
            Self::Rules(policy) => (PolicyKind::AuthorizationPolicy, messages(policy, names)),
            Self::Refused(refused) => {
                (refused.kind, vec![format!("not understood, its pods deny: {}", refused.reason)])
            }
        };
        PolicyBinding { kind, namespace: namespace.to_owned(), name: name.to_owned(), pods, understood, messages }
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

/// Layers, compiled when a pod first needs them.
struct Layers<'a> {
    items: &'a [Item<'a>],
    names: TrustNames,
    scopes: Scopes<'a>,
    mesh: Shared,
    namespaces: HashMap<String, Shared>,
    selected: HashMap<Vec<usize>, Shared>,
}

/// A layer, and how many pods in the mesh have it.
struct Shared {
    layer: Arc<Layer>,
    pods: usize,
}

impl<'a> Layers<'a> {
    fn new(mesh: &MeshConfig, items: &'a [Item<'a>]) -> Self {
        let names = TrustNames::of(mesh);
        let mut scopes = Scopes::default();
        for (position, item) in items.iter().enumerate() {
            if !item.is_for_waypoint() {
                scopes.add(position, item.namespace(), item.selector(), &mesh.root_namespace);
            }
        }
        Self {
            mesh: Shared::new(items, &scopes.mesh, &names),
            items,
            names,
            scopes,
            namespaces: HashMap::new(),
            selected: HashMap::new(),
        }
    }

    fn of(&mut self, pod: &Pod, counts: usize) -> [Arc<Layer>; 3] {
        let Self { items, names, scopes, mesh, namespaces, selected } = self;
        let namespace = namespaces
            .entry(pod.namespace.clone())
            .or_insert_with(|| Shared::new(items, scopes.of_namespace(pod), names));
        let selected =
            selected.entry(scopes.selecting(pod)).or_insert_with_key(|positions| Shared::new(items, positions, names));
        [mesh, namespace, selected].map(|shared| {
            shared.pods += counts;
            shared.layer.clone()
        })
    }

    fn pods_by_item(&self) -> Vec<usize> {
        let mut pods = vec![0; self.items.len()];
        for position in &self.scopes.mesh {
            pods[*position] = self.mesh.pods;
        }
        for (namespace, positions) in &self.scopes.namespaces {
            for position in positions {
                pods[*position] = self.namespaces.get(*namespace).map_or(0, |n| n.pods);
            }
        }
        for (positions, shared) in &self.selected {
            for position in positions {
                pods[*position] += shared.pods;
            }
        }
        pods
    }
}

impl Shared {
    fn new(items: &[Item<'_>], positions: &[usize], names: &TrustNames) -> Self {
        let items = positions.iter().filter_map(|position| items.get(*position));
        Self { layer: Arc::new(layer(items, names)), pods: 0 }
    }
}

fn layer<'a>(items: impl Iterator<Item = &'a Item<'a>>, names: &TrustNames) -> Layer {
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
