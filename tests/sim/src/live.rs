//! The model of bucket LIVE: the records of members, claims by compare-and-set, watches that lag, keys that age out.
//!
//! What no watcher sees is kept as well: who wrote last, and for how long each record stood still. By that `audit` judges.

use std::{collections::BTreeMap, time::Duration};

use mailbell_core::{
    ids::OwnerEpoch,
    sharding::{
        Input, Written,
        renewal::{Answer, Ask, Found},
    },
};
use mailbell_proto::bus::v1 as records;
use rand::RngExt as _;

use crate::{
    drive::Ev,
    process::Cut,
    scenario::PARTITIONS,
    watcher::Told,
    world::{MS, S, World},
};

/// A claim as it stands.
pub(crate) struct Record {
    pub(crate) revision: u64,
    pub(crate) claim: records::Claim,
    at: Duration,
}

/// Who wrote a claim last, in truth: also if its key aged out since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) process: usize,
    pub(crate) epoch: OwnerEpoch,
    pub(crate) released: bool,
}

/// How the record of a member moved on, in truth.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    pub(crate) incarnation: String,
    pub(crate) left: bool,
    pub(crate) stalled: bool,
    pub(crate) renewed: Duration,
    /// When a time ended in which it said that it hangs, or stood still for so long that others may call it dead.
    pub(crate) stood_still: Option<Duration>,
}

/// See the module.
pub(crate) struct Live {
    /// Which bucket it is: it may be lost, and another one made.
    pub(crate) history: u64,
    /// Writes get no answer and are not stored; reads are answered.
    pub(crate) refuses: bool,
    /// When it last began to refuse.
    pub(crate) refused_at: Duration,
    /// When the last trouble of the bucket as a whole ended.
    pub(crate) trouble: Duration,
    revision: u64,
    members: BTreeMap<String, (u64, Duration, records::Member)>,
    pub(crate) claims: [Option<Record>; PARTITIONS],
    pub(crate) holders: [Option<Holder>; PARTITIONS],
    /// The highest number that was stored, and whose it is.
    pub(crate) epochs: [(OwnerEpoch, usize); PARTITIONS],
    pub(crate) standing: BTreeMap<String, Standing>,
}

/// What a watcher asks of the bucket.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    /// What the real machine asks about the record of a member.
    Record {
        number: u64,
        record: records::Member,
        ask: Ask,
    },
    Members {
        asked: Duration,
    },
    Write {
        op: u64,
        partition: usize,
        claim: records::Claim,
        revision: u64,
    },
    Read {
        op: u64,
        partition: usize,
    },
    Watch {
        watch: u64,
    },
}

/// A request on its way to the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) process: usize,
    link: u64,
    pub(crate) want: Want,
    /// It waited in a client for a new connection.
    queued: bool,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self {
            history: 1,
            refuses: false,
            refused_at: Duration::ZERO,
            trouble: Duration::ZERO,
            revision: 0,
            members: BTreeMap::new(),
            claims: std::array::from_fn(|_| None),
            holders: [None; PARTITIONS],
            epochs: [(0, 0); PARTITIONS],
            standing: BTreeMap::new(),
        }
    }
}

impl World {
    pub(crate) fn ask_live(&mut self, process: usize, want: Want) {
        let link = self.processes[process].link;
        let asked = Asked {
            process,
            link,
            want,
            queued: false,
        };
        self.soon(Ev::AskLive(Box::new(asked)));
    }

