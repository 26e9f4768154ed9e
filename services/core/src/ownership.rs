//! What ownership of accounts decides: from where the log is folded in at a take-over, and how far a claim may move on.

use crate::{
    event::Event,
    ids::{LogId, Position},
    plant,
    session::{Known, Session},
};

/// After which position the log of a partition must be folded in at a take-over; `None`: not at all. `before`: in which history,
/// and up to where, every checkpoint of the partition covers the log, if a claim says so; `first`: of the log, as it is now.
#[must_use]
pub fn fold_after(
    before: Option<(LogId, Position)>,
    log_id: LogId,
    first: Position,
) -> Option<Position> {
    if plant::is(plant::Bug::TakeOverWithoutFold) {
        return None;
    }
    match before {
        // Of what aged out the mailbox itself tells: catching up begins at the checkpoint as it is.
        Some((known, flushed)) if known == log_id && flushed + 1 < first => None,
        Some((known, flushed)) if known == log_id => Some(flushed),
        // Another history, or nothing is known: all that there is. What a checkpoint has in it is not folded again.
        Some(_) | None => Some(first.saturating_sub(1)),
    }
}

/// Folds in one event of the account's log, unless the checkpoint has it.
pub fn fold(known: &mut Known, log_id: LogId, position: Position, event: &Event) {
    let checkpoint = &mut known.checkpoint;
    if checkpoint.log_id == log_id && position <= checkpoint.position {
        return;
    }
    checkpoint.fold(log_id, position, event);
    known.unstored_from.get_or_insert(position);
}

/// Up to where a claim may call the log flushed, as far as one account is concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flush {
    /// The history in which `bound` is a position.
    pub log_id: LogId,
    /// `None`: no constraint.
    pub bound: Option<Position>,
}

impl Flush {
    /// As a session has it.
    #[must_use]
    pub fn of(session: &Session) -> Self {
        Self {
            log_id: session.checkpoint().log_id,
            bound: session.flush_bound(),
        }
    }

    /// The bound in this history.
    #[must_use]
    pub fn within(&self, log_id: LogId) -> Option<Position> {
        match self.bound {
            // What is in flight may lie anywhere in a history that the session does not know yet.
            Some(_) if self.log_id != log_id => Some(0),
            bound => bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_says_where_folding_begins() {
        let (one, two) = (LogId([1; 16]), LogId([2; 16]));
        assert_eq!(fold_after(Some((one, 40)), one, 10), Some(40));
        assert_eq!(fold_after(Some((one, 9)), one, 10), Some(9));
        // The log no longer reaches back.
        assert_eq!(fold_after(Some((one, 8)), one, 10), None);
        assert_eq!(fold_after(Some((two, 40)), one, 1), Some(0));
        assert_eq!(fold_after(None, one, 11), Some(10));
    }

    #[test]
    fn a_bound_of_another_history_bounds_everything() {
        let one = LogId([1; 16]);
        let flush = Flush {
            log_id: one,
            bound: Some(7),
        };
        assert_eq!(flush.within(one), Some(7));
        assert_eq!(flush.within(LogId([2; 16])), Some(0));
        assert_eq!(Flush::default().within(one), None);
    }
}
