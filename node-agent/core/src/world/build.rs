//! Documents to a world: which version of each object is in force, and how
//! they fit together.

mod pods;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::World;
use super::builder::WorldBuilder;
use super::manifest::{self, Document, Kind, ObjectKey, Rejection, Severity, SourceText};
use super::model::MeshConfig;
use super::object::{self, FieldProblem, MeshObject, Object, PodObject, PolicyScope, ServiceObject};
use crate::policy::{NotUnderstood, PolicyKind};

/// A world and what did not make it into it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The world.
    pub world: World,
    /// What was refused or ignored, in the order of files and lines.
    pub rejections: Vec<Rejection>,
}

/// An object in force, and where it came from.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    pub(super) file: Arc<str>,
    /// Line of the object.
    pub(super) line: usize,
    pub(super) object: Object,
    /// A newer text of it was refused.
    pub(super) is_last_good: bool,
}

pub(super) const STAYS: &str = "the version accepted before stays in force";
pub(super) const DENIES: &str = "until that is mended, the pods it is about deny everything";

/// All objects in force, by key.
pub(super) type Objects = BTreeMap<ObjectKey, Arc<InForce>>;

/// Builds a world from manifests.
///
/// A refused object keeps the version that `previous` had; where a document
/// is so broken that it cannot even be told which object it was, everything
/// that the file had before and lacks now is kept. A refused policy without
/// an earlier version makes the pods it selects deny everything.
pub fn load(sources: &[SourceText], defaults: &MeshConfig, previous: Option<&World>, generation: u64) -> Loaded {
    let mut loader = Loader::default();
    for source in sources {
        loader.read_file(source);
    }
    loader.keep_last_good(previous);
    loader.finish(defaults, previous, generation)
}

#[derive(Default)]
pub(super) struct Loader {
    /// New objects in document order, so that the first one wins.
    order: Vec<ObjectKey>,
    objects: Objects,
    documents: BTreeMap<ObjectKey, Document>,
    refused: Vec<Refused>,
    /// Files with a document whose name is a guess at best.
    broken_files: BTreeSet<Arc<str>>,
    not_understood: Vec<NotUnderstood>,
    /// With the position of the file.
    rejections: Vec<(usize, Rejection)>,
    files: Vec<Arc<str>>,
}

/// A refused object.
struct Refused {
    key: ObjectKey,
    scope: PolicyScope,
    reason: String,
    /// Its rejections, to be told what becomes of the object.
    rejections: std::ops::Range<usize>,
    /// The file, where the key is a guess.
    guessed_in: Option<Arc<str>>,
}

impl Loader {
    fn read_file(&mut self, source: &SourceText) {
        let parsed = manifest::parse(source);
        let file: Arc<str> = source.file.as_str().into();
        self.files.push(Arc::clone(&file));
        for unreadable in parsed.unreadable {
            let at = self.push(unreadable.rejection);
            self.broken_files.insert(Arc::clone(&file));
            if let Some(key) = unreadable.key {
                self.refuse(key, PolicyScope::Pods(None), at..at + 1, Some(Arc::clone(&file)));
            }
        }
        for ignored in parsed.ignored {
            self.push(ignored);
        }
        for document in parsed.documents {
            self.read_document(document);
        }
    }

    fn read_document(&mut self, document: Document) {
        if let Some(first) = self.documents.get(&document.key) {
            let reason =
                format!("{}:{} has the same object already; the first one counts", first.file, first.root.line);
            let field = if document.key.kind == Kind::Mesh { "kind" } else { "metadata.name" };
            self.reject(&document, &FieldProblem::new(field, reason), Severity::Error);
            return;
        }
        let key = document.key.clone();
        match object::read(&document) {
            Ok(read) => {
                for hint in &read.hints {
                    self.reject(&document, hint, Severity::Ignored);
                }
                let (file, line) = (Arc::clone(&document.file), document.root.line);
                let in_force = InForce { file, line, object: read.object, is_last_good: false };
                self.objects.insert(key.clone(), Arc::new(in_force));
                self.order.push(key.clone());
                self.documents.insert(key, document);
            }
            Err(problems) => {
                let from = self.rejections.len();
                for problem in &problems {
                    self.reject(&document, problem, Severity::Error);
                }
                let range = from..self.rejections.len();
                self.refuse(key, object::scope_of_refused(&document), range, None);
            }
        }
    }

    fn reject(&mut self, document: &Document, problem: &FieldProblem, severity: Severity) {
        self.push(Rejection {
            file: document.file.to_string(),
            line: document.root.line_of(&problem.field),
            object: Some(document.key.to_string()),
            field: (!problem.field.is_empty()).then(|| problem.field.clone()),
            reason: problem.reason.clone(),
            severity,
        });
    }

    fn push(&mut self, rejection: Rejection) -> usize {
        let file = self.files.len().saturating_sub(1);
        self.rejections.push((file, rejection));
        self.rejections.len() - 1
    }

    fn refuse(
        &mut self,
        key: ObjectKey,
        scope: PolicyScope,
        rejections: std::ops::Range<usize>,
        guessed_in: Option<Arc<str>>,
    ) {
        let texts = self.rejections.get(rejections.clone()).unwrap_or_default();
        let reason = texts.first().map_or_else(String::new, |(_, r)| match &r.field {
            Some(field) => format!("{field}: {}", r.reason),
            None => r.reason.clone(),
        });
        self.refused.push(Refused { key, scope, reason, rejections, guessed_in });
    }

