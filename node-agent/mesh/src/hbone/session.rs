//! One HTTP/2 connection in TLS, either role: what its driver and its streams' lines share.
//!
//! All of them run on one worker. Nobody waits for anybody else's task: a line writes its payload into the tunnel by
//! itself, and the driver writes what arrives to the applications by itself.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::request::Parts;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use warren_core::http2::{Connection, ErrorCode, StreamId};

use super::driver::Driver;
use super::error::TunnelError;
use super::output::Output;
use super::slot::{Receiving, Slot};
use super::stream::StreamHandle;
use crate::tls::Secured;

/// Octets in one read that make a stream a heavy one.
pub(super) const HEAVY: usize = 48 * 1024;
/// How long a connection is heavy after such a read.
const HEAVY_FOR: Duration = Duration::from_millis(250);

/// A request that nobody has taken yet.
pub(super) struct Asked {
    pub(super) handle: StreamHandle,
    pub(super) parts: Box<Parts>,
}

/// A connection.
pub(super) struct Session {
    pub(super) tcp: TcpStream,
    /// The peer answered a PING.
    pub(super) pongs: Notify,
    /// It became heavy, or its peer goes away: the next stream had better be on another connection.
    pub(super) worse: Notify,
    /// Its owner wants it to end at once.
    pub(super) aborted: Cell<bool>,
    /// When a stream last moved as much as only a heavy one does.
    heavy: Cell<Option<Instant>>,
    pub(super) state: RefCell<State>,
}

/// What changes.
pub(super) struct State {
    pub(super) connection: Connection,
    pub(super) output: Output,
    pub(super) slots: HashMap<StreamId, Slot>,
    /// Lines that wait until the tunnel takes more.
    pub(super) waiting: Vec<StreamId>,
    /// Requests, at a server.
    pub(super) asked: VecDeque<Asked>,
    pub(super) acceptor: Option<Waker>,
    pub(super) driver: Option<Waker>,
    /// Why the connection is over, if it is.
    pub(super) over: Option<TunnelError>,
    /// It ended as agreed.
    pub(super) ended_well: bool,
    /// No new streams: the peer said so.
    pub(super) peer_leaving: bool,
    /// End when the last stream has ended.
    pub(super) leave_when_idle: bool,
}

impl Session {
    /// Makes a session of a finished handshake, and the driver that must run for it.
    pub(super) fn new(secured: Secured, connection: Connection) -> (Rc<Self>, Driver) {
        let Secured { tcp, sealer, opener, plaintext, ciphertext } = secured;
        let state = State {
            connection,
            output: Output::new(sealer),
            slots: HashMap::new(),
            waiting: Vec::new(),
            asked: VecDeque::new(),
            acceptor: None,
            driver: None,
            over: None,
            ended_well: false,
            peer_leaving: false,
            leave_when_idle: false,
        };
        let session = Rc::new(Self {
            tcp,
            pongs: Notify::new(),
            worse: Notify::new(),
            aborted: Cell::new(false),
            heavy: Cell::new(None),
            state: RefCell::new(state),
        });
        let driver = Driver::new(session.clone(), opener, plaintext, ciphertext);
        (session, driver)
    }

    /// Opens a stream with a CONNECT request.
    pub(super) fn open(self: &Rc<Self>, request: &http::Request<()>) -> Result<StreamHandle, TunnelError> {
        let mut state = self.state.borrow_mut();
        if let Some(over) = &state.over {
            return Err(over.clone().before_stream());
        }
        let none = || TunnelError::not_opened("the connection takes no more streams");
        let stream = state.connection.open(request).ok_or_else(none)?;
        state.slots.insert(stream, Slot::new(Receiving::Open));
        state.has_work();
        Ok(StreamHandle::new(self.clone(), stream))
    }

    /// So much was moved at once that its stream had it ready.
    pub(super) fn is_heavy_now(&self) {
        if !self.is_heavy() {
            self.worse.notify_one();
        }
        self.heavy.set(Some(Instant::now()));
    }

    /// Whether a heavy stream is on this connection: what others send here has to wait behind it.
    pub(super) fn is_heavy(&self) -> bool {
        self.heavy.get().is_some_and(|last| last.elapsed() < HEAVY_FOR)
    }

    /// Asks the peer for a sign of life; [`Self::pongs`] tells of it.
    pub(super) fn ping(&self) {
        let mut state = self.state.borrow_mut();
        state.connection.ping(*b"warren!?");
        state.has_work();
    }

    /// No new streams; those that are open go on.
    pub(super) fn drain(&self) {
        let mut state = self.state.borrow_mut();
        state.connection.drain();
        state.has_work();
    }

    /// No new streams from us, and the end when the last one has ended.
    pub(super) fn leave_when_idle(&self) {
        let mut state = self.state.borrow_mut();
        state.leave_when_idle = true;
        state.has_work();
    }

    /// The end, now.
    pub(super) fn abort(&self) {
        self.aborted.set(true);
        let mut state = self.state.borrow_mut();
        state.has_work();
        // Each of them holds this session: kept by it they would keep it, and its socket, for ever.
        let asked = std::mem::take(&mut state.asked);
        drop(state);
        drop(asked);
    }

