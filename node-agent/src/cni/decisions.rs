//! The decisions by which pods start, or do not, while the agent is away: a file that the agent keeps and the plugin
//! reads.
//!
//! Its first line says what it is, in which version, and the SHA-256 of the rest, which is JSON. A file that is cut off,
//! altered, of another version or too old decides nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use warren_core::enrolment::mode::{Decision, RefuseReason, Said, decide};
use warren_core::world::{MeshMode, World};

use super::request::PodName;

const MAGIC: &str = "warren-decisions";
/// Version of the form; fields are only added within it.
const VERSION: u32 = 1;
/// How far a file may seem to come from the future: a clock that was set back.
const SKEW: Duration = Duration::from_secs(300);
/// Longest file that is read, bytes: namespaces of a cluster and pods of a node are far less.
const LONGEST: u64 = 16 << 20;

/// The decisions of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Decisions {
    /// Seconds since 1970 when the agent last stood by them.
    pub(super) written: u64,
    /// By namespace: what becomes of pods that say nothing themselves.
    pub(super) namespaces: BTreeMap<String, NamespaceDecision>,
    /// Pods of this node, by `namespace/name`.
    pub(super) pods: BTreeMap<String, PodDecision>,
}

/// What is known of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceDecision {
    pub(super) decision: Decision,
    /// Some of its pods are in by their own label, so that a pod nobody has seen may be.
    #[serde(default)]
    pub(super) mixed: bool,
}

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodDecision {
    pub(super) uid: String,
    pub(super) decision: Decision,
}

/// Why a file decides nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecisionsError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: {what}", path.display())]
    Unsound { path: PathBuf, what: String },
    #[error("{}: {} old, and {} at most is allowed", path.display(), whole(*age), whole(*most))]
    Stale { path: PathBuf, age: Duration, most: Duration },
}

/// What the decisions say of a pod that is about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may start: nobody wants it captured.
    Start,
    /// It must wait for the agent.
    Wait(String),
}

fn whole(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

impl Decisions {
    /// What follows from a world for the pods of a node.
    pub(super) fn of(world: &World, node: &str) -> Self {
        let mut decisions = Self::default();
        let never = &world.mesh.never_enrolled;
        let known = world.namespaces().iter().map(|(name, said)| (name.as_str(), *said));
        let mentioned = world.pods.values().map(|pod| (&*pod.namespace, Said::Nothing));
        for (name, said) in known.chain(mentioned) {
            if !decisions.namespaces.contains_key(name) {
                let decision = decide(name, never, &Default::default(), said);
                decisions.namespaces.insert(name.to_owned(), NamespaceDecision { decision, mixed: false });
            }
        }
        for pod in world.pods.values() {
            let Some(namespace) = decisions.namespaces.get_mut(&*pod.namespace) else { continue };
            namespace.mixed |= pod.mode == MeshMode::Ambient && namespace.decision != Decision::Enrol;
        }
        for pod in world.pods_on(node) {
            let entry = PodDecision { uid: pod.uid.to_string(), decision: pod.decision };
            decisions.pods.insert(format!("{}/{}", pod.namespace, pod.name), entry);
        }
        decisions
    }

    /// Whether the pod may start without the agent.
    pub(super) fn judge(&self, pod: &PodName) -> Verdict {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let same = |known: &&PodDecision| pod.uid.as_ref().is_some_and(|uid| *uid == known.uid);
        if let Some(known) = self.pods.get(&name).filter(same) {
            return verdict(known.decision, "the pod");
        }
        match self.namespaces.get(&pod.namespace) {
            None => Verdict::Wait(format!("nothing is known of the namespace {}", pod.namespace)),
            Some(NamespaceDecision { mixed: true, .. }) => {
                let (namespace, name) = (&pod.namespace, &pod.name);
                Verdict::Wait(format!("pods of {namespace} are in by their own labels, and {name} may be one of them"))
            }
            Some(known) => verdict(known.decision, "the namespace"),
        }
    }

    /// Reads the file, and believes it only if it is whole and young enough.
    pub(super) fn read(path: &Path, most: Duration, now: SystemTime) -> Result<Self, DecisionsError> {
        let decisions = parse(&load(path)?).map_err(|what| DecisionsError::Unsound { path: path.to_owned(), what })?;
        let written = UNIX_EPOCH + Duration::from_secs(decisions.written);
        match now.duration_since(written) {
            Ok(age) if age > most => Err(DecisionsError::Stale { path: path.to_owned(), age, most }),
            Err(ahead) if ahead.duration() > SKEW => Err(DecisionsError::Unsound {
                path: path.to_owned(),
                what: format!("written {} from now: the clock was set back", whole(ahead.duration())),
            }),
            _ => Ok(decisions),
        }
    }

    /// Replaces the file in one step; after a power cut it is the old one or the new one.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().ok_or_else(|| io::Error::other("a file has a directory"))?;
        fs::create_dir_all(directory)?;
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&self.to_bytes()?)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(directory)?.sync_all()
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let mut bytes = format!("{MAGIC} {VERSION} {}\n", checksum(&body)).into_bytes();
        bytes.extend(body);
        Ok(bytes)
    }
}

