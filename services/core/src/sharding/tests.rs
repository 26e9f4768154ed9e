//! Members on a bucket that answers at once. What happens when it does not is the simulation's to find.

use std::collections::BTreeMap;

use super::*;

mod pace;

const STEP: Duration = Duration::from_millis(250);
const START: u64 = 1_800_000_000;

struct Process {
    sharding: Sharding,
    /// Cut off from the bucket, or stopped.
    away: bool,
    serving: BTreeMap<Partition, OwnerEpoch>,
    /// Their sessions end.
    ending: BTreeMap<Partition, OwnerEpoch>,
    member: Member,
}

#[derive(Default)]
struct Bucket {
    claims: BTreeMap<Partition, (u64, Claim)>,
    members: BTreeMap<String, (u64, Member)>,
    revision: u64,
    written: Vec<Partition>,
}

struct World {
    now: Duration,
    steps: u32,
    bucket: Bucket,
    processes: BTreeMap<String, Process>,
    /// Of each partition.
    accounts: u32,
    /// Of who starts.
    pace: Pace,
    /// Sessions do not end.
    holds: bool,
}

impl World {
    fn new() -> Self {
        Self {
            now: Duration::ZERO,
            steps: 0,
            bucket: Bucket::default(),
            processes: BTreeMap::new(),
            accounts: 3,
            pace: Pace::default(),
            holds: false,
        }
    }

    fn start(&mut self, id: &str, incarnation: &str) {
        let mut sharding = Sharding::new(Config {
            pace: self.pace,
            ..Config::new(id, incarnation, Timing::default())
        });
        for (partition, (revision, claim)) in &self.bucket.claims {
            let seen = Input::Claim {
                partition: *partition,
                revision: *revision,
                claim: Some(claim.clone()),
            };
            sharding.handle(self.now, START, seen);
        }
        sharding.handle(self.now, START, Input::ClaimsLoaded);
        let member = Member {
            id: id.to_owned(),
            incarnation: incarnation.to_owned(),
            weight: WEIGHT,
            ..Member::default()
        };
        let process = Process {
            sharding,
            away: false,
            serving: BTreeMap::new(),
            ending: BTreeMap::new(),
            member,
        };
        self.processes.insert(id.to_owned(), process);
    }

    fn run(&mut self, seconds: u32) {
        for _ in 0..seconds * 4 {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        self.steps += 1;
        let ids: Vec<String> = self.processes.keys().cloned().collect();
        for id in &ids {
            if self.steps.is_multiple_of(12) {
                self.renew(id);
            }
            self.give(id, Input::Tick);
        }
    }

    fn renew(&mut self, id: &str) {
        let process = self.processes.get_mut(id).unwrap();
        if process.away {
            return self.give(id, Input::RenewalFailed);
        }
        self.bucket.revision += 1;
        process.member.draining = process.sharding.is_draining();
        let record = (self.bucket.revision, process.member.clone());
        self.bucket.members.insert(id.to_owned(), record);
        let members = self.bucket.members.values();
        let members = members.map(|(revision, member)| (member.clone(), *revision));
        let members = members.collect();
        self.give(id, Input::Renewed);
        let asked = self.now;
        self.give(id, Input::Members { asked, members });
    }

    fn give(&mut self, id: &str, input: Input) {
        let (now, unix) = (self.now, START + self.now.as_secs());
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let process = self.processes.get_mut(id).unwrap();
            for effect in process.sharding.handle(now, unix, input) {
                self.carry_out(id, effect, &mut inputs);
            }
        }
        for partition in std::mem::take(&mut self.bucket.written) {
            let (revision, claim) = self.bucket.claims[&partition].clone();
            let others: Vec<String> = self.processes.keys().cloned().collect();
            for other in others {
                if other != id && !self.processes[&other].away {
                    let claim = Some(claim.clone());
                    self.give(
                        &other,
                        Input::Claim {
                            partition,
                            revision,
                            claim,
                        },
                    );
                }
            }
        }
    }

