//! When to renew, and when to try again (identity.md §10).

use std::time::{Duration, SystemTime};

/// First wait after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait after failures.
const LAST_RETRY: Duration = Duration::from_secs(150);

/// Half of what is left at `now`, ±10 %: pods enrolled together do not renew
/// together.
pub(super) fn renew_at(now: SystemTime, not_after: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.5 * (0.9 + 0.2 * rand::random::<f64>()))
}

/// One certificate's next attempt.
#[derive(Debug)]
pub struct Schedule {
    next: SystemTime,
    failures: u32,
}

impl Schedule {
    /// Due at `now`, for the first time.
    pub fn due_from(now: SystemTime) -> Self {
        Self { next: now, failures: 0 }
    }

    /// Whether it is time.
    pub fn is_due(&self, now: SystemTime) -> bool {
        now >= self.next
    }

    /// Moves it to `at`.
    pub fn due_at(&mut self, at: SystemTime) {
        self.next = at;
    }

    /// At `at`, unless it is due earlier.
    pub fn due_by(&mut self, at: SystemTime) {
        self.next = self.next.min(at);
    }

    /// A certificate came: it is due again around half of its life.
    pub fn succeeded(&mut self, now: SystemTime, not_after: SystemTime) {
        *self = Self { next: renew_at(now, not_after), failures: 0 };
    }

    /// Doubling waits with ±20 % jitter; the first is shorter for certificates
    /// of seconds.
    pub fn failed(&mut self, now: SystemTime, ttl: Duration) {
        let first = FIRST_RETRY.min(ttl / 10);
        let wait = first.saturating_mul(1 << self.failures.min(20)).min(LAST_RETRY);
        self.failures += 1;
        self.next = now + wait.mul_f64(0.8 + 0.4 * rand::random::<f64>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_starts_around_half_life() {
        let now = SystemTime::UNIX_EPOCH;
        let day = Duration::from_secs(86_400);
        for _ in 0..200 {
            let at = renew_at(now, now + day).duration_since(now).unwrap();
            assert!(at >= day.mul_f64(0.45) && at <= day.mul_f64(0.55), "{at:?}");
        }
    }

    #[test]
    fn failures_back_off_up_to_a_limit() {
        let now = SystemTime::UNIX_EPOCH;
        let mut schedule = Schedule::due_from(now);
        let mut waits = Vec::new();
        for _ in 0..30 {
            schedule.failed(now, Duration::from_secs(86_400));
            waits.push(schedule.next.duration_since(now).unwrap());
        }
        assert!(waits[0] <= Duration::from_millis(1200));
        assert!(waits[29] >= LAST_RETRY.mul_f64(0.8) && waits[29] <= LAST_RETRY.mul_f64(1.2));
    }
}
