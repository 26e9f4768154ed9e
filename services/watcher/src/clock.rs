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
    time::{Duration, SystemTime},
};

use mailbell_bus::{Bus, ServerStatus};
use tokio::time::sleep;

use crate::metrics::Metrics;

/// A clock that is off by less is as good as any, and more exact than what is known of that of NATS. In microseconds.
const FAR_US: i64 = 2_000_000;
/// How often the clocks are compared.
const EVERY: Duration = Duration::from_secs(60);

/// This machine's clock, set right.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// What is added to this machine's.
    ahead_us: AtomicI64,
}

impl Clock {
    /// Microseconds since the epoch.
    pub(crate) fn now_us(&self) -> i64 {
        wall_us(SystemTime::now()).saturating_add(self.ahead_us.load(Ordering::Relaxed))
    }

    /// Takes in how far NATS is ahead, and says so if that changes what this clock says.
    pub(crate) fn compared(&self, status: &ServerStatus, metrics: &Metrics) {
        // As far as it is at least: the answer may have taken long.
        let at_least = status.clock_ahead_us.abs() - status.round_trip_us / 2;
        let ahead_us = if at_least > FAR_US {
            status.clock_ahead_us
        } else {
            0
        };
        let before_us = self.ahead_us.swap(ahead_us, Ordering::Relaxed);
        metrics.clock_ahead(ahead_us / 1_000_000);
        if (ahead_us - before_us).abs() > FAR_US {
            let seconds = ahead_us / 1_000_000;
            tracing::warn!(
                seconds,
                "the clock of NATS is so far ahead of this machine's, and mailboxes are watched by that of NATS: set the clocks by NTP"
            );
        }
    }

    /// Compares the clocks again and again, as well as it can.
    pub(crate) async fn keep(self: Arc<Self>, bus: Bus, metrics: Metrics) -> Infallible {
        loop {
            sleep(EVERY).await;
            match bus.server_status().await {
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
