//! The service `Accounts`.
//!
//! # The order of writing, and why a crash between any two steps does no harm
//! * A new account: external id, credential, checkpoint, account record. The record makes it exist; whatever was written before
//!   it belongs to an id that nobody knows but the external id's entry, and the next call with that external id goes on with it.
//! * A change: credential, record. In between the credential fits no settings; a session that is open goes on, and the same call
//!   again repairs it.
//! * A removal: tombstone, external id, credential. The tombstone decides: the owning watcher ends the session, appends
//!   `AccountState` REMOVED, and purges log, status and checkpoint, the last of which is its mark that this is still to be done.
//!   The password goes here, at once, also if no watcher runs. What a crash leaves is repeated by the next call and at each start
//!   of an admin process (see `sweep`).

mod content;
mod create;
mod managed;
mod update;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mailbell_bus::{
    Bus,
    state::{Cas, Versioned},
};
use mailbell_core::ids::AccountId;
use mailbell_proto::{
    admin::v1::{self as api, accounts_server, get_account_request::By},
    bus::v1::{AccountRecord, SealedCredential},
};
use tokio::sync::{Mutex, MutexGuard};
use tonic::{Request, Response, Status};

use crate::{
    Error,
    auth::Caller,
    convert,
    metrics::Metrics,
    mirror::Mirror,
    owner::Owners,
    shards::Lookout,
    validate::{self, Policy},
};

/// Calls about one account or one external id are taken one after the other in this process; which of these locks it takes is a
/// hash, so two others may have to wait for each other, for the milliseconds of some writes.
const LOCKS: usize = 256;
/// Records that are read at the same time for a page.
const READS: usize = 16;

pub(crate) struct Accounts {
    bus: Bus,
    mirror: Mirror,
    owners: Arc<Owners>,
    lookout: Lookout,
    policy: Policy,
    metrics: Metrics,
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Accounts {
    pub(crate) fn new(
        bus: Bus,
        mirror: Mirror,
        owners: Arc<Owners>,
        lookout: Lookout,
        policy: Policy,
        metrics: Metrics,
    ) -> Self {
        Self {
            bus,
            mirror,
            owners,
            lookout,
            policy,
            metrics,
            locks: std::iter::repeat_with(Mutex::default).take(LOCKS).collect(),
            hasher: RandomState::new(),
        }
    }

    async fn lock(&self, key: impl std::hash::Hash) -> Result<MutexGuard<'_, ()>, Error> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % (LOCKS as u64)).unwrap_or(0);
        match self.locks.get(index) {
            Some(lock) => Ok(lock.lock().await),
            None => Err(Error::internal("no such lock")),
        }
    }

    /// The record of an account that is there.
    async fn existing(&self, id: &AccountId) -> Result<Versioned<AccountRecord>, Error> {
        match self.bus.accounts().get(id).await? {
            Some(record) if record.value.removed_at_ms == 0 => Ok(record),
            _ => Err(Error::NotFound(format!("there is no account {id}"))),
        }
    }

    async fn answer(
        &self,
        id: &AccountId,
        record: Versioned<AccountRecord>,
    ) -> Result<api::Account, Error> {
        let status = self.bus.statuses().get(id).await?;
        let status = status.map(|status| status.value);
        let mut account = convert::account(id, record.value, record.revision, status);
        // What its last owner said of it stands there still.
        if let (Some(state), Some(unwatched)) = (&mut account.state, self.lookout.unwatched_for(id))
        {
            convert::unwatched(state, unwatched);
        }
        Ok(account)
    }

    fn seal(
        &self,
        id: &AccountId,
        record: &AccountRecord,
        password: &str,
    ) -> Result<SealedCredential, Error> {
        let Some(key) = self.mirror.sealing_key() else {
            return Err(Error::Unavailable(
                "no watcher has offered a key to seal the password to; start a watcher and try again"
                    .to_owned(),
            ));
        };
        let binding = mailbell_core::seal::Binding::of(id, record);
        Ok(mailbell_core::seal::seal(
            &key,
            &binding,
            password.as_bytes(),
            &mut rand::rng(),
        )?)
    }

    async fn get(&self, request: api::GetAccountRequest) -> Result<api::Account, Error> {
        let id = match request.by {
            Some(By::Id(id)) => validate::account(&id)?,
            Some(By::ExternalId(external)) => {
                let tenant = validate::tenant(&external.tenant)?;
                validate::external_id(&external.id)?;
                let found = self.bus.external_ids().get(&tenant, &external.id).await?;
                found.ok_or_else(|| {
                    Error::NotFound("there is no account with this external id".to_owned())
                })?
            }
            None => {
                return Err(Error::Invalid(
                    "by: name the account by id or external_id.".to_owned(),
                ));
            }
        };
        let record = self.existing(&id).await?;
        self.answer(&id, record).await
    }

