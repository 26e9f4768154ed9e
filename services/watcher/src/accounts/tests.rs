//! Sessions that crash, are lost or removed, beside others that go on.

use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::driver::tests::{
    context,
    log::{Logs, MemoryLog},
    record,
    server::Server,
    watching,
};

struct World {
    accounts: Accounts,
    context: Arc<Context>,
    registry: Arc<Registry>,
    server: Server,
    logs: Logs,
}

/// Two accounts that share one mailbox, so that both hear of the same arrivals.
async fn world() -> (World, AccountId, AccountId) {
    let ids = [
        "default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "acme.01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ];
    let [one, two] = ids.map(|id| id.parse::<AccountId>().unwrap());
    let logs = Logs(
        [&one, &two]
            .into_iter()
            .map(|account| {
                let log = MemoryLog::new();
                log.with(|state| state.checkpoint = Some((watching(2), 1)));
                (account.clone(), log)
            })
            .collect(),
    );
    let server = Server::new(&[1]);
    let context = context(&server, logs.clone());
    let registry = Arc::new(Registry::default());
    let mut accounts = Accounts::new(Arc::clone(&context), Arc::clone(&registry));
    accounts.put(one.clone(), record());
    accounts.put(two.clone(), record());
    assert_eq!(
        accounts.running(),
        0,
        "nothing begins before its partition is ours"
    );
    accounts.begin(
        &[(one.partition(), 1), (two.partition(), 1)],
        Found::default(),
    );
    server.until(|mailbox| mailbox.idling == 2).await;
    let world = World {
        accounts,
        context,
        registry,
        server,
        logs,
    };
    (world, one, two)
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_quarantined_and_leaves_neighbours_alone() {
    let (mut world, one, two) = world().await;
    let mut pauses = Vec::new();
    for round in 1..=6 {
        world.context.panics.store(1, SeqCst);
        let slot = world.registry.session(&one).unwrap();
        slot.change(Arc::new(record()));
        let ended = world.accounts.ended().await;
        assert!(ended.as_ref().is_err_and(JoinError::is_panic));
        world.accounts.on_ended(ended);
        let until = world.accounts.quarantine_ends().unwrap();
        pauses.push(until.saturating_duration_since(Instant::now()));
        // Meanwhile the neighbour hears what comes, over the connection that it had.
        let uid = 1 + round;
        world.server.deliver(uid);
        let told: Vec<u32> = (2..=uid).collect();
        world.logs.0[&two].until_arrived(&told).await;
        assert_eq!(world.server.look(|mailbox| mailbox.logins), 1 + round);
        tokio::time::sleep_until(until).await;
        world.accounts.end_quarantines();
        world.logs.0[&one].until_arrived(&told).await;
        world.server.until(|mailbox| mailbox.idling == 2).await;
    }
    assert!(
        pauses.iter().all(|pause| *pause >= Duration::from_secs(1)),
        "{pauses:?}"
    );
    assert!(
        pauses.iter().any(|pause| *pause > Duration::from_secs(2)),
        "{pauses:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_partition_takes_only_its_own_sessions() {
    let (mut world, one, two) = world().await;
    assert_ne!(one.partition(), two.partition());
    assert!(
        !world.accounts.lose(one.partition(), 0),
        "of an earlier ownership"
    );
    assert!(world.accounts.lose(one.partition(), 1));
    assert!(world.registry.session(&one).is_none() && world.registry.session(&two).is_some());
    let ended = world.accounts.ended().await;
    assert_eq!(ended.as_ref().unwrap().1, End::Lost);
    world.accounts.on_ended(ended);
    assert_eq!(
        (world.accounts.running(), world.accounts.quarantine_ends()),
        (1, None)
    );
    // It is ours again.
    world
        .accounts
        .begin(&[(one.partition(), 3)], Found::default());
    world.server.deliver(2);
    world.logs.0[&one].until_arrived(&[2]).await;
    world.logs.0[&two].until_arrived(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_purges_and_stays_purged() {
    let (mut world, one, two) = world().await;
    let tombstone = || AccountRecord {
        removed_at_ms: 5,
        ..record()
    };
    world.accounts.put(one.clone(), tombstone());
    let ended = world.accounts.ended().await;
    assert_eq!(ended.as_ref().unwrap().1, End::Removed);
    world.accounts.on_ended(ended);
    assert!(world.logs.0[&one].with(|state| state.checkpoint.is_none()));
    world.accounts.put(one.clone(), tombstone());
    assert_eq!(world.accounts.running(), 1);
    assert!(world.registry.session(&one).is_none() && world.registry.session(&two).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_claim_is_bound_over_a_crash() {
    let (mut world, one, _) = world().await;
    let log = world.logs.0[&one].clone();
    log.with(|state| {
        state
            .store_fates
            .extend([crate::driver::tests::log::Fate::Broken; 99])
    });
    world.server.deliver(2);
    log.until_arrived(&[2]).await;
    // Its checkpoint is not stored: nobody may call the event flushed, whatever becomes of the session.
    let bound = |registry: &Registry| {
        let log_id = crate::driver::tests::log::LOG;
        registry.bounds(|_| log_id).get(&one.partition()).copied()
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(bound(&world.registry), Some(0));
    world.context.panics.store(1, SeqCst);
    let slot = world.registry.session(&one).unwrap();
    slot.change(Arc::new(record()));
    let ended = world.accounts.ended().await;
    world.accounts.on_ended(ended);
    assert_eq!(bound(&world.registry), Some(0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.accounts.end_quarantines();
    assert_eq!(bound(&world.registry), Some(0));
}