    fn carry_out(&mut self, id: &str, effect: Effect, inputs: &mut Vec<Input>) {
        let process = self.processes.get_mut(id).unwrap();
        match effect {
            Effect::Write {
                partition,
                claim,
                revision,
            } => {
                let known = self.bucket.claims.get(&partition).map_or(0, |(at, _)| *at);
                let written = if process.away {
                    Written::Unknown
                } else if known == revision {
                    self.bucket.revision += 1;
                    let record = (self.bucket.revision, claim.clone());
                    self.bucket.claims.insert(partition, record);
                    self.bucket.written.push(partition);
                    Written::Stored(self.bucket.revision)
                } else {
                    Written::Conflict
                };
                inputs.push(Input::Wrote {
                    partition,
                    claim,
                    written,
                });
            }
            Effect::Read { partition } => {
                let found = self.bucket.claims.get(&partition);
                let found = found.map(|(revision, claim)| (*revision, Some(claim.clone())));
                let found = if process.away { Err(()) } else { Ok(found) };
                inputs.push(Input::Read { partition, found });
            }
            Effect::Load {
                partition, epoch, ..
            } => {
                process.serving.insert(partition, epoch);
                inputs.push(Input::Serving {
                    partition,
                    epoch,
                    accounts: self.accounts,
                });
            }
            Effect::Renewed { partition, epoch } => {
                process.serving.insert(partition, epoch);
            }
            Effect::Finish { partition, epoch } => {
                process.serving.remove(&partition);
                if self.holds {
                    process.ending.insert(partition, epoch);
                } else {
                    inputs.push(Input::Finished { partition, epoch });
                }
            }
            Effect::Stop { partition, .. } => {
                process.serving.remove(&partition);
            }
            Effect::Released { .. } => {}
        }
    }

    /// The sessions end of what is given away.
    fn let_go(&mut self, id: &str) {
        let ending = &mut self.processes.get_mut(id).unwrap().ending;
        for (partition, epoch) in std::mem::take(ending) {
            self.give(id, Input::Finished { partition, epoch });
        }
    }

    fn served(&self) -> BTreeMap<Partition, Vec<String>> {
        let mut served: BTreeMap<Partition, Vec<String>> = BTreeMap::new();
        for (id, process) in &self.processes {
            for partition in process.serving.keys() {
                served.entry(*partition).or_default().push(id.clone());
            }
        }
        served
    }

    /// Everything is served once, and by whom it should be.
    fn assert_settled(&self) {
        let served = self.served();
        for partition in Partition::all() {
            let by = served.get(&partition).cloned().unwrap_or_default();
            assert_eq!(by.len(), 1, "partition {partition} is served by {by:?}");
            let any = self.processes.values().find(|process| !process.away);
            let wanted = any.unwrap().sharding.assignment().owner(partition);
            assert_eq!(wanted, Some(by[0].as_str()), "partition {partition}");
        }
    }

    fn count(&self, id: &str) -> usize {
        self.processes[id].serving.len()
    }
}

#[test]
fn one_takes_all_and_gives_a_second_its_share() {
    let mut world = World::new();
    world.start("a", "1");
    world.run(4);
    assert_eq!(world.count("a"), 1024);
    world.start("b", "1");
    world.run(30);
    world.assert_settled();
    assert!(
        (450..=574).contains(&world.count("b")),
        "{}",
        world.count("b")
    );
}

#[test]
fn the_dead_are_replaced_after_the_time_and_not_before() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(40);
    world.assert_settled();
    let died = world.processes.remove("b").unwrap().serving.len();
    let before: usize = world.served().len();
    world.run(9);
    assert_eq!(world.served().len(), before);
    assert_eq!(before + died, 1024);
    world.run(7);
    world.assert_settled();
}

#[test]
fn who_comes_back_in_another_incarnation_takes_what_was_its_own() {
    let mut world = World::new();
    for id in ["a", "b"] {
        world.start(id, "1");
    }
    world.run(40);
    let before: Vec<Partition> = world.processes["b"].serving.keys().copied().collect();
    world.start("b", "2");
    world.run(4);
    let after: Vec<Partition> = world.processes["b"].serving.keys().copied().collect();
    assert_eq!(before, after);
    world.assert_settled();
}

