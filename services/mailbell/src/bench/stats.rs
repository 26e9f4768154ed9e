//! Percentiles of what was measured.

use std::time::Duration;

use serde::Serialize;

/// A distribution in microseconds. Percentiles are values that were measured (nearest rank), not interpolated ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    /// How many values.
    pub(super) count: usize,
    /// Half of them are at most this.
    pub(super) p50_us: i64,
    /// Nine of ten.
    pub(super) p90_us: i64,
    /// 99 of 100.
    pub(super) p99_us: i64,
    /// All.
    pub(super) max_us: i64,
}

/// Summarizes values in microseconds, which may be negative where two clients are compared. `None` if there are none.
pub(super) fn summarize(mut values: Vec<i64>) -> Option<Summary> {
    values.sort_unstable();
    let max_us = *values.last()?;
    let rank = |percent: usize| {
        let rank = (values.len() * percent).div_ceil(100).max(1);
        values.get(rank - 1).copied().unwrap_or(max_us)
    };
    Some(Summary {
        count: values.len(),
        p50_us: rank(50),
        p90_us: rank(90),
        p99_us: rank(99),
        max_us,
    })
}

/// A duration in whole microseconds.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let summary = summarize((1..=200).rev().collect()).unwrap();
        assert_eq!(
            summary,
            Summary {
                count: 200,
                p50_us: 100,
                p90_us: 180,
                p99_us: 198,
                max_us: 200
            }
        );
        assert_eq!(
            summarize(vec![-3]).map(|s| (s.p50_us, s.p99_us)),
            Some((-3, -3))
        );
        assert_eq!(summarize(Vec::new()), None);
    }
}
