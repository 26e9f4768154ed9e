//! Account records at scale: a process follows the *changes* of all of them, with one consumer a bucket that begins at the
//! leader's end, and reads whole partitions when it takes them.
//!
//! The two meet by [`Version`]: a read that ends at a version has in it every change up to there, and every later change is told,
//! since a read waits until its bucket is followed (see `mailbell_core::records`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use mailbell_core::{
    ids::{AccountId, Group, Partition},
    records::Version,
};
use mailbell_proto::bus::v1::AccountRecord;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep, timeout},
};

use super::{
    Accounts,
    accounts::{ACCOUNT, read_account_key},
    records::decode,
};
use crate::{
    Bus, BusError,
    api::{StreamInfo, StreamMessage},
    consumer::{Delivery, Ordered, Start},
    names::{Bucket, Names},
    wire::Wire,
};

/// What may wait for [`AccountChanges::next`]. Behind it the server waits.
const WAITING: usize = 256;
/// How fast a question to the leader that failed is asked again, with full jitter.
const RETRY: Duration = Duration::from_millis(500);

/// What becomes of account records. For one account the order is that of its writes.
#[derive(Debug, Clone, PartialEq)]
pub enum AccountChange {
    /// It was written.
    Put {
        /// Which.
        account: AccountId,
        /// As it is now.
        record: AccountRecord,
        /// Where that lies among other changes and reads.
        version: Version,
    },
    /// It was deleted.
    Removed {
        /// Which.
        account: AccountId,
        /// Where that lies among other changes and reads.
        version: Version,
    },
    /// The bucket was lost or made anew, or this process was away for longer than marks of removals stay: changes may have been
    /// missed. What was read of this group with an older history is to be read anew, and what is not found then is gone.
    Restarted {
        /// Of which group.
        group: Group,
        /// The history that begins: versions of it are newer than all before.
        history: u32,
    },
}

/// The changes of all account records, and nothing of what was there before. Reads only as fast as it is asked.
#[derive(Debug)]
pub struct AccountChanges {
    /// It is a handle to the bus too.
    _bus: Bus,
    rx: mpsc::Receiver<AccountChange>,
}

impl AccountChanges {
    /// The next change; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<AccountChange> {
        self.rx.recv().await
    }
}

/// Since when the changes of a bucket are told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Followed {
    history: u32,
    /// When the bucket's stream was created.
    created: String,
}

/// Reads account records of whole partitions beside [`AccountChanges`]. Clones are cheap.
#[derive(Debug, Clone)]
pub struct AccountReader {
    bus: Bus,
    followed: Arc<HashMap<Group, watch::Receiver<Option<Followed>>>>,
}

/// All account records of one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionRecords {
    /// Which.
    pub partition: Partition,
    /// Up to where every change is in it.
    pub version: Version,
    /// The records, but for those that cannot be read.
    pub records: Vec<(AccountId, AccountRecord)>,
}

impl Accounts {
    /// Follows the changes of all account records, with one consumer a bucket, from now on. What there is already is read by the
    /// reader, a partition at a time.
    #[must_use]
    pub fn follow(&self) -> (AccountChanges, AccountReader) {
        let bus = &self.bus;
        let (tx, rx) = mpsc::channel(WAITING);
        let mut followed = HashMap::new();
        for group in Group::all() {
            let (is_followed, see_followed) = watch::channel(None);
            followed.insert(group, see_followed);
            let bucket = Bucket::State(group);
            let following = Following {
                wire: Arc::clone(&bus.inner.wire),
                names: bus.names().clone(),
                stream: bus.names().bucket_stream(bucket),
                filter: bus.names().key_subject(bucket, "account.>"),
                group,
                followed: is_followed,
                history: 1,
                // A mark of a removal stays for longer than this.
                away_limit: bus.timing().log_age,
            };
            tokio::spawn(following.run(tx.clone()));
        }
        let changes = AccountChanges {
            _bus: bus.clone(),
            rx,
        };
        let reader = AccountReader {
            bus: bus.clone(),
            followed: Arc::new(followed),
        };
        (changes, reader)
    }
}

impl AccountReader {
    /// Every account record of these partitions of a group, complete up to what its leader had. Waits for a moment until the
    /// group's changes are followed. A few partitions of one group are read each by itself, many
    /// by one pass over all of it.
    ///
    /// # Errors
    /// Why NATS did not answer; [`BusError::Timeout`] if the group is not followed yet, [`BusError::NoStream`] if its bucket was
    /// made anew and that was not noticed yet: to be tried again.
    pub async fn partitions(
        &self,
        group: Group,
        partitions: &[Partition],
    ) -> Result<Vec<PartitionRecords>, BusError> {
        let followed = self.followed(group).await?;
        let bucket = Bucket::State(group);
        let mut all: BTreeMap<Partition, HashMap<AccountId, AccountRecord>> = BTreeMap::new();
        let reads = self
            .bus
            .kv_partitions(bucket, ACCOUNT, partitions, |account, message| {
                let records = all.entry(account.partition()).or_default();
                let revision = message.sequence;
                if message.removes {
                    records.remove(&account);
                } else if let Some(record) = decode(message.payload) {
                    records.insert(account, record);
                } else {
                    tracing::warn!(%group, revision, "a record cannot be read");
                }
            })
            .await?;
        let mut found = Vec::with_capacity(reads.len());
        for read in reads {
            if read.created != followed.created {
                return Err(BusError::NoStream(self.bus.names().bucket_stream(bucket)));
            }
            let records = all.remove(&read.partition).unwrap_or_default();
            found.push(PartitionRecords {
                partition: read.partition,
                version: Version {
                    history: followed.history,
                    revision: read.up_to,
                },
                records: records.into_iter().collect(),
            });
        }
        Ok(found)
    }

