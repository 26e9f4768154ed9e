//! Which sessions there are, and of which partitions: shared with the tasks that answer requests and let claims move on.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::slot::{Counts, Slot};
use mailbell_core::ids::{AccountId, LogId, OwnerEpoch, Partition, Position};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sessions: RwLock<HashMap<Partition, HashMap<AccountId, Arc<Slot>>>>,
    /// Partitions whose sessions have all begun.
    partitions: RwLock<HashMap<Partition, OwnerEpoch>>,
    draining: AtomicBool,
    /// Of the sessions that are here.
    counts: Arc<Counts>,
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
        slot.count_in(Some(Arc::clone(&self.counts)));
        if let Some(before) = partition.insert(slot.account.clone(), slot) {
            before.count_in(None);
        }
    }

    pub(crate) fn remove(&self, account: &AccountId) {
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let partition = account.partition();
        if let Some(of_partition) = sessions.get_mut(&partition) {
            if let Some(removed) = of_partition.remove(account) {
                removed.count_in(None);
            }
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
        self.counts.all.load(Ordering::Relaxed)
    }

    /// How many sessions there are, how many of them watch, and how many have just begun.
    pub(crate) fn count(&self) -> (usize, usize, usize) {
        let Counts {
            all,
            watching,
            starting,
        } = &*self.counts;
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (count(all), count(watching), count(starting))
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

    /// The partition is ours by another claim: its sessions are told. It is served as much as before: not yet while it is loaded, and no
    /// more while it is handed over.
    pub(crate) fn renew(&self, partition: Partition, epoch: OwnerEpoch) {
        let mut served = self
            .partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(ours) = served.get_mut(&partition) {
            *ours = epoch;
        }
        drop(served);
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        for slot in sessions
            .get(&partition)
            .into_iter()
            .flat_map(HashMap::values)
        {
            slot.renew(epoch);
        }
    }

    /// The policy is another one: every session looks whether that concerns it.
    pub(crate) fn policy_changed(&self) {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        for slot in sessions.values().flat_map(HashMap::values) {
            slot.policy_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use mailbell_core::ownership::Flush;
    use mailbell_proto::push::v1::Health;

    use super::*;

    fn slot(account: &str) -> Arc<Slot> {
        let account = account.parse().unwrap();
        Arc::new(Slot::new(account, Flush::default()))
    }

    #[test]
    fn sessions_are_counted_for_as_long_as_they_are_here() {
        let registry = Registry::default();
        let [one, other] = [
            "default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "acme.01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ]
        .map(slot);
        registry.insert(Arc::clone(&one));
        registry.insert(Arc::clone(&other));
        assert_eq!((registry.sessions(), registry.count()), (2, (2, 0, 2)));
        let queued = one.queue();
        assert_eq!(registry.count(), (2, 0, 1));
        drop(queued);
        assert_eq!(registry.count(), (2, 0, 2));
        one.set_health(Health::Watching);
        other.set_health(Health::Retrying);
        assert_eq!(registry.count(), (2, 1, 0));
        // It begins anew while the one before still ends.
        let next = slot(&one.account.to_string());
        registry.insert(Arc::clone(&next));
        assert_eq!(registry.count(), (2, 0, 1));
        one.set_health(Health::Starting);
        next.set_health(Health::Watching);
        assert_eq!(registry.count(), (2, 1, 0));
        registry.remove(&next.account);
        next.set_health(Health::Starting);
        assert_eq!(registry.count(), (1, 0, 0));
        registry.remove(&next.account);
        registry.remove(&other.account);
        assert_eq!((registry.sessions(), registry.count()), (0, (0, 0, 0)));
    }
}
