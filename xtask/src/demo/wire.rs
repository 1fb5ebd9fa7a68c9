//! The proof on the wire: the link between the nodes recorded, and every byte
//! of it accounted for.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::lab::{NODES, PODS};
use crate::netlab::network::LINK;
use crate::netlab::pcap::{self, Segment};
use crate::netlab::process::{Daemon, inside};
use crate::process;

const HBONE_PORT: u16 = 15008;
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// The payload of the ping that marks the end of a recording: what came before
/// it has reached the file when it has. In hexadecimal, as ping wants it.
const END_MARK: &[u8; 10] = b"warren-end";
const MARK_LIMIT: Duration = Duration::from_secs(5);
/// A TLS 1.3 record's content and its expansion.
const LARGEST_RECORD: usize = 16384 + 256;
const RECORD_HEADER: usize = 5;

/// A recording that runs.
#[derive(Debug)]
pub(super) struct Recording {
    file: PathBuf,
    log: PathBuf,
    tcpdump: Daemon,
}

impl Recording {
    /// Starts tcpdump on the first node's end of the link.
    pub(super) fn start(directory: &Path, name: &str) -> Result<Self> {
        let file = directory.join(format!("{name}.pcap"));
        let log = directory.join(format!("{name}.tcpdump.log"));
        let mut command = inside(&NODES[0].netns(), "tcpdump");
        command
            .args(["-i", LINK, "-n", "-U", "--immediate-mode", "-s", "0", "-B", "16384", "-Z", "root", "-w"])
            .arg(&file);
        let mut tcpdump = Daemon::start("tcpdump", &log, &mut command)?;
        let started = Instant::now();
        while !fs::read_to_string(&log).unwrap_or_default().contains("listening on") {
            if !tcpdump.is_running() || started.elapsed() > START_LIMIT {
                bail!("tcpdump: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            thread::sleep(POLL);
        }
        Ok(Self { file, log, tcpdump })
    }

    /// Ends it and reads what it recorded.
    pub(super) fn stop(mut self) -> Result<Found> {
        let marked = self.mark_the_end();
        self.tcpdump.ask_to_end();
        self.tcpdump.wait();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let bytes = fs::read(&self.file).with_context(|| self.file.display().to_string())?;
        marked?;
        let mut found = analyse(&bytes)?;
        if !log.contains("\n0 packets dropped by kernel") {
            found.faults.push(format!("tcpdump lost packets, so that the proof has holes: {}", log.trim()));
        }
        Ok(found)
    }

    fn mark_the_end(&self) -> Result<()> {
        let digits: String = END_MARK.iter().map(|byte| format!("{byte:02x}")).collect();
        let [peer, _] = NODES[1].addresses();
        let mut ping = inside(&NODES[0].netns(), "ping");
        process::output(ping.args(["-c", "1", "-W", "2", "-s", "64", "-p", &digits, &peer.to_string()]))?;
        let started = Instant::now();
        while memchr::memmem::find(&fs::read(&self.file)?, END_MARK).is_none() {
            if started.elapsed() > MARK_LIMIT {
                bail!("the recording of the link does not reach its end mark");
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The recording as a daemon, for an end without looking at it.
    pub(super) fn abandon(self) -> Daemon {
        self.tcpdump
    }
}

/// What a recording holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) frames: usize,
    /// TCP connections on the tunnel's port.
    pub(super) tunnels: usize,
    pub(super) tls_records: usize,
    pub(super) tls_bytes: usize,
    /// Frames or streams with a canary or an identity in clear.
    pub(super) in_clear: Vec<String>,
    /// TCP payload that is not TLS on the tunnel's port.
    pub(super) faults: Vec<String>,
}

type Direction = (SocketAddr, SocketAddr);

/// Bytes of one direction of a connection by their offset from its SYN.
#[derive(Debug, Default)]
struct Stream {
    start: Option<u32>,
    parts: BTreeMap<u32, Vec<u8>>,
}

fn analyse(file: &[u8]) -> Result<Found> {
    let frames = pcap::frames(file)?;
    let words = secrets();
    let mut found = Found { frames: frames.len(), ..Found::default() };
    let mut streams: BTreeMap<Direction, Vec<Stream>> = BTreeMap::new();
    for frame in &frames {
        found
            .in_clear
            .extend(words.iter().filter(|word| contains(frame, word)).map(|word| format!("a frame holds {word}")));
        let Some(segment) = pcap::segment(frame) else { continue };
        if segment.from.port() == HBONE_PORT || segment.to.port() == HBONE_PORT {
            add(&mut streams, &segment);
        } else if !segment.payload.is_empty() {
            found.faults.push(format!("{} bytes from {} to {}", segment.payload.len(), segment.from, segment.to));
        }
    }
    for ((from, to), stream) in
        streams.iter().flat_map(|(direction, list)| list.iter().map(move |stream| (direction, stream)))
    {
        found.tunnels += usize::from(to.port() == HBONE_PORT);
        read_stream(*from, *to, stream, &words, &mut found);
    }
    Ok(found)
}

/// The pods' canaries, and their identities: TLS 1.3 hides certificates too.
fn secrets() -> Vec<String> {
    PODS.iter().map(|pod| pod.canary()).chain(["spiffe://".to_owned()]).collect()
}

fn contains(bytes: &[u8], word: &str) -> bool {
    memchr::memmem::find(bytes, word.as_bytes()).is_some()
}

/// A SYN begins a stream; the same four numbers may be used again later.
fn add(streams: &mut BTreeMap<Direction, Vec<Stream>>, segment: &Segment<'_>) {
    let list = streams.entry((segment.from, segment.to)).or_default();
    if segment.syn {
        let start = segment.sequence.wrapping_add(1);
        if list.last().is_none_or(|stream| stream.start != Some(start)) {
            list.push(Stream { start: Some(start), ..Stream::default() });
        }
    }
    if segment.payload.is_empty() {
        return;
    }
    if list.is_empty() {
        list.push(Stream::default());
    }
    if let Some(stream) = list.last_mut() {
        let offset = segment.sequence.wrapping_sub(stream.start.unwrap_or(segment.sequence));
        let part = stream.parts.entry(offset).or_default();
        if part.len() < segment.payload.len() {
            *part = segment.payload.to_vec();
        }
    }
}

fn read_stream(from: SocketAddr, to: SocketAddr, stream: &Stream, words: &[String], found: &mut Found) {
    let mut bytes: Vec<u8> = Vec::new();
    for (offset, part) in &stream.parts {
        let offset = *offset as usize;
        if offset > bytes.len() {
            found.faults.push(format!("{from} to {to}: a hole of {} bytes in the recording", offset - bytes.len()));
            return;
        }
        // A retransmission may overlap what is there.
        bytes.extend(part.get(bytes.len() - offset..).unwrap_or_default());
    }
    found
        .in_clear
        .extend(words.iter().filter(|word| contains(&bytes, word)).map(|word| format!("{from} to {to} holds {word}")));
    match tls_records(&bytes) {
        Ok(records) => {
            found.tls_records += records;
            found.tls_bytes += bytes.len();
        }
        Err(at) => found.faults.push(format!("{from} to {to}: not a TLS record at byte {at}")),
    }
}

/// The number of TLS records that a stream consists of, the last one perhaps
/// cut; or where it stops being TLS.
fn tls_records(bytes: &[u8]) -> Result<usize, usize> {
    let mut at = 0;
    let mut records = 0;
    while at < bytes.len() {
        let Some(header) = bytes.get(at..at + RECORD_HEADER) else { break };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let known = matches!(header[0], 20..=23) && header[1] == 3 && matches!(header[2], 1 | 3);
        if !known || length == 0 || length > LARGEST_RECORD {
            return Err(at);
        }
        at += RECORD_HEADER + length;
        records += 1;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlab::pcap::tests::{file, frame};

    fn record(content: &[u8]) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        record.extend(content);
        record
    }

    fn captured(payload: &[u8], port: u16) -> Found {
        let (from, to) = ((1, 40000), (2, port));
        let half = payload.len() / 2;
        let frames = [
            frame(from, to, 99, true, b""),
            frame(from, to, 100 + half as u32, false, &payload[half..]),
            frame(from, to, 100, false, &payload[..half]),
            frame(from, to, 100, false, &payload[..half]),
        ];
        analyse(&file(&frames)).unwrap()
    }

    #[test]
    fn tls_on_the_tunnel_port_is_well_in_any_order() {
        let found = captured(&record(&[7; 100]), HBONE_PORT);
        assert_eq!(
            (found.faults.len(), found.in_clear.len(), found.tls_records, found.tunnels),
            (0, 0, 1, 1),
            "{found:?}"
        );
    }

    #[test]
    fn anything_else_is_found() {
        assert!(!captured(&record(&[7; 100]), 8080).faults.is_empty(), "TLS on another port");
        assert!(!captured(b"GET / HTTP/1.1\r\n\r\n", HBONE_PORT).faults.is_empty(), "clear text on the tunnel's port");
    }

    #[test]
    fn a_canary_cut_in_two_is_found() {
        let canary = PODS[0].canary();
        let found = captured(&record(canary.as_bytes()), HBONE_PORT);
        assert_eq!(found.in_clear.len(), 1, "{found:?}");
    }

    #[test]
    fn a_hole_is_a_fault() {
        let (from, to) = ((1, 40000), (2, HBONE_PORT));
        let frames = [frame(from, to, 99, true, b""), frame(from, to, 200, false, &record(b"x"))];
        assert_eq!(analyse(&file(&frames)).unwrap().faults.len(), 1);
    }
}
