//! The bus itself.

use std::time::Duration;

use mailbell_bus::{
    AskError, Bus, BusError, Filter, Followed, Follower, Link, Logs, patiently,
    state::{Change, Revoked, Watch},
};
use mailbell_core::{
    delivery::LogState,
    ids::{AccountId, Group, LogId, PerGroup, Position, Tenant},
};
use mailbell_proto::bus::v1::{AccountRecord, Issuer, OwnerRequest, OwnerResponse, StatusRecord};
use tokio::{sync::watch, time::Instant};

use super::{Batch, Changes, Follow, Source};

/// How long a read may go on without having found anything. Far below what a replay waits for it.
const ENOUGH: Duration = Duration::from_secs(2);

/// What the gateway needs of the bus.
#[derive(Debug, Clone)]
pub struct BusSource {
    bus: Bus,
    logs: Logs,
}

impl BusSource {
    /// Loads the identities of the logs. Waits while NATS does not answer, or not one log does; those that don't are waited for
    /// by whoever uses them.
    ///
    /// # Errors
    /// As [`Bus::logs_that_answer`], what waiting does not help against.
    pub async fn new(bus: Bus) -> Result<Self, BusError> {
        let logs = patiently(|| bus.logs_that_answer()).await?;
        Ok(Self { bus, logs })
    }
}

#[tonic::async_trait]
impl Source for BusSource {
    fn installation(&self) -> String {
        self.bus.installation().to_string()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.bus.link()
    }

    fn log_ids(&self) -> watch::Receiver<PerGroup<LogId>> {
        self.logs.ids().watch()
    }

    async fn log_state(&self, group: Group) -> Result<LogState, BusError> {
        let (log_id, tail) = self.logs.ids().check(group).await?;
        Ok(LogState {
            log_id,
            first: tail.first,
            tail: tail.last,
        })
    }

    fn follow(&self, group: Group, from: Position) -> Box<dyn Follow> {
        Box::new(self.logs.follow(group, from))
    }

    async fn read(
        &self,
        group: Group,
        filter: Filter,
        after: Position,
        up_to: Position,
    ) -> Result<Batch, BusError> {
        let mut reader = self.logs.read(group, filter, after, up_to);
        // A batch may be empty while the range is not over: a replica that lags was asked, or there is nothing of these accounts
        // in much of others. What was passed over in this time is told, so that a slow read goes on instead of beginning anew.
        let enough = Instant::now() + ENOUGH;
        let mut entries = Vec::new();
        while entries.is_empty() && Instant::now() < enough {
            match reader.next_batch().await? {
                Some(batch) => entries = batch,
                None => break,
            }
        }
        Ok(Batch {
            entries,
            read_to: reader.position(),
        })
    }

    fn issuers(&self) -> Box<dyn Changes<String, Issuer>> {
        Box::new(self.bus.issuers().watch())
    }

    fn revocations(&self) -> Box<dyn Changes<(Tenant, String), i64>> {
        Box::new(Revocations(self.bus.revocations().watch()))
    }

    async fn status(&self, account: &AccountId) -> Result<Option<StatusRecord>, BusError> {
        let found = self.bus.statuses().get(account).await?;
        Ok(found.map(|versioned| versioned.value))
    }

    async fn account(&self, account: &AccountId) -> Result<Option<AccountRecord>, BusError> {
        let found = self.bus.accounts().get(account).await?;
        Ok(found.map(|versioned| versioned.value))
    }

    async fn ask(
        &self,
        account: &AccountId,
        request: OwnerRequest,
        timeout: Duration,
    ) -> Result<OwnerResponse, AskError> {
        self.bus.ask(account, request, timeout).await
    }
}

#[tonic::async_trait]
impl Follow for Follower {
    async fn next(&mut self) -> Option<Followed> {
        Follower::next(self).await
    }
}

#[tonic::async_trait]
impl Changes<String, Issuer> for Watch<String, Issuer> {
    async fn next(&mut self) -> Option<Change<String, Issuer>> {
        Watch::next(self).await
    }
}

struct Revocations(Watch<(Tenant, String), Revoked>);

#[tonic::async_trait]
impl Changes<(Tenant, String), i64> for Revocations {
    async fn next(&mut self) -> Option<Change<(Tenant, String), i64>> {
        Some(match self.0.next().await? {
            Change::Put {
                key,
                value,
                revision,
            } => Change::Put {
                key,
                value: value.expires_at_ms,
                revision,
            },
            Change::Removed { key } => Change::Removed { key },
            Change::Loaded { group } => Change::Loaded { group },
            Change::Restarted { group } => Change::Restarted { group },
        })
    }
}
