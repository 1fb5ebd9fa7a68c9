//! `demo`: the regulatory lab on two simulated nodes, with real programs. It
//! tells a story in chapters, checks every sentence of it, and cleans up.

mod agent;
mod call;
mod evidence;
mod lab;
mod matrix;
mod network;
mod report;
mod rotation;
mod servers;
mod stage;
mod wire;

use anyhow::{Result, bail};
use nix::unistd::geteuid;

use self::call::{By, Saw, call};
use self::evidence::Evidence;
use self::lab::{NODES, PODS, Pod, allowed, pairs};
use self::matrix::Row;
use self::report::Report;
use self::stage::Stage;
use self::wire::Recording;
use crate::exit::{CANNOT_INSTALL, Coded};
use crate::netlab::process::inside;
use crate::outcome::Totals;
use crate::setup::{self, Group};
use crate::workspace::Workspace;
use crate::{ebpf, interrupt, test};

/// `cargo xtask demo`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running, and say how to play with it and how to end it.
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// End a demo that was kept.
    #[arg(long)]
    down: bool,
}

/// The command line's entry: everything that is missing is installed and built first.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if !geteuid().is_root() {
        let message = "the demo makes network namespaces and loads eBPF programs: please run it as root".into();
        return Err(Coded { code: CANNOT_INSTALL, message }.into());
    }
    interrupt::arm()?;
    if args.down {
        return down(workspace);
    }
    setup::ensure(workspace, Group::Demo)?;
    ebpf::build(workspace, &ebpf::Args::any())?;
    test::build_warren(workspace)?;
    let mut report = Report::default();
    play(workspace, &mut report, args.keep)?;
    println!("\n{}", report.totals());
    if !report.failed().is_empty() {
        bail!("not as expected: {}", report.failed().join("; "));
    }
    println!("demo: everything as expected");
    Ok(())
}

/// The demo as a test suite: its checks counted.
pub(crate) fn check(workspace: &Workspace) -> Totals {
    let mut report = Report::default();
    let played = interrupt::arm().and_then(|()| play(workspace, &mut report, false));
    if played.is_err() {
        report.check_result("the demo plays to its end", played);
    }
    report.totals()
}

fn down(workspace: &Workspace) -> Result<()> {
    let _alone = stage::lock()?;
    let left = stage::take_down(&agent::Agents::new(workspace, &stage::directory()));
    if left.is_empty() { Ok(()) } else { bail!("left behind: {}", left.join(", ")) }
}

fn play(workspace: &Workspace, report: &mut Report, keep: bool) -> Result<()> {
    let _alone = stage::lock()?;
    let mut stage = Stage::begin(workspace)?;
    report.chapter("Two nodes, six pods, real servers, no mesh yet");
    network::build()?;
    servers::start(&stage::directory(), &mut stage.daemons)?;
    introduce();
    before(report)?;
    report.chapter("One agent on each node takes the running pods in");
    let recording = Recording::start(&stage::directory(), "mesh")?;
    let told = with_mesh(workspace, &mut stage, report);
    match told {
        Ok(()) => on_the_wire(recording, report)?,
        Err(error) => {
            stage.daemons.push(recording.abandon());
            return Err(error);
        }
    }
    println!("\nNot shown: notification-service as the only one that may call the external e-mail provider.");
    println!("Rules for traffic that leaves the mesh come in a later issue.");
    if keep {
        invite(&stage);
        stage.keep();
        return Ok(());
    }
    report.chapter("Cleaning up");
    report.check("nothing is left behind: processes, namespaces, pins, files", &stage.end());
    Ok(())
}

fn introduce() {
    println!("{:<22}{:<10}{:<16}{:<20}identity", "pod", "node", "IPv4", "IPv6");
    for pod in PODS {
        let [v4, v6] = pod.addresses();
        let identity = pod.identity().unwrap_or_else(|| "none: not enrolled".into());
        println!("{:<22}{:<10}{:<16}{:<20}{identity}", pod.name, pod.node.name, v4.to_string(), v6.to_string());
    }
}

/// The control: without Warren everybody reaches everybody, and the recorder
/// sees the canaries. What it does not see later is really not there.
fn before(report: &mut Report) -> Result<()> {
    let recording = Recording::start(&stage::directory(), "before")?;
    let mut faults = Vec::new();
    for (from, to) in pairs() {
        interrupt::check()?;
        for address in to.addresses() {
            let saw = call(from, to, address, By::PodIp);
            if !matches!(saw, Saw::Answer { .. }) {
                faults.push(format!("{} → {} at {address}: {saw}", from.name, to.name));
            }
        }
    }
    let found = recording.stop()?;
    report.check("everybody reaches everybody", &faults);
    let blind = if found.in_clear.is_empty() { vec!["no canary seen".to_owned()] } else { Vec::new() };
    report.check(&format!("the recorder on the link sees the canaries ({} times)", found.in_clear.len()), &blind);
    Ok(())
}

