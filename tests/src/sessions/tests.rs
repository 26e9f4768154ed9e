use std::sync::LazyLock;

use mailbell_test_servers::synthetic::Idle;

use super::*;

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn at(second: u64) -> Instant {
    *BEGIN + Duration::from_secs(second)
}

fn seconds(range: &Range<Instant>) -> Range<u64> {
    let second = |instant: Instant| (instant - *BEGIN).as_secs();
    second(range.start)..second(range.end)
}

/// A session that idles from its login to its end.
fn session(holder: &str, user: usize, from: u64, until: Option<u64>) -> SessionRecord {
    SessionRecord {
        holder: holder.into(),
        opened: at(from),
        user: Some(user),
        logged_in: Some(at(from)),
        idles: vec![Idle {
            from: at(from),
            until: until.map(at),
        }],
        ended: until.map(at),
    }
}

fn judged(records: &[SessionRecord], blind: &[Blind]) -> Verdict {
    judge(records, 0..1, at(0)..at(100), blind)
}

#[test]
fn one_session_without_an_end_is_all_that_is_wanted() {
    let verdict = judged(&[session("a", 0, 0, None)], &[]);
    assert_eq!(verdict.logins, [("a".into(), 1)].into());
    assert!(verdict.overlaps.is_empty() && verdict.gaps.is_empty());
    assert!(verdict.unwatched.is_empty());
}

#[test]
fn a_mailbox_that_nobody_held_is_one_gap() {
    let verdict = judged(&[session("a", 1, 0, None)], &[]);
    assert_eq!(seconds(&verdict.gaps[0].time), 0..100);
    assert_eq!(verdict.unwatched, [0]);
}

#[test]
fn a_hand_over_has_a_gap_or_an_overlap() {
    let late = [session("a", 0, 0, Some(40)), session("b", 0, 55, None)];
    let verdict = judged(&late, &[]);
    assert_eq!(seconds(&verdict.gaps[0].time), 40..55);
    assert_eq!(verdict.longest_gap(), Duration::from_secs(15));
    assert!(verdict.overlaps.is_empty() && verdict.unwatched.is_empty());

    let early = [session("a", 0, 0, Some(40)), session("b", 0, 33, None)];
    let verdict = judged(&early, &[]);
    assert_eq!(seconds(&verdict.overlaps[0].time), 33..40);
    assert_eq!(verdict.longest_overlap(), Duration::from_secs(7));
    assert!(verdict.gaps.is_empty());

    let exact = [session("a", 0, 0, Some(40)), session("b", 0, 40, None)];
    let verdict = judged(&exact, &[]);
    assert!(verdict.overlaps.is_empty() && verdict.gaps.is_empty());
}

#[test]
fn two_sessions_of_one_watcher_are_no_overlap_and_three_watchers_are_one() {
    let own = [session("a", 0, 0, None), session("a", 0, 10, Some(20))];
    assert!(judged(&own, &[]).overlaps.is_empty());
    let three = [
        session("a", 0, 0, Some(50)),
        session("b", 0, 10, Some(60)),
        session("c", 0, 55, Some(70)),
        session("a", 0, 80, None),
        session("b", 0, 90, Some(91)),
    ];
    let verdict = judged(&three, &[]);
    let times: Vec<_> = verdict
        .overlaps
        .iter()
        .map(|overlap| (seconds(&overlap.time), overlap.holders().len()))
        .collect();
    // The longest first.
    assert_eq!(times, [(10..50, 2), (55..60, 2), (90..91, 2)]);
    assert_eq!(seconds(&verdict.gaps[0].time), 70..80);
}

#[test]
fn only_the_window_counts() {
    let records = [
        session("a", 0, 0, Some(40)),
        session("b", 0, 30, Some(60)),
        session("c", 0, 90, None),
    ];
    let verdict = judge(&records, 0..1, at(35)..at(80), &[]);
    assert_eq!(seconds(&verdict.overlaps[0].time), 35..40);
    assert_eq!(seconds(&verdict.gaps[0].time), 60..80);
    assert_eq!(verdict.unwatched, [0]);
    assert!(verdict.logins.is_empty());
}

#[test]
fn who_is_deaf_holds_and_does_not_watch() {
    let records = [session("a", 0, 0, None), session("b", 0, 50, Some(70))];
    let blind = [Blind {
        holder: "a".to_owned(),
        time: at(20)..at(80),
    }];
    let verdict = judged(&records, &blind);
    assert_eq!(seconds(&verdict.gaps[0].time), 20..50);
    assert_eq!(seconds(&verdict.overlaps[0].time), 50..70);
    assert!(verdict.unwatched.is_empty());
}

