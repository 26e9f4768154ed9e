//! How the partitions are shared, for who only looks on: people, and gauges.
//!
//! [`Boards`] is fed by reads of the whole bucket and judges by the same rules as a member: who lives by [`Observer`], who
//! should own what by the same assignment. A read that was answered counts as an acknowledged renewal. It owns nothing, and
//! nothing follows from what it says.

use std::{collections::BTreeMap, time::Duration};

use mailbell_proto::bus::v1::{Claim, Member, MemberLoad};

use super::{liveness::Observer, planner::Waiting, shares::Shares};
use crate::{
    ids::{PARTITIONS, Partition},
    timing::Timing,
};

#[cfg(test)]
mod tests;

/// How a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It renews its record and takes partitions.
    Live,
    /// It lives, gives its partitions away, and takes none.
    Draining,
    /// It has missed renewals.
    Quiet {
        /// It counts as dead unless it is heard of within this time.
        dead_in: Duration,
    },
    /// It says itself that the part of it that watches does not answer.
    Stalled,
    /// Its record stood still for too long.
    Dead,
    /// It has ended in order.
    Left,
    /// It has no record, but rewrites its claims: one of a release before membership, or one that has just started.
    Unannounced,
}

impl MemberState {
    /// The words of all states, for labels.
    pub const WORDS: [&str; 7] = [
        "live",
        "draining",
        "quiet",
        "stalled",
        "dead",
        "left",
        "unannounced",
    ];

    /// One word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Draining => "draining",
            Self::Quiet { .. } => "quiet",
            Self::Stalled => "stalled",
            Self::Dead => "dead",
            Self::Left => "left",
            Self::Unannounced => "unannounced",
        }
    }

    /// Whether it may own partitions.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        !matches!(self, Self::Stalled | Self::Dead | Self::Left)
    }
}

/// One member.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// As it describes itself; of one without a record the names alone.
    pub record: Member,
    /// How it is.
    pub state: MemberState,
    /// Partitions that it has a claim to.
    pub owned: usize,
    /// Partitions that it should own.
    pub wanted: usize,
    /// Accounts of those that it owns, exactly.
    pub accounts: u64,
    /// For how long its record was seen to stand still.
    pub still: Duration,
}

impl Row {
    /// What it counts of itself.
    #[must_use]
    pub fn load(&self) -> MemberLoad {
        self.record.load.unwrap_or_default()
    }
}

/// How all partitions are. Each is in one of three states.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Partitions that a living member owns and keeps.
    pub owned: usize,
    /// Partitions on the way from one living member to another. Nearly all of this time they are watched.
    pub handing_over: usize,
    /// Partitions that nobody owns, or the dead.
    pub unowned: usize,
    /// All accounts.
    pub accounts: u64,
    /// Accounts of partitions in a hand-over.
    pub accounts_handing_over: u64,
    /// Accounts of partitions that nobody owns: nobody watches them.
    pub accounts_unowned: u64,
    /// For how long the first of these has been without an owner, as far as was seen.
    pub unowned_for: Option<Duration>,
}

/// Partitions that are not where they should be, by why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Why. Never [`Waiting::TakeBack`], which only the owner knows: from outside it is a hand-over.
    pub why: Waiting,
    /// How many.
    pub partitions: usize,
    /// How many accounts these have.
    pub accounts: u64,
}

/// How everything stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Board {
    /// In the order of their names.
    pub members: Vec<Row>,
    /// All partitions.
    pub totals: Totals,
    /// In the order of the reasons.
    pub waiting: Vec<Wait>,
    /// Whether reads have succeeded for long enough, without a pause, to tell who has died. If not, one who has may be `Live` here.
    pub steady: bool,
}

#[derive(Debug)]
struct Seen {
    revision: u64,
    claim: Claim,
}

/// A partition that nobody owns.
#[derive(Debug)]
struct Unowned {
    since: Duration,
    /// Of its claim and of the record of the member in it; 0: there was none.
    revisions: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ownership {
    Owned,
    HandingOver,
    Unowned,
}

/// What was read so far. Times are of the reader's own steady clock.
#[derive(Debug)]
pub struct Boards {
    dead: Duration,
    renew: Duration,
    refresh: Duration,
    observer: Observer,
    shares: Shares,
    members: BTreeMap<String, u64>,
    claims: Vec<Option<Seen>>,
    /// When claims were last read.
    claims_at: Option<Duration>,
    /// When a claim of a holder, by id and incarnation, was last seen to change. For those without a record.
    holders: BTreeMap<(String, String), Duration>,
    unowned: BTreeMap<Partition, Unowned>,
}

impl Boards {
    /// One that has read nothing.
    #[must_use]
    pub fn new(timing: &Timing) -> Self {
        Self {
            dead: timing.member_dead,
            renew: timing.member_renew,
            refresh: timing.claim_refresh,
            observer: Observer::new(timing),
            shares: Shares::new(),
            members: BTreeMap::new(),
            claims: Vec::new(),
            claims_at: None,
            holders: BTreeMap::new(),
            unowned: BTreeMap::new(),
        }
    }

