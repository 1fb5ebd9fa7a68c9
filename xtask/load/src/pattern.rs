//! The bytes that are sent, known at every position, so that the receiver
//! compares instead of remembering.
//!
//! The pattern repeats after a prime number of bytes and every direction of
//! every connection starts at a place of its own: a chunk that is lost,
//! repeated, moved, or delivered to another connection does not match. Its
//! table is small enough to stay in the processor's nearest cache.

use std::fmt;
use std::io::{self, Write};
use std::sync::LazyLock;

/// The pattern's length: a prime.
pub const PERIOD: usize = 4093;
/// The longest slice that is taken at once.
pub const CHUNK: usize = 128 * 1024;
/// Compared at once: with the period this stays in the nearest cache.
const COMPARED: usize = 16 * 1024;
/// The pattern has no such byte: what ends a stream starts with it.
pub const END: u8 = 0xff;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let period: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64: any bytes without a shorter period will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .filter(|byte| *byte != END)
    .take(PERIOD)
    .collect();
    period.iter().copied().cycle().take(PERIOD + CHUNK).collect()
});

/// A byte that is not the pattern's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct Mismatch {
    /// How many bytes were right before it.
    pub at: u64,
    /// What should have come.
    pub expected: u8,
    /// What came.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x} instead of {:#04x} after {} bytes", self.found, self.expected, self.at)
    }
}

/// A place in one direction of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    phase: usize,
    passed: u64,
}

impl Position {
    /// The start of a direction; `seed` tells directions and connections apart.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        // Neighbouring seeds start far from each other.
        let phase = u64::from(seed).wrapping_mul(2_654_435_761) % PERIOD as u64;
        Self { phase: usize::try_from(phase).unwrap_or_default(), passed: 0 }
    }

    /// Bytes behind this place.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// The next bytes, at most [`CHUNK`].
    #[must_use]
    pub fn next(&self, length: usize) -> &'static [u8] {
        &TABLE[self.phase..self.phase + length.min(CHUNK)]
    }

    /// Moves on.
    pub fn advance(&mut self, length: usize) {
        self.phase = (self.phase + length) % PERIOD;
        self.passed += length as u64;
    }

    /// Writes at most `limit` bytes and moves on by what was taken.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&mut self, to: &mut impl Write, limit: usize) -> io::Result<usize> {
        let written = to.write(self.next(limit))?;
        self.advance(written);
        Ok(written)
    }

    /// Compares and moves on.
    ///
    /// # Errors
    /// The first byte that differs.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        for part in bytes.chunks(COMPARED) {
            if part != self.next(part.len()) {
                return Err(self.mismatch(part));
            }
            self.advance(part.len());
        }
        Ok(())
    }

    /// Compares as far as the pattern goes; the rest starts with [`END`], or is empty.
    ///
    /// # Errors
    /// The first byte that is neither the pattern's nor [`END`].
    pub fn check_until_end<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Mismatch> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(COMPARED));
            if part == self.next(part.len()) {
                self.advance(part.len());
                rest = after;
                continue;
            }
            let good = part.iter().zip(self.next(part.len())).take_while(|(found, expected)| found == expected).count();
            self.advance(good);
            rest = &rest[good..];
            return if rest[0] == END { Ok(rest) } else { Err(self.mismatch(rest)) };
        }
        Ok(rest)
    }

    fn mismatch(&self, part: &[u8]) -> Mismatch {
        let pairs = part.iter().zip(self.next(part.len()));
        let first = pairs.enumerate().find(|(_, (found, expected))| found != expected);
        let (at, (found, expected)) = first.unwrap_or((part.len(), (&0, &0)));
        Mismatch { at: self.passed + at as u64, expected: *expected, found: *found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(seed: u32, length: usize) -> Vec<u8> {
        let (mut bytes, mut position) = (Vec::new(), Position::new(seed));
        while bytes.len() < length {
            let part = position.next(length - bytes.len());
            bytes.extend_from_slice(part);
            position.advance(part.len());
        }
        bytes
    }

    #[test]
    fn what_was_sent_matches_however_it_is_cut() {
        let bytes = sent(7, 300_000);
        for cut in [1, 13, 4093, 16_384, 70_000, 300_000] {
            let mut position = Position::new(7);
            for part in bytes.chunks(cut) {
                position.check(part).unwrap();
            }
            assert_eq!(position.passed(), 300_000);
        }
    }

    #[test]
    fn one_wrong_bit_is_found_with_its_place() {
        for at in [0, 1, 16_383, 16_384, 99_999] {
            let mut bytes = sent(1, 100_000);
            bytes[at] ^= 1;
            let found = Position::new(1).check(&bytes).unwrap_err();
            assert_eq!((found.at, found.found), (at as u64, bytes[at]));
            assert_eq!(found.expected, bytes[at] ^ 1);
        }
    }

    #[test]
    fn lost_repeated_and_foreign_chunks_do_not_match() {
        let bytes = sent(1, 100_000);
        let lost = [&bytes[..1460], &bytes[2920..]].concat();
        let repeated = [&bytes[..2920], &bytes[1460..]].concat();
        for wrong in [lost, repeated, sent(2, 100_000), sent(257, 100_000)] {
            assert!(Position::new(1).check(&wrong).is_err());
        }
    }

    #[test]
    fn the_end_is_told_from_a_wrong_byte() {
        let mut bytes = sent(3, 50_000);
        bytes.push(END);
        bytes.extend([1, 2, 3]);
        let mut position = Position::new(3);
        assert_eq!(position.check_until_end(&bytes).unwrap(), [END, 1, 2, 3]);
        assert_eq!(position.passed(), 50_000);
        bytes[50_000] = bytes[0] ^ 0x55;
        if bytes[50_000] != END {
            assert_eq!(Position::new(3).check_until_end(&bytes).unwrap_err().at, 50_000);
        }
    }

    #[test]
    fn the_pattern_never_looks_like_its_end() {
        assert!(!sent(0, 2 * PERIOD).contains(&END));
    }
}
