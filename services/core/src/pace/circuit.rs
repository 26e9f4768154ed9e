//! A host that fails for many accounts is left alone but for single probes; when one succeeds the rest come back slowly.

use std::time::Duration;

use rand::Rng;

use super::{Outcome, Ticket};
use crate::backoff::Backoff;

/// So many accounts in a row open the circuit. Fewer than that have delays of their own, which do.
const MANY: usize = 5;
/// While it comes back, so many open it again.
const FEW: usize = 2;
/// A failure older than this is no part of the same row: twice the longest delay between a session's attempts.
const WINDOW: Duration = Duration::from_secs(120);
/// Probes: the shortest delay, the longest first one, the longest of all. A host that is back has news, so not longer.
const PROBES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(60),
];
/// After so many that worked it counts as well.
const WELL: u32 = 5;
/// The part of the rate that a host which comes back is given first, and what each connection that works adds: as the rate
/// grows with the number of successes, it doubles every second at 50 logins a second.
const SLOW_START: f64 = 1.0 / 16.0;
const SLOW_STEP: f64 = 1.0 / 64.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    /// Nobody goes before `probe_at`, and then one.
    Open {
        probe_at: Duration,
    },
    /// One is on its way.
    Probing {
        probe: Ticket,
    },
    /// A probe came through: the rest follows at a low rate.
    HalfOpen {
        well: u32,
    },
}

#[derive(Debug)]
pub(super) struct Circuit {
    state: State,
    /// The accounts that failed since the last success, each once, with the time.
    failed: Vec<(u64, Duration)>,
    delays: Option<Box<Backoff>>,
    /// The part of the rate that it has.
    part: f64,
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            state: State::Closed,
            failed: Vec::new(),
            delays: None,
            part: 1.0,
        }
    }
}

