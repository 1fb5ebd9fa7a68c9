//! The world of every test: one node under Warren, one under ztunnel, a pod on each, one root for both.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use warren_test_support::client::exchange;
use warren_test_support::lab::TRUST_DOMAIN;
use warren_test_support::{Agent, Lab, NetNs, Pod};

use crate::peer::Peer;
use crate::ztunnel::{Known, Told, Ztunnel};

/// Fields drop in this order.
pub(crate) struct Mesh {
    pub(crate) agent: Agent,
    pub(crate) ztunnel: Ztunnel,
    /// The pod under Warren.
    pub(crate) ours: Pod,
    /// The pod under ztunnel.
    pub(crate) theirs: Pod,
    pub(crate) lab: Lab,
}

/// What both sides will be told, to be changed before they start.
pub(crate) struct Draft {
    /// With Warren's world as its manifest.
    pub(crate) lab: Lab,
    /// ztunnel's world: the first pod is Warren's, the second its own.
    pub(crate) known: Known,
    pub(crate) ours: Pod,
    pub(crate) theirs: Pod,
}

/// Who dials whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The client is Warren's pod.
    ToZtunnel,
    /// The client is ztunnel's pod.
    FromZtunnel,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::ToZtunnel, Self::FromZtunnel];

    /// What Warren's audit log calls it.
    pub(crate) fn direction(self) -> &'static str {
        match self {
            Self::ToZtunnel => "outbound",
            Self::FromZtunnel => "inbound",
        }
    }
}

/// A wildcard of both families.
pub(crate) fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

impl Mesh {
    /// Both sides know the truth, and everybody may talk.
    #[track_caller]
    pub(crate) fn start(peer: &Peer) -> Self {
        Self::with(peer, &[], |_| {})
    }

    /// With flags for Warren's agent, after `prepare` has changed what either side is told.
    #[track_caller]
    pub(crate) fn with(peer: &Peer, flags: &[(&str, &str)], prepare: impl FnOnce(&mut Draft)) -> Self {
        let mut lab = Lab::new(2);
        let (ours, theirs) = (lab.pod(0, "ours"), lab.pod(1, "theirs"));
        let known = Known { pods: vec![Told::of(&ours), Told::of(&theirs)], allowed: None };
        let mut draft = Draft { lab, known, ours, theirs };
        prepare(&mut draft);
        let Draft { lab, known, ours, theirs } = draft;
        share_root(peer, &lab.dir().join("ca"));
        lab.manifest.write();
        let agent = flags.iter().fold(lab.agent(0), |agent, (flag, value)| agent.flag(flag, value)).start();
        let ztunnel = Ztunnel::start(peer, &lab, 1, &theirs, &known);
        Self { agent, ztunnel, ours, theirs, lab }
    }

    /// The client's pod and the server's.
    pub(crate) fn ends(&self, way: Way) -> (&Pod, &Pod) {
        match way {
            Way::ToZtunnel => (&self.ours, &self.theirs),
            Way::FromZtunnel => (&self.theirs, &self.ours),
        }
    }
}

/// ztunnel ends a connection that it cannot carry by a reset or by an ordinary end.
#[track_caller]
pub(crate) fn assert_no_answer(client: &NetNs, server: &Pod, port: u16) {
    let start = Instant::now();
    if let Ok(answer) = exchange(client, server.at(port), b"hello") {
        assert!(answer.is_empty(), "{answer:?} from a server that was not to be reached");
    }
    assert!(start.elapsed() < Duration::from_secs(8), "it took {:?}", start.elapsed());
}

/// A CA directory for Warren with the root that ztunnel's test CA signs with.
#[track_caller]
fn share_root(peer: &Peer, dir: &Path) {
    let root = dir.join("roots/ztunnel");
    std::fs::create_dir_all(&root).expect("lab directory");
    std::fs::copy(peer.root_certificate(), root.join("cert.pem")).expect("root certificate");
    std::fs::copy(peer.root_key(), root.join("key.pem")).expect("root key");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(root.join("key.pem"), private).expect("own file");
    for (file, text) in [("trust-domain", TRUST_DOMAIN), ("active", "ztunnel"), ("version", "warren-ca 1")] {
        std::fs::write(dir.join(file), format!("{text}\n")).expect("lab directory");
    }
}