    /// Waits until the changes of this group are followed, for as long as it takes: only then can its partitions be read.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`BusError::Closed`].
    pub async fn until_followed(&self, group: Group) -> Result<(), BusError> {
        let mut followed = self.watch(group)?;
        let waited = followed.wait_for(Option::is_some).await;
        waited.map(drop).map_err(|_| BusError::Closed)
    }

    fn watch(&self, group: Group) -> Result<watch::Receiver<Option<Followed>>, BusError> {
        self.followed.get(&group).cloned().ok_or(BusError::Closed)
    }

    async fn followed(&self, group: Group) -> Result<Followed, BusError> {
        let mut followed = self.watch(group)?;
        let patience = self.bus.wire().patience();
        let waited = timeout(patience, followed.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(followed)) => followed.clone().ok_or(BusError::Closed),
            Ok(Err(_)) => Err(BusError::Closed),
            Err(_) => Err(BusError::Timeout(patience)),
        }
    }
}

/// The task behind one bucket.
struct Following {
    wire: Arc<Wire>,
    names: Names,
    stream: String,
    filter: String,
    group: Group,
    followed: watch::Sender<Option<Followed>>,
    history: u32,
    away_limit: Duration,
}

impl Following {
    async fn run(mut self, tx: mpsc::Sender<AccountChange>) {
        let gone = tx.clone();
        tokio::select! {
            // Nobody is left to be told: whatever else is there does not matter.
            biased;
            () = gone.closed() => {}
            _ = self.tell(tx) => {}
        }
    }

    /// Ends when the bus or the reader has gone.
    async fn tell(&mut self, tx: mpsc::Sender<AccountChange>) -> Option<()> {
        let first = self.leader_info().await?;
        let mut created = first.created;
        let mut consumer = Ordered::new(
            Arc::clone(&self.wire),
            self.stream.clone(),
            Some(self.filter.clone()),
            Start::From(first.state.last_seq + 1),
        );
        let mut lost: Option<Instant> = None;
        loop {
            match consumer.next().await? {
                Delivery::Made { start, info, .. } => {
                    let cut = matches!(start, Start::From(next) if info.state.last_seq + 1 < next);
                    let away = lost
                        .take()
                        .is_some_and(|since| since.elapsed() > self.away_limit);
                    if info.created != created || cut || away {
                        created = info.created;
                        self.history += 1;
                        self.followed.send_replace(None);
                        consumer.restart(Start::From(info.state.last_seq + 1));
                        let restarted = AccountChange::Restarted {
                            group: self.group,
                            history: self.history,
                        };
                        tx.send(restarted).await.ok()?;
                    } else {
                        self.followed.send_replace(Some(Followed {
                            history: self.history,
                            created: created.clone(),
                        }));
                    }
                }
                // Made anew, it says what was missed.
                Delivery::Lost { since } => {
                    lost.get_or_insert(since);
                }
                Delivery::Message { message, .. } => {
                    if let Some(change) = self.read(message) {
                        tx.send(change).await.ok()?;
                    }
                }
            }
        }
    }

    /// Asked until it is answered.
    async fn leader_info(&self) -> Option<StreamInfo> {
        loop {
            let error = match self.wire.stream_info(&self.stream).await {
                Ok(Some(info)) => return Some(info),
                Ok(None) => BusError::NoStream(self.stream.clone()),
                Err(BusError::Closed) => return None,
                Err(error) => error,
            };
            tracing::debug!(stream = %self.stream, %error, "account records cannot be followed yet");
            tokio::select! {
                // The end goes first.
                biased;
                () = self.wire.closed().cancelled() => return None,
                () = sleep(RETRY.mul_f64(rand::random::<f64>())) => {}
            }
        }
    }

    fn read(&self, message: StreamMessage) -> Option<AccountChange> {
        let bucket = Bucket::State(self.group);
        let key = self.names.key_of(bucket, &message.subject);
        let Some(account) = key.and_then(read_account_key) else {
            tracing::debug!(stream = %self.stream, "a key that says nothing to this release");
            return None;
        };
        let version = Version {
            history: self.history,
            revision: message.sequence,
        };
        if message.removes {
            return Some(AccountChange::Removed { account, version });
        }
        let Some(record) = decode(message.payload) else {
            tracing::warn!(stream = %self.stream, revision = version.revision, "a record cannot be read");
            return None;
        };
        Some(AccountChange::Put {
            account,
            record,
            version,
        })
    }
}
