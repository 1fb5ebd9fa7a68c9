//! `warren status`: asks the agent's socket and prints what it says.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::cli::StatusArgs;
use crate::config::{default_run_dir, socket_path};
use crate::exit::{Exit, Fatal};
use crate::http::get_unix;
use crate::status::{ConnectionStatus, PodStatus, STATUS_PATH, STATUS_VERSION, Status};

/// Prints the status of one agent.
pub(crate) async fn run(args: StatusArgs) -> Result<(), Fatal> {
    let socket = socket(args.socket, args.node.as_deref())?;
    let body = get_unix(&socket, STATUS_PATH)
        .await
        .map_err(|error| Fatal::new(Exit::Socket, format!("status socket {}", socket.display()), &error))?;
    if args.json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let status: Status = serde_json::from_slice(&body)
        .map_err(|error| Fatal::new(Exit::Socket, "the agent's answer is not a status", &error))?;
    print!("{}", human(&status));
    Ok(())
}

/// The socket asked for; without a name, the only one there is.
pub(super) fn socket(given: Option<PathBuf>, node: Option<&str>) -> Result<PathBuf, Fatal> {
    if let Some(socket) = given {
        return Ok(socket);
    }
    if let Some(node) = node {
        return Ok(socket_path(&default_run_dir(node)));
    }
    let parent = default_run_dir("");
    let found: Vec<PathBuf> = std::fs::read_dir(&parent)
        .map(|entries| entries.flatten().map(|entry| socket_path(&entry.path())).filter(|path| path.exists()).collect())
        .unwrap_or_default();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Fatal {
            exit: Exit::Socket,
            message: format!("no agent's socket below {}; name one with --node or --socket", parent.display()),
        }),
        many => Err(Fatal {
            exit: Exit::Socket,
            message: format!("{} agents run here; name one with --node or --socket", many.len()),
        }),
    }
}

fn human(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_head(&mut text, status);
    let _ = write_pods(&mut text, &status.pods);
    let _ = write_connections(&mut text, &status.connections);
    let _ = write_remarks(&mut text, status);
    text
}

fn write_head(text: &mut String, status: &Status) -> std::fmt::Result {
    if status.version != STATUS_VERSION {
        writeln!(
            text,
            "note: the agent speaks version {} of this status, this program {STATUS_VERSION}",
            status.version
        )?;
    }
    let ready = if status.ready { "ready" } else { "NOT READY" };
    writeln!(text, "node {}  {}  trust domain {}  warren {}", status.node, ready, status.trust_domain, status.release)?;
    let world = &status.world;
    writeln!(text, "world generation {}, {} s old", world.generation, world.age_seconds)?;
    for issuer in &status.issuers {
        writeln!(text, "issuer {} {} until {}", issuer.kind, issuer.subject, issuer.not_after)?;
    }
    writeln!(text, "descriptors {} of {}", status.descriptors.used, status.descriptors.total)
}

fn write_pods(text: &mut String, pods: &[PodStatus]) -> std::fmt::Result {
    writeln!(text, "\nPODS ({})", pods.len())?;
    writeln!(text, "{:<36} {:<10} {:<11} {:>6} {:<52} EXPIRES IN", "POD", "STATE", "MODE", "CONNS", "IDENTITY")?;
    for pod in pods {
        let expires = pod.svid.as_ref().map_or("no SVID".to_owned(), |svid| format!("{} s", svid.remaining_seconds));
        let name = format!("{}/{}", pod.namespace, pod.name);
        writeln!(
            text,
            "{name:<36} {:<10} {:<11} {:>6} {:<52} {expires}",
            pod.state, pod.mode, pod.connections, pod.identity
        )?;
        if let Some(error) = &pod.error {
            writeln!(text, "  not enrolled, failed at {}: {}", error.step, error.reason)?;
        }
        if let Some(error) = &pod.probe_error {
            writeln!(text, "  kubelet's probes are refused: {error}")?;
        }
        if let Some(error) = &pod.svid_error {
            writeln!(text, "  identity: {error}")?;
        }
    }
    Ok(())
}

pub(super) fn write_connections(text: &mut String, connections: &[ConnectionStatus]) -> std::fmt::Result {
    writeln!(text, "\nCONNECTIONS ({})", connections.len())?;
    for connection in connections {
        writeln!(
            text,
            "{:>6} {:<8} {:<13} {} ({}) -> {} ({})  {} s  {}",
            connection.id,
            connection.direction,
            connection.transport,
            connection.source,
            connection.source_identity.as_deref().unwrap_or("no identity"),
            connection.destination,
            connection.destination_identity.as_deref().unwrap_or("no identity"),
            connection.age_seconds,
            connection.policy.as_deref().unwrap_or("-"),
        )?;
    }
    Ok(())
}

fn write_remarks(text: &mut String, status: &Status) -> std::fmt::Result {
    let world = &status.world;
    if let Some(error) = &world.source_error {
        writeln!(text, "\nWORLD SOURCE: {error}; the last good world serves")?;
    }
    if !world.rejections.is_empty() {
        writeln!(text, "\nREFUSED OR IGNORED DOCUMENTS ({})", world.rejections.len())?;
        for rejection in &world.rejections {
            writeln!(text, "  {rejection}")?;
        }
    }
    writeln!(text, "\nPOLICIES ({})", world.objects.len())?;
    for object in &world.objects {
        let verdict = if object.accepted { "enforced" } else { "REFUSED" };
        writeln!(text, "  {} {verdict}, binds {} pods", object.object, object.pods)?;
        for message in &object.messages {
            writeln!(text, "    {message}")?;
        }
    }
    if !status.findings.is_empty() {
        writeln!(text, "\nAUDITOR ({})", status.findings.len())?;
        for finding in &status.findings {
            let done = if finding.repaired { "repaired" } else { "NOT REPAIRED" };
            writeln!(text, "  {} {} ({done})", finding.time, finding.what)?;
        }
    }
    Ok(())
}
