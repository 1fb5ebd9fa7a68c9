use crate::{MAX_WORKERS, Plain};

/// What one pod's programs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PodConfig {
    cookie: u64,
    workers: u32,
    default_verdict: u32,
}

impl PodConfig {
    /// Cookie of the pod's network namespace, number of workers (1 to [`MAX_WORKERS`]), verdict on ports that have none.
    #[must_use]
    pub const fn new(cookie: u64, workers: u32, default_verdict: PortVerdict) -> Self {
        Self { cookie, workers, default_verdict: default_verdict.code() }
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

    /// Verdict on ports that have none of their own.
    #[must_use]
    #[inline(always)]
    pub const fn default_verdict(&self) -> PortVerdict {
        PortVerdict::from_code(self.default_verdict)
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
    pub const fn code(self) -> u32 {
        match self {
            Self::Pass => 1,
            Self::Agent => 2,
            Self::Refuse => 3,
        }
    }

    /// The verdict of a number; one that is not known refuses.
    #[must_use]
    #[inline(always)]
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Pass,
            2 => Self::Agent,
            _ => Self::Refuse,
        }
    }
}

// SAFETY: repr(C), integers only; the test below shows that there is no padding.
unsafe impl Plain for PodConfig {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(core::mem::size_of::<PodConfig>(), 16);
    }

    #[test]
    fn workers_share_the_even_ports() {
        let config = PodConfig::new(1, 2, PortVerdict::Pass);
        assert_ne!(config.worker(40_000), config.worker(40_002));
        assert_eq!(PodConfig::new(1, 0, PortVerdict::Pass).worker(7), 0, "an empty map entry must not divide by zero");
    }

    #[test]
    fn an_unknown_verdict_refuses() {
        assert_eq!(PortVerdict::from_code(0), PortVerdict::Refuse);
        for verdict in [PortVerdict::Pass, PortVerdict::Agent, PortVerdict::Refuse] {
            assert_eq!(PortVerdict::from_code(verdict.code()), verdict);
        }
    }
}
