//! Objects from the API server to worlds: one at a time, by key, each read by the same readers as those of files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::World;
use super::builder::WorldBuilder;
use super::manifest::{Document, Kind, Node, ObjectKey, Rejection, Severity, lenient_key, read_key};
use super::model::MeshConfig;
use super::object::{self, FieldProblem, PolicyScope};
use super::projection::Projected;
use crate::policy::{NotUnderstood, PolicyKind};

/// What stands for a file in what is said of these objects.
const SOURCE: &str = "kubernetes";

/// Every object that a watch has told of, and the world that they make.
///
/// An object that cannot be read is refused with its reason; the version of it that was read before stays in force. A
/// policy without such a version makes the pods that it is about deny everything. Of two pods that claim an address the
/// older one has it; both stay in the world.
///
/// A list, which tells of all objects of a kind, is put between [`Self::begin_list`] and [`Self::end_list`]: what it
/// did not tell of is gone.
#[derive(Debug)]
pub struct ObjectStore {
    builder: WorldBuilder,
    /// The list of its kind in which each object was seen last.
    known: BTreeMap<ObjectKey, u32>,
    lists: BTreeMap<Kind, u32>,
    faults: BTreeMap<ObjectKey, Vec<Rejection>>,
    /// Policies of which a newer version was refused.
    last_good: BTreeSet<ObjectKey>,
    /// Policies of which no version was ever read.
    not_understood: BTreeSet<ObjectKey>,
    /// What each policy said last: whoever writes its status changes nothing for its pods.
    said: BTreeMap<ObjectKey, (u64, String)>,
}

