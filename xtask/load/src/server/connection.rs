//! The server's side of one connection.

use mio::net::TcpStream;

use crate::Fault;
use crate::flow::{Flow, Turn};
use crate::net::{self, Got};
use crate::pattern::Position;
use crate::wire::{Job, OPENING, Opening};

/// What becomes of a connection after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for its next event.
    Open,
    /// It has more to do, and no event will say so.
    Again,
    /// It is to be closed: all was said.
    Done,
}

/// A connection and how far it is.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    state: State,
}

#[derive(Debug)]
enum State {
    Opening(Vec<u8>),
    Echo(Echo),
    Stream(Box<Flow>),
}

/// Messages that are answered one by one.
#[derive(Debug)]
struct Echo {
    size: usize,
    left: Option<u32>,
    have: usize,
    owed: usize,
    read: Position,
    write: Position,
}

impl Connection {
    /// Accepted just now.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, state: State::Opening(Vec::new()) }
    }

    /// Bytes received and found right.
    pub(super) fn received(&self) -> u64 {
        match &self.state {
            State::Opening(_) => 0,
            State::Echo(echo) => echo.read.passed(),
            State::Stream(flow) => flow.received(),
        }
    }

    /// Does what can be done now. `to_end`: the peer has closed, read all there is.
    pub(super) fn ready(&mut self, buffer: &mut [u8], to_end: bool) -> Result<Fate, Fault> {
        match &mut self.state {
            State::Stream(_) => self.stream(buffer, to_end),
            _ => self.messages(buffer, to_end),
        }
    }

    fn messages(&mut self, buffer: &mut [u8], to_end: bool) -> Result<Fate, Fault> {
        loop {
            if let State::Echo(echo) = &mut self.state
                && echo.answer(&mut self.stream)? == Fate::Done
            {
                return Ok(Fate::Done);
            }
            let length = match net::read(&mut self.stream, buffer)? {
                Got::Nothing => return Ok(Fate::Open),
                Got::End if self.at_rest() => return Ok(Fate::Done),
                Got::End => return Err(Fault::Ended),
                Got::Bytes(length) => length,
            };
            self.take(&buffer[..length])?;
            if matches!(self.state, State::Stream(_)) {
                return self.stream(buffer, to_end);
            }
            if let State::Echo(echo) = &mut self.state
                && echo.answer(&mut self.stream)? == Fate::Done
            {
                return Ok(Fate::Done);
            }
            if length < buffer.len() && !to_end {
                return Ok(Fate::Open);
            }
        }
    }

    /// Whether the client may close: before it said anything (a look whether
    /// somebody listens), or between messages.
    fn at_rest(&self) -> bool {
        match &self.state {
            State::Opening(bytes) => bytes.is_empty(),
            State::Echo(echo) => echo.have == 0 && echo.owed == 0,
            State::Stream(_) => false,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        if let State::Opening(opening) = &mut self.state {
            let (head, rest) = bytes.split_at(bytes.len().min(OPENING - opening.len()));
            opening.extend_from_slice(head);
            bytes = rest;
            let Ok(complete) = <&[u8; OPENING]>::try_from(&opening[..]) else { return Ok(()) };
            self.state = State::begin(Opening::decode(complete)?);
        }
        match &mut self.state {
            State::Opening(_) => Ok(()),
            State::Echo(echo) => echo.take(bytes),
            State::Stream(flow) => flow.feed(bytes),
        }
    }

    fn stream(&mut self, buffer: &mut [u8], to_end: bool) -> Result<Fate, Fault> {
        let State::Stream(flow) = &mut self.state else { return Ok(Fate::Open) };
        let mut turn = Turn::Waits;
        if flow.theirs().is_none() {
            turn = flow.read(&mut self.stream, buffer, to_end)?;
        }
        if flow.theirs().is_some() {
            flow.end();
        }
        let wrote = flow.write(&mut self.stream)?;
        if flow.ended() {
            return Ok(Fate::Done);
        }
        Ok(if turn == Turn::Again || wrote == Turn::Again { Fate::Again } else { Fate::Open })
    }
}

impl State {
    fn begin(opening: Opening) -> Self {
        let (read, write) = (opening.upward(), opening.downward());
        match opening.job {
            Job::Stream { down } => Self::Stream(Box::new(Flow::new(read, write, down))),
            Job::Echo { size, count } => Self::Echo(Echo {
                size: size as usize,
                left: (count > 0).then_some(count),
                have: 0,
                owed: 0,
                read,
                write,
            }),
        }
    }
}

impl Echo {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.owed > 0 || self.have + bytes.len() > self.size {
            return Err(Fault::Protocol("more than the message that was due"));
        }
        self.read.check(bytes)?;
        self.have += bytes.len();
        if self.have == self.size {
            (self.have, self.owed) = (0, self.size);
        }
        Ok(())
    }

    fn answer(&mut self, stream: &mut TcpStream) -> Result<Fate, Fault> {
        if self.owed == 0 {
            return Ok(Fate::Open);
        }
        while self.owed > 0 {
            match net::written(self.write.write(stream, self.owed))? {
                0 => return Ok(Fate::Open),
                written => self.owed -= written,
            }
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                return Ok(Fate::Done);
            }
        }
        Ok(Fate::Open)
    }
}
