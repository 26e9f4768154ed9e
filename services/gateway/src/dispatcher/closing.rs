//! How streams end, other than by the device's own will.

use std::time::Duration;

use mailbell_core::delivery::DeviceId;
use mailbell_runtime::drain::Draining;
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::time::Instant;
use tonic::Status;

use super::Dispatcher;
use crate::{authority::Refusal, clock::millis, frame, metrics::Why, outbox::Seat, queue::Item};

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// This gateway ends.
    Drain,
    /// It is old: its device may be better off at another gateway.
    Age,
    /// Its token's time is over.
    Expired,
    /// Its token was revoked, or the key that signed it withdrawn.
    Revoked,
    /// It doesn't read.
    TooSlow,
    /// Its queue did not take that it must list.
    Untold,
}

impl End {
    const fn word(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Age => "age",
            Self::Expired => "token-expired",
            Self::Revoked => "token-revoked",
            Self::TooSlow => "too-slow",
            Self::Untold => "resync-untold",
        }
    }

    fn status(self) -> Status {
        match self {
            Self::Drain => Status::unavailable("this gateway ends: reconnect"),
            Self::Age => Status::unavailable("this stream has its age: reconnect"),
            Self::Expired => Status::unauthenticated(Refusal::Expired.sentence()),
            Self::Revoked => Status::unauthenticated(Refusal::Revoked.sentence()),
            Self::TooSlow => Status::resource_exhausted("too slow: frames were not read in time"),
            Self::Untold => Status::resource_exhausted("too slow to be told of a resync"),
        }
    }

    /// Whether what waits in the queue may still go out.
    const fn keeps_queue(self) -> bool {
        matches!(self, Self::Drain | Self::Age)
    }

    /// The spread within which the device comes back, from the shortest time on.
    const fn reconnect(self) -> (Duration, Duration) {
        match self {
            Self::Drain | Self::Expired | Self::Revoked => (Duration::ZERO, Duration::ZERO),
            Self::Age => (Duration::ZERO, Duration::from_secs(1)),
            Self::TooSlow | Self::Untold => (Duration::from_secs(1), Duration::from_secs(4)),
        }
    }

    /// How long the device may take to read the end before its connection is closed.
    const fn grace(self) -> Duration {
        match self {
            // A revoked token's stream is to be gone within 5 s.
            Self::Expired | Self::Revoked => Duration::from_secs(2),
            _ => Duration::from_secs(10),
        }
    }
}

impl Dispatcher {
    /// Ends a stream: last words, the status, and a time by which its connection is closed whatever the device does.
    pub(super) fn end(&mut self, id: DeviceId, end: End) {
        if end.keeps_queue() {
            self.hub.offer_cursor(id, &mut self.outbox);
        }
        self.hub.detach(id);
        self.parts.replays.forget(id);
        let now = self.outbox.now;
        let Some(seat) = self.outbox.seats.get_mut(&id) else {
            return;
        };
        if seat.cut_at.is_some() {
            return;
        }
        seat.cut_at = Some(now + end.grace());
        let queue = &seat.device.queue;
        if !end.keeps_queue() {
            queue.clear();
        }
        tracing::debug!(session = %seat.device.session, why = end.word(), "a stream is ended");
        // A drain has said so when it began.
        if seat.leaves_at.is_none() {
            let (from, spread) = end.reconnect();
            let wait = from + spread.mul_f64(rand::rng().random_range(0.0..=1.0));
            let bytes = frame::go_away(millis(wait), end.word());
            queue.force(Item::control(bytes), now);
        }
        queue.end(end.status());
        self.count(end.word());
    }

    fn count(&self, why: &'static str) {
        self.parts.metrics.ended.get_or_create(&Why { why }).inc();
    }

    /// A stream is gone.
    pub(super) fn on_gone(&mut self, id: DeviceId) {
        if let Some(seat) = self.outbox.seats.remove(&id)
            && seat.cut_at.is_none()
        {
            self.count("client");
        }
        self.hub.detach(id);
        self.parts.replays.forget(id);
    }

    pub(super) fn close_untold(&mut self) {
        for id in std::mem::take(&mut self.outbox.untold) {
            self.end(id, End::Untold);
        }
    }

    /// Looks at every device for what time brings about.
    pub(super) fn sweep(&mut self, now_s: i64) {
        let now = self.outbox.now;
        let slow_after = self.parts.options.slow_after;
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let due = |seat: &Seat| {
            if seat.cut_at.is_some() {
                None
            } else if seat.device.credential().grant.expires <= now_s {
                Some(End::Expired)
            } else if seat.device.queue.stalled(now) > Some(slow_after) {
                Some(End::TooSlow)
            } else if passed(seat.leaves_at) {
                Some(End::Drain)
            } else if passed(seat.old_at) {
                Some(End::Age)
            } else {
                None
            }
        };
        let mut ends = Vec::new();
        for (id, seat) in &self.outbox.seats {
            if let Some(end) = due(seat) {
                ends.push((*id, end));
            } else if passed(seat.cut_at) {
                seat.device.line.cancel();
            }
        }
        for (id, end) in ends {
            self.end(id, end);
        }
        self.parts.authority.sweep(now_s.saturating_mul(1000));
    }

    /// Ends the streams whose tokens were revoked since the last look.
    pub(super) fn look_at_tokens(&mut self) {
        if !self.authority_version.has_changed().unwrap_or(false) {
            return;
        }
        // Seen before it is looked: a change in between is looked at next time.
        self.authority_version.borrow_and_update();
        let authority = &self.parts.authority;
        let fallen = |seat: &Seat| authority.stands(&seat.device.credential()).is_err();
        let ids: Vec<_> = self
            .outbox
            .seats
            .iter()
            .filter(|(_, seat)| seat.cut_at.is_none() && fallen(seat))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.end(id, End::Revoked);
        }
    }

    /// Tells every device when to go, evenly spread over the window, and lets them go in that order.
    pub(super) fn on_drain(&mut self, draining: Draining) {
        self.draining = Some(draining);
        self.parts.health.set_draining();
        // A fifth is left for those who read slowly.
        let window = draining.remaining().mul_f64(0.8);
        let window = window.min(self.parts.options.timing.drain_window);
        let mut ids: Vec<_> = self.outbox.seats.keys().copied().collect();
        ids.shuffle(&mut rand::rng());
        tracing::info!(devices = ids.len(), ?window, "devices are sent elsewhere");
        let count = u32::try_from(ids.len()).unwrap_or(u32::MAX).max(1);
        let now = self.outbox.now;
        for (n, id) in (0u32..).zip(ids) {
            let Some(seat) = self.outbox.seats.get_mut(&id) else {
                continue;
            };
            if seat.cut_at.is_some() {
                continue;
            }
            let wait = window.mul_f64(f64::from(n) / f64::from(count));
            seat.leaves_at = Some(now + wait);
            let bytes = frame::go_away(millis(wait), End::Drain.word());
            seat.device.queue.force(Item::control(bytes), now);
        }
    }

    /// Whether nothing is left to do after a drain has begun.
    pub(super) fn is_drained(&self) -> bool {
        self.draining.is_some_and(|draining| {
            self.outbox.seats.is_empty() || self.outbox.now >= draining.deadline
        })
    }
}
