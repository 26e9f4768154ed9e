//! Which sessions there are, and of which partitions: shared with the tasks that answer requests and let claims move on.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use mailbell_core::ids::{AccountId, LogId, OwnerEpoch, Partition, Position};
use mailbell_proto::push::v1::Health;

use crate::slot::Slot;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sessions: RwLock<HashMap<Partition, HashMap<AccountId, Arc<Slot>>>>,
    /// Partitions whose sessions have all begun.
    partitions: RwLock<HashMap<Partition, OwnerEpoch>>,
    draining: AtomicBool,
}

impl Registry {
    pub(crate) fn session(&self, account: &AccountId) -> Option<Arc<Slot>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&account.partition())?.get(account).cloned()
    }

    pub(crate) fn insert(&self, slot: Arc<Slot>) {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let partition = sessions.entry(slot.account.partition()).or_default();
        partition.insert(slot.account.clone(), slot);
    }

    pub(crate) fn remove(&self, account: &AccountId) {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let partition = account.partition();
        if let Some(of_partition) = sessions.get_mut(&partition) {
            of_partition.remove(account);
            if of_partition.is_empty() {
                sessions.remove(&partition);
            }
        }
    }

    pub(crate) fn serves(&self, partition: Partition) -> bool {
        self.epoch(partition).is_some()
    }

    pub(crate) fn epoch(&self, partition: Partition) -> Option<OwnerEpoch> {
        let partitions = self
            .partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.get(&partition).copied()
    }

    /// Partitions whose sessions have all begun.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let partitions = self
            .partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.keys().copied().collect()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// The lowest bound of the partition's sessions in this history, if any has one.
    pub(crate) fn bound(&self, partition: Partition, log_id: LogId) -> Option<Position> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let of_partition = sessions.get(&partition)?.values();
        of_partition
            .filter_map(|slot| slot.flush().within(log_id))
            .min()
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.values().map(HashMap::len).sum()
    }

    /// How many sessions there are, how many of them watch, and how many have just begun. Looks at each of them.
    pub(crate) fn count(&self) -> (usize, usize, usize) {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let (mut all, mut watching, mut starting) = (0, 0, 0);
        for slot in sessions.values().flat_map(HashMap::values) {
            all += 1;
            match slot.health() {
                Health::Watching => watching += 1,
                Health::Starting => starting += 1,
                _ => {}
            }
        }
        (all, watching, starting)
    }

    /// All sessions of these partitions have begun; how many there are now.
    pub(crate) fn serve(
        &self,
        partitions: impl IntoIterator<Item = (Partition, OwnerEpoch)>,
    ) -> usize {
        let mut served = self
            .partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        served.extend(partitions);
        served.len()
    }

    /// The partition is no longer ours; how many are, or `None` if it was taken again since that ownership.
    pub(crate) fn lose(&self, partition: Partition, epoch: OwnerEpoch) -> Option<usize> {
        let mut served = self
            .partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if served.get(&partition).is_some_and(|ours| *ours > epoch) {
            return None;
        }
        served.remove(&partition);
        Some(served.len())
    }

    /// The partition is ours by another claim: its sessions are told.
    pub(crate) fn renew(&self, partition: Partition, epoch: OwnerEpoch) {
        self.serve([(partition, epoch)]);
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        for slot in sessions
            .get(&partition)
            .into_iter()
            .flat_map(HashMap::values)
        {
            slot.renew(epoch);
        }
    }
}
