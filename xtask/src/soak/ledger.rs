//! What came of every connection, held against the calendar at once: faults
//! are kept, the rest is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::calendar::{Calendar, Excuse, Span};
use super::lab::Pair;

/// Faults of one sort that are kept in words.
const KEPT: usize = 20;

/// What a client does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// One round trip, then the end: from the server, the client, or by reset.
    Short,
    /// Both directions at once for many seconds.
    Stream,
    /// A reader that takes its time while the server sends as fast as it can.
    SlowReader,
    /// The client ends its half; the server answers after that.
    HalfClose,
    /// One end resets in the midst; the other one must see a reset.
    Reset,
    /// Mostly nothing, for many seconds.
    Idle,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Short, Self::Stream, Self::SlowReader, Self::HalfClose, Self::Reset, Self::Idle];

    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Stream => "stream",
            Self::SlowReader => "slow reader",
            Self::HalfClose => "half-close",
            Self::Reset => "reset",
            Self::Idle => "idle",
        }
    }
}

/// How an attempt ended, as its client saw it.
#[derive(Debug)]
pub(super) enum End {
    /// As planned, every byte right.
    Well,
    /// The connection was refused, reset or stalled.
    Broken(String),
    /// A clean end while bytes were owed. Only a pod that goes away with its
    /// programs ends so; a reset by agent or policy must look like one.
    Early,
    /// Wrong or missing bytes. Never excused.
    Wrong(String),
}

/// A sort of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A byte was wrong, missing, or passed off as the end.
    Bytes,
    /// A connection failed that nothing excuses.
    Failed,
    /// A connection failed that was begun while an agent was gone: it had to wait.
    NotDelayed,
    /// Policy forbade it and it went on.
    NotDenied,
}

/// Faults of one sort.
#[derive(Debug, Default, Clone)]
pub(super) struct Found {
    pub(super) count: u64,
    /// The first of them.
    pub(super) words: Vec<String>,
}

/// Numbers of one kind of connection.
#[derive(Debug, Default, Clone)]
pub(super) struct Numbers {
    pub(super) well: u64,
    pub(super) excused: BTreeMap<Excuse, u64>,
}

#[derive(Debug, Default)]
struct Books {
    numbers: BTreeMap<Kind, Numbers>,
    faults: BTreeMap<Fault, Found>,
    /// Attempts begun while an agent was gone that succeeded, and the longest of them.
    delayed: u64,
    longest_delay: Duration,
}

/// The books of a run.
#[derive(Debug)]
pub(super) struct Ledger {
    begun: Instant,
    calendar: Mutex<Calendar>,
    books: Mutex<Books>,
    shorts: AtomicU64,
    bytes: AtomicU64,
    open: AtomicU64,
}

/// A connection that is being tried. Dropped without an end (its pod is gone)
/// it counts for nothing.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    ledger: &'a Ledger,
    pair: Pair,
    kind: Kind,
    start: Instant,
}

impl Ledger {
    /// Empty books.
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            calendar: Mutex::default(),
            books: Mutex::default(),
            shorts: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }

    /// The windows.
    pub(super) fn calendar(&self) -> MutexGuard<'_, Calendar> {
        self.calendar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client begins.
    pub(super) fn begin(&self, pair: Pair, kind: Kind) -> Attempt<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Attempt { ledger: self, pair, kind, start: Instant::now() }
    }

    /// Counts payload that was received and found right.
    pub(super) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A server saw wrong bytes, or a stream that ended as if it were whole.
    pub(super) fn server_saw(&self, pair: Pair, start: Instant, what: &str, may_be_killed: bool) {
        let span = Span { start, end: Instant::now() };
        if may_be_killed && self.calendar().pod_was_away(pair, span) {
            return;
        }
        self.fault(Fault::Bytes, pair, span, &format!("the server of {pair} saw {what}"));
    }

    fn fault(&self, sort: Fault, pair: Pair, span: Span, words: &str) {
        let at = span.end.duration_since(self.begun).as_secs_f32();
        let lasted = span.end.duration_since(span.start).as_secs_f32();
        let mut books = self.books();
        let found = books.faults.entry(sort).or_default();
        found.count += 1;
        if found.words.len() < KEPT {
            found.words.push(format!("at {at:.2} s, after {lasted:.2} s, {pair}: {words}"));
        }
    }

    /// Seconds since the books were opened.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Short connections that went well.
    pub(super) fn shorts(&self) -> u64 {
        self.shorts.load(Ordering::Relaxed)
    }

    /// Bytes of payload received and found right, at all ends.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Connections that clients have open or are trying.
    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// The numbers of each kind.
    pub(super) fn numbers(&self) -> BTreeMap<Kind, Numbers> {
        self.books().numbers.clone()
    }

    /// Faults of one sort.
    pub(super) fn found(&self, sort: Fault) -> Found {
        self.books().faults.get(&sort).cloned().unwrap_or_default()
    }

    /// All faults so far.
    pub(super) fn faults(&self) -> u64 {
        self.books().faults.values().map(|found| found.count).sum()
    }

    /// How many were begun while an agent was gone and succeeded, and what the longest took.
    pub(super) fn delayed(&self) -> (u64, Duration) {
        let books = self.books();
        (books.delayed, books.longest_delay)
    }

    /// For the report.
    pub(super) fn json(&self) -> Value {
        let kinds: Vec<Value> = self
            .numbers()
            .into_iter()
            .map(|(kind, numbers)| {
                let excused = |excuse| numbers.excused.get(&excuse).copied().unwrap_or_default();
                json!({
                    "kind": kind.name(), "well": numbers.well, "denied": excused(Excuse::Denied),
                    "agent_away": excused(Excuse::AgentAway), "pod_away": excused(Excuse::PodAway),
                })
            })
            .collect();
        json!({ "kinds": kinds, "bytes": self.bytes(), "faults": self.faults() })
    }
}

