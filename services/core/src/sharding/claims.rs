//! The claims of one member: what stands in the bucket, what is ours, and the compare-and-set that changes it.
//!
//! One write a partition is on its way at most. An answer that does not come, or says no, is followed by a read from the leader:
//! nobody guesses what stands there. An older record never replaces a newer one.
//!
//! The server compares revisions alone. A bucket that was lost and made anew may come to an old revision by chance, and a renewal of before
//! ([`Claims::forget`]) then goes over another's claim, whose sessions end.

mod answers;
mod slot;

use std::time::Duration;

use bytes::Bytes;
use mailbell_proto::bus::v1::Claim;

use self::slot::{Seen, Slot, Writing};
use crate::{
    ids::{LogId, OwnerEpoch, PARTITIONS, Partition, Position},
    plant,
    schema::may_rewrite,
    timing::Timing,
};

/// The schema of [`Claim`] that this release writes.
pub const CLAIM_SCHEMA: u32 = 1;

/// What an owner left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// The history in which `flushed` is a position.
    pub log_id: LogId,
    /// Every checkpoint of the partition covers the log up to there.
    pub flushed: Position,
    /// It gave the partition away in order, and asked the log's leader for its end then; one that did not answer leaves `flushed` where
    /// it was. Otherwise the owner has died, or its claim has aged out.
    pub released: bool,
}

/// Why a partition was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// Another claim stands there: of this member.
    Taken(String),
    /// It aged out while we could not write: somebody may have had it meanwhile.
    Expired,
}

/// What is to be done about a partition.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write this if the key's revision is `revision` (0: there is none), and tell [`Claims::wrote`].
    Write {
        /// Which.
        partition: Partition,
        /// What.
        claim: Claim,
        /// Over what.
        revision: u64,
    },
    /// Read it from the leader, and tell [`Claims::read`].
    Read {
        /// Which.
        partition: Partition,
    },
    /// It is ours: load what is known, fold in the log after `before`, then sessions.
    Load {
        /// Which.
        partition: Partition,
        /// By which ownership.
        epoch: OwnerEpoch,
        /// `None`: nothing is known, so the checkpoints' own positions count.
        before: Option<Before>,
    },
    /// It is ours by another claim, and nobody had it in between: what runs goes on.
    Renewed {
        /// Which.
        partition: Partition,
        /// By which ownership from now on.
        epoch: OwnerEpoch,
    },
    /// Its sessions end in order and store what they know; then it is released.
    Finish {
        /// Which.
        partition: Partition,
        /// Of which ownership.
        epoch: OwnerEpoch,
    },
    /// It is somebody else's: its sessions end at once, and nothing may be appended for it.
    Stop {
        /// Which.
        partition: Partition,
        /// Of which ownership.
        epoch: OwnerEpoch,
        /// Why.
        lost: Lost,
    },
    /// It was released.
    Released {
        /// Which.
        partition: Partition,
    },
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Under this revision.
    Stored(u64),
    /// Another revision stands there.
    Conflict,
    /// No answer: it may come to be stored yet.
    Unknown,
}

/// How a claim stands, for the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Something of it is on its way.
    Busy,
    /// Nobody has it. It was released to this member, if to any.
    Free {
        /// Empty: to nobody.
        successor: &'a str,
    },
    /// Somebody else has it.
    Foreign {
        /// Who.
        member: &'a str,
        /// In which incarnation.
        incarnation: &'a str,
        /// Since when it is known to stand there.
        since: Duration,
    },
    /// It is ours.
    Ours,
    /// It bears our name, and we know nothing of it: a write that came late.
    Stray,
}

/// See the module.
#[derive(Debug)]
pub struct Claims {
    member: String,
    incarnation: String,
    /// How often a claim is rewritten.
    refresh: Duration,
    /// How long one lives that nobody rewrites.
    life: Duration,
    slots: Vec<Slot>,
    held: usize,
}

impl Claims {
    /// Of this member in this incarnation.
    #[must_use]
    pub fn new(member: &str, incarnation: &str, timing: &Timing) -> Self {
        Self {
            member: member.to_owned(),
            incarnation: incarnation.to_owned(),
            refresh: timing.claim_refresh,
            life: timing.live_age,
            slots: vec![Slot::default(); usize::from(PARTITIONS)],
            held: 0,
        }
    }

