//! The wall clock of a watcher.
//!
//! What a session stores has times in it that its next owner goes by: which mail is new enough for an alert, and for how long a gap is
//! looked into. Owners may run on machines whose clocks differ, or are set while they run, so all go by one: where a machine's clock is
//! far from that of NATS, by that of NATS.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mailbell_bus::{Bus, ServerStatus};
use tokio::time::sleep;

use crate::metrics::Metrics;

/// A clock that is off by less is as good as any, and more exact than what is known of that of NATS. In microseconds.
const FAR_US: i64 = 2_000_000;
/// An answer that took longer proves little, and a better one comes. In microseconds.
const SLOW_US: i64 = 1_000_000;
/// How often the clocks are compared.
const EVERY: Duration = Duration::from_secs(60);

/// This machine's clock as it was when it was compared last, or that of NATS, and since then the steady clock: what is stored must
/// not jump when somebody sets this machine's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// What it said at the start, in microseconds since the epoch.
    started_us: AtomicI64,
    by_nats: AtomicBool,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            started_us: AtomicI64::new(wall_us(SystemTime::now())),
            by_nats: AtomicBool::new(false),
        }
    }
}

impl Clock {
    /// Microseconds since the epoch.
    pub(crate) fn now_us(&self) -> i64 {
        let started_us = self.started_us.load(Ordering::Relaxed);
        started_us.saturating_add(self.up_us())
    }

    fn up_us(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// Takes in how far NATS is ahead, and says so if that changes whose clock counts.
    pub(crate) fn compared(&self, status: &ServerStatus, metrics: &Metrics) {
        self.compared_at(status, SystemTime::now(), metrics);
    }

    fn compared_at(&self, status: &ServerStatus, wall: SystemTime, metrics: &Metrics) {
        // As far as it is at least: the answer may have taken long.
        let far = status.clock_ahead_us.abs() - status.round_trip_us / 2 > FAR_US;
        let ahead_us = if far { status.clock_ahead_us } else { 0 };
        let seconds = ahead_us / 1_000_000;
        metrics.clock_ahead(seconds);
        let now_us = wall_us(wall).saturating_add(ahead_us);
        let started_us = now_us.saturating_sub(self.up_us());
        self.started_us.store(started_us, Ordering::Relaxed);
        match (self.by_nats.swap(far, Ordering::Relaxed), far) {
            (false, true) => tracing::warn!(
                seconds,
                "the clock of NATS is so far ahead of this machine's, and mailboxes are watched by that of NATS: set the clocks by NTP"
            ),
            (true, false) => tracing::info!("this machine's clock agrees with that of NATS"),
            _ => {}
        }
    }

    /// Compares the clocks again and again, as well as it can.
    pub(crate) async fn keep(self: Arc<Self>, bus: Bus, metrics: Metrics) -> Infallible {
        loop {
            sleep(EVERY).await;
            match bus.server_status().await {
                Ok(status) if status.round_trip_us > SLOW_US => {}
                Ok(status) => self.compared(&status, &metrics),
                Err(error) => tracing::debug!(%error, "the clock of NATS cannot be read"),
            }
        }
    }
}

/// Microseconds since the epoch.
fn wall_us(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(clock_ahead_us: i64, round_trip_us: i64) -> ServerStatus {
        ServerStatus {
            version: String::new(),
            clock_ahead_us,
            round_trip_us,
        }
    }

    #[test]
    fn it_goes_by_nats_where_that_is_far_off() {
        let (clock, metrics) = (Clock::default(), Metrics::default());
        let minutes = |clock: &Clock, wall| {
            let by = clock.now_us() - wall_us(wall);
            (by as f64 / 60e6).round() as i64
        };
        let wall = SystemTime::now();
        assert_eq!(minutes(&clock, wall), 0);
        for (told, round_trip, ahead) in [
            (900_000_000, 1_000, 15),
            (-900_000_000, 1_000, -15),
            // Not known for sure to be off.
            (1_900_000, 1_000, 0),
            (60_000_000, 130_000_000, 0),
            (-60_000_000, 1_000, -1),
        ] {
            clock.compared_at(&status(told, round_trip), wall, &metrics);
            assert_eq!(minutes(&clock, wall), ahead, "{told}");
        }
        // The machine's is set right, and nothing jumps before or after that is found out.
        let right = wall - Duration::from_secs(60);
        assert_eq!(minutes(&clock, right), 0);
        clock.compared_at(&status(0, 1_000), right, &metrics);
        assert_eq!(minutes(&clock, right), 0);
    }
}