    /// The next request; `None` when there will be none.
    pub(super) fn poll_asked(&self, cx: &Context<'_>) -> Poll<Option<Result<Asked, TunnelError>>> {
        let mut state = self.state.borrow_mut();
        if let Some(asked) = state.asked.pop_front() {
            return Poll::Ready(Some(Ok(asked)));
        }
        match &state.over {
            Some(_) if state.ended_well => Poll::Ready(None),
            Some(error) => {
                let error = error.clone();
                state.ended_well = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                state.acceptor = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl State {
    /// The driver has something to send or to notice.
    pub(super) fn has_work(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Moves the frames that HTTP/2 wants sent into the output, ahead of any payload that follows.
    pub(super) fn take_control(&mut self) -> Result<(), TunnelError> {
        match self.connection.take_control() {
            Some(frames) => self.output.push(&frames).map_err(|e| TunnelError::record(&e)),
            None => Ok(()),
        }
    }

    /// Reads payload from the application into the tunnel: as much as it has, at most `room`. `Ok(0)` is its end.
    pub(super) fn read_payload(
        &mut self,
        stream: StreamId,
        room: usize,
        read: impl FnOnce(&mut [io::IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, TunnelError> {
        self.take_control()?;
        let connection = &mut self.connection;
        let most = connection.max_data();
        let head = |length| connection.data_head(stream, length);
        self.output.read_payload(room, most, read, head).map_err(|e| TunnelError::record(&e))
    }

    /// Sends octets that are at hand; what the peer's window does not take waits in the slot.
    pub(super) fn send(&mut self, stream: StreamId, octets: &[u8]) -> Result<(), TunnelError> {
        let Some(slot) = self.slots.get_mut(&stream) else { return Ok(()) };
        slot.unsent.extend(octets);
        self.send_unsent(stream)
    }

    /// Sends of a slot's waiting octets what the window takes.
    pub(super) fn send_unsent(&mut self, stream: StreamId) -> Result<(), TunnelError> {
        loop {
            let room = self.connection.room(stream).unwrap_or(0);
            let Some(slot) = self.slots.get_mut(&stream).filter(|slot| !slot.unsent.is_empty()) else { return Ok(()) };
            if room == 0 {
                return Ok(());
            }
            let mut octets = std::mem::take(&mut slot.unsent);
            let sent = self.read_payload(stream, room, |slices| take_front(&mut octets, slices))?;
            if let Some(slot) = self.slots.get_mut(&stream) {
                slot.unsent = octets;
            }
            if sent.is_err() {
                return Ok(());
            }
        }
    }

    /// Writes to the network what there is.
    pub(super) fn flush(&mut self, tcp: &TcpStream) -> Result<(), TunnelError> {
        self.take_control()?;
        match self.output.flush(tcp).map_err(|e| TunnelError::record(&e))? {
            Ok(()) => {}
            Err(error) => return Err(TunnelError::broken(&error)),
        }
        if !self.output.is_congested() {
            for stream in self.waiting.drain(..) {
                if let Some(slot) = self.slots.get(&stream) {
                    slot.wake();
                }
            }
        }
        Ok(())
    }

    /// Ends a stream in both directions and forgets it; octets that nobody took are credited.
    pub(super) fn forget(&mut self, stream: StreamId, code: ErrorCode) {
        if let Some(slot) = self.slots.remove(&stream)
            && !slot.backlog.is_empty()
        {
            self.connection.consumed(stream, slot.backlog.len());
        }
        self.connection.reset(stream, code);
        self.has_work();
    }

    /// The connection is over: everybody is told.
    pub(super) fn end(&mut self, why: TunnelError, well: bool) {
        if self.over.is_none() {
            self.over = Some(why);
            self.ended_well = well;
        }
        for slot in self.slots.values() {
            slot.wake();
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
    }
}

/// Moves the front of a ring into slices, each filled before the next.
fn take_front(ring: &mut VecDeque<u8>, slices: &mut [io::IoSliceMut<'_>]) -> io::Result<usize> {
    // A ring is read up to where it wraps: in two parts, slices would have a gap where these meet.
    ring.make_contiguous();
    slices.iter_mut().try_fold(0, |taken, slice| Ok(taken + io::Read::read(ring, slice)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_wraps_leaves_no_gap() {
        let mut ring = VecDeque::with_capacity(100);
        let capacity = ring.capacity();
        ring.extend(std::iter::repeat_n(0, capacity - 5));
        ring.drain(..capacity - 10);
        ring.drain(..4);
        ring.extend(1..60_u8);
        assert!(!ring.as_slices().1.is_empty(), "it wraps");
        let (mut first, mut second) = ([255; 25], [255; 25]);
        let mut slices = [io::IoSliceMut::new(&mut first), io::IoSliceMut::new(&mut second)];
        assert_eq!(take_front(&mut ring, &mut slices).unwrap(), 50);
        assert!(first.iter().chain(&second).copied().eq(0..50));
        assert_eq!(ring, (50..60).collect::<Vec<u8>>());
    }
}
