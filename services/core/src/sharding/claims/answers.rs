//! What follows from the answers to writes and reads.

use std::time::Duration;

use mailbell_proto::bus::v1::Claim;

use super::{
    Claims, Effect, Lost, Written,
    slot::{Mine, Seen, Writing},
};
use crate::ids::{PARTITIONS, Partition};

impl Claims {
    /// A write of ours ended.
    pub fn wrote(
        &mut self,
        now: Duration,
        unix_s: u64,
        partition: Partition,
        claim: Claim,
        written: Written,
    ) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(usize::from(partition.number())) else {
            return Vec::new();
        };
        slot.sent = false;
        if std::mem::take(&mut slot.void) {
            slot.again_at = Some(now);
            return self.pump(now, unix_s, partition).into_iter().collect();
        }
        match written {
            Written::Stored(revision) => self.stored(now, unix_s, partition, revision, claim),
            // Whatever stands there decides.
            Written::Conflict => {
                slot.reading = true;
                vec![Effect::Read { partition }]
            }
            Written::Unknown => {
                slot.again_at = Some(now + self.refresh / 32);
                Vec::new()
            }
        }
    }

    fn stored(
        &mut self,
        now: Duration,
        unix_s: u64,
        partition: Partition,
        revision: u64,
        claim: Claim,
    ) -> Vec<Effect> {
        let (refresh, life) = (self.refresh, self.life);
        let Some(slot) = self.slots.get_mut(usize::from(partition.number())) else {
            return Vec::new();
        };
        let newer = slot
            .seen
            .as_ref()
            .and_then(|seen| Some((seen.revision, seen.claim.clone()?)))
            .filter(|(known, _)| *known > revision);
        let mut effects = Vec::new();
        match slot.writing.take() {
            Some(Writing::Take { epoch, before }) => {
                if slot.mine.is_none() {
                    self.held += 1;
                }
                let was = slot.mine.take();
                // It went before its time. It was in nobody's hands: a foreign claim would have ended it, or stand there still.
                let kept = was
                    .as_ref()
                    .is_some_and(|was| now.saturating_sub(was.written) < life);
                // The first one after a part of the period, so that they are not all due at once.
                let part = refresh * u32::from(partition.number()) / u32::from(PARTITIONS);
                slot.mine = Some(Mine {
                    epoch,
                    log_id: before.map(|before| before.log_id).unwrap_or_default(),
                    flushed: before.map_or(0, |before| before.flushed),
                    accounts: claim.accounts,
                    revision,
                    written: now,
                    due: now + part,
                    expired: false,
                    release: was
                        .as_ref()
                        .filter(|_| kept)
                        .and_then(|was| was.release.clone()),
                });
                if kept {
                    effects.push(Effect::Renewed { partition, epoch });
                } else {
                    effects.extend(was.map(|was| Effect::Stop {
                        partition,
                        epoch: was.epoch,
                        lost: Lost::Expired,
                    }));
                    effects.push(Effect::Load {
                        partition,
                        epoch,
                        before,
                    });
                }
                slot.epoch = slot.epoch.max(epoch);
            }
            Some(Writing::Renew) => {
                if let Some(mine) = &mut slot.mine {
                    mine.revision = mine.revision.max(revision);
                    mine.written = now;
                    if mine.release.is_none() {
                        mine.due = now + refresh;
                    }
                }
            }
            Some(Writing::Release) => {
                if slot.mine.take().is_some() {
                    self.held -= 1;
                    effects.push(Effect::Released { partition });
                }
            }
            Some(Writing::Clear) | None => {}
        }
        if newer.is_none() {
            slot.seen = Some(Seen {
                revision,
                since: now,
                at: now,
                claim: Some(claim),
            });
        } else if let Some((revision, claim)) = newer {
            // The watch was faster.
            effects.extend(self.see(now, partition, revision, Some(claim)));
        }
        effects.extend(self.pump(now, unix_s, partition));
        effects
    }

    /// A read ended: what stands there with its revision; `Err`: no answer.
    pub fn read(
        &mut self,
        now: Duration,
        unix_s: u64,
        partition: Partition,
        found: Result<Option<(u64, Option<Claim>)>, ()>,
    ) -> Vec<Effect> {
        let retry = now + self.refresh / 32;
        let Some(slot) = self.slots.get_mut(usize::from(partition.number())) else {
            return Vec::new();
        };
        slot.reading = false;
        let found = if std::mem::take(&mut slot.void) {
            Err(())
        } else {
            found
        };
        let Ok(found) = found else {
            slot.again_at = Some(retry);
            return Vec::new();
        };
        let writing = slot.writing.clone();
        // The write that was doubtful stands there: it was stored.
        if let (Some(writing), Some((revision, Some(claim)))) = (&writing, &found) {
            let ours = claim.member == self.member && claim.incarnation == self.incarnation;
            let epoch = match writing {
                Writing::Take { epoch, .. } => Some(*epoch),
                Writing::Renew | Writing::Release | Writing::Clear => {
                    slot.mine.as_ref().map(|mine| mine.epoch)
                }
            };
            let as_written = matches!(writing, Writing::Release | Writing::Clear) == claim.released;
            if ours && epoch == Some(claim.owner_epoch) && as_written {
                return self.stored(now, unix_s, partition, *revision, claim.clone());
            }
        }
        slot.writing = None;
        if let Some(mine) = &mut slot.mine {
            mine.due = mine.due.min(now);
        }
        let mut effects = match found {
            Some((revision, claim)) => self.note(now, partition, revision, claim, true),
            None => {
                // Aged out, or the bucket is another.
                slot.seen = None;
                if let Some(mine) = &mut slot.mine {
                    (mine.revision, mine.expired) = (0, true);
                }
                Vec::new()
            }
        };
        effects.extend(self.pump(now, unix_s, partition));
        effects
    }
}
