//! Partitions whose changes may have been missed: their records are read anew.

use std::{collections::HashMap, future::pending, time::Duration};

use mailbell_bus::{
    patience,
    state::{AccountReader, PartitionRecords},
};
use mailbell_core::ids::{Group, Partition};
use tokio::{
    task::{Id, JoinSet},
    time::sleep,
};

use crate::accounts::Reread;

/// A read that crashed is done again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// What was read of partitions.
pub(crate) type Read = Vec<(Reread, PartitionRecords)>;

/// Reads that are under way. Each goes on until it is done: changes of its accounts wait for it.
#[derive(Debug)]
pub(crate) struct Rereads {
    reader: AccountReader,
    tasks: JoinSet<Read>,
    under_way: HashMap<Id, (Group, Vec<Reread>)>,
    /// How many reads a test makes panic.
    #[cfg(test)]
    panics: u32,
}

impl Rereads {
    pub(crate) fn new(reader: AccountReader) -> Self {
        Self {
            reader,
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            #[cfg(test)]
            panics: 0,
        }
    }

    /// Begins to read the records of these partitions.
    pub(crate) fn begin(&mut self, wanted: Vec<Reread>) {
        let mut groups: HashMap<Group, Vec<Reread>> = HashMap::new();
        for reread in wanted {
            let group = groups.entry(reread.partition.group()).or_default();
            group.push(reread);
        }
        for (group, rereads) in groups {
            self.spawn(group, rereads, Duration::ZERO);
        }
    }

    fn spawn(&mut self, group: Group, rereads: Vec<Reread>, after: Duration) {
        let (reader, wanted) = (self.reader.clone(), rereads.clone());
        #[cfg(test)]
        let panics = self.panics > 0;
        #[cfg(test)]
        {
            self.panics = self.panics.saturating_sub(1);
        }
        let read = async move {
            sleep(after).await;
            #[cfg(test)]
            assert!(!panics, "a planted panic");
            read(reader, group, wanted).await
        };
        let task = self.tasks.spawn(read).id();
        self.under_way.insert(task, (group, rereads));
    }

    /// The next read that is done; never, if there is none. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Read {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(Ok((id, read))) => {
                    self.under_way.remove(&id);
                    return read;
                }
                Some(Err(error)) => {
                    let crashed = self.under_way.remove(&error.id());
                    if let Some((group, rereads)) = crashed {
                        tracing::error!(%group, %error, "account records could not be read anew; it is tried again");
                        self.spawn(group, rereads, AGAIN);
                    }
                }
                None => return pending().await,
            }
        }
    }
}

/// Reads the records of partitions anew; goes on until it is done.
async fn read(reader: AccountReader, group: Group, rereads: Vec<Reread>) -> Read {
    let partitions: Vec<Partition> = rereads.iter().map(|reread| reread.partition).collect();
    let mut backoff = patience();
    let read = loop {
        match reader.partitions(group, &partitions).await {
            Ok(read) => break read,
            Err(error) => {
                tracing::debug!(%group, %error, "account records cannot be read anew yet")
            }
        }
        let wait = backoff.next(&mut rand::rng());
        sleep(wait).await;
    };
    let mut of: HashMap<Partition, Reread> = rereads
        .into_iter()
        .map(|reread| (reread.partition, reread))
        .collect();
    read.into_iter()
        .filter_map(|read| Some((of.remove(&read.partition)?, read)))
        .collect()
}

#[cfg(test)]
mod tests;
