//! What is told of many values of the same thing.

use serde::Serialize;

/// Many values in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many there were.
    pub count: usize,
    /// The middle one, or the middle of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// 95 of 100 are no larger; with few values the largest.
    pub p95: f64,
}

impl Summary {
    /// `None` without values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let (first, last) = (*values.first()?, *values.last()?);
        let middle = values[count / 2];
        let median = if count % 2 == 1 {
            middle
        } else {
            f64::midpoint(values[count / 2 - 1], middle)
        };
        // The nearest rank.
        let rank = (count * 95).div_ceil(100);
        Some(Self {
            count,
            median,
            min: first,
            p95: values.get(rank - 1).copied().unwrap_or(last),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_does_not_depend_on_the_order() {
        let summary = Summary::of(&[3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((summary.count, summary.min, summary.p95), (4, 1.0, 10.0));
        assert!((summary.median - 2.5).abs() < 1e-9);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_of_twenty_lies_above_the_95th_percentile() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        let summary = Summary::of(&values).unwrap();
        assert!((summary.p95 - 19.0).abs() < 1e-9, "{summary:?}");
    }
}
