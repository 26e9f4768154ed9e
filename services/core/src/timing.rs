//! Every period that Mailbell's processes agree on, as one value, so that tests can scale it and its order can be checked.

use std::time::Duration;

/// The periods of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long the server remembers a message id. Saves work only: nothing relies on it.
    pub duplicate_window: Duration,
    /// A retry of an append that is older than this reads the log's tail first. Below `duplicate_window`, so that a blind retry
    /// is always within it.
    pub blind_retry: Duration,
    /// One attempt to append waits this long for its acknowledgement.
    pub ack_timeout: Duration,
    /// How long a log keeps its events.
    pub log_age: Duration,
    /// How long the tombstone of a removed account stays. Above `log_age`, so that its last events are skipped.
    pub tombstone_age: Duration,
    /// How lazily checkpoints are written.
    pub checkpoint_delay: Duration,
    /// How often claims are rewritten. Well below `live_age`.
    pub claim_refresh: Duration,
    /// How long a key of the LIVE bucket lives if nobody rewrites it. Nobody waits for that: who is dead is judged by its
    /// membership. So it is long enough for claims to outlive an outage of NATS, and sessions with them.
    pub live_age: Duration,
    /// How often a watcher renews its membership.
    pub member_renew: Duration,
    /// A member whose record stood still for so long is dead, for whoever was acknowledged all along.
    pub member_dead: Duration,
    /// What was taken from a member that was found dead is not given back to that name before this: neither to one that lives after
    /// all, which may be cut off again, nor to another incarnation. One that crashes again and again would take its accounts along each
    /// time, to be watched by nobody for `member_dead` and logged in to anew.
    pub take_back: Duration,
    /// How often a device hears a Cursor frame.
    pub heartbeat: Duration,
    /// After an event, the Cursor frame follows within this time.
    pub cursor_delay: Duration,
    /// Over how long a draining gateway spreads the reconnects of its devices.
    pub drain_window: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duplicate_window: Duration::from_secs(5 * 60),
            blind_retry: Duration::from_secs(4 * 60),
            ack_timeout: Duration::from_secs(5),
            log_age: Duration::from_secs(48 * 3600),
            tombstone_age: Duration::from_secs(72 * 3600),
            checkpoint_delay: Duration::from_secs(3),
            claim_refresh: Duration::from_secs(30),
            live_age: Duration::from_secs(3600),
            member_renew: Duration::from_secs(3),
            member_dead: Duration::from_secs(12),
            take_back: Duration::from_secs(60),
            heartbeat: Duration::from_secs(30),
            cursor_delay: Duration::from_secs(1),
            drain_window: Duration::from_secs(20),
        }
    }
}

/// Two periods that are the wrong way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{smaller} must be shorter than {larger}")]
pub struct TimingError {
    /// The one that must be shorter.
    pub smaller: &'static str,
    /// The one that must be longer.
    pub larger: &'static str,
}

impl Timing {
    /// The same order of things, `factor` times as fast. For tests.
    #[must_use]
    pub fn faster(self, factor: u32) -> Self {
        let factor = factor.max(1);
        Self {
            duplicate_window: self.duplicate_window / factor,
            blind_retry: self.blind_retry / factor,
            ack_timeout: self.ack_timeout / factor,
            log_age: self.log_age / factor,
            tombstone_age: self.tombstone_age / factor,
            checkpoint_delay: self.checkpoint_delay / factor,
            claim_refresh: self.claim_refresh / factor,
            live_age: self.live_age / factor,
            member_renew: self.member_renew / factor,
            member_dead: self.member_dead / factor,
            take_back: self.take_back / factor,
            heartbeat: self.heartbeat / factor,
            cursor_delay: self.cursor_delay / factor,
            drain_window: self.drain_window / factor,
        }
    }

    /// Refuses an order that would break a rule.
    ///
    /// # Errors
    /// Names the two periods that are the wrong way round.
    pub fn check(&self) -> Result<(), TimingError> {
        let rules = [
            (
                "ack_timeout",
                self.ack_timeout,
                "blind_retry",
                self.blind_retry,
            ),
            (
                "blind_retry",
                self.blind_retry,
                "duplicate_window",
                self.duplicate_window,
            ),
            (
                "duplicate_window",
                self.duplicate_window,
                "log_age",
                self.log_age,
            ),
            ("log_age", self.log_age, "tombstone_age", self.tombstone_age),
            (
                "checkpoint_delay",
                self.checkpoint_delay,
                "log_age",
                self.log_age,
            ),
            ("claim_refresh", self.claim_refresh, "log_age", self.log_age),
            (
                // Two renewals may fail in a row.
                "three times member_renew",
                self.member_renew * 3,
                "member_dead",
                self.member_dead,
            ),
            (
                // Its key must outlive the renewals that fail.
                "member_dead",
                self.member_dead,
                "live_age",
                self.live_age,
            ),
            (
                // Two rewrites may fail in a row.
                "three times claim_refresh",
                self.claim_refresh * 3,
                "live_age",
                self.live_age,
            ),
            (
                "cursor_delay",
                self.cursor_delay,
                "heartbeat",
                self.heartbeat,
            ),
        ];
        for (smaller, short, larger, long) in rules {
            if short >= long {
                return Err(TimingError { smaller, larger });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_checked() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(Timing::default().faster(100).check(), Ok(()));
        let wrong = Timing {
            blind_retry: Duration::from_secs(301),
            ..Timing::default()
        };
        assert_eq!(
            wrong.check(),
            Err(TimingError {
                smaller: "blind_retry",
                larger: "duplicate_window"
            })
        );
    }
}
