//! The auditor: compares what stands in the kernel with what should, repairs it, and tells.

use std::net::IpAddr;

use warren_core::identity::PodUid;
use warren_ebpf_abi::{PodEntry, map};

use super::bpf::{BpfError, Raw};
use super::enrol::own;
use super::error::CaptureError;
use super::node::NodeCapture;
use crate::sys::netlink::RouteSocket;

/// Something that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditFinding {
    /// The pod, or `None` for the node as a whole.
    pub(crate) pod: Option<PodUid>,
    /// What was found.
    pub(crate) what: String,
    /// Whether it is as it should be again.
    pub(crate) repaired: bool,
}

impl NodeCapture {
    /// Compares programs, maps, rules, routes and settings with what they should be, and repairs what differs.
    pub(crate) fn audit(&mut self) -> Vec<AuditFinding> {
        let mut findings = Vec::new();
        self.audit_node(&mut findings);
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            let mut found = |what: String, repaired: bool| {
                findings.push(AuditFinding { pod: Some(uid.clone()), what, repaired });
            };
            if let Err(error) = self.audit_pod(&uid, &mut found) {
                found(format!("could not be audited: {error}"), false);
            }
        }
        findings
    }

    fn audit_node(&mut self, findings: &mut Vec<AuditFinding>) {
        let mut found = |what: String, repaired: bool| findings.push(AuditFinding { pod: None, what, repaired });
        match self.detached() {
            Ok(names) if names.is_empty() => {}
            Ok(names) => {
                let repaired = self.reattach().is_ok();
                found(format!("programs were detached: {}", names.join(", ")), repaired);
            }
            Err(error) => found(format!("programs could not be audited: {error}"), false),
        }
        match self.config_differs() {
            Ok(false) => {}
            Ok(true) => {
                let repaired = self.write_config().is_ok();
                found("the configuration was changed".into(), repaired);
            }
            Err(error) => found(error.to_string(), false),
        }
        if let Err(error) = self.follow_pod_cgroups() {
            found(format!("pods' cgroups could not be told: {error}"), false);
        }
        match self.repair_captured() {
            Ok(diff) if diff.added + diff.removed == 0 => {}
            Ok(diff) => {
                found(format!("capture lacked {} entries and had {} others", diff.added, diff.removed), true);
            }
            Err(error) => found(error.to_string(), false),
        }
    }

    fn audit_pod(&mut self, uid: &PodUid, found: &mut impl FnMut(String, bool)) -> Result<(), CaptureError> {
        self.audit_plumbing(uid, found)?;
        self.audit_programs(uid, found)?;
        if let Some(what) = self.audit_wire(uid)? {
            // The keeper gives it another wire if it can; until then its connections go through the agent.
            found(what, true);
        }
        self.audit_maps(uid, found)
    }

    fn audit_plumbing(&self, uid: &PodUid, found: &mut impl FnMut(String, bool)) -> Result<(), CaptureError> {
        let Some(pod) = self.pods.get(uid) else { return Ok(()) };
        let wrap = |source| CaptureError::Plumbing { path: pod.netns.path().to_owned(), source };
        let look = || pod.netns.enter(|| pod.plumbing.differences()).and_then(|result| result);
        let before = look().map_err(wrap)?;
        if before.is_empty() {
            return Ok(());
        }
        let applied = pod.netns.enter(|| pod.plumbing.apply()).and_then(|result| result);
        let after = look().map_err(wrap)?;
        for what in before {
            let repaired = applied.is_ok() && !after.contains(&what);
            found(what, repaired);
        }
        Ok(())
    }

    fn audit_programs(&mut self, uid: &PodUid, found: &mut impl FnMut(String, bool)) -> Result<(), CaptureError> {
        let Some(pod) = self.pods.get_mut(uid) else { return Ok(()) };
        for slot in pod.object.lost_listeners()? {
            // Only the worker that owns it could put it back.
            found(format!("the listener in slot {slot} is gone"), false);
        }
        let names = pod.object.detached(&pod.netns)?;
        if names.is_empty() {
            return Ok(());
        }
        let (cookie, netns) = (pod.netns.cookie(), pod.netns.clone());
        let repaired = pod.object.reload(&mut self.loader, &self.pins, cookie, &netns);
        found(format!("programs were detached: {}", names.join(", ")), repaired.is_ok());
        Ok(())
    }

    fn audit_maps(&mut self, uid: &PodUid, found: &mut impl FnMut(String, bool)) -> Result<(), CaptureError> {
        let Some(pod) = self.pods.get_mut(uid) else { return Ok(()) };
        if pod.object.plan_differs()? {
            let plan = pod.object.plan().clone();
            let repaired = pod.object.set_plan(&plan).is_ok();
            found("verdicts were changed".into(), repaired);
        }
        let cookie = pod.netns.cookie();
        let entry = if pod.capturing { PodEntry::CAPTURING } else { PodEntry::SELF_TEST };
        let (netns, ips) = (pod.netns.clone(), pod.ips.clone());
        if !self.host.has_addresses(cookie, &ips) {
            self.host.set_addresses(cookie, &ips)?;
            found(format!("its addresses in {} differed", map::POD_ADDRESSES), true);
        }
        if self.maps.pods.get(&cookie, 0).ok() != Some(Raw(entry)) {
            let repaired = self.set_entry(cookie, entry).is_ok();
            found("its entry was changed".into(), repaired);
        }
        // A pod may be given another address while it lives.
        let standing = netns.enter(|| RouteSocket::open().and_then(|socket| socket.addresses()));
        let standing = standing
            .and_then(|result| result)
            .map_err(|source| CaptureError::Plumbing { path: netns.path().to_owned(), source })?;
        let addresses: std::collections::BTreeSet<IpAddr> = own(&standing);
        if self.set_own(cookie, &addresses).map_err(|error: BpfError| CaptureError::from(error))? {
            found(format!("its addresses in {} differed", map::OWN), true);
        }
        Ok(())
    }
}
