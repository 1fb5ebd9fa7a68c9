//! What labels, annotations and the spec say about a pod's place in the mesh, and what follows from it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::world::MeshMode;

/// Warren's own label for the mode of a pod or a namespace.
pub const MODE_LABEL: &str = "warren.dev/mode";
/// Istio's label for the same.
pub const ISTIO_MODE_LABEL: &str = "istio.io/dataplane-mode";

/// Annotations that a sidecar injector leaves on a pod.
const SIDECARS: [&str; 2] = ["sidecar.istio.io/status", "linkerd.io/proxy-version"];
/// Istio's mark on a pod whose traffic its own node agent redirects.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Names of runtime classes by which sandboxes usually go: a guest kernel of their own, which our programs do not see.
const SANDBOXES: [&str; 6] = ["kata", "gvisor", "runsc", "firecracker", "peerpod", "edera"];

/// Namespaces whose pods are never enrolled: what the cluster and Warren itself need to come up.
pub const NEVER_ENROLLED: [&str; 2] = ["kube-system", "warren-system"];

/// What the labels of one object say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Said {
    /// Nothing.
    #[default]
    Nothing,
    /// This mode.
    Mode(MeshMode),
    /// One mode by our label, another by Istio's.
    Contradiction,
}

/// A value of our own label that has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of ambient, observe and none")]
pub struct UnknownMode(pub String);

impl Said {
    /// Reads both labels. A misspelt value of ours is a fault: it would mean plaintext. Istio's label has values of
    /// other data planes, which say nothing to us.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self, UnknownMode> {
        let ours = match labels.get(MODE_LABEL).map(String::as_str) {
            None => None,
            Some("observe") => Some(MeshMode::Observe),
            Some(word) => Some(ambient_or_none(word).ok_or_else(|| UnknownMode(word.to_owned()))?),
        };
        let istio = labels.get(ISTIO_MODE_LABEL).and_then(|word| ambient_or_none(word));
        Ok(match (ours, istio) {
            (Some(ours), Some(istio)) if ours != istio => Self::Contradiction,
            (Some(mode), _) | (None, Some(mode)) => Self::Mode(mode),
            (None, None) => Self::Nothing,
        })
    }
}

fn ambient_or_none(word: &str) -> Option<MeshMode> {
    match word {
        "ambient" => Some(MeshMode::Ambient),
        "none" => Some(MeshMode::None),
        _ => None,
    }
}

/// What a pod itself says and is, as far as enrolment depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// What its labels say.
    pub said: Said,
    /// It shares the node's network namespace.
    pub host_network: bool,
    /// A sidecar proxy of a mesh was injected.
    pub has_sidecar: bool,
    /// Istio's node agent redirects its traffic already.
    pub is_redirected: bool,
    /// Its runtime has a kernel of its own.
    pub is_sandboxed: bool,
}

impl PodFacts {
    /// Reads a pod's metadata and the two fields of its spec that matter.
    pub fn read(
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        host_network: bool,
        runtime_class: Option<&str>,
    ) -> Result<Self, UnknownMode> {
        Ok(Self {
            said: Said::read(labels)?,
            host_network,
            has_sidecar: SIDECARS.iter().any(|name| annotations.contains_key(*name)),
            is_redirected: annotations.get(REDIRECTION).is_some_and(|word| word == "enabled"),
            is_sandboxed: runtime_class.is_some_and(is_sandbox),
        })
    }
}

/// A class's handler is known to the node's runtime only; its name is what a pod shows.
fn is_sandbox(class: &str) -> bool {
    class.split(['-', '_', '.']).any(|word| SANDBOXES.contains(&word))
}

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It is captured, and reached by HBONE.
    Enrol,
    /// It gets an identity and is shown; its traffic is left alone.
    Observe,
    /// Nobody wants it in.
    Leave(LeaveReason),
    /// It is wanted in, and cannot be: this is reported.
    Refuse(RefuseReason),
}

/// Why a pod is none of the mesh's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// Neither pod nor namespace has a label.
    NotAsked,
    /// A label says `none`.
    OptedOut,
    /// Its namespace is one that is never enrolled.
    FixedNamespace,
}

/// Why a pod that is wanted in stays out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefuseReason {
    /// The pod's own labels name two modes.
    PodLabels,
    /// The namespace's labels name two modes, and the pod has none of its own.
    NamespaceLabels,
    /// It shares the node's network.
    HostNetwork,
    /// A sidecar was injected.
    Sidecar,
    /// Istio's own ambient agent redirects it.
    Redirected,
    /// Its runtime is a sandbox.
    Sandboxed,
}

impl RefuseReason {
    /// All there are, in a fixed order.
    pub const ALL: [Self; 6] =
        [Self::PodLabels, Self::NamespaceLabels, Self::HostNetwork, Self::Sidecar, Self::Redirected, Self::Sandboxed];