fn with_mesh(workspace: &Workspace, stage: &mut Stage, report: &mut Report) -> Result<()> {
    let agents = stage.agents.clone();
    agents.start(&mut stage.daemons)?;
    for node in NODES {
        report.check(
            &format!("{}: every pod of the mesh is enrolled under its identity", node.name),
            &agents.enrolment_faults(node)?,
        );
    }
    report.check("what is not TCP is untouched: ping over IPv4 and IPv6", &ping());

    report.chapter("Who may call whom, and what happened");
    let rows = matrix::run()?;
    let faults: Vec<String> = rows.iter().flat_map(Row::faults).collect();
    report.check("every call ended as the policies say, with the caller's own address at the server", &faults);

    report.chapter("What the servers' agents recorded");
    let logs = NODES.map(|node| agents.audit_log(node));
    let evidence = Evidence::read_until_complete(&logs, &rows)?;
    for row in &rows {
        println!("{}", evidence.seen(row));
    }
    let faults: Vec<String> = rows.iter().flat_map(|row| evidence.faults(row)).collect();
    report.check("every call has its audit event, with the identity that was proven", &faults);
    println!("\nThe audit events of the denials, one for each pair:");
    for event in rows.iter().filter_map(|row| evidence.denial(row)) {
        println!("{event}");
    }

    report.chapter("SVIDs rotate under load");
    rotate(&agents, report)?;
    let evidence = Evidence::read(&logs)?;
    let (connections, handshakes) = evidence.counts();
    let name = format!("{connections} audit events and {handshakes} handshake records fit their JSON Schema");
    report.check(&name, &evidence.schema_faults(workspace)?);
    Ok(())
}

fn rotate(agents: &agent::Agents, report: &mut Report) -> Result<()> {
    println!(
        "leaves live {} s; requests run until both ends have rotated and the first leaves have expired",
        agent::LEAF_TTL.as_secs()
    );
    let outcome = rotation::run(agents, &stage::directory())?;
    for (pod, rotations) in &outcome.rotations {
        println!("{pod:<22}{rotations} rotations in {} s", outcome.seconds);
    }
    let name = format!(
        "{} HTTP requests and {} commands on one redis connection, none failed",
        outcome.requests, outcome.redis_commands
    );
    report.check(&name, &outcome.faults);
    Ok(())
}

fn on_the_wire(recording: Recording, report: &mut Report) -> Result<()> {
    report.chapter("What crossed the link between the nodes");
    let found = recording.stop()?;
    println!(
        "{} frames; {} connections to port 15008; {} TLS records, {} bytes",
        found.frames, found.tunnels, found.tls_records, found.tls_bytes
    );
    let mut faults = found.faults;
    if found.tls_records == 0 {
        faults.push("no TLS record at all".into());
    }
    report.check("every byte of TCP payload is a TLS record on port 15008", &faults);
    report.check("no canary and no identity in clear", &found.in_clear);
    Ok(())
}

/// Both families, from the first pod to each other one.
fn ping() -> Vec<String> {
    let others = PODS.iter().skip(1).flat_map(|pod| pod.addresses());
    others
        .filter(|address| {
            let mut command = inside(&PODS[0].netns(), "ping");
            !crate::process::succeeds(command.args(["-c", "1", "-W", "2", &address.to_string()]))
        })
        .map(|address| format!("{address} does not answer"))
        .collect()
}

fn invite(stage: &Stage) {
    let agents = &stage.agents;
    let exec = |pod: Pod, command: &str| println!("  ip netns exec {} {command}", pod.netns_name());
    println!("\nEverything goes on running. To play with it:");
    for (from, to) in pairs().filter(|(from, to)| from.name == "case-api" && to.server == lab::Server::Nginx) {
        let word = if allowed(from, to) { "allowed" } else { "denied" };
        exec(from, &format!("curl http://{}/      # {}: {word}", to.service_addresses()[0], to.name));
    }
    if let (Some(case), Some(store)) = (Pod::named("case-api"), Pod::named("evidence-store")) {
        exec(case, &format!("redis-cli -h {} get load", store.service_addresses()[0]));
    }
    println!("  {} status --socket {}", agents.program().display(), agents.socket(NODES[0]).display());
    println!("  tail -f {}", agents.audit_log(NODES[1]).display());
    println!("  $EDITOR {}      # read again when it changes", agents.world().display());
    println!("To end it:\n  cargo xtask demo --down");
}
