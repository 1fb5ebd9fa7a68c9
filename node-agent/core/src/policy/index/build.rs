//! From policy objects and pods to the index, object by object and pod by pod.
//!
//! Objects of one namespace can bind pods of that namespace only, those of the root namespace all pods. So a change of
//! a policy compiles anew what the pods of its namespace have, and a change of a pod nothing: it joins the group of
//! pods with the same labels, for which all is known already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use super::super::decision::PolicyRef;
use super::super::matcher::TrustNames;
use super::super::object::{AuthorizationPolicy, PeerAuthentication, WorkloadSelector};
use super::super::peer_authentication::PeerAuthentications;
use super::super::scope::{NotUnderstood, PolicyKind, PolicySet, Scopes};
use super::super::validate::FieldError;
use super::layer::{Item, ItemKey, Layer, layer};
use super::tally::{GroupKey, Tally};
use super::{PodPolicy, PolicyBinding, PolicyIndex};
use crate::identity::PodUid;
use crate::world::{Labels, MeshConfig, MeshMode, Pod, SharedMap, Text};

/// Policies and pods as they are now, from which an index is made at any time.
#[derive(Debug)]
pub struct PolicyBuilder {
    mesh: Arc<MeshConfig>,
    names: TrustNames,
    objects: BTreeMap<Text, NamespaceObjects>,
    /// One for each namespace that has pods.
    units: HashMap<Text, Unit>,
    mesh_layer: Option<Compiled>,
    changed: BTreeSet<Text>,
    pods: SharedMap<PodUid, Arc<PodPolicy>>,
    bindings: SharedMap<ItemKey, Arc<PolicyBinding>>,
    tallies: SharedMap<GroupKey, Tally>,
}

/// The objects of one namespace.
#[derive(Debug, Default)]
struct NamespaceObjects {
    items: BTreeMap<ItemKey, Item>,
    modes: BTreeMap<ItemKey, Arc<PeerAuthentication>>,
}

/// What the pods of one namespace have.
#[derive(Debug)]
struct Unit {
    items: Vec<(ItemKey, Item)>,
    scopes: Scopes,
    modes: PeerAuthentications,
    mesh: Compiled,
    namespace: Compiled,
    selected: HashMap<Vec<usize>, Compiled>,
    groups: HashMap<Labels, Group>,
}

/// The pods with the same labels.
#[derive(Debug)]
struct Group {
    policy: Arc<PodPolicy>,
    applying: [Arc<[ItemKey]>; 4],
    pods: usize,
}

/// A layer, and the objects that are in it.
#[derive(Debug, Clone)]
struct Compiled {
    layer: Arc<Layer>,
    keys: Arc<[ItemKey]>,
}

