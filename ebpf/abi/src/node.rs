use crate::{ABI_VERSION, Plain};

/// State of an enrolled pod in the node's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PodEntry {
    flags: u32,
}

impl PodEntry {
    const ACTIVE: u32 = 1;

    /// Only the self-test addresses are captured: the pod is being enrolled, or leaves.
    pub const SELF_TEST: Self = Self { flags: 0 };
    /// Everything to be captured is captured.
    pub const CAPTURING: Self = Self { flags: Self::ACTIVE };

    /// Whether more than the self-test addresses is captured.
    #[must_use]
    #[inline(always)]
    pub const fn is_capturing(self) -> bool {
        self.flags & Self::ACTIVE != 0
    }
}

/// Key of the map of pods' own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct OwnKey {
    cookie: u64,
    ip: [u8; 16],
}

impl OwnKey {
    /// `ip` in the form of [`mapped`](crate::mapped).
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, ip: [u8; 16]) -> Self {
        Self { cookie, ip }
    }

    /// Cookie of the pod's network namespace.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The address.
    #[must_use]
    pub const fn ip(&self) -> [u8; 16] {
        self.ip
    }
}

/// Key of the map of single (address, port) pairs to be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ExactKey {
    ip: [u8; 16],
    port: [u8; 2],
}

impl ExactKey {
    /// `ip` in the form of [`mapped`](crate::mapped), port as a number.
    #[must_use]
    #[inline(always)]
    pub const fn new(ip: [u8; 16], port: u16) -> Self {
        Self { ip, port: port.to_be_bytes() }
    }
}

/// What the node's programs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    abi: u32,
    mark: u32,
    mask: u32,
    pod_cgroups: u32,
    away_wait_ns: u64,
    generation: u64,
    host: u64,
}

impl Config {
    /// Mark and mask of captured sockets; how long, in nanoseconds, an agent may be away before connections are refused.
    #[must_use]
    pub const fn new(mark: u32, mask: u32, away_wait_ns: u64) -> Self {
        Self { abi: ABI_VERSION, mark, mask, pod_cgroups: 0, away_wait_ns, generation: 0, host: 0 }
    }

    /// The same, with the generation of verdicts that is good; 0 is none.
    #[must_use]
    pub const fn with_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    /// The same, with the cookie of the host's network namespace, and how many cgroups it is known of that pods' cgroups
    /// lie in them; 0 is that it is not known where they are.
    #[must_use]
    pub const fn with_host(self, host: u64, pod_cgroups: u32) -> Self {
        Self { host, pod_cgroups, ..self }
    }

    /// Whether this is the cookie of the host's network namespace.
    #[must_use]
    #[inline(always)]
    pub const fn is_host(&self, cookie: u64) -> bool {
        self.host != 0 && self.host == cookie
    }

    /// Whether it is known where pods' cgroups are.
    #[must_use]
    #[inline(always)]
    pub const fn knows_pod_cgroups(&self) -> bool {
        self.pod_cgroups != 0
    }

    /// Whether verdicts of this generation are good.
    #[must_use]
    #[inline(always)]
    pub const fn is_current(&self, generation: u64) -> bool {
        self.generation != 0 && self.generation == generation
    }

    /// Whether this was written by a daemon of the same contract.
    #[must_use]
    #[inline(always)]
    pub const fn is_valid(&self) -> bool {
        self.abi == ABI_VERSION
    }

    /// `old` with the bits that belong to capture set to its mark.
    #[must_use]
    #[inline(always)]
    pub const fn marked(&self, old: u32) -> u32 {
        (old & !self.mask) | self.mark
    }

    /// `new` with the bits that belong to capture taken from `old`.
    #[must_use]
    #[inline(always)]
    pub const fn unmarked(&self, new: u32, old: u32) -> u32 {
        (new & !self.mask) | (old & self.mask)
    }

    /// Whether a socket or packet bears the mark of capture.
    #[must_use]
    #[inline(always)]
    pub const fn is_marked(&self, mark: u32) -> bool {
        mark & self.mask == self.mark
    }

    /// How long an agent may be away, in nanoseconds.
    #[must_use]
    #[inline(always)]
    pub const fn away_wait_ns(&self) -> u64 {
        self.away_wait_ns
    }
}

/// What a socket was before it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Captured {
    ifindex: u32,
    mark: u32,
}

impl Captured {
    /// The interface it was bound to (0: none) and its mark.
    #[must_use]
    #[inline(always)]
    pub const fn new(ifindex: u32, mark: u32) -> Self {
        Self { ifindex, mark }
    }

    /// The interface it was bound to; 0 is none.
    #[must_use]
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        self.ifindex
    }

    /// Its mark.
    #[must_use]
    #[inline(always)]
    pub const fn mark(self) -> u32 {
        self.mark
    }
}

// SAFETY: repr(C), integers and byte arrays only; the tests below show that there is no padding.
unsafe impl Plain for PodEntry {}
// SAFETY: as above.
unsafe impl Plain for OwnKey {}
// SAFETY: as above.
unsafe impl Plain for ExactKey {}
// SAFETY: as above.
unsafe impl Plain for Config {}
// SAFETY: as above.
unsafe impl Plain for Captured {}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<PodEntry>(), 4);
        assert_eq!((size_of::<OwnKey>(), offset_of!(OwnKey, ip)), (24, 8));
        assert_eq!((size_of::<ExactKey>(), offset_of!(ExactKey, port)), (18, 16));
        assert_eq!((size_of::<Config>(), offset_of!(Config, generation)), (40, 24));
        assert_eq!(size_of::<Captured>(), 8);
    }

    #[test]
    fn no_generation_is_never_good() {
        let config = Config::new(1, 1, 0);
        assert!(!config.is_current(0));
        assert!(config.with_generation(5).is_current(5));
        assert!(!config.with_generation(5).is_current(4));
    }

    #[test]
    fn no_namespace_is_the_hosts_until_it_is_named() {
        let config = Config::new(1, 1, 0);
        assert!(!config.is_host(0) && !config.knows_pod_cgroups());
        let config = config.with_host(7, 1);
        assert!(config.is_host(7) && !config.is_host(8) && config.knows_pod_cgroups());
    }

    #[test]
    fn marks_touch_only_their_own_bits() {
        let config = Config::new(0x577, 0xfff, 0);
        assert_eq!(config.marked(0xabcd_e123), 0xabcd_e577);
        assert_eq!(config.unmarked(0xabcd_e577, 0x123), 0xabcd_e123);
        assert!(config.is_marked(0x1577));
        assert!(!config.is_marked(0x576));
    }
}
