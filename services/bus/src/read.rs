//! Reading a log by batches.

use mailbell_core::ids::{AccountId, Partition, Position};

use crate::{BusError, Entry};

/// Whose events of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Everybody's.
    All,
    /// Those of one partition.
    Partition(Partition),
    /// Those of one account.
    Account(AccountId),
    /// Those of several accounts of the group, merged in order. Many accounts cost one read each up to some number, and a read
    /// of the whole group beyond it.
    Accounts(Vec<AccountId>),
}

/// Reads a range of a log, a bounded batch at a time.
#[derive(Debug)]
pub struct LogReader {}

impl LogReader {
    /// The next entries in order; `None` once everything up to the end of the range was read. A failed call may be repeated:
    /// it goes on where the last good one ended.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Entry>>, BusError> {
        todo!()
    }

    /// All that is left, in memory: for ranges that are known to be short.
    ///
    /// # Errors
    /// Why NATS did not answer; what was read until then is lost.
    pub async fn all(mut self) -> Result<Vec<Entry>, BusError> {
        let mut entries = Vec::new();
        while let Some(batch) = self.next_batch().await? {
            entries.extend(batch);
        }
        Ok(entries)
    }

    /// Up to where everything that matches was given out.
    #[must_use]
    pub fn position(&self) -> Position {
        todo!()
    }
}
