//! How watchers share the partitions among them: membership, claims, and who takes what.
//!
//! [`Sharding`] is one member's part in it, a state machine without await, clock or socket: what is seen and acknowledged goes
//! in, what is to be done comes out. Ownership is the claim and only the claim; everything else is a wish.

pub mod assignment;
pub mod board;
pub mod claims;
mod giving;
pub mod liveness;
pub mod planner;
pub mod renewal;
mod shares;

use std::{collections::BTreeMap, time::Duration};

use mailbell_proto::bus::v1::{Claim, Member};

pub use self::{
    assignment::{Assignment, Candidate, assign},
    board::Boards,
    claims::{Before, Claims, Effect, Lost, Standing, Written},
    liveness::Observer,
    planner::{Pace, Plan, Waiting, plan},
};
use self::{
    giving::{Giving, Receivers},
    shares::Shares,
};
use crate::{
    ids::{LogId, OwnerEpoch, Partition, Position},
    plant,
    timing::Timing,
};

/// The weight of a member that says nothing of it.
pub const WEIGHT: u32 = 100;

/// Who one is and how partitions move.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Of this process; unique among those that live.
    pub member: String,
    /// Random a start.
    pub incarnation: String,
    /// Periods.
    pub timing: Timing,
    /// How fast partitions are given away.
    pub pace: Pace,
    /// Which partitions are shared: all of them, but in a simulation.
    pub partitions: Vec<Partition>,
}

impl Config {
    /// Of a member that shares all partitions in the usual way.
    #[must_use]
    pub fn new(member: &str, incarnation: &str, timing: Timing) -> Self {
        Self {
            member: member.to_owned(),
            incarnation: incarnation.to_owned(),
            timing,
            pace: Pace::default(),
            partitions: Partition::all().collect(),
        }
    }
}

/// What one's part in it is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The own record was written.
    Renewed,
    /// It was not.
    RenewalFailed,
    /// All records of members that the leader had, by a read that was asked for at `asked` (of the own clock).
    Members {
        /// When.
        asked: Duration,
        /// With their revisions.
        members: Vec<(Member, u64)>,
    },
    /// The bucket of claims was lost or is told anew: what was seen is void.
    ClaimsRestarted,
    /// A claim was seen; `None`: it was removed.
    Claim {
        /// Which.
        partition: Partition,
        /// Its revision.
        revision: u64,
        /// What it says.
        claim: Option<Claim>,
    },
    /// All claims that the leader had have been told: who has none has none.
    ClaimsLoaded,
    /// The connection to NATS is back.
    Linked,
    /// A write that was asked for ended.
    Wrote {
        /// Which.
        partition: Partition,
        /// What was to be written.
        claim: Claim,
        /// How it ended.
        written: Written,
    },
    /// A read that was asked for ended.
    Read {
        /// Which.
        partition: Partition,
        /// What stands there with its revision; `Err`: no answer.
        found: Result<Option<(u64, Option<Claim>)>, ()>,
    },
    /// The sessions of a partition have begun.
    Serving {
        /// Which.
        partition: Partition,
        /// Of which ownership.
        epoch: OwnerEpoch,
        /// How many accounts it has.
        accounts: u32,
    },
    /// Every checkpoint of a partition covers the log up to there.
    Flushed {
        /// Which.
        partition: Partition,
        /// In which history.
        log_id: LogId,
        /// Up to there.
        position: Position,
        /// How many accounts it has.
        accounts: u32,
    },
    /// The sessions of a partition that was to be finished have ended, and what they know is stored.
    Finished {
        /// Which.
        partition: Partition,
        /// Of which ownership.
        epoch: OwnerEpoch,
    },
    /// Gives everything away (or no longer), and takes nothing.
    Drain(bool),
    /// The process is to end within this time: gives everything away, also to nobody.
    Leave(Duration),
    /// Time has passed: to be told every second or so.
    Tick,
}

/// What is done with a partition of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// What is known is being loaded.
    Loading,
    /// Its sessions run.
    Serving,
    /// They end in order, for this member.
    Finishing(String),
    /// They have ended; the claim is being released.
    Releasing,
}

#[derive(Debug, Clone)]
struct Owned {
    /// When it was loaded; what its sessions say may name any number since.
    loaded: OwnerEpoch,
    epoch: OwnerEpoch,
    stage: Stage,
    since: Duration,
}

