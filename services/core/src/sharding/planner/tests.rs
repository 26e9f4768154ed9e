//! Several members that hear of claims and of each other late and in another order, on a bucket that only compares revisions.
//!
//! This is of plans alone: sessions, logs and what NATS does to a connection are the simulation's. Asked is that no two members
//! believe in one ownership, that nothing is let go but for somebody who wants it, and that partitions come to rest.

mod histories;

use std::collections::VecDeque;

use proptest::prelude::*;

use self::histories::{Event, Fate, Size, Step, View, budgets, sizes, steps, views};
use super::*;
use crate::{
    ids::OwnerEpoch,
    sharding::{Config, Effect, Input, Sharding, Written, giving::LEAST_RATE},
};
use mailbell_proto::bus::v1::Claim;

const START: u64 = 1_800_000_000;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Partitions that are shared.
const SHARED: u16 = 16;
/// Of which so many are given away at once.
const GIVING: usize = 4;
/// One step of all.
const STEP: Duration = Duration::from_secs(1);
/// Steps from renewal to renewal: a round.
const ROUND: u32 = 3;
/// How often a partition may change hands once nobody comes or goes: from a dead member to one that should own it as far as it knows, from
/// there to one that should own it indeed, and back to a member that was thought dead.
const MOVES: u32 = 3;

fn timing() -> Timing {
    Timing {
        take_back: Duration::from_secs(15),
        ..Timing::default()
    }
}

/// The rounds after which all is where it should be, once all hear everything: until the dead are found, or what was taken in error
/// may go back; two in which what was taken last is kept until others have seen it; and one for each turn of [`GIVING`] partitions, in
/// which they are ended, released and taken.
fn rounds() -> u32 {
    let timing = timing();
    let renewals = |time: Duration| time.as_secs().div_ceil(timing.member_renew.as_secs()) as u32;
    let turns = usize::from(SHARED).div_ceil(GIVING) as u32;
    renewals(timing.member_dead.max(timing.take_back)) + 2 + turns
}

/// Accounts of each partition.
const ACCOUNTS: u32 = 3;

/// The rounds more that it takes to give all partitions away where mail hosts let in so many `logins` a second. Whoever should own the
/// least of all gets its part of them, and that from one of several; while some drain, the others get by with the least that there is.
fn slow_rounds(logins: Option<f64>, some_drain: bool) -> u32 {
    let Some(logins) = logins else { return 0 };
    let givers = NAMES.len() as f64 - 1.0;
    let part = logins / f64::from(SHARED) / givers;
    let rate = if some_drain {
        LEAST_RATE
    } else {
        part.max(LEAST_RATE)
    };
    let seconds = f64::from(ACCOUNTS) * f64::from(SHARED) / rate;
    (seconds / (STEP * ROUND).as_secs_f64()).ceil() as u32
}

struct Process {
    sharding: Sharding,
    record: Member,
    cut: bool,
    inbox: VecDeque<Input>,
    /// Who is to get a partition whose sessions end.
    ending: BTreeMap<Partition, String>,
}

#[derive(Default)]
struct World {
    now: Duration,
    steps: u32,
    revision: u64,
    claims: BTreeMap<Partition, (u64, Claim)>,
    members: BTreeMap<String, (u64, Member)>,
    processes: BTreeMap<usize, Process>,
    started: u32,
    /// Writes on their way that nobody waits for.
    late: Vec<(Partition, Claim, u64)>,
    /// Nobody comes or goes since then.
    healed: Duration,
    /// How often a partition was loaded since this was cleared.
    moves: BTreeMap<Partition, u32>,
    /// What mail hosts let in a second.
    logins: Option<f64>,
}

fn shared() -> Vec<Partition> {
    Partition::all().take(SHARED.into()).collect()
}

/// What of a record others plan by.
fn how(member: &Member) -> (String, u32, u32, bool) {
    let incarnation = member.incarnation.clone();
    (
        incarnation,
        member.weight,
        member.most_partitions,
        member.draining,
    )
}

