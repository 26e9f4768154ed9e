//! Messages that take the connection with them are passed, and looked for later.

use super::*;

const FOREVER: Duration = Duration::from_secs(3600);

/// UID, whether it was told unread, and when.
type Told = Vec<(u32, bool, Duration)>;

/// A mailbox with the messages 10 to 13, of which 11 takes the connection with it for so long after its first loss. What was
/// asked for, and what was told, until all is told or it is `until`.
fn with_a_bad_message(
    bench: &mut Bench,
    lasts: Duration,
    until: Duration,
) -> (Vec<Vec<u32>>, Told) {
    let (mut asked, mut told, mut first_loss) = (Vec::new(), Vec::new(), None);
    while told.len() < 4 && bench.now.mono < first_loss.unwrap_or_default() + until {
        assert!(asked.len() < 40, "no end: {asked:?}");
        let before = bench.now.mono;
        if bench.has(|effect| matches!(effect, Effect::Look { .. })) {
            let (op, from, holes) = bench.take(|effect| match effect {
                Effect::Look {
                    op, from, holes, ..
                } => Some((*op, *from, holes.clone())),
                _ => None,
            });
            let within = |uid: &u32| holes.iter().any(|(a, b)| (*a..=*b).contains(uid));
            let found = Look {
                late: (10..from).filter(within).collect(),
                uid_next: 14,
                ..look(&(from..14).collect::<Vec<_>>())
            };
            bench.give(Input::Looked { op, look: found });
        } else if bench.has(|effect| matches!(effect, Effect::Fetch { .. })) {
            let (op, uids) = bench.asked();
            let since = bench.now.mono - first_loss.unwrap_or(bench.now.mono);
            if uids.contains(&11) && since < lasts {
                if uids.len() == 1 {
                    first_loss.get_or_insert(bench.now.mono);
                }
                bench.disconnect(op);
            } else {
                bench.fetched(op, &uids);
            }
            asked.push(uids);
        } else {
            let op = bench.take(|effect| match effect {
                Effect::Park { op, .. } => Some(*op),
                _ => None,
            });
            let at = found::timer(bench);
            bench.now.mono = bench.now.mono.max(at.unwrap());
            bench.give(Input::Tick);
            let wake = Wake::Interrupted;
            bench.give(Input::Woke { op, wake });
        }
        bench.now.wall_us += (bench.now.mono - before).as_micros() as i64;
        // Whatever else was asked for stays.
        let is_append = |effect: &Effect| matches!(effect, Effect::Append { .. });
        while let Some(index) = bench.effects.iter().position(is_append) {
            let Effect::Append { op, event, .. } = bench.effects.remove(index) else {
                unreachable!()
            };
            if let Fact::Arrived { uid, .. } = event.fact {
                let message = Message::decode(event.content).unwrap();
                let since = bench.now.mono - first_loss.unwrap_or(bench.now.mono);
                told.push((uid, message.subject.is_empty(), since));
            }
            bench.stored(op);
        }
    }
    (asked, told)
}

#[test]
fn a_message_that_takes_the_connection_with_it_stops_no_other() {
    let mut bench = Bench::watching();
    let (asked, told) = with_a_bad_message(&mut bench, FOREVER, FOREVER);
    let order: Vec<_> = told
        .iter()
        .map(|(uid, unread, _)| (*uid, *unread))
        .collect();
    assert_eq!(order, [(10, false), (12, false), (13, false), (11, true)]);
    let expected: [&[u32]; 6] = [&[10, 11], &[10], &[11], &[11], &[11], &[12, 13]];
    assert_eq!(asked[..6], expected);
    assert!(asked[6..].iter().all(|page| page == &[11]), "{asked:?}");
    // Now and then, and not without end.
    assert!((8..14).contains(&asked.len()), "{asked:?}");
    let minute = Duration::from_secs(60);
    assert!(told[2].2 < minute, "{told:?}");
    assert!((5 * minute..7 * minute).contains(&told[3].2), "{told:?}");
}

#[test]
fn an_outage_empties_no_message() {
    for minutes in 1..5 {
        let mut bench = Bench::watching();
        let lasts = Duration::from_secs(60 * minutes);
        let (_, told) = with_a_bad_message(&mut bench, lasts, FOREVER);
        assert!(told.iter().all(|(_, unread, _)| !unread), "{told:?}");
        assert_eq!((told.len(), told[3].0), (4, 11));
    }
}

#[test]
fn a_successor_looks_for_a_message_that_was_passed() {
    let mut bench = Bench::watching();
    let (_, told) = with_a_bad_message(&mut bench, FOREVER, Duration::from_secs(250));
    assert_eq!(told.len(), 3);
    let mut successor = Bench::new(Known {
        checkpoint: bench.session.checkpoint().clone(),
        revision: Some(2),
        unstored_from: None,
    });
    successor.now.wall_us = bench.now.wall_us;
    successor.open();
    let holes = successor.take(|effect| match effect {
        Effect::Look { holes, .. } => Some(holes.clone()),
        _ => None,
    });
    assert_eq!(holes, [(11, 11)]);
}
