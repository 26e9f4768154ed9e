//! Records of accounts: what they are, how they are, their checkpoints, their sealed credentials.

use std::collections::BTreeMap;

use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Group, Partition, Tenant},
};
use mailbell_proto::bus::v1::{self as record, AccountRecord, SealedCredential, StatusRecord};

use super::{
    Cas, Versioned, Watch,
    records::{decode, ours, versioned},
    watch::Watched,
};
use crate::{
    Bus, BusError,
    api::StreamMessage,
    caught::caught,
    names::{Bucket, account_key, account_of_key},
};

pub(super) const ACCOUNT: &str = "account.";
const STATUS: &str = "status.";

/// Where the next page of a listing begins. Opaque: text for the one who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken(String);

impl PageToken {
    /// From what a caller gave back.
    #[must_use]
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn at(bucket: usize, after: u64) -> Self {
        Self(format!("{bucket}.{after}"))
    }

    pub(super) fn read(&self) -> Option<(usize, u64)> {
        let (bucket, after) = self.0.split_once('.')?;
        Some((bucket.parse().ok()?, after.parse().ok()?))
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<K, V> {
    /// The records. One that is written during a listing may come twice; none is left out but those that cannot be read.
    pub records: Vec<(K, Versioned<V>)>,
    /// The next page, if there may be more.
    pub next: Option<PageToken>,
}

impl Bus {
    /// Account records.
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        Accounts { bus: self.clone() }
    }

    /// What owners last said of accounts.
    #[must_use]
    pub fn statuses(&self) -> Statuses {
        Statuses { bus: self.clone() }
    }

    /// Checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints { bus: self.clone() }
    }

    /// Sealed credentials.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials { bus: self.clone() }
    }
}

/// Account records (`STATE_<g>`, `account.…`).
#[derive(Debug, Clone)]
pub struct Accounts {
    pub(super) bus: Bus,
}

impl Accounts {
    /// The record, from the leader.
    ///
    /// # Errors
    /// Why NATS did not answer; [`BusError::Record`].
    pub async fn get(
        &self,
        account: &AccountId,
    ) -> Result<Option<Versioned<AccountRecord>>, BusError> {
        let (bucket, key) = account_at(account);
        self.bus.record(bucket, &key).await
    }

    /// Writes the first record of an account. The last thing to be written of a new account.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn create(
        &self,
        account: &AccountId,
        record: &AccountRecord,
    ) -> Result<Cas, BusError> {
        self.update(account, record, 0).await
    }

    /// Replaces the record that has this revision.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn update(
        &self,
        account: &AccountId,
        record: &AccountRecord,
        revision: u64,
    ) -> Result<Cas, BusError> {
        let (bucket, key) = account_at(account);
        self.bus
            .replace_record(bucket, &key, record, revision)
            .await
    }

    /// Forgets the record.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        let (bucket, key) = account_at(account);
        self.bus.kv_delete(bucket, &key).await
    }

    /// A page of at most `limit` (1 to 1000) records, of one tenant or of all.
    ///
    /// # Errors
    /// Why NATS did not answer; [`BusError::Options`] for a token that is none.
    pub async fn list(
        &self,
        tenant: Option<&Tenant>,
        limit: usize,
        token: Option<&PageToken>,
    ) -> Result<Page<AccountId, AccountRecord>, BusError> {
        let buckets: Vec<Bucket> = Group::all().map(Bucket::State).collect();
        let keys = match tenant {
            Some(tenant) => format!("{ACCOUNT}*.{tenant}.>"),
            None => format!("{ACCOUNT}>"),
        };
        self.bus
            .page(&buckets, &keys, read_account_key, limit, token)
            .await
    }

    /// Watches the records of whole groups, with one consumer a group.
    #[must_use]
    pub fn watch(
        &self,
        groups: impl IntoIterator<Item = Group>,
    ) -> Watch<AccountId, AccountRecord> {
        Watched {
            keys: "account.>",
            key: read_account_key,
            value: decode,
            confirm: true,
        }
        .start(
            &self.bus,
            groups
                .into_iter()
                .map(|group| (group, Bucket::State(group))),
        )
    }
}

