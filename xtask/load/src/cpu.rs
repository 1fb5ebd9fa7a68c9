//! The whole system's processor time.

use std::fs;
use std::io;

/// Ticks per second in /proc/stat: part of the kernel's ABI.
const USER_HZ: f64 = 100.0;

/// Seconds of processor time that the whole system has spent working since it
/// started, kernel and interrupts included, all cores summed.
///
/// # Errors
/// /proc/stat cannot be read.
pub fn busy_seconds() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    busy(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat has no line `cpu`"))
}

/// user, nice, system, irq and softirq; not idle, iowait, steal and the
/// guests' times that user has already.
fn busy(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let counted = [0, 1, 2, 5, 6].map(|field| ticks.get(field).copied());
    let sum: Option<f64> = counted.into_iter().sum();
    Some(sum? / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_do_not_count() {
        assert_eq!(busy("cpu  100 10 50 9999 8888 5 35 7777 1 1\ncpu0 1 1 1\n"), Some(2.0));
        assert_eq!(busy("intr 1"), None);
        assert_eq!(busy("cpu  1 2\n"), None);
    }

    #[test]
    fn this_machine_has_worked() {
        assert!(busy_seconds().unwrap() > 0.0);
    }
}
