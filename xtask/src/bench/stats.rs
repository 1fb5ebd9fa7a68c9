//! Samples of several rounds, and ratios that are made within a round.

/// Median and spread of samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Samples by the number of their round.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Series(Vec<(usize, f64)>);

impl Series {
    /// Adds a sample; what is no number is none.
    pub(crate) fn push(&mut self, round: usize, value: f64) {
        if value.is_finite() {
            self.0.push((round, value));
        }
    }

    /// The samples.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.0.iter().map(|(_, value)| *value).collect()
    }

    /// Median, lowest and highest.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let mut values = self.values();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        Some(Summary { median: middle(&values), low, high })
    }

    /// A third series made round by round of two, where both have a sample.
    pub(crate) fn pairwise(&self, other: &Self, make: impl Fn(f64, f64) -> f64) -> Self {
        let mut made = Self::default();
        for (round, value) in &self.0 {
            if let Some((_, against)) = other.0.iter().find(|(theirs, _)| theirs == round) {
                made.push(*round, make(*value, *against));
            }
        }
        made
    }

    /// The median over the rounds of this one's sample divided by the other's.
    pub(crate) fn ratio(&self, other: &Self) -> Option<f64> {
        self.pairwise(other, |value, against| value / against).summary().map(|summary| summary.median)
    }
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn series(values: &[f64]) -> Series {
        let mut series = Series::default();
        values.iter().enumerate().for_each(|(round, value)| series.push(round, *value));
        series
    }

    #[test]
    fn the_median_is_between_the_spread() {
        let of = |values: &[f64]| series(values).summary();
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some(Summary { median: 2.5, low: 1.0, high: 4.0 }));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[f64::NAN, 5.0]).map(|summary| summary.median), Some(5.0));
    }

    #[test]
    fn ratios_are_made_within_a_round() {
        // A machine that slows down by half in the middle of the run changes no ratio.
        let (fast, slow) = (series(&[200.0, 200.0, 100.0]), series(&[100.0, 100.0, 50.0]));
        assert_eq!(fast.ratio(&slow), Some(2.0));
        // Medians divided by each other would say 1.
        let (ours, theirs) = (series(&[10.0, 20.0, 40.0]), series(&[5.0, 40.0, 20.0]));
        assert_eq!(ours.ratio(&theirs), Some(2.0));
    }

    #[test]
    fn a_round_that_one_of_both_lacks_is_left_out() {
        let mut ours = Series::default();
        ours.push(1, 30.0);
        assert_eq!(ours.ratio(&series(&[1.0, 10.0, 1.0])), Some(3.0));
        assert_eq!(ours.ratio(&Series::default()), None);
        assert_eq!(ours.ratio(&series(&[1.0, 0.0])), None, "divided by nothing is no ratio");
    }
}
