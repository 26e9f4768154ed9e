//! How many partitions a watcher takes that is to take so many accounts.

use mailbell_core::ids::PARTITIONS;

/// What it begins with, before anything is known of the partitions. From there it grows to at most twice what is known.
pub(crate) const FIRST: u32 = 8;

/// Partitions and the accounts in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    pub(crate) partitions: u32,
    pub(crate) accounts: u32,
}

impl Sample {
    pub(crate) fn add(&mut self, accounts: u32) {
        self.partitions += 1;
        self.accounts = self.accounts.saturating_add(accounts);
    }

    /// The accounts of so many partitions like these, if anything is known of them.
    fn accounts_of(self, partitions: u32) -> Option<u64> {
        let product = u64::from(partitions) * u64::from(self.accounts);
        product.checked_div(u64::from(self.partitions))
    }

    /// So many partitions like these have the accounts, or all if these have none.
    fn partitions_of(self, accounts: u32) -> u32 {
        let product = u64::from(accounts) * u64::from(self.partitions);
        let of = product.checked_div(u64::from(self.accounts));
        of.map_or(ALL, |of| u32::try_from(of).unwrap_or(u32::MAX))
    }
}

const ALL: u32 = PARTITIONS as u32;

/// The limit of accounts (`most`) as one of partitions, where `own` are served here, and `known` are these and those of which others
/// say how many accounts they have. `None`: what the others were told (`before`) stays.
///
/// It does as long as it makes no more than a tenth above the limit, and no less than four fifths of it, since each change moves
/// partitions, and those that move have more accounts than others, or fewer. For the same reason it grows by half of what is missing
/// only: else it could grow and shrink for ever. While partitions wait for somebody who has room (`wanted`), all the room there is is
/// told: these come from nobody, and what nobody else has room for is kept, so nothing goes back and forth.
pub(crate) fn room(
    most: u32,
    own: Sample,
    known: Sample,
    before: u32,
    wanted: bool,
) -> Option<u32> {
    let spare = most.saturating_sub(own.accounts);
    let exact = match own.accounts > most {
        true => own.partitions_of(most),
        false => own.partitions.saturating_add(known.partitions_of(spare)),
    };
    // What was seen of a few says little of many.
    let exact = exact
        .min(known.partitions.saturating_mul(2).max(FIRST))
        .clamp(1, ALL);
    let accounts = match before.checked_sub(own.partitions) {
        Some(more) => u64::from(own.accounts) + known.accounts_of(more).unwrap_or_default(),
        None => own.accounts_of(before).unwrap_or_default(),
    };
    let most = u64::from(most);
    let room = if accounts * 10 > most * 11 {
        exact.min(before)
    } else if wanted {
        exact.max(before)
    } else if accounts * 5 < most * 4 {
        before + exact.saturating_sub(before).div_ceil(2)
    } else {
        before
    };
    (room != before).then_some(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(partitions: u32, accounts: u32) -> Sample {
        Sample {
            partitions,
            accounts,
        }
    }

    /// Nothing is known but what is owned, and nobody waits.
    fn alone(most: u32, partitions: u32, accounts: u32, before: u32) -> Option<u32> {
        let own = sample(partitions, accounts);
        room(most, own, own, before, false)
    }

    #[test]
    fn it_grows_to_no_more_than_twice_what_is_known() {
        let nothing = Sample::default();
        assert_eq!(room(1000, nothing, nothing, FIRST, true), None);
        // They may have no accounts by chance.
        let (mut rooms, mut before) = (vec![FIRST], FIRST);
        while let Some(now) = room(1000, sample(before, 0), sample(before, 0), before, true) {
            before = now;
            rooms.push(now);
        }
        assert_eq!(rooms, [8, 16, 32, 64, 128, 256, 512, 1024]);
        // After a restart all is known from others, or from before: ten in each.
        let known = sample(1024, 10_240);
        assert_eq!(room(1000, nothing, known, FIRST, true), Some(100));
        assert_eq!(room(1000, nothing, known, FIRST, false), Some(54));
        assert_eq!(room(50, nothing, known, FIRST, true), Some(5));
    }

    #[test]
    fn it_shrinks_above_a_tenth_too_many_and_grows_by_half_below_four_fifths() {
        // Of 10, 11 and 8 accounts a partition, and then of half and twice as many.
        assert_eq!(alone(1000, 100, 1000, 100), None);
        assert_eq!(alone(1000, 100, 1100, 100), None);
        assert_eq!(alone(1000, 100, 800, 100), None);
        assert_eq!(alone(1000, 100, 500, 100), Some(150));
        assert_eq!(alone(1000, 100, 2000, 100), Some(50));
        // Few are no exception.
        assert_eq!(alone(100, 2, 50, 2), Some(3));
        assert_eq!(alone(100, 4, 200, 4), Some(2));
    }

    #[test]
    fn whoever_waits_is_taken_up_to_the_limit() {
        let (own, known) = (sample(100, 800), sample(1024, 8192));
        assert_eq!(room(1000, own, known, 100, false), None);
        assert_eq!(room(1000, own, known, 100, true), Some(125));
        let (own, known) = (sample(125, 1050), sample(1024, 8192));
        assert_eq!(room(1000, own, known, 125, true), None);
        // What grows where it is stays when nobody has room for it, and shrinks the room once.
        let own = sample(125, 2000);
        assert_eq!(room(1000, own, known, 125, true), Some(62));
        assert_eq!(room(1000, own, known, 62, true), None);
    }

    #[test]
    fn it_comes_to_rest_though_partitions_differ() {
        // What partition `n` has, the first being the last that is given away. Those in a row that have none made it grow too far,
        // shrink too far, and so on.
        let accounts = |n: u32| if (12..24).contains(&n) { 0 } else { n % 3 };
        let (mut before, mut changes) = (341, 0);
        for _ in 0..20 {
            let owned = (0..before).map(accounts).sum();
            if let Some(now) = alone(21, before, owned, before) {
                before = now;
                changes += 1;
            }
        }
        assert!((1..=5).contains(&changes), "{changes} changes");
    }

    #[test]
    fn one_partition_is_taken_though_it_is_larger_than_the_room() {
        assert_eq!(alone(100, 1, 250, 8), Some(1));
        assert_eq!(alone(100, 1, 250, 1), None);
        assert_eq!(alone(100, 3, 750, 3), Some(1));
        assert_eq!(alone(0, 3, 750, 1), None);
    }

    #[test]
    fn there_is_no_room_for_more_than_all() {
        let known = sample(ALL, ALL);
        let own = sample(10, 10);
        assert_eq!(room(1_000_000, own, known, FIRST, true), Some(ALL));
        assert_eq!(room(1_000_000, own, known, ALL, true), None);
        assert_eq!(alone(u32::MAX, ALL, u32::MAX, ALL), None);
    }

    #[test]
    fn a_partition_at_the_edge_is_not_given_away_and_taken_again() {
        let partitions = [33, 33, 35];
        // A little more than the first three have, and a little less; it owns as many as it has room for.
        for most in [99, 100, 101, 102] {
            for wanted in [false, true] {
                let (mut before, mut changes) = (2, 0);
                for _ in 0..20 {
                    let owned = partitions.iter().take(before as usize);
                    let own = sample(before.min(3), owned.sum());
                    if let Some(now) = room(most, own, own, before, wanted) {
                        before = now;
                        changes += 1;
                    }
                }
                assert!(changes <= 1, "{most}: {changes} changes");
            }
        }
    }
}
