//! How many partitions a watcher takes that is to take so many accounts.

use mailbell_core::ids::PARTITIONS;

/// The limit of accounts (`most`) as one of partitions, by how many `accounts` the `served` ones have. `None`: what the others were
/// told (`before`; 0: nothing) stays. It does unless it is off by more than a tenth, since each change moves partitions, and those
/// that move have more accounts than others, or fewer.
pub(crate) fn room(most: u32, served: u32, accounts: u32, before: u32) -> Option<u32> {
    if served == 0 || accounts == 0 {
        return None;
    }
    // Accounts times partitions: there is room for `wanted / accounts` partitions, and the others know of `told / accounts`.
    let (wanted, told) = (
        u64::from(most) * u64::from(served),
        u64::from(before) * u64::from(accounts),
    );
    if wanted.abs_diff(told).saturating_mul(10) <= told {
        return None;
    }
    let room = u32::try_from(wanted / u64::from(accounts))
        .unwrap_or(u32::MAX)
        .clamp(1, u32::from(PARTITIONS));
    (room != before).then_some(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_before_there_is_something_to_judge_by() {
        assert_eq!(room(1000, 0, 0, 0), None);
        assert_eq!(room(1000, 10, 0, 0), None);
        assert_eq!(room(1000, 10, 100, 0), Some(100));
    }

    #[test]
    fn it_grows_and_shrinks_when_it_is_off_by_more_than_a_tenth() {
        // Of 10, 11 and 9 accounts a partition, and then of half and twice as many.
        assert_eq!(room(1000, 100, 1000, 100), None);
        assert_eq!(room(1000, 100, 1100, 100), None);
        assert_eq!(room(1000, 100, 910, 100), None);
        assert_eq!(room(1000, 100, 500, 100), Some(200));
        assert_eq!(room(1000, 100, 2000, 100), Some(50));
        // Few are no exception.
        assert_eq!(room(100, 2, 50, 2), Some(4));
        assert_eq!(room(100, 4, 200, 4), Some(2));
    }

    #[test]
    fn one_partition_is_taken_though_it_is_larger_than_the_room() {
        assert_eq!(room(100, 1, 250, 0), Some(1));
        assert_eq!(room(100, 1, 250, 1), None);
        assert_eq!(room(100, 3, 750, 3), Some(1));
        assert_eq!(room(0, 3, 750, 1), None);
    }

    #[test]
    fn there_is_no_room_for_more_than_all() {
        let all = u32::from(PARTITIONS);
        assert_eq!(room(1_000_000, 10, 10, 0), Some(all));
        assert_eq!(room(1_000_000, 10, 10, all), None);
        assert_eq!(room(u32::MAX, all, 1, all), None);
    }

    #[test]
    fn a_partition_at_the_edge_is_not_given_away_and_taken_again() {
        let partitions = [33, 33, 35];
        // A little more than the first three have, and a little less; it owns as many as it has room for.
        for most in [99, 100, 101, 102] {
            let (mut before, mut changes) = (2, 0);
            for _ in 0..20 {
                let owned = partitions.iter().take(before as usize);
                let served = before.min(3);
                if let Some(now) = room(most, served, owned.sum(), before) {
                    before = now;
                    changes += 1;
                }
            }
            assert!(changes <= 1, "{most}: {changes} changes");
        }
    }
}
