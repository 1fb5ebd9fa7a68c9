//! The ways that bytes take from one pod to another.

use std::fmt;

use clap::ValueEnum;

/// A path. Its order here is the order of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Path {
    /// Client and server in one namespace, nothing between: what the load generator can do at most.
    Loopback,
    /// Plain TCP between pods of two nodes.
    Plain,
    /// Warren between two nodes.
    Warren,
    /// ztunnel on both nodes.
    Ztunnel,
    /// An Envoy beside each pod, mutual TLS between them.
    Envoy,
    /// Plain TCP between two pods of one node.
    PlainSameNode,
    /// Warren, both pods on one node.
    SameNode,
    /// The same with the kernel carrying the bytes.
    SameNodeSplice,
}

impl Path {
    /// The name in options and results.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Plain => "plain",
            Self::Warren => "warren",
            Self::Ztunnel => "ztunnel",
            Self::Envoy => "envoy",
            Self::PlainSameNode => "plain-same-node",
            Self::SameNode => "same-node",
            Self::SameNodeSplice => "same-node-splice",
        }
    }

    /// The plain path that this one is held against.
    pub(crate) fn control(self) -> Option<Self> {
        match self {
            Self::Loopback => None,
            _ if self.is_same_node() => Some(Self::PlainSameNode),
            _ => Some(Self::Plain),
        }
    }

    /// The peers that this path is held against.
    pub(crate) fn peers(self) -> &'static [Self] {
        const PEERS: [Path; 2] = [Path::Ztunnel, Path::Envoy];
        if self.is_same_node() || matches!(self, Self::Loopback | Self::Plain) { &[] } else { &PEERS }
    }

    /// Whether both pods are on one node.
    pub(crate) fn is_same_node(self) -> bool {
        matches!(self, Self::PlainSameNode | Self::SameNode | Self::SameNodeSplice)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_options() {
        for path in Path::value_variants() {
            assert_eq!(path.to_possible_value().unwrap().get_name(), path.id());
        }
    }

    #[test]
    fn same_node_is_held_against_same_node() {
        assert_eq!(Path::SameNode.control(), Some(Path::PlainSameNode));
        assert_eq!(Path::Ztunnel.control(), Some(Path::Plain));
        assert!(Path::SameNodeSplice.peers().is_empty());
    }
}
