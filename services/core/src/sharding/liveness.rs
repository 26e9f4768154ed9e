//! Which members live, as one observer may judge it.
//!
//! Every member rewrites its record every few seconds. A record that stands still proves nothing by itself: it may be the
//! observer that NATS does not reach. So an observer counts only the time in which its *own* renewals were acknowledged all
//! along, and only up to the last read that showed the record unchanged. One whose renewals fail, or that was stopped, judges
//! nobody, and starts its count anew. Whom it has found dead before is given nothing as long as the record is the same: its member has
//! written none since. But nothing is taken from it before the count says so again. No clock is compared with another's.

use std::{collections::BTreeMap, time::Duration};

use mailbell_proto::bus::v1::Member;

use crate::{plant, timing::Timing};

/// What one process knows of the members. Times are of its own steady clock.
#[derive(Debug)]
pub struct Observer {
    /// A record that stood still for so long is a dead member's.
    dead: Duration,
    /// The longest pause between two acknowledged renewals that does not interrupt the count.
    gap: Duration,
    /// Own renewals were acknowledged from then on; `None`: the last one was not.
    steady_since: Option<Duration>,
    last_renewed: Duration,
    /// When the last whole read was asked for.
    read_at: Option<Duration>,
    seen: BTreeMap<String, Seen>,
    /// Holders of claims that have no record, by id and incarnation.
    missed: BTreeMap<(String, String), Missed>,
}

#[derive(Debug, Clone, Copy)]
struct Missed {
    /// The first read without it was asked for then.
    since: Duration,
    /// When it was known to be missed.
    noted: Duration,
}

#[derive(Debug)]
struct Seen {
    record: Member,
    revision: u64,
    changed: Duration,
    /// It was seen to change: somebody writes it.
    heard: bool,
    /// It was found to stand still for long enough.
    dead: bool,
}

impl Observer {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(timing: &Timing) -> Self {
        Self {
            dead: timing.member_dead,
            gap: timing.member_renew * 5 / 2,
            steady_since: None,
            last_renewed: Duration::ZERO,
            read_at: None,
            seen: BTreeMap::new(),
            missed: BTreeMap::new(),
        }
    }

    /// An own renewal was acknowledged.
    pub fn renewed(&mut self, now: Duration) {
        if self.steady_since.is_none() || now.saturating_sub(self.last_renewed) > self.gap {
            self.steady_since = Some(now);
        }
        self.last_renewed = now;
    }

    /// An own renewal was not acknowledged.
    pub fn renewal_failed(&mut self) {
        if !plant::is(plant::Bug::JudgesWhileRenewalsFail) {
            self.steady_since = None;
        }
    }

    /// All records that the leader had, asked for at `asked`.
    pub fn read(
        &mut self,
        asked: Duration,
        now: Duration,
        members: impl IntoIterator<Item = (Member, u64)>,
    ) {
        self.read_at = Some(asked);
        let judges = self.is_steady(now);
        let mut before = std::mem::take(&mut self.seen);
        for (record, revision) in members {
            let seen = match before.remove(&record.id) {
                // In a bucket that was made anew, another one may come to have the same revision.
                Some(seen) if seen.revision == revision && seen.record == record => Seen {
                    dead: seen.dead || judges && self.still(seen.changed) >= self.dead,
                    ..seen
                },
                seen => Seen {
                    changed: now,
                    heard: seen.is_some(),
                    dead: false,
                    revision,
                    record,
                },
            };
            self.seen.insert(seen.record.id.clone(), seen);
        }
    }