impl World {
    fn start(&mut self, who: usize, size: Size) {
        if self.processes.contains_key(&who) {
            return;
        }
        self.started += 1;
        let incarnation = self.started.to_string();
        let mut config = Config::new(NAMES[who], &incarnation, timing());
        config.partitions = shared();
        config.pace.giving = GIVING;
        let record = Member {
            id: NAMES[who].to_owned(),
            incarnation,
            weight: size.weight,
            most_partitions: size.most,
            ..Member::default()
        };
        let mut sharding = Sharding::new(config);
        if let Some(logins) = self.logins {
            sharding.set_logins(logins);
        }
        let process = Process {
            sharding,
            record,
            cut: false,
            inbox: VecDeque::new(),
            ending: BTreeMap::new(),
        };
        self.processes.insert(who, process);
        self.watch(who);
    }

    /// All claims are told, as a watch begins.
    fn watch(&mut self, who: usize) {
        let process = self.processes.get_mut(&who).unwrap();
        // The watch before is gone.
        process
            .inbox
            .retain(|input| !matches!(input, Input::Claim { .. }));
        let told = self
            .claims
            .iter()
            .map(|(partition, (revision, claim))| Input::Claim {
                partition: *partition,
                revision: *revision,
                claim: Some(claim.clone()),
            });
        let mut inputs = vec![Input::ClaimsRestarted];
        inputs.extend(told);
        inputs.push(Input::ClaimsLoaded);
        for input in inputs {
            self.give(who, input, Fate::Answered);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Nothing => {}
            Event::Start(who, size) => self.start(who, size),
            Event::Limit(who, most) => {
                if let Some(process) = self.processes.get_mut(&who) {
                    process.record.most_partitions = most;
                }
            }
            Event::Kill(who) => {
                self.processes.remove(&who);
            }
            Event::Cut(who, cut) => {
                let Some(process) = self.processes.get_mut(&who) else {
                    return;
                };
                let was = std::mem::replace(&mut process.cut, cut);
                if was && !cut {
                    self.give(who, Input::Linked, Fate::Answered);
                    self.watch(who);
                }
            }
            Event::Drain(who, drain) => {
                if self.processes.contains_key(&who) {
                    self.give(who, Input::Drain(drain), Fate::Answered);
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        self.now += STEP;
        self.steps += 1;
        for (partition, claim, revision) in std::mem::take(&mut self.late) {
            self.store(partition, claim, revision);
        }
        self.happen(step.event);
        for who in 0..NAMES.len() {
            if !self.processes.contains_key(&who) {
                continue;
            }
            let view = step.views[who];
            if self.steps.is_multiple_of(ROUND) {
                self.renew(who, view);
            }
            let process = self.processes.get_mut(&who).unwrap();
            let mut heard = match view.late {
                true => VecDeque::new(),
                false => std::mem::take(&mut process.inbox),
            };
            if view.backwards {
                heard.make_contiguous().reverse();
            }
            for input in heard {
                self.give(who, input, view.fate);
            }
            self.give(who, Input::Tick, view.fate);
        }
    }

    fn renew(&mut self, who: usize, view: View) {
        let process = self.processes.get_mut(&who).unwrap();
        if process.cut {
            return self.give(who, Input::RenewalFailed, view.fate);
        }
        self.revision += 1;
        process.record.draining = process.sharding.is_draining();
        let record = (self.revision, process.record.clone());
        self.members.insert(process.record.id.clone(), record);
        // One read at a time.
        if !process
            .inbox
            .iter()
            .any(|input| matches!(input, Input::Members { .. }))
        {
            let members = self.members.values();
            let members = members.map(|(revision, member)| (member.clone(), *revision));
            process.inbox.push_back(Input::Members {
                asked: self.now,
                members: members.collect(),
            });
        }
        self.give(who, Input::Renewed, view.fate);
    }

    fn give(&mut self, who: usize, input: Input, fate: Fate) {
        let unix_s = START + self.now.as_secs();
        let process = self.processes.get_mut(&who).unwrap();
        for effect in process.sharding.handle(self.now, unix_s, input) {
            self.carry_out(who, effect, fate);
        }
        self.check_owners();
    }

    fn carry_out(&mut self, who: usize, effect: Effect, fate: Fate) {
        let process = self.processes.get_mut(&who).unwrap();
        match effect {
            Effect::Write {
                partition,
                claim,
                revision,
            } => {
                if claim.released {
                    // Of a stray one nothing runs.
                    let to = process.ending.get(&partition).cloned().unwrap_or_default();
                    assert_eq!(claim.successor, to, "{who} releases partition {partition}");
                }
                let fate = if process.cut { Fate::Lost } else { fate };
                let written = match fate {
                    Fate::Answered => self.store(partition, claim.clone(), revision),
                    Fate::Unanswered => {
                        self.store(partition, claim.clone(), revision);
                        Written::Unknown
                    }
                    Fate::Late => {
                        self.late.push((partition, claim.clone(), revision));
                        Written::Unknown
                    }
                    Fate::Lost => Written::Unknown,
                };
                self.hear(
                    who,
                    Input::Wrote {
                        partition,
                        claim,
                        written,
                    },
                );
            }
            Effect::Read { partition } => {
                let found = self.claims.get(&partition);
                let found = found.map(|(revision, claim)| (*revision, Some(claim.clone())));
                let found = if process.cut { Err(()) } else { Ok(found) };
                self.hear(who, Input::Read { partition, found });
            }
            Effect::Load {
                partition, epoch, ..
            } => {
                *self.moves.entry(partition).or_default() += 1;
                self.hear(
                    who,
                    Input::Serving {
                        partition,
                        epoch,
                        accounts: ACCOUNTS,
                    },
                );
            }
            Effect::Finish { partition, epoch } => {
                let to = self.wanted(who, partition);
                let process = self.processes.get_mut(&who).unwrap();
                process.ending.insert(partition, to);
                self.hear(who, Input::Finished { partition, epoch });
            }
            Effect::Stop { partition, .. } | Effect::Released { partition } => {
                process.ending.remove(&partition);
            }
            Effect::Renewed { .. } => {}
        }
    }

    fn hear(&mut self, who: usize, input: Input) {
        self.processes.get_mut(&who).unwrap().inbox.push_back(input);
    }

    /// Compare and set.
    fn store(&mut self, partition: Partition, claim: Claim, revision: u64) -> Written {
        if self.claims.get(&partition).map_or(0, |(at, _)| *at) != revision {
            return Written::Conflict;
        }
        self.revision += 1;
        let revision = self.revision;
        self.claims.insert(partition, (revision, claim.clone()));
        for process in self.processes.values_mut().filter(|process| !process.cut) {
            process.inbox.push_back(Input::Claim {
                partition,
                revision,
                claim: Some(claim.clone()),
            });
        }
        Written::Stored(revision)
    }

    /// Who else wants a partition that a member is about to give away, as far as it knows.
    fn wanted(&self, who: usize, partition: Partition) -> String {
        let sharding = &self.processes[&who].sharding;
        let to = sharding.assignment().owner(partition);
        let to = to.filter(|to| *to != NAMES[who]);
        let to =
            to.unwrap_or_else(|| panic!("{who} gives away {partition}, which nobody else wants"));
        let takes = |member: &Member| member.id == to && !member.draining;
        assert!(
            sharding.observer().live().any(takes),
            "{who} gives away {partition} to {to}, which takes nothing"
        );
        to.to_owned()
    }

    /// No two believe in one ownership.
    fn check_owners(&self) {
        for partition in shared() {
            let mut epochs: Vec<OwnerEpoch> = self
                .processes
                .values()
                .filter_map(|process| process.sharding.claims().epoch(partition))
                .collect();
            let believed = epochs.len();
            epochs.sort_unstable();
            epochs.dedup();
            assert_eq!(
                epochs.len(),
                believed,
                "partition {partition} under {epochs:?}"
            );
        }
    }

    /// Whether a member may judge, and has read of all who run, and how, and what those that died have written last. Until then its plan is
    /// of what was, and looks like rest by chance: one that died as soon as it had started will yet be taken for alive.
    fn knows_all(&self, process: &Process) -> bool {
        let observer = process.sharding.observer();
        let runs = self.processes.values().map(|process| {
            how(&Member {
                draining: process.sharding.is_draining(),
                ..process.record.clone()
            })
        });
        observer.is_steady(self.now)
            && observer.has_read_since(self.healed + STEP)
            && observer.live().map(how).eq(runs)
    }

    /// What keeps the members from being at rest.
    fn unrest(&self) -> Option<String> {
        for (who, process) in &self.processes {
            if !self.knows_all(process) {
                return Some(format!("{who} knows {:?}", process.sharding.observer()));
            }
            let plan = process.sharding.last_plan();
            let assignment = process.sharding.assignment();
            let mut rest = Plan::default();
            // What is beyond all caps waits for room, and for nothing else.
            let beyond = |partition: &Partition| assignment.owner(*partition).is_none();
            let beyond = shared().into_iter().filter(beyond).count();
            if beyond > 0 {
                rest.waiting.insert(Waiting::NoRoom, beyond);
            }
            if *plan != rest {
                return Some(format!(
                    "{who} plans {plan:?}, {beyond} are beyond all caps"
                ));
            }
            let (serving, loading, giving) = process.sharding.stages();
            if (loading, giving) != (0, 0) {
                return Some(format!(
                    "{who} serves {serving}, loads {loading}, gives {giving}"
                ));
            }
            for partition in shared() {
                // Beyond all caps it stays whose it is.
                let Some(wanted) = assignment.owner(partition) else {
                    continue;
                };
                let held = self.claims.get(&partition).map(|(_, claim)| claim);
                // Who does not know of it yet, or is dead, has not got it.
                let runs = |claim: &&Claim| {
                    self.processes.values().any(|process| {
                        process.record.incarnation == claim.incarnation
                            && process.sharding.claims().epoch(partition) == Some(claim.owner_epoch)
                    })
                };
                let held = held.filter(|claim| !claim.released).filter(runs);
                let held = held.map(|claim| claim.member.as_str());
                if held != Some(wanted) {
                    return Some(format!("{partition} is {held:?}'s, {who} wants {wanted}"));
                }
            }
        }
        None
    }

    /// All are well from now on, and somebody takes partitions.
    fn heal(&mut self) {
        let free = (0..NAMES.len()).find(|who| !self.processes.contains_key(who));
        if let Some(who) = free.filter(|_| self.logins.is_some()) {
            // One that others have to give to: only that takes logins.
            self.start(
                who,
                Size {
                    weight: 10,
                    most: 0,
                },
            );
        }
        if self.processes.is_empty() {
            self.start(0, Size { weight: 1, most: 0 });
        }
        let there: Vec<usize> = self.processes.keys().copied().collect();
        for who in &there {
            self.happen(Event::Cut(*who, false));
        }
        if self
            .processes
            .values()
            .all(|process| process.sharding.is_draining())
        {
            self.happen(Event::Drain(there[0], false));
        }
        self.moves.clear();
        self.healed = self.now;
    }

    fn round(&mut self) {
        for _ in 0..ROUND {
            self.step(Step {
                event: Event::Nothing,
                views: [View::WHOLE; NAMES.len()],
            });
        }
    }

    fn some_drain(&self) -> bool {
        let mut processes = self.processes.values();
        processes.any(|process| process.sharding.is_draining())
    }

    fn most_moves(&self) -> u32 {
        self.moves.values().copied().max().unwrap_or_default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn partitions_come_to_rest_whatever_each_member_sees(
        logins in budgets(),
        first in proptest::array::uniform3(sizes()),
        chaos in steps(80),
        calm in proptest::collection::vec(views(), 0..20),
    ) {
        let mut world = World { logins, ..World::default() };
        for (who, size) in first.into_iter().enumerate() {
            world.start(who, size);
        }
        for step in chaos {
            world.step(step);
        }
        world.heal();
        // Nobody comes or goes, and all still hear late.
        for views in calm {
            world.step(Step { event: Event::Nothing, views });
        }
        let most = rounds() + slow_rounds(logins, world.some_drain());
        let mut lasted = 0;
        while let Some(unrest) = world.unrest() {
            prop_assert!(lasted < most, "after {} rounds {}", lasted, unrest);
            world.round();
            lasted += 1;
        }
        prop_assert!(world.most_moves() <= MOVES, "{:?}", world.moves);

        // At rest is at rest.
        world.moves.clear();
        for _ in 0..rounds() {
            world.round();
            prop_assert_eq!(world.unrest(), None);
        }
        prop_assert_eq!(world.most_moves(), 0);
    }
}
