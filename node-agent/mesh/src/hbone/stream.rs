//! One tunnelled connection: a CONNECT stream, as its line sees it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, StatusCode};
use tokio::net::TcpStream;
use warren_core::http2::{ErrorCode, ResponseHead, StreamId};

use super::error::TunnelError;
use super::session::{HEAVY, Session, State};
use super::slot::{Attached, Receiving, Slot};
use super::tunnel::StreamGuard;
use crate::copy::ByteCounts;
use crate::ready;
use crate::tls::{PeerFacts, SharedPeer};

/// Payload taken from the application at once, at most.
const MOST_READ: usize = 256 * 1024;

/// Payload taken at once from an application that sends little.
const LITTLE: usize = 8 * 1024;

/// Why a stream carries nothing more.
#[derive(Debug, Clone)]
pub(crate) enum StreamEnd {
    /// Reset, by the peer or for a fault of its.
    Reset(ErrorCode),
    /// Its connection is over.
    Broken(TunnelError),
}

/// Why what arrived cannot be delivered.
#[derive(Debug)]
pub(crate) enum DeliveryEnd {
    /// The peer's side failed; everything that came before has been delivered.
    Stream(StreamEnd),
    /// The application's socket did.
    App(io::Error),
}

/// A stream of a session. Dropped, what is left of it is reset.
pub(super) struct StreamHandle {
    session: Rc<Session>,
    id: StreamId,
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.session.state.borrow_mut().forget(self.id, ErrorCode::CANCEL);
    }
}

impl StreamHandle {
    pub(super) fn new(session: Rc<Session>, id: StreamId) -> Self {
        Self { session, id }
    }

    /// Sends octets that are at hand.
    pub(super) fn send(&self, octets: &[u8]) -> Result<(), TunnelError> {
        let mut state = self.session.state.borrow_mut();
        state.send(self.id, octets)?;
        state.has_work();
        Ok(())
    }

    /// The answer to the request.
    pub(super) fn poll_response(&self, cx: &Context<'_>) -> Poll<Result<Box<ResponseHead>, TunnelError>> {
        let mut state = self.session.state.borrow_mut();
        let over = state.over.clone();
        let Some(slot) = state.slots.get_mut(&self.id) else {
            return Poll::Ready(Err(over.unwrap_or_else(TunnelError::closed_by_peer)));
        };
        if let Some(response) = slot.response.take() {
            return Poll::Ready(response);
        }
        match (slot.receiving, over) {
            (Receiving::Reset { code, by_peer }, _) => Poll::Ready(Err(TunnelError::reset(code, by_peer))),
            (Receiving::Unprocessed(code), _) => Poll::Ready(Err(TunnelError::unprocessed(code))),
            (_, Some(over)) => Poll::Ready(Err(over)),
            _ => {
                slot.watch(cx);
                Poll::Pending
            }
        }
    }

    /// Answers the request. False if the stream is gone.
    pub(super) fn respond(&self, status: StatusCode, headers: &HeaderMap, end: bool) -> bool {
        let mut state = self.session.state.borrow_mut();
        let answered = state.connection.respond(self.id, status, headers, end);
        state.has_work();
        answered
    }

    /// Resets the stream with a code of one's own.
    pub(super) fn reset(&self, code: ErrorCode) {
        let mut state = self.session.state.borrow_mut();
        state.connection.reset(self.id, code);
        state.has_work();
    }

    /// Waits until the stream cannot go on.
    pub(super) fn poll_stopped(&self, cx: &Context<'_>) -> Poll<StreamEnd> {
        let mut state = self.session.state.borrow_mut();
        match state.stopped(self.id) {
            Some(end) => Poll::Ready(end),
            None => {
                state.watch(self.id, cx);
                Poll::Pending
            }
        }
    }
}

impl State {
    fn watch(&mut self, stream: StreamId, cx: &Context<'_>) {
        if let Some(slot) = self.slots.get_mut(&stream) {
            slot.watch(cx);
        }
    }

