//! Files that are read again while the process runs.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::MissedTickBehavior,
};

use crate::drain::DrainHandle;

/// Has `look` look at its files every `period` and on SIGHUP, until the drain begins. It answers `true` when what it found is in force
/// now, and an error when that cannot be used and what was there before stays; each is told once. `what` names it in the log.
///
/// What `look` compares should be the content of the files, not their time: Kubernetes replaces a mounted Secret by turning a link, and
/// the times of what lies behind it say nothing.
pub async fn watch<E: Display + Send + 'static>(
    what: &'static str,
    period: Duration,
    mut drain: DrainHandle,
    look: impl Fn() -> Result<bool, E> + Send + Sync + 'static,
) {
    let watched = Arc::new(Watched {
        what,
        look,
        problem: Mutex::default(),
    });
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Without it the period still holds, so it is no reason to fail.
    let mut hangup = signal(SignalKind::hangup()).ok();
    loop {
        tokio::select! {
            biased;
            // First: somebody waits for this handle.
            _ = drain.signaled() => return,
            () = next(&mut hangup) => {}
            _ = ticks.tick() => {}
        }
        let watched = Arc::clone(&watched);
        // Not cancelled by anything: a look is a few small reads.
        let _ = tokio::task::spawn_blocking(move || watched.look_and_tell()).await;
    }
}

struct Watched<L> {
    what: &'static str,
    look: L,
    /// The error of the last look, so that it is told once and not at every look.
    problem: Mutex<Option<String>>,
}

impl<L> Watched<L> {
    fn look_and_tell<E: Display>(&self)
    where
        L: Fn() -> Result<bool, E>,
    {
        let what = self.what;
        let problem = match (self.look)() {
            Ok(true) => {
                tracing::info!(what, "files were replaced, and are in force");
                None
            }
            Ok(false) => None,
            Err(error) => Some(error.to_string()),
        };
        let mut before = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != problem {
            if let Some(problem) = &problem {
                tracing::warn!(
                    what,
                    problem,
                    "files that were replaced cannot be used, what was there before stays in force"
                );
            }
            *before = problem;
        }
    }
}

async fn next(hangup: &mut Option<Signal>) {
    if let Some(signal) = hangup
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}