#[test]
fn who_crashes_again_and_again_takes_its_share_along_once_a_minute() {
    let mut world = World::new();
    for id in ["a", "b"] {
        world.start(id, "1");
    }
    world.run(40);
    world.processes.remove("b");
    world.run(20);
    for incarnation in ["2", "3"] {
        world.start("b", incarnation);
        world.run(15);
        assert_eq!((world.count("a"), world.count("b")), (1024, 0));
        world.processes.remove("b");
        world.run(5);
        assert_eq!(world.count("a"), 1024);
    }
    // One that lives gets it back.
    world.start("b", "4");
    world.run(40);
    world.assert_settled();
}

#[test]
fn one_that_is_cut_off_takes_nothing_and_yields() {
    let mut world = World::new();
    for id in ["a", "b"] {
        world.start(id, "1");
    }
    world.run(40);
    world.processes.get_mut("b").unwrap().away = true;
    world.run(20);
    assert_eq!(world.count("a"), 1024);
    let own = world.count("b");
    assert!(own < 600, "{own}");
    // Back again: it stops what is another's, and gets its share back only later.
    world.processes.get_mut("b").unwrap().away = false;
    let claims = world.bucket.claims.clone();
    for (partition, (revision, claim)) in claims {
        let claim = Some(claim);
        world.give(
            "b",
            Input::Claim {
                partition,
                revision,
                claim,
            },
        );
    }
    world.run(6);
    assert_eq!((world.count("a"), world.count("b")), (1024, 0));
    world.run(40);
    assert_eq!(world.count("b"), 0, "not given back within a minute");
    world.run(60);
    world.assert_settled();
}

#[test]
fn who_drains_gives_all_away_and_may_come_back() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(40);
    world.give("c", Input::Drain(true));
    world.run(20);
    assert_eq!(world.count("c"), 0);
    assert_eq!(world.served().len(), 1024);
    world.give("c", Input::Drain(false));
    world.run(30);
    world.assert_settled();
}

#[test]
fn one_that_leaves_goes_though_its_drain_is_undone() {
    let mut world = World::new();
    for id in ["a", "b"] {
        world.start(id, "1");
    }
    world.run(40);
    world.give("b", Input::Leave(Duration::from_secs(20)));
    world.give("b", Input::Drain(false));
    world.run(20);
    assert_eq!((world.count("a"), world.count("b")), (1024, 0));
}

#[test]
fn the_last_one_leaves_in_order() {
    let mut world = World::new();
    world.start("a", "1");
    world.run(4);
    world.give("a", Input::Leave(Duration::from_secs(8)));
    world.run(8);
    assert_eq!(world.count("a"), 0);
    assert!(
        world
            .bucket
            .claims
            .values()
            .all(|(_, claim)| claim.released)
    );
}

#[test]
fn a_claim_that_is_lost_ends_its_sessions() {
    let mut world = World::new();
    world.start("a", "1");
    world.run(4);
    let partition = Partition::new(7).unwrap();
    let (revision, claim) = world.bucket.claims[&partition].clone();
    let foreign = Claim {
        member: "z".to_owned(),
        incarnation: "9".to_owned(),
        owner_epoch: claim.owner_epoch + 1,
        ..claim
    };
    // An older one says nothing.
    let older = Input::Claim {
        partition,
        revision: revision - 1,
        claim: Some(foreign.clone()),
    };
    world.give("a", older);
    assert_eq!(world.count("a"), 1024);
    let newer = Input::Claim {
        partition,
        revision: revision + 1000,
        claim: Some(foreign),
    };
    world.give("a", newer);
    assert_eq!(world.count("a"), 1023);
}

#[test]
fn a_claim_that_aged_out_is_taken_again_under_another_number() {
    let mut world = World::new();
    world.start("a", "1");
    world.run(4);
    let before = world.processes["a"].serving.clone();
    world.bucket.claims.clear();
    world.run(40);
    let after = &world.processes["a"].serving;
    assert_eq!(after.len(), 1024);
    assert!(
        before
            .iter()
            .all(|(partition, epoch)| after[partition] > *epoch)
    );
}

