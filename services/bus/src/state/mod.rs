//! Typed records in buckets.
//!
//! A point read is answered by the leader, so that it sees every write that was acknowledged. A watch is one consumer a bucket
//! and says when it has seen all that the leader had when it began.

mod accounts;
mod changes;
mod control;
mod partitions;
mod records;
mod watch;

pub use accounts::{
    Accounts, Checkpoints, Credentials, LoadedCheckpoint, Page, PageToken, Statuses,
};
pub use changes::{AccountChange, AccountChanges, AccountReader, PartitionRecords};
pub use control::{ExternalIds, Issuers, Revocations, Revoked, SealingKeys, Tokens};
pub use watch::{Change, Watch};

/// A record and the revision by which it may be replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// The record.
    pub value: T,
    /// Changes with each write.
    pub revision: u64,
}

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cas {
    /// Written; this is its revision.
    Stored(u64),
    /// Somebody else wrote in between, or it was there already: nothing is written.
    Conflict,
}
