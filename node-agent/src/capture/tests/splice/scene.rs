//! What happens on one connection of the torture: a script that both ends know.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Longer than anything here takes: who waits so long hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Most that a sender gets rid of while nobody reads: both buffers, and what is in the sender's hand.
const MOST_UNREAD: usize = 6 << 20;

/// How a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Requests and answers.
    Exchange,
    /// One side is done and says so; the other answers then.
    HalfClose,
    /// Both directions at once, both ends closing at once.
    Duplex,
    /// The sender resets in the middle.
    Reset,
    /// The receiver closes with bytes unread.
    Abandoned,
    /// The receiver does not read for a while.
    Slow,
    /// The receiver is told of changes only, and takes a short read for the end of what is there.
    Edge,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    pub(super) kind: Kind,
    seed: u64,
}

/// A generator of numbers; the same seed gives the same.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly small, sometimes large.
    fn size(&mut self) -> usize {
        let bits = match self.below(1000) {
            0 => 23,
            1..=9 => 20,
            10..=99 => 16,
            _ => 12,
        };
        let bits = 1 + self.below(bits);
        1 + self.below(1 << bits) as usize
    }
}

/// Bytes that tell where they belong: a long random text, begun at another place for each direction.
fn text() -> &'static [u8] {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut numbers = Numbers::new(1);
        (0..TEXT_LENGTH.div_ceil(8)).flat_map(|_| numbers.next().to_ne_bytes()).collect()
    })
}

const TEXT_LENGTH: usize = (4 << 20) + 8;

/// One direction of a connection.
struct Direction {
    start: u64,
    done: usize,
}

impl Direction {
    fn new(seed: u64, up: bool) -> Self {
        Self { start: Numbers::new(seed ^ u64::from(up)).next(), done: 0 }
    }

    /// The bytes that come next, at most `most`.
    fn coming(&self, most: usize) -> &'static [u8] {
        let at = ((self.start % TEXT_LENGTH as u64) as usize + self.done) % TEXT_LENGTH;
        &text()[at..TEXT_LENGTH.min(at + most)]
    }

    fn check(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let wanted = self.coming(rest.len());
            let (head, tail) = rest.split_at(wanted.len());
            if head != wanted {
                let wrong = head.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
                panic!("a wrong byte at {}", self.done + wrong);
            }
            self.done += head.len();
            rest = tail;
        }
    }
}

impl Scene {
    pub(super) fn new(number: u64) -> Self {
        let mut numbers = Numbers::new(number);
        let kind = match numbers.below(200) {
            0..=79 => Kind::Exchange,
            80..=119 => Kind::HalfClose,
            120..=149 => Kind::Duplex,
            150..=169 => Kind::Reset,
            170..=179 => Kind::Abandoned,
            180..=182 => Kind::Slow,
            _ => Kind::Edge,
        };
        Self { kind, seed: numbers.next() }
    }

    fn numbers(&self) -> Numbers {
        Numbers::new(self.seed)
    }

