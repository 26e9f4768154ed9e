//! Adding an account.

use mailbell_bus::state::{Cas, Versioned};
use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Tenant},
};
use mailbell_proto::{
    admin::v1 as api,
    bus::v1::{AccountRecord, CheckResult, SealedCredential},
};
use ulid::Ulid;
use zeroize::Zeroizing;

use super::{Accounts, content::policy, managed::may_create};
use crate::{
    Error,
    auth::Caller,
    convert,
    owner::passed,
    validate::{self, Server},
};

/// How often a creation begins anew when somebody else is at the same external id.
const TRIES: usize = 4;

/// What is asked for, bounded and complete.
struct Wanted {
    tenant: Tenant,
    external_id: String,
    record: AccountRecord,
    password: Zeroizing<String>,
    no_check: bool,
}

impl Accounts {
    pub(super) async fn create(
        &self,
        caller: Caller,
        request: api::CreateAccountRequest,
    ) -> Result<api::CreateAccountResponse, Error> {
        may_create(caller, &self.bus, &request.managed_by, &request.external_id)?;
        let wanted = self.wanted(request)?;
        for _ in 0..TRIES {
            let id = self.id_for(&wanted).await?;
            if let Some(existing) = self.bus.accounts().get(&id).await? {
                match self.existing_answer(&wanted, &id, existing).await? {
                    Some(answer) => return Ok(answer),
                    // A tombstone whose external id has just been freed.
                    None => continue,
                }
            }
            let credential = self.seal(&id, &wanted.record, &wanted.password)?;
            let result = if wanted.no_check {
                None
            } else {
                let result = self
                    .owners
                    .check(&id, Some(&wanted.record), Some(&credential))
                    .await?;
                Some(passed(result)?)
            };
            if let Some(revision) = self.store(&id, &wanted, &credential, result).await? {
                let record = Versioned {
                    value: wanted.record,
                    revision,
                };
                let account = Some(convert::account(&id, record.value, record.revision, None));
                return Ok(api::CreateAccountResponse {
                    account,
                    created: true,
                });
            }
        }
        Err(Error::Changed(
            "several calls with this external id are at work; try again".to_owned(),
        ))
    }

    fn wanted(&self, mut request: api::CreateAccountRequest) -> Result<Wanted, Error> {
        let password = Zeroizing::new(std::mem::take(&mut request.password));
        let tenant = validate::tenant(&request.tenant)?;
        validate::external_id(&request.external_id)?;
        let server: Server = validate::server(request.server, self.policy)?;
        validate::password(&password)?;
        let now = convert::now_ms();
        let mut record = AccountRecord {
            external_id: request.external_id.clone(),
            folders: validate::folders(request.folders)?,
            paused: request.paused,
            created_at_ms: now,
            updated_at_ms: now,
            credential_version: 1,
            managed_by: request.managed_by,
            content: policy(request.content, 0, self.bus.write_version())?,
            ..AccountRecord::default()
        };
        convert::put_server(&mut record, server);
        record.schema = convert::schema(&record, 0);
        Ok(Wanted {
            tenant,
            external_id: request.external_id,
            record,
            password,
            no_check: request.no_check,
        })
    }

    /// A new id, or the one that has the external id.
    async fn id_for(&self, wanted: &Wanted) -> Result<AccountId, Error> {
        let id = AccountId::new(wanted.tenant.clone(), Ulid::generate());
        if wanted.external_id.is_empty() {
            return Ok(id);
        }
        let ids = self.bus.external_ids();
        Ok(ids.claim(&wanted.tenant, &wanted.external_id, &id).await?)
    }

    /// The account that has the external id; `None` if it was removed.
    async fn existing_answer(
        &self,
        wanted: &Wanted,
        id: &AccountId,
        existing: Versioned<AccountRecord>,
    ) -> Result<Option<api::CreateAccountResponse>, Error> {
        if existing.value.removed_at_ms != 0 {
            // Its removal was cut off before it freed the external id.
            let _lock = self.lock((&wanted.tenant, &wanted.external_id)).await?;
            super::purge(&self.bus, id, &wanted.external_id).await?;
            return Ok(None);
        }
        if !convert::same_settings(&existing.value, &wanted.record) {
            return Err(Error::AlreadyExists(format!(
                "external_id: the account {id} has it, with other settings; update or delete that one"
            )));
        }
        // The password cannot be compared: it is sealed. UpdateAccount sets another one.
        let account = Some(self.answer(id, existing).await?);
        Ok(Some(api::CreateAccountResponse {
            account,
            created: false,
        }))
    }

