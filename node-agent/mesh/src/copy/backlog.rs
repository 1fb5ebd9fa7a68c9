//! Bytes received from the tunnel and not yet taken by the application.
//!
//! They are pulled out of HTTP/2 even while the application does not read, and
//! small frames are joined: h2 keeps a record per frame and ends the whole
//! connection, with everybody's streams on it, when one slow reader piles up
//! too many small ones. How many bytes can pile up here is bounded by the
//! stream's window, because credit is returned for written bytes only.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::tcp::WriteHalf;

/// Chunks below this are joined.
const SMALL: usize = 4096;
/// Pieces per write.
const SLICES: usize = 64;

#[derive(Default)]
pub(super) struct Backlog {
    whole: VecDeque<Bytes>,
    /// Small chunks joined, younger than all of `whole`.
    joined: BytesMut,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.joined.is_empty()
    }

    /// Whether one write can take everything.
    pub(super) fn fits_one_write(&self) -> bool {
        self.whole.len() < SLICES
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if chunk.len() < SMALL {
            self.joined.extend_from_slice(&chunk);
            return;
        }
        if !self.joined.is_empty() {
            self.whole.push_back(self.joined.split().freeze());
        }
        self.whole.push_back(chunk);
    }

    /// One write of as much as the application takes now.
    pub(super) fn try_write(&mut self, app: &WriteHalf<'_>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slot, chunk) in slices.iter_mut().zip(&self.whole) {
            *slot = IoSlice::new(chunk);
            used += 1;
        }
        if used < SLICES && !self.joined.is_empty() {
            slices[used] = IoSlice::new(&self.joined);
            used += 1;
        }
        let written = app.try_write_vectored(&slices[..used])?;
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.whole.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.whole.pop_front();
        }
        self.joined.advance(written);
        if self.joined.is_empty() {
            self.joined = BytesMut::new();
        }
    }
}
