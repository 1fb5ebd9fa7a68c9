//! Judging connections in worlds of any number of policies.

mod world;

use std::hint::black_box;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use warren_core::identity::SpiffeId;
use warren_core::policy::{Connection, PolicyIndex};
use warren_core::world::{MeshConfig, Pod};

use crate::measure::{Case, Row, Timing};

/// Numbers of policies.
pub const SIZES: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// The policies that grant to the callers of [`World::allowed`]; every world has at least so many.
const CALLERS: usize = 8;
/// Callers taken from all over a world.
const SPREAD: usize = 4096;

/// What the policies of a world look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One principal each.
    Identity,
    /// One namespace each.
    Namespace,
    /// One block of addresses each.
    Address,
    /// One principal and one port each.
    Port,
    /// One workload each, of many.
    Selector,
    /// DENY, one principal each; one ALLOW.
    Deny,
    /// All of these.
    Mixed,
    /// As `Identity`, judged for callers from all over the world rather than the same few: what the processor's caches
    /// do not hold shows.
    Spread,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Identity,
        Self::Namespace,
        Self::Address,
        Self::Port,
        Self::Selector,
        Self::Deny,
        Self::Mixed,
        Self::Spread,
    ];

    /// How its rows begin.
    pub fn row(self) -> &'static str {
        match self {
            Self::Identity => "policy-identity",
            Self::Namespace => "policy-namespace",
            Self::Address => "policy-address",
            Self::Port => "policy-port",
            Self::Selector => "policy-selector",
            Self::Deny => "policy-deny",
            Self::Mixed => "policy-mixed",
            Self::Spread => "policy-spread",
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone)]
struct Caller {
    id: SpiffeId,
    ip: IpAddr,
    port: u16,
}

/// A compiled world with the callers that it is asked about.
pub struct World {
    index: PolicyIndex,
    destination: Pod,
    allowed: Vec<Caller>,
    denied: Vec<Caller>,
}

impl World {
    /// A world of `size` policies.
    pub fn new(kind: Kind, size: usize) -> Result<Self> {
        let mesh = MeshConfig::new("mesh.example".parse()?);
        let destination = world::pod(&mesh, world::SELECTED)?;
        let others = (0..size.min(world::WORKLOADS)).map(|number| world::pod(&mesh, number));
        let pods = others.collect::<Result<Vec<_>>>()?;
        let index = PolicyIndex::build(&mesh, &pods, &world::policies(kind, size)?);
        let understood = index.bindings().iter().filter(|binding| binding.understood).count();
        ensure!(understood >= size, "{understood} of {size} policies are understood");
        let numbers: Vec<usize> = match kind {
            Kind::Spread => (0..SPREAD).map(|at| world::scattered(at, size)).collect(),
            Kind::Selector => vec![world::SELECTED; CALLERS],
            _ => (0..CALLERS).collect(),
        };
        let world = Self {
            index,
            destination,
            allowed: numbers.iter().map(|number| world::allowed(kind, *number)).collect::<Result<_>>()?,
            denied: numbers.iter().map(|number| world::denied(kind, *number)).collect::<Result<_>>()?,
        };
        world.check()?;
        Ok(world)
    }

    /// That every decision is the one that is meant to be measured.
    fn check(&self) -> Result<()> {
        for caller in &self.allowed {
            let decision = self.index.decide(&self.connection(caller));
            ensure!(
                decision.as_ref().is_ok_and(|permit| permit.policy().as_str() != "default-allow"),
                "{caller:?}: {decision:?}"
            );
        }
        for caller in &self.denied {
            let decision = self.index.decide(&self.connection(caller));
            ensure!(decision.as_ref().is_err_and(|denial| denial.policy.is_some()), "{caller:?}: {decision:?}");
        }
        Ok(())
    }

    /// Judging the callers that are allowed.
    pub fn allowed(&self, row: String) -> Case<'_> {
        self.case(row, &self.allowed)
    }

    /// Judging the callers that are denied.
    pub fn denied(&self, row: String) -> Case<'_> {
        self.case(row, &self.denied)
    }

    fn case<'a>(&'a self, row: String, callers: &'a [Caller]) -> Case<'a> {
        Case::new(row, callers.len(), move || {
            for caller in callers {
                let _ = black_box(self.index.decide(black_box(&self.connection(caller))));
            }
        })
    }

    fn connection<'a>(&'a self, caller: &'a Caller) -> Connection<'a> {
        Connection {
            source: Some(&caller.id),
            source_ip: caller.ip,
            destination: &self.destination,
            destination_ip: world::DESTINATION,
            destination_port: caller.port,
        }
    }
}

/// Judges in worlds of each size, in turn.
pub fn measure(kind: Kind, sizes: &[usize], timing: Timing) -> Result<Vec<Row>> {
    let worlds = sizes.iter().map(|size| Ok((*size, World::new(kind, (*size).max(world::LEAST))?)));
    let worlds = worlds.collect::<Result<Vec<_>>>()?;
    let row = |verdict: &str, size: usize| format!("{}-{verdict}-{size}", kind.row());
    let allowed = worlds.iter().map(|(size, world)| world.allowed(row("allowed", *size))).collect();
    let mut rows = crate::measure::measure(allowed, timing);
    let denied = worlds.iter().map(|(size, world)| world.denied(row("denied", *size))).collect();
    rows.extend(crate::measure::measure(denied, timing));
    Ok(rows)
}
