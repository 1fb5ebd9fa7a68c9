//! One side goes away and comes back while the other holds tunnels to it.

use std::time::Duration;

use warren_test_support::client::{assert_echo, assert_refused, connect, finish_exchange, ping_pong, wait_cut};
use warren_test_support::{Server, eventually};

use crate::mesh::{Mesh, Way, any, assert_no_answer};
use crate::peer::Peer;
use crate::ztunnel::DRAIN;

pub(crate) fn ztunnel_is_upgraded_under_warrens_connections(peer: &Peer) {
    let mut mesh = Mesh::start(peer);
    let _echo = Server::echo(&mesh.theirs.ns, any(8080));
    let to = mesh.theirs.at(8080);
    let mut open = connect(&mesh.ours.ns, to).expect("connect");
    assert_eq!(ping_pong(&mut open, b"before").expect("answer"), b"before");

    mesh.ztunnel.ask_to_stop();
    eventually("it has closed its listeners", DRAIN, || (!mesh.ztunnel.listens(&mesh.theirs.ns)).then_some(()));
    // The tunnel of before has had its GOAWAY and nobody listens for another one: a new connection waits.
    let late = connect(&mesh.ours.ns, to).expect("captured");
    let late = std::thread::spawn(move || finish_exchange(late, b"late"));
    assert_eq!(ping_pong(&mut open, b"during the drain").expect("answer"), b"during the drain");
    mesh.ztunnel.launch(&mesh.theirs.ns);
    assert_eq!(late.join().expect("client").expect("the successor's answer"), b"late");
    for _ in 0..4 {
        assert_echo(&mesh.ours.ns, to, b"the successor");
    }
    assert_eq!(ping_pong(&mut open, b"still").expect("what is open stays with the predecessor"), b"still");
    mesh.ztunnel.wait_predecessor_stopped();
    wait_cut(&mut open, Duration::from_secs(5)).expect("a broken tunnel is no clean end");
    assert_echo(&mesh.ours.ns, mesh.theirs.at6(8080), b"the successor");
}

pub(crate) fn killed_ztunnel_ends_connections_and_the_next_one_after_it_succeeds(peer: &Peer) {
    // As long as an agent may be away, its tunnel port is tried again.
    let mut mesh = Mesh::with(peer, &[("--away-wait", "2s")], |_| {});
    let (_echo, _own) = (Server::echo(&mesh.theirs.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8080)));
    let to = mesh.theirs.at(8080);
    let mut out = connect(&mesh.ours.ns, to).expect("connect");
    assert_eq!(ping_pong(&mut out, b"before").expect("answer"), b"before");
    let mut back = connect(&mesh.theirs.ns, mesh.ours.at(8080)).expect("connect");
    assert_eq!(ping_pong(&mut back, b"before").expect("answer"), b"before");
    mesh.ztunnel.kill9();
    wait_cut(&mut out, Duration::from_secs(5)).expect("a broken tunnel is no clean end");
    mesh.agent.wait_status("Warren holds nothing for the dead peer", |status| {
        status["connections"].as_array().is_some_and(Vec::is_empty)
    });
    assert_refused(&mesh.ours.ns, to, b"nobody there");
    mesh.ztunnel.launch(&mesh.theirs.ns);
    for _ in 0..4 {
        assert_echo(&mesh.ours.ns, to, b"the successor");
        assert_echo(&mesh.theirs.ns, mesh.ours.at(8080), b"the successor");
    }
}

pub(crate) fn stopped_warren_is_replaced_and_ztunnels_next_connections_succeed(peer: &Peer) {
    let mut mesh = Mesh::with(peer, &[("--away-wait", "20s"), ("--drain", "1s")], |_| {});
    let (_echo, _own) = (Server::echo(&mesh.theirs.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8080)));
    let to = mesh.ours.at(8080);
    let mut open = connect(&mesh.theirs.ns, to).expect("connect");
    assert_eq!(ping_pong(&mut open, b"before").expect("answer"), b"before");
    mesh.agent.stop();
    wait_cut(&mut open, Duration::from_secs(5));
    mesh.agent.start();
    both_ways(&mesh);
}

pub(crate) fn killed_warren_is_replaced_and_ztunnels_next_connections_succeed(peer: &Peer) {
    let mut mesh = Mesh::with(peer, &[("--away-wait", "20s")], |_| {});
    let (_echo, _own) = (Server::echo(&mesh.theirs.ns, any(8080)), Server::echo(&mesh.ours.ns, any(8080)));
    let to = mesh.ours.at(8080);
    let mut open = connect(&mesh.theirs.ns, to).expect("connect");
    assert_eq!(ping_pong(&mut open, b"before").expect("answer"), b"before");
    mesh.agent.kill9();
    wait_cut(&mut open, Duration::from_secs(5));

    // ztunnel does not try again by itself; its client learns at once that there is nobody.
    assert_no_answer(&mesh.theirs.ns, &mesh.ours, 8080);
    mesh.agent.start();
    both_ways(&mesh);
}

#[track_caller]
fn both_ways(mesh: &Mesh) {
    for _ in 0..4 {
        for way in Way::BOTH {
            let (client, server) = mesh.ends(way);
            assert_echo(&client.ns, server.at(8080), b"the successor");
            assert_echo(&client.ns, server.at6(8080), b"the successor");
        }
    }
}
