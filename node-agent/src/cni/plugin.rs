//! The plugin: one process per command, chained behind the plugin that makes the pod's interface.
//!
//! It changes nothing by itself and gives back the result it was given. ADD succeeds when the agent has captured the pod,
//! or when nobody wants it captured; what cannot be told is refused, and the runtime tries again.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::ask::{NoAnswer, ask};
use super::config::{LONGEST_INPUT, PluginConfig};
use super::decisions::{Decisions, Verdict};
use super::error::{CniError, Code, NEWEST, VERSIONS};
use super::protocol::{
    ADD_PATH, Answer, CHECK_PATH, DEL_PATH, GC_PATH, GcMessage, Outcome, PodMessage, STATUS_PATH, VERSION,
};
use super::request::{PodName, Request, Verb};

/// How long DEL, GC and STATUS may take: what they ask for can be made up for, and pods are to go quickly.
const SHORT: Duration = Duration::from_millis(150);

/// Runs one command, as the environment and standard input say, and writes the result or the error to standard output.
pub(crate) fn run_plugin() -> ExitCode {
    let mut version = NEWEST.to_owned();
    let request = Request::read(|name| std::env::var(name).ok());
    let done = request.and_then(|request| {
        if request.verb == Verb::Version {
            return Ok(versions());
        }
        let done = read_input().and_then(|input| {
            let config = PluginConfig::parse(&input)?;
            version.clone_from(&config.cni_version);
            carry_out(&request, &config)
        });
        // A pod that is going must be able to go, whatever is wrong here.
        if request.verb == Verb::Del { done.or(Ok(String::new())) } else { done }
    });
    let (text, code) = match done {
        Ok(result) => (result, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read_input() -> Result<Vec<u8>, CniError> {
    let bad = |why: String| CniError::new(Code::Input, "standard input cannot be read", why);
    let mut input = Vec::new();
    let most = LONGEST_INPUT as u64 + 1;
    std::io::stdin().lock().take(most).read_to_end(&mut input).map_err(|error| bad(error.to_string()))?;
    if input.len() > LONGEST_INPUT { Err(bad(format!("longer than {LONGEST_INPUT} bytes"))) } else { Ok(input) }
}

fn versions() -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Shown {
        cni_version: &'static str,
        supported_versions: [&'static str; 5],
    }
    serde_json::to_string(&Shown { cni_version: NEWEST, supported_versions: VERSIONS }).unwrap_or_default()
}

fn carry_out(request: &Request, config: &PluginConfig) -> Result<String, CniError> {
    match request.verb {
        Verb::Add => add(request, config),
        Verb::Check => check(request, config).map(|()| String::new()),
        Verb::Del => {
            if let Some(pod) = &request.pod {
                let _ = ask(&config.socket, DEL_PATH, &message(request, pod, config)?, SHORT);
            }
            Ok(String::new())
        }
        Verb::Gc => {
            let valid = config.valid_attachments.iter().flatten();
            let containers = valid.map(|attachment| attachment.container_id.clone()).collect();
            // The agent's auditor finds what is left anyway.
            let _ = ask(&config.socket, GC_PATH, &GcMessage { version: VERSION, containers }, SHORT);
            Ok(String::new())
        }
        Verb::Status => status(config).map(|()| String::new()),
        Verb::Version => Ok(versions()),
    }
}

fn message(request: &Request, pod: &PodName, config: &PluginConfig) -> Result<PodMessage, CniError> {
    let ips = if request.verb == Verb::Del { Vec::new() } else { config.addresses()? };
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(PodMessage {
        version: VERSION,
        container_id: request.container_id.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        netns: request.netns.clone(),
        interface: request.interface.clone(),
        ips,
        timeout_ms: millis(config.timeout),
        svid_wait_ms: millis(config.svid_wait),
    })
}

fn add(request: &Request, config: &PluginConfig) -> Result<String, CniError> {
    let result = config.result()?;
    let passed = || Ok(result.to_string());
    // A container that is no pod, or a pod that the cluster needs before Warren runs.
    let Some(pod) = request.pod.as_ref().filter(|pod| !config.is_never_enrolled(&pod.namespace)) else {
        return passed();
    };
    let name = format!("pod {}/{}", pod.namespace, pod.name);
    let answer = match ask(&config.socket, ADD_PATH, &message(request, pod, config)?, config.timeout) {
        Ok(answer) => answer,
        Err(away @ NoAnswer::Away(_)) => return without_agent(pod, &name, &away, config).and_then(|()| passed()),
        Err(error) => {
            let code = if matches!(error, NoAnswer::Late(_)) { Code::TimedOut } else { Code::Again };
            let details = format!("{error}; see the log of warren's agent on this node. The runtime tries again");
            return Err(CniError::new(code, format!("warren: {name} not started"), details));
        }
    };
    match outcome(&name, &answer) {
        None => passed(),
        Some(error) => Err(error),
    }
}

fn outcome(name: &str, answer: &Answer) -> Option<CniError> {
    let code = match answer.outcome {
        Outcome::Enrolled | Outcome::Left | Outcome::Done => return None,
        Outcome::Refused => Code::Refused,
        Outcome::Failed => Code::NotEnrolled,
        Outcome::TimedOut => Code::TimedOut,
    };
    Some(CniError::new(code, format!("warren: {name} not started"), answer.reason.clone()))
}

/// The agent is away: the decisions it left count.
fn without_agent(pod: &PodName, name: &str, away: &NoAnswer, config: &PluginConfig) -> Result<(), CniError> {
    let read = Decisions::read(&config.decisions, config.decisions_age, SystemTime::now());
    let why = match read.map(|decisions| decisions.judge(pod)) {
        Ok(Verdict::Start) => return Ok(()),
        Ok(Verdict::Wait(why)) => why,
        Err(error) => format!("whether it is in the mesh cannot be told: {error}"),
    };
    let details =
        format!("{away}, and {why}. It starts once warren's agent runs on this node; the runtime tries again");
    Err(CniError::new(Code::Again, format!("warren: {name} not started"), details))
}

fn check(request: &Request, config: &PluginConfig) -> Result<(), CniError> {
    let Some(pod) = request.pod.as_ref().filter(|pod| !config.is_never_enrolled(&pod.namespace)) else {
        return Ok(());
    };
    let name = format!("pod {}/{}", pod.namespace, pod.name);
    let answer = ask(&config.socket, CHECK_PATH, &message(request, pod, config)?, config.timeout)
        .map_err(|error| CniError::new(Code::Again, format!("warren: {name} not checked"), error.to_string()))?;
    match answer.outcome {
        Outcome::Enrolled | Outcome::Left | Outcome::Done => Ok(()),
        _ => Err(CniError::new(Code::Missing, format!("warren: {name} is not captured"), answer.reason)),
    }
}

/// Pods can be added if somebody can decide: the agent, or, for those outside the mesh, what it wrote.
fn status(config: &PluginConfig) -> Result<(), CniError> {
    let ready = ask(&config.socket, STATUS_PATH, &GcMessage { version: VERSION, containers: Vec::new() }, SHORT);
    let Err(away) = ready else { return Ok(()) };
    Decisions::read(&config.decisions, config.decisions_age, SystemTime::now()).map(drop).map_err(|error| {
        CniError::new(Code::Unavailable, "warren: no pod can be added", format!("{away}, and {error}"))
    })
}
