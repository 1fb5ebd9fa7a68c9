//! Octets of one stream that lie in one read of the tunnel, for one write to its application.

use std::io::{self, IoSlice};

use warren_core::http2::StreamId;

use super::session::State;

/// Pieces per write.
const PIECES: usize = 64;

/// Pieces of one stream's payload, where they were decrypted.
pub(super) struct Gather<'a> {
    stream: StreamId,
    pieces: [IoSlice<'a>; PIECES],
    count: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new() -> Self {
        Self { stream: 0, pieces: [IoSlice::new(&[]); PIECES], count: 0 }
    }

    /// Adds a piece; others' pieces are delivered before it.
    pub(super) fn push(&mut self, state: &mut State, stream: StreamId, octets: &'a [u8]) {
        if stream != self.stream || self.count == PIECES {
            self.deliver(state);
            self.stream = stream;
        }
        self.pieces[self.count] = IoSlice::new(octets);
        self.count += 1;
    }

    /// Writes what was gathered to the application, as far as it takes it. The rest waits for it in the backlog.
    pub(super) fn deliver(&mut self, state: &mut State) {
        let count = std::mem::take(&mut self.count);
        if count == 0 {
            return;
        }
        let stream = self.stream;
        let pieces = &self.pieces[..count];
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        let Some(slot) = state.slots.get_mut(&stream).filter(|slot| slot.app_broken.is_none()) else {
            return state.connection.consumed(stream, total);
        };
        let mut written = 0;
        if slot.backlog.is_empty()
            && let Some(attached) = &slot.attached
        {
            let written_now = match pieces {
                [piece] => attached.app.try_write(piece),
                pieces => attached.app.try_write_vectored(pieces),
            };
            match written_now {
                Ok(octets) => written = octets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    slot.app_broken = Some(error);
                    slot.wake();
                    return state.connection.consumed(stream, total);
                }
            }
            attached.bytes.add_to_app(written);
        }
        if written < total {
            let mut skip = written;
            for piece in pieces {
                let (_, rest) = piece.split_at(skip.min(piece.len()));
                skip -= piece.len() - rest.len();
                slot.backlog.extend(rest);
            }
            slot.wake();
        }
        if written > 0 {
            state.connection.consumed(stream, written);
        }
    }
}
