//! One end of a stream: bytes both ways as asked, a trailer at the end of each.

use std::io::Write;

use mio::net::TcpStream;

use crate::Fault;
use crate::net::{self, Got};
use crate::pattern::{CHUNK, Position};
use crate::wire::{StreamReader, TRAILER, Trailer};

/// System calls in a row for one connection before others have their turn.
const TURN: usize = 8;

/// Whether a connection has more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The kernel has no more for it, or room for no more.
    Waits,
    /// Its turn ended before that: nobody will wake it.
    Again,
}

/// The bytes that a stream owes and expects.
#[derive(Debug)]
pub(crate) struct Flow {
    reader: StreamReader,
    writer: Position,
    sending: bool,
    trailer: Option<Tail>,
    theirs: Option<Trailer>,
    closed: bool,
}

#[derive(Debug)]
struct Tail {
    bytes: [u8; TRAILER],
    written: usize,
}

impl Flow {
    /// Sends until told to end, if `sending`; else only a trailer.
    pub(crate) fn new(read: Position, write: Position, sending: bool) -> Self {
        Self { reader: StreamReader::new(read), writer: write, sending, trailer: None, theirs: None, closed: false }
    }

    /// Bytes of the pattern sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.writer.passed()
    }

    /// Bytes of the pattern received and found right so far.
    pub(crate) fn received(&self) -> u64 {
        self.reader.received()
    }

    /// The other end's trailer, once it came.
    pub(crate) fn theirs(&self) -> Option<Trailer> {
        self.theirs
    }

    /// Whether the other end has closed, after its trailer.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    /// Sends no more than what is needed to end in order.
    pub(crate) fn end(&mut self) {
        if self.trailer.is_none() {
            let bytes = Trailer { sent: self.sent(), received: self.received() }.encode();
            self.trailer = Some(Tail { bytes, written: 0 });
        }
    }

    /// Whether all that is owed is with the kernel.
    pub(crate) fn ended(&self) -> bool {
        self.trailer.as_ref().is_some_and(|tail| tail.written == TRAILER)
    }

    /// Bytes that came in the same read as the opening.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if let Some(trailer) = self.reader.feed(bytes)? {
            self.theirs = Some(trailer);
        }
        Ok(())
    }

    /// Reads and checks what is there.
    pub(crate) fn read(&mut self, stream: &mut TcpStream, buffer: &mut [u8], to_end: bool) -> Result<Turn, Fault> {
        for _ in 0..TURN {
            match net::read(stream, buffer)? {
                Got::Nothing => return Ok(Turn::Waits),
                Got::End if self.theirs.is_none() => return Err(Fault::Ended),
                Got::End => {
                    self.closed = true;
                    return Ok(Turn::Waits);
                }
                Got::Bytes(length) => {
                    self.feed(&buffer[..length])?;
                    // What comes later is another event, an end that is there already is none.
                    if length < buffer.len() && !to_end && self.theirs.is_none() {
                        return Ok(Turn::Waits);
                    }
                }
            }
        }
        Ok(Turn::Again)
    }

    /// Writes what there is room for.
    pub(crate) fn write(&mut self, stream: &mut TcpStream) -> Result<Turn, Fault> {
        for _ in 0..TURN {
            let (written, wanted) = match &mut self.trailer {
                Some(tail) if tail.written < TRAILER => {
                    let wanted = TRAILER - tail.written;
                    let written = net::written(stream.write(&tail.bytes[tail.written..]))?;
                    tail.written += written;
                    (written, wanted)
                }
                None if self.sending => (net::written(self.writer.write(stream, CHUNK))?, CHUNK),
                _ => return Ok(Turn::Waits),
            };
            if written < wanted {
                return Ok(Turn::Waits);
            }
        }
        Ok(Turn::Again)
    }
}
