//! The task that owns the hub: what comes from the logs goes through here to the devices' queues.
//!
//! It never waits for a device, a read or a leader: those tell it when they are done. Everything that needs a decision is a
//! method without an await.

mod attach;
mod closing;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mailbell_bus::Link;
use mailbell_core::{
    cursor::Place,
    dedupe::RecentKeys,
    delivery::{DeviceId, Hub},
    ids::{GROUPS, Group, PerGroup, Position},
};
use mailbell_proto::push::v1::ResyncReason;
use mailbell_runtime::{
    drain::{DrainHandle, Draining},
    health::Health,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

pub(crate) use self::attach::{AttachRequest, Attached, From};
use crate::{
    Error, Options,
    authority::Authority,
    bell::{Bell, Rung},
    clock::{now_ms, now_s},
    entry::SharedEntry,
    follower::Heard,
    metrics::{Metrics, Reason, reason_word},
    outbox::Outbox,
    replays::{Done, Replays},
};

/// The health check that says whether this gateway is where the logs are, and can judge tokens.
pub const CHECK: &str = "gateway";
/// The beat by which a stuck dispatcher is noticed.
const BEAT: &str = "gateway-dispatcher";
const BEAT_LIMIT: Duration = Duration::from_secs(30);
/// How many things of one kind are done before the others have a turn.
const TURN: usize = 128;
/// How many recent keys of a group tell that a log repeats itself.
const RECENT_KEYS: usize = 2048;

/// What streams ask of the dispatcher.
#[derive(Debug)]
pub(crate) enum Command {
    /// Attach a device.
    Attach(Box<AttachRequest>),
    /// The cursor of somebody who has everything up to now, to list an account of this group; `None`: its log is not joined.
    CursorNow(Group, oneshot::Sender<Option<Bytes>>),
}

/// What the dispatcher is given.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) options: Arc<Options>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) heard: mpsc::Receiver<Heard>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) replays: Replays,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    parts: Parts,
    hub: Hub<SharedEntry>,
    outbox: Outbox,
    authority_version: watch::Receiver<u64>,
    recent: PerGroup<RecentKeys>,
    /// Whose follower has said where this gateway stands. Nobody else's devices may attach before.
    joined: PerGroup<bool>,
    /// Which logs are not heard, and since when.
    silent: PerGroup<Option<Instant>>,
    /// Since when one of them is not, as devices were told last.
    silent_since: Option<Instant>,
    began: Instant,
    /// The device after which the heartbeat goes on; `None` between two rounds.
    beat_after: Option<DeviceId>,
    beat_round: Instant,
    draining: Option<Draining>,
}

impl Dispatcher {
    /// One that has joined no log yet.
    pub(crate) fn new(parts: Parts) -> Self {
        let hub = Hub::new(&PerGroup::default(), parts.options.window);
        let began = Instant::now();
        let outbox = Outbox::new(parts.metrics.clone());
        let authority_version = parts.authority.version();
        Self {
            hub,
            outbox,
            authority_version,
            recent: PerGroup::from_fn(|_| RecentKeys::new(RECENT_KEYS)),
            joined: PerGroup::default(),
            silent: PerGroup::from_fn(|_| Some(began)),
            silent_since: None,
            began,
            beat_after: None,
            beat_round: began,
            draining: None,
            parts,
        }
    }

