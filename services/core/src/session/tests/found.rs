//! What the simulation found, a step a test.

use super::*;
use crate::ids::Uid;

fn retrying(bench: &mut Bench) {
    bench.give(Input::Relogin);
    let op = bench.take(|effect| match effect {
        Effect::Open { op } => Some(*op),
        _ => None,
    });
    bench.give(Input::Failed {
        op,
        failure: Failure {
            code: "unreachable",
            sentence: "The mail server does not answer.".to_owned(),
            severity: Severity::Transient,
        },
    });
}

/// Connects again; whatever is told of the account meanwhile is acknowledged.
fn reopen(bench: &mut Bench) {
    bench.give(Input::Tick);
    bench.appends();
    let op = bench.take(|effect| match effect {
        Effect::Open { op } => Some(*op),
        _ => None,
    });
    bench.give(Input::Opened {
        op,
        idle: true,
        handshake: Duration::from_millis(30),
        quiet_folders: Vec::new(),
    });
}

/// The time that was asked for last.
pub(super) fn timer(bench: &Bench) -> Option<Duration> {
    bench.effects.iter().rev().find_map(|effect| match effect {
        Effect::Timer(at) => Some(*at),
        _ => None,
    })
}

/// Wakes the parked connection at `at`, and takes the look that follows.
pub(super) fn look_at(bench: &mut Bench, at: Duration) -> (Op, Uid, Vec<(Uid, Uid)>) {
    let park = bench.take(|effect| match effect {
        Effect::Park { op, .. } => Some(*op),
        _ => None,
    });
    bench.now.mono = bench.now.mono.max(at);
    bench.give(Input::Tick);
    assert!(bench.has(|effect| matches!(effect, Effect::Interrupt)));
    bench.give(Input::Woke {
        op: park,
        wake: Wake::Interrupted,
    });
    bench.take(|effect| match effect {
        Effect::Look {
            op, from, holes, ..
        } => Some((*op, *from, holes.clone())),
        _ => None,
    })
}

#[test]
fn a_health_that_waits_for_the_log_sets_no_timer_in_the_past() {
    let mut bench = Bench::watching();
    bench.look(look(&[]));
    retrying(&mut bench);
    bench.now.mono += Duration::from_secs(60);
    bench.give(Input::Bus { up: false });
    bench.give(Input::Bus { up: true });
    let (op, event) = bench.append();
    assert!(matches!(event.fact, Fact::AccountState { .. }), "{event:?}");
    bench.give(Input::Appended {
        op,
        outcome: Outcome::NoAnswer,
    });
    assert!(timer(&bench).is_some_and(|at| at > bench.now.mono));
}

#[test]
fn devices_hear_at_once_that_an_account_is_watched() {
    let mut bench = Bench::watching();
    bench.session.checkpoint.health = Health::Retrying;
    bench.look(look(&[]));
    let (_, event) = bench.append();
    let health = Health::Watching;
    assert!(matches!(event.fact, Fact::AccountState { health: told, .. } if told == health));
}

#[test]
fn what_is_named_before_it_can_be_fetched_is_looked_for_again() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    let op = bench.take(|effect| match effect {
        Effect::Fetch { op, .. } => Some(*op),
        _ => None,
    });
    let messages = Vec::new();
    bench.give(Input::FetchedPage { op, messages });
    let soon = timer(&bench).unwrap();
    assert!(soon - bench.now.mono < Duration::from_secs(1));
    let (op, from, _) = look_at(&mut bench, soon);
    assert_eq!(from, 10);
    let found = look(&[10]);
    bench.give(Input::Looked { op, look: found });
    assert_eq!(bench.fetch(), [10]);
}

#[test]
fn what_shows_up_late_where_a_folder_began_anew_is_told_and_what_was_there_is_not() {
    let mut bench = Bench::watching();
    let anew = |uids: &[u32]| Look {
        generation: 11,
        uid_next: 5,
        uid_next_exact: true,
        total_new: uids.len() as u32,
        uids: uids.to_vec(),
        late: Vec::new(),
    };
    bench.look(anew(&[]));
    // What is there is asked for before it is told.
    let from = bench.effects.iter().find_map(|effect| match effect {
        Effect::Look { from, .. } => Some(*from),
        _ => None,
    });
    assert_eq!(from, Some(1));
    bench.look(anew(&[1, 4]));
    bench.appends();
    let soon = timer(&bench).unwrap();
    let (op, from, holes) = look_at(&mut bench, soon);
    assert_eq!((from, holes), (5, vec![(2, 3)]));
    let late = Look {
        late: vec![2],
        ..anew(&[])
    };
    bench.give(Input::Looked { op, look: late });
    assert_eq!(bench.fetch(), [2]);
}

#[test]
fn a_successor_tells_nothing_that_was_there_where_a_folder_began_anew() {
    let mut bench = Bench::new(Known::default());
    bench.open();
    let anew = |uids: &[u32]| Look {
        uid_next: 5,
        ..look(uids)
    };
    bench.look(anew(&[]));
    bench.appends();
    bench.look(anew(&[1, 2, 4]));
    bench.appends();
    let known = Known {
        checkpoint: bench.session.checkpoint().clone(),
        ..Known::default()
    };
    let mut next = Bench::new(known);
    next.open();
    let (op, holes) = next.take(|effect| match effect {
        Effect::Look { op, holes, .. } => Some((*op, holes.clone())),
        _ => None,
    });
    assert_eq!(holes, [(3, 3)]);
    let mut late = anew(&[]);
    late.late = vec![3];
    next.give(Input::Looked { op, look: late });
    assert_eq!(next.fetch(), [3]);
}

