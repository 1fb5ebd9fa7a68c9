//! SETTINGS (RFC 9113 §6.5): what each end lets the other do.

use super::error::{ErrorCode, Http2Error};
use super::frame::DEFAULT_MAX_FRAME;

const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Window of a peer that says nothing.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// Largest window.
pub(super) const MAX_WINDOW: u32 = 0x7fff_ffff;
/// Streams that are opened at most while the peer has not said how many it allows (hbone.md §6).
const ASSUMED_STREAMS: u32 = 100;

/// What this end tells the other. Sizes are octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Receive window of a stream.
    pub stream_window: u32,
    /// Receive window of the connection.
    pub connection_window: u32,
    /// MAX_FRAME_SIZE.
    pub max_frame_size: u32,
    /// MAX_HEADER_LIST_SIZE.
    pub max_header_list: u32,
    /// MAX_CONCURRENT_STREAMS; of meaning at the server only.
    pub max_streams: u32,
}

impl Config {
    pub(super) fn client(&self) -> [(u16, u32); 4] {
        [
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, self.stream_window),
            (MAX_FRAME_SIZE, self.max_frame_size),
            (MAX_HEADER_LIST_SIZE, self.max_header_list),
        ]
    }

    pub(super) fn server(&self) -> [(u16, u32); 4] {
        [
            (MAX_CONCURRENT_STREAMS, self.max_streams),
            (INITIAL_WINDOW_SIZE, self.stream_window),
            (MAX_FRAME_SIZE, self.max_frame_size),
            (MAX_HEADER_LIST_SIZE, self.max_header_list),
        ]
    }
}

/// What the other end allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerSettings {
    pub(super) max_streams: u32,
    pub(super) initial_window: u32,
    pub(super) max_frame_size: u32,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self { max_streams: ASSUMED_STREAMS, initial_window: DEFAULT_WINDOW, max_frame_size: DEFAULT_MAX_FRAME }
    }
}

impl PeerSettings {
    /// Takes in the payload of one SETTINGS frame; `first` is the peer's first one, in which silence about the number
    /// of streams means that there is no limit.
    pub(super) fn apply(&mut self, payload: &[u8], first: bool) -> Result<(), Http2Error> {
        if !payload.len().is_multiple_of(6) {
            return Err(Http2Error::new(ErrorCode::FRAME_SIZE_ERROR, "SETTINGS of a broken length"));
        }
        if first {
            self.max_streams = u32::MAX;
        }
        for entry in payload.as_chunks::<6>().0 {
            let [a, b, value @ ..] = *entry;
            self.set(u16::from_be_bytes([a, b]), u32::from_be_bytes(value))?;
        }
        Ok(())
    }

    fn set(&mut self, id: u16, value: u32) -> Result<(), Http2Error> {
        match id {
            MAX_CONCURRENT_STREAMS => self.max_streams = value,
            INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                return Err(Http2Error::new(ErrorCode::FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE beyond 2^31-1"));
            }
            INITIAL_WINDOW_SIZE => self.initial_window = value,
            MAX_FRAME_SIZE if !(DEFAULT_MAX_FRAME..=0xff_ffff).contains(&value) => {
                return Err(Http2Error::protocol("MAX_FRAME_SIZE out of range"));
            }
            MAX_FRAME_SIZE => self.max_frame_size = value,
            ENABLE_PUSH if value > 1 => return Err(Http2Error::protocol("ENABLE_PUSH is neither 0 nor 1")),
            // Table and list sizes: our encoder uses no table and our heads are short. The rest is unknown.
            _ => {}
        }
        Ok(())
    }
}
