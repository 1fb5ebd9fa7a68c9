//! Policies by destination. Each pod has three layers (mesh, namespace,
//! selected), each compiled once and shared by every pod it applies to, so
//! that neither building nor deciding multiplies policies by pods.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::compile::Facts;
use super::decision::{Connection, Denial, DenyReason, InboundPlan, MtlsMode, Permit, PlainVerdict, PolicyRef};
use super::matcher::Peer;
use super::peer_authentication::PortModes;
use super::scope::{PolicyKind, PolicySet};
use crate::addr::canonical;
use crate::identity::PodUid;
use crate::world::{MeshConfig, Pod, SharedMap};

mod build;
mod layer;
mod tally;

pub use build::PolicyBuilder;
use layer::{ItemKey, Layer};
use tally::{GroupKey, Tally, pods_by_object};

/// Every policy of a world, ready to judge connections to its pods.
///
/// Immutable. A decision costs a few look-ups, whatever the number of
/// policies, and allocates nothing. Versions share what they have in common.
#[derive(Debug)]
pub struct PolicyIndex {
    mesh: Arc<MeshConfig>,
    pods: SharedMap<PodUid, Arc<PodPolicy>>,
    default_allow: PolicyRef,
    /// What there is to say of each object, but for its pods.
    bindings: SharedMap<ItemKey, Arc<PolicyBinding>>,
    tallies: SharedMap<GroupKey, Tally>,
    /// The bindings in order, once somebody asks.
    listed: OnceLock<Vec<PolicyBinding>>,
}

/// What became of one policy object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyBinding {
    /// Its kind.
    pub kind: PolicyKind,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Number of pods in the mesh that it applies to.
    pub pods: usize,
    /// False if it was not understood, and its pods deny.
    pub understood: bool,
    /// What the user should know, one sentence each.
    pub messages: Vec<String>,
}

/// What applies to one pod.
#[derive(Debug)]
struct PodPolicy {
    modes: PortModes,
    layers: [Arc<Layer>; 3],
}

impl PolicyIndex {
    /// Compiles the policies of a world.
    ///
    /// Objects that did not pass validation are treated as not understood.
    pub fn build<'a>(mesh: &MeshConfig, pods: impl IntoIterator<Item = &'a Pod>, policies: &PolicySet) -> Self {
        let mut builder = PolicyBuilder::new(mesh.clone());
        builder.put_all(policies);
        // Before the pods: what they have is then compiled once.
        builder.commit(|_| std::iter::empty());
        pods.into_iter().for_each(|pod| builder.put_pod(pod));
        builder.index()
    }

    /// Judges a connection.
    ///
    /// Order: not understood, plaintext into STRICT, DENY and CUSTOM, foreign
    /// trust domain, no ALLOW applies, ALLOW.
    pub fn decide(&self, connection: &Connection<'_>) -> Result<Permit, Denial> {
        let Some(policy) = self.pods.get(&connection.destination.uid) else {
            return Err(Denial::new(DenyReason::DestinationUnknown, None, "destination is not part of the world"));
        };
        let facts = self.facts(connection);
        policy.check_understood()?;
        policy.check_mode(&facts)?;
        policy.check_refusals(&facts)?;
        policy.check_allowed(&facts, &self.default_allow)
    }

    /// The mTLS mode of a pod's port; STRICT for a pod that is not known.
    pub fn mode(&self, pod: &Pod, port: u16) -> MtlsMode {
        self.pods.get(&pod.uid).map_or(MtlsMode::Strict, |policy| policy.modes.at(port).mode)
    }

    /// The mTLS mode of the ports that have none of their own.
    pub fn default_mode(&self, pod: &Pod) -> MtlsMode {
        self.pods.get(&pod.uid).map_or(MtlsMode::Strict, |policy| policy.modes.default.mode)
    }

    /// What the kernel does with plaintext to a pod. `Refuse` only where
    /// [`Self::decide`] denies all plaintext, `Pass` only where it allows all. Kubelet's probes pass whatever it says.
    pub fn inbound_plan(&self, pod: &Pod) -> InboundPlan {
        let Some(policy) = self.pods.get(&pod.uid) else {
            return InboundPlan { default: PlainVerdict::Refuse, ports: BTreeMap::new(), probed: Arc::default() };
        };
        let open = policy.layers.iter().all(|layer| layer.is_empty);
        let verdict = |mode| match mode {
            MtlsMode::Strict => PlainVerdict::Refuse,
            MtlsMode::Permissive if open => PlainVerdict::Pass,
            MtlsMode::Permissive => PlainVerdict::Agent,
        };
        let default = verdict(policy.modes.default.mode);
        let ports = policy.modes.ports.iter();
        let ports = ports
            .map(|(port, setting)| (*port, verdict(setting.mode)))
            .filter(|(_, verdict)| *verdict != default)
            .collect();
        InboundPlan { default, ports, probed: pod.probed.clone() }
    }

    /// What became of every policy object, in a fixed order.
    pub fn bindings(&self) -> &[PolicyBinding] {
        self.listed.get_or_init(|| {
            let pods = pods_by_object(&self.tallies);
            let with_pods = |(key, binding): (&ItemKey, &Arc<PolicyBinding>)| PolicyBinding {
                pods: pods.get(key).copied().unwrap_or(0),
                ..(**binding).clone()
            };
            let mut listed: Vec<PolicyBinding> = self.bindings.iter().map(with_pods).collect();
            let key = |b: &PolicyBinding| (b.kind, b.namespace.clone(), b.name.clone(), b.understood);
            listed.sort_by_cached_key(key);
            listed
        })
    }

    fn facts<'a>(&self, connection: &Connection<'a>) -> Facts<'a> {
        Facts {
            peer: connection.source.map(|id| Peer::new(id, &self.mesh)),
            source_ip: canonical(connection.source_ip),
            destination_ip: canonical(connection.destination_ip),
            port: connection.destination_port,
        }
    }
}

