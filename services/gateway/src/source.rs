//! What the gateway needs of the bus, and no more.
//!
//! [`BusSource`] is the bus itself. With the feature `test-util` there is an in-memory twin, so that tests can cut a log or
//! hold back an answer at will.

mod bus;
#[cfg(feature = "test-util")]
pub mod memory;

use std::{fmt, time::Duration};

use mailbell_bus::{AskError, BusError, Entry, Filter, Followed, Link, state::Change};
use mailbell_core::{
    delivery::LogState,
    ids::{AccountId, Group, LogId, PerGroup, Position, Tenant},
};
use mailbell_proto::bus::v1::{AccountRecord, Issuer, OwnerRequest, OwnerResponse, StatusRecord};
use tokio::sync::watch;

pub use bus::BusSource;

/// What a read brought.
#[derive(Debug)]
pub struct Batch {
    /// In order.
    pub entries: Vec<Entry>,
    /// Everything that matches was read up to here.
    pub read_to: Position,
}

/// See the module.
#[tonic::async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// The installation's name, which its own tokens carry as issuer.
    fn installation(&self) -> String;
    /// How the connection is.
    fn link(&self) -> watch::Receiver<Link>;
    /// The identities of the logs.
    fn log_ids(&self) -> watch::Receiver<PerGroup<LogId>>;
    /// Where a log stands and which history it is, as its leader says.
    async fn log_state(&self, group: Group) -> Result<LogState, BusError>;
    /// Follows a log from a position on.
    fn follow(&self, group: Group, from: Position) -> Box<dyn Follow>;
    /// The next bounded batch of what lies after `after`, up to and with `up_to`. It may be empty before the end, but gets on.
    async fn read(
        &self,
        group: Group,
        filter: Filter,
        after: Position,
        up_to: Position,
    ) -> Result<Batch, BusError>;
    /// Who may sign device tokens, by key id.
    fn issuers(&self) -> Box<dyn Changes<String, Issuer>>;
    /// Revoked tokens; the value is when the token expires anyway, in milliseconds since the epoch.
    fn revocations(&self) -> Box<dyn Changes<(Tenant, String), i64>>;
    /// What the owner of an account last said of it.
    async fn status(&self, account: &AccountId) -> Result<Option<StatusRecord>, BusError>;
    /// What an account is.
    async fn account(&self, account: &AccountId) -> Result<Option<AccountRecord>, BusError>;
    /// Asks the owner of an account.
    async fn ask(
        &self,
        account: &AccountId,
        request: OwnerRequest,
        timeout: Duration,
    ) -> Result<OwnerResponse, AskError>;
}

/// A log as it grows.
#[tonic::async_trait]
pub trait Follow: Send {
    /// What comes next; `None` once the source is closed. Cancel-safe.
    async fn next(&mut self) -> Option<Followed>;
}

/// Records as they change.
#[tonic::async_trait]
pub trait Changes<K, V>: Send {
    /// The next change; `None` once the source is closed. Cancel-safe.
    async fn next(&mut self) -> Option<Change<K, V>>;
}
