//! The record layer after the handshake (RFC 8446 §5): records are sealed and opened where they lie, in the buffers
//! that are read from and written to the network.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, Nonce};
use rustls::AlertDescription;

use super::failure::{HandshakeFailure, PeerAlert};
use super::secrets::{KeyError, Keys, NONCE, Traffic};

/// Octets of a record's head.
pub(crate) const RECORD_HEAD: usize = 5;
/// Octets behind the plaintext: the content type and the authentication tag.
pub(crate) const RECORD_TAIL: usize = 1 + TAG;
/// Most plaintext in one record.
pub(crate) const RECORD_MOST: usize = 16_384;

const TAG: usize = 16;
/// Most octets behind a head that a peer may send (RFC 8446 §5.2).
const MOST_PROTECTED: usize = RECORD_MOST + 256;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;
/// Post-handshake messages are tickets and key updates; none is longer.
const MOST_HANDSHAKE: usize = 64 * 1024;

/// Records under one key at most: half of what AES-GCM bears (RFC 8446 §5.5).
const MOST_RECORDS: u64 = 1 << 23;

/// Why a connection's records cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// What came is not a protected record.
    #[error("not a TLS record")]
    NotARecord,
    /// It was changed on its way, or is of another connection.
    #[error("a record that cannot be decrypted")]
    Undecryptable,
    /// Against the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The peer ended the connection with an alert.
    #[error("ended by the peer with alert {0:?}")]
    Alert(AlertDescription),
    /// No key could be made.
    #[error(transparent)]
    Key(#[from] KeyErrorText),
}

/// A key could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a traffic key could not be made")]
pub(crate) struct KeyErrorText;

impl From<KeyError> for RecordError {
    fn from(_: KeyError) -> Self {
        Self::Key(KeyErrorText)
    }
}

impl RecordError {
    /// An alert soon after the handshake is the peer's late word about our certificate.
    pub(crate) fn late_failure(self) -> Option<HandshakeFailure> {
        match self {
            Self::Alert(alert) => Some(HandshakeFailure::RefusedByPeer(PeerAlert(alert))),
            _ => None,
        }
    }
}

fn nonce(keys: &Keys, sequence: u64) -> Nonce {
    let mut nonce = keys.iv;
    let counter = &mut nonce[NONCE - 8..];
    for (octet, counted) in counter.iter_mut().zip(sequence.to_be_bytes()) {
        *octet ^= counted;
    }
    Nonce::assume_unique_for_key(nonce)
}

fn head(protected: usize) -> [u8; RECORD_HEAD] {
    [APPLICATION_DATA, 3, 3, (protected >> 8) as u8, protected as u8]
}

/// The sending direction.
pub(crate) struct Sealer {
    traffic: Traffic,
    keys: Keys,
}

impl Sealer {
    pub(super) fn new(traffic: Traffic) -> Result<Self, RecordError> {
        Ok(Self { keys: traffic.keys()?, traffic })
    }

    /// Protects one record of application data. `record` is all of it: room for the head, at most [`RECORD_MOST`]
    /// octets of plaintext, room for the tail.
    pub(crate) fn seal(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        self.seal_as(APPLICATION_DATA, record)
    }

    fn seal_as(&mut self, kind: u8, record: &mut [u8]) -> Result<(), RecordError> {
        let too_short = RecordError::Protocol("no room for a record");
        let (at_head, protected) = record.split_at_mut_checked(RECORD_HEAD).ok_or(too_short)?;
        let head = head(protected.len());
        let at_tag = protected.len().checked_sub(TAG).ok_or(too_short)?;
        let (inner, tag) = protected.split_at_mut(at_tag);
        *inner.last_mut().ok_or(too_short)? = kind;
        let nonce = nonce(&self.keys, self.traffic.sequence);
        let sealed = self.keys.aead.seal_in_place_separate_tag(nonce, Aad::from(head), inner);
        tag.copy_from_slice(sealed.map_err(|_| RecordError::Protocol("a record cannot be encrypted"))?.as_ref());
        at_head.copy_from_slice(&head);
        self.traffic.sequence += 1;
        Ok(())
    }

    /// Whether so much was sent under this key that it must be changed.
    pub(crate) fn is_worn(&self) -> bool {
        self.traffic.sequence >= MOST_RECORDS
    }

