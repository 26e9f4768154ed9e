use mailbell_proto::bus::v1::{Claim, Member, MemberLoad};

use super::*;
use crate::{
    sharding::{Candidate, assign},
    timing::Timing,
};

const S: Duration = Duration::from_secs(1);

/// A fourth member gets its quarter from three.
const FOURTH: Receivers = Receivers {
    receivers: 1,
    parts: 0.25,
    givers: 3,
    draining: 0,
};

/// How many accounts go in so many seconds, in partitions of `size`.
fn given(giving: &mut Giving, seconds: std::ops::Range<u32>, size: u32, to: Receivers) -> u32 {
    let mut given = 0;
    for step in seconds.start * 5..seconds.end * 5 {
        giving.fill(S * step / 5, to);
        while giving.give(size) {
            given += size;
        }
    }
    given
}

fn with_logins(logins: f64) -> Giving {
    let mut giving = Giving::new(Pace::default());
    giving.set_logins(logins);
    giving.fill(Duration::ZERO, FOURTH);
    giving
}

#[test]
fn no_more_is_given_than_can_log_in() {
    // 12.5 logins a second are the fourth's part of 50, and a third of them are for what we give.
    let mut giving = with_logins(50.0);
    let a_minute = given(&mut giving, 0..60, 3, FOURTH);
    assert!((245..=260).contains(&a_minute), "{a_minute}");
    // Partitions without accounts wait for nobody.
    assert!(giving.give(0));
    // A large one goes when the bucket is full, and then nothing until it is paid for.
    let mut large = with_logins(50.0);
    assert_eq!(given(&mut large, 0..60, 100, FOURTH), 300);
    // What is not paid for when nothing moves any more is forgotten.
    let nobody = Receivers::default();
    large.fill(S * 60, nobody);
    large.fill(S * 61, nobody);
    large.fill(S * 61, FOURTH);
    assert!(large.give(100));
}

#[test]
fn who_drains_goes_first() {
    // Of the 12.5 logins a second none are left for two that give for balance alone.
    let drained = Receivers {
        draining: 1,
        ..FOURTH
    };
    let a_minute = |drains, to| {
        let mut giving = with_logins(50.0);
        giving.drain(drains);
        given(&mut giving, 0..60, 3, to)
    };
    let first = a_minute(true, drained);
    assert!((735..=770).contains(&first), "{first}");
    // They never come to a stand.
    let others = a_minute(false, drained);
    assert!((30..=45).contains(&others), "{others}");
    // Two that drain share it.
    let two = a_minute(
        true,
        Receivers {
            draining: 2,
            ..FOURTH
        },
    );
    assert!((367..=385).contains(&two), "{two}");
    // Where more may log in than one that drains can give, nobody waits for it.
    let mut plenty = with_logins(1e5);
    let seconds = given(&mut plenty, 0..10, 9, drained);
    assert!((9_000..=10_000).contains(&seconds), "{seconds}");
}

#[test]
fn it_never_comes_to_a_stand() {
    let mut giving = with_logins(0.0);
    let ten_minutes = given(&mut giving, 0..600, 3, FOURTH);
    assert!((295..=310).contains(&ten_minutes), "{ten_minutes}");
}

#[test]
fn many_hosts_are_bound_by_the_members_alone() {
    let mut giving = with_logins(1e9);
    let seconds = given(&mut giving, 0..10, 9, FOURTH);
    assert!((9_000..=10_000).contains(&seconds), "{seconds}");
    let mut nothing_known = with_logins(f64::NAN);
    assert_eq!(nothing_known.pace(FOURTH), Pace::default());
    assert!(given(&mut nothing_known, 0..10, 9, FOURTH) >= 9_000);
}

#[test]
fn a_backlog_is_what_takes_longer_than_a_few_seconds() {
    let giving = with_logins(50.0);
    assert_eq!(giving.pace(FOURTH).soon, 62);
    let two = Receivers {
        receivers: 2,
        parts: 0.5,
        givers: 2,
        draining: 0,
    };
    assert_eq!(giving.pace(two).soon, 62);
    let small = Receivers {
        parts: 0.01,
        ..FOURTH
    };
    assert_eq!(giving.pace(small).soon, LEAST_BACKLOG);
}

#[test]
fn one_that_leaves_waits_for_nobody() {
    let mut giving = with_logins(1.0);
    let mut left = 100_000;
    giving.leave(S * 20, left);
    for step in 0..50 {
        giving.fill(S * step / 5, FOURTH);
        while left > 0 && giving.give(29) {
            left = left.saturating_sub(30);
        }
    }
    assert!(left < 3_000, "{left} are left after half of the time");
}

