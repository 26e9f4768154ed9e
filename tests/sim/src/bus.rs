//! The model of NATS: logs with followers and a duplicate window, their identities, buckets.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    rc::Rc,
    time::Duration,
};

use mailbell_core::{
    checkpoint::Checkpoint,
    event::Event,
    history::{Acknowledged, History, Seen, Verdict},
    ids::{LogId, Position},
    plant, schema,
    session::{Input, Op, Outcome},
};
use mailbell_proto::bus::v1 as records;
use rand::RngExt as _;

use crate::{
    breach::Breach,
    drive::Ev,
    process::Cut,
    world::{MS, S, World},
};

/// An entry of a log.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) position: Position,
    pub(crate) log: usize,
    pub(crate) history: u64,
    pub(crate) account: usize,
    pub(crate) event: Event,
    pub(crate) bytes: usize,
    at: Duration,
}

/// A log as its leader has it.
pub(crate) struct Log {
    pub(crate) away: bool,
    pub(crate) refuses: bool,
    /// Which history it is in truth; nobody in the model sees it.
    pub(crate) history: u64,
    created: i64,
    entries: BTreeMap<Position, Rc<Stored>>,
    pub(crate) last: Position,
    pub(crate) followers: [Position; 2],
    known_ids: HashMap<String, (Position, Duration)>,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            away: false,
            refuses: false,
            history: 1,
            created: 1,
            entries: BTreeMap::new(),
            last: 0,
            followers: [0; 2],
            known_ids: HashMap::new(),
        }
    }

    /// What it holds after a position.
    pub(crate) fn after(&self, position: Position) -> impl Iterator<Item = &Rc<Stored>> {
        let range = (Bound::Excluded(position), Bound::Unbounded);
        self.entries.range(range).map(|(_, stored)| stored)
    }

    /// The lowest position that it may hold.
    pub(crate) fn first(&self) -> Position {
        let first = self.entries.first_key_value();
        first.map_or(self.last + 1, |(position, _)| *position)
    }

    pub(crate) fn holds(&self, position: Position) -> bool {
        self.entries.contains_key(&position)
    }
}

/// Bucket CTL, key `log.<g>`.
pub(crate) struct Identity {
    pub(crate) log_id: LogId,
    created: i64,
    highest: Position,
    /// The history that the id stands for, in truth.
    pub(crate) history: u64,
}

impl Identity {
    pub(crate) fn new(log_id: LogId) -> Self {
        Self {
            log_id,
            created: 1,
            highest: 0,
            history: 1,
        }
    }

    pub(crate) fn apply_to(&self, view: &mut History) {
        view.apply(self.log_id, self.created, self.highest);
    }
}

/// Bucket CKPT.
pub(crate) struct StoredCheckpoint {
    pub(crate) revision: u64,
    pub(crate) record: records::Checkpoint,
}

/// A publish on its way.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) process: usize,
    pub(crate) link: u64,
    pub(crate) log: usize,
    /// When it left: what is on its way when a server dies does not reach the next one.
    pub(crate) history: u64,
    /// What the process knew of the log then.
    before: Seen,
    pub(crate) account: usize,
    pub(crate) event: Box<Event>,
    pub(crate) run: usize,
    pub(crate) op: Op,
    /// It waited in a client for a new connection.
    pub(crate) queued: bool,
}

/// The log's answer on its way.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) process: usize,
    link: u64,
    log: usize,
    run: usize,
    op: Op,
    before: Seen,
    position: Position,
    duplicate: bool,
}

/// Where a log stands, as the leader says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stand {
    pub(crate) log_id: LogId,
    pub(crate) first: Position,
    pub(crate) last: Position,
}

impl World {
    /// A session's append leaves its process.
    pub(crate) fn send_append(&mut self, run: usize, op: Op, event: Box<Event>, retry: bool) {
        if retry {
            self.count("append retried");
        }
        let owner = &self.owners[self.runs[run].owner];
        let process = owner.process;
        let account = self.runs[run].account;
        let log = self.places[account].log;
        self.keep_up(process, log);
        let publish = Publish {
            process,
            link: self.processes[process].link,
            log,
            // What is sent without a connection waits in the client for the next one, or is lost.
            history: if self.processes[process].up {
                self.logs[log].history
            } else {
                0
            },
            before: self.processes[process].views[log].seen(),
            account,
            event,
            run,
            op,
            queued: false,
        };
        self.soon(Ev::Publish(Box::new(publish)));
        let timeout = self.scenario.timing.ack_timeout;
        let outcome = Outcome::NoAnswer;
        self.after(
            timeout,
            Ev::Give {
                run,
                input: Input::Appended { op, outcome },
            },
        );
    }

