//! All hosts together.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use rand::Rng;

use super::{
    Outcome, Rates, Ticket, Urgency,
    bucket::Bucket,
    host::{FAIR_TURN, Host, Key, Limits, Place},
};
use crate::policy::{HostLimits, Hosts};

/// Hosts of which something is remembered although nobody waits for them; beyond that those at rest are forgotten.
const MAX_HOSTS: usize = 10_000;
/// One host holds at most this part of the handshakes.
const HOST_PART: usize = 4;

type HostId = u64;

/// What those who wait are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Its turn has come: end with [`Pacer::done`].
    Go(Ticket),
    /// Its host fails for many accounts: it waits until a probe comes through.
    Held(Ticket),
}

/// How many wait, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// For a token: of their host, or of the process.
    pub pace: usize,
    /// For a host that fails for many.
    pub circuit: usize,
    /// For a handshake of others to end.
    pub handshake: usize,
    /// Hosts that fail for many.
    pub open_circuits: usize,
}

#[derive(Debug)]
struct Flight {
    host: HostId,
    account: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Pacer {
    rates: Rates,
    share: f64,
    /// What is said of hosts in particular.
    own: Hosts<HostLimits>,
    all: Bucket,
    names: HashMap<Box<str>, HostId>,
    hosts: HashMap<HostId, Host>,
    sweep_at: usize,
    /// Who waits, and for which host.
    waiting: HashMap<Ticket, HostId>,
    flights: HashMap<Ticket, Flight>,
    /// Hosts by when their first may go.
    due: BTreeSet<(Duration, HostId)>,
    /// Hosts whose first may go, by how urgent it is.
    ready: BTreeSet<(Key, HostId)>,
    /// The same, to take turns.
    ready_hosts: BTreeSet<HostId>,
    /// The host whose fair turn was last.
    last_fair: HostId,
    turns: u32,
    /// Who waits for hosts in each place.
    waits: Waits,
    next: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Waits {
    due: usize,
    ready: usize,
    full: usize,
    open: usize,
    open_hosts: usize,
}

/// What of the operator's limits of this host is this watcher's.
fn limits(rates: &Rates, share: f64, own: HostLimits) -> Limits {
    let rate = |own: Option<u32>, every| f64::from(own.unwrap_or(every)) * share;
    let flights = own
        .connections
        .and_then(|connections| usize::try_from(connections).ok());
    Limits {
        connects: rate(own.connects_per_second, rates.host_connects),
        logins: rate(own.logins_per_second, rates.host_logins),
        flights: flights.unwrap_or(rates.handshakes / HOST_PART).max(1),
    }
}

/// What a host adds to [`Waits`].
fn waits(host: &Host) -> Waits {
    let count = host.waiting();
    let mut waits = Waits::default();
    if host.is_open() {
        waits.open_hosts = 1;
        waits.open = count;
        return waits;
    }
    match host.place {
        Place::Idle => {}
        Place::Due(_) => waits.due = count,
        Place::Ready(_) => waits.ready = count,
        Place::Full => waits.full = count,
    }
    waits
}

impl Waits {
    fn each(&mut self, other: Self, change: impl Fn(usize, usize) -> usize) {
        self.due = change(self.due, other.due);
        self.ready = change(self.ready, other.ready);
        self.full = change(self.full, other.full);
        self.open = change(self.open, other.open);
        self.open_hosts = change(self.open_hosts, other.open_hosts);
    }
}

impl Pacer {
    /// Nobody waits yet, and the share is all.
    #[must_use]
    pub fn new(rates: Rates, now: Duration) -> Self {
        Self {
            rates,
            share: 1.0,
            own: Hosts::default(),
            all: Bucket::new(now),
            names: HashMap::new(),
            hosts: HashMap::new(),
            sweep_at: MAX_HOSTS,
            waiting: HashMap::new(),
            flights: HashMap::new(),
            due: BTreeSet::new(),
            ready: BTreeSet::new(),
            ready_hosts: BTreeSet::new(),
            last_fair: 0,
            turns: 0,
            waits: Waits::default(),
            next: 1,
        }
    }

    fn all_rate(&self) -> f64 {
        f64::from(self.rates.connects.max(1))
    }

    fn most(&self) -> usize {
        self.rates.handshakes.max(1)
    }

    /// How many wait, and why.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let waits = self.waits;
        let full = self.flights.len() >= self.most();
        Counts {
            pace: waits.due + if full { 0 } else { waits.ready },
            circuit: waits.open,
            handshake: waits.full + if full { waits.ready } else { 0 },
            open_circuits: waits.open_hosts,
        }
    }

    /// What of each host's limits is this watcher's, between 0 and 1. Also for those who wait already.
    pub fn set_share(&mut self, share: f64, now: Duration) {
        let share = if share.is_finite() { share } else { 1.0 };
        let share = share.clamp(0.0, 1.0);
        let before = self.share;
        self.share = share;
        let ids: Vec<HostId> = self.due.iter().map(|(_, id)| *id).collect();
        for id in ids {
            if let Some(host) = self.hosts.get_mut(&id) {
                host.settle(now, limits(&self.rates, before, host.own));
            }
            self.place(id, now);
        }
    }

    /// What is said of hosts in particular, in place of what was said before. Also for those who wait already.
    pub fn set_hosts(&mut self, own: Hosts<HostLimits>, now: Duration) {
        let mut changed = Vec::new();
        for (name, id) in &self.names {
            let own = own.find(name).copied().unwrap_or_default();
            if let Some(host) = self.hosts.get_mut(id)
                && host.own != own
            {
                host.settle(now, limits(&self.rates, self.share, host.own));
                host.own = own;
                changed.push(*id);
            }
        }
        self.own = own;
        for id in changed {
            self.place(id, now);
        }
    }

    /// Somebody wants to connect. `account` tells accounts apart. What became of it is among the news of the next
    /// [`Pacer::poll`]; that the host fails for many, at once.
    pub fn enter(
        &mut self,
        name: &str,
        account: u64,
        urgency: Urgency,
        now: Duration,
        news: &mut Vec<News>,
    ) -> Ticket {
        let ticket = self.number();
        let id = match self.names.get(name) {
            Some(id) => *id,
            None => self.remember(name, now),
        };
        self.change(id, |host, _| {
            if host.is_open() {
                news.push(News::Held(ticket));
            }
            host.push((urgency, ticket), account);
        });
        self.waiting.insert(ticket, id);
        self.place(id, now);
        ticket
    }

    /// Who waits, or whose turn came without being noticed, goes away and leaves its token to others.
    pub fn leave(
        &mut self,
        ticket: Ticket,
        now: Duration,
        rng: &mut impl Rng,
        news: &mut Vec<News>,
    ) {
        let Some(id) = self.waiting.remove(&ticket) else {
            self.done(ticket, Outcome::Unused, now, rng, news);
            return;
        };
        self.change(id, |host, _| host.remove(ticket));
        self.place(id, now);
    }

    /// Who went is back.
    pub fn done(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Duration,
        rng: &mut impl Rng,
        news: &mut Vec<News>,
    ) {
        let Some(Flight { host: id, account }) = self.flights.remove(&ticket) else {
            return;
        };
        if outcome == Outcome::Unused {
            let rate = self.all_rate();
            self.all.give_back(now, rate);
        }
        let opened = self.change(id, |host, limits| {
            let opened = host.back(now, limits, rng, (ticket, account), outcome);
            if opened {
                news.extend(host.tickets().map(News::Held));
            }
            opened
        });
        debug_assert!(opened.is_some(), "a host with a flight is not forgotten");
        self.place(id, now);
    }

    /// Lets go whoever may.
    pub fn poll(&mut self, now: Duration, news: &mut Vec<News>) {
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.place(id, now);
        }
        let rate = self.all_rate();
        while self.flights.len() < self.most()
            && !self.ready.is_empty()
            && self.all.due(now, rate) <= now
            && let Some(id) = self.next_host()
        {
            let gone = self.change(id, |host, limits| host.go(now, limits));
            if let Some((ticket, account)) = gone.flatten() {
                self.all.take(now, rate);
                self.waiting.remove(&ticket);
                self.flights.insert(ticket, Flight { host: id, account });
                news.push(News::Go(ticket));
            }
            self.place(id, now);
        }
    }

