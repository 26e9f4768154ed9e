//! Whether a device that presents a cursor can be given everything that it missed.

use mailbell_proto::push::v1::ResyncReason;

use crate::{
    cursor::Place,
    ids::{LogId, Position},
    plant,
};

/// What is known of a log when a device resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    /// Which history it is.
    pub log_id: LogId,
    /// The first sequence that it still holds; `tail + 1` if it holds none.
    pub first: Position,
    /// The last sequence, as the leader named it or as it was read.
    pub tail: Position,
}

/// What a device gets for one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Everything after this position.
    From(Position),
    /// A hole cannot be excluded: list, and go on from now.
    Resync(ResyncReason),
}

/// Compares what a device presents with what the log is.
///
/// Complete only if the history is the same, the log still holds what comes right after the position, and the position does
/// not lie beyond its end.
#[must_use]
pub fn resume(place: Place, log: LogState) -> Resume {
    let same_history = place.log_id == log.log_id || plant::is(plant::Bug::ResumeIgnoresLogId);
    if !same_history || place.position > log.tail {
        Resume::Resync(ResyncReason::LogChanged)
    } else if log.first > place.position.saturating_add(1) {
        Resume::Resync(ResyncReason::CursorTooOld)
    } else {
        Resume::From(place.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_or_resync() {
        let log = LogState {
            log_id: LogId([1; 16]),
            first: 10,
            tail: 20,
        };
        let at = |position| Place {
            log_id: log.log_id,
            position,
        };
        assert_eq!(resume(at(20), log), Resume::From(20));
        assert_eq!(resume(at(9), log), Resume::From(9));
        assert_eq!(
            resume(at(8), log),
            Resume::Resync(ResyncReason::CursorTooOld)
        );
        assert_eq!(
            resume(at(21), log),
            Resume::Resync(ResyncReason::LogChanged)
        );
        let other = Place {
            log_id: LogId([2; 16]),
            position: 15,
        };
        assert_eq!(resume(other, log), Resume::Resync(ResyncReason::LogChanged));
        // A quiet log whose events have all expired: nothing was missed.
        let quiet = LogState { first: 21, ..log };
        assert_eq!(resume(at(20), quiet), Resume::From(20));
        assert_eq!(
            resume(at(19), quiet),
            Resume::Resync(ResyncReason::CursorTooOld)
        );
    }
}
