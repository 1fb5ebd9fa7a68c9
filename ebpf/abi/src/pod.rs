use crate::{MAX_WORKERS, Plain};

/// What one pod's programs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PodConfig {
    cookie: u64,
    workers: u32,
    reserved: u32,
}

impl PodConfig {
    /// Cookie of the pod's network namespace, number of workers (1 to [`MAX_WORKERS`]).
    #[must_use]
    pub const fn new(cookie: u64, workers: u32) -> Self {
        Self { cookie, workers, reserved: 0 }
    }

    /// Cookie of the pod's network namespace.
    #[must_use]
    #[inline(always)]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The worker that takes a connection from `port`.
    ///
    /// The lowest bit is left out: the kernel gives a connecting socket ports of one parity only.
    #[must_use]
    #[inline(always)]
    pub const fn worker(&self, port: u16) -> u32 {
        if self.workers == 0 || self.workers > MAX_WORKERS { 0 } else { (port >> 1) as u32 % self.workers }
    }
}

/// What happens to plaintext that comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortVerdict {
    /// The application gets it, by the kernel alone.
    Pass,
    /// The agent gets it and decides.
    Agent,
    /// It is refused and reported.
    Refuse,
}

impl PortVerdict {
    /// The number that stands in maps.
    #[must_use]
    #[inline(always)]
    pub const fn code(self) -> u8 {
        match self {
            Self::Pass => 1,
            Self::Agent => 2,
            Self::Refuse => 3,
        }
    }

    /// The verdict of a number; one that is not known refuses.
    #[must_use]
    #[inline(always)]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Pass,
            2 => Self::Agent,
            _ => Self::Refuse,
        }
    }
}

/// Verdicts on plaintext from outside, for every port, and which ports the pod declares for probes of the host.
///
/// One byte for each: while a table is replaced, every port has its old word or its new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PortVerdicts([u8; PORTS]);

const PORTS: usize = u16::MAX as usize + 1;
/// The bit of a port that the pod declares for probes.
const PROBED: u8 = 0x80;

impl PortVerdicts {
    /// The same verdict for every port.
    #[must_use]
    pub const fn all(verdict: PortVerdict) -> Self {
        Self([verdict.code(); PORTS])
    }

    /// Sets the verdict of a port.
    pub const fn set(&mut self, port: u16, verdict: PortVerdict) {
        let at = port as usize;
        self.0[at] = (self.0[at] & PROBED) | verdict.code();
    }

    /// Lets probes of the host to a port in.
    pub const fn let_probes_in(&mut self, port: u16) {
        self.0[port as usize] |= PROBED;
    }

    /// The verdict of a port.
    #[must_use]
    #[inline(always)]
    pub const fn of(&self, port: u16) -> PortVerdict {
        PortVerdict::from_code(self.0[port as usize] & !PROBED)
    }

    /// Whether probes of the host to a port are let in.
    #[must_use]
    #[inline(always)]
    pub const fn lets_probes_in(&self, port: u16) -> bool {
        self.0[port as usize] & PROBED != 0
    }
}

// SAFETY: repr(C), integers only; the test below shows that there is no padding.
unsafe impl Plain for PodConfig {}
// SAFETY: an array of bytes.
unsafe impl Plain for PortVerdicts {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(core::mem::size_of::<PodConfig>(), 16);
    }

    #[test]
    fn workers_share_the_even_ports() {
        let config = PodConfig::new(1, 2);
        assert_ne!(config.worker(40_000), config.worker(40_002));
        assert_eq!(PodConfig::new(1, 0).worker(7), 0, "an empty map entry must not divide by zero");
    }

    #[test]
    fn an_unknown_verdict_refuses() {
        assert_eq!(PortVerdict::from_code(0), PortVerdict::Refuse);
        for verdict in [PortVerdict::Pass, PortVerdict::Agent, PortVerdict::Refuse] {
            assert_eq!(PortVerdict::from_code(verdict.code()), verdict);
        }
    }

    #[test]
    fn every_port_has_a_verdict() {
        let mut verdicts = PortVerdicts::all(PortVerdict::Agent);
        verdicts.set(u16::MAX, PortVerdict::Pass);
        assert_eq!(
            [0, 1, u16::MAX].map(|port| verdicts.of(port)),
            [PortVerdict::Agent, PortVerdict::Agent, PortVerdict::Pass]
        );
    }

    #[test]
    fn probes_are_beside_the_verdict() {
        let mut verdicts = PortVerdicts::all(PortVerdict::Refuse);
        verdicts.let_probes_in(8080);
        verdicts.set(8080, PortVerdict::Agent);
        assert!(verdicts.lets_probes_in(8080) && !verdicts.lets_probes_in(8081));
        assert_eq!((verdicts.of(8080), verdicts.of(8081)), (PortVerdict::Agent, PortVerdict::Refuse));
    }
}
