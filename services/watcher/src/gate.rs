//! When a connection may be begun: what `mailbell_core::pace` decides, carried out.
//!
//! Everybody who waits is one entry in a map and a waker; one timer serves all. Nothing is kept of who goes away: dropping
//! [`Waiting`] or [`Turn`] gives back what it had.

use std::{
    collections::HashMap,
    future::{pending, poll_fn},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use mailbell_core::{
    ids::AccountId,
    pace::{Counts, News, Outcome, Pacer, Rates, Ticket, Urgency},
    policy::{HostLimits, Hosts},
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::metrics::Metrics;

/// See the module.
pub(crate) struct Gate {
    inner: Arc<Inner>,
    timer: JoinHandle<()>,
}

struct Inner {
    started: Instant,
    state: Mutex<State>,
    /// The timer has to ask anew when it is due.
    sooner: Notify,
    hasher: RandomState,
    metrics: Metrics,
}

struct State {
    pacer: Pacer,
    waiting: HashMap<Ticket, Entry>,
    /// When the timer is due.
    next: Option<Duration>,
    counted: Counts,
}

#[derive(Default)]
struct Entry {
    gone: bool,
    /// The host fails for many, and whoever waits was not told yet.
    held: bool,
    waker: Option<Waker>,
}

/// What somebody who waits hears.
pub(crate) enum Heard {
    /// Its turn has come.
    Turn(Turn),
    /// The host fails for many accounts: it may take long. Told once.
    Held(Waiting),
}

/// A place in the queue of a host.
pub(crate) struct Waiting {
    inner: Arc<Inner>,
    /// 0: it went.
    ticket: Ticket,
}

/// Leave to connect and log in once. Dropped without a word it says nothing of the host.
pub(crate) struct Turn {
    inner: Arc<Inner>,
    ticket: Ticket,
    outcome: Outcome,
}

impl Gate {
    /// Has to be made in a runtime, for its timer.
    pub(crate) fn new(rates: Rates, metrics: Metrics) -> Self {
        let inner = Arc::new(Inner {
            started: Instant::now(),
            state: Mutex::new(State {
                pacer: Pacer::new(rates, Duration::ZERO),
                waiting: HashMap::new(),
                next: None,
                counted: Counts::default(),
            }),
            sooner: Notify::new(),
            hasher: RandomState::new(),
            metrics,
        });
        let timer = tokio::spawn(Arc::clone(&inner).run());
        Self { inner, timer }
    }

    /// Takes a place in the queue of a host.
    pub(crate) fn enter(&self, host: &str, account: &AccountId, urgency: Urgency) -> Waiting {
        let host = host.to_ascii_lowercase();
        let account = self.inner.hasher.hash_one(account);
        let ticket = self.inner.change(|state, now, news| {
            let ticket = state.pacer.enter(&host, account, urgency, now, news);
            state.waiting.insert(ticket, Entry::default());
            ticket
        });
        Waiting {
            inner: Arc::clone(&self.inner),
            ticket,
        }
    }

    /// This watcher may use so much, from 0 to 1, of what the operator allows for a host
    /// ([`part_of_budget`](mailbell_core::sharding::Sharding::part_of_budget)). Counts at once, also for those who wait.
    pub(crate) fn share(&self, share: f64) {
        self.inner.metrics.budget_part(share);
        self.inner
            .change(|state, now, _| state.pacer.set_share(share, now));
    }

    /// What the operator allows for hosts in particular. Counts at once, also for those who wait.
    pub(crate) fn hosts(&self, hosts: Hosts<HostLimits>) {
        self.inner
            .change(|state, now, _| state.pacer.set_hosts(hosts, now));
    }

    /// How many wait, and why.
    pub(crate) fn counts(&self) -> Counts {
        self.inner.state().pacer.counts()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and lets go whoever may go then.
    fn change<T>(&self, change: impl FnOnce(&mut State, Duration, &mut Vec<News>) -> T) -> T {
        let mut news = Vec::new();
        let mut wakers = Vec::new();
        let mut state = self.state();
        let now = self.started.elapsed();
        let result = change(&mut state, now, &mut news);
        state.pacer.poll(now, &mut news);
        for item in news {
            let (News::Go(ticket) | News::Held(ticket)) = item;
            let Some(entry) = state.waiting.get_mut(&ticket) else {
                continue;
            };
            match item {
                News::Go(_) => entry.gone = true,
                News::Held(_) => entry.held = true,
            }
            wakers.extend(entry.waker.take());
        }
        let next = state.pacer.next_at(now);
        let sooner = next.is_some_and(|next| state.next.is_none_or(|before| next < before));
        state.next = next;
        let counts = state.pacer.counts();
        if state.counted != counts {
            state.counted = counts;
            self.metrics.waiting(&counts);
        }
        drop(state);
        if sooner {
            self.sooner.notify_one();
        }
        // Not under the lock: who is woken may run at once and want it.
        for waker in wakers {
            waker.wake();
        }
        result
    }

    /// The timer of all who wait.
    async fn run(self: Arc<Self>) {
        loop {
            self.change(|_, _, _| ());
            let next = self.state().next;
            let due = async {
                match next {
                    Some(at) => sleep_until(self.started + at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                // Either leads to the same look. Neither holds anything: a notice that came is kept until it is taken.
                biased;
                () = self.sooner.notified() => {}
                () = due => {}
            }
        }
    }
}

impl Waiting {
    /// Waits for the turn, or for the word that it may take long. Dropping the future gives the place up.
    pub(crate) async fn heard(mut self) -> Heard {
        let heard = poll_fn(|cx| {
            let mut state = self.inner.state();
            let Some(entry) = state.waiting.get_mut(&self.ticket) else {
                // Cannot be: whoever waits is in the map until it hears that it may go.
                return Poll::Ready(true);
            };
            if entry.gone {
                state.waiting.remove(&self.ticket);
                return Poll::Ready(true);
            }
            if std::mem::take(&mut entry.held) {
                return Poll::Ready(false);
            }
            entry.waker = Some(cx.waker().clone());
            Poll::Pending
        });
        if !heard.await {
            return Heard::Held(self);
        }
        Heard::Turn(Turn {
            inner: Arc::clone(&self.inner),
            ticket: std::mem::take(&mut self.ticket),
            outcome: Outcome::Unused,
        })
    }

    /// Waits for the turn.
    pub(crate) async fn turn(self) -> Turn {
        let mut waiting = self;
        loop {
            match waiting.heard().await {
                Heard::Turn(turn) => return turn,
                Heard::Held(again) => waiting = again,
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.ticket == 0 {
            return;
        }
        self.inner.change(|state, now, news| {
            state.waiting.remove(&self.ticket);
            let mut rng = rand::rng();
            state.pacer.leave(self.ticket, now, &mut rng, news);
        });
    }
}

impl Turn {
    /// The connection is begun: from now on the tokens are used, whatever becomes of it.
    pub(crate) fn begin(&mut self) {
        self.outcome = Outcome::Unknown;
    }

    /// What the connection says about its host.
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.change(|state, now, news| {
            let mut rng = rand::rng();
            let (ticket, outcome) = (self.ticket, self.outcome);
            state.pacer.done(ticket, outcome, now, &mut rng, news);
        });
    }
}

#[cfg(test)]
mod tests;
