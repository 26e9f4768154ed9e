//! Ownership of partitions: take-overs with the fold-in, the flushed position, hand-overs. Who owns what is said by `watcher`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mailbell_core::{
    checkpoint::Checkpoint,
    event::Fact,
    ids::{LogId, OwnerEpoch, Position},
    ownership::{self, Flush, fold_after},
    session::{Config, Input, Known, Pause, Stop},
    sharding,
};
use mailbell_proto::push::v1::ContentLevel;

use crate::{
    breach::Breach,
    bus::Stand,
    drive::Ev,
    read::{Job, Purpose, Range},
    scenario::LOG_OF,
    session::Acked,
    watcher::Told,
    world::{MS, S, World},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Running,
    HandingOver,
    Gone,
}

/// One ownership of a partition, by one process under one epoch.
pub(crate) struct Owner {
    pub(crate) process: usize,
    pub(crate) partition: usize,
    pub(crate) epoch: OwnerEpoch,
    pub(crate) phase: Phase,
    /// What the owner before left.
    before: Option<(LogId, Position)>,
    /// The log does not reach back to what was flushed.
    folds_none: bool,
    /// Session by account; an account that is being loaded is not there.
    pub(crate) runs: BTreeMap<usize, usize>,
    loaded: BTreeMap<usize, (Option<u64>, Checkpoint)>,
}

impl World {
    pub(crate) fn config(&self, owner: usize, account: usize) -> Config {
        let place = &self.places[account];
        Config {
            account: place.account.clone(),
            folders: (0..place.folders.len())
                .filter(|folder| self.narrowed[account].is_none_or(|only| only == *folder))
                .map(|folder| place.folders[folder].to_owned())
                .collect(),
            paused: self.paused[account].then_some(Pause::Owner),
            content: ContentLevel::Preview,
            owner_epoch: self.owners[owner].epoch,
            limits: self.scenario.limits,
            timing: self.scenario.timing,
        }
    }

    /// A claim was stored, and its partition is to be loaded.
    pub(crate) fn begin_owner(
        &mut self,
        process: usize,
        partition: usize,
        epoch: OwnerEpoch,
        before: Option<(LogId, Position)>,
    ) {
        self.audit_epoch(process, partition, epoch);
        let number = self.owners.len();
        self.owners.push(Owner {
            process,
            partition,
            epoch,
            phase: Phase::Loading,
            before,
            folds_none: false,
            runs: BTreeMap::new(),
            loaded: BTreeMap::new(),
        });
        let member = self.members.get_mut(&process).unwrap();
        if member.owners[partition].replace(number).is_some() {
            self.fail(
                Breach::Contract,
                format!("process {process} loads partition {partition} twice"),
            );
        }
        self.say(|| format!("owner {number}: process {process} loads partition {partition}"));
        self.soon(Ev::Load {
            owner: number,
            only: None,
        });
    }

    /// A claim was taken again, under another epoch, and nobody had it in between: the sessions go on.
    pub(crate) fn renumber(&mut self, owner: usize, epoch: OwnerEpoch) {
        let (process, partition) = (self.owners[owner].process, self.owners[owner].partition);
        self.audit_epoch(process, partition, epoch);
        self.owners[owner].epoch = epoch;
        for run in self.owners[owner].runs.clone().into_values() {
            self.reconfigure(run);
        }
    }

    /// Whether it believes to own its partition.
    fn is_owner(&self, owner: usize) -> bool {
        self.owners[owner].phase != Phase::Gone
    }