    fn slot(&self, partition: Partition) -> Option<&Slot> {
        self.slots.get(usize::from(partition.number()))
    }

    fn is_ours(&self, claim: &Claim) -> bool {
        claim.member == self.member && claim.incarnation == self.incarnation
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self, partition: Partition) -> Standing<'_> {
        let Some(slot) = self.slot(partition) else {
            return Standing::Busy;
        };
        if slot.mine.is_some() {
            return Standing::Ours;
        }
        if slot.is_busy() {
            return Standing::Busy;
        }
        let since = slot.seen.as_ref().map_or(Duration::ZERO, |seen| seen.since);
        match slot.seen.as_ref().and_then(|seen| seen.claim.as_ref()) {
            None => Standing::Free { successor: "" },
            Some(claim) if claim.released => Standing::Free {
                successor: &claim.successor,
            },
            Some(claim) if self.is_ours(claim) => Standing::Stray,
            Some(claim) => Standing::Foreign {
                member: &claim.member,
                incarnation: &claim.incarnation,
                since,
            },
        }
    }

    /// What stands there, as far as is known.
    #[must_use]
    pub fn claim(&self, partition: Partition) -> Option<&Claim> {
        self.slot(partition)?.seen.as_ref()?.claim.as_ref()
    }

    /// The number of our ownership, if it is ours.
    #[must_use]
    pub fn epoch(&self, partition: Partition) -> Option<OwnerEpoch> {
        Some(self.slot(partition)?.mine.as_ref()?.epoch)
    }

    /// How many accounts the partition has, as was counted last.
    #[must_use]
    pub fn accounts(&self, partition: Partition) -> u32 {
        let mine = self.slot(partition).and_then(|slot| slot.mine.as_ref());
        match mine {
            Some(mine) => mine.accounts,
            None => self.claim(partition).map_or(0, |claim| claim.accounts),
        }
    }

    /// Notes how many accounts it has; written with the next renewal.
    pub fn count_accounts(&mut self, partition: Partition, accounts: u32) {
        let slot = self.slots.get_mut(usize::from(partition.number()));
        if let Some(mine) = slot.and_then(|slot| slot.mine.as_mut()) {
            mine.accounts = accounts;
        }
    }

    /// Whether any of these is being taken.
    #[must_use]
    pub fn is_taking(&self, of: &[Partition]) -> bool {
        of.iter().any(|partition| {
            self.slot(*partition).is_some_and(|slot| {
                slot.mine.is_none() && matches!(slot.writing, Some(Writing::Take { .. }))
            })
        })
    }

    /// How many are ours.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Who holds claims, ours excepted.
    pub fn holders(&self) -> impl Iterator<Item = (&str, &str)> {
        self.slots.iter().filter_map(|slot| {
            let claim = slot.seen.as_ref()?.claim.as_ref()?;
            let foreign = !claim.released && !self.is_ours(claim);
            foreign.then_some((claim.member.as_str(), claim.incarnation.as_str()))
        })
    }

    /// A record was seen by the watch.
    pub fn see(
        &mut self,
        now: Duration,
        partition: Partition,
        revision: u64,
        claim: Option<Claim>,
    ) -> Vec<Effect> {
        self.note(now, partition, revision, claim, false)
    }

    /// A record was seen; `leader`: by a read from the leader.
    fn note(
        &mut self,
        now: Duration,
        partition: Partition,
        revision: u64,
        claim: Option<Claim>,
        leader: bool,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let ours = claim.as_ref().map(|claim| self.is_ours(claim));
        let Some(slot) = self.slots.get_mut(usize::from(partition.number())) else {
            return effects;
        };
        let known = slot.seen.as_ref().map_or(0, |seen| seen.revision);
        // What the leader says of a claim that we believe to be ours counts, whatever its revision: the bucket may be another.
        let counts = leader && slot.mine.is_some();
        if revision < known && !counts && !plant::is(plant::Bug::StaleClaimAccepted) {
            return effects;
        }
        let epoch = claim.as_ref().map_or(0, |claim| claim.owner_epoch);
        slot.epoch = slot.epoch.max(epoch);
        let member = claim.as_ref().map(|claim| claim.member.clone());
        let since = match &slot.seen {
            // In a bucket that was made anew, another one may come to have the same.
            Some(seen) if seen.revision == revision && seen.claim == claim => seen.since,
            _ => now,
        };
        slot.seen = Some(Seen {
            revision,
            since,
            at: now,
            claim,
        });
        let Some(mine) = &mut slot.mine else {
            return effects;
        };
        match (ours, member) {
            (Some(true), _) if epoch == mine.epoch => {
                mine.revision = mine.revision.max(revision);
                mine.expired = false;
            }
            // What was there before ours.
            _ if revision < mine.revision
                && !leader
                && !plant::is(plant::Bug::StaleClaimAccepted) => {}
            // Older than ours, or of a bucket that begins anew: the leader knows.
            (Some(false), _)
                if mine.revision == 0 && !leader && !plant::is(plant::Bug::StaleClaimAccepted) =>
            {
                slot.again_at = Some(now);
            }
            // Another attempt of ours, which came late.
            (Some(true), _) => {
                mine.revision = revision;
                mine.due = now;
            }
            (Some(false), member) => {
                let (epoch, mine_released) = (mine.epoch, mine.release.is_some());
                slot.mine = None;
                self.held -= 1;
                if mine_released {
                    // The next owner was faster than the word that it was released.
                    effects.push(Effect::Released { partition });
                    return effects;
                }
                effects.push(Effect::Stop {
                    partition,
                    epoch,
                    lost: Lost::Taken(member.unwrap_or_default()),
                });
            }
            (None, _) => {
                // What is seen of another from now on came later, whatever its revision.
                mine.revision = 0;
                mine.expired = true;
                mine.due = now;
            }
        }
        effects
    }

    /// Everything that was seen is void: the bucket is told anew, and its revisions may begin anew.
    pub fn forget(&mut self) {
        for slot in &mut self.slots {
            slot.seen = None;
            slot.void = slot.sent || slot.reading;
            if let Some(mine) = &mut slot.mine {
                mine.revision = 0;
            }
        }
    }

    /// All that stands in the bucket was told: a claim of ours that was not is looked for.
    pub fn loaded(&mut self, now: Duration) {
        let mine = self.slots.iter_mut().filter_map(|slot| slot.mine.as_mut());
        for mine in mine.filter(|mine| mine.revision == 0) {
            mine.due = now;
        }
    }

    /// Every claim of ours is to be written: the connection is back, and they have aged.
    pub fn all_due(&mut self, now: Duration) {
        for mine in self.slots.iter_mut().filter_map(|slot| slot.mine.as_mut()) {
            mine.due = mine.due.min(now);
        }
    }

    /// Begins to take it, over what stands there. Whether one may is for the planner to say.
    pub fn take(&mut self, unix_s: u64, partition: Partition) -> Option<Effect> {
        let slot = self.slots.get_mut(usize::from(partition.number()))?;
        if slot.is_busy() {
            return None;
        }
        let again = slot.mine.as_ref().is_some_and(|mine| mine.expired);
        if slot.mine.is_some() && !again {
            return None;
        }
        let revision = slot.seen.as_ref().map_or(0, |seen| seen.revision);
        let claim = slot.seen.as_ref().and_then(|seen| seen.claim.as_ref());
        if claim.is_some_and(|claim| !may_rewrite(claim.schema)) {
            // Its owner knew more than we do; somebody who knows it too takes it.
            return None;
        }
        let before = claim.and_then(|claim| {
            let log_id = LogId::from_slice(&claim.log_id)?;
            let before = Before {
                log_id,
                flushed: claim.flushed,
                released: claim.released,
            };
            // Nothing, as long as nobody has flushed anything.
            (log_id != LogId::default()).then_some(before)
        });
        // Not below the seconds since 1970, so that it also grows if the bucket, or this claim in it, was lost.
        let epoch = if plant::is(plant::Bug::EpochReused) {
            claim.map_or(unix_s, |claim| claim.owner_epoch)
        } else {
            unix_s.max(slot.epoch + 1)
        };
        let claim = Claim {
            schema: CLAIM_SCHEMA,
            member: self.member.clone(),
            incarnation: self.incarnation.clone(),
            owner_epoch: epoch,
            log_id: Bytes::copy_from_slice(
                &before.map(|before| before.log_id).unwrap_or_default().0,
            ),
            flushed: before.map_or(0, |before| before.flushed),
            released: false,
            successor: String::new(),
            accounts: claim.map_or(0, |claim| claim.accounts),
        };
        slot.write(Writing::Take { epoch, before });
        Some(Effect::Write {
            partition,
            claim,
            revision,
        })
    }

    /// Notes how far the partition is flushed, and how many accounts it has; written with the next renewal.
    pub fn flushed(
        &mut self,
        partition: Partition,
        log_id: LogId,
        position: Position,
        accounts: u32,
    ) {
        let slot = self.slots.get_mut(usize::from(partition.number()));
        if let Some(mine) = slot.and_then(|slot| slot.mine.as_mut()) {
            mine.accounts = accounts;
            if mine.log_id != log_id || mine.flushed < position {
                (mine.log_id, mine.flushed) = (log_id, position);
            }
        }
    }

    /// Its sessions have ended and stored what they know: it may be let go, to this member if to any.
    pub fn release(
        &mut self,
        now: Duration,
        unix_s: u64,
        partition: Partition,
        successor: &str,
    ) -> Vec<Effect> {
        let slot = self.slots.get_mut(usize::from(partition.number()));
        if let Some(mine) = slot.and_then(|slot| slot.mine.as_mut()) {
            mine.release = Some(successor.to_owned());
            mine.due = now;
        }
        self.pump(now, unix_s, partition).into_iter().collect()
    }

    /// Whatever is due: renewals, releases that were not acknowledged, reads that failed.
    pub fn due(&mut self, now: Duration, unix_s: u64, of: &[Partition]) -> Vec<Effect> {
        of.iter()
            .filter_map(|partition| self.pump(now, unix_s, *partition))
            .collect()
    }

    fn pump(&mut self, now: Duration, unix_s: u64, partition: Partition) -> Option<Effect> {
        let slot = self.slots.get_mut(usize::from(partition.number()))?;
        if slot.reading || slot.sent {
            return None;
        }
        if let Some(at) = slot.again_at {
            if at > now {
                return None;
            }
            (slot.again_at, slot.reading) = (None, true);
            return Some(Effect::Read { partition });
        }
        if slot.writing.is_some() {
            return None;
        }
        let Some(mine) = slot.mine.as_mut() else {
            // No watch tells of a key that ages out.
            let aged = slot.seen.as_ref().is_some_and(|seen| {
                let held = seen.claim.as_ref().is_some_and(|claim| !claim.released);
                held && now.saturating_sub(seen.at) > self.life
            });
            slot.reading = aged;
            return aged.then_some(Effect::Read { partition });
        };
        if mine.due > now {
            return None;
        }
        if mine.expired {
            if mine.release.is_some() {
                // Nothing stands there to be released.
                slot.mine = None;
                self.held -= 1;
                return Some(Effect::Released { partition });
            }
            return self.take(unix_s, partition);
        }
        if mine.revision == 0 {
            // To write over nothing would be to renew what somebody else may have had meanwhile.
            slot.reading = true;
            return Some(Effect::Read { partition });
        }
        let released = mine.release.is_some();
        let claim = Claim {
            schema: CLAIM_SCHEMA,
            member: self.member.clone(),
            incarnation: self.incarnation.clone(),
            owner_epoch: mine.epoch,
            log_id: Bytes::copy_from_slice(&mine.log_id.0),
            flushed: mine.flushed,
            released,
            successor: mine.release.clone().unwrap_or_default(),
            accounts: mine.accounts,
        };
        let revision = mine.revision;
        slot.write(if released {
            Writing::Release
        } else {
            Writing::Renew
        });
        Some(Effect::Write {
            partition,
            claim,
            revision,
        })
    }

    /// Lets go of a stray claim.
    pub fn clear(&mut self, partition: Partition) -> Option<Effect> {
        let slot = self.slots.get_mut(usize::from(partition.number()))?;
        if slot.is_busy() || slot.mine.is_some() {
            return None;
        }
        let seen = slot.seen.as_ref()?;
        let claim = seen.claim.clone()?;
        if !may_rewrite(claim.schema) {
            return None;
        }
        let claim = Claim {
            released: true,
            ..claim
        };
        let revision = seen.revision;
        slot.write(Writing::Clear);
        Some(Effect::Write {
            partition,
            claim,
            revision,
        })
    }
}

#[cfg(test)]
mod tests;
