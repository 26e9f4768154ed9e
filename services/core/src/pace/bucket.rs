//! A token bucket whose rate is told with each call, since it changes all the time.

use std::time::Duration;

/// A fifth of a second's worth may come at once.
const BURST_SECONDS: f64 = 0.2;
/// What floating point may be off by.
const EPSILON: f64 = 1e-6;

/// The most that a bucket of this rate holds: at least the one token without which nothing would ever go.
fn most(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(1.0)
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// With one token, not a burst: a process that begins has company.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            tokens: 1.0,
            at: now,
        }
    }

    /// Counts what came since the last call at this rate, a second.
    pub(super) fn settle(&mut self, now: Duration, rate: f64) {
        let gained = now.saturating_sub(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(most(rate));
        self.at = self.at.max(now);
    }

    /// When there is a token.
    pub(super) fn due(&mut self, now: Duration, rate: f64) -> Duration {
        self.settle(now, rate);
        let lacks = 1.0 - self.tokens;
        if lacks <= EPSILON {
            return now;
        }
        now + Duration::from_secs_f64(lacks / rate)
    }

    /// Takes the token that is due.
    pub(super) fn take(&mut self, now: Duration, rate: f64) {
        self.settle(now, rate);
        self.tokens -= 1.0;
    }

    /// Puts back a token that was not used.
    pub(super) fn give_back(&mut self, now: Duration, rate: f64) {
        self.settle(now, rate);
        self.tokens = (self.tokens + 1.0).min(most(rate));
    }

    /// Whether a new one would be no fuller but for a burst: hardly anything is lost by forgetting it.
    pub(super) fn is_at_rest(&mut self, now: Duration, rate: f64) -> bool {
        self.settle(now, rate);
        self.tokens + EPSILON >= 1.0
    }
}