    async fn list(
        &self,
        request: api::ListAccountsRequest,
    ) -> Result<api::ListAccountsResponse, Error> {
        let tenant = validate::tenant_filter(&request.tenant)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<AccountId>().map_err(|_| {
                Error::Invalid("page_token: it is not one that a list answered.".to_owned())
            })?),
        };
        if !self.mirror.is_loaded() {
            return Err(Error::Unavailable(
                "the accounts are still being read; try again".to_owned(),
            ));
        }
        let limit = validate::page_size(request.page_size);
        let (ids, more) = self.mirror.page(tenant.as_ref(), after.as_ref(), limit);
        let next_page_token = match ids.last() {
            Some(last) if more => last.to_string(),
            _ => String::new(),
        };
        let accounts = stream::iter(ids)
            .map(|id| async move {
                match self.bus.accounts().get(&id).await? {
                    Some(record) if record.value.removed_at_ms == 0 => {
                        self.answer(&id, record).await.map(Some)
                    }
                    // Removed since the page was cut.
                    _ => Ok::<_, Error>(None),
                }
            })
            .buffered(READS)
            .try_filter_map(|account| std::future::ready(Ok(account)))
            .try_collect()
            .await?;
        Ok(api::ListAccountsResponse {
            accounts,
            next_page_token,
        })
    }

    async fn delete(
        &self,
        caller: Caller,
        request: api::DeleteAccountRequest,
    ) -> Result<api::DeleteAccountResponse, Error> {
        let id = validate::account(&request.id)?;
        let _lock = self.lock(&id).await?;
        let Some(record) = self.bus.accounts().get(&id).await? else {
            return Ok(api::DeleteAccountResponse {});
        };
        let external_id = record.value.external_id.clone();
        if record.value.removed_at_ms == 0 {
            managed::may_step(caller, &self.bus, &record.value, managed::Step::Delete)?;
            let now = convert::now_ms();
            // What a person is known by goes at once; the external id stays, so that a repetition can free it.
            let mut tombstone = AccountRecord {
                external_id: external_id.clone(),
                created_at_ms: record.value.created_at_ms,
                updated_at_ms: now,
                removed_at_ms: now,
                ..AccountRecord::default()
            };
            tombstone.schema = convert::schema(&tombstone, record.value.schema);
            let stored = self
                .bus
                .accounts()
                .update(&id, &tombstone, record.revision)
                .await?;
            if stored == Cas::Conflict {
                return Err(changed());
            }
            self.mirror.note_account(&id, now);
        }
        purge(&self.bus, &id, &external_id).await?;
        Ok(api::DeleteAccountResponse {})
    }

    async fn check(
        &self,
        request: api::CheckAccountRequest,
    ) -> Result<api::CheckAccountResponse, Error> {
        let id = validate::account(&request.id)?;
        self.existing(&id).await?;
        let result = self.owners.check(&id, None, None).await?;
        if result.ok {
            self.owners.login_now(&id).await;
        }
        Ok(convert::check(result))
    }
}

fn changed() -> Error {
    Error::Changed(
        "the account was changed by somebody else meanwhile; read it and try again".to_owned(),
    )
}

/// Frees what a removed account must not keep. Repeatable. Its checkpoint, status and log are the owning watcher's to purge.
pub(crate) async fn purge(bus: &Bus, id: &AccountId, external_id: &str) -> Result<(), Error> {
    if !external_id.is_empty() {
        // Only while it is this account's: a new one may have it already.
        let ids = bus.external_ids();
        ids.free(id.tenant(), external_id, id).await?;
    }
    bus.credentials().delete(id).await?;
    Ok(())
}

#[tonic::async_trait]
impl accounts_server::Accounts for Accounts {
    async fn create_account(
        &self,
        request: Request<api::CreateAccountRequest>,
    ) -> Result<Response<api::CreateAccountResponse>, Status> {
        let work = self.create(Caller::of(&request), request.into_inner());
        self.metrics.call("CreateAccount", work).await
    }

    async fn get_account(
        &self,
        request: Request<api::GetAccountRequest>,
    ) -> Result<Response<api::Account>, Status> {
        let work = self.get(request.into_inner());
        self.metrics.call("GetAccount", work).await
    }

    async fn list_accounts(
        &self,
        request: Request<api::ListAccountsRequest>,
    ) -> Result<Response<api::ListAccountsResponse>, Status> {
        let work = self.list(request.into_inner());
        self.metrics.call("ListAccounts", work).await
    }

    async fn update_account(
        &self,
        request: Request<api::UpdateAccountRequest>,
    ) -> Result<Response<api::Account>, Status> {
        let work = self.update(Caller::of(&request), request.into_inner());
        self.metrics.call("UpdateAccount", work).await
    }

    async fn delete_account(
        &self,
        request: Request<api::DeleteAccountRequest>,
    ) -> Result<Response<api::DeleteAccountResponse>, Status> {
        let work = self.delete(Caller::of(&request), request.into_inner());
        self.metrics.call("DeleteAccount", work).await
    }

    async fn check_account(
        &self,
        request: Request<api::CheckAccountRequest>,
    ) -> Result<Response<api::CheckAccountResponse>, Status> {
        let work = self.check(request.into_inner());
        self.metrics.call("CheckAccount", work).await
    }
}
