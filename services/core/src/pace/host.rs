//! One host: who waits for it, and when the first of them may go.

use std::{collections::BTreeMap, time::Duration};

use rand::Rng;

use super::{Outcome, Ticket, Urgency, bucket::Bucket, circuit::Circuit, throttle::Throttle};
use crate::policy::HostLimits;

/// The order in which those who wait go.
pub(super) type Key = (Urgency, Ticket);
/// One turn in so many is of the one who waits longest, however urgent others are: so nobody waits for ever.
pub(super) const FAIR_TURN: u32 = 8;
/// While a host comes back after a failure, no more connections than this hang on it at once.
const HALF_OPEN_FLIGHTS: usize = 8;
/// The least rate, a second: one connection in 20 s, however small the share and however much the host complains. Else a
/// watcher of many, with a strict limit, would never come to a turn.
const LEAST_RATE: f64 = 0.05;

/// What of the operator's limits of a host is this watcher's, a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connects: f64,
    pub(super) logins: f64,
    /// Connections that are begun and not over.
    pub(super) flights: usize,
}

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nobody waits.
    Idle,
    /// The first may go then at the earliest.
    Due(Duration),
    /// The first may go as far as the host is concerned.
    Ready(Key),
    /// Not before one of those who went is back.
    Full,
}

#[derive(Debug)]
pub(super) struct Host {
    connects: Bucket,
    logins: Bucket,
    throttle: Throttle,
    circuit: Circuit,
    queue: BTreeMap<Key, u64>,
    /// The same in the order in which they came.
    order: BTreeMap<Ticket, Key>,
    flights: usize,
    turns: u32,
    /// What is said of this host in particular.
    pub(super) own: HostLimits,
    pub(super) place: Place,
}

impl Host {
    pub(super) fn new(now: Duration, own: HostLimits) -> Self {
        Self {
            connects: Bucket::new(now),
            logins: Bucket::new(now),
            throttle: Throttle::default(),
            circuit: Circuit::default(),
            queue: BTreeMap::new(),
            order: BTreeMap::new(),
            flights: 0,
            turns: 0,
            own,
            place: Place::Idle,
        }
    }

    /// Connects and logins a second that it is given now.
    fn rates(&self, now: Duration, limits: Limits) -> (f64, f64) {
        let part = self.throttle.part(now) * self.circuit.part();
        let rate = |limit: f64| (limit * part).max(LEAST_RATE);
        (rate(limits.connects), rate(limits.logins))
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.order.keys().copied()
    }

    pub(super) fn is_open(&self) -> bool {
        self.circuit.is_open()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.flights > 0 || !self.queue.is_empty()
    }

    /// Whether nothing is lost by forgetting it.
    pub(super) fn is_at_rest(&mut self, now: Duration, limits: Limits) -> bool {
        let (connects, logins) = self.rates(now, limits);
        !self.is_busy()
            && self.circuit.is_at_rest(now)
            && self.throttle.part(now) >= 1.0
            && self.connects.is_at_rest(now, connects)
            && self.logins.is_at_rest(now, logins)
    }

    /// What came at the old rate is counted, before the limits change.
    pub(super) fn settle(&mut self, now: Duration, limits: Limits) {
        let (connects, logins) = self.rates(now, limits);
        self.connects.settle(now, connects);
        self.logins.settle(now, logins);
    }

    pub(super) fn push(&mut self, key: Key, account: u64) {
        self.queue.insert(key, account);
        self.order.insert(key.1, key);
    }

    /// Takes out who goes away; whether it waited here.
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        let key = self.order.remove(&ticket);
        key.is_some_and(|key| self.queue.remove(&key).is_some())
    }

    /// Where it stands now.
    pub(super) fn look(&mut self, now: Duration, limits: Limits) -> Place {
        let Some((first, _)) = self.queue.first_key_value() else {
            return Place::Idle;
        };
        let most = if self.circuit.is_half_open() {
            limits.flights.min(HALF_OPEN_FLIGHTS)
        } else {
            limits.flights
        };
        let (Some(allowed), true) = (self.circuit.allows_at(now), self.flights < most) else {
            return Place::Full;
        };
        let first = *first;
        let (connects, logins) = self.rates(now, limits);
        let token = self.connects.due(now, connects);
        let at = allowed.max(token).max(self.logins.due(now, logins));
        if at > now {
            Place::Due(at)
        } else {
            Place::Ready(first)
        }
    }

    /// The first of those who wait goes: its ticket and account.
    pub(super) fn go(&mut self, now: Duration, limits: Limits) -> Option<(Ticket, u64)> {
        self.turns = self.turns.wrapping_add(1);
        // A probe is of the one of whom most is known to work.
        let fair = self.turns.is_multiple_of(FAIR_TURN) && !self.circuit.is_open();
        let first = if fair {
            self.order.first_key_value().map(|(_, key)| *key)
        } else {
            self.queue.first_key_value().map(|(key, _)| *key)
        };
        let key = first?;
        let account = self.queue.remove(&key)?;
        self.order.remove(&key.1);
        let (connects, logins) = self.rates(now, limits);
        self.connects.take(now, connects);
        self.logins.take(now, logins);
        self.circuit.begin(key.1);
        self.flights += 1;
        Some((key.1, account))
    }

    /// One who went is back. Answers whether those who wait have to wait for a probe from now on.
    pub(super) fn back(
        &mut self,
        now: Duration,
        limits: Limits,
        rng: &mut impl Rng,
        flight: (Ticket, u64),
        outcome: Outcome,
    ) -> bool {
        self.flights = self.flights.saturating_sub(1);
        let (connects, logins) = self.rates(now, limits);
        if outcome == Outcome::Unused {
            self.connects.give_back(now, connects);
        }
        if matches!(outcome, Outcome::Unused | Outcome::Unreachable) {
            self.logins.give_back(now, logins);
        }
        let mut outcome = outcome;
        if outcome == Outcome::Throttled {
            self.throttle.lower(now, flight.1);
            if self.throttle.is_least(now) {
                outcome = Outcome::Failing;
            }
        }
        self.circuit.end(now, rng, flight, outcome)
    }
}
