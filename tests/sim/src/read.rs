//! Reads of a log, step by step, served by replicas that lag, by the real rule [`ReadUpTo`].

use std::{collections::BTreeSet, rc::Rc};

use mailbell_core::{
    delivery::Replay,
    ids::{LogId, Position},
    read::{Next, ReadUpTo},
    session::Op,
};

use crate::{bus::Stored, drive::Ev, process::Cut, world::World};

/// What a read is for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// A session's [`mailbell_core::session::Effect::ReadTail`].
    Tail { run: usize, op: Op },
    /// A take-over; of one account if it is loaded again.
    FoldIn { owner: usize, only: Option<usize> },
    /// A device that is behind.
    Replay { stream: usize, replay: Replay },
}

/// A read under way.
pub(crate) struct Job {
    pub(crate) process: usize,
    link: u64,
    pub(crate) log: usize,
    pub(crate) accounts: BTreeSet<usize>,
    reader: ReadUpTo,
    next: Next,
    pub(crate) log_id: LogId,
    pub(crate) after: Position,
    pub(crate) entries: Vec<Rc<Stored>>,
    pub(crate) purpose: Purpose,
    /// A replay may bring its entries in parts.
    batches: usize,
}

impl Job {
    pub(crate) fn read_to(&self) -> Position {
        self.reader.at()
    }
}

/// What is to be read.
pub(crate) struct Range {
    pub(crate) log: usize,
    pub(crate) accounts: BTreeSet<usize>,
    pub(crate) log_id: LogId,
    pub(crate) after: Position,
    pub(crate) up_to: Position,
}

impl World {
    pub(crate) fn read(&mut self, process: usize, range: Range, purpose: Purpose) {
        let reader = ReadUpTo::new(range.after, range.up_to);
        let job = Job {
            process,
            link: self.processes[process].link,
            log: range.log,
            accounts: range.accounts,
            next: reader.first(),
            reader,
            log_id: range.log_id,
            after: range.after,
            entries: Vec::new(),
            purpose,
            batches: 0,
        };
        let number = self.jobs.last_key_value().map_or(0, |(last, _)| last + 1);
        self.jobs.insert(number, job);
        self.soon(Ev::ReadStep { job: number });
    }

    pub(crate) fn on_read_step(&mut self, number: u64) {
        let Some(mut job) = self.jobs.remove(&number) else {
            return;
        };
        let process = &self.processes[job.process];
        let same = process.up && process.link == job.link && process.cut != Cut::Answers;
        if !same || self.logs[job.log].away || process.views[job.log].log_id != job.log_id {
            return self.read_failed(job);
        }
        let due = |stored: &Stored| job.accounts.contains(&stored.account);
        match job.next {
            Next::Done => {}
            Next::More(at) => {
                let replica = self.below(3);
                let log = &self.logs[job.log];
                // 0 is the leader.
                let applied = match replica {
                    0 => log.last,
                    n => log.followers[n - 1],
                };
                let mut found: Vec<_> = log
                    .after(at)
                    .filter(|stored| stored.position <= applied && due(stored))
                    .cloned()
                    .collect();
                let more = found.len() > self.scenario.batch;
                found.truncate(self.scenario.batch);
                let last = found.last().map(|stored| stored.position);
                // Nothing found is answered without a word on where the replica stands.
                let stands = last.map(|_| applied);
                if applied < log.last {
                    self.count("lagging read");
                }
                job.entries.extend(found);
                job.next = job.reader.on_batch(last, more, stands);
            }
            Next::AskLeader(at) => {
                self.count("leader asked");
                let next = self.logs[job.log]
                    .after(at)
                    .find(|stored| due(stored))
                    .cloned();
                let position = next.as_ref().map(|stored| stored.position);
                job.entries.extend(next);
                job.next = job.reader.on_leader(position);
            }
        }
        job.batches += 1;
        let part = matches!(job.purpose, Purpose::Replay { .. })
            && job.batches > 1
            && job.next != Next::Done
            && !job.entries.is_empty()
            && self.chance(0.5);
        if job.next == Next::Done || part {
            self.read_done(job);
        } else {
            self.jobs.insert(number, job);
            self.soon(Ev::ReadStep { job: number });
        }
    }

    fn read_done(&mut self, job: Job) {
        match job.purpose {
            Purpose::Tail { .. } => self.tail_read(job, true),
            Purpose::FoldIn { .. } => self.folded_in(job),
            Purpose::Replay { .. } => self.replay_read(job),
        }
    }

    fn read_failed(&mut self, job: Job) {
        match job.purpose {
            Purpose::Tail { .. } => self.tail_read(job, false),
            Purpose::FoldIn { owner, only } => self.fold_in_later(owner, only),
            Purpose::Replay { stream, .. } => {
                self.streams[stream].reading = false;
                self.replay_later(stream);
            }
        }
    }
}
