//! Rules, routes and settings of one pod's network namespace: applied, compared, repaired, undone.
//!
//! A captured socket bears the mark and is bound to `lo`. The first rule leads it to a table whose only route delivers
//! everything locally; the second answers "unreachable" should the first be missing; the `local` rule, which would
//! otherwise come first and name the interface that owns an address, moves behind them. The settings make answers to
//! marked packets bear the mark, the kernel's own ones (RST) included, which would otherwise leave the pod.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::config::Mark;
use super::gate;
use crate::sys::netlink::{Action, IpFamily, RouteSocket, Rule};
use crate::sys::sysctl::{self, FWMARK_REFLECT_V4, FWMARK_REFLECT_V6, TCP_FWMARK_ACCEPT};

/// The kernel's table of local addresses.
const LOCAL_TABLE: u32 = 255;
/// Where the kernel puts the rule of that table.
const LOCAL_PRIORITY: u32 = 0;
/// Where it moves.
const MOVED_LOCAL_PRIORITY: u32 = 3;
/// The rule that leads marked packets to our table.
const CAPTURE_PRIORITY: u32 = 1;
/// The rule that stops marked packets if the other is missing.
const GUARD_PRIORITY: u32 = 2;

/// What stands, or is to stand, in a pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plumbing {
    mark: u32,
    mask: u32,
    table: u32,
    /// Families the namespace has, with the pod's preferred source address in each.
    families: Vec<(IpFamily, Option<IpAddr>)>,
    /// Settings as they were before.
    settings: BTreeMap<String, String>,
    /// Whether what carries the gate was there before, and so stays; unknown to agents that pinned theirs.
    #[serde(default)]
    gate_carried: Option<bool>,
}

impl Plumbing {
    /// Reads what has to be known before anything is changed; in the namespace this thread is in.
    pub(super) fn plan(mark: Mark, table: u32, families: &[IpFamily], ips: &[IpAddr]) -> io::Result<Self> {
        Ok(Self {
            mark: mark.value,
            mask: mark.mask,
            table,
            families: families.iter().map(|family| (*family, source(*family, ips))).collect(),
            settings: settings(families)
                .map(|name| Ok((name.to_owned(), sysctl::read(name)?)))
                .collect::<io::Result<_>>()?,
            gate_carried: Some(gate::has_carrier(&RouteSocket::open()?)?),
        })
    }

    /// Takes over what an earlier agent wrote down about how the namespace was before it.
    pub(super) fn inherit(&mut self, earlier: &Self) {
        self.settings.extend(earlier.settings.clone());
        self.gate_carried = earlier.gate_carried.or(self.gate_carried);
    }

    /// Whether the rules are the same ones.
    pub(super) fn same_rules(&self, other: &Self) -> bool {
        (self.mark, self.mask, self.table) == (other.mark, other.mask, other.table)
    }

    /// Other addresses of the pod: other preferred sources.
    pub(super) fn set_ips(&mut self, ips: &[IpAddr]) {
        for (family, preferred) in &mut self.families {
            *preferred = source(*family, ips);
        }
    }

    /// Makes everything as it is to be; in the namespace this thread is in. It may be repeated.
    pub(super) fn apply(&self) -> io::Result<()> {
        for name in self.settings.keys() {
            sysctl::write(name, "1")?;
        }
        let socket = RouteSocket::open()?;
        for (family, source) in &self.families {
            // The route first: a rule without it leads to the guard.
            socket.set_local_default(*family, self.table, *source)?;
            socket.remove_others(*family, self.table, *source)?;
            self.set_rules(&socket, *family)?;
        }
        Ok(())
    }

    fn set_rules(&self, socket: &RouteSocket, family: IpFamily) -> io::Result<()> {
        let standing = socket.rules(family)?;
        for rule in [self.local(), self.guard(), self.capture()] {
            if !standing.contains(&rule) {
                socket.add_rule(family, rule)?;
            }
        }
        if standing.contains(&KERNEL_LOCAL) {
            socket.remove_rule(family, KERNEL_LOCAL)?;
        }
        Ok(())
    }

    /// Makes everything as it was, the gate included; in the namespace this thread is in. It may be repeated.
    pub(super) fn undo(&self) -> io::Result<()> {
        let socket = RouteSocket::open()?;
        self.undo_routing(&socket)?;
        gate::remove(&socket, self.gate_carried == Some(true))
    }

    /// Makes rules, routes and settings as they were.
    pub(super) fn undo_routing(&self, socket: &RouteSocket) -> io::Result<()> {
        for (family, _) in &self.families {
            // The kernel does not notice that its own rule is there already.
            let standing = socket.rules(*family)?;
            if !standing.contains(&KERNEL_LOCAL) {
                socket.add_rule(*family, KERNEL_LOCAL)?;
            }
            // The kernel removes the first rule that fits, so only what stands there is named.
            for rule in [self.capture(), self.guard(), self.local()] {
                if standing.contains(&rule) {
                    socket.remove_rule(*family, rule)?;
                }
            }
            socket.remove_local_default(*family, self.table)?;
        }
        self.settings.iter().try_for_each(|(name, before)| sysctl::write(name, before))
    }

    /// Says what is not as it is to be; in the namespace this thread is in.
    pub(super) fn differences(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.settings.keys() {
            if sysctl::read(name)? != "1" {
                found.push(format!("{name} is not 1"));
            }
        }
        let socket = RouteSocket::open()?;
        for (family, source) in &self.families {
            let standing = socket.rules(*family)?;
            for (rule, name) in [(self.capture(), "capture"), (self.guard(), "guard"), (self.local(), "moved local")] {
                if !standing.contains(&rule) {
                    found.push(format!("{family:?}: the {name} rule is missing"));
                }
            }
            if standing.contains(&KERNEL_LOCAL) {
                found.push(format!("{family:?}: the local rule comes before the capture rule"));
            }
            if !socket.has_only_local_default(*family, self.table, *source)? {
                found.push(format!("{family:?}: table {} is not what it should be", self.table));
            }
        }
        Ok(found)
    }

    fn capture(&self) -> Rule {
        Rule { priority: CAPTURE_PRIORITY, mark: Some((self.mark, self.mask)), action: Action::Table(self.table) }
    }

    fn guard(&self) -> Rule {
        Rule { priority: GUARD_PRIORITY, mark: Some((self.mark, self.mask)), action: Action::Unreachable }
    }

    fn local(&self) -> Rule {
        Rule { priority: MOVED_LOCAL_PRIORITY, ..KERNEL_LOCAL }
    }
}

const KERNEL_LOCAL: Rule = Rule { priority: LOCAL_PRIORITY, mark: None, action: Action::Table(LOCAL_TABLE) };

fn settings(families: &[IpFamily]) -> impl Iterator<Item = &'static str> {
    let v6 = families.contains(&IpFamily::V6).then_some(FWMARK_REFLECT_V6);
    [TCP_FWMARK_ACCEPT, FWMARK_REFLECT_V4].into_iter().chain(v6)
}

fn source(family: IpFamily, ips: &[IpAddr]) -> Option<IpAddr> {
    ips.iter().copied().find(|ip| ip.is_ipv4() == (family == IpFamily::V4))
}
