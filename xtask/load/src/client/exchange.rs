//! A client's connection that sends messages and checks the answers.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::Fault;
use crate::net::{self, Got};
use crate::pattern::Position;
use crate::wire::{Job, Opening};

/// What a turn brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing that is complete.
    Pending,
    /// The answer, so long after the message (the first: after the connect) was begun.
    Answered(Duration),
    /// The server has closed after its last answer.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Exchange {
    to: SocketAddr,
    stream: TcpStream,
    size: usize,
    first: Vec<u8>,
    up: Position,
    down: Position,
    state: State,
    begun: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    /// The opening and the first message: so many bytes are written.
    Opening(usize),
    /// Bytes of the message that are not written yet.
    Sending(usize),
    /// Bytes of the answer that are there.
    Receiving(usize),
    Idle,
}

impl Exchange {
    /// Begins a connection that sends its first message once it stands.
    pub(super) fn begin(
        registry: &Registry,
        token: Token,
        to: SocketAddr,
        opening: Opening,
        size: usize,
    ) -> Result<Self, Fault> {
        let begun = Instant::now();
        let mut stream = net::connect(to)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let mut up = opening.upward();
        let mut first = opening.encode().to_vec();
        first.extend_from_slice(up.next(size));
        up.advance(size);
        Ok(Self { to, stream, size, first, up, down: opening.downward(), state: State::Connecting, begun })
    }

    /// The opening for messages of a size.
    pub(super) fn opening(size: usize, count: u32, seed: u32) -> Result<Opening, Fault> {
        match u32::try_from(size) {
            Ok(size) if size > 0 => Ok(Opening { job: Job::Echo { size, count }, seed }),
            _ => Err(Fault::Protocol("messages of that size")),
        }
    }

    /// Bytes received and found right.
    pub(super) fn received(&self) -> u64 {
        self.down.passed()
    }

    /// Whether no answer is awaited.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Sends the next message.
    pub(super) fn again(&mut self) -> Result<(), Fault> {
        self.begun = Instant::now();
        self.state = State::Sending(self.size);
        self.send()
    }

    /// Does what can be done now.
    pub(super) fn ready(&mut self, buffer: &mut [u8]) -> Result<Step, Fault> {
        if self.state == State::Connecting {
            if !net::connected(&self.stream, self.to)? {
                return Ok(Step::Pending);
            }
            self.state = State::Opening(0);
        }
        if matches!(self.state, State::Opening(_) | State::Sending(_)) {
            self.send()?;
        }
        self.receive(buffer)
    }

    fn send(&mut self) -> Result<(), Fault> {
        loop {
            self.state = match self.state {
                State::Opening(written) if written < self.first.len() => {
                    match net::written(self.stream.write(&self.first[written..]))? {
                        0 => return Ok(()),
                        more => State::Opening(written + more),
                    }
                }
                State::Sending(left) if left > 0 => match net::written(self.up.write(&mut self.stream, left))? {
                    0 => return Ok(()),
                    written => State::Sending(left - written),
                },
                State::Opening(_) => {
                    self.first = Vec::new();
                    State::Receiving(0)
                }
                State::Sending(_) => State::Receiving(0),
                _ => return Ok(()),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Step, Fault> {
        loop {
            let have = match self.state {
                State::Receiving(have) => have,
                // Only an end can come, or a fault.
                _ => 0,
            };
            let length = match net::read(&mut self.stream, buffer)? {
                Got::Nothing => return Ok(Step::Pending),
                Got::End if self.state == State::Idle => return Ok(Step::Closed),
                Got::End => return Err(Fault::Ended),
                Got::Bytes(length) => length,
            };
            if !matches!(self.state, State::Receiving(_)) || have + length > self.size {
                return Err(Fault::Protocol("an answer before its message"));
            }
            self.down.check(&buffer[..length])?;
            self.state = State::Receiving(have + length);
            if have + length == self.size {
                self.state = State::Idle;
                return Ok(Step::Answered(self.begun.elapsed()));
            }
        }
    }
}
