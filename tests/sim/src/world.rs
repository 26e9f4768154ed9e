//! The world of one history: its parts, its time, its queue of what will happen.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use mailbell_core::ids::{LogId, OwnerEpoch};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    Coverage,
    audit::Served,
    breach::Breach,
    bus::{Identity, Log, StoredCheckpoint},
    device::Device,
    drive::Ev,
    gateway::{Gateway, Stream},
    live::Live,
    mailbox::{Conn, Mailbox},
    owner::Owner,
    process::Process,
    read::Job,
    scenario::{PARTITIONS, Place, Scenario, places},
    session::{Ledger, Run, Told},
    watcher::Member,
};

/// The wall clock at the beginning, in microseconds since the epoch.
const EPOCH_US: i64 = 1_700_000_000_000_000;

/// No history needs more steps.
const MOST_STEPS: u64 = 1_000_000;

/// A millisecond.
pub(crate) const MS: Duration = Duration::from_millis(1);
/// A second.
pub(crate) const S: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct World {
    pub(crate) rng: SmallRng,
    pub(crate) now: Duration,
    queue: BTreeMap<(Duration, u64), Ev>,
    next: u64,
    steps: u64,
    pub(crate) scenario: Scenario,
    /// Faults may happen.
    pub(crate) chaos: bool,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Option<VecDeque<String>>,
    trace_lines: usize,
    pub(crate) failure: Option<(Breach, String)>,

    pub(crate) places: &'static [Place],
    pub(crate) mailboxes: Vec<Mailbox>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) logs: Vec<Log>,
    pub(crate) identities: Vec<Identity>,
    pub(crate) live: Live,
    /// What watchers have beside their sessions, by process.
    pub(crate) members: BTreeMap<usize, Member>,
    /// How many processes are stopped.
    pub(crate) stopped: usize,
    pub(crate) served: [Served; PARTITIONS],
    /// The number of the last ownership of each partition that began.
    pub(crate) epochs_served: [OwnerEpoch; PARTITIONS],
    /// When watchers came or went last.
    pub(crate) changed_at: Duration,
    pub(crate) checkpoints: Vec<Option<StoredCheckpoint>>,
    pub(crate) last_revision: u64,
    pub(crate) processes: Vec<Process>,
    pub(crate) owners: Vec<Owner>,
    pub(crate) runs: Vec<Run>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) devices: Vec<Device>,
    /// What was ever told of each account: message ids, by the log that held them or by a listing of a range.
    pub(crate) told: HashMap<String, u64>,
    pub(crate) mailboxes_told: Vec<Told>,
    pub(crate) ledgers: Vec<Ledger>,
    pub(crate) paused: Vec<bool>,
    /// The only folder that is watched.
    pub(crate) narrowed: Vec<Option<usize>>,
    pub(crate) removed: Vec<bool>,
    /// How much all sessions asked for.
    pub(crate) effects: u64,
}

impl World {
    pub(crate) fn new(seed: u64, trace_lines: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let scenario = Scenario::draw(&mut rng);
        Self {
            rng,
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            next: 0,
            steps: 0,
            scenario,
            chaos: true,
            coverage: Coverage::default(),
            trace: (trace_lines > 0).then(VecDeque::new),
            trace_lines,
            failure: None,
            places: places(),
            mailboxes: Vec::new(),
            conns: Vec::new(),
            logs: Vec::new(),
            identities: Vec::new(),
            live: Live::new(),
            members: BTreeMap::new(),
            stopped: 0,
            served: [Served::default(); PARTITIONS],
            epochs_served: [0; PARTITIONS],
            changed_at: Duration::ZERO,
            checkpoints: Vec::new(),
            last_revision: 0,
            processes: Vec::new(),
            owners: Vec::new(),
            runs: Vec::new(),
            jobs: BTreeMap::new(),
            gateways: Vec::new(),
            streams: Vec::new(),
            devices: Vec::new(),
            told: HashMap::new(),
            mailboxes_told: Vec::new(),
            ledgers: Vec::new(),
            paused: Vec::new(),
            narrowed: Vec::new(),
            removed: Vec::new(),
            effects: 0,
        }
    }

    pub(crate) fn wall_us(&self) -> i64 {
        EPOCH_US + i64::try_from(self.now.as_micros()).unwrap()
    }

    /// Lets something happen after a while.
    pub(crate) fn after(&mut self, delay: Duration, ev: Ev) {
        let number = self.next;
        self.next += 1;
        self.queue.insert((self.now + delay, number), ev);
    }

    /// Lets something happen after a network's delay.
    pub(crate) fn soon(&mut self, ev: Ev) {
        let delay = self.delay();
        self.after(delay, ev);
    }

    /// A network's delay: mostly short.
    pub(crate) fn delay(&mut self) -> Duration {
        let slow = self.scenario.slow;
        if self.chaos && self.chance(slow) {
            self.between(50 * MS, 3 * S)
        } else {
            self.between(MS / 5, 8 * MS)
        }
    }

    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.rng.random_range(least..most)
    }

    pub(crate) fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.random::<f64>() < chance
    }

    /// A fault that happens now and then while there is chaos.
    pub(crate) fn mishap(&mut self, chance: f64, what: &'static str) -> bool {
        let happens = self.chaos && self.chance(chance);
        if happens {
            self.count(what);
        }
        happens
    }

    /// One of the indexes that `of` gives.
    pub(crate) fn pick(&mut self, of: &[usize]) -> Option<usize> {
        (!of.is_empty()).then(|| of[self.rng.random_range(0..of.len())])
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound)
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.coverage.add(what, 1);
    }

    /// A rule is broken; the first one counts.
    pub(crate) fn fail(&mut self, breach: Breach, what: impl Into<String>) {
        self.failure.get_or_insert_with(|| (breach, what.into()));
    }

    /// Notes a step, if somebody will read it.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        let Some(trace) = &mut self.trace else { return };
        let mut line = line();
        if line.len() > 300 {
            line.truncate(mailbell_core::event::cut(&line, 300).len());
        }
        trace.push_back(format!("{:9.3} {line}", self.now.as_secs_f64()));
        if trace.len() > self.trace_lines {
            trace.pop_front();
        }
    }

    pub(crate) fn new_log_id(&mut self) -> LogId {
        LogId(self.rng.random())
    }

    /// Plays the whole history; stops at the first failure.
    pub(crate) fn play(&mut self) {
        self.build();
        let end = self.scenario.chaos_lasts;
        while self.failure.is_none() && self.step(end) {}
        if self.failure.is_none() {
            self.now = end;
            self.heal();
            self.settle();
        }
        // Whoever compares two histories compares their length too.
        self.coverage.add("steps", self.steps);
    }

    /// The next thing that happens before `end`.
    pub(crate) fn step(&mut self, end: Duration) -> bool {
        let Some(entry) = self.queue.first_entry() else {
            return false;
        };
        if entry.key().0 > end {
            return false;
        }
        let ((at, _), ev) = entry.remove_entry();
        self.now = at;
        self.steps += 1;
        if self.steps > MOST_STEPS {
            self.fail(
                Breach::Restless,
                "too much happens: something goes round in circles",
            );
        }
        self.happen(ev);
        true
    }
}
