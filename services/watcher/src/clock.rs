//! The wall clock of a watcher.
//!
//! What a session stores has times in it that its next owner goes by: which mail is new enough for an alert, and for how long a gap is
//! looked into. Owners may run on machines whose clocks differ, so all go by one: where a machine's clock is far from that of NATS, by
//! that of NATS.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
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
/// This machine's clock is good.
const GOOD: i64 = i64::MIN;

/// This machine's clock, or that of NATS.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// What that of NATS said at the start, in microseconds since the epoch; [`GOOD`]: it is not asked. By the steady clock: this
    /// machine's may be set right at any moment.
    nats_us: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            nats_us: AtomicI64::new(GOOD),
        }
    }
}

impl Clock {
    /// Microseconds since the epoch.
    pub(crate) fn now_us(&self) -> i64 {
        match self.nats_us.load(Ordering::Relaxed) {
            GOOD => wall_us(SystemTime::now()),
            nats_us => nats_us.saturating_add(self.up_us()),
        }
    }

    fn up_us(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// Takes in how far NATS is ahead, and says so if that changes whose clock counts.
    pub(crate) fn compared(&self, status: &ServerStatus, metrics: &Metrics) {
        // As far as it is at least: the answer may have taken long.
        let far = status.clock_ahead_us.abs() - status.round_trip_us / 2 > FAR_US;
        let ahead_us = if far { status.clock_ahead_us } else { 0 };
        let seconds = ahead_us / 1_000_000;
        metrics.clock_ahead(seconds);
        let nats_us = match far {
            true => wall_us(SystemTime::now())
                .saturating_add(ahead_us)
                .saturating_sub(self.up_us()),
            false => GOOD,
        };
        let before = self.nats_us.swap(nats_us, Ordering::Relaxed);
        match (before == GOOD, far) {
            (true, true) => tracing::warn!(
                seconds,
                "the clock of NATS is so far ahead of this machine's, and mailboxes are watched by that of NATS: set the clocks by NTP"
            ),
            (false, false) => tracing::info!("this machine's clock agrees with that of NATS"),
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
        let ahead = |clock: &Clock| {
            let by = clock.now_us() - wall_us(SystemTime::now());
            (by as f64 / 60e6).round() as i64
        };
        assert_eq!(ahead(&clock), 0);
        for (told, round_trip, minutes) in [
            (900_000_000, 1_000, 15),
            (-900_000_000, 1_000, -15),
            // Not known for sure to be off.
            (1_900_000, 1_000, 0),
            (60_000_000, 130_000_000, 0),
            (-60_000_000, 1_000, -1),
        ] {
            clock.compared(&status(told, round_trip), &metrics);
            assert_eq!(ahead(&clock), minutes, "{told}");
        }
    }
}
