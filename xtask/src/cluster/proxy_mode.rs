//! How kube-proxy leads connections to Services.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::exit::{CANNOT_INSTALL, Coded};
use crate::process;

/// kube-proxy's `mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProxyMode {
    /// Rules of iptables.
    Iptables,
    /// Rules of nftables.
    Nftables,
    /// The kernel's load balancer.
    Ipvs,
}

impl ProxyMode {
    /// Whether this kernel can do it; kube-proxy would only go on trying.
    pub(crate) fn must_be_possible(self) -> Result<()> {
        let present = || Path::new("/proc/net/ip_vs").exists();
        if self != Self::Ipvs
            || present()
            || (process::succeeds(process::command("modprobe").arg("ip_vs")) && present())
        {
            return Ok(());
        }
        let message = "this kernel has no IPVS (no /proc/net/ip_vs, no module ip_vs): take another --proxy-mode".into();
        Err(Coded { code: CANNOT_INSTALL, message }.into())
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        })
    }
}
