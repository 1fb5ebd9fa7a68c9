//! SVID rotation under load: requests run while the certificates of both ends
//! are replaced and the first ones expire; none may fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::agent::{Agents, LEAF_TTL};
use super::call::{By, http_port};
use super::lab::{NODES, Pod, REDIS_PORT};
use crate::interrupt;
use crate::netlab::process::{Daemon, inside};

/// Rotations that both ends must have gone through.
const ROTATIONS: usize = 2;
const POLL: Duration = Duration::from_millis(500);
/// Between two batches of a client: a load, not a benchmark.
const PAUSE: Duration = Duration::from_millis(40);
const BATCH: usize = 10;
/// Between two commands on the one redis connection.
const REDIS_INTERVAL: Duration = Duration::from_millis(50);

/// What the load saw.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) requests: usize,
    pub(super) redis_commands: usize,
    pub(super) seconds: u64,
    /// Rotations seen, by pod.
    pub(super) rotations: BTreeMap<&'static str, usize>,
    pub(super) faults: Vec<String>,
}

/// What one HTTP client saw.
#[derive(Debug, Default)]
struct Load {
    requests: usize,
    faults: Vec<String>,
}

/// The load's pods.
struct Ends {
    client: Pod,
    server: Pod,
    store: Pod,
}

/// Runs the load until both ends have rotated and the first certificates have expired.
pub(super) fn run(agents: &Agents, directory: &Path) -> Result<Outcome> {
    let named = |name| Pod::named(name).with_context(|| format!("no pod {name}"));
    let ends = Ends { client: named("case-api")?, server: named("decision-engine")?, store: named("evidence-store")? };
    let started = Instant::now();
    let log = directory.join("load-redis.log");
    let mut redis = Daemon::start("redis-cli", &log, &mut redis_load(&ends))?;
    let done = AtomicBool::new(false);
    let [v4, v6] = ends.server.service_addresses();
    let (loads, serials) = thread::scope(|scope| {
        let http = |address: IpAddr, keep: bool| {
            let (ends, done) = (&ends, &done);
            scope.spawn(move || http_load(ends.client, SocketAddr::new(address, http_port(By::Service)), keep, done))
        };
        let clients = [http(v4, false), http(v6, true)];
        let serials = watch_serials(agents, &ends, started);
        done.store(true, Ordering::Relaxed);
        (clients.map(|client| client.join().unwrap_or_default()), serials)
    });
    redis.ask_to_end();
    redis.wait();
    let serials = serials?;
    let mut outcome = Outcome { seconds: started.elapsed().as_secs(), ..Outcome::default() };
    for load in loads {
        outcome.requests += load.requests;
        outcome.faults.extend(load.faults);
    }
    outcome.judge_redis(&fs::read_to_string(&log)?);
    outcome.judge_serials(serials);
    Ok(outcome)
}

impl Outcome {
    /// One connection, one answer per command, counting upwards from one.
    fn judge_redis(&mut self, log: &str) {
        let wrong = log.lines().enumerate().find(|(at, line)| line.trim().parse() != Ok(at + 1));
        if let Some((_, line)) = wrong {
            self.faults.push(format!("redis on its one connection: {line:?}"));
        }
        self.redis_commands = log.lines().count();
        let least = usize::try_from(self.seconds * 1000 / 2).unwrap_or_default() / REDIS_INTERVAL.as_millis() as usize;
        if self.redis_commands < least {
            self.faults
                .push(format!("redis answered {} times where at least {least} were expected", self.redis_commands));
        }
    }

    fn judge_serials(&mut self, serials: BTreeMap<&'static str, BTreeSet<String>>) {
        for (pod, seen) in serials {
            let rotations = seen.len().saturating_sub(1);
            if rotations < ROTATIONS {
                self.faults.push(format!("{pod} rotated {rotations} times within {} s", self.seconds));
            }
            self.rotations.insert(pod, rotations);
        }
    }
}

/// New connections, or one that is kept: batches of requests until told to end.
fn http_load(client: Pod, to: SocketAddr, keep: bool, done: &AtomicBool) -> Load {
    let mut load = Load::default();
    while !done.load(Ordering::Relaxed) && !interrupt::raised() {
        let mut curl = inside(&client.netns(), "curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "10", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code}\\n", "--header", &format!("X-Lab: {}", client.canary())]);
        if !keep {
            curl.args(["--header", "Connection: close"]);
        }
        match curl.arg(format!("http://{to}/[1-{BATCH}]")).output() {
            Ok(output) => load.count(&output),
            Err(error) => load.faults.push(error.to_string()),
        }
        thread::sleep(PAUSE);
    }
    load
}

impl Load {
    fn count(&mut self, output: &std::process::Output) {
        self.requests += BATCH;
        let codes = String::from_utf8_lossy(&output.stdout);
        let well = codes.lines().filter(|code| *code == "200").count();
        if well != BATCH || !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            self.faults.push(format!("{} of {BATCH} requests failed: {}", BATCH - well, words.trim()));
        }
    }
}

/// One connection for the whole time.
fn redis_load(ends: &Ends) -> std::process::Command {
    let mut command = inside(&ends.client.netns(), "redis-cli");
    let [address, _] = ends.store.service_addresses();
    command.args(["-h", &address.to_string(), "-p", &REDIS_PORT.to_string()]);
    command.args(["-r", "-1", "-i", &REDIS_INTERVAL.as_secs_f32().to_string(), "incr", "load"]);
    command
}

/// The SVID serials that the agents report, until both ends had enough.
fn watch_serials(agents: &Agents, ends: &Ends, started: Instant) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let pods = [ends.client, ends.server];
    let mut seen: BTreeMap<&'static str, BTreeSet<String>> =
        pods.iter().map(|pod| (pod.name, BTreeSet::new())).collect();
    let (at_least, at_most) = (LEAF_TTL + Duration::from_secs(5), LEAF_TTL * 4);
    loop {
        interrupt::check()?;
        for node in NODES {
            let status = agents.status(node)?;
            for entry in status["pods"].as_array().into_iter().flatten() {
                if let (Some(name), Some(serial)) = (entry["name"].as_str(), entry["svid"]["serial"].as_str())
                    && let Some(serials) = seen.get_mut(name)
                {
                    serials.insert(serial.to_owned());
                }
            }
        }
        let enough = seen.values().all(|serials| serials.len() > ROTATIONS) && started.elapsed() >= at_least;
        if enough || started.elapsed() >= at_most {
            return Ok(seen);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconnect_or_an_error_of_redis_is_seen() {
        let judged = |log: &str| {
            let mut outcome = Outcome::default();
            outcome.judge_redis(log);
            outcome.faults.len()
        };
        assert_eq!(judged("1\n2\n3\n"), 0);
        assert_eq!(judged("1\nError: Server closed the connection\n2\n"), 1);
    }

    #[test]
    fn too_few_rotations_are_a_fault() {
        let mut outcome = Outcome::default();
        outcome.judge_serials([("case-api", BTreeSet::from(["1".to_owned(), "2".to_owned()]))].into());
        assert_eq!((outcome.faults.len(), outcome.rotations["case-api"]), (1, 1));
    }
}