    /// Names everybody who holds a claim now, so that time is counted for those who have no record too.
    pub fn note_holders<'a>(
        &mut self,
        now: Duration,
        holders: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let Some(read_at) = self.read_at else { return };
        let mut before = std::mem::take(&mut self.missed);
        for (member, incarnation) in holders {
            let holder = (member.to_owned(), incarnation.to_owned());
            // It may hold many.
            if self.missed.contains_key(&holder) {
                continue;
            }
            let seen = self.seen.get(member);
            if seen.is_none_or(|seen| seen.record.incarnation != incarnation) {
                let first = Missed {
                    since: read_at,
                    noted: now,
                };
                let missed = before.remove(&holder).unwrap_or(first);
                self.missed.insert(holder, missed);
            }
        }
    }

    /// Whether all records were read since then, as of the question.
    #[must_use]
    pub fn has_read_since(&self, then: Duration) -> bool {
        self.read_at.is_some_and(|asked| asked >= then)
    }

    /// Whether it may judge now.
    #[must_use]
    pub fn is_steady(&self, now: Duration) -> bool {
        let renewed = now.saturating_sub(self.last_renewed) <= self.gap;
        let steady = self.steady_since.is_some()
            && (renewed || plant::is(plant::Bug::JudgesWhileRenewalsFail));
        steady && self.read_at.is_some()
    }

    /// Whether it can tell now of every member whether it lives: it has read for long enough, or each was heard since it began, has
    /// left, or was found dead. What it read first may be what a member wrote that has died since.
    #[must_use]
    pub fn knows_who_lives(&self, now: Duration) -> bool {
        let Some(since) = self.steady_since.filter(|_| self.is_steady(now)) else {
            return false;
        };
        let known = |seen: &Seen| seen.changed > since || seen.dead || seen.record.left;
        self.still(Duration::ZERO) >= self.dead || self.seen.values().all(known)
    }

    /// For how long something was seen to stand still since then.
    fn still(&self, since: Duration) -> Duration {
        let since = since.max(self.steady_since.unwrap_or(Duration::MAX));
        self.read_at.unwrap_or_default().saturating_sub(since)
    }

    /// Whether this incarnation of a member is dead for sure: it said so, another one of it runs, or its record stood still.
    #[must_use]
    pub fn is_dead(&self, member: &str, incarnation: &str, now: Duration) -> bool {
        if !self.is_steady(now) {
            return false;
        }
        if let Some(seen) = self.seen.get(member)
            && seen.record.incarnation == incarnation
        {
            // Who says that it is stalled may have recovered while we were stopped: a question from before proves nothing.
            let fresh = self.read_at >= self.steady_since;
            let told = seen.record.left || seen.record.stalled && fresh;
            return told || self.still(seen.changed) >= self.dead;
        }
        let holder = (member.to_owned(), incarnation.to_owned());
        let Some(missed) = self.missed.get(&holder) else {
            return false;
        };
        // Its record is written before its first claim: a read that was asked for when the claim was there has it, or one that
        // came after it. Another incarnation in an older read may be the one before.
        let replaced = self.seen.contains_key(member)
            && self.read_at.is_some_and(|asked| asked >= missed.noted);
        replaced || self.still(missed.since) >= self.dead
    }

    fn is_gone(&self, seen: &Seen) -> bool {
        seen.record.left || seen.record.stalled || self.still(seen.changed) >= self.dead
    }

    /// Members that are not dead, as far as one can tell now, and were not found dead before; in the order of their names.
    pub fn live(&self) -> impl Iterator<Item = &Member> {
        self.seen
            .values()
            .filter(|seen| !seen.dead && !self.is_gone(seen))
            .map(|seen| &seen.record)
    }

    /// Whether the record of somebody who is not dead has stood still for at least so long.
    #[must_use]
    pub fn somebody_is_silent(&self, least: Duration) -> bool {
        let silent = |seen: &Seen| self.still(seen.changed) >= least;
        self.seen
            .values()
            .any(|seen| !seen.dead && !self.is_gone(seen) && silent(seen))
    }

    /// Whether its record was seen to change: a record that was there before this observer may be a dead member's.
    #[must_use]
    pub fn was_heard(&self, id: &str) -> bool {
        self.seen.get(id).is_some_and(|seen| seen.heard)
    }

    /// All records, with how long each has stood still; in the order of their names. Of one that was found dead that is all the time
    /// since it was first read, with its pauses: the record is the same.
    pub fn all(&self) -> impl Iterator<Item = (&Member, Duration)> {
        self.seen.values().map(|seen| {
            let still = match seen.dead {
                true => self
                    .read_at
                    .unwrap_or_default()
                    .saturating_sub(seen.changed),
                false => self.still(seen.changed),
            };
            (&seen.record, still)
        })
    }

    /// The record of a member.
    #[must_use]
    pub fn member(&self, id: &str) -> Option<&Member> {
        self.seen.get(id).map(|seen| &seen.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn member(id: &str, incarnation: &str) -> Member {
        Member {
            id: id.to_owned(),
            incarnation: incarnation.to_owned(),
            ..Member::default()
        }
    }

    /// One that renews and reads every three seconds, while `b` stands still from the beginning.
    fn watched(until: u32) -> Observer {
        let mut observer = Observer::new(&Timing::default());
        for at in (0..=until).step_by(3) {
            observer.renewed(S * at);
            observer.read(S * at, S * at, [(member("b", "1"), 7)]);
        }
        observer
    }

    #[test]
    fn twelve_seconds_of_proof_are_death() {
        assert!(!watched(9).is_dead("b", "1", S * 11));
        assert!(watched(12).is_dead("b", "1", S * 12));
        assert_eq!(watched(9).live().count(), 1);
        assert_eq!(watched(12).live().count(), 0);
    }

    #[test]
    fn who_has_left_or_is_dead_is_not_silent() {
        assert!(!watched(3).somebody_is_silent(S * 6));
        assert!(watched(6).somebody_is_silent(S * 6));
        assert!(!watched(12).somebody_is_silent(S * 6));
        let mut observer = watched(3);
        for at in [6, 9, 12] {
            let left = Member {
                left: true,
                ..member("b", "1")
            };
            observer.renewed(S * at);
            observer.read(S * at, S * at, [(left, 8)]);
            assert!(!observer.somebody_is_silent(S * 3));
        }
    }

    #[test]
    fn time_without_reads_proves_nothing() {
        let mut observer = watched(9);
        for at in [12, 15, 18] {
            observer.renewed(S * at);
        }
        assert!(!observer.is_dead("b", "1", S * 20));
    }

    #[test]
    fn who_is_not_acknowledged_judges_nobody_and_starts_anew() {
        let mut observer = watched(12);
        observer.renewal_failed();
        assert!(!observer.is_dead("b", "1", S * 13));
        observer.renewed(S * 15);
        observer.read(S * 15, S * 15, [(member("b", "1"), 7)]);
        assert!(!observer.is_dead("b", "1", S * 15));
        for at in [18, 21, 24, 27] {
            observer.renewed(S * at);
            observer.read(S * at, S * at, [(member("b", "1"), 7)]);
        }
        assert!(observer.is_dead("b", "1", S * 27));
    }

    #[test]
    fn who_was_found_dead_takes_no_part_until_its_record_changes() {
        let mut observer = watched(12);
        observer.renewal_failed();
        assert_eq!(observer.live().count(), 0);
        observer.renewed(S * 15);
        observer.read(S * 15, S * 15, [(member("b", "1"), 7)]);
        assert_eq!(observer.live().count(), 0);
        // But the others may have been where NATS answered nobody.
        assert!(!observer.is_dead("b", "1", S * 15));
        observer.read(S * 15, S * 15, [(member("b", "1"), 8)]);
        assert_eq!(observer.live().count(), 1);
    }

    #[test]
    fn another_record_under_the_revision_of_the_one_before_is_new() {
        // The bucket was lost and made anew, in which the revision came to be the same.
        let mut observer = watched(12);
        let record = Member {
            renewed_ms: 14_000,
            ..member("b", "1")
        };
        observer.renewed(S * 15);
        observer.read(S * 15, S * 15, [(record, 7)]);
        assert!(!observer.is_dead("b", "1", S * 15));
    }

    #[test]
    fn who_was_stopped_judges_nobody() {
        let mut observer = watched(9);
        // Continued after a minute: a read that was asked before comes first.
        observer.read(S * 9, S * 69, [(member("b", "1"), 7)]);
        assert!(!observer.is_dead("b", "1", S * 69));
        observer.renewed(S * 69);
        observer.read(S * 69, S * 69, [(member("b", "1"), 7)]);
        assert!(!observer.is_dead("b", "1", S * 69));
    }

    #[test]
    fn what_a_member_said_before_one_was_stopped_is_asked_anew() {
        let stalled = || Member {
            stalled: true,
            ..member("b", "1")
        };
        let mut observer = watched(9);
        // Continued after a minute, in which it may have recovered: the answer is to a question from before.
        observer.read(S * 9, S * 69, [(stalled(), 8)]);
        observer.renewed(S * 69);
        assert!(!observer.is_dead("b", "1", S * 69));
        assert_eq!(observer.live().count(), 0, "it is given nothing");
        observer.read(S * 69, S * 70, [(stalled(), 8)]);
        assert!(observer.is_dead("b", "1", S * 70));
        // Who has left does not come back.
        let left = Member {
            left: true,
            ..member("b", "1")
        };
        observer.read(S * 70, S * 120, [(left, 9)]);
        observer.renewed(S * 120);
        assert!(observer.is_dead("b", "1", S * 120));
    }

    #[test]
    fn what_a_member_says_counts_at_once() {
        let mut observer = watched(3);
        let left = Member {
            left: true,
            ..member("b", "1")
        };
        observer.read(S * 3, S * 3, [(left, 8)]);
        assert!(observer.is_dead("b", "1", S * 3));
    }

    #[test]
    fn another_incarnation_counts_once_it_must_be_the_newer_one() {
        let mut observer = watched(3);
        // Its claim was seen; the record that is known may be its predecessor's.
        observer.note_holders(S * 4, [("b", "0")]);
        assert!(!observer.is_dead("b", "0", S * 4));
        observer.renewed(S * 6);
        observer.read(S * 6, S * 6, [(member("b", "1"), 8)]);
        assert!(observer.is_dead("b", "0", S * 6));
        assert!(!observer.is_dead("b", "2", S * 6), "never seen");
    }

    #[test]
    fn a_holder_without_a_record_dies_after_the_same_time() {
        let mut observer = watched(0);
        let holders = [("c", "1"), ("b", "1"), ("c", "1")];
        observer.note_holders(Duration::ZERO, holders);
        for at in [3, 6, 9] {
            observer.renewed(S * at);
            observer.read(S * at, S * at, [(member("b", "1"), u64::from(at))]);
            observer.note_holders(S * at, holders);
        }
        assert!(!observer.is_dead("c", "1", S * 9));
        observer.renewed(S * 12);
        observer.read(S * 12, S * 12, []);
        assert!(observer.is_dead("c", "1", S * 12));
        assert!(!observer.is_dead("d", "1", S * 12), "never missed");
    }
}