impl ObjectStore {
    /// A store without objects.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            builder: WorldBuilder::new(mesh),
            known: BTreeMap::new(),
            lists: BTreeMap::new(),
            faults: BTreeMap::new(),
            last_good: BTreeSet::new(),
            not_understood: BTreeSet::new(),
            said: BTreeMap::new(),
        }
    }

    /// Takes a new version of an object. Says what is wrong with it, if anything.
    pub fn put(&mut self, object: Projected) -> &[Rejection] {
        let kind = object.kind;
        let rank = rank(&object);
        let says =
            kind.is_policy().then(|| (rank, object.value.get("spec").map(ToString::to_string).unwrap_or_default()));
        let root = Node::from(object.value);
        let (key, unnamed) = match read_key(&root, kind) {
            Ok(key) => (key, None),
            Err((field, reason)) => (lenient_key(&root, kind), Some(vec![FieldProblem::new(field, reason)])),
        };
        let document = Document { file: SOURCE.into(), key: key.clone(), root };
        let read = match unnamed {
            Some(problems) => Err(problems),
            None => object::read(&document),
        };
        let is_new = !self.known.contains_key(&key);
        let list = self.lists.get(&kind).copied().unwrap_or(0);
        self.known.insert(key.clone(), list);
        if let Some(says) = says
            && self.said.insert(key.clone(), says.clone()).is_some_and(|said| said == says)
        {
            return self.faults.get(&key).map_or(&[], Vec::as_slice);
        }
        self.faults.remove(&key);
        let refused = match read {
            Ok(read) => {
                let hints = read.hints.iter().map(|hint| rejection(&key, hint, Severity::Ignored)).collect::<Vec<_>>();
                if !hints.is_empty() {
                    self.faults.insert(key.clone(), hints);
                }
                self.last_good.remove(&key);
                self.not_understood.remove(&key);
                self.builder.put(&key, rank, read.object).err().map(|problem| vec![problem])
            }
            Err(problems) => Some(problems),
        };
        if let Some(problems) = refused {
            self.refuse(&document, &problems, is_new);
        }
        self.faults.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Takes out an object.
    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str) {
        let namespace = if kind.is_cluster_wide() { "" } else { namespace };
        self.forget(&ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() });
    }

    /// A list of all objects of a kind begins.
    pub fn begin_list(&mut self, kind: Kind) {
        let list = self.lists.entry(kind).or_insert(0);
        *list = list.wrapping_add(1);
    }

    /// The list is complete: what it did not tell of is gone. Says how many objects that were.
    pub fn end_list(&mut self, kind: Kind) -> usize {
        let list = self.lists.get(&kind).copied().unwrap_or(0);
        let gone: Vec<ObjectKey> = self
            .known
            .iter()
            .filter(|(key, seen)| key.kind == kind && **seen != list)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &gone {
            self.forget(key);
        }
        gone.len()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.known.keys().filter(|key| key.kind == kind).count()
    }

    /// The world that the objects make now.
    pub fn snapshot(&mut self, generation: u64) -> World {
        let mut world = self.builder.snapshot(generation);
        world.last_good = Arc::new(self.last_good.clone());
        world
    }

    /// Everything that is wrong with objects now, by kind and name, and addresses that several claim.
    pub fn rejections(&self) -> Vec<Rejection> {
        let contested = self.builder.contested().into_iter().map(|reason| Rejection {
            file: SOURCE.to_owned(),
            line: 0,
            object: None,
            field: None,
            reason,
            severity: Severity::Error,
        });
        self.faults.values().flatten().cloned().chain(contested).collect()
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.known.remove(key);
        self.faults.remove(key);
        self.last_good.remove(key);
        self.not_understood.remove(key);
        self.said.remove(key);
        self.builder.remove(key);
    }

    fn refuse(&mut self, document: &Document, problems: &[FieldProblem], is_new: bool) {
        let key = &document.key;
        let mut rejections: Vec<_> = problems.iter().map(|p| rejection(key, p, Severity::Error)).collect();
        let fate = if key.kind.is_policy() && (is_new || self.not_understood.contains(key)) {
            self.fail_closed(document, problems)
        } else if is_new {
            None
        } else {
            if key.kind.is_policy() {
                self.last_good.insert(key.clone());
            }
            Some(super::build::STAYS)
        };
        for rejection in &mut rejections {
            if let Some(fate) = fate {
                rejection.reason = format!("{}; {fate}", rejection.reason);
            }
        }
        self.faults.insert(key.clone(), rejections);
    }

    /// Lets the pods deny that a policy is about which nobody understood.
    fn fail_closed(&mut self, document: &Document, problems: &[FieldProblem]) -> Option<&'static str> {
        let key = &document.key;
        self.builder.remove(key);
        let PolicyScope::Pods(selector) = object::scope_of_refused(document) else { return None };
        let kind = match key.kind {
            Kind::PeerAuthentication => PolicyKind::PeerAuthentication,
            _ => PolicyKind::AuthorizationPolicy,
        };
        let reason = problems.first().map_or_else(String::new, |p| match p.field.as_str() {
            "" => p.reason.clone(),
            field => format!("{field}: {}", p.reason),
        });
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        self.builder.put_not_understood(NotUnderstood { kind, namespace, name, selector, reason });
        self.not_understood.insert(key.clone());
        Some(super::build::DENIES)
    }
}

fn rejection(key: &ObjectKey, problem: &FieldProblem, severity: Severity) -> Rejection {
    Rejection {
        file: SOURCE.to_owned(),
        line: 0,
        object: Some(key.to_string()),
        field: (!problem.field.is_empty()).then(|| problem.field.clone()),
        reason: problem.reason.clone(),
        severity,
    }
}

/// The older of two counts, but one that is being deleted less than any other: its address may be another's already.
fn rank(object: &Projected) -> u64 {
    const DYING: u64 = 1 << 63;
    let metadata = object.value.get("metadata");
    let text = |field| metadata.and_then(|m| m.get(field)).and_then(serde_json::Value::as_str);
    // RFC 3339 in UTC, as the API server writes it: its digits are in the order of time.
    let created = text("creationTimestamp").map(|text| text.chars().filter(char::is_ascii_digit).take(14).collect());
    let created: u64 = created.and_then(|digits: String| digits.parse().ok()).unwrap_or(DYING - 1);
    let is_dying = text("deletionTimestamp").is_some();
    created.min(DYING - 1) | if is_dying { DYING } else { 0 }
}