impl PolicyBuilder {
    /// Without policies and pods.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            names: TrustNames::of(&mesh),
            mesh: Arc::new(mesh),
            objects: BTreeMap::new(),
            units: HashMap::new(),
            mesh_layer: None,
            changed: BTreeSet::new(),
            pods: SharedMap::default(),
            bindings: SharedMap::default(),
            tallies: SharedMap::default(),
        }
    }

    /// Adds all objects of a set.
    pub fn put_all(&mut self, policies: &PolicySet) {
        for policy in &policies.authorization {
            self.put_authorization(policy.clone());
        }
        for policy in &policies.peer_authentication {
            self.put_peer_authentication(policy.clone());
        }
        for refused in &policies.not_understood {
            self.put_not_understood(refused.clone());
        }
    }

    /// Adds an AuthorizationPolicy. One that is not sound, though it should have been found out before, counts as not
    /// understood: a value that slipped past validation would lose its constraint.
    pub fn put_authorization(&mut self, policy: AuthorizationPolicy) {
        let kind = PolicyKind::AuthorizationPolicy;
        match policy.spec.validate() {
            Ok(_) => {
                let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
                self.put_item(kind, &namespace, &name, Item::Rules(Arc::new(policy)));
            }
            Err(errors) => {
                let selector = policy.spec.selector.as_ref();
                self.put_not_understood(unsound(kind, &policy.namespace, &policy.name, selector, &errors));
            }
        }
    }

    /// Adds a PeerAuthentication, as [`Self::put_authorization`].
    pub fn put_peer_authentication(&mut self, policy: PeerAuthentication) {
        let kind = PolicyKind::PeerAuthentication;
        if let Err(errors) = policy.spec.validate() {
            let selector = policy.spec.selector.as_ref();
            return self.put_not_understood(unsound(kind, &policy.namespace, &policy.name, selector, &errors));
        }
        let objects = self.touch(&policy.namespace);
        let key = free_key(kind, &policy.namespace, &policy.name, true, |key| objects.modes.contains_key(key));
        objects.modes.insert(key, Arc::new(policy));
    }

    /// Adds an object that nobody understood: the pods that it is about deny everything.
    pub fn put_not_understood(&mut self, refused: NotUnderstood) {
        let (kind, namespace, name) = (refused.kind, refused.namespace.clone(), refused.name.clone());
        self.put_item(kind, &namespace, &name, Item::Refused(Arc::new(refused)));
    }

    /// Takes out everything of that kind and name.
    pub fn remove(&mut self, kind: PolicyKind, namespace: &str, name: &str) {
        let Some(objects) = self.objects.get(namespace) else { return };
        let keys = objects.items.keys().chain(objects.modes.keys());
        let gone: Vec<ItemKey> = keys.filter(|key| key.kind == kind && key.name == name).cloned().collect();
        for key in gone {
            let objects = self.touch(namespace);
            objects.items.remove(&key);
            objects.modes.remove(&key);
            self.bindings.remove(&key);
        }
    }

    /// Adds a pod that is not there yet.
    pub fn put_pod(&mut self, pod: &Pod) {
        self.ensure_unit(&pod.namespace);
        let Some(unit) = self.units.get_mut(&pod.namespace) else { return };
        let group = unit.group(&pod.labels, &self.names);
        group.pods += 1;
        self.pods.insert(pod.uid.clone(), group.policy.clone());
        if counts(pod) {
            let key = group_key(pod);
            let pods = self.tallies.get(&key).map_or(0, |tally| tally.pods) + 1;
            self.tallies.insert(key, Tally { pods, applying: group.applying.clone() });
        }
    }

    /// Takes out a pod as it was put.
    pub fn remove_pod(&mut self, pod: &Pod) {
        self.pods.remove(&pod.uid);
        let Some(unit) = self.units.get_mut(&pod.namespace) else { return };
        let Some(group) = unit.groups.get_mut(&pod.labels) else { return };
        group.pods = group.pods.saturating_sub(1);
        if group.pods == 0 {
            unit.groups.remove(&pod.labels);
        }
        if unit.groups.is_empty() {
            self.units.remove(&pod.namespace);
        }
        if counts(pod) {
            let key = group_key(pod);
            match self.tallies.get(&key).cloned() {
                Some(tally) if tally.pods > 1 => {
                    self.tallies.insert(key, Tally { pods: tally.pods - 1, ..tally });
                }
                _ => drop(self.tallies.remove(&key)),
            }
        }
    }

    /// Makes the changes of policies count. `pods_of` gives the pods of a namespace, all of which have been put.
    pub fn commit<'a, I: Iterator<Item = &'a Pod>>(&mut self, pods_of: impl Fn(&str) -> I) {
        let mut changed = std::mem::take(&mut self.changed);
        if changed.contains(self.mesh.root_namespace.as_str()) {
            self.mesh_layer = None;
            changed.extend(self.units.keys().cloned());
            changed.extend(self.objects.keys().cloned());
        }
        let rebuilt: Vec<&Text> = changed.iter().filter(|namespace| self.forget_unit(namespace)).collect();
        for namespace in &changed {
            self.bind(namespace);
        }
        for namespace in rebuilt {
            for pod in pods_of(namespace) {
                self.put_pod(pod);
            }
        }
        self.objects.retain(|_, objects| !(objects.items.is_empty() && objects.modes.is_empty()));
    }

    /// The index of what was committed.
    pub fn index(&self) -> PolicyIndex {
        PolicyIndex {
            mesh: self.mesh.clone(),
            pods: self.pods.clone(),
            default_allow: PolicyRef::default_allow(),
            bindings: self.bindings.clone(),
            tallies: self.tallies.clone(),
            listed: OnceLock::new(),
        }
    }

    fn touch(&mut self, namespace: &str) -> &mut NamespaceObjects {
        let namespace = Text::from(namespace);
        self.changed.insert(namespace.clone());
        self.objects.entry(namespace).or_default()
    }

    fn put_item(&mut self, kind: PolicyKind, namespace: &str, name: &str, item: Item) {
        let understood = matches!(item, Item::Rules(_));
        let objects = self.touch(namespace);
        let key = free_key(kind, namespace, name, understood, |key| objects.items.contains_key(key));
        objects.items.insert(key, item);
    }

    /// Drops what the pods of a namespace have; says whether there was anything.
    fn forget_unit(&mut self, namespace: &str) -> bool {
        let Some(unit) = self.units.remove(namespace) else { return false };
        for labels in unit.groups.into_keys() {
            self.tallies.remove(&(Text::from(namespace), labels));
        }
        true
    }

    /// Writes down what there is to say of a namespace's objects.
    fn bind(&mut self, namespace: &str) {
        let Some(objects) = self.objects.get(namespace) else { return };
        for (key, item) in &objects.items {
            self.bindings.insert(key.clone(), Arc::new(item.binding(&self.names)));
        }
        let own = objects.modes.values().cloned();
        let modes = PeerAuthentications::new(own, &self.mesh.root_namespace);
        for (key, object) in &objects.modes {
            let binding = PolicyBinding {
                kind: key.kind,
                namespace: object.namespace.clone(),
                name: object.name.clone(),
                pods: 0,
                understood: true,
                messages: modes.messages(object, &self.mesh.root_namespace),
            };
            self.bindings.insert(key.clone(), Arc::new(binding));
        }
    }

    fn ensure_unit(&mut self, namespace: &Text) {
        if self.units.contains_key(namespace) {
            return;
        }
        let root = self.mesh.root_namespace.as_str();
        let mut names = BTreeSet::from([root, namespace.as_str()]);
        let objects: Vec<&NamespaceObjects> = names.iter().filter_map(|name| self.objects.get(*name)).collect();
        names.clear();
        let items = objects.iter().flat_map(|objects| &objects.items);
        let items: Vec<(ItemKey, Item)> = items.map(|(key, item)| (key.clone(), item.clone())).collect();
        let modes = objects.iter().flat_map(|objects| objects.modes.values().cloned());
        let modes = PeerAuthentications::new(modes, root);
        let mut scopes = Scopes::default();
        for (position, (key, item)) in items.iter().enumerate() {
            if !item.is_for_waypoint() {
                scopes.add(position, key.namespace == root, item.selector());
            }
        }
        let mesh = self.mesh_layer.get_or_insert_with(|| compile(&items, &scopes.mesh, &self.names)).clone();
        let own = compile(&items, &scopes.namespace, &self.names);
        let (selected, groups) = Default::default();
        let unit = Unit { items, scopes, modes, mesh, namespace: own, selected, groups };
        self.units.insert(namespace.clone(), unit);
    }
}

