//! Watching records.

use mailbell_core::ids::Group;

/// What a watch sees. For one key the order is that of its writes.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<K, V> {
    /// It was written.
    Put {
        /// Which.
        key: K,
        /// As it is now.
        value: V,
        /// Its revision.
        revision: u64,
    },
    /// It was deleted.
    Removed {
        /// Which.
        key: K,
    },
    /// Everything that the leader had when the watch (or this group's restart) began has been told. One for each group.
    Loaded {
        /// Of which group; group 0 for what has no groups.
        group: Group,
    },
    /// The bucket was lost or made anew: forget everything of this group, it is told again.
    Restarted {
        /// Of which group; group 0 for what has no groups.
        group: Group,
    },
}

/// A watch over records. Reads only as fast as it is asked.
#[derive(Debug)]
pub struct Watch<K, V> {
    _kind: std::marker::PhantomData<(K, V)>,
}

impl<K, V> Watch<K, V> {
    /// The next change; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Change<K, V>> {
        todo!()
    }
}
