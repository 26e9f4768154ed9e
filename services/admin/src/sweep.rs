//! What is forgotten in time: tombstones, and tokens that have expired.

use std::time::Duration;

use mailbell_bus::{Bus, BusError, Logs, state::PageToken};
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
    let mut logs = None;
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
        match sweep(&bus, &mut logs, &mirror, first).await {
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

/// `logs`: from an earlier sweep, once one needed them.
async fn sweep(
    bus: &Bus,
    logs: &mut Option<Logs>,
    mirror: &Mirror,
    first: bool,
) -> Result<(), Error> {
    let now = convert::now_ms();
    let tombstone_ms = i64::try_from(bus.timing().tombstone_age.as_millis()).unwrap_or(i64::MAX);
    for (account, removed_at_ms) in mirror.removed() {
        let old = removed_at_ms.saturating_add(tombstone_ms) < now;
        if old || first {
            // A removal that a crash cut off.
            let record = bus.accounts().get(&account).await?;
            let external_id = record.map(|record| record.value.external_id);
            accounts::purge(bus, &account, &external_id.unwrap_or_default()).await?;
        }
        if old {
            let logs = match &mut *logs {
                Some(logs) => logs,
                none => none.insert(bus.logs().await?),
            };
            forget(bus, logs, mirror, &account).await?;
        }
    }
    forget_tokens(bus, now).await
}

async fn forget(bus: &Bus, logs: &Logs, mirror: &Mirror, account: &AccountId) -> Result<(), Error> {
    // The owning watcher did so long ago, unless there was none in all that time. The tombstone goes last: until then readers
    // skip what the log still holds, and whatever fails here is done again.
    logs.purge_account(account).await?;
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

#[cfg(test)]
mod tests {
    use mailbell_bus::{
        BusOptions, Role,
        state::{Cas, Versioned},
    };
    use mailbell_core::{
        checkpoint::Checkpoint,
        event::{Event, Fact},
        ids::Tenant,
    };
    use mailbell_proto::bus::v1::{AccountRecord, SealedCredential};
    use mailbell_runtime::health::Health;
    use mailbell_test_servers::{NatsOptions, NatsServer};

    use super::*;

    async fn connect(nats: &NatsServer, role: Role) -> Bus {
        let options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
        Bus::connect(options).await.unwrap()
    }

    #[tokio::test]
    async fn what_no_watcher_has_purged_goes_before_its_tombstone() {
        let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
        connect(&nats, Role::Setup).await.setup().await.unwrap();
        let (watcher, admin) =
            tokio::join!(connect(&nats, Role::Watcher), connect(&nats, Role::Admin));
        let logs = watcher.logs().await.unwrap();
        let mirror = Mirror::new(Default::default(), Health::new());
        let tenant = Tenant::default();
        let now = convert::now_ms();
        let removed = [now - 73 * 3600 * 1000, now - 71 * 3600 * 1000];
        let mut accounts = Vec::new();
        for (name, removed_at_ms) in ["old", "young"].into_iter().zip(removed) {
            let id = AccountId::new(tenant.clone(), ulid::Ulid::generate());
            let ids = admin.external_ids();
            assert_eq!(ids.claim(&tenant, name, &id).await.unwrap(), id);
            let credential = SealedCredential::default();
            admin.credentials().put(&id, &credential).await.unwrap();
            let first = Checkpoint::first([("INBOX".to_owned(), 1, 1)], 0);
            let stored = admin.checkpoints().store(&id, &first, 0).await.unwrap();
            assert!(matches!(stored, Cas::Stored(_)));
            let event = Event {
                account: id.clone(),
                folder: 1,
                generation: 1,
                fact: Fact::Gone { uid: 1 },
                alert: false,
                owner_epoch: 1,
                traceparent: String::new(),
                detected_us: 1,
                fetched_us: 1,
                folder_name: String::new(),
                content: Vec::new().into(),
            };
            logs.append(&event).await;
            let tombstone = AccountRecord {
                schema: 1,
                external_id: name.to_owned(),
                removed_at_ms,
                ..AccountRecord::default()
            };
            let stored = admin.accounts().create(&id, &tombstone).await.unwrap();
            assert!(matches!(stored, Cas::Stored(_)));
            mirror.note_account(&id, removed_at_ms);
            accounts.push(id);
        }
        let (old, young) = (&accounts[0], &accounts[1]);
        sweep(&admin, &mut None, &mirror, false).await.unwrap();
        assert_eq!(mirror.removed().len(), 1);
        assert_eq!(admin.accounts().get(old).await.unwrap(), None);
        assert_eq!(admin.checkpoints().load(old).await.unwrap(), None);
        assert_eq!(watcher.credentials().get(old).await.unwrap(), None);
        let ids = admin.external_ids();
        assert_eq!(ids.get(&tenant, "old").await.unwrap(), None);
        assert_eq!(logs.purge_account(old).await.unwrap(), 0);
        // The other one is still its owner's to purge.
        let record = admin.accounts().get(young).await.unwrap();
        assert!(matches!(record, Some(Versioned { value, .. }) if value.removed_at_ms > 0));
        assert!(admin.checkpoints().load(young).await.unwrap().is_some());
        assert_eq!(logs.purge_account(young).await.unwrap(), 1);
        watcher.close().await;
        admin.close().await;
    }
}