    pub(super) fn client(&self, mut socket: TcpStream) -> io::Result<()> {
        let mut numbers = self.numbers();
        let (mut up, mut down) = (Direction::new(self.seed, true), Direction::new(self.seed, false));
        match self.kind {
            Kind::Exchange => {
                for _ in 0..1 + numbers.below(8) {
                    send(&mut socket, &mut up, numbers.size(), &mut numbers)?;
                    receive(&mut socket, &mut down, numbers.size())?;
                }
                at_end(&mut socket)
            }
            Kind::HalfClose => {
                send(&mut socket, &mut up, numbers.size(), &mut numbers)?;
                socket.shutdown(Shutdown::Write)?;
                receive(&mut socket, &mut down, numbers.size())?;
                at_end(&mut socket)
            }
            Kind::Duplex => {
                let (sent, received) = (numbers.size(), numbers.size());
                duplex(&mut socket, (&mut up, sent), (&mut down, received))
            }
            Kind::Reset => {
                send(&mut socket, &mut up, numbers.size(), &mut numbers)?;
                socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))
            }
            Kind::Abandoned => self.write_to_nobody(&mut socket, &mut up),
            Kind::Slow => {
                let total = slow_size(&mut numbers);
                let unread = fill(&mut socket, &mut up, total)?;
                assert!(unread <= MOST_UNREAD, "{unread} bytes were taken of a sender whose receiver does not read");
                let mut small = Numbers::new(0);
                while up.done < total {
                    let left = total - up.done;
                    send(&mut socket, &mut up, left, &mut small)?;
                }
                at_end(&mut socket)
            }
            Kind::Edge => {
                for _ in 0..1 + numbers.below(6) {
                    send(&mut socket, &mut up, numbers.size(), &mut numbers)?;
                    receive(&mut socket, &mut down, 1)?;
                }
                at_end(&mut socket)
            }
        }
    }

    pub(super) fn server(&self, mut socket: TcpStream) -> io::Result<()> {
        let mut numbers = self.numbers();
        let (mut up, mut down) = (Direction::new(self.seed, true), Direction::new(self.seed, false));
        match self.kind {
            Kind::Exchange => {
                for _ in 0..1 + numbers.below(8) {
                    receive(&mut socket, &mut up, numbers.size())?;
                    numbers.skip_a_send();
                    send(&mut socket, &mut down, numbers.size(), &mut Numbers::new(self.seed))?;
                }
                Ok(())
            }
            Kind::HalfClose => {
                receive(&mut socket, &mut up, numbers.size())?;
                at_end(&mut socket)?;
                numbers.skip_a_send();
                send(&mut socket, &mut down, numbers.size(), &mut Numbers::new(self.seed))
            }
            Kind::Duplex => {
                let (received, sent) = (numbers.size(), numbers.size());
                duplex(&mut socket, (&mut down, sent), (&mut up, received))
            }
            Kind::Reset => {
                let total = numbers.size();
                let end = drain(&mut socket, &mut up);
                assert!(up.done <= total, "more bytes than were sent");
                match end {
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
                    other => panic!("a reset connection ended with {other:?} after {} of {total} bytes", up.done),
                }
            }
            Kind::Abandoned => {
                let mut some = vec![0; 1 + numbers.below(100) as usize];
                let read = read(&mut socket, &mut some)?;
                up.check(&some[..read]);
                Ok(())
            }
            Kind::Slow => {
                let total = slow_size(&mut numbers);
                std::thread::sleep(Duration::from_millis(1 + numbers.below(30)));
                receive(&mut socket, &mut up, total)
            }
            Kind::Edge => {
                let mut edges = Edges::new(&socket)?;
                for _ in 0..1 + numbers.below(6) {
                    edges.receive(&mut socket, &mut up, numbers.size())?;
                    numbers.skip_a_send();
                    send(&mut socket, &mut down, 1, &mut Numbers::new(self.seed))?;
                }
                Ok(())
            }
        }
    }

    /// Whoever writes to an end that is gone is told so.
    fn write_to_nobody(&self, socket: &mut TcpStream, up: &mut Direction) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut numbers = self.numbers();
        while Instant::now() < until {
            match send(socket, up, 1 + numbers.below(3000) as usize, &mut Numbers::new(0)) {
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(());
                }
                other => other?,
            }
        }
        panic!("nobody reads, and the sender is never told");
    }
}

impl Numbers {
    /// A sender draws one number more, for how it cuts its messages.
    fn skip_a_send(&mut self) {
        self.next();
    }
}

fn slow_size(numbers: &mut Numbers) -> usize {
    (1 << 20) + numbers.below(12 << 20) as usize
}

