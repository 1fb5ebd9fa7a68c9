//! From policy objects and pods to the index.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::compile::{Effect, alternatives};
use super::super::decision::PolicyRef;
use super::super::matcher::TrustNames;
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
    let mut mode_pods = vec![0; checked.modes.len()];
    let mut index = PolicyIndex {
        mesh: mesh.clone(),
        pods: HashMap::new(),
        default_allow: PolicyRef::default_allow(),
        bindings: Vec::new(),
    };
    for pod in pods {
        let counts = usize::from(pod.mode == MeshMode::Ambient && !pod.host_network);
        let (modes, setters) = modes.of(pod);
        for position in setters {
            mode_pods[position] += counts;
        }
        let layers = layers.of(pod, counts);
        index.pods.insert(pod.uid.clone(), PodPolicy { modes, layers });
    }
    let pods_of = layers.pods_by_item();
    index.bindings = items.iter().zip(pods_of).map(|(i, n)| i.binding(n)).collect();
    let mode_bindings = modes.objects().zip(mode_pods);
    index.bindings.extend(mode_bindings.map(|((object, messages), pods)| PolicyBinding {
        kind: PolicyKind::PeerAuthentication,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        pods,
        understood: true,
        messages,
    }));
    index.bindings.sort_by(|a, b| a.key().cmp(&b.key()));
    index
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
                Err(errors) => this.unsound.push(NotUnderstood {
                    kind: PolicyKind::AuthorizationPolicy,
                    namespace: policy.namespace.clone(),
                    name: policy.name.clone(),
                    selector: policy.spec.selector.clone(),
                    reason: join(&errors),
                }),
            }
        }
        for policy in &policies.peer_authentication {
            match policy.spec.validate() {
                Ok(_) => this.modes.push(policy),
                Err(errors) => this.unsound.push(NotUnderstood {
                    kind: PolicyKind::PeerAuthentication,
                    namespace: policy.namespace.clone(),
                    name: policy.name.clone(),
                    selector: policy.spec.selector.clone(),
                    reason: join(&errors),
                }),
            }
        }
        this
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

fn join(errors: &[FieldError]) -> String {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
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

    fn binding(&self, pods: usize) -> PolicyBinding {
        let (namespace, name, understood) = self.key();
        let (kind, messages) = match self {
            Self::Rules(policy) => (PolicyKind::AuthorizationPolicy, messages(policy)),
            Self::Refused(refused) => {
                (refused.kind, vec![format!("not understood, its pods deny: {}", refused.reason)])
            }
        };
        PolicyBinding { kind, namespace: namespace.to_owned(), name: name.to_owned(), pods, understood, messages }
    }
}

fn messages(policy: &AuthorizationPolicy) -> Vec<String> {
    let warnings = policy.spec.validate().unwrap_or_default();
    let mut messages: Vec<_> = warnings.iter().map(ToString::to_string).collect();
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
        let Self { items, names, .. } = self;
        if !self.namespaces.contains_key(&pod.namespace) {
            let layer = Shared::new(items, self.scopes.of_namespace(pod), names);
            self.namespaces.insert(pod.namespace.clone(), layer);
        }
        let selecting = self.scopes.selecting(pod);
        let selected =
            self.selected.entry(selecting).or_insert_with_key(|positions| Shared::new(items, positions, names));
        let mut layers = [self.mesh.layer.clone(), selected.layer.clone(), selected.layer.clone()];
        self.mesh.pods += counts;
        selected.pods += counts;
        if let Some(namespace) = self.namespaces.get_mut(&pod.namespace) {
            namespace.pods += counts;
            layers[1] = namespace.layer.clone();
        }
        layers
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
                not_understood.get_or_insert((reference, refused.reason.clone()));
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
