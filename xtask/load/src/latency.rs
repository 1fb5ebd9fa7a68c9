//! Latencies in an HDR histogram.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A minute, in the histogram's nanoseconds: longer ones are counted as this.
const HIGHEST: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// What was measured so far.
#[derive(Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// Longest.
    pub max: f64,
}

impl Latencies {
    /// None yet.
    ///
    /// # Errors
    /// The histogram's library refuses these bounds.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new_with_bounds(1, HIGHEST, DIGITS)? })
    }

    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(HIGHEST));
    }

    /// Forgets all, as after a warm-up.
    pub fn clear(&mut self) {
        self.histogram.reset();
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The summary.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile: f64| micros(self.histogram.value_at_quantile(quantile));
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: micros(self.histogram.max()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record(Duration::from_secs(3));
        latencies.clear();
        (1..=1000).for_each(|micros| latencies.record(Duration::from_micros(micros)));
        let found = latencies.percentiles();
        assert_eq!(latencies.count(), 1000);
        for (found, expected) in [(found.p50, 500.0), (found.p90, 900.0), (found.p99, 990.0), (found.max, 1000.0)] {
            assert!((found - expected).abs() <= expected / 500.0, "{found} for {expected}");
        }
    }
}
