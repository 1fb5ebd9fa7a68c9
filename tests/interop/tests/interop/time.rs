//! What only the passing of time brings.

use std::time::{Duration, Instant};

use warren_test_support::Server;
use warren_test_support::client::{assert_echo, connect, ping_pong};

use crate::mesh::{Mesh, Way, any};
use crate::peer::Peer;

pub(crate) fn warrens_certificates_are_renewed_under_ztunnels_eyes(peer: &Peer) {
    const LIFE: Duration = Duration::from_secs(4);
    let mesh = Mesh::with(peer, &[("--leaf-ttl", "4s")], |_| {});
    let (_echo, _own) = (Server::echo(&mesh.theirs.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8080)));
    let mut open = Way::BOTH.map(|way| {
        let (client, server) = mesh.ends(way);
        connect(&client.ns, server.at(8080)).expect("connect")
    });
    let first = mesh.agent.pod("ours")["svid"]["serial"].clone();
    let start = Instant::now();
    while start.elapsed() < LIFE * 3 {
        for way in Way::BOTH {
            let (client, server) = mesh.ends(way);
            assert_echo(&client.ns, server.at(8080), b"a new connection");
        }
        // ztunnel does not end what is open when a certificate ends, and nor does Warren.
        for stream in &mut open {
            assert_eq!(ping_pong(stream, b"an old one").expect("answer"), b"an old one");
        }
    }
    assert_ne!(mesh.agent.pod("ours")["svid"]["serial"], first);
}

pub(crate) fn silent_connections_outlive_the_pings_of_both_sides(peer: &Peer) {
    let mesh = Mesh::start(peer);
    let (_echo, _own) = (Server::echo(&mesh.theirs.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8080)));
    let mut open = Way::BOTH.map(|way| {
        let (client, server) = mesh.ends(way);
        let mut stream = connect(&client.ns, server.at(8080)).expect("connect");
        assert_eq!(ping_pong(&mut stream, b"before").expect("answer"), b"before");
        stream
    });
    // Both ping after ten seconds and give an answer twenty.
    std::thread::sleep(Duration::from_secs(34));
    for stream in &mut open {
        assert_eq!(ping_pong(stream, b"after").expect("answer"), b"after");
    }
}