    /// All records of members with their revisions, by a read that was asked for at `asked`. To be read as often as members
    /// renew theirs: after a longer pause nobody is judged.
    pub fn read_members(&mut self, asked: Duration, now: Duration, members: Vec<(Member, u64)>) {
        self.members = members
            .iter()
            .map(|(member, revision)| (member.id.clone(), *revision))
            .collect();
        self.observer.renewed(now);
        self.observer.read(asked, now, members);
        let holders = self.holders.keys();
        self.observer.note_holders(
            now,
            holders.map(|(id, incarnation)| (&**id, &**incarnation)),
        );
        self.shares.update(&self.observer, |member| member.draining);
        self.track(now);
    }

    /// All claims with their revisions.
    pub fn read_claims(&mut self, now: Duration, claims: Vec<(Partition, Claim, u64)>) {
        let mut before = std::mem::take(&mut self.claims);
        let mut holders = BTreeMap::new();
        self.claims.resize_with(usize::from(PARTITIONS), || None);
        for (partition, claim, revision) in claims {
            let index = usize::from(partition.number());
            let known = before.get_mut(index).and_then(Option::take);
            let holder = (claim.member.clone(), claim.incarnation.clone());
            let last = self.holders.get(&holder).copied();
            let same = known.is_some_and(|known| known.revision == revision);
            let changed = if same { last.unwrap_or(now) } else { now };
            let changed = holders.get(&holder).map_or(changed, |at| changed.max(*at));
            if !claim.released {
                holders.insert(holder, changed);
            }
            if let Some(slot) = self.claims.get_mut(index) {
                *slot = Some(Seen { revision, claim });
            }
        }
        self.holders = holders;
        self.claims_at = Some(now);
        self.track(now);
    }

    /// A read was not answered: nobody is judged by what was seen before.
    pub fn read_failed(&mut self) {
        self.observer.renewal_failed();
        self.holders.clear();
    }

    /// For how long the partition had been without a living owner when claims were last read: somebody may have taken it since.
    #[must_use]
    pub fn unowned_for(&self, partition: Partition) -> Option<Duration> {
        let unowned = self.unowned.get(&partition)?;
        Some(self.claims_at?.saturating_sub(unowned.since))
    }

    /// As [`Board::steady`].
    #[must_use]
    pub fn is_steady(&self, now: Duration) -> bool {
        self.claims_at.is_some() && self.observer.knows_who_lives(now)
    }

    /// How everything stands. `accounts` are those of each partition, in order.
    #[must_use]
    pub fn board(&self, now: Duration, accounts: &[u32]) -> Board {
        let mut rows: BTreeMap<(&str, &str), Row> = self
            .observer
            .all()
            .map(|(record, still)| {
                let row = Row {
                    state: self.state(record, still),
                    owned: 0,
                    wanted: self.shares.assignment().count(&record.id),
                    accounts: 0,
                    still,
                    record: record.clone(),
                };
                ((record.id.as_str(), record.incarnation.as_str()), row)
            })
            .collect();
        let mut totals = Totals::default();
        let mut waiting: BTreeMap<Waiting, (usize, u64)> = BTreeMap::new();
        for partition in Partition::all().filter(|_| self.claims_at.is_some()) {
            let count = accounts.get(usize::from(partition.number())).copied();
            let count = u64::from(count.unwrap_or_default());
            let (ownership, why) = self.judge(partition, now);
            totals.accounts += count;
            match ownership {
                Ownership::Owned => totals.owned += 1,
                Ownership::HandingOver => {
                    totals.handing_over += 1;
                    totals.accounts_handing_over += count;
                }
                Ownership::Unowned => {
                    totals.unowned += 1;
                    totals.accounts_unowned += count;
                    // A partition without accounts is missed by nobody.
                    if count > 0 {
                        totals.unowned_for = totals
                            .unowned_for
                            .max(Some(self.unowned_for(partition).unwrap_or_default()));
                    }
                }
            }
            if let Some(why) = why {
                let wait = waiting.entry(why).or_default();
                *wait = (wait.0 + 1, wait.1 + count);
            }
            let held = self.claim(partition).filter(|claim| !claim.released);
            let Some(claim) = held else { continue };
            let holder = (claim.member.as_str(), claim.incarnation.as_str());
            if ownership != Ownership::Unowned && self.observer.member(holder.0).is_none() {
                rows.entry(holder).or_insert_with(|| unannounced(claim));
            }
            if let Some(row) = rows.get_mut(&holder) {
                row.owned += 1;
                row.accounts += count;
            }
        }
        Board {
            members: rows.into_values().collect(),
            totals,
            waiting: waiting
                .into_iter()
                .map(|(why, (partitions, accounts))| Wait {
                    why,
                    partitions,
                    accounts,
                })
                .collect(),
            steady: self.is_steady(now),
        }
    }

