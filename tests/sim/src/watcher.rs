//! Drives the real [`Sharding`] of each watcher: renewals, ticks, answers of the bucket, what follows from them; a process that
//! is stopped and continued, one that ends in order, one that comes back under its name.

use std::time::Duration;

use mailbell_core::{
    ids::Partition,
    session::Stop,
    sharding::{
        Config, Effect, Input, Lost, Sharding, Waiting, Written,
        renewal::{Answer, Renewal},
    },
};
use mailbell_proto::bus::v1 as records;

use crate::{
    breach::Breach,
    drive::Ev,
    live::Want,
    owner::Phase,
    process::Cut,
    record::Says,
    scenario::{MEMBERS, PARTITIONS},
    world::{MS, S, World},
};

/// How often a watcher looks whether something is due.
const TICK: Duration = Duration::from_millis(500);
/// How long a process that ends in order may take.
pub(crate) const GRACE: Duration = Duration::from_secs(8);

/// What a watcher has beside its sessions.
pub(crate) struct Member {
    /// Which of the names.
    pub(crate) name: usize,
    pub(crate) sharding: Sharding,
    pub(crate) says: Says,
    /// What waits while it is stopped.
    pub(crate) inbox: Vec<Ev>,
    stops: u64,
    cuts: u64,
    /// The real machine, and the attempt that is awaited: which one, and what it writes.
    pub(crate) renewal: Renewal,
    pub(crate) attempts: u64,
    pub(crate) awaits: Option<records::Member>,
    ops: u64,
    writes: [u64; PARTITIONS],
    reads: [u64; PARTITIONS],
    /// The last watch that was asked for, and the one that is there.
    pub(crate) watch: u64,
    pub(crate) watching: Option<u64>,
    /// Nothing of the watch arrives before this.
    pub(crate) watch_at: Duration,
    /// Which bucket it was told of.
    pub(crate) told_of: u64,
    pub(crate) owners: [Option<usize>; PARTITIONS],
    pub(crate) leaving: bool,
    /// Whether it comes back when it has gone.
    comes_back: bool,
}

/// What a watcher handles.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Renew,
    Tick,
    Record {
        number: u64,
        answer: Answer,
    },
    Share(Input),
    Wrote {
        op: u64,
        partition: usize,
        claim: records::Claim,
        written: Written,
    },
    Read {
        op: u64,
        partition: usize,
        found: Result<Option<(u64, Option<records::Claim>)>, ()>,
    },
    Watch {
        watch: u64,
        input: Input,
    },
    WatchAnew,
    Exit,
}

impl World {
    /// The real partition behind one of the model.
    pub(crate) fn partition_of(&self, partition: usize) -> Partition {
        let place = self
            .places
            .iter()
            .find(|place| place.partition == partition);
        place.unwrap().account.partition()
    }

    fn number_of(&self, partition: Partition) -> usize {
        let is = |number: &usize| self.partition_of(*number) == partition;
        (0..PARTITIONS).find(is).unwrap()
    }

    /// A watcher starts under one of the names, unless somebody runs under it.
    pub(crate) fn start_watcher(&mut self, name: usize) {
        let runs = |process: &usize| self.members[process].name == name;
        if self.watchers().iter().any(runs) {
            return;
        }
        let process = self.spawn(None);
        let mut config = Config::new(
            &self.scenario.names[name],
            &process.to_string(),
            self.scenario.timing,
        );
        config.partitions = (0..PARTITIONS)
            .map(|number| self.partition_of(number))
            .collect();
        config.pace.giving = self.scenario.giving;
        config.pace.backlog = self.scenario.backlog;
        let says = self.says_first();
        let member = Member {
            name,
            sharding: Sharding::new(config),
            says,
            inbox: Vec::new(),
            stops: 0,
            cuts: 0,
            renewal: Renewal::default(),
            attempts: 0,
            awaits: None,
            ops: 0,
            writes: [0; PARTITIONS],
            reads: [0; PARTITIONS],
            watch: 0,
            watching: None,
            watch_at: self.now,
            told_of: 0,
            owners: [None; PARTITIONS],
            leaving: false,
            comes_back: false,
        };
        self.members.insert(process, member);
        self.say(|| format!("process {process}: watcher {name} starts"));
        for told in [Told::WatchAnew, Told::Renew, Told::Tick] {
            self.tell_self(process, told);
        }
    }

