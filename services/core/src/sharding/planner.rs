//! What one member does next about the partitions: take, give away, wait.
//!
//! Every member plans for itself, by what it sees. Plans of members that see different things do no harm, since only the claim
//! counts, and it changes by compare-and-set; once they see the same, they want the same. A member takes only what it wants
//! itself, and only from nobody or from the dead. It gives only to a live member that wants it.

use std::{collections::BTreeMap, time::Duration};

use mailbell_proto::bus::v1::Member;

use super::{
    assignment::Assignment,
    claims::{Claims, Standing},
    liveness::Observer,
};
use crate::{ids::Partition, timing::Timing};

/// How fast partitions change hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Partitions that are given away at once (32).
    pub giving: usize,
    /// Accounts that are given away a second; each partition counts as one more (1000). Fewer where mail hosts let in fewer again.
    pub accounts_per_second: u32,
    /// A member whose backlog of accounts is longer is given nothing (500).
    pub backlog: u32,
    /// Nor is one with more than a tenth of its accounts in its backlog, unless it has fewer than these there: what mail hosts let in
    /// within seconds (any number, until that is known).
    pub soon: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            giving: 32,
            accounts_per_second: 1000,
            backlog: 500,
            soon: u32::MAX,
        }
    }
}

/// Why a partition that somebody should own is not owned by whom it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// Its owner lives and has not given it away yet.
    HandOver,
    /// Its owner has not been heard of, and not for long enough.
    Detection,
    /// No member has room for it.
    NoRoom,
    /// The member that wants it has not taken it yet.
    Taking,
    /// It goes back to a member that was thought dead, later.
    TakeBack,
}

impl Waiting {
    /// Those that can be told from outside.
    pub const SEEN: [Self; 4] = [Self::HandOver, Self::Detection, Self::NoRoom, Self::Taking];

    /// One word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::HandOver | Self::TakeBack => "hand-over",
            Self::Detection => "detection",
            Self::NoRoom => "no-room",
            Self::Taking => "taking",
        }
    }
}

/// A plan.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// To be taken now.
    pub take: Vec<Partition>,
    /// To be given away now, to whom; empty: to nobody.
    pub give: Vec<(Partition, String)>,
    /// Stray claims to be let go.
    pub clear: Vec<Partition>,
    /// How many wait for what.
    pub waiting: BTreeMap<Waiting, usize>,
}

/// How this member stands.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// Its id.
    pub id: &'a str,
    /// It takes nothing.
    pub draining: bool,
    /// It gives everything away, also to nobody.
    pub leaving: bool,
    /// Partitions of which sessions run.
    pub serving: &'a dyn Fn(Partition) -> bool,
    /// From whom each partition was taken, and until when it is not given back to that name ([`Timing::take_back`]).
    pub taken_from: &'a BTreeMap<Partition, (String, Duration)>,
    /// When each partition was taken; it is kept until others have seen it.
    pub taken_at: &'a dyn Fn(Partition) -> Duration,
    /// Partitions that may be given away now.
    pub may_give: usize,
}

impl std::fmt::Debug for Own<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Own")
            .field("id", &self.id)
            .field("draining", &self.draining)
            .field("leaving", &self.leaving)
            .field("may_give", &self.may_give)
            .finish_non_exhaustive()
    }
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Of the own clock.
    pub now: Duration,
    /// Those that are shared.
    pub partitions: &'a [Partition],
    /// What stands in the bucket.
    pub claims: &'a Claims,
    /// Who lives.
    pub observer: &'a Observer,
    /// Who should own what.
    pub assignment: &'a Assignment,
    /// Periods.
    pub timing: &'a Timing,
    /// How fast partitions change hands.
    pub pace: &'a Pace,
}

/// The plan of one member in this situation.
#[must_use]
pub fn plan(situation: Situation<'_>, own: Own<'_>) -> Plan {
    let Situation {
        now,
        partitions,
        claims,
        observer,
        assignment,
        timing,
        pace,
    } = situation;
    let mut plan = Plan::default();
    let wait = |plan: &mut Plan, why| *plan.waiting.entry(why).or_default() += 1;
    let mut room: BTreeMap<&str, bool> = BTreeMap::new();
    for partition in partitions.iter().copied() {
        let wanted = assignment.owner(partition);
        let ours = wanted == Some(own.id) && !own.draining;
        match claims.standing(partition) {
            Standing::Busy => {}
            Standing::Free { successor } => {
                if ours || (successor == own.id && !own.draining) {
                    plan.take.push(partition);
                } else {
                    let why = if wanted.is_some() {
                        Waiting::Taking
                    } else {
                        Waiting::NoRoom
                    };
                    wait(&mut plan, why);
                }
            }
            Standing::Stray if ours => plan.take.push(partition),
            Standing::Stray => plan.clear.push(partition),
            Standing::Foreign {
                member,
                incarnation,
                since,
            } => {
                // A process before ours under the same name has ended: the name is locked.
                // Who writes a claim has renewed its record before: only a read that came after the claim says whether it stands still.
                let judged = observer.has_read_since(since);
                let dead = member == own.id || judged && observer.is_dead(member, incarnation, now);
                if dead && ours {
                    plan.take.push(partition);
                } else if dead {
                    let why = if wanted.is_some() {
                        Waiting::Taking
                    } else {
                        Waiting::NoRoom
                    };
                    wait(&mut plan, why);
                } else if wanted != Some(member) {
                    let known = observer
                        .member(member)
                        .is_some_and(|known| known.incarnation == incarnation);
                    let why = match wanted {
                        _ if !known => Waiting::Detection,
                        Some(_) => Waiting::HandOver,
                        // It keeps what nobody has room for.
                        None => Waiting::NoRoom,
                    };
                    wait(&mut plan, why);
                }
            }
            Standing::Ours => {
                if ours || !(own.serving)(partition) {
                    continue;
                }
                let to = wanted
                    .filter(|to| *to != own.id)
                    .and_then(|to| observer.member(to));
                let Some(to) = to else {
                    if own.leaving && plan.give.len() < own.may_give {
                        plan.give.push((partition, String::new()));
                    } else {
                        wait(&mut plan, Waiting::NoRoom);
                    }
                    continue;
                };
                if !own.leaving {
                    let back = own
                        .taken_from
                        .get(&partition)
                        .is_some_and(|(from, until)| *from == to.id && *until > now);
                    if back {
                        wait(&mut plan, Waiting::TakeBack);
                        continue;
                    }
                    // Others may not have seen yet what made it ours.
                    let settled = (own.taken_at)(partition) + timing.member_renew * 2 <= now;
                    let accepts = *room.entry(&to.id).or_insert_with(|| {
                        observer.was_heard(&to.id) && backlog(to) <= most_backlog(to, pace)
                    });
                    if !settled || !accepts {
                        wait(&mut plan, Waiting::HandOver);
                        continue;
                    }
                }
                if plan.give.len() < own.may_give {
                    plan.give.push((partition, to.id.clone()));
                } else {
                    wait(&mut plan, Waiting::HandOver);
                }
            }
        }
    }
    plan
}

/// The longest backlog with which a member is given more.
fn most_backlog(member: &Member, pace: &Pace) -> u32 {
    let accounts = member.load.map_or(0, |load| load.accounts);
    pace.soon.max(accounts / 10).min(pace.backlog)
}

/// Accounts of a member that do not watch yet.
fn backlog(member: &Member) -> u32 {
    let load = member.load.unwrap_or_default();
    load.starting
        .saturating_add(load.waiting_pace)
        .saturating_add(load.loading)
}

#[cfg(test)]
mod tests;
