//! How an ownership ends: lost, handed over, or with the account.

use super::*;

#[test]
fn a_lost_claim_ends_it_at_once() {
    let mut bench = Bench::watching();
    bench.give(Input::Stop(Stop::Lost));
    assert!(bench.has(|effect| matches!(effect, Effect::Drop)));
    assert!(bench.session.is_stopped());
}

#[test]
fn a_hand_over_stores_what_is_known_first() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    bench.fetch();
    bench.appends();
    bench.give(Input::Stop(Stop::HandOver));
    let op = bench.take(|effect| match effect {
        Effect::Park { op, .. } => Some(*op),
        _ => None,
    });
    assert!(bench.has(|effect| matches!(effect, Effect::Interrupt)));
    let store = bench.take(|effect| match effect {
        Effect::StoreCheckpoint { op, .. } => Some(*op),
        _ => None,
    });
    bench.give(Input::Woke {
        op,
        wake: Wake::Interrupted,
    });
    let close = bench.take(|effect| match effect {
        Effect::Close { op } => Some(*op),
        _ => None,
    });
    bench.give(Input::Closed { op: close });
    assert!(!bench.session.is_stopped());
    bench.give(Input::CheckpointStored {
        op: store,
        revision: 2,
    });
    assert!(bench.session.is_stopped());
}

#[test]
fn nothing_is_told_of_an_account_after_its_removal() {
    for fetching in [false, true] {
        let mut bench = Bench::watching();
        let mut op = bench.take(|effect| match effect {
            Effect::Look { op, .. } => Some(*op),
            _ => None,
        });
        let mut found = look(&[10]);
        if fetching {
            bench.give(Input::Looked { op, look: found });
            op = bench.asked().0;
            bench.give(Input::Stop(Stop::Removed));
            assert_eq!(bench.appends().len(), 1);
            bench.fetched(op, &[10]);
        } else {
            found.generation = 11;
            found.uid_next = 1;
            bench.give(Input::Stop(Stop::Removed));
            assert_eq!(bench.appends().len(), 1);
            bench.give(Input::Looked { op, look: found });
        }
        assert!(bench.session.removal_told());
        assert_eq!(bench.appends(), []);
        assert!(bench.has(|effect| matches!(effect, Effect::Close { .. })));
    }
}

/// An owner that hears of a removal late, when the next one has told of it: its own telling waits behind an append of which it does not
/// know what became.
#[test]
fn a_removal_that_another_owner_told_of_is_not_told_again() {
    for stored in [true, false] {
        let mut bench = Bench::watching();
        bench.look(look(&[10]));
        bench.fetch();
        let (op, event) = bench.append();
        let removed = Event {
            folder: 0,
            generation: 0,
            fact: Fact::AccountState {
                counter: u64::MAX,
                health: Health::Removed,
            },
            ..event.clone()
        };
        bench.give(Input::Appended {
            op,
            outcome: Outcome::Disconnected,
        });
        bench.now.mono += Duration::from_secs(20);
        bench.give(Input::Tick);
        bench.give(Input::Stop(Stop::Removed));
        let op = bench.take(|effect| match effect {
            Effect::ReadTail { op, .. } => Some(*op),
            _ => None,
        });
        let first = bench.position + 1;
        let mut events = vec![(first + 1, removed)];
        if stored {
            events.insert(0, (first, event));
        }
        bench.give(Input::TailRead {
            op,
            tail: Some(Tail {
                log_id: LOG,
                events,
                read_to: first + 1,
            }),
        });
        bench.now.mono += Duration::from_secs(20);
        bench.give(Input::Tick);
        assert!(!bench.has(|effect| matches!(effect, Effect::Append { .. })));
        assert!(bench.session.removal_told());
    }
}