/// Claims of `held`, and members of these names and addresses that live.
fn receivers(held: &[(u16, &str)], members: &[(&str, &str)], most: Option<u16>) -> Receivers {
    receivers_of(held, members, most, |_| {})
}

/// The same with members that say more of themselves.
fn receivers_of(
    held: &[(u16, &str)],
    members: &[(&str, &str)],
    most: Option<u16>,
    says: impl Fn(&mut Member),
) -> Receivers {
    let timing = Timing::default();
    let mut claims = Claims::new("a", "1", &timing);
    for (revision, (partition, member)) in (1..).zip(held) {
        let claim = Claim {
            schema: 1,
            member: (*member).to_owned(),
            incarnation: "1".to_owned(),
            owner_epoch: 1,
            ..Claim::default()
        };
        let partition = Partition::new(*partition).unwrap();
        claims.see(Duration::ZERO, partition, revision, Some(claim));
    }
    let mut observer = Observer::new(&timing);
    observer.renewed(Duration::ZERO);
    let records = members.iter().map(|(id, egress)| {
        let mut record = Member {
            id: (*id).to_owned(),
            incarnation: "1".to_owned(),
            egress: (*egress).to_owned(),
            ..Member::default()
        };
        says(&mut record);
        (record, 1)
    });
    observer.read(Duration::ZERO, Duration::ZERO, records);
    let candidates: Vec<Candidate<'_>> = members
        .iter()
        .map(|(id, _)| Candidate {
            id,
            weight: 100,
            most,
        })
        .collect();
    let partitions: Vec<Partition> = Partition::all().collect();
    Receivers::new(&partitions, &claims, &observer, &assign(&candidates))
}

/// A partition that each of two members should own.
fn of_each() -> [u16; 2] {
    let both = ["a", "b"].map(|id| Candidate {
        id,
        weight: 100,
        most: None,
    });
    let assignment = assign(&both);
    ["a", "b"].map(|id| assignment.partitions(id).next().unwrap().number())
}

#[test]
fn who_holds_what_another_should_own_gives() {
    let [of_a, of_b] = of_each();
    let together = [("a", ""), ("b", "")];
    // Each is where it should be.
    let rest = receivers(&[(of_a, "a"), (of_b, "b")], &together, None);
    assert_eq!(rest, Receivers::default());
    // As many as before, but each has what is the other's.
    let swapped = receivers(&[(of_b, "a"), (of_a, "b")], &together, None);
    assert_eq!((swapped.receivers, swapped.givers), (2, 2));
    assert!((swapped.parts - 1.0).abs() < 1e-9, "{swapped:?}");
    let one = receivers(&[(of_b, "a")], &together, None);
    assert_eq!((one.receivers, one.givers), (1, 1));
    assert!((0.4..0.6).contains(&one.parts), "{one:?}");
    // Each with an address of its own has all of its budget.
    let apart = receivers(&[(of_b, "a")], &[("a", "x"), ("b", "y")], None);
    assert!((apart.parts - 1.0).abs() < 1e-9, "{apart:?}");
    // The dead give nothing: it is taken.
    assert_eq!(receivers(&[(of_b, "c")], &together, None).receivers, 0);
}

#[test]
fn one_that_drains_and_cannot_give_yet_holds_up_nobody() {
    let [of_a, of_b] = of_each();
    let drains = |load: Option<MemberLoad>| {
        let swapped = [(of_b, "a"), (of_a, "b")];
        let says = |member: &mut Member| {
            (member.draining, member.load) = (member.id == "a", load);
        };
        let receivers = receivers_of(&swapped, &[("a", ""), ("b", "")], None, says);
        assert_eq!(receivers.givers, 2);
        receivers.draining
    };
    let load = |serving, loading, handing_over| {
        Some(MemberLoad {
            serving,
            loading,
            handing_over,
            ..MemberLoad::default()
        })
    };
    // Nothing but what is being loaded, for as long as its streams are away.
    assert_eq!(drains(load(0, 1, 0)), 0);
    assert_eq!(drains(load(1, 1, 0)), 1);
    assert_eq!(drains(load(0, 1, 1)), 1);
    // Its record may be older than its claims.
    assert_eq!(drains(load(0, 0, 0)), 1);
    assert_eq!(drains(None), 1);
}
