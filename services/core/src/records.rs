//! Records of one partition, known by a read of all of them and by changes that are told beside it.
//!
//! A read that ends at some revision has in it every change up to there, whatever comes late; changes after it are applied in
//! their order. While a read is under way, changes wait for it, the newest of each key only: so nothing that is read replaces
//! what is newer, and a key that was removed meanwhile stays removed.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

/// Where a bucket stood. Revisions count within a history only: a bucket that is made anew begins again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Counts the restarts of who tells the changes, from 1.
    pub history: u32,
    /// The revision, within the history.
    pub revision: u64,
}

/// A change: the key, and its value or that it is gone.
pub type Told<K, V> = (K, Option<V>);

/// Decides what of reads and changes counts. Holds no records but those that wait for a read.
#[derive(Debug)]
pub struct Merge<K, V> {
    /// Up to where all was read.
    read: Version,
    /// The newest history that was told of.
    history: u32,
    /// What was told while a read is under way; `None`: no read is.
    waiting: Option<HashMap<K, (Version, Option<V>)>>,
}

impl<K: Eq + Hash, V> Merge<K, V> {
    /// Nothing is known, and a read is under way.
    #[must_use]
    pub fn reading() -> Self {
        Self {
            read: Version::default(),
            history: 0,
            waiting: Some(HashMap::new()),
        }
    }

    /// A read begins. [`Merge::on_read`] must follow.
    pub fn begin_read(&mut self) {
        self.waiting.get_or_insert_with(HashMap::new);
    }

    /// A change was told. What is to be applied now, if anything.
    pub fn on_change(&mut self, key: K, version: Version, value: Option<V>) -> Option<Told<K, V>> {
        if version <= self.read {
            return None;
        }
        let Some(waiting) = &mut self.waiting else {
            return Some((key, value));
        };
        match waiting.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert((version, value));
            }
            Entry::Occupied(mut told) => {
                if told.get().0 < version {
                    told.insert((version, value));
                }
            }
        }
        None
    }

    /// The read is done: `records` are all that there were at `version`. All that there are now.
    pub fn on_read(
        &mut self,
        version: Version,
        records: impl IntoIterator<Item = (K, V)>,
    ) -> HashMap<K, V> {
        let mut all: HashMap<K, V> = records.into_iter().collect();
        for (key, (told, value)) in self.waiting.take().unwrap_or_default() {
            if told <= version {
                continue;
            }
            match value {
                Some(value) => {
                    all.insert(key, value);
                }
                None => {
                    all.remove(&key);
                }
            }
        }
        self.read = self.read.max(version);
        all
    }

    /// Changes may have been missed before this history began: what was read in an older one is to be read anew.
    pub fn on_restarted(&mut self, history: u32) {
        self.history = self.history.max(history);
    }

    /// Whether a read must begin: what is known is of an older history, and none is under way.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        self.waiting.is_none() && self.read.history < self.history
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const fn at(history: u32, revision: u64) -> Version {
        Version { history, revision }
    }

    fn sorted(all: HashMap<char, u32>) -> Vec<(char, u32)> {
        all.into_iter()
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect()
    }

    #[test]
    fn what_is_newer_than_the_read_wins_and_what_is_older_is_void() {
        let mut merge = Merge::reading();
        assert_eq!(merge.on_change('a', at(1, 5), Some(5)), None);
        assert_eq!(merge.on_change('b', at(1, 12), Some(12)), None);
        assert_eq!(merge.on_change('b', at(1, 11), Some(11)), None);
        assert_eq!(merge.on_change('c', at(1, 13), None), None);
        let all = merge.on_read(at(1, 10), [('a', 7), ('b', 1), ('c', 2), ('d', 3)]);
        assert_eq!(sorted(all), [('a', 7), ('b', 12), ('d', 3)]);
        // A consumer that lags tells old things.
        assert_eq!(merge.on_change('e', at(1, 10), Some(10)), None);
        assert_eq!(merge.on_change('d', at(1, 9), None), None);
        assert_eq!(merge.on_change('d', at(1, 14), None), Some(('d', None)));
    }

    #[test]
    fn a_removal_that_the_read_has_is_not_undone() {
        let mut merge = Merge::<_, u32>::reading();
        // Told late: the read saw the removal at 8 already.
        assert_eq!(merge.on_change('a', at(1, 6), Some(6)), None);
        assert!(merge.on_read(at(1, 9), []).is_empty());
        assert_eq!(merge.on_change('a', at(1, 7), Some(7)), None);
    }

    #[test]
    fn a_bucket_made_anew_counts_from_the_start() {
        let mut merge = Merge::reading();
        let _ = merge.on_read(at(1, 900), [('a', 1)]);
        assert!(!merge.wants_read());
        merge.on_restarted(2);
        assert!(merge.wants_read());
        // A lower revision of a newer history is newer.
        assert_eq!(
            merge.on_change('a', at(2, 1), Some(2)),
            Some(('a', Some(2)))
        );
        merge.begin_read();
        assert!(!merge.wants_read());
        assert_eq!(merge.on_change('b', at(2, 4), Some(4)), None);
        assert_eq!(
            sorted(merge.on_read(at(2, 3), [('c', 3)])),
            [('b', 4), ('c', 3)]
        );
        assert!(!merge.wants_read());
    }

    #[test]
    fn a_read_of_an_older_history_is_read_again() {
        let mut merge = Merge::reading();
        merge.on_restarted(2);
        assert_eq!(merge.on_change('a', at(2, 1), Some(2)), None);
        assert_eq!(sorted(merge.on_read(at(1, 50), [('a', 1)])), [('a', 2)]);
        assert!(merge.wants_read());
    }

    proptest! {
        /// Whenever the read happens, and however late changes are told: the end is what the last write of each key says.
        #[test]
        fn the_last_write_counts(
            writes in prop::collection::vec((0..4_u8, prop::option::of(any::<u32>())), 1..40),
            read_at in 0..40_usize,
            told_before in 0..40_usize,
        ) {
            let read_at = read_at.min(writes.len());
            let numbered = || (1_u64..).zip(writes.iter());
            let state = |up_to: usize| {
                let mut state = BTreeMap::new();
                for (key, value) in writes.iter().take(up_to) {
                    match value {
                        Some(value) => { state.insert(*key, *value); }
                        None => { state.remove(key); }
                    }
                }
                state
            };
            let mut merge = Merge::reading();
            for (revision, (key, value)) in numbered().take(told_before) {
                prop_assert_eq!(merge.on_change(*key, at(1, revision), *value), None);
            }
            let version = at(1, u64::try_from(read_at).unwrap());
            let mut all: BTreeMap<u8, u32> = merge.on_read(version, state(read_at)).into_iter().collect();
            for (revision, (key, value)) in numbered().skip(told_before) {
                match merge.on_change(*key, at(1, revision), *value) {
                    Some((key, Some(value))) => { all.insert(key, value); }
                    Some((key, None)) => { all.remove(&key); }
                    None => {}
                }
            }
            prop_assert_eq!(all, state(writes.len()));
        }
    }
}
