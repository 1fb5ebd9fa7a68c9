//! One end of a connection: its state, and what we do. What the peer does is in `received`.

use std::collections::HashMap;

use http::{HeaderMap, Request, StatusCode};

use super::error::{ErrorCode, Http2Error};
use super::frame::{self, FRAME_HEAD, PREFACE, StreamId};
use super::head;
use super::hpack::Decoder;
use super::input::Input;
use super::received::{DataAtHand, HeaderBlock};
use super::settings::{Config, DEFAULT_WINDOW, PeerSettings};
use super::stream::{Half, Stream};
use super::window::{ReceiveWindow, SendWindow};

/// SETTINGS_HEADER_TABLE_SIZE of whoever says nothing (RFC 9113 §6.5.2).
const HEADER_TABLE: usize = 4096;
/// Highest stream number.
const LAST_STREAM: StreamId = 0x7fff_ffff;
/// The PING whose answer ends the first phase of a drain: whatever the peer had sent before it saw GOAWAY has come.
pub(super) const DRAIN_PING: [u8; 8] = *b"wrndrain";

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// How far our own leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Not at all.
    No,
    /// GOAWAY is out; streams that crossed it are still taken.
    Announced,
    /// No new streams.
    Final,
}

/// One end of an HTTP/2 connection.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) peer: PeerSettings,
    /// The peer's first SETTINGS have come.
    pub(super) met: bool,
    pub(super) decoder: Decoder,
    pub(super) input: Input,
    pub(super) block: Option<HeaderBlock>,
    pub(super) data: Option<DataAtHand>,
    pub(super) streams: HashMap<StreamId, Stream>,
    pub(super) send_window: SendWindow,
    pub(super) receive_window: ReceiveWindow,
    /// The next stream that a client opens.
    pub(super) next_stream: StreamId,
    /// Highest stream that the peer opened.
    pub(super) highest: StreamId,
    pub(super) leaving: Leaving,
    /// The peer said GOAWAY.
    pub(super) peer_leaving: bool,
    pub(super) control: Vec<u8>,
    /// Streams that the peer reset before they were answered, less those that were answered since.
    pub(super) hasty_resets: u32,
    /// DATA frames without octets, in a row.
    pub(super) empty_frames: u32,
}

impl Connection {
    /// The client's end. Its preface and SETTINGS wait in [`Self::take_control`].
    pub fn client(config: Config) -> Self {
        let mut control = PREFACE.to_vec();
        frame::push_settings(&mut control, &config.client());
        Self::new(Role::Client, config, control)
    }

    /// The server's end. Its SETTINGS wait in [`Self::take_control`].
    pub fn server(config: Config) -> Self {
        let mut control = Vec::new();
        frame::push_settings(&mut control, &config.server());
        Self::new(Role::Server, config, control)
    }

    fn new(role: Role, config: Config, mut control: Vec<u8>) -> Self {
        // The connection's window is not a setting; it starts at the default and is widened at once.
        let wider = config.connection_window.saturating_sub(DEFAULT_WINDOW);
        if wider > 0 {
            frame::push_window_update(&mut control, 0, wider);
        }
        Self {
            role,
            config,
            peer: PeerSettings::default(),
            met: false,
            decoder: Decoder::new(HEADER_TABLE),
            input: Input::new(role == Role::Server, config.max_frame_size),
            block: None,
            data: None,
            streams: HashMap::new(),
            send_window: SendWindow::new(DEFAULT_WINDOW),
            receive_window: ReceiveWindow::new(config.connection_window.max(DEFAULT_WINDOW)),
            next_stream: 1,
            highest: 0,
            leaving: Leaving::No,
            peer_leaving: false,
            control,
            hasty_resets: 0,
            empty_frames: 0,
        }
    }

    /// Whole frames that must be sent, before any DATA that is made later.
    pub fn take_control(&mut self) -> Option<Vec<u8>> {
        (!self.control.is_empty()).then(|| std::mem::take(&mut self.control))
    }

    /// Whether [`Self::take_control`] has something.
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Which end this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Streams that are not over.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether a stream is not over yet.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// How many streams the peer lets us open.
    pub fn peer_max_streams(&self) -> u32 {
        self.peer.max_streams
    }

    /// Whether the peer's SETTINGS have come.
    pub fn has_met_peer(&self) -> bool {
        self.met
    }

    /// Whether a client may open a stream now.
    pub fn may_open(&self) -> bool {
        let few = u32::try_from(self.streams.len()).is_ok_and(|open| open < self.peer.max_streams);
        few && !self.peer_leaving && self.leaving == Leaving::No && self.next_stream < LAST_STREAM
    }

    /// Opens a stream with a CONNECT request; `None` where [`Self::may_open`] says no.
    pub fn open(&mut self, request: &Request<()>) -> Option<StreamId> {
        if !self.may_open() {
            return None;
        }
        let stream = self.next_stream;
        self.next_stream += 2;
        let mut block = Vec::with_capacity(512);
        head::write_connect(request, &mut block);
        frame::push_headers(&mut self.control, stream, &block, false, self.peer.max_frame_size as usize);
        self.streams.insert(stream, self.stream(Half::Open, Half::Head));
        Some(stream)
    }