#[test]
fn an_overlap_is_excused_by_its_length_or_by_who_was_blind() {
    let records = [session("a", 0, 0, Some(90)), session("b", 0, 50, Some(95))];
    let verdict = judged(&records, &[]);
    assert_eq!(verdict.moves, 1);
    let blind = |holder: &str, time| {
        [Blind {
            holder: holder.to_owned(),
            time,
        }]
    };
    let doubled = |blind: &[Blind], seconds| {
        let hand_over = Duration::from_secs(seconds);
        verdict.doubled(blind, hand_over).len()
    };
    assert_eq!(doubled(&[], 39), 1);
    assert_eq!(doubled(&[], 40), 0);
    assert_eq!(doubled(&blind("a", at(30)..at(85)), 5), 0);
    assert_eq!(doubled(&blind("a", at(30)..at(84)), 5), 1);
    assert_eq!(doubled(&blind("c", at(30)..at(85)), 5), 1);
    assert_eq!(doubled(&blind("a", at(91)..at(99)), 5), 1);
}

#[test]
fn a_blind_moment_excuses_no_more_of_an_overlap_than_itself_and_a_hand_over() {
    let doubled = |records: &[SessionRecord], blind: &[(&str, Range<u64>)]| {
        let verdict = judged(records, &[]);
        let blind: Vec<Blind> = blind
            .iter()
            .map(|(holder, time)| Blind {
                holder: (*holder).to_owned(),
                time: at(time.start)..at(time.end),
            })
            .collect();
        verdict.doubled(&blind, Duration::from_secs(5)).len()
    };
    let always = [session("a", 0, 0, None), session("b", 0, 0, None)];
    assert_eq!(doubled(&always, &[("a", 95..96)]), 1);
    assert_eq!(doubled(&always, &[("a", 6..96)]), 1);
    assert_eq!(doubled(&always, &[("a", 5..96)]), 0);
    // What lies between is counted together.
    let twice = [("a", 3..40), ("b", 49..96)];
    assert_eq!(doubled(&always, &twice), 1);
    let twice = [("a", 3..40), ("b", 47..96)];
    assert_eq!(doubled(&always, &twice), 0);
    // The third is blind, and the two others are not.
    let three = [
        session("a", 0, 0, Some(60)),
        session("b", 0, 20, None),
        session("c", 0, 40, Some(60)),
    ];
    assert_eq!(doubled(&three, &[("a", 10..60)]), 1);
    let twice = [("a", 10..60), ("c", 44..60)];
    assert_eq!(doubled(&three, &twice), 0);
}

#[test]
fn a_gap_is_measured_from_the_last_fault_within_it() {
    // Alone from 10 to 90, and for a moment in the end.
    let records = [
        session("a", 0, 0, Some(10)),
        session("b", 0, 90, Some(95)),
        session("b", 0, 97, None),
    ];
    let verdict = judged(&records, &[]);
    let times: Vec<_> = verdict.gaps.iter().map(|gap| seconds(&gap.time)).collect();
    assert_eq!(times, [10..90, 95..97]);
    assert_eq!(verdict.longest_gaps().len(), 1);
    let fault = |time: Range<u64>, alone| Fault {
        time: at(time.start)..at(time.end),
        alone: Duration::from_secs(alone),
        holder: None,
    };
    let late = |faults: &[Fault]| {
        let late = verdict.late(faults, Duration::from_secs(40));
        late.len()
    };
    assert_eq!(late(&[]), 1);
    // It has begun within; it has ended within; both were long before the end; neither was within.
    assert_eq!(late(&[fault(50..99, 40)]), 0);
    assert_eq!(late(&[fault(5..50, 40)]), 0);
    assert_eq!(late(&[fault(20..49, 40)]), 1);
    assert_eq!(late(&[fault(5..95, 40)]), 1);
    // One has more time, whenever it began, and none if it was over before.
    assert_eq!(late(&[fault(5..95, 80)]), 0);
    assert_eq!(late(&[fault(5..95, 79)]), 1);
    assert_eq!(late(&[fault(5..9, 80)]), 1);
    assert_eq!(late(&[fault(20..30, 60), fault(2..49, 40)]), 0);
    // One may have it for the mailboxes of one watcher: it is b that waits after it, and a before.
    for (holder, count) in [("a", 0), ("b", 0), ("c", 1)] {
        let holder = Some(holder.to_owned());
        let fault = Fault {
            holder,
            ..fault(20..30, 60)
        };
        assert_eq!(late(&[fault]), count);
    }
    // A later one of another kind makes it no longer.
    assert_eq!(late(&[fault(91..94, 120)]), 1);
}

#[test]
fn between_login_and_idle_nobody_waits() {
    let mut fetching = session("a", 0, 0, None);
    fetching.idles = vec![
        Idle {
            from: at(2),
            until: Some(at(30)),
        },
        Idle {
            from: at(31),
            until: None,
        },
    ];
    let verdict = judged(&[fetching], &[]);
    assert_eq!(seconds(&verdict.gaps[0].time), 0..2);
    assert!(verdict.to_string().contains("u0 alone for 2s"));
}