/// What owners last said (`STATE_<g>`, `status.…`).
#[derive(Debug, Clone)]
pub struct Statuses {
    bus: Bus,
}

impl Statuses {
    /// The status, from the leader.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn get(
        &self,
        account: &AccountId,
    ) -> Result<Option<Versioned<StatusRecord>>, BusError> {
        let (bucket, key) = status_at(account);
        self.bus.record(bucket, &key).await
    }

    /// Writes the status.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn put(&self, account: &AccountId, record: &StatusRecord) -> Result<u64, BusError> {
        let (bucket, key) = status_at(account);
        self.bus.put_record(bucket, &key, record).await
    }

    /// Forgets the status.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        let (bucket, key) = status_at(account);
        self.bus.kv_delete(bucket, &key).await
    }

    /// Watches the statuses of whole groups, with one consumer a group.
    #[must_use]
    pub fn watch(&self, groups: impl IntoIterator<Item = Group>) -> Watch<AccountId, StatusRecord> {
        Watched {
            keys: "status.>",
            key: read_status_key,
            value: decode,
            confirm: true,
        }
        .start(
            &self.bus,
            groups
                .into_iter()
                .map(|group| (group, Bucket::State(group))),
        )
    }
}

/// The checkpoint of one of several accounts, or why it cannot be read.
pub type LoadedCheckpoint = (AccountId, Result<Versioned<Checkpoint>, BusError>);

/// Checkpoints (`CKPT_<g>`).
#[derive(Debug, Clone)]
pub struct Checkpoints {
    bus: Bus,
}

impl Checkpoints {
    /// The checkpoint, from the leader.
    ///
    /// # Errors
    /// Why NATS did not answer; [`BusError::NewerRecord`].
    pub async fn load(
        &self,
        account: &AccountId,
    ) -> Result<Option<Versioned<Checkpoint>>, BusError> {
        let key = account_key(account);
        let bucket = Bucket::Checkpoints(account.group());
        let stored = self.bus.kv_get(bucket, &key).await?;
        stored
            .map(|message| self.bus.read_stored(message))
            .transpose()
    }

    /// Every checkpoint of these partitions of a group, complete up to what its leader had. One that this release cannot read
    /// says so in its place. A few partitions are read each by itself, many by one pass over all of the
    /// group.
    ///
    /// # Errors
    /// Why NATS did not answer. Of one account: [`BusError::Record`], [`BusError::NewerRecord`].
    pub async fn load_partitions(
        &self,
        group: Group,
        partitions: &[Partition],
    ) -> Result<Vec<LoadedCheckpoint>, BusError> {
        let mut all = BTreeMap::new();
        let on_message = |account: AccountId, message: StreamMessage| {
            // One that was written while we read may come twice: the later one counts.
            if message.removes {
                all.remove(&account);
                return;
            }
            all.insert(account, self.bus.read_stored(message));
        };
        self.bus
            .kv_partitions(Bucket::Checkpoints(group), "", partitions, on_message)
            .await?;
        Ok(all.into_iter().collect())
    }

