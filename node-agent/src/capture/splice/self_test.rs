//! The self-test: real connections in a namespace of their own, through everything that a kernel has been seen to do
//! wrong. It decides whether this kernel splices, not its version.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};

use super::SpliceError;
use super::object::SpliceObject;
use crate::sys::netns::NetNs;
use crate::sys::socket::cookie;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a sender offers to a receiver that does not read, and the most that may be taken of it.
const OFFERED: usize = 24 << 20;
const MOST_UNREAD: usize = 8 << 20;

/// What was wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestFailure {
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// What was done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes were lost, doubled, or came in another order.
    #[error("{step}: a wrong byte at {at}")]
    Order {
        /// What was done.
        step: &'static str,
        /// Where, in the stream.
        at: usize,
    },
    /// The kernel did something else than plain TCP would.
    #[error("{step}: {what}")]
    Behaviour {
        /// What was done.
        step: &'static str,
        /// What was seen.
        what: String,
    },
}

/// Tests the kernel; nothing is left.
pub(crate) fn run(cgroup: &File) -> Result<(), SpliceError> {
    let netns = NetNs::scratch().map_err(step("making a network namespace"))?;
    let mut bench = Bench { splice: SpliceObject::scratch(cgroup)?, netns };
    bench.slow_reader()?;
    bench.half_close()?;
    bench.reset()?;
    Ok(())
}

struct Bench {
    splice: SpliceObject,
    netns: NetNs,
}

/// A spliced connection, with what passes on it.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    cookie: u64,
    sent: usize,
    received: usize,
}

impl Bench {
    /// A receiver that does not read bounds what its sender gets rid of, loses nothing of it, and what comes after it
    /// has read is spliced again.
    fn slow_reader(&mut self) -> Result<(), TestFailure> {
        const STEP: &str = "a receiver that does not read";
        let mut pair = self.connect(STEP)?;
        pair.send(STEP, 1000)?;
        self.expect_spliced(STEP, &pair, |bytes| bytes == 1000)?;
        pair.fill(STEP)?;
        let sent = pair.sent;
        if sent > MOST_UNREAD {
            return Err(behaviour(STEP, format!("{sent} bytes were taken")));
        }
        self.expect_spliced(STEP, &pair, |bytes| bytes < sent as u64)?;
        pair.receive(STEP)?;
        let before = self.spliced(&pair);
        pair.send("the way back from TCP", 5000)?;
        pair.receive("the way back from TCP")?;
        self.expect_spliced("the way back from TCP", &pair, |bytes| bytes == before + 5000)
    }

    /// The end of one direction comes behind its bytes and does not end the other.
    fn half_close(&mut self) -> Result<(), TestFailure> {
        const STEP: &str = "a half-close";
        let mut pair = self.connect(STEP)?;
        pair.send(STEP, 100_000)?;
        pair.client.shutdown(Shutdown::Write).map_err(step(STEP))?;
        pair.receive(STEP)?;
        let mut buffer = [0; 8];
        for _ in 0..2 {
            wait(&pair.server, STEP)?;
            match pair.server.read(&mut buffer) {
                Ok(0) => {}
                other => return Err(behaviour(STEP, format!("the end was read as {other:?}"))),
            }
        }
        pair.server.write_all(b"answer").map_err(step(STEP))?;
        wait(&pair.client, STEP)?;
        pair.client.read_exact(&mut buffer[..6]).map_err(step(STEP))?;
        if &buffer[..6] == b"answer" { Ok(()) } else { Err(behaviour(STEP, "the answer is another".into())) }
    }