    /// Announces new keys, and uses them from then on (RFC 8446 §4.6.3). Answers the record to be sent.
    pub(crate) fn update_keys(&mut self) -> Result<Vec<u8>, RecordError> {
        let record = self.small(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
        *self = Self::new(self.traffic.next()?)?;
        Ok(record)
    }

    /// The alert that ends our direction.
    pub(crate) fn close_notify(&mut self) -> Result<Vec<u8>, RecordError> {
        const WARNING: u8 = 1;
        self.small(ALERT, &[WARNING, CLOSE_NOTIFY])
    }

    fn small(&mut self, kind: u8, message: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut record = vec![0; RECORD_HEAD + message.len() + RECORD_TAIL];
        record[RECORD_HEAD..][..message.len()].copy_from_slice(message);
        self.seal_as(kind, &mut record)?;
        Ok(record)
    }
}

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened<'a> {
    /// Application data.
    Data(&'a [u8]),
    /// Something between the two TLS ends only.
    Nothing,
    /// The peer ended its direction.
    Closed,
}

/// The receiving direction.
pub(crate) struct Opener {
    traffic: Traffic,
    keys: Keys,
    /// A post-handshake message that is not whole yet.
    message: Vec<u8>,
    owes_update: bool,
}

impl Opener {
    pub(super) fn new(traffic: Traffic) -> Result<Self, RecordError> {
        Ok(Self { keys: traffic.keys()?, traffic, message: Vec::new(), owes_update: false })
    }

    /// Where the first record in `octets` ends; `None` while it is not whole.
    pub(crate) fn first_record(octets: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(([kind, major, _, high, low], _)) = octets.split_first_chunk::<RECORD_HEAD>() else {
            return Ok(None);
        };
        let protected = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != APPLICATION_DATA || *major != 3 || protected <= TAG || protected > MOST_PROTECTED {
            return Err(RecordError::NotARecord);
        }
        let end = RECORD_HEAD + protected;
        Ok((octets.len() >= end).then_some(end))
    }

    /// Opens one whole record.
    pub(crate) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<Opened<'a>, RecordError> {
        let (at_head, protected) = record.split_first_chunk_mut::<RECORD_HEAD>().ok_or(RecordError::NotARecord)?;
        let aad = Aad::from(*at_head);
        let nonce = nonce(&self.keys, self.traffic.sequence);
        let inner = self.keys.aead.open_in_place(nonce, aad, protected).map_err(|_| RecordError::Undecryptable)?;
        self.traffic.sequence += 1;
        let (kind, content) = content(inner)?;
        match kind {
            APPLICATION_DATA => Ok(Opened::Data(&inner[content])),
            HANDSHAKE => {
                self.message.extend_from_slice(&inner[content]);
                self.messages().map(|()| Opened::Nothing)
            }
            ALERT => match inner[content] {
                [_, CLOSE_NOTIFY] => Ok(Opened::Closed),
                [_, alert] => Err(RecordError::Alert(AlertDescription::from(alert))),
                _ => Err(RecordError::Protocol("an alert of a broken length")),
            },
            _ => Err(RecordError::Protocol("a record of an unknown kind")),
        }
    }

    /// Whether the peer asked for new keys of ours since the last call.
    pub(crate) fn take_owed_update(&mut self) -> bool {
        std::mem::take(&mut self.owes_update)
    }

    fn messages(&mut self) -> Result<(), RecordError> {
        while let Some(([kind, a, b, c], rest)) = self.message.split_first_chunk::<4>() {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MOST_HANDSHAKE {
                return Err(RecordError::Protocol("a handshake message without measure"));
            }
            let Some(body) = rest.get(..length) else { return Ok(()) };
            match (*kind, body) {
                // No session is ever resumed.
                (NEW_SESSION_TICKET, _) => {}
                (KEY_UPDATE, [asked @ (0 | 1)]) => {
                    // Keys change with the next record, so nothing may follow in this one.
                    if rest.len() > length {
                        return Err(RecordError::Protocol("KeyUpdate amid a record"));
                    }
                    self.owes_update |= *asked == 1;
                    self.traffic = self.traffic.next()?;
                    self.keys = self.traffic.keys()?;
                }
                _ => return Err(RecordError::Protocol("an unexpected handshake message")),
            }
            self.message.drain(..4 + length);
        }
        Ok(())
    }
}

/// The type and place of what was protected: behind it come zeros as padding (RFC 8446 §5.4).
fn content(inner: &[u8]) -> Result<(u8, Range<usize>), RecordError> {
    let at = inner.iter().rposition(|octet| *octet != 0).ok_or(RecordError::Protocol("a record of padding only"))?;
    if at > RECORD_MOST {
        return Err(RecordError::Protocol("a record above 2^14 octets"));
    }
    Ok((inner[at], 0..at))
}

#[cfg(test)]
mod tests {
    use super::super::secrets::Suite;
    use super::*;

    fn pair(suite: Suite) -> (Sealer, Opener) {
        (Sealer::new(Traffic::for_test(suite)).unwrap(), Opener::new(Traffic::for_test(suite)).unwrap())
    }

    fn sealed(sealer: &mut Sealer, kind: u8, plaintext: &[u8]) -> Vec<u8> {
        sealer.small(kind, plaintext).unwrap()
    }

    fn opened(opener: &mut Opener, record: &[u8]) -> Result<Option<Vec<u8>>, RecordError> {
        let mut record = record.to_vec();
        assert_eq!(Opener::first_record(&record), Ok(Some(record.len())));
        match opener.open(&mut record)? {
            Opened::Data(bytes) => Ok(Some(bytes.to_vec())),
            Opened::Nothing => Ok(None),
            Opened::Closed => Err(RecordError::Alert(AlertDescription::CloseNotify)),
        }
    }

