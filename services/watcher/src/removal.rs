//! What is left of an account once devices were told that it is gone.

use std::time::Duration;

use mailbell_bus::{BusError, Code};
use mailbell_core::{backoff::Backoff, ids::AccountId};
use tokio::time::sleep;

use crate::ledger::BusLedger;

/// Purges log, checkpoint, credential and status. The tombstone stays: it makes readers skip what they had already read. `told`:
/// the log has something to purge, whatever else there is.
pub(crate) async fn purge(ledger: BusLedger, account: AccountId, told: bool) {
    let mut begun = told;
    let mut backoff = Backoff::new(
        Duration::from_millis(200),
        Duration::from_secs(1),
        Duration::from_secs(60),
    );
    loop {
        match attempt(&ledger, &account, &mut begun).await {
            Ok(events) => {
                tracing::info!(%account, events, "an account was removed");
                return;
            }
            Err(error) if error.is_retryable() => {
                tracing::debug!(%account, %error, "a removal is tried again");
                let wait = backoff.next(&mut rand::rng());
                sleep(wait).await;
            }
            Err(error) => {
                tracing::error!(%account, %error, "what is left of a removed account could not be deleted");
                return;
            }
        }
    }
}

/// Status and checkpoint go last: while one of them is there, the next start takes the removal up again. `begun`: something was
/// there, maybe in an earlier attempt.
async fn attempt(
    ledger: &BusLedger,
    account: &AccountId,
    begun: &mut bool,
) -> Result<u64, BusError> {
    let BusLedger { bus, logs } = ledger;
    let (credentials, statuses, checkpoints) =
        (bus.credentials(), bus.statuses(), bus.checkpoints());
    let has_credential = is_there(credentials.get(account).await)?;
    let has_status = is_there(statuses.get(account).await)?;
    let has_checkpoint = is_there(checkpoints.load(account).await)?;
    *begun |= has_credential || has_status || has_checkpoint;
    if !*begun {
        // Done before; each deletion would leave one more marker.
        return Ok(0);
    }
    if has_credential {
        credentials.delete(account).await?;
    }
    let events = logs.purge_account(account).await?;
    // Also if there is none: the session's last one may be on its way.
    statuses.delete(account).await?;
    if has_checkpoint {
        checkpoints.delete(account).await?;
    }
    Ok(events)
}

/// What cannot be read is there too.
fn is_there<T>(found: Result<Option<T>, BusError>) -> Result<bool, BusError> {
    match found {
        Err(error) if error.code() == Code::Data => Ok(true),
        found => Ok(found?.is_some()),
    }
}
