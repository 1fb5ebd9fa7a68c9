//! `warren certs`: SVIDs of one node's pods.

use std::time::{Duration, Instant};

use crate::cli::CertsAction;
use crate::command::status::socket;
use crate::exit::{Exit, Fatal};
use crate::http::{get_unix, post_unix};
use crate::status::{PodStatus, RENEW_PATH, STATUS_PATH, Status};

/// How often the agent is asked whether it has.
const LOOK: Duration = Duration::from_millis(200);

/// Carries out one action.
pub(crate) async fn run(action: CertsAction) -> Result<(), Fatal> {
    let CertsAction::Renew(args) = action;
    let socket = socket(args.socket, args.node.as_deref())?;
    let failed =
        |error: &dyn std::error::Error| Fatal::new(Exit::Socket, format!("status socket {}", socket.display()), error);
    let before = post_unix(&socket, &format!("{RENEW_PATH}{}", args.pod)).await.map_err(|error| match error {
        crate::http::GetError::Status(http::StatusCode::NOT_FOUND) => {
            Fatal { exit: Exit::Ca, message: format!("pod {}: no such pod has an identity on this node", args.pod) }
        }
        error => failed(&error),
    })?;
    let before = String::from_utf8_lossy(&before).trim().to_owned();
    let until = Instant::now() + args.wait;
    loop {
        let body = get_unix(&socket, STATUS_PATH).await.map_err(|error| failed(&error))?;
        let status: Status = serde_json::from_slice(&body)
            .map_err(|error| Fatal::new(Exit::Socket, "the agent's answer is not a status", &error))?;
        let pod = status.pods.into_iter().find(|pod| format!("{}/{}", pod.namespace, pod.name) == args.pod);
        let (serial, error) = pod.map(svid).unwrap_or_default();
        if !serial.is_empty() && serial != before {
            println!("warren: {} has SVID {serial}, before {before}", args.pod);
            return Ok(());
        }
        if Instant::now() >= until {
            let why = error.unwrap_or_else(|| "it has not come yet".to_owned());
            let message = format!("{}: no new SVID within {}: {why}", args.pod, humantime::format_duration(args.wait));
            return Err(Fatal { exit: Exit::Ca, message });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Serial of the SVID in use, and the last failure to get another one.
fn svid(pod: PodStatus) -> (String, Option<String>) {
    (pod.svid.map(|svid| svid.serial).unwrap_or_default(), pod.svid_error)
}
