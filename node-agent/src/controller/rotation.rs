//! Replacing the mesh's keys without a failed connection: a state machine whose every step is written down before
//! anything follows from it, and that goes on only when every node has followed.
//!
//! ```text
//! root          (steady) ─ begin ─▶ Distribute ─ all trust both ─▶ Renew ─ all use the new one ─▶ (steady, old root gone)
//! intermediate  (steady) ─ begin ─────────────────────────────────▶ Renew ─ all use the new one ─▶ (steady)
//! ```

use std::time::{Duration, SystemTime};

use warren_core::identity::TrustDomain;
use warren_mesh::identity::{CaCertificate, CaPem, TrustNotes, certificate_id};

use super::state::{CaState, Rotation, StateError, Step, What, intermediate};
use crate::ca_protocol::WaitingNode;

/// How long the next root is known before it signs, at least: an agent that has just started, and has not said yet what
/// it trusts, reads the bundle again within this time.
const DISTRIBUTE: Duration = Duration::from_secs(30);

/// A node, and what its agent says of itself; `None` if it says nothing.
#[derive(Debug, Clone)]
pub(crate) struct NodeTrust {
    /// Its name.
    pub(crate) node: String,
    /// What it trusts and uses.
    pub(crate) notes: Option<TrustNotes>,
}

/// What comes of looking at the nodes.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nothing is under way.
    Steady,
    /// Some have not followed.
    Waiting(Vec<WaitingNode>),
    /// The next state, to be written down.
    Next(Box<CaState>),
}

