//! What can be measured, and how each measurement is made.

mod catalogue;
mod idle;
mod lifecycle;
mod load;
mod policy;

use anyhow::Result;

pub(crate) use self::catalogue::{Run, catalogue};
use super::lab::{Lab, Shape};
use super::options::Options;
use super::path::Path;

/// One value out of a measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Value {
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// What a value says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    /// Behind the row's name.
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// Whether it is in the table on the terminal, or in the files only.
    pub(crate) shown: bool,
}

/// The whole system's processor time for the work that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cpu {
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// What one measurement gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) values: Vec<Value>,
    pub(crate) cpu: Option<Cpu>,
    /// What a reader must know, as when a limit was met.
    pub(crate) note: Option<String>,
}

/// How a row is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    RoundTrips { size: u32, connections: u32 },
    Connects { at_once: u32 },
    Streams { streams: u32, direction: &'static str },
    Idle,
    Handshakes,
    FirstByte,
    Enrolment,
    Restart,
    Policy,
}

/// Addresses of the far pod in the row of handshakes: as many connections, each with a tunnel of its own.
const HANDSHAKES: u32 = 1000;
/// Milliseconds of the link in the row of first bytes.
pub(crate) const RTT: u64 = 10;
const HANDSHAKES_QUICK: u32 = 300;

impl Kind {
    /// Whether it can be measured on a path.
    pub(crate) fn fits(self, path: Path) -> bool {
        match self {
            Self::RoundTrips { .. } | Self::Connects { .. } | Self::Streams { .. } => true,
            Self::Idle => !path.is_same_node() && path != Path::Loopback,
            Self::FirstByte => !path.is_same_node() && path != Path::Loopback,
            Self::Handshakes => matches!(path, Path::Warren | Path::Ztunnel | Path::Envoy),
            Self::Enrolment | Self::Restart | Self::Policy => path == Path::Warren,
        }
    }

    /// The lab that it wants.
    pub(crate) fn shape(self, options: &Options) -> Shape {
        match self {
            Self::FirstByte => Shape::Delayed(RTT / 2),
            Self::Handshakes => Shape::Addresses(handshakes(options)),
            _ => Shape::Ordinary,
        }
    }

    /// Measures.
    pub(crate) fn measure(self, lab: &mut Lab, options: &Options) -> Result<Sample> {
        match self {
            Self::RoundTrips { size, connections } => load::round_trips(lab, options, size, connections),
            Self::Connects { at_once } => load::connects(lab, options, at_once),
            Self::Streams { streams, direction } => load::streams(lab, options, streams, direction),
            Self::FirstByte => load::connects(lab, options, 1),
            Self::Handshakes => load::handshakes(lab, handshakes(options)),
            Self::Idle => idle::measure(lab, options),
            Self::Enrolment => lifecycle::enrolment(lab),
            Self::Restart => lifecycle::restart(lab, options),
            Self::Policy => policy::measure(&lab.programs().micro, options),
        }
    }
}

fn handshakes(options: &Options) -> u32 {
    if options.quick { HANDSHAKES_QUICK } else { HANDSHAKES }
}
