//! Waiting for tasks and for times.

use std::future::pending;

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

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
