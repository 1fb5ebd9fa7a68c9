//! Connections that stand and do nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::exchange::{Exchange, Step};
use super::{BUFFER, EVENTS, TICK};
use crate::Fault;

/// How long answers may come after the first refusal.
const SETTLE: Duration = Duration::from_millis(500);

/// A load of idle connections.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// The server.
    pub to: SocketAddr,
    /// Connections to hold.
    pub connections: usize,
    /// Connections that are being made at once.
    pub at_once: usize,
    /// Bytes of the message that proves a connection.
    pub size: usize,
    /// How long nothing may happen while they are made or proved.
    pub patience: Duration,
    /// Be content with what stands when nothing happens any more.
    pub as_many_as_possible: bool,
}

/// Connections that are held.
#[derive(Debug)]
pub struct Held {
    poll: Poll,
    open: Vec<Option<Exchange>>,
    patience: Duration,
}

/// Opens them; each has had one round trip.
///
/// # Errors
/// Anything that went wrong.
pub fn idle(load: &Idle) -> Result<Held, Fault> {
    let mut held = Held { poll: Poll::new()?, open: Vec::new(), patience: load.patience };
    while held.open.len() < load.connections {
        let first = held.open.len();
        for slot in first..load.connections.min(first + load.at_once.max(1)) {
            let seed = u32::try_from(slot).unwrap_or_default().wrapping_add(std::process::id());
            let opening = Exchange::opening(load.size, 0, seed)?;
            held.open.push(Some(Exchange::begin(held.poll.registry(), Token(slot), load.to, opening, load.size)?));
        }
        match held.wait_until_answered(first) {
            Err(fault) if load.as_many_as_possible && (fault.is_disconnect() || matches!(fault, Fault::Stalled(_))) => {
                held.settle(first)?;
                break;
            }
            answered => answered?,
        }
    }
    Ok(held)
}

impl Held {
    /// How many there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.iter().flatten().count()
    }

    /// Bytes received and found right.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.open.iter().flatten().map(Exchange::received).sum()
    }

    /// Another round trip on each.
    ///
    /// # Errors
    /// Anything that went wrong.
    pub fn prove(&mut self) -> Result<(), Fault> {
        self.open.iter_mut().flatten().try_for_each(Exchange::again)?;
        self.wait_until_answered(0)
    }

    /// Of those that were begun last, drops what is refused and what gets no answer.
    fn settle(&mut self, first: usize) -> Result<(), Fault> {
        let settled = Instant::now() + SETTLE;
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER];
        while Instant::now() < settled {
            self.poll.poll(&mut events, Some(TICK))?;
            for slot in &mut self.open[first..] {
                match slot.as_mut().filter(|exchange| !exchange.is_idle()).map(|exchange| exchange.ready(&mut buffer)) {
                    Some(Ok(Step::Closed)) => *slot = None,
                    Some(Err(fault)) if fault.is_disconnect() => *slot = None,
                    Some(Err(fault)) => return Err(fault),
                    _ => {}
                }
            }
        }
        self.open.iter_mut().for_each(|slot| drop(slot.take_if(|exchange| !exchange.is_idle())));
        Ok(())
    }

    fn wait_until_answered(&mut self, first: usize) -> Result<(), Fault> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER];
        let mut progress = Instant::now();
        let mut waiting = self.open[first..].iter().flatten().filter(|exchange| !exchange.is_idle()).count();
        while waiting > 0 {
            if progress.elapsed() > self.patience {
                return Err(Fault::Stalled(self.patience.as_secs()));
            }
            self.poll.poll(&mut events, Some(TICK))?;
            for event in &events {
                let Some(Some(exchange)) = self.open.get_mut(event.token().0) else { continue };
                match exchange.ready(&mut buffer)? {
                    Step::Pending => {}
                    Step::Closed => return Err(Fault::Ended),
                    Step::Answered(_) => {
                        waiting = waiting.saturating_sub(1);
                        progress = Instant::now();
                    }
                }
            }
        }
        Ok(())
    }
}
