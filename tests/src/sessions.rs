//! The judge of the mail server's side: which watcher held which mailbox when, and who was left alone.
//!
//! It reads what the synthetic server recorded and knows no I/O. Two questions matter. Was a mailbox held by two watchers at once,
//! and for how long? And how long did nobody wait for its mail? A mailbox counts as watched while some session of its user is in IDLE:
//! so the moment in which a message is fetched is a gap too, of milliseconds.
//!
//! The server can't see that a watcher has been stopped, or cut off without a word: its sessions go on idling. A test that does such a
//! thing says so by [`Blind`], and what that watcher holds meanwhile counts as held, but not as watched. What it does to the
//! installation is a [`Fault`], from whose begin and end the others need time to take over.

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

/// Something that a test did which may leave mailboxes alone, whoever it was done to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// From its begin until it was healed.
    pub time: Range<Instant>,
    /// How long a mailbox may be alone after the begin or the end of it, or after another fault while it lasts.
    pub alone: Duration,
    /// Whose mailboxes those are, if not everybody's.
    pub holder: Option<String>,
}

/// Who had a session, and when.
type Held = (Arc<str>, Range<Instant>);

/// Two or more holders had a session of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The user.
    pub user: usize,
    /// From the first moment with two of them to the first with one.
    pub time: Range<Instant>,
    /// Each session within that time.
    held: Vec<Held>,
}

/// Nobody waited for a user's mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The user.
    pub user: usize,
    /// From the end of one wait, or of the window's begin, to the next one, or to the window's end.
    pub time: Range<Instant>,
    /// Whose waits those are, if there are any.
    pub holders: [Option<Arc<str>>; 2],
}

impl Fault {
    /// One that began then and is healed now.
    #[must_use]
    pub fn since(begin: Instant, alone: Duration) -> Self {
        Self {
            time: begin..Instant::now(),
            alone,
            holder: None,
        }
    }
}

impl Overlap {
    /// How long.
    #[must_use]
    pub fn length(&self) -> Duration {
        length(&self.time)
    }

    /// Who, over that time.
    #[must_use]
    pub fn holders(&self) -> BTreeSet<Arc<str>> {
        let holders = self.held.iter().map(|(holder, _)| Arc::clone(holder));
        holders.collect()
    }

    /// When two of them held it that were not blind, nor had been up to so long before.
    fn unexcused(&self, blind: &[Blind], hand_over: Duration) -> Vec<Range<Instant>> {
        let mut hearing = Vec::new();
        for (holder, time) in &self.held {
            let excused = blind
                .iter()
                .filter(|blind| *blind.holder == **holder)
                .map(|blind| blind.time.start..blind.time.end + hand_over);
            let heard = without(time.clone(), excused);
            hearing.extend(heard.into_iter().map(|time| (Arc::clone(holder), time)));
        }
        held_twice(&hearing)
    }
}

impl Gap {
    /// How long.
    #[must_use]
    pub fn length(&self) -> Duration {
        length(&self.time)
    }

    /// Whether a fault lasted on within it, of someone who waited before or after it.
    fn concerns(&self, fault: &Fault) -> bool {
        let mut holders = self.holders.iter().flatten();
        let theirs = fault
            .holder
            .as_deref()
            .is_none_or(|name| holders.any(|holder| **holder == *name));
        theirs && fault.time.start < self.time.end && fault.time.end > self.time.start
    }

    /// How long it lasted after the last fault that began or ended within it; all of it, if none did.
    #[must_use]
    pub fn after(&self, faults: &[Fault]) -> Duration {
        let moments = faults
            .iter()
            .flat_map(|fault| [fault.time.start, fault.time.end]);
        let last = moments.filter(|at| self.time.contains(at)).max();
        length(&(last.unwrap_or(self.time.start)..self.time.end))
    }
}

