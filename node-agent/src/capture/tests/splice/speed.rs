//! Plain against spliced, in turn. Run it by hand, on a quiet machine:
//! `cargo test --release -p warren-agent splice_speed -- --ignored --nocapture`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{UsageWho, getrusage};

use super::lab::{Dialler, Lab};

/// How often each is measured.
const ROUNDS: usize = 4;
const STREAM: usize = 8 << 30;
const CONNECTIONS: usize = 16;
const TIME: Duration = Duration::from_secs(2);

/// Seconds of CPU that this process has taken.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6)
        .sum()
}

#[test]
#[ignore = "a measurement, not a test"]
fn splice_speed() {
    let lab = Lab::new();
    let listener = lab.listen(7000);
    let mut dialler = lab.dialler(&listener);
    for spliced in [false, true].repeat(ROUNDS) {
        let (client, server) = dialler.dial(&listener, spliced).blocking();
        stream(client, server, spliced);
    }
    for spliced in [false, true].repeat(ROUNDS) {
        round_trips(&mut dialler, &listener, spliced);
    }
}

fn stream(mut client: TcpStream, mut server: TcpStream, spliced: bool) {
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0_u8; 131_072];
        let mut sum = 0;
        loop {
            match server.read(&mut buffer).unwrap() {
                0 => return sum,
                count => sum += count,
            }
        }
    });
    let buffer = vec![7_u8; 131_072];
    let (start, before) = (Instant::now(), cpu());
    for _ in 0..STREAM / buffer.len() {
        client.write_all(&buffer).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), STREAM);
    let bits = STREAM as f64 * 8e-9 / start.elapsed().as_secs_f64();
    let each = (cpu() - before) / (STREAM as f64 * 1e-9);
    eprintln!("spliced {spliced}: {bits:.1} Gbit/s, {each:.3} CPU s/GB");
}

fn round_trips(dialler: &mut Dialler<'_>, listener: &std::net::TcpListener, spliced: bool) {
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let connection = dialler.dial(listener, spliced);
        connection.client.set_nodelay(true).unwrap();
        connection.server.set_nodelay(true).unwrap();
        clients.push(connection.client);
        servers.push(connection.server);
    }
    let before = cpu();
    let server = std::thread::spawn(move || echo(servers));
    let until = Instant::now() + TIME;
    for client in &mut clients {
        client.write_all(&[0; 64]).unwrap();
    }
    let trips = answer(&mut clients, || Instant::now() >= until);
    drop(clients);
    server.join().unwrap();
    let each = (cpu() - before) * 1e6 / trips as f64;
    let rate = trips as f64 / TIME.as_secs_f64();
    eprintln!("spliced {spliced}: {rate:.0} round trips/s, {each:.2} CPU µs each");
}

fn echo(mut servers: Vec<TcpStream>) {
    answer(&mut servers, || false);
}

/// Sends back whatever comes, until told to stop or an end comes; says how often.
fn answer(sockets: &mut [TcpStream], stop: impl Fn() -> bool) -> u64 {
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    for (index, socket) in sockets.iter().enumerate() {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).unwrap();
    }
    let mut events = [EpollEvent::empty(); CONNECTIONS];
    let mut buffer = [0; 64];
    let mut count = 0;
    while !stop() {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        for event in &events[..ready] {
            let socket = &mut sockets[event.data() as usize];
            match socket.read(&mut buffer) {
                Ok(64) => socket.write_all(&buffer).unwrap(),
                Ok(0) | Err(_) => return count,
                Ok(other) => panic!("{other} bytes"),
            }
            count += 1;
        }
    }
    count
}
