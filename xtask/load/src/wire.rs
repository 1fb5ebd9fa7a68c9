//! What a client says first, and how a stream ends.

use crate::Fault;
use crate::pattern::{CHUNK, END, Mismatch, Position};

/// Length of an [`Opening`] on the wire.
pub const OPENING: usize = 24;
/// Length of a stream's [`Trailer`] on the wire.
pub const TRAILER: usize = 24;

const MAGIC: [u8; 4] = *b"WLD1";
const TRAILER_MAGIC: [u8; 8] = [END, b'W', b'L', b'E', b'N', b'D', 0, 1];

/// What the server is to do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Answer each message with one of the same size.
    Echo {
        /// Bytes of a message.
        size: u32,
        /// Close after so many answers; 0: never.
        count: u32,
    },
    /// Take a stream until its end, sending one meanwhile if asked to.
    Stream {
        /// Whether the server sends too.
        down: bool,
    },
}

/// The first bytes of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// What is wanted.
    pub job: Job,
    /// Tells this connection's bytes from those of others.
    pub seed: u32,
}

impl Opening {
    /// Where the client's bytes start.
    #[must_use]
    pub fn upward(&self) -> Position {
        Position::new(self.seed.wrapping_mul(2))
    }

    /// Where the server's bytes start.
    #[must_use]
    pub fn downward(&self) -> Position {
        Position::new(self.seed.wrapping_mul(2).wrapping_add(1))
    }

    /// As sent.
    #[must_use]
    pub fn encode(&self) -> [u8; OPENING] {
        let (kind, size, count) = match self.job {
            Job::Echo { size, count } => (0, size, count),
            Job::Stream { down } => (1, 0, u32::from(down)),
        };
        let mut bytes = [0; OPENING];
        bytes[..4].copy_from_slice(&MAGIC);
        for (field, value) in bytes[4..20].chunks_exact_mut(4).zip([kind, size, count, self.seed]) {
            field.copy_from_slice(&u32::to_le_bytes(value));
        }
        bytes
    }

    /// As received.
    ///
    /// # Errors
    /// It is not one.
    pub fn decode(bytes: &[u8; OPENING]) -> Result<Self, Fault> {
        if bytes[..4] != MAGIC {
            return Err(Fault::Protocol("a connection does not begin as one of the load's"));
        }
        let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (size, count) = (field(8), field(12));
        let sized = size > 0 && size as usize <= CHUNK;
        let job = match field(4) {
            0 if sized => Job::Echo { size, count },
            1 => Job::Stream { down: count != 0 },
            _ => return Err(Fault::Protocol("an opening that nobody sends")),
        };
        Ok(Self { job, seed: field(16) })
    }
}

/// The end of a stream's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes of the pattern that were sent before it.
    pub sent: u64,
    /// Bytes of the pattern that its sender had received until then.
    pub received: u64,
}

impl Trailer {
    /// As sent.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER] {
        let mut bytes = [0; TRAILER];
        bytes[..8].copy_from_slice(&TRAILER_MAGIC);
        bytes[8..16].copy_from_slice(&self.sent.to_le_bytes());
        bytes[16..].copy_from_slice(&self.received.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; TRAILER]) -> Result<Self, Fault> {
        if bytes[..8] != TRAILER_MAGIC {
            return Err(Fault::Protocol("a stream's end is broken"));
        }
        let mut fields = [0; 2];
        for (field, part) in fields.iter_mut().zip(bytes[8..].chunks_exact(8)) {
            let mut number = [0; 8];
            number.copy_from_slice(part);
            *field = u64::from_le_bytes(number);
        }
        Ok(Self { sent: fields[0], received: fields[1] })
    }
}

/// Checks the bytes of one direction of a stream up to its trailer.
#[derive(Debug)]
pub struct StreamReader {
    position: Position,
    tail: Vec<u8>,
}

impl StreamReader {
    /// From this place on.
    #[must_use]
    pub fn new(position: Position) -> Self {
        Self { position, tail: Vec::new() }
    }

    /// Bytes of the pattern so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.position.passed()
    }

    /// Takes the next bytes; gives the trailer when it is complete.
    ///
    /// # Errors
    /// A wrong byte, bytes behind the end, or an end that belies what came.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Trailer>, Fault> {
        let rest = if self.tail.is_empty() { self.position.check_until_end(bytes)? } else { bytes };
        self.tail.extend_from_slice(rest);
        let Ok(tail) = <&[u8; TRAILER]>::try_from(&self.tail[..]) else {
            return if self.tail.len() < TRAILER { Ok(None) } else { Err(self.behind_the_end()) };
        };
        let trailer = Trailer::decode(tail)?;
        if trailer.sent != self.received() {
            return Err(Fault::Lost { sent: trailer.sent, received: self.received() });
        }
        Ok(Some(trailer))
    }

    fn behind_the_end(&self) -> Fault {
        let found = self.tail.get(TRAILER).copied().unwrap_or_default();
        Mismatch { at: self.received(), expected: END, found }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_survive_the_wire() {
        for job in [
            Job::Echo { size: 64, count: 0 },
            Job::Echo { size: 16_384, count: 1 },
            Job::Stream { down: true },
            Job::Stream { down: false },
        ] {
            let opening = Opening { job, seed: 77 };
            assert_eq!(Opening::decode(&opening.encode()).unwrap(), opening);
        }
        assert!(Opening::decode(&[0; OPENING]).is_err());
        let endless = Opening { job: Job::Echo { size: u32::MAX, count: 0 }, seed: 0 };
        assert!(Opening::decode(&endless.encode()).is_err());
    }

    #[test]
    fn a_stream_is_checked_to_its_last_byte() {
        let opening = Opening { job: Job::Stream { down: true }, seed: 5 };
        let mut bytes = opening.upward().next(10_000).to_vec();
        bytes.extend(Trailer { sent: 10_000, received: 3 }.encode());
        for cut in [1, 7, 5_000, bytes.len()] {
            let mut reader = StreamReader::new(opening.upward());
            let ends: Vec<Option<Trailer>> = bytes.chunks(cut).map(|part| reader.feed(part).unwrap()).collect();
            assert_eq!(ends.last(), Some(&Some(Trailer { sent: 10_000, received: 3 })));
            assert!(ends[..ends.len() - 1].iter().all(Option::is_none));
        }
    }

    #[test]
    fn a_stream_that_lost_its_last_bytes_is_found() {
        let opening = Opening { job: Job::Stream { down: true }, seed: 5 };
        let mut bytes = opening.upward().next(9_999).to_vec();
        bytes.extend(Trailer { sent: 10_000, received: 0 }.encode());
        let found = StreamReader::new(opening.upward()).feed(&bytes).unwrap_err();
        assert!(matches!(found, Fault::Lost { sent: 10_000, received: 9_999 }), "{found}");
        bytes.push(1);
        assert!(StreamReader::new(opening.upward()).feed(&bytes).is_err(), "bytes behind the end");
    }
}
