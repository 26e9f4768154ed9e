//! The judge of the mail server's side: which watcher held which mailbox when, and who was left alone.
//!
//! It reads what the synthetic server recorded and knows no I/O. Two questions matter. Was a mailbox held by two watchers at once,
//! and for how long? And how long did nobody wait for its mail? A mailbox counts as watched while some session of its user is in IDLE:
//! so the moment in which a message is fetched is a gap too, of milliseconds.
//!
//! The server can't see that a watcher has been stopped, or cut off without a word: its sessions go on idling. A test that does such a
//! thing says so by [`Blind`], and what that watcher holds meanwhile counts as held, but not as watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use mailbell_test_servers::synthetic::SessionRecord;

/// A time in which a holder's sessions are open and nobody hears them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blind {
    /// Whose.
    pub holder: String,
    /// When.
    pub time: Range<Instant>,
}

/// Two or more holders had a session of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The user.
    pub user: usize,
    /// From the first moment with two of them to the first with one.
    pub time: Range<Instant>,
    /// Who, over that time.
    pub holders: BTreeSet<Arc<str>>,
}

/// Nobody waited for a user's mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The user.
    pub user: usize,
    /// From the end of one wait, or of the window's begin, to the next one, or to the window's end.
    pub time: Range<Instant>,
}

impl Overlap {
    /// How long.
    #[must_use]
    pub fn length(&self) -> Duration {
        length(&self.time)
    }
}

impl Gap {
    /// How long.
    #[must_use]
    pub fn length(&self) -> Duration {
        length(&self.time)
    }
}

/// What was found within a window of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The longest first.
    pub overlaps: Vec<Overlap>,
    /// Of each user that had one, the longest; the longest of all first.
    pub gaps: Vec<Gap>,
    /// Users whom nobody waits for at the window's end.
    pub unwatched: Vec<usize>,
    /// How many logins there were, of each holder.
    pub logins: BTreeMap<Arc<str>, usize>,
    /// How often a mailbox went from one holder to another.
    pub moves: usize,
}

impl Verdict {
    /// The longest time in which two watchers held one mailbox.
    #[must_use]
    pub fn longest_overlap(&self) -> Duration {
        self.overlaps
            .first()
            .map(Overlap::length)
            .unwrap_or_default()
    }

    /// The overlaps that nothing excuses: they lasted longer than a hand-over may, and no part of them was a time in which one of
    /// the holders was blind, or as long after it as a hand-over may last.
    #[must_use]
    pub fn doubled(&self, blind: &[Blind], hand_over: Duration) -> Vec<&Overlap> {
        let excused = |overlap: &Overlap| {
            blind.iter().any(|blind| {
                let theirs = overlap
                    .holders
                    .iter()
                    .any(|holder| **holder == *blind.holder);
                theirs
                    && overlap.time.end > blind.time.start
                    && overlap.time.end <= blind.time.end + hand_over
            })
        };
        self.overlaps
            .iter()
            .filter(|overlap| overlap.length() > hand_over && !excused(overlap))
            .collect()
    }

    /// The longest time in which nobody waited for one mailbox.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        self.gaps.first().map(Gap::length).unwrap_or_default()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} moves; {} overlaps, the longest {:?}; longest gap {:?}, {} users unwatched at the end; logins {:?}",
            self.moves,
            self.overlaps.len(),
            self.longest_overlap(),
            self.longest_gap(),
            self.unwatched.len(),
            self.logins,
        )?;
        for overlap in self.overlaps.iter().take(3) {
            let (user, length) = (overlap.user, overlap.length());
            write!(f, "\n  u{user} twice for {length:?}: {:?}", overlap.holders)?;
        }
        for gap in self.gaps.iter().take(3) {
            write!(f, "\n  u{} alone for {:?}", gap.user, gap.length())?;
        }
        Ok(())
    }
}

/// Judges what happened to these users within a window. What has no end yet lasts to the window's end.
#[must_use]
pub fn judge(
    records: &[SessionRecord],
    users: Range<usize>,
    window: Range<Instant>,
    blind: &[Blind],
) -> Verdict {
    let mut of_user: BTreeMap<usize, Vec<&SessionRecord>> =
        users.map(|user| (user, Vec::new())).collect();
    for record in records {
        let sessions = record.user.and_then(|user| of_user.get_mut(&user));
        if let Some(sessions) = sessions {
            sessions.push(record);
        }
    }
    let mut verdict = Verdict::default();
    for (user, sessions) in of_user {
        for session in &sessions {
            if session.logged_in.is_some_and(|at| window.contains(&at)) {
                *verdict
                    .logins
                    .entry(Arc::clone(&session.holder))
                    .or_default() += 1;
            }
        }
        verdict.moves += moves(&sessions, &window);
        verdict.overlaps.extend(overlaps(user, &sessions, &window));
        let gaps = gaps(&waits(&sessions, &window, blind), &window);
        if gaps.last().is_some_and(|gap| gap.end == window.end) {
            verdict.unwatched.push(user);
        }
        let longest = gaps.into_iter().max_by_key(length);
        verdict.gaps.extend(longest.map(|time| Gap { user, time }));
    }
    verdict
        .overlaps
        .sort_by_key(|overlap| std::cmp::Reverse(overlap.length()));
    verdict
        .gaps
        .sort_by_key(|gap| std::cmp::Reverse(gap.length()));
    verdict
}