    /// A reset is not taken for an end.
    fn reset(&mut self) -> Result<(), TestFailure> {
        const STEP: &str = "a reset";
        let mut pair = self.connect(STEP)?;
        pair.send(STEP, 3000)?;
        SockRef::from(&pair.client).set_linger(Some(Duration::ZERO)).map_err(step(STEP))?;
        let Pair { client, mut server, .. } = pair;
        drop(client);
        let mut buffer = vec![0; 4096];
        loop {
            wait(&server, STEP)?;
            match server.read(&mut buffer) {
                Ok(0) => return Err(behaviour(STEP, "was read as an end".into())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(step(STEP)(error)),
            }
        }
    }

    fn connect(&mut self, what: &'static str) -> Result<Pair, TestFailure> {
        let Self { splice, netns } = self;
        let (ways, _) = splice.maps();
        let mut open = || -> io::Result<(TcpStream, TcpStream)> {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let listener = netns.enter(|| TcpListener::bind(any))??;
            let to = listener.local_addr()?;
            let client = netns.enter(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
            client.bind(&any.into())?;
            let from = client.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
            ways.admit(client.as_fd(), (from, netns), (to, netns))?;
            client.connect(&to.into())?;
            let (server, _) = listener.accept()?;
            ways.accepted(server.as_fd(), (from, netns), (to, netns))?;
            let client = TcpStream::from(client);
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
            }
            Ok((client, server))
        };
        let (client, server) = open().map_err(step(what))?;
        let cookie = cookie(client.as_fd()).map_err(step(what))?;
        Ok(Pair { client, server, cookie, sent: 0, received: 0 })
    }

    fn spliced(&mut self, pair: &Pair) -> u64 {
        self.splice.maps().1.get(pair.cookie).sent
    }

    fn expect_spliced(
        &mut self,
        step: &'static str,
        pair: &Pair,
        expected: impl Fn(u64) -> bool,
    ) -> Result<(), TestFailure> {
        let spliced = self.spliced(pair);
        if expected(spliced) {
            return Ok(());
        }
        Err(behaviour(step, format!("{spliced} of {} bytes were spliced", pair.sent)))
    }
}

impl Pair {
    fn send(&mut self, what: &'static str, count: usize) -> Result<(), TestFailure> {
        self.client.write_all(&stream(self.sent, count)).map_err(step(what))?;
        self.sent += count;
        Ok(())
    }

    /// Sends until no more is taken.
    fn fill(&mut self, what: &'static str) -> Result<(), TestFailure> {
        self.client.set_nonblocking(true).map_err(step(what))?;
        while self.sent < OFFERED {
            match self.client.write(&stream(self.sent, 100_000)) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(step(what)(error)),
            }
        }
        self.client.set_nonblocking(false).map_err(step(what))
    }

    /// Receives everything that was sent.
    fn receive(&mut self, what: &'static str) -> Result<(), TestFailure> {
        let mut buffer = vec![0; 65_536];
        while self.received < self.sent {
            wait(&self.server, what)?;
            let count = self.server.read(&mut buffer).map_err(step(what))?;
            if count == 0 {
                return Err(behaviour(what, format!("an end after {} of {} bytes", self.received, self.sent)));
            }
            let expected = stream(self.received, count);
            if let Some(wrong) = expected.iter().zip(&buffer).position(|(expected, found)| expected != found) {
                return Err(TestFailure::Order { step: what, at: self.received + wrong });
            }
            self.received += count;
        }
        Ok(())
    }
}

fn wait(socket: &TcpStream, what: &'static str) -> Result<(), TestFailure> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(behaviour(what, "nothing came".into())),
        Ok(_) => Ok(()),
        Err(error) => Err(step(what)(error.into())),
    }
}

/// Bytes that tell where in a stream they belong: each word holds its number, mixed.
fn stream(from: usize, count: usize) -> Vec<u8> {
    let byte = |at: usize| ((at as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 8 * 8)) as u8;
    (from..from + count).map(byte).collect()
}

fn step(step: &'static str) -> impl Fn(io::Error) -> TestFailure {
    move |source| TestFailure::Step { step, source }
}

fn behaviour(step: &'static str, what: String) -> TestFailure {
    TestFailure::Behaviour { step, what }
}