impl PodPolicy {
    fn check_understood(&self) -> Result<(), Denial> {
        let refused = self.layers.iter().find_map(|l| l.not_understood.as_ref());
        match refused {
            None => Ok(()),
            Some((policy, words)) => Err(Denial::new(DenyReason::PolicyNotUnderstood, Some(policy.clone()), words)),
        }
    }

    fn check_mode(&self, facts: &Facts<'_>) -> Result<(), Denial> {
        let setting = self.modes.at(facts.port);
        if facts.peer.is_some() || setting.mode == MtlsMode::Permissive {
            return Ok(());
        }
        Err(Denial::new(
            DenyReason::PlaintextIntoStrict,
            setting.by.clone(),
            "plaintext, but the port's mTLS mode is STRICT",
        ))
    }

    fn check_refusals(&self, facts: &Facts<'_>) -> Result<(), Denial> {
        let Some(found) = self.layers.iter().find_map(|l| l.refuse.find(facts)) else {
            return Ok(());
        };
        let (reason, detail) = if found.custom {
            (DenyReason::CustomMatched, "denied by a CUSTOM policy, whose external authorizer cannot be asked at L4")
        } else {
            (DenyReason::DenyMatched, "denied by a DENY policy")
        };
        Err(Denial::new(reason, Some(found.policy.clone()), detail))
    }

    fn check_allowed(&self, facts: &Facts<'_>, default: &PolicyRef) -> Result<Permit, Denial> {
        if let Some(found) = self.layers.iter().find_map(|l| l.allow.find(facts)) {
            return Ok(Permit::new(found.policy.clone()));
        }
        let considered = self.layers.iter().find_map(|l| l.first_allow.clone());
        if facts.peer.is_some_and(|peer| !peer.is_own()) {
            return Err(Denial::new(
                DenyReason::ForeignTrustDomain,
                considered,
                "source is of a foreign trust domain and no ALLOW names it in full",
            ));
        }
        match considered {
            None => Ok(Permit::new(default.clone())),
            Some(considered) => {
                Err(Denial::new(DenyReason::NoAllowMatched, Some(considered), self.why_not_allowed(facts)))
            }
        }
    }

    fn why_not_allowed(&self, facts: &Facts<'_>) -> &'static str {
        if facts.peer.is_none() {
            "plaintext without source principal not allowed"
        } else if self.layers.iter().any(|l| l.allow.lists(facts)) {
            "source principal not allowed on this port or from this address"
        } else {
            "source principal not allowed"
        }
    }
}
