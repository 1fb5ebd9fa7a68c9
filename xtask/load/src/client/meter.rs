//! What is measured between the end of a warm-up and the end of a run.

use std::time::{Duration, Instant};

use crate::latency::Latencies;
use crate::report::Report;
use crate::{Fault, cpu};

/// How long a run takes.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Not measured.
    pub warmup: Duration,
    /// Measured.
    pub measured: Duration,
    /// How long nothing may happen.
    pub patience: Duration,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Warming,
    Measuring,
    Over,
}

/// The stop-watch of a run.
#[derive(Debug)]
pub(super) struct Meter {
    window: Window,
    created: Instant,
    started: Option<(Instant, f64)>,
    progress: Instant,
    latencies: Latencies,
    operations: u64,
}

impl Meter {
    /// Starts the warm-up.
    pub(super) fn new(window: Window) -> anyhow::Result<Self> {
        let now = Instant::now();
        let latencies = Latencies::new()?;
        Ok(Self { window, created: now, started: None, progress: now, latencies, operations: 0 })
    }

    /// Looks at the clock; the first look after the warm-up starts the measurement.
    pub(super) fn phase(&mut self) -> Result<Phase, Fault> {
        let now = Instant::now();
        let stalled = now.duration_since(self.progress) > self.window.patience;
        if stalled {
            return Err(Fault::Stalled(self.window.patience.as_secs()));
        }
        match self.started {
            Some((started, _)) if now.duration_since(started) >= self.window.measured => Ok(Phase::Over),
            Some(_) => Ok(Phase::Measuring),
            None if now.duration_since(self.created) < self.window.warmup => Ok(Phase::Warming),
            None => {
                self.latencies.clear();
                self.operations = 0;
                self.started = Some((now, cpu::busy_seconds()?));
                Ok(Phase::Measuring)
            }
        }
    }

    /// Something happened.
    pub(super) fn progress(&mut self) {
        self.progress = Instant::now();
    }

    /// An operation ended.
    pub(super) fn record(&mut self, latency: Duration) {
        self.progress();
        self.operations += 1;
        self.latencies.record(latency);
    }

    /// What was measured until now.
    pub(super) fn report(&self, mode: &str) -> Result<Report, Fault> {
        let (started, cpu) = self.started.unwrap_or((self.created, f64::NAN));
        Ok(Report {
            mode: mode.to_owned(),
            seconds: started.elapsed().as_secs_f64(),
            operations: self.operations,
            cpu_seconds: if cpu.is_nan() { 0.0 } else { cpu::busy_seconds()? - cpu },
            latency: (self.latencies.count() > 0).then(|| self.latencies.percentiles()),
            ..Report::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(warmup: u64, measured: u64, patience: u64) -> Window {
        let ms = Duration::from_millis;
        Window { warmup: ms(warmup), measured: ms(measured), patience: ms(patience) }
    }

    #[test]
    fn the_warm_up_does_not_count() {
        let mut meter = Meter::new(window(20, 40, 10_000)).unwrap();
        assert_eq!(meter.phase().unwrap(), Phase::Warming);
        meter.record(Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(25));
        assert_eq!(meter.phase().unwrap(), Phase::Measuring);
        meter.record(Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(45));
        assert_eq!(meter.phase().unwrap(), Phase::Over);
        let report = meter.report("rr").unwrap();
        assert_eq!(report.operations, 1);
        assert!(report.latency.unwrap().max < 2000.0, "{report:?}");
        assert!(report.seconds >= 0.04 && report.seconds < 5.0, "{report:?}");
    }

    #[test]
    fn silence_is_a_fault() {
        let mut meter = Meter::new(window(0, 1000, 10)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(matches!(meter.phase(), Err(Fault::Stalled(_))));
    }
}
