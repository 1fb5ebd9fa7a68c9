//! The agents' audit events: read, held against the published schema, and
//! matched with the calls that were made.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::lab::Pod;
use super::matrix::Row;
use crate::interrupt;
use crate::schema::Schema;
use crate::workspace::Workspace;

/// Events are written asynchronously.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// Everything both agents wrote so far.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    events: Vec<Event>,
    /// Lines that are not JSON.
    broken: Vec<String>,
}

/// One line of an audit log.
#[derive(Debug)]
pub(super) struct Event {
    value: Value,
    line: String,
}

impl Deref for Event {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}

impl Evidence {
    /// Reads the audit logs.
    pub(super) fn read(logs: &[PathBuf]) -> Result<Self> {
        let mut evidence = Self::default();
        for log in logs {
            let text = fs::read_to_string(log).with_context(|| log.display().to_string())?;
            // The last line may be half written.
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                match serde_json::from_str(line) {
                    Ok(value) => evidence.events.push(Event { value, line: line.trim_end().to_owned() }),
                    Err(error) => evidence.broken.push(format!("{error}: {line}")),
                }
            }
        }
        Ok(evidence)
    }

    /// Reads again until every row has its events, or patience ends.
    pub(super) fn read_until_complete(logs: &[PathBuf], rows: &[Row]) -> Result<Self> {
        let started = Instant::now();
        loop {
            interrupt::check()?;
            let evidence = Self::read(logs)?;
            let complete = rows.iter().all(|row| evidence.faults(row).is_empty());
            if complete || started.elapsed() > PATIENCE {
                return Ok(evidence);
            }
            thread::sleep(POLL);
        }
    }

    /// What the server's side recorded of a pair's calls.
    pub(super) fn of(&self, from: Pod, to: Pod) -> impl Iterator<Item = &Event> {
        let identity = to.identity();
        self.events.iter().filter(move |event| {
            event["event"] == "connection"
                && event["direction"] == "inbound"
                && event["destination_identity"].as_str() == identity.as_deref()
                && address(&event["source"]).is_some_and(|source| from.addresses().contains(&source))
        })
    }

    /// What a row's events should say and do not: over each family the caller's
    /// proven identity and the decision; for the outsider that it proved none.
    pub(super) fn faults(&self, row: &Row) -> Vec<String> {
        let (from, to) = (row.from, row.to);
        let decision = if row.allowed() { "ALLOW" } else { "DENY" };
        let mut faults = Vec::new();
        for own in from.addresses() {
            let mut events = self.of(from, to).filter(|event| address(&event["source"]) == Some(own)).peekable();
            if events.peek().is_none() {
                faults.push(format!("{} → {} from {own}: no event", from.name, to.name));
            }
            let wrong = events.filter(|event| {
                event["decision"] != decision
                    || event["source_identity"].as_str() != from.identity().as_deref()
                    || is_proven(event) != from.enrolled
            });
            faults.extend(wrong.map(|event| format!("{} → {}: {}", from.name, to.name, event.line)));
        }
        faults
    }

    /// What the server's agent recorded last of a pair, in words.
    pub(super) fn seen(&self, row: &Row) -> String {
        let Some(event) = self.of(row.from, row.to).last() else {
            return format!("{} → {}: nothing recorded", row.from.name, row.to.name);
        };
        let word = |field: &str| event[field].as_str().unwrap_or("-").to_owned();
        let source = event["source_identity"].as_str().map_or_else(
            || format!("{} in clear text, no identity", event["source"]["address"].as_str().unwrap_or("-")),
            str::to_owned,
        );
        format!("{:<6}{source} → {}  by {}", word("decision"), word("destination_identity"), word("policy"))
    }

    /// One event of a denied pair, as the agent wrote it.
    pub(super) fn denial(&self, row: &Row) -> Option<&str> {
        self.of(row.from, row.to).find(|event| event["decision"] == "DENY").map(|event| event.line.as_str())
    }

    /// Events that do not fit the published schemas.
    pub(super) fn schema_faults(&self, workspace: &Workspace) -> Result<Vec<String>> {
        let connection = Schema::load(&workspace.path("deploy/schema/audit-event.schema.json"))?;
        let handshake = Schema::load(&workspace.path("deploy/schema/handshake-record.schema.json"))?;
        let enrolment = Schema::load(&workspace.path("deploy/schema/enrolment-event.schema.json"))?;
        let mut faults = self.broken.clone();
        for event in &self.events {
            let schema = match event["event"].as_str() {
                Some("mtls_handshake") => &handshake,
                Some("enrolment") => &enrolment,
                _ => &connection,
            };
            faults.extend(schema.faults(event).into_iter().map(|fault| format!("{fault}: {}", event.line)));
        }
        Ok(faults)
    }

    /// Numbers of connection events and handshake records.
    pub(super) fn counts(&self) -> (usize, usize) {
        let count = |kind: &str| self.events.iter().filter(|event| event["event"] == kind).count();
        (count("connection"), count("mtls_handshake"))
    }
}

/// Whether the caller's identity is more than its own word: by TLS, or by the kernel between pods of one node.
fn is_proven(event: &Event) -> bool {
    event["mtls"] == true || event["authenticated_by"] == "kernel"
}

fn address(party: &Value) -> Option<IpAddr> {
    party["address"].as_str()?.parse().ok().map(|address: SocketAddr| address.ip())
}
