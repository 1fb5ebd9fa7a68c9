//! Who runs at the moment, for those who only look.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;

use super::lab::{NODES, Node, PODS};

/// Processes and threads by the places of their nodes and pods.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Running {
    agents: [Option<u32>; NODES.len()],
    pods: [Option<Pid>; PODS.len()],
}

impl Running {
    /// The process of a node's agent.
    pub(super) fn agent(&self, node: Node) -> Option<u32> {
        self.agents[node.index()]
    }

    /// A thread inside each running pod of a node.
    pub(super) fn pods(&self, node: Node) -> impl Iterator<Item = Pid> {
        PODS.into_iter().zip(self.pods).filter(move |(pod, _)| pod.node == node).filter_map(|(_, task)| task)
    }
}

/// Kept up to date by whoever starts and ends something.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<Running>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is now.
    pub(super) fn running(&self) -> Running {
        *self.lock()
    }

    /// An agent runs, or does not.
    pub(super) fn agent(&self, node: Node, process: Option<u32>) {
        self.lock().agents[node.index()] = process;
    }

    /// A pod, by its place, runs or does not.
    pub(super) fn pod(&self, pod: usize, task: Option<Pid>) {
        self.lock().pods[pod] = task;
    }
}