    fn state(&self, record: &Member, still: Duration) -> MemberState {
        if record.left {
            MemberState::Left
        } else if record.stalled {
            MemberState::Stalled
        } else if still >= self.dead {
            MemberState::Dead
        } else if still > self.renew * 2 {
            let dead_in = self.dead.saturating_sub(still);
            MemberState::Quiet { dead_in }
        } else if record.draining {
            MemberState::Draining
        } else {
            MemberState::Live
        }
    }

    fn seen(&self, partition: Partition) -> Option<&Seen> {
        self.claims.get(usize::from(partition.number()))?.as_ref()
    }

    fn claim(&self, partition: Partition) -> Option<&Claim> {
        Some(&self.seen(partition)?.claim)
    }

    /// Whether nobody owns it, or the dead.
    fn is_unowned(&self, partition: Partition, now: Duration) -> bool {
        let Some(claim) = self.claim(partition).filter(|claim| !claim.released) else {
            return true;
        };
        if self.observer.member(&claim.member).is_some() {
            return self
                .observer
                .is_dead(&claim.member, &claim.incarnation, now);
        }
        // Without a record it may be one of a release before membership: its claims say whether it lives.
        let holder = (claim.member.clone(), claim.incarnation.clone());
        let changed = self.holders.get(&holder);
        changed.is_some_and(|changed| now.saturating_sub(*changed) >= self.refresh * 2)
    }

    /// Keeps the books of what has no owner.
    fn track(&mut self, now: Duration) {
        if self.claims_at.is_none() || !self.observer.is_steady(now) {
            return;
        }
        let still: BTreeMap<String, Duration> = self
            .observer
            .all()
            .map(|(member, still)| (member.id.clone(), still))
            .collect();
        for partition in Partition::all() {
            let seen = self.seen(partition);
            let held = seen.filter(|seen| !seen.claim.released);
            let member = held.map_or("", |seen| seen.claim.member.as_str());
            let revisions = (
                seen.map_or(0, |seen| seen.revision),
                self.members.get(member).copied().unwrap_or_default(),
            );
            if self.is_unowned(partition, now) {
                // The dead own nothing since they were last heard of.
                let gone = still.get(member).filter(|still| **still >= self.dead);
                let since = now.saturating_sub(gone.copied().unwrap_or_default());
                let unowned = self
                    .unowned
                    .entry(partition)
                    .or_insert(Unowned { since, revisions });
                unowned.revisions = revisions;
            } else if let Some(unowned) = self.unowned.get(&partition) {
                // After reads that failed the count begins anew, which brings nobody back to life.
                let (claim, record) = unowned.revisions;
                let as_before = claim == revisions.0 && [record, 0].contains(&revisions.1);
                if !as_before {
                    self.unowned.remove(&partition);
                }
            }
        }
    }

    fn judge(&self, partition: Partition, now: Duration) -> (Ownership, Option<Waiting>) {
        let wanted = self.shares.assignment().owner(partition);
        let claim = self.claim(partition);
        let held = claim.filter(|claim| !claim.released);
        let nobodys = match wanted {
            Some(_) => Waiting::Taking,
            None => Waiting::NoRoom,
        };
        let gone = self.unowned_for(partition);
        let Some(held) = held else {
            // One that takes what was let go for it does so at once; if not, it is a hand-over no longer.
            let successor = claim.map_or("", |claim| claim.successor.as_str());
            let taken = self.observer.live().any(|member| member.id == successor);
            let soon = gone.is_none_or(|gone| gone < self.dead);
            return match taken && soon {
                true => (Ownership::HandingOver, Some(Waiting::Taking)),
                false => (Ownership::Unowned, Some(nobodys)),
            };
        };
        if gone.is_some() || self.is_unowned(partition, now) {
            return (Ownership::Unowned, Some(nobodys));
        }
        let known = self
            .observer
            .all()
            .find(|(member, _)| member.id == held.member && member.incarnation == held.incarnation);
        match (known, wanted) {
            (None, _) => (Ownership::Owned, Some(Waiting::Detection)),
            (Some((member, still)), Some(to)) if to == member.id => {
                let quiet = matches!(self.state(member, still), MemberState::Quiet { .. });
                (Ownership::Owned, quiet.then_some(Waiting::Detection))
            }
            (Some(_), Some(_)) => (Ownership::HandingOver, Some(Waiting::HandOver)),
            (Some(_), None) => (Ownership::Owned, Some(Waiting::NoRoom)),
        }
    }
}

fn unannounced(claim: &Claim) -> Row {
    Row {
        record: Member {
            id: claim.member.clone(),
            incarnation: claim.incarnation.clone(),
            ..Member::default()
        },
        state: MemberState::Unannounced,
        owned: 0,
        wanted: 0,
        accounts: 0,
        still: Duration::ZERO,
    }
}
