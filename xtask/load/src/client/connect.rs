//! New connections, each with one round trip, closed by the server first.

use std::net::SocketAddr;

use mio::{Events, Poll, Token};

use super::exchange::{Exchange, Step};
use super::meter::{Meter, Phase, Window};
use super::{BUFFER, EVENTS, TICK, shifted};
use crate::Fault;
use crate::report::Report;

/// A load of new connections.
#[derive(Debug, Clone, Copy)]
pub struct Connects {
    /// The server.
    pub to: SocketAddr,
    /// Destinations in turn: `to` and the addresses behind it.
    pub spread: u32,
    /// Bytes of the one message and its answer.
    pub size: usize,
    /// Connections open at any time.
    pub at_once: usize,
    /// End after so many connections, however long it takes.
    pub count: Option<u64>,
    /// A connection that fails is counted.
    pub allow_failures: bool,
    /// How long.
    pub window: Window,
}

/// Runs it. A latency runs from `connect` to the whole answer; the next
/// connection of the same slot waits for the server's close.
///
/// # Errors
/// Anything that went wrong, unless it is a failed connection and those are allowed.
pub fn connect(load: &Connects) -> anyhow::Result<Report> {
    Ok(Run::new(load)?.run()?)
}

struct Run<'a> {
    load: &'a Connects,
    poll: Poll,
    meter: Meter,
    open: Vec<Option<Exchange>>,
    begun: u64,
    bytes: u64,
    failed: u64,
    over: bool,
}

impl<'a> Run<'a> {
    fn new(load: &'a Connects) -> anyhow::Result<Self> {
        let (poll, meter) = (Poll::new()?, Meter::new(load.window)?);
        Ok(Self { load, poll, meter, open: Vec::new(), begun: 0, bytes: 0, failed: 0, over: false })
    }

    fn run(mut self) -> Result<Report, Fault> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER];
        self.open.resize_with(self.load.at_once, || None);
        let mut report = None;
        loop {
            let phase = self.meter.phase()?;
            let over = match self.load.count {
                Some(count) => self.begun >= count && self.open.iter().all(Option::is_none),
                None => phase == Phase::Over,
            };
            if over && report.is_none() {
                report = Some(self.meter.report("connect")?);
                self.over = true;
            }
            self.begin_missing()?;
            if let Some(mut report) = report.take_if(|_| self.open.iter().all(Option::is_none)) {
                (report.bytes, report.failed) = (self.bytes, self.failed);
                return Ok(report);
            }
            self.poll.poll(&mut events, Some(TICK))?;
            for event in &events {
                self.turn(event.token().0, &mut buffer)?;
            }
        }
    }

    fn begin_missing(&mut self) -> Result<(), Fault> {
        for slot in 0..self.open.len() {
            let more = self.load.count.is_none_or(|count| self.begun < count);
            if self.open[slot].is_none() && more && !self.over {
                self.begin(slot)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, slot: usize) -> Result<(), Fault> {
        let number = u32::try_from(self.begun % u64::from(u32::MAX)).unwrap_or_default();
        self.begun += 1;
        let to = shifted(self.load.to, number % self.load.spread.max(1));
        let opening = Exchange::opening(self.load.size, 1, number.wrapping_add(std::process::id()))?;
        match Exchange::begin(self.poll.registry(), Token(slot), to, opening, self.load.size) {
            Ok(exchange) => self.open[slot] = Some(exchange),
            Err(fault) => self.fail(fault)?,
        }
        Ok(())
    }

    fn turn(&mut self, slot: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        while let Some(Some(exchange)) = self.open.get_mut(slot) {
            match exchange.ready(buffer) {
                Ok(Step::Pending) => return Ok(()),
                // The server's close may be there already.
                Ok(Step::Answered(latency)) => {
                    self.meter.record(latency);
                    continue;
                }
                Ok(Step::Closed) => {}
                Err(fault) => self.fail(fault)?,
            }
            self.bytes += self.open[slot].take().map_or(0, |exchange| exchange.received());
            return Ok(());
        }
        Ok(())
    }

    fn fail(&mut self, fault: Fault) -> Result<(), Fault> {
        if !self.load.allow_failures || !fault.is_disconnect() {
            return Err(fault);
        }
        self.failed += 1;
        Ok(())
    }
}