    /// A request arrives at the bucket's leader.
    pub(crate) fn on_ask_live(&mut self, mut asked: Asked) {
        let state = &self.processes[asked.process];
        let writes = match &asked.want {
            Want::Record { ask, .. } => matches!(ask, Ask::Write { .. }),
            Want::Write { .. } => true,
            Want::Members { .. } | Want::Read { .. } | Want::Watch { .. } => false,
        };
        if asked.queued {
            if !self.is_up(asked.process) {
                return;
            }
            asked.link = self.processes[asked.process].link;
        } else if state.link != asked.link || !state.up {
            // It had left, or is lost, or waits in the client for the next connection.
            match self.below(4) {
                _ if !writes => return,
                0 => return,
                1 if self.processes[asked.process].alive => {
                    asked.queued = true;
                    let later = self.between(S, 50 * S);
                    return self.after(later, Ev::AskLive(Box::new(asked)));
                }
                _ => {}
            }
        }
        if writes && (self.live.refuses || self.processes[asked.process].cut == Cut::Writes) {
            return;
        }
        self.age_keys();
        let (process, link) = (asked.process, asked.link);
        match asked.want {
            Want::Record {
                number,
                record,
                ask,
            } => {
                let answer = self.on_ask_record(record, ask);
                let told = Told::Record { number, answer };
                self.answer_live(process, link, writes, told);
            }
            Want::Members { asked } => {
                let members = self.live.members.values();
                let members = members.map(|(revision, _, member)| (member.clone(), *revision));
                let members = members.collect();
                let told = Told::Share(Input::Members { asked, members });
                self.answer_live(process, link, false, told);
            }
            Want::Write {
                op,
                partition,
                claim,
                revision,
            } => {
                if asked.queued {
                    self.count("late claim");
                }
                let written = self.compare_and_set(process, partition, &claim, revision);
                let told = Told::Wrote {
                    op,
                    partition,
                    claim,
                    written,
                };
                self.answer_live(process, link, true, told);
            }
            Want::Read { op, partition } => {
                let found = self.live.claims[partition].as_ref();
                let found = found.map(|record| (record.revision, Some(record.claim.clone())));
                let told = Told::Read {
                    op,
                    partition,
                    found: Ok(found),
                };
                self.answer_live(process, link, false, told);
            }
            Want::Watch { watch } => self.watch_begins(process, link, watch),
        }
    }

    fn answer_live(&mut self, process: usize, link: u64, of_write: bool, told: Told) {
        if self.processes[process].cut == Cut::Answers {
            return;
        }
        if of_write && self.mishap(self.scenario.ack_lost / 2.0, "answer of LIVE lost") {
            return;
        }
        let link = Some(link);
        self.soon(Ev::Told {
            process,
            link,
            told,
        });
    }

    fn on_ask_record(&mut self, record: records::Member, ask: Ask) -> Answer {
        let there = self.live.members.get(&record.id);
        match ask {
            Ask::Last => Answer::Last(there.map(|(revision, ..)| *revision)),
            Ask::Value => Answer::Value(there.map(|(revision, _, found)| Found {
                revision: *revision,
                ours: found.incarnation == record.incarnation,
            })),
            Ask::Write { over } => {
                if there.map_or(0, |(revision, ..)| *revision) != over {
                    self.count("renewal conflict");
                    return Answer::Written(None);
                }
                self.store_member(record);
                Answer::Written(Some(self.live.revision))
            }
        }
    }

    /// What a process that ends says last, whatever stands there of its own: its thread goes on until that is written.
    pub(crate) fn last_word(&mut self, process: usize, record: records::Member) {
        let there = self.live.members.get(&record.id);
        let over = there.map_or(0, |(revision, ..)| *revision);
        let number = 0;
        let ask = Ask::Write { over };
        let want = Want::Record {
            number,
            record,
            ask,
        };
        self.ask_live(process, want);
    }

    fn store_member(&mut self, record: records::Member) {
        self.live.revision += 1;
        let (revision, now) = (self.live.revision, self.now);
        let (dead, trouble) = (self.scenario.timing.member_dead, self.live.trouble);
        let standing = self.live.standing.entry(record.id.clone()).or_default();
        if standing.incarnation == record.incarnation {
            let still = now.saturating_sub(standing.renewed.max(trouble));
            if still >= dead || standing.stalled && !record.stalled {
                standing.stood_still = Some(now);
            }
        } else {
            standing.stood_still = None;
            standing.incarnation.clone_from(&record.incarnation);
        }
        (standing.renewed, standing.left) = (now, record.left);
        standing.stalled = record.stalled;
        if record.stalled {
            self.count("said to be stalled");
        }
        let id = record.id.clone();
        self.live.members.insert(id, (revision, now, record));
    }