/// Sends in messages of various sizes.
fn send(socket: &mut TcpStream, direction: &mut Direction, total: usize, numbers: &mut Numbers) -> io::Result<()> {
    let mut cut = Numbers::new(numbers.next());
    let most = 1 + (total / 4).clamp(2000, 300_000) as u64;
    let end = direction.done + total;
    while direction.done < end {
        let message = direction.coming((end - direction.done).min(1 + cut.below(most) as usize));
        match socket.write(message) {
            Ok(written) => direction.done += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(socket, PollFlags::POLLOUT)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends until nothing has been taken for a while; says how much was.
fn fill(socket: &mut TcpStream, direction: &mut Direction, total: usize) -> io::Result<usize> {
    while direction.done < total {
        match socket.write(direction.coming((total - direction.done).min(200_000))) {
            Ok(written) => direction.done += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(direction.done)
}

fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(socket, PollFlags::POLLIN)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn receive(socket: &mut TcpStream, direction: &mut Direction, total: usize) -> io::Result<()> {
    let mut buffer = vec![0; total.min(50_000)];
    let end = direction.done + total;
    while direction.done < end {
        let most = buffer.len().min(end - direction.done);
        let count = read(socket, &mut buffer[..most])?;
        assert_ne!(count, 0, "the end came after {} of {end} bytes", direction.done);
        direction.check(&buffer[..count]);
    }
    Ok(())
}

/// Receives until the end or an error.
fn drain(socket: &mut TcpStream, direction: &mut Direction) -> io::Result<()> {
    let mut buffer = vec![0; 20_000];
    loop {
        match read(socket, &mut buffer)? {
            0 => return Ok(()),
            count => direction.check(&buffer[..count]),
        }
    }
}

fn at_end(socket: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16];
    // Twice: an end stays one.
    for _ in 0..2 {
        assert_eq!(read(socket, &mut buffer)?, 0, "bytes after the end");
    }
    Ok(())
}

fn duplex(socket: &mut TcpStream, out: (&mut Direction, usize), inward: (&mut Direction, usize)) -> io::Result<()> {
    let mut buffer = vec![0; 30_000];
    let mut shut = false;
    loop {
        if out.0.done == out.1 && !shut {
            socket.shutdown(Shutdown::Write)?;
            shut = true;
        }
        let wanted = if shut { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        wait(socket, wanted)?;
        if !shut {
            match socket.write(out.0.coming((out.1 - out.0.done).min(40_000))) {
                Ok(count) => out.0.done += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        match socket.read(&mut buffer) {
            Ok(0) => {
                assert_eq!(inward.0.done, inward.1, "the end came too early");
                if shut {
                    return Ok(());
                }
                let left = out.1 - out.0.done;
                send(socket, out.0, left, &mut Numbers::new(0))?;
                return socket.shutdown(Shutdown::Write);
            }
            Ok(count) => inward.0.check(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn wait(socket: &impl AsFd, what: PollFlags) -> io::Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    match poll(&mut [PollFd::new(socket.as_fd(), what)], timeout)? {
        0 => Err(io::Error::new(ErrorKind::TimedOut, "hangs")),
        _ => Ok(()),
    }
}

/// A reader as many servers are: told of changes only, and content with a short read.
struct Edges {
    epoll: Epoll,
    readable: bool,
}

impl Edges {
    fn new(socket: &TcpStream) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(socket, EpollEvent::new(flags, socket.as_raw_fd() as u64))?;
        Ok(Self { epoll, readable: false })
    }

    fn receive(&mut self, socket: &mut TcpStream, direction: &mut Direction, total: usize) -> io::Result<()> {
        let end = direction.done + total;
        let mut buffer = vec![0; 16_384];
        while direction.done < end {
            if !self.readable {
                let mut events = [EpollEvent::empty()];
                let timeout = EpollTimeout::try_from(PATIENCE).unwrap();
                if self.epoll.wait(&mut events, timeout)? == 0 {
                    return Err(io::Error::new(ErrorKind::TimedOut, format!("no edge at {} of {end}", direction.done)));
                }
                self.readable = true;
            }
            match socket.read(&mut buffer) {
                Ok(count) => {
                    direction.check(&buffer[..count]);
                    self.readable = count == buffer.len();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
