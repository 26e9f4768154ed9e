//! What is forgotten in time: tombstones, and tokens that have expired.

use std::time::Duration;

use mailbell_bus::{Bus, BusError, state::PageToken};
use mailbell_core::ids::AccountId;
use mailbell_runtime::drain::DrainHandle;
use rand::RngExt as _;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Error, accounts, convert, mirror::Mirror};

/// How often. Nobody waits for it.
const EVERY: Duration = Duration::from_secs(3600);
/// After a sweep that failed, or while the mirror is loading.
const SOON: Duration = Duration::from_secs(10);
/// An expired token stays listed so long.
const TOKEN_GRACE_MS: i64 = 7 * 24 * 3600 * 1000;
const PAGE: usize = 1000;

/// Runs until the drain begins.
pub(crate) async fn run(bus: Bus, mirror: Mirror, mut drain: DrainHandle) {
    let mut next = Instant::now();
    let mut first = true;
    loop {
        tokio::select! {
            biased;
            // First: a sweep that is cut off is done again by the next one.
            _ = drain.signaled() => return,
            () = sleep_until(next) => {}
        }
        if !mirror.is_loaded() {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        match sweep(&bus, &mirror, first).await {
            Ok(()) => {
                first = false;
                // Spread, so that several admin processes do not sweep together.
                next = Instant::now() + EVERY.mul_f64(rand::rng().random_range(0.8..1.2));
            }
            Err(error) => {
                tracing::warn!(%error, "sweeping up removed accounts and expired tokens failed; it is tried again");
                next = Instant::now() + SOON;
            }
        }
    }
}

async fn sweep(bus: &Bus, mirror: &Mirror, first: bool) -> Result<(), Error> {
    let now = convert::now_ms();
    let tombstone_ms = i64::try_from(bus.timing().tombstone_age.as_millis()).unwrap_or(i64::MAX);
    for (account, removed_at_ms) in mirror.removed() {
        if removed_at_ms.saturating_add(tombstone_ms) < now {
            forget(bus, mirror, &account).await?;
        } else if first {
            // A removal that a crash cut off.
            let record = bus.accounts().get(&account).await?;
            let external_id = record.map(|record| record.value.external_id);
            accounts::purge(bus, &account, &external_id.unwrap_or_default()).await?;
        }
    }
    forget_tokens(bus, now).await
}

async fn forget(bus: &Bus, mirror: &Mirror, account: &AccountId) -> Result<(), Error> {
    // The owning watcher did so long ago, unless there was none in all that time.
    bus.checkpoints().delete(account).await?;
    bus.statuses().delete(account).await?;
    bus.accounts().delete(account).await?;
    mirror.forget_account(account);
    Ok(())
}

async fn forget_tokens(bus: &Bus, now: i64) -> Result<(), Error> {
    let mut page_token: Option<PageToken> = None;
    loop {
        let page = bus.tokens().list(None, PAGE, page_token.as_ref()).await;
        let page = match page {
            // The place that it names is gone, since others sweep too: the next sweep begins anew.
            Err(BusError::Options(_)) => return Ok(()),
            page => page?,
        };
        for ((tenant, id), record) in page.records {
            if record.value.expires_at_ms.saturating_add(TOKEN_GRACE_MS) < now {
                bus.tokens().delete(&tenant, &id).await?;
            }
        }
        match page.next {
            Some(next) => page_token = Some(next),
            None => return Ok(()),
        }
    }
}
