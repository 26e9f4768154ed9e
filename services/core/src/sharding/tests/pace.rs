//! How fast partitions are given away, and to whom not yet.

use super::*;

const S: Duration = Duration::from_secs(1);
/// Ticks a second.
const TICKS: usize = 4;

/// One that owns everything, `accounts` in each partition, and gives away with this pace.
fn owner_of_all(accounts: u32, pace: Pace) -> World {
    let mut world = World::new();
    (world.accounts, world.pace) = (accounts, pace);
    world.start("a", "1");
    world.run(10);
    assert_eq!(world.count("a"), 1024);
    world
}

/// What stops nobody but by accounts.
fn by_accounts() -> Pace {
    Pace {
        giving: usize::MAX / 4,
        ..Pace::default()
    }
}

/// How many "a" has given away after each tick since the first one was, for so long.
fn given(world: &mut World, seconds: usize) -> Vec<usize> {
    let all = world.count("a");
    for _ in 0..60 * TICKS {
        if world.count("a") < all {
            break;
        }
        world.step();
    }
    let mut given = vec![all - world.count("a")];
    for _ in 0..seconds * TICKS {
        world.step();
        given.push(all - world.count("a"));
    }
    assert!(given[0] > 0, "nothing is given");
    given
}

#[test]
fn no_more_accounts_are_given_a_second_than_mail_hosts_let_in_again() {
    // A hundred with the partition itself, so ten a second.
    let mut world = owner_of_all(99, by_accounts());
    world.start("b", "1");
    let given = given(&mut world, 20);
    // The bucket was full: the first second has twice as many.
    assert!(given[0] <= 10, "{given:?}");
    for second in given.windows(TICKS + 1) {
        let many = second[TICKS] - second[0];
        assert!(many <= 10, "{many} in a second of {given:?}");
    }
    let all = given.last().unwrap() - given[0];
    assert!(all >= 190, "{all} in 20 s");
}

#[test]
fn what_was_not_given_for_long_is_not_given_at_once() {
    let mut world = owner_of_all(99, by_accounts());
    world.run(60);
    world.start("b", "1");
    assert!(given(&mut world, 1)[TICKS] <= 20);
}

#[test]
fn a_partition_larger_than_the_bucket_goes_when_it_is_full() {
    let mut world = owner_of_all(4999, by_accounts());
    world.start("b", "1");
    let given = given(&mut world, 26);
    // One each five seconds.
    assert_eq!(given[0], 1, "{given:?}");
    assert!((5..=6).contains(given.last().unwrap()), "{given:?}");
    for four in given.windows(4 * TICKS) {
        assert!(four.last().unwrap() - four[0] <= 1, "{given:?}");
    }
}

#[test]
fn no_more_partitions_are_given_at_once_than_the_pace_says() {
    let mut world = owner_of_all(0, Pace::default());
    world.start("b", "1");
    world.holds = true;
    for wave in 0..3 {
        world.run(20);
        assert_eq!(world.processes["a"].sharding.stages().2, 32, "wave {wave}");
        world.let_go("a");
    }
    // Who leaves is in more of a hurry.
    world.run(20);
    world.give("a", Input::Leave(60 * S));
    world.run(20);
    assert_eq!(world.processes["a"].sharding.stages().2, 4 * 32);
}

#[test]
fn one_with_many_accounts_still_to_log_in_is_given_nothing() {
    let load = mailbell_proto::bus::v1::MemberLoad::default;
    let loads: [fn(&mut mailbell_proto::bus::v1::MemberLoad) -> &mut u32; 3] = [
        |load| &mut load.starting,
        |load| &mut load.waiting_pace,
        |load| &mut load.loading,
    ];
    for (part, of) in loads.into_iter().enumerate() {
        let mut world = owner_of_all(3, Pace::default());
        world.start("b", "1");
        let say = |world: &mut World, backlog: u32| {
            let mut load = load();
            *of(&mut load) = backlog;
            world.processes.get_mut("b").unwrap().member.load = Some(load);
        };
        say(&mut world, 501);
        world.run(60);
        assert_eq!(world.count("b"), 0, "part {part}");
        let waiting = &world.processes["a"].sharding.last_plan().waiting;
        assert!(waiting[&Waiting::HandOver] > 400, "{waiting:?}");
        say(&mut world, 500);
        world.run(10);
        let some = world.count("b");
        assert!(some > 0, "part {part}");
        // It is busy again with what it was given.
        say(&mut world, 501);
        world.run(4);
        let some = world.count("b");
        world.run(20);
        assert_eq!(world.count("b"), some, "part {part}");
        say(&mut world, 0);
        world.run(30);
        world.assert_settled();
    }
}

#[test]
fn who_leaves_gives_to_the_busy_too() {
    let mut world = owner_of_all(3, Pace::default());
    world.start("b", "1");
    world.processes.get_mut("b").unwrap().member.load = Some(mailbell_proto::bus::v1::MemberLoad {
        starting: 100_000,
        ..Default::default()
    });
    world.run(20);
    assert_eq!(world.count("b"), 0);
    world.give("a", Input::Leave(20 * S));
    world.run(12);
    assert_eq!((world.count("a"), world.count("b")), (0, 1024));
}

#[test]
fn who_leaves_gives_all_within_half_of_its_time_and_not_at_once() {
    // A million accounts: at the usual pace a thousand seconds.
    let mut world = owner_of_all(999, Pace::default());
    world.start("b", "1");
    world.run(10);
    assert!(world.count("b") < 20);
    world.give("a", Input::Leave(20 * S));
    let began = world.now;
    world.run(4);
    let half = world.count("b");
    assert!((300..=700).contains(&half), "{half} after 4 s");
    while world.count("a") > 0 && world.now < began + 60 * S {
        world.step();
    }
    let lasted = world.now - began;
    assert!(lasted <= 11 * S, "it took {lasted:?}");
    assert_eq!(world.count("b"), 1024);
}