    /// Loads checkpoints, and begins to fold in the log after what was flushed.
    pub(crate) fn on_load(&mut self, owner: usize, only: Option<usize>) {
        let (process, partition) = (self.owners[owner].process, self.owners[owner].partition);
        if !self.is_owner(owner) || !self.processes[process].alive {
            return;
        }
        let log = LOG_OF[partition];
        self.note_stored(owner, log);
        let Some(stand) = self.look_at_log(process, log) else {
            return self.fold_in_later(owner, only);
        };
        let accounts: BTreeSet<usize> = (0..self.places.len())
            .filter(|account| self.places[*account].partition == partition)
            .filter(|account| only.is_none_or(|only| only == *account))
            .filter(|account| !self.removed[*account])
            .collect();
        if only.is_some() && accounts.is_empty() {
            return;
        }
        for account in &accounts {
            let stored = self.checkpoints[*account].as_ref();
            let loaded = stored.map_or((None, Checkpoint::default()), |stored| {
                let checkpoint = Checkpoint::from_record(&stored.record);
                (Some(stored.revision), checkpoint)
            });
            // What aged out between the checkpoint and the log is known to nobody.
            let reaches = loaded.1.log_id == stand.log_id && loaded.1.position + 1 >= stand.first;
            if !reaches && stand.first > 1 {
                self.ledgers[*account].broken = true;
            }
            self.owners[owner].loaded.insert(*account, loaded);
        }
        let after = match only {
            None => {
                let before = self.owners[owner].before;
                let after = fold_after(before, stand.log_id, stand.first);
                let beyond = before.is_some_and(|(log_id, flushed)| {
                    log_id == stand.log_id && flushed + 1 < stand.first
                });
                if beyond {
                    self.count("flushed beyond the log");
                    self.owners[owner].folds_none = true;
                }
                after.unwrap_or(stand.last)
            }
            // Loaded again, alone: from where its checkpoint stands, as a tail is read.
            Some(account) => {
                let (_, checkpoint) = &self.owners[owner].loaded[&account];
                if checkpoint.log_id == stand.log_id {
                    checkpoint.position
                } else {
                    0
                }
            }
        };
        let range = Range {
            log,
            accounts,
            log_id: stand.log_id,
            after,
            up_to: stand.last,
        };
        self.read(process, range, Purpose::FoldIn { owner, only });
    }

    /// What was stored proves that the log had come so far.
    fn note_stored(&mut self, owner: usize, log: usize) {
        let state = &self.owners[owner];
        let view = &mut self.processes[state.process].views[log];
        if let Some((log_id, flushed)) = state.before {
            view.note_seen(log_id, flushed);
        }
        for account in 0..self.places.len() {
            if self.places[account].log == log
                && let Some(stored) = &self.checkpoints[account]
            {
                let checkpoint = Checkpoint::from_record(&stored.record);
                view.note_seen(checkpoint.log_id, checkpoint.position);
            }
        }
    }

    pub(crate) fn fold_in_later(&mut self, owner: usize, only: Option<usize>) {
        let delay = self.between(200 * MS, S);
        self.after(delay, Ev::Load { owner, only });
    }

    /// The log after what was flushed was read: sessions begin.
    pub(crate) fn folded_in(&mut self, job: Job) {
        let Purpose::FoldIn { owner, .. } = job.purpose else {
            return;
        };
        if !self.is_owner(owner) {
            return;
        }
        self.check_whole(&job, "the fold-in");
        for account in job.accounts.iter().copied() {
            let Some((revision, checkpoint)) = self.owners[owner].loaded.remove(&account) else {
                continue;
            };
            // It was removed meanwhile.
            if self.removed[account] {
                continue;
            }
            let mut known = Known {
                checkpoint,
                revision,
                unstored_from: None,
            };
            for entry in job.entries.iter().filter(|entry| entry.account == account) {
                ownership::fold(&mut known, job.log_id, entry.position, &entry.event);
                if known.unstored_from.is_some() {
                    self.count("event folded in");
                }
            }
            if self.owners[owner].folds_none {
                self.mailboxes_told[account].acked.clear();
                self.ledgers[account].broken = true;
            }
            self.check_nothing_forgotten(account, &known.checkpoint, job.read_to());
            self.start_run(owner, account, known);
        }
        if self.owners[owner].phase == Phase::Loading {
            self.owners[owner].phase = Phase::Running;
            self.after(S, Ev::Flush { owner });
            let state = &self.owners[owner];
            let (process, epoch) = (state.process, state.epoch);
            let partition = self.partition_of(state.partition);
            let serving = sharding::Input::Serving {
                partition,
                epoch,
                accounts: 3,
            };
            self.after(Duration::ZERO, Ev::told(process, Told::Share(serving)));
        }
    }

