//! Waiting for something to become true, with a limit.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `probe` gives a value and returns it; panics with `what` when `limit` passes first.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(INTERVAL);
    }
}

/// Checks during all of `period` that `probe` finds nothing; panics with what it found.
///
/// For promises of the form "this never happens": there is no event to wait for.
#[track_caller]
pub fn never<T: std::fmt::Debug>(what: &str, period: Duration, mut probe: impl FnMut() -> Option<T>) {
    let start = Instant::now();
    while start.elapsed() < period {
        if let Some(found) = probe() {
            panic!("{what}: {found:?} after {:?}", start.elapsed());
        }
        std::thread::sleep(INTERVAL);
    }
}
