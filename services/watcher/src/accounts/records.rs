//! What the records of accounts say, and how that reaches their sessions.

use std::sync::Arc;

use mailbell_bus::state::PartitionRecords;
use mailbell_core::{
    ids::{AccountId, Group, Partition},
    records::Version,
    session::Stop,
};
use mailbell_proto::bus::v1::AccountRecord;

use super::{Accounts, Begin, Entry, State};

/// The records of a partition are to be read anew.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reread {
    pub(crate) partition: Partition,
    tenure: u64,
}

#[cfg(test)]
impl Reread {
    /// Of the first ownership.
    pub(crate) const fn of(partition: Partition) -> Self {
        Self {
            partition,
            tenure: 1,
        }
    }
}

impl Accounts {
    /// An account was added or changed.
    pub(crate) fn put(&mut self, account: AccountId, version: Version, record: AccountRecord) {
        let Some(owned) = self.partitions.get_mut(&account.partition()) else {
            return;
        };
        let record = Some(Arc::new(record));
        if let Some((account, Some(record))) = owned.merge.on_change(account, version, record) {
            self.set(account, record);
        }
    }

    /// The record is gone: its tombstone has aged out, or somebody deleted it.
    pub(crate) fn delete(&mut self, account: AccountId, version: Version) {
        let Some(owned) = self.partitions.get_mut(&account.partition()) else {
            return;
        };
        if let Some((account, None)) = owned.merge.on_change(account, version, None) {
            self.forget(account);
        }
    }

    /// Changes of this group may have been missed before this history began: see [`Accounts::rereads`].
    pub(crate) fn restarted(&mut self, group: Group, history: u32) {
        for partition in group.partitions() {
            if let Some(owned) = self.partitions.get_mut(&partition) {
                owned.merge.on_restarted(history);
            }
        }
    }

    /// The partitions whose records are to be read anew: [`Accounts::reread`] takes what was read. Each is named once.
    pub(crate) fn rereads(&mut self) -> Vec<Reread> {
        let mut rereads = Vec::new();
        for (partition, owned) in &mut self.partitions {
            if owned.merge.wants_read() {
                owned.merge.begin_read();
                rereads.push(Reread {
                    partition: *partition,
                    tenure: owned.tenure,
                });
            }
        }
        rereads
    }

    /// All records of a partition, read anew. What was not found is not there any more.
    pub(crate) fn reread(&mut self, reread: Reread, read: PartitionRecords) {
        let Some(owned) = self.partitions.get_mut(&reread.partition) else {
            return;
        };
        if owned.tenure != reread.tenure {
            return;
        }
        let all = owned.merge.on_read(read.version, shared(read.records));
        let gone: Vec<AccountId> = owned
            .entries
            .keys()
            .filter(|account| !all.contains_key(account))
            .cloned()
            .collect();
        let changed: Vec<(AccountId, Arc<AccountRecord>)> = all
            .into_iter()
            .filter(|(account, record)| {
                let known = owned.entries.get(account);
                known.is_none_or(|entry| entry.record != *record)
            })
            .collect();
        if !gone.is_empty() {
            tracing::error!(partition = %reread.partition, accounts = gone.len(), "account records were lost: restore them from a backup");
        }
        for account in gone {
            self.forget(account);
        }
        for (account, record) in changed {
            self.set(account, record);
        }
    }

    /// This is the account's record now.
    fn set(&mut self, account: AccountId, record: Arc<AccountRecord>) {
        let Some(owned) = self.partitions.get_mut(&account.partition()) else {
            return;
        };
        let entry = owned
            .entries
            .entry(account.clone())
            .or_insert_with(|| Entry::new(Arc::clone(&record)));
        let before = std::mem::replace(&mut entry.record, Arc::clone(&record));
        let changed = before != record;
        if changed {
            // A person may have mended what made it crash.
            entry.crashes = None;
        }
        match entry.state {
            State::Running { .. } => {
                if let Some(slot) = self.registry.session(&account) {
                    if record.removed_at_ms > 0 {
                        slot.stop(Stop::Removed);
                    } else {
                        slot.change(record);
                    }
                }
            }
            State::Resting => {
                if let Some(epoch) = self.registry.epoch(account.partition()) {
                    self.start(&account, epoch, Begin::Alone(None));
                }
            }
            State::Quarantined(_) if changed => self.end_quarantine(&account),
            State::Quarantined(_) | State::Purged => {}
        }
    }

    /// The account is not there any more.
    fn forget(&mut self, account: AccountId) {
        let owned = self.partitions.get_mut(&account.partition());
        if let Some(entry) = owned.and_then(|owned| owned.entries.remove(&account)) {
            self.end(account, &entry);
        }
    }
}

/// Each record in an `Arc`, which its session shares.
pub(super) fn shared(
    records: Vec<(AccountId, AccountRecord)>,
) -> impl Iterator<Item = (AccountId, Arc<AccountRecord>)> {
    let share = |(account, record)| (account, Arc::new(record));
    records.into_iter().map(share)
}
