//! The link between the nodes, looked at as it runs: every byte of TCP payload
//! belongs to a TLS record on the tunnel's port, and no canary is in clear.
//! Nothing is kept, so that a recording may last for hours.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use memchr::memmem::Finder;
use serde::Serialize;

use super::lab::{CANARY, NODES};
use crate::netlab::network::LINK;
use crate::netlab::pcap::{self, Segment};
use crate::netlab::process::inside;
use crate::process;

const HBONE_PORT: u16 = 15008;
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// What the recorder may lag behind when it is told to end.
const LAST: Duration = Duration::from_secs(2);
/// Certificates are hidden in TLS 1.3 too.
const IDENTITY: &[u8] = b"spiffe://";
/// Findings that are kept in words.
const KEPT: usize = 20;
/// Segments of a direction that wait for one that is missing.
const WAITING: usize = 4096;
/// A TLS 1.3 record's content and its expansion.
const LARGEST_RECORD: usize = 16384 + 256;
const HEADER: usize = 5;

/// What a recording found.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Found {
    pub(super) frames: u64,
    /// Connections to the tunnel's port.
    pub(super) tunnels: u64,
    pub(super) tls_records: u64,
    pub(super) tls_bytes: u64,
    /// Frames that the kernel could not give to the recorder in time.
    pub(super) lost: u64,
    /// Directions with a hole where a frame is missing: their records are not followed any further.
    pub(super) holes: u64,
    /// What should not be there.
    pub(super) count: u64,
    pub(super) words: Vec<String>,
}

impl Found {
    fn fault(&mut self, words: impl FnOnce() -> String) {
        self.count += 1;
        if self.words.len() < KEPT {
            self.words.push(words());
        }
    }
}

/// A recording that runs.
#[derive(Debug)]
pub(super) struct Recorder {
    tcpdump: Child,
    log: PathBuf,
    reader: Option<JoinHandle<io::Result<()>>>,
    found: Arc<Mutex<Found>>,
}