    pub(crate) fn tell_self(&mut self, process: usize, told: Told) {
        let delay = self.between(Duration::ZERO, 5 * MS);
        self.tell_later(process, delay, told);
    }

    pub(crate) fn tell_later(&mut self, process: usize, delay: Duration, told: Told) {
        self.after(
            delay,
            Ev::Told {
                process,
                link: None,
                told,
            },
        );
    }

    pub(crate) fn on_told(&mut self, process: usize, link: Option<u64>, told: Told) {
        let state = &self.processes[process];
        if !state.alive || link.is_some_and(|link| !state.up || state.link != link) {
            return;
        }
        let member = self.members.get_mut(&process).unwrap();
        match told {
            Told::Renew => self.renew(process),
            Told::Tick => {
                self.tell_later(process, TICK, Told::Tick);
                self.share(process, Input::Tick);
                let member = &self.members[&process];
                let waiting = &member.sharding.last_plan().waiting;
                let back = waiting.contains_key(&Waiting::TakeBack);
                if back {
                    self.coverage.add("take back later", 1);
                }
                if member.leaving && member.sharding.claims().held() == 0 {
                    self.count("left with nothing");
                    self.exit(process);
                }
            }
            Told::Record { number, answer } => {
                if member.attempts == number {
                    self.on_record(process, answer);
                }
            }
            Told::Share(input) => self.share(process, input),
            Told::Wrote {
                op,
                partition,
                claim,
                written,
            } => {
                if member.writes[partition] != op {
                    return;
                }
                member.writes[partition] = 0;
                if written == Written::Unknown {
                    self.count("write unknown");
                }
                let partition = self.partition_of(partition);
                self.share(
                    process,
                    Input::Wrote {
                        partition,
                        claim,
                        written,
                    },
                );
            }
            Told::Read {
                op,
                partition,
                found,
            } => {
                if member.reads[partition] == op {
                    member.reads[partition] = 0;
                    let partition = self.partition_of(partition);
                    self.share(process, Input::Read { partition, found });
                }
            }
            Told::Watch { watch, input } => {
                if member.watch == watch {
                    // A watch that was there before the bucket was lost ends before the next one is asked for.
                    if input == Input::ClaimsLoaded && member.watching.is_some() {
                        member.told_of = self.live.history;
                    }
                    self.share(process, input);
                }
            }
            Told::WatchAnew => {
                if member.watching.is_none() {
                    member.watch += 1;
                    let watch = member.watch;
                    self.ask_live(process, Want::Watch { watch });
                    // No answer: once more.
                    self.tell_later(process, S, Told::WatchAnew);
                }
            }
            Told::Exit => self.exit(process),
        }
    }

    /// The link is back: what stands in the bucket is told anew.
    pub(crate) fn sharing_linked(&mut self, process: usize) {
        self.members.get_mut(&process).unwrap().watching = None;
        self.share(process, Input::Linked);
        self.tell_self(process, Told::WatchAnew);
    }

    /// Gives an input to the real machine, and carries out what follows.
    pub(crate) fn share(&mut self, process: usize, input: Input) {
        let now = self.now;
        let unix_us = self.wall_us() + self.processes[process].skew_us;
        let unix_s = u64::try_from(unix_us / 1_000_000).unwrap();
        if !matches!(
            input,
            Input::Tick | Input::Renewed | Input::Members { .. } | Input::Flushed { .. }
        ) {
            self.say(|| format!("  watcher {process} <- {input:?}"));
        }
        let member = self.members.get_mut(&process).unwrap();
        for effect in member.sharding.handle(now, unix_s, input) {
            self.say(|| format!("  watcher {process} -> {effect:?}"));
            self.carry_out_sharing(process, effect);
        }
    }

