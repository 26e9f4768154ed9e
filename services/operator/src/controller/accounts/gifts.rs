//! When a password that was lost is given again, and when it is given once more.

#[cfg(test)]
mod tests;

use tokio::time::{Duration, Instant};

/// The longest wait: a day has few of them.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How often one password was given again in a row.
///
/// A mailbox that is watched for a moment and then lost again is no better off than one that was not helped, so being watched is no new
/// beginning. Not to have needed it for an hour is one.
#[derive(Debug, Default)]
pub(super) struct Gifts {
    count: u32,
    /// Not again before.
    next: Option<Instant>,
}

impl Gifts {
    /// Whether it may be given now: what was given a moment ago was not tried yet, or did not help.
    pub(super) fn may_give(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// It was given now. The next time waits at least `first`, and twice as long as the last one did, up to an hour.
    pub(super) fn given(&mut self, now: Instant, first: Duration) {
        let helped = |next: Instant| now.saturating_duration_since(next) >= LONGEST_WAIT;
        if self.next.is_some_and(helped) {
            self.count = 0;
        }
        let factor = 1_u32.checked_shl(self.count).unwrap_or(u32::MAX);
        self.next = Some(now + first.saturating_mul(factor).min(LONGEST_WAIT));
        self.count = self.count.saturating_add(1);
    }
}
