//! The account session: everything that watching one mailbox decides, as a state machine without await, clock or socket.
//!
//! Inputs go in, effects come out; [`Op`] ties an answer to its effect, so that late and doubled answers are harmless. The rules:
//!
//! * What is known (the checkpoint) changes only by events that the log acknowledged: `checkpoint = fold(log)`.
//! * Everything that waits to be appended can be found again by looking at the mailbox, so that nothing is kept when the log is
//!   away but "look again".
//! * Look, then park: a connection waits for notices only after the folder was compared with what is known.

mod append;
mod folders;
mod health;
mod look;
mod mailbox;
mod types;

use std::time::Duration;

use mailbell_proto::push::v1::ContentLevel;
use rand::Rng;

use self::{
    append::{Flight, Outbox},
    folders::Watch,
    health::{Condition, Words},
    mailbox::{Connection, Work},
};
pub use types::{
    Config, Effect, Failure, Fetched, Input, Limits, Look, Now, Op, Outcome, Pause, Severity,
    Status, Stop, Tail, Wake,
};

use crate::{
    backoff::Backoff,
    checkpoint::Checkpoint,
    event::Event,
    ids::{FolderId, LogId, Position},
    plant,
};

/// What is known of an account when its session begins.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The stored checkpoint with the log's tail folded in; empty if there is none.
    pub checkpoint: Checkpoint,
    /// Of the stored checkpoint; `None` if there is none.
    pub revision: Option<u64>,
    /// The first position that was folded in and that the stored checkpoint lacks.
    pub unstored_from: Option<Position>,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    config: Config,
    checkpoint: Checkpoint,
    revision: Option<u64>,
    outbox: Outbox,
    append_backoff: Backoff,
    bus_up: bool,
    /// The store in flight.
    storing: Option<Op>,
    /// The first position that was learnt after it was sent.
    learnt_since: Option<Position>,
    /// When what is known should be stored.
    store_due: Option<Duration>,
    /// The first position that the stored checkpoint lacks.
    unstored_from: Option<Position>,
    connection: Connection,
    reconnect: Backoff,
    idle: bool,
    handshake: Duration,
    poll_every: Duration,
    requests: u32,
    watches: Vec<Watch>,
    condition: Condition,
    stop: Option<Stop>,
    stopped: bool,
    /// The last attempt to store failed: wait for `store_due`, whatever the hurry.
    store_failed: bool,
    /// Since when this connection is known to work as a whole.
    well_since: Option<Duration>,
    /// A listing was served, and no look came after it yet.
    served_last: bool,
    /// Looks in quick succession that found nothing.
    empty_looks: u32,
    next_op: u64,
    counter_given: u64,
}

impl Session {
    /// A session over what is known.
    #[must_use]
    pub fn new(config: Config, known: Known, now: Now) -> Self {
        let limits = config.limits;
        let Known {
            checkpoint,
            revision,
            unstored_from,
        } = known;
        let watches = config.folders.iter().map(|name| Watch::new(name)).collect();
        let mut session = Self {
            outbox: Outbox::new(),
            append_backoff: Backoff::new(
                Duration::from_millis(20),
                Duration::from_millis(100),
                limits.append_most,
            ),
            bus_up: true,
            storing: None,
            learnt_since: None,
            store_due: None,
            unstored_from,
            connection: Connection::Down { retry_at: now.mono },
            reconnect: Backoff::new(
                Duration::from_millis(50),
                limits.reconnect_first,
                limits.reconnect_most,
            ),
            idle: false,
            handshake: Duration::ZERO,
            poll_every: limits.poll_least,
            requests: 0,
            watches,
            condition: Condition::starting(now, checkpoint.last_arrival_us),
            stop: None,
            stopped: false,
            store_failed: false,
            well_since: None,
            served_last: false,
            empty_looks: 0,
            next_op: 1,
            counter_given: 0,
            config,
            checkpoint,
            revision,
        };
        // What was folded in at a take-over is stored soon, so that the claim can move on.
        if session.unstored_from.is_some() {
            session.store_due = Some(now.mono + session.config.timing.checkpoint_delay);
        }
        if let Some(pause) = session.config.paused {
            session.condition.paused(now, pause);
        }
        session
    }

    /// What is known.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The most that events say of messages now: no more has to be fetched.
    #[must_use]
    pub fn content(&self) -> ContentLevel {
        self.config.content
    }