    /// The word in metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodLabels => "pod_labels",
            Self::NamespaceLabels => "namespace_labels",
            Self::HostNetwork => "host_network",
            Self::Sidecar => "sidecar",
            Self::Redirected => "redirected_by_istio",
            Self::Sandboxed => "sandboxed",
        }
    }

    /// Whether it cannot be told what is wanted. Such a pod does not start, and one that runs stays as it is.
    pub fn is_undecidable(self) -> bool {
        matches!(self, Self::PodLabels | Self::NamespaceLabels)
    }
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodLabels => {
                write!(f, "the pod's labels {MODE_LABEL} and {ISTIO_MODE_LABEL} contradict each other: remove one")
            }
            Self::NamespaceLabels => {
                write!(
                    f,
                    "the namespace's labels {MODE_LABEL} and {ISTIO_MODE_LABEL} contradict each other: remove one"
                )
            }
            Self::HostNetwork => f.write_str("the pod shares the node's network: it has no traffic of its own"),
            Self::Sidecar => f.write_str("a sidecar proxy was injected: the pod is another mesh's; inject none"),
            Self::Redirected => {
                f.write_str("Istio's ambient agent redirects the pod: take it out of Istio's mesh first")
            }
            Self::Sandboxed => {
                f.write_str("the pod's runtime has a kernel of its own, whose sockets Warren cannot see")
            }
        }
    }
}

impl Decision {
    /// How the rest of the mesh is to treat the pod. Where it cannot be told what is wanted, peers take it for a member:
    /// they would rather not reach it than reach it in clear.
    pub fn mode(self) -> MeshMode {
        match self {
            Self::Enrol => MeshMode::Ambient,
            Self::Observe => MeshMode::Observe,
            Self::Refuse(reason) if reason.is_undecidable() => MeshMode::Ambient,
            Self::Leave(_) | Self::Refuse(_) => MeshMode::None,
        }
    }
}

/// What becomes of a pod in a namespace that says `inherited`. The pod's own word counts more than its namespace's;
/// `never` are namespaces that are never enrolled.
pub fn decide(namespace: &str, never: &[String], pod: &PodFacts, inherited: Said) -> Decision {
    if never.iter().any(|name| name == namespace) {
        return Decision::Leave(LeaveReason::FixedNamespace);
    }
    let mode = match (pod.said, inherited) {
        (Said::Contradiction, _) => return Decision::Refuse(RefuseReason::PodLabels),
        (Said::Mode(mode), _) | (Said::Nothing, Said::Mode(mode)) => mode,
        (Said::Nothing, Said::Contradiction) => return Decision::Refuse(RefuseReason::NamespaceLabels),
        (Said::Nothing, Said::Nothing) => return Decision::Leave(LeaveReason::NotAsked),
    };
    match (mode, obstacle(pod)) {
        (MeshMode::None, _) => Decision::Leave(LeaveReason::OptedOut),
        (_, Some(reason)) => Decision::Refuse(reason),
        (MeshMode::Ambient, None) => Decision::Enrol,
        (MeshMode::Observe, None) => Decision::Observe,
    }
}