impl Owned {
    /// Whether this number was given to it, now or before a claim that aged out was taken again.
    fn is_of(&self, epoch: OwnerEpoch) -> bool {
        (self.loaded..=self.epoch).contains(&epoch)
    }
}

/// One member's part in sharing the partitions.
#[derive(Debug)]
pub struct Sharding {
    config: Config,
    observer: Observer,
    claims: Claims,
    claims_loaded: bool,
    owned: BTreeMap<Partition, Owned>,
    taken_from: BTreeMap<Partition, (String, Duration)>,
    shares: Shares,
    draining: bool,
    /// Is to end, and gives everything away, also to nobody.
    leaving: bool,
    giving: Giving,
    last_plan: Plan,
}

impl Sharding {
    /// A member that has seen nothing and owns nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            observer: Observer::new(&config.timing),
            claims: Claims::new(&config.member, &config.incarnation, &config.timing),
            claims_loaded: false,
            owned: BTreeMap::new(),
            taken_from: BTreeMap::new(),
            shares: Shares::new(),
            draining: false,
            leaving: false,
            giving: Giving::new(config.pace),
            last_plan: Plan::default(),
            config,
        }
    }

    /// What follows from an input at this time of the own steady clock, and of the calendar (`unix_s`).
    pub fn handle(&mut self, now: Duration, unix_s: u64, input: Input) -> Vec<Effect> {
        let plans = Self::may_change_plan(&input);
        let mut effects = match input {
            Input::Renewed => {
                self.observer.renewed(now);
                Vec::new()
            }
            Input::RenewalFailed => {
                self.observer.renewal_failed();
                Vec::new()
            }
            Input::Members { asked, members } => {
                self.observer.read(asked, now, members);
                self.observer.note_holders(now, self.claims.holders());
                self.assign();
                Vec::new()
            }
            Input::ClaimsRestarted => {
                self.claims_loaded = false;
                self.claims.forget();
                Vec::new()
            }
            Input::Claim {
                partition,
                revision,
                claim,
            } => self.claims.see(now, partition, revision, claim),
            Input::ClaimsLoaded => {
                self.claims_loaded = true;
                self.claims.loaded(now);
                self.claims.due(now, unix_s, &self.config.partitions)
            }
            Input::Linked => {
                self.claims.all_due(now);
                self.claims.due(now, unix_s, &self.config.partitions)
            }
            Input::Wrote {
                partition,
                claim,
                written,
            } => self.claims.wrote(now, unix_s, partition, claim, written),
            Input::Read { partition, found } => self.claims.read(now, unix_s, partition, found),
            Input::Serving {
                partition,
                epoch,
                accounts,
            } => {
                self.claims.count_accounts(partition, accounts);
                self.set_stage(now, partition, epoch, Stage::Serving);
                Vec::new()
            }
            Input::Flushed {
                partition,
                log_id,
                position,
                accounts,
            } => {
                self.claims.flushed(partition, log_id, position, accounts);
                Vec::new()
            }
            Input::Finished { partition, epoch } => self.finished(now, unix_s, partition, epoch),
            Input::Drain(draining) => {
                // One that ends is not asked back.
                self.draining = draining || self.leaving;
                self.giving.drain(self.draining);
                self.assign();
                Vec::new()
            }
            Input::Leave(within) => {
                (self.draining, self.leaving) = (true, true);
                self.giving.leave(within, self.work());
                self.assign();
                Vec::new()
            }
            Input::Tick => self.claims.due(now, unix_s, &self.config.partitions),
        };
        for effect in &effects {
            self.note(now, effect);
        }
        if plans {
            let planned = self.plan(now, unix_s);
            for effect in &planned {
                self.note(now, effect);
            }
            effects.extend(planned);
        }
        effects
    }

    /// Acknowledgements and renewals come by the thousand, and change no plan.
    fn may_change_plan(input: &Input) -> bool {
        match input {
            Input::Members { .. }
            | Input::ClaimsLoaded
            | Input::Finished { .. }
            | Input::Drain(_)
            | Input::Leave(_)
            | Input::Tick => true,
            // Somebody let it go, perhaps for us: the less it waits the better.
            Input::Claim { claim, .. } => claim.as_ref().is_none_or(|claim| claim.released),
            Input::Renewed
            | Input::RenewalFailed
            | Input::ClaimsRestarted
            | Input::Linked
            | Input::Wrote { .. }
            | Input::Read { .. }
            | Input::Serving { .. }
            | Input::Flushed { .. } => false,
        }
    }

    fn set_stage(&mut self, now: Duration, partition: Partition, epoch: OwnerEpoch, stage: Stage) {
        if let Some(owned) = self.owned.get_mut(&partition)
            && owned.is_of(epoch)
        {
            (owned.stage, owned.since) = (stage, now);
        }
    }

    fn finished(
        &mut self,
        now: Duration,
        unix_s: u64,
        partition: Partition,
        epoch: OwnerEpoch,
    ) -> Vec<Effect> {
        let Some(owned) = self.owned.get_mut(&partition) else {
            return Vec::new();
        };
        let Stage::Finishing(successor) = &owned.stage else {
            return Vec::new();
        };
        if !owned.is_of(epoch) {
            return Vec::new();
        }
        let successor = successor.clone();
        (owned.stage, owned.since) = (Stage::Releasing, now);
        self.claims.release(now, unix_s, partition, &successor)
    }

    /// Keeps the books of what is ours.
    fn note(&mut self, now: Duration, effect: &Effect) {
        match effect {
            Effect::Load {
                partition, epoch, ..
            } => {
                let owned = Owned {
                    loaded: *epoch,
                    epoch: *epoch,
                    stage: Stage::Loading,
                    since: now,
                };
                self.owned.insert(*partition, owned);
            }
            Effect::Renewed { partition, epoch } => {
                if let Some(owned) = self.owned.get_mut(partition) {
                    owned.epoch = *epoch;
                }
            }
            Effect::Stop { partition, .. } | Effect::Released { partition } => {
                self.owned.remove(partition);
                self.taken_from.remove(partition);
            }
            Effect::Write { .. } | Effect::Read { .. } | Effect::Finish { .. } => {}
        }
    }

    /// Computes who should own what.
    fn assign(&mut self) {
        let (own, draining) = (&self.config.member, self.draining);
        self.shares.update(&self.observer, |member| {
            // One's own record may be late.
            if member.id == *own {
                draining
            } else {
                member.draining
            }
        });
    }

    fn plan(&mut self, now: Duration, unix_s: u64) -> Vec<Effect> {
        if !self.claims_loaded || !self.observer.is_steady(now) && !self.leaving {
            return Vec::new();
        }
        let receivers = self.receivers();
        self.giving.fill(now, receivers);
        let pace = self.giving.pace(receivers);
        let giving = self
            .owned
            .values()
            .filter(|owned| matches!(owned.stage, Stage::Finishing(_) | Stage::Releasing))
            .count();
        let alone = self.shares.is_empty();
        let at_once = match self.leaving {
            // Nobody waits for any of it.
            true if alone => usize::MAX,
            true => pace.giving * 4,
            false => pace.giving,
        };
        let owned = &self.owned;
        let situation = planner::Situation {
            now,
            partitions: &self.config.partitions,
            claims: &self.claims,
            observer: &self.observer,
            assignment: self.shares.assignment(),
            timing: &self.config.timing,
            pace: &pace,
        };
        let plan = plan(
            situation,
            planner::Own {
                id: &self.config.member,
                draining: self.draining,
                leaving: self.leaving,
                serving: &|partition| {
                    owned
                        .get(&partition)
                        .is_some_and(|owned| owned.stage == Stage::Serving)
                },
                taken_from: &self.taken_from,
                taken_at: &|partition| owned.get(&partition).map_or(now, |owned| owned.since),
                may_give: at_once.saturating_sub(giving),
            },
        );
        let mut effects = Vec::new();
        let steady = self.observer.is_steady(now);
        for partition in plan.take.iter().copied().filter(|_| steady) {
            let dead = self
                .claims
                .claim(partition)
                .filter(|claim| !claim.released && claim.member != self.config.member)
                .map(|claim| claim.member.clone());
            if let Some(member) = dead {
                let until = now + self.config.timing.take_back;
                self.taken_from.insert(partition, (member, until));
            }
            effects.extend(self.claims.take(unix_s, partition));
        }
        for partition in &plan.clear {
            effects.extend(self.claims.clear(*partition));
        }
        let mut full = false;
        for (partition, to) in &plan.give {
            let accounts = self.claims.accounts(*partition);
            // None overtakes another that has to wait, but those that need nothing.
            if !alone && (full && accounts > 0 || !self.giving.give(accounts)) {
                full = true;
                continue;
            }
            let Some(owned) = self.owned.get_mut(partition) else {
                continue;
            };
            let epoch = owned.epoch;
            if plant::is(plant::Bug::ReleaseBeforeFlush) {
                (owned.stage, owned.since) = (Stage::Releasing, now);
                effects.push(Effect::Finish {
                    partition: *partition,
                    epoch,
                });
                effects.extend(self.claims.release(now, unix_s, *partition, to));
                continue;
            }
            (owned.stage, owned.since) = (Stage::Finishing(to.clone()), now);
            effects.push(Effect::Finish {
                partition: *partition,
                epoch,
            });
        }
        self.last_plan = plan;
        effects
    }

    /// Who gets what from whom, if anything of ours is another's.
    fn receivers(&self) -> Receivers {
        let assignment = self.shares.assignment();
        let own = self.config.member.as_str();
        let mut owned = self.owned.keys();
        if owned.all(|partition| assignment.owner(*partition).is_none_or(|to| to == own)) {
            return Receivers::default();
        }
        Receivers::new(
            &self.config.partitions,
            &self.claims,
            &self.observer,
            assignment,
        )
    }

    /// Accounts and partitions that are ours.
    fn work(&self) -> u32 {
        let owned = self.owned.keys();
        let accounts = owned.map(|partition| self.claims.accounts(*partition).saturating_add(1));
        accounts.fold(0, u32::saturating_add)
    }

    /// What of a mail host's budget is this member's, between 0 and 1: of the partitions that all members with its egress address should
    /// own, those that it should, or does if it should own nothing. What it should own, it has to log in at soon; what is to
    /// be others', runs already.
    #[must_use]
    pub fn part_of_budget(&self, egress: &str) -> f64 {
        let assignment = self.shares.assignment();
        let live = self.observer.live();
        let mut together: usize = live
            .filter(|member| member.id != self.config.member && member.egress == egress)
            .map(|member| assignment.count(&member.id))
            .sum();
        let wanted = assignment.count(&self.config.member);
        let ours = match wanted {
            0 => self.claims.held(),
            _ => wanted,
        };
        together = (together + wanted).max(ours).max(1);
        #[expect(clippy::cast_precision_loss, reason = "there are 1024 partitions")]
        let part = ours as f64 / together as f64;
        part
    }

    /// How many accounts a partition of ours has now; written with the next renewal of its claim.
    pub fn count_accounts(&mut self, partition: Partition, accounts: u32) {
        self.claims.count_accounts(partition, accounts);
    }

    /// How many of the accounts here could log in a second if all members took part, each with its part of every mail host's budget:
    /// no more are given away. Until it is told, the members' own pace alone counts.
    pub fn set_logins(&mut self, a_second: f64) {
        self.giving.set_logins(a_second);
    }

    /// What stands in the bucket and what is ours.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What is known of the members.
    #[must_use]
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// Who should own what.
    #[must_use]
    pub fn assignment(&self) -> &Assignment {
        self.shares.assignment()
    }

    /// The last plan.
    #[must_use]
    pub fn last_plan(&self) -> &Plan {
        &self.last_plan
    }

    /// Whether this member has its place among the others, and has taken all that it may take now.
    #[must_use]
    pub fn has_settled(&self, now: Duration) -> bool {
        let (_, loading, _) = self.stages();
        self.claims_loaded
            && self.observer.is_steady(now)
            && loading == 0
            && self.last_plan.take.is_empty()
            && !self.claims.is_taking(&self.config.partitions)
    }

    /// Whether it gives everything away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Partitions of ours that are (serving, loading, handed over).
    #[must_use]
    pub fn stages(&self) -> (usize, usize, usize) {
        let count =
            |is: fn(&Stage) -> bool| self.owned.values().filter(|owned| is(&owned.stage)).count();
        (
            count(|stage| *stage == Stage::Serving),
            count(|stage| *stage == Stage::Loading),
            count(|stage| matches!(stage, Stage::Finishing(_) | Stage::Releasing)),
        )
    }
}

#[cfg(test)]
mod tests;