#[test]
fn what_was_taken_from_the_dead_is_given_back_a_minute_later() {
    let mut world = World::new();
    for id in ["a", "b"] {
        world.start(id, "1");
    }
    world.run(40);
    world.processes.remove("b");
    while world.count("a") < 1024 {
        world.step();
    }
    let taken = world.now;
    world.start("b", "2");
    world.run(20);
    let waiting = &world.processes["a"].sharding.last_plan().waiting;
    assert!(waiting[&Waiting::TakeBack] > 400, "{waiting:?}");
    while world.count("b") == 0 && world.now < taken + 200 * S {
        world.step();
    }
    let back = world.now - taken;
    let minute = Timing::default().take_back;
    assert!((minute - S..minute + 2 * S).contains(&back), "{back:?}");
    // Who leaves waits for nothing.
    world.run(60);
    world.assert_settled();
}

#[test]
fn what_was_just_taken_is_kept_until_others_have_seen_it() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(5);
    // Known to all, and takes nothing yet.
    world.give("c", Input::Drain(true));
    world.run(40);
    assert_eq!(world.count("c"), 0);
    let before = world.processes["a"].serving.clone();
    world.processes.remove("b");
    while world.count("a") == before.len() {
        world.step();
    }
    let taken = world.now;
    world.give("c", Input::Drain(false));
    // Its neighbour hears of it at once.
    world.renew("c");
    world.renew("a");
    let kept = 2 * Timing::default().member_renew;
    let (mut old, mut new) = (0, 0);
    while new == 0 && world.now < taken + 60 * S {
        world.step();
        let gave = world.processes["c"].serving.keys();
        old = gave.clone().filter(|one| before.contains_key(one)).count();
        new = gave.count() - old;
        if world.now < taken + kept {
            assert_eq!(new, 0, "given away {:?} later", world.now - taken);
        }
    }
    assert!(old > 0, "what it had before waits as well");
    assert!(new > 0 && world.now < taken + kept + 20 * S);
}

/// Where logins are few it takes long, but all comes to rest, also after one that was taken for dead is back.
#[test]
fn where_logins_are_few_all_comes_to_rest() {
    let mut world = World::new();
    world.accounts = 3;
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(40);
    world.assert_settled();
    world.processes.remove("b");
    world.run(20);
    for (id, incarnation) in [("b", "2"), ("d", "1")] {
        world.start(id, incarnation);
    }
    for process in world.processes.values_mut() {
        process.sharding.set_logins(200.0);
    }
    // Those of d alone: 768 accounts, at fifty a second.
    world.run(12);
    assert!(world.count("d") < 256, "{}", world.count("d"));
    world.run(120);
    world.assert_settled();
}

/// One drains while another comes: what two give to the newcomer for balance waits for what has to go, and that is no faster than logins.
#[test]
fn who_drains_gives_before_those_that_move_for_balance() {
    let mut world = World::new();
    for id in ["a", "b", "c"] {
        world.start(id, "1");
    }
    world.run(40);
    world.start("d", "1");
    for process in world.processes.values_mut() {
        process.sharding.set_logins(50.0);
    }
    let both = ["a", "b"].map(|id| world.processes[id].serving.clone());
    let (began, of_c) = (world.now, world.count("c"));
    world.give("c", Input::Drain(true));
    while world.count("c") > 0 && world.now < began + 200 * S {
        world.step();
    }
    // Three accounts in each, and the first second may have twice as many.
    let least = S * u32::try_from(of_c * 3 / 50).unwrap();
    let lasted = world.now - began;
    assert!(
        (least - 2 * S..least + 8 * S).contains(&lasted),
        "{lasted:?}"
    );
    let given = ["a", "b"].iter().zip(&both).map(|(id, before)| {
        let now = &world.processes[*id].serving;
        before.keys().filter(|one| !now.contains_key(one)).count()
    });
    let given: usize = given.sum();
    assert!(given <= 12, "{given} went for balance");
    // Then it is their turn.
    world.run(40);
    world.assert_settled();
}

/// Members on one address have one budget between them, whatever changes hands.
#[test]
fn a_budget_is_one_for_all_on_an_address() {
    let mut world = World::new();
    for (id, egress) in [("a", ""), ("b", ""), ("c", "other")] {
        world.start(id, "1");
        let process = world.processes.get_mut(id).unwrap();
        egress.clone_into(&mut process.member.egress);
    }
    let part = |world: &World, id: &str| {
        let process = &world.processes[id];
        process.sharding.part_of_budget(&process.member.egress)
    };
    // They see each other.
    world.run(7);
    for _ in 0..40 * TICKS {
        world.step();
        let both = part(&world, "a") + part(&world, "b");
        assert!((both - 1.0).abs() < 1e-9, "{both}");
        assert!((part(&world, "c") - 1.0).abs() < 1e-9);
    }
    // One that drains has the part of what it still owns, and the other all.
    world.give("a", Input::Drain(true));
    world.run(4);
    for _ in 0..60 * TICKS {
        world.step();
        assert!((part(&world, "b") - 1.0).abs() < 1e-9);
        assert!(part(&world, "a") <= 1.0);
    }
    assert_eq!(world.count("a"), 0);
    assert!(part(&world, "a") < 1e-9);
}
