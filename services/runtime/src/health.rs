//! Health that means something.
//!
//! *Ready* says whether traffic may be sent here: every named check is good and no drain has begun. *Alive* says whether
//! a restart would help: every task that promised to beat has done so in time. A NATS outage therefore makes a process
//! unready, never dead.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

/// A cheap handle; clones share the state.
#[derive(Debug, Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    draining: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    checks: BTreeMap<&'static str, Result<(), String>>,
    beats: Vec<Beat>,
    next_beat: u64,
}

#[derive(Debug)]
struct Beat {
    id: u64,
    name: &'static str,
    max_age: Duration,
    pulse: Arc<Pulse>,
}

#[derive(Debug)]
struct Pulse {
    base: Instant,
    /// Milliseconds after `base` of the last beat.
    last: AtomicU64,
}

/// What `/readyz` and `/healthz` say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether all of it is good.
    pub ok: bool,
    /// Whether a drain has begun.
    pub draining: bool,
    /// Each check by name.
    pub checks: Vec<Check>,
}

/// One check of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Whether it is good.
    pub ok: bool,
    /// Why not, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// No checks yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                draining: AtomicBool::new(false),
                state: Mutex::default(),
            }),
        }
    }

    /// Sets a check, and names it if it is new. A role names all its checks with the reason "starting" before it serves, so that
    /// it is not ready for an instant because nothing has been checked yet. The reason is shown to whoever may read `/readyz`:
    /// it says what is wrong and names no account, address or secret.
    pub fn set<R: Into<String>>(&self, name: &'static str, value: Result<(), R>) {
        let value = value.map_err(Into::into);
        let before = self.state().checks.insert(name, value.clone());
        if before.as_ref() == Some(&value) {
            return;
        }
        match (value, before) {
            (Err(reason), None) => {
                tracing::debug!(check = name, reason, "health check is not good yet")
            }
            (Err(reason), Some(_)) => tracing::warn!(check = name, reason, "health check failed"),
            (Ok(()), _) => tracing::info!(check = name, "health check is good"),
        }
    }

    /// Takes a check away, when what it was about is gone on purpose.
    pub fn remove(&self, name: &'static str) {
        self.state().checks.remove(name);
    }

    /// Turns readiness off for good. The first thing a drain does, before any stream is closed.
    pub fn set_draining(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    /// Promises a beat at least every `max_age`; until the handle is dropped, a missing beat means the process is stuck.
    #[must_use = "dropping it takes the promise back"]
    pub fn heartbeat(&self, name: &'static str, max_age: Duration) -> Heartbeat {
        let pulse = Arc::new(Pulse {
            base: Instant::now(),
            last: AtomicU64::new(0),
        });
        let mut state = self.state();
        let id = state.next_beat;
        state.next_beat += 1;
        state.beats.push(Beat {
            id,
            name,
            max_age,
            pulse: Arc::clone(&pulse),
        });
        Heartbeat {
            health: self.clone(),
            id,
            pulse,
        }
    }

    /// Whether traffic may be sent here, and why not.
    #[must_use]
    pub fn readiness(&self) -> Report {
        let draining = self.inner.draining.load(Ordering::Acquire);
        let checks: Vec<Check> = self
            .state()
            .checks
            .iter()
            .map(|(name, value)| Check {
                name,
                ok: value.is_ok(),
                reason: value.as_ref().err().cloned(),
            })
            .collect();
        Report {
            ok: !draining && checks.iter().all(|check| check.ok),
            draining,
            checks,
        }
    }

    /// Whether every promised beat came in time, and which did not.
    #[must_use]
    pub fn liveness(&self) -> Report {
        let checks: Vec<Check> = self
            .state()
            .beats
            .iter()
            .map(|beat| {
                let age = beat.pulse.age();
                let ok = age <= beat.max_age;
                let reason = (!ok).then(|| {
                    format!(
                        "no sign of life for {} s, expected every {} s",
                        age.as_secs(),
                        beat.max_age.as_secs()
                    )
                });
                Check {
                    name: beat.name,
                    ok,
                    reason,
                }
            })
            .collect();
        let draining = self.inner.draining.load(Ordering::Acquire);
        Report {
            ok: checks.iter().all(|check| check.ok),
            draining,
            checks,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the guard is one statement, so a panic elsewhere cannot have left it half made.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    fn beat(&self) {
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn age(&self) -> Duration {
        self.base
            .elapsed()
            .saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// The promise of one task to beat.
#[derive(Debug)]
pub struct Heartbeat {
    health: Health,
    id: u64,
    pulse: Arc<Pulse>,
}

impl Heartbeat {
    /// Says that the task runs. One store; call it in each turn of the task's loop.
    pub fn beat(&self) {
        self.pulse.beat();
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.health.state().beats.retain(|beat| beat.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Result<(), &str> = Ok(());

    #[test]
    fn ready_only_when_all_checks_are_good() {
        let health = Health::new();
        health.set("nats", Err("starting"));
        health.set("revocations", GOOD);
        let report = health.readiness();
        assert!(!report.ok);
        assert_eq!(
            report.checks[0],
            Check {
                name: "nats",
                ok: false,
                reason: Some("starting".into())
            }
        );
        assert_eq!(
            report.checks[1],
            Check {
                name: "revocations",
                ok: true,
                reason: None
            }
        );
        health.clone().set("nats", GOOD);
        assert!(health.readiness().ok);
        health.set("nats", Err("disconnected"));
        assert!(!health.readiness().ok);
        health.remove("nats");
        assert!(health.readiness().ok);
    }

    #[test]
    fn draining_is_not_ready_but_alive() {
        let health = Health::new();
        health.set("nats", GOOD);
        health.set_draining();
        let report = health.readiness();
        assert!(!report.ok && report.draining);
        assert!(health.liveness().ok);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_beat_is_found_and_a_dropped_promise_forgotten() {
        let health = Health::new();
        let steady = health.heartbeat("renewal", Duration::from_secs(12));
        let stuck = health.heartbeat("consumer", Duration::from_secs(12));
        tokio::time::advance(Duration::from_secs(10)).await;
        steady.beat();
        assert!(health.liveness().ok);
        tokio::time::advance(Duration::from_secs(5)).await;
        let report = health.liveness();
        assert!(!report.ok);
        let bad: Vec<_> = report.checks.iter().filter(|c| !c.ok).collect();
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].name, "consumer");
        assert_eq!(
            bad[0].reason.as_deref(),
            Some("no sign of life for 15 s, expected every 12 s")
        );
        stuck.beat();
        assert!(health.liveness().ok);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!health.liveness().ok);
        drop((steady, stuck));
        assert!(health.liveness().ok);
    }

    #[tokio::test(start_paused = true)]
    async fn two_promises_of_one_name_are_apart() {
        let health = Health::new();
        let first = health.heartbeat("loop", Duration::from_secs(1));
        let second = health.heartbeat("loop", Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        second.beat();
        assert!(!health.liveness().ok);
        drop(first);
        assert!(health.liveness().ok);
        drop(second);
    }

    #[test]
    fn the_report_is_plain_json() {
        let health = Health::new();
        health.set("nats", Err("disconnected"));
        assert_eq!(
            serde_json::to_string(&health.readiness()).unwrap(),
            r#"{"ok":false,"draining":false,"checks":[{"name":"nats","ok":false,"reason":"disconnected"}]}"#
        );
    }
}