    pub(crate) fn on_publish(&mut self, mut publish: Publish) {
        let process = &self.processes[publish.process];
        if (process.link != publish.link || !process.up) && !publish.queued {
            // The connection broke: it had left, or is lost, or waits in the client for the next connection.
            let same = self.logs[publish.log].history == publish.history;
            match self.below(4) {
                0 => return,
                1 if self.processes[publish.process].alive => {
                    publish.queued = true;
                    let later = self.between(S, 50 * S);
                    return self.after(later, Ev::Publish(Box::new(publish)));
                }
                _ if same => {}
                _ => return,
            }
        }
        if publish.queued {
            if !self.is_up(publish.process) {
                return;
            }
            self.count("late publish");
        }
        let log = &self.logs[publish.log];
        if log.away || self.processes[publish.process].cut == Cut::Writes {
            return;
        }
        if log.refuses {
            let outcome = Outcome::Refused {
                code: "storage-full",
                sentence: "The log has no room.".to_owned(),
            };
            self.count("append refused");
            let input = Input::Appended {
                op: publish.op,
                outcome,
            };
            return self.soon(Ev::Give {
                run: publish.run,
                input,
            });
        }
        let (position, duplicate) = self.store(&publish);
        if self.mishap(self.scenario.ack_lost, "ack lost") {
            return;
        }
        let mut delay = self.delay();
        if self.mishap(self.scenario.ack_late, "ack late") {
            delay += self.between(500 * MS, 4 * S);
        }
        let ack = Ack {
            process: publish.process,
            link: self.processes[publish.process].link,
            log: publish.log,
            run: publish.run,
            op: publish.op,
            before: publish.before,
            position,
            duplicate,
        };
        self.after(delay, Ev::Ack(Box::new(ack)));
    }

    fn store(&mut self, publish: &Publish) -> (Position, bool) {
        let (now, window) = (self.now, self.scenario.timing.duplicate_window);
        let id = publish.event.message_id();
        let bytes = publish.event.encode().expect("an event fits");
        let event = Event::decode(bytes.clone())
            .expect("an event")
            .expect("a known kind");
        assert_eq!(event, *publish.event, "an event is read as it was written");
        let run = &self.runs[publish.run];
        let partition = self.places[publish.account].partition;
        // What a session that is over sent comes after others may have read the log; and where it is a repeat, that session takes
        // the place of another's event for its own, and what was told before it by others for known.
        self.ledgers[publish.account].broken |= !run.alive || !self.holds(run.owner);
        let log = &mut self.logs[publish.log];
        if let Some((position, at)) = log.known_ids.get(&id)
            && now - *at < window
        {
            let position = *position;
            self.count("duplicate by id");
            return (position, true);
        }
        log.last += 1;
        let position = log.last;
        let stored = Rc::new(Stored {
            position,
            log: publish.log,
            history: log.history,
            account: publish.account,
            event,
            bytes: bytes.len(),
            at: now,
        });
        log.entries.insert(position, stored.clone());
        log.known_ids.insert(id.clone(), (position, now));
        self.note_told(publish.account, &publish.event);
        let repeated = self.told.insert(id, position).is_some();
        if repeated {
            self.count("told again");
        }
        let epoch = stored.event.owner_epoch;
        let ledger = &mut self.ledgers[publish.account];
        ledger.entries.push(stored.clone());
        if epoch < self.newest_epoch(partition) {
            self.count("zombie append");
        }
        self.say(|| {
            let (log, run) = (publish.log, publish.run);
            format!(
                "log {log}: {position} = {} by run {run}",
                describe(&stored.event)
            )
        });
        for follower in 0..2 {
            let lag = self.between(MS, self.scenario.lag);
            let history = stored.history;
            self.after(
                lag,
                Ev::Replicated {
                    log: publish.log,
                    follower,
                    history,
                    position,
                },
            );
        }
        self.wake_consumers(publish.log);
        (position, false)
    }

    pub(crate) fn on_replicated(
        &mut self,
        log: usize,
        follower: usize,
        history: u64,
        to: Position,
    ) {
        let log = &mut self.logs[log];
        if log.history == history {
            let applied = &mut log.followers[follower];
            *applied = (*applied).max(to);
        }
    }