    #[test]
    fn records_are_opened_in_order_and_only_so() {
        for suite in [Suite::Aes128, Suite::Aes256] {
            let (mut sealer, mut opener) = pair(suite);
            let first = sealed(&mut sealer, APPLICATION_DATA, &[5; RECORD_MOST]);
            let second = sealed(&mut sealer, APPLICATION_DATA, b"");
            assert_eq!(opened(&mut opener, &first).unwrap().unwrap(), [5; RECORD_MOST]);
            assert_eq!(opened(&mut opener, &first), Err(RecordError::Undecryptable), "replayed");
            assert_eq!(opened(&mut opener, &second).unwrap().unwrap(), b"");
        }
    }

    #[test]
    fn a_changed_bit_is_noticed() {
        for at in [0, RECORD_HEAD, RECORD_HEAD + 3, RECORD_HEAD + 20] {
            let (mut sealer, mut opener) = pair(Suite::Aes128);
            let mut record = sealed(&mut sealer, APPLICATION_DATA, b"hello");
            record[at] ^= 1;
            assert_eq!(opener.open(&mut record), Err(RecordError::Undecryptable), "octet {at}");
        }
    }

    #[test]
    fn keys_change_on_both_sides_at_the_same_record() {
        let (mut sealer, mut opener) = pair(Suite::Aes256);
        let before = sealed(&mut sealer, APPLICATION_DATA, b"before");
        let update = sealer.update_keys().unwrap();
        let after = sealed(&mut sealer, APPLICATION_DATA, b"after");
        assert_eq!(opened(&mut opener, &before).unwrap().unwrap(), b"before");
        assert_eq!(opened(&mut opener, &update).unwrap(), None);
        assert_eq!(opened(&mut opener, &after).unwrap().unwrap(), b"after");
        assert!(!opener.take_owed_update());
        let asking = sealed(&mut sealer, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1]);
        opened(&mut opener, &asking).unwrap();
        assert!(opener.take_owed_update() && !opener.take_owed_update());
    }

    #[test]
    fn tickets_are_passed_over_even_in_pieces() {
        let (mut sealer, mut opener) = pair(Suite::Aes128);
        let ticket = [&[NEW_SESSION_TICKET, 0, 0, 100][..], &[1; 100]].concat();
        for piece in [&ticket[..2], &ticket[2..50], &[&ticket[50..], &ticket[..]].concat()] {
            let record = sealed(&mut sealer, HANDSHAKE, piece);
            assert_eq!(opened(&mut opener, &record).unwrap(), None);
        }
        let data = sealed(&mut sealer, APPLICATION_DATA, b"x");
        assert_eq!(opened(&mut opener, &data).unwrap().unwrap(), b"x");
    }

    #[test]
    fn padding_is_taken_off_and_alerts_are_told_apart() {
        let (mut sealer, mut opener) = pair(Suite::Aes128);
        let padded = sealed(&mut sealer, 0, &[b'x', APPLICATION_DATA, 0, 0]);
        assert_eq!(opened(&mut opener, &padded).unwrap().unwrap(), b"x");
        let nothing = sealed(&mut sealer, 0, &[0, 0]);
        assert!(matches!(opened(&mut opener, &nothing), Err(RecordError::Protocol(_))));
        let refused = sealed(&mut sealer, ALERT, &[2, 49]);
        assert_eq!(opened(&mut opener, &refused), Err(RecordError::Alert(AlertDescription::AccessDenied)));
        let closed = sealer.close_notify().unwrap();
        assert_eq!(opened(&mut opener, &closed), Err(RecordError::Alert(AlertDescription::CloseNotify)));
    }

    #[test]
    fn what_is_no_record_is_refused_and_what_is_not_whole_waits() {
        assert_eq!(Opener::first_record(&[23, 3, 3, 0]), Ok(None));
        assert_eq!(Opener::first_record(&[23, 3, 3, 0, 20, 1]), Ok(None));
        for octets in [[22, 3, 3, 0, 20], [23, 2, 3, 0, 20], [23, 3, 3, 0, 16], [23, 3, 3, 0x41, 1]] {
            assert_eq!(Opener::first_record(&octets), Err(RecordError::NotARecord), "{octets:?}");
        }
        assert_eq!(Opener::first_record(b"HTTP/1.1 400"), Err(RecordError::NotARecord));
    }

    #[test]
    fn unexpected_messages_end_the_connection() {
        for message in [&[1, 0, 0, 0][..], &[KEY_UPDATE, 0, 0, 1, 2], &[KEY_UPDATE, 0, 0, 1, 0, 4], &[4, 2, 0, 0]] {
            let (mut sealer, mut opener) = pair(Suite::Aes128);
            let record = sealed(&mut sealer, HANDSHAKE, message);
            assert!(matches!(opened(&mut opener, &record), Err(RecordError::Protocol(_))), "{message:?}");
        }
    }
}
