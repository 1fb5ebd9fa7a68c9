//! Timing of cases in turn, and the rows that come of it.

use std::time::{Duration, Instant};

use serde::Serialize;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Samples of each case.
    pub rounds: usize,
    /// Time of one sample.
    pub slice: Duration,
}

/// Work that can be repeated.
pub struct Case<'a> {
    /// What it is called.
    pub row: String,
    /// Operations in one call of `work`.
    pub operations: u64,
    /// Does them.
    pub work: Box<dyn FnMut() + 'a>,
}

impl<'a> Case<'a> {
    /// A case of `operations` at a time.
    pub fn new(row: String, operations: usize, work: impl FnMut() + 'a) -> Self {
        Self { row, operations: operations as u64, work: Box::new(work) }
    }

    /// Allocations of one operation.
    pub fn allocations(&mut self) -> f64 {
        (self.work)();
        let counted = allocation_counter::measure(&mut self.work);
        counted.count_total as f64 / self.operations as f64
    }

    /// Nanoseconds of one operation.
    fn sample(&mut self, slice: Duration) -> f64 {
        let (started, mut calls) = (Instant::now(), 0_u64);
        loop {
            (self.work)();
            calls += 1;
            let taken = started.elapsed();
            if taken >= slice {
                return taken.as_nanos() as f64 / (calls * self.operations) as f64;
            }
        }
    }
}

/// One row of results.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub row: String,
    /// Always `warren`: there is nothing beside it.
    pub path: &'static str,
    /// Of median, low and high.
    pub unit: &'static str,
    /// Middle of the rounds.
    pub median: f64,
    /// Lowest of them.
    pub low: f64,
    /// Highest of them.
    pub high: f64,
    /// Allocations of one operation.
    pub allocations: f64,
    /// The median over the rounds of this row's sample divided by the first row's of the same kind.
    pub ratio_to_first: f64,
}

/// Measures cases in turn, so that a machine that slows down changes no ratio.
pub fn measure(mut cases: Vec<Case<'_>>, timing: Timing) -> Vec<Row> {
    let allocations: Vec<f64> = cases.iter_mut().map(Case::allocations).collect();
    let mut samples = vec![Vec::with_capacity(timing.rounds); cases.len()];
    for _ in 0..timing.rounds {
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            samples.push(case.sample(timing.slice));
        }
    }
    let first = samples.first().cloned().unwrap_or_default();
    let ratios = samples.iter().map(|samples| {
        let of_rounds = samples.iter().zip(&first).map(|(sample, first)| sample / first);
        spread(of_rounds.collect()).1
    });
    let ratios: Vec<f64> = ratios.collect();
    let cases = cases.into_iter().zip(allocations).zip(samples).zip(ratios);
    cases
        .map(|(((case, allocations), samples), ratio_to_first)| {
            let (low, median, high) = spread(samples);
            Row { row: case.row, path: "warren", unit: "ns", median, low, high, allocations, ratio_to_first }
        })
        .collect()
}

/// Lowest, middle, highest.
fn spread(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
    let last = samples.len().saturating_sub(1);
    (at(0), (at(last / 2) + at(samples.len() / 2)) / 2.0, at(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between_two() {
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert!(spread(Vec::new()).1.is_nan());
    }

    #[test]
    fn allocations_are_counted_for_each_operation() {
        let mut case = Case::new("boxes".into(), 4, || {
            for number in 0..8_u64 {
                std::hint::black_box(Box::new(number));
            }
        });
        assert_eq!(case.allocations(), 2.0);
        assert_eq!(Case::new("none".into(), 4, || {}).allocations(), 0.0);
    }

    #[test]
    fn rows_are_held_against_the_first() {
        let spin = |turns: u32| {
            move || {
                for turn in 0..turns {
                    std::hint::black_box(turn);
                }
            }
        };
        let timing = Timing { rounds: 3, slice: Duration::from_millis(5) };
        let rows =
            measure(vec![Case::new("one".into(), 1, spin(1000)), Case::new("ten".into(), 1, spin(10_000))], timing);
        assert_eq!(rows[0].ratio_to_first, 1.0);
        assert!((5.0..20.0).contains(&rows[1].ratio_to_first), "{rows:?}");
        assert!(rows[0].low <= rows[0].median && rows[0].median <= rows[0].high);
    }
}
