//! What a session keeps in mind about each watched folder, beside what is known of it.

use std::{collections::VecDeque, time::Duration};

use super::{Limits, Now, health::Words};
use crate::{
    checkpoint::MAX_HOLE_WIDTH,
    event::Event,
    ids::{Generation, Uid},
};

/// A look that will be repeated because something should be there and is not yet: EXISTS may come before a message can be
/// fetched, and a lower UID may show up late.
#[derive(Debug, Clone, Copy)]
struct Recheck {
    /// What the server said UIDNEXT was when it began.
    uid_next: Uid,
    since: Duration,
    step: Duration,
    at: Duration,
}

/// Messages that are asked for at once, ascending by UID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    first: Uid,
    last: Uid,
    pub(super) size: usize,
}

impl Page {
    pub(super) fn of(uids: &[Uid]) -> Option<Self> {
        Some(Self {
            first: *uids.first()?,
            last: *uids.last()?,
            size: uids.len(),
        })
    }
}

/// Among these is a message whose fetch ends the connection. Dovecot (2.3 and 2.4) says BYE where it cannot read one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspects {
    first: Uid,
    last: Uid,
}

/// A message that was asked for alone, and with which the connection was lost each time.
#[derive(Debug, Clone, Copy)]
struct Unread {
    uid: Uid,
    losses: u32,
    /// Of the first loss, and of the last one.
    since: Duration,
    latest: Duration,
}

/// After so many losses in a row a message no longer keeps those behind it waiting.
const PASSED_AFTER: u32 = 3;
/// How long it waits at least until it is asked for again.
const PASSED_FOR: Duration = Duration::from_secs(10);

impl Unread {
    /// What was asked for so often and for so long is told unread.
    fn is_unreadable(&self, age: Duration) -> bool {
        self.losses >= PASSED_AFTER && self.latest.saturating_sub(self.since) >= age
    }

    /// It is not asked for until then: the longer it fails, the longer it waits.
    fn passed_until(&self, age: Duration) -> Option<Duration> {
        let lasts = self.latest.saturating_sub(self.since);
        (self.losses >= PASSED_AFTER && lasts < age)
            .then(|| (self.latest + lasts.max(PASSED_FOR)).min(self.since + age))
    }
}

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) name: String,
    /// Something may be new.
    pub(super) dirty: bool,
    /// EXAMINE anew at the next look.
    pub(super) select: bool,
    /// New messages that a look found and that are yet to be fetched: ascending, but for those that keep nobody waiting.
    pub(super) backlog: VecDeque<Uid>,
    /// These are fetched one by one.
    suspects: Option<Suspects>,
    /// Those that were asked for alone and not given, of what the last look found.
    unread: Vec<Unread>,
    /// The planted bug's: what should have gone before the backlog.
    pub(super) bulk_later: Option<Event>,
    /// People don't read it.
    pub(super) quiet: bool,
    /// It does not exist: what is said of that.
    pub(super) missing: Option<Words>,
    /// When the server's notice was read that the next look answers.
    pub(super) noticed_us: Option<i64>,
    /// When the look began whose findings are being told; becomes the time of the last look once all are.
    pub(super) looked_us: Option<i64>,
    /// When it was last looked at.
    pub(super) looked_at: Duration,
    /// When it was last examined anew.
    pub(super) examined_at: Duration,
    recheck: Option<Recheck>,
    /// What the last look said UIDNEXT was.
    uid_next: Uid,
    /// The folder is about to begin anew, in this generation: what there is from this UID on is asked for first.
    pub(super) begins: Option<(Generation, Uid)>,
}

