//! Files that are read again while the process runs.

use std::{
    fmt::Display,
    fs,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior},
};

use crate::{Error, drain::DrainHandle};

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
    let mut looks = Looks::every(period);
    while looks.next(&mut drain).await {
        let watched = Arc::clone(&watched);
        // Not cancelled by anything: a look is a few small reads.
        let _ = tokio::task::spawn_blocking(move || watched.look_and_tell()).await;
    }
}

/// When files are looked at: every period, the first time at once, and on SIGHUP.
#[derive(Debug)]
pub struct Looks {
    ticks: Interval,
    /// Without it the period still holds, so it is no reason to fail.
    hangup: Option<Signal>,
}

impl Looks {
    /// To be made within a runtime.
    #[must_use]
    pub fn every(period: Duration) -> Self {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ticks,
            hangup: signal(SignalKind::hangup()).ok(),
        }
    }

    /// Waits for the next one. `false`: the drain has begun.
    pub async fn next(&mut self, drain: &mut DrainHandle) -> bool {
        tokio::select! {
            biased;
            // First: somebody waits for this handle.
            _ = drain.signaled() => false,
            () = received(&mut self.hangup) => true,
            _ = self.ticks.tick() => true,
        }
    }
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// [`Error::Read`], [`Error::TooLarge`].
pub fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    fs::File::open(path)
        .map_err(failed)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > most) {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: most,
        });
    }
    Ok(bytes)
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

async fn received(hangup: &mut Option<Signal>) {
    if let Some(signal) = hangup
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}
