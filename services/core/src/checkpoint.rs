//! What the owner of an account knows was told: the fold of the account's log over its first checkpoint.
//!
//! `checkpoint = fold(log)` is what makes the log a write-ahead log: a checkpoint may be written late or be lost with the pod
//! that had it, and whoever takes the account folds in what the log has beyond it. Two rules keep the fold exact:
//!
//! * A checkpoint says up to which position of which log it is the fold, and what lies at or before it is not folded again.
//! * Kinds without a UID carry a counter of the account and count only if it is higher than any before. It begins at a higher
//!   number with each owner ([`Checkpoint::next_counter`]), so that what an old owner appends after its successor changes
//!   nothing, and no two of them give one key to two facts.

use mailbell_proto::{bus::v1 as bus, push::v1::Health};

use crate::{
    event::{Event, Fact},
    ids::{FolderId, Generation, INBOX, LogId, OwnerEpoch, Position, Uid},
    schema::{LAST_ARRIVAL, WriteVersion},
};

/// How many gaps of UIDs are remembered per folder. The oldest are forgotten: a message shows up late within seconds or never.
/// One range that is told as one opens half of them at most ([`UNSETTLED`]), and so many are looked into at once.
pub const MAX_HOLES: usize = 64;
/// A gap wider than this is no late message but the work of a server that skips UIDs.
pub const MAX_HOLE_WIDTH: u32 = 256;
/// Of so many UIDs below where a folder begins anew, or below the end of a range that was told as one, those that are not there
/// count as not told: one of them may show up after devices have listed. As many as [`present`] has bits.
pub const UNSETTLED: u32 = u64::BITS;
/// How many alerted messages are remembered.
pub const MAX_ALERTED: usize = 16;

/// Which of the newest UIDs up to `last` are among these: bit n stands for `last - n`.
#[must_use]
pub fn present(last: Uid, uids: &[Uid]) -> u64 {
    uids.iter()
        .filter_map(|uid| last.checked_sub(*uid))
        .filter(|below| *below < UNSETTLED)
        .fold(0, |bits, below| bits | 1 << below)
}

/// The gaps among the newest UIDs of a range that was told as one, ascending.
#[must_use]
pub fn gaps(first: Uid, last: Uid, present: u64) -> Vec<(Uid, Uid)> {
    let lowest = last.saturating_sub(UNSETTLED - 1).max(first).max(1);
    let mut gaps: Vec<(Uid, Uid)> = Vec::new();
    for uid in (lowest..=last).filter(|uid| present >> (last - uid) & 1 == 0) {
        match gaps.last_mut() {
            Some((_, end)) if *end + 1 == uid => *end = uid,
            _ => gaps.push((uid, uid)),
        }
    }
    gaps
}

/// UIDs that were not there when a higher one was told, and may show up late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The lowest UID.
    pub first: Uid,
    /// The highest UID.
    pub last: Uid,
    /// When the higher one was fetched, in microseconds since the epoch. Not when it was noticed: it may have waited for long.
    pub noticed_us: i64,
}

/// What is known of one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Ours.
    pub id: FolderId,
    /// The server's.
    pub name: String,
    /// UIDVALIDITY.
    pub generation: Generation,
    /// The lowest UID that no event told of yet, but for the holes.
    pub uid_next: Uid,
    /// Gaps below `uid_next`, ascending.
    pub holes: Vec<Hole>,
    /// When it was last seen whole, in microseconds since the epoch. No part of the fold: it only widens alerts.
    pub last_look_us: i64,
}

impl Folder {
    /// Whether an event told of this UID of the present generation.
    #[must_use]
    pub fn told(&self, uid: Uid) -> bool {
        uid < self.uid_next
            && !self
                .holes
                .iter()
                .any(|hole| (hole.first..=hole.last).contains(&uid))
    }

    /// UIDs up to `last` were told as one, from `first` on; these of the newest were there.
    fn tell_range(&mut self, first: Uid, last: Uid, present: u64, fetched_us: i64) {
        let gaps = gaps(first, last, present);
        self.holes
            .extend(gaps.into_iter().map(|(first, last)| Hole {
                first,
                last,
                noticed_us: fetched_us,
            }));
        self.forget_surplus();
    }

    /// The next that is told is `uid`.
    fn skip_to(&mut self, uid: Uid, fetched_us: i64) {
        if uid > self.uid_next && uid - self.uid_next <= MAX_HOLE_WIDTH {
            self.holes.push(Hole {
                first: self.uid_next,
                last: uid - 1,
                noticed_us: fetched_us,
            });
        }
    }

    fn forget_surplus(&mut self) {
        let surplus = self.holes.len().saturating_sub(MAX_HOLES);
        self.holes.drain(..surplus);
    }

    fn tell(&mut self, uid: Uid, fetched_us: i64) {
        if uid >= self.uid_next {
            self.skip_to(uid, fetched_us);
            self.uid_next = uid.saturating_add(1);
        } else if let Some(index) = self
            .holes
            .iter()
            .position(|hole| (hole.first..=hole.last).contains(&uid))
        {
            let hole = self.holes.remove(index);
            if uid < hole.last {
                self.holes.insert(
                    index,
                    Hole {
                        first: uid + 1,
                        ..hole
                    },
                );
            }
            if uid > hole.first {
                self.holes.insert(
                    index,
                    Hole {
                        last: uid - 1,
                        ..hole
                    },
                );
            }
        }
        self.forget_surplus();
    }
}