    /// Writes the account in order. `None`: somebody else made it meanwhile.
    async fn store(
        &self,
        id: &AccountId,
        wanted: &Wanted,
        credential: &SealedCredential,
        looked: Option<CheckResult>,
    ) -> Result<Option<u64>, Error> {
        // The login took seconds: look again, and let nobody of this process in between. (Another admin process at the same
        // external id with another password, within these milliseconds, could leave its credential behind; the account then says
        // that it needs its password anew.)
        let _lock = self.lock(id).await?;
        if self.bus.accounts().get(id).await?.is_some() {
            return Ok(None);
        }
        self.bus.credentials().put(id, credential).await?;
        let free = match looked {
            Some(looked) => self.store_checkpoint(id, looked).await?,
            None => self.clear_checkpoint(id).await?,
        };
        if !free {
            return Ok(None);
        }
        match self.bus.accounts().create(id, &wanted.record).await? {
            Cas::Stored(revision) => {
                self.mirror.note_account(id, 0);
                tracing::info!(account = %id, "account added");
                Ok(Some(revision))
            }
            Cas::Conflict => Ok(None),
        }
    }

    /// Of an account that was not looked at, the first login says where it begins: not an earlier try that did look, was cut off
    /// before the account was there, and would have everything since then told as new. False as of
    /// [`Accounts::store_checkpoint`].
    async fn clear_checkpoint(&self, id: &AccountId) -> Result<bool, Error> {
        let checkpoints = self.bus.checkpoints();
        if checkpoints.load(id).await?.is_some() {
            if self.bus.accounts().get(id).await?.is_some() {
                return Ok(false);
            }
            checkpoints.delete(id).await?;
        }
        Ok(true)
    }

    /// False: another admin process made the account meanwhile, and the checkpoint is its watcher's.
    async fn store_checkpoint(&self, id: &AccountId, looked: CheckResult) -> Result<bool, Error> {
        let folders = looked
            .folders
            .into_iter()
            .map(|folder| (folder.name, folder.generation, folder.uid_next));
        let now_us = convert::now_ms().saturating_mul(1000);
        let first = Checkpoint::first(folders, now_us);
        let checkpoints = self.bus.checkpoints();
        if checkpoints.store(id, &first, 0).await? == Cas::Conflict {
            if self.bus.accounts().get(id).await?.is_some() {
                return Ok(false);
            }
            // Of an earlier try that got no further. Nobody watches an account that does not exist, so it is safe to replace.
            checkpoints.delete(id).await?;
            if checkpoints.store(id, &first, 0).await? == Cas::Conflict {
                return Err(super::changed());
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use mailbell_bus::{Bus, BusOptions, Role};
    use mailbell_runtime::{health::Health, metrics};
    use mailbell_test_servers::{NatsOptions, NatsServer};
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::{Policy, metrics::Metrics, mirror::Mirror, owner::Owners, shards::Lookout};

    #[tokio::test]
    async fn the_checkpoint_of_an_account_that_lives_is_its_watchers() {
        let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
        let connect = |role| {
            let options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
            async { Bus::connect(options).await.unwrap() }
        };
        connect(Role::Setup).await.setup().await.unwrap();
        let (bus, watcher) = (connect(Role::Admin).await, connect(Role::Watcher).await);
        let metrics = Metrics::register(metrics::Metrics::new("test").registry());
        let limit = Duration::from_secs(1);
        let mirror = Mirror::new(Gauge::default(), Health::new());
        let accounts = Accounts::new(
            bus.clone(),
            mirror.clone(),
            Arc::new(Owners::new(bus.clone(), limit, limit, metrics.clone())),
            Lookout::new(bus.clone(), mirror, metrics.shards.clone()),
            Policy {
                plaintext: false,
                private_hosts: true,
            },
            metrics,
        );
        let id = AccountId::new("default".parse().unwrap(), Ulid::generate());
        let mut watched = Checkpoint::first([("INBOX".to_owned(), 7, 42)], 0);
        watched.counter = 3;
        let store = watcher.checkpoints().store(&id, &watched, 0).await;
        assert!(matches!(store.unwrap(), Cas::Stored(_)));
        let record = AccountRecord::default();
        let made = bus.accounts().create(&id, &record).await.unwrap();
        assert!(matches!(made, Cas::Stored(_)));
        // Whoever was at the same external id in another process, and looked for the account just before, loses.
        let looked = CheckResult::default();
        assert!(!accounts.store_checkpoint(&id, looked).await.unwrap());
        assert!(!accounts.clear_checkpoint(&id).await.unwrap());
        let kept = watcher.checkpoints().load(&id).await.unwrap().unwrap();
        assert_eq!(kept.value, watched);
    }
}
