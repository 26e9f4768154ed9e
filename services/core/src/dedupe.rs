//! Which facts a client has already handed to its app: a bounded set of recent keys.

use std::collections::{HashSet, VecDeque};

use mailbell_proto::push::v1::EventKey;
use xxhash_rust::xxh3::xxh3_64;

use crate::event::message_id;

/// The digest of a key, by which it is kept.
#[must_use]
pub fn key_digest(key: &EventKey) -> u64 {
    xxh3_64(message_id(key).as_bytes())
}

/// The last keys, by their digests. The oldest leave first.
#[derive(Debug, Clone)]
pub struct RecentKeys {
    order: VecDeque<u64>,
    known: HashSet<u64>,
    most: usize,
}

impl RecentKeys {
    /// An empty set of at most `most` keys.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            order: VecDeque::new(),
            known: HashSet::new(),
            most: most.max(1),
        }
    }

    /// Takes in a key. False: it was known, and the fact is a repeat.
    pub fn insert(&mut self, key: &EventKey) -> bool {
        self.insert_digest(key_digest(key))
    }

    /// Whether a key is known.
    #[must_use]
    pub fn contains(&self, key: &EventKey) -> bool {
        self.contains_digest(key_digest(key))
    }

    /// Whether a digest is known.
    #[must_use]
    pub fn contains_digest(&self, digest: u64) -> bool {
        self.known.contains(&digest)
    }

    /// Takes in a digest: of a key, or of what else a client must recognize. False: it was known.
    pub fn insert_digest(&mut self, digest: u64) -> bool {
        if !self.known.insert(digest) {
            return false;
        }
        self.order.push_back(digest);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    /// The digests, oldest first, to be stored beside the cursor.
    pub fn digests(&self) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().copied()
    }

    /// A set from stored digests.
    #[must_use]
    pub fn restore(most: usize, digests: impl IntoIterator<Item = u64>) -> Self {
        let mut keys = Self::new(most);
        for digest in digests {
            keys.insert_digest(digest);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uid: u32) -> EventKey {
        EventKey {
            uid,
            ..EventKey::default()
        }
    }

    #[test]
    fn repeats_are_known_and_memory_is_bounded() {
        let mut keys = RecentKeys::new(3);
        for uid in 1..=3 {
            assert!(keys.insert(&key(uid)));
            assert!(!keys.insert(&key(uid)));
        }
        assert!(keys.insert(&key(4)));
        assert!(!keys.contains(&key(1)) && keys.contains(&key(2)));
        let restored = RecentKeys::restore(3, keys.digests());
        assert!(restored.contains(&key(4)) && !restored.contains(&key(1)));
        assert_eq!(restored.digests().count(), 3);
    }
}
