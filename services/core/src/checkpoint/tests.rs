use super::*;
use bytes::Bytes;
use mailbell_proto::push::v1::ResyncReason;
use proptest::prelude::*;

fn event(generation: Generation, fact: Fact, alert: bool) -> Event {
    Event {
        account: "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        folder: INBOX,
        generation,
        fact,
        alert,
        owner_epoch: 1,
        traceparent: String::new(),
        detected_us: 5,
        fetched_us: 6,
        folder_name: "INBOX".to_owned(),
        content: Bytes::new(),
    }
}

fn arrived(uid: Uid) -> Event {
    event(
        1,
        Fact::Arrived {
            uid,
            digest: u64::from(uid),
        },
        true,
    )
}

fn start() -> Checkpoint {
    Checkpoint::first([("INBOX".to_owned(), 1, 10)], 0)
}

#[test]
fn a_gap_is_a_hole_until_it_is_told() {
    let mut checkpoint = start();
    checkpoint.take_in(&arrived(14));
    let folder = checkpoint.folder(INBOX).unwrap();
    assert!(folder.told(14) && !folder.told(10) && !folder.told(13) && folder.told(9));
    checkpoint.take_in(&arrived(12));
    checkpoint.take_in(&arrived(10));
    let folder = checkpoint.folder(INBOX).unwrap();
    let holes: Vec<_> = folder
        .holes
        .iter()
        .map(|hole| (hole.first, hole.last))
        .collect();
    assert_eq!(holes, [(11, 11), (13, 13)]);
}

#[test]
fn the_last_arrival_is_the_newest_that_was_told() {
    let mut checkpoint = start();
    assert_eq!(checkpoint.last_arrival_us, 0);
    let at = |uid, detected_us| Event {
        detected_us,
        ..arrived(uid)
    };
    checkpoint.take_in(&at(10, 70));
    checkpoint.take_in(&at(11, 60));
    // Told already, whatever a late repeat says.
    checkpoint.take_in(&at(10, 90));
    assert_eq!(checkpoint.last_arrival_us, 70);
    assert_eq!(checkpoint.to_record(WriteVersion::FIRST).last_arrival_us, 0);
}

#[test]
fn an_old_owner_changes_nothing_after_its_successor() {
    let mut checkpoint = start();
    let old = checkpoint.next_counter(1, 0);
    let new = checkpoint.next_counter(2, 0);
    let resync = |generation, counter| {
        let reason = ResyncReason::Generation;
        event(
            generation,
            Fact::Resync {
                counter,
                uid_next: 1,
                present: 0,
                reason,
            },
            false,
        )
    };
    checkpoint.take_in(&resync(3, new));
    let after = checkpoint.clone();
    checkpoint.take_in(&resync(2, old));
    checkpoint.take_in(&arrived(50));
    assert_eq!(checkpoint, after);
}

#[test]
fn an_owner_that_forgot_all_gives_no_counter_again() {
    let (epoch, second) = (1_700_000_000, 1_000_000);
    let begin = i64::try_from(epoch).unwrap() * second;
    let mut checkpoint = start();
    checkpoint.counter = checkpoint.next_counter(epoch, begin + 5 * second);
    let last = checkpoint.next_counter(epoch, begin + 5 * second);
    assert!(Checkpoint::default().next_counter(epoch, begin + 9 * second) > last);
    // Not even years of one ownership reach the counters of the next.
    let years = begin + 20 * 365 * 86_400 * second;
    let next = Checkpoint::default().next_counter(epoch + 1, begin);
    assert!(Checkpoint::default().next_counter(epoch, years) < next);
}

#[test]
fn what_lies_before_a_range_is_a_gap_like_before_a_message() {
    let mut checkpoint = start();
    checkpoint.take_in(&event(
        1,
        Fact::Bulk {
            counter: 1,
            first: 15,
            last: 400,
            present: 0b101,
        },
        false,
    ));
    let folder = checkpoint.folder(INBOX).unwrap();
    let gaps: Vec<_> = folder
        .holes
        .iter()
        .map(|hole| (hole.first, hole.last))
        .collect();
    // Of the newest, those that were there are told.
    assert_eq!(gaps, [(10, 14), (401 - UNSETTLED, 397), (399, 399)]);
    assert!(folder.told(9) && folder.told(15) && !folder.told(401));
}