    fn keep_last_good(&mut self, previous: Option<&World>) {
        let earlier = previous.map(|world| Arc::clone(&world.objects)).unwrap_or_default();
        let broken = std::mem::take(&mut self.broken_files);
        for (key, old) in earlier.iter().filter(|(_, old)| broken.contains(&old.file)) {
            if !self.objects.contains_key(key) {
                self.keep(key, old);
            }
        }
        for refused in std::mem::take(&mut self.refused) {
            let in_force = self.objects.get(&refused.key);
            if in_force.is_some_and(|o| !o.is_last_good) {
                continue;
            }
            if in_force.is_some() || self.has_likely_predecessor(&refused) {
                self.append(refused.rejections, STAYS);
            } else if let Some(old) = earlier.get(&refused.key) {
                self.keep(&refused.key, old);
                self.append(refused.rejections, STAYS);
            } else if refused.key.kind.is_policy() {
                self.fail_closed(refused);
            }
        }
    }

    /// Whether an object kept from the same file may be the earlier version of
    /// one whose name is only guessed.
    fn has_likely_predecessor(&self, refused: &Refused) -> bool {
        let Some(file) = &refused.guessed_in else { return false };
        self.objects.iter().any(|(key, old)| {
            let same_scope = (key.kind, &key.namespace) == (refused.key.kind, &refused.key.namespace);
            old.is_last_good && old.file == *file && same_scope
        })
    }

    fn keep(&mut self, key: &ObjectKey, old: &InForce) {
        let kept = InForce { is_last_good: true, ..old.clone() };
        self.objects.insert(key.clone(), Arc::new(kept));
        self.order.push(key.clone());
    }

    fn fail_closed(&mut self, refused: Refused) {
        let PolicyScope::Pods(selector) = refused.scope else { return };
        let kind = match refused.key.kind {
            Kind::PeerAuthentication => PolicyKind::PeerAuthentication,
            _ => PolicyKind::AuthorizationPolicy,
        };
        self.append(refused.rejections, DENIES);
        let ObjectKey { namespace, name, .. } = refused.key;
        if self
            .not_understood
            .iter()
            .any(|n| (n.kind, &n.namespace, &n.name, &n.selector) == (kind, &namespace, &name, &selector))
        {
            return;
        }
        let reason = refused.reason;
        self.not_understood.push(NotUnderstood { kind, namespace, name, selector, reason });
    }

    fn append(&mut self, rejections: std::ops::Range<usize>, fate: &str) {
        for (_, rejection) in self.rejections.get_mut(rejections).unwrap_or_default() {
            rejection.reason.push_str("; ");
            rejection.reason.push_str(fate);
        }
    }

    /// Rejects an object in force for what it says together with others.
    fn reject_in_force(&mut self, key: &ObjectKey, problem: FieldProblem) {
        if let Some(document) = self.documents.get(key).cloned() {
            self.reject(&document, &problem, Severity::Error);
            let file = self.files.iter().position(|file| *file == document.file);
            if let (Some(file), Some(last)) = (file, self.rejections.last_mut()) {
                last.0 = file;
            }
        } else if let Some(old) = self.objects.get(key) {
            let rejection = Rejection {
                file: old.file.to_string(),
                line: old.line,
                object: Some(key.to_string()),
                field: (!problem.field.is_empty()).then_some(problem.field),
                reason: format!("the version accepted before cannot stay: {}", problem.reason),
                severity: Severity::Error,
            };
            self.push(rejection);
        }
    }

    fn mesh_object(&self) -> MeshObject {
        let found = self.objects.values().find_map(|in_force| match &in_force.object {
            Object::Mesh(mesh) => Some(mesh.clone()),
            _ => None,
        });
        found.unwrap_or_default()
    }

    fn finish(mut self, defaults: &MeshConfig, previous: Option<&World>, generation: u64) -> Loaded {
        let local = self.mesh_object();
        let mesh = local.over(defaults);
        let pods = pods::sound(&mut self, &mesh, &local, previous);
        let services = services::sound(&mut self, &pods);
        let mut world = self.build(mesh, pods, services).snapshot(generation);
        pods::hint_at_missing_nodes(&mut self, &world);
        let old = self.objects.iter().filter(|(key, old)| key.kind.is_policy() && old.is_last_good);
        world.last_good = Arc::new(old.map(|(key, _)| key.clone()).collect());
        self.rejections.sort_by_key(|(file, rejection)| (*file, rejection.line));
        let rejections = self.rejections.into_iter().map(|(_, rejection)| rejection).collect();
        world.objects = Arc::new(self.objects);
        Loaded { world, rejections }
    }

    /// Puts what is left into a world, in the order in which it was read, so that the first one counts.
    fn build(
        &mut self,
        mesh: MeshConfig,
        mut pods: BTreeMap<ObjectKey, PodObject>,
        mut services: BTreeMap<ObjectKey, ServiceObject>,
    ) -> WorldBuilder {
        let mut builder = WorldBuilder::new(mesh);
        for (rank, key) in (0..).zip(&self.order) {
            let Some(in_force) = self.objects.get(key) else { continue };
            let object = match (pods.remove(key), services.remove(key)) {
                (Some(pod), _) => Object::Pod(Box::new(pod)),
                (None, Some(service)) => Object::Service(service),
                // A pod that is not sound has been taken out of the objects, or has ended.
                (None, None) if key.kind == Kind::Pod => continue,
                (None, None) => in_force.object.clone(),
            };
            // What a builder refuses, two of these pods or more would have to claim: that was looked for.
            let _ = builder.put(key, rank, object);
        }
        for refused in std::mem::take(&mut self.not_understood) {
            builder.put_not_understood(refused);
        }
        builder
    }
}
