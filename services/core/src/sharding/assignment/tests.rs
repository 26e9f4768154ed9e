use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// How many followers a change may have; see the module's documentation.
const FOLLOWERS: usize = 16;

type Weights = fn(usize, usize) -> u32;

fn equal(_set: usize, _member: usize) -> u32 {
    1
}

fn up_to_ten(set: usize, member: usize) -> u32 {
    1 + (xxh3_64(format!("{set}/{member}").as_bytes()) % 10) as u32
}

fn ids(set: usize, members: usize) -> Vec<String> {
    (0..members).map(|i| format!("watcher-{set}-{i}")).collect()
}

fn candidates(ids: &[String], weight: impl Fn(usize) -> u32) -> Vec<Candidate<'_>> {
    ids.iter()
        .enumerate()
        .map(|(i, id)| Candidate {
            id,
            weight: weight(i),
            most: None,
        })
        .collect()
}

fn share(members: &[Candidate<'_>], member: usize) -> f64 {
    let weights: f64 = members.iter().map(|m| f64::from(m.weight)).sum();
    f64::from(PARTITIONS) * f64::from(members[member].weight) / weights
}

/// How many partitions had another owner before, and how many of them went to a member that was there before.
fn moved(before: &Assignment, after: &Assignment, newcomer: &str) -> (usize, usize) {
    let owners = |p| (before.owner(p), after.owner(p));
    let moved: Vec<_> = Partition::all()
        .map(owners)
        .filter(|(before, after)| before != after)
        .collect();
    let followers = moved
        .iter()
        // Who owned nothing before has nothing to stop.
        .filter(|(before, after)| before.is_some() && *after != Some(newcomer))
        .count();
    (moved.len(), followers)
}

/// What one more member changes.
struct Step {
    members: usize,
    /// What moved, in shares of the member that came.
    moved: f64,
    followers: usize,
}

/// Members come one by one, up to 64.
fn steps(set: usize, weights: Weights) -> Vec<Step> {
    let ids = ids(set, 64);
    let all = candidates(&ids, |member| weights(set, member));
    let mut before = assign(&all[..1]);
    (2..=all.len())
        .map(|members| {
            let there = &all[..members];
            let newest = members - 1;
            let after = assign(there);
            let (moved, followers) = moved(&before, &after, there[newest].id);
            let step = Step {
                members,
                moved: moved as f64 / share(there, newest),
                followers,
            };
            before = after;
            step
        })
        .collect()
}

fn mean_moved(steps: &[Step], sizes: std::ops::RangeInclusive<usize>) -> f64 {
    let moved: Vec<_> = steps
        .iter()
        .filter(|step| sizes.contains(&step.members))
        .map(|step| step.moved)
        .collect();
    moved.iter().sum::<f64>() / moved.len() as f64
}

/// Another result here would make members of two releases disagree.
#[test]
fn the_result_is_frozen() {
    let digest = |candidates: &[Candidate<'_>]| {
        let assignment = assign(candidates);
        let owners: Vec<_> = Partition::all()
            .map(|partition| assignment.owner(partition).unwrap_or("-"))
            .collect();
        (owners[..6].join(" "), xxh3_64(owners.join(" ").as_bytes()))
    };
    let named = |id, weight, most| Candidate { id, weight, most };
    let ids = ids(0, 64);
    assert_eq!(
        [
            digest(&[
                named("a", 1, None),
                named("b", 1, None),
                named("c", 1, None)
            ]),
            digest(&[
                named("watcher-0", 100, None),
                named("watcher-1", 250, Some(300)),
                named("watcher-2", u32::MAX, Some(500)),
                named("watcher-3", 1, Some(10)),
            ]),
            digest(&candidates(&ids, |i| 1 + i as u32)),
        ],
        [
            ("a a a c a b".to_owned(), 9_650_847_229_346_833_729),
            (
                "watcher-2 watcher-2 watcher-1 watcher-1 watcher-2 watcher-2".to_owned(),
                11_779_232_177_432_877_501
            ),
            (
                "watcher-0-52 watcher-0-33 watcher-0-61 watcher-0-59 watcher-0-20 watcher-0-40"
                    .to_owned(),
                9_933_362_491_145_918_515
            ),
        ]
    );
}

#[test]
fn costs_are_logarithms() {
    for (place, value) in LOGARITHM.iter().enumerate().take(PARTITIONS.into()) {
        let exact = -(1.0 - place as f64 / f64::from(PARTITIONS)).ln();
        let ours = *value as f64 / 2f64.powi(56);
        assert!((ours - exact).abs() < 1e-12, "{place}: {ours} {exact}");
    }
    let (lowest, highest) = (0, !LOW_BITS);
    for place in 1..usize::from(PARTITIONS) {
        assert!(cost(place - 1, highest, 1) <= cost(place, lowest, 1));
        assert!(cost(place, lowest, 1) < cost(place, highest, 1));
    }
    assert_eq!(LOGARITHM[1024] - LOGARITHM[1023], 2 << 56);
}

/// The bounds, checked against floating point, which is exact enough for shares that are no squares.
#[test]
fn bounds_are_a_share_and_its_root() {
    for weights in 1..=200 {
        for weight in 1..=weights {
            let share = f64::from(PARTITIONS) * f64::from(weight) / f64::from(weights);
            let exact = share + share.sqrt();
            if (exact - exact.round()).abs() < 1e-4 {
                continue;
            }
            let expected = (exact.floor() + 1.0).min(1024.0) as u16;
            assert_eq!(
                bound(1024, weight, weights.into()),
                Some(expected),
                "{weight}/{weights}"
            );
        }
    }
    assert_eq!(bound(1024, 1, 1 << 40), Some(1));
    assert_eq!(bound(1024, u32::MAX, u32::MAX.into()), Some(1024));
    assert_eq!(bound(0, 1, 0), None);
}

#[test]
fn one_member_gets_all_and_none_gets_nothing() {
    let one = |weight, most| {
        let assignment = assign(&[Candidate {
            id: "a",
            weight,
            most,
        }]);
        (assignment.count("a"), assignment.unassigned().count())
    };
    assert_eq!(one(1, None), (1024, 0));
    assert_eq!(one(u32::MAX, Some(u16::MAX)), (1024, 0));
    assert_eq!(one(1, Some(1000)), (1000, 24));
    assert_eq!(one(1, Some(0)), (0, 1024));
    assert_eq!(one(0, None), (0, 1024));
    let nobody = assign(&[]);
    assert_eq!(nobody.unassigned().count(), 1024);
    assert_eq!(nobody.count("a"), 0);
}

#[test]
fn more_members_than_partitions_get_one_at_most_twice_each() {
    let ids = ids(0, 1100);
    let members = candidates(&ids, |_| 1);
    let assignment = assign(&members);
    assert_eq!(assignment.unassigned().count(), 0);
    assert!(ids.iter().all(|id| assignment.count(id) <= 2));
}

/// Caps that are just enough are filled, whatever the weights say.
#[test]
fn hard_caps_that_just_suffice_are_filled() {
    let named = |id, weight, most| Candidate {
        id,
        weight,
        most: Some(most),
    };
    let members = [
        named("a", 1, 600),
        named("b", 1000, 300),
        named("c", 7, 124),
    ];
    let assignment = assign(&members);
    for member in &members {
        assert_eq!(
            assignment.count(member.id),
            usize::from(member.most.unwrap())
        );
    }
    assert_eq!(assignment.unassigned().count(), 0);
}

/// What a small member cannot take is shared by weight among the others, not taken by whoever costs least.
#[test]
fn what_a_cap_leaves_is_shared() {
    let named = |id, weight, most| Candidate { id, weight, most };
    let members = [
        named("a", 8, Some(24)),
        named("b", 1, None),
        named("c", 1, None),
    ];
    let assignment = assign(&members);
    assert_eq!(assignment.count("a"), 24);
    // 500 + sqrt(500) = 522.4
    assert!(assignment.count("b").max(assignment.count("c")) <= 523);
}

#[test]
fn of_equal_ids_one_counts() {
    let named = |id, weight| Candidate {
        id,
        weight,
        most: None,
    };
    assert_eq!(
        assign(&[named("a", 5), named("b", 1), named("a", 1)]),
        assign(&[named("a", 1), named("b", 1)])
    );
}

#[test]
fn loads_follow_the_weights() {
    let sets = 40;
    let mut counts = [0; 4];
    for set in 0..sets {
        let ids = ids(set, 4);
        let assignment = assign(&candidates(&ids, |i| 1 + i as u32));
        for (count, id) in counts.iter_mut().zip(&ids) {
            *count += assignment.count(id);
        }
    }
    for (i, count) in counts.into_iter().enumerate() {
        let relative = count as f64 / (sets as f64 * 102.4 * (i + 1) as f64);
        assert!((0.98..1.02).contains(&relative), "{i}: {relative}");
    }
}

/// Members come one by one, up to 64; read backwards they go.
fn adding_moves_little(weights: Weights) {
    let steps: Vec<_> = (0..4).flat_map(|set| steps(set, weights)).collect();
    for step in &steps {
        assert!(
            step.followers <= FOLLOWERS,
            "to {}: {} followers",
            step.members,
            step.followers
        );
    }
    // A share of 1 of n members is 1 / n of all partitions.
    for (sizes, most) in [
        (2..=8, 1.05),
        (9..=16, 1.05),
        (17..=48, 1.1),
        (49..=64, 1.15),
    ] {
        let mean = mean_moved(&steps, sizes.clone());
        assert!(mean <= most, "to {sizes:?}: {mean} shares");
    }
}

#[test]
fn adding_one_of_equals_moves_little() {
    adding_moves_little(equal);
}

#[test]
fn adding_with_other_weights_moves_little() {
    adding_moves_little(up_to_ten);
}

/// Ids, weights (0 among them) and hard caps of members.
fn some_members() -> impl Strategy<Value = Vec<(String, u32, Option<u16>)>> {
    let weight = prop_oneof![1 => Just(0), 6 => 1..20_u32, 1 => any::<u32>()];
    let most = prop_oneof![2 => Just(None), 1 => (0..400_u16).prop_map(Some)];
    proptest::collection::btree_map("[a-z0-9-]{1,12}", (weight, most), 0..20).prop_map(|members| {
        members
            .into_iter()
            .map(|(id, (weight, most))| (id, weight, most))
            .collect()
    })
}

fn borrowed(members: &[(String, u32, Option<u16>)]) -> Vec<Candidate<'_>> {
    members
        .iter()
        .map(|(id, weight, most)| Candidate {
            id,
            weight: *weight,
            most: *most,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn each_partition_has_one_owner_with_room(members in some_members()) {
        let candidates = borrowed(&members);
        let assignment = assign(&candidates);
        let able = || candidates.iter().filter(|c| c.weight > 0);
        let caps: usize = able().map(|c| usize::from(c.most.unwrap_or(PARTITIONS).min(PARTITIONS))).sum();
        let all = usize::from(PARTITIONS);
        prop_assert_eq!(assignment.unassigned().count(), all.saturating_sub(caps));

        let mut owned = BTreeSet::new();
        for candidate in &candidates {
            let count = assignment.count(candidate.id);
            prop_assert!(count <= usize::from(candidate.most.unwrap_or(PARTITIONS)));
            prop_assert!(candidate.weight > 0 || count == 0);
            for partition in assignment.partitions(candidate.id) {
                prop_assert_eq!(assignment.owner(partition), Some(candidate.id));
                prop_assert!(owned.insert(partition));
            }
        }
        prop_assert_eq!(owned.len() + assignment.unassigned().count(), all);
    }

    #[test]
    fn loads_are_bounded(members in some_members()) {
        let candidates: Vec<_> = borrowed(&members)
            .into_iter()
            .filter(|c| c.weight > 0)
            .map(|c| Candidate { most: None, ..c })
            .collect();
        let assignment = assign(&candidates);
        for (index, candidate) in candidates.iter().enumerate() {
            let share = share(&candidates, index);
            prop_assert!(assignment.count(candidate.id) as f64 <= share + share.sqrt() + 1.0);
        }
    }

    /// Whoever is below its hard cap has its share of what those at theirs leave, as far as bounds go.
    #[test]
    fn loads_are_bounded_beside_hard_caps(members in some_members()) {
        let candidates: Vec<_> = borrowed(&members)
            .into_iter()
            .filter(|c| c.weight > 0)
            .collect();
        let assignment = assign(&candidates);
        // At their caps: those whose share of what is left is more, until nobody's is.
        let (mut rest, mut free) = (f64::from(PARTITIONS), candidates.clone());
        loop {
            let weights: f64 = free.iter().map(|c| f64::from(c.weight)).sum();
            let share = |c: &Candidate<'_>| rest * f64::from(c.weight) / weights;
            let most = |c: &Candidate<'_>| f64::from(c.most.unwrap_or(u16::MAX));
            let Some(capped) = free.iter().position(|c| most(c) <= share(c)) else {
                for candidate in &free {
                    let share = share(candidate);
                    let count = assignment.count(candidate.id) as f64;
                    prop_assert!(count <= share + share.sqrt() + 1.0, "{count} of {share}");
                }
                break;
            };
            rest -= most(&free.remove(capped));
        }
    }

    #[test]
    fn order_does_not_matter(
        (members, shuffled) in some_members().prop_flat_map(|m| (Just(m.clone()), Just(m).prop_shuffle()))
    ) {
        prop_assert_eq!(assign(&borrowed(&members)), assign(&borrowed(&shuffled)));
    }

    /// One that comes (or, read backwards, goes), of any weight, among any without hard caps.
    #[test]
    fn one_more_moves_its_bound_and_few_followers(
        members in some_members(), weight in 1..20_u32
    ) {
        let mut candidates: Vec<_> = borrowed(&members)
            .into_iter()
            .map(|c| Candidate { most: None, weight: c.weight % 20, ..c })
            .collect();
        let before = assign(&candidates);
        candidates.push(Candidate { id: "new_one", weight, most: None });
        let after = assign(&candidates);
        let share = share(&candidates, candidates.len() - 1);
        let (moved, followers) = moved(&before, &after, "new_one");
        prop_assert!(moved as f64 <= share + share.sqrt() + 1.0 + FOLLOWERS as f64);
        prop_assert!(followers <= FOLLOWERS, "{} followers", followers);
    }

    /// The same where hard caps bind: those that are full are many, so that more follows.
    #[test]
    fn with_hard_caps_that_bind_more_follows(
        members in proptest::collection::vec((1..11_u32, 1..1000_u16), 2..49),
        set in 0..1000_usize,
        room in 600..2000_usize,
    ) {
        let ids = ids(set, members.len());
        // Together they take about `room`: too little, hardly enough, or nearly twice as much as there is.
        let caps: usize = members.iter().map(|(_, most)| usize::from(*most)).sum();
        let candidates: Vec<_> = ids
            .iter()
            .zip(&members)
            .map(|(id, (weight, most))| Candidate {
                id,
                weight: *weight,
                most: u16::try_from(usize::from(*most) * room / caps + 1).ok(),
            })
            .collect();
        let (newcomer, others) = candidates.split_last().unwrap();
        let before = assign(others);
        let after = assign(&candidates);
        let (_, followers) = moved(&before, &after, newcomer.id);
        let taken = after.count(newcomer.id);
        // Read backwards: one goes, and of what had an owner only for its sake some is nobody's again.
        let (gone, _) = moved(&after, &before, newcomer.id);
        let refused = Partition::all().filter(|one| before.owner(*one).is_none() && after.owner(*one).is_some()).count();
        prop_assert!(gone <= 3 * taken + FOLLOWERS + refused, "{gone} move");
        prop_assert!(taken <= usize::from(newcomer.most.unwrap()));
        prop_assert!(followers <= 2 * taken + FOLLOWERS, "{} followers of {}", followers, taken);
    }

    /// A member without weight is as good as none.
    #[test]
    fn without_weight_nothing_changes(members in some_members()) {
        let mut candidates = borrowed(&members);
        let before = assign(&candidates);
        candidates.push(Candidate { id: "new_one", weight: 0, most: None });
        let after = assign(&candidates);
        prop_assert!(Partition::all().all(|p| before.owner(p) == after.owner(p)));
    }
}
