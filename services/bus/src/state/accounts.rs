//! Records of accounts: what they are, how they are, their checkpoints, their sealed credentials.

use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Group, Tenant},
};
use mailbell_proto::bus::v1::{AccountRecord, SealedCredential, StatusRecord};

use super::{Cas, Versioned, Watch};
use crate::{Bus, BusError};

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
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<K, V> {
    /// The records. One that is written during a listing may come twice; none is left out.
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
    bus: Bus,
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
        let _ = (account, &self.bus);
        todo!()
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
        let _ = (account, record);
        todo!()
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
        let _ = (account, record, revision);
        todo!()
    }

    /// Forgets the record.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        let _ = account;
        todo!()
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
        let _ = (tenant, limit, token);
        todo!()
    }

    /// Watches the records of whole groups, with one consumer a group.
    #[must_use]
    pub fn watch(
        &self,
        groups: impl IntoIterator<Item = Group>,
    ) -> Watch<AccountId, AccountRecord> {
        let _ = groups.into_iter();
        todo!()
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
        let _ = (account, &self.bus);
        todo!()
    }

    /// Writes the status.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn put(&self, account: &AccountId, record: &StatusRecord) -> Result<u64, BusError> {
        let _ = (account, record);
        todo!()
    }

    /// Forgets the status.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        let _ = account;
        todo!()
    }

    /// Watches the statuses of whole groups, with one consumer a group.
    #[must_use]
    pub fn watch(&self, groups: impl IntoIterator<Item = Group>) -> Watch<AccountId, StatusRecord> {
        let _ = groups.into_iter();
        todo!()
    }
}

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
        let _ = (account, &self.bus);
        todo!()
    }

    /// Every checkpoint of a group, complete up to what its leader had.
    ///
    /// # Errors
    /// Why NATS did not answer; [`BusError::NewerRecord`].
    pub async fn load_group(
        &self,
        group: Group,
    ) -> Result<Vec<(AccountId, Versioned<Checkpoint>)>, BusError> {
        let _ = group;
        todo!()
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
        let _ = (account, checkpoint, revision);
        todo!()
    }

    /// Forgets the checkpoint.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        let _ = account;
        todo!()
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
        let _ = (account, &self.bus);
        todo!()
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
        let _ = (account, credential);
        todo!()
    }

    /// Replaces the credential that has this revision: for resealing.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn update(
        &self,
        account: &AccountId,
        credential: &SealedCredential,
        revision: u64,
    ) -> Result<Cas, BusError> {
        let _ = (account, credential, revision);
        todo!()
    }

    /// Forgets the credential.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, account: &AccountId) -> Result<(), BusError> {
        let _ = account;
        todo!()
    }
}
