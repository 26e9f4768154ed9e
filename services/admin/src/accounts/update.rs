//! Changing an account.

use mailbell_bus::state::{Cas, Versioned};
use mailbell_core::ids::AccountId;
use mailbell_proto::{
    admin::v1 as api,
    bus::v1::{AccountRecord, SealedCredential},
};
use zeroize::Zeroizing;

use super::{
    Accounts, changed,
    content::policy,
    managed::{Step, may_step},
};
use crate::{Error, auth::Caller, convert, owner::passed, validate};

impl Accounts {
    pub(super) async fn update(
        &self,
        caller: Caller,
        mut request: api::UpdateAccountRequest,
    ) -> Result<api::Account, Error> {
        let password = request.password.take().map(Zeroizing::new);
        let id = validate::account(&request.id)?;
        if let Some(password) = &password {
            validate::password(password)?;
        }
        let before = self.existing(&id).await?;
        let step = Step::Change(&request.managed_by);
        may_step(caller, &self.bus, &before.value, step)?;
        if request.revision != 0 && request.revision != before.revision {
            return Err(changed());
        }
        let mut record = self.changed_record(&before.value, request.clone())?;
        if !convert::same_server(&before.value, &record) && password.is_none() {
            return Err(Error::Invalid(
                "password: changing host, port, TLS mode or user needs the password anew, as the stored one is bound to them."
                    .to_owned(),
            ));
        }
        let credential = match &password {
            Some(password) => {
                record.credential_version = record.credential_version.saturating_add(1);
                Some(self.seal(&id, &record, password)?)
            }
            None => None,
        };
        let login_differs = credential.is_some() || record.folders != before.value.folders;
        if login_differs && !request.no_check {
            let result = self
                .owners
                .check(&id, Some(&record), credential.as_ref())
                .await?;
            passed(result)?;
        }
        let revision = self
            .store_change(&id, &record, before.revision, credential.as_ref())
            .await?;
        let record = Versioned {
            value: record,
            revision,
        };
        self.answer(&id, record).await
    }

    fn changed_record(
        &self,
        before: &AccountRecord,
        request: api::UpdateAccountRequest,
    ) -> Result<AccountRecord, Error> {
        let mut record = AccountRecord {
            updated_at_ms: convert::now_ms(),
            ..before.clone()
        };
        if !request.managed_by.is_empty() {
            record.managed_by = request.managed_by;
        }
        record.content = policy(request.content, before.content, self.bus.write_version())?;
        if request.server.is_some() {
            let server = validate::server(request.server, self.policy)?;
            convert::put_server(&mut record, server);
        }
        if !request.folders.is_empty() {
            record.folders = validate::folders(request.folders)?;
        }
        if let Some(paused) = request.paused {
            record.paused = paused;
        }
        record.schema = convert::schema(&record, before.schema);
        Ok(record)
    }

    async fn store_change(
        &self,
        id: &AccountId,
        record: &AccountRecord,
        revision: u64,
        credential: Option<&SealedCredential>,
    ) -> Result<u64, Error> {
        // The login took seconds: only who still has the newest revision may replace the credential.
        let _lock = self.lock(id).await?;
        if self.existing(id).await?.revision != revision {
            return Err(changed());
        }
        if let Some(credential) = credential {
            self.bus.credentials().put(id, credential).await?;
        }
        match self.bus.accounts().update(id, record, revision).await? {
            Cas::Stored(revision) => {
                tracing::info!(account = %id, "account changed");
                Ok(revision)
            }
            Cas::Conflict => Err(changed()),
        }
    }
}