#[test]
fn a_gap_is_looked_into_once_more_after_a_long_outage() {
    let mut bench = Bench::watching();
    bench.look(look(&[10, 12]));
    bench.fetch();
    bench.appends();
    // Hours pass without a connection.
    retrying(&mut bench);
    let hours = Duration::from_secs(3 * 3600);
    bench.now.mono += hours;
    bench.now.wall_us += i64::try_from(hours.as_micros()).unwrap();
    reopen(&mut bench);
    let holes = |bench: &mut Bench| {
        bench.take(|effect| match effect {
            Effect::Look { op, holes, .. } => Some((*op, holes.clone())),
            _ => None,
        })
    };
    let (op, asked) = holes(&mut bench);
    assert_eq!(asked, [(11, 11)]);
    let mut found = look(&[]);
    found.uid_next = 13;
    bench.give(Input::Looked { op, look: found });
    bench.appends();
    // Then no more.
    retrying(&mut bench);
    bench.now.mono += hours;
    reopen(&mut bench);
    assert_eq!(holes(&mut bench).1, []);
}

#[test]
fn a_clock_that_was_ahead_takes_no_alert_and_closes_no_gap() {
    let mut bench = Bench::watching();
    bench.look(look(&[10, 12]));
    bench.fetch();
    bench.appends();
    let mut checkpoint = bench.session.checkpoint().clone();
    checkpoint.folder_mut(INBOX).unwrap().last_look_us += 3600 * 1_000_000;
    let mut next = Bench::new(Known {
        checkpoint,
        ..Known::default()
    });
    next.now = bench.now;
    next.open();
    let (op, holes) = next.take(|effect| match effect {
        Effect::Look { op, holes, .. } => Some((*op, holes.clone())),
        _ => None,
    });
    assert_eq!(holes, [(11, 11)]);
    let found = Look {
        uid_next: 13,
        late: vec![11],
        ..look(&[])
    };
    next.give(Input::Looked { op, look: found });
    let (op, uids) = next.asked();
    assert_eq!(uids, [11]);
    let message = Message {
        uid: 11,
        internal_date_ms: next.now.wall_us / 1000,
        ..Message::default()
    };
    let messages = vec![Fetched {
        message,
        traceparent: String::new(),
    }];
    next.give(Input::FetchedPage { op, messages });
    let (op, event) = next.append();
    assert!(event.alert, "{event:?}");
    next.stored(op);
    next.appends();
    let folder = next.session.checkpoint().folder(INBOX).unwrap();
    assert_eq!(folder.last_look_us, next.now.wall_us);
}

#[test]
fn a_gap_is_as_old_as_its_finding_however_old_the_notice() {
    let mut bench = Bench::watching();
    bench.look(look(&[]));
    let park = bench.take(|effect| match effect {
        Effect::Park { op, .. } => Some(*op),
        _ => None,
    });
    let noticed_us = bench.now.wall_us - 3600 * 1_000_000;
    let wake = Wake::Changed { noticed_us };
    bench.give(Input::Woke { op: park, wake });
    bench.look(look(&[10, 12]));
    bench.fetch();
    let (op, event) = bench.append();
    assert_eq!(event.detected_us, noticed_us);
    bench.stored(op);
    bench.appends();
    let folder = bench.session.checkpoint().folder(INBOX).unwrap();
    assert_eq!(folder.holes[0].noticed_us, bench.now.wall_us);
}

#[test]
fn a_server_that_says_nothing_to_noop_is_looked_at_now_and_then() {
    let mut bench = Bench::watching();
    bench.give(Input::Relogin);
    let op = bench.take(|effect| match effect {
        Effect::Open { op } => Some(*op),
        _ => None,
    });
    bench.give(Input::Opened {
        op,
        idle: false,
        handshake: Duration::from_millis(30),
        quiet_folders: Vec::new(),
    });
    bench.look(look(&[]));
    let begin = bench.now.mono;
    while !bench.has(|effect| matches!(effect, Effect::Look { select: true, .. })) {
        assert!(bench.now.mono - begin < Duration::from_secs(3600));
        let (op, most) = bench.take(|effect| match effect {
            Effect::Park { op, most, .. } => Some((*op, *most)),
            _ => None,
        });
        bench.now.mono += most;
        let wake = Wake::Expired;
        bench.give(Input::Woke { op, wake });
        let op = bench.take(|effect| match effect {
            Effect::Poll { op } => Some(*op),
            _ => None,
        });
        let changed = false;
        bench.give(Input::Polled { op, changed });
    }
}

#[test]
fn what_is_acknowledged_where_an_old_owner_put_it_is_known_and_not_yet_stored() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    bench.fetch();
    bench.position = 6;
    bench.appends();
    bench.now.mono += Duration::from_secs(60);
    bench.give(Input::Tick);
    let park = bench.take(|effect| match effect {
        Effect::Park { op, .. } => Some(*op),
        _ => None,
    });
    let store = bench.take(|effect| match effect {
        Effect::StoreCheckpoint { op, .. } => Some(*op),
        _ => None,
    });
    // While that is on its way, the next message is acknowledged where an old owner appended it before.
    let wake = Wake::Changed { noticed_us: 1 };
    bench.give(Input::Woke { op: park, wake });
    bench.look(look(&[11]));
    bench.fetch();
    bench.position = 4;
    bench.appends();
    let known = bench.session.checkpoint();
    assert_eq!(known.folder(INBOX).unwrap().uid_next, 12);
    assert_eq!(known.position, 7);
    let revision = 2;
    bench.give(Input::CheckpointStored {
        op: store,
        revision,
    });
    assert_eq!(bench.session.flush_bound(), Some(4));
}
