//! How much of its rate a host is given after it said "too many connections": half of it each time, and slowly more again.

use std::{collections::VecDeque, time::Duration};

/// The least. With the default of 50 logins a second that is somewhat less than one a second.
const LEAST: f64 = 1.0 / 64.0;
/// Of the full rate, a second: from half to all of it in under three minutes, from the least in some five.
const RISE: f64 = 1.0 / 320.0;
/// Connections that were on their way together are told the same: that counts once.
const HOLD: Duration = Duration::from_secs(5);
/// The accounts whose last words are remembered.
const REMEMBERED: usize = 8;

/// Multiplicative decrease, additive increase.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// The part of the rate that it was lowered to, and when. `None`: all of it.
    lowered: Option<(f64, Duration)>,
    /// Whose word was heeded last.
    heard: VecDeque<u64>,
}

impl Throttle {
    /// The part of its rate that the host has now.
    pub(super) fn part(&self, now: Duration) -> f64 {
        self.lowered.map_or(1.0, |(part, at)| {
            (part + now.saturating_sub(at).as_secs_f64() * RISE).min(1.0)
        })
    }

    /// The host said to this account that there is too much. Most providers count connections of one mailbox too: what an
    /// account is told again and again, and no other, is about that account alone.
    pub(super) fn lower(&mut self, now: Duration, account: u64) {
        let part = self.part(now);
        if part >= 1.0 {
            self.lowered = None;
        }
        if self.heard.contains(&account) {
            return;
        }
        if self
            .lowered
            .is_some_and(|(_, at)| now.saturating_sub(at) < HOLD)
        {
            return;
        }
        if self.heard.len() >= REMEMBERED {
            self.heard.pop_front();
        }
        self.heard.push_back(account);
        self.lowered = Some(((part / 2.0).max(LEAST), now));
    }

    /// Whether there is nothing left to lower: the host refuses whatever the pace.
    pub(super) fn is_least(&self, now: Duration) -> bool {
        // Between two words it rises by as much as the least itself, so it comes near and never quite there.
        self.lowered
            .is_some_and(|(part, _)| part <= LEAST * 1.25 && self.part(now) <= LEAST * 2.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn halves_at_most_every_few_seconds_and_comes_back() {
        let mut throttle = Throttle::default();
        for account in 0..20 {
            throttle.lower(seconds(10), account);
        }
        assert!((throttle.part(seconds(10)) - 0.5).abs() < 1e-9);
        throttle.lower(seconds(15), 100);
        let part = throttle.part(seconds(15));
        assert!(part > 0.25 && part < 0.26, "{part}");
        assert!((throttle.part(seconds(15 + 320)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_account_alone_lowers_it_once() {
        let mut throttle = Throttle::default();
        for round in 0..100 {
            throttle.lower(seconds(10 * round), 7);
        }
        assert!((throttle.part(seconds(1000)) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn it_never_falls_to_nothing() {
        let mut throttle = Throttle::default();
        for account in 0..50 {
            throttle.lower(seconds(5 * account), account);
        }
        let now = seconds(5 * 49);
        assert!(throttle.is_least(now) && throttle.part(now) >= LEAST);
        assert!(!throttle.is_least(now + seconds(60)));
    }
}