impl Attempt<'_> {
    /// It ended; tells whether well.
    pub(super) fn finish(self, end: End) -> bool {
        let span = Span { start: self.start, end: Instant::now() };
        let (ledger, pair, kind) = (self.ledger, self.pair, self.kind);
        let well = matches!(end, End::Well);
        let (denial, excuse, absent, away) = {
            let calendar = ledger.calendar();
            let excuse = if well { None } else { calendar.excuse(pair, span) };
            let absent = calendar.begun_in_absence(pair, span);
            (calendar.denial_fault(pair, span, well), excuse, absent, calendar.pod_was_away(pair, span))
        };
        if let Some(words) = denial {
            ledger.fault(Fault::NotDenied, pair, span, &format!("{} {words}", kind.name()));
        }
        match end {
            End::Well => ledger.went_well(kind, absent.then(|| span.end - span.start)),
            End::Early if away => ledger.excused(kind, Excuse::PodAway),
            End::Early => ledger.fault(Fault::Bytes, pair, span, &format!("{}: a clean end too early", kind.name())),
            End::Wrong(words) => ledger.fault(Fault::Bytes, pair, span, &format!("{}: {words}", kind.name())),
            End::Broken(words) => match excuse {
                Some(excuse) => ledger.excused(kind, excuse),
                None => {
                    let sort = if absent { Fault::NotDelayed } else { Fault::Failed };
                    ledger.fault(sort, pair, span, &format!("{}: {words}", kind.name()));
                }
            },
        }
        well
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.ledger.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ledger {
    fn went_well(&self, kind: Kind, delay: Option<Duration>) {
        if kind == Kind::Short {
            self.shorts.fetch_add(1, Ordering::Relaxed);
        }
        let mut books = self.books();
        books.numbers.entry(kind).or_default().well += 1;
        if let Some(delay) = delay.filter(|_| kind == Kind::Short) {
            books.delayed += 1;
            books.longest_delay = books.longest_delay.max(delay);
        }
    }

    fn excused(&self, kind: Kind, excuse: Excuse) {
        *self.books().numbers.entry(kind).or_default().excused.entry(excuse).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::lab::PAIRS;
    use super::*;

    #[test]
    fn wrong_bytes_are_never_excused() {
        let ledger = Ledger::new();
        ledger.calendar().pod_away(PAIRS[0].from);
        let broken = ledger.begin(PAIRS[0], Kind::Short);
        assert!(!broken.finish(End::Broken("reset".into())));
        assert_eq!(ledger.faults(), 0);
        ledger.begin(PAIRS[0], Kind::Short).finish(End::Wrong("a byte".into()));
        assert_eq!(ledger.found(Fault::Bytes).count, 1);
        assert_eq!(ledger.open(), 0);
    }

    #[test]
    fn a_failure_without_an_excuse_is_a_fault() {
        let ledger = Ledger::new();
        ledger.begin(PAIRS[0], Kind::Idle).finish(End::Broken("reset".into()));
        assert!(ledger.begin(PAIRS[0], Kind::Short).finish(End::Well));
        assert_eq!((ledger.found(Fault::Failed).count, ledger.shorts()), (1, 1));
    }
}
