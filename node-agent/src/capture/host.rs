//! Connections that the host opens to enrolled pods: what the kernel is told to know kubelet's probes by.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData};
use warren_core::identity::PodUid;
use warren_ebpf_abi::{HostConnection, HostState, WayKey, map};

use super::address::key;
use super::bpf::{BpfError, Raw};
use super::error::CaptureError;
use super::near::leaving;
use super::node::NodeCapture;
use super::object::Object;
use super::pod_cgroups::{self, PodCgroupsUnknown};
use crate::sys::netns::current_cookie;

/// What is known of the host.
pub(super) struct Host {
    /// Cookie of its network namespace, which is the agent's.
    pub(super) cookie: u64,
    addresses: HashMap<MapData, [u8; 16], u64>,
    cgroups: HashMap<MapData, u64, u8>,
    connections: HashMap<MapData, Raw<WayKey>, Raw<HostConnection>>,
    /// The root of the hierarchy, and the cgroups that an operator named.
    root: PathBuf,
    named: Vec<PathBuf>,
    pod_cgroups: Result<BTreeMap<u64, PathBuf>, PodCgroupsUnknown>,
}

impl Host {
    /// Takes the maps over.
    pub(super) fn take(object: &mut Object, root: PathBuf, named: Vec<PathBuf>) -> Result<Self, CaptureError> {
        let cookie = current_cookie().map_err(CaptureError::file("/proc/self/ns/net"))?;
        Ok(Self {
            cookie,
            addresses: object.map(map::POD_ADDRESSES)?,
            cgroups: object.map(map::POD_CGROUPS)?,
            connections: object.map(map::HOST_CONNECTIONS)?,
            pod_cgroups: Err(PodCgroupsUnknown::NotFound(root.clone())),
            root,
            named,
        })
    }

    /// How many cgroups pods' cgroups lie in; 0 if that is not known.
    pub(super) fn known_pod_cgroups(&self) -> u32 {
        let known = self.pod_cgroups.as_ref().map_or(0, BTreeMap::len);
        u32::try_from(known).unwrap_or(0)
    }

    /// Looks where pods' cgroups are, and adds them for the kernel. True if something is not as it was.
    fn look(&mut self) -> Result<bool, BpfError> {
        let found = pod_cgroups::find(&self.root, &self.named);
        for id in found.iter().flat_map(BTreeMap::keys) {
            if self.cgroups.get(id, 0).is_err() {
                self.cgroups.insert(*id, 1, 0).map_err(BpfError::map(map::POD_CGROUPS))?;
            }
        }
        let changed = found != self.pod_cgroups;
        self.pod_cgroups = found;
        Ok(changed)
    }

    /// Takes away what is no longer among them.
    fn forget_others(&mut self) -> Result<(), BpfError> {
        let Ok(known) = &self.pod_cgroups else { return Ok(()) };
        let gone: Vec<u64> = self.cgroups.keys().flatten().filter(|id| !known.contains_key(id)).collect();
        for id in gone {
            self.cgroups.remove(&id).map_err(BpfError::map(map::POD_CGROUPS))?;
        }
        Ok(())
    }

    /// Whether the kernel knows these as addresses of a pod.
    pub(super) fn has_addresses(&self, cookie: u64, ips: &[IpAddr]) -> bool {
        ips.iter().all(|ip| self.addresses.get(&key(*ip), 0).ok() == Some(cookie))
    }

    /// Makes these the addresses of a pod.
    pub(super) fn set_addresses(&mut self, cookie: u64, ips: &[IpAddr]) -> Result<(), BpfError> {
        let own = self.addresses.iter().flatten().filter(|(_, of)| *of == cookie).map(|(ip, _)| ip);
        let gone: Vec<[u8; 16]> = own.filter(|ip| !ips.iter().any(|wanted| key(*wanted) == *ip)).collect();
        for ip in gone {
            self.addresses.remove(&ip).map_err(BpfError::map(map::POD_ADDRESSES))?;
        }
        for ip in ips {
            self.addresses.insert(key(*ip), cookie, 0).map_err(BpfError::map(map::POD_ADDRESSES))?;
        }
        Ok(())
    }
}

impl NodeCapture {
    /// Looks where pods' cgroups are now. While that is not known, no connection of the host is a probe.
    pub(super) fn follow_pod_cgroups(&mut self) -> Result<(), BpfError> {
        if self.host.look()? {
            match &self.host.pod_cgroups {
                Ok(known) => tracing::info!(cgroups = ?known.values(), "pods' cgroups are known"),
                Err(error) => {
                    tracing::warn!(%error, "pods' cgroups are not known: kubelet's probes are plaintext like any other");
                }
            }
        }
        if self.config_differs()? {
            self.write_config()?;
        }
        self.host.forget_others()
    }

    /// The cgroups that pods' cgroups lie in, or why they are not known.
    pub(crate) fn pod_cgroups(&self) -> Result<Vec<&Path>, &PodCgroupsUnknown> {
        self.host.pod_cgroups.as_ref().map(|known| known.values().map(PathBuf::as_path).collect())
    }

    /// Whether a pod's connection is a probe that was let in.
    pub(crate) fn is_probe(&self, uid: &PodUid, local: SocketAddr, remote: SocketAddr) -> bool {
        let Some(pod) = self.pods.get(uid) else { return false };
        let found = self.host.connections.get(&Raw(leaving(remote, local)), 0);
        found.is_ok_and(|Raw(found)| found.pod == pod.netns.cookie() && found.state == HostState::Taken as u32)
    }
}