    /// Asks the leader of a group's checkpoints for nothing but an answer.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn probe(&self, group: Group) -> Result<(), BusError> {
        let bucket = Bucket::Checkpoints(group);
        let stream = self.bus.names().bucket_stream(bucket);
        match self.bus.wire().stream_info(&stream).await? {
            Some(_) => Ok(()),
            None => Err(BusError::NoStream(stream)),
        }
    }

    /// Shows every checkpoint of a group, complete up to what its leader had, without holding more than a batch of them. One that is
    /// written meanwhile may be shown twice, the later one last.
    ///
    /// # Errors
    /// As [`Checkpoints::load_partitions`].
    pub async fn scan_group(
        &self,
        group: Group,
        mut show: impl FnMut(LoadedCheckpoint),
    ) -> Result<(), BusError> {
        let bucket = Bucket::Checkpoints(group);
        let mut range = self.bus.kv_whole(bucket);
        while let Some(messages) = range.next_batch().await? {
            for message in messages {
                let key = self.bus.names().key_of(bucket, &message.subject);
                let account = key.and_then(account_of_key).filter(|_| !message.removes);
                if let Some(account) = account {
                    show((account, self.bus.read_stored(message)));
                }
            }
        }
        Ok(())
    }

    /// Every checkpoint of a group: [`Checkpoints::load_partitions`] of all of its partitions.
    ///
    /// # Errors
    /// As there.
    pub async fn load_group(&self, group: Group) -> Result<Vec<LoadedCheckpoint>, BusError> {
        let partitions: Vec<Partition> = group.partitions().collect();
        self.load_partitions(group, &partitions).await
    }

    /// Replaces the checkpoint that has this revision; 0: there is none yet (or it was deleted).
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn store(
        &self,
        account: &AccountId,
        checkpoint: &Checkpoint,
        revision: u64,
    ) -> Result<Cas, BusError> {
        let bucket = Bucket::Checkpoints(account.group());
        self.bus
            .replace_record(
                bucket,
                &account_key(account),
                &checkpoint.to_record(self.bus.write_version()),
                revision,
            )
            .await
    }

    /// Forgets the checkpoint.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        self.bus
            .kv_delete(Bucket::Checkpoints(account.group()), &account_key(account))
            .await
    }
}

/// Sealed credentials (`CRED_<g>`).
#[derive(Debug, Clone)]
pub struct Credentials {
    bus: Bus,
}

impl Credentials {
    /// The credential, from the leader. Watchers only.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn get(
        &self,
        account: &AccountId,
    ) -> Result<Option<Versioned<SealedCredential>>, BusError> {
        self.bus
            .record(Bucket::Credentials(account.group()), &account_key(account))
            .await
    }

    /// Writes the credential. Admin and watchers.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn put(
        &self,
        account: &AccountId,
        credential: &SealedCredential,
    ) -> Result<u64, BusError> {
        self.bus
            .put_record(
                Bucket::Credentials(account.group()),
                &account_key(account),
                credential,
            )
            .await
    }

    /// Forgets the credential.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        self.bus
            .kv_delete(Bucket::Credentials(account.group()), &account_key(account))
            .await
    }
}

fn account_at(account: &AccountId) -> (Bucket, String) {
    (
        Bucket::State(account.group()),
        format!("{ACCOUNT}{}", account_key(account)),
    )
}

fn status_at(account: &AccountId) -> (Bucket, String) {
    (
        Bucket::State(account.group()),
        format!("{STATUS}{}", account_key(account)),
    )
}

pub(super) fn read_account_key(key: &str) -> Option<AccountId> {
    account_of_key(key.strip_prefix(ACCOUNT)?)
}

fn read_status_key(key: &str) -> Option<AccountId> {
    account_of_key(key.strip_prefix(STATUS)?)
}

impl Bus {
    /// A panic is as bytes that cannot be read: it must not keep the accounts that are read beside this one from being watched.
    fn read_stored(&self, message: StreamMessage) -> Result<Versioned<Checkpoint>, BusError> {
        let subject = message.subject.clone();
        let read = || {
            versioned(&subject, message).and_then(|stored| self.read_checkpoint(&subject, stored))
        };
        caught(read).unwrap_or_else(|| Err(BusError::Record(subject.clone())))
    }

    fn read_checkpoint(
        &self,
        key: &str,
        stored: Versioned<record::Checkpoint>,
    ) -> Result<Versioned<Checkpoint>, BusError> {
        let Versioned { value, revision } = ours(key, stored)?;
        #[cfg(test)]
        assert_ne!(value.counter, tests::POISON, "a planted panic");
        // Else we would store it again without what this schema brought, until `meta` is looked at.
        self.note_written(value.schema)?;
        Ok(Versioned {
            value: Checkpoint::from_record(&value),
            revision,
        })
    }
}

#[cfg(test)]
mod tests;
