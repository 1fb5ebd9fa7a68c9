//! Cuts what arrives into frames, wherever the pieces begin and end.

use super::error::{ErrorCode, Http2Error};
use super::frame::{FRAME_HEAD, FrameHead, PREFACE, flag, kind};

/// Largest frame other than DATA that is put together. Header blocks are bounded by their own limit besides.
const LARGEST_WHOLE: usize = 64 * 1024;

/// A piece of what arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// The head of a DATA frame; its octets follow. Flow control counts `length`, padding included.
    DataHead { head: FrameHead },
    /// Octets of the DATA frame at hand.
    Data { head: FrameHead, bytes: &'a [u8] },
    /// The DATA frame at hand is over.
    DataEnd { head: FrameHead },
    /// Any other frame, whole; its payload is in [`Input::payload`].
    Whole { head: FrameHead },
}

/// Where we are within the octets that arrive.
#[derive(Debug, Clone)]
enum At {
    /// So many octets of the preface have come.
    Preface(usize),
    /// Within a frame head.
    Head { bytes: [u8; FRAME_HEAD], have: usize },
    /// Before the padding length of a DATA frame.
    PadLength { head: FrameHead },
    /// Within DATA: what is left of octets and of padding.
    Data { head: FrameHead, left: usize, padding: usize },
    /// Within another frame.
    Whole { head: FrameHead },
}

const BETWEEN: At = At::Head { bytes: [0; FRAME_HEAD], have: 0 };

/// The incoming half of a connection, before any meaning.
#[derive(Debug, Clone)]
pub(super) struct Input {
    at: At,
    max_frame: usize,
    payload: Vec<u8>,
}

impl Input {
    /// `preface`: whether the client's preface comes first. Frames above `max_frame` are an error.
    pub(super) fn new(preface: bool, max_frame: u32) -> Self {
        let at = if preface { At::Preface(0) } else { BETWEEN };
        Self { at, max_frame: max_frame as usize, payload: Vec::new() }
    }