    pub(crate) fn on_ack(&mut self, ack: Ack) {
        let process = &self.processes[ack.process];
        if !process.up || process.link != ack.link || process.cut == Cut::Answers {
            return;
        }
        let view = &mut self.processes[ack.process].views[ack.log];
        let outcome = match view.on_ack(ack.before, ack.position, ack.duplicate) {
            Acknowledged::In(log_id) => Outcome::Stored {
                log_id,
                position: ack.position,
            },
            Acknowledged::Elsewhere { of_the_next } => {
                self.count("ack of another history");
                let fails = self.mishap(0.5, "doubt that nobody settles");
                let stand = (!fails).then(|| self.look_at_log(ack.process, ack.log));
                match stand.flatten() {
                    Some(stand) if of_the_next => Outcome::Stored {
                        log_id: stand.log_id,
                        position: ack.position,
                    },
                    // As the watcher has it: reading the tail finds out.
                    _ => Outcome::Disconnected,
                }
            }
        };
        if self.mishap(self.scenario.doubled, "doubled answer") {
            let later = self.between(MS, 5 * S);
            let input = Input::Appended {
                op: ack.op,
                outcome: outcome.clone(),
            };
            self.after(
                later,
                Ev::Give {
                    run: ack.run,
                    input,
                },
            );
        }
        let op = ack.op;
        self.give(ack.run, Input::Appended { op, outcome });
    }

    /// Asks the leader where a log stands, and gives it a new id if it is another history than the one that was known.
    pub(crate) fn look_at_log(&mut self, process: usize, number: usize) -> Option<Stand> {
        self.expire(number);
        let lost = self.processes[process].cut == Cut::Answers;
        if !self.is_up(process) || lost || self.logs[number].away {
            return None;
        }
        let (created, last, history, first) = {
            let log = &self.logs[number];
            (log.created, log.last, log.history, log.first())
        };
        self.keep_up(process, number);
        let verdict = |world: &Self| world.processes[process].views[number].verdict(created, last);
        if verdict(self) != Verdict::Same || self.chance(0.5) {
            // The record is read, or was told just before.
            self.apply_identity(process, number);
        }
        if verdict(self) != Verdict::Same {
            if self.identities[number].history == history {
                self.fail(
                    Breach::Contract,
                    format!("log {number} got a new id without a new history"),
                );
            }
            let log_id = self.new_log_id();
            self.identities[number] = Identity {
                log_id,
                created,
                highest: last,
                history,
            };
            self.count("history found changed");
            self.say(|| format!("log {number}: found changed by process {process}, now {log_id}"));
            self.apply_identity(process, number);
            self.tell_identity(process, number);
        }
        Some(Stand {
            log_id: self.processes[process].views[number].log_id,
            first,
            last,
        })
    }

    /// A new record of a log's identity comes to the processes that watch.
    fn tell_identity(&mut self, by: usize, log: usize) {
        for process in 0..self.processes.len() {
            if self.processes[process].alive && process != by {
                let delay = self.between(MS, 500 * MS);
                self.after(delay, Ev::IdentityTold { process, log });
            }
        }
    }

    pub(crate) fn on_identity_told(&mut self, process: usize, log: usize) {
        if self.is_up(process) {
            self.apply_identity(process, log);
        }
    }

    fn apply_identity(&mut self, process: usize, log: usize) {
        let state = &mut self.processes[process];
        let known = state.views[log].log_id;
        self.identities[log].apply_to(&mut state.views[log]);
        if state.views[log].log_id != known
            && let Some(gateway) = state.gateway
        {
            self.soon(Ev::Follow { gateway });
        }
    }

    /// Of how far others saw the same history, a process that is linked hears at once.
    fn keep_up(&mut self, process: usize, log: usize) {
        let state = &mut self.processes[process];
        if state.up && state.views[log].log_id == self.identities[log].log_id {
            self.identities[log].apply_to(&mut state.views[log]);
        }
    }

    pub(crate) fn record_seen_later(&mut self, process: usize) {
        let period = self.scenario.timing.checkpoint_delay * 10;
        let delay = self.between(period, period * 3 / 2);
        self.after(delay, Ev::RecordSeen { process });
    }

    /// A process writes the highest positions that it has seen.
    pub(crate) fn on_record_seen(&mut self, process: usize) {
        if !self.processes[process].alive {
            return;
        }
        for (view, identity) in self.processes[process]
            .views
            .iter()
            .zip(&mut self.identities)
        {
            if self.processes[process].up && view.log_id == identity.log_id {
                identity.highest = identity.highest.max(view.seen);
            }
        }
        self.record_seen_later(process);
    }

    fn expire(&mut self, log: usize) {
        let (now, age) = (self.now, self.scenario.log_age);
        let log = &mut self.logs[log];
        let mut many = 0;
        while let Some(first) = log.entries.first_entry()
            && now.saturating_sub(first.get().at) > age
        {
            first.remove();
            many += 1;
        }
        self.coverage.add("events expired", many);
    }

