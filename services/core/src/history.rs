//! Whether a log is still the history that a process knows.
//!
//! A log may be lost, or its end cut off (a restored backup, a disk that lied), and then grow again over positions that devices
//! hold. Whoever can prove that gives the log a new id. A process proves it by what it has seen of the history itself: another
//! creation time, a tail below a position that was there, or an acknowledgement at such a position. The last proof lasts, since
//! the append that it acknowledges makes the tail longer again.

use crate::ids::{LogId, Position};

/// What a process knows of one log's history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// Its id.
    pub log_id: LogId,
    /// When its stream was created, in microseconds since the epoch.
    pub created_us: i64,
    /// The highest position that is known to have been there.
    pub seen: Position,
    /// An acknowledgement proved that the log is another by now; it has no other id yet, as far as is known.
    pub refuted: bool,
}

/// What was known of a log when an append began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    log_id: LogId,
    position: Position,
}

impl Seen {
    /// The highest position that was known to have been there.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }
}

/// What an acknowledgement says of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// Its position is one of the history with this id.
    In(LogId),
    /// Not of the history that was known when the append began: the leader is to be asked.
    Elsewhere {
        /// The position is one of the history that the leader then names. Otherwise it may be of the one that ended while the
        /// acknowledgement was on its way.
        of_the_next: bool,
    },
}

/// What the leader's answer says of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one that is known.
    Same,
    /// It ends below what was seen: to be asked again, since a leader that was just deposed may say so once.
    Short,
    /// It is another.
    Another,
}

impl History {
    /// What the record of the log's identity says; another id begins anew.
    pub fn apply(&mut self, log_id: LogId, created_us: i64, highest_seen: Position) {
        let known = if self.log_id == log_id {
            *self
        } else {
            Self::default()
        };
        *self = Self {
            log_id,
            created_us,
            seen: known.seen.max(highest_seen),
            refuted: known.refuted,
        };
    }

    /// A position of the history `log_id` that is known to have been there.
    pub fn note_seen(&mut self, log_id: LogId, position: Position) {
        // What belongs to an earlier history says nothing of this one.
        if self.log_id == log_id {
            self.seen = self.seen.max(position);
        }
    }

    /// What is known now, to judge the acknowledgement of what is appended next.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen {
            log_id: self.log_id,
            position: self.seen,
        }
    }

    /// Takes in an acknowledgement; `before`: what was known when the append began.
    pub fn on_ack(&mut self, before: Seen, position: Position, duplicate: bool) -> Acknowledged {
        // A duplicate names the position of the first try.
        let grown = duplicate || position > before.position;
        if self.log_id == before.log_id {
            self.refuted |= !grown;
            if !self.refuted {
                self.note_seen(before.log_id, position);
                return Acknowledged::In(before.log_id);
            }
        }
        Acknowledged::Elsewhere {
            of_the_next: !grown,
        }
    }

    /// Whether a log whose leader answers this is the history that was known when it was asked.
    #[must_use]
    pub fn verdict(&self, created_us: i64, last: Position) -> Verdict {
        if self.refuted || self.created_us != created_us {
            Verdict::Another
        } else if last < self.seen {
            Verdict::Short
        } else {
            Verdict::Same
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: LogId = LogId([1; 16]);
    const TWO: LogId = LogId([2; 16]);

    fn known() -> History {
        let mut history = History::default();
        history.apply(ONE, 7, 10);
        history
    }

    #[test]
    fn a_leader_proves_another_history_by_time_or_tail() {
        let mut history = known();
        assert_eq!(history.verdict(7, 10), Verdict::Same);
        assert_eq!(history.verdict(7, 9), Verdict::Short);
        assert_eq!(history.verdict(8, 10), Verdict::Another);
        history.note_seen(ONE, 12);
        history.note_seen(TWO, 99);
        assert_eq!(history.verdict(7, 12), Verdict::Same);
        assert_eq!(history.verdict(7, 11), Verdict::Short);
        // A record that was written before knows less.
        history.apply(ONE, 7, 11);
        assert_eq!(history.seen, 12);
    }

    #[test]
    fn an_acknowledgement_moves_what_was_seen() {
        let mut history = known();
        let before = history.seen();
        assert_eq!(history.on_ack(before, 11, false), Acknowledged::In(ONE));
        assert_eq!(history.on_ack(before, 4, true), Acknowledged::In(ONE));
        assert_eq!(history.seen, 11);
    }

    #[test]
    fn a_refuted_history_stays_so_until_it_has_another_id() {
        let mut history = known();
        let before = history.seen();
        let elsewhere = |of_the_next| Acknowledged::Elsewhere { of_the_next };
        assert_eq!(history.on_ack(before, 10, false), elsewhere(true));
        // Nobody could be asked then. Now the tail hides that it was cut, and what others note lazily changes nothing.
        assert_eq!(history.verdict(7, 10), Verdict::Another);
        history.apply(ONE, 7, 10);
        assert_eq!(history.verdict(7, 30), Verdict::Another);
        // What grows meanwhile is not known to belong to either.
        let between = history.seen();
        assert_eq!(history.on_ack(between, 11, false), elsewhere(false));
        history.apply(TWO, 7, 10);
        assert_eq!(history.verdict(7, 11), Verdict::Same);
        let after = history.seen();
        assert_eq!(history.on_ack(after, 12, false), Acknowledged::In(TWO));
    }

    #[test]
    fn an_acknowledgement_that_comes_after_the_new_id_refutes_nothing() {
        let mut history = known();
        let before = history.seen();
        history.apply(TWO, 7, 5);
        let elsewhere = |of_the_next| Acknowledged::Elsewhere { of_the_next };
        assert_eq!(history.on_ack(before, 6, false), elsewhere(true));
        assert_eq!(history.on_ack(before, 11, false), elsewhere(false));
        assert_eq!(history.verdict(7, 6), Verdict::Same);
    }
}
