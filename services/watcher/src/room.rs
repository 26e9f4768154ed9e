//! How many partitions a watcher takes that is to take so many accounts.

use mailbell_core::ids::PARTITIONS;

/// The limit of accounts (`most`) as one of partitions, by how many `accounts` the `served` ones have. `None`: what the others were
/// told (`before`; 0: nothing) stays. It does as long as it makes no more than a tenth above the limit, and no less than four fifths of
/// it, since each change moves partitions, and those that move have more accounts than others, or fewer. For the same reason it
/// grows by half of what is missing only: else it could grow and shrink for ever.
pub(crate) fn room(most: u32, served: u32, accounts: u32, before: u32) -> Option<u32> {
    if served == 0 || accounts == 0 {
        return None;
    }
    // Accounts times partitions: there is room for `wanted / accounts` partitions, and the others know of `told / accounts`.
    let (wanted, told) = (
        u64::from(most) * u64::from(served),
        u64::from(before) * u64::from(accounts),
    );
    let fits = told.saturating_mul(10) <= wanted.saturating_mul(11);
    if fits && told.saturating_mul(5) >= wanted.saturating_mul(4) {
        return None;
    }
    let all = u32::from(PARTITIONS);
    let exact = u32::try_from(wanted / u64::from(accounts))
        .unwrap_or(u32::MAX)
        .clamp(1, all);
    let missing = exact.saturating_sub(before);
    let room = match before {
        0 => exact,
        _ if missing > 0 => before + missing.div_ceil(2),
        _ => exact,
    };
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
    fn it_shrinks_above_a_tenth_too_many_and_grows_by_half_below_four_fifths() {
        // Of 10, 11 and 8 accounts a partition, and then of half and twice as many.
        assert_eq!(room(1000, 100, 1000, 100), None);
        assert_eq!(room(1000, 100, 1100, 100), None);
        assert_eq!(room(1000, 100, 800, 100), None);
        assert_eq!(room(1000, 100, 500, 100), Some(150));
        assert_eq!(room(1000, 100, 2000, 100), Some(50));
        // Few are no exception.
        assert_eq!(room(100, 2, 50, 2), Some(3));
        assert_eq!(room(100, 4, 200, 4), Some(2));
    }

    #[test]
    fn it_comes_to_rest_though_partitions_differ() {
        // What partition `n` has, the first being the last that is given away. Those in a row that have none made it grow too far,
        // shrink too far, and so on.
        let accounts = |n: u32| if (12..24).contains(&n) { 0 } else { n % 3 };
        let (mut before, mut changes) = (341, 0);
        for _ in 0..20 {
            let owned: u32 = (0..before).map(accounts).sum();
            if let Some(now) = room(21, before, owned, before) {
                before = now;
                changes += 1;
            }
        }
        assert!((1..=5).contains(&changes), "{changes} changes");
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
