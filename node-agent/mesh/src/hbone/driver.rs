//! Reads a connection: takes records off the network, opens them in place, and gives what they hold to whom it is for.
//! And writes what others have left to be sent.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::StatusCode;
use warren_core::http2::{Event, Role, StreamId};

use super::error::TunnelError;
use super::gather::Gather;
use super::session::{Asked, HEAVY, Session, State};
use super::slot::{Receiving, Slot};
use super::stream::StreamHandle;
use crate::buffers::Buffer;
use crate::ready;
use crate::tls::record::{Opened, Opener};

/// Reads in a row before others get their turn.
const READS: usize = 4;

/// The task of a connection.
pub(super) struct Driver {
    session: Rc<Session>,
    opener: Opener,
    /// Application data of the handshake's last octets.
    plaintext: Vec<u8>,
    /// The beginning of a record.
    partial: Vec<u8>,
}

/// What one read found.
enum Found {
    /// There may be more.
    Much,
    /// Nothing is left.
    All,
    /// The peer ended the connection.
    End,
}

impl Driver {
    pub(super) fn new(session: Rc<Session>, opener: Opener, plaintext: Vec<u8>, partial: Vec<u8>) -> Self {
        Self { session, opener, plaintext, partial }
    }

    /// Runs the connection to its end.
    pub(super) async fn run(mut self) {
        let (why, well) = match std::future::poll_fn(|cx| self.poll(cx)).await {
            Ok(()) => (TunnelError::not_opened("the connection has ended"), true),
            Err(error) => (error, false),
        };
        self.session.state.borrow_mut().end(why, well);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let session = self.session.clone();
        if session.aborted.get() {
            return Poll::Ready(Err(TunnelError::not_opened("the connection was given up")));
        }
        {
            let mut state = session.state.borrow_mut();
            match &mut state.driver {
                Some(driver) => driver.clone_from(cx.waker()),
                None => state.driver = Some(cx.waker().clone()),
            }
        }
        let read = self.read(cx);
        let mut state = session.state.borrow_mut();
        if let Err(error) = &read {
            if let TunnelError::PeerFault(fault) = error {
                state.connection.fail(fault);
                // The last thing that is said; if the socket does not take it, it is not heard.
                let _ = state.flush(&session.tcp);
            }
            return Poll::Ready(read.map(|_| ()));
        }
        state.flush(&session.tcp)?;
        while state.output.is_blocked() {
            // Registered for, and tried again if it was ready already.
            if session.tcp.poll_write_ready(cx)?.is_pending() {
                break;
            }
            state.flush(&session.tcp)?;
        }
        if let Ok(Found::End) = read {
            let clean = state.connection.streams() == 0;
            return Poll::Ready(if clean { Ok(()) } else { Err(TunnelError::closed_by_peer()) });
        }
        if state.leave_when_idle && state.slots.is_empty() {
            state.connection.drain();
        }
        if state.connection.is_drained() && state.slots.is_empty() {
            state.take_control()?;
            state.output.close_notify().map_err(|e| TunnelError::record(&e))?;
            state.flush(&session.tcp)?;
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Reads until nothing is left, or others must have their turn.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<Found, TunnelError> {
        if !self.plaintext.is_empty() {
            let plaintext = std::mem::take(&mut self.plaintext);
            let mut state = self.session.state.borrow_mut();
            let mut gather = Gather::new();
            take_in(&self.session, &mut state, &plaintext, &mut gather)?;
            gather.deliver(&mut state);
        }
        for _ in 0..READS {
            match self.session.tcp.poll_read_ready(cx) {
                Poll::Pending => return Ok(Found::All),
                Poll::Ready(ready) => ready?,
            }
            match self.read_once()? {
                Found::Much => {}
                // Registered for the next octets by the next look.
                Found::All => continue,
                Found::End => return Ok(Found::End),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Found::Much)
    }

    fn read_once(&mut self) -> Result<Found, TunnelError> {
        let mut buffer = Buffer::take();
        let have = self.partial.len();
        buffer[..have].copy_from_slice(&self.partial);
        self.partial.clear();
        let most = buffer.len() - have;
        let got = match ready::read(&self.session.tcp, &mut buffer[have..]) {
            Ok(0) => return Ok(Found::End),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.partial.extend_from_slice(&buffer[..have]);
                return Ok(Found::All);
            }
            Err(error) => return Err(TunnelError::broken(&error)),
        };
        if got >= HEAVY {
            self.session.is_heavy_now();
        }
        let end = have + got;
        let mut state = self.session.state.borrow_mut();
        let used = open_all(&self.session, &mut state, &mut self.opener, &mut buffer[..end])?;
        if let Some(used) = used {
            self.partial.extend_from_slice(&buffer[used..end]);
            Ok(if got == most { Found::Much } else { Found::All })
        } else {
            Ok(Found::End)
        }
    }
}

/// Opens every whole record in `octets`. Answers where the rest begins; `None` if the peer ended its direction.
fn open_all(
    session: &Rc<Session>,
    state: &mut State,
    opener: &mut Opener,
    octets: &mut [u8],
) -> Result<Option<usize>, TunnelError> {
    let mut gather = Gather::new();
    let mut rest = octets;
    let mut used = 0;
    while let Some(end) = Opener::first_record(rest).map_err(|e| TunnelError::record(&e))? {
        let (record, behind) = rest.split_at_mut(end);
        rest = behind;
        used += end;
        match opener.open(record).map_err(|e| TunnelError::record(&e))? {
            Opened::Data(plaintext) => take_in(session, state, plaintext, &mut gather)?,
            Opened::Nothing => {
                if opener.take_owed_update() {
                    state.take_control()?;
                    state.output.update_keys().map_err(|e| TunnelError::record(&e))?;
                }
            }
            Opened::Closed => {
                gather.deliver(state);
                return Ok(None);
            }
        }
    }
    gather.deliver(state);
    Ok(Some(used))
}

/// Takes plaintext in.
fn take_in<'a>(
    session: &Rc<Session>,
    state: &mut State,
    mut plaintext: &'a [u8],
    gather: &mut Gather<'a>,
) -> Result<(), TunnelError> {
    while let Some(event) = state.connection.poll(&mut plaintext).map_err(TunnelError::PeerFault)? {
        match event {
            Event::Data { stream, bytes } => gather.push(state, stream, bytes),
            other => {
                // What came before goes first.
                gather.deliver(state);
                happened(session, state, other)?;
            }
        }
    }
    Ok(())
}

fn happened(session: &Rc<Session>, state: &mut State, event: Event<'_>) -> Result<(), TunnelError> {
    match event {
        Event::Data { .. } => {}
        Event::Request { stream, head, ended } => {
            let receiving = if ended { Receiving::Ended } else { Receiving::Open };
            match head {
                Ok(parts) => {
                    state.slots.insert(stream, Slot::new(receiving));
                    let handle = StreamHandle::new(session.clone(), stream);
                    state.asked.push_back(Asked { handle, parts });
                    if let Some(acceptor) = state.acceptor.take() {
                        acceptor.wake();
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a request is malformed");
                    let none = http::HeaderMap::new();
                    state.connection.respond(stream, StatusCode::BAD_REQUEST, &none, true);
                }
            }
        }
        Event::Response { stream, head, ended } => {
            if let Some(slot) = state.slots.get_mut(&stream) {
                if ended {
                    slot.receiving = Receiving::Ended;
                }
                slot.response = Some(head.map_err(|e| TunnelError::malformed(&e)));
                slot.wake();
            }
        }
        Event::Ended { stream } => receiving(state, stream, Receiving::Ended),
        Event::Reset { stream, code, by_peer } => receiving(state, stream, Receiving::Reset { code, by_peer }),
        Event::Room { stream } => {
            let streams: Vec<_> = match stream {
                Some(stream) => vec![stream],
                None => state.slots.keys().copied().collect(),
            };
            for stream in streams {
                state.send_unsent(stream)?;
                if let Some(slot) = state.slots.get(&stream) {
                    slot.wake();
                }
            }
        }
        Event::GoingAway { last, code } => {
            state.peer_leaving = true;
            session.worse.notify_one();
            if state.connection.role() == Role::Client {
                let lost: Vec<_> = state.slots.keys().copied().filter(|stream| *stream > last).collect();
                for stream in lost {
                    receiving(state, stream, Receiving::Unprocessed(code));
                }
            }
        }
        Event::Pong { .. } => session.pongs.notify_one(),
    }
    Ok(())
}

fn receiving(state: &mut State, stream: StreamId, now: Receiving) {
    if let Some(slot) = state.slots.get_mut(&stream) {
        slot.receiving = now;
        slot.wake();
    }
}
