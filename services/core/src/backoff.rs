//! Growing delays with full jitter, so that many who failed together do not come back together.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Delays between attempts: uniformly between `floor` and a bound that doubles up to `most`.
#[derive(Debug, Clone)]
pub struct Backoff {
    floor: Duration,
    first: Duration,
    most: Duration,
    attempts: u32,
}

impl Backoff {
    /// The first delay is at most `first`, none is longer than `most` or shorter than `floor`.
    #[must_use]
    pub fn new(floor: Duration, first: Duration, most: Duration) -> Self {
        Self {
            floor,
            first,
            most,
            attempts: 0,
        }
    }

    /// How long to wait before the next attempt.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let factor = 1u32 << self.attempts.min(20);
        let bound = self.first.saturating_mul(factor).min(self.most);
        self.attempts = self.attempts.saturating_add(1);
        if bound <= self.floor {
            return self.floor;
        }
        let spread = (bound - self.floor).as_secs_f64();
        self.floor + Duration::from_secs_f64(spread * rng.random::<f64>())
    }

    /// How many attempts failed in a row.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// It worked: the next failure begins anew.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng as _, rngs::SmallRng};

    #[test]
    fn grows_jitters_and_stays_bounded() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (floor, first, most) = (
            Duration::from_millis(10),
            Duration::from_secs(1),
            Duration::from_secs(60),
        );
        let mut longest = Duration::ZERO;
        let mut seen = Vec::new();
        for _ in 0..200 {
            let mut backoff = Backoff::new(floor, first, most);
            let mut bound = first;
            for _ in 0..40 {
                let delay = backoff.next(&mut rng);
                assert!(delay >= floor && delay <= bound.min(most));
                bound = bound.saturating_mul(2);
                longest = longest.max(delay);
                seen.push(delay);
            }
            backoff.reset();
            assert!(backoff.next(&mut rng) <= first);
        }
        assert!(longest > most * 9 / 10, "the bound is used: {longest:?}");
        assert!(
            seen.iter().any(|delay| *delay < first / 10),
            "the jitter is full"
        );
    }
}
