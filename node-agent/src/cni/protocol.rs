//! What plugin and agent say to each other: JSON over HTTP/1.1 on a Unix socket that only root may use.
//!
//! The path bears the version. Within a version fields are only added, and each side ignores what it does not know, so
//! that a plugin of the release before or after is understood while a node is being upgraded.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of these messages; in the paths, and in each message for the log.
pub(super) const VERSION: u32 = 1;
/// A pod's network is about to be used.
pub(super) const ADD_PATH: &str = "/v1/cni/add";
/// A pod's network is about to go.
pub(super) const DEL_PATH: &str = "/v1/cni/del";
/// Is the pod as ADD left it?
pub(super) const CHECK_PATH: &str = "/v1/cni/check";
/// Which attachments are left.
pub(super) const GC_PATH: &str = "/v1/cni/gc";
/// Can pods be added?
pub(super) const STATUS_PATH: &str = "/v1/cni/status";
/// Longest message of either side, bytes. GC names all containers of a node.
pub(super) const LONGEST: usize = 256 << 10;

/// One attachment of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodMessage {
    pub(super) version: u32,
    pub(super) container_id: String,
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: Option<String>,
    #[serde(default)]
    pub(super) netns: Option<PathBuf>,
    #[serde(default)]
    pub(super) interface: String,
    /// Addresses that the primary plugin gave it.
    #[serde(default)]
    pub(super) ips: Vec<IpAddr>,
    /// How long the plugin waits for an answer, milliseconds.
    #[serde(default)]
    pub(super) timeout_ms: u64,
    /// How much of that may be spent on the SVID, milliseconds.
    #[serde(default)]
    pub(super) svid_wait_ms: u64,
}

/// The containers whose attachments stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GcMessage {
    pub(super) version: u32,
    pub(super) containers: Vec<String>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) version: u32,
    pub(super) outcome: Outcome,
    /// Why, and what to do; for whoever reads the pod's events.
    #[serde(default)]
    pub(super) reason: String,
}

/// What became of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It is captured.
    Enrolled,
    /// It is none of the mesh's business, or stays outside of it: it may start.
    Left,
    /// It must not start.
    Refused,
    /// It could not be taken in.
    Failed,
    /// Something was not known or not done in time.
    TimedOut,
    /// What was asked is done, or so.
    Done,
}

impl Answer {
    pub(super) fn new(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self { version: VERSION, outcome, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_with_less_or_more_in_it_is_understood() {
        let old = r#"{"version":1,"container_id":"c","namespace":"n","name":"p"}"#;
        let new = r#"{"version":2,"container_id":"c","namespace":"n","name":"p","uid":"u","colour":"green"}"#;
        assert_eq!(serde_json::from_str::<PodMessage>(old).unwrap().uid, None);
        assert_eq!(serde_json::from_str::<PodMessage>(new).unwrap().uid.as_deref(), Some("u"));
        let answer = r#"{"version":2,"outcome":"enrolled","colour":"green"}"#;
        assert_eq!(serde_json::from_str::<Answer>(answer).unwrap().outcome, Outcome::Enrolled);
    }

    proptest! {
        #[test]
        fn no_message_is_more_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = serde_json::from_slice::<PodMessage>(&bytes);
            let _ = serde_json::from_slice::<GcMessage>(&bytes);
            let _ = serde_json::from_slice::<Answer>(&bytes);
        }

        #[test]
        fn messages_survive_the_way(name in ".{0,60}", ips in proptest::collection::vec(any::<IpAddr>(), 0..4), ms in any::<u64>()) {
            let message = PodMessage {
                version: VERSION, container_id: name.clone(), namespace: name.clone(), name: name.clone(), uid: Some(name),
                netns: Some("/x".into()), interface: "eth0".into(), ips, timeout_ms: ms, svid_wait_ms: ms,
            };
            let text = serde_json::to_vec(&message).unwrap();
            prop_assert_eq!(serde_json::from_slice::<PodMessage>(&text).unwrap(), message);
        }
    }
}
