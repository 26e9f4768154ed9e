//! What a session needs of NATS: its log, its checkpoint, its credential, its status.
//!
//! A trait, so that a test can drive a session's task on a paused clock, against a log that does what the test says.

use std::{future::Future, pin::Pin};

use mailbell_bus::{
    AppendOutcome, Bus, BusError, Filter, Link, Logs,
    state::{Cas, Versioned},
};
use mailbell_core::{
    checkpoint::Checkpoint,
    event::Event,
    ids::{AccountId, LogId, Position},
    session::{Outcome, Tail},
};
use mailbell_proto::bus::v1::{AccountRecord, SealedCredential, StatusRecord};
use mailbell_runtime::failpoint;
use prost::bytes::Bytes;
use tokio::sync::watch;

use crate::{failure, removal};

/// A future on the heap: what a session awaits is not part of its task, so that a parked one stays small.
pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) trait Ledger: Send + Sync + 'static {
    /// Appends once, and gives the event back beside what became of it.
    fn append(&self, event: Box<Event>) -> Boxed<(Box<Event>, Outcome)>;
    /// What the account's log has after `after`, as its leader has it, without content; all of it if its history is not `log_id`.
    fn tail(&self, account: AccountId, log_id: LogId, after: Position) -> Boxed<Option<Tail>>;
    /// The stored checkpoint.
    fn load(&self, account: AccountId) -> Boxed<Result<Option<Versioned<Checkpoint>>, BusError>>;
    /// Stores the checkpoint if the stored one still has this revision; 0: if there is none.
    fn store(
        &self,
        account: AccountId,
        checkpoint: Checkpoint,
        revision: u64,
    ) -> Boxed<Result<Cas, BusError>>;
    /// The sealed credential.
    fn credential(&self, account: AccountId) -> Boxed<Result<Option<SealedCredential>, BusError>>;
    /// The account's record, for a check of what is stored.
    fn record(&self, account: AccountId) -> Boxed<Result<Option<AccountRecord>, BusError>>;
    /// Writes the status; whether it worked.
    fn status(&self, account: AccountId, record: StatusRecord) -> Boxed<bool>;
    /// Deletes what is left of a removed account; goes on until it is done. `told`: its log has at least what devices were told
    /// last.
    fn purge(&self, account: AccountId, told: bool) -> Boxed<()>;
    /// How the connection is.
    fn link(&self) -> watch::Receiver<Link>;
}

/// The real one.
#[derive(Debug, Clone)]
pub(crate) struct BusLedger {
    pub(crate) bus: Bus,
    pub(crate) logs: Logs,
}

impl Ledger for BusLedger {
    fn append(&self, event: Box<Event>) -> Boxed<(Box<Event>, Outcome)> {
        let logs = self.logs.clone();
        Box::pin(async move {
            let outcome = logs.append(&event).await;
            if matches!(outcome, AppendOutcome::Stored { .. }) {
                // The log holds it, and nobody here knows, as if its acknowledgement were still on the way.
                failpoint!("after-append");
            }
            let outcome = match outcome {
                AppendOutcome::Stored {
                    position,
                    log_id: Some(log_id),
                    ..
                } => Outcome::Stored { log_id, position },
                // Stored in a history that has no name yet: reading the tail finds out.
                AppendOutcome::Stored { log_id: None, .. } | AppendOutcome::Disconnected => {
                    Outcome::Disconnected
                }
                AppendOutcome::NoAnswer => Outcome::NoAnswer,
                AppendOutcome::Refused { class, sentence } => {
                    tracing::warn!(account = %event.account, ?class, reason = sentence, "the log refuses an event");
                    let (code, sentence) = failure::of_refusal(class);
                    Outcome::Refused { code, sentence }
                }
            };
            (event, outcome)
        })
    }

    fn tail(&self, account: AccountId, log_id: LogId, after: Position) -> Boxed<Option<Tail>> {
        let logs = self.logs.clone();
        Box::pin(async move {
            match read_tail(&logs, account.clone(), log_id, after).await {
                Ok(tail) => Some(tail),
                Err(error) => {
                    tracing::debug!(%account, %error, "the log's tail could not be read");
                    None
                }
            }
        })
    }

    fn load(&self, account: AccountId) -> Boxed<Result<Option<Versioned<Checkpoint>>, BusError>> {
        let checkpoints = self.bus.checkpoints();
        Box::pin(async move { checkpoints.load(&account).await })
    }

    fn store(
        &self,
        account: AccountId,
        checkpoint: Checkpoint,
        revision: u64,
    ) -> Boxed<Result<Cas, BusError>> {
        let checkpoints = self.bus.checkpoints();
        Box::pin(async move { checkpoints.store(&account, &checkpoint, revision).await })
    }

    fn credential(&self, account: AccountId) -> Boxed<Result<Option<SealedCredential>, BusError>> {
        let credentials = self.bus.credentials();
        Box::pin(async move {
            let found = credentials.get(&account).await?;
            Ok(found.map(|versioned| versioned.value))
        })
    }

    fn record(&self, account: AccountId) -> Boxed<Result<Option<AccountRecord>, BusError>> {
        let accounts = self.bus.accounts();
        Box::pin(async move {
            let found = accounts.get(&account).await?;
            Ok(found.map(|versioned| versioned.value))
        })
    }

    fn status(&self, account: AccountId, record: StatusRecord) -> Boxed<bool> {
        let statuses = self.bus.statuses();
        Box::pin(async move { statuses.put(&account, &record).await.is_ok() })
    }

    fn purge(&self, account: AccountId, told: bool) -> Boxed<()> {
        Box::pin(removal::purge(self.clone(), account, told))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.bus.link()
    }
}

/// Reads one account's log up to the leader's last sequence. See [`Ledger::tail`]. What the events say is let go batch by batch:
/// a checkpoint is the fold of their facts, and a log of two days may hold more than fits in memory beside others.
async fn read_tail(
    logs: &Logs,
    account: AccountId,
    log_id: LogId,
    after: Position,
) -> Result<Tail, BusError> {
    let group = account.group();
    let (current, tail) = logs.ids().check(group).await?;
    let after = if current == log_id { after } else { 0 };
    let mut reader = logs.read(group, Filter::Account(account), after, tail.last);
    let mut events = Vec::new();
    while let Some(entries) = reader.next_batch().await? {
        for entry in entries {
            if let Some(event) = entry.event {
                let content = Bytes::new();
                events.push((entry.position, Event { content, ..event }));
            }
        }
    }
    Ok(Tail {
        log_id: current,
        events,
        read_to: tail.last,
    })
}
