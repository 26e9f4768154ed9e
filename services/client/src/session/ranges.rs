//! A bounded set of UIDs, kept as ranges: the UIDs of a folder mostly follow one another.

use serde::{Deserialize, Serialize};

/// A set keeps at most this many ranges; the lowest leave first, since what is old is the least likely to be told again.
const MOST: usize = 2048;

/// A set of UIDs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// Takes in a UID.
    pub(crate) fn insert(&mut self, uid: u32) {
        let at = self.0.partition_point(|(_, last)| *last < uid);
        if self.0.get(at).is_some_and(|(first, _)| *first <= uid) {
            return;
        }
        let joins_next = self
            .0
            .get(at)
            .is_some_and(|(first, _)| uid.checked_add(1) == Some(*first));
        let before = at.checked_sub(1).and_then(|before| {
            let (_, last) = *self.0.get(before)?;
            (last.checked_add(1) == Some(uid)).then_some(before)
        });
        match (before, joins_next) {
            (Some(before), true) => {
                let (_, last) = self.0.remove(at);
                if let Some(range) = self.0.get_mut(before) {
                    range.1 = last;
                }
            }
            (Some(before), false) => {
                if let Some(range) = self.0.get_mut(before) {
                    range.1 = uid;
                }
            }
            (None, true) => {
                if let Some(range) = self.0.get_mut(at) {
                    range.0 = uid;
                }
            }
            (None, false) => self.0.insert(at, (uid, uid)),
        }
        if self.0.len() > MOST {
            self.0.remove(0);
        }
    }

    /// The highest UID that it holds.
    pub(crate) fn highest(&self) -> Option<u32> {
        self.0.last().map(|(_, last)| *last)
    }

    /// Whether it holds a UID.
    pub(crate) fn contains(&self, uid: u32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < uid);
        self.0.get(at).is_some_and(|(first, _)| *first <= uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(uids in proptest::collection::vec(1u32..60, 0..80)) {
            let mut ranges = Ranges::default();
            let mut set = BTreeSet::new();
            for uid in uids {
                ranges.insert(uid);
                set.insert(uid);
                for probe in 0..62 {
                    prop_assert_eq!(ranges.contains(probe), set.contains(&probe));
                }
                prop_assert_eq!(ranges.highest(), set.last().copied());
                prop_assert!(ranges.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            }
        }
    }

    #[test]
    fn it_is_bounded_and_stands_the_extremes() {
        let mut ranges = Ranges::default();
        for uid in 1..=3 * u32::try_from(MOST).unwrap() {
            ranges.insert(uid * 2);
        }
        assert_eq!(ranges.0.len(), MOST);
        assert!(!ranges.contains(2));
        ranges.insert(u32::MAX);
        ranges.insert(u32::MAX - 1);
        ranges.insert(u32::MAX);
        assert!(ranges.contains(u32::MAX));
    }
}
