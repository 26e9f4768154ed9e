//! Waiting for NATS, for tasks and for times.

use std::{future::pending, time::Duration};

use mailbell_bus::BusError;
use mailbell_core::backoff::Backoff;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::Error;

/// Between attempts.
pub(crate) fn patience() -> Backoff {
    Backoff::new(
        Duration::from_millis(50),
        Duration::from_millis(200),
        Duration::from_secs(5),
    )
}

/// Tries until it works, or until trying is of no use.
pub(crate) async fn patiently<T, F>(attempt: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, BusError>>,
{
    let mut backoff = patience();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "NATS is not ready; it is tried again");
                let wait = backoff.next(&mut rand::rng());
                sleep(wait).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a task brought, once; never if there is none. Cancel-safe. A task that panicked brings nothing: it is begun anew.
pub(crate) async fn finished<T: Default>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else {
        return pending().await;
    };
    let output = running.await;
    *task = None;
    output.unwrap_or_else(|error| {
        tracing::error!(%error, "a task of the watcher ended by itself");
        T::default()
    })
}

/// Waits until then; for ever, if there is no time.
pub(crate) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
