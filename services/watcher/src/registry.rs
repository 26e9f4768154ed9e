//! Which sessions there are, and of which partitions: shared with the tasks that answer requests and let claims move on.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use mailbell_core::ids::{AccountId, Group, LogId, OwnerEpoch, Partition, Position};
use mailbell_proto::push::v1::Health;

use crate::slot::Slot;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sessions: RwLock<HashMap<AccountId, Arc<Slot>>>,
    /// Partitions whose sessions have all begun.
    partitions: RwLock<HashMap<Partition, OwnerEpoch>>,
    draining: AtomicBool,
}

impl Registry {
    pub(crate) fn session(&self, account: &AccountId) -> Option<Arc<Slot>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(account).cloned()
    }

    pub(crate) fn insert(&self, slot: Arc<Slot>) {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        sessions.insert(slot.account.clone(), slot);
    }

    pub(crate) fn remove(&self, account: &AccountId) {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        sessions.remove(account);
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

    /// For each partition that has any, the lowest bound of its sessions in these histories.
    pub(crate) fn bounds(&self, log_id: impl Fn(Group) -> LogId) -> HashMap<Partition, Position> {
        let mut bounds = HashMap::new();
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        for (account, slot) in sessions.iter() {
            let partition = account.partition();
            if let Some(bound) = slot.flush().within(log_id(partition.group())) {
                bounds
                    .entry(partition)
                    .and_modify(|lowest: &mut Position| *lowest = bound.min(*lowest))
                    .or_insert(bound);
            }
        }
        bounds
    }

    /// How many sessions there are, and how many of them watch.
    pub(crate) fn count(&self) -> (usize, usize) {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let watching = sessions
            .values()
            .filter(|slot| slot.health() == Health::Watching)
            .count();
        (sessions.len(), watching)
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
        for (account, slot) in sessions.iter() {
            if account.partition() == partition {
                slot.renew(epoch);
            }
        }
    }
}