    fn carry_out_sharing(&mut self, process: usize, effect: Effect) {
        let timeout = self.scenario.timing.ack_timeout;
        let member = self.members.get_mut(&process).unwrap();
        match effect {
            Effect::Write {
                partition,
                claim,
                revision,
            } => {
                member.ops += 1;
                let op = member.ops;
                let partition = self.number_of(partition);
                let writes = &mut self.members.get_mut(&process).unwrap().writes;
                if std::mem::replace(&mut writes[partition], op) != 0 {
                    self.fail(
                        Breach::Contract,
                        format!("process {process} writes a claim twice at once"),
                    );
                }
                let unknown = Told::Wrote {
                    op,
                    partition,
                    claim: claim.clone(),
                    written: Written::Unknown,
                };
                self.tell_later(process, timeout, unknown);
                let want = Want::Write {
                    op,
                    partition,
                    claim,
                    revision,
                };
                self.ask_live(process, want);
            }
            Effect::Read { partition } => {
                member.ops += 1;
                let op = member.ops;
                let partition = self.number_of(partition);
                let reads = &mut self.members.get_mut(&process).unwrap().reads;
                if std::mem::replace(&mut reads[partition], op) != 0 {
                    self.fail(
                        Breach::Contract,
                        format!("process {process} reads a claim twice at once"),
                    );
                }
                let none = Told::Read {
                    op,
                    partition,
                    found: Err(()),
                };
                self.tell_later(process, timeout, none);
                self.ask_live(process, Want::Read { op, partition });
            }
            Effect::Load {
                partition,
                epoch,
                before,
            } => {
                let partition = self.number_of(partition);
                let before = before.map(|before| (before.log_id, before.flushed));
                self.begin_owner(process, partition, epoch, before);
            }
            Effect::Renewed { partition, epoch } => {
                let partition = self.number_of(partition);
                self.count("expired and kept");
                let owner = self.members[&process].owners[partition];
                self.renumber(owner.unwrap(), epoch);
            }
            Effect::Finish { partition, .. } => {
                let partition = self.number_of(partition);
                let owner = self.members[&process].owners[partition];
                self.hand_over(owner.unwrap());
            }
            Effect::Stop {
                partition,
                epoch,
                lost,
            } => {
                let partition = self.number_of(partition);
                match lost {
                    Lost::Taken(_) => self.audit_stop(process, partition, epoch),
                    Lost::Expired => self.count("expired and loaded anew"),
                }
                let member = self.members.get_mut(&process).unwrap();
                if let Some(owner) = member.owners[partition].take() {
                    self.owner_lost(owner);
                }
            }
            Effect::Released { partition } => {
                let partition = self.number_of(partition);
                let member = self.members.get_mut(&process).unwrap();
                if let Some(owner) = member.owners[partition].take()
                    && self.owners[owner].phase != Phase::Gone
                {
                    self.fail(
                        Breach::ReleasedInUse,
                        format!("owner {owner} is released before it has ended"),
                    );
                }
            }
        }
    }

    /// The process is stopped, as by SIGSTOP: it handles nothing for a while.
    pub(crate) fn stop_process(&mut self, process: usize, lasts: Duration) {
        if self.processes[process].stopped {
            return;
        }
        self.count("stopped and continued");
        self.say(|| format!("process {process}: stopped for {lasts:?}"));
        self.processes[process].stopped = true;
        self.stopped += 1;
        let member = self.members.get_mut(&process).unwrap();
        member.stops += 1;
        let number = member.stops;
        self.after(lasts, Ev::Continue { process, number });
    }

    pub(crate) fn on_continue(&mut self, process: usize, number: u64) {
        if self.members[&process].stops == number {
            self.continue_process(process);
        }
    }

    /// It goes on: timers first, then everything that came meanwhile.
    pub(crate) fn continue_process(&mut self, process: usize) {
        if !std::mem::take(&mut self.processes[process].stopped) {
            return;
        }
        self.stopped -= 1;
        self.says(process).hangs_since = None;
        self.processes[process].clear_since = self.now;
        self.say(|| format!("process {process}: continued"));
        let inbox = std::mem::take(&mut self.members.get_mut(&process).unwrap().inbox);
        let (timers, others): (Vec<_>, Vec<_>) = inbox.into_iter().partition(|ev| {
            let told = |told: &Told| matches!(told, Told::Renew | Told::Tick);
            match ev {
                Ev::Timer { .. } | Ev::HandOverLate { .. } => true,
                Ev::Told { told: what, .. } => told(what),
                _ => false,
            }
        });
        for ev in timers.into_iter().chain(others) {
            self.happen(ev);
        }
    }

    /// What a stopped process would handle waits.
    pub(crate) fn defer(&mut self, process: usize, ev: Ev) {
        if self.is_full_of_news(process, &ev) {
            return;
        }
        self.members.get_mut(&process).unwrap().inbox.push(ev);
    }