    fn stopped(&self, stream: StreamId) -> Option<StreamEnd> {
        let receiving = self.slots.get(&stream).map(|slot| slot.receiving);
        match receiving {
            Some(Receiving::Reset { code, .. } | Receiving::Unprocessed(code)) => Some(StreamEnd::Reset(code)),
            // Both directions have ended: what becomes of the connection is of no consequence.
            Some(Receiving::Ended) if !self.connection.is_open(stream) => None,
            _ => self.over.clone().map(StreamEnd::Broken),
        }
    }

    /// Octets of payload that a stream may take from its application now.
    fn poll_room(&mut self, stream: StreamId, cx: &Context<'_>) -> Poll<Result<usize, StreamEnd>> {
        if let Some(end) = self.stopped(stream) {
            return Poll::Ready(Err(end));
        }
        let room = match self.connection.room(stream) {
            Some(room) => room,
            None => return Poll::Ready(Err(StreamEnd::Reset(ErrorCode::STREAM_CLOSED))),
        };
        let congested = self.output.is_congested();
        let Some(slot) = self.slots.get_mut(&stream) else {
            return Poll::Ready(Err(StreamEnd::Reset(ErrorCode::STREAM_CLOSED)));
        };
        if room > 0 && !congested && slot.unsent.is_empty() {
            return Poll::Ready(Ok(room.min(MOST_READ)));
        }
        slot.watch(cx);
        if congested && !self.waiting.contains(&stream) {
            self.waiting.push(stream);
        }
        Poll::Pending
    }
}

/// An open CONNECT stream, either role: 200 has been sent or received. The copy
/// loop takes it; dropping it unfinished resets the stream.
pub struct HboneStream {
    pub(super) handle: StreamHandle,
    pub(super) peer: SharedPeer,
    /// Bytes of the application already sent along with CONNECT.
    pub(super) early_sent: u64,
    /// The application has ended its direction already; END_STREAM is due.
    pub(crate) app_ended: bool,
    /// The last read had a lot.
    pub(super) sends_much: Cell<bool>,
    /// Client side: keeps the pooled connection's stream count.
    pub(super) _guard: Option<StreamGuard>,
}

impl HboneStream {
    /// What the handshake proved about the peer.
    pub fn peer(&self) -> &Arc<PeerFacts> {
        &self.peer
    }

    /// Bytes of the application that went out with CONNECT.
    pub fn early_sent(&self) -> u64 {
        self.early_sent
    }

    /// Lets what arrives be written to the application at once, and counted.
    pub(crate) fn attach(&self, app: Rc<TcpStream>, bytes: Arc<ByteCounts>) {
        if let Some(slot) = self.handle.session.state.borrow_mut().slots.get_mut(&self.handle.id) {
            slot.attached = Some(Attached { app, bytes });
        }
    }

