//! `--splice on`: within a node, bytes skip TCP, and nobody can tell but by the clock.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use warren_test_support::client::{assert_echo, check_pattern, ping_pong, prepare, send_pattern, wait_cut};
use warren_test_support::{Pod, Server, eventually};

use crate::dial;
use crate::fixture::{any, start_agent};
use crate::samenode::Near;

const SOON: Duration = Duration::from_secs(10);
const LENGTH: u64 = 64 << 20;

fn spliced(world: &Near) -> f64 {
    world.agent.metric("warren_kernel_spliced_bytes", &[])
}

/// Waits until there is something to read: what does not wait in calls waits here.
fn wait(socket: &impl AsFd, what: PollFlags) {
    let timeout = PollTimeout::try_from(SOON).unwrap();
    assert_eq!(poll(&mut [PollFd::new(socket.as_fd(), what)], timeout), Ok(1), "nothing happened");
}

/// An application that does not wait for connections.
fn serve(pod: &Pod, port: u16, each: fn(TcpStream)) {
    let listener = pod.ns.run(|| TcpListener::bind(any(port)).unwrap());
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        loop {
            wait_forever(&listener);
            if let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || each(stream));
            }
        }
    });
}

fn wait_forever(listener: &TcpListener) {
    let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Reads to the end after a while, and says how many bytes were right.
fn sink(mut stream: TcpStream) {
    std::thread::sleep(Duration::from_millis(300));
    let got = check_pattern(&mut stream).unwrap_or(0);
    // The client has ended its half and hears the answer all the same.
    let _ = stream.write_all(&got.to_le_bytes());
}

/// A connection by a client that does not wait while it connects.
fn dial(world: &Near, to: SocketAddr) -> TcpStream {
    let stream = world.client.ns.run(|| dial::nonblocking(to)).and_then(prepare).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Connects until a connection takes the short way: the first ones ask for the verdict.
fn warm(world: &Near, to: SocketAddr) {
    eventually("connections take the short way", SOON, || {
        let before = world.admitted();
        drop(dial(world, to));
        std::thread::sleep(Duration::from_millis(50));
        (world.admitted() > before).then_some(())
    });
}

#[test]
fn spliced_bytes_arrive_as_they_were_sent_and_are_accounted_for() {
    let world = Near::with(&[("--splice", "on")], |_| {});
    assert_eq!(world.agent.metric("warren_kernel_splicing", &[]), 1.0, "this kernel's self-test");
    serve(&world.server, 8080, echo);
    serve(&world.server, 8081, sink);
    for ip in [world.server.v4(), world.server.v6()] {
        for port in [8080, 8081] {
            warm(&world, SocketAddr::new(ip, port));
        }
        let before = spliced(&world);
        let mut small = dial(&world, SocketAddr::new(ip, 8080));
        let small_from = small.local_addr().unwrap();
        for _ in 0..100 {
            assert_eq!(ping_pong(&mut small, b"12345").unwrap(), b"12345");
        }
        drop(small);
        let mut up = dial(&world, SocketAddr::new(ip, 8081));
        let up_from = up.local_addr().unwrap();
        send_pattern(&mut up, LENGTH).unwrap();
        up.shutdown(Shutdown::Write).unwrap();
        let mut got = [0; 8];
        wait(&up, PollFlags::POLLIN);
        up.read_exact(&mut got).unwrap();
        assert_eq!(u64::from_le_bytes(got), LENGTH);
        drop(up);
        for direction in ["outbound", "inbound"] {
            let event = world.ended(small_from, direction);
            assert_eq!((&event["bytes_sent"], &event["bytes_received"]), (&500.into(), &500.into()), "{event:#}");
            let event = world.ended(up_from, direction);
            let mut bytes = [event["bytes_sent"].as_u64().unwrap(), event["bytes_received"].as_u64().unwrap()];
            bytes.sort_unstable();
            assert_eq!(bytes, [8, LENGTH], "{event:#}");
        }
        eventually("the bytes skipped TCP", SOON, || (spliced(&world) > before + 1000.0).then_some(()));
    }
}

#[test]
fn an_application_that_waits_in_calls_is_left_to_tcp() {
    let world = Near::with(&[("--splice", "on")], |_| {});
    let _blocking = Server::echo(&world.server.ns, any(8080));
    serve(&world.server, 8081, echo);
    for port in [8080, 8081] {
        warm(&world, world.server.at(port));
    }
    let mut to_blocking = dial(&world, world.server.at(8080));
    let mut by_blocking = world.client.ns.run(|| TcpStream::connect(world.server.at(8081))).unwrap();
    for stream in [&mut to_blocking, &mut by_blocking] {
        assert_eq!(ping_pong(stream, b"12345").unwrap(), b"12345");
    }
    assert_eq!(spliced(&world), 0.0);
}

#[test]
fn a_policy_change_ends_a_spliced_connection() {
    let world = Near::with(&[("--splice", "on")], |_| {});
    serve(&world.server, 8080, echo);
    warm(&world, world.server.at(8080));
    let mut stream = dial(&world, world.server.at(8080));
    let before = spliced(&world);
    for _ in 0..10 {
        assert_eq!(ping_pong(&mut stream, &[7; 1000]).unwrap(), [7; 1000]);
    }
    eventually("the bytes skipped TCP", SOON, || (spliced(&world) >= before + 10_000.0).then_some(()));
    let mut world = world;
    world.lab.manifest.set_policy("others", "server", "ALLOW", "[{from: [{source: {ipBlocks: [\"10.10.9.9\"]}}]}]");
    world.lab.apply(&[&world.agent]);
    wait(&stream, PollFlags::POLLIN);
    wait_cut(&mut stream, SOON).expect("it was cut");
}

#[test]
fn what_is_spliced_needs_no_agent_and_no_option() {
    let mut world = Near::with(&[("--splice", "on")], |_| {});
    serve(&world.server, 8080, echo);
    warm(&world, world.server.at(8080));
    let mut stream = dial(&world, world.server.at(8080));
    assert_eq!(ping_pong(&mut stream, b"spliced").unwrap(), b"spliced");
    world.agent.kill9();
    assert_eq!(ping_pong(&mut stream, b"nobody is needed").unwrap(), b"nobody is needed");
    world.agent = start_agent(&world.lab, 0, &[("--splice", "off")]);
    assert_eq!(ping_pong(&mut stream, b"what is spliced stays so").unwrap(), b"what is spliced stays so");
    assert_eq!(world.agent.metric("warren_kernel_splicing", &[]), 0.0);
    assert_echo(&world.client.ns, world.server.at(8080), b"and new connections are not");
    world.agent.stop();
    world.agent = start_agent(&world.lab, 0, &[("--splice", "on")]);
    assert_eq!(world.agent.metric("warren_kernel_splicing", &[]), 1.0, "programs are taken over and put back");
}
