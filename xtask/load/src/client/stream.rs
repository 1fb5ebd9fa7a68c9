//! Streams as fast as they go.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::meter::{Meter, Phase, Window};
use super::{BUFFER, EVENTS, TICK};
use crate::Fault;
use crate::flow::{Flow, Turn};
use crate::net;
use crate::report::Report;
use crate::wire::{Job, Opening};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// Both at once.
    Both,
}

/// A load of streams.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// The server.
    pub to: SocketAddr,
    /// Streams, each on a connection of its own.
    pub streams: usize,
    /// Which way.
    pub direction: Direction,
    /// How long.
    pub window: Window,
}

/// Runs it. The bytes that count are those that were received and checked, and
/// the time ends when the receivers have said so.
///
/// # Errors
/// Anything that went wrong.
pub fn stream(load: &Streams) -> anyhow::Result<Report> {
    let meter = Meter::new(load.window)?;
    Ok(run(load, meter)?)
}

struct Stream {
    socket: TcpStream,
    connected: bool,
    opening: Opening,
    flow: Flow,
    /// What was on its way when the measurement began.
    before: u64,
}

fn run(load: &Streams, mut meter: Meter) -> Result<Report, Fault> {
    let mut poll = Poll::new()?;
    let mut streams = (0..load.streams).map(|slot| begin(load, &poll, slot)).collect::<Result<Vec<_>, _>>()?;
    let mut events = Events::with_capacity(EVENTS);
    let mut buffer = vec![0; BUFFER];
    let (mut again, mut measuring, mut over): (Vec<usize>, bool, bool) = (Vec::new(), false, false);
    loop {
        let phase = meter.phase()?;
        if phase == Phase::Measuring && !measuring {
            measuring = true;
            streams.iter_mut().for_each(|stream| stream.before = stream.moved());
        }
        if phase == Phase::Over && !over {
            over = true;
            streams.iter_mut().for_each(|stream| stream.flow.end());
            again = (0..streams.len()).collect();
        }
        if streams.iter().all(|stream| stream.flow.theirs().is_some()) {
            let bytes = streams.iter().map(Stream::measured).sum::<Result<u64, Fault>>()?;
            let report = Report { bytes, operations: load.streams as u64, ..meter.report("stream")? };
            wait_for_close(&mut poll, &mut streams, &mut meter, &mut buffer)?;
            return Ok(report);
        }
        poll.poll(&mut events, Some(if again.is_empty() { TICK } else { Duration::ZERO }))?;
        let woken = events.iter().map(|event| (event.token().0, event.is_read_closed()));
        for (slot, to_end) in again.split_off(0).into_iter().map(|slot| (slot, false)).chain(woken) {
            let Some(stream) = streams.get_mut(slot) else { continue };
            let before = stream.moved();
            if stream.turn(load.to, &mut buffer, to_end)? == Turn::Again && !again.contains(&slot) {
                again.push(slot);
            }
            if stream.moved() > before {
                meter.progress();
            }
        }
    }
}

fn begin(load: &Streams, poll: &Poll, slot: usize) -> Result<Stream, Fault> {
    let mut socket = net::connect(load.to)?;
    poll.registry().register(&mut socket, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
    let seed = u32::try_from(slot).unwrap_or_default().wrapping_add(std::process::id());
    let (up, down) = (load.direction != Direction::Down, load.direction != Direction::Up);
    let opening = Opening { job: Job::Stream { down }, seed };
    let flow = Flow::new(opening.downward(), opening.upward(), up);
    Ok(Stream { socket, connected: false, opening, flow, before: 0 })
}

/// The servers close first; that no byte comes behind their trailers is seen here.
fn wait_for_close(poll: &mut Poll, streams: &mut [Stream], meter: &mut Meter, buffer: &mut [u8]) -> Result<(), Fault> {
    let mut events = Events::with_capacity(EVENTS);
    loop {
        for stream in streams.iter_mut().filter(|stream| !stream.flow.closed()) {
            stream.flow.read(&mut stream.socket, buffer, true)?;
        }
        if streams.iter().all(|stream| stream.flow.closed()) {
            return Ok(());
        }
        meter.phase()?;
        poll.poll(&mut events, Some(TICK))?;
    }
}

impl Stream {
    fn turn(&mut self, to: SocketAddr, buffer: &mut [u8], to_end: bool) -> Result<Turn, Fault> {
        if !self.connected {
            if !net::connected(&self.socket, to)? {
                return Ok(Turn::Waits);
            }
            self.connected = true;
            // A fresh socket has room for it.
            if self.socket.write(&self.opening.encode())? != self.opening.encode().len() {
                return Err(Fault::Protocol("no room for the opening"));
            }
        }
        let read = if self.flow.closed() { Turn::Waits } else { self.flow.read(&mut self.socket, buffer, to_end)? };
        let wrote = self.flow.write(&mut self.socket)?;
        Ok(if read == Turn::Again || wrote == Turn::Again { Turn::Again } else { Turn::Waits })
    }

    /// Bytes of both ways as this end knows them.
    fn moved(&self) -> u64 {
        self.flow.sent() + self.flow.received()
    }

    /// Bytes that arrived during the measurement, at either end.
    fn measured(&self) -> Result<u64, Fault> {
        let (sent, theirs) = (self.flow.sent(), self.flow.theirs().ok_or(Fault::Ended)?);
        if theirs.received != sent {
            return Err(Fault::Lost { sent, received: theirs.received });
        }
        Ok(self.moved() - self.before)
    }
}