    /// Waits until payload may be taken from the application: so many octets at most.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<Result<usize, StreamEnd>> {
        self.handle.session.state.borrow_mut().poll_room(self.handle.id, cx)
    }

    /// Waits until the stream cannot go on.
    pub(crate) fn poll_stopped(&self, cx: &Context<'_>) -> Poll<StreamEnd> {
        self.handle.poll_stopped(cx)
    }

    /// Takes what the application has, at most `room` octets, into the tunnel. `Ok(0)` is its end, `WouldBlock` says
    /// that it has nothing.
    pub(crate) fn read_from(&self, app: &TcpStream, room: usize) -> Result<io::Result<usize>, StreamEnd> {
        let session = &self.handle.session;
        let mut state = session.state.borrow_mut();
        // A write has been told of the reset, and the kernel tells of it once: a read would find a clean end.
        let broken = |slot: &Slot| slot.app_broken.as_ref().map(|error| io::Error::from(error.kind()));
        if let Some(error) = state.slots.get(&self.handle.id).and_then(broken) {
            return Ok(Err(error));
        }
        // One record's worth is one plain read, which costs less: enough for those who send little at a time.
        let room = if self.sends_much.get() { room } else { room.min(LITTLE) };
        let read = state.read_payload(self.handle.id, room, |slices| ready::read_vectored(app, slices));
        let read = read.map_err(StreamEnd::Broken)?;
        if let Ok(length @ 1..) = read {
            self.sends_much.set(length >= LITTLE / 2);
            if length >= HEAVY {
                session.is_heavy_now();
            }
            if state.output.is_large() {
                // A failure is the driver's to find: it reads first what the peer had to say about it.
                let _ = state.flush(&session.tcp);
                if !state.output.is_empty() {
                    state.has_work();
                }
            } else {
                state.has_work();
            }
        }
        Ok(read)
    }

    /// Ends our direction.
    pub(crate) fn end(&self) {
        let mut state = self.handle.session.state.borrow_mut();
        state.connection.end(self.handle.id);
        state.has_work();
    }

    /// Resets the stream.
    pub(crate) fn reset(&self, code: ErrorCode) {
        self.handle.reset(code);
    }

    /// Writes to the application what has arrived for it and was not written at once; ready when the peer has ended its
    /// direction and all is written.
    pub(crate) fn poll_deliver(&self, app: &TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), DeliveryEnd>> {
        let mut state = self.handle.session.state.borrow_mut();
        loop {
            let over = state.over.clone();
            let Some(slot) = state.slots.get_mut(&self.handle.id) else {
                return Poll::Ready(Err(DeliveryEnd::Stream(StreamEnd::Reset(ErrorCode::STREAM_CLOSED))));
            };
            if let Some(error) = slot.app_broken.take() {
                return Poll::Ready(Err(DeliveryEnd::App(error)));
            }
            if slot.backlog.is_empty() {
                return match (slot.receiving, over) {
                    // The peer is done with the stream and found no fault with it.
                    (Receiving::Ended | Receiving::Reset { code: ErrorCode::NO_ERROR, .. }, _) => Poll::Ready(Ok(())),
                    (Receiving::Reset { code, .. } | Receiving::Unprocessed(code), _) => {
                        Poll::Ready(Err(DeliveryEnd::Stream(StreamEnd::Reset(code))))
                    }
                    (Receiving::Open, Some(over)) => Poll::Ready(Err(DeliveryEnd::Stream(StreamEnd::Broken(over)))),
                    (Receiving::Open, None) => {
                        slot.watch(cx);
                        Poll::Pending
                    }
                };
            }
            match app.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(DeliveryEnd::App(error))),
                Poll::Pending => {
                    slot.watch(cx);
                    return Poll::Pending;
                }
            }
            match write_backlog(slot, app) {
                Ok(written) => {
                    state.connection.consumed(self.handle.id, written);
                    if state.connection.has_control() {
                        state.has_work();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(DeliveryEnd::App(error))),
            }
        }
    }
}

fn write_backlog(slot: &mut Slot, app: &TcpStream) -> io::Result<usize> {
    let (first, second) = slot.backlog.as_slices();
    let written = app.try_write_vectored(&[io::IoSlice::new(first), io::IoSlice::new(second)])?;
    slot.advance(written);
    if let Some(attached) = &slot.attached {
        attached.bytes.add_to_app(written);
    }
    Ok(written)
}

#[cfg(test)]
impl HboneStream {
    /// Sends octets without an application.
    pub(crate) fn send_bytes(&self, octets: &[u8]) {
        self.handle.send(octets).unwrap();
    }

    /// What has arrived; `None` at the end, whichever way.
    pub(crate) async fn next_bytes(&self) -> Option<Vec<u8>> {
        std::future::poll_fn(|cx| {
            let mut state = self.handle.session.state.borrow_mut();
            let over = state.over.is_some();
            let Some(slot) = state.slots.get_mut(&self.handle.id) else { return Poll::Ready(None) };
            if slot.backlog.is_empty() {
                if over || slot.receiving != Receiving::Open {
                    return Poll::Ready(None);
                }
                slot.watch(cx);
                return Poll::Pending;
            }
            let bytes: Vec<u8> = slot.backlog.drain(..).collect();
            state.connection.consumed(self.handle.id, bytes.len());
            state.has_work();
            Poll::Ready(Some(bytes))
        })
        .await
    }

    /// As if it had moved a lot.
    pub(crate) fn is_heavy_now(&self) {
        self.handle.session.is_heavy_now();
    }

    /// Waits until both directions have ended.
    pub(crate) async fn gone(&self) {
        while self.handle.session.state.borrow().connection.room(self.handle.id).is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}
