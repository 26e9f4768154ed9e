//! Requests to the owner of an account.

use std::time::Duration;

use mailbell_core::ids::{AccountId, Partition};
use mailbell_proto::bus::v1::{OwnerRequest, OwnerResponse};

use crate::{Bus, BusError};

/// Why an owner did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody owns the account's partition now. Try again.
    #[error("nobody owns the account now")]
    NoOwner,
    /// No answer in time.
    #[error("the account's owner does not answer")]
    Timeout,
    /// Not connected to NATS.
    #[error("not connected to NATS")]
    Disconnected,
    /// This role may not ask.
    #[error("not allowed to ask")]
    Denied,
    /// The request is larger than the server takes.
    #[error("the request is too large")]
    TooLarge,
    /// The answer cannot be read.
    #[error("the answer cannot be read")]
    Garbled,
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// How many run at once. Default 64.
    pub concurrency: usize,
    /// How many more may wait; beyond that the answer is `busy`. Default 256.
    pub queue: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            concurrency: 64,
            queue: 256,
        }
    }
}

/// Serves requests for the partitions it is told to own. Ends when dropped.
#[derive(Debug)]
pub struct OwnerService {}

impl Bus {
    /// Asks the owner of an account; the request's `account` and `timeout_ms` are filled in here.
    ///
    /// # Errors
    /// [`AskError`]. An answer of the owner that says no is no error here but an [`OwnerResponse`] with an error in it.
    pub async fn ask(
        &self,
        account: &AccountId,
        request: OwnerRequest,
        timeout: Duration,
    ) -> Result<OwnerResponse, AskError> {
        let _ = (account, request, timeout);
        todo!()
    }

    /// Serves requests for partitions, of which there are none at first. The handler's future is dropped when the asker has
    /// given up.
    #[must_use]
    pub fn serve<H, F>(&self, options: ServeOptions, handler: H) -> OwnerService
    where
        H: Fn(AccountId, OwnerRequest) -> F + Send + Sync + 'static,
        F: Future<Output = OwnerResponse> + Send + 'static,
    {
        let _ = (options, handler);
        todo!()
    }
}

impl OwnerService {
    /// Begins to answer for these partitions. Others may answer only once [`OwnerService::disown`] was called here.
    ///
    /// # Errors
    /// Why NATS did not take the subscriptions.
    pub async fn own(&self, partitions: &[Partition]) -> Result<(), BusError> {
        let _ = partitions;
        todo!()
    }

    /// Takes no more requests for these partitions; what has begun is finished.
    pub async fn disown(&self, partitions: &[Partition]) {
        let _ = partitions;
        todo!()
    }
}