#[test]
fn sessions_that_end_under_the_number_before_are_released() {
    let mut world = World::new();
    world.start("a", "1");
    world.run(4);
    let partition = Partition::new(7).unwrap();
    let process = world.processes.get_mut("a").unwrap();
    let before = process.serving[&partition];
    let owned = process.sharding.owned.get_mut(&partition).unwrap();
    // The claim was taken again while the word that its sessions had ended was on its way.
    owned.stage = Stage::Finishing(String::new());
    owned.epoch += 1;
    let finished = Input::Finished {
        partition,
        epoch: before,
    };
    let effects = process.sharding.handle(world.now, START, finished);
    let releases =
        |effect: &Effect| matches!(effect, Effect::Write { claim, .. } if claim.released);
    assert!(effects.iter().any(releases), "{effects:?}");
}

#[test]
fn a_newer_releases_claim_is_left_to_those_who_know_it() {
    let mut world = World::new();
    let partition = Partition::new(7).unwrap();
    let claim = Claim {
        schema: crate::schema::NEWEST + 1,
        member: "gone".to_owned(),
        incarnation: "1".to_owned(),
        owner_epoch: 1,
        released: true,
        ..Claim::default()
    };
    world.bucket.revision += 1;
    let revision = world.bucket.revision;
    world.bucket.claims.insert(partition, (revision, claim));
    world.start("a", "1");
    world.run(20);
    assert_eq!(world.count("a"), 1023);
    assert_eq!(world.bucket.claims[&partition].0, revision);
}

#[test]
fn a_newcomer_gives_nothing_to_one_that_died_before_it_came() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(40);
    // Its record stays in the bucket.
    world.processes.remove("b");
    world.run(40);
    world.assert_settled();
    world.start("d", "1");
    let mut most = 0;
    for _ in 0..40 {
        world.run(1);
        assert!(
            world.count("d") >= most,
            "it gave away what it had just taken"
        );
        most = world.count("d");
    }
    world.assert_settled();
}

#[test]
fn a_renewal_that_fails_gives_nothing_to_the_dead() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(40);
    // Its record stays in the bucket, and what the others took from it may be given away again by now.
    world.processes.remove("b");
    world.run(120);
    world.assert_settled();
    for id in ["a", "c"] {
        world.give(id, Input::RenewalFailed);
    }
    for _ in 0..20 {
        world.run(1);
        world.assert_settled();
    }
}

#[test]
fn a_claim_that_is_newer_than_the_last_look_at_the_members_is_left_alone() {
    let second = Duration::from_secs(1);
    let timing = Timing::default();
    let partition = Partition::new(7).unwrap();
    let own = Member {
        id: "a".to_owned(),
        incarnation: "1".to_owned(),
        ..Member::default()
    };
    let mut observer = Observer::new(&timing);
    let look = |observer: &mut Observer, at: u32| {
        observer.renewed(second * at);
        let record = (own.clone(), u64::from(at) + 1);
        observer.read(second * at, second * at, [record]);
        observer.note_holders(second * at, [("z", "1")]);
    };
    // Its claim of another partition stands there, and it has been missed for as long as a member may be.
    for at in [0, 3, 6, 9, 12] {
        look(&mut observer, at);
    }
    assert!(observer.is_dead("z", "1", second * 13));
    // It is back: it has renewed its record, and taken this one.
    let mut claims = Claims::new("a", "1", &timing);
    let claim = Claim {
        member: "z".to_owned(),
        incarnation: "1".to_owned(),
        owner_epoch: START,
        ..Claim::default()
    };
    claims.see(second * 13, partition, 1, Some(claim));
    let candidate = Candidate {
        id: "a",
        weight: WEIGHT,
        most: None,
    };
    let assignment = assign(&[candidate]);
    let take = |observer: &Observer, at: u32| {
        let situation = planner::Situation {
            now: second * at,
            partitions: &[partition],
            claims: &claims,
            observer,
            assignment: &assignment,
            timing: &timing,
            pace: &Pace::default(),
        };
        let own = planner::Own {
            id: "a",
            draining: false,
            leaving: false,
            serving: &|_| false,
            taken_from: &BTreeMap::new(),
            taken_at: &|_| Duration::ZERO,
            may_give: 0,
        };
        plan(situation, own).take
    };
    assert_eq!(take(&observer, 14), []);
    // It has no record: it is dead after all.
    look(&mut observer, 15);
    assert_eq!(take(&observer, 15), [partition]);
}