/// Begins a rotation. One that is under way must end first.
pub(crate) fn begin(
    state: &CaState,
    what: What,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<CaState, StateError> {
    let mut next = state.clone();
    next.sequence += 1;
    match what {
        What::Root => {
            let root =
                CaPem::new_root(trust_domain, now).map_err(|e| StateError::Authority("next-root-cert.pem", e))?;
            next.next_root = Some(root);
            next.rotation = Some(rotation(what, Step::Distribute, now));
        }
        What::Intermediate => {
            next.intermediate = intermediate(&state.root()?, trust_domain, now)?;
            next.rotation = Some(rotation(what, Step::Renew, now));
        }
    }
    Ok(next)
}

/// Goes on if every node has followed.
pub(crate) fn advance(
    state: &CaState,
    nodes: &[NodeTrust],
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Progress, StateError> {
    let Some(rotation) = &state.rotation else { return Ok(Progress::Steady) };
    let digest = state.bundle(trust_domain)?.digest();
    let issuer = issuer(state, trust_domain)?;
    let lacking = |node: &NodeTrust| lacks(rotation.step, node, &digest, &issuer);
    let waiting: Vec<WaitingNode> = nodes
        .iter()
        .filter(|node| !rotation.skipped.contains(&node.node))
        .filter_map(|node| Some(WaitingNode { node: node.node.clone(), reason: lacking(node)? }))
        .collect();
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(rotation.since);
    let early = rotation.step == Step::Distribute && now < since + DISTRIBUTE;
    if !waiting.is_empty() || early {
        return Ok(Progress::Waiting(waiting));
    }
    Ok(Progress::Next(Box::new(after(state, rotation, trust_domain, now)?)))
}

fn after(state: &CaState, done: &Rotation, trust_domain: &TrustDomain, now: SystemTime) -> Result<CaState, StateError> {
    let mut next = state.clone();
    next.sequence += 1;
    match done.step {
        Step::Distribute => {
            let root = next.next_root.take().ok_or(StateError::Missing("next-root-cert.pem"))?;
            next.intermediate = intermediate(&root, trust_domain, now)?;
            next.old_root_cert = Some(std::mem::replace(&mut next.root_cert, root.cert));
            next.root_key = Some(root.key);
            next.rotation = Some(rotation(done.what, Step::Renew, now));
        }
        Step::Renew => {
            next.old_root_cert = None;
            next.rotation = None;
        }
    }
    Ok(next)
}

/// What a node lacks; `None` if nothing.
fn lacks(step: Step, node: &NodeTrust, digest: &str, issuer: &str) -> Option<String> {
    let Some(notes) = &node.notes else { return Some("its agent has not said what it trusts".to_owned()) };
    if notes.bundle != digest {
        return Some("its agent does not have the present trust bundle".to_owned());
    }
    let old = notes.issuers.iter().filter(|one| *one != issuer).count();
    (step == Step::Renew && old > 0).then(|| "some of its pods have SVIDs of the intermediate before".to_owned())
}

/// The short name of the intermediate that signs.
pub(crate) fn issuer(state: &CaState, trust_domain: &TrustDomain) -> Result<String, StateError> {
    let read = CaCertificate::all_from_pem(&state.intermediate.cert, trust_domain);
    let chain = read.map_err(|e| StateError::Authority("intermediate-cert.pem", e))?;
    let first = chain.first().ok_or(StateError::Missing("intermediate-cert.pem"))?;
    Ok(certificate_id(first.der()))
}

fn rotation(what: What, step: Step, now: SystemTime) -> Rotation {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    Rotation { what, step, since, skipped: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        domain: TrustDomain,
        now: SystemTime,
        state: CaState,
    }

    impl Scene {
        fn new() -> Self {
            let domain: TrustDomain = "cluster.local".parse().unwrap();
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            Self { state: CaState::new(&domain, now).unwrap(), domain, now }
        }

        /// Writes the state down and reads it again, as another replica does that takes over between two steps.
        fn take_over(&mut self) {
            let (state, incomplete) = CaState::read(&self.state.write().unwrap(), &self.domain, self.now).unwrap();
            assert!(!incomplete);
            assert_eq!(state, self.state);
            assert!(state.authority(&self.domain, self.now).is_ok(), "it can sign in every step");
            self.state = state;
        }

        fn node(&self, name: &str) -> NodeTrust {
            let notes = TrustNotes {
                bundle: self.state.bundle(&self.domain).unwrap().digest(),
                issuers: vec![issuer(&self.state, &self.domain).unwrap()],
            };
            NodeTrust { node: name.to_owned(), notes: Some(notes) }
        }

        fn begin(&mut self, what: What) {
            self.state = begin(&self.state, what, &self.domain, self.now).unwrap();
            self.take_over();
        }

        /// The nodes waited for; the state goes on if there are none.
        fn look(&mut self, nodes: &[NodeTrust]) -> Vec<String> {
            match advance(&self.state, nodes, &self.domain, self.now).unwrap() {
                Progress::Steady => Vec::new(),
                Progress::Waiting(waiting) => {
                    let mut names: Vec<String> = waiting.into_iter().map(|one| one.node).collect();
                    if names.is_empty() {
                        names.push("(time)".to_owned());
                    }
                    names
                }
                Progress::Next(next) => {
                    assert!(next.sequence > self.state.sequence);
                    self.state = *next;
                    self.take_over();
                    Vec::new()
                }
            }
        }

        fn step(&self) -> Option<Step> {
            self.state.rotation.as_ref().map(|rotation| rotation.step)
        }

        fn roots(&self) -> usize {
            self.state.roots(&self.domain).unwrap().len()
        }
    }

    #[test]
    fn a_root_is_known_everywhere_before_it_signs_and_trusted_until_nobody_needs_it() {
        let mut scene = Scene::new();
        let before = scene.node("a");
        let old_root = scene.state.root_cert.clone();
        scene.begin(What::Root);
        assert_eq!((scene.step(), scene.roots()), (Some(Step::Distribute), 2));
        assert_eq!(issuer(&scene.state, &scene.domain).unwrap(), before.notes.as_ref().unwrap().issuers[0]);
        scene.now += DISTRIBUTE;
        let silent = NodeTrust { node: "c".to_owned(), notes: None };
        assert_eq!(scene.look(&[before.clone(), scene.node("b"), silent]), ["a", "c"]);
        let both = scene.node("a");
        assert!(scene.look(std::slice::from_ref(&both)).is_empty());
        assert_eq!((scene.step(), scene.roots()), (Some(Step::Renew), 2));
        assert_ne!(scene.state.root_cert, old_root);
        assert_eq!(scene.look(&[both]), ["a"], "SVIDs of the old intermediate are in use");
        let renewed = scene.node("a");
        assert!(scene.look(&[renewed]).is_empty());
        assert_eq!((scene.step(), scene.roots()), (None, 1));
        assert!(!scene.state.bundle_pem().contains(&old_root));
    }

    #[test]
    fn the_next_root_has_time_to_be_read() {
        let mut scene = Scene::new();
        scene.begin(What::Root);
        assert_eq!(scene.look(&[]), ["(time)"]);
        scene.now += DISTRIBUTE;
        assert!(scene.look(&[]).is_empty());
        assert_eq!(scene.step(), Some(Step::Renew));
    }

    #[test]
    fn a_node_that_is_cut_off_blocks_until_an_operator_names_it() {
        let mut scene = Scene::new();
        let cut_off = scene.node("cut-off");
        scene.begin(What::Intermediate);
        assert_eq!((scene.step(), scene.roots()), (Some(Step::Renew), 1));
        for _ in 0..3 {
            assert_eq!(scene.look(&[cut_off.clone(), scene.node("b")]), ["cut-off"]);
        }
        scene.state.rotation.as_mut().unwrap().skipped.push("cut-off".to_owned());
        assert!(scene.look(&[cut_off, scene.node("b")]).is_empty());
        assert_eq!(scene.step(), None);
    }

    #[test]
    fn without_the_roots_key_only_the_root_can_be_replaced() {
        let mut scene = Scene::new();
        scene.state.root_key = None;
        assert!(matches!(
            begin(&scene.state, What::Intermediate, &scene.domain, scene.now),
            Err(StateError::RootIsElsewhere)
        ));
        scene.begin(What::Root);
        scene.now += DISTRIBUTE;
        let node = scene.node("a");
        assert!(scene.look(&[node]).is_empty());
        assert!(scene.state.root_key.is_some());
    }
}
