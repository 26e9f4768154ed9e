//! Drain as a value.
//!
//! One [`DrainHandle`] is cloned into every accept loop, stream and worker. [`Drain::drain_with_timeout`] tells all of
//! them, with the deadline, and returns when the last clone is dropped: whoever still holds one still has work to finish.
//! The deadline travels with the signal so that a gateway can spread its reconnects over what is left of the window.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// The one side that begins the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    tx: watch::Sender<Option<Draining>>,
}

/// The side that is cloned into tasks. Its drop says: nothing of mine is left.
#[derive(Debug, Clone)]
pub struct DrainHandle {
    rx: watch::Receiver<Option<Draining>>,
}

/// What a task learns when a drain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draining {
    /// When it began.
    pub since: Instant,
    /// When the process stops waiting.
    pub deadline: Instant,
}

impl Draining {
    /// How long a task still has.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The whole window.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.deadline.saturating_duration_since(self.since)
    }
}

/// The deadline passed while handles were still held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{left} tasks had not ended when the drain's time was over")]
pub struct Undrained {
    /// How many handles were left.
    pub left: usize,
}

impl Drain {
    /// A drain that has not begun, and its first handle.
    #[must_use]
    pub fn new() -> (Self, DrainHandle) {
        let (tx, rx) = watch::channel(None);
        (Self { tx }, DrainHandle { rx })
    }

    /// Another handle, for tasks that are started later.
    #[must_use]
    pub fn handle(&self) -> DrainHandle {
        DrainHandle {
            rx: self.tx.subscribe(),
        }
    }

    /// Tells every holder of a handle. The first call counts: a later one does not move the deadline.
    pub fn begin(&self, window: Duration) -> Draining {
        let since = Instant::now();
        let mut current = Draining {
            since,
            deadline: since + window,
        };
        self.tx.send_if_modified(|state| match state {
            Some(begun) => {
                current = *begun;
                false
            }
            None => {
                *state = Some(current);
                true
            }
        });
        current
    }

    /// How many handles are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.tx.receiver_count()
    }

    /// Begins the drain if it has not begun, and waits for the last handle's drop, at most until the deadline.
    ///
    /// # Errors
    /// [`Undrained`] with the number of handles that were left.
    pub async fn drain_with_timeout(&self, window: Duration) -> Result<(), Undrained> {
        let draining = self.begin(window);
        tokio::time::timeout_at(draining.deadline, self.tx.closed())
            .await
            .map_err(|_elapsed| Undrained { left: self.held() })
    }
}

impl DrainHandle {
    /// Waits until the drain begins. Cancel-safe: call it again in each turn of a `select!`.
    ///
    /// A [`Drain`] that was dropped without having begun counts as a drain whose time is over: nobody is left to wait.
    pub async fn signaled(&mut self) -> Draining {
        let begun = match self.rx.wait_for(Option::is_some).await {
            Ok(state) => *state,
            Err(_gone) => None,
        };
        begun.unwrap_or_else(|| {
            let now = Instant::now();
            Draining {
                since: now,
                deadline: now,
            }
        })
    }

    /// The drain, if it has begun.
    #[must_use]
    pub fn draining(&self) -> Option<Draining> {
        *self.rx.borrow()
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.rx.borrow().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn last_drop_ends_the_drain() {
        let (drain, handle) = Drain::new();
        let start = Instant::now();
        for seconds in [1, 5] {
            let mut handle = handle.clone();
            tokio::spawn(async move {
                handle.signaled().await;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
            });
        }
        drop(handle);
        assert_eq!(drain.held(), 2);
        assert_eq!(drain.drain_with_timeout(WINDOW).await, Ok(()));
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_bounds_it_and_says_how_many_are_left() {
        let (drain, handle) = Drain::new();
        let second = handle.clone();
        let start = Instant::now();
        assert_eq!(
            drain.drain_with_timeout(WINDOW).await,
            Err(Undrained { left: 2 })
        );
        assert_eq!(start.elapsed(), WINDOW);
        drop((handle, second));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_begin_sets_the_deadline() {
        let (drain, mut handle) = Drain::new();
        assert!(!handle.is_draining());
        let first = drain.begin(WINDOW);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(drain.begin(Duration::from_secs(999)), first);
        let seen = handle.signaled().await;
        assert_eq!(seen, first);
        assert_eq!(seen.remaining(), Duration::from_secs(20));
        assert_eq!(seen.window(), WINDOW);
        // A task that is started during the drain learns of it at once.
        assert_eq!(drain.handle().signaled().await, first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_drain_lets_its_tasks_end() {
        let (drain, mut handle) = Drain::new();
        drop(drain);
        assert_eq!(handle.signaled().await.remaining(), Duration::ZERO);
    }
}
