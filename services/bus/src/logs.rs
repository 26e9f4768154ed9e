//! Logs: append, where they stand, and what lies in them.

use bytes::Bytes;
use mailbell_core::{
    event::Event,
    ids::{AccountId, Group, LogId, Position},
};

use crate::{Bus, BusError, Filter, Follower, LogIds, LogReader};

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It lies in the log, durably.
    Stored {
        /// Where.
        position: Position,
        /// Of which history. `None`: the history has just been found to be another and its id is not known yet.
        log_id: Option<LogId>,
        /// It was there before, from an earlier try; `position` is the first one's.
        duplicate: bool,
    },
    /// No acknowledgement within [`mailbell_core::timing::Timing::ack_timeout`]: it may be stored or not, or be stored later.
    NoAnswer,
    /// The connection broke, or was down: it may be stored or not, or be stored later.
    Disconnected,
    /// It is not stored.
    Refused {
        /// Why.
        class: Refusal,
        /// For a person.
        sentence: String,
    },
}

/// Why an append was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No room on the server. (A log at its own limit drops its oldest events instead.)
    StorageFull,
    /// The log is not there, or has no leader at the moment.
    NoStream,
    /// This user may not.
    Denied,
    /// The event is too large; trying again is of no use.
    TooLarge,
    /// Another reason.
    Other,
}

/// Where a log stands, as its leader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogTail {
    /// The lowest position that may still lie in it; `last + 1` if it is empty. What is below has aged out.
    pub first: Position,
    /// The highest position that was given away.
    pub last: Position,
    /// When its stream was created, in microseconds since the epoch: another one is another history.
    pub created_us: i64,
}

/// One entry of a log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where.
    pub position: Position,
    /// When the server stored it, in microseconds since the epoch.
    pub stored_us: i64,
    /// Whose, by its subject.
    pub account: AccountId,
    /// What. `None`: a kind of a newer release, or bytes that no release has written; skip it.
    pub event: Option<Event>,
    /// The bytes as they lie in the log.
    pub bytes: Bytes,
}

/// The 16 logs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {}

impl Bus {
    /// The logs of the installation. Checks its `meta` record and loads the identities of the logs first.
    ///
    /// # Errors
    /// [`BusError::NotSetUp`], [`BusError::Layout`], or why NATS did not answer.
    pub async fn logs(&self) -> Result<Logs, BusError> {
        todo!()
    }
}

impl Logs {
    /// The identities of the logs' histories.
    #[must_use]
    pub fn ids(&self) -> &LogIds {
        todo!()
    }

    /// Appends an event to its account's log and waits for the acknowledgement, at most
    /// [`mailbell_core::timing::Timing::ack_timeout`]. Not retried here: the caller knows what a retry needs.
    pub async fn append(&self, event: &Event) -> AppendOutcome {
        let _ = event;
        todo!()
    }

    /// Where the log of a group stands, from its leader.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn tail(&self, group: Group) -> Result<LogTail, BusError> {
        let _ = group;
        todo!()
    }

    /// Reads what lies after `after`, up to and with `up_to`, which must come from [`Logs::tail`]: complete, whatever replica
    /// answers.
    #[must_use]
    pub fn read(
        &self,
        group: Group,
        filter: Filter,
        after: Position,
        up_to: Position,
    ) -> LogReader {
        let _ = (group, filter, after, up_to);
        todo!()
    }

    /// Follows a log from `from` on (that position included), without end and without loss.
    #[must_use]
    pub fn follow(&self, group: Group, from: Position) -> Follower {
        let _ = (group, from);
        todo!()
    }

    /// Removes all events of an account. The positions stay unused: readers see a gap. Returns how many there were.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn purge_account(&self, account: &AccountId) -> Result<u64, BusError> {
        let _ = account;
        todo!()
    }
}