    /// A claim must not call more of the log flushed than this, as far as this account is concerned. `None`: no constraint.
    #[must_use]
    pub fn flush_bound(&self) -> Option<Position> {
        let unstored = self.unstored_from.map(|from| from.saturating_sub(1));
        [unstored, self.outbox.floor].into_iter().flatten().min()
    }

    /// How many events wait to be appended or are in flight: at most a page and a few facts beside it.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outbox.events().count()
    }

    /// Whether [`Effect::Stopped`] was given.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes in one input; what is to be done is appended to `effects`.
    pub fn handle(&mut self, now: Now, rng: &mut dyn Rng, input: Input, effects: &mut Vec<Effect>) {
        if self.stopped {
            return;
        }
        match input {
            Input::Start | Input::Tick => {}
            Input::Opened {
                op,
                idle,
                handshake,
                quiet_folders,
            } => self.on_opened(op, idle, handshake, &quiet_folders),
            Input::Looked { op, look } => self.on_looked(now, op, look),
            Input::FetchedPage { op, messages } => self.on_fetched(now, op, messages),
            Input::Woke { op, wake } => self.on_woke(op, wake),
            Input::Polled { op, changed } => self.on_polled(now, op, changed),
            Input::Served { op } => self.on_served(op),
            Input::Closed { op } => self.on_closed(op),
            Input::Held { op, failure } => self.on_held(now, op, &failure),
            Input::Failed { op, failure } => self.on_failed(now, rng, op, failure, effects),
            Input::Appended { op, outcome } => self.on_appended(now, rng, op, outcome),
            Input::TailRead { op, tail } => self.on_tail(now, rng, op, tail),
            Input::CheckpointStored { op, revision } => self.on_stored(now, op, Ok(revision)),
            Input::CheckpointNotStored { op, code, sentence } => {
                self.on_stored(now, op, Err((code, sentence)));
            }
            Input::CheckpointConflict { op } => {
                if self.storing == Some(op) {
                    self.stop = Some(Stop::Lost);
                }
            }
            Input::Bus { up } => {
                self.bus_up = up;
                if !up {
                    self.drop_queue();
                }
            }
            Input::Request => {
                self.requests = self.requests.saturating_add(1);
            }
            Input::Reconfigure { config } => self.on_reconfigure(now, *config, effects),
            Input::Relogin => {
                self.reconnect.reset();
                self.condition.forget_failures();
                self.drop_connection(now, effects);
            }
            Input::Stop(stop) => {
                if self.stop != Some(Stop::Lost) {
                    self.stop = Some(stop);
                }
            }
        }
        self.advance(now, effects);
    }

    fn op(&mut self) -> Op {
        let op = Op(self.next_op);
        self.next_op += 1;
        op
    }

    /// Gives every part its next step.
    fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.stop == Some(Stop::Lost) {
            effects.push(Effect::RefuseRequests);
            effects.push(Effect::Drop);
            self.finish(effects);
            return;
        }
        self.queue_health(now);
        self.advance_append(now, effects);
        self.advance_connection(now, effects);
        self.note_whole_folders(now);
        // A look that was whole may be news of the account.
        self.queue_health(now);
        self.advance_append(now, effects);
        self.advance_checkpoint(now, effects);
        let (mode, missing) = (self.mode(), folders::missing(&self.watches));
        if let Some(status) = self.condition.changed(mode, missing) {
            effects.push(Effect::Status(status));
        }
        if self.may_finish() {
            self.finish(effects);
            return;
        }
        if let Some(at) = self.next_deadline() {
            effects.push(Effect::Timer(at));
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        self.stopped = true;
        effects.push(Effect::Stopped);
    }

    fn may_finish(&self) -> bool {
        let away = matches!(self.connection, Connection::Down { .. });
        match self.stop {
            None | Some(Stop::Lost) => false,
            // While the log is away nothing can be finished: the successor finds it in the log or in the mailbox.
            Some(Stop::HandOver) if !self.bus_up => away,
            Some(Stop::HandOver) => {
                away && matches!(self.outbox.flight, Flight::None)
                    && self.unstored_from.is_none()
                    && self.storing.is_none()
            }
            Some(Stop::Removed) => away && self.outbox.is_empty() && self.removal_told(),
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let retry = match self.connection {
            Connection::Down { retry_at } if self.wants_connection() => Some(retry_at),
            _ => None,
        };
        // Only what the tick can do something about: a deadline that has passed and stays would spin.
        let looks = match self.connection {
            Connection::Busy {
                work: Work::Park {
                    interrupted: false, ..
                },
                ..
            } => self.next_look(),
            Connection::Free if self.outbox.is_empty() => self.paced_until(),
            _ => None,
        };
        let removed = self.stop == Some(Stop::Removed);
        let store = self
            .store_due
            .filter(|_| self.storing.is_none() && self.bus_up && !removed);
        let append = self.outbox.due().filter(|_| self.bus_up);
        let tell = self
            .condition
            .tell_at(self.config.limits.tell_after)
            .filter(|_| self.bus_up && self.stop.is_none());
        [retry, looks, store, append, tell]
            .into_iter()
            .flatten()
            .min()
    }

    fn advance_append(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.bus_up {
            return;
        }
        if matches!(self.outbox.flight, Flight::None) {
            if self.stop == Some(Stop::HandOver) {
                self.drop_queue();
            }
            let Some(event) = self.outbox.queue.pop_front() else {
                self.outbox.floor = None;
                return;
            };
            self.outbox.floor.get_or_insert(self.checkpoint.position);
            if plant::is(plant::Bug::CheckpointBeforeAck) {
                let (log_id, position) = (self.checkpoint.log_id, self.checkpoint.position + 1);
                self.checkpoint.fold(log_id, position, &event);
                self.store_due.get_or_insert(now.mono);
            }
            self.send(Box::new(event), now.mono, false, effects);
            return;
        }
        let Flight::Waiting { at, .. } = self.outbox.flight else {
            return;
        };
        if at > now.mono {
            return;
        }
        let Flight::Waiting {
            event,
            first,
            uncertain,
            ..
        } = std::mem::replace(&mut self.outbox.flight, Flight::None)
        else {
            return;
        };
        if uncertain || now.mono.saturating_sub(first) >= self.config.timing.blind_retry {
            let op = self.op();
            self.outbox.flight = Flight::Reading { op, event };
            effects.push(Effect::ReadTail {
                op,
                log_id: self.checkpoint.log_id,
                after: self.checkpoint.position,
            });
        } else {
            self.send(event, first, true, effects);
        }
    }

    fn send(&mut self, event: Box<Event>, first: Duration, retry: bool, effects: &mut Vec<Effect>) {
        let op = self.op();
        effects.push(Effect::Append {
            op,
            event: event.clone(),
            retry,
        });
        self.outbox.flight = Flight::Sent { op, event, first };
    }

    fn on_appended(&mut self, now: Now, rng: &mut dyn Rng, op: Op, outcome: Outcome) {
        let Flight::Sent { op: awaited, .. } = &self.outbox.flight else {
            return;
        };
        if *awaited != op {
            return;
        }
        match outcome {
            Outcome::Stored { log_id, position } => {
                let Flight::Sent { event, .. } =
                    std::mem::replace(&mut self.outbox.flight, Flight::None)
                else {
                    return;
                };
                self.note_history(log_id);
                self.checkpoint.acknowledge(log_id, position, &event);
                self.note_unstored(now, position);
                self.condition.log_works();
                self.append_backoff.reset();
            }
            Outcome::NoAnswer => {
                self.condition.log_is_silent();
                self.retry_append(now, rng, false);
            }
            Outcome::Disconnected => self.retry_append(now, rng, true),
            Outcome::Refused { code, sentence } => {
                self.condition.log_refuses((code, sentence));
                self.retry_append(now, rng, false);
            }
        }
    }

    fn retry_append(&mut self, now: Now, rng: &mut dyn Rng, broken: bool) {
        let delay = self.append_backoff.next(&mut &mut *rng);
        let blind = self.config.timing.blind_retry;
        self.outbox.retry(now, delay, blind, broken);
        self.drop_queue();
    }

    fn on_tail(&mut self, now: Now, rng: &mut dyn Rng, op: Op, tail: Option<Tail>) {
        let Flight::Reading { op: awaited, .. } = &self.outbox.flight else {
            return;
        };
        if *awaited != op {
            return;
        }
        let Some(tail) = tail else {
            self.condition.log_is_silent();
            self.retry_append(now, rng, true);
            return;
        };
        let Flight::Reading { event, .. } =
            std::mem::replace(&mut self.outbox.flight, Flight::None)
        else {
            return;
        };
        let key = event.key();
        let mut stored = false;
        for (position, found) in &tail.events {
            stored |= found.key() == key;
            self.learn(now, tail.log_id, *position, found);
        }
        if self.removal_told() {
            // By another owner. Nothing is told of an account after that, not even the same once more.
            self.outbox.queue.clear();
        } else if stored {
            self.condition.log_works();
        } else {
            // Not in the log as of now: a first try again, with a time of its own.
            self.outbox.flight = Flight::Waiting {
                event,
                first: now.mono,
                at: now.mono,
                uncertain: false,
            };
        }
    }

    /// The log holds an event of this account.
    fn learn(&mut self, now: Now, log_id: LogId, position: Position, event: &Event) {
        if self.checkpoint.log_id == log_id && position <= self.checkpoint.position {
            return;
        }
        self.note_history(log_id);
        self.checkpoint.fold(log_id, position, event);
        self.note_unstored(now, position);
    }

    fn note_history(&mut self, log_id: LogId) {
        if self.checkpoint.log_id != log_id {
            // Positions of another history mean nothing here.
            self.outbox.floor = self.outbox.floor.map(|_| 0);
            self.unstored_from = None;
            self.learnt_since = None;
        }
    }

    fn note_unstored(&mut self, now: Now, position: Position) {
        for from in [&mut self.unstored_from, &mut self.learnt_since] {
            *from = Some(from.map_or(position, |from| from.min(position)));
        }
        let due = now.mono + self.config.timing.checkpoint_delay;
        self.store_due.get_or_insert(due);
    }

    /// Forgets what waits: looking again finds it.
    fn drop_queue(&mut self) {
        let folders: Vec<FolderId> = self
            .outbox
            .queue
            .drain(..)
            .map(|event| event.folder)
            .collect();
        for watch in &mut self.watches {
            let id = self.checkpoint.folder_id(&watch.name);
            if folders.contains(&id) || !watch.backlog.is_empty() {
                watch.look_again();
            }
        }
        self.condition.told_anew();
    }

    fn advance_checkpoint(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.storing.is_some() || !self.bus_up {
            return;
        }
        let hurry =
            self.stop == Some(Stop::HandOver) && self.unstored_from.is_some() && !self.store_failed;
        if !hurry && self.store_due.is_none_or(|due| due > now.mono) {
            return;
        }
        if self.stop == Some(Stop::Removed) {
            return;
        }
        let op = self.op();
        self.storing = Some(op);
        self.learnt_since = None;
        self.store_due = None;
        effects.push(Effect::StoreCheckpoint {
            op,
            checkpoint: Box::new(self.checkpoint.clone()),
            revision: if plant::is(plant::Bug::CheckpointOverwrites) {
                Some(plant::ANY_REVISION)
            } else {
                self.revision
            },
        });
    }

    fn on_stored(&mut self, now: Now, op: Op, stored: Result<u64, Words>) {
        if self.storing != Some(op) {
            return;
        }
        self.storing = None;
        self.store_failed = stored.is_err();
        match stored {
            Ok(revision) => {
                self.revision = Some(revision);
                self.unstored_from = self.learnt_since;
                self.condition.store_works();
            }
            Err(words) => self.condition.store_fails(words),
        }
        if self.unstored_from.is_some() {
            let again = now.mono + self.config.timing.checkpoint_delay;
            self.store_due.get_or_insert(again);
        }
    }

    fn on_reconfigure(&mut self, now: Now, config: Config, effects: &mut Vec<Effect>) {
        let paused = config.paused;
        if self.config.folders != config.folders {
            self.watches = config.folders.iter().map(|name| Watch::new(name)).collect();
            self.drop_connection(now, effects);
        }
        if config.content < self.config.content {
            // It says more than it may now. What is in flight may be in the log already: it goes out again as the same fact, and with
            // no more than it may say.
            self.drop_queue();
            self.outbox.limit(config.content);
        }
        self.config = config;
        // A longer time between polls counts at once.
        self.poll_every = self.poll_every.max(self.poll_least());
        if let Some(pause) = paused {
            self.drop_connection(now, effects);
            self.condition.paused(now, pause);
        } else if self.condition.is_paused() {
            self.condition.resumed(now);
            self.connection = Connection::Down { retry_at: now.mono };
        }
    }
}

#[cfg(test)]
mod tests;
