//! Read buffers: one allocation serves many reads, and an idle connection keeps
//! none.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::net::tcp::ReadHalf;

/// First read of a connection or after a quiet spell.
const SMALL: usize = 16 * 1024;

/// Buffer of one direction. Its size follows the traffic: it doubles when a
/// read fills it and falls back when reads are small, so that ten thousand idle
/// connections hold next to nothing.
pub(super) struct ReadBuffer {
    bytes: BytesMut,
    size: usize,
    largest: usize,
}

impl ReadBuffer {
    pub(super) fn new(largest: usize) -> Self {
        Self { bytes: BytesMut::new(), size: SMALL.min(largest), largest }
    }

    /// One read of at most `limit` bytes; `Ok(None)` at the end of the stream,
    /// `WouldBlock` when there is nothing yet.
    pub(super) fn try_read(&mut self, from: &ReadHalf<'_>, limit: usize) -> io::Result<Option<Bytes>> {
        let limit = limit.min(self.size);
        // Takes the old allocation again if everything cut from it is gone.
        self.bytes.reserve(limit);
        let read = from.try_read_buf(&mut (&mut self.bytes).limit(limit));
        match read {
            Ok(0) => Ok(None),
            Ok(read) => {
                self.adapt(read, limit);
                Ok(Some(self.bytes.split().freeze()))
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock && self.size == SMALL {
                    self.bytes = BytesMut::new();
                }
                Err(error)
            }
        }
    }

    fn adapt(&mut self, read: usize, limit: usize) {
        if read == limit && limit == self.size {
            self.size = (self.size * 2).min(self.largest);
        } else if read < self.size / 4 {
            self.size = (self.size / 2).max(SMALL.min(self.largest));
        }
    }
}