/// What the owner of an account knows was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Ascending by id.
    pub folders: Vec<Folder>,
    /// The highest counter of a fact without UID.
    pub counter: u64,
    /// The digests of the last messages that alerted, oldest first.
    pub alerted: Vec<u64>,
    /// What devices were last told of the account.
    pub health: Health,
    /// The next folder id to give away.
    pub next_folder: FolderId,
    /// The log whose fold it is.
    pub log_id: LogId,
    /// Up to where in that log.
    pub position: Position,
    /// When the newest message that was told one by one was noticed, in microseconds since the epoch; 0: none is known. Not
    /// stored before schema 2, so nothing that must not be forgotten may rest on it.
    pub last_arrival_us: i64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            folders: Vec::new(),
            counter: 0,
            alerted: Vec::new(),
            health: Health::Unspecified,
            next_folder: INBOX + 1,
            log_id: LogId::default(),
            position: 0,
            last_arrival_us: 0,
        }
    }
}

impl Checkpoint {
    /// The first checkpoint of an account whose folders were looked at when it was added.
    #[must_use]
    pub fn first(looked: impl IntoIterator<Item = (String, Generation, Uid)>, now_us: i64) -> Self {
        let mut checkpoint = Self::default();
        for (name, generation, uid_next) in looked {
            let id = checkpoint.folder_id(&name);
            checkpoint.next_folder = checkpoint.next_folder.max(id.saturating_add(1));
            checkpoint.folders.push(Folder {
                id,
                name,
                generation,
                uid_next,
                holes: Vec::new(),
                last_look_us: now_us,
            });
        }
        checkpoint.folders.sort_by_key(|folder| folder.id);
        checkpoint
    }

    /// The id of the folder of this name: the one that it has, or the one that it will be given.
    #[must_use]
    pub fn folder_id(&self, name: &str) -> FolderId {
        if name.eq_ignore_ascii_case("INBOX") {
            return INBOX;
        }
        self.folders
            .iter()
            .find(|folder| folder.name == name)
            .map_or(self.next_folder, |folder| folder.id)
    }

