//! What goes out: frames in TLS records, built where they are sent from.
//!
//! Payload is read from the application straight into its place between the heads and tails of records and frames,
//! encrypted there, and written in one call. Small messages of many streams share a record: it is sealed when it is
//! full or when the worker has served whoever was ready.

use std::io::{self, IoSliceMut};

use tokio::net::TcpStream;
use warren_core::http2::FRAME_HEAD;

use crate::buffers::{BUFFER, Buffer};
use crate::tls::record::{RECORD_HEAD, RECORD_MOST, RECORD_TAIL, RecordError, Sealer};

/// A whole record.
const RECORD: usize = RECORD_HEAD + RECORD_MOST + RECORD_TAIL;
/// Payload in a record that has one frame.
const PAYLOAD: usize = RECORD_MOST - FRAME_HEAD;
/// A record with less room than this is sealed before a stream's payload begins.
const WORTHWHILE: usize = 2048;
/// Records of one read at most.
const PIECES: usize = BUFFER / RECORD;
/// Octets not sent yet beyond which no payload is taken in.
const MOST_UNSENT: usize = 128 * 1024;

/// Records on their way out.
pub(super) struct Output {
    sealer: Sealer,
    buffer: Vec<u8>,
    pooled: Option<Buffer>,
    /// Where the octets begin that have not been sent.
    sent: usize,
    /// Where the sealed octets end; the open record begins here.
    sealed: usize,
    /// Plaintext in the open record.
    open: usize,
    /// The socket took no more.
    blocked: bool,
}

/// Where payload may be read to.
struct Place {
    /// Offset of the payload in the buffer.
    at: usize,
    room: usize,
}

impl Output {
    pub(super) fn new(sealer: Sealer) -> Self {
        Self { sealer, buffer: Vec::new(), pooled: None, sent: 0, sealed: 0, open: 0, blocked: false }
    }

    /// Whether payload has to wait until more has been sent.
    pub(super) fn is_congested(&self) -> bool {
        self.blocked || self.unsent() >= MOST_UNSENT
    }