    pub(super) fn stream(&self, sending: Half, receiving: Half) -> Stream {
        Stream {
            send_window: SendWindow::new(self.peer.initial_window),
            receive_window: ReceiveWindow::new(self.config.stream_window),
            sending,
            receiving,
        }
    }

    /// Answers a request, and with `end` that is all. False if the stream is gone or was answered.
    pub fn respond(&mut self, stream: StreamId, status: StatusCode, headers: &HeaderMap, end: bool) -> bool {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.sending == Half::Head) else {
            return false;
        };
        state.sending = if end { Half::Ended } else { Half::Open };
        self.hasty_resets = self.hasty_resets.saturating_sub(1);
        let mut block = Vec::with_capacity(256);
        head::write_response(status, headers, &mut block);
        frame::push_headers(&mut self.control, stream, &block, end, self.peer.max_frame_size as usize);
        if end && state.receiving != Half::Ended {
            // Whatever the client still sends is of no use to anybody (RFC 9113 §8.1).
            frame::push_reset(&mut self.control, stream, ErrorCode::NO_ERROR);
            self.streams.remove(&stream);
        } else {
            self.forget_if_over(stream);
        }
        true
    }

    /// Octets of DATA that may be sent on a stream now; `None` if it cannot carry any more.
    pub fn room(&self, stream: StreamId) -> Option<usize> {
        let state = self.streams.get(&stream).filter(|state| state.sending == Half::Open)?;
        Some(state.send_window.available().min(self.send_window.available()))
    }

    /// Largest DATA frame that the peer takes.
    pub fn max_data(&self) -> usize {
        self.peer.max_frame_size as usize
    }

    /// The head of a DATA frame of `length` octets, which are spent; at most [`Self::room`] and [`Self::max_data`].
    pub fn data_head(&mut self, stream: StreamId, length: usize) -> [u8; FRAME_HEAD] {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.send_window.spend(length);
        }
        self.send_window.spend(length);
        frame::data_head(stream, length, false)
    }

    /// Ends our direction of a stream.
    pub fn end(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.sending == Half::Open) else { return };
        state.sending = Half::Ended;
        frame::push_end(&mut self.control, stream);
        self.forget_if_over(stream);
    }

    /// Ends a stream in both directions.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if self.streams.remove(&stream).is_some() {
            frame::push_reset(&mut self.control, stream, code);
        }
    }

    /// Gives credit back for octets of a stream that were taken, or thrown away with it.
    pub fn consumed(&mut self, stream: StreamId, octets: usize) {
        if let Some(state) = self.streams.get_mut(&stream).filter(|state| state.receiving == Half::Open)
            && let Some(more) = state.receive_window.consume(octets)
        {
            frame::push_window_update(&mut self.control, stream, more);
        }
        self.consumed_unread(octets);
    }

    /// Gives the connection's credit back for octets that no stream takes.
    pub(super) fn consumed_unread(&mut self, octets: usize) {
        if let Some(more) = self.receive_window.consume(octets) {
            frame::push_window_update(&mut self.control, 0, more);
        }
    }

    /// Asks for a sign of life.
    pub fn ping(&mut self, payload: [u8; 8]) {
        frame::push_ping(&mut self.control, payload, false);
    }

    /// Says that no new streams are wanted; those that are open go on. A server still takes what the peer sent before
    /// it heard.
    pub fn drain(&mut self) {
        if self.leaving != Leaving::No {
            return;
        }
        match self.role {
            Role::Client => {
                self.leaving = Leaving::Final;
                frame::push_go_away(&mut self.control, 0, ErrorCode::NO_ERROR, &[]);
            }
            Role::Server => {
                self.leaving = Leaving::Announced;
                frame::push_go_away(&mut self.control, LAST_STREAM, ErrorCode::NO_ERROR, &[]);
                frame::push_ping(&mut self.control, DRAIN_PING, false);
            }
        }
    }

    /// Whether nothing is left to be done: a drain is through and no stream is open.
    pub fn is_drained(&self) -> bool {
        self.leaving == Leaving::Final && self.streams.is_empty()
    }

    /// Says why the connection ends now.
    pub fn go_away(&mut self, code: ErrorCode, reason: &str) {
        self.leaving = Leaving::Final;
        let last = match self.role {
            Role::Client => 0,
            Role::Server => self.highest,
        };
        frame::push_go_away(&mut self.control, last, code, reason.as_bytes());
    }

    /// Ends the connection for a fault of the peer's.
    pub fn fail(&mut self, error: &Http2Error) {
        self.go_away(error.code, error.reason);
    }

    pub(super) fn forget_if_over(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(Stream::is_over) {
            self.streams.remove(&stream);
        }
    }
}