impl Circuit {
    /// When the next may go; `None`: not before the probe is back.
    pub(super) fn allows_at(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Closed | State::HalfOpen { .. } => Some(now),
            State::Open { probe_at } => Some(probe_at.max(now)),
            State::Probing { .. } => None,
        }
    }

    /// Whether nobody goes but a probe.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Probing { .. })
    }

    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.state, State::HalfOpen { .. })
    }

    /// The part of its rate that the host has now.
    pub(super) fn part(&self) -> f64 {
        self.part
    }

    /// Whether nothing is remembered of the host.
    pub(super) fn is_at_rest(&self, now: Duration) -> bool {
        let old = |at: Duration| now.saturating_sub(at) > WINDOW;
        self.state == State::Closed && self.failed.iter().all(|(_, at)| old(*at))
    }

    /// Somebody goes.
    pub(super) fn begin(&mut self, ticket: Ticket) {
        if let State::Open { .. } = self.state {
            self.state = State::Probing { probe: ticket };
        }
    }

    /// Who went is back. Answers whether the circuit opened, or stays open after a probe.
    pub(super) fn end(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        (ticket, account): (Ticket, u64),
        outcome: Outcome,
    ) -> bool {
        match outcome {
            Outcome::Answered => {
                self.worked();
                false
            }
            Outcome::Unreachable | Outcome::Failing => self.failed(now, rng, ticket, account),
            // A probe that is sent away has found nothing better.
            Outcome::Throttled if self.is_probe(ticket) => self.failed(now, rng, ticket, account),
            Outcome::Throttled | Outcome::Unknown | Outcome::Unused => {
                if self.is_probe(ticket) {
                    // Says nothing: another one tries, and at once if nothing was tried.
                    let wait = if outcome == Outcome::Unused {
                        Duration::ZERO
                    } else {
                        PROBES[0]
                    };
                    let probe_at = now + wait;
                    self.state = State::Open { probe_at };
                }
                false
            }
        }
    }

    fn is_probe(&self, ticket: Ticket) -> bool {
        self.state == State::Probing { probe: ticket }
    }

    fn worked(&mut self) {
        match &mut self.state {
            State::Closed => self.failed.clear(),
            // Whether the probe, or one that was on its way when it opened.
            State::Open { .. } | State::Probing { .. } => {
                self.failed.clear();
                self.part = SLOW_START;
                self.state = State::HalfOpen { well: 1 };
            }
            State::HalfOpen { well } => {
                *well += 1;
                if *well >= WELL {
                    self.failed.clear();
                    self.delays = None;
                    self.state = State::Closed;
                }
            }
        }
        self.part = (self.part + SLOW_STEP).min(1.0);
    }

    fn failed(&mut self, now: Duration, rng: &mut impl Rng, ticket: Ticket, account: u64) -> bool {
        let most = match self.state {
            State::Closed => MANY,
            State::HalfOpen { .. } => FEW,
            State::Probing { probe } if probe == ticket => {
                self.open(now, rng);
                return true;
            }
            // Begun before it opened: nothing new.
            State::Open { .. } | State::Probing { .. } => return false,
        };
        self.failed
            .retain(|(known, at)| *known != account && now.saturating_sub(*at) <= WINDOW);
        self.failed.push((account, now));
        if self.failed.len() < most {
            return false;
        }
        self.open(now, rng);
        true
    }

    fn open(&mut self, now: Duration, rng: &mut impl Rng) {
        let [floor, first, most] = PROBES;
        let delays = self
            .delays
            .get_or_insert_with(|| Box::new(Backoff::new(floor, first, most)));
        let probe_at = now + delays.next(rng);
        self.failed.clear();
        self.state = State::Open { probe_at };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng as _, rngs::SmallRng};

    const NOW: Duration = Duration::from_secs(1000);

    struct Bench {
        circuit: Circuit,
        rng: SmallRng,
        now: Duration,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                circuit: Circuit::default(),
                rng: SmallRng::seed_from_u64(1),
                now: NOW,
            }
        }

        fn end(&mut self, account: u64, outcome: Outcome) -> bool {
            self.circuit
                .end(self.now, &mut self.rng, (account, account), outcome)
        }

        fn opened() -> Self {
            let mut bench = Self::new();
            for account in 0..5 {
                assert!(!bench.circuit.is_open());
                bench.end(account, Outcome::Unreachable);
            }
            assert!(bench.circuit.is_open());
            bench
        }

        /// Lets the next probe go; how long it had to wait.
        fn probe(&mut self, ticket: Ticket) -> Duration {
            let at = self.circuit.allows_at(self.now).unwrap();
            let waited = at - self.now;
            self.now = at;
            self.circuit.begin(ticket);
            assert_eq!(self.circuit.allows_at(self.now), None, "one at a time");
            waited
        }
    }

    #[test]
    fn many_accounts_open_it_and_one_alone_does_not() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            assert!(!bench.end(7, Outcome::Unreachable));
            assert!(!bench.end(8, Outcome::Failing));
        }
        Bench::opened();
    }

    #[test]
    fn a_success_in_between_or_a_long_time_begins_anew() {
        let mut bench = Bench::new();
        for account in 0..40 {
            assert!(!bench.end(account, Outcome::Unreachable));
            if account % 4 == 3 {
                bench.end(99, Outcome::Answered);
            }
        }
        for account in 0..40 {
            bench.now += Duration::from_secs(40);
            assert!(!bench.end(account, Outcome::Unreachable));
        }
    }

    #[test]
    fn wrong_passwords_and_throttling_do_not_open_it() {
        let mut bench = Bench::new();
        for account in 0..100 {
            for outcome in [
                Outcome::Answered,
                Outcome::Throttled,
                Outcome::Unknown,
                Outcome::Unused,
            ] {
                assert!(!bench.end(account, outcome));
            }
        }
    }

    #[test]
    fn probes_come_one_at_a_time_and_ever_later() {
        let mut bench = Bench::opened();
        // Some that were on their way fail too: nothing changes.
        let before = bench.circuit.allows_at(bench.now);
        assert!(!bench.end(50, Outcome::Unreachable));
        assert_eq!(bench.circuit.allows_at(bench.now), before);
        let mut waits = Vec::new();
        for probe in 100..120 {
            waits.push(bench.probe(probe));
            assert!(bench.end(probe, Outcome::Unreachable));
        }
        let bound = Duration::from_secs(1)..=Duration::from_secs(60);
        assert!(waits.iter().all(|wait| bound.contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(20)));
    }

    #[test]
    fn a_success_lets_the_rest_in_slowly_and_then_all() {
        let mut bench = Bench::opened();
        bench.probe(100);
        bench.end(100, Outcome::Answered);
        assert!(bench.circuit.is_half_open() && bench.circuit.part() < 0.1);
        assert!(bench.circuit.allows_at(bench.now).is_some());
        for account in 0..100 {
            bench.end(account, Outcome::Answered);
        }
        assert!(!bench.circuit.is_half_open());
        assert!((bench.circuit.part() - 1.0).abs() < 1e-9);
        assert!(bench.circuit.is_at_rest(bench.now));
    }

    #[test]
    fn while_it_comes_back_a_few_failures_open_it_again_with_longer_delays() {
        let mut bench = Bench::opened();
        for round in 0..20 {
            bench.probe(1000 + round);
            bench.end(1000 + round, Outcome::Answered);
            assert!(!bench.end(1, Outcome::Failing));
            assert!(bench.end(2, Outcome::Failing));
        }
        assert!(bench.circuit.delays.as_ref().unwrap().attempts() > 10);
    }

    #[test]
    fn a_probe_that_goes_away_leaves_its_place() {
        let mut bench = Bench::opened();
        bench.probe(100);
        assert!(!bench.end(100, Outcome::Unused));
        assert_eq!(bench.circuit.allows_at(bench.now), Some(bench.now));
        bench.probe(101);
        assert!(!bench.end(101, Outcome::Unknown));
        let again = bench.now + Duration::from_secs(1);
        assert_eq!(bench.circuit.allows_at(bench.now), Some(again));
    }
}