impl Watch {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dirty: true,
            select: true,
            backlog: VecDeque::new(),
            suspects: None,
            unread: Vec::new(),
            bulk_later: None,
            quiet: false,
            missing: None,
            noticed_us: None,
            looked_us: None,
            looked_at: Duration::ZERO,
            examined_at: Duration::ZERO,
            recheck: None,
            uid_next: 0,
            begins: None,
        }
    }

    /// What was found is forgotten; the next look finds it again.
    pub(super) fn look_again(&mut self) {
        self.backlog.clear();
        self.bulk_later = None;
        self.dirty = true;
        self.looked_us = None;
    }

    /// The folder begins anew, or is not there: nothing that was found in it is looked for again.
    pub(super) fn forget_found(&mut self) {
        self.suspects = None;
        self.unread.clear();
        self.recheck = None;
    }

    /// Takes what is to be fetched next out of the backlog.
    pub(super) fn next_page(&mut self, most: usize) -> Vec<Uid> {
        let is_suspect = |uid: &Uid| {
            let within = |range: Suspects| (range.first..=range.last).contains(uid);
            self.suspects.is_some_and(within) || self.unread_one(*uid).is_some()
        };
        let size = match self.backlog.front() {
            Some(first) if is_suspect(first) => 1,
            _ => {
                let harmless = self.backlog.iter().take_while(|uid| !is_suspect(uid));
                harmless.take(most).count()
            }
        };
        self.backlog.drain(..size).collect()
    }

    fn unread_one(&self, uid: Uid) -> Option<&Unread> {
        self.unread.iter().find(|unread| unread.uid == uid)
    }

    /// Takes the next message out of the backlog if it cannot be fetched.
    pub(super) fn next_unreadable(&mut self, limits: &Limits) -> Option<Uid> {
        let next = *self.backlog.front()?;
        self.unread_one(next)?
            .is_unreadable(limits.unread_age)
            .then(|| self.backlog.pop_front())?
    }

    /// The connection was lost while this was fetched.
    pub(super) fn suspect(&mut self, now: Now, page: Page) {
        if page.size > 1 {
            let range = self.suspects.get_or_insert(Suspects {
                first: page.first,
                last: page.last,
            });
            range.first = range.first.min(page.first);
            range.last = range.last.max(page.last);
            return;
        }
        if let Some(unread) = self.unread.iter_mut().find(|one| one.uid == page.first) {
            unread.losses = unread.losses.saturating_add(1);
            unread.latest = now.mono;
        } else {
            self.unread.push(Unread {
                uid: page.first,
                losses: 1,
                since: now.mono,
                latest: now.mono,
            });
        }
    }

    /// This was fetched.
    pub(super) fn clear(&mut self, page: Page) {
        self.suspects = self
            .suspects
            .filter(|suspects| page.last < suspects.last)
            .map(|suspects| Suspects {
                first: suspects.first.max(page.last.saturating_add(1)),
                ..suspects
            });
        if page.size == 1 {
            self.unread.retain(|unread| unread.uid != page.first);
        }
    }

    /// What a look found is fetched next; those that keep nobody waiting come last, when it is their time. `from` is the lowest
    /// UID that is not told by then.
    pub(super) fn take_found(&mut self, now: Now, limits: &Limits, from: Uid, found: Vec<Uid>) {
        self.unread.retain(|unread| found.contains(&unread.uid));
        let (passed, mut rest): (Vec<Uid>, Vec<Uid>) = found.iter().partition(|uid| {
            self.unread_one(**uid)
                .is_some_and(|unread| unread.losses >= PASSED_AFTER)
        });
        // Who is passed is a gap until it is told: nobody is passed where the fold would not remember that.
        let mut next = from;
        let forgotten = rest.iter().filter(|uid| **uid >= from).any(|uid| {
            let gap = std::mem::replace(&mut next, uid.saturating_add(1))..*uid;
            *uid - gap.start > MAX_HOLE_WIDTH && passed.iter().any(|uid| gap.contains(uid))
        });
        let due = passed
            .iter()
            .filter(|uid| !self.is_passed(now, limits, **uid));
        rest.extend(due);
        self.backlog = if forgotten { found } else { rest }.into();
    }

    /// It is not asked for now.
    pub(super) fn is_passed(&self, now: Now, limits: &Limits, uid: Uid) -> bool {
        self.unread_one(uid)
            .and_then(|unread| unread.passed_until(limits.unread_age))
            .is_some_and(|until| until > now.mono)
    }

    /// Whether some of what was found waits to be asked for again.
    pub(super) fn lacks_some(&self) -> bool {
        !self.unread.is_empty()
    }

    /// A look ended; `expect_more`: something that should be there is not. Looks again soon, for a while.
    pub(super) fn plan_recheck(
        &mut self,
        now: Now,
        limits: &Limits,
        uid_next: Uid,
        expect_more: bool,
    ) {
        const FIRST: Duration = Duration::from_millis(500);
        if !expect_more {
            // Remembered until what was found is fetched: see `missed_some`.
            self.recheck = self.recheck.filter(|old| old.uid_next == uid_next);
            if let Some(old) = &mut self.recheck {
                old.at = Duration::MAX;
            }
            self.uid_next = uid_next;
            return;
        }
        self.uid_next = uid_next;
        let fresh = Recheck {
            uid_next,
            since: now.mono,
            step: FIRST,
            at: now.mono + FIRST,
        };
        let next = match self.recheck {
            Some(old) if old.uid_next == uid_next => {
                let step = old.step * 2;
                Recheck {
                    step,
                    at: now.mono + step,
                    ..old
                }
            }
            _ => fresh,
        };
        // Beyond the age nothing is planned, but it is remembered, so that the same gap does not begin anew.
        let over = next.at.saturating_sub(next.since) > limits.hole_age;
        self.recheck = Some(Recheck {
            at: if over { Duration::MAX } else { next.at },
            ..next
        });
    }

    /// Messages that a look found could not be fetched. Looks again soon, for a while.
    pub(super) fn missed_some(&mut self, now: Now, limits: &Limits) {
        self.plan_recheck(now, limits, self.uid_next, true);
    }

    /// When the next planned look is due.
    pub(super) fn recheck_at(&self, limits: &Limits) -> Option<Duration> {
        let passed = self.unread.iter();
        let passed = passed.filter_map(|unread| unread.passed_until(limits.unread_age));
        self.recheck
            .map(|recheck| recheck.at)
            .filter(|at| *at != Duration::MAX)
            .into_iter()
            .chain(passed)
            .min()
    }
}

/// What is said of the first folder that does not exist.
pub(super) fn missing(watches: &[Watch]) -> Option<&Words> {
    watches.iter().find_map(|watch| watch.missing.as_ref())
}
