//! The mail connection: what it does next, and what its answers mean.

use std::time::Duration;

use bytes::Bytes;
use mailbell_proto::push::v1::{Bulk, Resync, ResyncReason, resync::Scope};
use prost::Message as _;
use rand::{Rng, RngExt as _};

use super::{Effect, Failure, Fetched, Look, Now, Op, Session, Severity, Wake};
use crate::{
    checkpoint::{Folder, Hole, UNSETTLED},
    event::{Event, Fact, content_digest, fit_message},
    ids::{FolderId, Generation, Uid},
    plant,
};

/// A connection that was well for so long is a success: the next failure begins with the shortest delay.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// How long a look waits after many that found nothing: at first, and at most.
const LOOK_PACE_FIRST: Duration = Duration::from_millis(100);
/// See [`LOOK_PACE_FIRST`]. Looks further apart than twice this are no flood.
const LOOK_PACE_MOST: Duration = Duration::from_secs(5);

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
    Open,
    Look(usize),
    /// Of this folder, so many messages.
    Fetch(usize, usize),
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
                work: Work::Open, ..
            } => "",
            _ if self.idle => "idle",
            _ => "poll",
        }
    }

    pub(super) fn wants_connection(&self) -> bool {
        self.stop.is_none() && !self.config.paused
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
    fn answered(&mut self, op: Op) -> Option<Work> {
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
        for watch in &mut self.watches {
            watch.quiet = quiet.contains(&watch.name);
            watch.dirty = true;
            watch.select = true;
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
                watch.missing = true;
                watch.looked_at = now.mono;
            }
            if index > 0 {
                self.condition.missing_folder(&failure);
                return;
            }
            // Without the folder that is held open there is nothing to wait on.
            effects.push(Effect::Drop);
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

    pub(super) fn on_polled(&mut self, now: Now, op: Op, changed: bool) {
        if self.answered(op).is_none() {
            return;
        }
        let limits = self.config.limits;
        let least = limits
            .poll_least
            .max(self.handshake * limits.poll_handshakes);
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
                    self.busy(op, Work::Open);
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
                work: Work::Open, ..
            } if self.stop.is_some() => {
                effects.push(Effect::Drop);
                self.lost(Duration::MAX);
            }
            Connection::Busy { .. } => {}
            Connection::Free => self.next_work(now, effects),
        }
    }

    fn busy(&mut self, op: Op, work: Work) {
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
        let recheck = self.watches.iter().filter_map(|watch| watch.recheck_at());
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
                self.fetch(index, effects);
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
        let sweep = self.config.limits.sweep;
        let mut elsewhere = false;
        for (index, watch) in self.watches.iter_mut().enumerate() {
            let swept = index > 0 && watch.looked_at + sweep <= now.mono;
            let recheck = watch.recheck_at().is_some_and(|at| at <= now.mono);
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

    fn look(&mut self, now: Now, index: usize, effects: &mut Vec<Effect>) {
        let op = self.op();
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        watch.dirty = false;
        watch.looked_us = Some(now.wall_us);
        let select = std::mem::take(&mut watch.select);
        if select {
            watch.examined_at = now.mono;
        }
        let (from, most) = match watch.begins {
            Some((_, from)) => (Some(from), UNSETTLED),
            None => (None, self.config.limits.flood),
        };
        let id = self.checkpoint.folder_id(&watch.name);
        let known = self.checkpoint.folder(id);
        let age = self.config.limits.hole_age;
        let effect = Effect::Look {
            op,
            folder: watch.name.clone(),
            select,
            from: from.unwrap_or_else(|| known.map_or(Uid::MAX, |folder| folder.uid_next)),
            most,
            holes: known
                .map(|folder| {
                    folder
                        .holes
                        .iter()
                        .filter(|hole| is_open(folder, hole, age))
                        .map(|hole| (hole.first, hole.last))
                        .collect()
                })
                .unwrap_or_default(),
        };
        self.busy(op, Work::Look(index));
        effects.push(effect);
    }

    fn fetch(&mut self, index: usize, effects: &mut Vec<Effect>) {
        let op = self.op();
        let page = self.config.limits.page;
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        let size = page.min(watch.backlog.len());
        let uids = watch.backlog.drain(..size).collect();
        self.busy(op, Work::Fetch(index, size));
        effects.push(Effect::Fetch { op, uids });
    }

    pub(super) fn on_looked(&mut self, now: Now, op: Op, look: Look) {
        let Some(Work::Look(index)) = self.answered(op) else {
            return;
        };
        self.served_last = false;
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        let quick = now.mono.saturating_sub(watch.looked_at) < LOOK_PACE_MOST * 2;
        let nothing = look.uids.is_empty() && look.late.is_empty();
        self.empty_looks = if quick && nothing {
            self.empty_looks.saturating_add(1)
        } else {
            0
        };
        watch.looked_at = now.mono;
        if std::mem::take(&mut watch.missing) {
            self.condition.folder_found();
        }
        let name = watch.name.clone();
        let id = self.checkpoint.folder_id(&name);
        let known = self.checkpoint.folder(id).map(|folder| {
            let went_back = look.uid_next_exact && look.uid_next < folder.uid_next;
            (folder.generation, went_back)
        });
        let reason = match known {
            None => Some(ResyncReason::Baseline),
            Some((generation, _)) if generation != look.generation => {
                Some(ResyncReason::Generation)
            }
            Some((_, true)) => Some(ResyncReason::Baseline),
            Some(_) => None,
        };
        let watch_begins = watch.begins.take();
        if watch_begins.is_some() && reason.is_none() {
            // The folder is the known one again, and this look was not about what is new in it.
            watch.dirty = true;
            return;
        }
        if let Some(reason) = reason {
            let from = look.uid_next.saturating_sub(UNSETTLED).max(1);
            if look.uid_next > 1 && watch_begins.is_none_or(|(of, _)| of != look.generation) {
                // Once more, for what of the newest is there: the rest may show up after devices have listed.
                watch.begins = Some((look.generation, from));
                watch.dirty = true;
                return;
            }
            watch.settle(look.generation, look.uids.iter().copied());
            watch.plan_recheck(now, &self.config.limits, look.uid_next, look.uid_next > 1);
            let counter = self.next_counter(now);
            let fact = Fact::Resync {
                counter,
                uid_next: look.uid_next,
                reason,
            };
            let scope = Scope {
                account: self.config.account.to_string(),
                folder: id,
                ..Scope::default()
            };
            let content = Resync {
                scope: Some(scope),
                reason: reason.into(),
                generation: look.generation,
                uid_next: look.uid_next,
                ..Resync::default()
            };
            self.tell(
                now,
                index,
                id,
                look.generation,
                fact,
                content.encode_to_vec(),
            );
            return;
        }
        let cap = self.config.limits.flood;
        if look.total_new > cap
            && let Some(first_told) = look.uids.first().copied()
            && let Some(folder) = self.checkpoint.folder(id)
            && first_told > folder.uid_next
        {
            let (first, last) = (folder.uid_next, first_told - 1);
            let counter = self.next_counter(now);
            let count = look.total_new.saturating_sub(cap);
            let fact = Fact::Bulk {
                counter,
                first,
                last,
            };
            let content = Bulk {
                first_uid: first,
                last_uid: last,
                count,
            }
            .encode_to_vec();
            self.tell(now, index, id, look.generation, fact, content);
            if plant::is(plant::Bug::BulkAfterNewest) {
                let bulk = self.outbox.queue.pop_back();
                if let Some(watch) = self.watches.get_mut(index) {
                    watch.bulk_later = bulk;
                }
            }
        }
        let Some(folder) = self.checkpoint.folder(id) else {
            return;
        };
        let expected = look
            .uids
            .last()
            .map_or(folder.uid_next, |last| last.saturating_add(1));
        let age = self.config.limits.hole_age;
        let open = folder.holes.iter().any(|hole| is_open(folder, hole, age));
        let gap_now = look
            .uids
            .first()
            .is_some_and(|first| *first > folder.uid_next)
            || look
                .uids
                .windows(2)
                .any(|pair| matches!(pair, [a, b] if *b > *a + 1));
        let expect_more = open || gap_now || (look.uid_next_exact && look.uid_next > expected);
        let backlog = look
            .late
            .iter()
            .chain(&look.uids)
            .copied()
            .filter(|uid| !folder.told(*uid))
            .filter(|uid| !self.is_settled(index, look.generation, *uid))
            .collect();
        if let Some(watch) = self.watches.get_mut(index) {
            watch.backlog = backlog;
            watch.plan_recheck(now, &self.config.limits, look.uid_next, expect_more);
        }
    }

    fn is_settled(&self, index: usize, generation: Generation, uid: Uid) -> bool {
        self.watches
            .get(index)
            .is_some_and(|watch| watch.is_settled(generation, uid))
    }

    pub(super) fn on_fetched(&mut self, now: Now, op: Op, messages: Vec<Fetched>) {
        let Some(Work::Fetch(index, asked)) = self.answered(op) else {
            return;
        };
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        if messages.len() < asked {
            // Expunged since, or the server names messages before it gives them.
            watch.missed_some(now, &self.config.limits);
        }
        let id = self.checkpoint.folder_id(&watch.name);
        let Some(folder) = self.checkpoint.folder(id) else {
            return;
        };
        let generation = folder.generation;
        let (quiet, name) = (watch.quiet, watch.name.clone());
        let detected_us = watch.noticed_us.or(watch.looked_us).unwrap_or(now.wall_us);
        let newest_alert = folder.last_look_us - as_us(self.config.limits.alert_margin);
        let told: Vec<bool> = messages
            .iter()
            .map(|fetched| folder.told(fetched.message.uid))
            .collect();
        for (fetched, told) in messages.into_iter().zip(told) {
            if told || fetched.message.uid == 0 {
                continue;
            }
            let message = fit_message(fetched.message);
            let digest = content_digest(&message);
            let seen = message
                .flags
                .iter()
                .any(|flag| flag.eq_ignore_ascii_case("\\Seen"));
            let recent = message.internal_date_ms.saturating_mul(1000) >= newest_alert;
            let alerted = self.checkpoint.alerted.contains(&digest)
                || self.outbox.events().any(|event| {
                    event.alert && matches!(event.fact, Fact::Arrived { digest: other, .. } if other == digest)
                });
            self.condition.arrived(now.wall_us);
            self.outbox.queue.push_back(Event {
                account: self.config.account.clone(),
                folder: id,
                generation,
                fact: Fact::Arrived {
                    uid: message.uid,
                    digest,
                },
                alert: !seen && recent && !quiet && !alerted,
                owner_epoch: self.config.owner_epoch,
                traceparent: fetched.traceparent,
                detected_us,
                fetched_us: now.wall_us,
                folder_name: name.clone(),
                content: Bytes::from(message.encode_to_vec()),
            });
        }
        self.poll_every = self.config.limits.poll_least;
    }

    fn tell(
        &mut self,
        now: Now,
        index: usize,
        folder: FolderId,
        generation: Generation,
        fact: Fact,
        content: Vec<u8>,
    ) {
        let Some(watch) = self.watches.get(index) else {
            return;
        };
        self.outbox.queue.push_back(Event {
            account: self.config.account.clone(),
            folder,
            generation,
            fact,
            alert: false,
            owner_epoch: self.config.owner_epoch,
            traceparent: String::new(),
            detected_us: watch.noticed_us.unwrap_or(now.wall_us),
            fetched_us: now.wall_us,
            folder_name: watch.name.clone(),
            content: Bytes::from(content),
        });
    }

    /// Everything that a look found is in the log: it was a good look.
    pub(super) fn note_whole_folders(&mut self, now: Now) {
        let looking = matches!(
            self.connection,
            Connection::Busy {
                work: Work::Look(_) | Work::Fetch(..),
                ..
            }
        );
        if looking || !self.outbox.is_empty() {
            return;
        }
        const STORED_AT_LEAST_EVERY_US: i64 = 10 * 60 * 1_000_000;
        for (index, watch) in self.watches.iter_mut().enumerate() {
            if !watch.backlog.is_empty() || watch.bulk_later.is_some() {
                continue;
            }
            if watch.dirty {
                continue;
            }
            let Some(looked_us) = watch.looked_us.take() else {
                continue;
            };
            watch.noticed_us = None;
            if index == 0 {
                self.condition.watching(now);
                self.well_since.get_or_insert(now.mono);
            }
            let id = self.checkpoint.folder_id(&watch.name);
            if let Some(folder) = self.checkpoint.folder_mut(id) {
                if looked_us - folder.last_look_us >= STORED_AT_LEAST_EVERY_US {
                    let due = now.mono + self.config.timing.checkpoint_delay;
                    self.store_due.get_or_insert(due);
                }
                folder.last_look_us = folder.last_look_us.max(looked_us);
            }
        }
    }
}

/// Whether a gap is still looked into: until a look that came after its time, however long there was none.
fn is_open(folder: &Folder, hole: &Hole, age: Duration) -> bool {
    folder.last_look_us <= hole.noticed_us.saturating_add(as_us(age))
}

fn as_us(period: Duration) -> i64 {
    i64::try_from(period.as_micros()).unwrap_or(i64::MAX)
}