    /// Whether everything has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.unsent() == 0
    }

    /// Whether the socket took no more the last time.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether so much waits that it is worth a call of its own.
    pub(super) fn is_large(&self) -> bool {
        self.unsent() >= RECORD
    }

    fn unsent(&self) -> usize {
        self.sealed - self.sent + self.open
    }

    /// The octets, wherever they are kept: in a pooled buffer, or in one of their own while more waits than that holds.
    fn octets(&mut self) -> &mut [u8] {
        match &mut self.pooled {
            Some(pooled) => pooled,
            None => &mut self.buffer,
        }
    }

    /// Sees that so many octets fit behind what is there.
    fn make_room(&mut self, more: usize) {
        if self.pooled.is_none() && self.buffer.is_empty() {
            self.pooled = Some(Buffer::take());
        }
        let end = self.sealed + RECORD_HEAD + self.open;
        if end + more <= self.octets().len() {
            return;
        }
        let (sent, sealed, open) = (self.sent, self.sealed, self.open);
        if sent > 0 {
            let end = if open > 0 { end } else { sealed };
            self.octets().copy_within(sent..end, 0);
            self.sealed -= sent;
            self.sent = 0;
            return self.make_room(more);
        }
        let wanted = (end + more).next_power_of_two();
        if let Some(pooled) = self.pooled.take() {
            self.buffer = pooled.to_vec();
        }
        self.buffer.resize(wanted, 0);
    }

    /// Adds whole frames.
    pub(super) fn push(&mut self, mut frames: &[u8]) -> Result<(), RecordError> {
        while !frames.is_empty() {
            if self.open == RECORD_MOST {
                self.seal()?;
            }
            let (part, rest) = frames.split_at(frames.len().min(RECORD_MOST - self.open));
            frames = rest;
            self.make_room(part.len() + RECORD_TAIL);
            let at = self.sealed + RECORD_HEAD + self.open;
            self.octets()[at..at + part.len()].copy_from_slice(part);
            self.open += part.len();
        }
        Ok(())
    }

    /// Lets `read` fill at most `limit` octets of payload, in frames of at most `most`, and puts before each what `head`
    /// makes of its length. Answers what `read` did.
    pub(super) fn read_payload(
        &mut self,
        limit: usize,
        most: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
        mut head: impl FnMut(usize) -> [u8; FRAME_HEAD],
    ) -> Result<io::Result<usize>, RecordError> {
        if RECORD_MOST - self.open < FRAME_HEAD + limit.min(WORTHWHILE) {
            self.seal()?;
        }
        self.make_room(FRAME_HEAD + limit.min(PAYLOAD) + RECORD_TAIL);
        let places = self.places(limit, most);
        let octets = match &mut self.pooled {
            Some(pooled) => &mut pooled[..],
            None => &mut self.buffer[..],
        };
        let mut slices: [IoSliceMut<'_>; PIECES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut rest, mut offset) = (octets, 0);
        for (slice, place) in slices.iter_mut().zip(places.iter().flatten()) {
            let (_, after) = rest.split_at_mut(place.at - offset);
            let (room, after) = after.split_at_mut(place.room);
            (rest, offset) = (after, place.at + place.room);
            *slice = IoSliceMut::new(room);
        }
        let used = places.iter().flatten().count();
        let got = match read(&mut slices[..used]) {
            Ok(got) => got,
            Err(error) => return Ok(Err(error)),
        };
        let mut left = got;
        for place in places.iter().flatten() {
            let length = left.min(place.room);
            if length == 0 {
                break;
            }
            left -= length;
            let head = head(length);
            self.octets()[place.at - FRAME_HEAD..place.at].copy_from_slice(&head);
            self.open += FRAME_HEAD + length;
            if left > 0 {
                self.seal()?;
            }
        }
        Ok(Ok(got))
    }

    /// The places for payload, from the open record on: one frame a record.
    fn places(&mut self, limit: usize, most: usize) -> [Option<Place>; PIECES] {
        let end = self.octets().len();
        let mut begin = self.sealed;
        let mut open = self.open;
        let mut left = limit;
        std::array::from_fn(|_| {
            let at = begin + RECORD_HEAD + open + FRAME_HEAD;
            let space = end.saturating_sub(at + RECORD_TAIL);
            let room = left.min(most).min(RECORD_MOST - open - FRAME_HEAD).min(space);
            if room == 0 {
                return None;
            }
            left -= room;
            begin = at + room + RECORD_TAIL;
            open = 0;
            Some(Place { at, room })
        })
    }

    /// Protects the open record. Where keys are worn, new ones follow.
    fn seal(&mut self) -> Result<(), RecordError> {
        if self.open == 0 {
            return Ok(());
        }
        let end = self.sealed + RECORD_HEAD + self.open + RECORD_TAIL;
        let begin = self.sealed;
        let octets = match &mut self.pooled {
            Some(pooled) => &mut pooled[begin..end],
            None => &mut self.buffer[begin..end],
        };
        self.sealer.seal(octets)?;
        self.sealed = end;
        self.open = 0;
        Ok(())
    }

    /// Changes our keys: the peer asked for it.
    pub(super) fn update_keys(&mut self) -> Result<(), RecordError> {
        self.seal()?;
        let record = self.sealer.update_keys()?;
        self.push_record(&record);
        Ok(())
    }

    /// The last record: nothing follows it.
    pub(super) fn close_notify(&mut self) -> Result<(), RecordError> {
        self.seal()?;
        let record = self.sealer.close_notify()?;
        self.push_record(&record);
        Ok(())
    }

    fn push_record(&mut self, record: &[u8]) {
        self.make_room(record.len());
        let at = self.sealed;
        self.octets()[at..at + record.len()].copy_from_slice(record);
        self.sealed += record.len();
    }

    /// Seals and sends what the socket takes.
    pub(super) fn flush(&mut self, tcp: &TcpStream) -> Result<io::Result<()>, RecordError> {
        self.seal()?;
        if self.sealer.is_worn() {
            self.update_keys()?;
        }
        self.blocked = false;
        while self.sent < self.sealed {
            let (sent, sealed) = (self.sent, self.sealed);
            match tcp.try_write(&self.octets()[sent..sealed]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(Ok(()));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        self.sent = 0;
        self.sealed = 0;
        self.pooled = None;
        self.buffer = Vec::new();
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{on_worker, tcp_pair};
    use crate::tls::record::{Opened, Opener};
    use crate::tls::testing::direction;

    const HEAD: [u8; FRAME_HEAD] = [0xfe; FRAME_HEAD];

    #[derive(Debug, Clone)]
    enum Step {
        Frames(usize),
        Payload { has: usize, limit: usize, most: usize },
        Rekey,
        Flush,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1usize..40_000).prop_map(Step::Frames),
            (1usize..300, 1usize..300, Just(16_384)).prop_map(|(has, limit, most)| Step::Payload { has, limit, most }),
            (1usize..400_000, 1usize..300_000, 16_384usize..1_000_000).prop_map(|(has, limit, most)| Step::Payload {
                has,
                limit,
                most
            }),
            Just(Step::Rekey),
            Just(Step::Flush),
        ];
        prop::collection::vec(step, 1..30)
    }

    /// Does the steps and answers the plaintext that must arrive, and the octets on the wire.
    fn perform(output: &mut Output, steps: &[Step], mut flush: impl FnMut(&mut Output)) -> Vec<u8> {
        let mut plaintext = Vec::new();
        let mut next = 0u8;
        for step in steps {
            match *step {
                Step::Frames(length) => {
                    let frames: Vec<u8> = (0..length).map(|i| i as u8).collect();
                    output.push(&frames).unwrap();
                    plaintext.extend_from_slice(&frames);
                }
                Step::Payload { has, limit, most } => {
                    let mut lengths = Vec::new();
                    let mut payload = Vec::new();
                    let read = |slices: &mut [IoSliceMut<'_>]| {
                        let mut left = has;
                        for slice in slices {
                            let length = left.min(slice.len());
                            slice[..length].fill_with(|| {
                                next = next.wrapping_add(1);
                                next
                            });
                            payload.extend_from_slice(&slice[..length]);
                            left -= length;
                        }
                        Ok(has - left)
                    };
                    let head = |length| {
                        lengths.push(length);
                        HEAD
                    };
                    let got = output.read_payload(limit, most, read, head).unwrap().unwrap();
                    assert!(got > 0 && got <= limit && got == payload.len());
                    assert!(lengths.iter().all(|length| *length <= most) && lengths.iter().sum::<usize>() == got);
                    let mut rest = &payload[..];
                    for length in lengths {
                        plaintext.extend_from_slice(&HEAD);
                        plaintext.extend_from_slice(&rest[..length]);
                        rest = &rest[length..];
                    }
                }
                Step::Rekey => output.update_keys().unwrap(),
                Step::Flush => flush(output),
            }
        }
        plaintext
    }

    fn opened(opener: &mut Opener, mut wire: Vec<u8>) -> Vec<u8> {
        let mut plaintext = Vec::new();
        let mut rest = &mut wire[..];
        while let Some(end) = Opener::first_record(rest).unwrap() {
            let (record, behind) = rest.split_at_mut(end);
            if let Opened::Data(octets) = opener.open(record).unwrap() {
                plaintext.extend_from_slice(octets);
            }
            rest = behind;
        }
        assert!(rest.is_empty());
        plaintext
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_built_in_place_is_what_was_meant(steps in steps()) {
            let (sealer, mut opener) = direction();
            let mut output = Output::new(sealer);
            let mut wire = Vec::new();
            let plaintext = perform(&mut output, &steps, |output| output.seal().unwrap());
            output.seal().unwrap();
            let (sent, sealed) = (output.sent, output.sealed);
            wire.extend_from_slice(&output.octets()[sent..sealed]);
            prop_assert!(opened(&mut opener, wire) == plaintext);
        }
    }

    #[test]
    fn what_a_slow_socket_takes_arrives_whole_and_memory_is_given_back() {
        on_worker(async {
            use tokio::io::AsyncReadExt;
            let (here, mut there) = tcp_pair().await;
            let (sealer, mut opener) = direction();
            let mut output = Output::new(sealer);
            let steps: Vec<Step> = (0..200)
                .flat_map(|_| {
                    [Step::Payload { has: 100_000, limit: 100_000, most: 16_384 }, Step::Frames(9), Step::Flush]
                })
                .collect();
            let plaintext = perform(&mut output, &steps, |output| output.flush(&here).unwrap().unwrap());
            assert!(output.is_blocked() && output.is_congested());
            let mut wire = Vec::new();
            let mut buffer = vec![0; 1 << 20];
            while !output.is_empty() {
                tokio::select! {
                    got = there.read(&mut buffer) => wire.extend_from_slice(&buffer[..got.unwrap()]),
                    ready = here.writable() => {
                        ready.unwrap();
                        output.flush(&here).unwrap().unwrap();
                    }
                }
            }
            assert!(output.pooled.is_none() && output.buffer.capacity() == 0);
            drop(here);
            there.read_to_end(&mut wire).await.unwrap();
            assert!(opened(&mut opener, wire) == plaintext);
        });
    }
}