    /// What is known of a folder.
    #[must_use]
    pub fn folder(&self, id: FolderId) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.id == id)
    }

    /// What is known of a folder, to note a look.
    pub fn folder_mut(&mut self, id: FolderId) -> Option<&mut Folder> {
        self.folders.iter_mut().find(|folder| folder.id == id)
    }

    /// The counter of the next fact without UID that this owner tells. It is at least a number of the ownership (which is not
    /// below the seconds since 1970 when that began) and of the hundredths of a second since then: an owner that loses
    /// checkpoint and log and begins anew never gives a counter, and so a key, a second time.
    #[must_use]
    pub fn next_counter(&self, owner_epoch: OwnerEpoch, now_us: i64) -> u64 {
        let began = i64::try_from(owner_epoch.saturating_mul(100)).unwrap_or(i64::MAX);
        let hundredths = (now_us / 10_000).saturating_sub(began).max(0);
        let within = u32::try_from(hundredths).unwrap_or(u32::MAX);
        let least = owner_epoch.saturating_mul(1 << 32) | u64::from(within);
        self.counter.saturating_add(1).max(least)
    }

    /// Takes in the event at `position` of this account's log, unless it is in already.
    pub fn fold(&mut self, log_id: LogId, position: Position, event: &Event) {
        if self.log_id == log_id && position <= self.position {
            return;
        }
        self.log_id = log_id;
        self.position = position;
        self.take_in(event);
    }

    /// Takes in an event that the log acknowledged to us. It may lie before what is known: an old owner appended the same, and
    /// the acknowledgement names where that was. It is in the log all the same, and taking it in twice changes nothing.
    pub fn acknowledge(&mut self, log_id: LogId, position: Position, event: &Event) {
        let known = if self.log_id == log_id {
            self.position
        } else {
            0
        };
        self.log_id = log_id;
        self.position = position.max(known);
        self.take_in(event);
    }

    fn take_in(&mut self, event: &Event) {
        match event.fact {
            Fact::Arrived { uid, digest } => {
                let Some(folder) = self
                    .folder_mut(event.folder)
                    .filter(|folder| folder.generation == event.generation)
                else {
                    return;
                };
                if folder.told(uid) {
                    return;
                }
                folder.tell(uid, event.fetched_us);
                self.last_arrival_us = self.last_arrival_us.max(event.detected_us);
                if event.alert && !self.alerted.contains(&digest) {
                    self.alerted.push(digest);
                    let surplus = self.alerted.len().saturating_sub(MAX_ALERTED);
                    self.alerted.drain(..surplus);
                }
            }
            Fact::Bulk {
                counter,
                first,
                last,
                present,
            } => {
                if self.counts(counter)
                    && let Some(folder) = self
                        .folder_mut(event.folder)
                        .filter(|folder| folder.generation == event.generation)
                    && last >= folder.uid_next
                {
                    // What was told before lay in a log that is lost: as with a single message.
                    folder.skip_to(first, event.fetched_us);
                    let first = first.max(folder.uid_next);
                    folder.tell_range(first, last, present, event.fetched_us);
                    folder.uid_next = last.saturating_add(1);
                }
            }
            Fact::Resync {
                counter,
                uid_next,
                present,
                ..
            } => {
                if self.counts(counter) {
                    self.start(event, uid_next, present);
                }
            }
            Fact::AccountState { counter, health } => {
                if self.counts(counter) {
                    self.health = health;
                }
            }
            // Told to devices; what is known of arrivals stays.
            Fact::Changed { .. } | Fact::Gone { .. } => {}
        }
    }

    fn counts(&mut self, counter: u64) -> bool {
        let higher = counter > self.counter;
        self.counter = self.counter.max(counter);
        higher
    }

    fn start(&mut self, event: &Event, uid_next: Uid, present: u64) {
        self.next_folder = self.next_folder.max(event.folder.saturating_add(1));
        let begin = |folder: &mut Folder| {
            folder.generation = event.generation;
            folder.uid_next = uid_next;
            folder.holes.clear();
            let last = uid_next.saturating_sub(1);
            folder.tell_range(1, last, present, event.fetched_us);
        };
        if let Some(folder) = self.folder_mut(event.folder) {
            begin(folder);
        } else {
            let mut folder = Folder {
                id: event.folder,
                name: event.folder_name.clone(),
                generation: event.generation,
                uid_next,
                holes: Vec::new(),
                last_look_us: event.detected_us,
            };
            begin(&mut folder);
            self.folders.push(folder);
            self.folders.sort_by_key(|folder| folder.id);
        }
    }

    /// Whether both may be one and the same record: all that every schema stores is equal. One that was stored in an older
    /// schema lacks what came later.
    #[must_use]
    pub fn may_be_stored_as(&self, other: &Self) -> bool {
        let first = |checkpoint: &Self| Self {
            last_arrival_us: 0,
            ..checkpoint.clone()
        };
        first(self) == first(other)
    }

    /// Whether both know the same to be told: all but the times of looks and arrivals, and where in the log that was learnt.
    #[must_use]
    pub fn same_told(&self, other: &Self) -> bool {
        let bare = |checkpoint: &Self| {
            let mut bare = checkpoint.clone();
            bare.last_arrival_us = 0;
            bare.log_id = LogId::default();
            bare.position = 0;
            for folder in &mut bare.folders {
                folder.last_look_us = 0;
            }
            bare
        };
        bare(self) == bare(other)
    }

    /// As a record of the schema that may be written.
    #[must_use]
    pub fn to_record(&self, version: WriteVersion) -> bus::Checkpoint {
        let version = version.min(LAST_ARRIVAL);
        bus::Checkpoint {
            schema: version.number(),
            last_arrival_us: if version >= LAST_ARRIVAL {
                self.last_arrival_us
            } else {
                0
            },
            folders: self
                .folders
                .iter()
                .map(|folder| bus::FolderCheckpoint {
                    id: folder.id,
                    name: folder.name.clone(),
                    generation: folder.generation,
                    uid_next: folder.uid_next,
                    holes: folder
                        .holes
                        .iter()
                        .map(|hole| bus::Hole {
                            first: hole.first,
                            last: hole.last,
                            noticed_us: hole.noticed_us,
                        })
                        .collect(),
                    last_look_us: folder.last_look_us,
                })
                .collect(),
            counter: self.counter,
            alerted: self.alerted.clone(),
            health: self.health.into(),
            next_folder: self.next_folder,
            log_id: self.log_id.0.to_vec().into(),
            position: self.position,
        }
    }

    /// From a record.
    #[must_use]
    pub fn from_record(record: &bus::Checkpoint) -> Self {
        let mut checkpoint = Self {
            folders: record
                .folders
                .iter()
                .map(|folder| Folder {
                    id: folder.id,
                    name: folder.name.clone(),
                    generation: folder.generation,
                    uid_next: folder.uid_next,
                    holes: folder
                        .holes
                        .iter()
                        .take(MAX_HOLES)
                        .map(|hole| Hole {
                            first: hole.first,
                            last: hole.last,
                            noticed_us: hole.noticed_us,
                        })
                        .collect(),
                    last_look_us: folder.last_look_us,
                })
                .collect(),
            counter: record.counter,
            alerted: record.alerted.iter().copied().take(MAX_ALERTED).collect(),
            health: record.health(),
            next_folder: record.next_folder.max(INBOX + 1),
            log_id: LogId::from_slice(&record.log_id).unwrap_or_default(),
            position: record.position,
            last_arrival_us: if WriteVersion::NEWEST >= LAST_ARRIVAL {
                record.last_arrival_us
            } else {
                0
            },
        };
        checkpoint.folders.sort_by_key(|folder| folder.id);
        checkpoint
    }
}

#[cfg(test)]
mod tests;
