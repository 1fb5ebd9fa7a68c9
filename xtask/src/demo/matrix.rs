//! Who may call whom: every pair, by service and by pod address, over IPv4 and
//! IPv6, expected beside actual.

use std::thread;

use anyhow::Result;

use super::call::{By, Saw, call};
use super::lab::{Pod, Server, allowed, pairs};
use crate::interrupt;

/// The four ways of a call, in the order of the table's columns.
const WAYS: [(&str, By, usize); 4] =
    [("svc v4", By::Service, 0), ("svc v6", By::Service, 1), ("pod v4", By::PodIp, 0), ("pod v6", By::PodIp, 1)];

/// What came of one pair's calls.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) from: Pod,
    pub(super) to: Pod,
    /// In the order of `WAYS`; `None` where the way does not exist.
    saw: Vec<Option<Saw>>,
}

impl Row {
    /// What the lab expects.
    pub(super) fn allowed(&self) -> bool {
        allowed(self.from, self.to)
    }

    /// What differs from it.
    pub(super) fn faults(&self) -> Vec<String> {
        WAYS.iter()
            .zip(&self.saw)
            .filter_map(|((way, _, _), saw)| {
                let fault = self.fault(saw.as_ref()?)?;
                Some(format!("{} → {} by {way}: {fault}", self.from.name, self.to.name))
            })
            .collect()
    }

    fn fault(&self, saw: &Saw) -> Option<String> {
        match (self.allowed(), saw) {
            (true, Saw::Answer { client: Some(client) }) if !self.from.addresses().contains(client) => {
                Some(format!("the server saw {client} rather than the caller's own address"))
            }
            (true, Saw::Answer { client: None }) if self.to.server == Server::Nginx => {
                Some("the server did not say which address it saw".to_owned())
            }
            (true, Saw::Answer { .. }) | (false, Saw::Refused) => None,
            (expected, saw) => Some(format!("expected {}, saw {saw}", word(expected))),
        }
    }

    fn cells(&self) -> String {
        let cell = |saw: &Option<Saw>| saw.as_ref().map_or("·".to_owned(), Saw::to_string);
        self.saw.iter().map(|saw| format!("{:<9}", cell(saw))).collect()
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "refused" }
}

/// Makes all calls, the ways of a pair at the same time, and prints the table.
pub(super) fn run() -> Result<Vec<Row>> {
    let heads: String = WAYS.iter().map(|(way, _, _)| format!("{way:<9}")).collect();
    println!("{:<22}{:<22}{:<10}{heads}", "from", "to", "expected");
    let mut rows = Vec::new();
    for (from, to) in pairs() {
        interrupt::check()?;
        let row = Row { from, to, saw: call_all_ways(from, to) };
        let verdict = if row.faults().is_empty() { "" } else { "  ← DIFFERS" };
        println!("{:<22}{:<22}{:<10}{}{verdict}", from.name, to.name, word(row.allowed()), row.cells());
        rows.push(row);
    }
    Ok(rows)
}

/// A pod outside the mesh has no way to a service: nothing here but Warren
/// knows services' addresses.
fn call_all_ways(from: Pod, to: Pod) -> Vec<Option<Saw>> {
    thread::scope(|scope| {
        let calls = WAYS.map(|(_, by, family)| {
            let address = match by {
                By::Service => to.service_addresses()[family],
                By::PodIp => to.addresses()[family],
            };
            (by == By::PodIp || from.enrolled).then(|| scope.spawn(move || call(from, to, address, by)))
        });
        let join = |thread: thread::ScopedJoinHandle<'_, Saw>| {
            thread.join().unwrap_or_else(|_| Saw::Other("the call died".into()))
        };
        calls.into_iter().map(|thread| thread.map(join)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(from: &str, to: &str, saw: Saw) -> Row {
        Row { from: Pod::named(from).unwrap(), to: Pod::named(to).unwrap(), saw: vec![Some(saw), None] }
    }

    #[test]
    fn a_row_is_well_only_as_expected() {
        let answer = |ip: &str| Saw::Answer { client: ip.parse().ok() };
        assert!(row("case-api", "decision-engine", answer("10.77.1.11")).faults().is_empty());
        assert!(row("case-api", "sanction-service", Saw::Refused).faults().is_empty());
        assert_eq!(row("case-api", "sanction-service", answer("10.77.1.11")).faults().len(), 1);
        assert_eq!(row("case-api", "decision-engine", Saw::Refused).faults().len(), 1);
        assert_eq!(row("case-api", "sanction-service", Saw::Other("hangs".into())).faults().len(), 1);
        assert_eq!(
            row("case-api", "decision-engine", answer("10.77.0.1")).faults().len(),
            1,
            "source address is preserved"
        );
    }
}