/// What was found within a window of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The longest first.
    pub overlaps: Vec<Overlap>,
    /// The longest first.
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

    /// The overlaps that nothing excuses. A hand-over may last so long. A time in which one of the holders was blind does not count,
    /// nor as long after it as a hand-over may last, since it has to find out then; where that ends, the overlap has to have ended.
    #[must_use]
    pub fn doubled(&self, blind: &[Blind], hand_over: Duration) -> Vec<&Overlap> {
        let excused = |overlap: &&Overlap| {
            let left = overlap.unexcused(blind, hand_over);
            let in_time = left.last().is_none_or(|time| time.end < overlap.time.end);
            overlap.length() <= hand_over
                || in_time && left.iter().map(length).sum::<Duration>() <= hand_over
        };
        let overlaps = self.overlaps.iter();
        overlaps.filter(|overlap| !excused(overlap)).collect()
    }

    /// The gaps that no fault excuses: after the last of these that began or ended within a gap it may last for `alone`, or for as
    /// long as a fault says that lasted on within it and was of someone who waited before or after.
    #[must_use]
    pub fn late(&self, faults: &[Fault], alone: Duration) -> Vec<&Gap> {
        let bound = |gap: &Gap| {
            let within = faults.iter().filter(|fault| gap.concerns(fault));
            within.map(|fault| fault.alone).fold(alone, Duration::max)
        };
        let gaps = self.gaps.iter();
        gaps.filter(|gap| gap.after(faults) > bound(gap)).collect()
    }

    /// The longest gap of each user that had one; the longest of all first.
    #[must_use]
    pub fn longest_gaps(&self) -> Vec<&Gap> {
        let mut seen = BTreeSet::new();
        let gaps = self.gaps.iter();
        gaps.filter(|gap| seen.insert(gap.user)).collect()
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
            write!(
                f,
                "\n  u{user} twice for {length:?}: {:?}",
                overlap.holders()
            )?;
        }
        for gap in self.longest_gaps().into_iter().take(3) {
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
        let gaps = gaps(user, &waits(&sessions, &window, blind), &window);
        if gaps.last().is_some_and(|gap| gap.time.end == window.end) {
            verdict.unwatched.push(user);
        }
        verdict.gaps.extend(gaps);
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
    let mut held: Vec<Held> = Vec::new();
    for session in sessions {
        let Some(from) = session.logged_in else {
            continue;
        };
        let time = from..session.ended.unwrap_or(window.end);
        held.extend(clip(&time, window).map(|time| (Arc::clone(&session.holder), time)));
    }
    let within = |time: &Range<Instant>| {
        let sessions = held.iter();
        let clipped =
            sessions.filter_map(|(holder, held)| Some((Arc::clone(holder), clip(held, time)?)));
        clipped.collect()
    };
    let times = held_twice(&held).into_iter();
    times
        .map(|time| Overlap {
            user,
            held: within(&time),
            time,
        })
        .collect()
}

/// The times in which two holders or more are among these, in order.
fn held_twice(held: &[Held]) -> Vec<Range<Instant>> {
    // Ends before begins, so that a session that takes over in the same instant is no overlap.
    let mut changes: Vec<(Instant, bool, &Arc<str>)> = Vec::new();
    for (holder, time) in held {
        changes.push((time.start, true, holder));
        changes.push((time.end, false, holder));
    }
    changes.sort();
    let mut found = Vec::new();
    let mut now: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    let mut since: Option<Instant> = None;
    for (at, begins, holder) in changes {
        if begins {
            *now.entry(holder).or_default() += 1;
        } else if let Some(count) = now.get_mut(holder) {
            *count -= 1;
            if *count == 0 {
                now.remove(holder);
            }
        }
        if now.len() >= 2 {
            since.get_or_insert(at);
        } else if let Some(since) = since.take() {
            found.push(since..at);
        }
    }
    found.retain(|time| !time.is_empty());
    found
}

/// The times in which somebody who could hear it waited, within the window.
fn waits(sessions: &[&SessionRecord], window: &Range<Instant>, blind: &[Blind]) -> Vec<Held> {
    let mut waits = Vec::new();
    for session in sessions {
        let deaf = blind
            .iter()
            .filter(|blind| *blind.holder == *session.holder)
            .map(|blind| blind.time.clone());
        for idle in &session.idles {
            let time = idle.from..idle.until.unwrap_or(window.end);
            if let Some(time) = clip(&time, window) {
                let heard = without(time, deaf.clone()).into_iter();
                waits.extend(heard.map(|time| (Arc::clone(&session.holder), time)));
            }
        }
    }
    waits.sort_by_key(|(_, wait)| wait.start);
    waits
}

/// What of the window lies in none of these, in order.
fn gaps(user: usize, waits: &[Held], window: &Range<Instant>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut gap = |time: Range<Instant>, before: Option<&Arc<str>>, after: Option<&Arc<str>>| {
        if !time.is_empty() {
            let holders = [before.cloned(), after.cloned()];
            gaps.push(Gap {
                user,
                time,
                holders,
            });
        }
    };
    let (mut covered, mut before) = (window.start, None);
    for (holder, wait) in waits {
        gap(covered..wait.start, before, Some(holder));
        if wait.end > covered {
            (covered, before) = (wait.end, Some(holder));
        }
    }
    gap(covered..window.end, before, None);
    gaps
}

/// What of a time lies in none of these, in order.
fn without(
    time: Range<Instant>,
    those: impl Iterator<Item = Range<Instant>>,
) -> Vec<Range<Instant>> {
    let mut left = vec![time];
    for gone in those {
        left = left
            .into_iter()
            .flat_map(|time| {
                [
                    time.start..time.end.min(gone.start),
                    time.start.max(gone.end)..time.end,
                ]
            })
            .filter(|time| !time.is_empty())
            .collect();
    }
    left
}

fn clip(time: &Range<Instant>, window: &Range<Instant>) -> Option<Range<Instant>> {
    let clipped = time.start.max(window.start)..time.end.min(window.end);
    (!clipped.is_empty()).then_some(clipped)
}

fn length(time: &Range<Instant>) -> Duration {
    time.end.saturating_duration_since(time.start)
}

#[cfg(test)]
mod tests;
