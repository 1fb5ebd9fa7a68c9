//! Round trips on connections that stand.

use std::net::SocketAddr;

use mio::{Events, Poll, Token};

use super::exchange::{Exchange, Step};
use super::meter::{Meter, Phase, Window};
use super::{BUFFER, EVENTS, TICK};
use crate::Fault;
use crate::report::Report;

/// A load of round trips.
#[derive(Debug, Clone, Copy)]
pub struct RoundTrips {
    /// The server.
    pub to: SocketAddr,
    /// Bytes of a message and of its answer.
    pub size: usize,
    /// Connections, each with one message on its way at any time.
    pub connections: usize,
    /// A connection that breaks is counted and made anew.
    pub allow_failures: bool,
    /// How long.
    pub window: Window,
}

/// Runs it.
///
/// # Errors
/// Anything that went wrong, unless it is a broken connection and those are allowed.
pub fn round_trips(load: &RoundTrips) -> anyhow::Result<Report> {
    Ok(Run::new(load)?.run()?)
}

struct Run<'a> {
    load: &'a RoundTrips,
    poll: Poll,
    meter: Meter,
    open: Vec<Option<Exchange>>,
    seed: u32,
    /// Bytes of connections that are gone.
    bytes: u64,
    failed: u64,
    over: bool,
}

impl<'a> Run<'a> {
    fn new(load: &'a RoundTrips) -> anyhow::Result<Self> {
        let (poll, meter) = (Poll::new()?, Meter::new(load.window)?);
        Ok(Self { load, poll, meter, open: Vec::new(), seed: std::process::id(), bytes: 0, failed: 0, over: false })
    }

    fn run(mut self) -> Result<Report, Fault> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER];
        self.open.resize_with(self.load.connections, || None);
        let mut report = None;
        loop {
            match self.meter.phase()? {
                Phase::Over if report.is_none() => {
                    report = Some(self.meter.report("rr")?);
                    self.over = true;
                }
                _ => self.open_missing()?,
            }
            if let Some(mut report) = report.take_if(|_| self.at_rest()) {
                (report.bytes, report.failed) = (self.bytes + self.received(), self.failed);
                return Ok(report);
            }
            self.poll.poll(&mut events, Some(TICK))?;
            for event in &events {
                self.turn(event.token().0, &mut buffer)?;
            }
        }
    }

    fn open_missing(&mut self) -> Result<(), Fault> {
        if self.over {
            return Ok(());
        }
        for slot in 0..self.open.len() {
            if self.open[slot].is_none() {
                let opening = Exchange::opening(self.load.size, 0, self.seed)?;
                self.seed = self.seed.wrapping_add(1);
                let begun = Exchange::begin(self.poll.registry(), Token(slot), self.load.to, opening, self.load.size);
                self.open[slot] = self.tolerate(begun)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, slot: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let Some(Some(exchange)) = self.open.get_mut(slot) else { return Ok(()) };
        let stepped = match exchange.ready(buffer) {
            Ok(Step::Answered(latency)) => {
                self.meter.record(latency);
                if self.over { Ok(()) } else { exchange.again() }
            }
            Ok(Step::Pending) => Ok(()),
            Ok(Step::Closed) => Err(Fault::Ended),
            Err(fault) => Err(fault),
        };
        if self.tolerate(stepped)?.is_none() {
            self.bytes += self.open[slot].take().map_or(0, |exchange| exchange.received());
        }
        Ok(())
    }

    /// A connection that broke, where that is allowed, is none.
    fn tolerate<T>(&mut self, result: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(fault) if self.load.allow_failures && fault.is_disconnect() => {
                self.failed += 1;
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    fn at_rest(&self) -> bool {
        self.open.iter().flatten().all(Exchange::is_idle)
    }

    fn received(&self) -> u64 {
        self.open.iter().flatten().map(Exchange::received).sum()
    }
}