    /// Whatever was acknowledged to an owner before, and is still in the log, is known after the fold-in.
    fn check_nothing_forgotten(&mut self, account: usize, checkpoint: &Checkpoint, to: Position) {
        let log = &self.logs[self.places[account].log];
        let mut again = checkpoint.clone();
        // What was told before a folder began anew says nothing of it now.
        let begun = |acked: &Acked| {
            let of = (account, acked.event.folder);
            log.after(acked.position)
                .filter(|stored| (stored.account, stored.event.folder) == of)
                .any(|stored| matches!(stored.event.fact, Fact::Resync { .. }))
        };
        for acked in &self.mailboxes_told[account].acked {
            // What an old owner appends after the tail was named is told again, and harmless.
            let there = acked.history == log.history && log.holds(acked.position);
            let range = self.mailboxes_told[account].forgiven + 1..=to;
            if there && range.contains(&acked.position) && !begun(acked) {
                // Another log each time, so that nothing counts as known by its position.
                let mut other = LogId([0xaa; 16]);
                other.0[0] = u8::from(again.log_id == other);
                again.fold(other, acked.position, &acked.event);
            }
        }
        again.alerted.clone_from(&checkpoint.alerted);
        if !again.same_told(checkpoint) {
            self.fail(Breach::Forgotten, format!(
                "the fold-in of account {account} forgot what was acknowledged: {checkpoint:?} and not {again:?}"
            ));
        }
    }

    /// Nothing that the leader holds within the range was left out.
    pub(crate) fn check_whole(&mut self, job: &Job, what: &str) {
        let missing = self.logs[job.log]
            .after(job.after)
            .take_while(|stored| stored.position <= job.read_to())
            .filter(|stored| job.accounts.contains(&stored.account))
            .find(|stored| {
                let read =
                    |entry: &std::rc::Rc<crate::bus::Stored>| entry.position == stored.position;
                !job.entries.iter().any(read)
            })
            .map(|stored| stored.position);
        // A history that changed meanwhile says nothing.
        let same = self.identities[job.log].log_id == job.log_id
            && self.identities[job.log].history == self.logs[job.log].history;
        if let Some(position) = missing
            && same
        {
            self.fail(
                Breach::NotWhole,
                format!("{what} lacks position {position} of log {}", job.log),
            );
        }
    }

    /// The claim moves on: the tail first, then what the sessions lack, then the claim.
    pub(crate) fn on_flush(&mut self, owner: usize) {
        let state = &self.owners[owner];
        if !self.is_owner(owner) || !self.processes[state.process].alive {
            return;
        }
        let (process, log) = (state.process, LOG_OF[state.partition]);
        if state.phase == Phase::Running
            && let Some(stand) = self.look_at_log(process, log)
        {
            return self.soon(Ev::FlushBound { owner, stand });
        }
        self.after(S, Ev::Flush { owner });
    }

    pub(crate) fn on_flush_bound(&mut self, owner: usize, stand: Stand) {
        if self.is_owner(owner)
            && self.owners[owner].phase == Phase::Running
            && let Some(flushed) = self.flush_bound(owner, stand)
        {
            self.tell_flushed(owner, stand.log_id, flushed);
        }
        self.after(2 * S, Ev::Flush { owner });
    }

    /// Up to where the checkpoints of all accounts cover the log. `None`: one of them is not known now.
    fn flush_bound(&self, owner: usize, stand: Stand) -> Option<Position> {
        let state = &self.owners[owner];
        let mut bound = stand.last;
        for account in 0..self.places.len() {
            if self.places[account].partition != state.partition || self.removed[account] {
                continue;
            }
            let run = *state.runs.get(&account)?;
            let own = Flush::of(&self.runs[run].session).within(stand.log_id);
            bound = bound.min(own.unwrap_or(bound));
        }
        Some(bound)
    }