fn verdict(decision: Decision, whose: &str) -> Verdict {
    match decision {
        Decision::Observe | Decision::Leave(_) => Verdict::Start,
        Decision::Enrol => Verdict::Wait(format!("{whose} is in the mesh")),
        Decision::Refuse(reason) if reason.is_undecidable() => Verdict::Wait(reason.to_string()),
        // Wanted in, and never captured: waiting for the agent would change nothing.
        Decision::Refuse(RefuseReason::HostNetwork | RefuseReason::Sidecar | RefuseReason::Sandboxed) => Verdict::Start,
        Decision::Refuse(reason) => Verdict::Wait(reason.to_string()),
    }
}

fn load(path: &Path) -> Result<Vec<u8>, DecisionsError> {
    let wrap = |error| DecisionsError::File { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    File::open(path).map_err(wrap)?.take(LONGEST + 1).read_to_end(&mut bytes).map_err(wrap)?;
    if bytes.len() as u64 > LONGEST {
        return Err(DecisionsError::Unsound { path: path.to_owned(), what: format!("longer than {LONGEST} bytes") });
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Decisions, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("not a file of decisions: it has no first line")?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| "not a file of decisions")?;
    let mut words = head.split(' ');
    if words.next() != Some(MAGIC) {
        return Err("not a file of decisions".to_owned());
    }
    match words.next().and_then(|word| word.parse::<u32>().ok()) {
        Some(VERSION) => {}
        other => return Err(format!("version {other:?} is not known to this release, which knows {VERSION}")),
    }
    if words.next() != Some(checksum(body).as_str()) {
        return Err("damaged: the checksum does not fit".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn checksum(body: &[u8]) -> String {
    digest(&SHA256, body).as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warren_core::enrolment::mode::LeaveReason;
    use warren_core::world::{MeshConfig, SourceText, load};

    use super::*;

    const WORLD: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {warren.dev/mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Namespace
metadata: {name: some}
---
apiVersion: v1
kind: Namespace
metadata: {name: torn, labels: {warren.dev/mode: ambient, istio.io/dataplane-mode: none}}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: some, uid: u1, labels: {warren.dev/mode: ambient}}
spec: {nodeName: elsewhere}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: some, uid: u2, labels: {warren.dev/mode: none}}
spec: {nodeName: here}
";

    fn decisions() -> Decisions {
        let texts = [SourceText { file: "w".into(), text: WORLD.into() }];
        let loaded = load(&texts, &MeshConfig::new("mesh.test".parse().unwrap()), None, 1);
        assert!(loaded.rejections.is_empty(), "{:?}", loaded.rejections);
        Decisions::of(&loaded.world, "here")
    }

    fn pod(namespace: &str, name: &str, uid: &str) -> PodName {
        PodName { namespace: namespace.into(), name: name.into(), uid: Some(uid.into()) }
    }

    #[test]
    fn what_may_start_without_the_agent() {
        let decisions = decisions();
        let starts = |namespace, name, uid| decisions.judge(&pod(namespace, name, uid)) == Verdict::Start;
        assert!(starts("plain", "new", "x"));
        assert!(starts("some", "two", "u2"), "it opted out itself");
        assert!(!starts("some", "two", "other"), "another pod of that name");
        assert!(!starts("some", "new", "x"), "it may have a label of its own");
        assert!(!starts("shop", "new", "x"));
        assert!(!starts("torn", "new", "x"));
        assert!(!starts("unheard", "new", "x"));
        let leave = Decision::Leave(LeaveReason::NotAsked);
        assert_eq!(decisions.namespaces["plain"], NamespaceDecision { decision: leave, mixed: false });
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("warren-decisions-{}-{name}", std::process::id()));
            Self(dir.join("deep/decisions"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.parent().unwrap().parent().unwrap());
        }
    }

    #[test]
    fn only_a_whole_and_young_file_is_believed() {
        let scratch = Scratch::new("whole");
        let path = &scratch.0;
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let most = Duration::from_secs(60);
        assert!(matches!(Decisions::read(path, most, at(0)), Err(DecisionsError::File { .. })));
        let written = Decisions { written: 1000, ..decisions() };
        written.write(path).unwrap();
        assert_eq!(Decisions::read(path, most, at(1060)).unwrap(), written);
        assert!(matches!(Decisions::read(path, most, at(1061)), Err(DecisionsError::Stale { .. })));
        assert!(Decisions::read(path, most, at(701)).is_ok(), "a clock may be set back a little");
        assert!(Decisions::read(path, most, at(699)).is_err());
        let whole = fs::read(path).unwrap();
        for length in [0, 5, 40, whole.len() - 1] {
            fs::write(path, &whole[..length]).unwrap();
            assert!(matches!(Decisions::read(path, most, at(1000)), Err(DecisionsError::Unsound { .. })), "{length}");
        }
        let other = String::from_utf8(whole).unwrap().replace("decisions 1 ", "decisions 2 ");
        fs::write(path, other).unwrap();
        assert!(Decisions::read(path, most, at(1000)).unwrap_err().to_string().contains("version"));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let whole = decisions().to_bytes().unwrap();
            let mut bytes = whole.clone();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn no_bytes_are_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}
