//! One call from a pod to a pod by a real client, and what came of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::lab::{HTTP_PORT, HTTP_SERVICE_PORT, Pod, REDIS_PORT, Server};
use crate::netlab::process::inside;

/// A refusal must be noticed at once; a client that waits this long hangs.
const LIMIT_SECONDS: u64 = 5;

/// How a server is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The virtual address of its service.
    Service,
    /// Its pod's own address.
    PodIp,
}

/// What the client saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Saw {
    /// The server's own answer; with the address under which an HTTP server saw the client.
    Answer { client: Option<IpAddr> },
    /// A reset or a refusal, at once.
    Refused,
    /// Anything else.
    Other(String),
}

impl fmt::Display for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { .. } => f.write_str("allowed"),
            Self::Refused => f.write_str("refused"),
            Self::Other(what) => write!(f, "?? {what}"),
        }
    }
}

/// Calls with curl or redis-cli, exchanging canaries of both ends.
pub(super) fn call(from: Pod, to: Pod, address: IpAddr, by: By) -> Saw {
    let started = Instant::now();
    let mut command = match to.server {
        Server::Redis => redis(from, address),
        _ => curl(from, SocketAddr::new(address, http_port(by))),
    };
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return Saw::Other(error.to_string()),
    };
    if started.elapsed() >= Duration::from_secs(LIMIT_SECONDS) {
        return Saw::Other("no answer in time".into());
    }
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match to.server {
        Server::Redis => redis_saw(&(out + errors), &from.canary()),
        _ => curl_saw(output.status.code(), &out, &errors, &to.canary()),
    }
}

/// The port an HTTP server is reached at.
pub(super) fn http_port(by: By) -> u16 {
    match by {
        By::Service => HTTP_SERVICE_PORT,
        By::PodIp => HTTP_PORT,
    }
}

fn curl(from: Pod, to: SocketAddr) -> std::process::Command {
    let mut command = inside(&from.netns(), "curl");
    command.args(["--silent", "--verbose", "--max-time", &LIMIT_SECONDS.to_string(), "--noproxy", "*"]);
    command.args(["--header", &format!("X-Lab: {}", from.canary()), "--data", &format!("note={}", from.canary())]);
    command.arg(format!("http://{to}/"));
    command
}

/// curl's codes: 7 could not connect, 52 empty reply, 55 and 56 send and
/// receive failed. The first also stands for an unreachable network, which is
/// no refusal; only the verbose messages tell them apart.
fn curl_saw(code: Option<i32>, out: &str, errors: &str, canary: &str) -> Saw {
    match code {
        Some(0) if out.contains(canary) => {
            let client = out.split("seen=").nth(1).and_then(|rest| rest.trim().parse().ok());
            Saw::Answer { client }
        }
        Some(52 | 55 | 56) => Saw::Refused,
        Some(7) if errors.contains("Connection refused") || errors.contains("Connection reset") => Saw::Refused,
        _ => Saw::Other(last_line(errors, out)),
    }
}

fn last_line(errors: &str, out: &str) -> String {
    let said = errors.lines().chain(out.lines()).rfind(|line| !line.trim().is_empty());
    said.unwrap_or("nothing").trim_start_matches(['*', ' ']).to_owned()
}

fn redis(from: Pod, address: IpAddr) -> std::process::Command {
    let mut command = inside(&from.netns(), "timeout");
    command.args([&LIMIT_SECONDS.to_string(), "redis-cli", "-h", &address.to_string(), "-p", &REDIS_PORT.to_string()]);
    command.args(["eval", "redis.call('set', KEYS[1], ARGV[1]) return redis.call('get', KEYS[1])", "1"]);
    command.args([format!("evidence:{}", from.name), from.canary()]);
    command
}

fn redis_saw(text: &str, canary: &str) -> Saw {
    let refusals = ["Server closed the connection", "Connection reset", "Connection refused"];
    if text.contains(canary) {
        Saw::Answer { client: None }
    } else if refusals.iter().any(|words| text.contains(words)) {
        Saw::Refused
    } else {
        Saw::Other(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curl_is_understood() {
        let answer = curl_saw(Some(0), "CANARY-x from=x seen=10.77.1.11\n", "> POST / HTTP/1.1", "CANARY-x");
        assert_eq!(answer, Saw::Answer { client: "10.77.1.11".parse().ok() });
        assert_eq!(curl_saw(Some(56), "", "* Recv failure: Connection reset by peer", "CANARY-x"), Saw::Refused);
        assert_eq!(
            curl_saw(Some(7), "", "* connect to 10.77.1.11 failed: Connection refused", "CANARY-x"),
            Saw::Refused
        );
        assert!(matches!(
            curl_saw(Some(7), "", "* Immediate connect fail: Network is unreachable", "CANARY-x"),
            Saw::Other(_)
        ));
        assert!(matches!(curl_saw(Some(28), "", "* Operation timed out", "CANARY-x"), Saw::Other(_)));
        assert!(matches!(curl_saw(Some(0), "somebody else", "", "CANARY-x"), Saw::Other(_)));
    }

    #[test]
    fn redis_is_understood() {
        assert_eq!(redis_saw("\"CANARY-y\"", "CANARY-y"), Saw::Answer { client: None });
        assert_eq!(redis_saw("Error: Server closed the connection", "CANARY-y"), Saw::Refused);
        assert!(matches!(redis_saw("", "CANARY-y"), Saw::Other(_)));
    }
}
