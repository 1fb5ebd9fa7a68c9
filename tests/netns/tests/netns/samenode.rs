//! Two pods of one node: the kernel carries their connections from socket to socket, past whatever they share.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use warren_test_support::client::{assert_echo, connect, finish_exchange, ping_pong};
use warren_test_support::{Agent, Capture, Lab, Pod, Server, eventually};

use crate::fixture::{any, start_agent};

const SOON: Duration = Duration::from_secs(10);

/// One bridged node with an agent; `client`, `server` and `spy` are pods of the mesh. Fields drop in this order.
struct Near {
    agent: Agent,
    client: Pod,
    server: Pod,
    lab: Lab,
}

impl Near {
    #[track_caller]
    fn with(flags: &[(&str, &str)], prepare: impl FnOnce(&mut Lab)) -> Self {
        let mut lab = Lab::bridged();
        let (client, server) = (lab.pod(0, "client"), lab.pod(0, "server"));
        lab.manifest.set_mtls(None, "STRICT");
        prepare(&mut lab);
        lab.manifest.write();
        let agent = start_agent(&lab, 0, flags);
        Self { agent, client, server, lab }
    }

    #[track_caller]
    fn start() -> Self {
        Self::with(&[], |_| {})
    }

    /// Connects until a connection takes the short way: the first ones ask for the verdict.
    #[track_caller]
    fn warm(&self, client: &Pod, to: SocketAddr) {
        eventually("connections take the short way", SOON, || {
            let stream = connect(&client.ns, to).expect("a connection");
            let from = stream.local_addr().expect("connected");
            finish_exchange(stream, b"warm").expect("an answer");
            (self.ended(from)["route"] == "kernel").then_some(())
        });
    }

    /// The audit event that the source's end of a connection left.
    #[track_caller]
    fn ended(&self, from: SocketAddr) -> Value {
        self.agent.wait_audit("the end of a connection", |event| {
            event["direction"] == "outbound" && event["source"]["address"] == from.to_string()
        })
    }
}

#[test]
fn connections_within_a_node_take_the_short_way() {
    let world = Near::start();
    let echo = Server::echo(&world.server.ns, any(8080));
    assert_echo(&world.client.ns, world.server.at(8080), b"the first goes through the agent");
    for to in [world.server.at(8080), world.server.at6(8080)] {
        world.warm(&world.client, to);
        let capture = Capture::start(world.lab.node(0));
        let mut stream = connect(&world.client.ns, to).unwrap();
        assert_eq!(ping_pong(&mut stream, b"CANARY-near").unwrap(), b"CANARY-near");
        assert_eq!(echo.peers().last().unwrap().port(), stream.local_addr().unwrap().port());
        assert!(capture.stop().syns_to(15008).is_empty(), "no tunnel");
    }
}