    /// When [`Pacer::poll`] has something to do, if nothing else happens before.
    pub fn next_at(&mut self, now: Duration) -> Option<Duration> {
        let rate = self.all_rate();
        let all = if self.ready.is_empty() || self.flights.len() >= self.most() {
            None
        } else {
            Some(self.all.due(now, rate))
        };
        let due = self.due.first().map(|(at, _)| *at);
        all.into_iter().chain(due).min()
    }

    /// The host with the most urgent of those who may go; now and then the next one in turn.
    fn next_host(&mut self) -> Option<HostId> {
        self.turns = self.turns.wrapping_add(1);
        if !self.turns.is_multiple_of(FAIR_TURN) {
            return self.ready.first().map(|(_, id)| *id);
        }
        let after = self.last_fair.saturating_add(1);
        let next = self.ready_hosts.range(after..).next();
        let next = next.or_else(|| self.ready_hosts.first()).copied()?;
        self.last_fair = next;
        Some(next)
    }

    /// Changes a host, and what it adds to the counts. [`Pacer::place`] has to follow.
    fn change<T>(&mut self, id: HostId, change: impl FnOnce(&mut Host, Limits) -> T) -> Option<T> {
        let host = self.hosts.get_mut(&id)?;
        let limits = limits(&self.rates, self.share, host.own);
        let before = waits(host);
        let result = change(host, limits);
        let after = waits(host);
        self.waits.each(before, usize::saturating_sub);
        self.waits.each(after, usize::saturating_add);
        Some(result)
    }

