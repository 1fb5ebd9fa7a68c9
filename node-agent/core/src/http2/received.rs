//! What the peer does, frame by frame.

use super::connection::{Connection, DRAIN_PING, Leaving, Role};
use super::error::{ErrorCode, Http2Error};
use super::event::Event;
use super::frame::{self, FrameHead, StreamId, flag, kind};
use super::head;
use super::input::Piece;
use super::stream::Half;

/// Control frames that may wait for a peer that does not read while it makes us answer.
const MOST_CONTROL: usize = 256 * 1024;
/// A header block may be this much longer than the list it spells, before it is refused undecoded.
const BLOCK_SLACK: usize = 16 * 1024;
/// HEADERS and CONTINUATION frames of one block.
const MOST_FRAMES_OF_A_BLOCK: u32 = 128;
/// Streams that a client may open and reset before they are answered, more than it lets be answered (CVE-2023-44487).
const MOST_HASTY_RESETS: u32 = 1000;
/// DATA frames without octets in a row: they cost us, and the peer next to nothing.
const MOST_EMPTY_FRAMES: u32 = 1000;

/// A header block under way.
#[derive(Debug, Clone)]
pub(super) struct HeaderBlock {
    stream: StreamId,
    ended: bool,
    octets: Vec<u8>,
    frames: u32,
}

/// A DATA frame under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct DataAtHand {
    /// Nobody wants it.
    discard: bool,
    /// Octets of the frame that flow control has counted and nobody has been given: at its end, padding.
    uncredited: usize,
}