    /// Something goes in one direction only, for a while.
    pub(crate) fn cut_one_way(&mut self, process: usize, cut: Cut, lasts: Duration) {
        self.count(match cut {
            Cut::Answers => "one-way cut: answers",
            Cut::Writes | Cut::None => "one-way cut: writes",
        });
        self.say(|| format!("process {process}: {cut:?} are lost for {lasts:?}"));
        self.processes[process].cut = cut;
        let member = self.members.get_mut(&process).unwrap();
        member.cuts += 1;
        let number = member.cuts;
        self.after(lasts, Ev::CutEnds { process, number });
    }

    pub(crate) fn on_cut_ends(&mut self, process: usize, number: u64) {
        if self.members[&process].cuts == number {
            self.end_cut(process);
        }
    }

    pub(crate) fn end_cut(&mut self, process: usize) {
        if std::mem::replace(&mut self.processes[process].cut, Cut::None) != Cut::None {
            self.processes[process].clear_since = self.now;
        }
    }

    /// A person drains a watcher, or lets it take partitions again.
    pub(crate) fn drain_watcher(&mut self, process: usize, draining: bool) {
        self.count("drain");
        self.processes[process].clear_since = self.now;
        self.tell_self(process, Told::Share(Input::Drain(draining)));
    }

    /// SIGTERM.
    pub(crate) fn leave(&mut self, process: usize, comes_back: bool) {
        let member = self.members.get_mut(&process).unwrap();
        if std::mem::replace(&mut member.leaving, true) {
            return;
        }
        member.comes_back = comes_back;
        self.count("leave");
        self.tell_self(process, Told::Share(Input::Leave(GRACE)));
        self.tell_later(process, GRACE, Told::Exit);
    }

    fn exit(&mut self, process: usize) {
        let member = &self.members[&process];
        let (name, comes_back) = (member.name, member.comes_back);
        if member.sharding.claims().held() > 0 {
            self.count("left in a hurry");
        }
        let record = records::Member {
            left: true,
            ..self.record_of(process)
        };
        self.last_word(process, record);
        self.kill(process);
        if comes_back {
            let later = self.outage();
            self.after(later, Ev::Start { name });
        }
    }

    /// All that a watcher held is free for others, once they notice.
    pub(crate) fn watcher_died(&mut self, process: usize) {
        for run in self.runs_of(process) {
            self.end_run(run);
        }
        if std::mem::take(&mut self.processes[process].stopped) {
            self.stopped -= 1;
        }
        let member = self.members.get_mut(&process).unwrap();
        member.inbox.clear();
        for owner in std::mem::take(&mut member.owners).into_iter().flatten() {
            self.owners[owner].phase = Phase::Gone;
        }
        self.membership_changed();
    }

    /// A name that nobody runs under.
    pub(crate) fn free_name(&mut self) -> Option<usize> {
        let taken: Vec<usize> = self
            .watchers()
            .iter()
            .map(|process| self.members[process].name)
            .collect();
        let free: Vec<usize> = (0..MEMBERS).filter(|name| !taken.contains(name)).collect();
        self.pick(&free)
    }

    /// Everything that was done to the watchers ends; there is at least one.
    pub(crate) fn heal_watchers(&mut self) {
        if std::mem::take(&mut self.live.refuses) {
            self.live.trouble = self.now;
        }
        for process in self.watchers() {
            self.end_cut(process);
            self.continue_process(process);
            self.says(process).busy = false;
            if !self.members[&process].leaving && self.members[&process].sharding.is_draining() {
                self.drain_watcher(process, false);
            }
        }
        let stays = |process: &usize| !self.members[process].leaving;
        if !self.watchers().iter().any(stays)
            && let Some(name) = self.free_name()
        {
            self.start_watcher(name);
        }
    }

    /// The sessions of an owner that saw another's claim end at once.
    fn owner_lost(&mut self, owner: usize) {
        if self.owners[owner].phase == Phase::Gone {
            return;
        }
        self.count("claim lost");
        self.owners[owner].phase = Phase::Gone;
        for run in self.owners[owner].runs.clone().into_values() {
            self.give(run, mailbell_core::session::Input::Stop(Stop::Lost));
        }
    }
}