fn obstacle(pod: &PodFacts) -> Option<RefuseReason> {
    let obstacles = [
        (pod.host_network, RefuseReason::HostNetwork),
        (pod.has_sidecar, RefuseReason::Sidecar),
        (pod.is_redirected, RefuseReason::Redirected),
        (pod.is_sandboxed, RefuseReason::Sandboxed),
    ];
    obstacles.into_iter().find_map(|(stands, reason)| stands.then_some(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn said(entries: &[(&str, &str)]) -> Said {
        Said::read(&map(entries)).unwrap()
    }

    const NOT_ASKED: Decision = Decision::Leave(LeaveReason::NotAsked);
    const OPTED_OUT: Decision = Decision::Leave(LeaveReason::OptedOut);

    #[test]
    fn both_labels_are_read_the_same_way() {
        for (value, mode) in [("ambient", MeshMode::Ambient), ("none", MeshMode::None)] {
            assert_eq!(said(&[(MODE_LABEL, value)]), Said::Mode(mode));
            assert_eq!(said(&[(ISTIO_MODE_LABEL, value)]), Said::Mode(mode));
            assert_eq!(said(&[(MODE_LABEL, value), (ISTIO_MODE_LABEL, value)]), Said::Mode(mode));
        }
        assert_eq!(said(&[(MODE_LABEL, "observe")]), Said::Mode(MeshMode::Observe));
        assert_eq!(said(&[(ISTIO_MODE_LABEL, "other-plane")]), Said::Nothing);
        assert_eq!(said(&[(MODE_LABEL, "ambient"), (ISTIO_MODE_LABEL, "other-plane")]), Said::Mode(MeshMode::Ambient));
        assert_eq!(said(&[]), Said::Nothing);
    }

    #[test]
    fn two_modes_at_once_are_a_contradiction_and_a_misspelt_one_is_a_fault() {
        for (ours, istio) in [("ambient", "none"), ("none", "ambient"), ("observe", "ambient"), ("observe", "none")] {
            assert_eq!(said(&[(MODE_LABEL, ours), (ISTIO_MODE_LABEL, istio)]), Said::Contradiction, "{ours} {istio}");
        }
        assert_eq!(Said::read(&map(&[(MODE_LABEL, "ambiant")])), Err(UnknownMode("ambiant".into())));
        assert!(Said::read(&map(&[(MODE_LABEL, "")])).is_err());
    }

    #[test]
    fn the_pods_word_counts_more_than_its_namespaces() {
        use MeshMode::{Ambient, None, Observe};
        use Said::{Contradiction, Mode, Nothing};
        let namespace_labels = Decision::Refuse(RefuseReason::NamespaceLabels);
        let pod_labels = Decision::Refuse(RefuseReason::PodLabels);
        let table = [
            (Nothing, Nothing, NOT_ASKED),
            (Nothing, Mode(Ambient), Decision::Enrol),
            (Nothing, Mode(Observe), Decision::Observe),
            (Nothing, Mode(None), OPTED_OUT),
            (Nothing, Contradiction, namespace_labels),
            (Mode(Ambient), Nothing, Decision::Enrol),
            (Mode(Ambient), Mode(None), Decision::Enrol),
            (Mode(Ambient), Contradiction, Decision::Enrol),
            (Mode(Observe), Mode(Ambient), Decision::Observe),
            (Mode(None), Mode(Ambient), OPTED_OUT),
            (Mode(None), Contradiction, OPTED_OUT),
            (Contradiction, Nothing, pod_labels),
            (Contradiction, Mode(Ambient), pod_labels),
        ];
        for (own, inherited, wanted) in table {
            let pod = PodFacts { said: own, ..PodFacts::default() };
            assert_eq!(decide("shop", &[], &pod, inherited), wanted, "{own:?} in {inherited:?}");
        }
    }

    #[test]
    fn what_cannot_be_captured_is_refused_only_where_it_is_wanted() {
        let spec = |annotations: &[(&str, &str)], host_network, class| {
            PodFacts::read(&map(&[]), &map(annotations), host_network, class).unwrap()
        };
        let table = [
            (spec(&[], true, None), RefuseReason::HostNetwork),
            (spec(&[("sidecar.istio.io/status", "{}")], false, None), RefuseReason::Sidecar),
            (spec(&[("linkerd.io/proxy-version", "edge")], false, None), RefuseReason::Sidecar),
            (spec(&[("ambient.istio.io/redirection", "enabled")], false, None), RefuseReason::Redirected),
            (spec(&[], false, Some("kata-qemu")), RefuseReason::Sandboxed),
            (spec(&[], false, Some("gvisor")), RefuseReason::Sandboxed),
        ];
        for (pod, reason) in table {
            for mode in [MeshMode::Ambient, MeshMode::Observe] {
                assert_eq!(decide("shop", &[], &pod, Said::Mode(mode)), Decision::Refuse(reason));
            }
            assert_eq!(decide("shop", &[], &pod, Said::Nothing), NOT_ASKED);
            assert_eq!(decide("shop", &[], &pod, Said::Mode(MeshMode::None)), OPTED_OUT);
        }
        for harmless in [
            spec(&[("ambient.istio.io/redirection", "disabled")], false, None),
            spec(&[], false, Some("runc")),
            spec(&[], false, Some("katalog")),
        ] {
            assert_eq!(decide("shop", &[], &harmless, Said::Mode(MeshMode::Ambient)), Decision::Enrol);
        }
    }

    #[test]
    fn some_namespaces_are_never_enrolled_whatever_anybody_says() {
        let never = NEVER_ENROLLED.map(str::to_owned);
        for said in [Said::Mode(MeshMode::Ambient), Said::Contradiction] {
            let pod = PodFacts { said, ..PodFacts::default() };
            for namespace in NEVER_ENROLLED {
                let decision = decide(namespace, &never, &pod, Said::Mode(MeshMode::Ambient));
                assert_eq!(decision, Decision::Leave(LeaveReason::FixedNamespace));
            }
        }
    }

    #[test]
    fn peers_do_not_fall_back_to_clear_text_where_labels_contradict() {
        assert_eq!(Decision::Refuse(RefuseReason::PodLabels).mode(), MeshMode::Ambient);
        assert_eq!(Decision::Refuse(RefuseReason::NamespaceLabels).mode(), MeshMode::Ambient);
        assert_eq!(Decision::Refuse(RefuseReason::Sidecar).mode(), MeshMode::None);
        assert_eq!(Decision::Observe.mode(), MeshMode::Observe);
    }
}