    /// Puts a host where it belongs now.
    fn place(&mut self, id: HostId, now: Duration) {
        let Some((before, after)) = self.change(id, |host, limits| {
            let place = host.look(now, limits);
            (std::mem::replace(&mut host.place, place), place)
        }) else {
            return;
        };
        match before {
            Place::Due(at) => {
                self.due.remove(&(at, id));
            }
            Place::Ready(key) => {
                self.ready.remove(&(key, id));
                self.ready_hosts.remove(&id);
            }
            Place::Idle | Place::Full => {}
        }
        match after {
            Place::Due(at) => {
                self.due.insert((at, id));
            }
            Place::Ready(key) => {
                self.ready.insert((key, id));
                self.ready_hosts.insert(id);
            }
            Place::Idle | Place::Full => {}
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next = number.saturating_add(1);
        number
    }

    fn remember(&mut self, name: &str, now: Duration) -> HostId {
        if self.hosts.len() >= self.sweep_at {
            self.forget(now);
        }
        let id = self.number();
        self.names.insert(name.into(), id);
        let own = self.own.find(name).copied().unwrap_or_default();
        self.hosts.insert(id, Host::new(now, own));
        id
    }

    /// Forgets hosts at rest. If they are too few, all but those for which somebody waits, who are bounded by the accounts.
    fn forget(&mut self, now: Duration) {
        let (rates, share) = (self.rates, self.share);
        self.hosts
            .retain(|_, host| !host.is_at_rest(now, limits(&rates, share, host.own)));
        if self.hosts.len() >= MAX_HOSTS {
            self.hosts.retain(|_, host| host.is_busy());
        }
        let hosts = &self.hosts;
        self.names.retain(|_, id| hosts.contains_key(id));
        // An open circuit may be among those that nobody waits for.
        self.waits.open_hosts = hosts.values().filter(|host| host.is_open()).count();
        // Twice as many as are left, so that a sweep is rare however many hosts are busy.
        self.sweep_at = MAX_HOSTS.max(2 * self.hosts.len());
    }

    /// How many hosts something is known of.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }
}

#[cfg(test)]
mod tests;
