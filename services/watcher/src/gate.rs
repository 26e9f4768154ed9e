//! When a connection may be begun: so many a second in all and to one host, and so many handshakes at once.
//!
//! Two token buckets, each kept as one point in time (the moment at which the next token is due). Whoever reserves a token and
//! goes away leaves it unused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// Hosts that are remembered; a host whose bucket is full again needs no memory.
const MAX_HOSTS: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Gate {
    all: Rate,
    host: Rate,
    state: Mutex<State>,
    handshakes: Arc<Semaphore>,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    interval: Duration,
    burst: Duration,
}

#[derive(Debug)]
struct State {
    all: Instant,
    hosts: HashMap<Box<str>, Instant>,
}

impl Rate {
    /// A fifth of a second's worth may come at once.
    fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            burst: interval * (per_second / 5),
        }
    }

    /// Takes a token of the bucket that is due at `due`; answers when it may be used.
    fn take(self, due: &mut Instant, now: Instant) -> Instant {
        let full = now.checked_sub(self.burst).unwrap_or(now);
        let at = (*due).max(full);
        *due = at + self.interval;
        at
    }
}

impl Gate {
    pub(crate) fn new(per_second: u32, per_host: u32, handshakes: usize) -> Self {
        Self {
            all: Rate::new(per_second),
            host: Rate::new(per_host),
            state: Mutex::new(State {
                all: Instant::now(),
                hosts: HashMap::new(),
            }),
            handshakes: Arc::new(Semaphore::new(handshakes.max(1))),
        }
    }

    /// Waits for its turn. Hold what it returns until the login is over.
    pub(crate) async fn pass(&self, host: &str) -> Option<OwnedSemaphorePermit> {
        let at = self.reserve(host, Instant::now());
        sleep_until(at).await;
        Arc::clone(&self.handshakes).acquire_owned().await.ok()
    }

    fn reserve(&self, host: &str, now: Instant) -> Instant {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.hosts.len() >= MAX_HOSTS {
            let full = now.checked_sub(self.host.burst).unwrap_or(now);
            state.hosts.retain(|_, due| *due > full);
        }
        let mut due = state.hosts.get(host).copied().unwrap_or(now);
        let at = self.host.take(&mut due, now);
        // Beyond the bound a new host is held by the bucket of all only.
        if state.hosts.contains_key(host) || state.hosts.len() < MAX_HOSTS {
            state.hosts.insert(host.into(), due);
        }
        at.max(self.all.take(&mut state.all, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_host_does_not_hold_up_another() {
        let gate = Gate::new(1000, 10, 4);
        let start = Instant::now();
        for _ in 0..12 {
            drop(gate.pass("a").await);
        }
        // Without a burst to begin with: one at once, then one every 100 ms.
        assert_eq!(start.elapsed().as_millis() / 100, 11);
        let start = Instant::now();
        drop(gate.pass("b").await);
        assert!(start.elapsed() < Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_are_bounded() {
        let gate = Gate::new(1000, 1000, 1);
        let first = gate.pass("a").await;
        let waits = tokio::time::timeout(Duration::from_secs(60), gate.pass("a"));
        assert!(waits.await.is_err());
        drop(first);
        assert!(gate.pass("a").await.is_some());
    }

    #[test]
    fn hosts_are_forgotten() {
        let gate = Gate::new(1_000_000, 1000, 1);
        let now = Instant::now();
        for number in 0..MAX_HOSTS {
            gate.reserve(&number.to_string(), now);
        }
        gate.reserve("one more", now + Duration::from_secs(60));
        assert_eq!(gate.state.lock().unwrap().hosts.len(), 1);
    }
}
