//! Sessions that crash, are lost or removed, beside others that go on.

use std::sync::atomic::Ordering::SeqCst;

use mailbell_bus::state::PartitionRecords;
use mailbell_core::{ids::Group, records::Version};
use mailbell_proto::push::v1::Health;

use super::*;
use crate::driver::tests::{
    context,
    log::{Fate, Logs, MemoryLog},
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

const fn at(revision: u64) -> Version {
    Version {
        history: 1,
        revision,
    }
}

/// What a load finds of the partition of this account: it alone.
fn found(account: &AccountId) -> Found {
    Found {
        records: vec![PartitionRecords {
            partition: account.partition(),
            version: at(1),
            records: vec![(account.clone(), record())],
        }],
        ..Found::default()
    }
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
    accounts.expect([(one.partition(), 1), (two.partition(), 1)]);
    accounts.put(two.clone(), at(2), record());
    assert_eq!(accounts.running(), 0, "nothing begins before it is loaded");
    // Of the two one is read, and one is told while the other is read.
    let mut found = found(&one);
    found.records.push(PartitionRecords {
        partition: two.partition(),
        version: at(1),
        records: Vec::new(),
    });
    accounts.begin(&[(one.partition(), 1), (two.partition(), 1)], found);
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

impl World {
    /// Lets the account's session panic; how long it is quarantined.
    async fn crash(&mut self, account: &AccountId) -> Duration {
        self.context.panics.store(1, SeqCst);
        let slot = self.registry.session(account).unwrap();
        slot.change(Arc::new(record()));
        let ended = self.accounts.ended().await;
        assert!(ended.as_ref().is_err_and(JoinError::is_panic));
        self.quarantined(ended)
    }

    /// A session ended so; how long it is quarantined.
    fn quarantined(&mut self, ended: Ended) -> Duration {
        self.accounts.on_ended(ended);
        assert_eq!(self.context.metrics.quarantined.get(), 1);
        let until = self.accounts.quarantine_ends().unwrap();
        until.saturating_duration_since(Instant::now())
    }

    /// Waits until the quarantine is over.
    async fn sit_out(&mut self) {
        let until = self.accounts.quarantine_ends().unwrap();
        tokio::time::sleep_until(until).await;
        self.accounts.end_quarantines();
        assert_eq!(self.context.metrics.quarantined.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_quarantined_and_leaves_neighbours_alone() {
    let (mut world, one, two) = world().await;
    let mut pauses = Vec::new();
    for round in 1..=6 {
        pauses.push(world.crash(&one).await);
        let log = world.logs.0[&one].clone();
        log.until_shown(Health::Retrying, "quarantined").await;
        // Meanwhile the neighbour hears what comes, over the connection that it had.
        let uid = 1 + round;
        world.server.deliver(uid);
        let told: Vec<u32> = (2..=uid).collect();
        world.logs.0[&two].until_arrived(&told).await;
        assert_eq!(world.server.look(|mailbox| mailbox.logins), 1 + round);
        world.sit_out().await;
        world.logs.0[&one].until_arrived(&told).await;
        world.server.until(|mailbox| mailbox.idling == 2).await;
        log.until_shown(Health::Watching, "watching").await;
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
async fn who_is_asked_to_hurry_waits_in_quarantine_no_more() {
    let (mut world, one, two) = world().await;
    world.crash(&one).await;
    let log = world.logs.0[&one].clone();
    log.until_shown(Health::Retrying, "quarantined").await;
    let since = Instant::now();
    world.accounts.hurry(&one);
    assert_eq!(world.accounts.quarantine_ends(), None);
    world.server.until(|mailbox| mailbox.idling == 2).await;
    log.until_shown(Health::Watching, "watching").await;
    assert!(since.elapsed() < Duration::from_secs(1));
    // Who watches is left alone.
    world.accounts.hurry(&two);
    world.server.deliver(2);
    world.logs.0[&two].until_arrived(&[2]).await;
    assert_eq!(world.server.look(|mailbox| mailbox.logins), 3);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_others_write_is_quarantined_too() {
    let (mut world, one, _) = world().await;
    let log = world.logs.0[&one].clone();
    log.with(|state| state.store_fates.extend([Fate::Conflict; 6]));
    world.server.deliver(2);
    log.until_arrived(&[2]).await;
    let mut pauses = Vec::new();
    for _ in 0..6 {
        let ended = world.accounts.ended().await;
        assert_eq!(ended.as_ref().unwrap().1, End::Conflict);
        pauses.push(world.quarantined(ended));
        log.until_shown(Health::Retrying, "quarantined").await;
        world.sit_out().await;
        log.until_shown(Health::Watching, "watching").await;
    }
    assert!(
        pauses.iter().all(|pause| *pause >= Duration::from_secs(1)),
        "{pauses:?}"
    );
    assert!(
        pauses.iter().any(|pause| *pause > Duration::from_secs(2)),
        "{pauses:?}"
    );
    // The others are gone: it is stored, and nothing was told twice.
    log.until(|state| state.checkpoint.as_ref().unwrap().1 == 2)
        .await;
    assert_eq!(log.arrived(), [2]);
}

#[tokio::test(start_paused = true)]
async fn a_changed_record_ends_the_quarantine_and_makes_the_next_one_short() {
    let (mut world, one, _) = world().await;
    let log = world.logs.0[&one].clone();
    for _ in 0..6 {
        world.crash(&one).await;
        world.sit_out().await;
        log.until_shown(Health::Watching, "watching").await;
    }
    world.crash(&one).await;
    log.until_shown(Health::Retrying, "quarantined").await;
    let until = world.accounts.quarantine_ends();
    world.accounts.put(one.clone(), at(5), record());
    assert_eq!(world.accounts.quarantine_ends(), until, "nothing changed");
    let since = Instant::now();
    let changed = AccountRecord {
        credential_version: 2,
        ..record()
    };
    world.accounts.put(one.clone(), at(6), changed);
    assert_eq!(world.accounts.quarantine_ends(), None);
    assert_eq!(world.context.metrics.quarantined.get(), 0);
    log.until_shown(Health::Watching, "watching").await;
    assert!(since.elapsed() < Duration::from_secs(1));
    // What made it crash may be mended: it is tried as soon as the first time, and then later and later.
    assert_eq!(world.crash(&one).await, Duration::from_secs(1));
    world.sit_out().await;
    log.until_shown(Health::Watching, "watching").await;
    assert!(world.crash(&one).await > Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn who_is_paused_or_removed_in_quarantine_is_so_at_once() {
    let (mut world, one, two) = world().await;
    world.crash(&one).await;
    let paused = AccountRecord {
        paused: true,
        ..record()
    };
    world.accounts.put(one.clone(), at(5), paused);
    let log = world.logs.0[&one].clone();
    log.until_shown(Health::Paused, "paused").await;
    world.crash(&two).await;
    let tombstone = AccountRecord {
        removed_at_ms: 5,
        ..record()
    };
    world.accounts.put(two.clone(), at(6), tombstone);
    assert_eq!(world.accounts.quarantine_ends(), None);
    let ended = world.accounts.ended().await;
    assert_eq!(ended.as_ref().unwrap().1, End::Removed);
    world.accounts.on_ended(ended);
    assert!(world.registry.session(&one).is_some() && world.registry.session(&two).is_none());
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
    world.accounts.begin(&[(one.partition(), 3)], found(&one));
    world.server.deliver(2);
    world.logs.0[&one].until_arrived(&[2]).await;
    world.logs.0[&two].until_arrived(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn who_is_lost_in_quarantine_counts_no_more() {
    let (mut world, one, _) = world().await;
    world.crash(&one).await;
    assert_eq!(world.context.metrics.quarantined.get(), 1);
    assert!(world.accounts.lose(one.partition(), 1));
    assert_eq!(world.context.metrics.quarantined.get(), 0);
    assert_eq!(world.accounts.quarantine_ends(), None);
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_purges_and_stays_purged() {
    let (mut world, one, two) = world().await;
    let tombstone = || AccountRecord {
        removed_at_ms: 5,
        ..record()
    };
    world.accounts.put(one.clone(), at(5), tombstone());
    let ended = world.accounts.ended().await;
    assert_eq!(ended.as_ref().unwrap().1, End::Removed);
    world.accounts.on_ended(ended);
    assert!(world.logs.0[&one].with(|state| state.checkpoint.is_none()));
    world.accounts.put(one.clone(), at(6), tombstone());
    assert_eq!(world.accounts.running(), 1);
    assert!(world.registry.session(&one).is_none() && world.registry.session(&two).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_claim_is_bound_over_a_crash() {
    let (mut world, one, _) = world().await;
    let log = world.logs.0[&one].clone();
    log.with(|state| state.store_fates.extend([Fate::Broken; 99]));
    world.server.deliver(2);
    log.until_arrived(&[2]).await;
    // Its checkpoint is not stored: nobody may call the event flushed, whatever becomes of the session.
    let bound = |registry: &Registry| {
        let log_id = crate::driver::tests::log::LOG;
        registry.bound(one.partition(), log_id)
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(bound(&world.registry), Some(0));
    world.crash(&one).await;
    assert_eq!(bound(&world.registry), Some(0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.accounts.end_quarantines();
    assert_eq!(bound(&world.registry), Some(0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_partitions_of_others() {
    let (mut world, one, two) = world().await;
    assert!(world.accounts.lose(two.partition(), 1));
    let ended = world.accounts.ended().await;
    world.accounts.on_ended(ended);
    world.accounts.put(two.clone(), at(9), record());
    world.accounts.delete(two.clone(), at(10));
    assert_eq!(world.accounts.partitions.len(), 1);
    assert_eq!(world.accounts.running(), 1);
    assert!(world.registry.session(&one).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_loss_of_an_old_claim_leaves_the_load_of_a_new_one() {
    let (mut world, one, _) = world().await;
    assert!(world.accounts.lose(one.partition(), 1));
    world.accounts.expect([(one.partition(), 3)]);
    world.accounts.lose(one.partition(), 1);
    // Told while it is loaded, so it counts although the load does not have it.
    let paused = AccountRecord {
        paused: true,
        ..record()
    };
    world.accounts.put(one.clone(), at(7), paused.clone());
    world.accounts.begin(&[(one.partition(), 3)], found(&one));
    let entry = world.accounts.entry(&one).unwrap();
    assert_eq!(*entry.record, paused);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_made_anew_ends_what_it_has_lost_and_touches_nothing_else() {
    let (mut world, one, two) = world().await;
    assert!(world.accounts.rereads().is_empty());
    for group in Group::all() {
        world.accounts.restarted(group, 2);
    }
    let rereads = world.accounts.rereads();
    assert_eq!(rereads.len(), 2);
    assert!(world.accounts.rereads().is_empty(), "each is named once");
    for reread in rereads {
        let kept = (reread.partition == two.partition()).then(|| (two.clone(), record()));
        let read = PartitionRecords {
            partition: reread.partition,
            version: Version {
                history: 2,
                revision: 1,
            },
            records: kept.into_iter().collect(),
        };
        world.accounts.reread(reread, read);
    }
    let ended = world.accounts.ended().await;
    assert_eq!(ended.as_ref().unwrap().1, End::Lost);
    world.accounts.on_ended(ended);
    assert!(world.registry.session(&one).is_none());
    assert!(world.accounts.rereads().is_empty());
    // The other one goes on over the connection that it had.
    world.server.deliver(2);
    world.logs.0[&two].until_arrived(&[2]).await;
    assert_eq!(world.server.look(|mailbox| mailbox.logins), 2);
}

/// A claim that went before its time and was taken again, while what is known is loaded.
#[tokio::test(start_paused = true)]
async fn what_is_renewed_while_it_is_loaded_is_served_once_it_is() {
    let (mut world, one, _) = world().await;
    let partition = one.partition();
    world.accounts.lose(partition, 1);
    world.accounts.expect([(partition, 2)]);
    world.accounts.renew(partition, 3);
    assert!(!world.registry.serves(partition));
    // What was loaded for an ownership before is void.
    assert_eq!(world.accounts.still_ours(partition, 1), None);
    assert_eq!(world.accounts.still_ours(partition, 2), Some(3));
    world.accounts.begin(&[(partition, 3)], found(&one));
    assert_eq!(world.registry.epoch(partition), Some(3));
    assert_eq!(world.accounts.running_in(partition), 1);
}

/// The same while it is handed over: it is not served again, and it goes.
#[tokio::test(start_paused = true)]
async fn what_is_renewed_in_a_hand_over_goes_all_the_same() {
    let (mut world, one, _) = world().await;
    let partition = one.partition();
    assert!(world.accounts.hand_over(partition, 1));
    world.accounts.renew(partition, 2);
    assert!(!world.registry.serves(partition));
    while world.accounts.running_in(partition) > 0 {
        let ended = world.accounts.ended().await;
        world.accounts.on_ended(ended);
    }
    world.accounts.let_go(partition, 1);
    assert_eq!(world.accounts.accounts_in(partition), 0);
    assert!(world.registry.session(&one).is_none());
}

/// Whoever logs in nowhere keeps nothing from being given away.
#[tokio::test(start_paused = true)]
async fn what_rests_takes_no_time_to_log_in() {
    let (world, one, two) = world().await;
    let busiest = |paused: &[&AccountId], logins| {
        let paused = paused.iter().map(|account| account.tenant().clone());
        world.accounts.busiest_host(&paused.collect(), |_| logins)
    };
    assert_eq!(busiest(&[], Some(1)), (2, 2.0));
    assert_eq!(busiest(&[&two], Some(1)), (2, 1.0));
    assert_eq!(busiest(&[&one, &two], Some(1)), (2, 0.0));
    assert_eq!(busiest(&[], None), (2, 0.0));
}
