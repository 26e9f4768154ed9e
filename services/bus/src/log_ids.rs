//! The identity of each log's history.

use mailbell_core::ids::{Group, LogId, PerGroup, Position};
use tokio::sync::watch;

use crate::{BusError, LogTail};

/// The log ids of all groups, as every process sees them. Whoever finds that a history is not the one that was known (another
/// creation time, a tail or an acknowledgement below what was seen) gives it a new id by compare-and-set.
#[derive(Debug, Clone)]
pub struct LogIds {}

impl LogIds {
    /// The id of a group's log.
    #[must_use]
    pub fn get(&self, group: Group) -> LogId {
        let _ = group;
        todo!()
    }

    /// All ids, now and later.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<PerGroup<LogId>> {
        todo!()
    }

    /// A position of this log that is known to exist. Cheap; written lazily, so that a cut is seen after a restart too.
    pub fn note_seen(&self, group: Group, position: Position) {
        let _ = (group, position);
        todo!()
    }

    /// Asks the leader where the log stands and whether it is still the same history; gives it a new id if not.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn check(&self, group: Group) -> Result<(LogId, LogTail), BusError> {
        let _ = group;
        todo!()
    }
}