/// How often a login was another holder's than the one before, within the window.
fn moves(sessions: &[&SessionRecord], window: &Range<Instant>) -> usize {
    let mut logins: Vec<(Instant, &Arc<str>)> = sessions
        .iter()
        .filter_map(|session| Some((session.logged_in?, &session.holder)))
        .collect();
    logins.sort();
    let pairs = logins.iter().zip(logins.iter().skip(1));
    pairs
        .filter(|(before, after)| window.contains(&after.0) && before.1 != after.1)
        .count()
}

/// The times in which two holders or more had a session, in order.
fn overlaps(user: usize, sessions: &[&SessionRecord], window: &Range<Instant>) -> Vec<Overlap> {
    // Ends before begins, so that a session that takes over in the same instant is no overlap.
    let mut changes: Vec<(Instant, bool, &Arc<str>)> = Vec::new();
    for session in sessions {
        let Some(from) = session.logged_in else {
            continue;
        };
        let time = from..session.ended.unwrap_or(window.end);
        if let Some(time) = clip(&time, window) {
            changes.push((time.start, true, &session.holder));
            changes.push((time.end, false, &session.holder));
        }
    }
    changes.sort();
    let mut found = Vec::new();
    let mut held: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    let mut current: Option<Overlap> = None;
    for (at, begins, holder) in changes {
        if begins {
            *held.entry(holder).or_default() += 1;
        } else if let Some(count) = held.get_mut(holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(holder);
            }
        }
        let holders = held.keys().map(|holder| Arc::clone(holder));
        if held.len() >= 2 {
            let overlap = current.get_or_insert_with(|| Overlap {
                user,
                time: at..at,
                holders: BTreeSet::new(),
            });
            overlap.holders.extend(holders);
        } else if let Some(mut overlap) = current.take() {
            overlap.time.end = at;
            found.push(overlap);
        }
    }
    found.retain(|overlap| !overlap.length().is_zero());
    found
}

/// The times in which somebody who could hear it waited, within the window.
fn waits(
    sessions: &[&SessionRecord],
    window: &Range<Instant>,
    blind: &[Blind],
) -> Vec<Range<Instant>> {
    let mut waits = Vec::new();
    for session in sessions {
        let deaf: Vec<&Range<Instant>> = blind
            .iter()
            .filter(|blind| *blind.holder == *session.holder)
            .map(|blind| &blind.time)
            .collect();
        for idle in &session.idles {
            let time = idle.from..idle.until.unwrap_or(window.end);
            let mut heard: Vec<_> = clip(&time, window).into_iter().collect();
            for deaf in &deaf {
                heard = heard
                    .into_iter()
                    .flat_map(|time| {
                        [
                            time.start..time.end.min(deaf.start),
                            time.start.max(deaf.end)..time.end,
                        ]
                    })
                    .filter(|time| !time.is_empty())
                    .collect();
            }
            waits.extend(heard);
        }
    }
    waits.sort_by_key(|wait| wait.start);
    waits
}

/// What of the window lies in none of these, in order.
fn gaps(waits: &[Range<Instant>], window: &Range<Instant>) -> Vec<Range<Instant>> {
    let mut gaps = Vec::new();
    let mut covered = window.start;
    for wait in waits {
        if wait.start > covered {
            gaps.push(covered..wait.start);
        }
        covered = covered.max(wait.end);
    }
    if covered < window.end {
        gaps.push(covered..window.end);
    }
    gaps
}

fn clip(time: &Range<Instant>, window: &Range<Instant>) -> Option<Range<Instant>> {
    let clipped = time.start.max(window.start)..time.end.min(window.end);
    (!clipped.is_empty()).then_some(clipped)
}

fn length(time: &Range<Instant>) -> Duration {
    time.end.saturating_duration_since(time.start)
}

#[cfg(test)]
mod tests {
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
            .map(|overlap| (seconds(&overlap.time), overlap.holders.len()))
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
}