    /// The claim is to move on.
    fn tell_flushed(&mut self, owner: usize, log_id: LogId, flushed: Position) {
        let (process, partition) = (self.owners[owner].process, self.owners[owner].partition);
        let accounts = self.owners[owner].runs.len();
        let input = sharding::Input::Flushed {
            partition: self.partition_of(partition),
            log_id,
            position: flushed,
            accounts: u32::try_from(accounts).unwrap(),
        };
        self.say(|| format!("owner {owner}: flushed to {flushed}"));
        self.count("claim flushed");
        self.after(Duration::ZERO, Ev::told(process, Told::Share(input)));
    }

    /// The owner gives its partition away.
    pub(crate) fn hand_over(&mut self, owner: usize) {
        if self.owners[owner].phase != Phase::Running {
            return self.fail(
                Breach::Contract,
                format!("owner {owner} is to end before its sessions have begun"),
            );
        }
        self.say(|| format!("owner {owner}: hands over"));
        self.count("hand-over");
        self.owners[owner].phase = Phase::HandingOver;
        for run in self.owners[owner].runs.clone().into_values() {
            self.give(run, Input::Stop(Stop::HandOver));
        }
        self.after(5 * S, Ev::HandOverLate { owner });
        self.try_release(owner);
    }

    /// The time for a hand-over is over: what is left is dropped.
    pub(crate) fn on_hand_over_late(&mut self, owner: usize) {
        if self.owners[owner].phase != Phase::HandingOver {
            return;
        }
        self.count("hand-over cut short");
        self.release(owner, None);
    }

    fn try_release(&mut self, owner: usize) {
        let state = &self.owners[owner];
        if state.phase != Phase::HandingOver || state.runs.values().any(|run| self.runs[*run].alive)
        {
            return;
        }
        let stand = self.look_at_log(state.process, LOG_OF[state.partition]);
        self.release(owner, stand);
    }

    fn release(&mut self, owner: usize, stand: Option<Stand>) {
        for run in self.owners[owner].runs.clone().into_values() {
            if self.runs[run].alive {
                self.end_run(run);
            }
        }
        if let Some(stand) = stand
            && let Some(flushed) = self.flush_bound(owner, stand)
        {
            self.tell_flushed(owner, stand.log_id, flushed);
        }
        self.owners[owner].phase = Phase::Gone;
        let state = &self.owners[owner];
        let (process, epoch) = (state.process, state.epoch);
        let partition = self.partition_of(state.partition);
        let finished = sharding::Input::Finished { partition, epoch };
        self.after(Duration::ZERO, Ev::told(process, Told::Share(finished)));
    }

    /// A session said that it is over.
    pub(crate) fn run_stopped(&mut self, run: usize) {
        self.end_run(run);
        let (owner, account) = (self.runs[run].owner, self.runs[run].account);
        if self.removed[account] {
            self.forget_account(account);
        }
        match self.owners[owner].phase {
            Phase::HandingOver => self.try_release(owner),
            // Somebody else wrote its checkpoint, and the claim is ours: what is known is loaded again.
            Phase::Running if self.is_owner(owner) && !self.removed[account] => {
                self.count("session loaded again");
                self.owners[owner].runs.remove(&account);
                let only = Some(account);
                self.soon(Ev::Load { owner, only });
            }
            _ => {}
        }
    }

    pub(crate) fn watchers(&self) -> Vec<usize> {
        let watcher = |process: &usize| self.processes[*process].alive;
        self.members.keys().copied().filter(watcher).collect()
    }

    /// Owners that serve, in the order in which they came.
    pub(crate) fn owners_of(&self, partition: usize) -> Vec<usize> {
        (0..self.owners.len())
            .filter(|owner| self.owners[*owner].partition == partition)
            .filter(|owner| self.owners[*owner].phase == Phase::Running)
            .collect()
    }

    /// How long a process stays away.
    pub(crate) fn outage(&mut self) -> Duration {
        match self.below(4) {
            0 => self.between(10 * MS, 500 * MS),
            1 | 2 => self.between(S, 6 * S),
            _ => self.between(20 * S, 50 * S),
        }
    }
}