impl Recorder {
    /// Starts tcpdump on the first node's end of the link.
    pub(super) fn start(logs: &Path) -> Result<Self> {
        let log = logs.join("tcpdump.log");
        let errors = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = inside(&NODES[0].netns(), "tcpdump");
        command.args(["-i", LINK, "-n", "-s", "0", "-B", "131072", "-Z", "root", "-w", "-"]);
        command.stdout(Stdio::piped()).stderr(errors).process_group(0);
        let mut tcpdump = command.spawn().with_context(|| process::shown(&command))?;
        let output = tcpdump.stdout.take().context("tcpdump's output")?;
        let found = Arc::new(Mutex::new(Found::default()));
        let shared = Arc::clone(&found);
        let reader = std::thread::Builder::new().name("recorder".into()).spawn(move || read(output, &shared))?;
        let mut recorder = Self { tcpdump, log, reader: Some(reader), found };
        recorder.wait_until_it_listens()?;
        Ok(recorder)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.said().contains("listening on") {
            if self.tcpdump.try_wait()?.is_some() || started.elapsed() > START_LIMIT {
                bail!("tcpdump: {}", self.said());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it found so far.
    pub(super) fn so_far(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, and gives what it found.
    pub(super) fn stop(mut self) -> Result<Found> {
        std::thread::sleep(LAST);
        self.end();
        if let Some(reader) = self.reader.take() {
            match reader.join() {
                Ok(read) => read.context("recording")?,
                Err(_) => bail!("the recorder's thread died"),
            }
        }
        let mut found = self.so_far();
        found.lost = lost(&self.said()).context("tcpdump does not say what it lost")?;
        Ok(found)
    }

    fn end(&mut self) {
        process::terminate(&self.tcpdump);
        let _ = self.tcpdump.wait();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.end();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// `12 packets dropped by kernel`
fn lost(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_suffix(" packets dropped by kernel")?.trim().parse().ok())
}

fn read(output: ChildStdout, found: &Mutex<Found>) -> io::Result<()> {
    let mut input = io::BufReader::with_capacity(1 << 20, output);
    let mut watch = Watch::new();
    pcap::read_header(&mut input)?;
    let mut frame = Vec::new();
    while pcap::read_frame(&mut input, &mut frame)? {
        watch.frame(&frame, &mut found.lock().unwrap_or_else(PoisonError::into_inner));
    }
    Ok(())
}

type Way = (SocketAddr, SocketAddr);

/// Follows every direction of every connection.
struct Watch {
    secrets: [(Finder<'static>, &'static str); 2],
    ways: HashMap<Way, Direction>,
}

impl Watch {
    fn new() -> Self {
        let secrets = [(Finder::new(CANARY), "the canary"), (Finder::new(IDENTITY), "an identity")];
        Self { secrets, ways: HashMap::new() }
    }

    fn frame(&mut self, frame: &[u8], found: &mut Found) {
        found.frames += 1;
        for (secret, name) in &self.secrets {
            if secret.find(frame).is_some() {
                found.fault(|| format!("a frame holds {name} in clear"));
            }
        }
        let Some(segment) = pcap::segment(frame) else { return };
        let (from, to) = (segment.from, segment.to);
        if from.port() != HBONE_PORT && to.port() != HBONE_PORT {
            if !segment.payload.is_empty() {
                found.fault(|| format!("{} bytes from {from} to {to}", segment.payload.len()));
            }
            return;
        }
        if segment.syn {
            // One that is sent again begins nothing.
            if self.ways.get(&(from, to)).is_none_or(|known| known.syn != Some(segment.sequence)) {
                found.tunnels += u64::from(to.port() == HBONE_PORT);
                self.ways.insert((from, to), Direction::after(segment.sequence));
            }
        } else if !segment.payload.is_empty() {
            self.payload(&segment, found);
        }
    }

    fn payload(&mut self, segment: &Segment<'_>, found: &mut Found) {
        let (from, to) = (segment.from, segment.to);
        let Some(direction) = self.ways.get_mut(&(from, to)) else {
            found.holes += 1;
            self.ways.insert((from, to), Direction::lost());
            return;
        };
        match direction.segment(segment.sequence, segment.payload) {
            Ok(records) => {
                found.tls_records += records;
                found.tls_bytes += segment.payload.len() as u64;
            }
            Err(Broken::Hole) => found.holes += 1,
            Err(Broken::NotTls) => found.fault(|| format!("{from} to {to}: not a TLS record")),
        }
    }
}

/// Why a direction cannot be followed any further.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    Hole,
    NotTls,
}

/// One direction of a connection: where its next byte and its next record are.
#[derive(Debug, Default)]
struct Direction {
    syn: Option<u32>,
    next: u32,
    header: Vec<u8>,
    record: usize,
    waiting: BTreeMap<u32, Vec<u8>>,
    lost: bool,
}

impl Direction {
    fn after(syn: u32) -> Self {
        Self { syn: Some(syn), next: syn.wrapping_add(1), ..Self::default() }
    }

    fn lost() -> Self {
        Self { lost: true, ..Self::default() }
    }

    /// Takes a segment; gives the number of records that began in it and in what waited for it.
    fn segment(&mut self, sequence: u32, payload: &[u8]) -> Result<u64, Broken> {
        if self.lost {
            return Ok(0);
        }
        let taken = self.take(sequence, payload);
        if taken.is_err() {
            self.lost = true;
            self.waiting.clear();
        }
        taken
    }

    fn take(&mut self, sequence: u32, payload: &[u8]) -> Result<u64, Broken> {
        let mut records = self.bytes(sequence, payload)?;
        while let Some(sequence) = self.waiting.keys().copied().find(|sequence| !self.is_ahead(*sequence)) {
            let bytes = self.waiting.remove(&sequence).unwrap_or_default();
            records += self.bytes(sequence, &bytes)?;
        }
        Ok(records)
    }

    fn is_ahead(&self, sequence: u32) -> bool {
        (1..1 << 31).contains(&sequence.wrapping_sub(self.next))
    }

    fn bytes(&mut self, sequence: u32, payload: &[u8]) -> Result<u64, Broken> {
        if self.is_ahead(sequence) {
            self.waiting.insert(sequence, payload.to_vec());
            return if self.waiting.len() > WAITING { Err(Broken::Hole) } else { Ok(0) };
        }
        // What came before is a retransmission.
        let known = self.next.wrapping_sub(sequence) as usize;
        let fresh = payload.get(known..).unwrap_or_default();
        self.next = self.next.wrapping_add(u32::try_from(fresh.len()).unwrap_or_default());
        self.walk(fresh)
    }

    /// Steps from record to record.
    fn walk(&mut self, mut bytes: &[u8]) -> Result<u64, Broken> {
        let mut records = 0;
        while !bytes.is_empty() {
            if self.record > 0 {
                let part = self.record.min(bytes.len());
                self.record -= part;
                bytes = &bytes[part..];
                continue;
            }
            let part = (HEADER - self.header.len()).min(bytes.len());
            self.header.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if self.header.len() == HEADER {
                self.record = record_length(&self.header).ok_or(Broken::NotTls)?;
                self.header.clear();
                records += 1;
            }
        }
        Ok(records)
    }
}

fn record_length(header: &[u8]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes([*header.get(3)?, *header.get(4)?]));
    let known = matches!(header[0], 20..=23) && header[1] == 3 && matches!(header[2], 1 | 3);
    (known && length > 0 && length <= LARGEST_RECORD).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlab::pcap::tests::frame;

    fn record(content: &[u8]) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        record.extend(content);
        record
    }

    fn watched(frames: &[Vec<u8>]) -> Found {
        let (mut watch, mut found) = (Watch::new(), Found::default());
        frames.iter().for_each(|frame| watch.frame(frame, &mut found));
        found
    }

    fn sent(port: u16, parts: &[(u32, &[u8])]) -> Found {
        let (from, to) = ((1, 40000), (2, port));
        let mut frames = vec![frame(from, to, 99, true, b"")];
        frames.extend(parts.iter().map(|(sequence, part)| frame(from, to, *sequence, false, part)));
        watched(&frames)
    }

    #[test]
    fn records_are_followed_in_any_order() {
        let bytes = [record(&[7; 100]), record(&[8; 50])].concat();
        let found =
            sent(HBONE_PORT, &[(100, &bytes[..3]), (140, &bytes[40..]), (100, &bytes[..30]), (130, &bytes[30..60])]);
        assert_eq!((found.count, found.holes, found.tls_records, found.tunnels), (0, 0, 2, 1), "{found:?}");
    }

    #[test]
    fn anything_else_is_found() {
        assert_eq!(sent(8080, &[(100, &record(&[7; 10]))]).count, 1, "TLS on another port");
        assert_eq!(sent(HBONE_PORT, &[(100, b"GET / HTTP/1.1")]).count, 1, "no TLS on the tunnel's port");
        assert_eq!(sent(HBONE_PORT, &[(100, &record(&[7; 10])), (115, b"hello")]).count, 1, "no TLS later on");
        assert_eq!(sent(HBONE_PORT, &[(100, &record(CANARY))]).count, 1, "the canary");
        assert_eq!(watched(&[frame((1, 1), (2, HBONE_PORT), 5, false, &record(b"x"))]).holes, 1, "its SYN is missing");
    }

    #[test]
    fn what_tcpdump_lost_is_read() {
        let said =
            "listening on link0\n12 packets captured\n12 packets received by filter\n3 packets dropped by kernel\n";
        assert_eq!(lost(said), Some(3));
        assert_eq!(lost("listening"), None);
    }
}