    fn compare_and_set(
        &mut self,
        process: usize,
        partition: usize,
        claim: &records::Claim,
        revision: u64,
    ) -> Written {
        let there = self.live.claims[partition].as_ref();
        if there.map_or(0, |record| record.revision) != revision {
            self.count("claim conflict");
            return Written::Conflict;
        }
        self.audit_write(process, partition, claim);
        self.live.revision += 1;
        let revision = self.live.revision;
        self.say(|| {
            let (epoch, released) = (claim.owner_epoch, claim.released);
            format!(
                "claim of {partition}: revision {revision} by process {process}, epoch {epoch}, released {released}"
            )
        });
        self.live.claims[partition] = Some(Record {
            revision,
            claim: claim.clone(),
            at: self.now,
        });
        for watcher in self.watchers() {
            self.tell_claim(watcher, partition);
        }
        Written::Stored(revision)
    }

    /// What stands there now comes to a watcher, in order.
    fn tell_claim(&mut self, process: usize, partition: usize) {
        let id = self.partition_of(partition);
        let Some(record) = &self.live.claims[partition] else {
            return;
        };
        let input = Input::Claim {
            partition: id,
            revision: record.revision,
            claim: Some(record.claim.clone()),
        };
        self.tell_watch(process, input);
    }

    fn tell_watch(&mut self, process: usize, input: Input) {
        let Some(watch) = self.members[&process].watching else {
            return;
        };
        let mut delay = self.delay();
        if self.chaos && self.chance(self.scenario.slow) {
            self.count("watch lags");
            delay += self.between(MS, self.scenario.lag);
        }
        let at = (self.now + delay).max(self.members[&process].watch_at);
        self.members.get_mut(&process).unwrap().watch_at = at;
        let link = Some(self.processes[process].link);
        let told = Told::Watch { watch, input };
        self.after(
            at - self.now,
            Ev::Told {
                process,
                link,
                told,
            },
        );
    }

    /// A watch begins with all that is there.
    fn watch_begins(&mut self, process: usize, link: u64, watch: u64) {
        let member = self.members.get_mut(&process).unwrap();
        if member.watch != watch || self.processes[process].link != link {
            return;
        }
        member.watching = Some(watch);
        self.tell_watch(process, Input::ClaimsRestarted);
        for partition in 0..PARTITIONS {
            self.tell_claim(process, partition);
        }
        self.tell_watch(process, Input::ClaimsLoaded);
    }

    /// Keys that nobody rewrote go.
    pub(crate) fn age_keys(&mut self) {
        let (now, age) = (self.now, self.scenario.timing.live_age);
        let old = |at: Duration| now.saturating_sub(at) > age;
        self.live.members.retain(|_, (_, at, _)| !old(*at));
        for partition in 0..PARTITIONS {
            if self.live.claims[partition]
                .as_ref()
                .is_some_and(|record| old(record.at))
            {
                self.count("claim aged out");
                self.drop_claim(partition);
            }
        }
    }

    /// A claim goes as if it had aged out; watches may hear of it, or not.
    pub(crate) fn drop_claim(&mut self, partition: usize) {
        if self.live.claims[partition].take().is_none() {
            return;
        }
        self.say(|| format!("claim of {partition} is gone"));
        if !self.scenario.markers {
            return;
        }
        self.live.revision += 1;
        let (id, revision) = (self.partition_of(partition), self.live.revision);
        for watcher in self.watchers() {
            let input = Input::Claim {
                partition: id,
                revision,
                claim: None,
            };
            self.tell_watch(watcher, input);
        }
    }

    /// The bucket is lost, and another one made.
    pub(crate) fn lose_live(&mut self) {
        self.count("LIVE lost");
        self.say(|| "LIVE is lost".to_owned());
        self.live.history += 1;
        // Anywhere, so that none is the same by chance: a revision of before is higher or lower.
        self.live.revision = self.rng.random_range(0..1_000_000);
        self.live.members.clear();
        self.live.claims = std::array::from_fn(|_| None);
        self.live.trouble = self.now;
        for process in self.watchers() {
            self.members.get_mut(&process).unwrap().watching = None;
            let later = self.between(MS, 2 * S);
            let told = Told::WatchAnew;
            self.after(
                later,
                Ev::Told {
                    process,
                    link: None,
                    told,
                },
            );
        }
    }
}
