//! Waiting for NATS at a start: a cluster that is cold answers, and has no leaders yet.

use std::time::Duration;

use mailbell_core::backoff::Backoff;
use tokio::time::sleep;

use crate::BusError;

/// Between attempts.
#[must_use]
pub fn patience() -> Backoff {
    Backoff::new(
        Duration::from_millis(50),
        Duration::from_millis(200),
        Duration::from_secs(5),
    )
}

/// Tries until it works, or until trying is of no use. As cancel-safe as an attempt is.
///
/// # Errors
/// What waiting does not help against, see [`BusError::is_retryable`].
pub async fn patiently<T, F>(attempt: impl Fn() -> F) -> Result<T, BusError>
where
    F: Future<Output = Result<T, BusError>>,
{
    let mut backoff = patience();
    loop {
        match attempt().await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "NATS is not ready; it is tried again");
                let wait = backoff.next(&mut rand::rng());
                sleep(wait).await;
            }
            done => return done,
        }
    }
}
