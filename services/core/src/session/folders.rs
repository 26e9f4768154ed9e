//! What a session keeps in mind about each watched folder, beside what is known of it.

use std::{collections::VecDeque, time::Duration};

use super::{Limits, Now, health::Words};
use crate::{
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
    /// The one that was asked for alone, and how often in a row the connection was lost with it.
    alone: Uid,
    losses: u32,
}

/// A message that was asked for alone so often and always took the connection with it is told unread.
const UNREADABLE_AFTER: u32 = 3;

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) name: String,
    /// Something may be new.
    pub(super) dirty: bool,
    /// EXAMINE anew at the next look.
    pub(super) select: bool,
    /// New messages that a look found and that are yet to be fetched, ascending.
    pub(super) backlog: VecDeque<Uid>,
    /// These are fetched one by one.
    pub(super) suspects: Option<Suspects>,
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

    /// Takes what is to be fetched next out of the backlog.
    pub(super) fn next_page(&mut self, most: usize) -> Vec<Uid> {
        let suspects = self.suspects;
        let is_suspect = |uid: &Uid| {
            suspects.is_some_and(|suspects| (suspects.first..=suspects.last).contains(uid))
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

    /// Takes the next message out of the backlog if it cannot be fetched.
    pub(super) fn next_unreadable(&mut self) -> Option<Uid> {
        let suspects = self.suspects?;
        let next = *self.backlog.front()?;
        if next != suspects.alone || suspects.losses < UNREADABLE_AFTER {
            return None;
        }
        self.backlog.pop_front()
    }

    /// The connection was lost while this was fetched.
    pub(super) fn suspect(&mut self, page: Page) {
        let suspects = self.suspects.get_or_insert(Suspects {
            first: page.first,
            last: page.last,
            alone: 0,
            losses: 0,
        });
        suspects.first = suspects.first.min(page.first);
        suspects.last = suspects.last.max(page.last);
        if page.size > 1 {
            return;
        }
        if suspects.alone != page.first {
            suspects.alone = page.first;
            suspects.losses = 0;
        }
        suspects.losses = suspects.losses.saturating_add(1);
    }

    /// This was fetched.
    pub(super) fn clear(&mut self, page: Page) {
        self.suspects = self
            .suspects
            .filter(|suspects| page.last < suspects.last)
            .map(|suspects| Suspects {
                first: suspects.first.max(page.last.saturating_add(1)),
                alone: 0,
                losses: 0,
                ..suspects
            });
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
    pub(super) fn recheck_at(&self) -> Option<Duration> {
        self.recheck
            .map(|recheck| recheck.at)
            .filter(|at| *at != Duration::MAX)
    }
}

/// What is said of the first folder that does not exist.
pub(super) fn missing(watches: &[Watch]) -> Option<&Words> {
    watches.iter().find_map(|watch| watch.missing.as_ref())
}
