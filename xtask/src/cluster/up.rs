//! Bringing a cluster up, and its nodes one by one.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::member::Members;
use super::names::{DNS_SERVICE, Member, Node};
use super::parts::Parts;
use super::proxy_mode::ProxyMode;
use super::state::{Record, State};
use super::{down, images, wait};
use crate::exit::{Coded, INTERRUPTED};
use crate::process;
use crate::workspace::Workspace;

/// On two busy cores the API server takes its time.
const API_SERVER_LIMIT: Duration = Duration::from_secs(120);
const NODES_LIMIT: Duration = Duration::from_secs(120);
const DNS_LIMIT: Duration = Duration::from_secs(120);

const DNS_MANIFEST: &str = include_str!("coredns.yaml");

/// What a cluster is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: u8,
    pub(crate) proxy_mode: ProxyMode,
}

/// Makes a cluster that is complete, or none.
pub(crate) fn bring_up(workspace: &Workspace, state: &State, shape: Shape, parts: Parts) -> Result<Members> {
    if state.read().is_ok_and(|record| record.is_some_and(|record| record.complete)) {
        bail!("cluster {} is up; `cargo xtask cluster --name {} down` ends it", state.name(), state.name());
    }
    if down::has_traces(state.name(), state)? {
        eprintln!("  taking down what an earlier run left of {}", state.name());
        down::take_down(state)?;
    }
    let built = build(workspace, state, shape, parts);
    if let Err(error) = &built {
        let interrupted = error.downcast_ref::<Coded>().is_some_and(|coded| coded.code == INTERRUPTED);
        let nodes: Vec<Node> = (1..=shape.nodes).filter_map(|number| Node::new(number).ok()).collect();
        if !interrupted && let Some(folder) = down::save_logs(workspace, state, &nodes) {
            eprintln!("  the logs of what did not come up: {folder}");
        }
        down::take_down(state)?;
    }
    built
}

fn build(workspace: &Workspace, state: &State, shape: Shape, parts: Parts) -> Result<Members> {
    let mut record = Record::new(shape.nodes, shape.proxy_mode);
    state.create()?;
    state.write(&record)?;
    images::make_basic(workspace, &parts, &state.images())?;
    let members = Members::new(state, parts)?;
    members.prepare_control_plane()?;
    members.power_on(Member::ControlPlane, &[])?;
    // The nodes' containerd starts and takes its images in meanwhile.
    let nodes = record.nodes()?;
    for node in &nodes {
        crate::interrupt::check()?;
        members.prepare_node(*node, &record)?;
        members.power_on(Member::Node(*node), &nodes)?;
    }
    api_server_ready(&members)?;
    nodes_ready(&members, &nodes)?;
    start_dns(&members)?;
    record.complete = true;
    state.write(&record)?;
    Ok(members)
}

/// Adds a node to a cluster that is up.
pub(crate) fn add_node(members: &Members) -> Result<Node> {
    let mut record = members.state().expect()?;
    let node = record.add_node()?;
    let added = members
        .prepare_node(node, &record)
        .and_then(|()| members.power_on(Member::Node(node), &record.nodes()?))
        .and_then(|()| nodes_ready(members, &[node]));
    if let Err(error) = added {
        let left = members.power_off(Member::Node(node));
        std::fs::remove_dir_all(members.state().member(Member::Node(node))).ok();
        return Err(if left.is_empty() { error } else { error.context(format!("left behind: {}", left.join(", "))) });
    }
    members.state().write(&record)?;
    Ok(node)
}

/// Switches nodes off and on again.
pub(crate) fn power_cycle(members: &Members, node: Node) -> Result<()> {
    power_off(members, Member::Node(node))?;
    members.power_on(Member::Node(node), &members.state().expect()?.nodes()?)?;
    nodes_ready(members, &[node])
}

/// Switches one off.
pub(crate) fn power_off(members: &Members, member: Member) -> Result<()> {
    let left = members.power_off(member);
    if left.is_empty() { Ok(()) } else { bail!("{member} does not go off: {}", left.join(", ")) }
}

/// Waits until the API server serves.
pub(crate) fn api_server_ready(members: &Members) -> Result<()> {
    wait::until("API server", API_SERVER_LIMIT, || {
        if !members.is_on(Member::ControlPlane) {
            return Ok(Some("the control plane is not on; see its member.log".into()));
        }
        Ok(process::output(members.kubectl().args(["get", "--raw", "/readyz"])).err().map(|error| format!("{error:#}")))
    })
}

/// Waits until nodes are ready, by a report of their present life: what is
/// known of a node that has just been switched off is still `Ready`.
pub(crate) fn nodes_ready(members: &Members, nodes: &[Node]) -> Result<()> {
    wait::until(&format!("{} ready", names(nodes)), NODES_LIMIT, || {
        for node in nodes {
            if let Some(missing) = missing_of(members, *node)? {
                return Ok(Some(format!("{node} {missing}")));
            }
        }
        Ok(None)
    })
}

fn missing_of(members: &Members, node: Node) -> Result<Option<String>> {
    if !members.is_on(Member::Node(node)) {
        return Ok(Some("is not on; see its member.log".into()));
    }
    let mut kubectl = members.kubectl();
    let Ok(text) = process::output(kubectl.args(["get", "node", &node.to_string(), "-o", "json"])) else {
        return Ok(Some("has not registered".into()));
    };
    let object: Value = serde_json::from_str(&text).context("kubectl get node")?;
    let boot =
        process::output(members.command_in(Member::Node(node))?.args(["cat", "/proc/sys/kernel/random/boot_id"]));
    if boot.ok().as_deref().map(str::trim) != object["status"]["nodeInfo"]["bootID"].as_str() {
        return Ok(Some("has not reported since it is on".into()));
    }
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    match ready {
        Some(condition) if condition["status"] == "True" => Ok(None),
        Some(condition) => Ok(Some(format!("is not ready: {}", condition["message"]))),
        None => Ok(Some("has not reported".into())),
    }
}

fn names(nodes: &[Node]) -> String {
    nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(", ")
}

fn start_dns(members: &Members) -> Result<()> {
    let [v4, v6] = DNS_SERVICE;
    apply(members, &DNS_MANIFEST.replace("SERVICE_V4", v4).replace("SERVICE_V6", v6))?;
    wait::until("CoreDNS", DNS_LIMIT, || {
        let mut kubectl = members.kubectl();
        kubectl.args(["-n", "kube-system", "get", "deployment", "coredns", "-o", "json"]);
        let object: Value = serde_json::from_str(&process::output(&mut kubectl)?).context("kubectl get deployment")?;
        let (wanted, ready) = (&object["spec"]["replicas"], &object["status"]["readyReplicas"]);
        Ok((wanted != ready).then(|| format!("{ready} of {wanted} ready")))
    })
}

fn apply(members: &Members, manifest: &str) -> Result<()> {
    let mut kubectl = members.kubectl();
    kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = kubectl.spawn().with_context(|| process::shown(&kubectl))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(manifest.as_bytes())?;
    }
    if child.wait()?.success() { Ok(()) } else { bail!("{} failed", process::shown(&kubectl)) }
}