    /// Everything is lost, or the end is cut off; and all connections with it.
    pub(crate) fn lose_log(&mut self, number: usize, all: bool) {
        if all {
            if self.logs[number].last > 1 {
                self.cut_log(number, 0, true);
            }
            return;
        }
        let highest = self.identities[number].highest;
        let stored = self.highest_stored(number);
        // Nobody wrote yet that the log had come so far, but a checkpoint knows: if all who appended are gone, whoever comes next
        // reads that first.
        let unwritten = stored > highest && self.is_proven(number) && self.chance(0.5);
        let (least, below) = if unwritten {
            (highest, stored)
        } else {
            (highest.saturating_sub(12), highest)
        };
        if below < 2 {
            return;
        }
        let keep = self.rng.random_range(least..below);
        if unwritten {
            self.count("log cut above what is written");
            for process in self.watchers() {
                self.kill_watcher(process);
            }
        }
        self.cut_log(number, keep, false);
    }

    /// Whether the log is the history that its id stands for.
    pub(crate) fn is_proven(&self, log: usize) -> bool {
        self.identities[log].history == self.logs[log].history
    }

    /// The highest position of the log that a stored checkpoint knows.
    fn highest_stored(&self, log: usize) -> Position {
        let log_id = self.identities[log].log_id;
        (0..self.places.len())
            .filter(|account| self.places[*account].log == log && !self.removed[*account])
            .filter_map(|account| self.checkpoints[account].as_ref())
            .filter(|stored| stored.record.log_id == log_id.0.as_slice())
            .map(|stored| stored.record.position)
            .max()
            .unwrap_or_default()
    }

    fn cut_log(&mut self, number: usize, keep: Position, all: bool) {
        let log = &mut self.logs[number];
        log.history += 1;
        if all {
            log.created += 1;
        }
        log.entries.split_off(&(keep + 1));
        log.last = keep;
        log.followers = [keep; 2];
        log.known_ids.retain(|_, (position, _)| *position <= keep);
        self.say(|| format!("log {number}: cut to {keep}"));
        self.count(if all { "log lost" } else { "log cut" });
        // Devices list what is there now.
        for account in 0..self.places.len() {
            if self.places[account].log != number {
                continue;
            }
            self.ledgers[account].broken = true;
            for (folder, place) in self.mailboxes[account].folders.iter().enumerate() {
                let range = (folder, place.generation, 1, place.uid_next - 1);
                self.mailboxes_told[account].ranges.push(range);
            }
        }
        for process in 0..self.processes.len() {
            let lasts = self.between(10 * MS, 3 * S);
            self.break_link(process, lasts);
        }
    }

    /// The events of an account are removed; the positions stay unused.
    pub(crate) fn purge(&mut self, account: usize) {
        let log = self.places[account].log;
        self.logs[log]
            .entries
            .retain(|_, stored| stored.account != account);
        self.say(|| format!("log {log}: account {account} purged"));
        self.count("account purged");
    }

    /// A checkpoint arrives at the bucket's leader.
    pub(crate) fn on_store(
        &mut self,
        run: usize,
        op: Op,
        checkpoint: &Checkpoint,
        revision: Option<u64>,
    ) {
        let process = self.owners[self.runs[run].owner].process;
        let account = self.runs[run].account;
        let cut = self.processes[process].cut;
        if !self.processes[process].up || cut == Cut::Writes {
            return self.give(run, not_stored(op));
        }
        let there = self.checkpoints[account]
            .as_ref()
            .map(|stored| stored.revision);
        if there != revision && revision != Some(plant::ANY_REVISION) {
            self.count("checkpoint conflict");
            return self.soon(Ev::Give {
                run,
                input: Input::CheckpointConflict { op },
            });
        }
        self.check_stored(account, checkpoint);
        self.check_moves_on(account, checkpoint);
        if !self.holds(self.runs[run].owner) {
            // An old owner's checkpoint that came last knows less than its successor did, which is harmless: it is told again.
            self.count("old owner's checkpoint");
            let told = &mut self.mailboxes_told[account];
            told.forgiven = told.forgiven.max(checkpoint.position);
        }
        self.last_revision += 1;
        let revision = self.last_revision;
        self.checkpoints[account] = Some(StoredCheckpoint {
            revision,
            record: checkpoint.to_record(schema::WriteVersion::NEWEST),
        });
        self.count("checkpoint stored");
        let unsure = cut == Cut::Answers || self.mishap(self.scenario.store_unsure, "store unsure");
        let input = if unsure {
            not_stored(op)
        } else {
            Input::CheckpointStored { op, revision }
        };
        self.soon(Ev::Give { run, input });
    }
}

fn not_stored(op: Op) -> Input {
    Input::CheckpointNotStored {
        op,
        code: "checkpoint-not-stored",
        sentence: "The simulation does not store it.".to_owned(),
    }
}

/// An event in a word.
pub(crate) fn describe(event: &Event) -> String {
    let epoch = event.owner_epoch;
    format!("{} (epoch {epoch}, {:?})", event.message_id(), event.fact)
}
