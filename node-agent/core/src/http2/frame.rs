//! Frame heads and the frames we write (RFC 9113 §4, §6).

use super::error::ErrorCode;

/// Octets of a frame head.
pub const FRAME_HEAD: usize = 9;
/// The client's first octets (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// MAX_FRAME_SIZE of a peer that says nothing.
pub(super) const DEFAULT_MAX_FRAME: u32 = 16_384;

/// Number of a stream. Zero is the connection itself.
pub type StreamId = u32;

/// Frame types.
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub(super) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: StreamId,
}

impl FrameHead {
    pub(super) fn read(bytes: [u8; FRAME_HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            // The highest bit is reserved and passed over.
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    pub(super) fn bytes(self) -> [u8; FRAME_HEAD] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The head of a DATA frame without padding.
pub(super) fn data_head(stream: StreamId, length: usize, end: bool) -> [u8; FRAME_HEAD] {
    let flags = if end { flag::END_STREAM } else { 0 };
    FrameHead { length, kind: kind::DATA, flags, stream }.bytes()
}

fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: StreamId, payload: &[u8]) {
    out.extend_from_slice(&FrameHead { length: payload.len(), kind, flags, stream }.bytes());
    out.extend_from_slice(payload);
}

/// A header block in HEADERS and as many CONTINUATION as the peer's frame size asks for.
pub(super) fn push_headers(out: &mut Vec<u8>, stream: StreamId, block: &[u8], end: bool, max_frame: usize) {
    let mut kind = kind::HEADERS;
    let mut flags = if end { flag::END_STREAM } else { 0 };
    let mut rest = block;
    loop {
        let (part, after) = rest.split_at(rest.len().min(max_frame));
        rest = after;
        let last = if rest.is_empty() { flag::END_HEADERS } else { 0 };
        push(out, kind, flags | last, stream, part);
        if rest.is_empty() {
            return;
        }
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

pub(super) fn push_settings(out: &mut Vec<u8>, values: &[(u16, u32)]) {
    let mut payload = Vec::with_capacity(values.len() * 6);
    for (id, value) in values {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    push(out, kind::SETTINGS, 0, 0, &payload);
}

pub(super) fn push_settings_ack(out: &mut Vec<u8>) {
    push(out, kind::SETTINGS, flag::ACK, 0, &[]);
}

pub(super) fn push_ping(out: &mut Vec<u8>, payload: [u8; 8], ack: bool) {
    push(out, kind::PING, if ack { flag::ACK } else { 0 }, 0, &payload);
}

pub(super) fn push_window_update(out: &mut Vec<u8>, stream: StreamId, more: u32) {
    push(out, kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
}

pub(super) fn push_reset(out: &mut Vec<u8>, stream: StreamId, code: ErrorCode) {
    push(out, kind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
}

pub(super) fn push_end(out: &mut Vec<u8>, stream: StreamId) {
    out.extend_from_slice(&data_head(stream, 0, true));
}

pub(super) fn push_go_away(out: &mut Vec<u8>, last: StreamId, code: ErrorCode, debug: &[u8]) {
    let mut payload = Vec::with_capacity(8 + debug.len());
    payload.extend_from_slice(&last.to_be_bytes());
    payload.extend_from_slice(&code.0.to_be_bytes());
    payload.extend_from_slice(debug);
    push(out, kind::GOAWAY, 0, 0, &payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_written_without_the_reserved_bit() {
        let head = FrameHead { length: 0x01_0203, kind: kind::DATA, flags: 0x9, stream: 0x7fff_fffe };
        assert_eq!(FrameHead::read(head.bytes()), head);
        let mut bytes = head.bytes();
        bytes[5] |= 0x80;
        assert_eq!(FrameHead::read(bytes), head);
    }

    #[test]
    fn a_long_block_is_continued() {
        let mut out = Vec::new();
        push_headers(&mut out, 3, &[7; 25], true, 10);
        let mut seen = Vec::new();
        let mut rest = &out[..];
        while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEAD>() {
            let head = FrameHead::read(*head);
            seen.push((head.kind, head.flags, head.length));
            rest = &after[head.length..];
        }
        assert_eq!(
            seen,
            [
                (kind::HEADERS, flag::END_STREAM, 10),
                (kind::CONTINUATION, 0, 10),
                (kind::CONTINUATION, flag::END_HEADERS, 5)
            ]
        );
    }
}
