//! The mail connection: what it does next, and what its answers mean.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use super::{Effect, Failure, Now, Op, Session, Severity, Wake, folders::Page};

/// A connection that was well for so long is a success: the next failure begins with the shortest delay.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// How long a look waits after many that found nothing: at first, and at most.
const LOOK_PACE_FIRST: Duration = Duration::from_millis(100);
/// See [`LOOK_PACE_FIRST`]. Looks further apart than twice this are no flood.
pub(super) const LOOK_PACE_MOST: Duration = Duration::from_secs(5);

/// What the one connection of a session does.
#[derive(Debug)]
pub(super) enum Connection {
    /// Not there; to be opened at `retry_at`.
    Down { retry_at: Duration },
    /// An effect is awaited.
    Busy { op: Op, work: Work },
    /// Logged in, nothing awaited.
    Free,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// `held`: not begun, and it may take long.
    Open {
        held: bool,
    },
    Look(usize),
    /// Of this folder, these messages.
    Fetch(usize, Page),
    Park {
        idle: bool,
        interrupted: bool,
    },
    Poll,
    Serve,
    Close,
}

impl Session {
    /// How new mail is noticed now.
    pub(super) fn mode(&self) -> &'static str {
        match self.connection {
            Connection::Down { .. }
            | Connection::Busy {
                work: Work::Open { .. },
                ..
            } => "",
            _ if self.idle => "idle",
            _ => "poll",
        }
    }

    pub(super) fn wants_connection(&self) -> bool {
        self.stop.is_none() && self.config.paused.is_none()
    }

    pub(super) fn drop_connection(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !matches!(self.connection, Connection::Down { .. }) {
            effects.push(Effect::Drop);
        }
        self.lost(now.mono);
    }

    fn lost(&mut self, retry_at: Duration) {
        self.well_since = None;
        self.served_last = false;
        self.connection = Connection::Down { retry_at };
        for watch in &mut self.watches {
            watch.look_again();
            watch.select = true;
        }
    }

    /// Takes the work of `op`, if that is what is awaited.
    pub(super) fn answered(&mut self, op: Op) -> Option<Work> {
        match self.connection {
            Connection::Busy { op: awaited, work } if awaited == op => {
                self.connection = Connection::Free;
                Some(work)
            }
            _ => None,
        }
    }

    pub(super) fn on_opened(&mut self, op: Op, idle: bool, handshake: Duration, quiet: &[String]) {
        if self.answered(op).is_none() {
            return;
        }
        self.idle = idle;
        self.handshake = handshake;
        self.poll_every = self.poll_every.max(self.poll_least());
        for watch in &mut self.watches {
            watch.quiet = quiet.contains(&watch.name);
            watch.dirty = true;
            watch.select = true;
        }
    }

    pub(super) fn on_held(&mut self, now: Now, op: Op, failure: &Failure) {
        if let Connection::Busy {
            op: awaited,
            work: Work::Open { held },
        } = &mut self.connection
            && *awaited == op
        {
            *held = true;
            // No attempt failed, so the delay of the next one does not grow.
            self.condition.held(now, failure);
        }
    }

    pub(super) fn on_failed(
        &mut self,
        now: Now,
        rng: &mut dyn Rng,
        op: Op,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        let Some(work) = self.answered(op) else {
            return;
        };
        if self.stop.is_some() {
            self.lost(now.mono);
            return;
        }
        if let (Severity::NoSuchFolder, Work::Look(index)) = (failure.severity, work) {
            if let Some(watch) = self.watches.get_mut(index) {
                watch.dirty = false;
                watch.missing = Some((failure.code, failure.sentence.clone()));
                watch.looked_at = now.mono;
                watch.forget_found();
            }
            if index > 0 {
                return;
            }
            // Without the folder that is held open there is nothing to wait on.
            effects.push(Effect::Drop);
        }
        if let Work::Fetch(index, page) = work
            && let Some(watch) = self.watches.get_mut(index)
        {
            watch.suspect(now, page);
        }
        let act = self.condition.failed(now, &failure);
        // A look that works and a fetch or an IDLE that fails, again and again, must not become a loop of logins.
        if self
            .well_since
            .is_some_and(|since| now.mono.saturating_sub(since) >= WELL_AFTER)
        {
            self.reconnect.reset();
        }
        let mut delay = self.reconnect.next(&mut &mut *rng);
        if act {
            let retry = self.config.limits.permanent_retry;
            // Spread: many accounts of one provider may have failed together.
            delay = delay.max(retry + retry.mul_f64(0.25 * rng.random::<f64>()));
        }
        self.lost(now.mono + delay);
        if self.requests > 0 {
            self.requests = 0;
            effects.push(Effect::RefuseRequests);
        }
    }

    pub(super) fn on_woke(&mut self, op: Op, wake: Wake) {
        let Some(Work::Park { idle, .. }) = self.answered(op) else {
            return;
        };
        let Some(home) = self.watches.first_mut() else {
            return;
        };
        match wake {
            Wake::Changed { noticed_us } => {
                home.dirty = true;
                home.noticed_us.get_or_insert(noticed_us);
            }
            // A server may advertise IDLE and never say anything: the look that follows is a whole one.
            Wake::Expired if idle => {
                home.dirty = true;
                home.select = true;
            }
            Wake::Expired | Wake::Interrupted => {}
        }
    }

    /// No poll comes sooner than this after the last look.
    pub(super) fn poll_least(&self) -> Duration {
        let limits = self.config.limits;
        limits
            .poll_least
            .max(self.handshake * limits.poll_handshakes)
    }

    pub(super) fn on_polled(&mut self, now: Now, op: Op, changed: bool) {
        if self.answered(op).is_none() {
            return;
        }
        let (limits, least) = (self.config.limits, self.poll_least());
        self.poll_every = if changed {
            least
        } else {
            (self.poll_every * 3 / 2).clamp(least, limits.poll_most.max(least))
        };
        if let Some(home) = self.watches.first_mut() {
            home.looked_at = now.mono;
            if changed {
                home.dirty = true;
                home.noticed_us.get_or_insert(now.wall_us);
            } else if now.mono.saturating_sub(home.examined_at) >= limits.idle {
                // A server may answer NOOP and never say anything: now and then the look is a whole one.
                home.dirty = true;
                home.select = true;
            }
        }
    }

    pub(super) fn on_served(&mut self, op: Op) {
        if self.answered(op).is_none() {
            return;
        }
        self.served_last = true;
        // Another folder may be selected, and notices may have been read on the way: what a look found before is found again,
        // or its UIDs would be fetched from the wrong folder.
        for (index, watch) in self.watches.iter_mut().enumerate() {
            if index == 0 || !watch.backlog.is_empty() {
                watch.look_again();
                watch.select = true;
            }
        }
    }

    pub(super) fn on_closed(&mut self, op: Op) {
        if self.answered(op).is_some() {
            self.connection = Connection::Down {
                retry_at: Duration::MAX,
            };
        }
    }

    pub(super) fn advance_connection(&mut self, now: Now, effects: &mut Vec<Effect>) {
        match self.connection {
            Connection::Down { retry_at } => {
                if self.wants_connection() && retry_at <= now.mono {
                    let op = self.op();
                    self.busy(op, Work::Open { held: false });
                    effects.push(Effect::Open { op });
                } else if self.requests > 0 {
                    self.requests = 0;
                    effects.push(Effect::RefuseRequests);
                }
            }
            Connection::Busy {
                op,
                work:
                    Work::Park {
                        idle,
                        interrupted: false,
                    },
            } => {
                let due = self.next_look().is_some_and(|at| at <= now.mono);
                let backlog = self.has_backlog() && !self.outbox.stalled() && self.bus_up;
                let dirty = self.may_look() && self.watches.iter().any(|watch| watch.dirty);
                if self.stop.is_some() || self.requests > 0 || due || backlog || dirty {
                    let work = Work::Park {
                        idle,
                        interrupted: true,
                    };
                    self.connection = Connection::Busy { op, work };
                    effects.push(Effect::Interrupt);
                }
            }
            Connection::Busy {
                work: Work::Open { .. },
                ..
            } if self.stop.is_some() => {
                effects.push(Effect::Drop);
                self.lost(Duration::MAX);
            }
            Connection::Busy {
                work: Work::Open { held: true },
                ..
            } if self.requests > 0 => {
                self.requests = 0;
                effects.push(Effect::RefuseRequests);
            }
            Connection::Busy { .. } => {}
            Connection::Free => self.next_work(now, effects),
        }
    }

    pub(super) fn busy(&mut self, op: Op, work: Work) {
        self.connection = Connection::Busy { op, work };
    }

    fn has_backlog(&self) -> bool {
        self.watches
            .iter()
            .any(|watch| !watch.backlog.is_empty() || watch.bulk_later.is_some())
    }

    /// Whether what a look finds could be appended.
    fn may_look(&self) -> bool {
        self.bus_up && !self.outbox.stalled()
    }

    /// When the next look is due by time.
    pub(super) fn next_look(&self) -> Option<Duration> {
        if !self.may_look() {
            return None;
        }
        let home = self.watches.first().map(|home| home.looked_at);
        let poll = home
            .filter(|_| !self.idle)
            .map(|looked| looked + self.poll_every);
        let sweep = self
            .watches
            .iter()
            .skip(1)
            .map(|watch| watch.looked_at + self.config.limits.sweep);
        let limits = &self.config.limits;
        let recheck = self
            .watches
            .iter()
            .filter_map(|watch| watch.recheck_at(limits));
        poll.into_iter().chain(sweep).chain(recheck).min()
    }

    fn next_work(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.stop.is_some() {
            if self.requests > 0 {
                self.requests = 0;
                effects.push(Effect::RefuseRequests);
            }
            let op = self.op();
            self.busy(op, Work::Close);
            effects.push(Effect::Close { op });
            return;
        }
        // What a look found is fetched first, and between two listings there is a look: neither keeps the other waiting.
        let look_first = self.may_look() && self.served_last;
        if self.requests > 0 && !self.has_backlog() && !look_first {
            self.requests = 0;
            let op = self.op();
            self.busy(op, Work::Serve);
            effects.push(Effect::Serve { op });
            return;
        }
        if self.may_look() {
            if !self.outbox.is_empty() {
                // A page at a time: the log's answers are milliseconds away.
                return;
            }
            self.mark_due(now);
            if let Some(index) = self
                .watches
                .iter()
                .position(|watch| !watch.backlog.is_empty())
            {
                self.fetch(now, index, effects);
                return;
            }
            if let Some(bulk) = self
                .watches
                .iter_mut()
                .find_map(|watch| watch.bulk_later.take())
            {
                self.outbox.queue.push_back(bulk);
                self.advance_append(now, effects);
                return;
            }
            if self.paced_until().is_some_and(|until| until > now.mono) {
                return;
            }
            // Home comes last, so that it is the one that is selected when the connection parks.
            if let Some(index) = self.watches.iter().rposition(|watch| watch.dirty) {
                self.look(now, index, effects);
                return;
            }
            let poll_due = self
                .watches
                .first()
                .is_some_and(|home| home.looked_at + self.poll_every <= now.mono);
            if !self.idle && poll_due {
                let op = self.op();
                self.busy(op, Work::Poll);
                effects.push(Effect::Poll { op });
                return;
            }
        }
        let op = self.op();
        let most = match self.next_look() {
            _ if self.idle => self.config.limits.idle,
            Some(at) => at.saturating_sub(now.mono),
            None => self.poll_every,
        };
        let idle = self.idle;
        self.busy(
            op,
            Work::Park {
                idle,
                interrupted: false,
            },
        );
        effects.push(Effect::Park { op, idle, most });
    }

    /// A server that announces something with each answer and has nothing new must not set the pace: until when the next look
    /// waits.
    pub(super) fn paced_until(&self) -> Option<Duration> {
        const FREE: u32 = 8;
        let over = self.empty_looks.checked_sub(FREE)?;
        let home = self.watches.first()?;
        let pace = LOOK_PACE_FIRST * (1 << over.min(6));
        Some(home.looked_at + pace.min(LOOK_PACE_MOST))
    }

    /// Marks what is due by time.
    fn mark_due(&mut self, now: Now) {
        let limits = &self.config.limits;
        let mut elsewhere = false;
        for (index, watch) in self.watches.iter_mut().enumerate() {
            let swept = index > 0 && watch.looked_at + limits.sweep <= now.mono;
            let recheck = watch.recheck_at(limits).is_some_and(|at| at <= now.mono);
            if swept || recheck {
                watch.dirty = true;
                watch.select = true;
            }
            elsewhere |= index > 0 && watch.dirty;
        }
        if elsewhere && let Some(home) = self.watches.first_mut() {
            home.dirty = true;
            home.select = true;
        }
    }
}
