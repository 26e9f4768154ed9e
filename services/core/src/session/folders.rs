//! What a session keeps in mind about each watched folder, beside what is known of it.

use std::{collections::VecDeque, time::Duration};

use super::{Limits, Now};
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

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) name: String,
    /// Something may be new.
    pub(super) dirty: bool,
    /// EXAMINE anew at the next look.
    pub(super) select: bool,
    /// New messages that a look found and that are yet to be fetched, ascending.
    pub(super) backlog: VecDeque<Uid>,
    /// The planted bug's: what should have gone before the backlog.
    pub(super) bulk_later: Option<Event>,
    /// People don't read it.
    pub(super) quiet: bool,
    /// It does not exist.
    pub(super) missing: bool,
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
    /// What was there when it was told as a whole, of the newest. Devices find it when they list.
    settled: (Generation, Vec<Uid>),
}

impl Watch {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dirty: true,
            select: true,
            backlog: VecDeque::new(),
            bulk_later: None,
            quiet: false,
            missing: false,
            noticed_us: None,
            looked_us: None,
            looked_at: Duration::ZERO,
            examined_at: Duration::ZERO,
            recheck: None,
            uid_next: 0,
            begins: None,
            settled: (0, Vec::new()),
        }
    }

    /// What was found is forgotten; the next look finds it again.
    pub(super) fn look_again(&mut self) {
        self.backlog.clear();
        self.bulk_later = None;
        self.dirty = true;
        self.looked_us = None;
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

    /// These are there while the folder, or a range of it, is told as a whole.
    pub(super) fn settle(&mut self, generation: Generation, uids: impl IntoIterator<Item = Uid>) {
        self.settled = (generation, uids.into_iter().collect());
    }

    /// Whether this message was there when it was told as part of a whole.
    pub(super) fn is_settled(&self, generation: Generation, uid: Uid) -> bool {
        self.settled.0 == generation && self.settled.1.contains(&uid)
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