    /// Payload of the last [`Piece::Whole`].
    pub(super) fn payload(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.payload)
    }

    /// Gives a payload's allocation back for the next frame.
    pub(super) fn recycle(&mut self, mut payload: Vec<u8>) {
        if payload.capacity() <= 4096 {
            payload.clear();
            self.payload = payload;
        }
    }

    /// The next piece; `None` when the octets are used up.
    pub(super) fn next<'a>(&mut self, octets: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Http2Error> {
        loop {
            match &mut self.at {
                At::Preface(have) => {
                    let take = octets.len().min(PREFACE.len() - *have);
                    let (part, rest) = octets.split_at(take);
                    if part != &PREFACE[*have..*have + take] {
                        return Err(Http2Error::protocol("the preface is not HTTP/2's"));
                    }
                    *octets = rest;
                    *have += take;
                    if *have < PREFACE.len() {
                        return Ok(None);
                    }
                    self.at = BETWEEN;
                }
                At::Head { bytes, have } => {
                    let take = octets.len().min(FRAME_HEAD - *have);
                    let (part, rest) = octets.split_at(take);
                    bytes[*have..*have + take].copy_from_slice(part);
                    *octets = rest;
                    *have += take;
                    if *have < FRAME_HEAD {
                        return Ok(None);
                    }
                    let head = FrameHead::read(*bytes);
                    if let Some(piece) = self.begin(head)? {
                        return Ok(Some(piece));
                    }
                }
                At::PadLength { head } => {
                    let head = *head;
                    let Some((first, rest)) = octets.split_first() else { return Ok(None) };
                    *octets = rest;
                    let padding = usize::from(*first);
                    let left = (head.length - 1)
                        .checked_sub(padding)
                        .ok_or(Http2Error::protocol("more padding than frame"))?;
                    self.at = At::Data { head, left, padding };
                }
                At::Data { head, left: 0, padding: 0 } => {
                    let head = *head;
                    self.at = BETWEEN;
                    return Ok(Some(Piece::DataEnd { head }));
                }
                At::Data { .. } if octets.is_empty() => return Ok(None),
                At::Data { left: 0, padding, .. } => {
                    let take = octets.len().min(*padding);
                    *octets = &octets[take..];
                    *padding -= take;
                }
                At::Data { head, left, .. } => {
                    let (bytes, rest) = octets.split_at(octets.len().min(*left));
                    *octets = rest;
                    *left -= bytes.len();
                    return Ok(Some(Piece::Data { head: *head, bytes }));
                }
                At::Whole { head } => {
                    let head = *head;
                    let (part, rest) = octets.split_at(octets.len().min(head.length - self.payload.len()));
                    self.payload.extend_from_slice(part);
                    *octets = rest;
                    if self.payload.len() < head.length {
                        return Ok(None);
                    }
                    self.at = BETWEEN;
                    return Ok(Some(Piece::Whole { head }));
                }
            }
        }
    }

    /// A head is complete: what comes behind it?
    fn begin(&mut self, head: FrameHead) -> Result<Option<Piece<'static>>, Http2Error> {
        if head.length > self.max_frame {
            return Err(Http2Error::new(ErrorCode::FRAME_SIZE_ERROR, "a frame above MAX_FRAME_SIZE"));
        }
        if head.kind == kind::DATA {
            let padded = head.has(flag::PADDED);
            if padded && head.length == 0 {
                return Err(Http2Error::new(ErrorCode::FRAME_SIZE_ERROR, "a padded frame without a padding length"));
            }
            self.at = if padded { At::PadLength { head } } else { At::Data { head, left: head.length, padding: 0 } };
            return Ok(Some(Piece::DataHead { head }));
        }
        if head.length > LARGEST_WHOLE {
            return Err(Http2Error::new(ErrorCode::ENHANCE_YOUR_CALM, "a frame too large for what it is"));
        }
        self.payload.clear();
        self.at = At::Whole { head };
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = FrameHead { length: payload.len(), kind, flags, stream }.bytes().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// What comes out, DATA joined, when the octets come in pieces of `size`.
    fn cut(octets: &[u8], size: usize) -> Result<Vec<(u8, Vec<u8>)>, Http2Error> {
        let mut input = Input::new(true, 16_384);
        let mut seen = Vec::new();
        for chunk in octets.chunks(size) {
            let mut chunk = chunk;
            while let Some(piece) = input.next(&mut chunk)? {
                match piece {
                    Piece::DataHead { head } => seen.push((head.kind, Vec::new())),
                    Piece::Data { bytes, .. } => seen.last_mut().unwrap().1.extend_from_slice(bytes),
                    Piece::DataEnd { .. } => {}
                    Piece::Whole { head } => seen.push((head.kind, input.payload())),
                }
            }
        }
        Ok(seen)
    }

    #[test]
    fn frames_are_the_same_however_they_arrive() {
        let mut octets = PREFACE.to_vec();
        octets.extend(frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0]));
        octets.extend(frame(kind::DATA, 0, 1, b"hello"));
        octets.extend(frame(kind::DATA, flag::PADDED, 1, b"\x03padded\0\0\0"));
        octets.extend(frame(kind::DATA, flag::END_STREAM, 1, b""));
        octets.extend(frame(0x77, 0, 5, b"unknown"));
        let whole = cut(&octets, octets.len()).unwrap();
        assert_eq!(whole[1..4], [(0, b"hello".to_vec()), (0, b"padded".to_vec()), (0, Vec::new())]);
        for size in 1..octets.len() {
            assert_eq!(cut(&octets, size).unwrap(), whole, "in pieces of {size}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let code = |octets: Vec<u8>| cut(&[PREFACE.to_vec(), octets].concat(), 7).unwrap_err().code;
        assert_eq!(cut(b"GET / HTTP/1.1\r\n\r\n", 7).unwrap_err().code, ErrorCode::PROTOCOL_ERROR);
        assert_eq!(code(frame(kind::DATA, 0, 1, &[0; 16_385])), ErrorCode::FRAME_SIZE_ERROR);
        assert_eq!(code(frame(kind::DATA, flag::PADDED, 1, &[9, 1, 2])), ErrorCode::PROTOCOL_ERROR);
        assert_eq!(code(frame(kind::DATA, flag::PADDED, 1, &[])), ErrorCode::FRAME_SIZE_ERROR);
    }
}
