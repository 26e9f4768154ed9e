//! The first SIGTERM or SIGINT drains, the second one ends the process at once.

use std::time::Duration;

use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};

use crate::{
    Error,
    drain::{Drain, Undrained},
};

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, from a supervisor.
    Terminate,
    /// SIGINT, from a keyboard.
    Interrupt,
}

impl Stop {
    /// What a shell reports for a process that this signal ended: 128 + its number.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Terminate => 128 + 15,
            Self::Interrupt => 128 + 2,
        }
    }
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every task ended in time.
    Drained,
    /// The window was over first.
    TimedOut(Undrained),
    /// A second signal came: end now, without any further wait (`std::process::exit`, as dropping a runtime waits too).
    Forced(Stop),
}

/// Both signals, from the moment of [`Signals::install`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: UnixSignal,
    interrupt: UnixSignal,
}

impl Signals {
    /// Takes both signals over. Call it early: until then they end the process in the middle of whatever it does.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn install() -> Result<Self, Error> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(Error::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(Error::Signals)?,
        })
    }

    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Stop {
        // Unbiased: either of them is right, and a flood of one is as good as the other.
        tokio::select! {
            Some(()) = self.terminate.recv() => Stop::Terminate,
            Some(()) = self.interrupt.recv() => Stop::Interrupt,
            // Both streams ended: the runtime's signal driver is gone, so no signal can ever come.
            else => std::future::pending().await,
        }
    }
}

/// Drains within `window`, unless `second` comes first (`signals.next()`, or anything in a test).
pub async fn drain_unless(
    drain: &Drain,
    window: Duration,
    second: impl Future<Output = Stop>,
) -> Outcome {
    tokio::select! {
        // The impatient person wins also over a drain that ends in the same moment.
        biased;
        stop = second => Outcome::Forced(stop),
        drained = drain.drain_with_timeout(window) => match drained {
            Ok(()) => Outcome::Drained,
            Err(undrained) => Outcome::TimedOut(undrained),
        },
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};
    use tokio::time::Instant;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_a_second_signal() {
        let (drain, handle) = Drain::new();
        drop(handle);
        assert_eq!(
            drain_unless(&drain, WINDOW, std::future::pending()).await,
            Outcome::Drained
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_bounds_the_drain() {
        let (drain, _handle) = Drain::new();
        let outcome = drain_unless(&drain, WINDOW, std::future::pending()).await;
        assert_eq!(outcome, Outcome::TimedOut(Undrained { left: 1 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_it_at_once() {
        let (drain, _handle) = Drain::new();
        let start = Instant::now();
        let second = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Stop::Interrupt
        };
        assert_eq!(
            drain_unless(&drain, WINDOW, second).await,
            Outcome::Forced(Stop::Interrupt)
        );
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn real_signals_arrive() {
        let mut signals = Signals::install().unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(signals.next().await, Stop::Terminate);
        let (drain, _handle) = Drain::new();
        kill_process(getpid(), Signal::INT).unwrap();
        let outcome = drain_unless(&drain, WINDOW, signals.next()).await;
        assert_eq!(outcome, Outcome::Forced(Stop::Interrupt));
        assert_eq!(
            (Stop::Terminate.exit_code(), Stop::Interrupt.exit_code()),
            (143, 130)
        );
    }
}