impl Unit {
    /// The group of pods with these labels, made when the first one comes.
    fn group(&mut self, labels: &Labels, names: &TrustNames) -> &mut Group {
        let Self { items, scopes, modes, mesh, namespace, selected, groups } = self;
        groups.entry(labels.clone()).or_insert_with_key(|labels| {
            let selecting = scopes.selecting(labels);
            let counting = modes.counting(labels);
            let of_modes = modes.of(counting).map(|object| mode_key(object)).collect();
            let selected =
                selected.entry(selecting).or_insert_with_key(|positions| compile(items, positions, names)).clone();
            let layers = [mesh.layer.clone(), namespace.layer.clone(), selected.layer];
            let applying = [mesh.keys.clone(), namespace.keys.clone(), selected.keys, of_modes];
            let policy = Arc::new(PodPolicy { modes: modes.modes(counting), layers });
            Group { policy, applying, pods: 0 }
        })
    }
}

fn mode_key(object: &PeerAuthentication) -> ItemKey {
    free_key(PolicyKind::PeerAuthentication, &object.namespace, &object.name, true, |_| false)
}

fn compile(items: &[(ItemKey, Item)], positions: &[usize], names: &TrustNames) -> Compiled {
    let chosen = || positions.iter().filter_map(|position| items.get(*position));
    let keys = chosen().map(|(key, _)| key.clone()).collect();
    Compiled { layer: Arc::new(layer(chosen().map(|(_, item)| item), names)), keys }
}

fn group_key(pod: &Pod) -> GroupKey {
    (pod.namespace.clone(), pod.labels.clone())
}

fn counts(pod: &Pod) -> bool {
    pod.mode == MeshMode::Ambient && !pod.host_network
}

/// The first key of that name that is not taken.
fn free_key(
    kind: PolicyKind,
    namespace: &str,
    name: &str,
    understood: bool,
    is_taken: impl Fn(&ItemKey) -> bool,
) -> ItemKey {
    let mut key = ItemKey { namespace: namespace.into(), name: name.into(), understood, kind, number: 0 };
    while is_taken(&key) {
        key.number += 1;
    }
    key
}

fn unsound(
    kind: PolicyKind,
    namespace: &str,
    name: &str,
    selector: Option<&WorkloadSelector>,
    errors: &[FieldError],
) -> NotUnderstood {
    let reasons: Vec<_> = errors.iter().map(ToString::to_string).collect();
    NotUnderstood {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        selector: selector.cloned(),
        reason: reasons.join("; "),
    }
}