#[test]
fn a_range_full_of_gaps_closes_no_other_one() {
    let mut checkpoint = start();
    checkpoint.take_in(&arrived(12));
    checkpoint.take_in(&event(
        1,
        Fact::Bulk {
            counter: 1,
            first: 13,
            last: 400,
            present: u64::MAX / 3,
        },
        false,
    ));
    let folder = checkpoint.folder(INBOX).unwrap();
    assert_eq!(folder.holes.len(), 33);
    assert!(!folder.told(10) && !folder.told(399) && folder.told(400));
}

#[test]
fn what_was_there_is_no_gap() {
    assert_eq!(gaps(1, 0, 0), []);
    assert_eq!(gaps(1, 4, present(4, &[1, 4])), [(2, 3)]);
    assert_eq!(gaps(3, 4, present(4, &[4, 9])), [(3, 3)]);
    let all: Vec<Uid> = (1..=200).collect();
    assert_eq!(gaps(1, 200, present(200, &all)), []);
    assert_eq!(gaps(1, 200, 0), [(137, 200)]);
}

fn histories() -> impl Strategy<Value = Vec<Event>> {
    let one = (0u8..6, 1u32..60, 1u32..3);
    proptest::collection::vec(one, 0..60).prop_map(|steps| {
        let mut counter = 0;
        steps
            .into_iter()
            .map(|(kind, uid, generation)| match kind {
                0..=3 => event(
                    generation,
                    Fact::Arrived {
                        uid,
                        digest: u64::from(uid),
                    },
                    uid % 2 == 0,
                ),
                4 => {
                    counter += 1;
                    event(
                        generation,
                        Fact::Bulk {
                            counter,
                            first: uid,
                            last: uid + 20,
                            present: u64::from(uid).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                        },
                        false,
                    )
                }
                _ => {
                    counter += 1;
                    let reason = ResyncReason::Generation;
                    event(
                        generation,
                        Fact::Resync {
                            counter,
                            uid_next: uid,
                            present: u64::MAX / u64::from(uid),
                            reason,
                        },
                        false,
                    )
                }
            })
            .collect()
    })
}

proptest! {
    /// The take-over rule: a tail that begins anywhere at or before what is known leaves the same.
    #[test]
    fn folding_the_tail_again_changes_nothing(history in histories(), from in 0usize..60) {
        let log = LogId([1; 16]);
        let mut once = start();
        for (position, event) in (1..).zip(&history) { once.fold(log, position, event); }
        let mut again = once.clone();
        for (position, event) in (1..).zip(&history).skip(from) { again.fold(log, position, event); }
        prop_assert_eq!(again, once);
    }

    #[test]
    fn a_checkpoint_survives_its_record(history in histories()) {
        let mut checkpoint = start();
        for event in &history { checkpoint.take_in(event); }
        let first = checkpoint.to_record(WriteVersion::FIRST);
        prop_assert_eq!((first.schema, first.last_arrival_us), (1, 0));
        prop_assert!(Checkpoint::from_record(&first).may_be_stored_as(&checkpoint));
        let newest = checkpoint.to_record(WriteVersion::NEWEST);
        prop_assert_eq!(newest.schema, WriteVersion::NEWEST.number());
        let read = Checkpoint::from_record(&newest);
        if WriteVersion::NEWEST >= LAST_ARRIVAL {
            prop_assert_eq!(read, checkpoint);
        } else {
            prop_assert!(read.may_be_stored_as(&checkpoint));
        }
    }

    #[test]
    fn memory_is_bounded(uids in proptest::collection::vec(1u32..100_000, 0..400)) {
        let mut checkpoint = start();
        for uid in uids { checkpoint.take_in(&arrived(uid)); }
        let folder = checkpoint.folder(INBOX).unwrap();
        prop_assert!(folder.holes.len() <= MAX_HOLES);
        prop_assert!(checkpoint.alerted.len() <= MAX_ALERTED);
    }
}