    /// Until the drain is over.
    pub(crate) async fn run(mut self, mut drain: DrainHandle) -> Result<(), Error> {
        let mut tick = interval(self.parts.options.timing.cursor_delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let alive = self.parts.health.heartbeat(BEAT, BEAT_LIMIT);
        let bell = Arc::clone(&self.parts.bell);
        let (mut heard, mut commands) = (Vec::new(), Vec::new());
        loop {
            let draining = self.draining.is_some();
            tokio::select! {
                // Not biased: a flood of entries must not starve the attaches of a storm, nor the other way round. Every arm
                // is cancel-safe: what was not taken stays where it is.
                count = self.parts.heard.recv_many(&mut heard, TURN) => {
                    if count == 0 {
                        return Err(Error::BusClosed);
                    }
                    self.outbox.tick();
                    heard.drain(..).for_each(|heard| self.on_heard(heard));
                }
                count = self.parts.commands.recv_many(&mut commands, TURN) => {
                    if count == 0 {
                        // The server is gone, and with it every stream.
                        return Ok(());
                    }
                    self.outbox.tick();
                    commands.drain(..).for_each(|command| self.on_command(command));
                }
                rung = bell.heard() => {
                    self.outbox.tick();
                    self.on_rung(rung);
                }
                done = self.parts.replays.done() => {
                    self.outbox.tick();
                    self.on_read(done);
                }
                begun = drain.signaled(), if !draining => {
                    self.outbox.tick();
                    self.on_drain(begun);
                }
                _ = tick.tick() => {
                    alive.beat();
                    self.outbox.tick();
                    self.on_tick();
                }
            }
            self.close_untold();
            self.begin_reads();
            if self.is_drained() {
                return Ok(());
            }
        }
    }

    fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Entry(group, position, entry) => self.on_entry(group, position, &entry),
            Heard::Skipped(group, position) => self.hub.on_skipped(group, position),
            Heard::Changed(group, place, reason) => self.on_changed(group, place, reason),
            Heard::Begin(group, place) => self.on_begin(group, place),
            Heard::Following(group) => self.silent[group] = None,
            Heard::Lost(group, since) => self.silent[group] = Some(since),
        }
    }

    fn on_begin(&mut self, group: Group, place: Place) {
        self.hub.join(group, place);
        self.joined[group] = true;
        if self.is_joined() {
            tracing::info!("all logs are joined");
        }
    }

    fn is_joined(&self) -> bool {
        self.joined.iter().all(|(_, joined)| *joined)
    }

    fn on_entry(&mut self, group: Group, position: Position, entry: &SharedEntry) {
        // Told all the same: a device removes repeats by the key, and may not have had the first one.
        if !self.recent[group].insert(&entry.event().key()) {
            self.parts.metrics.repeated.inc();
        }
        self.hub.on_entry(group, position, entry, &mut self.outbox);
    }

    fn on_changed(&mut self, group: Group, place: Place, reason: ResyncReason) {
        let label = reason_word(reason);
        let changes = &self.parts.metrics.log_changes;
        changes.get_or_create(&Reason { reason: label }).inc();
        self.hub
            .on_log_changed(group, place, reason, &mut self.outbox);
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Attach(request) => self.on_attach(*request),
            Command::CursorNow(group, reply) => {
                let cursor = self.joined[group].then(|| self.hub.cursor_now().encode());
                // Nobody waits any more: fine.
                let _ = reply.send(cursor);
            }
        }
    }

    fn on_rung(&mut self, rung: Rung) {
        for id in rung.gone {
            self.on_gone(id);
        }
        for id in rung.room {
            self.serve(id);
        }
    }

    /// A device's queue has room: first what memory has, then a read.
    fn serve(&mut self, id: DeviceId) {
        self.hub.on_room(id, &mut self.outbox);
        self.feed(id);
        self.want_read(id);
    }

    /// Gives a device what was read for it and did not fit then.
    fn feed(&mut self, id: DeviceId) {
        let Some(mut read) = self.parts.replays.unstage(id) else {
            return;
        };
        let (group, log_id) = (read.replay.group, read.replay.log_id);
        let fits = |now: &mailbell_core::delivery::Replay| {
            now.log_id == log_id && (read.replay.after..=read.read_to).contains(&now.after)
        };
        let same = |other| other == group;
        let Some(replay) = self.hub.replay_of(id, same).filter(fits) else {
            return;
        };
        let had = read
            .entries
            .partition_point(|(position, _)| *position <= replay.after);
        read.entries.drain(..had);
        self.hub.on_replayed(
            id,
            &replay,
            read.entries.iter().cloned(),
            read.read_to,
            read.first,
            &mut self.outbox,
        );
        let left = self.hub.replay_of(id, same);
        if left.is_some_and(|next| next.log_id == log_id && next.after < read.read_to) {
            self.parts.replays.stage(id, read);
        }
    }

    /// Asks for a read if the device needs one and can take what it brings; else its queue tells when it can.
    fn want_read(&mut self, id: DeviceId) {
        let Some(seat) = self.outbox.seats.get_mut(&id) else {
            return;
        };
        if seat.reading || self.hub.replay(id).is_none() || seat.device.queue.ask_for_room() {
            return;
        }
        seat.reading = true;
        self.parts.replays.ask(id);
    }

    fn begin_reads(&mut self) {
        let replays = &mut self.parts.replays;
        replays.unpark(self.outbox.now);
        while let Some(id) = replays.next() {
            let Some(seat) = self.outbox.seats.get_mut(&id) else {
                continue;
            };
            match self.hub.replay_of(id, |group| replays.is_readable(group)) {
                Some(replay) => {
                    let subject = &seat.device.subscription.subject;
                    replays.begin(id, replay, subject);
                }
                None if self.hub.replay(id).is_some() => replays.park(id),
                None => seat.reading = false,
            }
        }
    }

    fn on_read(&mut self, done: Done) {
        let Done { id, group, read } = done;
        self.parts
            .replays
            .note(group, read.is_some(), self.outbox.now);
        if let Some(seat) = self.outbox.seats.get_mut(&id) {
            seat.reading = false;
            if let Some(read) = read {
                self.parts.replays.stage(id, read);
                self.feed(id);
            }
            self.want_read(id);
        }
    }

    fn on_tick(&mut self) {
        self.look_at_the_logs();
        self.hub.offer_fresh_cursors(&mut self.outbox);
        self.beat();
        self.look_at_tokens();
        self.sweep(now_s());
        let metrics = &self.parts.metrics;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.devices.set(count(self.outbox.seats.len()));
        let behind = |id: &&DeviceId| !self.hub.is_live(**id);
        metrics
            .behind
            .set(count(self.outbox.seats.keys().filter(behind).count()));
    }

    /// Offers every device its cursor at least once a heartbeat: a round begins every 3/4 of it and takes at most 1/5.
    fn beat(&mut self) {
        let timing = &self.parts.options.timing;
        let after = match self.beat_after {
            Some(after) => after,
            None if self.outbox.now < self.beat_round + timing.heartbeat * 3 / 4 => return,
            None => {
                self.beat_round = self.outbox.now;
                DeviceId(0)
            }
        };
        let turns = timing.heartbeat.as_millis() / 5 / timing.cursor_delay.as_millis().max(1);
        let turns = usize::try_from(turns).unwrap_or(1).max(1);
        let share = self.hub.devices() / turns + 1;
        self.beat_after = self.hub.offer_cursors_after(after, share, &mut self.outbox);
    }

    fn look_at_the_logs(&mut self) {
        let link = *self.parts.link.borrow_and_update();
        let down = match link {
            Link::Up { .. } => None,
            Link::Down { since, .. } => Some(since),
        };
        let silent = self.silent.iter().filter_map(|(_, since)| *since);
        let silent_since = silent.chain(down).min();
        // Kept as it is while it lasts: then all devices get the same frame.
        if silent_since != self.silent_since {
            self.silent_since = silent_since;
            self.outbox.silent_since_ms = silent_since.map_or(0, |since| {
                let silent = self.outbox.now.saturating_duration_since(since);
                now_ms() - i64::try_from(silent.as_millis()).unwrap_or(i64::MAX)
            });
        }
        let check = self.unready(down);
        self.parts.health.set(CHECK, check.map_or(Ok(()), Err));
    }

    /// Why this gateway is not ready. A few logs that are away make it tell so to their devices, and keep it from no other's.
    fn unready(&self, down: Option<Instant>) -> Option<&'static str> {
        let grace = self.parts.options.link_grace;
        let long = |since: Instant| self.outbox.now.saturating_duration_since(since) > grace;
        if let Some(since) = down {
            return long(since).then_some("not connected to NATS");
        }
        if !self.is_joined() && !long(self.began) {
            return Some("the logs are being joined");
        }
        let silent = self.silent.iter().filter_map(|(_, since)| *since);
        if silent.filter(|since| long(*since)).count() > usize::from(GROUPS) / 2 {
            return Some("most logs in NATS cannot be followed");
        }
        self.parts.authority.missing()
    }
}
