//! The end of a pod's captured connections when the pod is let go.
//!
//! Rules and routes that carry them between application and agent are about to be removed. Whatever is open then, or
//! still owed by a socket that was closed, could neither go on nor end: its application would hang, and the namespace
//! of a deleted pod would live as long as the kernel tries again. So both ends are reset while they can still be told.

use std::io;
use std::net::IpAddr;

use warren_core::world::Pod;

use crate::capture::Mark;
use crate::shared::LocalPod;
use crate::sys::sock_diag::{TcpConnection, destroy, tcp_connections};

/// Which end of a captured connection: both are in the pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has the address of whoever is at the far side.
    Agent,
    /// It has the pod's address.
    Application,
}

/// Resets every captured connection in the pod's namespace.
pub(super) fn sever(pod: &Pod, local: &LocalPod, mark: Mark) {
    match local.netns.enter(|| reset_all(&pod.ips, mark)).and_then(|done| done) {
        Ok(0) => {}
        Ok(ended) => tracing::info!(pod = %local.uid, ended, "captured connections reset with their pod"),
        Err(error) => tracing::warn!(%error, pod = %local.uid, "captured connections of a pod that left are not reset"),
    }
}

/// Whether the kernel still delivers what the agent had written to a captured connection before it was done with it. A
/// namespace that cannot be listed is gone.
pub(super) fn owes(pod: &Pod, local: &LocalPod, mark: Mark) -> bool {
    let listed = local.netns.enter(|| captured(&pod.ips, mark, End::Agent)).and_then(|listed| listed);
    listed.is_ok_and(|connections| !connections.is_empty())
}

/// The agent's ends first: their reset is what the applications see. What has no such end any more is ended itself.
fn reset_all(own: &[IpAddr], mark: Mark) -> io::Result<usize> {
    let mut ended = 0;
    for end in [End::Agent, End::Application] {
        for connection in captured(own, mark, end)? {
            destroy(&connection)?;
            ended += 1;
        }
    }
    Ok(ended)
}

fn captured(own: &[IpAddr], mark: Mark, end: End) -> io::Result<Vec<TcpConnection>> {
    let mut connections = tcp_connections()?;
    connections.retain(|connection| {
        let at = if own.contains(&connection.local.ip()) { End::Application } else { End::Agent };
        connection.mark & mark.mask == mark.value && at == end
    });
    Ok(connections)
}
