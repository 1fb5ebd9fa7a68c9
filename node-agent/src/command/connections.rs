//! `warren connections`: who talks to whom on a node, and how; ends what is older than the mesh.

use crate::cli::ConnectionsArgs;
use crate::command::status::{socket, write_connections};
use crate::exit::{Exit, Fatal};
use crate::http::{get_unix, post_unix};
use crate::status::{CUT_PATH, ConnectionStatus, STATUS_PATH, Status};

/// Lists the connections of one agent; with `--cut` ends some of them, after they are listed.
pub(crate) async fn run(args: ConnectionsArgs) -> Result<(), Fatal> {
    let socket = socket(args.socket, args.node.as_deref())?;
    let failed =
        |error: &dyn std::error::Error| Fatal::new(Exit::Socket, format!("status socket {}", socket.display()), error);
    let body = get_unix(&socket, STATUS_PATH).await.map_err(|error| failed(&error))?;
    let status: Status = serde_json::from_slice(&body)
        .map_err(|error| Fatal::new(Exit::Socket, "the agent's answer is not a status", &error))?;
    let shown: Vec<ConnectionStatus> =
        status.connections.into_iter().filter(|one| !args.clear_text || is_clear_text(one)).collect();
    print(&shown, args.json)?;
    if args.cut {
        let told = post_unix(&socket, CUT_PATH).await.map_err(|error| failed(&error))?;
        eprintln!(
            "warren: {} connections older than their pods' enrolment were ended",
            String::from_utf8_lossy(&told).trim()
        );
    }
    Ok(())
}

/// In clear, and nobody vouches for the other end: what the kernel carries within the node between pods of the mesh has
/// identities, and never leaves the node.
fn is_clear_text(connection: &ConnectionStatus) -> bool {
    match connection.transport.as_str() {
        "mtls" => false,
        "kernel" => connection.source_identity.is_none() || connection.destination_identity.is_none(),
        _ => true,
    }
}

fn print(connections: &[ConnectionStatus], json: bool) -> Result<(), Fatal> {
    if json {
        let text = serde_json::to_string(connections)
            .map_err(|error| Fatal::new(Exit::Runtime, "connections cannot be written as JSON", &error))?;
        println!("{text}");
        return Ok(());
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_connections(&mut text, connections);
    let older = connections.iter().filter(|one| one.transport == "pre-enrolment").count();
    println!("{}\n{older} of them are older than their pods' enrolment", text.trim_start());
    Ok(())
}
