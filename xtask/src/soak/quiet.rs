//! What is left when the load pauses.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::lab::{NODES, Node, PREFIX};
use super::sample::{Held, tunnels};
use super::stage::Stage;
use super::watcher::Watcher;
use crate::interrupt;
use crate::netlab::network;

/// Clients finish what they have begun.
const CLIENTS_LIMIT: Duration = Duration::from_secs(90);
/// Then agents forget it.
const AGENTS_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);
/// Until memory, timers and sockets have come to rest.
const REST: Duration = Duration::from_secs(2);

/// One node at rest.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Rest {
    pub(super) node: &'static str,
    pub(super) held: Held,
    /// Connections that its agent keeps for the next caller, at either end.
    pub(super) tunnels: usize,
    /// Connections in its status.
    pub(super) connections: usize,
    /// Pods that its status calls enrolled.
    pub(super) enrolled: usize,
}

/// Everything at rest.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Quiet {
    pub(super) nodes: Vec<Rest>,
    pub(super) namespaces: usize,
    /// Connections that clients did not end in time.
    pub(super) unfinished: u64,
}

/// Waits until all is at rest, then looks. What does not come to rest is
/// looked at all the same.
pub(super) fn look(stage: &Stage, watcher: &Watcher) -> Result<Quiet> {
    wait(CLIENTS_LIMIT, || stage.shared.ledger.open() == 0)?;
    let unfinished = stage.shared.ledger.open();
    wait(AGENTS_LIMIT, || NODES.into_iter().all(|node| connections(stage, node).is_ok_and(|open| open == 0)))?;
    super::changes::rest(REST)?;
    let nodes = NODES.into_iter().map(|node| rest(stage, watcher, node)).collect::<Result<_>>()?;
    Ok(Quiet { nodes, namespaces: network::existing(PREFIX).len(), unfinished })
}

fn wait(limit: Duration, done: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !done() && started.elapsed() < limit {
        interrupt::check()?;
        thread::sleep(POLL);
    }
    Ok(())
}

fn connections(stage: &Stage, node: Node) -> Result<usize> {
    Ok(stage.agents.setting().status(node)?["connections"].as_array().map_or(0, Vec::len))
}

fn rest(stage: &Stage, watcher: &Watcher, node: Node) -> Result<Rest> {
    let status = stage.agents.setting().status(node)?;
    let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let enrolled = list("pods").iter().filter(|pod| pod["state"] == "enrolled").count();
    let (held, tunnels) = held(stage, watcher, node)?;
    Ok(Rest { node: node.name, held, tunnels, connections: list("connections").len(), enrolled })
}

/// What an agent holds, and how many tunnels are among it. Idle ones are closed now and then: one that goes while the rest
/// is counted would be missed among the tunnels and found among the sockets.
fn held(stage: &Stage, watcher: &Watcher, node: Node) -> Result<(Held, usize)> {
    let started = Instant::now();
    loop {
        let running = stage.board.running();
        let before = tunnels(&running, node);
        let Some(held) = watcher.seen().sampler.held(&running, node) else {
            bail!("the agent of {} does not run", node.name)
        };
        let settled = before.between == 0 && tunnels(&running, node) == before;
        if settled || started.elapsed() > AGENTS_LIMIT {
            return Ok((held, before.open));
        }
        interrupt::check()?;
        thread::sleep(POLL);
    }
}
