//! What the soak's clients say first, so that servers know what to do and whom
//! to blame.

use warren_load::pattern::Position;

use super::super::lab::CANARY;
use super::trouble::Trouble;

/// Length of an [`Opening`].
pub(super) const OPENING: usize = 40;
/// The largest message that is answered.
const LARGEST: u32 = 64 * 1024;
const FIELDS: usize = CANARY.len();

/// How a connection of echoes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client ends it.
    Client,
    /// The server closes after its first answer.
    ServerCloses,
    /// The server resets when the client has acknowledged the first answer.
    ServerResets,
}

/// What the server is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Answer each message with one of the same size.
    Echo { size: u32, ending: Ending },
    /// Take a stream to its end, and send one of so many KiB: meanwhile at so
    /// many KiB a second (0: as fast as it goes), or when the other has ended.
    Stream { kib: u32, rate: u32, afterwards: bool },
}

/// The first bytes of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening {
    /// The calling pod, by its place.
    pub(super) from: u8,
    /// Tells this connection's bytes from those of others.
    pub(super) seed: u32,
    pub(super) job: Job,
}

impl Opening {
    /// Where the client's bytes start.
    pub(super) fn upward(&self) -> Position {
        Position::new(self.seed.wrapping_mul(2))
    }

    /// Where the server's bytes start.
    pub(super) fn downward(&self) -> Position {
        Position::new(self.seed.wrapping_mul(2).wrapping_add(1))
    }

    /// As sent.
    pub(super) fn encode(&self) -> [u8; OPENING] {
        let (kind, flag, a, b) = match self.job {
            Job::Echo { size, ending } => (0, ending as u8, size, 0),
            Job::Stream { kib, rate, afterwards } => (1, u8::from(afterwards), kib, rate),
        };
        let mut bytes = [0; OPENING];
        bytes[..FIELDS].copy_from_slice(CANARY);
        bytes[FIELDS..FIELDS + 4].copy_from_slice(&[kind, flag, self.from, 0]);
        for (field, value) in bytes[FIELDS + 4..].chunks_exact_mut(4).zip([a, b, self.seed]) {
            field.copy_from_slice(&u32::to_le_bytes(value));
        }
        bytes
    }

    /// As received.
    pub(super) fn decode(bytes: &[u8; OPENING]) -> Result<Self, Trouble> {
        let wrong = || Trouble::Wrong("a connection does not begin as one of the soak's".into());
        if bytes[..FIELDS] != CANARY[..] {
            return Err(wrong());
        }
        let word = |place: usize| {
            let at = FIELDS + 4 + 4 * place;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (size, rate, seed) = (word(0), word(1), word(2));
        let job = match (bytes[FIELDS], bytes[FIELDS + 1]) {
            (0, flag) if size > 0 && size <= LARGEST => {
                let endings = [Ending::Client, Ending::ServerCloses, Ending::ServerResets];
                let ending = endings.into_iter().find(|ending| *ending as u8 == flag).ok_or_else(wrong)?;
                Job::Echo { size, ending }
            }
            (1, flag @ 0..=1) => Job::Stream { kib: size, rate, afterwards: flag == 1 },
            _ => return Err(wrong()),
        };
        Ok(Self { from: bytes[FIELDS + 2], seed, job })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_survive_the_wire_and_carry_the_canary() {
        for job in [
            Job::Echo { size: 1, ending: Ending::Client },
            Job::Echo { size: LARGEST, ending: Ending::ServerCloses },
            Job::Echo { size: 64, ending: Ending::ServerResets },
            Job::Stream { kib: 700, rate: 0, afterwards: true },
            Job::Stream { kib: 0, rate: 512, afterwards: false },
        ] {
            let opening = Opening { from: 5, seed: 0xdead_beef, job };
            let bytes = opening.encode();
            assert_eq!(Opening::decode(&bytes).unwrap(), opening);
            assert!(bytes.starts_with(CANARY));
        }
    }

    #[test]
    fn what_nobody_sends_is_refused() {
        assert!(Opening::decode(&[0; OPENING]).is_err());
        let too_large = Opening { from: 0, seed: 0, job: Job::Echo { size: LARGEST + 1, ending: Ending::Client } };
        assert!(Opening::decode(&too_large.encode()).is_err());
    }
}