impl Connection {
    /// Takes in octets from the peer until something has happened that the owner must know; `None` when they are used
    /// up. An error ends the connection: [`Connection::fail`], send, close.
    pub fn poll<'a>(&mut self, octets: &mut &'a [u8]) -> Result<Option<Event<'a>>, Http2Error> {
        loop {
            if self.control.len() > MOST_CONTROL {
                return Err(Http2Error::new(ErrorCode::ENHANCE_YOUR_CALM, "answers pile up unread"));
            }
            let Some(piece) = self.input.next(octets)? else { return Ok(None) };
            let event = match piece {
                Piece::DataHead { head } => self.data_begins(head)?,
                Piece::Data { head, bytes } => self.data(head.stream, bytes),
                Piece::DataEnd { head } => self.data_is_over(head),
                Piece::Whole { head } => {
                    let payload = self.input.payload();
                    let event = self.frame(head, &payload);
                    self.input.recycle(payload);
                    event?
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Rules that hold for every frame, before it is looked into.
    fn admit(&self, head: FrameHead) -> Result<(), Http2Error> {
        if !self.met && head.kind != kind::SETTINGS {
            return Err(Http2Error::protocol("the first frame is not SETTINGS"));
        }
        match &self.block {
            Some(block) if head.kind != kind::CONTINUATION || head.stream != block.stream => {
                Err(Http2Error::protocol("a header block is interrupted"))
            }
            None if head.kind == kind::CONTINUATION => Err(Http2Error::protocol("CONTINUATION of nothing")),
            _ => Ok(()),
        }
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        self.admit(head)?;
        match head.kind {
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::RST_STREAM => self.reset_by_peer(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PUSH_PROMISE => Err(Http2Error::protocol("PUSH_PROMISE")),
            kind::PING => self.pinged(head, payload),
            kind::GOAWAY => self.peer_goes_away(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::PRIORITY if payload.len() != 5 => Err(wrong_size("PRIORITY")),
            // PRIORITY means nothing any more, and unknown frames are passed over (RFC 9113 §5.3.2, §4.1).
            _ => Ok(None),
        }
    }

    /// Whether a stream has never been opened.
    fn is_idle(&self, stream: StreamId) -> bool {
        match self.role {
            Role::Client => stream.is_multiple_of(2) || stream >= self.next_stream,
            Role::Server => stream.is_multiple_of(2) || stream > self.highest,
        }
    }

    fn not_idle(&self, stream: StreamId) -> Result<(), Http2Error> {
        if self.is_idle(stream) { Err(Http2Error::protocol("a frame on an idle stream")) } else { Ok(()) }
    }

    fn data_begins(&mut self, head: FrameHead) -> Result<Option<Event<'static>>, Http2Error> {
        self.admit(head)?;
        self.not_idle(head.stream)?;
        if !self.receive_window.receive(head.length) {
            return Err(Http2Error::new(ErrorCode::FLOW_CONTROL_ERROR, "more than the connection's window"));
        }
        self.empty_frames = if head.length == 0 && !head.has(flag::END_STREAM) { self.empty_frames + 1 } else { 0 };
        if self.empty_frames > MOST_EMPTY_FRAMES {
            return Err(Http2Error::new(ErrorCode::ENHANCE_YOUR_CALM, "empty DATA frames without end"));
        }
        let fault = match self.streams.get_mut(&head.stream) {
            None => None,
            Some(stream) => match stream.receiving {
                Half::Head => Some(ErrorCode::PROTOCOL_ERROR),
                Half::Ended => Some(ErrorCode::STREAM_CLOSED),
                Half::Open if stream.receive_window.receive(head.length) => {
                    self.data = Some(DataAtHand { discard: false, uncredited: head.length });
                    return Ok(None);
                }
                Half::Open => Some(ErrorCode::FLOW_CONTROL_ERROR),
            },
        };
        self.data = Some(DataAtHand { discard: true, uncredited: head.length });
        Ok(fault.and_then(|code| self.reset_by_us(head.stream, code)))
    }

    fn data<'a>(&mut self, stream: StreamId, bytes: &'a [u8]) -> Option<Event<'a>> {
        let data = self.data.as_mut()?;
        data.uncredited = data.uncredited.saturating_sub(bytes.len());
        if data.discard || !self.streams.contains_key(&stream) {
            self.consumed_unread(bytes.len());
            return None;
        }
        Some(Event::Data { stream, bytes })
    }

    fn data_is_over(&mut self, head: FrameHead) -> Option<Event<'static>> {
        let data = self.data.take()?;
        if data.uncredited > 0 {
            self.consumed(head.stream, data.uncredited);
        }
        if data.discard || !head.has(flag::END_STREAM) {
            return None;
        }
        self.ended_by_peer(head.stream)
    }

    fn ended_by_peer(&mut self, stream: StreamId) -> Option<Event<'static>> {
        self.streams.get_mut(&stream)?.receiving = Half::Ended;
        self.forget_if_over(stream);
        Some(Event::Ended { stream })
    }

    fn reset_by_us(&mut self, stream: StreamId, code: ErrorCode) -> Option<Event<'static>> {
        self.reset(stream, code);
        Some(Event::Reset { stream, code, by_peer: false })
    }

    fn headers(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        if head.stream == 0 {
            return Err(Http2Error::protocol("HEADERS on stream 0"));
        }
        let octets = without_padding(head, payload)?;
        let octets = match head.has(flag::PRIORITY) {
            true => octets.get(5..).ok_or(wrong_size("HEADERS"))?,
            false => octets,
        };
        self.block = Some(HeaderBlock {
            stream: head.stream,
            ended: head.has(flag::END_STREAM),
            octets: octets.to_vec(),
            frames: 0,
        });
        self.block_so_far(head)
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        if let Some(block) = &mut self.block {
            block.octets.extend_from_slice(payload);
        }
        self.block_so_far(head)
    }

    fn block_so_far(&mut self, head: FrameHead) -> Result<Option<Event<'static>>, Http2Error> {
        let most = self.config.max_header_list as usize + BLOCK_SLACK;
        let Some(mut block) = self.block.take() else { return Ok(None) };
        block.frames += 1;
        if block.octets.len() > most || block.frames > MOST_FRAMES_OF_A_BLOCK {
            return Err(Http2Error::new(ErrorCode::ENHANCE_YOUR_CALM, "a header block without measure"));
        }
        if !head.has(flag::END_HEADERS) {
            self.block = Some(block);
            return Ok(None);
        }
        match self.role {
            Role::Server => self.request(&block),
            Role::Client => self.response(&block),
        }
    }

    fn request(&mut self, block: &HeaderBlock) -> Result<Option<Event<'static>>, Http2Error> {
        let limit = self.config.max_header_list as usize;
        // Decoded whatever becomes of it: the tables of both ends must agree.
        let head = head::read_request(&mut self.decoder, &block.octets, limit)?;
        let stream = block.stream;
        if stream.is_multiple_of(2) {
            return Err(Http2Error::protocol("a client's stream with an even number"));
        }
        if stream <= self.highest {
            return Ok(self.trailers(block));
        }
        if self.leaving == Leaving::Final {
            return Ok(None);
        }
        self.highest = stream;
        if self.streams.len() >= self.config.max_streams as usize {
            frame::push_reset(&mut self.control, stream, ErrorCode::REFUSED_STREAM);
            return Ok(None);
        }
        let receiving = if block.ended { Half::Ended } else { Half::Open };
        self.streams.insert(stream, self.stream(Half::Head, receiving));
        Ok(Some(Event::Request { stream, head: head.map(Box::new), ended: block.ended }))
    }

    fn response(&mut self, block: &HeaderBlock) -> Result<Option<Event<'static>>, Http2Error> {
        let limit = self.config.max_header_list as usize;
        let head = head::read_response(&mut self.decoder, &block.octets, limit)?;
        let stream = block.stream;
        self.not_idle(stream)?;
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(None) };
        if state.receiving != Half::Head {
            return Ok(self.trailers(block));
        }
        // 1xx announces, the answer is still to come.
        if head.as_ref().is_ok_and(|(status, _)| status.is_informational()) && !block.ended {
            return Ok(None);
        }
        state.receiving = if block.ended { Half::Ended } else { Half::Open };
        self.forget_if_over(stream);
        Ok(Some(Event::Response { stream, head: head.map(Box::new), ended: block.ended }))
    }

    /// A second header block: it may only end the stream.
    fn trailers(&mut self, block: &HeaderBlock) -> Option<Event<'static>> {
        let state = self.streams.get(&block.stream)?;
        if block.ended && state.receiving == Half::Open {
            return self.ended_by_peer(block.stream);
        }
        self.reset_by_us(block.stream, ErrorCode::PROTOCOL_ERROR)
    }

    fn reset_by_peer(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        let code = ErrorCode(u32::from_be_bytes(payload.try_into().map_err(|_| wrong_size("RST_STREAM"))?));
        let stream = head.stream;
        self.not_idle(stream)?;
        let Some(state) = self.streams.remove(&stream) else { return Ok(None) };
        if self.role == Role::Server && state.sending == Half::Head {
            self.hasty_resets += 1;
            if self.hasty_resets > MOST_HASTY_RESETS {
                return Err(Http2Error::new(ErrorCode::ENHANCE_YOUR_CALM, "streams are opened only to be reset"));
            }
        }
        Ok(Some(Event::Reset { stream, code, by_peer: true }))
    }

    fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        if head.stream != 0 {
            return Err(Http2Error::protocol("SETTINGS on a stream"));
        }
        if head.has(flag::ACK) {
            return if payload.is_empty() { Ok(None) } else { Err(wrong_size("SETTINGS")) };
        }
        let before = i64::from(self.peer.initial_window);
        self.peer.apply(payload, !self.met)?;
        self.met = true;
        let change = i64::from(self.peer.initial_window) - before;
        for stream in self.streams.values_mut() {
            stream.send_window.shift(change)?;
        }
        frame::push_settings_ack(&mut self.control);
        Ok(Some(Event::Room { stream: None }))
    }

    fn pinged(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        let payload: [u8; 8] = payload.try_into().map_err(|_| wrong_size("PING"))?;
        if head.stream != 0 {
            return Err(Http2Error::protocol("PING on a stream"));
        }
        if !head.has(flag::ACK) {
            frame::push_ping(&mut self.control, payload, true);
            return Ok(None);
        }
        if payload == DRAIN_PING && self.leaving == Leaving::Announced {
            self.leaving = Leaving::Final;
            frame::push_go_away(&mut self.control, self.highest, ErrorCode::NO_ERROR, &[]);
        }
        Ok(Some(Event::Pong { payload }))
    }

    fn peer_goes_away(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        if head.stream != 0 {
            return Err(Http2Error::protocol("GOAWAY on a stream"));
        }
        let (last, rest) = payload.split_first_chunk().ok_or(wrong_size("GOAWAY"))?;
        let (code, _debug) = rest.split_first_chunk().ok_or(wrong_size("GOAWAY"))?;
        let last = u32::from_be_bytes(*last) & 0x7fff_ffff;
        self.peer_leaving = true;
        if self.role == Role::Client {
            self.streams.retain(|stream, _| *stream <= last);
        }
        Ok(Some(Event::GoingAway { last, code: ErrorCode(u32::from_be_bytes(*code)) }))
    }

    fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<Option<Event<'static>>, Http2Error> {
        let more = u32::from_be_bytes(payload.try_into().map_err(|_| wrong_size("WINDOW_UPDATE"))?) & 0x7fff_ffff;
        if head.stream == 0 {
            if more == 0 {
                return Err(Http2Error::protocol("a WINDOW_UPDATE of nothing"));
            }
            self.send_window.grow(more)?;
            return Ok(Some(Event::Room { stream: None }));
        }
        self.not_idle(head.stream)?;
        let Some(stream) = self.streams.get_mut(&head.stream) else { return Ok(None) };
        if more == 0 {
            return Ok(self.reset_by_us(head.stream, ErrorCode::PROTOCOL_ERROR));
        }
        match stream.send_window.grow(more) {
            Ok(()) => Ok(Some(Event::Room { stream: Some(head.stream) })),
            Err(error) => Ok(self.reset_by_us(head.stream, error.code)),
        }
    }
}

fn wrong_size(frame: &'static str) -> Http2Error {
    Http2Error::new(ErrorCode::FRAME_SIZE_ERROR, frame)
}

fn without_padding(head: FrameHead, payload: &[u8]) -> Result<&[u8], Http2Error> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(wrong_size("HEADERS"))?;
    let kept = rest.len().checked_sub(usize::from(*padding)).ok_or(Http2Error::protocol("more padding than frame"))?;
    Ok(&rest[..kept])
}
